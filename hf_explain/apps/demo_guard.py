"""What stands between the demo and its visitors: which files are theirs, what a request may hold, how text is shown.

Nothing here needs Gradio. Its own checks look only at values that carry `meta`; it believes paths and URLs in others.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any


MAX_FILE_BYTES = 64 * 2**20
# The one answer to every picture that is not the visitor's own: it may not tell which files there are
NOT_YOURS = "This picture cannot be used: upload one here, or pick an example."
_MAX_REQUEST_BYTES = 2**20  # of everything but an upload: what the page sends is a few hundred
_MAX_UNCLAIMED = 256  # uploads that no event has asked for; the page asks at once


@functools.cache
def home() -> str:
    """
    The folder of this process's demos, which is gone when the process ends: what visitors upload, what is drawn.

    It becomes Gradio's own, as pictures that lie in Gradio's folder are served as they are: elsewhere, Gradio would
    leave a copy of each in a folder that outlives the process.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        os.makedirs(parent, exist_ok=True)
    path = os.path.realpath(tempfile.mkdtemp(prefix="hf-explain-demo-", dir=parent))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = path  # read at every request, so it stays
    return path


# -------------------------------------------------------------------------------------------------------------- values


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: a class or a file may have any name, and none is markup."""
    return re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def number(value: Any, low: float, high: float, default: float | None) -> float | None:
    """A number that a client sent, within its limits; `default` for anything that is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return default
    return float(min(max(value, low), high))


def harmless(value: Any, is_picture: bool) -> Any:
    """
    A client's value as it may reach Gradio, which looks for files and URLs in values of every kind.

    Args:
        value: Anything that JSON can hold.
        is_picture (`bool`): Whether a picture is wanted.

    Returns:
        For a picture `None`, or `{"path": ...}` with an empty path where the client's value is not a file. Otherwise a
        text, a number, a list of them, or `None` for anything else.
    """
    if is_picture:
        path = value.get("path") if isinstance(value, dict) else None
        return None if value is None else {"path": path if isinstance(path, str) else ""}
    single = (str, int, float)
    if isinstance(value, list):
        return value if all(isinstance(one, single) for one in value) else None
    return value if isinstance(value, single) else None


# --------------------------------------------------------------------------------------------------------------- files


class Uploads:
    """
    Whose picture files are.

    An upload tells nothing about its sender, and Gradio names a file after its content, so that two visitors can send
    the same one. So each upload lets one visitor claim the file, once; whoever only names it has no claim left.

    Args:
        shared (`Iterable[str]`): Paths that are everybody's: the examples.
    """

    def __init__(self, shared: Iterable[str] = ()):
        self.shared = frozenset(shared)
        self._unclaimed: dict[str, int] = {}  # the latest last
        self._holders: Counter[str] = Counter()
        self._lock = threading.Lock()

    def sent(self, paths: Iterable[str]) -> None:
        """Take down what was uploaded just now."""
        with self._lock:
            for path in paths:
                self._unclaimed[path] = self._unclaimed.pop(path, 0) + 1
            while len(self._unclaimed) > _MAX_UNCLAIMED:
                oldest = next(iter(self._unclaimed))
                del self._unclaimed[oldest]
                self._remove(oldest)

    def claim(self, path: str, own: set[str]) -> bool:
        """
        Whether a visitor may use a file, which then takes the place of what it had.

        Args:
            path (`str`): Exactly as the upload answered: nothing else is looked at, let alone looked up.
            own (`set[str]`): What the visitor has claimed; changed in place.
        """
        if path in self.shared:
            self.release(own)
            return True
        with self._lock:
            if path not in own:
                if path not in self._unclaimed:
                    return False
                self._unclaimed[path] -= 1
                if not self._unclaimed[path]:
                    del self._unclaimed[path]
                self._holders[path] += 1
        self.release(own, keep=path)
        own.add(path)
        try:
            return stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            return False

    def release(self, own: set[str], keep: str | None = None) -> None:
        """Give up what a visitor has claimed; a file that nobody else has is removed."""
        with self._lock:
            for path in own - {keep}:
                own.discard(path)
                self._holders[path] -= 1
                self._remove(path)

    def clear(self) -> None:
        """Remove every file that was uploaded."""
        with self._lock:
            paths = [*self._unclaimed, *self._holders]
            self._unclaimed.clear()
            self._holders.clear()
            for path in paths:
                self._remove(path)

    def _remove(self, path: str) -> None:
        if path in self._unclaimed or self._holders[path] > 0:
            return
        del self._holders[path]
        with contextlib.suppress(OSError):
            os.remove(path)
            os.rmdir(os.path.dirname(path))  # Gradio gives every content one of its own


# ------------------------------------------------------------------------------------------------------------ requests


class Guard:
    """
    ASGI middleware around Gradio: limits requests, takes down uploads, serves no file from outside the demo's folder
    and fetches no URL.

    Args:
        app: The ASGI application.
        uploads ([`Uploads`]): Learns what was uploaded.
    """

    def __init__(self, app, uploads: Uploads):
        self.app, self.uploads = app, uploads

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        asked = re.search(r"/file[=/](.*)", path, re.DOTALL)
        if asked and not _is_inside(asked[1], home()):
            await _answer(send, 403, "There is no such file here.")
            return
        is_upload = path.rstrip("/").endswith("/upload")
        limit = MAX_FILE_BYTES + _MAX_REQUEST_BYTES if is_upload else _MAX_REQUEST_BYTES
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > limit:
            await _answer(send, 413, f"The request is larger than the limit of {limit >> 20} MB.")
            return
        received, answer, status = 0, b"", 0

        async def receive_counted():  # a request need not say how long it is
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                from starlette.formparsers import MultiPartException  # for which Gradio removes what it has written

                raise MultiPartException(f"The request is larger than the limit of {limit >> 20} MB.")
            return message

        async def send_noted(message):
            nonlocal answer, status
            status = message.get("status", status)
            answer += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                self.uploads.sent(json.loads(answer))
            await send(message)

        await self.app(scope, receive_counted, send_noted if is_upload else send)


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.realpath(path).startswith(folder + os.sep)
    except (OSError, ValueError):  # no path at all
        return False


async def _answer(send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
