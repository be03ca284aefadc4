"""Forward hooks that belong to the thread that attached them: other threads run the same modules as if unhooked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn


Hook = Callable[[nn.Module, Any, Any], Any]
PreHook = Callable[[nn.Module, Any], Any]


@contextlib.contextmanager
def thread_hooks(
    after: Iterable[tuple[nn.Module, Hook]], before: Iterable[tuple[nn.Module, PreHook]] = ()
) -> Iterator[None]:
    """
    Hooks on modules inside the `with` block, for passes of the calling thread alone.

    Args:
        after (iterable of `(torch.nn.Module, Callable)`): Forward hooks, as `register_forward_hook` takes them.
        before (iterable of `(torch.nn.Module, Callable)`, *optional*): Likewise for `register_forward_pre_hook`.
    """
    owner: int | None = threading.get_ident()
    attached: list[tuple[dict[int, Any], int]] = []

    def owned(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *call: hook(*call) if threading.get_ident() == owner else None

    def attach(hooks: dict[int, Any], hook: Callable[..., Any]) -> None:
        # Not by `register_forward_hook`: torch numbers hooks by a counter that no lock guards, so that two threads can
        # get the same number, and one hook takes the other's place. An address is taken once; torch's are positive.
        guarded = owned(hook)
        attached.append((hooks, -id(guarded)))
        hooks[-id(guarded)] = guarded

    try:
        for module, pre_hook in before:
            attach(module._forward_pre_hooks, pre_hook)
        for module, hook in after:
            attach(module._forward_hooks, hook)
        yield
    finally:
        owner = None  # a copy of the module, made meanwhile by another thread, keeps its copy of the hook
        for hooks, key in attached:
            hooks.pop(key, None)
