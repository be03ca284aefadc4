"""Processes that decode images, by every way in which Python starts processes."""

import multiprocessing
import os

import pytest
import torch
from datasets import load_dataset
from testing_training import TinyHead, encoded, parquet_shards, picture_dataset, processor

from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.batches import ImageBatches, make_loader
from hf_explain.training.loop import train
from hf_explain.training.transforms import TrainingTransform


@pytest.fixture
def start_by():
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


def loader(dataset, num_workers=1):
    batches = ImageBatches(dataset, "image", TrainingTransform(processor()))
    return make_loader(batches, [[((0, 0), None), ((0, 1), None)]], num_workers, pin_memory=False, seed=0)


class Rows(list):
    """A data set of a module's class."""


ROWS = Rows({"image": {"bytes": encoded(index), "path": None}} for index in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_training_is_the_same_by_every_start_method(tmp_path, start_by, method):
    """In memory, from files, streamed; with validation. The processes import everything anew."""
    files = str(parquet_shards(tmp_path / "shards", count=8, shards=2))
    kinds = {
        "memory": lambda: picture_dataset(8),
        "files": lambda: load_dataset(files, split="train"),
        "stream": lambda: load_dataset(files, split="train", streaming=True),
        "own": lambda: ROWS,
    }
    start_by(method)
    for kind, make in kinds.items():
        heads = {}
        for workers in (0, 1):
            args = ExplainerTrainingArguments(
                output_dir=str(tmp_path / f"{kind}{workers}"), max_steps=2, per_device_batch_size=2,
                dataloader_num_workers=workers, shuffle_buffer_size=4, progress=False,
            )  # fmt: skip
            heads[workers] = TinyHead()
            train(heads[workers], make(), picture_dataset(3) if kind == "memory" else None, processor(), args)
        assert torch.equal(heads[0].head.weight, heads[1].head.weight), kind


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_data_set_that_cannot_be_sent_is_named(start_by, method):
    """What `fork` inherits, other methods must pickle."""

    class Local(Rows):
        pass

    start_by(method)
    with pytest.raises(
        ValueError, match=rf"^dataloader_num_workers 1 needs a data set .* by '{method}' \(.*Local'?\): define.*0\.$"
    ):
        next(iter(loader(Local(ROWS))))
    assert len(next(iter(loader(Local(ROWS), num_workers=0)))["sample_ids"]) == 2


class Lethal(Rows):
    """Its process ends, as the system's out-of-memory killer ends one."""

    def __getitem__(self, index):
        os._exit(9)


def test_a_process_that_ended_is_told_of(start_by):
    start_by("fork")
    with pytest.raises(ChildProcessError, match=r"^A process that decodes images has ended \(DataLoader worker .*"):
        next(iter(loader(Lethal(ROWS))))


class Wrong(Rows):
    """Whose own mistake is nothing about processes."""

    def __getitems__(self, indices):
        raise TypeError("not an index")


def test_other_errors_stay_what_they_are(start_by):
    start_by("fork")
    for workers in (0, 1):
        with pytest.raises(TypeError, match="not an index"):
            next(iter(loader(Wrong(ROWS), workers)))
