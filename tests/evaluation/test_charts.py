"""What the charts of a comparison show: the best first, what is better, seeds together, steps where they are."""

import numpy as np
import pytest
from PIL import Image

from hf_explain.evaluation import comparison_report
from hf_explain.evaluation.results import Comparison, ExplainerResult, MetricResult, SeedSpread
from hf_explain.io.charts import bar_chart, plot_curves
from hf_explain.metrics import metric_numbers
from hf_explain.registry import METHODS


pytestmark = pytest.mark.charts


@pytest.fixture
def drawn(monkeypatch):
    """What the charts were called with, by the file they went to."""
    calls = {}

    def keep(name):
        real = getattr(comparison_report, name)

        def draw(*args, **options):
            calls[options["files"][0].stem] = (*args, options)
            return real(*args, **options)

        monkeypatch.setattr(comparison_report, name, draw)

    keep("bar_chart")
    keep("plot_curves")
    return calls


@pytest.fixture
def no_pdf(monkeypatch):
    """The fonts of a PDF take as long as the rest of a chart, and here nobody reads them."""
    monkeypatch.setattr(comparison_report, "_VECTORS", ("svg",))


def comparison(metric, results, seeds=()):
    explainers = {
        name: ExplainerResult(
            metrics={metric: MetricResult(**one)}, explainer={"explainer": name if name in METHODS else "ttame"}
        )
        for name, one in results.items()
    }
    return Comparison(explainers, numbers={metric: metric_numbers(metric)}, seeds=list(seeds))


def test_the_curves_of_road_stand_where_pixels_were_removed(drawn, tmp_path):
    percents = [10, 20, 30, 40, 50, 60, 70, 80, 90]
    result = {
        "numbers": {"road": 0.1},
        "curves": {"morf": [0.5] * 9, "lerf": [0.8] * 9},
        "protocol": {"percents": percents, "score": "probability"},
    }
    comparison_report.write_charts(tmp_path, comparison("road", {"gradcam": result, "random": result}))
    curves, steps, options = drawn["road_morf_curve"]
    assert list(steps) == percents and list(curves) == ["Grad-CAM", "Random control"]
    assert options["title"] == "Most salient pixels removed first\nROAD, lower is better"
    assert options["y_label"] == "probability of the class (%)"
    assert drawn["road_lerf_curve"][2]["title"].startswith("Least salient pixels removed first\nROAD, higher is")
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        for name in ("road", "road_morf_curve", "road_lerf_curve"):
            assert (tmp_path / f"{name}.{kind}").read_bytes().startswith(start)
    with Image.open(tmp_path / "road.png") as picture:
        assert picture.width == 720


def test_the_best_is_first_and_seeds_are_one_bar(drawn, no_pdf, tmp_path):
    values = {"ttame-seed0": 5.0, "ttame-seed1": 7.0, "ttame-seed2": 9.0, "gradcam": 16.0, "random": 78.0, "rise": 4.0}
    results = {
        name: {"numbers": {"average_drop": value}, "intervals": {"average_drop": [value - 1, value + 1]}}
        for name, value in values.items()
    }
    heads = [f"ttame-seed{seed}" for seed in range(3)]
    spread = SeedSpread("average_drop", "average_drop", "ttame (3 seeds)", heads, 7.0, 2.0, None, 3)
    comparison_report.write_charts(tmp_path, comparison("average_drop", results, [spread]))
    bars, errors, options = drawn["average_drop"]
    assert bars == {"RISE": 4.0, "ttame (3 seeds)": 7.0, "Grad-CAM": 16.0, "Random control": 78.0}
    assert list(bars) == ["RISE", "ttame (3 seeds)", "Grad-CAM", "Random control"]
    assert errors["ttame (3 seeds)"] == (5.0, 9.0) and errors["RISE"] == (3.0, 5.0)
    assert options["title"] == "Average drop (lower is better)"
    assert list(options["kinds"].values()) == [
        "training-free method", "trained head", "training-free method", "control"
    ]  # fmt: skip
    assert "standard deviation over seeds" in options["x_label"]


def test_heads_by_other_titles(drawn, no_pdf, tmp_path):
    results = {name: {"numbers": {"auc_d": 1.0}, "curves": {"positive": [1.0, 0.0]}} for name in ("mine", "gradcam")}
    comparison_report.write_charts(tmp_path, comparison("auc_d", results), {"mine": "Ours", "gradcam": "theirs"})
    assert list(drawn["auc_d"][0]) == list(drawn["auc_d_positive_curve"][0]) == ["Ours", "Grad-CAM"]


def test_at_most_a_dozen_bars_the_controls_among_them(drawn, no_pdf, tmp_path):
    results = {f"head{index}": {"numbers": {"auc_d": float(index)}} for index in range(20)}
    results["random"] = {"numbers": {"auc_d": -5.0}}
    comparison_report.write_charts(tmp_path, comparison("auc_d", results))
    bars, _, options = drawn["auc_d"]
    assert list(bars) == [f"head{index}" for index in range(19, 8, -1)] + ["Random control"]
    assert "9 more in table.md" in options["x_label"] and options["title"] == "AUC-D (higher is better)"


def test_nothing_is_cut_off_at_the_sides():
    names = ["a trained head with a long name", "b", *(f"Method number {number}" for number in range(6))]
    kinds = {name: "trained head" if index < 2 else "training-free method" for index, name in enumerate(names)}
    title = "AUC-D over several fills, and over some more of them (higher is better)"
    label = "points, whiskers: 95 % interval, or standard deviation over seeds; 3 more in table.md"
    for chart in (
        bar_chart(dict.fromkeys(names, 10.0), title=title, x_label=label, kinds=kinds),
        plot_curves({name: [3.0, 2.0, 1.0] for name in names}, title=f"one line\n{title}", x_label=label, kinds=kinds),
    ):
        pixels = np.asarray(chart)
        assert (pixels[:, :2] == 255).all() and (pixels[:, -2:] == 255).all()
