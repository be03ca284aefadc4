"""Heads on the Hub: pushed, listed, pulled and explained with, over real HTTP against the test Hub."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml
from conftest import GUEST_TOKEN, HF_HOME, OWNER_TOKEN
from hub_clients import pixels, push_classifier, push_quietly, tiny_head, tiny_image
from huggingface_hub import HfApi, ModelCard
from transformers import (
    AutoModel,
    pipeline,
)

from hf_explain import AutoModelForSaliency, LCamForSaliency
from hf_explain.cli import main
from hf_explain.io.transformers_names import AutoImageProcessor
from hf_explain.metrics import path as metric_path
from hf_explain.publish.hub import METRICS as METRIC_FOLDER
from hf_explain.publish.hub import plan_explainer, push_explainer


METRICS = sorted(folder.name for folder in METRIC_FOLDER.iterdir() if (folder / f"{folder.name}.py").is_file())
REPOSITORY = os.fspath(Path(__file__).parents[2])


@pytest.fixture
def image():
    return tiny_image()


@pytest.fixture
def head(hub):
    push_classifier()
    return tiny_head()


@pytest.fixture
def saved(head, tmp_path):
    head.save_pretrained(tmp_path / "head")
    return tmp_path / "head"


class Client:
    """A Python of its own without `hf_explain`, started once: importing torch takes longer than any test here."""

    LOOP = """
import io, json, os, sys, traceback
from contextlib import redirect_stdout
import torch, transformers
sys.modules["hf_explain"] = None  # as on a machine where it is not installed
for line in sys.stdin:
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            exec(json.loads(line), {})
    except BaseException:
        printed.write(traceback.format_exc())
    print(json.dumps(printed.getvalue()), flush=True)
"""

    def __init__(self):
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.LOOP],
            env={**clean, "OMP_NUM_THREADS": "1", "HF_TOKEN": OWNER_TOKEN},
            cwd=str(HF_HOME),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, script):
        self.process.stdin.write(json.dumps(script) + "\n")
        self.process.stdin.flush()

    def result(self):
        return json.loads(self.process.stdout.readline()).splitlines()

    def run(self, script):
        self.start(script)
        return self.result()


@pytest.fixture(scope="module", autouse=True)
def client():
    client = Client()
    yield client
    client.process.kill()  # nothing to tidy up, and tearing torch down takes seconds
    client.process.communicate()


# ---- without the package (runs first)


def test_remote_code_without_the_package(hub, head, saved, tmp_path, image, client):
    push_quietly(saved, "user/stub", code="stub")
    push_quietly(saved, "user/flat", code="self-contained")
    assert "modeling_hf_explain.py" in hub.files("user/stub")
    flat = hub.files("user/flat")
    assert {"configuration_lcam.py", "modeling_lcam.py", "frozen_classifier.py", "maps.py"} <= set(flat)
    assert not any(b"hf_explain." in text.split(b'"""')[-1] and b"from hf_explain" in text for text in flat.values())
    inputs = pixels()
    torch.save(inputs, tmp_path / "inputs.pt")
    lines = client.run(f"""
import sys
from pathlib import Path
sys.modules["hf_explain"] = None
import torch
from transformers import AutoModel
inputs = torch.load({str(tmp_path / "inputs.pt")!r})
for repo, trust in (("user/flat", False), ("user/stub", True)):
    try:
        AutoModel.from_pretrained(repo, trust_remote_code=trust)
        print("loaded", repo)
    except (ValueError, ImportError, OSError) as error:
        print("refused", repo, " ".join(str(error).split()))
head = AutoModel.from_pretrained("user/flat", trust_remote_code=True)
output = head(inputs, target="church")
torch.save(output.saliency, {str(tmp_path / "saliency.pt")!r})
loaded = [name for name in sys.modules if name.startswith("hf_explain.")]
print("explained by", type(head).__module__.split(".")[0], loaded)
""")
    assert lines[0].startswith("refused user/flat") and "trust_remote_code" in lines[0], lines
    assert lines[1].startswith("refused user/stub") and "pip install hf-explain" in lines[1]
    assert lines[2] == "explained by transformers_modules []"
    expected = head(inputs, target="church").saliency
    torch.testing.assert_close(torch.load(tmp_path / "saliency.pt"), expected)


# ---- round trip


def test_a_head_travels_in_one_commit_of_kilobytes(hub, head, saved, image):
    reported = []
    plan = push_explainer(saved, "user/head", report=reported.append)
    assert str(plan).splitlines()[0] == "To model user/head, in one commit:"
    assert reported[0] == str(plan) and reported[1].startswith("Published: ")
    repo = hub.repo("user/head")
    assert [entry["sha"] for entry in repo.log[1:]] == [plan.commit] and repo.head == plan.commit
    files = {name: content for name, content in hub.files("user/head").items() if name != ".gitattributes"}
    assert set(files) == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert set(files) == {file.name for file in plan.files}
    assert sum(map(len, files.values())) < 20_000
    # Listed before anything was sent.
    assert all(f"  {name}" in reported[0] for name in files)

    expected = head(pixel_values=pixels())
    loaded = AutoModelForSaliency.from_pretrained("user/head")
    assert type(loaded) is LCamForSaliency
    assert torch.equal(loaded(pixels()).saliency, expected.saliency)


def test_pipeline_loads_the_classifier_at_its_pinned_commit(hub, head, saved, image):
    push_quietly(saved, "user/head")
    pinned = head.config.backbone_revision
    assert re.fullmatch(r"[0-9a-f]{40}", pinned) and pinned == hub.repo("user/resnet").head
    expected = pipeline("saliency", model=head)(image)
    push_classifier(seed=7)  # main moves on; the head must not follow
    assert hub.repo("user/resnet").head != pinned

    shutil.rmtree(HF_HOME / "hub")
    hub.requests.clear()
    fresh = pipeline("saliency", model="user/head")(image)
    assert fresh[0]["label"] == expected[0]["label"] and fresh[0]["score"] == pytest.approx(expected[0]["score"])
    np.testing.assert_array_equal(fresh[0]["saliency_map"], expected[0]["saliency_map"])
    revisions = {request.path.split("/")[4] for request in hub.seen(path="/user/resnet/resolve/")}
    assert revisions == {pinned}

    hub.requests.clear()
    warm = pipeline("saliency", model="user/head")(image, target="church")
    assert warm[0]["label"] == "church"
    assert not hub.seen("GET", "/cdn/") and not hub.seen("GET", "/resolve/")


def test_two_processes_at_once_then_offline(hub, saved, image, tmp_path, client, monkeypatch):
    push_quietly(saved, "user/head")
    image.save(tmp_path / "image.png")
    expected = pipeline("saliency", model="user/head")(image)[0]
    explain = f"""
import sys
from pathlib import Path
sys.path.insert(0, {REPOSITORY!r})
if sys.modules.get("hf_explain", 0) is None:
    del sys.modules["hf_explain"]
import hashlib, hf_explain
from transformers import pipeline
found = pipeline("saliency", model="user/head")({str(tmp_path / "image.png")!r})[0]
print(found["label"], hashlib.sha256(found["saliency_map"].tobytes()).hexdigest())
"""
    digest = hashlib.sha256(expected["saliency_map"].tobytes()).hexdigest()
    client.run(explain)  # imports done, so that both really start together
    shutil.rmtree(HF_HOME / "hub")
    hub.inject("drip", "/cdn/", method="GET", after=2000, seconds=0.02)
    client.start(explain)
    here = pipeline("saliency", model="user/head")(image)[0]
    assert client.result() == [f"{expected['label']} {digest}"]
    np.testing.assert_array_equal(here["saliency_map"], expected["saliency_map"])
    assert not list((HF_HOME / "hub").rglob("*.incomplete"))

    hub.requests.clear()
    offline = "import huggingface_hub.constants; huggingface_hub.constants.HF_HUB_OFFLINE = {}\n"
    assert client.run(offline.format(True) + explain) == [f"{expected['label']} {digest}"]
    missing = client.run(offline.format(True) + explain.replace("user/head", "user/other"))
    assert "couldn't find them in the cached files" in " ".join(missing)
    client.run(offline.format(False))
    assert not hub.requests


def test_private_with_and_without_token(hub, saved, monkeypatch):
    push_quietly(saved, "user/head", private=True)
    assert hub.repo("user/head").private
    hub.repo("user/resnet").private = True
    shutil.rmtree(HF_HOME / "hub")
    hub.requests.clear()
    head = AutoModelForSaliency.from_pretrained("user/head", token=OWNER_TOKEN)
    assert head.backbone is not None
    shutil.rmtree(HF_HOME / "hub")
    monkeypatch.delenv("HF_TOKEN")
    for token in (None, GUEST_TOKEN):
        with pytest.raises(OSError, match="user/head") as refusal:
            AutoModelForSaliency.from_pretrained("user/head", token=token)
        assert GUEST_TOKEN not in str(refusal.value)
    # The argument reaches the classifier's repository too.
    head = AutoModelForSaliency.from_pretrained("user/head", token=OWNER_TOKEN)
    assert head.config.backbone == "user/resnet"
    shutil.rmtree(HF_HOME / "hub")
    pipe = pipeline("saliency", model="user/head", token=OWNER_TOKEN)
    assert pipe.classifier.num_labels == 3


def test_revision_and_subfolder(hub, head, saved):
    push_quietly(saved, "user/head")
    api = HfApi()
    first = hub.repo("user/head").head
    api.create_tag("user/head", tag="v1")
    with torch.no_grad():
        head.attention.bias += 1
    head.save_pretrained(saved)
    (saved / "README.md").write_text("---\nlibrary_name: hf-explain\n---\n# second\n")
    second = push_quietly(saved, "user/head", revision="next").commit
    assert hub.repo("user/head").refs["next"] == second and hub.repo("user/head").head == first

    def bias(**kwargs):
        return AutoModelForSaliency.from_pretrained("user/head", **kwargs).attention.bias

    assert torch.equal(bias(revision="next"), bias() + 1)
    assert torch.equal(bias(revision=second), bias(revision="next"))
    assert torch.equal(bias(revision="v1"), bias(revision=first))
    for revision in ("next", "v1", second):
        piped = pipeline("saliency", model="user/head", revision=revision)
        assert torch.equal(piped.model.attention.bias, bias(revision=revision))

    api.create_repo("user/many")
    api.upload_folder(folder_path=saved, path_in_repo="heads/lcam", repo_id="user/many")
    inside = AutoModelForSaliency.from_pretrained("user/many", subfolder="heads/lcam")
    assert torch.equal(inside.attention.bias, bias(revision="next"))
    inside = pipeline("saliency", model="user/many", model_kwargs={"subfolder": "heads/lcam"})
    assert torch.equal(inside.model.attention.bias, bias(revision="next"))


def test_push_to_hub_as_in_transformers(hub, head):
    """Pushed without this package's checks and card, the head is as small."""
    head.push_to_hub("user/plain")
    files = hub.files("user/plain")
    assert {"config.json", "model.safetensors"} <= set(files) and sum(map(len, files.values())) < 20_000
    assert torch.equal(AutoModelForSaliency.from_pretrained("user/plain")(pixels()).saliency, head(pixels()).saliency)


def test_pull_request_and_dry_run(hub, saved):
    hub.requests.clear()
    plan = push_quietly(saved, "user/head", dry_run=True)
    assert plan.commit is None and ("model", "user/head") not in hub.repos
    assert not hub.requests
    push_quietly(saved, "user/head")
    before = hub.repo("user/head").head
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# better\n")
    plan = push_quietly(saved, "user/head", create_pr=True, token=GUEST_TOKEN)
    assert plan.url.endswith("/user/head/discussions/1")
    assert hub.repo("user/head").head == before
    assert hub.files("user/head", "refs/pr/1")["README.md"].endswith(b"# better\n")


def test_self_contained_head_needs_no_second_repository(hub, head, tmp_path, image):
    head.save_pretrained(tmp_path / "whole", self_contained=True)
    push_quietly(tmp_path / "whole", "user/whole")
    del hub.repos[("model", "user/resnet")]
    shutil.rmtree(HF_HOME / "hub")
    found = pipeline("saliency", model="user/whole")(image)
    assert found[0]["saliency_map"].shape == (40, 60)


# ---- what is not published


def break_config(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "/home/me/resnet"}, "classifier .* is a local directory"),
        ({"backbone": "../resnet"}, "is a local directory"),
        ({"backbone": None}, "names no classifier"),
        ({"backbone_revision": None}, "is not pinned"),
        ({"backbone_revision": "main"}, "is not pinned: `backbone_revision` is 'main'"),
        ({"notes": {"from": ["/home/me/data"]}}, r"config.json names a local path in `notes.from\[0\]`"),
        ({"notes": "C:\\data"}, "local path in `notes`"),
        ({"notes": OWNER_TOKEN}, "'config.json' contains a Hub token"),
        ({"model_type": "resnet"}, "model_type 'resnet'; heads have one of"),
    ],
)
def test_configurations_that_must_not_be_published(hub, saved, fields, message):
    break_config(saved, **fields)
    with pytest.raises(ValueError, match=message) as refusal:
        push_quietly(saved, "user/head")
    assert OWNER_TOKEN not in str(refusal.value)
    assert ("model", "user/head") not in hub.repos


def test_classes_may_be_called_like_paths(hub, saved):
    """Places365 has "/a/airfield" and 364 more; a path anywhere else in the configuration is still found."""
    config = json.loads((saved / "config.json").read_text())
    labels = {"0": "/a/airfield", "1": "~/x", "2": "C:\\church"}
    for described in (config, config["backbone_config"]):
        described |= {"id2label": labels, "label2id": {name: int(index) for index, name in labels.items()}}
    (saved / "config.json").write_text(json.dumps(config))
    push_quietly(saved, "user/head")
    assert json.loads(hub.files("user/head")["config.json"])["id2label"] == labels
    config["backbone_config"]["id2labels"] = labels
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json names a local path in `backbone_config.id2labels.0`"):
        push_quietly(saved, "user/head")


def test_files_that_must_not_be_published(hub, saved, tmp_path):
    (saved / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="'optimizer.pt' in 'head' is a pickle, which can run code"):
        push_quietly(saved, "user/head")
    (saved / "optimizer.pt").unlink()
    (saved / "training_log.jsonl").write_text("{}")
    (saved / "checkpoint-10").mkdir()
    (saved / "checkpoint-10" / "training_state.pt").write_bytes(b"x")
    plan = plan_explainer(saved, "user/head")
    assert plan.left_out == ["checkpoint-10/", "training_log.jsonl"]
    assert "Not uploaded: checkpoint-10/, training_log.jsonl" in str(plan)

    (saved / "README.md").write_text(f"---\nlicense: mit\n---\nmy token is {GUEST_TOKEN}\n")
    with pytest.raises(ValueError, match="'README.md' contains a Hub token") as refusal:
        push_quietly(saved, "user/head")
    assert GUEST_TOKEN not in str(refusal.value)
    (saved / "README.md").write_text(f"---\nlicense: mit\n---\ntrained in {saved.parent / 'head'}\n")
    with pytest.raises(ValueError, match="'README.md' contains a path of this machine"):
        push_quietly(saved, "user/head")
    (saved / "README.md").unlink()

    (saved / "training_record.json").write_text(json.dumps({"dataset": "/data/imagenet", "epochs": 1}))
    plan = push_quietly(saved, "user/head")
    assert "1 local path removed" in str(plan)
    assert json.loads(hub.files("user/head")["training_record.json"])["dataset"] == "(local path removed)"
    assert b"/data/imagenet" not in hub.files("user/head")["README.md"]

    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:40])
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        push_quietly(saved, "user/head")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        push_quietly(saved, "user/head")


@pytest.mark.parametrize("repo_id", ["head", "a/b/c", "user/", "user/na me", "../user/head", "user/--x"])
def test_repository_names(saved, repo_id):
    with pytest.raises(ValueError, match="is not a repository on the Hub; write user/name"):
        push_quietly(saved, repo_id)


def test_directories_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        push_quietly(tmp_path / "nothing", "user/head")
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        push_quietly(tmp_path, "user/head")


# ---- remote code


def test_nobody_with_the_package_is_asked_for_trust(hub, saved, image):
    push_quietly(saved, "user/flat", code="self-contained")
    config = json.loads(hub.files("user/flat")["config.json"])
    config["custom_pipelines"] = {"saliency": {"impl": "evil.Pipeline", "pt": ["AutoModel"]}}
    hub.add_repo("user/flat", {"config.json": json.dumps(config).encode(), "evil.py": b"raise SystemExit(3)"})
    hub.requests.clear()
    assert type(AutoModel.from_pretrained("user/flat")) is LCamForSaliency
    assert type(AutoModelForSaliency.from_pretrained("user/flat")) is LCamForSaliency
    assert pipeline("saliency", model="user/flat")(image)[0]["saliency_map"].shape == (40, 60)
    assert not hub.seen(path=r"\.py$")


# ---- command line and metrics


def test_push_from_the_command_line(hub, saved, capsys):
    assert main(["push", str(saved), "--repo", "user/head", "--license", "mit", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert "To model user/head, in one commit:" in listed and "README.md" in listed and "Published" not in listed
    assert ("model", "user/head") not in hub.repos
    assert main(["push", str(saved), "--repo", "user/head", "--license", "mit", "--private"]) == 0
    assert "Published: " in capsys.readouterr().out
    assert hub.repo("user/head").private and ModelCard.load("user/head").data.license == "mit"
    for option, file in (("--self-contained-code", "modeling_lcam.py"), ("--stub-code", "modeling_hf_explain.py")):
        assert main(["push", str(saved), "--repo", "user/code", option, "--dry-run"]) == 0
        assert f"  {file} " in capsys.readouterr().out
    assert main(["push", str(saved), "--repo", "head"]) == 1
    assert "hf-explain push: `repo_id` 'head' is not a repository on the Hub" in capsys.readouterr().err


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_loaded_from_a_space(hub, name):
    """Each of the package's own: what is pushed is laid out as `evaluate` wants it, loads and computes."""
    assert main(["push-metric", name, "--repo", f"user/{name}"]) == 0
    assert hub.repo(f"user/{name}", "space").type == "space"
    files = hub.files(f"user/{name}", repo_type="space")
    assert set(files) == {".gitattributes", f"{name}.py", "README.md", "app.py", "requirements.txt"}
    assert files["requirements.txt"].split() == [b"hf-explain", b"evaluate"]
    _, front, body = files["README.md"].decode().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and {"evaluate", "metric"} <= set(front["tags"])
    for section in ("Metric description", "How to use", "Inputs", "Output values", "Limitations", "Citation"):
        assert re.search(rf"^#+ {section}", body, re.MULTILINE | re.IGNORECASE), section
    local, pushed = evaluate.load(metric_path(name)), evaluate.load(f"user/{name}")
    assert hub.seen("GET", rf"/spaces/user/{name}/resolve/.*/{name}\.py")
    assert type(pushed).__module__.startswith("evaluate_modules.") and pushed.inputs_description
    assert pushed.features == local.features and pushed.protocol == local.protocol


def test_metrics_that_are_none(capsys):
    assert main(["push-metric", "nothing", "--repo", "user/nothing"]) == 1
    known = "it has auc_d, auc_d_fills, average_drop, "
    assert f"'nothing' is not a metric of this package; {known}" in capsys.readouterr().err
    assert main(["push-metric", "auc_d", "--repo", "user/other"]) == 1
    assert "must end in /auc_d" in capsys.readouterr().err


def test_processors_come_along(hub, saved):
    push_quietly(saved, "user/head")
    assert AutoImageProcessor.from_pretrained("user/head").size["height"] == 32
