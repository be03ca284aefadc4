"""The linear system of ROAD's imputation, solved for many masks at once by multigrid.

Every removed pixel becomes the weighted mean of its eight neighbours, direct ones counting twice as much as diagonal
ones; neighbours beyond the image border do not count. With W the weights among pixels and D their row sums, the
removed values solve `(D - W) u = 0` given the kept ones: a graph Laplacian, symmetric and positive definite as soon as
one pixel is kept. Conjugate gradients with a multigrid V-cycle in front need a handful of steps whatever the size of
the holes; without it their number grows with the widest hole.

A field holds the values of all channels and masks, `(channels, masks, height, width)`; what is the same for all
channels has one of them. On a CPU it lies in memory pixel by pixel (`channels_last`): a stencil is then one depthwise
convolution, which reads and writes the field once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F


_COARSEST_SIDE = 7
# What holds a coarse cell, as part of what holds its pixels, which do not all lie beside a known one: the fewest steps
_HELD = 0.8
_SPREAD = ((1.0, 2.0, 1.0), (2.0, 0.0, 2.0), (1.0, 2.0, 1.0))  # 12 times the weights of the neighbours
_LINEAR = (0.25, 0.75, 0.75, 0.25)  # linear interpolation to twice the size, and its transpose


@dataclass
class _Level:
    """One grid: 12 times the operator is `diagonal x - neighbours(x)` on `active` cells, of every mask."""

    active: torch.Tensor  # 1.0 at unknowns, 0.0 elsewhere
    diagonal: torch.Tensor  # 0.0 where not active
    smoother: torch.Tensor  # active / diagonal
    pull: torch.Tensor  # right-hand side: what known neighbours pull at
    inverse: torch.Tensor | None = None  # of the whole operator, on the coarsest grid, `(masks, cells, cells)`


def solve(images: torch.Tensor, removed: torch.Tensor, tolerance: float, max_iterations: int) -> torch.Tensor:
    """
    Values for the removed pixels of every image; at kept pixels they mean nothing.

    Args:
        images (`torch.FloatTensor` of shape `(masks, channels, height, width)`): Images, float32.
        removed (`torch.BoolTensor` of shape `(masks, height, width)`): The unknowns; at least one pixel is known.
        tolerance (`float`): Iterate until no pixel moves by more.
        max_iterations (`int`): Give up after so many.

    Returns:
        `torch.FloatTensor` of the shape of `images`.

    Raises:
        RuntimeError: If the tolerance is not reached.
    """
    height, width = images.shape[-2:]
    depth = max(0, int(math.log2(max(1, min(height, width) / _COARSEST_SIDE))))
    step = 2**depth
    extra = (0, -width % step, 0, -height % step)  # rows and columns that are neither known nor unknown
    unknown = F.pad(removed[None].float(), extra)
    known = F.pad((~removed)[None].float(), extra)
    # TF32 would round the operator to 1e-3
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        values = F.pad(images, extra).transpose(0, 1) * known
        mean = values.sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True)
        # Around their mean, where sums of float32 are most exact
        levels = _build_levels(torch.addcmul(values, mean, known, value=-1), unknown, known, depth)
        solution = _iterate(levels, tolerance, max_iterations)
    return solution.add_(mean).transpose(0, 1)[..., :height, :width]


def _iterate(levels: list[_Level], tolerance: float, max_iterations: int) -> torch.Tensor:
    """Preconditioned conjugate gradients on the finest grid, all masks and channels at once."""
    finest = levels[0]
    solution = _first_guess(levels)
    # Only what `active` holds of it means anything: the smoother takes the rest away wherever it is used
    residual = _negative_operator(finest, solution).add_(finest.pull)
    direction, change = torch.zeros_like(solution), solution.new_zeros(())
    # Every look at how far it moved makes a GPU wait, and even small holes take a few steps
    unseen = 1 if solution.device.type == "cpu" else 3
    for iteration in range(max_iterations):
        correction = _v_cycle(levels, residual)
        previous, change = change, _dot(residual, correction)
        # The ratio is 0 in the first step, which has no previous one
        torch.addcmul(correction, direction, _ratio(change, previous), out=direction)
        moved = _negative_operator(finest, direction)
        length = -_ratio(change, _dot(direction, moved))  # `moved` is minus the operator's image
        solution.addcmul_(direction, length)
        residual.addcmul_(moved, length)
        if iteration < unseen:
            continue
        farthest = _over_pixels(torch.amax, torch.abs(direction, out=moved))
        if float((farthest * length.abs()).amax()) <= tolerance:
            return solution
    raise RuntimeError(
        f"Linear imputation did not come within `tolerance` {tolerance} in {max_iterations} iterations."
    )


def _first_guess(levels: list[_Level]) -> torch.Tensor:
    """The solution on the coarsest grid, handed down and mended by one V-cycle on every grid but the finest."""
    solution = _v_cycle(levels[-1:], levels[-1].pull)
    for index in range(len(levels) - 2, -1, -1):
        level = levels[index]
        solution = _enlarged(solution).mul_(level.active)
        if index:
            solution += _v_cycle(levels[index:], _negative_operator(level, solution).add_(level.pull))
    return solution


def _build_levels(values: torch.Tensor, unknown: torch.Tensor, known: torch.Tensor, depth: int) -> list[_Level]:
    """
    The operator and its right-hand side on every grid; `values` `(channels, masks, height, width)` hold known pixels.

    On the finest one `diagonal` counts all neighbours inside the image, of which the known ones hold the pixel. A
    coarser cell is active if any of its four pixels is unknown, is tied to its active neighbours by the same weights,
    and is held by most of what holds its pixels. That is close to the exact coarse operator and rarely softer, so
    V-cycles hardly overshoot and stay positive definite, whatever the shape of the holes.
    """
    active, held = _field(unknown), _neighbours(_field(known)) * _field(unknown)
    pull = _neighbours(_field(values)).mul_(active)
    levels = []
    while True:
        diagonal = torch.addcmul(held, _neighbours(active), active)
        smoother = active / torch.where(active > 0, diagonal, 1.0)
        levels.append(_Level(active, diagonal, smoother, pull))
        if len(levels) > depth:
            break
        held, pull = (F.avg_pool2d(field, 2).mul_(4 * _HELD) for field in (held, pull))
        active = F.max_pool2d(active, 2)
    if active.shape[-2] * active.shape[-1] <= 4 * _COARSEST_SIDE**2:
        levels[-1].inverse = _dense_inverse(active[0], diagonal[0])
    return levels


def _dense_inverse(active: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Inverse of the operator on a grid of a few dozen cells, zero on inactive ones; `(masks, cells, cells)`."""
    height, width = active.shape[-2:]
    identity = torch.eye(height * width, dtype=active.dtype, device=active.device)
    spread = _neighbours(identity.view(1, -1, height, width)).reshape(height * width, height * width)
    on, weight = active.flatten(1), diagonal.flatten(1)
    both = on[:, :, None] * on[:, None, :]
    matrix = torch.diag_embed(torch.where(on > 0, weight, 1.0)) - spread * both
    return torch.linalg.inv(matrix) * both


def _v_cycle(levels: list[_Level], residual: torch.Tensor) -> torch.Tensor:
    """One symmetric V-cycle from zero: Jacobi, coarse correction, Jacobi."""
    level = levels[0]
    if level.inverse is not None:
        values = residual.flatten(2).transpose(0, 1) @ level.inverse  # all channels of a mask in one product
        return _field(values.transpose(0, 1).reshape(residual.shape))
    result = residual * level.smoother
    if len(levels) > 1:
        # What is left of the residual: the diagonal's part of `residual - A result` is 0 after a Jacobi step from 0
        rest = _neighbours(result).mul_(level.active)
        result.addcmul_(_enlarged(_v_cycle(levels[1:], _reduced(rest))), level.active)
    # The diagonal's part of the second step cancels what it starts from
    return _neighbours(result).add_(residual).mul_(level.smoother)


def _negative_operator(level: _Level, field: torch.Tensor) -> torch.Tensor:
    """Minus the operator's image of `field`, right on active pixels."""
    return _neighbours(field).addcmul_(field, level.diagonal, value=-1)


def _field(values: torch.Tensor) -> torch.Tensor:
    """A field as the stencils are fastest on this device."""
    if values.device.type == "cpu":
        return values.contiguous(memory_format=torch.channels_last)
    return values.contiguous()


def _stencil(weights: torch.Tensor, count: int) -> torch.Tensor:
    return weights.expand(count, 1, -1, -1).contiguous()


@lru_cache
def _weights(values: tuple, device: torch.device) -> torch.Tensor:
    """On the device once: every copy there would wait for it."""
    return torch.tensor(values, device=device)


def _neighbours(field: torch.Tensor) -> torch.Tensor:
    """Spread by [1 2 1; 2 0 2; 1 2 1], zeros outside."""
    count = field.shape[1]
    return F.conv2d(field, _stencil(_weights(_SPREAD, field.device), count), padding=1, groups=count)


def _reduced(field: torch.Tensor) -> torch.Tensor:
    """Half the size, by the transpose of `_enlarged`: sums, not means."""
    count, weights = field.shape[1], _weights(_LINEAR, field.device)
    field = F.pad(field, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(field, _stencil(weights[:, None] * weights, count), stride=2, groups=count)


def _enlarged(field: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinearly; the border value is repeated."""
    count, weights = field.shape[1], _weights(_LINEAR, field.device)
    field = F.pad(field, (1, 1, 1, 1), mode="replicate")
    return F.conv_transpose2d(field, _stencil(weights[:, None] * weights, count), stride=2, padding=3, groups=count)


def _dot(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return _over_pixels(torch.sum, first * second)


def _over_pixels(reduce: Callable[..., torch.Tensor], field: torch.Tensor) -> torch.Tensor:
    """`(channels, masks, 1, 1)`; of a field that lies pixel by pixel, over rows first: at once takes ten times."""
    if field.is_contiguous():
        return reduce(field, (-2, -1), keepdim=True)
    channels, masks, height, width = field.shape
    rows = reduce(field.permute(0, 2, 3, 1).view(channels, height, width * masks), 1)
    return reduce(rows.view(channels, width, masks), 1).view(channels, masks, 1, 1)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """0 where the denominator is 0: a mask without an unknown, or one that is solved."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)
