"""Who is told of a classifier's passes: whatever the calling thread has put on the watch, and no other thread."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast


Watcher = Callable[[Any, str, Any], None]
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
        watcher (`Callable`): Called with the classifier, the name of its method and what it is called with.
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
            watcher(self, method.__name__, args[0] if args else next(iter(kwargs.values())))
        _WATCH.watchers = ()
        try:
            return method(self, *args, **kwargs)
        finally:
            _WATCH.watchers = watchers

    return cast(_Method, run)
