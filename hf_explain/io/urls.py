"""A file behind an http(s) URL that somebody else may have chosen: bounded in size, in time and in where it leads."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from typing import Any


MAX_BYTES = 2**26
MAX_SECONDS = 60.0
MAX_REDIRECTS = 5


def download(url: str, timeout: float | None = None) -> bytes:
    """
    The content behind a URL.

    A redirect may lead to an address of this machine or of a private network only where the URL is one itself.

    Args:
        url (`str`): An http(s) URL.
        timeout (`float`, *optional*): Seconds for all of it, redirects included; 60 when not given.

    Returns:
        `bytes`: At most 64 MiB.

    Raises:
        ValueError: If the server refuses, sends more, takes longer, or redirects more than 5 times or to where it may
            not.
    """
    from transformers.image_utils import httpx  # whichever of httpx and its successor Transformers uses

    seconds = MAX_SECONDS if timeout is None else timeout
    with _Deadline(seconds) as deadline:
        # the client's own timeouts are for each read, so a server that drips is never late for them
        limits = httpx.Timeout(None, connect=seconds)
        try:
            with httpx.Client(timeout=limits) as client:
                return _follow(client, httpx.URL(url), deadline)
        except Exception as error:
            if deadline.passed or isinstance(error, httpx.TimeoutException):
                raise ValueError(f"the server takes longer than {seconds:g} s") from error
            raise


def _follow(client: Any, url: Any, deadline: _Deadline) -> bytes:
    local = _is_local(url, all)
    for _ in range(MAX_REDIRECTS + 1):
        with client.stream("GET", url, extensions={"trace": deadline.watch}) as response:
            if response.next_request is None:
                return _read(response, deadline)
            url = response.next_request.url
        if url.scheme not in ("http", "https"):
            raise ValueError(f"the server redirects to {url.scheme}:, which is not an http(s) URL")
        if not local and _is_local(url, any):
            raise ValueError("the server redirects to an address of this machine or of a private network")
    raise ValueError(f"the server redirects more than {MAX_REDIRECTS} times")


def _read(response: Any, deadline: _Deadline) -> bytes:
    if response.is_error:
        raise ValueError(f"the server answers {response.status_code} {response.reason_phrase}")
    content = bytearray()
    # refused before it is read, where the server says its length
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else 0
    for chunk in () if size > MAX_BYTES else response.iter_bytes():
        content += chunk
        size = len(content)
        if size > MAX_BYTES:
            break
    if size > MAX_BYTES:
        raise ValueError(f"the server sends more than {MAX_BYTES} bytes")
    if deadline.passed:  # a connection that is shut down can look like the end of the file
        raise TimeoutError
    return bytes(content)


def _is_local(url: Any, quantifier: Any) -> bool:
    """Whether all or any addresses of a host are not of the public internet."""
    try:
        found = socket.getaddrinfo(url.raw_host.decode(), None, type=socket.SOCK_STREAM)
    except OSError:
        return False  # connecting fails, too, or it is a proxy that knows the host
    return quantifier(not ipaddress.ip_address(entry[4][0]).is_global for entry in found)


class _Deadline:
    """Shuts the connections of a client down when its time is over, wherever it is waiting then."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._timer.cancel()

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def watch(self, event: str, info: dict[str, Any]) -> None:
        """For the client's `trace` extension."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.passed:
                self._shut_down()

    def _shut_down(self) -> None:
        for connection in self._sockets:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)
