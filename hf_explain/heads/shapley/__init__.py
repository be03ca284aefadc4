from hf_explain.heads.entry import Head
from hf_explain.heads.shapley.configuration_shapley import ShapleyConfig
from hf_explain.heads.shapley.modeling_shapley import ShapleyForSaliency


HEAD = Head(
    model=ShapleyForSaliency,
    name="FastSHAP",
    summary="A small branch on each of several layers of the frozen classifier gives every cell of the image a signed "
    "share of the class's score; the shares add up to it, and are trained to be the cells' Shapley values.",
    paper="FastSHAP: Real-Time Shapley Value Estimation",
    url="https://arxiv.org/abs/2107.07436",
    citation="""@inproceedings{jethani2022fastshap,
  title     = {{FastSHAP}: Real-Time Shapley Value Estimation},
  author    = {Jethani, Neil and Sudarshan, Mukund and Covert, Ian and Lee, Su-In and Ranganath, Rajesh},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
)

__all__ = ["HEAD", "ShapleyConfig", "ShapleyForSaliency"]
