"""What numbers of single images say together: pairwise comparison, intervals, agreement, groups that stand out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_explain.tensors.scalars import check_count, check_number, check_seed


# Of every bootstrap interval, where nothing else is asked for
CONFIDENCE, RESAMPLES = 0.95, 1000
# Numbers drawn at once while resampling: 128 MiB of indices, whatever the size of the data set
_RESAMPLE_BLOCK = 2**24


@dataclass
class WinRate:
    """
    A pairwise comparison on the same images.

    Args:
        win (`torch.DoubleTensor` of shape `(batch_size,)`): 1 where the first is better, 0 where the second is, 0.5
            where they are equal.
        protocol (`dict`): How it was measured.
    """

    win: torch.Tensor
    protocol: dict[str, Any]

    @property
    def rate(self) -> torch.Tensor:
        """Share of images won in percent, ties counting half; `torch.DoubleTensor` of shape `()`."""
        return 100 * self.win.mean()


def win_rate(scores: torch.Tensor, other: torch.Tensor, *, higher_is_better: bool) -> WinRate:
    """
    On how many images one explainer does better than another one.

    Grad-CAM++'s "Win %" compares drops in confidence with those of Grad-CAM (`higher_is_better=False`); it counts ties
    for nobody, here each side gets half, so that the two win rates of a pair add up to 100.

    Formula, with `s` and `o` the scores of the two on the same image:

        rate = 100 mean([s better than o] + 1/2 [s = o])

    Source: Grad-CAM++ (https://huggingface.co/papers/1710.11063), section 4.1.

    Args:
        scores (`torch.Tensor` of shape `(batch_size,)`): One number per image.
        other (`torch.Tensor` of shape `(batch_size,)`): The other explainer's, on the same images in the same order.
        higher_is_better (`bool`): `True` for AUC-D, `False` for drops.

    Returns:
        [`WinRate`].

    Raises:
        ValueError: If the two are not equally many finite numbers.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import win_rate

    >>> win_rate(torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 2.0, 4.0]), higher_is_better=True).rate
    tensor(62.5000, dtype=torch.float64)
    ```
    """
    scores, other = _numbers(scores, "scores"), _numbers(other, "other")
    if scores.ndim != 1 or scores.shape != other.shape:
        raise ValueError(
            "`scores` and `other` must hold one number per image each, of the same images, got shapes "
            f"{tuple(scores.shape)} and {tuple(other.shape)}."
        )
    ahead = scores - other.to(scores.device)
    win = ((ahead if higher_is_better else -ahead).sign() + 1) / 2
    return WinRate(win, {"higher_is_better": higher_is_better, "ties": "half"})


def bootstrap_interval(
    values: torch.Tensor, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Confidence interval of a mean over images, by resampling the images (percentile bootstrap).

    Formula, with `c` the confidence and `mean_r` the means of the resampled data sets:

        [quantile((1 − c) / 2 of mean_r), quantile((1 + c) / 2 of mean_r)]

    Args:
        values (`torch.Tensor` of shape `(num_images, ...)`): One number, or several, per image. Several are resampled
            together: their intervals belong to the same resampled data sets.
        confidence (`float`, *optional*, defaults to 0.95): In (0, 1).
        resamples (`int`, *optional*, defaults to 1000): Data sets drawn.
        seed (`int`, *optional*, defaults to 0): Seed; the same numbers on every device.

    Returns:
        `tuple[torch.DoubleTensor, torch.DoubleTensor]`: lower and upper bounds, of shape `values.shape[1:]`, on the
        device of `values`.

    Raises:
        ValueError: If there are no values, one is NaN or infinite, or an option is out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import bootstrap_interval

    >>> low, high = bootstrap_interval(torch.arange(100.0))  # their mean is 49.5
    >>> bool(low < 49.5 < high), bool(high - low < 15)
    (True, True)
    ```
    """
    values = _numbers(values, "values")
    check_number(confidence, "confidence", "(0, 1)")
    check_count(resamples, "resamples")
    num_images = len(values)
    flat = values.reshape(num_images, -1)
    generator = torch.Generator().manual_seed(check_seed(seed))
    block = max(1, _RESAMPLE_BLOCK // num_images)
    means = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = torch.randint(num_images, (count, num_images), generator=generator)
        # How often each image was drawn, so that a mean is one row of a matrix product
        owner = torch.arange(count)[:, None] * num_images
        times = torch.bincount((drawn + owner).flatten(), minlength=count * num_images).view(count, num_images)
        means.append(times.to(flat) @ flat / num_images)
    ordered = torch.cat(means).sort(dim=0).values
    bounds = []
    for share in ((1 - confidence) / 2, (1 + confidence) / 2):
        place = share * (resamples - 1)
        low = math.floor(place)
        bounds.append(torch.lerp(ordered[low], ordered[min(low + 1, resamples - 1)], place - low))
    return bounds[0].view(values.shape[1:]), bounds[1].view(values.shape[1:])


@dataclass
class PairedDifference:
    """
    How far one explainer is ahead of another one on the same images.

    Args:
        difference (`torch.DoubleTensor`): Mean over the images, above 0 where the first is better.
        low, high (`torch.DoubleTensor`): Ends of its bootstrap interval.
        protocol (`dict`): How it was measured.
    """

    difference: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    protocol: dict[str, Any]


def paired_difference(
    scores: torch.Tensor,
    other: torch.Tensor,
    *,
    higher_is_better: bool,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """
    By how much one explainer does better than another one, with an interval over images.

    Images differ more than explainers do, so the intervals of two means may overlap where one explainer is better on
    nearly every image; the interval of their difference tells.

    Formula, with `s` and `o` the scores of the two on the same image and `±` the direction:

        difference = mean(±(s − o)), its interval by resampling the images

    Args:
        scores (`torch.Tensor` of shape `(num_images, ...)`): One number per image, or one for each of several pairs.
        other (`torch.Tensor` of shape `(num_images, ...)`): The other explainer's, on the same images.
        higher_is_better (`bool`): `True` for AUC-D, `False` for drops.
        confidence, resamples, seed: As of [`bootstrap_interval`].

    Returns:
        [`PairedDifference`], each of shape `scores.shape[1:]`.

    Raises:
        ValueError: If the two are not equally many finite numbers, or an option is out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import paired_difference

    >>> easy_and_hard = torch.tensor([0.0, 50.0, 100.0]).repeat(20)
    >>> found = paired_difference(easy_and_hard + 2, easy_and_hard, higher_is_better=True)
    >>> found.difference.item(), found.low.item(), found.high.item()
    (2.0, 2.0, 2.0)
    ```
    """
    scores, other = _numbers(scores, "scores"), _numbers(other, "other")
    if scores.shape != other.shape:
        raise ValueError(
            "`scores` and `other` must hold numbers of the same images, got shapes "
            f"{tuple(scores.shape)} and {tuple(other.shape)}."
        )
    ahead = scores - other.to(scores.device)
    ahead = ahead if higher_is_better else -ahead
    low, high = bootstrap_interval(ahead, confidence, resamples, seed)
    protocol = {"higher_is_better": higher_is_better, "confidence": confidence, "resamples": resamples, "seed": seed}
    return PairedDifference(ahead.mean(0), low, high, protocol)


def rank_agreement(values: torch.Tensor, other: torch.Tensor) -> float | None:
    """
    Kendall's τ-b: how far two metrics put the same explainers in the same order.

    Formula, over all pairs of explainers:

        τ = Σ sign(v_i − v_j) sign(o_i − o_j) / √(Σ sign²(v_i − v_j) · Σ sign²(o_i − o_j))

    Source: M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).

    Args:
        values (`torch.Tensor` of shape `(num_explainers,)`): What one metric says of each.
        other (`torch.Tensor` of shape `(num_explainers,)`): What the other one says, in the same direction.

    Returns:
        `float` in [−1, 1]: 1 for the same order, −1 for the opposite one; `None` if one of them has no order.

    Raises:
        ValueError: If the two are not equally many finite numbers.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import rank_agreement

    >>> round(rank_agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])), 3)
    0.333
    ```
    """
    values, other = _numbers(values, "values"), _numbers(other, "other")
    if values.ndim != 1 or values.shape != other.shape:
        raise ValueError(
            "`values` and `other` must hold one number per explainer each, got shapes "
            f"{tuple(values.shape)} and {tuple(other.shape)}."
        )
    first, second = ((one[:, None] - one).sign() for one in (values, other.to(values.device)))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return None if scale == 0 else float((first * second).sum() / scale)


@dataclass
class GroupExcess:
    """
    Where one group of images has more of something than the others have.

    Args:
        count (`torch.LongTensor` of shape `(num_groups,)`): Images of each group.
        mean (`torch.DoubleTensor` of shape `(num_groups, num_values)`): Means of each group; 0 for an empty one.
        others (`torch.DoubleTensor` of the same shape): Means of all images outside the group.
        statistic (`torch.DoubleTensor` of the same shape): `mean - others` in standard errors.
        p_value (`torch.DoubleTensor` of the same shape): See [`group_excess`]; 1 where a group was not tested.
        protocol (`dict`): How it was measured.
    """

    count: torch.Tensor
    mean: torch.Tensor
    others: torch.Tensor
    statistic: torch.Tensor
    p_value: torch.Tensor
    protocol: dict[str, Any]


def group_excess(
    values: torch.Tensor,
    groups: torch.Tensor,
    num_groups: int,
    *,
    min_count: int = 10,
    permutations: int = 2000,
    seed: int = 0,
) -> GroupExcess:
    """
    One-sided permutation test of every group against the rest, for several values at once.

    The statistic is the group's mean less that of the rest, over its standard error. Its p-value is the share of
    random reassignments of the images to the groups (the observed one among them) in which *any* group shows so large
    a statistic in *any* of the values: the maximum over all of them corrects for testing them all.

    Formula, for group `g` of `n_g` images, the others being `n − n_g`, `σ` the standard deviation of all:

        t = (mean_g − mean_others) / (σ √(1/n_g + 1/(n − n_g)))
        p = (1 + number of reassignments whose largest t is at least this one) / (1 + permutations)

    Source: single-step maxT, Westfall and Young, Resampling-Based Multiple Testing (1993), section 2.6.

    Args:
        values (`torch.Tensor` of shape `(num_images, num_values)`): Numbers of each image.
        groups (`torch.LongTensor` of shape `(num_images,)`): Group of each image.
        num_groups (`int`): Number of groups, empty ones among them.
        min_count (`int`, *optional*, defaults to 10): Groups with fewer images, or with all of them, are not tested.
        permutations (`int`, *optional*, defaults to 2000): Reassignments; p-values are multiples of one over one more.
        seed (`int`, *optional*, defaults to 0): Seed; the same reassignments on every device.

    Returns:
        [`GroupExcess`].

    Raises:
        ValueError: If values and groups do not belong together, or an option is out of range.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.statistics import group_excess

    >>> values = torch.tensor([[1.0]] * 10 + [[0.0]] * 30)
    >>> groups = torch.tensor([0] * 10 + [1] * 30)
    >>> result = group_excess(values, groups, num_groups=2, permutations=99)
    >>> result.mean.flatten().tolist(), result.p_value.flatten().tolist()
    ([1.0, 0.0], [0.01, 1.0])
    ```
    """
    values = _numbers(values, "values")
    if values.ndim != 2 or groups.shape != values.shape[:1]:
        raise ValueError(
            "`values` and `groups` must be (num_images, num_values) and (num_images,), got "
            f"{tuple(values.shape)} and {tuple(groups.shape)}."
        )
    check_count(permutations, "permutations")
    check_count(min_count, "min_count")
    groups, num_images = groups.to(values.device), len(values)
    count = torch.bincount(groups, minlength=num_groups)
    if len(count) > num_groups:
        raise ValueError(f"`groups` holds group {len(count) - 1}, but `num_groups` is {num_groups}.")
    tested = (count >= min_count) & (count < num_images)
    inside, outside = count.clamp(min=1)[:, None], (num_images - count).clamp(min=1)[:, None]
    total = values.sum(0)
    # constant under reassignment, so that it can be taken once
    error = values.std(0, correction=0) * (1 / inside + 1 / outside).sqrt()

    def statistic(sums: torch.Tensor) -> torch.Tensor:
        difference = sums / inside - (total - sums) / outside
        return torch.where(error > 0, difference / torch.where(error > 0, error, 1.0), 0.0)

    sums = values.new_zeros(num_groups, values.shape[1]).index_add_(0, groups, values)
    observed = statistic(sums)
    at_least = torch.ones_like(observed)  # the observed assignment
    generator = torch.Generator().manual_seed(check_seed(seed))
    block = max(1, _RESAMPLE_BLOCK // (8 * max(num_images, num_groups) * values.shape[1]))
    for start in range(0, permutations if bool(tested.any()) else 0, block):
        drawn = min(block, permutations - start)
        order = torch.rand(drawn, num_images, generator=generator, dtype=torch.float64).argsort(1).to(groups.device)
        place = (groups[order] + torch.arange(drawn, device=groups.device)[:, None] * num_groups).flatten()
        drawn_sums = values.new_zeros(drawn * num_groups, values.shape[1])
        drawn_sums.index_add_(0, place, values.repeat(drawn, 1))
        highest = statistic(drawn_sums.view(drawn, num_groups, -1))[:, tested].amax((1, 2))
        # equal up to rounding is equal: a reassignment within groups gives the same sums in another order
        at_least += (highest[:, None, None] >= observed - 1e-9).sum(0)
    p_value = torch.where(tested[:, None], at_least / (permutations + 1), 1.0)
    protocol = {
        "test": "one-sided permutation test of each group's mean against the mean of all others",
        "correction": "single-step maxT over all tested groups and values",
        "permutations": permutations,
        "min_count": min_count,
        "num_tested": int(tested.sum()),
        "num_values": values.shape[1],
        "seed": seed,
    }
    return GroupExcess(count, sums / inside, (total - sums) / outside, observed, p_value, protocol)


def _numbers(values: torch.Tensor, name: str) -> torch.Tensor:
    values = torch.as_tensor(values)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"`{name}` must hold one number per image of at least one image, got {tuple(values.shape)}.")
    values = values.detach()
    values = values.double() if values.device.type != "mps" else values.cpu().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"`{name}` must be finite, but holds NaN or infinity.")
    return values
