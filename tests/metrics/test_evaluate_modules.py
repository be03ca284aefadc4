"""The `evaluate` modules: loaded as users load them, against the functions under them."""

import doctest
import json
import re
import shutil
import sys
import threading
import types
from pathlib import Path

import evaluate
import pytest
import torch

import hf_explain.metrics
from hf_explain.metrics import functional
from hf_explain.metrics.module import plain
from hf_explain.metrics.photographs import Photographs


METRICS = sorted(path.name for path in Path(hf_explain.metrics.__file__).parent.glob("*/") if path.name[0] != "_")
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def load(name, *args, **kwargs):
    return evaluate.load(hf_explain.metrics.path(name), *args, **kwargs)


@pytest.fixture(scope="module")
def batch():
    """Seven images of four classes under a random linear classifier, with everything a metric may ask for."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3 * 8 * 8, generator=generator) / 5
    masks = torch.zeros(7, 8, 8)
    masks[:, 2:6, 1:5] = 1

    def predict(pixel_values):
        return pixel_values.flatten(1) @ weight.T

    predict.patch_size = (4, 4)
    photographs = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    known = torch.arange(30) % 10
    return {
        "predict": predict,
        "pixel_values": torch.randn(7, 3, 8, 8, generator=generator),
        "saliency": torch.rand(7, 4, 4, generator=generator),
        "labels": torch.arange(7) % 4,
        "masks": masks,
        "photos": Photographs(photographs, 9 * torch.eye(10)[known], torch.arange(100, 130), known),
        **HALF,
    }


def part(batch, chosen):
    """Some images of a batch, with their numbers in it as ids."""
    of_images = ("pixel_values", "saliency", "labels", "masks")
    some = {name: value[chosen] if name in of_images else value for name, value in batch.items()}
    return {**some, "image_ids": torch.arange(7)[chosen]}


def measure(metric, batch, **overrides):
    if metric.metric_name == "win_rate":
        scores = batch["saliency"][:, 0]
        return metric.measure(scores=scores[:, 0], other=scores[:, 1], **overrides)
    if metric.metric_name == "grid_pointing":  # its ids are the numbers of its maps
        batch = {"image_ids": torch.arange(len(batch["saliency"])), **batch}
        overrides["explain"] = lambda images, target, ids: images.mean(1).abs() * (1 + target + ids).view(-1, 1, 1)
    return metric.measure(**batch, **overrides)


def run_examples(text, name):
    """Every `>>>` of a text, in order, in one namespace."""
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert test.examples, f"{name} has no examples"
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        if name.startswith("protocol"):
            assert actual[name] == expected[name]
        else:
            assert actual[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


# --------------------------------------------------------------------------------------------------- documentation


@pytest.mark.parametrize("name", METRICS)
def test_examples_run(name):
    metric = load(name)
    run_examples(metric.inputs_description, name)
    readme = (Path(hf_explain.metrics.path(name)) / "README.md").read_text(encoding="utf-8")
    run_examples("\n".join(re.findall(r"```python\n(.*?)```", readme, re.S)), f"{name}/README.md")
    for heading in ("Metric description", "How to use", "Inputs", "Output values", "Limitations and bias", "Citation"):
        assert f"\n## {heading}\n" in readme
    assert metric.description.split()[0] in readme and metric.citation.strip() in readme
    for word in (*metric.features, *metric.presets):
        assert re.search(rf"\b{word}\b", readme), f"{name}/README.md does not say what {word} is"


@pytest.mark.parametrize("name", METRICS)
def test_every_result_is_in_the_readme(name, batch):
    metric = load(name)
    readme = (Path(hf_explain.metrics.path(name)) / "README.md").read_text(encoding="utf-8")
    for key in metric.compute(**measure(metric, batch)):
        key = re.sub(r"_\d+$", "_v", key)
        assert key.endswith("_interval") or f"**{key}**" in readme, f"{name}/README.md does not explain {key}"


class Gradio(types.ModuleType):
    """As much of Gradio as a metric's page asks for; the page in Gradio itself is tested with the demo."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("gradio")
        self.served = []
        self.JSON = dict

    def Code(self, value, **options):
        return value

    def Interface(self, compute, columns, result, **options):
        page = types.SimpleNamespace(compute=compute, columns=columns, **options)
        page.launch = lambda: self.served.append(page)
        return page


@pytest.mark.parametrize("name", METRICS)
def test_apps(name, batch, monkeypatch, tmp_path):
    # as a Space keeps them: in a folder that is called app
    folder = shutil.copytree(hf_explain.metrics.path(name), tmp_path / "app")
    app = {"__name__": "app", "__file__": str(folder / "app.py")}
    exec(compile((folder / "app.py").read_text(encoding="utf-8"), "app.py", "exec"), app)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"page of a metric needs Gradio.*pip install 'hf-explain\[demo\]'"):
        app["main"]()
    gradio = Gradio()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app["main"]()
    (page,) = gradio.served
    metric = load(name)
    assert page.title == f"Metric: {name}" and "## Limitations and bias" in page.article and "sdk:" not in page.article
    assert list(json.loads(page.columns)) == list(metric.features)
    columns = {key: plain(column) for key, column in measure(metric, batch).items()}
    for _ in range(2):  # visitors do not add up
        result = page.compute(json.dumps(columns))
        assert result["num_images"] == len(next(iter(columns.values())))
        assert result[metric.main_result] == load(name).compute(**columns)[metric.main_result]
    for wrong, message in (("[1]", "must be a JSON object"), ("{", "Expecting"), (page.columns, name), ("{}", name)):
        with pytest.raises(Gradio.Error, match=message):
            page.compute(wrong)


# -------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", METRICS)
def test_a_module_keeps_what_it_promises(name, batch):
    for preset in load(name).presets:
        metric = load(name, preset)
        assert metric.name == metric.metric_name == name and metric.config_name == preset
        assert isinstance(metric.higher_is_better, bool)
        columns = measure(metric, batch)
        assert list(columns) == list(metric.features)
        assert {type(column) for column in columns.values()} == {list}
        assert {len(column) for column in columns.values()} == {7}
        stated = metric.protocol
        result = metric.compute(**columns)
        low, high = result[f"{metric.main_result}_interval"]
        assert low <= result[metric.main_result] <= high
        assert result["num_images"] == 7
        protocol = result["protocol"]
        assert protocol == {**protocol, **stated} and json.loads(json.dumps(protocol)) == protocol
        assert protocol["metric"] == name and protocol["preset"] == preset and protocol["overrides"] == {}
        assert protocol["interval"] == {"confidence": 0.95, "resamples": 1000, "seed": 0}
        if name != "win_rate":
            assert protocol["image_size"] == ([16, 16] if preset == "enlarged" else [8, 8])
            mean = sum(columns[metric.main_result]) / 7
            assert result[metric.main_result] == pytest.approx(mean)


def test_auc_d_is_the_function(batch):
    metric = load("auc_d", "chefer")
    result = metric.compute(**metric.measure(**batch))
    inputs = {name: value for name, value in batch.items() if name != "masks"}
    expected = functional.auc_d(**inputs, **functional.PRESETS["auc_d"]["chefer"])
    for name in ("auc_d", "positive_auc", "negative_auc"):
        assert result[name] == pytest.approx(getattr(expected, name).mean().item())
        low, high = functional.bootstrap_interval(getattr(expected, name))
        assert result[f"{name}_interval"] == pytest.approx([low.item(), high.item()])
    assert result["positive_curve"] == pytest.approx(expected.curves.positive.mean(0).tolist())
    assert result["negative_curve"] == pytest.approx(expected.curves.negative.mean(0).tolist())
    assert result["protocol"] == {**result["protocol"], **expected.protocol}


def test_auc_d_fills_is_auc_d_three_times(batch):
    result = load("auc_d_fills").compute(**load("auc_d_fills").measure(**batch, steps=5))
    auc_d = load("auc_d")
    found = [
        auc_d.compute(**auc_d.measure(**batch, steps=5, fill=fill))["auc_d"] for fill in ("black", "mean", "blur")
    ]
    assert [result[f"auc_d_fill_{fill}"] for fill in ("black", "mean", "blur")] == pytest.approx(found)
    assert result["auc_d_fills"] == pytest.approx(sum(found) / 3) and len({*found}) == 3
    with pytest.raises(TypeError, match="auc_d_fills has no option `fill`"):
        load("auc_d_fills").measure(**batch, fill="black")
    inputs = {name: value for name, value in batch.items() if name != "masks"}
    with pytest.raises(TypeError, match="measures with black, mean, blur; for one `fill` there is `auc_d`"):
        functional.auc_d_fills(**inputs, fill="black")
    images = []

    def predict(pixel_values):
        images.append(len(pixel_values))
        return batch["predict"](pixel_values)

    functional.auc_d_fills(**{**inputs, "predict": predict}, fractions=(0, 0.5, 1))
    # the images once; per fill, half removed in both orders, and all: a plain colour is one image for the batch
    assert sum(images) == 7 + 3 * 14 + 1 + 1 + 7


def test_fills_that_were_seen_stand_apart(batch):
    metric = load("auc_d_fills", "all")
    columns = metric.measure(**batch, steps=5)
    fills = metric.protocol["fills"]
    assert fills == ["black", "mean", "blur", "white", "noise", "color", "photo"]
    found = load("auc_d_fills", "all").compute(**columns, protocol={"seen_fills": ["blur", "black"]})
    by_fill = {fill: found[f"auc_d_fill_{fill}"] for fill in fills}
    assert found["auc_d_fills"] == pytest.approx(sum(by_fill.values()) / 7)
    assert found["auc_d_fills_seen"] == pytest.approx((by_fill["blur"] + by_fill["black"]) / 2)
    unseen = [by_fill[fill] for fill in ("mean", "white", "noise", "color", "photo")]
    assert found["auc_d_fills_unseen"] == pytest.approx(sum(unseen) / 5) != found["auc_d_fills_seen"]
    assert not {"auc_d_fills_seen", "auc_d_fills_unseen"} & set(metric.compute(**columns))  # nobody was trained
    default = load("auc_d_fills")
    assert default.photos_needed({}) is None and load("auc_d_fills", "all").photos_needed({}) == 0
    assert (
        load("auc_d").photos_needed({"fill": "photo"}) == 0 and load("auc_d").photos_needed({"fill": "noise"}) is None
    )
    assert load("grid_pointing").photos_needed({}) == 0.95
    every = default.compute(**default.measure(**batch, steps=5), protocol={"seen_fills": ["black", "mean", "blur"]})
    assert every["auc_d_fills_seen"] == pytest.approx(every["auc_d_fills"]) and "auc_d_fills_unseen" not in every


def test_average_drop_is_the_function(batch):
    metric = load("average_drop", "ttame")
    result = metric.compute(**metric.measure(**batch, percents=(50, 12.5)))
    inputs = {name: value for name, value in batch.items() if name not in ("masks", "labels", "photos")}
    expected = functional.average_drop(**inputs, percents=(50, 12.5), rule="quantile")
    assert result["average_drop"] == result["average_drop_50"]
    for place, percent in enumerate(("50", "12.5")):
        assert result[f"average_drop_{percent}"] == pytest.approx(expected.average_drop[place].item())
        assert result[f"increase_in_confidence_{percent}"] == pytest.approx(
            expected.increase_in_confidence[place].item()
        )
        assert result[f"mask_area_{percent}"] == pytest.approx(100 * expected.area[:, place].mean().item())
    assert result["protocol"]["overrides"] == {"percents": [50, 12.5]}
    assert result["protocol"]["percents"] == [50, 12.5] and result["protocol"]["rule"] == "quantile"


def test_insertion_deletion_is_the_function(batch):
    metric = load("insertion_deletion")
    result = metric.compute(**metric.measure(**batch, steps=5))
    inputs = {name: value for name, value in batch.items() if name not in ("masks", "labels")}
    expected = functional.insertion_deletion(**inputs, steps=5)
    assert result["insertion_auc"] == pytest.approx(expected.insertion_auc.mean().item())
    assert result["deletion_auc"] == pytest.approx(expected.deletion_auc.mean().item())
    assert result["insertion_deletion"] == pytest.approx(result["insertion_auc"] - result["deletion_auc"])
    assert result["deletion_curve"] == pytest.approx(expected.deletion.mean(0).tolist())


def test_road_is_the_function(batch):
    metric = load("road", "road")
    result = metric.compute(**metric.measure(**batch, percents=40))
    inputs = {name: value for name, value in batch.items() if name not in ("masks", "photos", *HALF)}
    expected = functional.road(**inputs, percents=[40], score="accuracy")
    assert result["road"] == pytest.approx(expected.combined.mean().item())
    assert result["morf_curve"] == [result["morf"]] == pytest.approx([expected.morf.mean().item()])
    assert result["lerf_curve"] == [result["lerf"]] == pytest.approx([expected.lerf.mean().item()])
    assert result["unperturbed"] == pytest.approx(expected.base.mean().item())


def test_pointing_takes_masks_or_boxes(batch):
    metric = load("pointing")
    by_masks = metric.compute(**metric.measure(**batch))
    by_boxes = metric.compute(**metric.measure(**{**batch, "masks": None}, boxes=[torch.tensor([[1, 2, 5, 6]])] * 7))
    assert by_masks["protocol"]["region"] == "masks" and by_boxes["protocol"]["region"] == "boxes"
    assert by_masks["object_area"] == pytest.approx(25)
    for name in ("pointing", "energy", "object_area"):
        assert by_boxes[name] == pytest.approx(by_masks[name])
    wide = load("pointing", "excitation_backprop")
    assert wide.compute(**wide.measure(**batch))["pointing"] == 100


def test_the_grid_pointing_game_explains_composites(batch):
    seen = []

    def explain(pixel_values, target, image_ids):
        seen.append((pixel_values, target, image_ids))
        return pixel_values.mean(1).abs()

    metric, ids = load("grid_pointing"), torch.arange(3, 6)
    inputs = {**batch, "explain": explain, "image_ids": ids}
    columns = metric.measure(**inputs)
    composites = functional.grid_composites(batch["photos"], ids)
    ((pixel_values, target, image_ids),) = seen
    assert torch.equal(pixel_values, composites.pixel_values) and torch.equal(target, composites.target)
    assert image_ids is ids
    expected = functional.grid_pointing(pixel_values.mean(1).abs(), composites.cell, image_size=(8, 8))
    assert columns["grid_pointing"] == pytest.approx((100 * expected.share).tolist())
    result = metric.compute(**columns)
    assert result["grid_pointing_chance"] == 25 and result["protocol"]["candidates"] == 30
    assert result["protocol"]["note"] == "chance is 25.0 %; every photograph is shown at 1/2 of its size"
    wide = load("grid_pointing", "3x3")
    assert wide.compute(**wide.measure(**inputs))["grid_pointing_chance"] == pytest.approx(100 / 9)
    top = load("grid_pointing", "top")
    expected = functional.grid_pointing(pixel_values.mean(1).abs(), composites.cell, image_size=(8, 8), scale="top")
    assert top.measure(**inputs)["grid_pointing"] == pytest.approx((100 * expected.share).tolist())
    large = metric.compute(**metric.measure(**inputs, enlarged=True))
    assert large["protocol"]["image_size"] == [16, 16] and "at its own size" in large["protocol"]["note"]
    with pytest.raises(ValueError, match="`photos` is needed for the grid pointing game"):
        metric.measure(**{**inputs, "photos": None})


def test_single_deletion_is_the_function(batch):
    metric = load("single_deletion")
    result = metric.compute(**metric.measure(**batch, score="probability"))
    names = ("predict", "pixel_values", "saliency")
    expected = functional.single_deletion(**{name: batch[name] for name in names}, score="probability")
    assert result["single_deletion"] == pytest.approx(expected.correlation.mean().item())
    assert result["single_deletion_chance"] == 0 and result["protocol"]["overrides"] == {"score": "probability"}


def test_win_rates_of_a_pair_add_up(batch):
    auc_d = load("auc_d")
    first = auc_d.measure(**batch)["auc_d"]
    other = auc_d.measure(**{**batch, "saliency": batch["saliency"].flip(0)})["auc_d"]
    metric = load("win_rate", "higher_is_better")
    rates = [metric.compute(**metric.measure(scores=a, other=b)) for a, b in ((first, other), (other, first))]
    assert rates[0]["win_rate"] + rates[1]["win_rate"] == pytest.approx(100)
    assert rates[0]["ties"] == pytest.approx(100 * sum(a == b for a, b in zip(first, other)) / 7)
    reversed_rate = metric.compute(scores=first, other=other, higher_is_better=False)
    assert reversed_rate["win_rate"] == rates[1]["win_rate"]
    assert reversed_rate["protocol"]["higher_is_better"] is False
    reversed_rate = metric.compute(**metric.measure(scores=first, other=other, higher_is_better=False))
    assert reversed_rate["win_rate"] == rates[1]["win_rate"]


# ------------------------------------------------------------------------------------- batches, processes, columns


@pytest.mark.parametrize("name", METRICS)
def test_results_do_not_depend_on_the_batches(name, batch):
    expected = None
    for size in (7, 3, 1):
        metric = load(name, keep_in_memory=size == 3)
        for chosen in torch.arange(7).split(size):
            metric.add_batch(**measure(metric, part(batch, chosen)))
        result = metric.compute()
        expected = expected or result
        same(result, expected)
    one_by_one = load(name)
    columns = measure(one_by_one, part(batch, torch.arange(7)))
    for index in range(7):
        one_by_one.add(**{column: entries[index] for column, entries in columns.items()})
    same(one_by_one.compute(), expected)


@pytest.mark.parametrize("name", ["auc_d", "win_rate"])
def test_two_processes_give_one_result(name, batch, tmp_path):
    whole = load(name)
    expected = whole.compute(**measure(whole, part(batch, torch.arange(7))))
    results = [None, None]

    def work(rank):
        options = {"cache_dir": str(tmp_path), "experiment_id": "two", "timeout": 20}
        metrics[rank] = load(name, num_process=2, process_id=rank, **options)
        columns = measure(metrics[rank], part(batch, torch.arange(4) if rank == 0 else torch.arange(4, 7)))
        metrics[rank].add_batch(**columns)
        results[rank] = metrics[rank].compute()

    metrics = [None, None]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[1] is None
    same(results[0], expected)


def test_a_combination_gives_what_its_metrics_give(batch):
    metrics = [load("auc_d", "chefer"), load("average_drop"), load("pointing")]
    alone = {}
    for metric in metrics:
        for name, value in metric.compute(**metric.measure(**batch)).items():
            shared = name in ("num_images", "protocol")
            alone[f"{metric.name}_{name}" if shared else name] = value
    combined = evaluate.combine(metrics)
    columns = [metric.measure(**batch) for metric in metrics]
    assert combined.compute(**columns[0], **columns[1], **columns[2]) == alone
    columns = [metric.measure(**batch) for metric in metrics]
    combined.add_batch(**columns[0], **columns[1], **columns[2])
    assert combined.compute() == alone
    paths = [hf_explain.metrics.path(name) for name in ("average_drop", "pointing")]
    assert evaluate.combine(paths).compute(**columns[1], **columns[2])["pointing_num_images"] == 7


def test_columns_travel_with_their_protocol(batch):
    here, there = load("auc_d"), load("auc_d")
    columns = here.measure(**batch, steps=4, score="accuracy", max_batch=3)
    protocol = here.protocol
    assert protocol["fractions"] == [0, 0.25, 0.5, 0.75, 1] and protocol["target"] == "label"
    assert protocol["overrides"] == {"steps": 4, "score": "accuracy"}
    with pytest.raises(ValueError, match="`positive` of auc_d holds 5 numbers per image, .* names 11 fractions"):
        there.compute(**columns)
    away = there.compute(**{name: torch.tensor(column) for name, column in columns.items()}, protocol=protocol)
    same(away, here.compute(**columns))
    assert here.protocol == load("auc_d").protocol  # and the next result starts anew
    # what is passed goes over what is known
    columns = here.measure(**batch)
    assert here.compute(**columns, protocol={"dataset": "tiny"})["protocol"]["dataset"] == "tiny"


def test_intervals_are_the_callers_choice(batch):
    metric = load("auc_d")
    columns = metric.measure(**batch)
    result = metric.compute(**columns, confidence=0.5, resamples=50, bootstrap_seed=3)
    low, high = functional.bootstrap_interval(torch.tensor(columns["auc_d"]), 0.5, 50, 3)
    assert result["auc_d_interval"] == pytest.approx([low.item(), high.item()])
    assert result["protocol"]["interval"] == {"confidence": 0.5, "resamples": 50, "seed": 3}


# ---------------------------------------------------------------------------------------------------------- errors


def test_unknown_metrics_and_presets_are_listed():
    with pytest.raises(
        ValueError, match="Unknown metric 'auc'; hf_explain has: auc_d, auc_d_fills, average_drop, grid"
    ):
        hf_explain.metrics.path("auc")
    with pytest.raises(ValueError, match="'cam' is not a preset of auc_d; it has: default, chefer, scan, rise"):
        load("auc_d", "cam")


@pytest.mark.parametrize(
    "name,changes,error,message",
    [
        ("auc_d", {"saliency": torch.rand(6, 4, 4)}, ValueError, "`saliency` must have shape .* batch_size 7, got"),
        ("auc_d", {"saliency": torch.full((7, 4, 4), float("nan"))}, ValueError, "map of image 0 holds NaN"),
        ("road", {"saliency": -torch.ones(7, 4, 4)}, ValueError, "must not be negative, but the map of image 0"),
        ("average_drop", {"saliency": torch.full((7, 4, 4), 2.0)}, ValueError, r"must lie in \[0, 1\]"),
        ("auc_d", {"pixel_values": [torch.rand(3, 8, 8), torch.rand(3, 9, 8)]}, ValueError, "mixes the sizes"),
        ("auc_d", {"pixel_values": torch.rand(0, 3, 8, 8)}, ValueError, "with nothing empty, got"),
        ("auc_d", {"steps": 0}, ValueError, "`steps` must be a whole number of at least 1, got 0"),
        ("insertion_deletion", {"steps": 0}, ValueError, "`steps` must be a whole number of at least 1, got 0"),
        ("average_drop", {"percents": 0}, ValueError, r"must lie in \(0, 100\], got 0"),
        ("average_drop", {"percents": [50, 101]}, ValueError, r"must lie in \(0, 100\], got 101"),
        ("average_drop", {"percents": "half"}, TypeError, "`percents` must be a list of numbers, got 'half'"),
        ("road", {"percents": ["half"]}, TypeError, "`percents` must be a list of numbers, got .'half'."),
        ("auc_d", {"fractions": 0.5}, TypeError, "`fractions` must be a list of numbers, got 0.5"),
        ("auc_d", {"grid_size": 7}, TypeError, "`grid_size` must be a list of numbers, got 7"),
        (
            "auc_d",
            {"fill": 3},
            ValueError,
            "`fill` must be one of black, mean, blur, white, noise, color, photo or a colour, got 3",
        ),
        ("road", {"percents": 100}, ValueError, r"must lie in \(0, 100\)"),
        ("auc_d", {"score": "accuracy", "labels": None}, ValueError, "`labels` are needed for score='accuracy'"),
        ("auc_d", {"predict": lambda x: x.mean((1, 2, 3))[:, None]}, ValueError, "need logits of at least 2 classes"),
        ("auc_d", {"predict": lambda x: x}, ValueError, r"must give logits of shape \(7, num_labels\)"),
        ("auc_d", {"predict": None}, TypeError, "`predict` must be a callable from `pixel_values` to logits.* NoneTy"),
        ("auc_d", {"stpes": 3}, TypeError, "auc_d has no option `stpes`; it has: fractions, steps, score"),
        ("pointing", {"masks": None}, ValueError, "needs either `masks` or `boxes`"),
    ],
)
def test_bad_input_is_one_clear_sentence(batch, name, changes, error, message):
    metric = load(name)
    with pytest.raises(error, match=message):
        metric.measure(**{**batch, **changes})
    assert metric.protocol == load(name).protocol and len(metric) == 0


def test_bad_columns_are_one_clear_sentence(batch, tmp_path):
    metric = load("auc_d", cache_dir=str(tmp_path))
    columns = metric.measure(**batch)
    with pytest.raises(ValueError, match="auc_d has no images to compute from: call `add_batch"):
        metric.compute()
    with pytest.raises(ValueError, match="auc_d has no images to compute from: its columns are empty"):
        metric.compute(**{name: [] for name in columns})
    with pytest.raises(ValueError, match="`auc_d` of auc_d holds NaN or infinity for image 2"):
        metric.compute(**{**columns, "auc_d": [0, 0, float("nan"), 0, 0, 0, 0]})
    with pytest.raises(ValueError, match=r"`positive` of auc_d needs equally many numbers .* got \[10, 11\]"):
        metric.compute(**{**columns, "positive": [columns["positive"][0][:10], *columns["positive"][1:]]})
    with pytest.raises(ValueError, match="misses the columns positive_auc, negative_auc, positive, negative"):
        metric.add_batch(auc_d=[1.0])
    with pytest.raises(ValueError, match="one entry per image in every column, got {'auc_d': 1, 'positive_auc': 7"):
        metric.add_batch(**{**columns, "auc_d": [1.0]})
    with pytest.raises(ValueError, match="has no `predictions` and `references`; its columns"):
        metric.compute(predictions=[1], references=[1])
    with pytest.raises(TypeError, match="`compute` of auc_d has no option `sed`; it has: protocol, confidence"):
        metric.compute(**columns, sed=3)
    with pytest.raises(ValueError, match=r"`confidence` must lie in \(0, 1\), got 2"):
        metric.compute(**columns, confidence=2)
    with pytest.raises(ValueError, match="`bootstrap_seed` must be a whole number of at most 64 bits, .* got 'x'"):
        metric.compute(**columns, bootstrap_seed="x")
    assert len(metric) == 0 and not list(tmp_path.rglob("*.arrow"))
    assert metric.compute(**columns)["num_images"] == 7


def test_one_result_has_one_protocol(batch):
    metric = load("auc_d")
    metric.add_batch(**metric.measure(**batch))
    metric.add_batch(**metric.measure(**batch, fill="mean"))
    with pytest.raises(ValueError, match="was measured with fill='black' and with fill='mean' since the last result"):
        metric.compute()
    result = metric.compute(protocol={"fill": "black, then mean"})
    assert result["num_images"] == 14 and result["protocol"]["fill"] == "black, then mean"


def test_win_rate_needs_two_columns():
    metric = load("win_rate")
    with pytest.raises(ValueError, match="`other` is missing: win_rate compares the columns `scores` and `other`"):
        metric.measure(scores=[1.0])
    with pytest.raises(ValueError, match="of the same images"):
        metric.measure(scores=[1.0], other=[1.0, 2.0])
    with pytest.raises(ValueError, match="`scores` must be finite"):
        metric.measure(scores=[float("nan")], other=[1.0])
