"""Average drop and increase in confidence as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, average_drop
from hf_explain.metrics.module import SaliencyMetric, listed
from hf_explain.metrics.number import Number


_DESCRIPTION = """
Average drop, AD(v), is how much of its confidence the classifier loses, on average and in percent, when it sees only
the v percent most salient pixels, each multiplied by its saliency. Increase in confidence, IC(v), is the percentage of
images where it gains some. A low AD and a high IC are better; the mean mask area says at what price.
"""

_KWARGS_DESCRIPTION = """
Args:
    average_drop (`list` of `float`): Drop of each image in percent, at the first percentage of pixels kept.
    drops (`list` of `list` of `float`): Drop of each image in percent, one number per percentage of pixels kept.
    increases (`list` of `list` of `float`): 100 where the confidence grew, 0 where not, one per percentage.
    areas (`list` of `list` of `float`): Mean of the soft map kept in percent of the image, one per percentage.

Returns:
    `dict`: `average_drop` (AD at the first percentage), for every percentage v `average_drop_v`,
    `increase_in_confidence_v` and `mask_area_v`, an `_interval` of each, `num_images` and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("average_drop"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[3.0, 1.0], [0.0, 1.0]]]])
    >>> saliency = torch.tensor([[[1.0, 0.5], [0.1, 0.3]]])
    >>> settings = {"image_mean": [0], "image_std": [1], "percents": (50, 25)}
    >>> metric.add_batch(**metric.measure(is_bright, pixel_values, saliency, **settings))
    >>> result = metric.compute()
    >>> round(result["average_drop_50"], 2), round(result["average_drop_25"], 2), result["increase_in_confidence_50"]
    (20.89, 32.64, 0.0)
"""

_CITATION = """
@inproceedings{chattopadhay2018gradcampp,
  title     = {{Grad-CAM++}: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks},
  author    = {Chattopadhay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N.},
  booktitle = {IEEE Winter Conference on Applications of Computer Vision},
  year      = {2018}
}
"""


class AverageDrop(SaliencyMetric):
    """Average drop, increase in confidence and mean mask area: presets `default`, `lcam`, `ttame`, `patch`, `rank`."""

    metric_name = "average_drop"
    numbers = (
        Number("average_drop", "average drop", False, "%", heading="AD", per_percent=True),
        Number("increase_in_confidence", "increase in confidence", True, "%", heading="IC", per_percent=True),
        Number("mask_area", "mask area", False, "%", heading="area", per_percent=True),
    )
    presets = PRESETS["average_drop"]
    inputs = ("target", "logits", "image_ids", "image_mean", "image_std")
    options = ("percents", "rule", "mask_space", "scale", "grid", "seed")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "average_drop": datasets.Value("float64"),
                    "drops": datasets.Sequence(datasets.Value("float64")),
                    "increases": datasets.Sequence(datasets.Value("float64")),
                    "areas": datasets.Sequence(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/1710.11063", "https://huggingface.co/papers/2403.04523"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        options["percents"] = listed(options["percents"])
        result = average_drop(predict, pixel_values, saliency, **options)
        columns = {
            "average_drop": 100 * result.drop[:, 0].double(),
            "drops": 100 * result.drop.double(),
            "increases": 100 * result.increase.double(),
            "areas": 100 * result.area.double(),
        }
        return columns, result.protocol

    def _summarize(self, columns, protocol):
        percents = protocol["percents"]
        self._check_steps(columns, ("drops", "increases", "areas"), percents, "percents")
        scalars = {"average_drop": columns["average_drop"]}
        for place, percent in enumerate(percents):
            scalars[f"average_drop_{percent:g}"] = columns["drops"][:, place]
            scalars[f"increase_in_confidence_{percent:g}"] = columns["increases"][:, place]
            scalars[f"mask_area_{percent:g}"] = columns["areas"][:, place]
        return scalars, {}, {}
