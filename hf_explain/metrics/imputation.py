"""Noisy linear imputation, ROAD's way of removing pixels: the linear system of the paper, solved by multigrid.

Every removed pixel becomes the weighted mean of its eight neighbours, direct ones counting twice as much as diagonal
ones; neighbours beyond the image border do not count. With W the weights among pixels and D their row sums, the
removed values solve `(D - W) u = 0` given the kept ones: a graph Laplacian, symmetric and positive definite as soon as
one pixel is kept. Conjugate gradients with a multigrid V-cycle in front need a handful of steps whatever the size of
the holes; without it their number grows with the widest hole.

All fields carry a frame of one zero pixel and are stored flat, `(masks, channels, (height + 2) * (width + 2))`: a
shift by one pixel or one row is then one contiguous slice, and every operation one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_explain.metrics.engine import (
    MAX_BATCH,
    Grid,
    Predict,
    base_logits,
    batch_limit,
    grid_cells,
    grid_protocol,
    read_score,
    reference_classes,
    run_jobs,
    saliency_ranks,
    target_name,
)
from hf_explain.metrics.presets import PRESETS
from hf_explain.tensors.checks import check_pixel_values
from hf_explain.tensors.perturbation import pixel_counts, spread_cells
from hf_explain.tensors.randomness import image_keys, random_normal
from hf_explain.tensors.scalars import check_number, check_numbers


_DEFAULT = PRESETS["road"]["default"]
_TOLERANCE = 2e-3
# Fields are worked on in blocks that stay in a CPU core's cache; other devices take everything at once.
_CPU_BLOCK_BYTES = 2 * 2**20
_COARSEST_SIDE = 7
# What holds a coarse cell, as part of what holds its pixels, which do not all lie beside a known one: the fewest steps
_HELD = 0.8


@dataclass
class _Level:
    """One grid: 12 times the operator is `diagonal x - neighbours(x)` on `active` pixels."""

    height: int
    width: int
    active: torch.Tensor  # 1.0 at unknowns, 0.0 elsewhere, flat with frame, one channel
    diagonal: torch.Tensor  # 0.0 where not active
    smoother: torch.Tensor  # active / diagonal
    inverse: torch.Tensor | None = None  # of the whole operator, on the coarsest grid


@dataclass
class Road:
    """
    ROAD's two curves and their difference, one per image.

    Args:
        percents (`tuple[float, ...]`): Percentages of pixels removed.
        morf (`torch.FloatTensor` of shape `(batch_size, num_percents)`): Scores, most relevant removed first;
            lower is better.
        lerf (`torch.FloatTensor` of shape `(batch_size, num_percents)`): Scores, least relevant removed first;
            higher is better.
        base (`torch.FloatTensor` of shape `(batch_size,)`): Scores of the images themselves.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class each score looks at.
        protocol (`dict`): How it was measured.
    """

    percents: tuple[float, ...]
    morf: torch.Tensor
    lerf: torch.Tensor
    base: torch.Tensor
    target: torch.Tensor
    protocol: dict[str, Any]

    @property
    def combined(self) -> torch.Tensor:
        """`(lerf - morf) / 2`, mean over percentages; higher is better; `torch.DoubleTensor` of `(batch_size,)`."""
        return (self.lerf.double() - self.morf.double()).mean(1) / 2


def road(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    target: torch.Tensor | Sequence[int] | int | None = None,
    labels: torch.Tensor | Sequence[int] | None = None,
    percents: Sequence[float] = _DEFAULT["percents"],
    score: str = _DEFAULT["score"],
    noise: float = _DEFAULT["noise"],
    tolerance: float = _TOLERANCE,
    grid: Grid = "pixel",
    logits: torch.Tensor | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    max_batch: int = MAX_BATCH,
    max_bytes: int | None = None,
) -> Road:
    """
    ROAD: remove and debias. Removed pixels are imputed from their neighbours, so that the shape of what was removed
    gives nothing away.

    Formula, with `MoRF`, `LeRF` the scores after `p` % of the pixels, most or least relevant first, are imputed:

        combined = mean_p (LeRF(p) − MoRF(p)) / 2

    Source: ROAD (https://huggingface.co/papers/2202.00449); combined score as in pytorch-grad-cam.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps, any resolution.
        target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): Class whose softmax
            `score="probability"` reads; the top-1 by default.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): True classes, for `score="accuracy"`.
        percents (sequence of `float`, *optional*, defaults to 10, 20, ..., 90): Pixels removed, each in (0, 100).
        score (`str`, *optional*, defaults to `"probability"`): `"probability"`, `"accuracy"` or `"agreement"`.
        noise (`float`, *optional*, defaults to 0.01): Standard deviation of what is added to imputed pixels, in
            units of `pixel_values`. One noise image per image and seed, the same at every percentage.
        tolerance (`float`, *optional*, defaults to 2e-3): See [`linear_imputation`].
        grid, logits, seed, image_ids, max_batch, max_bytes: As in
            [`~hf_explain.metrics.functional.perturbation_curves`].

    Returns:
        [`Road`].

    Raises:
        ValueError: If maps are not one finite, non-negative map per image, or an option is unknown or out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import road

    >>> def predict(pixel_values):  # class 1 is a bright centre
    ...     centre = pixel_values[:, 0, 1, 1]
    ...     return torch.stack([1 - centre, centre], dim=1)

    >>> images = torch.zeros(1, 1, 3, 3)
    >>> images[:, :, 1, 1] = 1
    >>> result = road(predict, images, images[:, 0], percents=(10,), score="agreement", noise=0)
    >>> result.morf, result.lerf, result.combined.item()
    (tensor([[0.]]), tensor([[1.]]), 0.5)
    ```
    """
    pixel_values = check_pixel_values(pixel_values)
    percents = check_numbers(percents, "percents")
    if not percents or not all(0 < percent < 100 for percent in percents):
        raise ValueError(f"`percents` of pixels removed must lie in (0, 100), at least one, got {percents}.")
    check_number(noise, "noise", "[0, inf)")
    limit = batch_limit(pixel_values, max_batch, max_bytes)
    cells = grid_cells(grid, predict, pixel_values)
    ranks = saliency_ranks(saliency, pixel_values, image_ids, seed, cells)
    num_units = ranks[0].numel()
    ranks = spread_cells(ranks, pixel_values.shape[-2:])
    # Of a few pixels or cells 90 % may round to all of them, and nothing would be left to impute from
    counts = [min(count, num_units - 1) for count in pixel_counts([p / 100 for p in percents], num_units)]
    logits = base_logits(predict, pixel_values, logits, limit)
    classes = reference_classes(score, logits, target, labels)
    noise_keys = image_keys(pixel_values, image_ids, ~seed)  # not the numbers that order ties
    noises = noise * random_normal(noise_keys, pixel_values[0].numel()).view(pixel_values.shape)
    size, num_steps = len(pixel_values), len(counts)
    # Every job is an image, and the ranks from `low` up to, but not with, `high` that are removed: most relevant first
    # in the first half of the jobs, least relevant first in the second half
    low = [0] * num_steps + [num_units - count for count in counts]
    high = [*counts, *[num_units] * num_steps]
    lows, highs = (
        torch.tensor(ends, dtype=ranks.dtype)
        .to(ranks.device, non_blocking=True)
        .view(2, 1, num_steps)
        .expand(2, size, num_steps)
        .reshape(-1, 1, 1)
        for ends in (low, high)
    )
    images = torch.arange(size, device=ranks.device).repeat_interleave(num_steps).repeat(2)

    def build(span: slice, batch: torch.Tensor) -> None:
        image = images[span]
        rank = ranks[image]
        removed = (rank >= lows[span]) & (rank < highs[span])
        imputed = linear_imputation(pixel_values[image], removed, tolerance)
        batch.copy_(imputed + torch.where(removed[:, None], noises[image], 0.0).to(imputed.dtype))

    scores = run_jobs(predict, pixel_values, build, classes[images], score, limit).view(2, size, num_steps)
    protocol = {
        "score": score,
        "target": target_name(score, target),
        "percents": list(percents),
        "noise": noise,
        "tolerance": tolerance,
        **grid_protocol(grid, cells),
        "image_size": list(pixel_values.shape[-2:]),
        "seed": seed,
    }
    return Road(percents, scores[0], scores[1], read_score(logits, classes, score), classes, protocol)


def linear_imputation(
    pixel_values: torch.Tensor, removed: torch.Tensor, tolerance: float = _TOLERANCE, max_iterations: int = 200
) -> torch.Tensor:
    """
    Replace removed pixels by the solution of ROAD's linear system (without its noise).

    Formula, for every removed pixel `i`, over its neighbours `j` inside the image:

        x_i = Σ_j w_ij x_j / Σ_j w_ij,  w_ij = 1/6 beside i, 1/12 across its corners

    Source: ROAD (https://huggingface.co/papers/2202.00449), section 4: weights 1/6 for direct and 1/12 for diagonal
    neighbours, divided by the sum of those inside the image.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        removed (`torch.BoolTensor` of shape `(batch_size, height, width)`): True where a pixel is to be imputed.
        tolerance (`float`, *optional*, defaults to 2e-3): Iterate until no pixel moves by more; the distance to the
            exact solution is then well below half of it. In units of `pixel_values`.
        max_iterations (`int`, *optional*, defaults to 200): Give up with an error after so many.

    Returns:
        `torch.Tensor` of the shape and dtype of `pixel_values`; kept pixels are bit for bit those that came in.

    Raises:
        ValueError: If shapes do not fit or an image has no pixel left to impute from.
        RuntimeError: If the tolerance is not reached.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import linear_imputation

    >>> images = torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 5.0, 1.0], [0.0, 0.0, 1.0]]]])
    >>> removed = torch.zeros(1, 3, 3, dtype=torch.bool)
    >>> removed[:, 1, 1] = True
    >>> linear_imputation(images, removed)[0, 0].round(decimals=3)  # (1/6 + 1/12 + 1/12) / 1
    tensor([[0.0000, 0.0000, 1.0000],
            [0.0000, 0.3330, 1.0000],
            [0.0000, 0.0000, 1.0000]])
    ```
    """
    if removed.dtype != torch.bool or removed.shape != (len(pixel_values), *pixel_values.shape[-2:]):
        raise ValueError(
            f"`removed` must be a BoolTensor of shape ({len(pixel_values)}, {pixel_values.shape[-2]}, "
            f"{pixel_values.shape[-1]}), got {removed.dtype} of shape {tuple(removed.shape)}."
        )
    full = removed.flatten(1).all(1)
    if bool(full.any()):
        raise ValueError(
            f"`removed` leaves no pixel of image {int(full.nonzero()[0])}; linear imputation needs at least one."
        )
    check_number(tolerance, "tolerance", "(0, inf)")
    block = len(pixel_values)
    if pixel_values.device.type == "cpu":
        block = max(1, _CPU_BLOCK_BYTES // (4 * pixel_values[0].numel()))
    filled, buffers = torch.empty_like(pixel_values), _Buffers()
    for images, holes, out in zip(pixel_values.split(block), removed.split(block), filled.split(block)):
        solution = _solve(images.float(), holes, tolerance, max_iterations, buffers)
        torch.where(holes[:, None], solution.to(images.dtype), images, out=out)
    return filled


class _Buffers:
    """Zeroed fields of all grids, made for the first block of images and used by the others."""

    def __init__(self) -> None:
        self._known: list[list[torch.Tensor]] = []

    def of(self, images: torch.Tensor, levels: list[_Level]) -> list[list[torch.Tensor]]:
        if not self._known:
            shapes = [(*images.shape[:2], (level.height + 2) * (level.width + 2)) for level in levels]
            self._known = [[images.new_zeros(shape) for _ in range(5)] for shape in shapes]
        return [[field[: len(images)] for field in fields] for fields in self._known]


def _solve(
    images: torch.Tensor, removed: torch.Tensor, tolerance: float, max_iterations: int, buffers: _Buffers
) -> torch.Tensor:
    """Preconditioned conjugate gradients for one block of images, all channels and images at once."""
    height, width = images.shape[-2:]
    depth = max(0, int(math.log2(max(1, min(height, width) / _COARSEST_SIDE))))
    step = 2**depth
    extra = (0, -width % step, 0, -height % step)  # rows and columns that are neither known nor unknown
    unknown = F.pad(removed[:, None].float(), extra)
    known = F.pad((~removed)[:, None].float(), extra)
    images = F.pad(images, extra)

    levels = _build_levels(unknown, known, depth)
    work = buffers.of(images, levels)
    finest, scratch = levels[0], work[0][0]
    solution = _frame(_fill_pyramid(images, known, depth) * (known + unknown))
    # Only what `active` holds of it means anything: the smoother takes the rest away wherever it is used
    residual = _negative_operator(finest, solution, *work[0][:3]).clone()
    direction, change = torch.zeros_like(solution), images.new_zeros(())
    # Every look at how far it moved makes a GPU wait, and even small holes take a few steps
    unseen = 1 if images.device.type == "cpu" else 4
    for iteration in range(max_iterations):
        correction = _v_cycle(levels, work, 0, residual)
        previous, change = change, _dot(residual, correction, scratch)
        # The ratio is 0 in the first step, which has no previous one
        torch.addcmul(correction, direction, _ratio(change, previous), out=direction)
        moved = _negative_operator(finest, direction, *work[0][:3])
        length = -_ratio(change, _dot(direction, moved, scratch))  # `moved` is minus the operator's image
        solution.addcmul_(direction, length)
        residual.addcmul_(moved, length)
        if iteration < unseen:
            continue
        farthest = torch.abs(direction, out=scratch).amax(dim=-1, keepdim=True)  # `vector_norm` is not vectorised
        if float((farthest * length.abs()).amax()) <= tolerance:
            return _inner(solution, finest)[..., :height, :width]
    raise RuntimeError(
        f"Linear imputation did not come within `tolerance` {tolerance} in {max_iterations} iterations."
    )


def _build_levels(unknown: torch.Tensor, known: torch.Tensor, depth: int) -> list[_Level]:
    """
    The operator on every grid.

    On the finest one `diagonal` counts all neighbours inside the image, `held` those whose value is known. A coarser
    cell is active if any of its four pixels is unknown, is tied to its active neighbours by the same weights, and is
    held by most of what holds its pixels. That is close to the exact coarse operator and rarely softer, so V-cycles
    hardly overshoot and stay positive definite, whatever the shape of the holes.
    """
    levels = []
    active = unknown
    held = _binomial_image(known) * unknown  # the centre's own weight of 4 falls on an unknown: nothing to take off
    while True:
        diagonal = (_binomial_image(active) - 4 * active) * active + held
        height, width = active.shape[-2:]
        smoother = active / torch.where(active > 0, diagonal, 1.0)
        level = _Level(height, width, _frame(active), _frame(diagonal), _frame(smoother))
        levels.append(level)
        if len(levels) > depth:
            break
        held, active = _HELD * _pool(held), (_pool(active) > 0).float()
    if height * width <= 4 * _COARSEST_SIDE**2:
        level.inverse = _dense_inverse(active, diagonal)
    return levels


def _dense_inverse(active: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Inverse of the operator on a grid of a few dozen cells, zero on inactive ones; `(masks, cells, cells)`."""
    height, width = active.shape[-2:]
    identity = torch.eye(height * width, dtype=active.dtype, device=active.device)
    spread = _binomial_image(identity.view(-1, 1, height, width)).view(height * width, height * width)
    on, weight = active.flatten(1), diagonal.flatten(1)
    both = on[:, :, None] * on[:, None, :]
    matrix = torch.diag_embed(torch.where(on > 0, weight + 4, 1.0)) - spread * both
    return torch.linalg.inv(matrix) * both


def _v_cycle(levels: list[_Level], work: list[list[torch.Tensor]], depth: int, residual: torch.Tensor) -> torch.Tensor:
    """One symmetric V-cycle from zero: Jacobi, coarse correction, Jacobi. Returns a buffer of `work[depth]`."""
    level, (first, second, rest, result, _) = levels[depth], work[depth]  # the last may be `residual`
    if level.inverse is not None:
        inner = _inner(residual, level).flatten(2)
        _inner(result, level).copy_((inner @ level.inverse).view(*inner.shape[:2], level.height, level.width))
        return result
    torch.mul(residual, level.smoother, out=result)
    if depth + 1 < len(levels):
        # What is left of the residual: the diagonal's part of `residual - A result` is 0 after a Jacobi step from 0
        _neighbours(result, level.width + 2, first, second, rest)
        rest.mul_(level.active)
        coarse_residual = _restrict(level, rest, first, work[depth + 1][4])
        _add_prolonged(level, result, _v_cycle(levels, work, depth + 1, coarse_residual), first, second)
    # The diagonal's part of the second step cancels what it starts from
    _neighbours(result, level.width + 2, first, second, rest)
    return torch.mul(rest.add_(residual), level.smoother, out=result)


def _negative_operator(
    level: _Level, field: torch.Tensor, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Minus the operator's image of `field`, right on active pixels; of known values in `field`, their pull."""
    _neighbours(field, level.width + 2, first, second, out)
    return out.addcmul_(field, level.diagonal, value=-1)


def _neighbours(field: torch.Tensor, row: int, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
    """Spread by [1 2 1; 2 0 2; 1 2 1] into `out`, whose frame is left with numbers that mean nothing."""
    torch.add(field[..., : -2 * row], field[..., 2 * row :], out=first[..., row:-row])
    torch.add(first[..., row:-row], field[..., row:-row], alpha=2, out=second[..., row:-row])
    torch.add(second[..., :-2], second[..., 2:], out=out[..., 1:-1])
    out[..., 1:-1].add_(first[..., 1:-1], alpha=2)


def _restrict(level: _Level, field: torch.Tensor, scratch: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The transpose of bilinear interpolation: [1 3 3 1]/4 of the rows around each pair, then of the columns."""
    height, width = level.height, level.width
    field = field.view(*field.shape[:2], height + 2, width + 2)
    rows = scratch[..., : height // 2 * (width + 2)].view(*field.shape[:2], height // 2, width + 2)
    torch.add(field[..., 0:-2:2, :], field[..., 3::2, :], out=rows)
    rows.add_(field[..., 1:-1:2, :], alpha=3).add_(field[..., 2::2, :], alpha=3)
    # What would leave the grid belongs to its border cells, where interpolation repeats the border value
    rows[..., 0, :].add_(field[..., 1, :])
    rows[..., -1, :].add_(field[..., -2, :])
    spread = torch.add(rows[..., :-2], rows[..., 2:]).add_(rows[..., 1:-1], alpha=2)
    spread[..., 0].add_(rows[..., 1])
    spread[..., -1].add_(rows[..., -2])
    inner = out.view(*out.shape[:2], height // 2 + 2, width // 2 + 2)[..., 1:-1, 1:-1]
    torch.add(spread[..., ::2], spread[..., 1::2], out=inner)
    return out.div_(16)


def _add_prolonged(
    level: _Level, field: torch.Tensor, coarse: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> None:
    """Add `coarse`, interpolated bilinearly to twice its size, to the active places of `field`, in place."""
    height, width = level.height, level.width
    coarse = coarse.view(*coarse.shape[:2], height // 2 + 2, width // 2 + 2)
    for frame, border in ((0, 1), (-1, -2)):  # interpolation repeats the border value
        coarse[..., frame, :] = coarse[..., border, :]
        coarse[..., frame] = coarse[..., border]
    wide = first[..., : (height // 2 + 2) * width].view(*coarse.shape[:3], width)
    torch.lerp(coarse[..., 1:-1], coarse[..., :-2], 0.25, out=wide[..., ::2])
    torch.lerp(coarse[..., 1:-1], coarse[..., 2:], 0.25, out=wide[..., 1::2])
    rows = second[..., : height // 2 * width].view(*coarse.shape[:2], height // 2, width)
    field, active = _inner(field, level), _inner(level.active, level)
    for start, neighbours in enumerate((wide[..., :-2, :], wide[..., 2:, :])):
        torch.lerp(wide[..., 1:-1, :], neighbours, 0.25, out=rows)
        field[..., start::2, :].addcmul_(rows, active[..., start::2, :])


def _enlarged(coarse: torch.Tensor) -> torch.Tensor:
    """Twice the size, bilinearly, as `F.interpolate` does; several times faster."""
    for dim in (-1, -2):
        length = coarse.shape[dim]
        near = [coarse.narrow(dim, 0, 1), coarse, coarse.narrow(dim, length - 1, 1)]  # the border value is repeated
        padded = torch.cat(near, dim)
        size = list(coarse.shape)
        size[dim] *= 2
        fine = coarse.new_empty(size)
        for start in (0, 1):
            places = fine.unflatten(dim, (length, 2)).select(dim, start)
            torch.lerp(coarse, padded.narrow(dim, 2 * start, length), 0.25, out=places)
        coarse = fine
    return coarse


def _fill_pyramid(images: torch.Tensor, known: torch.Tensor, depth: int) -> torch.Tensor:
    """First guess: known means of ever larger blocks, smoothly handed down to where nothing finer is known."""
    sums, counts = [images * known], [known]
    for _ in range(depth):
        sums.append(_pool(sums[-1]))
        counts.append(_pool(counts[-1]))
    guess = sums[-1].sum((-2, -1), keepdim=True) / counts[-1].sum((-2, -1), keepdim=True)
    for index in range(depth, 0, -1):
        guess = (sums[index] + 0.05 * guess) / (counts[index] + 0.05)
        guess = _enlarged(guess)
    return torch.where(known > 0, images, guess)


def _binomial_image(field: torch.Tensor) -> torch.Tensor:
    """[1 2 1; 2 4 2; 1 2 1] over one-channel images, zeros outside."""
    field = F.pad(field, (1, 1, 1, 1))
    field = field[..., :-2, :] + 2 * field[..., 1:-1, :] + field[..., 2:, :]
    return field[..., :-2] + 2 * field[..., 1:-1] + field[..., 2:]


def _pool(field: torch.Tensor) -> torch.Tensor:
    """Sums over blocks of 2 x 2."""
    rows = field[..., ::2, :] + field[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _frame(images: torch.Tensor) -> torch.Tensor:
    """Images to flat fields with a frame of zeros."""
    return F.pad(images, (1, 1, 1, 1)).flatten(2)


def _inner(field: torch.Tensor, level: _Level) -> torch.Tensor:
    """A view of a flat field without its frame."""
    return field.view(*field.shape[:2], level.height + 2, level.width + 2)[..., 1:-1, 1:-1]


def _dot(first: torch.Tensor, second: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    return torch.mul(first, second, out=scratch).sum(-1, keepdim=True)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """0 where the denominator is 0: that channel is solved already."""
    return torch.where(denominator != 0, numerator / torch.where(denominator != 0, denominator, 1.0), 0.0)
