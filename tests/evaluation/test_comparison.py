"""The comparison as a person runs it: controls, failures kept apart, files, pictures, the command that repeats it."""

import csv
import json

import datasets
import evaluate
import pytest
import torch
from PIL import Image
from testing_common import save_classifier, tiny_classifier
from testing_training import picture_dataset

from hf_explain import FrozenClassifier, LCamForSaliency, SaliencyEvaluator
from hf_explain.apps.command_line import parse_assignments
from hf_explain.cli import main
from hf_explain.evaluation import comparison as comparison_module
from hf_explain.evaluation import sweep
from hf_explain.evaluation.comparison import compare, parse_explainers
from hf_explain.evaluation.inputs import ExampleReader
from hf_explain.evaluation.results import Comparison, SanityResult
from hf_explain.io.files import LOCK_FILE
from hf_explain.metrics.module import SaliencyMetric


@pytest.fixture(autouse=True)
def one_draw_of_the_weights(monkeypatch):
    monkeypatch.setattr("hf_explain.evaluation.comparison.SEEDS", 1)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    classifier = save_classifier("resnet", root / "classifier")
    torch.manual_seed(0)
    LCamForSaliency.from_classifier(classifier, variant="img").save_pretrained(root / "head")
    picture_dataset(6).to_parquet(root / "data.parquet")
    return root


def command(root, output, *more):
    return ["evaluate", "--classifier", str(root / "classifier"), "--dataset", str(root / "data.parquet"),
            "-o", str(output), "--no_progress", "--batch_size", "4", *more]  # fmt: skip


def test_command_loads_the_classifier_with_the_attention_asked_for(directories, tmp_path, monkeypatch, capsys):
    save_classifier("vit", tmp_path / "vit")
    seen = []
    monkeypatch.setattr(
        comparison_module, "_measure", lambda classifier, *_: seen.append(classifier) or pytest.fail("enough")
    )
    words = ["evaluate", "--classifier", str(tmp_path / "vit"), "--dataset", str(directories / "data.parquet"),
             "--explainers", "gradcam", "--no_progress", "-o", str(tmp_path / "out")]  # fmt: skip
    for asked in ("eager", "sdpa"):
        with pytest.raises(pytest.fail.Exception, match="enough"):
            main([*words, "--attn_implementation", asked])
    assert [one.config._attn_implementation for one in seen] == ["eager", "sdpa"]
    assert main([*words, "--attn_implementation", "eagre"]) == 1
    assert "eagre" in capsys.readouterr().err


@pytest.mark.charts
def test_command_writes_everything_and_keeps_what_works(directories, tmp_path, monkeypatch, capsys):
    explainers = f"lcam={directories / 'head'},gradcam,rise,raw_attention"
    argv = command(
        directories, tmp_path / "out", "--explainers", explainers, "--metrics", "auc_d,average_drop,win_rate",
        "--slow_examples", "3", "--method_option", "rise.num_masks=4", "--metric_option", "auc_d.steps=4",
        "--pictures", "2", "--sanity", "--sanity_examples", "2",
    )  # fmt: skip
    monkeypatch.setattr("hf_explain.evaluation.comparison_report._VECTORS", ("svg",))  # the fonts of a PDF take long
    assert main(argv) == 1  # a ResNet has no attention
    captured = capsys.readouterr()
    assert "1 of 6 explainers failed (raw_attention)" in captured.err and "Traceback" not in captured.err
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    # one column for each number, with the field's names: AD at 100 % is the average drop itself
    heading = next(line for line in table.splitlines() if line.startswith("| explainer"))
    assert [heading.count(name) for name in ("AD 100", "IC 50", "| AUC-D", "drop", "area 50")] == [1, 1, 1, 0, 1]
    assert table in captured.out and "| raw_attention | failed: " in table and "| lcam | 6 | " in table
    results = json.loads((out / "results.json").read_text())
    found = results["explainers"]
    assert list(found) == ["lcam", "gradcam", "rise", "raw_attention", "random", "centre"]
    assert "attention" in found["raw_attention"]["error"]
    assert found["rise"]["num_images"] == 3 and found["gradcam"]["num_images"] == results["num_images"] == 6
    assert found["rise"]["forward_passes_per_image"] == 5 and found["lcam"]["forward_passes_per_image"] == 1
    assert results["dataset"]["name"] == "data.parquet" and results["dataset"]["split"] == "validation"
    assert len(found["lcam"]["auc_d"]["positive_curve"]) == 5
    assert found["lcam"]["win_rate"]["protocol"]["against"] == "gradcam" and "win_rate" not in found["gradcam"]
    assert found["rise"]["win_rate"]["num_images"] == 3
    assert found["lcam"]["sanity"]["verdict"].startswith(("passes", "fails: "))
    assert str(directories) not in json.dumps(results)  # published with a head
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["explainer"] for row in rows] == list(found)
    assert float(rows[0]["auc_d.auc_d"]) == found["lcam"]["auc_d"]["auc_d"]
    for name in ("best", "worst", "auc_d", "average_drop", "auc_d_positive_curve", "auc_d_negative_curve"):
        if name not in ("best", "worst"):
            assert (out / f"{name}.svg").exists()
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 300, name
    repeated = (out / "command.sh").read_text()
    assert repeated.startswith("hf-explain evaluate --classifier") and "rise.num_masks=4" in repeated
    # again: everything is there already, and the numbers are the same
    monkeypatch.setattr("hf_explain.evaluation.comparison_report._VECTORS", ())
    assert main(argv) == 1
    again = json.loads((out / "results.json").read_text())["explainers"]
    assert again["lcam"]["auc_d"] == found["lcam"]["auc_d"]


def test_one_run_at_a_time(directories, tmp_path, capsys):
    """While the first controls are measured, another comparison starts in the same folder."""
    argv, codes = command(directories, tmp_path / "out", "--explainers", "gradcam", "--pictures", "0"), []
    measure = sweep._measure_batch

    def disturbed(*args):
        if not codes:
            codes.append(None)
            codes[0] = main(argv)
        return measure(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_measure_batch", disturbed)
        assert main(argv) == 0
    error = capsys.readouterr().err
    assert codes == [1] and f"output_dir {str(tmp_path / 'out')!r} is in use by another run" in error
    assert not list((tmp_path / "out").rglob(LOCK_FILE))


def test_one_sweep_over_the_data_for_all_explainers(directories, tmp_path, monkeypatch):
    """Images are read once and passes shared, and every number and every count is that of the explainer alone."""
    read, passes = [], []
    reader, features = ExampleReader.read, FrozenClassifier.features
    monkeypatch.setattr(ExampleReader, "read", lambda self, index, row: read.append(index) or reader(self, index, row))
    monkeypatch.setattr(
        FrozenClassifier, "features", lambda self, *args: passes.append(len(args[0])) or features(self, *args)
    )
    data, names = picture_dataset(5), ["gradcam", "layercam", "gradcam++"]
    options = {"metric_options": {"auc_d": {"steps": 2}}, "progress": False, "batch_size": 2}
    result = compare(
        directories / "classifier", data, names, "auc_d", output_dir=tmp_path / "out", slow=["gradcam++"],
        slow_examples=3, pictures=0, report=lambda line: None, **options,
    )["explainers"]  # fmt: skip
    # the image that the slow one reads in a batch of its own is the exception
    assert sorted(read) == [0, 1, 2, 2, 3, 4] and sorted(passes) == [1, 1, 2, 2]
    for name in names:
        count = 3 if name == "gradcam++" else 5
        alone = SaliencyEvaluator().compute(
            str(directories / "classifier"), data, "auc_d", method=name, max_examples=count, **options
        )
        assert result[name]["num_images"] == count and alone["auc_d"]["auc_d"] == result[name]["auc_d"]["auc_d"]
        for key in ("forward_passes_per_image", "tail_passes_per_image"):
            assert result[name][key] == alone[key]
        assert result[name]["seconds_per_image"] > 0


def test_head_of_another_classifier_is_a_row(directories, tmp_path):
    other = save_classifier("resnet", tmp_path / "other", seed=3)
    lines = []
    result = compare(
        other, picture_dataset(2), {"mine": directories / "head"}, "auc_d", output_dir=tmp_path / "out",
        pictures=0, progress=False, report=lines.append,
    )  # fmt: skip
    assert "another fingerprint" in result["explainers"]["mine"]["error"]
    assert "auc_d" in result["explainers"]["random"] and any("mine failed" in line for line in lines)


def test_an_explainer_is_resolved_once(directories, tmp_path, monkeypatch):
    """The weights of the classifier are read through once, those of each head once, sanity checks or not."""
    made = []

    def counted(module, dtype=None):
        made.append(type(module).__name__)
        return f"{len(made)}"

    monkeypatch.setattr("hf_explain.evaluation.comparison.fingerprint", counted)
    monkeypatch.setattr("hf_explain.evaluation.explainer.fingerprint", counted)
    result = compare(
        directories / "classifier", picture_dataset(2), {"lcam": directories / "head", "gradcam": None}, "auc_d",
        output_dir=tmp_path / "out", pictures=1, sanity=True, sanity_examples=2, progress=False,
        metric_options={"auc_d": {"steps": 2}}, report=lambda line: None,
    )  # fmt: skip
    assert made == ["ResNetForImageClassification", "LCamForSaliency"]
    found = result["explainers"]
    assert {one["explainer"]["classifier_fingerprint"] for one in found.values()} == {"1"}
    assert found["lcam"]["explainer"]["head_fingerprint"] == "2" and "verdict" in found["gradcam"]["sanity"]


def test_sanity_checks_are_kept(directories, tmp_path, monkeypatch):
    checked = []

    def check(explainer, data, *, max_examples, **options):
        checked.append(max_examples)
        return SanityResult(True, "passes", num_images=max_examples)

    monkeypatch.setattr(comparison_module, "check_explainer", check)

    def run(**options):
        return compare(
            directories / "classifier", picture_dataset(4), "gradcam", "auc_d", output_dir=tmp_path / "out",
            pictures=0, sanity=True, progress=False, metric_options={"auc_d": {"steps": 2}},
            report=lambda line: None, **{"sanity_examples": 2, **options},
        )["explainers"]["gradcam"]["sanity"]  # fmt: skip

    first = run()
    (tmp_path / "out/auc_d.png.hf_explain.tmp").write_text("half")
    assert run() == first and len(checked) == 1
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert run(sanity_examples=3)["num_images"] == 3 and len(checked) == 2
    (tmp_path / "out/explainers/gradcam/sanity.json").write_text("{")
    assert run() == first and len(checked) == 3


class Brightness(SaliencyMetric):
    """A custom metric with just what the package's documentation asks for: the mean of a map."""

    metric_name = "brightness"
    main_result = "brightness"
    higher_is_better = False
    presets = {"default": {}}

    def _info(self):
        features = datasets.Features({"brightness": datasets.Value("float64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _measure(self, predict, pixel_values, saliency, **options):
        return {"brightness": saliency.mean((1, 2)).double()}, {}

    def _summarize(self, columns, protocol):
        return dict(columns), {}, {}


@pytest.mark.charts
def test_a_metric_of_ones_own_is_compared(directories, tmp_path):
    result = compare(
        directories / "classifier", picture_dataset(3), "gradcam,eigencam", [Brightness(), "win_rate"],
        output_dir=tmp_path / "out", pictures=1, progress=False, report=lambda line: None,
    )  # fmt: skip
    found = result["explainers"]
    assert "| explainer | images | brightness | win rate |" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/brightness.png").is_file() and (tmp_path / "out/best.png").is_file()
    assert found["eigencam"]["win_rate"]["protocol"]["by"] == "brightness brightness"
    assert found["eigencam"]["win_rate"]["protocol"]["higher_is_better"] is False
    comparison = Comparison.from_json(json.loads((tmp_path / "out/results.json").read_text()))
    assert comparison.to_json() == result
    assert comparison.number("brightness", "brightness").higher_is_better is False
    with pytest.raises(TypeError, match="`metric` must be names or modules of hf_explain.metrics, .* got int"):
        compare(directories / "classifier", [], "gradcam", [1], output_dir=tmp_path / "out")


def test_names_of_explainers():
    assert parse_explainers("lcam=a/b, gradcam,") == {"lcam": "a/b", "gradcam": None}
    for text, message in (
        ("gradcamm", "explainer 'gradcamm' is not a training-free method .gradcam, .* given as NAME=DIRECTORY"),
        ("lcam=", "explainer 'lcam=' is not NAME=DIRECTORY"),
        ("../x=head", "is not NAME=DIRECTORY"),
        ("rise=head", "has the name of a training-free method"),
        ("rise,rise", "explainer 'rise' is given twice"),
        (" ", "`explainers` is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_explainers(text)


def test_bad_arguments_are_one_sentence_before_anything_is_measured(directories, tmp_path, capsys):
    for more, message in (
        (["--explainers", "gradcam", "--metrics", "auc"], "Unknown metric 'auc'"),
        (["--explainers", "gradcam", "--metrics", "win_rate"], "`metrics` needs at least one that measures maps"),
        (
            ["--explainers", "gradcam", "--slow", "rise"],
            "`slow` names 'rise', which is not an explainer: gradcam, random",
        ),
        (["--explainers", "gradcam", "--method_option", "rise.n=1"], "`method_options` names 'rise'"),
        (["--explainers", "gradcam", "--method_option", "rise"], "method_option 'rise' is not METHOD.OPTION=VALUE"),
        (["--explainers", "gradcam", "--preset", "auc_d"], "preset 'auc_d' is not METRIC=PRESET"),
        (["--explainers", "gradcam", "--image_column", "x"], "image_column 'x' is not a column of the dataset"),
        (["--explainers", "gradcam", "--max_examples", "0"], "`max_examples` must be a whole number"),
    ):
        assert main(command(directories, tmp_path / "out", *more)) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "out/results.json").exists()
    assert parse_assignments(["a.b=1", "a.c=x"], "option", "A.B=VALUE") == {"a": {"b": 1, "c": "x"}}


def test_classifier_instance_without_processor(tmp_path):
    with pytest.raises(ValueError, match="has no image processor"):
        compare(tiny_classifier("resnet"), picture_dataset(2), "gradcam", output_dir=tmp_path, progress=False)
