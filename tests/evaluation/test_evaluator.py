"""The evaluator: equal to measuring by hand, whatever the batches, shards, kills, streams and processes."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import datasets
import evaluate
import evaluation_worker
import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import save_classifier, tiny_classifier, tiny_model, tiny_processor
from testing_processes import launch
from testing_training import parquet_shards, picture_dataset
from transformers import pipeline

import hf_explain
from hf_explain import FrozenClassifier, LCamForSaliency, SaliencyEvaluator
from hf_explain.classifiers.precision import passes_in
from hf_explain.evaluation import sweep
from hf_explain.evaluation.explainer import PassCounter
from hf_explain.evaluation.results import read_evaluation
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.image_processor import to_pixel_values
from hf_explain.io.images import load_rgb
from hf_explain.metrics import load as load_metric
from hf_explain.metrics.functional import auc_d, average_drop
from hf_explain.registry import METHOD_ENTRIES


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_classifier("resnet", tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def classifier(directory):
    return FrozenClassifier.from_pretrained(directory)


@pytest.fixture(scope="module")
def data():
    return picture_dataset(7)


def compute(model, data, metric="auc_d", **options):
    return SaliencyEvaluator().compute(model, data, metric, **{"progress": False, "method": "gradcam", **options})


def numbers(result):
    """A result without what may differ between two runs of it: time, and passes that a batch shares."""
    result = copy.deepcopy({name: value for name, value in result.items() if name != "seconds_per_image"})
    for value in result.values():
        if isinstance(value, dict):
            value.pop("seconds_per_image", None)
            value.pop("forward_passes_per_image", None)
    return result


def assert_close(found, expected):
    """Equal structure, numbers to what float32 leaves of them."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_close(found[name], expected[name])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_close(one, other)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    else:
        assert found == expected


# --------------------------------------------------------------------------------------------------------- the numbers


def by_hand(classifier, data, explain, target=None):
    images = [picture.convert("RGB") for picture in data["image"]]
    pixel_values = classifier.image_processor(images=images, return_tensors="pt")["pixel_values"]
    output = explain(pixel_values, target)
    common = {
        "image_ids": torch.arange(len(images)),
        "image_mean": classifier.image_mean,
        "image_std": classifier.image_std,
    }
    perturbed = auc_d(classifier, pixel_values, output.saliency, score="agreement", **common,
                      fractions=[step / 10 for step in range(11)])  # fmt: skip
    dropped = average_drop(classifier, pixel_values, output.saliency, target=output.target, **common)
    return perturbed.auc_d.mean().item(), dropped.average_drop.tolist()


def test_method_equals_measuring_by_hand(classifier, data):
    result = compute(classifier, data, ["auc_d", "average_drop"], batch_size=3)
    expected, drops = by_hand(classifier, data, lambda x, target: hf_explain.METHODS["gradcam"](classifier, x, target))
    assert result["auc_d"]["auc_d"] == pytest.approx(expected, abs=1e-3)
    found = [result["average_drop"][f"average_drop_{percent}"] for percent in (100, 50, 15)]
    assert found == pytest.approx(drops, rel=1e-4, abs=1e-4)
    assert result["num_images"] == 7 and result["auc_d"]["num_images"] == 7
    assert result["auc_d"]["protocol"]["explained"] == "prediction"
    assert result["explainer"]["explainer"] == "gradcam" and result["dataset"]["num_rows"] == 7
    assert {"torch", "transformers", "evaluate", "python"} <= result["versions"].keys()


def test_head_pipeline_and_directory_agree(classifier, data, tmp_path, directory):
    torch.manual_seed(0)
    head = LCamForSaliency.from_classifier(directory, variant="img").train()
    result = compute(head, data, method=None, target="label")
    assert head.training
    head.eval()
    expected, _ = by_hand(classifier, data, lambda x, target: head(x, target), target=torch.tensor(data["label"]))
    assert result["auc_d"]["auc_d"] == pytest.approx(expected, abs=1e-3)
    assert result["auc_d"]["protocol"]["explained"] == "label"
    head.save_pretrained(tmp_path / "head")
    for model in (str(tmp_path / "head"), pipeline("saliency", model=str(tmp_path / "head"))):
        again = compute(model, data, method=None, target="label")
        assert_close(numbers(again)["auc_d"], numbers(result)["auc_d"])
        assert again["explainer"]["head_fingerprint"] == result["explainer"]["head_fingerprint"]
    assert again["explainer"]["explainer"] == "lcam" and again["explainer"]["head"] == "head"
    by_method = pipeline("saliency", model=str(tmp_path / "head"), method="layercam", layer="stage2")
    found = compute(by_method, data, method=None)
    assert found["explainer"]["method_options"] == {"layer": "stage2"}
    options = {"method": "layercam", "method_options": {"layer": "stage2"}}
    assert_close(numbers(found)["auc_d"], numbers(compute(classifier, data, **options))["auc_d"])


def test_the_second_class(classifier, data):
    images = [picture.convert("RGB") for picture in data["image"]]
    second = classifier(classifier.image_processor(images, return_tensors="pt")["pixel_values"]).topk(2).indices[:, 1]
    result = compute(classifier, data, ["average_drop"], target="second", batch_size=3)
    _, drops = by_hand(
        classifier, data, lambda x, target: hf_explain.METHODS["gradcam"](classifier, x, target), target=second
    )
    found = [result["average_drop"][f"average_drop_{percent}"] for percent in (100, 50, 15)]
    assert found == pytest.approx(drops, rel=1e-4, abs=1e-4)
    assert result["average_drop"]["protocol"]["explained"] == "second"
    with pytest.raises(ValueError, match="`target` is 'second', but auc_d asks whether the first class stays"):
        compute(classifier, data, ["auc_d"], target="second")
    assert compute(classifier, data, ["auc_d"], target="second", metric_options={"auc_d": {"score": "probability"}})
    one = FrozenClassifier(tiny_model("resnet", num_labels=1), image_processor=classifier.image_processor)
    with pytest.raises(ValueError, match="`target` is 'second', but the classifier has one class"):
        compute(one, data, ["average_drop"], target="second")


def test_evaluate_knows_the_task(classifier, data):
    evaluator = evaluate.evaluator("saliency")
    assert isinstance(evaluator, SaliencyEvaluator)
    result = evaluator.compute(model_or_pipeline=classifier, data=data, method="centre", progress=False)
    assert "auc_d" in result["auc_d"]


def test_batch_size_changes_nothing(classifier, data):
    options = {"method": "random", "metric": ["auc_d", "average_drop"], "seed": 3}
    expected = numbers(compute(classifier, data, batch_size=7, **options))
    for batch_size in (1, 3):
        assert_close(numbers(compute(classifier, data, batch_size=batch_size, **options)), expected)
    other = compute(classifier, data, batch_size=7, **{**options, "seed": 4})
    assert other["average_drop"]["average_drop"] != expected["average_drop"]["average_drop"]


def test_forward_passes_are_counted(classifier, data):
    result = compute(classifier, data, method="rise", method_options={"num_masks": 5})
    assert result["forward_passes_per_image"] == 6 and result["tail_passes_per_image"] == 0
    result = compute(classifier, data, method="gradcam", metric="average_drop")
    assert result["forward_passes_per_image"] == 1 and result["tail_passes_per_image"] == 1
    assert result["average_drop"]["forward_passes_per_image"] == 3  # one per percentage, the image's logits reused
    with PassCounter(classifier) as counter:
        pixel_values = torch.zeros(2, 3, 64, 64)
        classifier(pixel_values)
        classifier.forward_from_features(classifier.features(pixel_values, ["stage1"]))
    assert (counter.full, counter.tail) == (4, 2)
    classifier(pixel_values)
    assert (counter.full, counter.tail) == (4, 2)


def test_accuracy_reads_labels_and_presets_are_taken(classifier, data):
    result = compute(classifier, data, presets={"auc_d": "chefer"}, metric_options={"auc_d": {"steps": 3}})
    assert result["auc_d"]["protocol"]["score"] == "accuracy"
    assert result["auc_d"]["protocol"]["preset"] == "chefer" and len(result["auc_d"]["positive_curve"]) == 4


def test_columns_are_per_image(classifier, data):
    columns = compute(classifier, data, return_columns=True, max_examples=5)["columns"]
    assert columns["image_ids"] == [0, 1, 2, 3, 4] and len(columns["auc_d/auc_d"]) == 5
    assert columns["target"] == columns["prediction"]


def test_a_metric_in_several_ways(classifier, data, tmp_path):
    transformer = save_classifier("vit", tmp_path / "vit")
    metrics = ["auc_d", "auc_d@patch", "average_drop@patch"]
    result = compute(transformer, data, metrics, metric_options={"auc_d@patch": {"steps": 4}})
    pixel, patch = result["auc_d"], result["auc_d@patch"]
    assert (pixel["protocol"]["grid"], patch["protocol"]["grid"]) == ("pixel", "patch")
    assert pixel["protocol"]["preset"] == "default" and patch["protocol"]["preset"] == "patch"
    assert patch["protocol"]["cells"] == [4, 4] and len(patch["positive_curve"]) == 5 < len(pixel["positive_curve"])
    alone = compute(transformer, data, presets={"auc_d": "patch"}, metric_options={"auc_d": {"steps": 4}})["auc_d"]
    assert alone["auc_d"] == pytest.approx(patch["auc_d"])
    comparison = read_evaluation(result)
    headings = [column.number.heading_of(column.key) for column in comparison.columns()]
    assert headings[:4] == ["AUC-D", "positive AUC", "negative AUC", "AUC-D (patch)"]
    with pytest.raises(ValueError, match="in patches, .* which ResNetForImageClassification does not"):
        compute(classifier, data, metrics)
    with pytest.raises(ValueError, match="'auc_d@chefer' names its preset; 'rise' cannot be one as well"):
        compute(classifier, data, "auc_d@chefer", presets={"auc_d@chefer": "rise"})
    with pytest.raises(ValueError, match="`config_name` 'x' is not a preset of auc_d; it has: default, chefer"):
        compute(classifier, data, "auc_d@x")


def test_fills_of_the_heads_stand_apart_whatever_the_batches(data, tmp_path):
    classifier = FrozenClassifier.from_pretrained(save_classifier("vit", tmp_path, seed=2))  # it knows two classes
    torch.manual_seed(0)
    head = LCamForSaliency.from_classifier(classifier, variant="img", mask_fills=["blur", "mean"])
    options = {"metric": "auc_d_fills@all", "metric_options": {"auc_d_fills@all": {"steps": 3}}, "method": None}
    whole = numbers(compute(head, data, **options, return_columns=True))
    found = whole["auc_d_fills@all"]
    assert found["protocol"]["seen_fills"] == found["protocol"]["trained_with"] == ["blur", "mean"]
    seen = [found[f"auc_d_fill_{fill}"] for fill in ("blur", "mean")]
    assert found["auc_d_fills_seen"] == pytest.approx(sum(seen) / 2) and "auc_d_fills_unseen" in found
    assert len(whole["columns"]["auc_d_fills@all/auc_d_fill_photo"]) == 7
    unseen = whole["columns"]["auc_d_fills@all/auc_d_fills_unseen"]  # of each image, so that explainers can be paired
    assert len(unseen) == 7 and found["auc_d_fills_unseen"] == pytest.approx(sum(unseen) / 7)
    for batch_size in (1, 3):
        assert_close(numbers(compute(head, data, **options, return_columns=True, batch_size=batch_size)), whole)
    fewer = numbers(
        compute(head, data, **options, return_columns=True, max_examples=3)
    )  # the photographs are the same
    for name, column in fewer["columns"].items():
        assert column == pytest.approx(whole["columns"][name][:3]), name
    features = LCamForSaliency.from_classifier(classifier, variant="fm")
    assert (head.config.seen_fills, features.config.seen_fills) == (["blur", "mean"], [])
    assert LCamForSaliency.from_classifier(classifier, mask_space="normalized").config.seen_fills == ["mean"]


def test_ground_truth_whatever_the_batches(tmp_path):
    classifier = FrozenClassifier.from_pretrained(save_classifier("convnext", tmp_path))
    pictures = picture_dataset(12)
    seen = compute(classifier, pictures, metric_options={"auc_d": {"steps": 1}}, return_columns=True)["columns"]
    names = list(classifier.id2label.values())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": pictures["image"], "label": seen["prediction"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    options = {"metric": ["grid_pointing", "single_deletion"], "return_columns": True}
    with pytest.raises(
        ValueError, match="right about none of the photographs .* softmax above 0.95: lower `confidence`"
    ):
        compute(classifier, data, **options)
    classifier.model.classifier.weight.data.mul_(1000)  # now it is sure of what it sees
    classifier.model.classifier.bias.data.mul_(1000)
    whole = numbers(compute(classifier, data, **options, max_examples=6))
    found = whole["grid_pointing"]
    assert found["num_images"] == len(whole["columns"]["grid_pointing/grid_pointing"]) == 6
    assert found["protocol"]["candidates"] == 12 and 0 < found["grid_pointing"] < 100  # of all, measured or not
    assert found["grid_pointing_chance"] == 25 and whole["single_deletion"]["protocol"]["in_domain"] is False
    for batch_size in (1, 4):
        assert_close(numbers(compute(classifier, data, **options, max_examples=6, batch_size=batch_size)), whole)
    centre = compute(classifier, data, "grid_pointing", method="centre")["grid_pointing"]
    assert centre["grid_pointing"] == pytest.approx(25)
    with pytest.raises(ValueError, match="no column of labels|label"):
        compute(classifier, data.remove_columns("label"), "grid_pointing")


def test_loaded_metric_is_taken(classifier, data):
    metric = evaluate.load(hf_explain.metrics.path("auc_d"), "rise")
    result = compute(classifier, data, metric)
    assert result["auc_d"]["protocol"]["preset"] == "rise"


def test_masks_follow_the_crop(tmp_path):
    """ConvNeXt's processor crops: a map that is right on what is seen must hit the mask of the original."""
    classifier = tiny_classifier("resnet")
    classifier.image_processor = tiny_processor("resnet", tmp_path)
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[40:50, 55:65] = 255
    rows = [{"image": Image.new("RGB", (120, 90)), "mask": Image.fromarray(mask)}]
    result = compute(classifier, rows, "pointing", mask_column="mask", method="centre")
    assert result["pointing"]["pointing"] == 100
    rows[0]["mask"] = Image.fromarray(np.roll(mask, 40, axis=1))
    assert compute(classifier, rows, "pointing", mask_column="mask", method="centre")["pointing"]["pointing"] == 0
    with pytest.raises(ValueError, match="needs masks of the object; name their column with `mask_column`"):
        compute(classifier, rows, "pointing")
    rows[0]["mask"] = Image.fromarray(mask[1:])
    with pytest.raises(ValueError, match=r"image 0 of `data` cannot be used: its mask is \(89, 120\)"):
        compute(classifier, rows, "pointing", mask_column="mask")


def test_images_of_different_sizes(classifier, tmp_path):
    """The processor brings them to one size; greyscale, palette and alpha pictures are pictures too."""
    modes = [("L", (40, 90)), ("P", (64, 64)), ("RGBA", (200, 50)), ("RGB", (33, 41))]
    rows = [{"image": Image.effect_noise(size, 60).convert(mode)} for mode, size in modes]
    assert compute(classifier, rows)["num_images"] == 4


# ------------------------------------------------------------------------------------------- streams, shards and kills


def test_stream_equals_map_style(classifier, tmp_path):
    shards = parquet_shards(tmp_path, 7, 2)
    expected = numbers(compute(classifier, load_image_dataset(shards), method="random"))
    stream = load_image_dataset(shards, streaming=True)
    for options in ({}, {"shard_size": 2, "output_dir": tmp_path / "out"}, {"shard_size": 3}):
        found = numbers(compute(classifier, stream, method="random", **options))
        assert_close(found["auc_d"], expected["auc_d"])
    assert compute(classifier, stream, max_examples=3)["num_images"] == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_killed_run_continues(classifier, data, tmp_path, monkeypatch, streaming):
    source = data.to_iterable_dataset() if streaming else data
    options = {"method": "random", "shard_size": 2, "batch_size": 2, "return_columns": True}
    expected = compute(classifier, source, output_dir=tmp_path / "whole", **options)
    measured = []
    measure = sweep._measure_batch

    def killed(batch, *args):
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.extend(example.index for example in batch.examples)
        if len(measured) > 4 and not resumed:
            raise KeyboardInterrupt
        return measure(batch, *args)

    resumed = False
    monkeypatch.setattr(sweep, "_measure_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        compute(classifier, source, output_dir=tmp_path / "killed", **options)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "settings.json", "shard-000000.json", "shard-000001.json"
    ]  # fmt: skip
    measured.clear()
    resumed = True
    found = compute(classifier, source, output_dir=tmp_path / "killed", **options)
    assert measured == [4, 5, 6]  # what was done is not done again
    assert numbers(found) == numbers(expected)
    assert json.loads((tmp_path / "killed/result.json").read_text())["auc_d"] == found["auc_d"]
    measured.clear()
    again = compute(classifier, source, output_dir=tmp_path / "killed", **options)
    assert not measured and numbers(again) == numbers(expected)


def test_other_settings_are_not_mixed(classifier, data, tmp_path):
    compute(classifier, data, output_dir=tmp_path / "out")
    for change, name in (
        ({"seed": 1}, "seed=0, this one has 1"),
        ({"target": "label"}, "columns="),
        ({"metric": "average_drop"}, "metrics="),
        ({"method": "layercam"}, "explainer="),
        ({"max_examples": 3}, "max_examples=None, this one has 3"),
        ({"data": picture_dataset(8)}, "dataset="),
        ({"model": tiny_classifier("vit")}, "explainer="),
    ):
        arguments = {"model": classifier, "data": data, **change}
        if arguments["model"] is not classifier:
            arguments["model"].image_processor = classifier.image_processor
        with pytest.raises(ValueError, match="holds an evaluation with .*choose another output_dir") as error:
            compute(**arguments, output_dir=tmp_path / "out")
        assert name in str(error.value)
    (tmp_path / "out/shard-000000.json").write_text("{")
    with pytest.raises(ValueError, match="shard-000000.json' is damaged; delete it"):
        compute(classifier, data, output_dir=tmp_path / "out")
    for content, reason in (("{", "is not valid JSON"), ("[]", "must hold a JSON object, got list")):
        (tmp_path / "out/settings.json").write_text(content)
        with pytest.raises(
            ValueError, match=f"out' holds an evaluation whose settings cannot be read .*{reason}.*cho"
        ):
            compute(classifier, data, output_dir=tmp_path / "out")


@pytest.mark.parametrize("streaming", [False, True])
def test_other_data_of_the_same_ends_is_not_mixed_in(classifier, tmp_path, streaming):
    def source(*indices):
        data = picture_dataset(8).select(indices)
        return data.to_iterable_dataset() if streaming else data

    def run(data):
        return compute(classifier, data, method="random", output_dir=tmp_path / "out", shard_size=2)

    before = run(source(0, 1, 2, 3, 4, 5))
    (tmp_path / "out/shard-000000.json").unlink()
    with pytest.raises(ValueError, match="out' holds an evaluation of other data: its images from 2 on were others"):
        run(source(0, 1, 2, 6, 4, 5))
    if streaming:  # whose length nothing else tells
        with pytest.raises(ValueError, match="evaluation of other data: its images from 4 on"):
            run(source(0, 1, 2, 3))
    assert numbers(run(source(0, 1, 2, 3, 4, 5))) == numbers(before)
    shard = tmp_path / "out/shard-000002.json"
    shard.write_text(shard.read_text().replace("0.", "1.", 1))
    with pytest.raises(ValueError, match="shard-000002.json' is damaged; delete it"):
        run(source(0, 1, 2, 3, 4, 5))


def test_what_a_killed_run_leaves_is_cleaned_and_binds_nobody(classifier, data, tmp_path):
    """One that was killed in its first shard: half a file, settings, and nothing that is worth keeping."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.json").write_text('{"seed": 5}')
    for name in ("shard-000000.json.hf_explain.tmp", "shard-000000.json.tmp", ".hf_explain.lock"):
        (tmp_path / "out" / name).write_text("half")
    for name in ("mine.json.tmp", "shards.tmp"):
        (tmp_path / "out" / name).write_text("the user's")
    compute(classifier, data, output_dir=tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"settings.json", "shard-000000.json", "result.json", "mine.json.tmp", "shards.tmp"}


def test_metrics_leave_no_files_in_the_cache(classifier, data):
    """Neither columns nor locks: a killed run would leave them for good."""
    cache = Path(os.environ["HF_HOME"])
    before = set(cache.rglob("*"))
    compute(classifier, data, ["auc_d", "average_drop"])
    assert [path for path in set(cache.rglob("*")) - before if not path.is_dir()] == []


def test_one_run_at_a_time(classifier, data, tmp_path, monkeypatch):
    measure, started = sweep._measure_batch, []

    def disturbed(*args):
        started.append(args)
        if len(started) == 1:
            with pytest.raises(
                OSError, match="output_dir '.*out' is in use by another run.*choose another output_dir"
            ):
                compute(classifier, data, output_dir=tmp_path / "out")
        return measure(*args)

    monkeypatch.setattr(sweep, "_measure_batch", disturbed)
    assert compute(classifier, data, output_dir=tmp_path / "out")["num_images"] == 7 and len(started) == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"settings.json", "shard-000000.json", "result.json"}


@pytest.mark.processes
def test_two_processes_equal_one(classifier, directory, tmp_path):
    os.symlink(directory, tmp_path / "classifier")
    (tmp_path / "shards").mkdir()
    parquet_shards(tmp_path / "shards", 7, 2)
    save_classifier("convnext", tmp_path / "convnext")  # it sees more than one class
    found, other = launch(evaluation_worker.main, tmp_path)
    columns = found["fills_and_games"]
    assert columns == other["fills_and_games"] and len(columns["grid_pointing/grid_pointing"]) == 12
    assert_close(columns, evaluation_worker.fills_and_games(tmp_path / "convnext"))
    alone = compute(classifier, picture_dataset(7), method="random")["auc_d"]["auc_d"]
    assert found["num_gathered"] == 7
    for name in ("map", "folder", "stream", "gathered"):
        assert found[name] == other[name] == pytest.approx(alone, abs=1e-4), name
    for one in (found, other):
        assert "busy' is in use by another run" in one["busy"] and "busy' is in use by" in one["compared"]
        assert one["lengths"] == {"short": 3, "long": 7}
        failed = one["comparison"].pop("raw_attention")
        assert "attention" in failed and one["comparison"] == {"gradcam": 5, "random": 5, "centre": 5}
    # the one bad image lies on one of them; both end, and say which
    assert "image 4 of `data` cannot be used" in found["bad"] and "image 4 of `data`" in other["bad"]


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_sentence(classifier, data, tmp_path):
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=data.features)
    (tmp_path / "file").write_text("")
    for change, error, message in (
        ({"metric": "auc"}, ValueError, "Unknown metric 'auc'; hf_explain has: auc_d, auc_d_fills, average_drop"),
        ({"metric": []}, ValueError, "`metric` is an empty list"),
        ({"metric": ["auc_d", "auc_d"]}, ValueError, "`metric` names 'auc_d' twice"),
        ({"metric": "win_rate"}, ValueError, "'win_rate' compares two explainers"),
        ({"metric": [3]}, TypeError, "`metric` must be names or modules"),
        ({"presets": {"auc_d": "cheffer"}}, ValueError, "'cheffer' is not a preset of auc_d"),
        ({"presets": {"road": "road"}}, ValueError, "`presets` names 'road', which is not among the metrics: auc_d"),
        ({"metric_options": {"auc_d": {"stepz": 3}}}, TypeError, "auc_d has no option `stepz`"),
        ({"metric_options": {"road": {}}}, ValueError, "`metric_options` names 'road'"),
        ({"method": "gradcamm"}, ValueError, "`method` 'gradcamm' does not exist; the methods are gradcam"),
        ({"method_options": {"layr": 1}}, ValueError, "'gradcam' has no option 'layr'; its options are layer"),
        ({"model": 3}, TypeError, "`model_or_pipeline` must be a saliency pipeline"),
        ({"model": None}, ValueError, "`model_or_pipeline` and `data` are both needed"),
        ({"model": torch.nn.Linear(2, 2)}, ValueError, "has no image processor"),
        ({"data": empty}, ValueError, "`data` is empty: an evaluation needs at least one image"),
        ({"data": iter(())}, ValueError, "`data` is empty"),
        ({"data": 3}, TypeError, "`data` must be a dataset, got int"),
        ({"data": datasets.DatasetDict(test=data)}, ValueError, "`data` holds the splits 'test'; give one of them"),
        ({"image_column": "picture"}, ValueError, "image_column 'picture' is not a column of the dataset"),
        ({"label_column": "y"}, ValueError, "label_column 'y' is not a column of the dataset"),
        ({"mask_column": "y"}, ValueError, "mask_column 'y' is not a column of the dataset"),
        ({"data": data.remove_columns("label"), "target": "label"}, ValueError, "label_column was not given"),
        ({"target": "top"}, ValueError, "`target` must be one of prediction, label, second, got 'top'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"shard_size": 1.5}, ValueError, "`shard_size` must be a whole number"),
        ({"max_examples": 0}, ValueError, "`max_examples` must be a whole number of at least 1"),
        ({"output_dir": tmp_path / "file"}, OSError, "is not writable"),
    ):
        arguments = {"model": classifier, "data": data, **change}
        with pytest.raises(error, match=message):
            compute(**arguments)
    rows = [{"image": picture_dataset(1)[0]["image"], "label": 0}, {"image": "no.png", "label": 0}]
    with pytest.raises(ValueError, match="image 1 of `data` cannot be used: The image 'no.png' does not exist"):
        compute(classifier, rows)
    rows[1] = {"image": rows[0]["image"], "label": 17}
    with pytest.raises(ValueError, match="image 1 of `data` cannot be used: label 17 is outside"):
        compute(classifier, rows, target="label")


def test_nothing_half_computed_is_kept(data, classifier, tmp_path):
    """A classifier without probabilities, then a wrong setting: the corrected call finds the folder free."""
    single = tiny_classifier("resnet", num_labels=1)
    single.image_processor = classifier.image_processor
    for metric in ("auc_d", "average_drop", "insertion_deletion", "road"):
        with pytest.raises(ValueError, match="gives 1 number per image; class probabilities need logits of at least"):
            compute(single, data, metric, method="centre", output_dir=tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1, got 0"):
        compute(classifier, data, metric_options={"auc_d": {"steps": 0}}, output_dir=tmp_path / "out")
    assert compute(classifier, data, output_dir=tmp_path / "out", method="centre")["num_images"] == 7


def test_a_head_has_no_method_options(directory, data):
    head = LCamForSaliency.from_classifier(directory)
    with pytest.raises(ValueError, match="`method_options` .* need a `method`"):
        compute(head, data, method=None, method_options={"layer": 1})


# ------------------------------------------------------------------------------------- what other evaluators take, too


def test_takes_what_its_siblings_take(classifier, data, tmp_path):
    expected = compute(classifier, data, ["auc_d", "average_drop"], image_column="image", target="label", seed=3)
    (tmp_path / "data").mkdir()
    data.to_parquet(str(tmp_path / "data/validation-00000-of-00001.parquet"))
    combined = evaluate.combine([hf_explain.metrics.path(name) for name in ("auc_d", "average_drop")])
    found = compute(
        classifier, str(tmp_path / "data"), combined, input_column="image", target="label", strategy="bootstrap",
        confidence_level=0.8, n_resamples=200, random_state=3,
    )  # fmt: skip
    assert found["dataset"]["split"] == "validation" and found["num_images"] == expected["num_images"]
    for name in ("auc_d", "average_drop"):
        main = next(iter(found[name]))
        assert found[name][main] == pytest.approx(expected[name][main])
        assert found[name]["protocol"]["interval"] == {"confidence": 0.8, "resamples": 200, "seed": 3}
        (low, high), (lower, higher) = found[name][f"{main}_interval"], expected[name][f"{main}_interval"]
        assert high - low < higher - lower

    mapping = {name: 7 - index for index, name in classifier.id2label.items()}
    renamed = [{**row, "label": 7 - row["label"]} for row in data]
    mapped = compute(classifier, renamed, "auc_d", target="label", label_column="label", label_mapping=mapping, seed=3)
    assert mapped["auc_d"]["auc_d"] == pytest.approx(expected["auc_d"]["auc_d"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "x"}, "`tokenizer` is not for images; give a pipeline"),
        ({"feature_extractor": "x"}, "`feature_extractor` is not for images"),
        ({"strategy": "jackknife"}, "`strategy` must be one of simple, bootstrap, got 'jackknife'"),
        ({"input_column": "picture", "image_column": "image"}, "`input_column` is another name of `image_column`"),
        ({"split": "train"}, "`split` is for `data` that is given by name, got a Dataset"),
        ({"subset": "small"}, "`subset` is for `data` that is given by name"),
        ({"label_mapping": {"zebra": 1}, "target": "label"}, "`label_mapping` names 'zebra', which is not one of"),
        ({"label_mapping": {"cat": 9}, "target": "label"}, "label 0 is not in `label_mapping`"),
    ],
)
def test_what_its_siblings_take_and_it_cannot(classifier, data, options, message):
    with pytest.raises(ValueError, match=message):
        compute(classifier, data, **options)


# ------------------------------------------------------------------------------------------------------ half precision


@pytest.fixture
def half_allowed(monkeypatch):
    """As if RISE had been measured to stay what it is, and random maps not."""
    monkeypatch.setattr("hf_explain.classifiers.precision.has_bfloat16", lambda device: True)
    for name, allowed in (("rise", True), ("random", False)):
        entry = replace(METHOD_ENTRIES[name], allows_bfloat16=allowed)
        monkeypatch.setitem(METHOD_ENTRIES, name, entry)


def test_half_precision_is_written_down_and_not_mixed(classifier, data, tmp_path, half_allowed):
    options = {"method": "rise", "method_options": {"num_masks": 8}, "batch_size": 3}
    drop = load_metric("average_drop")
    drop.allows_bfloat16 = True
    exact = compute(classifier, data, drop, **options, output_dir=tmp_path / "float32")
    assert "precision" not in exact["average_drop"]["protocol"] and "dtype" not in exact["settings"]["explainer"]
    half = compute(classifier, data, drop, **options, dtype="bfloat16", output_dir=tmp_path / "half")
    stated = {"asked": "bfloat16", "dtype": "bfloat16", "reason": "asked for"}
    assert half["average_drop"]["protocol"]["precision"] == stated
    assert half["settings"]["explainer"]["dtype"] == half["settings"]["metrics"]["average_drop"]["dtype"] == "bfloat16"
    name = "average_drop_100"
    assert half["average_drop"][name] != exact["average_drop"][name]
    assert half["average_drop"][name] == pytest.approx(exact["average_drop"][name], abs=2)
    with pytest.raises(ValueError, match="holds an evaluation with explainer="):
        compute(classifier, data, drop, **options, output_dir=tmp_path / "half")
    auto = compute(classifier, data, drop, **options, dtype="auto", output_dir=tmp_path / "half")
    assert auto["average_drop"][name] == half["average_drop"][name]  # what was taken decides, not what was asked for
    reason = auto["average_drop"]["protocol"]["precision"]["reason"]
    assert f"on the first {min(16, len(data))} images bfloat16 changes" in reason


def test_what_was_not_measured_stays_in_float32(classifier, data, half_allowed):
    metric = load_metric("auc_d", "rise")

    def probabilities(dtype):
        found = compute(classifier, data, metric, method="random", dtype=dtype, return_columns=True)
        assert "dtype" not in found["settings"]["explainer"]
        return found["auc_d"], [curve[0] for curve in found["columns"]["auc_d/positive"]]

    metric.allows_bfloat16 = True
    _, exact = probabilities("float32")
    # the reference of a metric is in the metric's precision, whatever the explainer's is
    _, found = probabilities("bfloat16")
    with torch.no_grad(), passes_in(torch.bfloat16):
        logits = classifier(to_pixel_values(classifier.image_processor, [load_rgb(row["image"]) for row in data]))
    assert found != exact and found == pytest.approx(logits.float().softmax(-1).amax(-1).tolist(), abs=1e-6)

    metric.allows_bfloat16 = False
    result, found = probabilities("bfloat16")
    assert found == exact
    reason = "not measured to give the same numbers in another one"
    assert result["protocol"]["precision"] == {"asked": "bfloat16", "dtype": "float32", "reason": reason}
