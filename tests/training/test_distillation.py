"""The first steps of a run go by a method's maps: which steps, which maps, and what else stays as it was."""

import json
import math
import re
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from test_training import same
from testing_common import random_pixels, save_classifier, tiny_classifier, tiny_processor
from testing_training import TinyHead, parquet_shards, picture_dataset

from hf_explain import (
    METHODS,
    LCamForSaliency,
    PTameForSaliency,
    ScanForSaliency,
    ShapleyForSaliency,
    TTameForSaliency,
)
from hf_explain.cli import main
from hf_explain.evaluation.explainer import PassCounter
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.training.arguments import ExplainerTrainingArguments, learning_rate_at
from hf_explain.training.checkpoints import LOG_FILE
from hf_explain.training.loop import train


RISE = {"distill_method": "rise", "method_options": {"rise": {"num_masks": 6}}}
HEADS = {
    "lcam": (LCamForSaliency, {}),
    "ttame": (TTameForSaliency, {"preset": "ranking", "target_top_k": 2}),
    "ptame": (PTameForSaliency, {"preset": "ranking"}),
}


def new_head(name="ttame", family="vit"):
    kind, fields = HEADS[name]
    if name == "ptame":
        fields = {**fields, "auxiliary": tiny_classifier("resnet", num_labels=3, seed=7)}
    torch.manual_seed(0)
    return kind.from_classifier(tiny_classifier(family), **fields)


@pytest.fixture(autouse=True)
def fresh_precision():
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def image_processor(tmp_path_factory):
    return tiny_processor("vit", tmp_path_factory.mktemp("processor"))


@pytest.fixture
def go(image_processor):
    def run(directory, head=None, method=None, eval_dataset=None, **options):
        defaults = {"per_device_batch_size": 3, "dataloader_num_workers": 0, "disable_tqdm": True, "max_steps": 6}
        args = ExplainerTrainingArguments(output_dir=str(directory), **{**defaults, **options})
        method = METHODS.get(args.distill_method) if method is None else method
        head = new_head() if head is None else head
        record = train(head, picture_dataset(12), eval_dataset, image_processor, args, method=method)
        log = [json.loads(line) for line in (directory / LOG_FILE).read_text().splitlines()]
        return head, record, log

    return run


def pearson(one, other):
    mean, other_mean = sum(one) / len(one), sum(other) / len(other)
    together = sum((a - mean) * (b - other_mean) for a, b in zip(one, other, strict=True))
    return together / math.sqrt(sum((a - mean) ** 2 for a in one) * sum((b - other_mean) ** 2 for b in other))


@pytest.mark.parametrize("name", HEADS)
def test_the_loss_by_hand(name):
    """Of the raw map, before contrast or sigmoid, and the method's map of the same class, averaged over positions."""
    head, pixel_values, target = new_head(name).train(), random_pixels("vit", 3), torch.tensor([4, 0, 2])
    reference = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(1))
    asked = []

    def maps_of(*given):
        asked.append(given)
        return reference

    output = head(pixel_values, target, return_loss=True, distill_from=maps_of)
    ((classifier, images, classes),) = asked
    assert classifier is head.backbone and images is pixel_values and torch.equal(classes, target)
    maps = output.saliency_logits
    height, width = maps.shape[-2:]
    assert 64 % height == 96 % width == 0
    total = 0.0
    for one, other in zip(maps.tolist(), reference.tolist(), strict=True):
        tall, wide = 64 // height, 96 // width
        means = [
            sum(other[i * tall + di][j * wide + dj] for di in range(tall) for dj in range(wide)) / (tall * wide)
            for i in range(height)
            for j in range(width)
        ]
        total += 1 - pearson([value for row in one for value in row], means)
    assert output.loss.item() == pytest.approx(total / 3, rel=1e-3)
    assert output.loss_terms.keys() == {"distillation"} and not output.loss_terms["distillation"].requires_grad
    output.loss.backward()
    trained = [weight for weight in head.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)


def test_the_maps_come_near_and_the_own_loss_follows(tmp_path, go):
    options = {"max_steps": 60, "optimizer": "adamw", "learning_rate": 0.01, "lr_scheduler": "constant",
               "augmentation": "none", "logging_steps": 5, "target": "label"}  # fmt: skip
    _, record, log = go(tmp_path, distill_method="transformer_attribution", distill_steps=50, **options)
    distances = [line["distillation"] for line in log if "distillation" in line]
    assert len(distances) == 10 and distances[-1] < 0.5 * distances[0] and distances[0] > 0.2
    assert [line["step"] for line in log if "ranking" in line] == [55, 60]
    assert record["arguments"]["distill_method"] == "transformer_attribution"
    assert record["arguments"]["distill_steps"] == 50 and record["arguments"]["method_options"] == {}


def test_the_switch_is_at_the_step_asked_for(tmp_path, go, monkeypatch):
    steps = []
    for name in ("compute_loss", "compute_distillation"):
        original = getattr(TTameForSaliency, name)
        monkeypatch.setattr(
            TTameForSaliency,
            name,
            lambda self, *given, name=name, original=original: steps.append(name) or original(self, *given),
        )
    options = {"max_steps": 6, "logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_batch_size": 2}
    _, _, log = go(tmp_path, distill_method="transformer_attribution", distill_steps=3, **options)
    assert steps == ["compute_distillation"] * 6 + ["compute_loss"] * 6
    # a line at the switch, too, so that none mixes the two
    assert [line["step"] for line in log] == [2, 3, 4, 6]
    assert ["distillation" in line for line in log] == [True, True, False, False]
    assert all(line["loss"] == line["distillation"] for line in log[:2])
    assert ["ranking" in line for line in log] == [False, False, True, True]
    args = ExplainerTrainingArguments(output_dir="x", max_steps=6)
    assert [line["learning_rate"] for line in log] == [
        learning_rate_at(args, line["step"] - 1, 6, 3)[0] for line in log
    ]


def test_validation_is_by_the_own_loss(tmp_path, go):
    pictures = picture_dataset(4)
    first, _, log = go(tmp_path / "a", eval_dataset=pictures, eval_steps=2, distill_steps=2, max_steps=2, **RISE)
    value = next(line["eval_loss"] for line in log if "eval_loss" in line)
    assert value > 2  # beyond what a distance can be
    second, _, log = go(tmp_path / "b", distill_steps=2, max_steps=2, **RISE)
    assert same(first, second)


@pytest.mark.parametrize("name", HEADS)
def test_resume_is_exact_across_the_switch(tmp_path, go, name):
    options = {"max_steps": 5, "distill_steps": 3, "save_steps": 1, "save_total_limit": 0, "logging_steps": 2, **RISE}
    whole, record, _ = go(tmp_path, new_head(name), **options)
    assert not same(whole, new_head(name))
    for step in (2, 3, 4):
        again, resumed, _ = go(
            tmp_path, new_head(name), resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"), **options
        )
        assert same(whole, again) and resumed["losses"] == record["losses"]
    shutil.rmtree(tmp_path / "checkpoint-5")
    again, _, _ = go(tmp_path, new_head(name), resume_from_checkpoint="last", **options)
    assert same(whole, again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill_method": "gradcam", "method_options": {}}, "distill_method 'rise', this run has 'gradcam'"),
        ({"distill_steps": 2}, "distill_steps 3, this run has 2: resume with distill_steps 3, or start anew"),
        ({"method_options": {"rise": {"num_masks": 7}}}, "method_options {.*6}}, this run has {.*7}}"),
        ({"distill_method": None, "distill_steps": None, "method_options": {}}, "'rise', this run has None"),
    ],
)
def test_another_setting_is_another_run(tmp_path, go, change, message):
    options = {"max_steps": 4, "distill_steps": 3, "save_steps": 4, **RISE}
    go(tmp_path, **options)
    with pytest.raises(ValueError, match=f"checkpoint-4' was written with .*{message}"):
        go(tmp_path, resume_from_checkpoint="last", **{**options, **change})


def test_a_tuple_among_the_options_is_the_list_that_a_file_has(tmp_path, go):
    options = {
        "distill_method": "rise",
        "distill_steps": 1,
        "method_options": {"rise": {"num_masks": 4, "grid": (2, 2)}},
    }
    whole, _, _ = go(tmp_path, max_steps=2, save_steps=1, save_total_limit=0, **options)
    again, _, _ = go(tmp_path, max_steps=2, resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **options)
    assert same(whole, again)


class Teacher:
    """Stands for a method that draws; remembers how it was called."""

    def __init__(self):
        self.seeds, self.seen = [], []

    def __call__(self, classifier, pixel_values, target=None, *, strength=1.0, seed=0):
        self.seeds.append(seed)
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), pixel_values.dtype, target))
        maps = torch.rand(len(pixel_values), 8, 8, generator=torch.Generator().manual_seed(seed))
        return SaliencyOutput(saliency=maps * strength)


def test_what_is_drawn_is_of_the_step(tmp_path, go):
    options = {"max_steps": 4, "distill_method": "own", "distill_steps": 3, "gradient_accumulation_steps": 2,
               "save_steps": 1, "save_total_limit": 0}  # fmt: skip
    teacher = Teacher()
    go(tmp_path / "a", method=teacher, **options)
    first, *drawn = teacher.seeds  # the first one tries it out
    assert drawn == [seed for seed in dict.fromkeys(drawn) for _ in range(2)] and len(set(drawn)) == 3
    again = Teacher()
    go(tmp_path / "a", method=again, resume_from_checkpoint=str(tmp_path / "a/checkpoint-1"), **options)
    assert again.seeds[1:] == drawn[2:]
    other = Teacher()
    go(tmp_path / "b", method=other, seed=1, **options)
    assert not set(other.seeds) & set(drawn)
    fixed = Teacher()
    go(tmp_path / "c", method=fixed, method_options={"own": {"seed": 5}}, **options)
    assert set(fixed.seeds) == {5}


def test_methods_run_in_float32_without_a_graph(tmp_path, go):
    teacher = Teacher()
    options = {"distill_method": "own", "distill_steps": 2, "max_steps": 2, "mixed_precision": "bf16"}
    go(tmp_path, method=teacher, **options)
    assert len(teacher.seen) == 3 and teacher.seen[0][-1] is None
    for autocast, grad, dtype, target in teacher.seen[1:]:
        assert not autocast and not grad and dtype == torch.float32 and target.shape == (3,)


def test_nothing_is_computed_that_is_not_needed(tmp_path, go, monkeypatch):
    """In a step of distilling the head asks the classifier once about every image, and makes one map of each."""
    head = new_head()
    monkeypatch.setattr(
        type(head), "pairwise_saliency_logits", lambda *given: pytest.fail("maps of other images' classes")
    )
    with PassCounter(head.backbone) as passes:
        go(tmp_path, head, method=Teacher(), distill_method="own", distill_steps=4, max_steps=4)
    assert (passes.full, passes.tail) == (4 * 3, 0)


def test_bf16_trains_the_same_way(tmp_path, go):
    options = {"distill_method": "transformer_attribution", "distill_steps": 3, "max_steps": 4, "target": "label"}
    full, _, _ = go(tmp_path / "a", **options)
    half, _, log = go(tmp_path / "b", mixed_precision="bf16", **options)
    assert not same(full, half) and all(math.isfinite(line["loss"]) for line in log)
    torch.testing.assert_close(full.fuser.weight, half.fuser.weight, atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_method": "rise"}, "distill_method 'rise' needs distill_steps, for how many steps at the beginning"),
        ({"distill_steps": 3}, "distill_steps 3 needs distill_method, a training-free method such as transformer_at"),
        ({**RISE, "distill_steps": 0}, "`distill_steps` must be a whole number of at least 1.*, got 0"),
        ({**RISE, "distill_steps": 7}, "distill_steps 7 is more than the 6 steps of the run: lower it, or raise max_"),
        ({"method_options": {"rise": {}}}, "method_option names 'rise', but distill_method is None"),
        (
            {"distill_method": "gradcam", "distill_steps": 1, "method_options": {"rise": {"seed": 1}}},
            "method_option names 'rise', but distill_method is 'gradcam'",
        ),
        ({**RISE, "distill_steps": 1, "torch_compile": True}, "distill_method 'rise' needs torch_compile off"),
        (
            {"distill_method": "rise", "distill_steps": 1, "method_options": {"rise": {"num_masks": 0}}},
            "`num_masks` must be a whole number of at least 1, got 0",
        ),
        (
            {"distill_method": "gradcam", "distill_steps": 1, "method_options": {"gradcam": {"layer": "stage9"}}},
            "`layer` 'stage9' .*",
        ),
    ],
)
def test_bad_settings_leave_no_directory_behind(tmp_path, go, options, message):
    with pytest.raises(ValueError, match=message):
        go(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_method_that_the_classifier_has_not_is_refused_first(tmp_path, go):
    with pytest.raises(ValueError) as usual:
        METHODS["transformer_attribution"](tiny_classifier("resnet"), random_pixels("resnet"))
    with pytest.raises(ValueError, match=f"^{re.escape(str(usual.value))}$"):
        head = new_head("lcam", "resnet")
        go(tmp_path / "out", head, distill_method="transformer_attribution", distill_steps=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [ScanForSaliency, ShapleyForSaliency])
def test_heads_whose_map_means_something_else(tmp_path, go, kind):
    head = kind.from_classifier(tiny_classifier("vit"))
    with pytest.raises(
        ValueError,
        match=rf"distill_method 'rise' is for heads .* \(lcam, ttame, ptame\), .* of {kind.__name__} is not: leave it",
    ):
        go(tmp_path / "out", head, distill_steps=1, **RISE)
    assert not (tmp_path / "out").exists()


def test_the_function_goes_with_the_name(tmp_path, image_processor):
    args = ExplainerTrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_batch_size=2, distill_steps=1, **RISE
    )
    with pytest.raises(ValueError, match=r"give train\(\) the function, too, as method=hf_explain.METHODS\['rise'\]"):
        train(new_head(), picture_dataset(12), None, image_processor, args)
    args = ExplainerTrainingArguments(output_dir=str(tmp_path / "out"), max_steps=2, per_device_batch_size=2)
    with pytest.raises(ValueError, match="`method` is given, but args.distill_method is None"):
        train(TinyHead(), picture_dataset(12), None, image_processor, args, method=METHODS["rise"])


def test_the_command(tmp_path, capsys):
    (tmp_path / "classifier").mkdir()
    save_classifier("vit", tmp_path / "classifier")
    shards = parquet_shards(tmp_path / "shards", count=8, shards=1)
    command = ["train", "--classifier", str(tmp_path / "classifier"), "--dataset", str(shards), "--head", "ttame",
               "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--per_device_batch_size", "4",
               "--dataloader_num_workers", "0", "--distill_steps", "1"]  # fmt: skip
    for words, message in (
        (["--distill_method", "rollot"], "`distill_method` 'rollot' does not exist; .* Did you mean 'rollout'?"),
        (["--distill_method", "rise", "--method_option", "rise.masks=4"], "'rise' has no option 'masks'; its options"),
        (["--distill_method", "rise", "--head", "scan"], "is for heads that are trained by masks"),
    ):
        assert main([*command, *words]) == 1
        assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()
    assert main([*command, "--distill_method", "rise", "--method_option", "rise.num_masks=4"]) == 0
    record = json.loads((tmp_path / "out/training_record.json").read_text())
    settings = {name: record["arguments"][name] for name in ("distill_method", "distill_steps", "method_options")}
    assert settings == {"distill_method": "rise", "distill_steps": 1, "method_options": {"rise": {"num_masks": 4}}}
    log = [json.loads(line) for line in (tmp_path / "out" / LOG_FILE).read_text().splitlines()]
    assert [(line["step"], "distillation" in line) for line in log] == [(1, True), (2, False)]
