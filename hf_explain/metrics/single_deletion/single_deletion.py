"""The single deletion score as an `evaluate` module."""

import datasets
import evaluate
import torch

from hf_explain.metrics.functional import PRESETS, single_deletion
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
Single deletion cuts an image into patches, removes one at a time, and compares the fall of the explained class's score
with the map: Spearman's rank correlation over the patches, image by image, then the mean. 1 is a map that orders the
patches as their removal does, 0 is chance; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    single_deletion (`list` of `float`): Rank correlation of each image, in [-1, 1].
    falls (`list` of `list` of `float`): What the score of each image loses with each patch, row by row.

Returns:
    `dict`: `single_deletion` and `single_deletion_chance` (means over images), an `_interval` of each, `num_images`
    and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("single_deletion"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]]])
    >>> saliency = torch.tensor([[[0.9, 0.1], [0.4, 0.5]]])
    >>> metric.add_batch(**metric.measure(is_bright, pixel_values, saliency, patches=2))
    >>> result = metric.compute()
    >>> round(result["single_deletion"], 2), result["single_deletion_chance"], result["protocol"]["in_domain"]
    (0.8, 0.0, False)
"""

_CITATION = """
@inproceedings{hesse2024benchmarking,
  title     = {Benchmarking the Attribution Quality of Vision Models},
  author    = {Hesse, Robin and Schaub-Meyer, Simone and Roth, Stefan},
  booktitle = {Advances in Neural Information Processing Systems, Datasets and Benchmarks Track},
  year      = {2024}
}
"""


class SingleDeletion(SaliencyMetric):
    """Single deletion score: presets `default`, `idsds`."""

    metric_name = "single_deletion"
    numbers = (
        Number("single_deletion", "single deletion", True),
        Number("single_deletion_chance", "chance of single deletion", None, heading="chance"),
    )
    presets = PRESETS["single_deletion"]
    inputs = ("target", "logits", "image_ids", "image_mean", "image_std", "photos")
    options = ("patches", "score", "fill", "seed")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "single_deletion": datasets.Value("float64"),
                    "falls": datasets.Sequence(datasets.Value("float32")),
                }
            ),
            reference_urls=["https://huggingface.co/papers/2407.11910"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        result = single_deletion(predict, pixel_values, saliency, **options)
        return {"single_deletion": result.correlation, "falls": result.fall}, result.protocol

    def _summarize(self, columns, protocol):
        found = columns["single_deletion"]
        return {"single_deletion": found, "single_deletion_chance": torch.zeros_like(found)}, {}, {}
