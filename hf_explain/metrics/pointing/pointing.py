"""The pointing game and the energy inside the object as an `evaluate` module."""

import datasets
import evaluate

from hf_explain.metrics.functional import PRESETS, pointing
from hf_explain.metrics.module import SaliencyMetric
from hf_explain.metrics.number import Number


_DESCRIPTION = """
The pointing game asks whether the maximum of a saliency map lies on the object, given by a mask or boxes. Energy is
the share of the map's sum that does. Both are percentages; the mean area of the objects, also given, is what the
energy of a map without information would be.
"""

_KWARGS_DESCRIPTION = """
Args:
    pointing (`list` of `float`): 100 where the maximum of the map lies on the object, 0 where not; in between where
        several pixels are the maximum.
    energy (`list` of `float`): Percentage of the map's sum on the object.
    object_area (`list` of `float`): Percentage of the image the object covers.

Returns:
    `dict`: `pointing`, `energy` and `object_area` (means over images), an `_interval` of each, `num_images` and
    `protocol`.

Examples:
    >>> import evaluate
    >>> import torch
    >>> import hf_explain.metrics
    >>> metric = evaluate.load(hf_explain.metrics.path("pointing"))
    >>> saliency = torch.tensor([[[0.6, 0.2], [0.1, 0.1]]])
    >>> masks = torch.tensor([[[1, 1], [0, 0]]])
    >>> metric.add_batch(**metric.measure(saliency=saliency, masks=masks))
    >>> result = metric.compute()
    >>> round(result["pointing"], 2), round(result["energy"], 2), round(result["object_area"], 2)
    (100.0, 80.0, 50.0)
"""

_CITATION = """
@inproceedings{zhang2016excitation,
  title     = {Top-down Neural Attention by Excitation Backprop},
  author    = {Zhang, Jianming and Lin, Zhe and Brandt, Jonathan and Shen, Xiaohui and Sclaroff, Stan},
  booktitle = {European Conference on Computer Vision},
  year      = {2016}
}
@inproceedings{wang2020scorecam,
  title     = {{Score-CAM}: Score-Weighted Visual Explanations for Convolutional Neural Networks},
  author    = {Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui and
               Mardziel, Piotr and Hu, Xia},
  booktitle = {CVPR Workshops},
  year      = {2020}
}
"""


class Pointing(SaliencyMetric):
    """Pointing game and energy: presets `default` (no margin), `excitation_backprop` (a margin of 15 pixels)."""

    metric_name = "pointing"
    numbers = (
        Number("pointing", "pointing game", True, "%", heading="pointing"),
        Number("energy", "energy", True, "%"),
        Number("object_area", "object area", None, "%"),
    )
    presets = PRESETS["pointing"]
    inputs = ("masks", "boxes")
    options = ("margin", "image_size")

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "pointing": datasets.Value("float64"),
                    "energy": datasets.Value("float64"),
                    "object_area": datasets.Value("float64"),
                }
            ),
            reference_urls=["https://huggingface.co/papers/1608.00507", "https://huggingface.co/papers/1910.01279"],
        )

    def _measure(self, predict, pixel_values, saliency, **options):
        image_size = options.get("image_size")
        if options["boxes"] is not None and image_size is None and pixel_values is not None:
            image_size = tuple(pixel_values.shape[-2:])
        # `max_batch` and `max_bytes` limit forward passes, and there are none
        inputs = {name: options[name] for name in ("masks", "boxes", "margin")}
        result = pointing(saliency, image_size=image_size, **inputs)
        columns = {"pointing": result.hit, "energy": result.energy, "object_area": result.area}
        return {name: 100 * column.double() for name, column in columns.items()}, result.protocol

    def _summarize(self, columns, protocol):
        return columns, {}, {}
