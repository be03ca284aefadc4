"""Fills, rankings with seeded ties, and exact pixel masks: what RISE, FGVis and every metric perturb images with.

Tensors here are `pixel_values`, already normalised by an image processor; `image_mean` and `image_std` are that
processor's, so that "black" can mean black in the picture and not the mean colour a zero stands for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_explain.tensors.checks import check_saliency
from hf_explain.tensors.grids import cell_means
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.randomness import random_bits, random_uniform
from hf_explain.tensors.scalars import check_choice, check_number, check_numbers, check_percent


FILLS = ("black", "mean", "blur")
RANDOM_FILLS = ("noise", "color")
# those a head may be trained with
TRAINING_FILLS = (*FILLS, "strong_blur", "white", *RANDOM_FILLS, "photo")
MASK_SPACES = ("pixel", "normalized")
KEEP_RULES = ("ceil", "quantile")
ROUNDINGS = ("nearest", "floor")


# --------------------------------------------------------------------------------------------------------------- fills


def gaussian_blur(pixel_values: torch.Tensor, kernel_size: int = 11, sigma: float = 5.0) -> torch.Tensor:
    """
    Blur as RISE does for its insertion curve: a `kernel_size`² kernel, zeros outside the image.

    The published kernel is a Gaussian of 4σ support folded back into the window at its edges, so it still sums to 1.

    Source: RISE (https://huggingface.co/papers/1806.07421), released evaluation code.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images, any range.
        kernel_size (`int`, *optional*, defaults to 11): Side of the kernel in pixels, odd.
        sigma (`float`, *optional*, defaults to 5.0): Standard deviation in pixels.

    Returns:
        `torch.Tensor` of the same shape and dtype.

    Raises:
        ValueError: If `kernel_size` is not odd and positive or `sigma` is not positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"`kernel_size` must be odd and at least 1, got {kernel_size}.")
    check_number(sigma, "sigma", "(0, inf)")
    radius = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    place = torch.arange(-radius, radius + 1) + kernel_size // 2
    place = place.remainder(2 * kernel_size)  # reflection d c b a | a b c d | d c b a has period 2 * kernel_size
    place = torch.minimum(place, 2 * kernel_size - 1 - place)
    kernel = torch.zeros(kernel_size, dtype=torch.float64).index_add_(0, place, weights / weights.sum())
    channels = pixel_values.shape[1]
    kernel = kernel.to(pixel_values, non_blocking=True).expand(channels, 1, kernel_size)
    half = kernel_size // 2
    rows = F.conv2d(pixel_values, kernel[..., None], padding=(half, 0), groups=channels)
    return F.conv2d(rows, kernel[:, :, None], padding=(0, half), groups=channels)


def strong_blur(pixel_values: torch.Tensor, cells: int = 4) -> torch.Tensor:
    """
    What is left of an image in `cells` × `cells` mean colours, enlarged again: its light, and nothing of its things.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images, any range.
        cells (`int`, *optional*, defaults to 4): Mean colours down and across.

    Returns:
        `torch.Tensor` of the same shape and dtype.
    """
    return resize_maps(F.adaptive_avg_pool2d(pixel_values, cells), pixel_values.shape[-2:])


def fill_values(
    pixel_values: torch.Tensor,
    fill: str | Sequence[float] = "black",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> torch.Tensor:
    """
    What removed pixels are replaced by, as `pixel_values`.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        fill (`str` or sequence of `float`, *optional*, defaults to `"black"`): `"black"` (0 in the picture),
            `"white"`, `"mean"` (the processor's mean colour: 0 in `pixel_values`), `"blur"` (RISE's 11×11 Gaussian of
            σ = 5) or a colour, one number in [0, 1] per channel.
        image_mean (sequence of `float`, *optional*): The image processor's; for black, white and colours.
        image_std (sequence of `float`, *optional*): The image processor's; for black, white and colours.

    Returns:
        `torch.Tensor` of shape `(1, channels, 1, 1)`, or that of `pixel_values` for `"blur"`.

    Raises:
        ValueError: If `fill` is unknown or not a colour in [0, 1], or if `image_mean` and `image_std` are needed and
            missing or of the wrong length.
    """
    channels = pixel_values.shape[1]
    if isinstance(fill, (str, int, float)):
        if fill not in (*FILLS, "white"):
            raise ValueError(f"`fill` must be one of {', '.join(FILLS)}, white or a colour, got {fill!r}.")
        if fill == "mean":
            return pixel_values.new_zeros(1, channels, 1, 1)
        if fill == "blur":
            return gaussian_blur(pixel_values)
        colour = (float(fill == "white"),) * channels
    else:
        colour = check_numbers(fill, "fill")
        if len(colour) != channels or not all(0 <= value <= 1 for value in colour):
            raise ValueError(f"`fill` as a colour needs {channels} numbers in [0, 1], got {colour}.")
    value = torch.tensor(colour, dtype=torch.float64).view(1, channels, 1, 1)
    return _normalised(value, fill, image_mean, image_std).to(pixel_values, non_blocking=True)


def random_fill_values(
    pixel_values: torch.Tensor,
    fill: str,
    keys: torch.Tensor,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> torch.Tensor:
    """
    Fills that are drawn for every image, as `pixel_values`.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        fill (`str`): `"noise"` (every channel of every pixel uniform in [0, 1] of the picture) or `"color"` (one such
            colour per image).
        keys (`torch.LongTensor` of shape `(batch_size,)`): From [`~hf_explain.tensors.randomness.image_keys`].
        image_mean, image_std (sequence of `float`, *optional*): The image processor's.

    Returns:
        `torch.Tensor` of the shape of `pixel_values`, or `(batch_size, channels, 1, 1)` for `"color"`.

    Raises:
        ValueError: If `fill` is neither, or if `image_mean` and `image_std` are missing or of the wrong length.
    """
    check_choice(fill, "fill", RANDOM_FILLS)
    size, channels, height, width = pixel_values.shape
    shape = (size, channels, 1, 1) if fill == "color" else (size, channels, height, width)
    drawn = random_uniform(keys, math.prod(shape[1:])).view(shape)
    return _normalised(drawn, fill, image_mean, image_std).to(pixel_values)


def _normalised(
    picture: torch.Tensor, fill: Any, image_mean: Sequence[float] | None, image_std: Sequence[float] | None
) -> torch.Tensor:
    """A picture in [0, 1] as `pixel_values`."""
    channels = picture.shape[1]
    if image_mean is None or image_std is None:
        raise ValueError(
            f"`image_mean` and `image_std` are needed for fill={fill!r}: pass the image processor's, or (0, 0, 0) and "
            "(1, 1, 1) for images in [0, 1]."
        )
    mean, std = (torch.as_tensor(values, dtype=torch.float64).flatten() for values in (image_mean, image_std))
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"`{name}` must hold {channels} numbers, one per channel, got {len(values)}.")
    if not bool((std > 0).all()):
        raise ValueError(f"`image_std` must be positive, got {tuple(std.tolist())}.")
    mean, std = (values.to(picture, non_blocking=True).view(1, -1, 1, 1) for values in (mean, std))
    return (picture - mean) / std


def mask_space_fill(mask_space: str) -> str:
    """
    The fill a mask space means: multiplying the [0, 1] picture (`"pixel"`) leaves black, multiplying `pixel_values`
    (`"normalized"`) leaves the mean colour.

    Raises:
        ValueError: If `mask_space` is neither.
    """
    check_choice(mask_space, "mask_space", MASK_SPACES)
    return "black" if mask_space == "pixel" else "mean"


def blend(pixel_values: torch.Tensor, kept: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
    """
    `kept * pixel_values + (1 - kept) * filled`; a boolean `kept` copies values exactly.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        kept (`torch.Tensor` of shape `(batch_size, height, width)`): How much of each pixel stays, in [0, 1] or bool.
        filled (`torch.Tensor` broadcastable to `pixel_values`): From [`fill_values`].

    Returns:
        `torch.Tensor` of the shape of `pixel_values`; the input is not touched.
    """
    kept = kept[:, None]
    if kept.dtype == torch.bool:
        return torch.where(kept, pixel_values, filled)
    kept = kept.to(pixel_values.dtype)
    return filled + kept * (pixel_values - filled)


# ------------------------------------------------------------------------------------------------------------ rankings


def rank_pixels(saliency: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    The place of every pixel in its image's order of saliency; 0 is the most salient, ties in seeded random order.

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, height, width)`): Finite maps, compared in float32.
        keys (`torch.LongTensor` of shape `(batch_size,)`): From [`image_keys`].

    Returns:
        `torch.LongTensor` of shape `(batch_size, height, width)`: each image holds every number in
        `range(height * width)` once.
    """
    values = saliency.detach().flatten(1).float() + 0.0  # -0.0 and 0.0 tie
    bits = values.contiguous().view(torch.int32).long()
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    # The value above, random bits below: one sort orders both, and any number of equal values
    order = _argsort(~((bits << 31) | random_bits(keys, bits.shape[1])))
    places = torch.arange(bits.shape[1], device=bits.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(saliency.shape)


def tied_ranks(values: torch.Tensor) -> torch.Tensor:
    """
    The place of every value in the rising order of its row, from 0; equal values share the mean of their places.

    Args:
        values (`torch.Tensor` of shape `(batch_size, count)`): Finite numbers.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size, count)`; the mean of every row is `(count - 1) / 2`.
    """
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    first, behind = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (first + behind - 1).double() / 2


def rank_correlation(values: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """
    Spearman's rank correlation, row by row; 0 where one of the two is constant.

    Args:
        values, others (`torch.Tensor` of shape `(batch_size, count)`): Finite numbers.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size,)`, in [-1, 1].
    """
    one, other = (tied_ranks(rows) - (rows.shape[1] - 1) / 2 for rows in (values, others))
    norm = one.norm(dim=1) * other.norm(dim=1)
    return torch.where(norm > 0, (one * other).sum(1) / norm.clamp(min=1e-12), 0.0)


def _argsort(values: torch.Tensor) -> torch.Tensor:
    """Rows of integers in rising order; on a CPU by NumPy, whose sort is twice as fast as PyTorch's."""
    if values.device.type != "cpu":
        return values.argsort(dim=1)
    return torch.from_numpy(np.argsort(values.numpy(), axis=1))


def pixel_counts(fractions: Sequence[float], num_pixels: int, rounding: str = "nearest") -> list[int]:
    """
    How many pixels a fraction of the image is.

    Args:
        fractions (sequence of `float`): In [0, 1].
        num_pixels (`int`): Pixels of the image, `height * width`.
        rounding (`str`, *optional*, defaults to `"nearest"`): `"nearest"` (halves up) or `"floor"` (published code of
            Chefer et al.).

    Returns:
        `list[int]`, one count per fraction.

    Raises:
        ValueError: If a fraction is outside [0, 1] or `rounding` is unknown.
    """
    check_choice(rounding, "rounding", ROUNDINGS)
    shift = 0.5 if rounding == "nearest" else 0.0
    counts = []
    for fraction in fractions:
        check_number(fraction, "fractions", "[0, 1]")
        # 1e-9: 0.1 * 50 must count as 5 whatever float rounding made of it
        counts.append(min(num_pixels, math.floor(fraction * num_pixels + shift + 1e-9)))
    return counts


def keep_top(
    saliency: torch.Tensor, percent: float, rule: str = "ceil", ranks: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Set all but the most salient `percent` of each map to 0; the rest stays soft.

    Source: L-CAM (`rule="ceil"`: exactly ⌈v·HW⌉ pixels stay, ties broken) and T-TAME (`rule="quantile"`: every pixel
    at or above the 1 − v quantile stays, ties included), released code of both.

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, height, width)`): Maps in [0, 1] at the image's resolution.
        percent (`float`): Pixels kept, in (0, 100].
        rule (`str`, *optional*, defaults to `"ceil"`): `"ceil"` or `"quantile"`.
        ranks (`torch.LongTensor` of shape `(batch_size, height, width)`): From [`rank_pixels`]; for `"ceil"`.

    Returns:
        `torch.Tensor` of the shape of `saliency`.

    Raises:
        ValueError: If `percent` is outside (0, 100], `rule` is unknown, or `ranks` is missing for `"ceil"`.
    """
    percent = check_percent(percent)
    check_choice(rule, "rule", KEEP_RULES)
    if percent == 100:
        return saliency
    num_pixels = saliency[0].numel()
    if rule == "ceil":
        if ranks is None:
            raise ValueError("`ranks` (from rank_pixels) is needed for rule='ceil'.")
        return torch.where(ranks < math.ceil(percent / 100 * num_pixels - 1e-9), saliency, 0.0)
    # torch.quantile refuses more than 16 M numbers; a sort and a lerp do not
    ordered = saliency.flatten(1).sort(dim=1).values
    position = (1 - percent / 100) * (num_pixels - 1)
    low = math.floor(position)
    threshold = torch.lerp(ordered[:, low], ordered[:, min(low + 1, num_pixels - 1)], position - low)
    return torch.where(saliency >= threshold.view(-1, 1, 1), saliency, 0.0)


def full_size_saliency(
    saliency: torch.Tensor,
    pixel_values: torch.Tensor,
    at_most_one: bool = False,
    exact_ties: bool = True,
    cells: tuple[int, int] | None = None,
) -> torch.Tensor:
    """
    Maps checked by [`check_saliency`], on the device and at the resolution of `pixel_values`, in float32; or their
    means over the cells of a grid.

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Maps at any resolution.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The images.
        at_most_one (`bool`, *optional*, defaults to `False`): Also refuse values above 1.
        exact_ties (`bool`, *optional*, defaults to `True`): Resize in float64. In float32 the interpolation of equal
            numbers comes out unequal in the last digit, and a constant map would be ranked by its rounding errors,
            the same way in every image, instead of by the seed. `False` is what published code does.
        cells (`tuple[int, int]`, *optional*): `(height, width)` of a grid of equal cells over the image, as for
            [`~hf_explain.tensors.grids.cell_means`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, height, width)`, or `(batch_size, *cells)`.
    """
    saliency = check_saliency(saliency, len(pixel_values), at_most_one)
    if exact_ties:
        # Apple's GPUs have no float64: there by way of the CPU
        saliency = (saliency.cpu() if saliency.device.type == "mps" else saliency).double()
    size = pixel_values.shape[-2:]
    saliency = resize_maps(saliency, size) if cells is None else cell_means(saliency, cells, size)
    return saliency.float().to(pixel_values.device)
