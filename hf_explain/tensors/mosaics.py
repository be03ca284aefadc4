"""Several photographs in one picture, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def compose(
    pixel_values: torch.Tensor, places: torch.Tensor, cells: int = 2, size: Sequence[int] | None = None
) -> torch.Tensor:
    """
    Pictures of `cells` × `cells` photographs, each brought to the size of its cell (bilinear, antialiased).

    Args:
        pixel_values (`torch.FloatTensor` of shape `(num_photographs, num_channels, height, width)`): The photographs.
        places (`torch.LongTensor` of shape `(batch_size, cells²)`): Which of them every cell has, row by row from the
            top left.
        cells (`int`, *optional*, defaults to 2): Photographs along each side.
        size (`tuple[int, int]`, *optional*): `(height, width)` of a picture; that of one photograph when not given.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_channels, *size)`.
    """
    sides = tuple(pixel_values.shape[-2:])
    height, width = size or sides
    pictures = pixel_values.new_empty(len(places), pixel_values.shape[1], height, width)
    for place, (rows, columns) in enumerate(cell_slices(cells, (height, width))):
        taken = pixel_values[places[:, place].to(pixel_values.device)]
        cell = (rows.stop - rows.start, columns.stop - columns.start)
        if sides != cell:
            # in float32: on a CPU there is no such resize in half precision
            taken = F.interpolate(taken.float(), size=cell, mode="bilinear", antialias=True)
        pictures[..., rows, columns] = taken
    return pictures


def cell_slices(cells: int, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of every cell; where they cannot be equal, they differ by a pixel."""
    rows, columns = (
        [slice(round(place * side / cells), round((place + 1) * side / cells)) for place in range(cells)]
        for side in size
    )
    return [(row, column) for row in rows for column in columns]
