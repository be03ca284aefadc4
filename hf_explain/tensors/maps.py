"""Saliency maps as tensors: the only resize, the only min-max and the geometry of image processors.

Everything here is pure: tensors in, tensors out, on the device they came on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_explain.tensors.checks import refuse


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """
    Resize maps bilinearly (`align_corners=False`), the one interpolation every method and metric here uses.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)` or `(batch_size, channels, height, width)`):
            Maps at any resolution, any floating dtype.
        size (sequence of two `int`): `(height, width)` wanted, in pixels.

    Returns:
        `torch.Tensor`: the maps at `size`, same number of dimensions; the input itself where it has that size already.

    Raises:
        ValueError: If `maps` has neither 3 nor 4 dimensions or `size` is not two positive numbers.
    """
    if maps.ndim not in (3, 4):
        raise ValueError(
            f"`maps` must have shape (batch_size, height, width) or (batch_size, channels, height, width), "
            f"got {tuple(maps.shape)}."
        )
    sides = [int(side) for side in size]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"`size` must be (height, width) with both at least 1, got {tuple(size)}.")
    if list(maps.shape[-2:]) == sides:
        return maps
    if maps.ndim == 3:
        return F.interpolate(maps[:, None], size=sides, mode="bilinear", align_corners=False)[:, 0]
    return F.interpolate(maps, size=sides, mode="bilinear", align_corners=False)


def area_means(maps: torch.Tensor, grid: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """
    The mean of every map over the area of each position of a grid, as `torch.nn.AdaptiveAvgPool2d` cuts it. A map of
    so many positions, or of a multiple of them, is averaged as it is; any other one at the resolution of the image.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)`): Maps at any resolution.
        grid (sequence of two `int`): `(height, width)` in positions.
        size (sequence of two `int`): `(height, width)` of the images, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, *grid)`.
    """
    if any(side % count for side, count in zip(maps.shape[-2:], grid)):
        maps = resize_maps(maps, size)
    return maps if list(maps.shape[-2:]) == list(grid) else F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """
    Scale every map to [0, 1] by its own minimum and maximum; a constant map becomes all zeros, never NaN.

    Args:
        maps (`torch.Tensor` of shape `(..., height, width)`): Maps; each is scaled over its last two dimensions.

    Returns:
        `torch.Tensor` of the same shape and dtype, in [0, 1].
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, torch.ones_like(span)), 0.0)


def positive_part(maps: torch.Tensor) -> torch.Tensor:
    """
    ReLU of each map; a map without a single positive value is kept as it is.

    A ReLU would make such a map all zeros, which shows nothing. Without it, the map still shows where the evidence
    against the class is weakest.
    """
    return torch.where((maps > 0).flatten(1).any(1)[:, None, None], maps.clamp(min=0), maps)


def signed_maps(maps: torch.Tensor) -> torch.Tensor:
    """
    Scale every map to [-1, 1] by its largest magnitude, so that 0 stays 0; a map of zeros stays one.

    Args:
        maps (`torch.Tensor` of shape `(..., height, width)`): Maps; each is scaled over its last two dimensions.

    Returns:
        `torch.Tensor` of the same shape and dtype.
    """
    largest = maps.abs().amax(dim=(-2, -1), keepdim=True)
    return maps / torch.where(largest > 0, largest, torch.ones_like(largest))


def standardize(maps: torch.Tensor) -> torch.Tensor:
    """
    Bring every map to mean 0 and standard deviation 1, so that only the order and the relative distances of its values
    count.

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`): Maps; each is scaled over its last two dimensions.

    Returns:
        `torch.FloatTensor` of the same shape; all zeros where a map is constant.
    """
    maps = maps - maps.mean(dim=(-2, -1), keepdim=True)
    # the constant keeps the gradient of a map without any contrast finite
    return maps * (maps.square().mean(dim=(-2, -1), keepdim=True) + 1e-8).rsqrt()


def check_finite(values: torch.Tensor, what: str) -> None:
    """A ValueError that names the first image whose `values` (one row per image) hold NaN or infinity."""
    finite = torch.isfinite(values).flatten(1).all(1)

    def error() -> ValueError:
        return ValueError(
            f"Image {int((~finite).nonzero()[0])} gets {what} not finite; look for NaN or infinity in its "
            "`pixel_values` and the classifier's weights, or load the classifier in a wider dtype."
        )

    refuse(~finite.all(), error)


def position_contributions(activation: torch.Tensor, gradient: torch.Tensor, layer: str) -> torch.Tensor:
    """
    Gradient times activation summed over the channels: what each position adds to the score, to first order.

    Args:
        activation (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The layer's features.
        gradient (`torch.Tensor` of the same shape): Of the class score.
        layer (`str`): The layer's name, for the message.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`.

    Raises:
        ValueError: If the products cancel at every position, as they do before a normalisation, which undoes scaling.
    """
    products = gradient * activation
    sums = products.sum(1)

    def error() -> ValueError:
        return ValueError(
            f"`layer` {layer!r} is followed by a normalisation that makes gradient times activation sum to 0 "
            "at every position; choose another layer, or a method that does not sum them, such as gradcam."
        )

    refuse(sums.abs().amax() < 1e-5 * products.abs().sum(1).amax(), error)  # float32 rounding and nothing else
    return sums


def tokens_to_grid(tokens: torch.Tensor, grid_size: Sequence[int], num_prefix_tokens: int = 1) -> torch.Tensor:
    r"""
    Lay patch tokens out as a feature map, row by row from the top-left patch.

    Source: ViT (https://huggingface.co/papers/2010.11929), section 3.1.

    Args:
        tokens (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens + height * width, hidden_size)`):
            Hidden states of one encoder layer, unscaled.
        grid_size (sequence of two `int`): `(height, width)` in patches, not pixels.
        num_prefix_tokens (`int`, *optional*, defaults to 1): CLS, distillation and register tokens, all in front.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, hidden_size, height, width)`.

    Raises:
        ValueError: If the sequence length is not `num_prefix_tokens + height * width`.
    """
    height, width = grid_size
    if tokens.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"`tokens` has {tokens.shape[1]} tokens, but num_prefix_tokens={num_prefix_tokens} and "
            f"grid_size={tuple(grid_size)} need {num_prefix_tokens + height * width}."
        )
    return tokens[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (height, width))


def grid_to_tokens(feature_map: torch.Tensor, prefix_tokens: torch.Tensor | None = None) -> torch.Tensor:
    """
    The inverse of [`tokens_to_grid`]: a feature map back to tokens, with the prefix tokens in front.

    Args:
        feature_map (`torch.FloatTensor` of shape `(batch_size, hidden_size, height, width)`): Patch features.
        prefix_tokens (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens, hidden_size)`, *optional*):
            Tokens that go in front.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_prefix_tokens + height * width, hidden_size)`.
    """
    tokens = feature_map.flatten(2).transpose(1, 2)
    return tokens if prefix_tokens is None else torch.cat([prefix_tokens, tokens], dim=1)


@dataclass(frozen=True)
class CropGeometry:
    """
    Where the pixels a classifier saw lie on the original image.

    An image processor resizes the `original_size` image to `resized_size` and cuts (or pads to) the central
    `crop_size`; or it cuts the central `cut_size` and pads that at the bottom and on the right. All sizes are
    `(height, width)` in pixels. Pixel centres are at half-integers, so crop row `i` shows original row
    `(i + top + 0.5) * original_height / resized_height - 0.5`.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_size: tuple[int, int]
    cut_size: tuple[int, int] | None = None

    @property
    def offset(self) -> tuple[int, int]:
        """`(top, left)` of the crop on the resized image; negative where the processor padded."""
        (resized_height, resized_width), (cut_height, cut_width) = self.resized_size, self.cut_size or self.crop_size
        return (resized_height - cut_height) // 2, (resized_width - cut_width) // 2

    @property
    def seen(self) -> tuple[int, int, int, int]:
        """`(left, top, right, bottom)` of the original image's pixels whose centres the classifier saw."""
        ends = []
        for original, resized, crop, cut, offset in zip(
            self.original_size, self.resized_size, self.crop_size, self.cut_size or self.crop_size, self.offset
        ):
            first, last = (place * original / resized for place in (offset, offset + min(cut, crop)))
            ends.append((max(0, math.ceil(first - 0.5)), min(original, math.floor(last - 0.5) + 1)))
        (top, bottom), (left, right) = ends
        return left, top, right, bottom

    @classmethod
    def from_processor(cls, image_processor: Any, original_size: Sequence[int]) -> CropGeometry:
        """
        The geometry an image processor applies to an image of `original_size`.

        Args:
            image_processor: A Transformers image processor, or `None` for pixels that were not changed.
            original_size (sequence of two `int`): `(height, width)` of the original image, in pixels.

        Raises:
            ValueError: If the processor's `size` has keys that this function does not know, or it pads in a way of
                its own.
        """
        height, width = (int(side) for side in original_size)
        resized = (height, width)
        size = _as_dict(getattr(image_processor, "size", None))
        crop_pct = getattr(image_processor, "crop_pct", None)
        crop = None
        if getattr(image_processor, "do_resize", False) and size:
            if "height" in size and "width" in size:
                resized = (size["height"], size["width"])
            elif "shortest_edge" in size and "longest_edge" in size:
                resized = _bounded_edges(height, width, size["shortest_edge"], size["longest_edge"])
            elif "shortest_edge" in size:
                short = size["shortest_edge"]
                divisor = getattr(image_processor, "size_divisor", None) or 1  # TextNet warps to whole multiples
                if crop_pct is None:
                    height_, width_ = _shortest_edge(height, width, short)
                    tall, wide = _shortest_edge(height, width, short)
                    resized = (-(-tall // divisor) * divisor, -(-wide // divisor) * divisor)
                elif short < 384:  # ConvNeXT's rule: crop below 384, warp from there on
                    resized, crop = _shortest_edge(height, width, int(short / crop_pct)), (short, short)
                else:
                    resized = (short, short)
            else:
                raise ValueError(
                    f"`image_processor.size` is {size}; its resize can be undone when it has height and width, "
                    "shortest_edge, or shortest_edge and longest_edge."
                )
        if getattr(image_processor, "do_center_crop", False):
            crop_dict = _as_dict(image_processor.crop_size)
            crop = (crop_dict["height"], crop_dict["width"])
        crop = crop or resized
        if getattr(image_processor, "do_pad", False):
            pad = getattr(type(image_processor), "pad", None)
            if getattr(pad, "__module__", "") != "transformers.image_processing_backends":
                raise ValueError(
                    f"{type(image_processor).__name__} pads in a way of its own, so where the image lies in what it "
                    "makes is not known; set image_processor.do_pad=False, and a size that needs no padding."
                )
            padded = _as_dict(getattr(image_processor, "pad_size", None))
            if padded:  # else to the largest image of a batch: no further where an image comes alone
                return cls((height, width), resized, (padded["height"], padded["width"]), crop)
        return cls((height, width), resized, crop)


def uncrop(maps: torch.Tensor, geometry: CropGeometry) -> torch.Tensor:
    """
    Put maps of what the classifier saw back onto the original image; pixels it never saw are 0.

    Each original pixel samples the map bilinearly at its own place, in one step from the map's resolution: no
    intermediate resize to the processor's size, so no error beyond the map's own grid.

    Args:
        maps (`torch.Tensor` of shape `(batch_size, height, width)`): Maps at any resolution, covering the crop.
        geometry ([`CropGeometry`]): Of the one original image all of them belong to.

    Returns:
        `torch.Tensor` of shape `(batch_size, original_height, original_width)`, same dtype.
    """
    axes = []
    for original, resized, crop, cut, offset in zip(
        geometry.original_size,
        geometry.resized_size,
        geometry.crop_size,
        geometry.cut_size or geometry.crop_size,
        geometry.offset,
    ):
        # float64: a 40,000 px side needs more than float32's 24 bits to stay under a hundredth of a pixel; on the CPU,
        # because Apple's GPUs have no float64
        centres = (torch.arange(original, dtype=torch.float64) + 0.5) * (resized / original)
        axes.append(((centres - offset) / crop, cut / crop))  # 0 and 1 are the crop's outer edges
    # Bilinear sampling is separable: two small gathers and lerps cost less than a general 2-D grid
    out = maps.float()
    for dim, (position, end) in ((-2, axes[0]), (-1, axes[1])):
        length = out.shape[dim]
        index = (position * length - 0.5).clamp(0, length - 1)
        low = index.floor().long().to(out.device)
        weight = (index - index.floor()).to(device=out.device, dtype=out.dtype)
        if dim == -2:
            weight = weight[:, None]
        high = (low + 1).clamp(max=length - 1)
        out = torch.lerp(out.index_select(dim, low), out.index_select(dim, high), weight)
        seen = ((position >= 0) & (position <= min(end, 1))).to(device=out.device, dtype=out.dtype)
        out = out * (seen[:, None] if dim == -2 else seen)
    return out.to(maps.dtype)


def _as_dict(size: int | Mapping[str, int | None] | None) -> dict[str, int]:
    """A processor's size: by version a number, a dict, or a `SizeDict` whose unset keys are `None`."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"shortest_edge": size}
    return {key: value for key, value in dict(size).items() if value is not None}


def _shortest_edge(height: int, width: int, short: int) -> tuple[int, int]:
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _bounded_edges(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Transformers' `get_size_with_aspect_ratio`, its rounding among it."""
    low, high = min(height, width), max(height, width)
    exact: float = short
    if high / low * short > longest:
        exact = longest * low / high
        short = int(round(exact))
    if low == short:
        return height, width
    long = int(exact * high / low)
    return (short, long) if height <= width else (long, short)
