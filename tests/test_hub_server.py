"""The test Hub against the real client, with plain `transformers` objects: no line of ours in between."""

import hashlib
import shutil

import pytest
import torch
from conftest import GUEST_TOKEN, HF_HOME, OWNER_TOKEN
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config).eval()


def same_weights(one, other):
    others = other.state_dict()
    return all(torch.equal(value, others[name]) for name, value in one.state_dict().items())


def test_whoami_knows_the_token(hub):
    assert HfApi().whoami()["name"] == "user"
    with pytest.raises(HfHubHTTPError, match="Invalid"):
        HfApi().whoami(token="hf_nobody")


def test_push_and_pull_a_classifier(hub, classifier):
    classifier.push_to_hub("user/resnet")
    files = hub.files("user/resnet")
    assert {"config.json", "model.safetensors"} <= set(files)
    oid = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert hub.seen("PUT", f"/lfs-upload/{oid}") and hub.seen("POST", "/lfs-verify")
    pulled = AutoModelForImageClassification.from_pretrained("user/resnet")
    assert same_weights(classifier, pulled)
    # The token goes to the Hub and never to the storage behind it.
    assert all(request.token == OWNER_TOKEN for request in hub.seen("GET", "/resolve/"))
    stored = hub.seen(path="/cdn/|/lfs-upload/")
    assert stored and all(request.token is None for request in stored)


def test_branches_tags_commits_and_pull_requests(hub, classifier):
    api = HfApi()
    hub.add_repo("user/notes", {"a.txt": b"one"})
    first = hub.repo("user/notes").head
    api.create_tag("user/notes", tag="v1")
    api.create_branch("user/notes", branch="next")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="a.txt", repo_id="user/notes")
    api.upload_file(path_or_fileobj=b"three", path_in_repo="sub/a.txt", repo_id="user/notes", revision="next")
    proposal = api.upload_file(path_or_fileobj=b"four", path_in_repo="a.txt", repo_id="user/notes", create_pr=True)

    def read(revision, name="a.txt"):
        with open(hf_hub_download("user/notes", name, revision=revision), "rb") as file:
            return file.read()

    assert [read(revision) for revision in ("main", "v1", first, "next")] == [b"two", b"one", b"one", b"one"]
    assert read("next", "sub/a.txt") == b"three"
    assert proposal.pr_url.endswith("/user/notes/discussions/1") and read("refs/pr/1") == b"four"
    assert "sub/a.txt" in api.list_repo_files("user/notes", revision="next")
    assert api.model_info("user/notes", revision="v1").sha == first


def test_snapshot_of_a_private_and_of_a_gated_repository(hub):
    hub.add_repo("user/secret", {"a.txt": b"one", "sub/b.bin": b"\0" * 100}, private=True)
    hub.add_repo("user/gated", {"a.txt": b"one"}, gated=True)
    folder = snapshot_download("user/secret")
    with open(f"{folder}/sub/b.bin", "rb") as file:
        assert file.read() == b"\0" * 100
    shutil.rmtree(HF_HOME / "hub")
    for token in (False, GUEST_TOKEN):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("user/secret", "a.txt", token=token)
        with pytest.raises(GatedRepoError):
            hf_hub_download("user/gated", "a.txt", token=token)
    hub.repo("user/gated").granted.add("guest")
    hf_hub_download("user/gated", "a.txt", token=GUEST_TOKEN)


def test_missing_things_have_their_own_errors(hub):
    hub.add_repo("user/notes", {"a.txt": b"one"})
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/nothing", "a.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/notes", "a.txt", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/notes", "b.txt")


def test_a_commit_is_all_or_nothing(hub):
    hub.add_repo("user/notes", {"a.txt": b"one"})
    before = hub.files("user/notes")
    hub.inject("status", "/commit/", status=400, message="no")
    with pytest.raises(HfHubHTTPError):
        HfApi().upload_file(path_or_fileobj=b"\0two", path_in_repo="b.bin", repo_id="user/notes")
    assert hub.files("user/notes") == before


@pytest.mark.parametrize("kind", ["drop", "stall"])
def test_a_broken_download_is_resumed_with_a_range_request(hub, kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 8192)
    content = bytes(range(256)) * 400
    hub.add_repo("user/notes", {"weights.bin": content})
    hub.inject(kind, "/cdn/", method="GET", after=30_000, times=1, seconds=0.1)
    with open(hf_hub_download("user/notes", "weights.bin"), "rb") as file:
        assert file.read() == content
    assert [request.status for request in hub.seen("GET", "/cdn/")] == [0, 206]


def test_faults_reach_the_client(hub):
    content = b"\0" * 5000
    hub.add_repo("user/notes", {"weights.bin": content})
    hub.inject("truncate", "/cdn/", after=1000, times=1)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("user/notes", "weights.bin")
    hub.inject("status", "/resolve/", method="HEAD", status=503)
    with pytest.raises((LocalEntryNotFoundError, HfHubHTTPError)):
        hf_hub_download("user/notes", "weights.bin")
    hub.faults.clear()
    # The client checks the length only: corrupted bytes get through, and the caller has to look at them.
    hub.inject("corrupt", "/cdn/", times=1)
    with open(hf_hub_download("user/notes", "weights.bin"), "rb") as file:
        corrupted = file.read()
    assert len(corrupted) == len(content) and corrupted != content


def test_rate_limits_are_waited_for(hub):
    hub.add_repo("user/notes", {"weights.bin": b"\0" * 10})
    hub.inject("status", "/cdn/", status=429, headers={"Retry-After": "7"}, times=1)
    hf_hub_download("user/notes", "weights.bin")
    assert len(hub.waits) == 1 and hub.waits[0] >= 7
    assert [request.status for request in hub.seen("GET", "/cdn/")] == [429, 200]
