"""ROAD as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, road
from hf_explain.metrics.module import SaliencyMetric, listed
from hf_explain.metrics.number import Number


_DESCRIPTION = """
ROAD (remove and debias) replaces removed pixels by what their neighbours suggest, so that the shape of what was
removed gives nothing away. MoRF removes the most relevant pixels first, LeRF the least relevant; the combined score is
half the difference of the classifier's scores, LeRF minus MoRF, mean over percentages removed. Higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    road (`list` of `float`): Combined score of each image, in [-0.5, 0.5].
    unperturbed (`list` of `float`): Score of each image itself.
    morf (`list` of `list` of `float`): Scores of each image, one per percentage removed, most relevant first.
    lerf (`list` of `list` of `float`): The same, least relevant first.

Returns:
    `dict`: `road`, `morf`, `lerf` and `unperturbed` (means over images and percentages), an `_interval` of each,
    `morf_curve` and `lerf_curve` (means over images), `num_images` and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("road"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[3.0, 1.0], [0.0, 1.0]]]])
    >>> saliency = torch.tensor([[[0.9, 0.4], [0.1, 0.3]]])
    >>> metric.add_batch(**metric.measure(is_bright, pixel_values, saliency, percents=(25, 50), noise=0))
    >>> result = metric.compute()
    >>> result["road"] > 0, len(result["morf_curve"]), result["num_images"]
    (True, 2, 1)
"""

_CITATION = """
@inproceedings{rong2022road,
  title     = {A Consistent and Efficient Evaluation Strategy for Attribution Methods},
  author    = {Rong, Yao and Leemann, Tobias and Borisov, Vadim and Kasneci, Gjergji and Kasneci, Enkelejda},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}
"""


class Road(SaliencyMetric):
    """ROAD: presets `default` and `patch` (confidence of the top-1), `road` (accuracy against labels)."""

    metric_name = "road"
    numbers = (
        Number("road", "ROAD", True),
        Number("morf", "MoRF", False),
        Number("lerf", "LeRF", True),
        Number("unperturbed", "unperturbed", None),
    )
    presets = PRESETS["road"]
    allows_bfloat16 = True
    inputs = ("target", "labels", "logits", "image_ids")
    options = ("percents", "score", "noise", "tolerance", "grid", "seed")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "road": datasets.Value("float64"),
                    "unperturbed": datasets.Value("float32"),
                    "morf": datasets.Sequence(datasets.Value("float32")),
                    "lerf": datasets.Sequence(datasets.Value("float32")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/2202.00449"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        options["percents"] = listed(options["percents"])
        result = road(predict, pixel_values, saliency, **options)
        columns = {"road": result.combined, "unperturbed": result.base, "morf": result.morf, "lerf": result.lerf}
        return columns, result.protocol

    def _summarize(self, columns, protocol):
        self._check_steps(columns, ("morf", "lerf"), protocol["percents"], "percents")
        scalars = {
            "road": columns["road"],
            "morf": columns["morf"].mean(1),
            "lerf": columns["lerf"].mean(1),
            "unperturbed": columns["unperturbed"],
        }
        return scalars, {f"{name}_curve": columns[name] for name in ("morf", "lerf")}, {}
