"""
Code in a repository runs where the caller said `trust_remote_code=True`, and nowhere else; nobody is asked.

The walk: every door by which something is loaded, every file that can name code, every key it can name it under.
"""

import contextlib
import io
import itertools
import json
import shutil

import pytest
from hub_clients import FOREIGN_CODE, tiny_classifier, tiny_head, tiny_image, tiny_processor
from transformers import AutoModelForImageClassification, pipeline

from hf_explain import AutoModelForSaliency, FrozenClassifier, LCamForSaliency
from hf_explain.apps.demo_explainers import _load
from hf_explain.cli import main
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.io.downloads import UntrustedCodeError
from hf_explain.io.image_processor import load_image_processor
from hf_explain.pipeline import load_pipeline


KEYS = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForImageClassification": "evil.Model",
    "AutoModelForSaliency": "evil.Model",
    "AutoImageProcessor": "evil.Processor",
    "AutoFeatureExtractor": "evil.Processor",
    "AutoProcessor": "evil.Processor",
}
INSIDE = "image processor in processor_config.json"
FILES = ("config.json", "preprocessor_config.json", "processor_config.json", INSIDE)
# what the file says it is: what it was, what no library knows, what Transformers knows and is no image classifier
KINDS = ("as it was", "unknown", "a text model", "not said")
REFUSALS = (ValueError, TypeError, OSError, KeyError)

CLASSIFIER_DOORS = {
    "FrozenClassifier": FrozenClassifier.from_pretrained,
    "from_classifier": LCamForSaliency.from_classifier,
    "AutoModelForSaliency": AutoModelForSaliency.from_pretrained,
    "pipeline": lambda name, **trust: pipeline("saliency", model=name, **trust),
    "pipeline's processor": lambda name, **trust: pipeline(
        "saliency", model=tiny_classifier(), image_processor=name, **trust
    ),
    "image processor": load_image_processor,
}
# doors that cannot be told to trust
CLOSED_DOORS = {
    "a model loaded before": lambda name: (
        FrozenClassifier(
            AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
        ).image_processor
    ),
    "commands": load_pipeline,
    "evaluation": resolve_explainer,
    "demo": lambda name: _load(name, None, "cpu"),
}
HEAD_DOORS = {
    "AutoModelForSaliency": AutoModelForSaliency.from_pretrained,
    "LCamForSaliency": LCamForSaliency.from_pretrained,
    "pipeline": CLASSIFIER_DOORS["pipeline"],
}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A classifier, a head that names it, and a head with a classifier of its own."""
    folder = tmp_path_factory.mktemp("honest")
    tiny_classifier().save_pretrained(folder / "classifier")
    tiny_processor().save_pretrained(folder / "classifier")
    head = tiny_head(folder / "classifier")
    head.save_pretrained(folder / "head")
    head.config.self_contained = True
    head.save_pretrained(folder / "whole")
    assert (folder / "whole" / "preprocessor_config.json").is_file()
    return folder


@pytest.fixture
def questions(monkeypatch):
    """Whoever asks is told to go on, and is found out."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 1000))
    return asked


class Repositories:
    """Copies of an honest repository with code in them that leaves a trace when it runs."""

    def __init__(self, honest, folder):
        self.honest, self.folder, self.canary = honest, folder, folder / "canary"
        self.count = itertools.count()

    def make(self, kind, file, keys, says="as it was"):
        place = shutil.copytree(self.honest / kind, self.folder / f"{kind}{next(self.count)}")
        edit(place, file, {key: KEYS[key] for key in keys}, says)
        (place / "evil.py").write_text(FOREIGN_CODE.format(canary=str(self.canary)))
        return place

    def ran(self):
        if not self.canary.exists():
            return False
        self.canary.unlink()
        return True


@pytest.fixture
def repositories(honest, tmp_path):
    return Repositories(honest, tmp_path)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit(place, file, auto_map, says):
    path = place / file
    if file == "config.json":
        described = json.loads(path.read_text())
        field, other = "model_type", "bert"
    else:
        found = place / "preprocessor_config.json"
        described = json.loads(found.read_text()) if found.exists() else tiny_processor().to_dict()
        field, other = "image_processor_type", "BertImageProcessor"
    described["auto_map"] = auto_map
    if says == "not said":
        described.pop(field, None)
    elif says != "as it was":
        described[field] = other if says == "a text model" else "evil"
    if file.startswith("image processor in "):
        path, described = place / file.removeprefix("image processor in "), {"image_processor": described}
    path.write_text(json.dumps(described))


def walk(repositories, questions, doors, kind, cases, wrap=lambda place: place, trusts=({},)):
    for file, says, key in cases:
        place = repositories.make(kind, file, key, says)
        name = str(wrap(place))
        for door, load in doors.items():
            for trust in trusts:
                try:
                    load(name, **trust)
                except REFUSALS as error:
                    if isinstance(error, UntrustedCodeError):
                        assert str(place) in str(error) and "`trust_remote_code=True`" in str(error)
                        assert "\n" not in str(error)
                where = f"{door}, {kind}, {file} ({says}), {list(key)}, {trust}"
                assert not questions, f"somebody was asked: {where}"
                assert not repositories.ran(), f"code was run: {where}"


UNTRUSTED = ({}, {"trust_remote_code": False})
WALKS = pytest.mark.parametrize(
    "cases",
    [
        # where Transformers knows no code of its own to run instead
        pytest.param(
            [
                ("config.json", "unknown", KEYS),
                ("config.json", "a text model", KEYS),
                ("preprocessor_config.json", "unknown", KEYS),
                (INSIDE, "unknown", KEYS),
            ],
            id="quick",
        ),
        pytest.param(
            list(itertools.product(FILES, KINDS, [KEYS, *([key] for key in KEYS)])),
            id="thorough",
            marks=pytest.mark.slow,
        ),
    ],
)


@WALKS
def test_a_classifiers_code_does_not_run(repositories, questions, cases):
    walk(repositories, questions, CLASSIFIER_DOORS, "classifier", cases, trusts=UNTRUSTED)
    walk(repositories, questions, CLOSED_DOORS, "classifier", cases)


@WALKS
def test_the_code_of_a_heads_classifier_does_not_run(repositories, questions, honest, cases):
    def head_of(place):
        head = shutil.copytree(honest / "head", repositories.folder / f"of-{place.name}")
        change(head / "config.json", backbone=str(place))
        return head

    walk(repositories, questions, HEAD_DOORS, "classifier", cases, head_of, UNTRUSTED)
    swapped = {
        "classifier=": lambda name, **trust: LCamForSaliency.from_pretrained(
            honest / "head", classifier=name, **trust
        ),
        "demo": lambda name: _load(str(honest / "head"), name, "cpu"),
    }
    walk(repositories, questions, swapped, "classifier", cases)


@WALKS
@pytest.mark.parametrize("kind", ["head", "whole"])
def test_a_heads_code_does_not_run(repositories, questions, kind, cases):
    walk(repositories, questions, HEAD_DOORS, kind, cases, trusts=UNTRUSTED)
    closed = {door: load for door, load in CLOSED_DOORS.items() if door != "a model loaded before"}
    walk(repositories, questions, closed, kind, cases)


def test_a_head_is_no_way_round(repositories, questions):
    """The classifier inside a self-contained head is built from the head's configuration alone."""
    place = repositories.make("whole", "config.json", [])
    evil = repositories.make("classifier", "config.json", KEYS)
    inner = {"model_type": "bert", "auto_map": {key: f"{evil}--{KEYS[key]}" for key in KEYS}}
    change(place / "config.json", backbone_config=inner)
    for door in HEAD_DOORS.values():
        with pytest.raises(REFUSALS):
            door(str(place))
    assert not questions and not repositories.ran()


def test_code_runs_for_whoever_trusts_it(repositories, questions, honest):
    """One word is enough for every load inside, and says nothing of the next load."""
    place = repositories.make("classifier", "preprocessor_config.json", ["AutoImageProcessor"], "unknown")
    head = shutil.copytree(honest / "head", repositories.folder / "head")
    change(head / "config.json", backbone=str(place))
    whole = repositories.make("whole", "preprocessor_config.json", ["AutoImageProcessor"], "unknown")
    for load, name in (
        (FrozenClassifier.from_pretrained, place),
        (LCamForSaliency.from_classifier, place),
        (CLASSIFIER_DOORS["pipeline"], str(place)),
        (load_image_processor, str(place)),
        *((door, str(name)) for door in HEAD_DOORS.values() for name in (head, whole)),
    ):
        (place / "evil.py").write_text((place / "evil.py").read_text() + "\n")  # else it is not imported again
        (whole / "evil.py").write_text((whole / "evil.py").read_text() + "\n")
        loaded = load(name, trust_remote_code=True)
        assert repositories.ran()
        loaded = getattr(loaded, "classifier", getattr(loaded, "backbone", loaded))
        assert type(getattr(loaded, "image_processor", loaded)).__name__ == "Processor"
    with pytest.raises(UntrustedCodeError):
        FrozenClassifier.from_pretrained(place)
    keys = ["AutoConfig", "AutoModelForImageClassification"]
    model = repositories.make("classifier", "config.json", keys, "unknown")
    classifier = FrozenClassifier.from_pretrained(model, trust_remote_code=True)
    assert repositories.ran() and type(classifier.model).__name__ == "Model"
    assert not questions


def test_the_programs_refuse_in_one_sentence(repositories, questions, honest, tmp_path, capsys):
    tiny_image().save(tmp_path / "image.png")
    picture = str(tmp_path / "picture.png")
    for file in ("config.json", "preprocessor_config.json"):
        place = repositories.make("classifier", file, KEYS, "unknown")
        assert main(["explain", str(tmp_path / "image.png"), "--model", str(place), "--output", picture]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert "brings code of its own" in lines[-1] and str(place) in lines[-1], lines
    assert not questions and not repositories.ran()


def test_the_hubs_code_does_not_run_and_is_not_fetched(hub, honest, repositories, questions):
    for file in ("config.json", "preprocessor_config.json"):
        place = repositories.make("classifier", file, KEYS, "unknown")
        repo = f"user/evil-{file.removesuffix('.json')}"
        hub.add_repo(repo, {path.name: path.read_bytes() for path in place.iterdir()})
        for door in (*CLASSIFIER_DOORS.values(), *list(CLOSED_DOORS.values())[1:]):
            with contextlib.suppress(*REFUSALS):
                door(repo)
        with pytest.raises(UntrustedCodeError, match=f"'{repo}' brings code of its own.*`trust_remote_code=True`"):
            load_pipeline(repo)
    assert not hub.seen("GET", r"evil\.py")
    assert not questions and not repositories.ran()
    assert FrozenClassifier.from_pretrained(repo, trust_remote_code=True).image_processor is not None
    assert repositories.ran()
