"""Maps in another form, as controls: what a metric owes to how smooth a map is, and what its order is worth turned."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F

from hf_explain.tensors.maps import min_max, resize_maps


Form = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
_FORMS = (
    "HEIGHTxWIDTH (such as 8x8: the means over so many cells), cells (one value for all pixels of a cell of its own) "
    "or inverse (least salient first)"
)


def split_form(name: str, explainers: Collection[str]) -> tuple[str, str | None]:
    """
    `"gradcam@8x8"`, the maps of an explainer in another form, as `("gradcam", "8x8")`.

    Args:
        name (`str`): Of an explainer, with a form or without.
        explainers (collection of `str`): Names without a form. An `@` in one of these is a part of the name.

    Returns:
        `tuple[str, str | None]`: The explainer's name, and the form if there is one.
    """
    base, at, form = name.rpartition("@")
    return (base, form) if at and name not in explainers else (name, None)


def resolve_form(text: str) -> Form:
    """
    What a form does to the maps of an explainer.

    Args:
        text (`str`): `"HEIGHTxWIDTH"`: the means of the map over so many equal cells, which metrics enlarge bilinearly
            again, as they do every map: the map at another one's resolution. `"cells"`: one value for all pixels that
            are nearest to a position of the map, instead of the bilinear resize. `"inverse"`: 1 minus the map.

    Returns:
        `Callable`: Maps of shape `(batch_size, map_height, map_width)` in [0, 1] and the `(height, width)` of the
            images, to the maps in this form, again in [0, 1].

    Raises:
        ValueError: If there is no such form. What it returns raises one if maps of this size cannot have it.
    """
    if size := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text):
        cells = int(size[1]), int(size[2])
        return lambda maps, image_size: _averaged(maps, image_size, cells)
    forms: dict[str, Form] = {"cells": _sharpened, "inverse": lambda maps, image_size: 1 - maps}
    if text not in forms:
        raise ValueError(f"there is no form {text!r} of maps; write EXPLAINER@FORM with {_FORMS}.")
    return forms[text]


def _averaged(maps: torch.Tensor, image_size: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
    if any(count > side for count, side in zip(cells, image_size)):
        raise ValueError(f"{cells[0]}x{cells[1]} cells are more than the {image_size[0]} × {image_size[1]} pixels.")
    return min_max(F.adaptive_avg_pool2d(resize_maps(maps, image_size)[:, None], cells)[:, 0])


def _sharpened(maps: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    if tuple(maps.shape[-2:]) == tuple(image_size):
        raise ValueError("its maps have a value for every pixel, and no cells that could be sharper.")
    return F.interpolate(maps[:, None], size=image_size, mode="nearest-exact")[:, 0]
