"""Checks of arguments: the value as the code wants it, or one sentence that names the argument and the value."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch


def check_seed(seed: int, name: str = "seed") -> int:
    """`seed` if it is a whole number of 64 bits, else a ValueError that names it."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"`{name}` must be a whole number of at most 64 bits, such as 0, got {seed!r}.")
    return int(seed)


def check_numbers(values: Sequence[float], name: str) -> tuple[float, ...]:
    """`values` as floats, or a TypeError that names the argument if they are not a list of numbers."""
    try:
        if isinstance(values, str):
            raise TypeError
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a list of numbers, got {values!r}.") from error


def check_percent(percent: float) -> float:
    """`percent` as a float, or a ValueError if it is not in (0, 100]."""
    if not 0 < percent <= 100:
        raise ValueError(f"`percent` of pixels kept must lie in (0, 100], got {percent}.")
    return float(percent)


def check_pixel_values(pixel_values: torch.Tensor) -> torch.Tensor:
    """`pixel_values` if it is a batch of floating-point images, else one clear ValueError or TypeError."""
    pixel_values = _one_tensor(pixel_values, "pixel_values")
    if pixel_values.ndim != 4 or pixel_values.numel() == 0:
        raise ValueError(
            f"`pixel_values` must have shape (batch_size, channels, height, width) with nothing empty, got "
            f"{tuple(pixel_values.shape)}."
        )
    if not pixel_values.is_floating_point():
        raise TypeError(f"`pixel_values` must be floating point, got {pixel_values.dtype}: run the image processor.")
    return pixel_values


def check_saliency(saliency: torch.Tensor, batch_size: int, at_most_one: bool = False) -> torch.Tensor:
    """
    `saliency` as float32 if it is one finite, non-negative map per image.

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, height, width)`): Maps at any resolution.
        batch_size (`int`): Number of images.
        at_most_one (`bool`, *optional*, defaults to `False`): Also refuse values above 1.

    Raises:
        ValueError: If the shape is wrong, the maps differ in size, or a value is NaN, infinite, negative or (if asked)
            above 1.
    """
    saliency = _one_tensor(saliency, "saliency")
    if saliency.ndim != 3 or saliency.numel() == 0 or len(saliency) != batch_size:
        raise ValueError(
            f"`saliency` must have shape (batch_size, height, width) with batch_size {batch_size}, got "
            f"{tuple(saliency.shape)}."
        )
    saliency = saliency.detach().float()
    if not bool(torch.isfinite(saliency).all()):
        bad = (~torch.isfinite(saliency)).flatten(1).any(1).nonzero()[0].item()
        raise ValueError(f"`saliency` must be finite, but the map of image {bad} holds NaN or infinity.")
    low = saliency.flatten(1).amin(1)
    if bool((low < 0).any()):
        bad = int((low < 0).nonzero()[0])
        raise ValueError(
            f"`saliency` must not be negative, but the map of image {bad} goes down to {low[bad].item():.4g}; scale "
            "maps with hf_explain.tensors.maps.min_max."
        )
    high = saliency.flatten(1).amax(1)
    if at_most_one and bool((high > 1 + 1e-5).any()):
        bad = int((high > 1 + 1e-5).nonzero()[0])
        raise ValueError(
            f"`saliency` must lie in [0, 1], but the map of image {bad} goes up to {high[bad].item():.4g}; scale "
            "maps with hf_explain.tensors.maps.min_max."
        )
    return saliency


def _one_tensor(value, name: str) -> torch.Tensor:
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, torch.Tensor) for item in value):
        sizes = sorted({tuple(item.shape) for item in value})
        if len(sizes) > 1:
            raise ValueError(
                f"`{name}` mixes the sizes {', '.join(map(str, sizes))}: resize to one size, or measure each apart."
            )
        return torch.stack(tuple(value))
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be one tensor, got {type(value).__name__}.")
    return value


def check_count(value: int, name: str, minimum: int = 1) -> int:
    """`value` if it is a whole number of at least `minimum`, else a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` must be a whole number of at least {minimum}, got {value!r}.")
    return value
