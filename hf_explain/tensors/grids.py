"""Grids of equal cells over an image, whose pixels are kept, hidden and removed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.scalars import check_choice, check_numbers


Grid = str | Sequence[int]
GRIDS = ("pixel", "patch")


def check_grid(grid: Grid, name: str = "grid") -> None:
    """
    Raise unless `grid` is `"pixel"`, `"patch"` or `(height, width)` in cells.

    Raises:
        TypeError: If it is no grid at all; the message names the argument.
        ValueError: If it is none of these; likewise.
    """
    if isinstance(grid, str):
        check_choice(grid, name, GRIDS)
        return
    sides = check_numbers(grid, name)
    if len(sides) != 2 or any(side < 1 or side != int(side) for side in sides):
        raise ValueError(
            f"`{name}` must be 'pixel', 'patch' or (height, width) in cells, two whole numbers of at least 1, got "
            f"{grid}."
        )


def grid_cells(grid: Grid, classifier: Any, size: Sequence[int], name: str = "grid") -> tuple[int, int] | None:
    """
    How many cells of a grid, down and across, an image is cut into.

    Args:
        grid (`str` or `tuple[int, int]`): `"pixel"`: none, every pixel by itself. `"patch"`: the patches that
            `classifier` reads, as its `patch_size` says, which a [`FrozenClassifier`] has. Or `(height, width)` in
            cells.
        classifier (`Callable`): `pixel_values` to logits.
        size (sequence of two `int`): `(height, width)` of the images, in pixels.
        name (`str`, *optional*, defaults to `"grid"`): Name of the argument, for the error.

    Returns:
        `tuple[int, int]`, or `None` for `"pixel"`.

    Raises:
        ValueError: If `grid` is none of these, the classifier reads no patches, or the cells would not be equal.
    """
    check_grid(grid, name)
    if grid == "pixel":
        return None
    height, width = size
    if isinstance(grid, str):
        patch = getattr(classifier, "patch_size", None)  # of a FrozenClassifier
        if patch is None:
            model = type(getattr(classifier, "model", classifier)).__name__
            raise ValueError(
                f"`{name}`='patch' needs a classifier that reads its images in patches, as ViT and Swin do, which "
                f"{model} does not; use {name}='pixel', or (height, width) in cells."
            )
        if height % patch[0] or width % patch[1]:
            raise ValueError(
                f"`{name}`='patch' needs images that are whole patches of {patch[0]} × {patch[1]} pixels, got "
                f"{height} × {width}."
            )
        return height // patch[0], width // patch[1]
    rows, columns = map(int, grid)
    if height % rows or width % columns:
        raise ValueError(
            f"`{name}` must be 'pixel', 'patch' or (height, width) in cells, two whole numbers that divide the "
            f"{height} × {width} pixels of the images, got {grid}."
        )
    return rows, columns


def grid_protocol(grid: Grid, cells: tuple[int, int] | None) -> dict[str, Any]:
    """What is removed together, as a protocol writes it down."""
    stated = {"grid": grid if isinstance(grid, str) else list(map(int, grid))}
    return stated if cells is None else {**stated, "cells": list(cells)}


def cell_means(maps: torch.Tensor, cells: tuple[int, int], size: Sequence[int]) -> torch.Tensor:
    """
    The mean of every map over each cell of a grid. A map of so many values, or of a multiple of them, is averaged as
    it is; any other one at the resolution of the image.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)` or `(batch_size, channels, height, width)`): Maps
            at any resolution.
        cells (`tuple[int, int]`): `(height, width)` in cells.
        size (sequence of two `int`): `(height, width)` of the images, in pixels; multiples of `cells`.

    Returns:
        `torch.Tensor` of shape `(..., *cells)`.
    """
    if any(side % count for side, count in zip(maps.shape[-2:], cells)):
        maps = resize_maps(maps, size)
    if tuple(maps.shape[-2:]) != tuple(cells):
        maps = maps.unflatten(-1, (cells[1], -1)).unflatten(-3, (cells[0], -1)).mean((-3, -1))
    return maps


def spread_cells(cells: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """
    Every cell's value at each of its pixels.

    Args:
        cells (`torch.Tensor` of shape `(..., height, width)`): One value per cell.
        size (sequence of two `int`): `(height, width)` in pixels, multiples of those in cells.

    Returns:
        `torch.Tensor` of shape `(..., *size)`.
    """
    for dim, side in zip((-2, -1), size):
        if cells.shape[dim] != side:
            cells = cells.repeat_interleave(side // cells.shape[dim], dim)
    return cells
