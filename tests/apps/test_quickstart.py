"""The quickstart: exact masks, a planted bias of known size, and a run that leaves a page with its own numbers."""

import argparse
import base64
import io
import json
import math
import os
import re
import shlex

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from hf_explain import FrozenClassifier, TTameForSaliency
from hf_explain.apps.command_line import add_options, read_options
from hf_explain.apps.quickstart import data, run, run_quickstart
from hf_explain.apps.quickstart.data import BIASED_LABEL, LABELS, draw, make_dataset, make_datasets
from hf_explain.apps.quickstart.measure import (
    COMPARED,
    HEAD,
    MEASURES,
    RIVAL,
    SEEN_FILLS,
    UNSEEN_FILLS,
    find_verdicts,
    overlap_with,
    ranked,
    sentence,
)
from hf_explain.apps.quickstart.run import format_table
from hf_explain.cli import COMMANDS
from hf_explain.io.html import number
from hf_explain.registry import CONTROLS, default_method


BIASED = LABELS.index(BIASED_LABEL)


def test_dataset_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (make_dataset(12, seed=seed, image_size=32) for seed in (3, 3, 4))
    torch.rand(5)  # the global generator plays no part
    assert first[:]["image"][0].size == (32, 32)
    for column in ("image", "object_mask", "cue_mask"):
        assert _bytes(first, column) == _bytes(again, column)
    assert _bytes(first, "image") != _bytes(other, "image")
    splits = make_datasets(12, 12, seed=3, image_size=32)
    assert not set(_bytes(splits["train"], "image")) & set(_bytes(splits["validation"], "image"))


def _bytes(dataset, column):
    return [cell["bytes"] for cell in dataset.to_dict()[column]]


def test_dataset_decodes_to_what_was_drawn():
    images, labels, objects, cues = draw(9, 1, 48, 0.5, 0.5)
    dataset = make_dataset(9, 1, 48, 0.5, 0.5)
    assert dataset.features["label"].names == list(LABELS)
    assert dataset["label"][:] == labels.tolist()
    for row, image, objects_mask, cue in zip(dataset, images, objects, cues):
        assert row["image"].mode == "RGB" and row["object_mask"].mode == row["cue_mask"].mode == "L"
        assert (np.asarray(row["image"]) == image.permute(1, 2, 0).numpy()).all()
        assert (np.asarray(row["object_mask"]) == 255 * objects_mask.numpy()).all()
        assert (np.asarray(row["cue_mask"]) == 255 * cue.numpy()).all()
        assert row["has_cue"] == bool(cue.any())


def test_classes_are_balanced_and_the_tag_has_the_stated_shares():
    _, labels, _, cues = draw(240, 0, 32, 0.95, 0.0)
    assert (labels.bincount() == 40).all()
    has_cue = cues.flatten(1).any(1)
    assert has_cue[labels == BIASED].sum() == 38 and not has_cue[labels != BIASED].any()
    validation = make_datasets(6, 120, image_size=32)["validation"]
    has_cue, labels = torch.tensor(validation["has_cue"][:]), torch.tensor(validation["label"][:])
    assert has_cue[labels == BIASED].sum() == 10 and has_cue[labels != BIASED].sum() == 25


@pytest.mark.parametrize("soft_edges", [False, True])
def test_masks_are_exact(monkeypatch, soft_edges):
    """Repaint only the object, same scene: only its mask changes, or, edges being soft, up to 3 pixels more."""
    if not soft_edges:
        monkeypatch.setattr(data, "_coverage", lambda distance, radius: (distance <= 0).float()[:, None])
    images, _, objects, cues = draw(24, 2, 96, 1.0, 0.0)

    def repainted(drawing):
        return lambda *frame: [(distance, 1 - colour) for distance, colour in drawing(*frame)]

    monkeypatch.setattr(data, "_OBJECTS", [repainted(drawing) for drawing in data._OBJECTS])
    others, _, same_objects, _ = draw(24, 2, 96, 1.0, 0.0)
    assert (same_objects == objects).all()
    changed = (images != others).any(1)
    reach = torch.nn.functional.max_pool2d(objects[:, None].float(), 7, 1, 3)[:, 0] > 0 if soft_edges else objects
    assert not (changed & ~reach).any()
    assert (changed & objects).sum() >= 0.97 * objects.sum()  # mid-grey pixels repaint to themselves
    assert not (objects & cues).any()
    area = objects.flatten(1).float().mean(1)
    assert area.min() > 0.01 and area.max() < 0.35


def test_masks_lie_where_things_are_drawn():
    """A berry is a disc of 0.72 radii: its pixels have that area and that centre."""
    centre, radius = torch.tensor([[40.3, 50.0]]), torch.tensor([20.0])
    image = torch.zeros(1, 3, 96, 96)
    place, side, chance = (centre, radius, torch.tensor([0.7])), torch.ones(1, 1, 1), torch.rand(1, 4)
    covered = data._paint(image, data._LITTER, torch.tensor([data._LITTER.index(data._berry)]), place, side, chance)[0]
    assert covered.sum().item() == pytest.approx(math.pi * 14.4**2, rel=0.02)
    rows, columns = covered.nonzero().double().add(0.5).mean(0).tolist()
    assert (columns, rows) == pytest.approx((40.3, 50.0), abs=0.2)
    assert image[0, :, ~covered].max() < 0.5  # the soft edge alone


def test_objects_lie_inside_their_images():
    _, _, objects, _ = draw(60, 0, 96, 0.0, 0.0)
    border = torch.cat([objects[:, 0], objects[:, -1], objects[:, :, 0], objects[:, :, -1]], dim=1)
    assert border.float().mean() < 0.01


def test_tag_is_drawn_where_its_mask_says():
    images, _, _, cues = draw(30, 0, 96, 1.0, 1.0)
    plain, _, _, none = draw(30, 0, 96, 0.0, 0.0)
    assert not none.any()
    changed = (images != plain).any(1)
    assert changed.any() and not (changed & ~cues).any()
    assert (changed & cues).sum() > 0.99 * cues.sum()
    assert (cues.flatten(1).sum(1) <= round(96 * 0.11) * round(96 * 0.23)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 5}, "`num_images` must be at least 6, one for each class, got 5"),
        ({"num_images": 6, "image_size": 16}, "`image_size` must be at least 32 pixels, got 16"),
        ({"num_images": 6, "cue_rate": 1.5}, r"`cue_rate` is a share .* \[0, 1\], got 1.5"),
        ({"num_images": 6, "other_cue_rate": -1}, r"`other_cue_rate` is a share"),
    ],
)
def test_bad_sizes_get_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(**arguments)


def test_png_cells_are_real_files():
    cell = make_dataset(6, image_size=32).to_dict()["image"][0]
    assert Image.open(io.BytesIO(cell["bytes"])).format == "PNG"


# --------------------------------------------------------------------------------------------------------- the numbers


def test_overlap_by_hand():
    saliency = torch.tensor([[[0.4, 0.3], [0.2, 0.1]], [[0.1, 0.2], [0.3, 0.4]]])
    masks = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 1]]]).bool()
    # two most salient of the first are its top row, one of which is on the object
    assert overlap_with(saliency, masks).tolist() == [0.5, 1.0]
    assert overlap_with(saliency, torch.zeros_like(masks)).tolist() == [0.0, 0.0]


def test_perfect_and_random_maps_have_the_overlap_they_must():
    _, _, objects, _ = draw(60, 0, 48, 0.0, 0.0)
    assert overlap_with(objects.float(), objects).tolist() == [1.0] * 60
    noise = torch.rand(objects.shape, generator=torch.Generator().manual_seed(0))
    area = objects.double().mean((1, 2))
    assert overlap_with(noise, objects).mean().item() == pytest.approx(area.mean().item(), abs=0.01)


@pytest.mark.parametrize(
    ("lead", "verdict", "words"),
    [
        (5.0, "ahead", "is ahead of the best training-free method, LayerCAM: 5.0 (95 % interval 5.0 to 5.0)"),
        (-5.0, "behind", "is behind the best training-free method, LayerCAM: \N{MINUS SIGN}5.0"),
        (0.0, "level", "does not differ clearly from the best training-free method, LayerCAM: 0.0"),
    ],
)
def test_verdicts_name_the_best_rival_and_say_who_leads(lead, verdict, words):
    means = {HEAD: 60.0 + lead, RIVAL: 50.0, "LayerCAM": 60.0, "centre": 20.0, "random": 10.0}
    scores = {name: {key: torch.full((9,), mean) for key in MEASURES} for name, mean in means.items()}
    rows = {name: {"kind": COMPARED[name][0], **dict.fromkeys(MEASURES, mean)} for name, mean in means.items()}
    found = find_verdicts(rows, scores, seed=0)
    assert [(one["measure"], one["kind"]) for one in found] == [
        (key, kind) for key in MEASURES for kind in ("training-free method", "control")
    ]
    assert {one["verdict"] for one in found[::2]} == {verdict} and {one["verdict"] for one in found[1::2]} == {"ahead"}
    assert sentence(found[0]).startswith(f"On the object: {HEAD} {words}")
    assert found[1]["against"] == "centre" and ranked(rows, "removal_seen")[-2:] == ["centre", "random"]


# ------------------------------------------------------------------------------------------------------------- the run

TINY = {"num_train": 48, "num_validation": 48, "image_size": 48, "classifier_epochs": 1, "head_epochs": 1}
TINY |= {"num_tested": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("quickstart") / "out"
    return output_dir, run_quickstart(output_dir, seed=1, disable_tqdm=True, **TINY)


def test_run_leaves_a_whole_folder_and_nothing_else(finished):
    output_dir, results = finished
    assert os.listdir(output_dir.parent) == ["out"]
    pictures = {"saliency.png", "bias.png", "removal.png", "overlap.png", "removed_first.png", "removed_last.png"}
    assert set(os.listdir(output_dir)) == {"classifier", "head", "data", "index.html", "results.json"} | pictures
    assert json.loads((output_dir / "results.json").read_text()) == results
    written = datasets.load_dataset(str(output_dir / "data"), split="validation")
    assert written["label"][:] == make_datasets(48, 48, 1, 48)["validation"]["label"][:]
    for name in pictures:
        with Image.open(output_dir / name) as picture:
            assert picture.mode == "RGB" and picture.width >= 700


def test_results_hold_numbers_protocol_seed_versions_and_timings(finished):
    _, results = finished
    assert results["seed"] == 1 and results["settings"]["image_size"] == 48
    assert {"torch", "transformers", "datasets", "python"} <= set(results["versions"])
    assert set(results["seconds"]) == {"data", "classifier", "head", "explain", "measure", "pictures"}
    protocol = results["protocol"]
    assert protocol["auc_d"]["score"] == "agreement" and protocol["auc_d"]["fill"] == "black"
    assert protocol["auc_d"]["num_examples"] == TINY["num_tested"]
    rows = results["explainers"]
    assert list(rows) == list(COMPARED)
    for row in rows.values():
        for key in MEASURES:
            low, high = row[f"{key}_interval"]
            assert low <= row[key] <= high
        assert row["auc_d"] == pytest.approx(row["negative_auc"] - row["positive_auc"])
        assert row["auc_d"] == row["fills"]["black"]
        assert row["removal_seen"] == pytest.approx(sum(row["fills"][fill] for fill in SEEN_FILLS) / 3)
        assert row["removal_unseen"] == row["fills"]["photo"]
        assert 0 <= row["object_overlap"] <= 100 and set(row["AD"]) == {"100", "50", "15"}
    assert {name for name, row in rows.items() if row["kind"] == "control"} == set(CONTROLS)
    assert set(results["bias"]["accuracy"]) >= {"class with its tag", "class without its tag"}


def test_page_shows_the_numbers_of_the_json_and_needs_nothing_beside_it(finished):
    output_dir, results = finished
    page = (output_dir / "index.html").read_text()
    for row in results["explainers"].values():
        for value in (*(row[key] for key in MEASURES), *row["fills"].values()):
            assert number(value) in page
    for value in results["bias"]["accuracy"].values():
        assert number(value) in page
    for verdict in results["verdicts"]:
        assert sentence(verdict) in page
    assert 'name="viewport"' in page and "prefers-color-scheme" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6 and all(source.startswith("data:image/png;base64,") for source in sources)
    first = base64.b64decode(sources[0].partition(",")[2])
    assert first == (output_dir / "saliency.png").read_bytes()
    assert "http" not in page and "$" not in page


def test_table_has_one_line_per_explainer_the_controls_last_and_one_per_verdict(finished):
    _, results = finished
    lines = format_table(results).splitlines()
    rows = results["explainers"]
    found = [line for line in lines if line.partition(" (")[0] in rows]
    assert [line.partition(" (")[0] for line in found] == ranked(rows, "object_overlap")
    for line in found:
        row = rows[line.partition(" (")[0]]
        assert f"({row['kind']})" in line and all(f"{row[key]:.1f} ±" in line for key in MEASURES)
    assert [line for line in lines if "95 % interval" in line] == [sentence(one) for one in results["verdicts"]]


def test_next_steps_are_commands_that_exist(finished, capsys):
    _, results = finished
    train, explain = results["next"]["own"].splitlines()
    for line in (train, explain, results["next"]["study"]):
        program, name, *words = shlex.split(line)
        parser = argparse.ArgumentParser()
        add_options(parser, COMMANDS[name].options)
        settings = read_options(COMMANDS[name].options, parser.parse_args(words))
        assert program == "hf-explain" and settings is not None
    assert "--head ttame --preset ranking" in train and "--method gradcam" in explain


def test_saved_models_load_again_from_the_final_place(finished):
    output_dir, _ = finished
    classifier = AutoModelForImageClassification.from_pretrained(output_dir / "classifier")
    assert classifier.config.id2label == dict(enumerate(LABELS))
    head = TTameForSaliency.from_pretrained(output_dir / "head")
    assert head.config.backbone == str(output_dir / "classifier")
    assert head.config.ranking_weight == 1
    assert set(SEEN_FILLS) <= set(head.config.seen_fills) and not set(UNSEEN_FILLS) & set(head.config.seen_fills)
    # what the page says of its rival
    assert default_method(FrozenClassifier(classifier)) == (COMPARED[RIVAL][1], {})
    (result,) = pipeline("saliency", model=str(output_dir / "head"))(Image.new("RGB", (70, 50), "red"))
    assert result["label"] in LABELS and result["saliency"].size == (70, 50)


def test_second_run_replaces_the_first_and_gives_the_same_numbers(finished):
    output_dir, results = finished
    (output_dir / "stale.txt").write_text("of the first run")
    again = run_quickstart(output_dir, seed=1, disable_tqdm=True, **TINY)
    assert os.listdir(output_dir.parent) == ["out"] and not (output_dir / "stale.txt").exists()
    timing = {"seconds", "cpu_seconds", "peak_memory_gb"}
    assert {key: value for key, value in again.items() if key not in timing} == {
        key: value for key, value in results.items() if key not in timing
    }


def test_foreign_folders_and_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.json").write_text('{"made_by": "me"}')
    (tmp_path / "file").write_text("text")
    with pytest.raises(FileExistsError, match="mine' holds something other than a quickstart; name a new folder"):
        run_quickstart(tmp_path / "mine", **TINY)
    with pytest.raises(FileExistsError, match="file' is not a folder"):
        run_quickstart(tmp_path / "file", **TINY)
    assert sorted(os.listdir(tmp_path)) == ["file", "mine"] and os.listdir(tmp_path / "mine") == ["results.json"]


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no data today")

    monkeypatch.setattr(run, "make_datasets", fail)
    with pytest.raises(RuntimeError, match="no data today"):
        run_quickstart(tmp_path / "out", **TINY)
    assert os.listdir(tmp_path) == []
