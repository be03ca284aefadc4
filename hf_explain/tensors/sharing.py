"""Work on the same tensors done once, by whoever asks first, for everybody inside a `with` block."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch


_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Memory(threading.local):
    def __init__(self) -> None:
        self.known: dict[Any, Any] | None = None


_MEMORY = _Memory()


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """
    Inside the block, what a [`shared`] function made in the calling thread is handed to the next one who asks for the
    same; all of it is forgotten when the outermost block ends.
    """
    before = _MEMORY.known
    _MEMORY.known = {} if before is None else before
    try:
        yield
    finally:
        _MEMORY.known = before


def shared(function: _Function) -> _Function:
    """A function of positional arguments whose result nobody changes; tensors are the same if they are one object."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        known = _MEMORY.known
        if known is None:
            return function(*args)
        key = (function, *map(_identity, args))
        if key not in known:
            known[key] = function(*args), args  # the arguments, too: an object that is gone leaves its id to another
        return known[key][0]

    return cast(_Function, run)


def _identity(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, (list, tuple)):
        return tuple(value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
