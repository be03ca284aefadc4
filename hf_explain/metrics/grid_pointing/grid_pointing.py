"""The grid pointing game as an `evaluate` module."""

import datasets
import evaluate
import torch

from hf_explain.metrics.functional import PRESETS, grid_composites, grid_pointing
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
The grid pointing game puts photographs of different classes into one picture, all of them classified rightly and with
confidence, and explains each of the classes on it. The share of a map's sum that lies on the photograph of its class,
in percent, is what it gets right: the one measure here that knows the truth. A map that knows nothing of the cells
gets 25 % with 2 × 2 photographs and 11 % with 3 × 3; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    grid_pointing (`list` of `float`): Percentage of each map's sum on the photograph of its class.

Returns:
    `dict`: `grid_pointing` and `grid_pointing_chance` (means over maps), an `_interval` of each, `num_images` (maps)
    and `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> from hf_explain.metrics.functional import Photographs
    >>> metric = evaluate.load(hf_explain.metrics.path("grid_pointing"))
    >>> classes = torch.arange(8) % 4
    >>> pixel_values = classes.float().view(8, 1, 1, 1).expand(8, 1, 4, 4)
    >>> photos = Photographs(pixel_values, 9 * torch.eye(4)[classes], ids=torch.arange(8), labels=classes)
    >>> def explain(pixel_values, target, image_ids):
    ...     return (pixel_values[:, 0] == target.view(-1, 1, 1)).float() + 0.1
    >>> ids = torch.arange(4)
    >>> metric.add_batch(**metric.measure(explain=explain, photos=photos, image_ids=ids))
    >>> result = metric.compute()
    >>> round(result["grid_pointing"], 1), result["grid_pointing_chance"], result["protocol"]["candidates"]
    (78.6, 25.0, 8)
"""

_CITATION = """
@inproceedings{bohle2021convolutional,
  title     = {Convolutional Dynamic Alignment Networks for Interpretable Classifications},
  author    = {B{\\"o}hle, Moritz and Fritz, Mario and Schiele, Bernt},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}
@inproceedings{rao2022towards,
  title     = {Towards Better Understanding Attribution Methods},
  author    = {Rao, Sukrut and B{\\"o}hle, Moritz and Schiele, Bernt},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}
"""


class GridPointing(SaliencyMetric):
    """Grid pointing game: presets `default` (2 × 2), `3x3`, `enlarged`, `top`."""

    metric_name = "grid_pointing"
    numbers = (
        Number("grid_pointing", "grid pointing game", True, "%", heading="GridPG"),
        Number("grid_pointing_chance", "chance of the grid pointing game", None, "%", heading="chance"),
    )
    presets = PRESETS["grid_pointing"]
    inputs = ("image_ids", "photos", "explain")
    options = ("cells", "confidence", "enlarged", "scale", "seed")
    needs_labels = True

    def photos_needed(self, overrides):
        return {**self.presets[self.config_name], **overrides}["confidence"]

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"grid_pointing": datasets.Value("float64")}),
            reference_urls=["https://huggingface.co/papers/2104.00032", "https://huggingface.co/papers/2205.10435"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        image_ids, photos, explain = (options[name] for name in self.inputs)
        for name in self.inputs:
            if options[name] is None:
                raise ValueError(
                    f"`{name}` is needed for the grid pointing game: `image_ids` are numbers of the maps, `photos` "
                    "what is composed, `explain` makes maps of the composites; an evaluation gives all three."
                )
        # `max_batch` and `max_bytes` limit forward passes, and there are none but those of `explain`
        settings = {name: options[name] for name in self.options if name in options}
        scale = settings.pop("scale")
        composites = grid_composites(photos, image_ids, **settings)
        like = photos.pixel_values if pixel_values is None else pixel_values
        found = explain(composites.pixel_values.to(like), composites.target.to(like.device), image_ids)
        height, width = composites.pixel_values.shape[-2:]
        cells, maps = settings["cells"], getattr(found, "saliency", found).cpu()
        result = grid_pointing(maps, composites.cell, image_size=(height, width), cells=cells, scale=scale)
        protocol = {
            **result.protocol,
            **{name: settings[name] for name in ("confidence", "enlarged")},
            "seed": settings.get("seed", 0),
            "candidates": composites.candidates,
            "note": f"chance is {100 * result.chance:.1f} %; every photograph is shown at "
            + ("its own size" if settings["enlarged"] else f"1/{cells} of its size"),
        }
        return {"grid_pointing": 100 * result.share.double()}, protocol

    def _summarize(self, columns, protocol):
        found = columns["grid_pointing"]
        return (
            {"grid_pointing": found, "grid_pointing_chance": torch.full_like(found, 100 / protocol["cells"] ** 2)},
            {},
            {},
        )
