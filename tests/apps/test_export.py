"""`hf-explain export`: what it writes is the pipeline's, however it was interrupted, divided or read."""

import contextlib
import io
import json
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from testing_common import save_classifier
from testing_processes import launch, start
from testing_training import encoded, parquet_shards, picture
from transformers import pipeline

import hf_explain.apps.export as export_module
from hf_explain import FrozenClassifier, LCamForSaliency
from hf_explain.apps.export import REPORT_FILE, SETTINGS_FILE, export_saliency
from hf_explain.apps.export_inputs import ExportArguments, ExportSource
from hf_explain.cli import main
from hf_explain.io.files import LOCK_FILE
from hf_explain.registry import METHOD_ENTRIES


ROOT = Path(__file__).parents[2]
COUNT = 11


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier("resnet", tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(parquet_shards(tmp_path_factory.mktemp("pictures") / "pictures", COUNT, 3))


@pytest.fixture
def export(model, pictures, tmp_path):
    def run(name="out", **options):
        options = {"model": model, "dataset": pictures, "shard_size": 4, "batch_size": 3, **options}
        return export_saliency(tmp_path / name, ExportArguments(disable_tqdm=True, **options))

    return run


def rows(directory):
    """Everything that was written, in order, with the PNG files as they are."""
    table = datasets.load_dataset(str(directory), split="train", cache_dir=str(directory) + "-cache")
    return table.cast_column("saliency", datasets.Image(decode=False)).to_list()


def shards(directory):
    return {path.name: path.read_bytes() for path in (directory / "data").iterdir()}


def rewritten(dataset, directory):
    directory.mkdir()
    dataset.to_parquet(str(directory / "train.parquet"))
    return str(directory)


def test_equals_the_pipeline_and_loads(export, model, tmp_path):
    report = export(top_k=2)
    assert report == {"num_images": COUNT, "num_rows": 2 * COUNT, "num_shards": 3, "skipped": []}
    assert report == json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    loaded = loaded["train"]
    pipe = pipeline("saliency", model=model)
    assert loaded.features == datasets.Features(
        image_id=datasets.Value("int64"),
        target=datasets.ClassLabel(names=list(pipe.classifier.id2label.values())),
        score=datasets.Value("float32"),
        saliency=datasets.Image(),
    )
    expected = [one for index in range(COUNT) for one in pipe(picture(index), top_k=2)]
    assert loaded["image_id"][:] == [index for index in range(COUNT) for _ in range(2)]
    for row, one in zip(loaded, expected, strict=True):
        assert loaded.features["target"].int2str(row["target"]) == one["label"]
        assert row["score"] == pytest.approx(one["score"], rel=1e-4)
        assert row["saliency"].mode == "L" and row["saliency"].size == (24, 20)
        # a batch's sums may end one grey level away from a single image's
        assert np.abs(np.int16(row["saliency"]) - np.int16(one["saliency"])).max() <= 1
    files = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/data/*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert files.features == loaded.features and len(files) == len(loaded)


def test_labels_as_targets_and_ids_of_ones_own(export, pictures, tmp_path):
    named = datasets.load_dataset(pictures, split="train").add_column("name", [f"picture {i}" for i in range(COUNT)])
    dataset = rewritten(named, tmp_path / "named")
    export(dataset=dataset, target="label", id_column="name")
    found = rows(tmp_path / "out")
    assert [(row["image_id"], row["target"]) for row in found] == [(f"picture {i}", i % 3) for i in range(COUNT)]


def test_a_trained_head(export, model, pictures, tmp_path):
    head = LCamForSaliency.from_classifier(FrozenClassifier.from_pretrained(model))
    head.save_pretrained(tmp_path / "head")
    export(model=str(tmp_path / "head"), max_examples=5)
    pipe = pipeline("saliency", model=str(tmp_path / "head"))
    found = rows(tmp_path / "out")
    assert len(found) == 5
    for index, row in enumerate(found):
        saliency = np.int16(Image.open(io.BytesIO(row["saliency"]["bytes"])))
        assert np.abs(saliency - np.int16(pipe(picture(index))[0]["saliency"])).max() <= 1
    assert json.loads((tmp_path / "out" / SETTINGS_FILE).read_text())["settings"]["method"] == "lcam"


@pytest.mark.parametrize("options", [{}, {"target": "label"}, {"max_examples": 7, "top_k": 2}, {"shard_size": COUNT}])
def test_a_stream_gives_the_same_files(export, tmp_path, options):
    export("whole", **options)
    export("stream", streaming=True, **options)
    assert shards(tmp_path / "whole") == shards(tmp_path / "stream")


def test_workers_give_the_same_files(export, tmp_path):
    export("whole", target="label")
    export("workers", target="label", num_workers=2)
    assert shards(tmp_path / "whole") == shards(tmp_path / "workers")


def export_script(rank, *argv):
    """What `scripts/export_saliency.py` ends with, and what it prints."""
    sys.argv[1:] = argv
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = runpy.run_path(str(ROOT / "scripts/export_saliency.py"))["main"]()
    return status, out.getvalue(), err.getvalue()


@pytest.mark.processes
def test_two_processes_give_the_same_files(export, model, pictures, tmp_path):
    export("one")
    options = ["--model", model, "--dataset", pictures, "--shard_size", "4", "--batch_size", "3"]
    first, second = launch(export_script, *options, "-o", str(tmp_path / "two"))
    assert (first[0], second[0]) == (0, 0)
    assert first[1].count("11 maps of 11 images in 3 shards, 0 images skipped") == 1 and not second[1]
    assert "process 1 of 2" in first[2]
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


def test_processes_divide_every_size(export, model, pictures):
    for streaming in (False, True):
        for size in (1, 2, 3, 5, 11, 20):
            args = ExportArguments(model=model, dataset=pictures, shard_size=size, streaming=streaming)
            source = ExportSource.load(args)
            for done in (set(), {"train-000000.parquet", "train-000002.parquet"}):
                for world_size in (1, 2, 3, 7):
                    found = []
                    for rank in range(world_size):
                        for chunk in source.chunks(args, done, rank, world_size):
                            assert chunk.name not in done
                            images = [row["image"]["bytes"] for row in chunk.rows]
                            found += [(chunk.first_row + offset, image) for offset, image in enumerate(images)]
                    skipped = {int(name[6:12]) for name in done}
                    missing = [index for index in range(COUNT) if index // size not in skipped]
                    assert sorted(found) == [(index, encoded(index)) for index in missing]


def slow_export(pipe, *argv):
    """Stops at the third image of the second shard."""
    original, written = export_module._png, []

    def png(image):
        written.append(image)
        if len(written) == 7:
            pipe.send("half-way")
            time.sleep(600)
        return original(image)

    export_module._png = png
    main(argv)


@pytest.mark.processes
def test_killed_in_the_middle(export, model, pictures, tmp_path):
    export("whole")
    argv = ["export", "--model", model, "--dataset", pictures, "--shard_size", "4", "--batch_size", "3"]
    process, pipe = start(slow_export, *argv, "--disable_tqdm", "-o", str(tmp_path / "out"))
    assert pipe.recv() == "half-way"
    process.kill()
    process.join()
    first = tmp_path / "out/data/train-000000.parquet"
    assert list(first.parent.iterdir()) == [first] and not (tmp_path / "out" / REPORT_FILE).exists()
    before = first.stat()
    # as a process leaves it that is killed while it writes
    (first.parent / "train-000001.parquet.tmp").write_bytes(b"PAR1 half")
    export("out")
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    after = first.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [row["image_id"] for row in rows(tmp_path / "out")] == list(range(COUNT))


@pytest.mark.parametrize("left", ["export_settings.json.hf_explain.tmp", "data/train-000000.parquet.hf_explain.tmp"])
def test_killed_before_the_first_shard(export, tmp_path, left):
    """Whatever is there by then, another export may start, with other settings, too."""
    export("whole")
    (tmp_path / "out/data").mkdir(parents=True)
    if left.startswith("data"):
        (tmp_path / "out" / SETTINGS_FILE).write_text('{"settings": {"method": "rise"}}')
    else:
        (tmp_path / "out/data").rmdir()
    (tmp_path / "out" / left).write_text("half")
    export("out")
    for name in (SETTINGS_FILE, "README.md"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {SETTINGS_FILE, REPORT_FILE, "README.md", "data"}


def test_one_run_at_a_time(export, tmp_path, monkeypatch):
    export("whole")
    original, refused = export_module._png, []

    def png(image):
        """In the second shard, another run starts in the same directory."""
        refused.append(image)
        if len(refused) == 7:
            with pytest.raises(
                OSError, match="output_dir '.*out' is in use by another run.*choose another output_dir"
            ):
                export("out")
            assert len(shards(tmp_path / "out")) == 1
        return original(image)

    monkeypatch.setattr(export_module, "_png", png)
    export("out")
    assert len(refused) == COUNT and shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert not (tmp_path / "out" / LOCK_FILE).exists()
    # what a run leaves that was killed before it wrote anything is no reason to refuse the next
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / LOCK_FILE).touch()
    export("killed")
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


def test_a_missing_shard_in_the_middle_comes_back(export, tmp_path):
    for streaming in (False, True):
        name = f"out-{streaming}"
        export(name, streaming=streaming)
        before = shards(tmp_path / name)
        (tmp_path / name / "data/train-000001.parquet").unlink()
        assert export(name, streaming=streaming)["num_rows"] == COUNT
        assert shards(tmp_path / name) == before


@pytest.fixture
def damaged(tmp_path):
    """Images 1, 2 and 3, the whole second shard of two, cannot be read, each in another way."""
    images = [{"bytes": encoded(index), "path": None} for index in range(5)]
    images[1] = {"bytes": b"not an image", "path": None}
    images[2] = {"bytes": encoded(2)[:200], "path": None}
    images[3] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    features = datasets.Features({"image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"image": images}, features=features)
    pq.write_table(dataset.data.table, tmp_path / "bad.parquet")  # to_parquet looks for the missing file
    return str(tmp_path / "bad.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_corrupt_images(export, damaged, tmp_path, streaming):
    options = {"dataset": damaged, "shard_size": 2, "streaming": streaming}
    with pytest.raises(ValueError, match=r"image 1 \(row 1 of the dataset\).*no known image format.*on_error='skip'"):
        export(**options)
    assert list((tmp_path / "out/data").iterdir()) == []
    report = export(on_error="skip", **options)
    assert (report["num_images"], report["num_rows"], report["num_shards"]) == (2, 2, 3)
    assert [skipped["row"] for skipped in report["skipped"]] == [1, 2, 3]
    assert all("cannot be read" in skipped["error"] for skipped in report["skipped"])
    assert str(tmp_path) not in json.dumps(report)
    assert [row["image_id"] for row in rows(tmp_path / "out")] == [0, 4]
    assert export(on_error="skip", **options) == report  # also from the shards alone


def test_large_shards_are_written_in_row_groups(export, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_explain.apps.export._ROW_GROUP", 4)
    export(shard_size=COUNT)
    with pq.ParquetFile(tmp_path / "out/data/train-000000.parquet") as file:
        assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [4, 4, 3]
    assert [row["image_id"] for row in rows(tmp_path / "out")] == list(range(COUNT))


def test_names_that_two_classes_share(export, tmp_path, model, pictures):
    classifier = FrozenClassifier.from_pretrained(model)
    classifier.model.config.id2label = {**classifier.model.config.id2label, 2: "cat"}
    classifier.model.save_pretrained(tmp_path / "cranes")
    classifier.image_processor.save_pretrained(tmp_path / "cranes")
    export(model=str(tmp_path / "cranes"), target="label")
    assert [row["target"] for row in rows(tmp_path / "out")] == [index % 3 for index in range(COUNT)]
    with pq.ParquetFile(tmp_path / "out/data/train-000000.parquet") as file:
        names = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]["target"]["names"]
    assert names[:3] == ["tench, Tinca tinca", "cat (1)", "cat (2)"]


def test_another_export_is_not_mixed_in(export, tmp_path):
    export()
    before = shards(tmp_path / "out")
    for options, message in [
        ({"method": "eigencam"}, "method is 'gradcam' there and 'eigencam' here"),
        ({"shard_size": 5}, "shard_size is 4 there and 5 here"),
        ({"max_examples": 3}, "max_examples is None there and 3 here"),
    ]:
        with pytest.raises(FileExistsError, match=f"holds an export with other settings.*{message}"):
            export(**options)
    other = save_classifier("resnet", tmp_path, seed=1)
    with pytest.raises(FileExistsError, match="holds an export with other settings"):
        export(model=other)
    assert shards(tmp_path / "out") == before
    export(batch_size=2, on_error="skip", num_workers=0)  # which change no map


@pytest.mark.parametrize("streaming", [False, True])
def test_other_data_of_the_same_name_is_not_mixed_in(export, pictures, tmp_path, streaming):
    def changed(name, **cells):
        rows = (
            datasets.load_dataset(pictures, split="train").cast_column("image", datasets.Image(decode=False)).to_list()
        )
        for column, value in cells.items():
            rows[2][column] = value
        (tmp_path / name).mkdir()
        features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
        return rewritten(datasets.Dataset.from_list(rows, features=features), tmp_path / name / "pictures")

    options = {"target": "label", "label_column": "label", "streaming": streaming}
    export(dataset=changed("first"), **options)
    before = shards(tmp_path / "out")
    (tmp_path / "out/data/train-000002.parquet").unlink()
    kept = shards(tmp_path / "out")
    for name, cells in (("images", {"image": {"bytes": encoded(9), "path": None}}), ("labels", {"label": 4})):
        dataset = changed(name, **cells)
        with pytest.raises(
            FileExistsError, match="export of other data: shard 'train-000000.parquet' was made of other"
        ):
            export(dataset=dataset, **options)
        assert shards(tmp_path / "out") == kept
    export(dataset=changed("elsewhere"), **options)
    assert shards(tmp_path / "out") == before


def test_a_stream_that_became_shorter(export, pictures, tmp_path):
    dataset = datasets.load_dataset(pictures, split="train")
    export(dataset=rewritten(dataset, tmp_path / "shown"), streaming=True)
    (tmp_path / "shorter").mkdir()
    shorter = rewritten(dataset.select(range(8)), tmp_path / "shorter/shown")
    with pytest.raises(FileExistsError, match="other data: the dataset ends before shard 'train-000002.parquet'"):
        export(dataset=shorter, streaming=True)


def test_a_damaged_shard_is_named(export, tmp_path, monkeypatch):
    def flipped(content, at):
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    export()
    path = tmp_path / "out/data/train-000001.parquet"
    whole = path.read_bytes()
    for content, reason in [
        (flipped(whole, whole.index(b"IDAT") + 9), "it does not match its checksum"),
        (flipped(whole, whole.rindex(b"image_id")), ""),
        (flipped(whole, whole.rindex(b"num_images") + 13), "it does not match its checksum"),
        (whole[:-9], ""),
        (b"", "it is empty"),
        (b"these are no maps", ""),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"^shard '.*/train-000001.parquet' is damaged .{reason}.*delete it and"):
            export()
        assert path.read_bytes() == content
    path.unlink()
    original = export_module.write_atomically

    def damaging(target, content):
        """The disk that the first shard was written to lies."""
        original(target, flipped(content, 60) if target == path else content)

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write_atomically", damaging)
        with pytest.raises(ValueError, match="train-000001.parquet' is damaged .it does not match its checksum"):
            export()
    path.unlink()
    export()
    assert path.read_bytes() == whole


def test_no_path_of_this_machine_is_written(export, tmp_path):
    export()
    for name in (SETTINGS_FILE, REPORT_FILE, "README.md"):
        assert str(tmp_path.parent) not in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nothing"}, "`method` 'nothing' does not exist"),
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1, got 0"),
        ({"shard_size": 0}, "`shard_size` must be a whole number of at least 1"),
        ({"target": "everything"}, "`target` must be one of prediction, label, got 'everything'"),
        ({"target": "label", "top_k": 2}, "top_k 2 is for target 'prediction'"),
        ({"on_error": "ignore"}, "`on_error` must be one of raise, skip, got 'ignore'"),
        ({"streaming": True, "num_workers": 2}, "num_workers 2 needs streaming=False"),
        ({"image_column": "photo"}, "image_column 'photo' is not a column of the dataset: its columns are 'image'"),
        ({"label_column": "kind", "target": "label"}, "label_column 'kind' is not a column of the dataset"),
        ({"id_column": "name"}, "id_column 'name' is not a column of the dataset: its columns are 'image', 'label'"),
        ({"id_column": "image"}, "id_column 'image' holds .*: an image_id is a whole number or text"),
        ({"split": "test"}, "has no split 'test'"),
    ],
)
def test_bad_arguments(export, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(**options)
    assert not (tmp_path / "out").exists()


def test_labels_the_classifier_does_not_have(export, pictures, tmp_path):
    dataset = datasets.load_dataset(pictures, split="train").remove_columns("label").add_column("label", [9] * COUNT)
    with pytest.raises(ValueError, match="label_column 'label', row 0 of the dataset: label 9 is outside .*0..4"):
        export(dataset=rewritten(dataset, tmp_path / "labels"), target="label", label_column="label")


def test_output_that_cannot_be_written(export, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="output_dir .*file' is not writable"):
        export("file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("")
    with pytest.raises(FileExistsError, match="holds files, but no export"):
        export("other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_full_disk(export, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    export("whole")
    with monkeypatch.context() as patch:
        patch.setattr("hf_explain.apps.export._png", lambda image: patch.setattr("os.fsync", full) or b"")
        with pytest.raises(OSError, match="could not be written .No space left on device.*start again to go on"):
            export()
    assert list((tmp_path / "out/data").iterdir()) == []
    export()
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")


def test_processes_that_do_not_see_each_other(export, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched but Accelerate sees 1.*ACCELERATE_USE_CPU=true"):
        export()


def test_command_line(model, pictures, tmp_path, capsys):
    out = str(tmp_path / "out")
    argv = ["export", "--model", model, "--dataset", pictures, "-o", out, "--split", "train[:3]", "--top-k", "2"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        f"{out}: 6 maps of 3 images in 1 shards, 0 images skipped; it is a folder of parquet files, which "
        f"datasets.load_dataset({str(out)!r}) reads\n"
    )
    assert "export: 100%" in captured.err
    assert main([*argv, "--method", "nothing"]) == 1
    assert "hf-explain export: `method` 'nothing' does not exist" in capsys.readouterr().err
    assert len(rows(tmp_path / "out")) == 6


def test_half_precision_is_another_export(export, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_explain.classifiers.precision.has_bfloat16", lambda device: True)
    monkeypatch.setitem(METHOD_ENTRIES, "eigencam", replace(METHOD_ENTRIES["eigencam"], allows_bfloat16=True))
    report = export(method="eigencam", dtype="auto")
    assert f"on the first {COUNT} images bfloat16 changes" in report["precision"]["reason"]
    # what was taken stands there, not what was asked for: a run on another machine must not go on otherwise
    assert json.loads((tmp_path / "out" / SETTINGS_FILE).read_text())["settings"]["dtype"] == "bfloat16"
    with pytest.raises(FileExistsError, match="other settings .dtype is 'bfloat16' there and None here"):
        export(method="eigencam")
    assert export(method="eigencam", dtype="bfloat16")["precision"]["reason"] == "asked for"
