"""What the version before the rooms wrote still loads, resumes and reads: see `legacy/write_legacy.py`."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, pipeline

from hf_explain import AutoModelForSaliency, FrozenClassifier, LCamForSaliency, SaliencyEvaluator
from hf_explain.apps.export import export_saliency
from hf_explain.apps.export_inputs import ExportArguments
from hf_explain.cli import main
from hf_explain.io.datasets import load_image_dataset
from hf_explain.publish.cards import build_model_card
from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.loop import train


WRITTEN = Path(__file__).with_name("legacy")
HEADS = ("lcam-fm", "lcam-img", "ttame", "ttame-ranking", "scan", "ttame-self-contained")


@pytest.fixture
def legacy(tmp_path):
    """A copy of all of it, to be written to."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "legacy"))


@pytest.fixture(scope="module")
def pictures():
    return load_image_dataset(WRITTEN / "pictures")


@pytest.fixture(scope="module")
def expected():
    return safetensors.torch.load_file(WRITTEN / "maps.safetensors")


def read(path):
    return json.loads(path.read_text())


def assert_as_before(found, before, but=()):
    """Every key and number of then is there; what a result has gained since may stand beside it."""
    if isinstance(before, dict):
        for name in before.keys() - set(but):
            assert name in found, name
            assert_as_before(found[name], before[name], but)
    elif isinstance(before, list):
        assert len(found) == len(before)
        for one, other in zip(found, before, strict=True):
            assert_as_before(one, other, but)
    elif isinstance(before, float):
        assert found == pytest.approx(before, rel=1e-5, abs=1e-6)
    else:
        assert found == before


@pytest.mark.parametrize("name", HEADS)
def test_heads_load_and_explain_as_before(name, pictures, expected):
    head = AutoModelForSaliency.from_pretrained(WRITTEN / name)
    pixel_values = head.backbone.image_processor(pictures["image"][:4], return_tensors="pt")["pixel_values"]
    output = head(pixel_values, target=[0, 2, 1, 0])
    torch.testing.assert_close(output.saliency, expected[f"{name}.saliency"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.logits, expected[f"{name}.logits"], rtol=1e-5, atol=1e-6)


def test_pushed_code_finds_its_names():
    """The repository of a head pushed then has a stub that imports two classes, and `auto_map` names it."""
    head = AutoModel.from_pretrained(WRITTEN / "ttame-self-contained", trust_remote_code=True)
    assert AutoConfig.from_pretrained(WRITTEN / "ttame-self-contained").model_type == "ttame"
    assert head.backbone.is_transformer and "modeling_hf_explain" in head.config.auto_map["AutoModel"]
    names = {}
    exec((WRITTEN / "ttame-self-contained/modeling_hf_explain.py").read_text(), names)
    assert isinstance(head, names["TTameForSaliency"])


def test_pipeline_draws_as_before(pictures, expected):
    result = pipeline("saliency", model=str(WRITTEN / "lcam-img"))(pictures[0]["image"], target="cat")[0]
    np.testing.assert_allclose(result["saliency_map"], expected["pipeline.map"], rtol=1e-5, atol=1e-6)
    assert result["score"] == pytest.approx(expected["pipeline.score"].item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_training_goes_on_to_the_same_weights(kind, legacy, caplog):
    directory = legacy / f"training-{kind}"
    before = read(directory / "training_record.json")
    weights = safetensors.torch.load_file(directory / "model.safetensors")
    for file in ("model.safetensors", "config.json", "preprocessor_config.json", "training_record.json"):
        (directory / file).unlink()
    head = LCamForSaliency.from_classifier(FrozenClassifier.from_pretrained(legacy / "classifier"), variant="img")
    pictures = load_image_dataset(legacy / "pictures", streaming=before["streaming"])
    args = ExplainerTrainingArguments(
        **before["arguments"], output_dir=directory, resume_from_checkpoint=str(directory / "checkpoint-3")
    )
    record = train(head, pictures, pictures if before["eval_split"] else None, args=args)
    (line,) = [entry.getMessage() for entry in caplog.records if "compared" in entry.getMessage()]
    assert "whether this run has the same classifier, head, image processor and data as the one that wrote" in line
    found = safetensors.torch.load_file(directory / "model.safetensors")
    assert found.keys() == weights.keys()
    for name in weights:
        torch.testing.assert_close(found[name], weights[name], rtol=1e-5, atol=1e-6)
    described = ("classifier", "classifier_revision", "head", "preset", "head_options", "dataset", "dataset_config",
                 "dataset_revision", "train_split", "eval_split")  # fmt: skip
    other = ("seconds", "seconds_waiting_for_data", "platform", "cpu_count", "device", "versions")
    renamed = ("use_cpu", "disable_tqdm")  # read above, written as `device` and `progress`
    assert_as_before(record, before, (*described, *other, *renamed))
    # the steps before the checkpoint are in their log, and their time is counted
    assert (
        len(record["losses"]) == 5
        and record["seconds"] > read(directory / "checkpoint-3/trainer_state.json")["elapsed"]
    )


def test_card_of_an_older_record_and_comparison():
    before = ModelCard.load(WRITTEN / "card.md")
    card = build_model_card(
        WRITTEN / "lcam-img",
        repo_id="me/lcam-img",
        evaluation=WRITTEN / "comparison/results.json",
        evaluation_dataset="pictures (me/pictures)",
    )
    measured, expected = (
        [(one.metric_name, one.metric_value, one.dataset_name, one.dataset_split) for one in each.data.eval_results]
        for each in (card, before)
    )
    # the main number of each metric; all of them stood there once
    assert [one[0] for one in measured] == ["AUC-D", "Average drop at 100 %", "Win rate"]
    assert set(measured) <= set(expected)
    # the tables of the recipe and of the results, row by row
    rows = [line for line in str(before).splitlines() if line.startswith("| ")]
    assert len(rows) > 40 and [row for row in rows if row not in str(card)] == []


def test_evaluation_goes_on_from_its_partial_results(legacy, pictures):
    folder = legacy / "comparison/explainers/lcam"
    before = read(folder / "result.json")
    for name in ("shard-000002.json", "result.json"):
        (folder / name).unlink()
    # a partial result that is read, and not measured again, says what it cost
    first = read(folder / "shard-000000.json")
    first["cost"]["explain"][1] += 1200
    (folder / "shard-000000.json").write_text(json.dumps(first))
    after = SaliencyEvaluator().compute(
        AutoModelForSaliency.from_pretrained(legacy / "lcam-img"),
        pictures,
        ["auc_d", "average_drop"],
        metric_options={"auc_d": {"steps": 4}},
        shard_size=4,
        batch_size=4,
        dataset_info={"name": "pictures", "split": "train", "config": None, "revision": None},
        output_dir=folder,
        progress=False,
    )
    assert after.pop("forward_passes_per_image") == before.pop("forward_passes_per_image") + 100
    assert_as_before(after, before, ("seconds_per_image", "versions", "device"))
    assert (folder / "result.json").is_file()


def test_errors_are_those_of_before(legacy, capsys):
    before = read(legacy / "errors/errors.json")
    words = ["errors", "--model", str(legacy / "lcam-img"), "--dataset", str(legacy / "pictures"), "--split", "train",
             "--min_images", "2", "--pictures", "0", "--no_progress", "-o", str(legacy / "errors")]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    assert_as_before(read(legacy / "errors/errors.json"), before, ("versions", "device"))


def test_export_goes_on_with_the_shard_that_is_missing(legacy):
    folder = legacy / "export"
    files = [folder / f"data/train-00000{shard}.parquet" for shard in (0, 1)]
    kept, before = files[0].read_bytes(), datasets.Dataset.from_parquet(str(files[1]), cache_dir=legacy / "cache")
    report = read(folder / "export_report.json")
    for file in (files[1], folder / "export_report.json"):
        file.unlink()
    args = ExportArguments(model=str(legacy / "lcam-img"), dataset=str(legacy / "pictures"), top_k=2, shard_size=8,
                           use_cpu=True, disable_tqdm=True)  # fmt: skip
    assert export_saliency(folder, args) == report
    assert files[0].read_bytes() == kept
    after = datasets.Dataset.from_parquet(str(files[1]), cache_dir=legacy / "cache-after")
    assert after.features == before.features
    for found, row in zip(after, before, strict=True):
        assert (found["image_id"], found["target"]) == (row["image_id"], row["target"])
        assert found["score"] == pytest.approx(row["score"], rel=1e-5)
        np.testing.assert_allclose(np.asarray(found["saliency"]), np.asarray(row["saliency"]), atol=1)
