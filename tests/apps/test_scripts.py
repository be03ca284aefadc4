"""The reproduction scripts run as they stand, on data they make themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from testing_common import load_script, save_classifier
from testing_training import picture_dataset

from hf_explain import FrozenClassifier, SaliencyEvaluator, ShapleyForSaliency
from hf_explain.cli import main
from hf_explain.evaluation import comparison_report
from hf_explain.metrics import metric_numbers
from hf_explain.metrics import names as metric_names


ROOT = Path(__file__).parents[2]


def reproduce(script, name, python, tmp_path):
    """Run `scripts/reproduce_*.sh --smoke` with this Python."""
    environment = {**os.environ, "PYTHON": str(python), "OUTPUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / f"reproduce_{script}.sh"), "--smoke", name],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def assert_trained(script, name, tmp_path):
    record = json.loads((tmp_path / "out" / name / "training_record.json").read_text())
    assert record["steps"] == 2 and record["head"] == script
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


SETTINGS = [("lcam", "lcam-fm-deit-base"), ("ttame", "ttame-convnext-small"), ("scan", "scan-cub-200")]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "name"), SETTINGS)
def test_reproduction_smoke(script, name, tmp_path):
    reproduce(script, name, sys.executable, tmp_path)
    assert_trained(script, name, tmp_path)


@pytest.mark.parametrize(("script", "name"), SETTINGS)
def test_reproduction_smoke_in_this_process(script, name, tmp_path, capsys):
    """What the script starts is written down by a Python that does nothing else, and done here."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '%s\\037' \"$@\" >> {tmp_path}/started\necho >> {tmp_path}/started\n")
    python.chmod(0o755)
    reproduce(script, name, python, tmp_path)
    data, training = (line.split("\037")[:-1] for line in (tmp_path / "started").read_text().splitlines())
    assert data[0] == "scripts/make_smoke_data.py"
    load_script("make_smoke_data").main(Path(data[1]))
    assert training[:3] == ["-m", "accelerate.commands.launch", "scripts/train_explainer.py"]
    assert main(["train", *training[3:]]) == 0, capsys.readouterr().err
    assert_trained(script, name, tmp_path)


def test_every_setting_of_every_paper_is_a_complete_command():
    for script, head in (("lcam", "lcam"), ("ttame", "ttame"), ("scan", "scan")):
        text = (ROOT / "scripts" / f"reproduce_{script}.sh").read_text()
        for classifier in ("$resnet", "$vit", "$deit", "$convnext"):
            assert f'"{classifier}" "$imagenet" {head}' in text


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """`scripts/run_evidence.py` as a function of its arguments; what it starts runs in this process."""
    script, started = load_script("run_evidence"), []
    # nobody here looks at the best and the worst maps, and every comparison would draw some
    monkeypatch.setattr(comparison_report, "_write_pictures", lambda *args: None)

    def run(command, stdout, stderr, timeout):
        started.append(command[-1])
        try:
            exec(command[-1], {})  # noqa: S102  the program of `python -c`
        except SystemExit as end:
            return subprocess.CompletedProcess(command, end.code)

    monkeypatch.setattr(
        script,
        "subprocess",
        SimpleNamespace(run=run, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired),
    )
    save_classifier("resnet", tmp_path / "classifier")
    picture_dataset(6).to_parquet(tmp_path / "train.parquet")

    def call(stage, *more):
        started.clear()
        argv = [stage, "--output_dir", str(tmp_path / "out")]
        if stage not in ("table", "summary", "keep", "charts", "cost"):
            argv += ["--classifiers", f"resnet={tmp_path / 'classifier'}", "--methods", "gradcam", "rollout"]
            argv += ["--dataset", str(tmp_path / "train.parquet"), "--split", "train", "--examples", "2", "--training"]
            argv += ["max_steps=1", "per_device_batch_size=2", "dataloader_num_workers=0", "use_cpu=true"]
        monkeypatch.setattr(sys, "argv", ["run_evidence.py", *argv, *more])
        return script.main(), list(started)

    call.script = script
    return call


def test_evidence_is_trained_measured_and_tabled_once(evidence, tmp_path, capsys):
    heads = ("--heads", "lcam-img", "scan-small", "--seeds", "0", "1")
    status, started = evidence("train", *heads)
    assert status == 0 and len(started) == 4
    record = json.loads((tmp_path / "out/resnet/scan-small-seed1/training_record.json").read_text())
    assert record["arguments"]["optimizer"] == "adam" and record["arguments"]["seed"] == 1
    assert (tmp_path / "out/resnet/scan-small-seed1/run.sh").read_text().startswith("hf-explain train --classifier")
    assert evidence("train", *heads) == (0, [])  # what is finished is not done again
    results = tmp_path / "out/resnet/comparison/results.json"
    assert evidence("evaluate", *heads[:4], "0")[0] == 0
    one = json.loads(results.read_text())["explainers"]
    assert evidence("evaluate", *heads)[0] == 0  # a seed more: what was measured is not measured again
    two = json.loads(results.read_text())["explainers"]
    assert set(two) - set(one) == {"lcam-img-seed1", "scan-small-seed1"}
    assert two["gradcam"] == one["gradcam"]
    assert evidence("evaluate", *heads) == (0, [])
    assert evidence("table")[0] == 0
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert {"lcam-img", "scan-small", "gradcam", "random", "centre"} <= set(lines)
    assert "±" in lines["scan-small"] and "±" not in lines["gradcam"]
    blurred = ("--metrics", "auc_d", "--metric_option", "auc_d.fill=blur", "--seeds", "0")
    assert evidence("evaluate", *heads[:3], "--comparison", "comparison-blur", *blurred)[0] == 0
    results = json.loads((tmp_path / "out/resnet/comparison-blur/results.json").read_text())
    assert results["explainers"]["random"]["auc_d"]["protocol"]["fill"] == "blur"
    more = ("--comparison", "comparison-curves", "--metrics", "insertion_deletion", "--seeds", "0")
    assert evidence("evaluate", *heads[:3], *more)[0] == 0
    assert evidence("table", "--comparison", "comparison*")[0] == 0
    table = (tmp_path / "out/table.md").read_text()
    curves = table.partition("### resnet, comparison-curves")[2]
    assert "| insertion | deletion |" in curves and "AUC-D" not in curves
    assert "AUC-D | AD 100" in table.partition("### resnet, comparison:")[2]
    assert "Higher is better: AUC-D; IC; insertion. Lower is better: AD; deletion. " in table


def test_evidence_leaves_one_fill_out(evidence, tmp_path, capsys):
    heads = ("--heads", "ttame-ranking-fills", "--head_option", 'mask_fills=["mean","black"]', "--methods", "gradcam")
    status, started = evidence("leave-one-fill-out", *heads)
    assert status == 0 and len(started) == 4  # three heads and a comparison
    config = json.loads((tmp_path / "out/resnet/ttame-ranking-fills-without-mean-seed0/config.json").read_text())
    assert config["mask_fills"] == ["black"]
    found = json.loads((tmp_path / "out/resnet/fills-ttame-ranking-fills/results.json").read_text())["explainers"]
    own = {name.removesuffix("-seed0"): one.get("auc_d_fills") for name, one in found.items()}
    unseen = own["ttame-ranking-fills-without-mean"]["auc_d_fill_mean"]
    assert own["ttame-ranking-fills-without-mean"]["protocol"]["trained_with"] == ["black"]
    printed = capsys.readouterr().out
    lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in printed.splitlines()}
    assert lines["fill"] == ["fill", "left out", "seen", "gradcam", "random", "centre"]
    seen, cam = own["ttame-ranking-fills"]["auc_d_fill_mean"], own["gradcam"]["auc_d_fill_mean"]
    assert lines["mean"][1:4] == [f"{one:.1f}" for one in (unseen, seen, cam)]
    left = (unseen + own["ttame-ranking-fills-without-black"]["auc_d_fill_black"]) / 2
    assert lines["all of them"][1] == f"{left:.1f}" and float(lines["ms/image"][1]) > 0
    assert evidence("leave-one-fill-out", *heads) == (0, [])  # what is finished is not done again
    with pytest.raises(SystemExit, match="--heads 'ttame' does not draw from several fills"):
        evidence("leave-one-fill-out", "--heads", "ttame")


def test_evidence_summary_puts_classifiers_side_by_side(evidence, tmp_path, capsys):
    def write(family, comparison, **explainers):
        directory = tmp_path / "out" / family / comparison
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps({"explainers": explainers}))

    def result(forward=1, tail=0, options=None, **metrics):
        costs = {"forward_passes_per_image": forward, "tail_passes_per_image": tail}
        return {**metrics, **costs, "explainer": {"method_options": options}}

    def auc(value):
        return {"auc_d": value, "auc_d_interval": [value - 1, value + 1]}

    def road(value):
        return {"road": value}

    heads = {"ttame": result(auc_d=auc(40)), "ttame-seed1": result(auc_d=auc(42)), "scan": {"error": "no"}}
    cam = result(tail=1, options={"layer": "stage2"}, auc_d=auc(30))
    write("resnet", "comparison", **heads, gradcam=cam, rise=result(385, auc_d=auc(10)))
    write("vit", "comparison", rise=result(193, auc_d=auc(20)))
    write("resnet", "curves", ttame=result(road=road(0.25)), gradcam=result(tail=1, options={}, road=road(0.5)))
    numbers = ("--numbers", "comparison/auc_d", "curves/road", "--classifiers", "vit", "resnet")
    assert evidence("summary", *numbers, "--intervals")[0] == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        "| explainer | passes | vit | resnet |",
        "|---|---:|---|---|",
        "| T-TAME as published | 1 | – | 41.0 ± 1.4 · 0.250 |",
        "| `gradcam` | 1 + tail | – | 30.0 [29.0, 31.0] · – |",  # the other one was measured with another layer
        "| `rise` | 193–385 | 20.0 [19.0, 21.0] · – | 10.0 [9.0, 11.0] · – |",
    ]
    assert (tmp_path / "out/summary.md").read_text() == printed
    assert evidence("summary", "--explainers", "rise", "--numbers", "curves/road", "comparison/auc_d")[0] == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["| `rise` | 193–385 | – · 10.0 | – · 20.0 |"]

    def sanity(weights, label):
        checks = {"random_weights": {"passed": weights}, "random_label": {"passed": label}, "centre": {}}
        return {"passed": weights and label, "checks": checks}

    heads = {"ttame": result(sanity=sanity(True, True)), "ttame-seed1": result(sanity=sanity(True, False))}
    write(
        "vit", "checks", **heads, rise=result(501, sanity=sanity(False, False)), lime=result(sanity=sanity(True, True))
    )
    assert evidence("summary", "--numbers", "checks/sanity", "--intervals")[0] == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| T-TAME as published | 1 | fails: random label |",  # of its two seeds one fails
        "| `rise` | 501 | fails: random weights, random label |",
        "| `lime` | 1 | passes |",
    ]


def test_evidence_takes_presets_and_config_fields(evidence, tmp_path):
    own = ("--head_option", 'feature_layers=["stage3"]', "levels=0")
    assert evidence("train", "--heads", "scan-contribution", *own)[0] == 0
    config = json.loads((tmp_path / "out/resnet/scan-contribution-seed0/config.json").read_text())
    assert (config["feature_layers"], config["levels"], config["mask_by"]) == (["stage3"], 0, "contribution")
    eager = ("--attn_implementation", "eager")
    assert evidence("train", "--heads", "ttame-ranking-contrast", *eager)[0] == 0  # a preset but for one field
    assert "--attn_implementation eager" in (tmp_path / "out/resnet/ttame-ranking-contrast-seed0/run.sh").read_text()
    config = json.loads((tmp_path / "out/resnet/ttame-ranking-contrast-seed0/config.json").read_text())
    assert (config["contrast"], config["ranking_weight"], config["mask_fills"]) == (2.0, 1.0, None)


def test_evidence_sweep_compares_every_combination(evidence, tmp_path, capsys):
    status, started = evidence("sweep", "--heads", "ttame", "--vary", "head.regularize=own,batch", "learning_rate=0.1")
    assert status == 0 and len(started) == 3
    compared = tmp_path / "out/resnet/sweep/comparison-ttame-regularize-learning_rate/results.json"
    results = json.loads(compared.read_text())
    own, batch = "ttame-regularize_own-learning_rate_0.1-seed0", "ttame-regularize_batch-learning_rate_0.1-seed0"
    assert list(results["explainers"]) == [own, batch, "gradcam", "random", "centre"]
    config = json.loads((tmp_path / f"out/resnet/sweep/{own}/config.json").read_text())
    assert config["regularize"] == "own"
    assert evidence("sweep", "--heads", "ttame", "--vary", "head.nothing=1")[0] == 1
    assert "failed (1)" in capsys.readouterr().out


def test_evidence_chooses_rates_and_layers_and_keeps_how(evidence, tmp_path, capsys, monkeypatch):
    few = ("--metrics", "auc_d", "--examples", "2")
    tune = ("tune", "--heads", "lcam-img", "--factors", "0.1", "1", "10", *few)
    status, started = evidence(*tune)
    assert status == 0 and len(started) == 4  # three rates, one comparison
    record = next((tmp_path / "out/resnet/sweep").glob("lcam-img-learning_rate_0.001-seed0/training_record.json"))
    arguments = json.loads(record.read_text())["arguments"]
    assert (arguments["optimizer"], arguments["lr_scheduler"]) == ("sgd", "exponential")  # as its authors
    assert arguments["lr_decay"] == pytest.approx(0.95**25)  # all of the papers' decay in the one epoch there is
    assert evidence(*tune) == (0, [])
    assert evidence("layers", "--methods", "gradcam", "hirescam", "rise", *few)[0] == 0
    choices = json.loads((tmp_path / "out/resnet/chosen.json").read_text())
    rate = choices["heads"]["lcam-img"]
    assert set(rate["scores"]) == {"1e-05", "0.0001", "0.001"} and rate["by"] == "auc_d"
    assert rate["scores"][str(rate["best"])] == max(rate["scores"].values())
    assert rate["budget"] == {"dataset": "train.parquet", "split": "train", "images": 2, "trials": 3}
    assert rate["training"]["max_steps"] == 1
    layer = choices["layers"]["hirescam"]
    assert list(layer["scores"]) == ["stem", "stage1", "stage2", "stage3", "stage4"] and layer["default"] == "stage4"
    assert layer["scores"][layer["best"]] == max(layer["scores"].values())
    assert evidence("train", "--heads", "lcam-img", "--tuned")[0] == 0
    record = json.loads((tmp_path / "out/resnet/lcam-img-seed0/training_record.json").read_text())
    assert record["arguments"]["learning_rate"] == rate["best"]
    assert evidence("evaluate", "--heads", "lcam-img", "--tuned", "--methods", "hirescam", *few)[0] == 0
    assert evidence("table", "--comparison", "comparison*", "--standings")[0] == 0
    table = (tmp_path / "out/table.md").read_text()
    assert "| hirescam | 2 |" in table and f"| hirescam (layer {layer['best']}) | 2 |" in table
    assert "HiResCAM of a layer that is read through a LayerNorm alone" in table and "RISE fills" not in table
    assert table.count("split `train`: **for choosing, not for reporting; these are no test photographs.**") == 2
    assert "| explainer | AUC-D | ahead of | level with |" in table

    kept = ("keep", "--comparison", "comparison*", "--keep_dir", str(tmp_path / "kept"))
    assert evidence(*kept)[0] == 0
    again = ("--output_dir", str(tmp_path / "kept"), "--comparison", "comparison*", "--standings")
    assert evidence("table", *again)[0] == 0  # from what is kept, the same bytes
    assert (tmp_path / "kept/table.md").read_bytes() == (tmp_path / "out/table.md").read_bytes()
    whole, part = (tmp_path / name / "resnet/comparison/results.json" for name in ("out", "kept"))
    assert part.stat().st_size < whole.stat().st_size
    capsys.readouterr()
    drawn = {}

    def write_charts(folder, comparison, titles):
        drawn.update(dict.fromkeys(comparison.measured, titles))
        (folder / "auc_d@patch.png").write_bytes(b"drawn")

    monkeypatch.setattr(evidence.script, "write_charts", write_charts)
    assert evidence("charts", "--charts", "auc_d@patch", "--chart_dir", str(tmp_path / "charts"))[0] == 0
    assert (tmp_path / "charts/resnet-auc_d-patch.png").read_bytes() == b"drawn"
    assert drawn["lcam-img"]["lcam-img"] == "L-CAM-Img as published"
    assert evidence("cost", "--examples", "3600", "--slow_examples", "0")[0] == 0
    result = json.loads(whole.read_text())["explainers"]["hirescam"]
    each = result["seconds_per_image"] + result["auc_d"]["seconds_per_image"]
    assert f"| resnet | comparison | hirescam | {each:.3f} | 3600 | {each:.2f} |" in capsys.readouterr().out


def test_evidence_is_never_chosen_on_test_photographs(evidence, tmp_path):
    for words in (("sweep", "--vary", "learning_rate=0.1"), ("tune",), ("layers",)):
        with pytest.raises(SystemExit, match=f"`{words[0]}` on 'test': test photographs are for the tables"):
            evidence(*words, "--split", "test[:2]")
    data, shared = tmp_path / "data", picture_dataset(6)
    data.mkdir()
    shared.select([1, 3]).to_parquet(data / "test.parquet")
    with pytest.raises(SystemExit, match="`tune` on 'test': test photographs are for the tables of `evaluate` alone"):
        evidence("tune", "--dataset", str(data / "test.parquet"))
    shared.select([0, 2, 3]).to_parquet(data / "validation.parquet")
    for source in (data / "validation.parquet", data):  # whatever a file is called, the photographs tell
        with pytest.raises(SystemExit, match="on 'validation' of .*: 1 of its photographs are test photographs"):
            evidence("layers", "--dataset", str(source), "--split", "validation")
    other = ("--dataset", str(tmp_path / "train.parquet"), "--test_dataset", str(data))
    with pytest.raises(SystemExit, match="`train` on 'train' of .*: 2 of its photographs are test photographs"):
        evidence("train", *other)


def test_evidence_fills_as_it_measures_and_stops_in_time(evidence, tmp_path, capsys):
    method = ("evaluate", "--heads", "--methods", "rise", "--metrics", "auc_d", "--examples", "1", "--comparison")
    assert evidence(*method, "patches", "--metrics", "auc_d@patch") == (0, [])  # a CNN reads none
    for fill, options in (("mean", ["mask_space=normalized"]), ("blur", [])):
        words = (fill, "--metric_option", f"auc_d.fill={fill}", "--method_option", "rise.num_masks=4")
        words += ("--attn_implementation", "eager", "--pictures", "0")
        assert evidence(*method, *words)[0] == 0
        command = (tmp_path / f"out/resnet/{fill}/run.sh").read_text()
        assert [word[5:] for word in command.split() if word.startswith("rise.")] == ["num_masks=4", *options]
        assert "--attn_implementation eager --pictures 0" in command
        assert not list((tmp_path / f"out/resnet/{fill}").glob("best*"))
    capsys.readouterr()
    assert evidence(*method, "late", "--minutes", "0") == (3, [])
    assert "--minutes 0 are over; start the same command again" in capsys.readouterr().out


def test_evidence_says_what_is_wrong(evidence):
    for words, message in (
        (("table",), "has no comparison; run `evaluate` first"),
        (("summary",), "has none of --numbers; run `evaluate` first"),
        (("summary", "--numbers", "auc_d"), "--numbers 'auc_d' is not COMPARISON/NUMBER with one of auc_d, "),
        (("train", "--classifiers", "resnet"), "--classifiers 'resnet' is not NAME=VALUE"),
    ):
        with pytest.raises(SystemExit, match=message):
            evidence(*words)


def test_what_half_precision_changes_is_told_apart(tmp_path, monkeypatch, capsys):
    script = load_script("measure_precision")
    classifier, file = save_classifier("resnet", tmp_path / "classifier"), tmp_path / "resnet.json"
    picture_dataset(5).to_parquet(tmp_path / "train.parquet")
    argv = ["--classifier", str(classifier), "--dataset", str(tmp_path / "train.parquet"), "--batch_size", "3"]
    monkeypatch.setattr(sys, "argv", ["", "measure", *argv, "--explainers", "random,eigencam", "-o", str(file)])
    script.main()
    found = json.loads(file.read_text())
    assert found["random"]["largest_map_difference"] == 0 < found["eigencam"]["largest_map_difference"]
    drops = found["random"]["numbers"]["average_drop"]
    assert drops["float32"]["float32"] != drops["float32"]["bfloat16"] == drops["bfloat16"]["bfloat16"]
    drops["float32"]["bfloat16"] = drops["float32"]["float32"] | {"average_drop_50": 99.0}
    file.write_text(json.dumps({"random": found["random"]}))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["", "table", str(file)])
    script.main()
    rows = capsys.readouterr().out.splitlines()
    assert sum(row.startswith("| `average_drop` |") and row.endswith("| no |") for row in rows) == 9
    assert "| `random` | auc_d, in bfloat16 | +0.00 | yes |" in rows


def test_shapley_values_are_held_against_long_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("captum")
    script = load_script("measure_shapley")
    classifier = FrozenClassifier.from_pretrained(save_classifier("resnet", tmp_path / "classifier"))
    picture_dataset(3).to_parquet(tmp_path / "train.parquet")
    for fill in ("black", "white"):
        torch.manual_seed(0)
        head = ShapleyForSaliency.from_classifier(classifier, grid=(2, 2), fill=fill, hidden_size=8)
        head.save_pretrained(tmp_path / fill)

    def call(fill, *more):
        argv = ["--head", str(tmp_path / fill), "--dataset", str(tmp_path / "train.parquet"), "--split", "train"]
        monkeypatch.setattr(sys, "argv", ["", *argv, "-o", str(tmp_path / "found.json"), *more])
        script.main()

    call("black", "--num_samples", "400", "--batch_size", "2")
    said, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["head", "second run", "gradcam"] and len(found["head"]["lacks"]) == 3
    # four cells have 14 sets, which both runs see many times; a head that was not trained knows nothing but the sum
    assert min(found["second run"]["correlation"]) > 0.99 > max(found["head"]["correlation"])
    assert max(found["second run"]["error"]) < 0.2 < max(found["head"]["error"]) and max(found["head"]["lacks"]) < 1e-5
    assert "| second run | 1.00 [" in said and "| gradcam | " in said
    with pytest.raises(SystemExit, match="fills with white, which Kernel SHAP cannot; train one with .*fill=mean"):
        call("white")


def test_a_classifier_fine_tuned_on_removals_says_so(tmp_path, capsys):
    script = load_script("finetune_on_removals")
    images, generator = torch.zeros(40, 1, 4, 4), torch.Generator().manual_seed(0)
    removed = script.remove_patches(images, torch.ones(1, 1, 1, 1), 2, generator)[:, 0]
    assert set(removed.sum((1, 2)).tolist()) == {0, 4}  # one of four patches, or none
    assert 10 < (removed.sum((1, 2)) > 0).sum() < 30 and bool((removed.amax(0) == 1).all())
    assert set(removed.view(40, 2, 2, 2, 2).sum((2, 4)).unique().tolist()) == {0, 4}  # whole ones
    with pytest.raises(ValueError, match="`patches` 3 does not divide the 4 pixels"):
        script.remove_patches(images, images, 3, generator)

    save_classifier("resnet", tmp_path / "classifier")
    picture_dataset(6).to_parquet(tmp_path / "train.parquet")
    words = ["--classifier", str(tmp_path / "classifier"), "--dataset", str(tmp_path / "train.parquet"),
             "--eval_split", "train", "--epochs", "1", "--patches", "2", "--output_dir",
             str(tmp_path / "tuned")]  # fmt: skip
    assert script.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.count("'one patch removed'") == 2 and "epoch 1: loss" in printed
    options = {"metric": "single_deletion", "method": "gradcam", "progress": False, "max_examples": 2}
    for name, said in (("tuned", True), ("classifier", False)):
        result = SaliencyEvaluator().compute(
            str(tmp_path / name), picture_dataset(2), **options, metric_options={"single_deletion": {"patches": 2}}
        )
        assert result["single_deletion"]["protocol"]["in_domain"] is said


def test_evidence_tables_show_every_metric():
    shown = load_script("run_evidence").SHOWN
    # of two explainers at a time; of masks that these photographs do not have
    missing = [name for name in metric_names() if not {one.key for one in metric_numbers(name)} & set(shown)]
    assert sorted(missing) == ["pointing", "win_rate"]
