"""Checks of arguments that are tensors: the tensor as the code wants it, or one sentence that names the argument."""

from __future__ import annotations

import torch


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


def _one_tensor(value: object, name: str) -> torch.Tensor:
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
