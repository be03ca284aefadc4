"""Noisy linear imputation, ROAD's way of removing pixels, and the metric that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_explain.metrics import multigrid
from hf_explain.metrics.engine import (
    MAX_BATCH,
    Predict,
    base_logits,
    batch_limit,
    read_score,
    reference_classes,
    run_jobs,
    saliency_ranks,
    target_name,
)
from hf_explain.metrics.presets import PRESETS
from hf_explain.tensors.checks import check_pixel_values, refuse
from hf_explain.tensors.grids import Grid, grid_cells, grid_protocol, spread_cells
from hf_explain.tensors.perturbation import pixel_counts
from hf_explain.tensors.randomness import image_keys, random_normal
from hf_explain.tensors.scalars import check_number, check_numbers


_DEFAULT = PRESETS["road"]["default"]
_TOLERANCE = 1e-2  # of which ROAD's number knows less than 0.01 points: the noise added afterwards is as large
# A CPU solves in blocks of at most so many bytes of images: a larger field is memory that the system gives afresh
# every time, which takes longer than the arithmetic. Other devices take everything at once.
_CPU_BLOCK_BYTES = 6 * 2**20


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
        tolerance (`float`, *optional*, defaults to 1e-2): See [`linear_imputation`].
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
    cells = grid_cells(grid, predict, pixel_values.shape[-2:])
    ranks = saliency_ranks(saliency, pixel_values, image_ids, seed, cells)
    num_units = ranks[0].numel()
    ranks = spread_cells(ranks, pixel_values.shape[-2:])
    # Of a few pixels or cells 90 % may round to all of them, and nothing would be left to impute from
    counts = [min(count, num_units - 1) for count in pixel_counts([p / 100 for p in percents], num_units)]
    logits = base_logits(predict, pixel_values, logits, limit, score)
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
        tolerance (`float`, *optional*, defaults to 1e-2): Iterate until no pixel moves by more; the distance to the
            exact solution is then well below half of it. In units of `pixel_values`, where one of a photograph's 256
            grey levels is about 0.017.
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

    def error() -> ValueError:
        return ValueError(
            f"`removed` leaves no pixel of image {int(full.nonzero()[0])}; linear imputation needs at least one."
        )

    refuse(full.any(), error)
    check_number(tolerance, "tolerance", "(0, inf)")
    block = len(pixel_values)
    if pixel_values.device.type == "cpu":
        blocks = -(-4 * pixel_values.numel() // _CPU_BLOCK_BYTES)
        block = -(-block // max(1, blocks))  # of one size
    filled = torch.empty_like(pixel_values)
    for images, holes, out in zip(pixel_values.split(block), removed.split(block), filled.split(block)):
        solution = multigrid.solve(images.float(), holes, tolerance, max_iterations)
        torch.where(holes[:, None], solution.to(images.dtype), images, out=out)
    return filled
