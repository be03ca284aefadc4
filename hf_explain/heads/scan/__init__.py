from hf_explain.heads.entry import Head
from hf_explain.heads.scan.configuration_scan import ScanConfig
from hf_explain.heads.scan.modeling_scan import ScanForSaliency


HEAD = Head(
    model=ScanForSaliency,
    name="SCAN",
    summary="A decoder that reconstructs the image from gradient-masked features of the frozen classifier and "
    "says with a confidence channel where it could; the confidence is the map.",
    paper="SCAN: Visual Explanations with Self-Confidence and Analysis Networks",
    url="https://arxiv.org/abs/2603.06523",
    citation="""@misc{lee2026scan,
  title         = {{SCAN}: Visual Explanations with Self-Confidence and Analysis Networks},
  author        = {Lee, Gwanghee and Jeong, Sungyoon and Jhang, Kyoungson},
  year          = {2026},
  eprint        = {2603.06523},
  archivePrefix = {arXiv}
}""",
)

__all__ = ["HEAD", "ScanConfig", "ScanForSaliency"]
