"""The study of a classifier's mistakes: overlaps by hand, a planted bias found and none invented, files and errors."""

import base64
import io
import json
import math
import os
import re
import shutil
import signal

import datasets
import pytest
import torch
from PIL import Image
from testing_common import LABELS, image_size, save_classifier
from testing_training import picture

from hf_explain import METHODS, AutoModelForSaliency, FrozenClassifier, LCamForSaliency, ScanForSaliency
from hf_explain.cli import main
from hf_explain.evaluation import error_study
from hf_explain.evaluation.error_report import summary_lines, write_report
from hf_explain.evaluation.error_study import ErrorStudyArguments, maps_of_both, study_errors
from hf_explain.evaluation.explainer import PassCounter, resolve_explainer
from hf_explain.io.files import lock_directory
from hf_explain.metrics.regions import BORDER_PLACES, border_shares, region_overlap, top_region
from hf_explain.metrics.statistics import group_excess
from hf_explain.tensors.outputs import SaliencyOutput


# ------------------------------------------------------------------------------------------------------ maps, by hand


def test_region_and_overlap_by_hand():
    maps = torch.zeros(4, 4, 5)
    maps[0, 0, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1])
    maps[1, 0, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    maps[2, 3, 4] = 1.0  # one pixel above its minimum is all its region
    two = top_region(maps, 10)  # of 20 pixels
    assert [region.nonzero().tolist() for region in two] == [[[0, 0], [0, 1]], [[0, 2], [0, 3]], [[3, 4]], []]
    three = top_region(maps, 15)
    assert region_overlap(three[[0, 0, 0, 2]], three[[0, 1, 2, 3]]).tolist() == pytest.approx([1, 2 / 3, 0, 0])
    # sizes 3 and 1, one in common
    assert region_overlap(three[:1], torch.zeros(1, 4, 5).index_put((torch.tensor(0),) * 3, torch.tensor(1.0)) > 0)[
        0
    ].item() == pytest.approx(2 / 4)
    assert top_region(torch.full((1, 4, 5), 0.5), 10).all()  # no pixel is more salient than another
    assert top_region(torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]), 10).nonzero().tolist() == [[0, 1, 1]]  # one at least
    noise = torch.rand(400, 20, 20, generator=torch.Generator().manual_seed(0))
    regions = top_region(noise, 10)
    assert regions.flatten(1).sum(1).tolist() == [40] * 400
    assert region_overlap(regions[:200], regions[200:]).mean().item() == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match=r"`percent` is a share of the pixels and must lie in \(0, 100\), got 0"):
        top_region(maps, 0)
    with pytest.raises(
        ValueError, match=r"`first` and `second` must both have shape .* got \(1, 4, 5\) and \(1, 4, 4"
    ):
        region_overlap(three[:1], three[:1, :, :4])


def test_shares_at_the_border_by_hand():
    region = torch.zeros(3, 8, 8, dtype=torch.bool)
    region[0, 0, 0] = region[0, 4, 4] = True
    region[1, :2, 2:6] = True
    found = [dict(zip(BORDER_PLACES, shares.tolist())) for shares in border_shares(region)]
    half = {"top left corner", "corners", "top edge", "left edge"}
    assert found[0] == {place: 0.5 if place in half else 0.0 for place in BORDER_PLACES}
    assert found[1] == {place: float(place == "top edge") for place in BORDER_PLACES}
    assert set(found[2].values()) == {0.0}
    # a pixel whose centre lies on the line is outside: rows 0 and 5 of 6 are edges, 1 and 4 are not
    whole = dict(zip(BORDER_PLACES, border_shares(torch.ones(1, 6, 8, dtype=torch.bool))[0].tolist()))
    assert whole["top edge"] == whole["bottom edge"] == pytest.approx(1 / 6)
    assert whole["left edge"] == whole["right edge"] == pytest.approx(1 / 4)
    assert whole["corners"] == pytest.approx(4 * whole["top left corner"]) == pytest.approx(1 / 6)


def planted_maps(biased_share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with one blob near the middle, 40 for each of five classes; of class 2 a share in some corner instead."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(200) % 5
    centre = 12 + 3 * torch.randn(200, 2, generator=generator)
    corner = torch.where(torch.rand(200, 2, generator=generator) < 0.5, 2.0, 21.0)
    moved = (classes == 2) & (torch.rand(200, generator=generator) < biased_share)
    centre = torch.where(moved[:, None], corner, centre)
    steps = torch.arange(24.0)
    distance = (steps[:, None] - centre[:, 0, None, None]) ** 2 + (steps - centre[:, 1, None, None]) ** 2
    return torch.exp(-distance / 18), classes


def test_planted_bias_is_found_and_only_there():
    maps, classes = planted_maps(0.7)
    found = group_excess(border_shares(top_region(maps)), classes, 5, permutations=500)
    corners = BORDER_PLACES.index("corners")
    significant = found.p_value <= 0.05
    assert significant[2, corners] and not significant[[0, 1, 3, 4]].any()
    assert found.p_value[2, corners].item() == pytest.approx(1 / 501)
    assert found.statistic[2].argmax() == corners
    assert found.mean[2, corners] - found.others[2, corners] > 0.4
    shares = border_shares(top_region(maps))[:, corners]
    assert found.mean[2, corners].item() == pytest.approx(shares[classes == 2].mean().item())
    assert found.others[2, corners].item() == pytest.approx(shares[classes != 2].mean().item())


def test_unbiased_maps_accuse_nobody_more_often_than_stated():
    false_alarms = 0
    for seed in range(40):
        maps, classes = planted_maps(0.0, seed)
        found = group_excess(border_shares(top_region(maps)), classes, 5, permutations=99, seed=seed)
        false_alarms += bool((found.p_value <= 0.05).any())
    assert false_alarms <= 6  # 2 expected; 7 or more of 40 have a chance below 0.4 %


def test_excess_against_every_reassignment():
    values = torch.tensor([[0.9], [0.7], [0.2], [0.1], [0.3]])
    groups = torch.tensor([0, 0, 1, 1, 1])
    found = group_excess(values, groups, 3, min_count=2, permutations=20000)
    assert found.count.tolist() == [2, 3, 0]
    # of the 10 ways to choose two of the five, one gives group 0 so much, and none group 1
    assert found.p_value[0, 0].item() == pytest.approx(0.1, abs=0.01)
    assert found.p_value[1, 0].item() == pytest.approx(1, abs=1e-9)
    assert found.p_value[2, 0] == 1  # empty, not tested
    spread = values.std(correction=0).item() * (1 / 2 + 1 / 3) ** 0.5
    assert found.statistic[:2, 0].tolist() == pytest.approx([0.6 / spread, -0.6 / spread], rel=1e-5)
    alone = group_excess(values, torch.zeros(5, dtype=torch.long), 1, min_count=2)
    assert alone.p_value.tolist() == [[1.0]] and alone.protocol["num_tested"] == 0  # there is no rest to exceed
    again = group_excess(values, groups, 3, min_count=2, permutations=20000)
    assert torch.equal(again.p_value, found.p_value)
    assert group_excess(torch.ones(5, 1), groups, 3, min_count=2).p_value.tolist() == [[1.0]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(3, dtype=torch.long), 2), r"`values` and `groups` must be .* got \(3,\) and"),
        ((torch.zeros(3, 1), torch.tensor([0, 1, 5]), 2), "`groups` holds group 5, but `num_groups` is 2"),
        ((torch.full((3, 1), math.nan), torch.zeros(3, dtype=torch.long), 2), "`values` must be finite"),
    ],
)
def test_excess_refuses_what_cannot_be_tested(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_excess(*arguments)
    with pytest.raises(ValueError, match="`permutations` must be a whole number of at least 1, got 0"):
        group_excess(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), 2, permutations=0)


# ----------------------------------------------------------------------------------------------- a study of known maps

SIDE = image_size("resnet")[0]


def labelled(count: int, labels, masks: bool = False) -> datasets.Dataset:
    columns = {"image": [picture(index) for index in range(count)], "label": list(labels)}
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    if masks:  # the left half, and in image 0 nothing
        mask = Image.new("L", (24, 20))
        mask.paste(255, (0, 0, 12, 20))
        columns["mask"] = [Image.new("L", (24, 20)), *[mask] * (count - 1)]
        features["mask"] = datasets.Image()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
    return save_classifier("resnet", tmp_path_factory.mktemp("errors") / "classifier")


@pytest.fixture
def known(classifier_dir, monkeypatch):
    """`study(answers, maps, data, ...)`: a method that answers and points as told, by image and class."""

    def study(answers, blob, data, **options):
        def told(classifier, pixel_values, target=None, *, image_ids):
            logits = torch.full((len(pixel_values), classifier.num_labels), -2.0)
            logits[torch.arange(len(pixel_values)), torch.tensor([answers[index] for index in image_ids])] = 2.0
            target = classifier.resolve_target(target, len(pixel_values), logits)
            maps = torch.zeros(len(pixel_values), *pixel_values.shape[-2:])
            for place, (index, label) in enumerate(zip(image_ids.tolist(), target.tolist())):
                top, left, height, width = blob(index, label)
                maps[place, top : top + height, left : left + width] = 1.0
            return SaliencyOutput(saliency=maps, logits=logits, target=target)

        monkeypatch.setitem(METHODS, "gradcam", told)
        classifier = FrozenClassifier.from_pretrained(classifier_dir)
        return study_errors(classifier, data, method="gradcam", progress=False, **options)

    return study


def test_groups_and_pairs_by_hand(known):
    quarter = SIDE // 4
    blobs = {  # of the true class, beside an answer's blob of a quarter by a quarter at the origin
        1: (0, 0, quarter, quarter),  # the same
        2: (0, SIDE // 2, quarter, quarter),  # elsewhere
        3: (0, quarter * 2 // 3, quarter, quarter),  # a third in common
        4: (0, 0, 0, 0),  # empty
    }
    answers = [0, 1, 1, 1, 2, 0, 1]
    labels = [0, 0, 0, 0, 0, 0, 1]

    def blob(index, label):
        return blobs[index] if index in blobs and label == 0 else (0, 0, quarter, quarter)

    result = known(answers, blob, labelled(7, labels), batch_size=3).result
    assert (result["num_images"], result["num_errors"]) == (7, 4)
    assert result["accuracy"] == pytest.approx(3 / 7)
    errors = {error["image"]: error for error in result["errors"]}
    assert {index: error["group"] for index, error in errors.items()} == {
        1: "same_region", 2: "different_regions", 3: "ambiguous", 4: "no_map"
    }  # fmt: skip
    assert errors[1]["overlap"] == 1 and errors[2]["overlap"] == 0 and errors[4]["overlap"] is None
    shift = quarter * 2 // 3
    assert errors[3]["overlap"] == pytest.approx(1 - shift / quarter)
    assert errors[1]["label_name"] == LABELS[0] and errors[1]["prediction_name"] == LABELS[1]
    expected = math.exp(2) / (math.exp(2) + (len(LABELS) - 1) * math.exp(-2))
    assert errors[1]["confidence"] == pytest.approx(expected, rel=1e-5)
    assert errors[1]["confidence_label"] == pytest.approx((1 - expected) / (len(LABELS) - 1), rel=1e-4)
    assert result["groups"] == {"same_region": 1, "ambiguous": 1, "different_regions": 1, "no_map": 1}
    first, second = result["pairs"]
    assert (first["label"], first["prediction"], first["count"], first["same_region"]) == (0, 1, 3, 1)
    assert first["share_same_region"] == pytest.approx(1 / 3)
    assert first["mean_overlap"] == pytest.approx((1 + errors[3]["overlap"]) / 3)
    assert (second["prediction"], second["no_map"], second["mean_overlap"]) == (2, 1, None)
    # all regions cover a sixteenth
    assert result["overlap"]["random_regions"] == pytest.approx(1 / 16)
    assert result["protocol"]["groups"]["same_region"] == "overlap >= 0.5"
    everything = json.loads(json.dumps(result))
    assert everything == result
    # thresholds decide
    strict = known(
        answers, blob, labelled(7, labels), arguments=ErrorStudyArguments(same_region=0.3, different_regions=0.1)
    )
    assert strict.result["groups"] == {"same_region": 2, "ambiguous": 0, "different_regions": 1, "no_map": 1}


def corner_or_middle(index, label):
    quarter = SIDE // 4
    # class 1 looks into a corner, a different one from image to image
    place = (3 * quarter * (index % 2), 3 * quarter * (index // 2 % 2)) if label == 1 else (quarter + index % 3,) * 2
    return (*place, quarter, quarter)


def test_biased_class_without_masks(known, tmp_path):
    answers = [index % 3 for index in range(60)]
    arguments = ErrorStudyArguments(permutations=200)
    study = known(answers, corner_or_middle, labelled(60, answers), arguments=arguments)
    biases = study.result["class_biases"]
    assert biases["measure"] == "border" and biases["biased"] == [{"label": 1, "name": LABELS[1]}]
    entry = biases["classes"][0]
    assert entry["place"] == "corners" and entry["share"] == 1 and entry["share_others"] == 0
    assert entry["p_value"] == pytest.approx(1 / 201) and entry["num_images"] == 20
    assert [entry["biased"] for entry in biases["classes"]] == [True, False, False]
    assert len(study.evidence[1]) == 20 and all(answers[image] == 1 for image in study.evidence[1])
    own, others = study.mean_regions[1]
    assert own[0, 0] > 0.2 and others[0, 0] == 0 and others[12, 12] > 0.5
    write_report(study, tmp_path, 2)
    page = (tmp_path / "index.html").read_text()
    assert "Biased classes: 1" in page and page.count("<img") == 2  # no mistakes, so no pictures of any
    assert "reason to look at the pictures, not a proof" in page
    # too few images to tell: said, not guessed
    few = known(answers, corner_or_middle, labelled(60, answers), arguments=ErrorStudyArguments(min_images=21))
    assert few.result["class_biases"]["biased"] == []
    assert [entry["p_value"] for entry in few.result["class_biases"]["classes"]] == [None] * 3
    assert (
        summary_lines(few.result)[-1]
        == "Too few images to tell whether the classifier looks at the border for some class."
    )
    assert summary_lines(study.result)[-1].startswith(
        f"The classifier looks at the border, in the corners, for class {LABELS[1]!r}: 100 % of its region lies "
    )


def test_unbiased_classes_without_masks(known):
    answers = [index % 3 for index in range(60)]
    found = known(answers, lambda index, label: corner_or_middle(index, 0), labelled(60, answers)).result
    assert found["class_biases"]["biased"] == []


def test_biased_class_with_masks(known):
    answers = [index % 3 for index in range(60)]

    def blob(index, label):  # the object is the left half
        return (SIDE // 3, SIDE * 5 // 8 if label == 2 else SIDE // 8, SIDE // 4, SIDE // 4)

    data = labelled(60, answers, masks=True)
    biases = known(answers, blob, data, mask_column="mask").result["class_biases"]
    assert biases["measure"] == "object" and [entry["label"] for entry in biases["biased"]] == [2]
    first, *others = biases["classes"]
    assert (first["place"], first["share"], first["share_others"]) == ("off the object", 1, 0)
    assert first["energy_on_object"] == 0 and first["energy_on_object_others"] == 1
    assert biases["num_without_visible_object"] == 1 and biases["num_images"] == 59
    assert not any(entry["biased"] for entry in others)


# ---------------------------------------------------------------------------------------------------- real explainers


@pytest.fixture(scope="module")
def places(classifier_dir, tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    torch.manual_seed(0)
    LCamForSaliency.from_classifier(classifier_dir, variant="img").save_pretrained(root / "head")
    ScanForSaliency.from_classifier(classifier_dir, feature_layers=["stage2"], decoder_width=2).save_pretrained(
        root / "scan"
    )
    data = labelled(12, [index % 4 for index in range(12)], masks=True)
    data.to_parquet(root / "validation.parquet")
    return root


@pytest.mark.parametrize(("name", "method"), [("head", None), ("scan", None), ("head", "gradcam"), ("head", "random")])
def test_both_maps_are_those_of_separate_calls(places, name, method):
    explainer = resolve_explainer(places / name, method)
    pixel_values = torch.randn(5, 3, *[SIDE] * 2, generator=torch.Generator().manual_seed(0))
    ids, labels = torch.arange(5), torch.tensor([0, 1, 2, 3, 4])
    counter = PassCounter(explainer.classifier)
    with counter:
        own, true, logits, wrong = maps_of_both(explainer, pixel_values, labels, ids)
    assert 0 < wrong.sum() and torch.equal(wrong, logits.argmax(-1) != labels)
    if method is None:
        assert counter.full == 5  # both classes from one pass
    torch.testing.assert_close(own, explainer.explain(pixel_values, None, ids).saliency)
    torch.testing.assert_close(true, explainer.explain(pixel_values, labels, ids).saliency[wrong])


def test_a_map_that_is_not_finite_is_no_study(places):
    explainer = resolve_explainer(places / "head", None)
    pixel_values = torch.randn(2, 3, *[SIDE] * 2, generator=torch.Generator().manual_seed(0))
    pixel_values[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="^Image 1 gets logits that are not finite"):
        maps_of_both(explainer, pixel_values, torch.zeros(2, dtype=torch.long), torch.arange(2))


def command(places, output, *more):
    return ["errors", "--model", str(places / "head"), "--dataset", str(places / "validation.parquet"),
            "-o", str(output), "--no_progress", "--permutations", "50", *more]  # fmt: skip


def test_command_writes_json_tables_and_a_page_of_its_own(places, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(places, out, "--pictures", "2", "--batch_size", "5")) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["errors.json", "errors.md", "index.html"]
    result = json.loads((out / "errors.json").read_text())
    assert result["num_images"] == 12 and result["num_errors"] == len(result["errors"]) > 0
    assert sum(result["groups"].values()) == sum(pair["count"] for pair in result["pairs"]) == result["num_errors"]
    assert result["explainer"]["explainer"] == "lcam" and result["dataset"]["name"] == "validation.parquet"
    assert result["protocol"]["seed"] == 0 and "torch" in result["versions"]
    assert str(tmp_path) not in json.dumps(result)
    assert f"{result['num_errors']} of 12 images are classified wrongly" in printed
    table = (out / "errors.md").read_text()
    assert (
        f"{result['num_errors']} of 12 images" in table
        and "| true | predicted | errors | share same region |" in table
    )
    page = (out / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
            assert shown.width > 300
    assert "$" not in page and "<script" not in page
    # again, from a stream and in other batches: the same
    again = tmp_path / "again"
    assert main(command(places, again, "--pictures", "0", "--streaming", "--batch_size", "3")) == 0
    second = json.loads((again / "errors.json").read_text())
    assert [error["group"] for error in second["errors"]] == [error["group"] for error in result["errors"]]
    assert second["groups"] == result["groups"]
    assert "<img" not in (again / "index.html").read_text()


def test_pictures_of_a_stream(places, tmp_path):
    assert main(command(places, tmp_path, "--streaming", "--max_examples", "6", "--method", "gradcam")) == 0
    assert "<img" in (tmp_path / "index.html").read_text()


def test_no_errors_is_a_result(places, classifier_dir, tmp_path, capsys):
    explainer = resolve_explainer(classifier_dir)
    study = study_errors(classifier_dir, labelled(12, [0] * 12), progress=False, device="cpu")
    answers = {error["image"]: error["prediction"] for error in study.result["errors"]}
    right = labelled(12, [answers.get(index, 0) for index in range(12)])
    right.cast_column("label", datasets.Value("int64")).to_parquet(tmp_path / "right.parquet")
    argv = command(places, tmp_path / "out", "--dataset", str(tmp_path / "right.parquet"))
    assert main(argv) == 0
    assert "0 of 12 images are classified wrongly (100 % right)." in capsys.readouterr().out
    result = json.loads((tmp_path / "out/errors.json").read_text())
    assert result["errors"] == result["pairs"] == [] and result["overlap"]["mean"] is None
    assert explainer.classifier.num_labels == len(LABELS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--same_region", "0.1"], "`different_regions` must be smaller than `same_region` and both lie in [0, 1]"),
        (["--region_percent", "100"], "`region_percent` must lie in (0, 100), got 100.0"),
        (["--min_excess", "0"], "`min_excess` must lie in (0, 1), got 0.0"),
        (["--significance", "2"], "`significance` must lie in (0, 1), got 2.0"),
        (["--min_images", "0"], "`min_images` must be a whole number of at least 1, got 0"),
        (["--significance", "0.001"], "`permutations` 50 cannot show a p-value of 0.001; it needs at least 1000"),
        (["--pictures", "-1"], "`pictures` must be a whole number of at least 0, got -1"),
        (["--batch_size", "0"], "`batch_size` must be a whole number of at least 1, got 0"),
        (["--method", "nothing"], "`method` 'nothing' does not exist"),
        (["--method_option", "rise.num_masks=4"], "method_option names 'rise', but the maps are made by the trained"),
        (["--label_column", "x"], "label_column 'x' is not a column of the dataset"),
        (["--mask_column", "x"], "mask_column 'x' is not a column of the dataset"),
        (["--dataset", "./nowhere"], "dataset './nowhere' does not exist"),
    ],
)
def test_bad_arguments_are_one_sentence(places, tmp_path, capsys, more, message):
    assert main(command(places, tmp_path / "out", *more)) == 1
    error = capsys.readouterr().err
    assert f"hf-explain errors: {message}" in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*"))


def test_data_that_cannot_be_used_is_one_sentence(classifier_dir):
    none = labelled(3, [0, 1, 2]).remove_columns("label")
    with pytest.raises(ValueError, match="label_column was not given and no column looks like it"):
        study_errors(classifier_dir, none, progress=False)
    with pytest.raises(ValueError, match="image 2 of `data` cannot be used: label 9 is outside the classifier's 0"):
        study_errors(classifier_dir, labelled(3, [0, 1, 9]), progress=False)
    named = labelled(3, [0, 1, 2]).cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    with pytest.raises(
        ValueError, match=f"'label' has 3 classes and the classifier {len(LABELS)}, so that its numbers"
    ):
        study_errors(classifier_dir, named, progress=False)
    with pytest.raises(ValueError, match="`data` is empty"):
        study_errors(classifier_dir, labelled(3, [0, 1, 2]).select([]), progress=False)
    classifier = FrozenClassifier.from_pretrained(classifier_dir)
    classifier.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="is not a classifier with one answer out of several per image"):
        study_errors(classifier, labelled(3, [0, 1, 2]), progress=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_killed_study_goes_on(places, tmp_path, monkeypatch, streaming):
    data = datasets.Dataset.from_parquet(str(places / "validation.parquet"), cache_dir=tmp_path / "cache")
    looked, deadly = [], [True]
    look = error_study._look

    def killed(batch, *others):
        looked.extend(example.index for example in batch)
        if deadly and len(looked) > 9:
            raise KeyboardInterrupt
        look(batch, *others)

    def study(data, **options):
        data = data.to_iterable_dataset() if streaming else data
        options = {"output_dir": tmp_path / "partial", **options}
        return study_errors(
            places / "head", data, mask_column="mask", shard_size=3, batch_size=2, progress=False, **options
        )

    whole = study(data, output_dir=None)
    monkeypatch.setattr(error_study, "_look", killed)
    with pytest.raises(KeyboardInterrupt):
        study(data)
    assert sorted(path.name for path in (tmp_path / "partial").iterdir()) == [
        "settings.json", "shard-000000.json", "shard-000001.json", "shard-000002.json"
    ]  # fmt: skip
    (tmp_path / "partial/shard-000003.json.hf_explain.tmp").write_bytes(b"half")
    looked.clear()
    deadly.clear()
    shutil.copytree(tmp_path / "partial", tmp_path / "kept")
    again = study(data)
    assert looked == [9, 10, 11]  # what was done is not done again
    assert again.result == whole.result and again.evidence == whole.evidence
    assert sorted(path.suffix for path in (tmp_path / "partial").iterdir()) == [".json"] * 5
    # of other data, or another study, nothing is taken
    changed = data.map(lambda row, index: {"label": 4 if index == 4 else row["label"]}, with_indices=True)
    for other, options, message in (
        (changed, {}, "holds an evaluation of other data: its images from 3 on were others than `data` has there now"),
        (data, {"arguments": ErrorStudyArguments(region_percent=20)}, "with region_percent=10.0, this one has 20"),
        (data, {"method": "gradcam"}, "holds an evaluation with explainer="),
    ):
        with pytest.raises(ValueError, match=message):
            study(other, output_dir=tmp_path / "kept", **options)
    shard = tmp_path / "kept/shard-000001.json"
    shard.write_text(shard.read_text().replace("true", "false", 1))
    with pytest.raises(ValueError, match="shard-000001.json' is damaged; delete it to measure it again"):
        study(data, output_dir=tmp_path / "kept")


def test_a_study_in_half_precision_is_another_one(places, tmp_path, monkeypatch):
    data = datasets.Dataset.from_parquet(str(places / "validation.parquet"), cache_dir=tmp_path / "cache")
    head = AutoModelForSaliency.from_pretrained(places / "head")
    monkeypatch.setattr(type(head), "allows_bfloat16", True)

    def study(**options):
        found = study_errors(head, data, progress=False, output_dir=tmp_path / "partial", **options).result
        return found["protocol"].get("precision"), [error["confidence"] for error in found["errors"]]

    stated, half = study(dtype="bfloat16")
    assert stated == {"asked": "bfloat16", "dtype": "bfloat16", "reason": "asked for"}
    with pytest.raises(ValueError, match="holds .* with explainer="):
        study()
    monkeypatch.setattr(type(head), "allows_bfloat16", False)
    shutil.rmtree(tmp_path / "partial")
    stated, exact = study(dtype="bfloat16")
    assert stated["dtype"] == "float32" and exact != half
    assert study() == (None, exact)  # nothing of it was in another precision


@pytest.fixture
def ctrl_c():
    """Ctrl-C stops the test run's process, also where that was started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_killed_command_goes_on_and_leaves_nothing(places, tmp_path, monkeypatch, capsys):
    argv = command(places, tmp_path / "out", "--shard_size", "3", "--pictures", "1")
    with monkeypatch.context() as patch:
        patch.setattr("hf_explain.apps.errors.write_report", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            main(argv)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["partial_results"]
    (tmp_path / "out/errors.md.hf_explain.tmp").write_text("half")
    (tmp_path / "out/mine.tmp").write_text("the user's")

    def again(*arguments):
        raise AssertionError("looked at again")

    monkeypatch.setattr(error_study, "_look", again)
    assert main(argv) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "errors.json", "errors.md", "index.html", "mine.tmp"
    ]  # fmt: skip
    with lock_directory(tmp_path / "out"):
        assert main(argv) == 1
    assert "out' is in use by another run" in capsys.readouterr().err


def test_output_that_cannot_be_written(places, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(places, tmp_path / "file")) == 1
    assert "file' is not writable" in capsys.readouterr().err
    study = study_errors(places / "head", labelled(4, [0, 1, 2, 3]), progress=False)
    (tmp_path / "out").mkdir()
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(study, tmp_path / "out", 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["errors.md"]
