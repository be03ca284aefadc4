"""A file behind an http(s) URL that somebody else may have chosen: bounded in size, in time and in where it leads."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any


MAX_BYTES = 2**26
MAX_SECONDS = 60.0
MAX_REDIRECTS = 5


def download(url: str, timeout: float | None = None) -> bytes:
    """
    The content behind a URL.

    A redirect may lead to an address of this machine or of a private network only where the URL is one itself. A name
    is looked up once per request, and the connection is made to the addresses that were found then. Where the
    environment names a proxy, the proxy looks up the name again and connects, which this cannot watch.

    Args:
        url (`str`): An http(s) URL.
        timeout (`float`, *optional*): Seconds for all of it, redirects included; 60 when not given.

    Returns:
        `bytes`: At most 64 MiB.

    Raises:
        ValueError: If the server refuses, sends more, takes longer, or redirects more than 5 times or to where it may
            not.
    """
    from hf_explain.io.transformers_names import httpx  # slow to import

    seconds = MAX_SECONDS if timeout is None else timeout
    with _Deadline(seconds) as deadline:
        # the client's own timeouts are for each read, so a server that drips is never late for them
        limits = httpx.Timeout(None, connect=seconds)
        try:
            with contextlib.ExitStack() as stack:

                @functools.cache
                def client(proxied: bool) -> Any:
                    transport = None if proxied else _pinned_transport(httpx)
                    return stack.enter_context(httpx.Client(timeout=limits, transport=transport))

                return _follow(client, httpx.URL(url), deadline)
        except Exception as error:
            if deadline.passed or isinstance(error, httpx.TimeoutException):
                raise ValueError(f"the server takes longer than {seconds:g} s") from error
            raise


def _follow(client: Callable[[bool], Any], url: Any, deadline: _Deadline) -> bytes:
    local: bool | None = None
    for _ in range(MAX_REDIRECTS + 1):
        proxied = _is_proxied(url)
        addresses = _addresses(url, proxied)
        inside = [not ipaddress.ip_address(address).is_global for address in addresses]
        if local is None:
            local = bool(inside) and all(inside)
        elif not local and any(inside):
            raise ValueError("the server redirects to an address of this machine or of a private network")
        extensions = {"trace": deadline.watch, "addresses": addresses}
        with client(proxied).stream("GET", url, extensions=extensions) as response:
            if response.next_request is None:
                return _read(response, deadline)
            url = response.next_request.url
        if url.scheme not in ("http", "https"):
            raise ValueError(f"the server redirects to {url.scheme}:, which is not an http(s) URL")
    raise ValueError(f"the server redirects more than {MAX_REDIRECTS} times")


def _is_proxied(url: Any) -> bool:
    proxies = urllib.request.getproxies()
    return (url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(url.host)


def _addresses(url: Any, proxied: bool) -> list[str]:
    """The addresses of a host; none where only the proxy knows it."""
    try:
        found = socket.getaddrinfo(url.raw_host.decode(), None, type=socket.SOCK_STREAM)
    except OSError:
        if proxied:
            return []
        raise
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _pinned_transport(httpx: Any) -> Any:
    """
    Connects to the `addresses` of a request, and not to wherever its name leads by now: whoever owns the name could
    answer the check with one address and the connection with another.
    """

    class Pinned(httpx.HTTPTransport):
        def handle_request(self, request: Any) -> Any:
            *others, last = request.extensions["addresses"]
            for address in others:
                with contextlib.suppress(httpx.ConnectError):
                    return super().handle_request(to(request, address))
            return super().handle_request(to(request, last))

    def to(request: Any, address: str) -> Any:
        # the name stays in the Host header, and is what the certificate must be for
        extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode()}
        url = request.url.copy_with(host=address)
        return httpx.Request(request.method, url, headers=request.headers, extensions=extensions)

    return Pinned()


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
