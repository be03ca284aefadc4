from hf_explain.heads.entry import Head
from hf_explain.heads.ptame.configuration_ptame import PTameConfig
from hf_explain.heads.ptame.modeling_ptame import PTameForSaliency


HEAD = Head(
    model=PTameForSaliency,
    name="P-TAME",
    summary="A small branch on each stage of a second, small and frozen image classifier, fused into one map per "
    "class of the explained one, trained by masking with the map what the explained classifier sees.",
    paper="P-TAME: Explain Any Image Classifier With Trained Perturbations",
    url="https://arxiv.org/abs/2501.17813",
    citation="""@article{ntrougkas2025ptame,
  title   = {{P-TAME}: Explain Any Image Classifier With Trained Perturbations},
  author  = {Ntrougkas, Mariano V. and Mezaris, Vasileios and Patras, Ioannis},
  journal = {IEEE Open Journal of Signal Processing},
  year    = {2025},
  doi     = {10.1109/OJSP.2025.3568756}
}""",
)

__all__ = ["HEAD", "PTameConfig", "PTameForSaliency"]
