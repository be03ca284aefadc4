"""The demo in the hands of strangers: a client that calls the server by hand, markup for names, files that stay.

The test in a browser is slow, and needs Selenium, Chromium and its driver; it leaves a screenshot below `--basetemp`.
"""

import contextlib
import html
import http.server
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from testing_common import save_classifier

from hf_explain.apps import demo_explainers, demo_guard
from hf_explain.apps.demo import launch
from hf_explain.apps.demo_explainers import Demo
from hf_explain.apps.demo_guard import NOT_YOURS, Uploads, harmless, number, plain


MARKUP = (
    "<img src=x onerror=window.pwned=1>",
    "<script>window.pwned=1</script>",
    "[here](javascript:window.pwned=1)",
    '"><svg onload=window.pwned=1> **bold** `code` http://evil.test',
    "$$\\alpha$$ &lt;b&gt; _under_ www.evil.test ${window.pwned=1} {{window.pwned}}",
)
NOT_SENT = "The page sent something that does not fit; load it again."


def save_hostile_classifier(directory):
    """A classifier whose labels are markup."""
    save_classifier("resnet", directory)
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = dict(enumerate(MARKUP))
    config["label2id"] = {label: index for index, label in enumerate(MARKUP)}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


class Canary:
    """A server inside the house, which no visitor may make the demo talk to."""

    def __init__(self):
        canary = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                canary.seen.append(self.path)
                self.send_response(404)
                self.end_headers()

            do_HEAD = do_GET

        self.seen = []
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret.png"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Client:
    """A visitor without a browser, which sends what it likes."""

    def __init__(self, url):
        import httpx

        self.url, self.session = url.rstrip("/"), f"session{random.getrandbits(64):x}"
        # without TLS there is nothing to verify, and reading the certificates takes longer than what is sent
        self.http = httpx.Client(base_url=f"{self.url}/gradio_api", timeout=60, verify=False)
        config = self.http.get(f"{self.url}/config").json()
        names = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
        self.events = {(names.get(key), event): one for one in config["dependencies"] for key, event in one["targets"]}

    def upload(self, name, content):
        answer = self.http.post("upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def send(self, event, *values):
        """Raise one event of the page; the whole answer as it came."""
        index = self.events[event]["id"] if isinstance(event, tuple) else event
        body = {"data": values, "fn_index": index, "session_hash": self.session}
        joined = self.http.post("queue/join", content=json.dumps(body), headers={"Content-Type": "application/json"})
        if joined.status_code != 200:
            return {"status": joined.status_code, "text": joined.text}
        with self.http.stream("GET", "queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def show(self, picture, chosen=("gradcam",), percentile=95, alpha=0.5):
        return self.send(("picture", "change"), None, picture, chosen, percentile, alpha)


def said(answer):
    """The sentence on the page."""
    return next(html.unescape(one["value"]) for one in answer["output"]["data"][2:] if isinstance(one, dict))


def files_of(answer):
    return [one["path"] for one in answer["output"]["data"] if isinstance(one, dict) and one.get("path")]


def png(size=(64, 48), colour="red"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def png_of_header(width, height):
    """A PNG that says how large it is, and holds nothing of it."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    app = launch(save_hostile_classifier(tmp_path_factory.mktemp("markup")), block=False)
    yield app
    app.close()


@pytest.fixture(scope="module")
def canary():
    canary = Canary()
    yield canary
    canary.server.shutdown()
    canary.server.server_close()


@pytest.fixture
def client(server):
    client = Client(server.local_url)
    yield client
    client.http.close()


# -------------------------------------------------------------------------------------------------- pictures of others


META = {"meta": {"_type": "gradio.FileData"}}


def hostile_pictures(secret, url, folder):
    """What a stranger sends for a picture: kind → value."""
    nowhere = f"{secret}.not"
    upload_folder = os.environ["GRADIO_TEMP_DIR"]
    linked, pipe, planted = (os.path.join(upload_folder, name) for name in ("link.png", "pipe.png", "planted.png"))
    os.symlink(secret, linked), os.mkfifo(pipe), shutil.copy(secret, planted), os.mkfifo(f"{folder}/pipe.png")
    relative = os.path.relpath(secret)
    return {
        "absolute": {"path": secret},
        "absolute, with meta": {"path": secret, **META},
        "absolute, with meta, a stream": {"path": secret, "is_stream": True, **META},
        "missing": {"path": nowhere},
        "missing, with meta": {"path": nowhere, **META},
        "relative": {"path": relative},
        "relative, with meta": {"path": relative, **META},
        "up and down": {"path": f"{upload_folder}/../{os.path.relpath(secret, os.path.dirname(upload_folder))}"},
        "up and down, with meta": {"path": f"{upload_folder}/x/../../..{secret}", **META},
        "link in the upload folder": {"path": linked},
        "link in the upload folder, with meta": {"path": linked, **META},
        "pipe in the upload folder": {"path": pipe, **META},
        "never uploaded": {"path": planted},
        "never uploaded, with meta": {"path": planted, **META},
        "a folder": {"path": folder},
        "the upload folder": {"path": upload_folder, **META},
        "a pipe": {"path": f"{folder}/pipe.png"},
        "environment": {"path": "/proc/self/environ"},
        "memory": {"path": "/proc/self/mem", **META},
        "device": {"path": "/dev/zero"},
        "password file": {"path": "/etc/passwd"},
        "home": {"path": "~/passport.png"},
        "file URL": {"path": f"file://{secret}"},
        "file URL, as a stream": {"path": f"file://{secret}", "is_stream": True, **META},
        "URL": {"path": url},
        "URL, with meta": {"path": url, **META},
        "URL, with meta, a stream": {"path": url, "is_stream": True, **META},
        "URL, a stream": {"path": url, "is_stream": True},
        "URL under url": {"url": url},
        "URL under url, with meta": {"path": nowhere, "url": url, "is_stream": False, **META},
        "file under url": {"path": None, "url": secret, **META},
        "through the server itself": {"path": "/gradio_api/file=" + secret},
        "data URL": {"path": "data:image/png;base64,iVBORw0KGgo="},
        "Hub": {"path": "hf://datasets/me/data/secret.png"},
        "archive": {"path": f"zip://secret.png::{secret}"},
        "path of a list": {"path": [secret], **META},
        "path of a dictionary": {"path": {"path": secret, **META}},
        "path of nothing": {"path": None},
        "path of a number": {"path": 0},
        "path of true": {"path": True},
        "empty": {"path": ""},
        "no path": {},
        "NUL": {"path": f"{secret}\0.png"},
        "long": {"path": "/" + "a" * 5000, **META},
        "very long": {"path": "../" * 100_000},
        "text": secret,
        "text URL": url,
        "number": 7,
        "true": True,
        "list": [secret],
        "list of files": [{"path": secret, **META}],
        "list of URLs": [{"path": url, "is_stream": True, **META}],
        "deep": {"path": {"a": [{"path": url, **META}]}},
        "cell": {"bytes": None, "path": secret},
        "bytes": {"bytes": "iVBORw0KGgo=", "path": None},
        "update": {"__type__": "update", "value": {"path": secret, **META}},
        "properties": {"value": {"path": secret, **META}, **META},
        "wrong meta": {"path": secret, "meta": [1, {"_type": url}]},
    }


def test_no_picture_but_one_s_own(client, canary, tmp_path):
    """More than 50 ways to ask for another's: one answer, to the letter, whether there is such a file or not."""
    secret = str(tmp_path / "passport.png")
    Path(secret).write_bytes(png((37, 53), "gold"))
    answers, pictures = {}, hostile_pictures(secret, canary.url, str(tmp_path))
    other = Client(client.url)
    pictures["another visitor's"] = {"path": other.upload("mine.png", png(colour="blue"))}
    assert files_of(other.show(pictures["another visitor's"]))
    pictures["another visitor's, with meta"] = {**pictures["another visitor's"], **META}
    for kind, picture in pictures.items():
        answer = client.show(picture)
        assert answer["success"], (kind, answer)
        assert said(answer) == NOT_YOURS and files_of(answer) == [], (kind, answer)
        answers[kind] = json.dumps(answer["output"]["data"])
    assert len(answers) > 50 and len(set(answers.values())) == 1
    assert canary.seen == []
    for name in ("link.png", "pipe.png", "planted.png"):
        os.remove(os.path.join(os.environ["GRADIO_TEMP_DIR"], name))


def test_one_s_own_picture_and_the_examples(client, server):
    path = client.upload("mine.png", png())
    for picture in ({"path": path}, {"path": path, "url": "http://evil.test/x", "orig_name": "mine.png", **META}):
        answer = client.show(picture)
        assert said(answer) == "" and len(files_of(answer)) == 3
    assert said(client.show({"path": f"{os.path.dirname(path)}/./mine.png"})) == NOT_YOURS
    for index in range(3):
        example = client.send(0, index)["output"]["data"][0]["value"]
        assert len(files_of(client.show(example))) == 3
    assert not os.path.exists(path)  # given up for the example


def test_two_visitors_may_send_the_same_picture(server):
    one, other = Client(server.local_url), Client(server.local_url)
    path = one.upload("cat.png", png(colour="green"))
    assert len(files_of(one.show({"path": path}))) == 3
    assert said(other.show({"path": path})) == NOT_YOURS
    assert other.upload("cat.png", png(colour="green")) == path
    assert len(files_of(other.show({"path": path}))) == 3
    one.show(None)
    assert os.path.exists(path) and len(files_of(other.show({"path": path}))) == 3
    other.show(None)
    assert not os.path.exists(path)


def test_no_file_of_the_server_over_http(client, canary, tmp_path):
    secret = tmp_path / "passport.png"
    secret.write_bytes(png())
    link = os.path.join(os.environ["GRADIO_TEMP_DIR"], "link.png")
    os.symlink(secret, link)
    names = [
        secret,
        f"{secret}.not",
        "/etc/passwd",
        "pyproject.toml",
        link,
        canary.url,
        "https://huggingface.co/x",
        "a\0",
    ]
    answers = {
        (answer.status_code, answer.text)
        for name in names
        for sign in "=/"
        for answer in [client.http.get(f"file{sign}{str(name).replace(chr(0), '%00')}")]
    }
    os.remove(link)
    assert answers == {(403, "There is no such file here.")}
    assert canary.seen == []
    [overlay, *_] = files_of(client.show({"path": client.upload("mine.png", png())}))
    assert client.http.get(f"file={overlay}").content[:4] == b"\x89PNG"


# ---------------------------------------------------------------------------------------- everything else that is sent


def strange_values(url):
    yield from (None, True, -1, 7, 99, 10**30, 1e308, -0.5, float("nan"), float("inf"), "", "x", "\0", "x" * 100_000)
    yield from ([], [[]], [None], ["x"], ["gradcam"] * 1000, ["x" * 100_000], [{"path": url, **META}], {}, {"a": 1})
    yield from ({"path": "/etc/passwd", **META}, {"path": url, **META}, {"path": url, "is_stream": True, **META})


EVENTS = {
    "another class": (("classes", "input"), 5),
    "other explainers": (("explainers", "input"), 4),
    "opacity": (("opacity", "change"), 2),
    "removed": (("removed", "input"), 2),
    "a search": (("search", "input"), 3),
    "the first found": (("search", "submit"), 5),
}


@pytest.mark.parametrize("name", EVENTS)
def test_values_of_every_kind_at_every_place(client, canary, name):
    """Each is ignored, put right or answered by a sentence."""
    event, places = EVENTS[name]
    good = {2: [None, 0.5], 3: [None, "x", ["gradcam"]], 4: [None, ["gradcam"], 95, 0.5]}
    good[5] = [None, 1 if name == "another class" else "x", ["gradcam"], 95, 0.5]
    for number_of_values in (0, 1, 9):  # before there is a picture
        assert client.send(event, *([None] * number_of_values))["success"]
    client.show({"path": client.upload("mine.png", png())})
    for place in range(1, places):
        for value in list(strange_values(canary.url))[place % 2 :: 2]:
            values = list(good[places])
            values[place] = value
            answer = client.send(event, *values)
            assert answer["success"], (place, value, answer)
            text = json.dumps(answer["output"]["data"])
            assert "Traceback" not in text and "x" * 1000 not in text and len(text) < 20_000
    assert canary.seen == []
    assert len(files_of(client.send(("explainers", "input"), None, ["gradcam"], 95, 0.5))) == 3  # and all works still


def test_examples_that_do_not_exist(client, canary):
    for value in strange_values(canary.url):
        answer = client.send(0, value)
        if not answer["success"]:
            assert answer["output"]["error"] in (NOT_SENT, None)
    assert canary.seen == []


def test_functions_that_do_not_exist(server):
    for index in (-1, 999, None, "nine", [0], 1e9):
        answer = Client(server.local_url).send(index, None)
        assert answer["status"] in (400, 422, 500) and "Traceback" not in answer["text"]
        assert str(Path.home()) not in answer["text"] and "site-packages" not in answer["text"]


def test_a_request_has_a_size(client):
    assert client.send(("search", "input"), None, "x" * 2**21, ["gradcam"])["status"] == 413
    chunks = (b"x" * 2**16 for _ in range(64))  # without saying how long it is
    assert client.http.post("queue/join", content=chunks).status_code in (400, 413)


def test_labels_are_text_in_captions(client):
    client.show({"path": client.upload("mine.png", png())})
    for index, label in enumerate(MARKUP):
        answer = client.send(("classes", "input"), None, index, ["gradcam"], 95, 0.5)
        [caption] = [one for one in answer["output"]["data"] if isinstance(one, str) and one.startswith("**")]
        assert not set(caption) & set("<>[]()`$_\"'/\\")
        assert html.unescape(caption).startswith(f"**gradcam** {label.split(',')[0]} ")
        measured = next(one["id"] for (_, event), one in client.events.items() if event == "then")
        [chart] = [one for one in client.send(measured, None, 40)["output"]["data"] if isinstance(one, str)]
        shown = re.search(r"Probability of <b>([^<]*)</b>", chart)[1]
        assert not set(shown) & set("<>[]()`$_\"'/\\") and html.unescape(shown) == label.split(",")[0]


@pytest.mark.parametrize(
    "link", ["picture=/etc/passwd", "picture=../x", "class=<img src=x>", "explainer=**x**", "%00%ff"]
)
def test_a_link_holds_no_file_and_no_markup(client, link):
    answer = client.send((None, "load"), None, "?" + link)
    [message] = [one for one in answer["output"]["data"] if isinstance(one, dict) and "visible" in one]
    assert not set(message["value"]) & set("<>*")
    files = [one["value"]["path"] for one in answer["output"]["data"][2:3] if "value" in one]
    assert [Path(path).name for path in files] in ([], ["coffee.jpg"])


def test_a_link_of_every_kind(client, canary):
    for value in strange_values(canary.url):
        assert client.send((None, "load"), None, value)["success"]
    assert canary.seen == []


# ------------------------------------------------------------------------------------------------------ large pictures


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "bomb.png",
            png_of_header(12_000, 11_000),
            "'bomb.png' has 12000x11000 pixels, more than the limit of 24 megap",
        ),
        (
            "more.png",
            png_of_header(65_000, 65_000),
            "'more.png' has more than the limit of 24 megapixels; make it smal",
        ),
        (
            "over.png",
            png_of_header(6001, 4000),
            "'over.png' has 6001x4000 pixels, more than the limit of 24 megapixels",
        ),
        (
            "program.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "'program.eps' cannot be read: it must be",
        ),
        ("<b>.png", b"\x89PNG\r\n\x1a\nnot really", "cannot be read: it must be one of PNG, JPEG, WEBP"),
        ("empty.png", b"", "'empty.png' cannot be read"),
    ],
)
def test_pictures_are_refused_by_their_header(client, name, content, message, monkeypatch):
    monkeypatch.setattr(demo_explainers, "load_rgb", lambda source: pytest.fail("it was unpacked"))
    path = client.upload(name, content)
    answer = client.show({"path": path})
    assert message in said(answer) and os.path.dirname(path) not in said(answer) and files_of(answer) == []
    client.show(None)  # as the page does, which takes it away
    assert not os.path.exists(path)


def test_a_picture_at_the_limit_is_accepted(tmp_path):
    Image.new("1", (6000, 4000)).save(tmp_path / "large.png")
    assert Demo.open(None, str(tmp_path / "large.png")).size == (1600, 1067)


def test_a_file_has_a_size(client, monkeypatch, server):
    monkeypatch.setattr(server, "max_file_size", 1000)
    answer = client.http.post("upload", files={"files": ("a.png", b"x" * 1001)})
    assert answer.status_code == 413 and answer.text == "File size exceeded maximum allowed size of 1000 bytes."


# ----------------------------------------------------------------------------------------------------- files that stay


def files_below(folder):
    # `os.walk` passes over a folder that the server removes meanwhile; `Path.rglob` ends with an error there
    found = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(os.path.relpath(path, folder) for path in found)


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_closed_page_leaves_nothing_and_may_come_back(server):
    before = files_below(os.environ["GRADIO_TEMP_DIR"])
    client = Client(server.local_url)
    with client.http.stream("GET", f"heartbeat/{client.session}") as heartbeat:
        lines = heartbeat.iter_lines()
        next(lines)
        client.show({"path": client.upload("mine.png", png(colour="pink"))})
        client.send(("opacity", "change"), None, 0.1)
        assert len(files_below(os.environ["GRADIO_TEMP_DIR"])) == len(before) + 5  # the picture, two of each event
    eventually(lambda: files_below(os.environ["GRADIO_TEMP_DIR"]) == before)
    assert len(files_of(client.send(("opacity", "change"), None, 0.9))) == 3
    client.show(None)


def test_examples_stay_when_old_files_are_removed(server):
    from gradio.route_utils import delete_files_created_by_app

    client = Client(server.local_url)
    path = client.upload("mine.png", png(colour="brown"))
    delete_files_created_by_app(server, age=-1)
    assert not os.path.exists(path)
    assert said(client.show({"path": path})) == NOT_YOURS
    assert len(files_of(client.show(client.send(0, 1)["output"]["data"][0]["value"]))) == 3


def visit(url):
    client = Client(url)
    client.upload("waits.png", png(colour="grey"))
    assert len(files_of(client.show({"path": client.upload("mine.png", png())}))) == 3


def test_sigterm_ends_a_blocking_server_and_its_files(tmp_path, capsys):
    """In this very process, as importing the package takes longer than all of it."""
    pytest.importorskip("gradio")
    before, found = files_below(os.environ.get("GRADIO_TEMP_DIR", tmp_path)), []

    def stop():
        try:
            eventually(lambda: "http://" in (text := capsys.readouterr().out) and not found.append(text))
            visit("http://" + found[0].split("http://")[1].split()[0])
            found.append(files_below(os.environ["GRADIO_TEMP_DIR"]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as ended:
        launch(save_classifier("resnet", tmp_path))
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert len(found[1]) > len(before) and files_below(os.environ["GRADIO_TEMP_DIR"]) == before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_stopped_leaves_no_file(how, tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "tmp").mkdir(), (tmp_path / "model").mkdir()
    command = [
        sys.executable,
        "-m",
        "hf_explain.cli",
        "demo",
        "--model",
        save_classifier("resnet", tmp_path / "model"),
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}
    environment.pop("GRADIO_TEMP_DIR", None)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if "http://" in line)
        visit("http://" + line.split("http://")[1].split()[0])
        assert len(files_below(tmp_path / "tmp")) >= 7
        process.send_signal(how)
        process.stdout.read()
        assert process.wait(30) == (143 if how == signal.SIGTERM else 0)
    finally:
        process.kill()
    assert files_below(tmp_path / "tmp") == [] and list((tmp_path / "tmp").glob("hf-explain*")) == []


# ------------------------------------------------------------------------------------------------------ without Gradio


@pytest.mark.parametrize(
    "text", [*MARKUP, "# title", "1. one", "    code", "a\n\n> b", "***", "~~a~~", "|a|b|\n|-|-|", "Ärger 東京"]
)
def test_plain_text_has_nothing_that_is_markup(text):
    assert set(plain(text)) - {"&", "#", ";", " "} <= {sign for sign in plain(text) if sign.isalnum()}
    assert html.unescape(plain(text)) == " ".join(text.split())


def test_numbers_have_limits():
    inputs = (0.3, 7, -7, 10**400, float("inf"), float("nan"), None, "1", True, [1])
    assert [number(one, 0, 1, default=None) for one in inputs] == [0.3, 1, 0, 1, 1] + [None] * 5


def test_values_that_reach_gradio_hold_no_file():
    assert [harmless(one, True) for one in (None, {"path": "a", "url": "b", **META}, {"path": 1}, "a", [])] == [
        None,
        {"path": "a"},
        {"path": ""},
        {"path": ""},
        {"path": ""},
    ]
    assert [harmless(one, False) for one in ("a", 1, ["a", 1], [["a"]], {"path": "a"}, [{"path": "a"}], None)] == [
        "a",
        1,
        ["a", 1],
        None,
        None,
        None,
        None,
    ]


def test_uploads_that_nobody_claims_do_not_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_guard, "_MAX_UNCLAIMED", 2)
    uploads, own = Uploads(), set()
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png())
        uploads.sent([str(tmp_path / name / "x.png")])
    assert files_below(tmp_path) == ["b/x.png", "c/x.png"] and not (tmp_path / "a").exists()
    assert uploads.claim(str(tmp_path / "b" / "x.png"), own)
    uploads.clear()
    assert files_below(tmp_path) == []
    assert not uploads.claim(str(tmp_path / "b" / "x.png"), set())


def test_what_was_uploaded_must_still_be_a_file(tmp_path):
    uploads, path = Uploads(), tmp_path / "x.png"
    path.symlink_to("/etc/passwd")
    uploads.sent([str(path)])
    assert not uploads.claim(str(path), set())


# -------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.slow
def test_markup_in_names_is_text_in_a_browser(tmp_path):
    pytest.importorskip("gradio")
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver_path):
        pytest.skip("this test needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage"),
        *("disable-background-networking", "disable-component-update", "disable-sync", "window-size=1280,1200"),
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    (tmp_path / "<img src=x onerror=window.pwned=2>").mkdir()
    (tmp_path / "<img src=x onerror=window.pwned=3>.png").write_bytes(b"no picture")
    (tmp_path / "photo.png").write_bytes(png((300, 200)))
    with contextlib.ExitStack() as stack:
        app = launch(save_hostile_classifier(tmp_path / "<img src=x onerror=window.pwned=2>"), block=False)
        stack.callback(app.close)
        browser = webdriver.Chrome(service=webdriver.ChromeService(driver_path), options=options)
        stack.callback(browser.quit)
        browser.get(app.local_url + "?picture=")

        def all_of(selector):
            return browser.find_elements("css selector", selector)

        def sends(name):
            eventually(lambda: all_of("#picture input[type=file]"), 60)
            all_of("#picture input[type=file]")[0].send_keys(str(tmp_path / name))

        sends("photo.png")
        eventually(lambda: len(all_of("#classes label")) == len(MARKUP), 60)
        for index in range(len(MARKUP)):
            all_of("#classes input")[index].click()
            label = all_of("#classes label")[index].text.rsplit(" (", 1)[0]
            assert label in MARKUP
            wanted = "gradcam\n" + label.split(",")[0]
            eventually(lambda wanted=wanted: any(one.text.startswith(wanted) for one in all_of(".panel-title")), 60)
        browser.save_screenshot(str(tmp_path / "markup.png"))
        browser.execute_script("document.querySelector('#picture button[aria-label=\"Remove Image\"]').click()")
        eventually(lambda: not all_of("#overlay0 img"), 60)
        sends("<img src=x onerror=window.pwned=3>.png")
        eventually(lambda: any("' cannot be read" in one.text for one in all_of("#message")), 60)
        browser.save_screenshot(str(tmp_path / "message.png"))
        assert browser.execute_script("return window.pwned") is None
        assert all_of("img[src=x], svg[onload], a[href^=javascript], a[href*=evil], .katex") == []
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        addresses = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
        assert [one for one in addresses if one.startswith("http") and not one.startswith(app.local_url)] == []
