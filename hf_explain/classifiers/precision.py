"""The precision a frozen classifier's passes run in: half of it where that is fast and was seen to change nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch

from hf_explain.tensors.options import DTYPES
from hf_explain.tensors.scalars import check_choice


# No probability of the images that `auto` looks at may differ by more
MAX_DIFFERENCE = 0.02
# Two top classes are too close for half precision where they lie within this part of the range of all logits: for 48
# photographs and four perturbed ones of each, on three classifiers, their distance was off by 0.014 of it at most.
CLOSE = 0.02
_Method = TypeVar("_Method", bound=Callable[..., Any])
_DTYPE: ContextVar[torch.dtype | None] = ContextVar("dtype", default=None)


@contextlib.contextmanager
def passes_in(dtype: torch.dtype | None) -> Iterator[None]:
    """
    Run the passes of the calling thread in another precision than that of the weights, for classifiers with float32
    weights and where no graph is recorded; with a graph, and so for every gradient, the precision is the weights'.

    By autocast: the weights stay as they are and hooks see every pass. A copy of the weights in bfloat16 would take
    1.0 to 1.2 times less time, memory for the copy, and err by 1.2 to 4 times as much.

    Args:
        dtype (`torch.dtype`, *optional*): `torch.bfloat16`; the weights' own for `None`.
    """
    token = _DTYPE.set(dtype)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def asked_dtype() -> torch.dtype | None:
    """What [`passes_in`] asks for in this thread. A graph that is compiled keeps the precision of the weights."""
    return None if torch.compiler.is_compiling() else _DTYPE.get()


def in_precision(method: _Method) -> _Method:
    """A method of a classifier that is a pass, or a part of one: it runs in the classifier's `compute_dtype`."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if asked_dtype() is None or self.compute_dtype == self.dtype:
            return method(self, *args, **kwargs)
        with torch.autocast(self.device.type, self.compute_dtype):
            return method(self, *args, **kwargs)

    return cast(_Method, run)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself: without such instructions it is slower than float32."""
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class Precision:
    """
    The precision that was asked for, and what came of it on the first images.

    Args:
        asked (`str`): `"float32"`, `"bfloat16"`, or `"auto"`: bfloat16 where the device has it and, on the first
            images, the top class of every one is the same and no probability differs by more than `MAX_DIFFERENCE`;
            float32 elsewhere.

    Attributes:
        dtype (`torch.dtype`, *optional*): What was chosen.
        reason (`str`): Why.
    """

    def __init__(self, asked: str = "float32"):
        self.asked = check_choice(asked, "dtype", DTYPES)
        self.dtype: torch.dtype | None = None
        self.reason = ""

    def choose(self, classifier: Any, images: Callable[[], Iterable[torch.Tensor]]) -> torch.dtype:
        """
        The precision for `classifier`; looked for at the first call alone.

        Args:
            classifier ([`FrozenClassifier`]): The classifier.
            images (`Callable`): Gives the first images, in batches of shape
                `(batch_size, num_channels, height, width)`; asked for them only where they decide.
        """
        if self.dtype is None:
            if classifier.dtype != torch.float32:
                self.dtype, self.reason = classifier.dtype, "that of the weights"
            elif self.asked != "float32" and getattr(classifier, "takes_texts", False):
                self.dtype, self.reason = torch.float32, "not measured for models of images and texts"
            elif self.asked == "auto":
                self.dtype, self.reason = _check(classifier, images)
            else:
                self.dtype, self.reason = getattr(torch, self.asked), "asked for"
        return self.dtype

    @contextlib.contextmanager
    def passes(self, classifier: Any, allowed: bool) -> Iterator[None]:
        """[`passes_in`] the precision chosen, for what is `allowed` to run in it."""
        with passes_in(self.dtype if self._differs(classifier, allowed) else None):
            yield

    def settings(self, classifier: Any, allowed: bool) -> dict[str, Any]:
        """What must be the same for results to belong together; nothing where it is the precision of the weights."""
        return {"dtype": _name(self.dtype)} if self._differs(classifier, allowed) else {}

    def protocol(self, classifier: Any, allowed: bool) -> dict[str, Any]:
        """What was asked for, what was taken, and why; nothing where nothing was asked for."""
        if self.asked == "float32":
            return {}
        taken, reason = self.dtype, self.reason
        if self.dtype != classifier.dtype and not allowed:
            taken, reason = classifier.dtype, "not measured to give the same numbers in another one"
        return {"precision": {"asked": self.asked, "dtype": _name(taken), "reason": reason}}

    def _differs(self, classifier: Any, allowed: bool) -> bool:
        return allowed and self.dtype not in (None, classifier.dtype)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _check(classifier: Any, images: Callable[[], Iterable[torch.Tensor]]) -> tuple[torch.dtype, str]:
    """Half precision if it is there and agrees on these images."""
    if not has_bfloat16(classifier.device):
        return torch.float32, f"this {classifier.device.type} has no instructions for bfloat16"
    seen, changed, largest = 0, 0, 0.0
    for batch in images():
        found = []
        for dtype in (None, torch.bfloat16):
            with torch.no_grad(), passes_in(dtype):
                logits = classifier(batch.to(classifier.device)).float()
            found.append(logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1))
        seen += len(batch)
        changed += int((found[0].argmax(-1) != found[1].argmax(-1)).sum())
        largest = max(largest, float((found[0] - found[1]).abs().max()))
    reason = (
        f"on the first {seen} images bfloat16 changes the top class of {changed} and a probability by {largest:.4f} "
        f"at most; allowed are 0 and {MAX_DIFFERENCE}"
    )
    return (torch.bfloat16 if changed == 0 and largest <= MAX_DIFFERENCE else torch.float32), reason
