import io

import datasets
import numpy as np
import pytest
import torch
from datasets.exceptions import DatasetNotFoundError
from PIL import Image
from testing_training import encoded, parquet_shards, picture, picture_dataset, processor

from hf_explain.io.datasets import LabelReader, is_stream, load_image_dataset, resolve_columns
from hf_explain.io.images import load_rgb
from hf_explain.training.batches import (
    ImageBatches,
    MapBatchSampler,
    StreamBatchSampler,
    eval_samples,
    prepare_columns,
)
from hf_explain.training.transforms import TrainingTransform


def test_loads_an_imagefolder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for index in range(2):
            picture(index).save(tmp_path / "folder" / name / f"{index}.png")
    dataset = load_image_dataset(tmp_path / "folder")
    assert len(dataset) == 4 and dataset.features["label"].names == ["cat", "dog"]
    assert resolve_columns(dataset, need_label=True) == ("image", "label")
    stream = load_image_dataset(tmp_path / "folder", streaming=True)
    assert is_stream(stream) and len(list(stream)) == 4


def test_loads_parquet(tmp_path):
    shards = parquet_shards(tmp_path / "shards", count=8)
    assert len(load_image_dataset(shards)) == 8
    assert len(load_image_dataset(shards, "train[:3]")) == 3
    file = next((shards / "data").iterdir())
    assert len(load_image_dataset(file)) == len(list(load_image_dataset(str(file), streaming=True))) == 2
    with pytest.raises(ValueError, match="has no split 'test'.*train"):
        load_image_dataset(shards, "test")


def test_loads_what_save_to_disk_wrote(tmp_path):
    picture_dataset(4).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=picture_dataset(4), test=picture_dataset(2)).save_to_disk(tmp_path / "two")
    assert len(load_image_dataset(tmp_path / "one")) == 4
    assert len(load_image_dataset(tmp_path / "two", "test")) == 2
    assert is_stream(load_image_dataset(tmp_path / "two", streaming=True))
    with pytest.raises(ValueError, match="has no split 'val': it has 'train', 'test'"):
        load_image_dataset(tmp_path / "two", "val")
    with pytest.raises(ValueError, match="asks for a slice"):
        load_image_dataset(tmp_path / "one", "train[:1]")


def test_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist: no such file or directory"):
        load_image_dataset(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="notes.txt' is a file but not a .parquet file"):
        load_image_dataset(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty' is empty"):
        load_image_dataset(tmp_path / "empty")


def test_gated_and_unknown_hub_datasets(monkeypatch):
    def gated(path, *args, **options):
        raise DatasetNotFoundError(f"Dataset '{path}' is a gated dataset on the Hub. You must be authenticated.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(
        PermissionError, match="accept its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k"
    ):
        load_image_dataset("ILSVRC/imagenet-1k", streaming=True)

    def missing(path, *args, **options):
        raise DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match="'me/nothing' was not found, neither .* at revision 'v2'"):
        load_image_dataset("me/nothing", revision="v2")


def test_columns_are_found_or_listed():
    dataset = picture_dataset(3, image="photo", label="species")
    assert resolve_columns(dataset) == ("photo", None)
    assert resolve_columns(dataset, need_label=True) == ("photo", "species")
    with pytest.raises(ValueError, match="image_column 'image' is not a column of the dataset.*'photo', 'species'"):
        resolve_columns(dataset, image_column="image")
    with pytest.raises(ValueError, match="label_column 'label' is not a column of the dataset"):
        resolve_columns(dataset, label_column="label", need_label=True)
    with pytest.raises(ValueError, match="label_column was not given and no column looks like it.*'photo'"):
        resolve_columns(dataset.remove_columns("species"), need_label=True)
    two = dataset.add_column("other", [0, 1, 2]).cast_column("other", datasets.ClassLabel(num_classes=3))
    with pytest.raises(ValueError, match="label_column was not given and several columns could be it"):
        resolve_columns(two, need_label=True)
    assert resolve_columns([{"img": picture(0), "y": 1}], label_column="y", need_label=True) == ("img", "y")
    with pytest.raises(TypeError, match="must be dictionaries of columns, got tuple"):
        resolve_columns([(picture(0), 1)])


def test_empty_datasets(tmp_path):
    with pytest.raises(ValueError, match="the dataset is empty"):
        resolve_columns(picture_dataset(3).select([]))
    empty = datasets.IterableDataset.from_generator(lambda: iter(()), features=picture_dataset(1).features)
    with pytest.raises(ValueError, match="the dataset is empty"):
        next(iter(StreamBatchSampler(empty, 2, 0, 4)))


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    image = picture(0).convert(mode)
    assert load_rgb(as_bytes(image, "TIFF")).mode == "RGB"
    assert load_rgb(image).size == (24, 20)


def test_exif_rotation_paths_and_arrays(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_rgb(as_bytes(picture(0), "JPEG", exif=exif)).size == (20, 24)
    picture(1).save(tmp_path / "1.png")
    assert np.array_equal(load_rgb(str(tmp_path / "1.png")), picture(1))
    assert np.array_equal(load_rgb(np.asarray(picture(1))), picture(1))
    with pytest.raises(TypeError, match="got int"):
        load_rgb(3)


def test_augmentation_none_and_flip_are_the_processor():
    images, keys = [picture(i) for i in range(12)], [(0, i) for i in range(12)]
    plain = processor()(images, return_tensors="pt").pixel_values
    assert torch.equal(TrainingTransform(processor(), "none")(images, keys), plain)
    flipped = TrainingTransform(processor(), "flip")(images, keys)
    turned = [torch.equal(one, other.flip(-1)) for one, other in zip(flipped, plain, strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(flipped, plain, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True)) and any(turned) and any(kept)


def test_augmentation_depends_on_seed_epoch_and_sample_only():
    transform = TrainingTransform(processor(), seed=3)
    images, keys = [picture(i) for i in range(6)], [(0, i) for i in range(6)]
    together = transform(images, keys)
    assert together.shape == (6, 3, 16, 16) and together.abs().max() <= 1
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(transform(images[2:4], keys[2:4]), together[2:4])
    assert not torch.equal(transform(images, [(1, i) for i in range(6)]), together)
    assert not torch.equal(TrainingTransform(processor(), seed=4)(images, keys), together)


@pytest.mark.parametrize("size", [(1, 1), (300, 3), (3, 300), (18, 18), (16, 40)])
def test_crops_of_any_image(size):
    transform = TrainingTransform(processor())
    assert transform.resize_size == 18
    assert transform([picture(0, size)], [(0, 0)]).shape == (1, 3, 16, 16)


def test_a_crop_without_room_is_the_processor():
    # nothing to choose but the flip: the pipeline of resize, rescale and normalise must be the processor's own
    transform = TrainingTransform(processor(), resize_size=16)
    square = picture(0, (40, 40))
    expected = processor()(square, return_tensors="pt").pixel_values[0]
    found = transform([square], [(0, 0)])[0]
    assert min((found - expected).abs().max(), (found - expected.flip(-1)).abs().max()) < 1e-6


def test_labels():
    class Config:
        num_labels = 3
        label2id = {"b": 0, "a": 1, "c": 2}

    reader = LabelReader(datasets.ClassLabel(names=["a", "b", "c"]), Config)
    assert [reader(value) for value in (0, 1, 2, "c")] == [1, 0, 2, 2]
    some = LabelReader(datasets.ClassLabel(names=["c", "a"]), Config)
    assert [some(value) for value in (0, 1)] == [2, 1]
    plain = LabelReader(datasets.ClassLabel(names=["x", "y", "z"]), Config)
    assert [plain(value) for value in (0, 1, np.int64(2))] == [0, 1, 2]
    for value, message in ((3, "label 3 is outside the classifier's 0..2"), (-1, "label -1 is outside"),
                           ("d", "label 'd' is not one of"), (None, "label None is neither")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plain(value)


def test_labels_with_several_names():
    class Config:
        num_labels = 5
        label2id = {"tench, Tinca tinca": 0, "crane": 1, "hoist, crane, lift": 2, "lift": 3, "lorry, truck": 4}

    def order(*names):
        return LabelReader(datasets.ClassLabel(names=list(names)), Config).order

    assert order("truck", "tench", "crane", "lift") == [4, 0, 1, 3]  # a whole label is meant before a part of another
    assert order("Tinca tinca", "hoist") == [0, 2]
    assert order("tench", "Tinca tinca") is None and order("tench", "perch") is None


def test_a_corrupt_image_is_named():
    rows = [{"image": {"bytes": encoded(0), "path": None}}, {"image": {"bytes": b"no image", "path": "bad.png"}}]
    batches = ImageBatches(rows, "image", TrainingTransform(processor()))
    assert batches.__getitems__([((0, 0), None)])["pixel_values"].shape == (1, 3, 16, 16)
    error = batches.__getitems__([((0, 0), None), ((0, 1), None)])["error"]
    assert error.startswith("sample 1 (bad.png) of the dataset cannot be used: cannot identify image file")


def test_columns_are_left_encoded():
    rows = prepare_columns(picture_dataset(2), ["image"])
    assert rows.column_names == ["image"] and isinstance(rows[0]["image"]["bytes"], bytes)
    transformed = picture_dataset(2).with_transform(lambda batch: {"image": [picture(9)] * len(batch["image"])})
    assert isinstance(prepare_columns(transformed, ["image"])[0]["image"], Image.Image)


def indices(sampler):
    return [[key[-1] for key, _ in batch] for batch in sampler]


def test_map_batches_are_shared_out_like_one_process():
    alone = indices(MapBatchSampler(50, 8, seed=1, first_step=0, last_step=12))
    shares = [indices(MapBatchSampler(50, 4, 1, 0, 12, process_index=r, num_processes=2)) for r in (0, 1)]
    assert alone == [left + right for left, right in zip(*shares, strict=True)]
    assert len(alone) == 12 and len({i for batch in alone[:6] for i in batch}) == 48
    assert alone[:6] != alone[6:]
    assert indices(MapBatchSampler(50, 8, 1, 7, 12)) == alone[7:]
    halves = indices(MapBatchSampler(50, 4, 1, 0, 12, gradient_accumulation_steps=2))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == alone


@pytest.mark.parametrize("kind", ["datasets", "plain"])
def test_stream_state_at_every_position(kind):
    data = [{"n": n} for n in range(11)]
    make = (lambda: datasets.Dataset.from_list(data).to_iterable_dataset(num_shards=3)) if kind == "datasets" else None

    class Plain:
        def __iter__(self):
            return iter(data)

    make = make or Plain
    sampler = StreamBatchSampler(make(), 2, seed=0, shuffle_buffer_size=4)
    batches, states, iterator = [], [sampler.state_at(0)], iter(sampler)
    for number in range(1, 14):
        batches.append(next(iterator))
        states.append(sampler.state_at(2 * number))
    iterator.close()
    values = [row["n"] for batch in batches for _, row in batch]
    assert sorted(values[:11]) == sorted(values[11:22]) == list(range(11))
    for number, state in enumerate(states[:-1]):
        resumed = iter(StreamBatchSampler(make(), 2, seed=0, shuffle_buffer_size=4, state=state))
        assert [next(resumed) for _ in batches[number:]] == batches[number:]
        resumed.close()


@pytest.mark.parametrize("stream", [False, True])
def test_validation_batches_cover_everything_once(stream):
    dataset = picture_dataset(11)
    dataset = dataset.to_iterable_dataset() if stream else dataset
    shares = [indices(eval_samples(dataset, ["image"], 3, None, r, 2)[1]) for r in (0, 1)]
    assert sorted(sum(sum(shares, []), [])) == list(range(11))
    assert indices(eval_samples(dataset, ["image"], 3, 4)[1]) == [[0, 1, 2], [3]]


def test_a_reader_error_reaches_the_loop():
    class Broken:
        def __iter__(self):
            yield {"n": 1}
            raise ConnectionError("the line is dead")

    with pytest.raises(ConnectionError, match="the line is dead"):
        list(StreamBatchSampler(Broken(), 1, 0, 1))
