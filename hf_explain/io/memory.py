"""Memory of a program that classifies on a CPU: what it frees it will want again at once."""

from __future__ import annotations

import ctypes
import os
import platform


# Of glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ASKED_FOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_memory() -> None:
    """
    Let this process keep the memory that it frees, for its next tensors; for programs, not for libraries.

    glibc hands large blocks back to the system when they are freed. PyTorch asks for such blocks in every layer of
    every pass on a CPU, and the system clears each of their pages anew, which can take a third of a pass
    (`scripts/benchmark.py --only kept_memory`). Kept, the most that was in use stays with the process until it ends.
    What the user's environment says of glibc's memory stands; elsewhere than on glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _ASKED_FOR):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
