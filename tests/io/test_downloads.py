"""What happens to a head when the network or the other side misbehaves."""

import contextlib
import hashlib
import os
import resource
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from conftest import GUEST_TOKEN, HF_HOME, OWNER_TOKEN
from hub_clients import pixels, push_classifier, push_quietly, tiny_head
from hub_server import git_sha1
from huggingface_hub import get_session, try_to_load_from_cache

from hf_explain import AutoModelForSaliency, FrozenClassifier
from hf_explain.io.downloads import check_downloads, check_sizes, hub_errors, redact


WEIGHTS = "model.safetensors"


@pytest.fixture
def published(hub, tmp_path):
    """A head and its classifier on the Hub, the head's directory, an empty cache."""
    push_classifier()
    head = tiny_head()
    head.save_pretrained(tmp_path / "head")
    push_quietly(tmp_path / "head", "user/head")
    empty_cache()
    hub.requests.clear()
    return head


@pytest.fixture
def weights(hub, published):
    """Where the classifier's weights, the one file of some size, are downloaded from."""
    return "/cdn/" + hashlib.sha256(hub.files("user/resnet")["model.safetensors"]).hexdigest()


def empty_cache():
    shutil.rmtree(HF_HOME / "hub", ignore_errors=True)


def load(**kwargs):
    return AutoModelForSaliency.from_pretrained("user/head", **kwargs)


def same(one, other):
    inputs = pixels()
    return torch.equal(one(inputs).saliency, other(inputs).saliency)


def cached_files():
    return [path for path in (HF_HOME / "hub").rglob("*") if path.is_file()]


# ---- downloads


def test_rate_limits_are_waited_for(hub, published):
    hub.inject("status", "/cdn/", status=429, headers={"Retry-After": "3"}, times=1)
    assert same(load(), published)
    assert hub.waits and hub.waits[0] >= 3


def test_a_server_that_fails_is_named_and_the_cache_serves_on(hub, published):
    fault = hub.inject("status", "/resolve/", status=500)
    with pytest.raises(ConnectionError, match="The Hub failed with error 500 while loading the head 'user/head'"):
        load()
    hub.faults.clear()
    load()
    hub.faults.append(fault)
    assert same(load(), published)


@pytest.mark.parametrize("kind", ["drop", "stall"])
def test_interrupted_downloads_are_resumed(hub, published, weights, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
    hub.inject(kind, weights, method="GET", after=3000, times=1, seconds=0.1)
    assert same(load(), published)
    assert 206 in [request.status for request in hub.seen("GET", "/cdn/")]


def test_a_silent_server_is_given_up(hub, published, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.inject("stall", "/cdn/", method="GET", seconds=0.5)
    with pytest.raises(ConnectionError, match="not be reached while loading 'user/head'.*no directory 'user/head'"):
        load()
    assert not [path for path in cached_files() if path.name.endswith(".incomplete")]
    hub.faults.clear()
    assert same(load(), published)


def test_a_slow_server_is_waited_for(hub, published):
    hub.inject("drip", "/cdn/", method="GET", after=400, seconds=0.02)
    assert same(load(), published)


def test_a_short_file_is_not_kept(hub, published, weights):
    hub.inject("truncate", weights, after=500, times=1)
    with pytest.raises(OSError, match="Consistency check failed"):
        load()
    assert same(load(), published)


def test_a_damaged_head_is_caught_and_downloaded_again(hub, published):
    hub.inject("corrupt", "/cdn/", times=1)
    with pytest.raises(OSError, match="'model.safetensors' of 'user/head' was damaged .*load again"):
        load()
    assert same(load(), published)


def test_a_damaged_classifier_is_caught_and_downloaded_again(hub, published, weights):
    hub.inject("corrupt", weights, times=1)
    with pytest.raises(OSError, match="'model.safetensors' of 'user/resnet' was damaged"):
        load()
    assert same(load(), published)


@pytest.mark.parametrize("name", ["user/head", "user/resnet"])
def test_a_damaged_configuration_is_caught_and_downloaded_again(hub, published, name):
    """Small files are filed under git's checksum; this damage would be taken for a broken file of the author's."""
    hub.inject("corrupt", f"/{name}/resolve/.*/config.json", method="GET", times=1)
    with pytest.raises(OSError, match=f"'config.json' of '{name}' was damaged on its way .*load again"):
        load()
    assert same(load(), published)


def sha(content, kind="sha1"):
    return hashlib.new(kind, content).hexdigest()


# what servers other than the Hub tag files with
ETAGS = {
    "git's": lambda content: f'"{git_sha1(content)}"',
    "git's, unquoted": git_sha1,
    "SHA-1": lambda content: f'"{sha(content)}"',
    "SHA-1 between spaces": lambda content: f'" {sha(content)} "',
    "SHA-1 in upper case": lambda content: f'"{sha(content).upper()}"',
    "SHA-256": lambda content: f'"{sha(content, "sha256")}"',
    "MD5": lambda content: f'"{sha(content, "md5")}"',
    "MD5 of several parts": lambda content: f'"{sha(content, "md5")}-3"',
    "40 hexadecimal digits": lambda content: f'"{sha(content[::-1])}"',
    "64 hexadecimal digits": lambda content: f'"{sha(content[::-1], "sha256")}"',
    "weak, 40 hexadecimal digits": lambda content: f'W/"{sha(content[::-1])}"',
    "unquoted, 40 hexadecimal digits": lambda content: sha(content[::-1]),
    "git's, compressed": lambda content: f'"{git_sha1(content)}-gzip"',
    "length and time": lambda content: f'W/"{len(content):x}-18c{sha(content)[:8]}"',
    "no hexadecimal digits": lambda content: f'"version {int(sha(content), 16)}"',
}


@pytest.mark.parametrize("etag", ETAGS.values(), ids=ETAGS)
def test_a_mirror_tags_files_as_it_likes(hub, published, etag):
    """A tag that cannot be recognised proves nothing; the repository's listing proves damage."""
    hub.mirror = etag
    hub.inject("corrupt", "/user/head/resolve/.*safetensors", method="GET", times=1)
    with pytest.raises(OSError, match="'model.safetensors' of 'user/head' was damaged .*load again"):
        load()
    assert same(load(), published)
    before = cached_files()
    hub.requests.clear()
    assert same(load(local_files_only=True), published)
    assert cached_files() == before and not hub.requests


@pytest.mark.parametrize("etag", ETAGS.values(), ids=ETAGS)
def test_a_mirror_without_a_listing(hub, published, etag):
    """A file without a checksum is accepted, but one that cannot be read still counts as damaged."""
    hub.mirror = etag
    hub.inject("status", "/api/models/", status=404)
    assert same(load(), published)
    before = cached_files()
    check_downloads("user/head")
    assert cached_files() == before
    blobs = {name: Path(try_to_load_from_cache("user/head", name)).resolve() for name in ("config.json", WEIGHTS)}
    for name, blob in blobs.items():
        blob.write_bytes(blob.read_bytes()[:-20])
        with pytest.raises(OSError, match=f"'{name}' of 'user/head' was damaged .*it cannot be read.*load again"):
            check_downloads("user/head")
        assert not blob.exists()
        assert same(load(), published)


@pytest.mark.parametrize(("tag", "empty"), [("", True), ('""', True), ('W/""', True), (None, False)])
@pytest.mark.parametrize("file", ["config.json", WEIGHTS])
def test_a_file_without_a_tag(hub, published, tag, empty, file):
    """The client takes the folder of all files for one with an empty tag, and cannot keep one with none."""
    content = hub.files("user/head")[file]
    hub.mirror = lambda served: tag if served == content else f'"{git_sha1(served)}"'
    said = f"^'{file}' of 'user/head' cannot be kept, because the server gives it an empty ETag.*snapshots/.*{file}'.$"
    if not empty:
        said = "leaves out what the Hub says of its files, while loading .*'user/head' .*not have an ETag"
    for _ in range(2):
        with pytest.raises(OSError, match=said) as refusal:
            load()
        assert "\n" not in str(refusal.value)
    kept = cached_files()
    hub.mirror = None
    if empty:
        link = str(refusal.value).rpartition("the link '")[2].removesuffix("'.")
        os.unlink(link)
    assert same(load(), published) and set(kept) <= set(cached_files())


def test_an_unproven_checksum_is_said(hub, published, monkeypatch):
    """The Hub's own form of tag, another file, nobody to ask."""
    said = []
    monkeypatch.setattr("hf_explain.io.downloads.logger.warning_once", said.append)
    hub.mirror = ETAGS["40 hexadecimal digits"]
    load()
    assert said == []
    hub.inject("status", "/api/models/", status=404)
    load()
    assert any("'config.json' of 'user/head' is filed under a checksum that is not its own" in text for text in said)
    hub.mirror = ETAGS["SHA-1"]
    empty_cache()
    said.clear()
    load()
    assert said == []


@pytest.mark.parametrize(
    "answer", [[], {}, {"siblings": "x"}, {"siblings": [{}]}, {"siblings": [{"rfilename": "config.json"}]}]
)
def test_a_listing_of_another_form_proves_nothing(hub, published, answer):
    hub.mirror = ETAGS["64 hexadecimal digits"]
    load()
    before = cached_files()
    if isinstance(answer, dict):
        answer = {"id": "user/head", **answer}
    hub.inject("status", "/api/models/", status=200, answer=answer)
    check_downloads("user/head")
    assert cached_files() == before


def test_a_wrong_etag_proves_nothing(hub, published):
    hub.inject("wrong_etag", "/user/head/resolve/.*safetensors", times=1)
    assert same(load(), published)
    assert len(hub.seen("GET", "^/api/models/user/head")) == 1


def test_another_classifier_under_the_same_commit_is_refused(hub, published):
    """Tampering on the server: the length and the checksum of the download agree, the fingerprint does not."""
    push_classifier("user/other", seed=5)
    repo = hub.repo("user/resnet")
    repo.commits[repo.head]["model.safetensors"] = hub.files("user/other")["model.safetensors"]
    with pytest.raises(ValueError, match="not the one this head was trained on: its weights have another fingerprint"):
        load()
    assert load(verify_fingerprint=False).backbone is not None


# ---- who may, and what is there


def test_gated_and_private_classifiers_are_named(hub, published, monkeypatch):
    hub.repo("user/resnet").gated = True
    monkeypatch.delenv("HF_TOKEN")
    for token in (None, GUEST_TOKEN):
        with pytest.raises(PermissionError, match="head 'user/head' needs its classifier.*'user/resnet' is gated"):
            load(token=token)
    hub.repo("user/resnet").granted.add("guest")
    assert same(load(token=GUEST_TOKEN), published)
    empty_cache()
    hub.repo("user/resnet").private = True
    with pytest.raises(FileNotFoundError, match="'user/head' needs.*'user/resnet' does not exist on the Hub"):
        load(token=GUEST_TOKEN)


def test_a_wrong_token_is_named_and_not_shown(hub, published):
    wrong = "hf_wrongSecretWrongSecretWrongSecret"
    with pytest.raises(PermissionError, match="The Hub does not accept this token") as refusal:
        load(token=wrong)
    assert wrong not in str(refusal.value)
    hub.inject("status", "/resolve/", status=403, message="no")
    with pytest.raises(PermissionError, match="This token has no permission for loading the head 'user/head'"):
        load()


def test_missing_repositories_revisions_and_files(hub, published):
    # `runs/nothing` is a Hub id and a relative path: the answer fits both readings
    for load_one in (AutoModelForSaliency.from_pretrained, FrozenClassifier.from_pretrained):
        with pytest.raises(
            FileNotFoundError, match="'runs/nothing' does not exist on the Hub.*no directory 'runs/not"
        ):
            load_one("runs/nothing")
    with pytest.raises(FileNotFoundError, match="'user/head' has no such branch, tag or commit"):
        load(revision="nowhere")
    repo = hub.repo("user/resnet")
    files = repo.commits.pop(published.config.backbone_revision)
    with pytest.raises(FileNotFoundError, match="needs its classifier.*'user/resnet' has no such branch, tag"):
        load()
    repo.commits[published.config.backbone_revision] = {name: files[name] for name in ("config.json",)}
    with pytest.raises(FileNotFoundError, match="needs its classifier.*'user/resnet' has no weights"):
        load()
    hub.add_repo("user/empty", {"README.md": b"nothing"})
    with pytest.raises(FileNotFoundError, match="'user/empty' has no config.json on the Hub"):
        FrozenClassifier.from_pretrained("user/empty")


@pytest.mark.parametrize("name", ["depths", "layer_norm_eps", "text_config"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_sizes_that_are_no_numbers(name, number):
    """JSON has no NaN, but Python's reader accepts it, and every comparison with NaN is false."""
    value = {"depths": [2, number], "layer_norm_eps": number, "text_config": {"vocab_size": number}}[name]
    with pytest.raises(ValueError, match=rf"^`config.json.{name}.*` is {number}, more than any image classifier has"):
        check_sizes({"hidden_size": 8, name: value})


# ---- uploads


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ({"kind": "status", "path": "/lfs-upload/", "status": 500}, ConnectionError, "failed with error 500"),
        ({"kind": "refuse", "path": "/lfs-upload/"}, ConnectionError, "could not be reached while publishing"),
        ({"kind": "status", "path": "/commit/", "status": 503}, ConnectionError, "failed with error 503"),
        ({"kind": "refuse", "path": "/commit/"}, ConnectionError, "could not be reached while publishing"),
        ({"kind": "status", "path": "/preupload/", "status": 429}, ConnectionError, "limits the rate of requests"),
        ({"kind": "status", "path": "/commit/", "status": 412}, ConnectionError, "Somebody else changed"),
        (
            {"kind": "status", "path": "/repos/create", "status": 403},
            PermissionError,
            "has no permission for publishing",
        ),
    ],
)
def test_an_interrupted_upload_leaves_nothing_and_can_be_repeated(hub, published, tmp_path, fault, error, message):
    hub.objects.clear()  # the server knows these weights already
    hub.inject(**fault)
    with pytest.raises(error, match=message) as failure:
        push_quietly(tmp_path / "head", "user/again")
    if error is ConnectionError:
        assert "Nothing was published; it can be repeated" in str(failure.value)
    assert ("model", "user/again") not in hub.repos or set(hub.files("user/again")) == {".gitattributes"}
    hub.faults.clear()
    push_quietly(tmp_path / "head", "user/again")
    assert same(AutoModelForSaliency.from_pretrained("user/again"), published)
    assert len(hub.repo("user/again").log) == 2


def test_uploads_without_permission(hub, published, tmp_path, monkeypatch):
    with pytest.raises(PermissionError, match="no permission for publishing to 'user/head'"):
        push_quietly(tmp_path / "head", "user/head", token=GUEST_TOKEN)
    with pytest.raises(FileNotFoundError, match="'user/none' does not exist on the Hub"):
        push_quietly(tmp_path / "head", "user/none", create_pr=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="does not know who is publishing .*hf auth login"):
        push_quietly(tmp_path / "head", "user/new")
    with pytest.raises(PermissionError, match="does not accept this token"):
        push_quietly(tmp_path / "head", "user/new", token="hf_wrongSecretWrongSecretWrongSecret")


# ---- the cache's own disk


def test_a_full_disk_leaves_no_half_file(hub, published):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # any write behind it fails, as on a full disk
    try:
        with pytest.raises(
            OSError, match="cache on this machine could not be written .*File too large.*free some spac"
        ):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in cached_files() if path.name.endswith(".incomplete")]
    assert same(load(), published)


def test_a_cache_that_cannot_be_written(hub, published, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(OSError, match="cache on this machine could not be written .*Not a directory"):
        load(cache_dir=str(blocked / "hub"))
    # A cache on a read-only disk that has everything is enough.
    assert same(load(), published)
    folders = [HF_HOME / "hub", *(path for path in (HF_HOME / "hub").rglob("*") if path.is_dir())]
    with read_only(*folders):
        assert same(load(), published)
    empty_cache()
    (HF_HOME / "hub").mkdir()
    with read_only(HF_HOME / "hub"):
        with pytest.raises(OSError, match="cache on this machine could not be written .*set HF_HOME"):
            load()


@contextlib.contextmanager
def read_only(*folders):
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in (*folders, HF_HOME)}
    for folder in folders:
        folder.chmod(0o555)
    HF_HOME.chmod(0o755)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # permissions do not hold root back
        yield
    finally:
        if root:
            os.seteuid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)


def test_redaction():
    text = f"GET http://hub/?token={OWNER_TOKEN} failed for {GUEST_TOKEN}"
    assert redact(text) == "GET http://hub/?token=hf_*** failed for hf_***"


def test_tokens_in_the_reason_of_a_lost_connection_are_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a secret of no known form")
    reason = f"GET http://hub/?token={OWNER_TOKEN} and 'a secret of no known form': connection lost"
    client = sys.modules[type(get_session()).__module__.split(".")[0]]
    for error in (ConnectionError, TimeoutError, client.ConnectError, client.ReadTimeout):
        with pytest.raises(ConnectionError) as refusal, hub_errors("user/head", "loading 'user/head'"):
            raise error(reason)
        assert "(GET http://hub/?token=hf_*** and 'hf_***': connection lost)" in str(refusal.value)
        assert refusal.value.__cause__ is None and OWNER_TOKEN not in repr(refusal.value)
