"""URLs that somebody else chose: size, time, and where redirects lead."""

import contextlib
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_explain.io.images import load_rgb
from hf_explain.io.urls import download


HOSTS = {
    "public.test": "93.184.215.14",
    "other.test": "151.101.1.6",
    "inside.test": "10.0.0.7",
    "meta.test": "169.254.169.254",
}


class Server(BaseHTTPRequestHandler):
    """`/drip`, `/headers`, `/endless`, `/long`, `/to/<url>`, `/hops/<number>`; every other path is a small file."""

    def do_GET(self):
        self.server.seen.append((self.headers["Host"].split(":")[0], self.path))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            return self.redirect(rest)
        if kind == "hops" and int(rest):
            return self.redirect(f"/hops/{int(rest) - 1}")
        if kind == "headers":
            self.send(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.02)
            return None
        self.send_response(200)
        if kind == "long":
            self.send_header("Content-Length", str(2**40))
        self.end_headers()
        if kind == "drip":
            self.send(b"", b"x", 0.02)
        elif kind == "endless":
            self.send(b"", b"x" * 2**16, 0)
        elif kind != "long":
            self.wfile.write(b"content")
        return None

    def redirect(self, url):
        self.send_response(302)
        self.send_header("Location", url)
        self.end_headers()

    def send(self, first, then, pause):
        try:
            self.wfile.write(first)
            while not self.server.ended:
                self.wfile.write(then)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass  # the client hung up

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """One server under many names: what the resolver says of them is made up, where they lead is here."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads, server.seen, server.ended = True, [], False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        resolve, connect = socket.getaddrinfo, socket.create_connection
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *args, **kwargs: resolve(HOSTS.get(host, host), *args, **kwargs)
        )
        monkeypatch.setattr(
            socket,
            "create_connection",
            lambda address, *args, **kwargs: connect(("127.0.0.1", address[1]), *args, **kwargs),
        )
        server.at = lambda host, path: f"http://{host}:{server.server_port}{path}"
        yield server
        server.ended = True
        server.shutdown()


@pytest.mark.parametrize("path", ["/drip", "/headers", "/to//drip"])
def test_time_is_counted_altogether(server, path):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"cannot be read: the server takes longer than 0.3 s.$"):
        load_rgb(server.at("127.0.0.1", path), timeout=0.3)
    assert time.monotonic() - start < 2


def test_there_is_a_time_without_one(server, monkeypatch):
    monkeypatch.setattr("hf_explain.io.urls.MAX_SECONDS", 0.2)
    with pytest.raises(ValueError, match="longer than 0.2 s"):
        load_rgb({"path": server.at("127.0.0.1", "/drip"), "bytes": None})


@pytest.mark.parametrize("path", ["/endless", "/long"])
def test_size_is_limited(server, path):
    with pytest.raises(ValueError, match="cannot be read: the server sends more than 67108864 bytes.$"):
        load_rgb(server.at("127.0.0.1", path), timeout=60)


def test_few_redirects(server):
    assert download(server.at("public.test", "/hops/5")) == b"content"
    with pytest.raises(ValueError, match="redirects more than 5 times"):
        load_rgb(server.at("public.test", "/hops/6"))
    with pytest.raises(ValueError, match="redirects more than 5 times"):
        download(server.at("public.test", "/to/" + server.at("public.test", "/hops/6")))


@pytest.mark.parametrize("first", ["public.test", "10.0.0.7", "inside.test", "127.0.0.1"])
@pytest.mark.parametrize(
    "then", ["other.test", "inside.test", "meta.test", "127.0.0.1", "localhost", "2130706433", "[::1]", "0.0.0.0"]
)
def test_redirects_lead_inside_from_inside_only(server, first, then):
    url = server.at(first, "/to/" + server.at(then, "/secret"))
    if first == "public.test" and then != "other.test":
        for source in (
            url,
            {"path": url},
            server.at(first, "/to/" + server.at("other.test", f"/to/{server.at(then, '/secret')}")),
        ):
            with pytest.raises(
                ValueError, match="cannot be read: the server redirects to an address of this machine or"
            ):
                load_rgb(source)
        assert not [path for _, path in server.seen if path == "/secret"]
    else:
        assert download(url) == b"content"


def test_one_private_address_among_public_ones_is_enough(server, monkeypatch):
    """Which of its addresses a host is reached at is its own choice."""
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("8.8.8.8", "127.0.0.1")]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **kwargs: both if host == "both.test" else resolve(host, *args, **kwargs),
    )
    for first, then in (("public.test", "both.test"), ("both.test", "127.0.0.1")):
        with pytest.raises(ValueError, match="redirects to an address of this machine"):
            load_rgb(server.at(first, "/to/" + server.at(then, "/secret")))


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_redirects_are_to_http(server, target):
    with pytest.raises(ValueError, match=f"the server redirects to {target.split(':')[0]}:, which is not an http"):
        load_rgb(server.at("127.0.0.1", f"/to/{target}"))


def answers(monkeypatch, **hosts):
    """A resolver that gives each host its answers one after the other, and from then on the last."""
    waiting = {f"{host}.test": list(found) for host, found in hosts.items()}
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host not in waiting:
            return resolve(host, *args, **kwargs)
        found = waiting[host].pop(0) if len(waiting[host]) > 1 else waiting[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found.split()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def connected(server, monkeypatch):
    """Where connections were made to."""
    found, connect = [], socket.create_connection

    def create_connection(address, *args, **kwargs):
        found.append(address[0])
        if address[0] == "8.8.4.4":
            raise OSError("nobody is there")
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return found


def test_the_address_that_was_checked_is_the_one_connected_to(server, connected, monkeypatch):
    """A name that is public when it is looked at and private when it is used, directly and behind a redirect."""
    answers(monkeypatch, first=["8.8.8.8", "127.0.0.1"], then=["1.1.1.1", "10.0.0.1"])
    assert download(server.at("first.test", "/to/" + server.at("then.test", "/secret"))) == b"content"
    assert connected == ["8.8.8.8", "1.1.1.1"]
    assert server.seen[-1] == ("then.test", "/secret")  # by its name, as without all this
    # inside at first, and then a server outside that asks for what is inside
    answers(monkeypatch, first=["10.0.0.1", "8.8.8.8"])
    connected.clear()
    download(server.at("first.test", "/x"))
    assert connected == ["10.0.0.1"]


def test_a_name_that_is_looked_up_again_is_checked_again(server, monkeypatch):
    answers(monkeypatch, first=["8.8.8.8", "127.0.0.1"])
    with pytest.raises(ValueError, match="redirects to an address of this machine"):
        download(server.at("first.test", "/to//secret"))
    assert [path for _, path in server.seen] == ["/to//secret"]


def test_a_host_is_tried_at_all_its_addresses(server, connected, monkeypatch):
    answers(monkeypatch, first=["8.8.4.4 8.8.8.8"])
    assert download(server.at("first.test", "/x")) == b"content"
    assert connected == ["8.8.4.4", "8.8.8.8"]


def test_a_host_without_an_address(server, connected):
    with pytest.raises(ValueError, match="'http://nowhere.invalid/x.png' cannot be read: .*[Nn]ame"):
        load_rgb("http://nowhere.invalid/x.png")
    assert connected == []


def test_certificates_are_for_the_name(monkeypatch, server):
    """The server is asked for the name's certificate, though the connection is made to an address."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.sni_callback = lambda connection, name, own: asked.append(name)
            with contextlib.suppress(OSError):  # it has no certificate at all
                context.wrap_socket(listening.accept()[0], server_side=True)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(Exception, match="(?i)ssl|tls"):
            download(f"https://public.test:{listening.getsockname()[1]}/x")
        thread.join(10)
    assert asked == ["public.test"]


def test_a_proxy_is_told_the_name(server, connected, monkeypatch):
    """It may know hosts that nobody here does."""
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(variable, server.at("127.0.0.1", ""))
    monkeypatch.setenv("no_proxy", "public.test")
    assert download("http://known.invalid/x") == b"content"
    assert server.seen[-1] == ("known.invalid", "http://known.invalid/x")
    assert download(server.at("public.test", "/x")) == b"content"
    assert server.seen[-1] == ("public.test", "/x") and connected[-1] == HOSTS["public.test"]
