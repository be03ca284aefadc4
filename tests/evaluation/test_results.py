"""Results as objects: what is written is what is read, also what earlier versions wrote; every number has one name."""

import json

import pytest

from hf_explain.evaluation.results import (
    Comparison,
    EvaluationResult,
    FailedExplainer,
    MetricResult,
    read_evaluation,
)
from hf_explain.metrics import metric_numbers, names
from hf_explain.metrics.number import Number, find_number


AUC_D = {
    "auc_d": 40.0,
    "auc_d_interval": [38.0, 42.0],
    "positive_auc": 20.0,
    "positive_auc_interval": [19.0, 21.0],
    "positive_curve": [1.0, 0.5],
    "num_images": 12,
    "protocol": {"metric": "auc_d", "fill": "black"},
    "seconds_per_image": 0.25,
    "forward_passes_per_image": 20.0,
}
DROPS = {"average_drop": 7.0, "average_drop_50": 7.0, "mask_area_50": 30.0, "protocol": {"percents": [50]}}
ONE = {
    "auc_d": AUC_D,
    "average_drop": DROPS,
    "num_images": 12,
    "seconds_per_image": 0.5,
    "forward_passes_per_image": 1.0,
    "tail_passes_per_image": 0.0,
    "explainer": {"explainer": "gradcam", "classifier": "tiny", "classifier_revision": None},
}
CIRCUMSTANCES = {"dataset": {"name": "x"}, "settings": {"seed": 0}, "versions": {"torch": "2"}, "device": "cpu"}
SANITY = {
    "passed": False,
    "verdict": "fails: no",
    "checks": {"centre": {"gain_of_auc_d": 1.0}},
    "cascade": [{"tensors_redrawn": 2, "gain_kept": None}],
    "own_auc_d": 1.0,
    "random_map_auc_d": 0.0,
    "centre_auc_d": 2.0,
    "thresholds": {"max_similarity_random_label": 0.9},
    "num_images": 3,
    "seed": 0,
}
# format 1, as `hf-explain evaluate` wrote it before results had types
OLD = {
    "explainers": {"cam": {**ONE, "sanity": SANITY}, "bad": {"error": "no attention"}},
    "classifier": {"id": "tiny"},
    "num_images": 12,
    **CIRCUMSTANCES,
}


def test_a_metrics_result_is_taken_apart_and_put_together():
    own = {**AUC_D, "note": "mine", "works": True, "counts": [1, 2], "my_curve": "flat", "numbers": {"x": 1}}
    result = MetricResult.from_json(own)
    assert result.numbers == {"auc_d": 40.0, "positive_auc": 20.0}
    assert result.intervals["positive_auc"] == [19.0, 21.0] and result.curves == {"positive": [1.0, 0.5]}
    assert set(result.other) == {"note", "works", "counts", "my_curve", "numbers"}
    assert result.to_json() == own
    assert list(MetricResult.from_json(AUC_D).to_json()) == list(AUC_D)


def test_results_are_read_as_they_were_written():
    written = {**ONE, **CIRCUMSTANCES}
    result = EvaluationResult.from_json({**written, "columns": {"image_ids": [0]}})
    assert result.to_json() == written and list(result.to_json()) == list(written)
    comparison = Comparison.from_json(OLD)
    assert comparison.explainers["bad"] == FailedExplainer("no attention") and list(comparison.measured) == ["cam"]
    assert comparison.measured["cam"].sanity.verdict == "fails: no"
    new = json.loads(json.dumps(comparison.to_json()))
    assert {key: new[key] for key in OLD} == OLD and new.keys() - OLD.keys() == {"format", "numbers"}
    assert Comparison.from_json(new) == comparison
    # a metric that is not this package's says of itself what its numbers are
    mine = {"mine": {"top_1": 3.0, "protocol": {}}}
    numbers = {"mine": [Number("top_1", "top one", False, heading="T1").to_json()]}
    other = Comparison.from_json({"format": 2, "explainers": {"cam": mine}, "numbers": numbers})
    assert other.number("mine", "top_1").higher_is_better is False
    assert Comparison.from_json(other.to_json()) == other


def test_columns_are_the_numbers_with_the_main_one_first():
    backwards = dict(reversed(AUC_D.items()))
    comparison = Comparison.from_json({"explainers": {"cam": {"auc_d": backwards, "average_drop": DROPS}}})
    columns = [(one.metric, one.key, one.number.heading_of(one.key)) for one in comparison.columns()]
    assert columns == [
        ("auc_d", "auc_d", "AUC-D"),
        ("auc_d", "positive_auc", "positive AUC"),
        ("average_drop", "average_drop", "AD"),
        ("average_drop", "average_drop_50", "AD 50"),
        ("average_drop", "mask_area_50", "area 50"),
    ]
    once = [one.key for one in comparison.distinct_columns()]
    assert once == ["auc_d", "positive_auc", "average_drop_50", "mask_area_50"]


def test_a_single_evaluation_is_a_comparison_of_one():
    comparison = read_evaluation({**ONE, **CIRCUMSTANCES})
    assert list(comparison.explainers) == ["gradcam"] and comparison.classifier["id"] == "tiny"
    assert comparison.num_images == 12 and comparison.dataset == {"name": "x"}
    assert comparison.number("average_drop", "average_drop_50").heading_of("average_drop_50") == "AD 50"
    assert read_evaluation(OLD) == Comparison.from_json(OLD)


def test_the_quickstarts_numbers_are_read():
    protocol = {"auc_d": {"fill": "black"}, "average_drop": {"rule": "ceil"}}
    row = {"auc_d": 40.0, "auc_d_interval": [38.0, 42.0], "positive_auc": 1.0, "AD": {"100": 5.0}, "IC": {"15": 6.0}}
    value = {"made_by": "the quickstart", "explainers": {"L-CAM-Img": row}, "protocol": protocol, "seed": 0}
    metrics = read_evaluation(value).measured["L-CAM-Img"].metrics
    assert metrics["auc_d"].numbers == {"auc_d": 40.0, "positive_auc": 1.0}
    assert metrics["auc_d"].intervals == {"auc_d": [38.0, 42.0]} and metrics["auc_d"].protocol == {"fill": "black"}
    assert metrics["average_drop"].numbers == {"average_drop_100": 5.0, "increase_in_confidence_15": 6.0}


def test_what_is_no_evaluation_is_refused():
    for value, message in (
        ({"results": {}}, "it has no `explainers`; give the results.json"),
        ({"explainers": []}, "it has no `explainers`"),
        ({"format": 3, "explainers": {}}, "it has format 3, of a later version; this one reads up to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            read_evaluation(value)


@pytest.mark.parametrize("name", names())
def test_every_metric_says_what_its_numbers_are(name):
    numbers = metric_numbers(name)
    assert len({number.key for number in numbers}) == len(numbers)
    assert numbers[0].higher_is_better is not None and numbers[0].in_tables
    assert [Number.from_json(json.loads(json.dumps(number.to_json()))) for number in numbers] == list(numbers)


def test_numbers_have_a_heading_and_a_title():
    drop = metric_numbers("average_drop")[0]
    for key, heading, title in (
        ("average_drop", "AD", "Average drop"),
        ("average_drop_50", "AD 50", "Average drop at 50 %"),
        ("average_drop_12.5", "AD 12.5", "Average drop at 12.5 %"),
    ):
        assert drop.describes(key) and (drop.heading_of(key), drop.title_of(key)) == (heading, title)
    assert not drop.describes("average_drop_interval") and not drop.describes("increase_in_confidence_50")
    area = metric_numbers("auc_d")[1]
    assert not area.describes("positive_auc_50") and area.title_of("positive_auc") == "Positive AUC"
    unknown = find_number(metric_numbers("auc_d"), "my_own_number")
    assert (unknown.heading_of("my_own_number"), unknown.higher_is_better) == ("my own number", None)
    assert (metric_numbers("auc_d")[0].decimals, metric_numbers("road")[0].decimals) == (1, 3)
