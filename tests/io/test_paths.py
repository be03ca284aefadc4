"""One table of names, and that every place that asks whether a name is a path gives the table's answer."""

import os
from pathlib import Path

import pytest
from testing_common import tiny_classifier
from transformers import PreTrainedModel

from hf_explain import FrozenClassifier, LCamForSaliency
from hf_explain.apps.demo import write_space
from hf_explain.heads.modeling_bound import _find_classifier
from hf_explain.io import downloads
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.paths import base_name, exists_here, is_hub_id, is_local_path, portable_name, public_name
from hf_explain.publish.cards import _classifier
from hf_explain.publish.hub import _check_classifiers, check_repo_id


# What a name is where nothing of that name exists: a path, an id on the Hub, or neither
TABLE = {
    "/data/pets": "path",
    "~/pets": "path",
    "~": "path",
    ".": "path",
    "..": "path",
    "./pets": "path",
    "../pets": "path",
    ".\\pets": "path",
    "C:\\data\\pets": "path",
    "c:/data/pets": "path",
    "\\\\server\\pets": "path",
    "data\\pets": "path",
    "file:///data/pets": "path",
    "user/name": "id",
    "timm/resnet50.a1_in1k": "id",
    "resnet-50": "id",
    "a/b/c": "neither",
    "pets/": "neither",
    ".hidden": "neither",
    "two words": "neither",
    "user/name.git": "neither",
    "https://huggingface.co/user/name": "neither",
}
OF_NOTHING = {name: kind for name, kind in TABLE.items() if name not in (".", "..", "~")}  # these always exist


class ToTheHub(Exception):
    """Raised where a test would otherwise ask the Hub."""


def to_the_hub(*args, **kwargs):
    raise ToTheHub


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory and home, and no Hub."""
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    monkeypatch.setattr("datasets.load_dataset", to_the_hub)
    monkeypatch.setattr(downloads, "pin_revision", to_the_hub)
    monkeypatch.setattr(PreTrainedModel, "push_to_hub", to_the_hub)


@pytest.mark.parametrize(("name", "kind"), TABLE.items())
def test_by_its_text(name, kind):
    assert is_local_path(name) is (kind == "path")
    assert is_hub_id(name) is (kind == "id")


ROLE = ("classifier", "classifier=...")  # what an error calls it, and what it asks for


@pytest.mark.parametrize(("name", "kind"), OF_NOTHING.items())
def test_every_door_agrees_where_nothing_exists(name, kind, tmp_path):
    assert not exists_here(name)
    is_id = kind == "id"
    config = {"model_type": "lcam", "backbone": name, "backbone_revision": "0" * 40}

    with pytest.raises(ToTheHub if is_id else FileNotFoundError):
        FrozenClassifier.from_pretrained(name)
    with pytest.raises(ToTheHub if is_id else FileNotFoundError):
        load_image_dataset(name)

    assert public_name(name) == (name if is_id else base_name(name)) and portable_name(name) == name
    if is_id:
        assert _find_classifier(name, "head", *ROLE) == name
        _check_classifiers(config)
    else:
        with pytest.raises(FileNotFoundError, match="The classifier directory .* does not exist"):
            _find_classifier(name, "head", *ROLE)
        with pytest.raises(ValueError, match="is a local directory, which nobody else has"):
            _check_classifiers(config)
    assert _classifier(config, None, [])["hub_id"] == (name if is_id else None)

    if not is_id or "/" not in name:  # a repository of one's own has a user
        with pytest.raises(ValueError, match="is not a repository on the Hub"):
            check_repo_id(name)
        with pytest.raises(ValueError, match="which a Space does not have|is not a repository on the Hub"):
            write_space(tmp_path / "space", name)
    else:
        check_repo_id(name)
        assert write_space(tmp_path / "space", name).is_dir()


@pytest.mark.parametrize(
    "name", ["./pets", "~/pets", "user/name", "resnet-50", "a/b/c", ".hidden", "two words", "a\\b"]
)
def test_what_exists_here_is_meant(name, tmp_path):
    directory = Path(name).expanduser()
    directory.mkdir(parents=True)
    assert exists_here(name) and exists_here(directory)
    assert public_name(name) == public_name(directory) == directory.name
    with pytest.raises(ValueError, match="is a directory of this machine, which a Space does not have"):
        write_space(tmp_path / "space", name)
    if not name.startswith("~"):  # a model's name is given to Transformers as it is
        with pytest.raises(FileNotFoundError, match="has no config.json"):
            FrozenClassifier.from_pretrained(name)
        assert portable_name(name) == os.path.abspath(name)
        assert _find_classifier(name, "head", *ROLE) == name
    with pytest.raises(ToTheHub):  # by way of `datasets`, which is given the directory
        load_image_dataset(name)


def test_a_head_does_not_publish_where_its_classifier_lay():
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"))
    for name, kind in TABLE.items():
        head.config.backbone = name
        with pytest.raises(ToTheHub if kind == "id" else ValueError):
            head.push_to_hub("user/head")


def test_public_names():
    assert public_name(None) is None and public_name("") is None
    assert public_name(".") == "work" and public_name(Path("..")) == "home"
    assert public_name("C:\\data\\pets\\") == "pets" and public_name("/data/nothing/") == "nothing"
    assert portable_name(None) is None and portable_name("") is None


def test_a_classifier_that_moved_with_its_head_is_found_whatever_machine_it_was_trained_on():
    Path("moved/classifier").mkdir(parents=True)
    for backbone in ("C:\\runs\\classifier", "/runs/classifier", "/runs/classifier/"):
        assert _find_classifier(backbone, "moved/head", *ROLE) == os.path.abspath("moved/classifier")
