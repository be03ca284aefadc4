from hf_explain.heads.entry import Head
from hf_explain.heads.lcam.configuration_lcam import LCamConfig
from hf_explain.heads.lcam.modeling_lcam import LCamForSaliency


HEAD = Head(
    model=LCamForSaliency,
    name="L-CAM",
    variants={"img": "L-CAM-Img", "fm": "L-CAM-Fm"},
    summary="One 1×1 convolution on one layer of the frozen classifier, one row of weights per class, trained by "
    "masking with the map what the classifier sees.",
    paper="Learning Visual Explanations for DCNN-Based Image Classifiers Using an Attention Mechanism",
    url="https://arxiv.org/abs/2209.11189",
    citation="""@inproceedings{gkartzonika2022lcam,
  title     = {Learning Visual Explanations for {DCNN}-Based Image Classifiers Using an Attention Mechanism},
  author    = {Gkartzonika, Ioanna and Gkalelis, Nikolaos and Mezaris, Vasileios},
  booktitle = {ECCV 2022 Workshops},
  pages     = {396--411},
  year      = {2022},
  doi       = {10.1007/978-3-031-25085-9_23}
}""",
)

__all__ = ["HEAD", "LCamConfig", "LCamForSaliency"]
