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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F


_COARSEST_SIDE = 7
_HELD = 0.8  # coarse operators are softer than exact by this factor: the fewest steps
_SPREAD = ((1.0, 2.0, 1.0), (2.0, 0.0, 2.0), (1.0, 2.0, 1.0))  # 12 times the weights of the neighbours
_LINEAR = (0.25, 0.75, 0.75, 0.25)  # linear interpolation to twice the size, and its transpose; zeros outside


@dataclass
class _Level:
    """One grid: 12 times the operator is `diagonal x - neighbours(x)` on `active` cells, of every mask."""

    active: torch.Tensor  # 1.0 at unknowns, 0.0 elsewhere
    diagonal: torch.Tensor  # 0.0 where not active
    smoother: torch.Tensor  # active / diagonal
    carry: torch.Tensor  # `active`, and what interpolation loses at the image border
    pull: torch.Tensor  # right-hand side: what known neighbours pull at
    work: torch.Tensor  # of the size of `pull`: fresh memory for every product would take longer than the product
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
    # More rows and columns, which are neither known nor unknown
    size = (height + -height % step, width + -width % step)
    # TF32 would round the operator to 1e-3
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        kept = (~removed).float()
        mean = images.flatten(2) @ kept.flatten(1)[..., None] / kept.sum((-2, -1))[:, None, None]
        mean = mean.transpose(0, 1)[..., None]
        unknown, known = _field(removed[None].float(), size), _field(kept[None], size)
        values = _field(images.transpose(0, 1), size).mul_(known)
        # Around their mean, where sums of float32 are most exact
        levels = _build_levels(values.addcmul_(mean, known, value=-1), unknown, known, depth)
        solution = _iterate(levels, tolerance, max_iterations)
    return solution.add_(mean).transpose(0, 1)[..., :height, :width]


def _iterate(levels: list[_Level], tolerance: float, max_iterations: int) -> torch.Tensor:
    """Preconditioned conjugate gradients on the finest grid, all masks and channels at once."""
    finest = levels[0]
    solution = _first_guess(levels)
    # Only what `active` holds of it means anything: the smoother takes the rest away wherever it is used
    residual = finest.pull.add_(_negative_operator(finest, solution))
    direction: torch.Tensor | None = None
    change: torch.Tensor | None = None
    # Every look at how far it moved makes a GPU wait, and even small holes take a few steps
    least = 2 if solution.device.type == "cpu" else 3
    for iteration in range(max_iterations):
        correction = _v_cycle(levels, residual)
        previous, change = change, _dot(residual, correction, finest.work)
        if direction is None or previous is None:
            direction = correction
        else:
            torch.addcmul(correction, direction, _ratio(change, previous), out=direction)
        moved = _negative_operator(finest, direction)
        length = -_ratio(change, _dot(direction, moved, finest.work))  # `moved` is minus the operator's image
        solution.addcmul_(direction, length)
        if iteration + 1 >= least:
            farthest = _over_pixels(torch.amax, torch.abs(direction, out=finest.work))
            if float((farthest * length.abs()).amax()) <= tolerance:
                return solution
        residual.addcmul_(moved, length)
    raise RuntimeError(
        f"Linear imputation did not come within `tolerance` {tolerance} in {max_iterations} iterations."
    )


def _first_guess(levels: list[_Level]) -> torch.Tensor:
    """The solution on the coarsest grid, handed down and mended by one V-cycle on every grid but the finest."""
    solution = _v_cycle(levels[-1:], levels[-1].pull)
    for index in range(len(levels) - 2, -1, -1):
        level = levels[index]
        solution = _enlarged(solution).mul_(level.carry)
        if index:
            solution += _v_cycle(levels[index:], _negative_operator(level, solution).add_(level.pull))
    return solution


def _build_levels(values: torch.Tensor, unknown: torch.Tensor, known: torch.Tensor, depth: int) -> list[_Level]:
    """
    The operator and its right-hand side on every grid; `values` `(channels, masks, height, width)` hold known pixels.

    On the finest one `diagonal` counts all neighbours inside the image, of which the known ones hold the pixel. A
    coarser cell is active if any of its four pixels is unknown, is tied to its active neighbours by the same weights,
    and is held by the row sum of the exact coarse operator, that of what interpolation makes of a constant: where
    the shape of a hole matters, coarse and fine grid agree. Where it is negative it is 0, so that the operator stays
    positive definite whatever that shape.
    """
    active, pull = unknown, _neighbours(values).mul_(unknown)
    diagonal = _neighbours((known + unknown)[:, :1]) * active  # what is inside the image is the same for all masks
    levels: list[_Level] = []
    while True:
        smoother = (active / diagonal).nan_to_num_(0.0, posinf=0.0)  # 0 where nothing holds a cell
        carry, (height, width) = active.clone(), active.shape[-2:]
        carry[..., :: max(1, height - 1), :] /= _LINEAR[1]
        carry[..., :: max(1, width - 1)] /= _LINEAR[1]
        level = _Level(active, diagonal, smoother, carry, pull, torch.empty_like(pull))
        levels.append(level)
        if len(levels) > depth:
            break
        active = F.max_pool2d(active, 2)
        flat = _enlarged(active).mul_(carry)
        held = _reduced(_negative_operator(level, flat).mul_(carry)).mul_(-_HELD).clamp_(min=0)
        diagonal = held.add_(_neighbours(active)).mul_(active)
        pull = _reduced(torch.mul(pull, carry, out=level.work)).mul_(_HELD)
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
        return _field(values.transpose(0, 1).reshape(residual.shape), residual.shape[-2:])
    result = torch.mul(residual, level.smoother, out=level.work)
    if len(levels) > 1:
        # What is left of the residual: the diagonal's part of `residual - A result` is 0 after a Jacobi step from 0
        rest = _reduced(_neighbours(result).mul_(level.carry))
        result.addcmul_(_enlarged(_v_cycle(levels[1:], rest)), level.carry)
    # The diagonal's part of the second step cancels what it starts from
    return _neighbours(result).add_(residual).mul_(level.smoother)


def _negative_operator(level: _Level, field: torch.Tensor) -> torch.Tensor:
    """Minus the operator's image of `field`, right on active pixels."""
    return _neighbours(field).addcmul_(field, level.diagonal, value=-1)


def _field(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A copy as the stencils are fastest on this device, with zeros below and to the right up to `size`."""
    layout = torch.channels_last if values.device.type == "cpu" else torch.contiguous_format
    height, width = values.shape[-2:]
    field = torch.empty(*values.shape[:2], *size, device=values.device, memory_format=layout)
    if (height, width) != tuple(size):
        field.zero_()
    field[..., :height, :width] = values
    return field


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
    return F.conv2d(field, _stencil(weights[:, None] * weights, count), stride=2, padding=1, groups=count)


def _enlarged(field: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinearly; zeros outside take a quarter of the outermost rows and columns away."""
    count, weights = field.shape[1], _weights(_LINEAR, field.device)
    return F.conv_transpose2d(field, _stencil(weights[:, None] * weights, count), stride=2, padding=1, groups=count)


def _dot(first: torch.Tensor, second: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    return _over_pixels(torch.sum, torch.mul(first, second, out=work))


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
