"""A checksum of a classifier's weights, fast enough to run at every load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


# The dtypes a checkpoint is commonly loaded in: a fingerprint is recorded for each, because loading in bfloat16
# rounds the weights and the rounded weights must still be recognised.
FINGERPRINT_DTYPES = ("float32", "bfloat16", "float16")
_LANES = 16384
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, hence invertible modulo 2**64: no changed bit can cancel itself


def fingerprint(module: nn.Module, dtype: torch.dtype | None = None) -> str:
    """
    Checksum over every bit of a module's parameters and persistent buffers, their names and shapes.

    Each tensor's bytes are folded into 16,384 64-bit lanes by Horner's rule modulo 2**64 and the lanes are hashed
    with SHA-256: memory speed, about a sixth of the time of hashing every byte. It detects any accidental change
    and any naive edit. It is not a cryptographic signature: pin a commit as well where the source is not trusted.

    Args:
        module (`torch.nn.Module`): The classifier.
        dtype (`torch.dtype`, *optional*): Floating tensors are cast to it first; without it they stay as they are.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    return fingerprint_tensors(_tensors(module), dtype)


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """
    [`fingerprint`] of tensors that no module holds, such as those of a file.

    Args:
        tensors (`dict[str, torch.Tensor]`): By name.
        dtype (`torch.dtype`, *optional*): As for [`fingerprint`].

    Returns:
        `str`: 32 hexadecimal digits, those of the module whose `state_dict` this is.
    """
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
            digest.update(_fold(tensor))
    return digest.hexdigest()[:32]


def fingerprints(module: nn.Module) -> dict[str, str]:
    """
    The checksums of a module for a config to record: one for every dtype of `FINGERPRINT_DTYPES`. Where the weights
    are rounded already (bfloat16, float16), only that of their own dtype: the others would be of rounded weights.

    Args:
        module (`torch.nn.Module`): The classifier.

    Returns:
        `dict[str, str]`: dtype name to fingerprint; empty for quantised weights.
    """
    if is_quantized(module):
        return {}
    own = _dtype_name(module)
    names = (own,) if own in FINGERPRINT_DTYPES and own != "float32" else FINGERPRINT_DTYPES
    tensors = _tensors(module)
    return {name: fingerprint_tensors(tensors, getattr(torch, name)) for name in names}


def matches(module: nn.Module, recorded: dict[str, str]) -> bool:
    """
    Whether a module's weights are those a record was made of, in the dtype the module has now.

    Args:
        module (`torch.nn.Module`): The classifier as loaded.
        recorded (`dict[str, str]`): What [`fingerprints`] returned when the head was saved.

    Returns:
        `bool`: True when the checksum agrees. Weights in a dtype that was not recorded are cast to a recorded one
        first: float64 weights to float32, or float32 weights to bfloat16 where the record was made in bfloat16.
    """
    own = _dtype_name(module)
    if own in recorded:
        return fingerprint(module) == recorded[own]
    known = next((name for name in FINGERPRINT_DTYPES if name in recorded), None)
    return known is not None and fingerprint(module, getattr(torch, known)) == recorded[known]


def is_quantized(module: nn.Module) -> bool:
    """
    Whether a module's weights are stored as integers, which depend on what made them: no fingerprint tells whose.

    Args:
        module (`torch.nn.Module`): The classifier.
    """
    if getattr(getattr(module, "config", None), "quantization_config", None) is not None:
        return True
    makers = (type(each).__module__ for each in (*module.modules(), *(p.data for p in module.parameters())))
    return any(maker.startswith(("torch.ao.nn.quantized", "torchao")) for maker in makers)


def _tensors(module: nn.Module) -> Mapping[str, torch.Tensor]:
    tensors = _plain_tensors(module.state_dict())
    if any(tensor.is_meta for tensor in tensors.values()):  # offloaded: brought here, one layer after the other
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        return get_state_dict_offloaded_model(module)
    return tensors


def _plain_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A state without what PyTorch's quantised layers pack into it: their integers, and no dtypes."""
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, tuple):
            found |= _plain_tensors({f"{name}.{index}": part for index, part in enumerate(value)})
        elif isinstance(value, torch.Tensor):
            found[name] = value.int_repr() if value.is_quantized else value
    return found


def _dtype_name(module: nn.Module) -> str:
    floating = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return str(floating).removeprefix("torch.")


def _fold(tensor: torch.Tensor) -> bytes:
    raw = tensor.detach().contiguous().view(-1)
    raw = raw.view(torch.uint8) if raw.numel() else raw.to(torch.uint8)
    rows = raw.numel() // (8 * _LANES)
    if not rows:  # most tensors, and their bytes are the digest's as they are
        return raw.cpu().numpy().tobytes()
    if raw.storage_offset() % 8:  # a view into a shared buffer may start anywhere; 64-bit words may not
        raw = raw.clone()
    words = raw[: rows * 8 * _LANES].view(torch.int64)
    lanes = torch.zeros(_LANES, dtype=torch.int64, device=tensor.device)
    high = torch.empty_like(lanes)
    for row in words.view(rows, _LANES):
        # multiplying alone never moves a top bit, so that two flipped signs in one lane would cancel: fold it down
        lanes.mul_(_MULTIPLIER).add_(row)
        torch.bitwise_right_shift(lanes, 31, out=high)
        lanes.bitwise_xor_(high)
    return lanes.cpu().numpy().tobytes() + raw[words.numel() * 8 :].cpu().numpy().tobytes()
