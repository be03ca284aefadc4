"""Random numbers of an image: a pure function of its content (or its id) and a seed, the same on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hf_explain.tensors.scalars import check_seed


# splitmix64's constants, as the signed 64-bit integers torch knows
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def image_keys(
    pixel_values: torch.Tensor, image_ids: torch.Tensor | Sequence[int] | None = None, seed: int = 0
) -> torch.Tensor:
    """
    One 64-bit key per image, from which everything random about that image is drawn.

    Keys depend on the image (or on the id the caller gives it) and the seed, never on the batch it came in, so a
    number measured at batch size 1, 3 or 8, in any order, on any device or number of processes, is the same number.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, ...)`): Images; their content is hashed.
        image_ids (`torch.LongTensor` of shape `(batch_size,)` or list of `int`, *optional*):
            Used instead of the content, for instance the row in the data set. Two equal images then differ.
        seed (`int`, *optional*, defaults to 0): Changes every key.

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`.

    Raises:
        ValueError: If `image_ids` does not hold one integer per image, or `seed` is not a whole number of 64 bits.
    """
    check_seed(seed)
    if image_ids is None:
        bits = pixel_values.detach().float().flatten(1).contiguous().view(torch.int32).long()
        places = _mix(torch.arange(bits.shape[1], device=bits.device)) | 1
        content = (bits * places).sum(1)
    else:
        content = torch.as_tensor(image_ids).to(pixel_values.device, non_blocking=True)
        if content.shape != pixel_values.shape[:1] or content.is_floating_point():
            raise ValueError(
                f"`image_ids` must hold one integer per image ({pixel_values.shape[0]}), got shape "
                f"{tuple(content.shape)} and dtype {content.dtype}."
            )
        content = content.long()
    # The seed as a tensor: its product has to wrap at 64 bits, which a Python integer's does not
    return _mix(_mix(content + _GOLDEN) + torch.tensor(int(seed)) * _GOLDEN)


def random_bits(keys: torch.Tensor, count: int) -> torch.Tensor:
    """
    `count` random integers in [0, 2**31) per key, the same on every device.

    Args:
        keys (`torch.LongTensor` of shape `(batch_size,)`): From [`image_keys`].
        count (`int`): How many per image.

    Returns:
        `torch.LongTensor` of shape `(batch_size, count)`.
    """
    places = torch.arange(count, device=keys.device) * _GOLDEN
    return (_mix(keys[:, None] + places) >> 33) & 0x7FFFFFFF


def random_uniform(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1), shape `(batch_size, count)`; see [`random_bits`]."""
    return (random_bits(keys, count) >> 7).float() / 2**24


def random_normal(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Standard normal float32 numbers (Box-Muller), shape `(batch_size, count)`; see [`random_bits`]."""
    half = (count + 1) // 2
    uniform = random_uniform(keys, 2 * half)
    radius = torch.sqrt(-2 * torch.log1p(-uniform[:, :half]))
    angle = 2 * math.pi * uniform[:, half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def _mix(value: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64, whose products wrap as its unsigned ones do."""
    for shift, factor in ((30, _MIX[0]), (27, _MIX[1])):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))
