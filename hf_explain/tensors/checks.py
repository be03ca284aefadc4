"""
Checks of arguments that are tensors: the tensor as the code wants it, or one sentence that names the argument.

Whether a value is wrong is known to its device, and asking a GPU means to wait until it has done all that was asked of
it before. So what looks at values calls [`refuse`], and who runs a batch looks at all of them at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch


class Checks:
    """What was found by [`refuse`] and not looked at yet."""

    def __init__(self) -> None:
        self._found: list[tuple[torch.Tensor, Callable[[], Exception]]] = []

    def add(self, wrong: torch.Tensor, error: Callable[[], Exception]) -> None:
        self._found.append((wrong, error))

    def any_wrong(self, device: torch.device) -> torch.Tensor:
        """Whether anything is wrong, a `torch.BoolTensor` of shape `()` on `device`, for which nothing waits."""
        wrong = [wrong.to(device, non_blocking=True) for wrong, _ in self._found]
        return torch.stack(wrong).any() if wrong else torch.zeros((), dtype=torch.bool, device=device)

    def raise_first(self) -> None:
        """The error of the first that is wrong; each device is waited for once."""
        found, self._found = self._found, []
        on_device: dict[torch.device, list[torch.Tensor]] = {}
        for wrong, _ in found:
            on_device.setdefault(wrong.device, []).append(wrong)
        if any(bool(torch.stack(flags).any()) for flags in on_device.values()):
            raise next(error() for wrong, error in found if bool(wrong))


class _Pending(threading.local):
    def __init__(self) -> None:
        self.checks: Checks | None = None


_PENDING = _Pending()


def refuse(wrong: torch.Tensor, error: Callable[[], Exception]) -> None:
    """
    Raise an error if a tensor says so: now, or at the end of the block of [`checks_together`] the calling thread is
    in. What comes after a call in such a block has to get along with the wrong values.

    Args:
        wrong (`torch.BoolTensor` of shape `()`): Whether something is wrong.
        error (`Callable`): Makes the exception; called only where it is.
    """
    checks = _PENDING.checks or Checks()
    checks.add(wrong, error)
    if checks is not _PENDING.checks:
        checks.raise_first()


@contextlib.contextmanager
def gathered_checks() -> Iterator[Checks]:
    """What [`refuse`] finds inside the block is kept, for the caller to look at."""
    before, checks = _PENDING.checks, Checks()
    _PENDING.checks = checks
    try:
        yield checks
    finally:
        _PENDING.checks = before


@contextlib.contextmanager
def checks_together() -> Iterator[None]:
    """
    What [`refuse`] finds inside the block is looked at when its outermost block ends, also where it ends with another
    error, which may have come of it.
    """
    if _PENDING.checks is not None:
        yield
        return
    with gathered_checks() as checks:
        try:
            yield
        except Exception:
            checks.raise_first()
            raise
    checks.raise_first()


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
    infinite = (~torch.isfinite(saliency)).flatten(1).any(1)
    low, high = saliency.flatten(1).amin(1), saliency.flatten(1).amax(1)

    def first(wrong: torch.Tensor) -> int:
        return int(wrong.nonzero()[0])

    def not_finite() -> ValueError:
        return ValueError(f"`saliency` must be finite, but the map of image {first(infinite)} holds NaN or infinity.")

    def negative() -> ValueError:
        bad = first(low < 0)
        return ValueError(
            f"`saliency` must not be negative, but the map of image {bad} goes down to {low[bad].item():.4g}; scale "
            "maps with hf_explain.tensors.maps.min_max."
        )

    def too_large() -> ValueError:
        bad = first(high > 1 + 1e-5)
        return ValueError(
            f"`saliency` must lie in [0, 1], but the map of image {bad} goes up to {high[bad].item():.4g}; scale "
            "maps with hf_explain.tensors.maps.min_max."
        )

    with checks_together():
        refuse(infinite.any(), not_finite)
        refuse((low < 0).any(), negative)
        if at_most_one:
            refuse((high > 1 + 1e-5).any(), too_large)
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
