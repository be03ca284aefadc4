"""Who is ahead, level or contradicted, by numbers that can be checked by hand."""

import json

import pytest

from hf_explain.evaluation.comparison_report import _agreement_lines, reach_table, seeds_table, standings_tables
from hf_explain.evaluation.ranking import (
    is_control,
    metric_agreement,
    paired_differences,
    reached,
    seed_groups,
    seed_spreads,
    standing_columns,
)
from hf_explain.evaluation.results import Comparison, ExplainerResult, MetricResult
from hf_explain.metrics.number import Number


NUMBERS = {"area": (Number("area", "area", True, heading="Area"),), "drop": (Number("drop", "drop", False),)}
# a is ahead of b by 1 on every image, though images differ by 100; c has two images, and is above and below
AREA = {"b": [0.0, 100.0, 50.0], "a": [1.0, 101.0, 51.0], "c": [-9.0, 110.0], "random": [-500.0, -400.0, -450.0]}


def compared(drop):
    columns = {name: {"area/area": values, "drop/drop": drop[name]} for name, values in AREA.items()}
    means = {
        name: [sum(own[key]) / len(own[key]) for key in ("area/area", "drop/drop")] for name, own in columns.items()
    }
    explainers = {
        name: ExplainerResult({"area": MetricResult({"area": area}), "drop": MetricResult({"drop": down})})
        for name, (area, down) in means.items()
    }
    comparison = Comparison(explainers, numbers=NUMBERS)
    comparison.differences = paired_differences(comparison, columns)
    comparison.agreement = metric_agreement(comparison)
    return comparison


AGREEING = {"a": [0.0, 1.0, 2.0], "b": [1.0, 2.0, 3.0], "c": [1.0, 3.0], "random": [9.0, 9.0, 9.0]}
OPPOSED = {**AGREEING, "a": [2.0, 3.0, 4.0]}


def test_differences_by_hand():
    found = {(one.metric, one.first, one.second): one for one in compared(AGREEING).differences}
    assert len(found) == 12  # two metrics, six pairs
    ahead = found["area", "a", "b"]
    assert (ahead.difference, ahead.interval, ahead.num_images, ahead.is_ahead) == (1.0, [1.0, 1.0], 3, True)
    level = found["area", "a", "c"]  # on the two images of both: 10 and -9
    assert (level.difference, level.num_images, level.is_level) == (0.5, 2, True)
    assert level.interval == [-9.0, 10.0]
    assert found["drop", "a", "b"].is_ahead and found["drop", "a", "b"].interval == [
        1.0,
        1.0,
    ]  # a lower drop is better


def test_a_curve_of_a_numbers_name_is_no_value_per_image():
    numbers = {"road": (Number("road", "ROAD", True), Number("morf", "MoRF", False))}
    columns = {name: {"road/road": [value] * 3, "road/morf": [[0.1, 0.2]] * 3} for name, value in (("a", 2), ("b", 1))}
    explainers = {name: ExplainerResult({"road": MetricResult({"road": 0.5, "morf": 0.15})}) for name in columns}
    (found,) = paired_differences(Comparison(explainers, numbers=numbers), columns)
    assert (found.key, found.first, found.difference) == ("road", "a", 1.0)


def test_agreement_by_hand():
    (found,) = compared(AGREEING).agreement
    # by area c (50.5) is level with a (51) and b (50) in number, and third by drop: a>c>b and a>b=c
    assert found.num_explainers == 3 and found.tau == pytest.approx(2 / 6**0.5) and not found.contradictions
    (found,) = compared(OPPOSED).agreement
    assert found.contradictions == [["a", "b"]]


def test_tables():
    text = standings_tables(compared(AGREEING))
    assert "| a | 51.00 | b, random | c |" in text and "| random | -450.00 |  |  |" in text
    assert text.index("| a | 51.00") < text.index("| c | 50.50") < text.index("| b | 50.00")
    assert "Kendall's τ is at least 0.82 (Area and drop)" in _agreement_lines(compared(AGREEING))
    assert "- Area has a ahead of b; by drop it is the other way round" in _agreement_lines(compared(OPPOSED))


def test_who_is_ahead_by_a_further_number_that_ranks():
    numbers = {"area": tuple(Number(name, name, True, ranks=name == "b") for name in ("area", *"abc"))}
    columns = {
        one: {f"area/{key}": [value, value + 1] for key in ("area", *"abc")} for one, value in (("x", 2.0), ("y", 1.0))
    }
    results = {
        one: ExplainerResult({"area": MetricResult({key.split("/")[1]: sum(own) / 2 for key, own in found.items()})})
        for one, found in columns.items()
    }
    comparison = Comparison(results, numbers=numbers)
    comparison.differences = paired_differences(comparison, columns)
    assert [column.key for column in standing_columns(comparison)] == ["area", "b"]
    text = standings_tables(Comparison.from_json(json.loads(json.dumps(comparison.to_json()))))
    assert text == standings_tables(comparison) and text.count("| x | 2.50 | y |") == 2
    assert metric_agreement(comparison) == []  # it is no metric of its own


def test_json_and_results_of_earlier_versions():
    comparison = compared(OPPOSED)
    value = json.loads(json.dumps(comparison.to_json()))
    assert Comparison.from_json(value).differences == comparison.differences
    assert Comparison.from_json(value).agreement == comparison.agreement
    del value["differences"], value["agreement"]
    old = Comparison.from_json(value)
    assert old.differences == [] and standings_tables(old) == "" and _agreement_lines(old) == ""


def test_seeds_by_hand():
    settings = {"a": {"x": 1}, "a-seed1": {"x": 1}, "b-seed0": {"x": 1}, "b-seed1": {"x": 2}, "c": {}, "d-seedy": {}}
    groups = seed_groups(settings)
    assert groups == {"a (2 seeds)": ["a", "a-seed1"]}  # those of b differ in more than the seed
    values = {"a": [0.0, 10.0], "a-seed1": [4.0, 14.0], "b": [1.0, 13.0]}
    columns = {name: {"area/area": own, "area/curve": [[1.0, 0.0]] * 2} for name, own in values.items()}
    results = {
        name: ExplainerResult({"area": MetricResult({"area": sum(own) / 2, "other": own[0]})}, num_images=2)
        for name, own in values.items()
    }
    comparison = Comparison(results, numbers={"area": NUMBERS["area"]})
    comparison.seeds, pooled = seed_spreads(comparison, columns, groups)
    spread, other = comparison.seeds
    assert (spread.key, spread.mean, spread.deviation, spread.num_images) == ("area", 7.0, pytest.approx(8**0.5), 2)
    assert spread.interval == [2.0, 12.0]  # of 2 and 12: the images alone, however far the seeds are apart
    assert (other.key, other.mean, other.interval) == ("other", 2.0, None)  # it has no value per image
    assert pooled == {"a (2 seeds)": {"area/area": [2.0, 12.0]}, "b": columns["b"]}
    (difference,) = comparison.differences = paired_differences(comparison, pooled)
    assert difference.pair == ("a (2 seeds)", "b") and (difference.difference, difference.is_level) == (0.0, True)
    assert comparison.means("area", "area") == {"a (2 seeds)": 7.0, "b": 7.0}
    assert "| a (2 seeds) | 2 | 7.00 ± 2.83 [2.00, 12.00] |" in seeds_table(comparison)
    assert "| a (2 seeds) | 7.00 |  | b |" in standings_tables(comparison)
    value = json.loads(json.dumps(comparison.to_json()))
    assert Comparison.from_json(value).seeds == comparison.seeds
    assert {"seeds", "reach"}.isdisjoint(Comparison(results).to_json()) and seeds_table(Comparison(results)) == ""


def test_reach_by_hand():
    columns = {
        "cam": {"area/area": [5.0, 25.0, 99.0], "drop/drop": [4.0, 4.0, 4.0]},
        "random": {"area/area": [0.0, 10.0, 99.0], "drop/drop": [5.0, 5.0, 5.0]},
        "oracle": {"area/area": [10.0, 30.0], "drop/drop": [9.0, 9.0]},
        "few": {"area/area": [1.0], "drop/drop": [1.0]},
    }
    results = {
        name: ExplainerResult(
            {metric: MetricResult({metric: 1.0}) for metric in NUMBERS},
            {"explainer": name, "method_options": {"fill": "mean"}},
            forward_passes_per_image=271.0,
        )
        for name in columns
    }
    comparison = Comparison(results, numbers=NUMBERS)
    (found,) = comparison.reach = reached(comparison, columns)  # by the drop the oracle is worse than random maps
    assert (found.metric, found.explainer, found.percent, found.num_images) == ("area", "cam", 100 * 10 / 15, 2)
    text = reach_table(comparison)
    assert "cells 8 × 8, fill mean, 271 passes" in text and "| cam | 67 % |" in text
    assert Comparison.from_json(json.loads(json.dumps(comparison.to_json()))).reach == comparison.reach
    assert reached(comparison, {name: own for name, own in columns.items() if name != "oracle"}) == []
    assert is_control("oracle", results["oracle"]) and not is_control("cam", results["cam"])
    assert is_control("cam@8x8", ExplainerResult({}, {"explainer": "gradcam", "form": "8x8"}))
