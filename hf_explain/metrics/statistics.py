"""What numbers of single images say together: pairwise comparison and confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


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

    Source: Grad-CAM++ (https://huggingface.co/papers/1710.11063), section 4.1.

    Args:
        scores (`torch.Tensor` of shape `(batch_size,)`): One number per image.
        other (`torch.Tensor` of shape `(batch_size,)`): The other explainer's, on the same images in the same order.
        higher_is_better (`bool`): `True` for AUC-D, `False` for drops.

    Returns:
        [`WinRate`].

    Raises:
        ValueError: If the two are not equally many finite numbers.
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
    values: torch.Tensor, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Confidence interval of a mean over images, by resampling the images (percentile bootstrap).

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
    """
    values = _numbers(values, "values")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie in (0, 1), got {confidence}.")
    if resamples < 1:
        raise ValueError(f"`resamples` must be at least 1, got {resamples}.")
    num_images = len(values)
    flat = values.reshape(num_images, -1)
    generator = torch.Generator().manual_seed(seed)
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


def _numbers(values, name: str) -> torch.Tensor:
    values = torch.as_tensor(values)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"`{name}` must hold one number per image of at least one image, got {tuple(values.shape)}.")
    values = values.detach()
    values = values.double() if values.device.type != "mps" else values.cpu().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"`{name}` must be finite, but holds NaN or infinity.")
    return values
