"""`hf-explain` as a person types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.commands import launch
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from PIL import Image
from testing_common import save_classifier
from testing_zero_shot import save_zero_shot
from transformers import pipeline

from hf_explain.cli import main
from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.registry import HEADS, METHODS


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    return save_classifier("resnet", tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def images(tmp_path):
    paths = []
    for index in range(2):
        paths.append(str(tmp_path / f"image{index}.png"))
        Image.linear_gradient("L").resize((80, 60)).convert("RGB").save(paths[-1])
    return paths


def test_explain_one_image(classifier_dir, images, tmp_path, capsys):
    output = tmp_path / "out.png"
    assert main(["explain", images[0], "--model", classifier_dir, "-o", str(output), "--top_k", "2"]) == 0
    assert "image0.png: " in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.width > 3 * 200  # the image and two maps


def test_explain_what_speaks_against_a_class(classifier_dir, images, tmp_path, capsys):
    output = tmp_path / "out.png"
    words = ["explain", images[0], "--model", classifier_dir, "-o", str(output)]
    assert main([*words, "--signed", "--target", "cat", "--against", "tiger cat"]) == 0 and output.exists()
    assert main([*words, "--signed", "--method", "layercam"]) == 1
    assert "`signed` cannot be had of 'layercam'" in capsys.readouterr().err


def test_texts_as_classes(images, tmp_path, capsys):
    model, data, folder = save_zero_shot("clip", tmp_path / "clip"), tmp_path / "data.parquet", tmp_path / "results"
    words = ["explain", images[0], "--model", model, "-o", str(tmp_path / "out.png")]
    assert main([*words, "--target", "a photo of a cat", "--target", "a remote control"]) == 0
    assert re.search(r": a photo of a cat 0\.\d\d, a remote control 0\.\d\d ->", capsys.readouterr().out)
    labels = ["--candidate_labels", "cat", "remote control", "--hypothesis_template", "a {}"]
    assert main([*words, *labels, "--top_k", "2"]) == 0
    assert "remote control" in capsys.readouterr().out
    assert main([*words, *labels, "--target", "dragon"]) == 1
    assert "`target` 'dragon' is not a label of this classifier" in capsys.readouterr().err
    pictures = [{"image": Image.open(path), "label": index} for index, path in enumerate(images)]
    names = datasets.ClassLabel(names=["remote control", "cat"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    datasets.Dataset.from_list(pictures, features).to_parquet(data)
    words = ["evaluate", "--classifier", model, "--dataset", str(data), "-o", str(folder), "--explainers", "gradcam"]
    words += ["--metrics", "auc_d", "--metric_option", "auc_d.steps=2", "--pictures", "0", "--target", "label"]
    assert main([*words, *labels]) == 0
    results = json.loads((folder / "results.json").read_text())
    texts = {"candidate_labels": ["cat", "remote control"], "hypothesis_template": "a {}"}
    assert results["classifier"]["classifier_texts"] == texts and results["classifier"]["num_labels"] == 2
    capsys.readouterr()
    assert main([*words, "-o", str(tmp_path / "others")]) == 1
    assert "`candidate_labels` are missing" in capsys.readouterr().err


def test_explain_by_several_methods(classifier_dir, images, tmp_path, capsys):
    head, output = tmp_path / "head", tmp_path / "out.png"
    LCamForSaliency.from_classifier(classifier_dir).save_pretrained(head)
    words = ["explain", images[0], "-o", str(output), "--target", "tench", "--target", "church", "--json"]
    words += ["--method", f"mine={head}", "--method", "gradcam", "--method", "rise", "--layer", "stage1"]
    words += ["--method_option", "rise.num_masks=3", "--save_map", "npy", "png", "--legend", "--colormap", "inferno"]
    assert main(words) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["image"] == images[0] and found["picture"] == str(output)
    explained = found["explanations"]
    assert [(one["name"], one["label"].split(",")[0]) for one in explained] == [
        (name, label) for name in ("mine", "gradcam", "rise") for label in ("tench", "church")
    ]
    assert explained[2]["method_options"] == {"layer": "stage1"}
    assert explained[4]["method_options"] == {"layer": "stage1", "num_masks": 3}
    pipe = pipeline("saliency", model=classifier_dir)
    (expected,) = pipe(images[0], target="church", method="gradcam", layer="stage1")
    array = np.load(explained[3]["maps"]["npy"])
    assert np.array_equal(array, expected["saliency_map"]) and array.dtype == np.float32
    with Image.open(explained[3]["maps"]["png"]) as picture:
        assert picture.mode.startswith("I;16")
        assert np.abs(np.asarray(picture) / 65535 - array).max() < 1e-5
    assert len({file for one in explained for file in one["maps"].values()}) == 12
    with Image.open(output) as picture:
        assert picture.width >= 1200


def test_explain_folders_patterns_and_names_that_meet(classifier_dir, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "more/deep").mkdir(parents=True)
    for name in ("more/image0.png", "more/deep/image1.jpg", "more/notes.txt"):
        Image.open(images[0]).save(tmp_path / name, format="PNG")
    words = ["--model", classifier_dir, "--width", "300", "-o", str(tmp_path / "out")]
    assert main(["explain", str(tmp_path / "more"), str(tmp_path / "image*.png"), images[0], *words]) == 0
    names = ["image0-2.png", "image0.png", "image1-2.png", "image1.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    monkeypatch.chdir(tmp_path)
    assert main(["explain", images[1], "--model", classifier_dir]) == 0
    assert (tmp_path / "image1-explained.png").is_file()
    capsys.readouterr()
    (tmp_path / "broken.png").write_bytes(b"x")
    skipping = ["--model", classifier_dir, "--on_error", "skip", "--json", "-o", str(tmp_path / "out")]
    assert main(["explain", "broken.png", images[0], *skipping]) == 0
    captured = capsys.readouterr()
    assert [("error" in one) for one in json.loads(captured.out)] == [True, False]
    assert "broken.png: skipped: " in captured.err


def test_an_image_from_the_net_is_fetched_once(classifier_dir, images, tmp_path, monkeypatch):
    asked = []

    def download(url, timeout=None):
        asked.append(url)
        return Path(images[0]).read_bytes()

    monkeypatch.setattr("hf_explain.io.images.download", download)
    words = ["--model", classifier_dir, "--method", "gradcam", "--method", "centre", "-o", str(tmp_path)]
    assert main(["explain", "https://example.org/a%20dog.jpeg?size=large", *words]) == 0
    assert len(asked) == 1 and (tmp_path / "a dog.png").is_file()
    result = pipeline("saliency", model=classifier_dir)("https://example.org/dog.png")
    result._repr_png_()
    assert len(asked) == 2


def test_explain_several_into_a_folder(classifier_dir, images, tmp_path):
    folder = tmp_path / "maps"
    argv = ["explain", *images, "--model", classifier_dir, "-o", str(folder), "--target", "tench", "--target", "3"]
    assert main(argv) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["image0.png", "image1.png"]


def test_methods(classifier_dir, capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} ", out, re.M) for name in METHODS)
    assert re.search(r"^rise +passes: 1001 · every classifier · Petsiuk et al., BMVC 2018$", out, re.M)
    assert all(name in out for name in HEADS)
    assert main(["methods", "rise", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["options"]["num_masks"] == 1000 and "https://" in entry["paper"]
    assert main(["methods", "--model", classifier_dir]) == 0
    out = capsys.readouterr().out
    assert "rollout" not in out and f"The default for {classifier_dir}: gradcam." in out
    assert main(["methods", "rollout", "--model", classifier_dir]) == 1
    assert "'rollout' is not defined for" in capsys.readouterr().err
    assert main(["methods", "grad-cam"]) == 1
    assert capsys.readouterr().err.endswith("Did you mean 'gradcam'?\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tensh"], "`target` 'tensh' is not a label of this classifier"),
        (["--method", "nothing"], "`method` 'nothing' does not exist"),
        (["--top_k", "0"], "`top_k` must be a whole number"),
        (["--method", "Grad-CAM"], "`method` 'Grad-CAM' does not exist"),
        (["--method", "mine="], "`method` 'mine=' is not NAME=DIR"),
        (["--method", "rise=head"], "`method` 'rise=head' has the name of a training-free method: rename the head"),
        (["--method", "rise", "--method", "rise"], "`method` names 'rise' twice"),
        (["--method_option", "rise.num_masks=3"], "`method_option` names 'rise', which is not shown: gradcam"),
        (["--layer", "stage9"], "`layer` 'stage9' does not exist"),
        (["--opacity", "2"], "`opacity` must lie in [0, 1]"),
        (["-o", "x.what"], "`output` 'x.what' names no image format"),
        (["-o", "nowhere/x.png"], "`output` 'nowhere/x.png' lies in 'nowhere', which does not exist"),
        (["no*.png"], "`images` 'no*.png' is a pattern that no picture matches"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(classifier_dir, images, tmp_path, capsys, options, message):
    output = tmp_path / "out.png"
    images = [] if options[0].startswith("no") else images[:1]
    assert main(["explain", "--model", classifier_dir, "-o", str(output), *images, *options]) == 1
    error = capsys.readouterr().err
    assert f"hf-explain explain: {message}" in error and "Traceback" not in error
    assert not output.exists()


def test_one_picture_for_two_images_is_refused(classifier_dir, images, capsys):
    assert main(["explain", *images, "--model", classifier_dir, "-o", "x.png"]) == 1
    assert "is one picture for 2 images; give a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", ["--classifier", "c", "--dataset", "d"]),
        ("evaluate", ["--classifier", "c", "--dataset", "d", "--explainers", "gradcam"]),
        ("errors", ["--model", "m", "--dataset", "d"]),
        ("export", ["--model", "m", "--dataset", "d"]),
        ("card", ["head"]),
        ("quickstart", []),
    ],
)
def test_no_folder_is_not_the_working_directory(tmp_path, monkeypatch, capsys, command, options):
    monkeypatch.chdir(tmp_path)
    for empty in ("", " "):
        assert main([command, *options, "-o", empty]) == 1
        message = f"hf-explain {command}: `output_dir` is empty, got {empty!r}: name a folder, or '.' for this one.\n"
        assert capsys.readouterr().err == message
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_commands():
    result = subprocess.run([sys.executable, "-m", "hf_explain.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("quickstart", "train", "explain"):
        assert command in result.stdout


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "OMPI_COMM_WORLD_SIZE": "2"}, False),
        ({"MASTER_ADDR": "10.0.0.1"}, False),
    ],
)
def test_two_processes_asked_for_and_one_started(environment, said, monkeypatch, capsys):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["card", "nowhere", "-o", "cards"]) == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert ("accelerate launch was asked for several processes and started this one alone" in first) == said


@pytest.mark.parametrize("words", [["--num_processes", "2", "--cpu"], ["--num_processes", "1", "--cpu"]])
def test_what_accelerate_launch_sets(words, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    args = launch.launch_command_parser().parse_args([*words, "script.py"])
    args, *_ = launch._validate_launch_command(args)
    _, environment = prepare_simple_launcher_cmd_env(args)
    assert "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment
    assert ("MASTER_ADDR" in environment) == (words[1] == "2")
