"""Who is told of a classifier's passes: whatever the calling thread has put on the watch, and no other thread."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch

from hf_explain.classifiers.precision import asked_dtype
from hf_explain.tensors.sharing import shared


Watcher = Callable[[Any, str, Any, "Stopwatch | None"], None]
_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Watch(threading.local):
    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()


_WATCH = _Watch()


@contextlib.contextmanager
def watch_passes(watcher: Watcher) -> Iterator[None]:
    """
    Tell `watcher` of every pass that the calling thread runs inside the `with` block.

    Args:
        watcher (`Callable`): Called with the classifier, the name of its method, what it is called with, and the
            [`Stopwatch`] of a pass that had been run before, for somebody else ([`shared_pass`]); else `None`.
    """
    before = _WATCH.watchers
    _WATCH.watchers = (*before, watcher)
    try:
        yield
    finally:
        _WATCH.watchers = before


def watched(method: _Method) -> _Method:
    """A method of a classifier that is a pass; a pass inside another pass is not counted again."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        watchers = _WATCH.watchers
        if not watchers:
            return method(self, *args, **kwargs)
        for watcher in watchers:
            watcher(self, method.__name__, args[0] if args else next(iter(kwargs.values())), None)
        _WATCH.watchers = ()
        try:
            return method(self, *args, **kwargs)
        finally:
            _WATCH.watchers = watchers

    return cast(_Method, run)


class Stopwatch:
    """
    How long a `with` block keeps its device busy. On a GPU nothing waits before `seconds` is read.

    Args:
        device (`torch.device`): Where the work is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[Any] = []

    def __enter__(self) -> Stopwatch:
        self._marks = [self._mark()]
        return self

    def __exit__(self, *error: object) -> None:
        self._marks.append(self._mark())

    @property
    def seconds(self) -> float:
        began, ended = self._marks
        if self._device.type != "cuda":
            return ended - began
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def shared_pass(classifier: Any, method: str, pixel_values: torch.Tensor, *args: Any) -> Any:
    """
    `classifier.method(pixel_values, *args)` without a graph; inside of [`~hf_explain.tensors.sharing.sharing`] run
    once for all that ask for it. Not for code whose hooks have to see the pass.

    Args:
        classifier ([`FrozenClassifier`]): The classifier.
        method (`str`): `"forward"` or `"features"`.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Images.
        args: What else the method takes, positions and sequences of names alone.
    """
    found, watch, told = _run_once(asked_dtype(), classifier, method, pixel_values, *args)
    if told:
        for watcher in _WATCH.watchers:
            watcher(classifier, method, pixel_values, watch)
    told.append(True)  # the first one who asked was told while it ran
    return found


@shared
def _run_once(
    dtype: torch.dtype | None, classifier: Any, method: str, pixel_values: torch.Tensor, *args: Any
) -> tuple[Any, Stopwatch, list]:
    """Its arguments say which passes are the same: those in another precision are not."""
    with Stopwatch(classifier.device) as watch, torch.no_grad():
        found = getattr(classifier, method)(pixel_values, *args)
    return found, watch, []
