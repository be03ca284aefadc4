import argparse
import errno
import json
import os
import pickle
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
import training_worker
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from testing_common import save_classifier, tiny_classifier
from testing_processes import launch, start
from testing_training import DISTILLED, HEADS, TinyHead, parquet_shards, picture_dataset, processor, train_head
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from hf_explain import FrozenClassifier, LCamForSaliency, PTameForSaliency
from hf_explain.apps import train as train_command
from hf_explain.apps.arguments import TrainCommand
from hf_explain.apps.command_line import add_options, parse_assignments, read_options
from hf_explain.cli import COMMANDS, main
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import LOCK_FILE
from hf_explain.training.arguments import (
    ExplainerTrainingArguments,
    check_same_path,
    describe_path,
    learning_rate_at,
)
from hf_explain.training.checkpoints import LOG_FILE, list_checkpoints, load_checkpoint, save_checkpoint, trim_log
from hf_explain.training.loop import train
from hf_explain.training.runtime import make_optimizer


@pytest.fixture(autouse=True)
def fresh_precision():
    yield
    AcceleratorState._reset_state()


def run(directory, dataset=None, head=None, eval_dataset=None, **options):
    defaults = {"per_device_batch_size": 4, "dataloader_num_workers": 0, "disable_tqdm": True, "logging_steps": 2}
    args = ExplainerTrainingArguments(output_dir=str(directory), **{**defaults, **options})
    head = TinyHead() if head is None else head
    dataset = picture_dataset() if dataset is None else dataset
    return head, train(head, dataset, eval_dataset, processor(), args)


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_trains_saves_and_records(tmp_path):
    head, record = run(tmp_path / "out", eval_dataset=picture_dataset(7), num_train_epochs=2)
    untrained = TinyHead()
    assert not torch.equal(head.head.weight, untrained.head.weight)
    assert torch.equal(head.stem.weight, untrained.stem.weight)
    assert torch.equal(head.norm.running_mean, untrained.norm.running_mean)
    assert record["steps"] == 14 and record["epochs"] == 2 and record["trainable_parameters"] == 15
    assert record["final_loss"] < record["losses"][0][1]
    assert [step for step, _ in record["eval_losses"]] == [7, 14]
    assert record == json.loads((tmp_path / "out/training_record.json").read_text())
    assert str(tmp_path) not in json.dumps(record)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "preprocessor_config.json", "train_log.jsonl", "training_record.json"
    }  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "out/train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [2, 4, 6, 8, 10, 12, 14] and "size" in log[0]
    # handed back as it came
    assert not head.training and "forward" not in vars(head) and head.head.weight.grad is None


def test_validation_loss_is_the_mean_over_images(tmp_path):
    head, record = run(tmp_path, eval_dataset=picture_dataset(7), max_steps=2)
    pixel_values = processor()([picture["image"] for picture in picture_dataset(7)], return_tensors="pt").pixel_values
    with torch.no_grad():
        losses = [head(image[None]).loss.item() for image in pixel_values]
    assert record["final_eval_loss"] == pytest.approx(sum(losses) / 7, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(tmp_path, optimizer, workers):
    options = {"num_train_epochs": 2, "save_steps": 3, "save_total_limit": 0, "optimizer": optimizer,
               "learning_rate": 0.01, "eval_dataset": picture_dataset(5)}  # fmt: skip
    whole, record = run(tmp_path, **options)
    for step in (3, 9):
        again, resumed = run(
            tmp_path, resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"), dataloader_num_workers=workers,
            **options,
        )  # fmt: skip
        assert same(whole, again)
        assert all(torch.equal(one, other) for one, other in zip(whole.seen[step:], again.seen, strict=True))
        assert resumed["losses"] == record["losses"] and resumed["eval_losses"] == record["eval_losses"]


@pytest.mark.parametrize("buffer", [3, 1000])
def test_resume_is_exact_in_a_stream(tmp_path, buffer):
    shards = parquet_shards(tmp_path / "shards")
    options = {"max_steps": 20, "save_steps": 5, "save_total_limit": 0, "shuffle_buffer_size": buffer}
    whole, _ = run(tmp_path / "out", load_image_dataset(shards, streaming=True), **options)
    for step in (5, 10, 20):
        again, _ = run(
            tmp_path / "out", load_image_dataset(shards, streaming=True),
            resume_from_checkpoint=str(tmp_path / f"out/checkpoint-{step}"), **options,
        )  # fmt: skip
        assert same(whole, again)
        assert all(torch.equal(one, other) for one, other in zip(whole.seen[step:], again.seen, strict=True))


def test_a_stream_loses_and_repeats_nothing(tmp_path):
    shards = parquet_shards(tmp_path / "shards", count=24)
    options = {"augmentation": "none", "shuffle_buffer_size": 5, "max_steps": 12}
    head, _ = run(tmp_path / "out", load_image_dataset(shards, streaming=True), **options)
    images = [row["image"] for row in picture_dataset(24)]
    expected = {image.numpy().tobytes() for image in processor()(images, return_tensors="pt").pixel_values}
    seen = [image.numpy().tobytes() for image in torch.cat(head.seen)]
    assert set(seen[:24]) == set(seen[24:]) == expected and seen[:24] != seen[24:]


def test_resume_last_without_a_checkpoint_starts_afresh(tmp_path):
    first, _ = run(tmp_path / "a", max_steps=3)
    second, _ = run(tmp_path / "b", max_steps=3, resume_from_checkpoint="last")
    assert same(first, second)


def test_keeps_the_last_checkpoints(tmp_path):
    run(tmp_path, max_steps=9, save_steps=2, save_total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    with pytest.raises(FileExistsError, match="checkpoint-8 of an earlier run.*resume_from_checkpoint='last'"):
        run(tmp_path, max_steps=9)
    run(tmp_path, max_steps=1, overwrite_output_dir=True)
    assert list_checkpoints(tmp_path) == []


class Slow(TinyHead):
    """Takes its time over the second checkpoint, and says so."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe = pipe

    def save_pretrained(self, directory):
        super().save_pretrained(directory)
        if "checkpoint-6" in str(directory):
            self.pipe.send("half-way")
            time.sleep(600)


def slow_run(pipe, directory):
    run(directory, head=Slow(pipe), max_steps=9, save_steps=3)


def test_killed_before_the_oldest_checkpoint_was_deleted(tmp_path):
    options = {"max_steps": 6, "save_steps": 2, "resume_from_checkpoint": "last"}
    run(tmp_path, **options, save_total_limit=2)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-2")
    run(tmp_path, **options, save_total_limit=0)
    assert len(list_checkpoints(tmp_path)) == 3
    run(tmp_path, **options, save_total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.processes
def test_killed_in_the_middle_of_a_checkpoint(tmp_path):
    out = tmp_path / "out"
    process, pipe = start(slow_run, out)
    assert pipe.recv() == "half-way"
    process.kill()
    process.join()
    assert list(out.glob(".checkpoint-6.*.tmp/new/model.safetensors")) and not (out / "checkpoint-6").exists()
    resumed, _ = run(out, max_steps=9, save_steps=3, resume_from_checkpoint="last")
    assert not list(out.rglob("*.tmp"))
    whole, _ = run(tmp_path / "whole", max_steps=9, save_steps=3)
    assert same(whole, resumed) and len(resumed.seen) == 6


@pytest.mark.processes
def test_two_processes(tmp_path):
    parquet_shards(tmp_path / "shards", shards=3)
    found, other = launch(training_worker.main, tmp_path)
    assert found == other and found["num_processes"] == 2
    assert found["map"] == found["map_resumed"] and found["stream"] == found["stream_resumed"]
    # two processes with two images each walk with one process with four
    alone, record = run(tmp_path / "alone", head=TinyHead(0.0), eval_dataset=picture_dataset(5), max_steps=9)
    alone_weights = list(alone.head.parameters())
    weights = torch.cat([weight.data.flatten() for weight in alone_weights])
    torch.testing.assert_close(torch.tensor(found["quiet"]), weights)
    for name in (*HEADS, "distilled"):
        kind, more = ("ttame", DISTILLED) if name == "distilled" else (name, {})
        alone = train_head(kind, tmp_path / f"alone-{name}", per_device_batch_size=4, **more)
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(alone), rtol=1e-4, atol=1e-5, msg=name)
    assert found["distilled"] == found["distilled_from_1"] == found["distilled_from_3"]
    # in a step nothing but the gradients, and one number that says whether all is well
    two, five = found["traffic"]
    gradients = sum(4 * weight.numel() for weight in alone_weights)
    assert five - two == 3 * (gradients + 4)
    last_good = tmp_path / "nan/checkpoint-2"
    assert "loss is nan at step 3, batch of samples " in found["nan"] and str(last_good) in found["nan"]
    assert len(found["nan"].split("samples ")[1].split(":")[0].split(", ")) == 2
    assert "busy' is in use by another run" in found["busy"] and list((tmp_path / "busy").iterdir()) == []


def test_one_run_at_a_time(tmp_path):
    """In the third step of a run, another one starts in its directory."""

    class Disturbed(TinyHead):
        def forward(self, pixel_values, target=None, return_loss=False):
            output = super().forward(pixel_values, target)
            if len(self.seen) == 3:
                with pytest.raises(OSError, match="output_dir '.*out' is in use by another run.*another output_dir"):
                    run(tmp_path / "out", head=other, max_steps=9, save_steps=2, overwrite_output_dir=True)
            return output

    options = {"max_steps": 9, "save_steps": 2, "save_total_limit": None}
    other = TinyHead()
    head, record = run(tmp_path / "out", head=Disturbed(), **options)
    alone, expected = run(tmp_path / "alone", **options)
    assert other.seen == [] and same(head, alone) and record["losses"] == expected["losses"]
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("out", "alone")]
    assert names[0] == names[1] and "checkpoint-2" in names[0] and LOCK_FILE not in names[0]
    run(tmp_path / "out", head=other, **options, overwrite_output_dir=True)
    assert same(other, alone)


def test_processes_that_do_not_see_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but Accelerate sees 1.*ACCELERATE_USE_CPU=true"):
        run(tmp_path, max_steps=1)


def test_accumulation_equals_a_larger_batch(tmp_path):
    large, _ = run(tmp_path / "a", head=TinyHead(0.0), max_steps=6)
    small, _ = run(
        tmp_path / "b", head=TinyHead(0.0), max_steps=6, per_device_batch_size=2, gradient_accumulation_steps=2
    )
    torch.testing.assert_close(large.head.weight, small.head.weight)


def test_bf16(tmp_path):
    full, _ = run(tmp_path / "a", max_steps=4)
    half, record = run(tmp_path / "b", max_steps=4, mixed_precision="bf16")
    assert record["machine"]["mixed_precision"] == "bf16" and half.head.weight.dtype == torch.float32
    assert not same(full, half)
    torch.testing.assert_close(full.head.weight, half.head.weight, atol=0.02, rtol=0.05)
    with pytest.raises(ValueError, match="mixed_precision 'fp16' does not exist on the CPU"):
        run(tmp_path / "c", max_steps=1, mixed_precision="fp16")


def test_labels_as_targets(tmp_path):
    class Remembers(TinyHead):
        def forward(self, pixel_values, target=None, return_loss=False):
            self.target = target
            return super().forward(pixel_values, target)

    head, _ = run(tmp_path / "a", head=Remembers(), max_steps=1)
    assert head.target is None
    head, _ = run(tmp_path / "b", head=Remembers(), max_steps=1, target="label")
    assert head.target.dtype == torch.int64 and head.target.shape == (4,)


def test_a_real_head(tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    classifier = ResNetForImageClassification(config).eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}

    def new_head():
        torch.manual_seed(1)
        return LCamForSaliency.from_classifier(FrozenClassifier(classifier), variant="img")

    options = {"max_steps": 6, "save_steps": 3, "save_total_limit": 0}
    whole, record = run(tmp_path, head=new_head(), **options)
    again, _ = run(tmp_path, head=new_head(), resume_from_checkpoint=str(tmp_path / "checkpoint-3"), **options)
    assert same(whole, again)
    assert not torch.equal(whole.attention.weight, new_head().attention.weight)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert record["trainable_parameters"] == sum(p.numel() for p in whole.attention.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 5000


def test_a_compiled_classifier(tmp_path):
    """The same weights, under the same names, of the head and of the classifier; nothing is left compiled."""
    weights = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), variant="img")
        options = {"torch_compile": compiled, "torch_compile_backend": "eager" if compiled else None}
        run(tmp_path / str(compiled), head=head, eval_dataset=picture_dataset(5), max_steps=2, save_steps=1, **options)
        weights[compiled] = load_file(tmp_path / str(compiled) / "model.safetensors")
        assert not any(module._compiled_call_impl for module in head.modules())
        assert pickle.loads(pickle.dumps(head.backbone)).layer_names == head.backbone.layer_names
    torch.testing.assert_close(weights[True], weights[False])
    with pytest.raises(ValueError, match="written with torch_compile True, this run has False"):
        run(tmp_path / "True", head=head, max_steps=3, resume_from_checkpoint="last")


def test_what_cannot_be_compiled_is_said_first(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="torch_compile compiles a head's classifier, and TinyHead has none"):
        run(tmp_path / "tiny", max_steps=1, torch_compile=True)
    with pytest.raises(ValueError, match="found by hooks, which compiled modules do not call"):
        with FrozenClassifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())).compiled():
            pass

    def no_compiler(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ValueError, match="on this cpu with the backend 'inductor' .*No working C.*such as g"):
        with tiny_classifier("resnet").compiled():
            pass


class Fails(TinyHead):
    """A head whose loss, or whose disk, gives out after some steps."""

    def __init__(self, nan_at=None, full_at=None):
        super().__init__()
        self.nan_at, self.full_at = nan_at, full_at

    def forward(self, pixel_values, target=None, return_loss=False):
        output = super().forward(pixel_values, target)
        if len(self.seen) == self.nan_at:
            output.loss = output.loss * float("nan")
        return output

    def save_pretrained(self, directory):
        super().save_pretrained(directory)
        if self.full_at is not None and f"checkpoint-{self.full_at}" in str(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nan_names_step_samples_and_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 5, batch of samples (\d+, ){3}\d+: .*-4'\.$"):
        run(tmp_path, head=Fails(nan_at=5), save_steps=2, max_steps=9)
    with pytest.raises(FloatingPointError, match="no checkpoint was written before"):
        run(tmp_path / "b", head=Fails(nan_at=1), max_steps=9)
    assert not (tmp_path / "training_record.json").exists()


def test_infinite_weights_are_not_saved(tmp_path):
    class Explodes(TinyHead):
        def forward(self, pixel_values, target=None, return_loss=False):
            output = super().forward(pixel_values, target)
            if len(self.seen) == 4:
                # finite here, not finite once the gradient has been applied
                output.loss = output.loss + (self.head.bias.sum() * 1e38 * 1e38).nan_to_num(0.0, 0.0, 0.0)
                self.head.bias.register_hook(lambda gradient: gradient * float("inf"))
            return output

    with pytest.raises(FloatingPointError, match="not finite after step 4: the last good checkpoint is .*-2'"):
        run(tmp_path, head=Explodes(), save_steps=2, max_steps=9)


def test_disk_full_leaves_nothing_half_written(tmp_path):
    with pytest.raises(OSError, match="checkpoint-4': No space left on device. Nothing half-written.*checkpoint-2'"):
        run(tmp_path, head=Fails(full_at=4), save_steps=2, max_steps=9)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert load_checkpoint(tmp_path / "checkpoint-2")[1]["step"] == 2


def test_output_dir_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    head = TinyHead()
    with pytest.raises(OSError, match="output_dir .*file/out' is not writable"):
        run(tmp_path / "file/out", head=head)
    assert head.seen == []


def test_unreadable_checkpoint(tmp_path):
    run(tmp_path, save_steps=2, max_steps=5)
    state = tmp_path / "checkpoint-4/training_state.pt"
    state.write_bytes(state.read_bytes()[:-20])
    with pytest.raises(OSError, match="checkpoint-4' is unreadable .*delete it to resume from checkpoint-2"):
        run(tmp_path, save_steps=2, max_steps=5, resume_from_checkpoint="last")
    with pytest.raises(FileNotFoundError, match="resume_from_checkpoint .*checkpoint-7' does not exist"):
        run(tmp_path, max_steps=5, resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


class Other(TinyHead):
    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(2, 2)


def test_checkpoint_of_other_settings(tmp_path):
    run(tmp_path, save_steps=2, max_steps=4)
    with pytest.raises(ValueError, match="written with learning_rate 0.05, this run has 0.1"):
        run(tmp_path, max_steps=4, learning_rate=0.1, resume_from_checkpoint="last")
    assert len((tmp_path / "train_log.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="checkpoint-4' is of another head than this Other"):
        run(tmp_path, head=Other(), max_steps=4, resume_from_checkpoint="last")
    with pytest.raises(ValueError, match="checkpoint-4' is at step 4, past the 3 steps asked for: raise max_steps or"):
        run(tmp_path, max_steps=3, resume_from_checkpoint="last")


# every setting that decides where a run arrives, with a value that is not the one it was written with
PATH = {
    "per_device_batch_size": 5,
    "gradient_accumulation_steps": 2,
    "optimizer": "adamw",
    "learning_rate": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "lr_scheduler": "cosine",
    "pct_start": 0.5,
    "cycle_momentum": False,
    "lr_decay": 0.5,
    "max_grad_norm": 1.0,
    "target": "label",
    "augmentation": "flip",
    "resize_size": 40,
    "seed": 1,
    "shuffle_buffer_size": 7,
    "decode_draft": True,
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "distill_method": "rise",
    "distill_steps": 3,
    "method_options": {"rise": {"num_masks": 7}},
    "num_examples": 31,
    "total_steps": 3,
    "num_processes": 2,
    "mixed_precision": "bf16",
}


# what checkpoints of earlier versions say nothing of
CHOSEN_LATER = (
    "decode_draft", "torch_compile", "torch_compile_backend", "distill_method", "distill_steps", "method_options"
)  # fmt: skip


@pytest.mark.parametrize("name", PATH)
def test_every_setting_of_the_path_counts(name):
    run = {"num_examples": 30, "total_steps": 4, "num_processes": 1, "mixed_precision": "no"}
    settings = ExplainerTrainingArguments(output_dir="out")
    now = describe_path(settings, *run.values())
    assert now.keys() == PATH.keys()
    info = {"path": now, "step": 4}
    check_same_path(Path("checkpoint-4"), info, now, 4)
    of_before = {key: value for key, value in now.items() if key not in CHOSEN_LATER}
    check_same_path(Path("checkpoint-4"), {"path": of_before, "step": 4}, now, 4)
    if name in run:
        run[name] = PATH[name]
    else:
        settings = ExplainerTrainingArguments(output_dir="out", **{name: PATH[name]})
    this = re.escape(repr(PATH[name]))
    with pytest.raises(ValueError, match=rf"checkpoint-4' was written with {name} .*, this run has {this}"):
        check_same_path(Path("checkpoint-4"), info, describe_path(settings, *run.values()), 8)


def test_resuming_with_another_augmentation(tmp_path):
    run(tmp_path, max_steps=2, save_steps=1)
    with pytest.raises(ValueError, match="written with augmentation 'crop', this run has 'none'"):
        run(tmp_path, max_steps=2, augmentation="none", resume_from_checkpoint="last")


def test_the_log_ends_at_the_checkpoint(tmp_path):
    """Also where the killed run had logged more, and the line of the checkpoint's own step is kept."""
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 7)]
    (tmp_path / LOG_FILE).write_text("".join(lines) + '{"step": 4, "lo')
    trim_log(tmp_path, 4)
    assert (tmp_path / LOG_FILE).read_text() == "".join(lines[:4])
    trim_log(tmp_path, 0)
    assert (tmp_path / LOG_FILE).read_text() == ""


def test_time_before_resuming_counts(tmp_path):
    run(tmp_path, max_steps=2, save_steps=1, lr_scheduler="constant")
    state, info = load_checkpoint(tmp_path / "checkpoint-2")
    assert 0 < info["elapsed"] < 600
    save_checkpoint(tmp_path, 2, state, {**info, "elapsed": 5000.0}, lambda directory: None)
    _, record = run(tmp_path, max_steps=4, save_steps=2, lr_scheduler="constant", resume_from_checkpoint="last")
    assert 5000 < record["seconds"] < 5600
    assert 5000 < json.loads((tmp_path / "checkpoint-4/trainer_state.json").read_text())["elapsed"] < 5600


def test_micro_batches_draw_numbers_of_their_own(tmp_path):
    class Draws(TinyHead):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def forward(self, pixel_values, target=None, return_loss=False):
            self.drawn.append(torch.rand(()).item())
            return super().forward(pixel_values, target)

    options = {"max_steps": 3, "save_steps": 1, "save_total_limit": 0, "gradient_accumulation_steps": 2}
    head, _ = run(tmp_path, head=Draws(), **options)
    assert len(head.drawn) == len(set(head.drawn)) == 6
    again, _ = run(tmp_path, head=Draws(), resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **options)
    assert again.drawn == head.drawn[2:]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimizer": "lion"}, "`optimizer` must be one of sgd, adamw, adam, got 'lion'"),
        ({"per_device_batch_size": 0}, "`per_device_batch_size` must be a whole number of at least 1, got 0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be above 0 and finite, got -1.0"),
        ({"pct_start": 1.0}, r"`pct_start` must lie in \(0, 1\), got 1.0"),
        ({"report_to": "no_such_tracker"}, "report_to 'no_such_tracker' is not installed or unknown"),
        ({"per_device_batch_size": 31}, "the dataset has 30 images but one step takes 31"),
        ({"resize_size": 8}, "resize_size 8 is smaller than the crop"),
        ({"decode_draft": True, "augmentation": "flip"}, "decode_draft needs augmentation 'crop', got 'flip'"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_bad_validation_set_leaves_no_directory_behind(tmp_path):
    with pytest.raises(ValueError, match="image_column was not given"):
        run(tmp_path / "out", eval_dataset=[{"text": "no image"}], max_steps=1)
    assert not (tmp_path / "out").exists()


def test_streams_need_a_length(tmp_path):
    shards = parquet_shards(tmp_path / "shards")
    with pytest.raises(ValueError, match="stream of unknown length: pass max_steps, or num_examples"):
        run(tmp_path / "out", load_image_dataset(shards, streaming=True))
    with pytest.raises(ValueError, match="'exponential' decays per epoch"):
        run(tmp_path / "out", load_image_dataset(shards, streaming=True), max_steps=2, lr_scheduler="exponential")
    _, record = run(tmp_path / "out", load_image_dataset(shards, streaming=True), num_examples=30, num_train_epochs=2)
    assert record["steps"] == 14


def test_nothing_to_train_and_no_processor(tmp_path):
    with pytest.raises(ValueError, match="TinyHead has no trainable parameter"):
        run(tmp_path, head=TinyHead().requires_grad_(False), max_steps=1)
    with pytest.raises(ValueError, match="image_processor is None"):
        train(TinyHead(), picture_dataset(), args=ExplainerTrainingArguments(output_dir=str(tmp_path)))


@pytest.mark.parametrize("cycle", [True, False])
def test_onecycle_is_torchs(cycle):
    args = ExplainerTrainingArguments(output_dir="x", learning_rate=0.1, pct_start=0.2, cycle_momentum=cycle)
    optimizer = make_optimizer(TinyHead(), args)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=40, pct_start=0.2, cycle_momentum=cycle
    )
    for step in range(40):
        rate, momentum = learning_rate_at(args, step, 40, None)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert (momentum or 0.9) == pytest.approx(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()


def test_exponential_decays_per_epoch():
    args = ExplainerTrainingArguments(output_dir="x", learning_rate=1.0, lr_scheduler="exponential", lr_decay=0.75)
    assert [learning_rate_at(args, step, 9, 3)[0] for step in (0, 2, 3, 8)] == [1.0, 1.0, 0.75, 0.5625]


def test_weight_decay_spares_biases():
    args = ExplainerTrainingArguments(output_dir="x", weight_decay=0.1)
    decayed, spared = make_optimizer(TinyHead(), args).param_groups
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 0.1 and decayed["nesterov"]
    assert [p.ndim for p in spared["params"]] == [1] and spared["weight_decay"] == 0


def test_head_options():
    options = ["variant=img", "area_weight=2.0", 'feature_layers=["stage4"]', "skip=true"]
    assert parse_assignments(options, "head_option") == {
        "variant": "img", "area_weight": 2.0, "feature_layers": ["stage4"], "skip": True
    }  # fmt: skip
    with pytest.raises(ValueError, match="head_option 'variant' is not NAME=VALUE"):
        parse_assignments(["variant"], "head_option")


def test_command_trains_a_head_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import train_explainer

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "classifier")
    processor().save_pretrained(tmp_path / "classifier")
    shards = parquet_shards(tmp_path / "shards")
    command = ["train", "--classifier", str(tmp_path / "classifier"), "--dataset", str(shards), "--head_option",
               "variant=img", "--output-dir", str(tmp_path / "out"), "--max_steps", "2", "--streaming",
               "--per-device-batch-size", "4", "--dataloader_num_workers", "0"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    assert train_explainer.main() == 0
    captured = capsys.readouterr()
    first, said, explain, measure = captured.out.splitlines()
    assert first == "Training with 1 process on cpu: 2 steps of 4 images."
    assert re.fullmatch(rf"The head is in {re.escape(str(tmp_path / 'out'))}: 2 steps, \d+ s\.", said)
    for line in (explain, measure):  # what is said can be typed
        program, name, *words = shlex.split(line.partition(":  ")[2])
        parser = argparse.ArgumentParser()
        add_options(parser, COMMANDS[name].options)
        assert program == "hf-explain" and read_options(COMMANDS[name].options, parser.parse_args(words))
    assert f"lcam={tmp_path / 'out'},gradcam" in measure and f"--model {tmp_path / 'out'}" in explain
    assert re.search(r"0/2 .*loss=", captured.err)
    record = json.loads((tmp_path / "out/training_record.json").read_text())
    assert record["classifier"] == "classifier" and record["dataset"] == "shards" and record["steps"] == 2
    assert record["preset"] is None
    head = LCamForSaliency.from_pretrained(tmp_path / "out")
    assert head(torch.rand(1, 3, 16, 16)).saliency.shape[0] == 1
    monkeypatch.setattr(sys, "argv", [*command, "--preset", "ranking"])  # L-CAM has no presets
    assert train_explainer.main() == 1
    assert "`preset` 'ranking' does not exist" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--head_option", "preset=ranking"])
    assert train_explainer.main() == 1
    assert "head_option preset=ranking is not a field of a head: write --preset instead." in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--head", "no_such_head"])
    assert train_explainer.main() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    monkeypatch.setattr(sys, "argv", [*command, "--attn_implementation", "flashy"])
    assert train_explainer.main() == 1
    assert 'attn_implementation="flashy"` is not supported' in capsys.readouterr().err


def test_command_trains_and_resumes_a_head_over_another_classifier(tmp_path, capsys):
    for name, family, seed in (("classifier", "vit", 0), ("auxiliary", "resnet", 7)):
        (tmp_path / name).mkdir()
        save_classifier(family, tmp_path / name, seed=seed)
    shards = parquet_shards(tmp_path / "shards", count=8, shards=1)
    command = ["train", "--classifier", str(tmp_path / "classifier"), "--dataset", str(shards), "--head", "ptame",
               "--head_option", f"auxiliary={tmp_path / 'auxiliary'}", "--output_dir", str(tmp_path / "out"),
               "--max_steps", "2", "--save_steps", "1", "--save_total_limit", "0", "--per_device_batch_size", "4",
               "--dataloader_num_workers", "0"]  # fmt: skip
    assert main(command) == 0
    whole = PTameForSaliency.from_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out/training_record.json").read_text())
    assert record["head_options"] == {"auxiliary": "auxiliary"}
    resume = ["--resume_from_checkpoint", str(tmp_path / "out/checkpoint-1")]
    assert main([*command, *resume]) == 0
    again = PTameForSaliency.from_pretrained(tmp_path / "out")
    assert again.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
    capsys.readouterr()
    save_classifier("resnet", tmp_path / "auxiliary", seed=8)
    assert main([*command, *resume]) == 1
    assert "resume with the auxiliary it was written with" in capsys.readouterr().err


@pytest.fixture
def new_head(tmp_path, monkeypatch):
    """The head that the train command is about to train, for the words given."""
    config = ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=16, num_labels=3)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    processor().save_pretrained(tmp_path / "classifier")
    built = []

    def no_training(head, *others):
        built.append(head)
        return {"steps": 0, "seconds": 0.0}

    monkeypatch.setattr(train_command, "train", no_training)
    parser = argparse.ArgumentParser()
    add_options(parser, TrainCommand)
    command = ["--classifier", str(tmp_path / "classifier"), "--dataset", str(parquet_shards(tmp_path / "shards")),
               "--output_dir", str(tmp_path / "out")]  # fmt: skip

    def build(*words):
        train_command.run(read_options(TrainCommand, parser.parse_args([*command, *words])))
        return built[-1]

    return build


def test_command_trains_with_the_attention_asked_for(new_head):
    asked = [new_head(), new_head("--attn_implementation", "eager")]
    assert [head.backbone.model.config._attn_implementation for head in asked] == ["sdpa", "eager"]


@pytest.mark.parametrize("head", ["lcam", "ttame", "scan", "shapley"])
def test_command_draws_the_first_weights_from_the_seed(new_head, head):
    torch.manual_seed(7)
    first, again, other = (
        torch.cat([weight.flatten() for name, weight in built.named_parameters() if "backbone" not in name])
        for built in (new_head("--head", head), new_head("--head", head), new_head("--head", head, "--seed", "1"))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
