from hf_explain.heads.entry import Head
from hf_explain.heads.ttame.configuration_ttame import TTameConfig
from hf_explain.heads.ttame.modeling_ttame import TTameForSaliency


HEAD = Head(
    model=TTameForSaliency,
    name="T-TAME",
    summary="A small branch on each of several layers of the frozen classifier, fused into one map per class, "
    "trained by masking with the map what the classifier sees.",
    paper="T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision Transformers",
    url="https://arxiv.org/abs/2403.04523",
    citation="""@article{ntrougkas2024ttame,
  title   = {{T-TAME}: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision Transformers},
  author  = {Ntrougkas, Mariano V. and Gkalelis, Nikolaos and Mezaris, Vasileios},
  journal = {IEEE Access},
  year    = {2024},
  doi     = {10.1109/ACCESS.2024.3405788}
}""",
)

__all__ = ["HEAD", "TTameConfig", "TTameForSaliency"]
