"""Insertion and deletion as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, insertion_deletion
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
Deletion takes pixels out of an image, the most salient first, and insertion puts them into a blurred copy of it, while
the softmax of the explained class is read. A good map has a low area under the deletion curve and a high one under the
insertion curve; the difference of the two is the one number to compare maps by.
"""

_KWARGS_DESCRIPTION = """
Args:
    insertion_deletion (`list` of `float`): Insertion minus deletion AUC of each image, in [-1, 1].
    insertion_auc (`list` of `float`): Area under the insertion curve of each image, in [0, 1].
    deletion_auc (`list` of `float`): Area under the deletion curve of each image, in [0, 1].
    insertion (`list` of `list` of `float`): Insertion curve of each image, from the blurred image to the image.
    deletion (`list` of `list` of `float`): Deletion curve of each image, from the image to nothing.

Returns:
    `dict`: `insertion_deletion`, `insertion_auc` and `deletion_auc` (means over images), an `_interval` of each,
    `insertion_curve` and `deletion_curve` (means over images), `num_images` and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("insertion_deletion"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[3.0, 1.0], [0.0, 1.0]]]])
    >>> saliency = torch.tensor([[[0.9, 0.4], [0.1, 0.3]]])
    >>> columns = metric.measure(is_bright, pixel_values, saliency, steps=4, insertion_fill="mean")
    >>> metric.add_batch(**columns)
    >>> result = metric.compute()
    >>> [round(score, 2) for score in result["deletion_curve"]]
    [0.92, 0.38, 0.18, 0.08, 0.08]
    >>> [round(score, 2) for score in result["insertion_curve"]]
    [0.08, 0.62, 0.82, 0.92, 0.92]
    >>> round(result["insertion_deletion"], 2)
    0.43
"""

_CITATION = """
@inproceedings{petsiuk2018rise,
  title     = {{RISE}: Randomized Input Sampling for Explanation of Black-box Models},
  author    = {Petsiuk, Vitali and Das, Abir and Saenko, Kate},
  booktitle = {British Machine Vision Conference},
  year      = {2018}
}
"""


class InsertionDeletion(SaliencyMetric):
    """Insertion and deletion: presets `default`, `rise`, `patch`."""

    metric_name = "insertion_deletion"
    numbers = (
        Number("insertion_deletion", "insertion minus deletion", True),
        Number("insertion_auc", "insertion AUC", True, heading="insertion"),
        Number("deletion_auc", "deletion AUC", False, heading="deletion"),
    )
    presets = PRESETS["insertion_deletion"]
    allows_bfloat16 = True
    inputs = ("target", "logits", "image_ids", "image_mean", "image_std", "photos")
    options = ("steps", "deletion_fill", "insertion_fill", "grid", "seed")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "insertion_deletion": datasets.Value("float64"),
                    "insertion_auc": datasets.Value("float64"),
                    "deletion_auc": datasets.Value("float64"),
                    "insertion": datasets.Sequence(datasets.Value("float32")),
                    "deletion": datasets.Sequence(datasets.Value("float32")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/1806.07421"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        result = insertion_deletion(predict, pixel_values, saliency, **options)
        columns = {
            "insertion_deletion": result.insertion_auc - result.deletion_auc,
            "insertion_auc": result.insertion_auc,
            "deletion_auc": result.deletion_auc,
            "insertion": result.insertion,
            "deletion": result.deletion,
        }
        return columns, result.protocol

    def _summarize(self, columns, protocol):
        scalars = {name: columns[name] for name in ("insertion_deletion", "insertion_auc", "deletion_auc")}
        return scalars, {f"{name}_curve": columns[name] for name in ("insertion", "deletion")}, {}
