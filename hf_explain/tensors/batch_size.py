"""How many images go into one pass: the number at which a model is fastest, found once, while it works."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


_LEAST = 8  # smaller batches are slower everywhere
_TRIALS = 2  # of each size; the first one may also have to compile something
_TOLERANCE = 1.03  # a larger batch that is this close to the fastest one is taken: the clock is not exact

_Timings = dict[int, list[float]]  # seconds per image by images per pass
_LOCK = threading.Lock()
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Timings]] = weakref.WeakKeyDictionary()


def batches(model: Any, images: torch.Tensor, total: int, at_most: int, each: int = 1) -> Iterator[slice]:
    """
    Slices that cover `range(total)`, each one pass of `model` through the body of the loop over them.

    Where there is work for it, the first slices try a few sizes and the clock; from then on the fastest size is known
    for this model, and slices are as equal as can be. What is timed is work that had to be done anyway. A callable
    that is not a module gets slices of `at_most`.

    Args:
        model (`Callable`): What each pass runs.
        images (`torch.Tensor` of shape `(any, channels, height, width)`): Images like those of the passes: their
            device, size and, where the model does not name its own, precision count.
        total (`int`): How many things there are.
        at_most (`int`): Images per pass that are allowed.
        each (`int`, *optional*, defaults to 1): Images that one thing stands for; a pass takes at least one thing.

    Yields:
        `slice`: Of at most `at_most` images.
    """
    timings = _timings_of(model, images) if isinstance(model, nn.Module) else {}
    sizes = [size // each for size in (at_most >> shift for shift in range(4)) if size >= max(_LEAST, each)]
    most, start = max(1, at_most // each), 0
    while start < total:
        left = total - start
        trial = None
        if isinstance(model, nn.Module) and total >= most:
            trial = next((size for size in sizes if size <= left and not _is_known(timings, size * each)), None)
        size = trial or _fastest(timings, sizes, left, each) or most
        span = slice(start, min(start + size, total))
        if trial is None:
            yield span
        else:
            began = _clock(images.device)
            yield span
            timings.setdefault(size * each, []).append((_clock(images.device) - began) / (size * each))
        start = span.stop


def _fastest(timings: _Timings, sizes: list[int], left: int, each: int) -> int | None:
    """The size for what is left, in equal parts; `None` while it is not known."""
    if not sizes or not all(_is_known(timings, size * each) for size in sizes):
        return None
    best = {size: min(timings[size * each]) for size in sizes}
    size = max(size for size in sizes if best[size] <= _TOLERANCE * min(best.values()))
    return -(-left // -(-left // size))


def _is_known(timings: _Timings, images: int) -> bool:
    return len(timings.get(images, ())) >= _TRIALS


def _timings_of(model: nn.Module, images: torch.Tensor) -> _Timings:
    with torch.no_grad():  # as the passes will run
        dtype = getattr(model, "compute_dtype", getattr(model, "dtype", images.dtype))
    runs_in = dtype, getattr(model, "memory_format", None)
    key = (images.device, *runs_in, images.shape[1:], torch.get_num_threads())
    with _LOCK:
        return _KNOWN.setdefault(model, {}).setdefault(key, {})


def _clock(device: torch.device) -> float:
    if device.type == "cuda":  # kernels run on after Python has gone on
        torch.cuda.synchronize(device)
    return time.perf_counter()
