"""The grid pointing game: several photographs in one picture, and how much of a map lies on the one it explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_explain.metrics.localization import pointing
from hf_explain.metrics.photographs import Photographs
from hf_explain.metrics.presets import PRESETS
from hf_explain.tensors.checks import check_saliency
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.randomness import image_keys, random_bits
from hf_explain.tensors.scalars import check_choice, check_count, check_number


_DEFAULT = PRESETS["grid_pointing"]["default"]


@dataclass
class Composites:
    """
    Pictures of several photographs, one class of each to be explained.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The composites.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class to explain.
        cell (`torch.LongTensor` of shape `(batch_size,)`): Where its photograph is, row by row from the top left.
        classes (`torch.LongTensor` of shape `(batch_size, num_cells)`): What there is in every cell.
        rows (`torch.LongTensor` of shape `(batch_size, num_cells)`): Which photographs: their rows in the data set.
        candidates (`int`): How many photographs were confidently and rightly classified.
    """

    pixel_values: torch.Tensor
    target: torch.Tensor
    cell: torch.Tensor
    classes: torch.Tensor
    rows: torch.Tensor
    candidates: int


def grid_composites(
    photos: Photographs,
    numbers: Sequence[int] | torch.Tensor,
    *,
    cells: int = _DEFAULT["cells"],
    confidence: float = _DEFAULT["confidence"],
    enlarged: bool = _DEFAULT["enlarged"],
    seed: int = 0,
) -> Composites:
    """
    Composites by their number: map `i` of the game explains cell `i mod cells²` of composite `⌊i / cells²⌋`, so that
    every class of a composite is explained once. A composite depends on its number, the seed and the photographs.

    Formula, with `p_c` the photograph of cell `c`, `y_c` its label and `f` the classifier's softmax:

        composite[cell c] = resize(p_c),  f_y_c(p_c) > confidence,  y_c ≠ y_d for c ≠ d

    Args:
        photos ([`Photographs`]): With their labels; only those that the classifier takes for their label, with more
            than `confidence`, are used, and in one composite all are of different classes.
        numbers (`torch.LongTensor` of shape `(batch_size,)`): Of the maps.
        cells (`int`, *optional*, defaults to 2): Photographs along each side: 2 for 2 × 2.
        confidence (`float`, *optional*, defaults to 0.95): Least softmax of the label.
        enlarged (`bool`, *optional*, defaults to `False`): Leave the photographs their size, so that a composite is
            `cells` times as large; for classifiers that take any size. By default each is made smaller, and a
            composite is as large as one photograph.
        seed (`int`, *optional*, defaults to 0): Draws the photographs.

    Returns:
        [`Composites`].

    Raises:
        ValueError: If there are no labels, or too few classes are classified well enough.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import Photographs, grid_composites

    >>> classes = torch.arange(8) % 4
    >>> pictures = classes.float().view(8, 1, 1, 1).expand(8, 1, 4, 4)  # as bright as the number of their class
    >>> photos = Photographs(pictures, 9 * torch.eye(4)[classes], ids=torch.arange(8), labels=classes)
    >>> found = grid_composites(photos, [0, 1, 2, 3])
    >>> found.target.sort().values, bool((found.pixel_values[:, 0, 0, 0] == found.target[0]).all())
    (tensor([0, 1, 2, 3]), True)
    ```
    """
    check_count(cells, "cells", minimum=2)
    check_number(confidence, "confidence", "[0, 1)")
    if photos.labels is None:
        raise ValueError(
            "`photos` need labels: the grid pointing game is played with photographs that are classified rightly."
        )
    probability, found = photos.logits.float().softmax(-1).max(-1)
    chosen = ((found == photos.labels) & (probability > confidence)).nonzero()[:, 0]
    known = found[chosen].unique()
    number = cells * cells
    if len(known) < number:
        raise ValueError(
            f"The grid pointing game of {cells} × {cells} needs photographs of {number} classes that are classified "
            f"rightly with a softmax above {confidence:g}, and has {len(chosen)}, of {len(known)} classes: lower "
            "`confidence`, or `cells`."
        )
    numbers = torch.as_tensor(numbers, device=photos.ids.device).long()
    keys = image_keys(numbers, numbers.div(number, rounding_mode="floor"), seed)
    bits = random_bits(keys, len(known) + len(chosen))
    classes = known[bits[:, : len(known)].argsort(dim=1)[:, :number]]
    of_class = found[chosen][None, None] == classes[:, :, None]
    places = chosen[torch.where(of_class, bits[:, None, len(known) :], -1).argmax(-1)]

    sides = photos.pixel_values.shape[-2:]
    height, width = (side * cells if enlarged else side for side in sides)
    composites = photos.pixel_values.new_empty(len(numbers), photos.pixel_values.shape[1], height, width)
    for place, (rows, columns) in enumerate(_cell_slices(cells, (height, width))):
        taken = photos.pixel_values[places[:, place].to(photos.pixel_values.device)]
        size = (rows.stop - rows.start, columns.stop - columns.start)
        if tuple(sides) != size:
            taken = F.interpolate(taken, size=size, mode="bilinear", antialias=True)
        composites[..., rows, columns] = taken
    cell = numbers % number
    return Composites(
        composites, classes.gather(1, cell[:, None])[:, 0], cell, classes, photos.ids[places], len(chosen)
    )


@dataclass
class GridPointing:
    """
    How much of a map lies on the photograph it explains.

    Args:
        share (`torch.FloatTensor` of shape `(batch_size,)`): Share of the map's sum in its cell, in [0, 1]; 0 for a
            map that is 0 everywhere. Higher is better.
        chance (`float`): Share of a map that knows nothing of the cells.
        protocol (`dict`): How it was measured.
    """

    share: torch.Tensor
    chance: float
    protocol: dict[str, Any]


def grid_pointing(
    saliency: torch.Tensor,
    cell: torch.Tensor | Sequence[int],
    *,
    image_size: tuple[int, int],
    cells: int = _DEFAULT["cells"],
    scale: str = _DEFAULT["scale"],
) -> GridPointing:
    """
    The grid pointing game: the share of a composite's map that lies in the cell of the class explained.

    Formula, with `L` the map at the composite's size, and `C` the pixels of the cell:

        share = Σ_{i in C} L_i / Σ_i L_i, by chance 1 / cells²

    With `scale="top"` (ours) `L` is 1 for the most salient `1 / cells²` of the pixels, as many as a cell has, and 0
    elsewhere, so that only the order of a map's values counts; equal values at the limit share what is left.

    Source: Böhle et al. 2021 (https://huggingface.co/papers/2104.00032), section 4; Rao et al. 2022
    (https://huggingface.co/papers/2205.10435).

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps of composites, any
            resolution; resized bilinearly to the composites.
        cell (`torch.LongTensor` of shape `(batch_size,)`): Cell of each map's class, row by row from the top left.
        image_size (`tuple[int, int]`): `(height, width)` of the composites in pixels.
        cells (`int`, *optional*, defaults to 2): Cells along each side.
        scale (`str`, *optional*, defaults to `"map"`): What counts: a map's values, as published, or with `"top"` its
            order.

    Returns:
        [`GridPointing`].

    Raises:
        ValueError: If maps are not finite and non-negative, a cell is out of range, or there is no such scale.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import grid_pointing

    >>> saliency = torch.tensor([[[0.1, 0.6], [0.1, 0.2]]])
    >>> result = grid_pointing(saliency, [1], image_size=(2, 2))
    >>> round(result.share.item(), 3), result.chance
    (0.6, 0.25)
    ```
    """
    check_count(cells, "cells", minimum=2)
    check_choice(scale, "scale", ("map", "top"))
    slices = _cell_slices(cells, image_size)
    masks = torch.zeros(len(slices), *image_size)
    for mask, (rows, columns) in zip(masks, slices):
        mask[rows, columns] = 1
    cell = torch.as_tensor(cell)
    if bool(((cell < 0) | (cell >= len(slices))).any()):
        raise ValueError(
            f"`cell` must lie in 0 ... {len(slices) - 1} for {cells} × {cells} cells, got {cell.tolist()}."
        )
    chance = 1 / len(slices)
    if scale == "top":
        saliency = _top(check_saliency(saliency, len(cell)), image_size, chance)
    share = pointing(saliency, masks[cell.to(masks.device)]).energy
    protocol = {"cells": cells, "scale": scale, "image_size": list(image_size), "chance": 100 * chance}
    return GridPointing(share, chance, protocol)


def _top(saliency: torch.Tensor, size: tuple[int, int], part: float) -> torch.Tensor:
    """Maps at that size that are 1 for the most salient part of their pixels and 0 elsewhere."""
    # equal values that interpolation makes differ in float64's last digits are equal again in float32
    maps = resize_maps(saliency.double(), size).float()
    count = round(part * size[0] * size[1])
    limit = maps.flatten(1).topk(count).values[:, -1, None, None]
    above, equal = maps > limit, maps == limit
    left = count - above.sum((1, 2), keepdim=True)
    return above.float() + equal * (left / equal.sum((1, 2), keepdim=True))


def _cell_slices(cells: int, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of every cell; where they cannot be equal, they differ by a pixel."""
    rows, columns = (
        [slice(round(place * side / cells), round((place + 1) * side / cells)) for place in range(cells)]
        for side in size
    )
    return [(row, column) for row in rows for column in columns]
