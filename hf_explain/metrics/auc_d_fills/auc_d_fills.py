"""AUC-D with several fills as an `evaluate` module."""

import datasets
import evaluate
import torch

from hf_explain.metrics.engine import EVERY_FILL
from hf_explain.metrics.functional import PRESETS, auc_d_fills, step_fractions
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
AUC-D with several fills: what is removed becomes black, the mean colour, and a blur of the image, in turn. Which map
wins by AUC-D often depends on the fill, and explainers trained by masking know those they were trained with; the mean
of several does not take one fill's word for it, and fills that no explainer was trained with stand apart. A map of
random numbers gives about 0; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    auc_d_fills (`list` of `float`): Mean over the fills of each image's AUC-D.
    auc_d_fill_black (`list` of `float`): AUC-D of each image, removed pixels black.
    auc_d_fill_mean (`list` of `float`): The same, removed pixels of the mean colour.
    auc_d_fill_blur (`list` of `float`): The same, removed pixels blurred.
    auc_d_fill_white, auc_d_fill_noise, auc_d_fill_color, auc_d_fill_photo (`list` of `float`): The same, removed
        pixels white, uniform noise, one random colour per image, another photograph; of the preset `all`.

Returns:
    `dict`: `auc_d_fills` and one number for every fill (means over images); where the protocol names `seen_fills`, the
    mean over those, `auc_d_fills_seen`, and over the others, `auc_d_fills_unseen`; an `_interval` of each,
    `num_images` and `protocol`.

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
    """AUC-D with several fills: presets `default`, `patch`, `all`."""

    metric_name = "auc_d_fills"
    numbers = (
        Number("auc_d_fills", "AUC-D over several fills", True, "points", heading="AUC-D, fills"),
        *(Number(f"auc_d_fill_{fill}", f"AUC-D with {fill}", True, "points", f"AUC-D, {fill}") for fill in EVERY_FILL),
        Number("auc_d_fills_seen", "AUC-D over seen fills", True, "points", "AUC-D, seen fills"),
        Number("auc_d_fills_unseen", "AUC-D over unseen fills", True, "points", "AUC-D, unseen fills", ranks=True),
    )
    presets = PRESETS["auc_d_fills"]
    allows_bfloat16 = True
    inputs = ("target", "labels", "logits", "image_ids", "image_mean", "image_std", "photos")
    options = ("fractions", "steps", "score", "rounding", "grid_size", "grid", "normalize", "seed")

    def _info(self):
        fills = self.presets[self.config_name]["fills"]
        names = ("auc_d_fills", *(f"auc_d_fill_{fill}" for fill in fills))
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

    def derived(self, columns, protocol):
        seen = protocol.get("seen_fills")
        if not seen:
            return {}
        apart: dict[str, list[list[float]]] = {"seen": [], "unseen": []}
        for fill in protocol["fills"]:
            apart["seen" if fill in seen else "unseen"].append(columns[f"auc_d_fill_{fill}"])
        means = {kind: torch.tensor(found, dtype=torch.float64).mean(0) for kind, found in apart.items() if found}
        return {f"auc_d_fills_{kind}": mean.tolist() for kind, mean in means.items()}

    def _summarize(self, columns, protocol):
        return columns, {}, {}
