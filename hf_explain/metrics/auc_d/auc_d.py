"""AUC-D as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, auc_d, step_fractions
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
AUC-D removes the pixels of an image in the order of a saliency map, and in the opposite order, and watches the
classifier. It is the area under the curve with the least salient pixels removed first (negative) minus the one with
the most salient pixels removed first (positive), times 100. A map of random numbers gives about 0; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    auc_d (`list` of `float`): Negative minus positive AUC of each image, times 100.
    positive_auc (`list` of `float`): Area of each image, most salient pixels removed first, times 100.
    negative_auc (`list` of `float`): Area of each image, least salient pixels removed first, times 100.
    positive (`list` of `list` of `float`): Curve of each image, one score per fraction removed.
    negative (`list` of `list` of `float`): The same, least salient pixels removed first.

Returns:
    `dict`: `auc_d`, `positive_auc` and `negative_auc` (means over images), an `_interval` of each, `positive_curve`
    and `negative_curve` (means over images), `num_images` and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("auc_d"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[3.0, 1.0], [0.0, 1.0]]]])
    >>> saliency = torch.tensor([[[0.9, 0.4], [0.1, 0.3]]])
    >>> columns = metric.measure(is_bright, pixel_values, saliency, image_mean=[0], image_std=[1], steps=4)
    >>> metric.add_batch(**columns)
    >>> result = metric.compute()
    >>> result["positive_curve"], result["negative_curve"]
    ([1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0])
    >>> result["auc_d"]
    75.0
"""

_CITATION = """
@misc{lee2026scan,
  title         = {{SCAN}: Visual Explanations with Self-Confidence and Analysis Networks},
  author        = {Lee, Gwanghee and Jeong, Sungyoon and Jhang, Kyoungson},
  year          = {2026},
  eprint        = {2603.06523},
  archivePrefix = {arXiv}
}
@inproceedings{chefer2021transformer,
  title     = {Transformer Interpretability Beyond Attention Visualization},
  author    = {Chefer, Hila and Gur, Shir and Wolf, Lior},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}
"""


class AucD(SaliencyMetric):
    """AUC-D: presets `default`, `chefer`, `scan`, `rise`, `patch`."""

    metric_name = "auc_d"
    numbers = (
        Number("auc_d", "AUC-D", True, "points"),
        Number("positive_auc", "positive AUC", False, "points"),
        Number("negative_auc", "negative AUC", True, "points"),
    )
    presets = PRESETS["auc_d"]
    allows_bfloat16 = True
    inputs = ("target", "labels", "logits", "image_ids", "image_mean", "image_std", "photos")
    options = ("fractions", "steps", "score", "fill", "rounding", "grid_size", "grid", "normalize", "seed")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "auc_d": datasets.Value("float64"),
                    "positive_auc": datasets.Value("float64"),
                    "negative_auc": datasets.Value("float64"),
                    "positive": datasets.Sequence(datasets.Value("float32")),
                    "negative": datasets.Sequence(datasets.Value("float32")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/2603.06523", "https://huggingface.co/papers/2012.09838"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        steps = options.pop("steps", None)
        if steps is not None:
            options["fractions"] = step_fractions(steps, options["fractions"][-1])
        result = auc_d(predict, pixel_values, saliency, **options)
        columns = {
            "auc_d": result.auc_d,
            "positive_auc": result.positive_auc,
            "negative_auc": result.negative_auc,
            "positive": result.curves.positive,
            "negative": result.curves.negative,
        }
        return columns, result.protocol

    def _summarize(self, columns, protocol):
        self._check_steps(columns, ("positive", "negative"), protocol["fractions"], "fractions")
        scalars = {name: columns[name] for name in ("auc_d", "positive_auc", "negative_auc")}
        return scalars, {f"{order}_curve": columns[order] for order in ("positive", "negative")}, {}
