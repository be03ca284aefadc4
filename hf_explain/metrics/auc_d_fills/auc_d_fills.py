"""AUC-D with several fills as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, auc_d_fills, step_fractions
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number
from hf_explain.tensors.perturbation import FILLS


_DESCRIPTION = """
AUC-D with several fills: what is removed becomes black, the mean colour, and a blur of the image, in turn. Which map
wins by AUC-D often depends on the fill, and explainers trained by masking know the one they were trained with; the
mean of the three does not take one fill's word for it. A map of random numbers gives about 0; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    auc_d_fills (`list` of `float`): Mean over the fills of each image's AUC-D.
    auc_d_fill_black (`list` of `float`): AUC-D of each image, removed pixels black.
    auc_d_fill_mean (`list` of `float`): The same, removed pixels of the mean colour.
    auc_d_fill_blur (`list` of `float`): The same, removed pixels blurred.

Returns:
    `dict`: `auc_d_fills`, `auc_d_fill_black`, `auc_d_fill_mean` and `auc_d_fill_blur` (means over images), an
    `_interval` of each, `num_images` and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("auc_d_fills"))
    >>> def is_bright(pixel_values):
    ...     return torch.stack([pixel_values.sum((1, 2, 3)), torch.tensor(2.5).expand(len(pixel_values))], dim=1)
    >>> pixel_values = torch.tensor([[[[3.0, 1.0], [0.0, 1.0]]]])
    >>> saliency = torch.tensor([[[0.9, 0.4], [0.1, 0.3]]])
    >>> metric.add_batch(**metric.measure(is_bright, pixel_values, saliency, image_mean=[0], image_std=[1], steps=4))
    >>> result = metric.compute()
    >>> result["auc_d_fill_black"], result["auc_d_fill_mean"], result["protocol"]["fills"]
    (75.0, 75.0, ['black', 'mean', 'blur'])
"""

_CITATION = """
@misc{lee2026scan,
  title         = {{SCAN}: Visual Explanations with Self-Confidence and Analysis Networks},
  author        = {Lee, Gwanghee and Jeong, Sungyoon and Jhang, Kyoungson},
  year          = {2026},
  eprint        = {2603.06523},
  archivePrefix = {arXiv}
}
"""


class AucDFills(SaliencyMetric):
    """AUC-D with several fills: presets `default`, `patch`."""

    metric_name = "auc_d_fills"
    numbers = (
        Number("auc_d_fills", "AUC-D over three fills", True, "points", heading="AUC-D, three fills"),
        *(Number(f"auc_d_fill_{fill}", f"AUC-D with {fill}", True, "points", f"AUC-D, {fill}") for fill in FILLS),
    )
    presets = PRESETS["auc_d_fills"]
    inputs = ("target", "labels", "logits", "image_ids", "image_mean", "image_std")
    options = ("fractions", "steps", "score", "rounding", "grid_size", "grid", "normalize", "seed")

    def _info(self):
        names = ("auc_d_fills", *(f"auc_d_fill_{fill}" for fill in FILLS))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({name: datasets.Value("float64") for name in names}),
            reference_urls=["https://huggingface.co/papers/2603.06523"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        steps = options.pop("steps", None)
        if steps is not None:
            options["fractions"] = step_fractions(steps, options["fractions"][-1])
        result = auc_d_fills(predict, pixel_values, saliency, **options)
        columns = {f"auc_d_fill_{fill}": one.auc_d for fill, one in result.by_fill.items()}
        return {"auc_d_fills": result.auc_d_fills, **columns}, result.protocol

    def _summarize(self, columns, protocol):
        return dict(columns), {}, {}
