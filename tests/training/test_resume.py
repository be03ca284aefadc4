"""A run goes on as itself or not at all: with another classifier, head, data or file it is refused in one sentence."""

import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path

import datasets
import pytest
import torch
from test_training import run, same
from testing_training import encoded, parquet_shards, picture, picture_dataset, processor
from transformers import ResNetConfig, ResNetForImageClassification, pipeline

from hf_explain import FrozenClassifier, LCamForSaliency
from hf_explain.cli import main
from hf_explain.io.data_checksum import data_checksum
from hf_explain.io.datasets import load_image_dataset
from hf_explain.publish.hub import plan_explainer
from hf_explain.training.arguments import ExplainerTrainingArguments, learning_rate_at
from hf_explain.training.checkpoints import (
    INFO_FILE,
    LOG_FILE,
    STATE_FILE,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def head(seed=0, **fields):
    """An L-CAM head on a ResNet of its own; `seed` decides the classifier's weights only."""
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    classifier = FrozenClassifier(ResNetForImageClassification(config).eval())
    torch.manual_seed(1)
    return LCamForSaliency.from_classifier(classifier, **fields)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of four steps of that head, with checkpoints at 2 and 4; for reading only."""
    directory = tmp_path_factory.mktemp("written")
    run(directory, head=head(), max_steps=4, save_steps=2, save_total_limit=0)
    return directory


@pytest.fixture
def copied(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copied"))


def resume(directory, **options):
    return run(directory, **{"head": head(), "max_steps": 4, "save_steps": 2, "save_total_limit": 0,
                             "resume_from_checkpoint": "last", **options})  # fmt: skip


def test_another_classifier_of_the_same_shapes(copied):
    fingerprints = r"written with classifier fingerprint '\w{32}', this run has '\w{32}'"
    with pytest.raises(ValueError, match=f"{fingerprints}: resume with the classifier it was written with, or start"):
        resume(copied, head=head(seed=7))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"area_weight": 5.0}, r"head area_weight 2.0, this run has 5.0: resume with head area_weight 2.0, or"),
        ({"regularize": "own"}, r"head regularize 'batch', this run has 'own'"),
        ({"mask_fills": ["black", "mean"]}, r"head mask_fills None, this run has \['black', 'mean'\]"),
        ({"variant": "fm"}, r"head variant 'img', this run has 'fm'"),
    ],
)
def test_another_head(copied, fields, message):
    with pytest.raises(ValueError, match=f"was written with {message}"):
        resume(copied, head=head(**fields))


def test_a_field_that_the_checkpoint_does_not_know_had_its_default(copied):
    for path in list_checkpoints(copied):
        state, info = load_checkpoint(path)
        assert info["run"]["head"].pop("mask_grid") == "pixel"
        save_checkpoint(copied, info["step"], state, info, head().save_pretrained)
    with pytest.raises(ValueError, match=r"was written with head mask_grid 'pixel', this run has \[2, 2\]: resume"):
        resume(copied, head=head(mask_grid=(2, 2)))
    resume(copied)


def test_another_layer_or_activation(copied):
    with pytest.raises(ValueError, match="written with head feature_layers"):
        resume(copied, head=head(feature_layers=["stage1"]))
    other = head()
    other.config.backbone_config.hidden_act = "gelu"  # as of a classifier of the same weights
    with pytest.raises(ValueError, match="head backbone_config.hidden_act 'relu', this run has 'gelu'"):
        resume(copied, head=other)


def test_another_image_processor(copied, monkeypatch):
    def brighter():
        changed = processor()
        changed.image_mean = [0.4] * 3
        return changed

    monkeypatch.setattr("test_training.processor", brighter)
    with pytest.raises(ValueError, match=r"image processor image_mean \[0.5, 0.5, 0.5\], this run has \[0.4, "):
        resume(copied)


@pytest.mark.parametrize("kind", ["reordered", "other", "one other", "transposed labels"])
def test_other_data_of_equal_length(copied, tmp_path, kind):
    dataset = picture_dataset(60)
    options = {}
    if kind == "reordered":
        dataset = dataset.select([1, 0, *range(2, 30)])
    elif kind == "other":
        dataset = dataset.select(range(30, 60))
    elif kind == "one other":
        dataset = dataset.select([*range(29), 42])
    else:
        copied, options = tmp_path / "labels", {"target": "label"}
        run(copied, head=head(), max_steps=4, save_steps=2, **options)
        dataset = picture_dataset().cast_column("label", datasets.ClassLabel(names=["b", "a", "c"]))
    with pytest.raises(ValueError, match=r"written with data (checksum|labels.label) .*, this run has .*: resume with "
                       "the data it was written with, or start anew"):  # fmt: skip
        resume(copied, dataset=dataset, **options)


def test_the_same_data_wherever_it_lies(tmp_path):
    """Saved, loaded, moved, shuffled to the same order or cut to the same rows: the checksum is of what is there."""
    dataset = picture_dataset()
    expected = data_checksum(dataset, ["image", "label"])
    dataset.save_to_disk(tmp_path / "saved")
    parquet_shards(tmp_path / "shards")
    order = [3, 1, 2, 0, *range(4, 30)]
    same_data = [
        datasets.load_from_disk(tmp_path / "saved"),
        load_image_dataset(tmp_path / "shards", cache_dir=str(tmp_path / "cache")),
        picture_dataset(60).select(range(30)),
        dataset.select(order).select(order),
        dataset.with_transform(lambda rows: rows),
    ]
    assert [data_checksum(one, ["image", "label"]) for one in same_data] == [expected] * len(same_data)
    rows = [{"image": row["image"], "label": row["label"]} for row in dataset]
    assert data_checksum(rows, ["image"]) == data_checksum(list(rows), ["image"])
    assert data_checksum(rows, ["image"]) != data_checksum(rows[::-1], ["image"])
    assert data_checksum((row for row in rows), ["image"]) is None
    assert data_checksum([{"image": object()}], ["image"]) is None


def test_images_that_lie_beside_the_table(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "train").mkdir(parents=True)
        for index in range(4):
            (tmp_path / folder / f"train/{index}.png").write_bytes(encoded(index))
    found = [load_image_dataset(tmp_path / folder, cache_dir=str(tmp_path / "cache")) for folder in ("a", "b")]
    checksums = [data_checksum(one, ["image"]) for one in found]
    assert checksums[0] == checksums[1] is not None
    (tmp_path / "b/train/2.png").write_bytes(encoded(9))
    assert data_checksum(found[1], ["image"]) != checksums[0]


def test_a_stream_that_lost_its_shards(tmp_path):
    shards, out = parquet_shards(tmp_path / "shards"), tmp_path / "out"
    options = {"max_steps": 6, "save_steps": 3, "shuffle_buffer_size": 4, "save_total_limit": 0}

    def stream(directory=shards):
        return load_image_dataset(directory, streaming=True)

    whole, _ = run(out, stream(), **options)
    options["resume_from_checkpoint"] = str(out / "checkpoint-3")
    moved = Path(shutil.copytree(shards, tmp_path / "moved"))
    resumed, _ = run(out, stream(moved), **options)
    assert same(whole, resumed)
    with pytest.raises(ValueError, match="written with data checksum .* this run has .*: resume with the data it was"):
        run(out, stream().take(29), **options)
    files = sorted((moved / "data").iterdir())
    one, other = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(other)
    files[1].write_bytes(one)
    with pytest.raises(ValueError, match="written with data checksum"):
        run(out, stream(moved), **options)
    for file in files[2:]:
        file.unlink()
    with pytest.raises(ValueError, match="with data num_files 4, this run has 2: resume with data num_files 4"):
        run(out, stream(moved), **options)


def test_another_column(tmp_path):
    dataset = datasets.concatenate_datasets([picture_dataset(), picture_dataset(image="again", label="more")], axis=1)
    run(tmp_path, dataset, max_steps=2, save_steps=1, image_column="image")
    with pytest.raises(ValueError, match=r"written with data columns \['image'\], this run has \['again'\]"):
        run(tmp_path, dataset, max_steps=2, image_column="again", resume_from_checkpoint="last")


def test_what_cannot_be_compared_is_said(tmp_path, caplog):
    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return {"image": torch.rand(()), **picture_dataset(12)[index], "noise": object()}

    class Noisy(Pictures):
        def __getitem__(self, index):
            row = picture_dataset(12)[index]
            return {"image": row["image"].rotate(90 * int(torch.randint(4, ()))), "label": row["label"]}

    for kind, said in ((Pictures, False), (Noisy, True)):
        out = tmp_path / kind.__name__
        run(out, kind(), max_steps=2, save_steps=1)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(out, kind(), max_steps=2, resume_from_checkpoint="last")
        lines = [record.getMessage() for record in caplog.records if "compared" in record.getMessage()]
        assert lines == (["Resuming from '{}': it could not be compared whether this run has the same data as the one "
                          "that wrote it.".format(out / "checkpoint-2")] if said else [])  # fmt: skip


def edit(**changed):
    def change(directory):
        file = directory / INFO_FILE
        info = {**json.loads(file.read_text()), **changed}
        file.write_text(json.dumps({key: value for key, value in info.items() if value is not ...}))

    return change


def write(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def make_huge(directory):
    with open(directory / INFO_FILE, "r+b") as file:
        file.truncate(2**40)


BROKEN = {
    "step": (edit(step=1), "trainer_state.json was changed after it was written"),
    "foreign key": (edit(note="mine"), "trainer_state.json was changed after it was written"),
    "no run": (edit(run=...), "trainer_state.json was changed after it was written"),
    "elapsed": (edit(elapsed=1.0), "trainer_state.json was changed after it was written"),
    **{f"no {key}": (edit(**{key: ...}), f"trainer_state.json lacks '{key}'")
       for key in ("step", "sha256", "path", "elapsed")},
    "list": (write(INFO_FILE, b"[1]"), "'trainer_state.json' must hold a JSON object, got list"),
    "NUL": (write(INFO_FILE, b"\0" * 99), "'trainer_state.json' is not valid JSON"),
    "latin-1": (write(INFO_FILE, "é".encode("latin-1")), "'trainer_state.json' is not valid JSON"),
    "deep": (write(INFO_FILE, b"[" * 99999), "'trainer_state.json' is not valid JSON"),
    "huge": (make_huge, "trainer_state.json has 1048576 MB, more than any run writes"),
    "a path that is none": (edit(path=[1]), r"'path' in trainer_state.json is \[1\]"),
    "step of text": (edit(step="2"), "'step' in trainer_state.json is '2'"),
    "step below 0": (edit(step=-2), "'step' in trainer_state.json is -2"),
    "no info": (lambda directory: (directory / INFO_FILE).unlink(), "No such file or directory"),
    "NUL state": (write(STATE_FILE, b"\0" * 99), "training_state.pt is not of the size that trainer_state.json says"),
    "no state": (lambda directory: (directory / STATE_FILE).unlink(), "No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("stream", [False, True])
def test_broken_checkpoints(copied, tmp_path, kind, stream):
    change, message = BROKEN[kind]
    change(copied / "checkpoint-4")
    dataset = load_image_dataset(parquet_shards(tmp_path / "shards"), streaming=True) if stream else None
    with pytest.raises(OSError, match=rf"checkpoint-4' is unreadable \({message}.*\): delete it to resume from check"):
        resume(copied, dataset=dataset)


@pytest.mark.parametrize(
    "line", [b"\0\0\0", b"\xff\xfe", b"not JSON", b"[1, 2]", b'{"loss": 1.0}', b'{"step": "2"}', b"[" * 9999]
)
def test_broken_log(copied, line):
    log = copied / LOG_FILE
    content = log.read_bytes()
    log.write_bytes(line + b"\n" + content)
    with pytest.raises(ValueError, match=rf"line 1 of '.*{LOG_FILE}' is not one of a training log: repair it, or de"):
        resume(copied)
    assert log.read_bytes() == line + b"\n" + content
    log.write_bytes(content + line)  # what a machine that lost its power leaves
    _, record = resume(copied)
    assert log.read_bytes() == content and len(record["losses"]) == 2


def test_a_huge_log(copied):
    with open(copied / LOG_FILE, "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"{LOG_FILE} has 1048576 MB, more than any run writes"):
        resume(copied)


def test_a_stream_whose_length_only_the_cache_knew(tmp_path, monkeypatch):
    shards = parquet_shards(tmp_path / "shards")
    options = {"num_train_epochs": 2, "save_steps": 5, "save_total_limit": 0, "shuffle_buffer_size": 4}

    def go(name, known, **more):
        monkeypatch.setattr("hf_explain.training.loop.num_stream_examples", lambda dataset: known)
        return run(tmp_path / name, load_image_dataset(shards, streaming=True), **options, **more)

    whole, _ = go("out", 30)
    resumed, record = go("out", None, resume_from_checkpoint=str(tmp_path / "out/checkpoint-5"))
    assert same(whole, resumed) and record["steps"] == 14 and record["num_examples"] == 30
    with pytest.raises(ValueError, match="written with num_examples 30, this run has 20"):
        go("out", 20, resume_from_checkpoint="last")
    with pytest.raises(ValueError, match="written with num_examples 30, this run has 29"):
        go("out", None, num_examples=29, resume_from_checkpoint="last")
    # and the other way about
    whole, _ = go("unknown", None, max_steps=14)
    resumed, _ = go("unknown", 30, max_steps=14, resume_from_checkpoint=str(tmp_path / "unknown/checkpoint-5"))
    assert same(whole, resumed)


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "constant"])
def test_a_finished_run_is_made_longer(tmp_path, caplog, scheduler):
    options = {"save_steps": 3, "save_total_limit": 0, "logging_steps": 1, "lr_scheduler": scheduler}
    run(tmp_path / "out", max_steps=6, **options)
    first = (tmp_path / "out" / LOG_FILE).read_text()
    whole, record = run(tmp_path / "out", max_steps=10, resume_from_checkpoint="last", **options)
    log = (tmp_path / "out" / LOG_FILE).read_text()
    assert log.startswith(first) and record["steps"] == 10 and len(whole.seen) == 4
    rates = [json.loads(line)["learning_rate"] for line in log.splitlines()]
    args = ExplainerTrainingArguments(output_dir="out", lr_scheduler=scheduler)
    assert rates == [learning_rate_at(args, step, 6 if step < 6 else 10, 7)[0] for step in range(10)]
    said = [entry.getMessage() for entry in caplog.records if "longer" in entry.getMessage()]
    if scheduler == "constant":
        assert said == [] and record["extended"] == []
    else:
        assert record["extended"] == [[6, 6]] and len(said) == 1
        assert "The run of 6 steps is made longer, to 10: from step 6 on the learning rate is that of the" in said[0]
        assert f"goes on at {rates[6]:.3g} after {rates[5]:.3g}" in said[0]
    # killed and resumed it is the same run, and says what happened before
    options["resume_from_checkpoint"] = str(tmp_path / "out/checkpoint-9")
    again, resumed = run(tmp_path / "out", max_steps=10, **options)
    assert same(whole, again) and resumed["extended"] == record["extended"]
    with pytest.raises(ValueError, match="checkpoint-9' is at step 9, past the 6 steps asked for: raise max_steps"):
        run(tmp_path / "out", max_steps=6, **options)


def test_shorter_than_planned(tmp_path):
    run(tmp_path, max_steps=9, save_steps=3, save_total_limit=0)
    with pytest.raises(
        ValueError, match="total_steps 9, this run has 7: resume with total_steps 9 or more .max_steps"
    ):
        run(tmp_path, max_steps=7, resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_run_moves_with_its_classifier(tmp_path, monkeypatch):
    """No file of a run has an absolute path; from any working directory head and checkpoint find the classifier."""
    here = tmp_path / "here"
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(here / "classifier")
    processor().save_pretrained(here / "classifier")
    parquet_shards(here / "pictures")
    words = ["train", "--dataset", "pictures", "--per_device_batch_size", "4", "--dataloader_num_workers", "0",
             "--disable_tqdm", "--save_steps", "1", "--output_dir", "runs/out", "--classifier", "classifier",
             "--streaming"]  # fmt: skip
    monkeypatch.chdir(here)
    assert main([*words, "--max_steps", "1"]) == 0
    found = {path.parent.name: json.loads(path.read_text())["backbone"] for path in here.glob("runs/**/config.json")}
    assert found == {"out": "../../classifier", "checkpoint-1": "../../../classifier"}
    written = list(here.glob("runs/**/*.json*"))
    assert len(written) > 6 and not [path for path in written if str(tmp_path) in path.read_text()]
    there = here.rename(tmp_path / "there")
    monkeypatch.chdir(there)
    assert main([*words, "--max_steps", "2", "--resume_from_checkpoint", "last"]) == 0
    monkeypatch.chdir("/")
    picture(0).save(there / "picture.png")
    for directory in (there / "runs/out", there / "runs/out/checkpoint-1"):
        head = LCamForSaliency.from_pretrained(directory)
        assert head.config.backbone == str(there / "classifier")
        assert pipeline("saliency", model=str(directory))(str(there / "picture.png"))[0]["saliency"].size == (24, 20)
    explain = ["explain", str(there / "picture.png"), "--model", str(there / "runs/out"), "-o", str(there / "map.png")]
    assert main(explain) == 0
    # saved elsewhere, it is the way from there; within the head's folder it is not taken for a name on the Hub
    head.save_pretrained(tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere/config.json").read_text())["backbone"] == "../there/classifier"
    head.save_pretrained(there)
    assert json.loads((there / "config.json").read_text())["backbone"] == "./classifier"
    assert LCamForSaliency.from_pretrained(there).config.backbone == str(there / "classifier")
    with pytest.raises(ValueError, match="classifier .* is a local directory, which nobody else has"):
        plan_explainer(there, "user/head")
    (there / "classifier").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=f"^The classifier directory '{there / 'classifier'}' that the head .* "
                       r"does not exist; put it back or pass from_pretrained\(..., classifier=...\)\.$"):  # fmt: skip
        LCamForSaliency.from_pretrained(there / "runs/out")


def test_what_else_changed_is_said(tmp_path, caplog, monkeypatch):
    options = {"max_steps": 4, "save_steps": 2, "eval_steps": 2, "resume_from_checkpoint": "last"}

    def lines(dataset, **more):
        caplog.clear()
        run(tmp_path / "out", eval_dataset=dataset, **{**options, **more})
        return [entry.getMessage() for entry in caplog.records]

    assert lines(picture_dataset(5)) == []
    assert lines(picture_dataset(5)) == lines(None) == []
    (line,) = lines(picture_dataset(6))
    assert "the validation images are others, so validation losses up to step 4 and after it cannot be" in line
    assert len(lines(picture_dataset(5), max_eval_samples=3)) == 1
    monkeypatch.setattr("hf_explain.training.loop.package_versions", lambda: {"torch": "99", "datasets": "98"})
    (line,) = lines(None)
    # of the installed packages: torch's own `__version__` may say which CUDA it is for
    assert f"torch {version('torch')} then and 99 now, datasets {version('datasets')} then and 98 now" in line
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert ["the run that was there before starts again" in line for line in lines(None)] == [True]


def test_the_log_comes_with_the_checkpoint(tmp_path):
    """Into a directory that has a log of another run."""
    _, record = run(tmp_path / "one", max_steps=6, save_steps=4)
    run(tmp_path / "two", max_steps=8, learning_rate=0.01, save_steps=0)
    log = (tmp_path / "one" / LOG_FILE).read_text()
    _, resumed = run(tmp_path / "two", max_steps=6, resume_from_checkpoint=str(tmp_path / "one/checkpoint-4"))
    assert resumed["losses"] == record["losses"] and (tmp_path / "one" / LOG_FILE).read_text() == log
