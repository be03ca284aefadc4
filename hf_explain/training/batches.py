"""
Which samples make up a batch, and the worker's part of the work: decode, augment, normalise.

The samplers are written here, and not taken from a library, because a killed run must continue with exactly the
batches it would have seen: a map-style position is the step number alone, a stream's is the start of a block.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch

from hf_explain.io.datasets import LabelReader, gives_rows_as_stored, is_stream, leave_encoded
from hf_explain.training.transforms import TrainingTransform


def prepare_columns(dataset: Any, columns: Sequence[str]) -> Any:
    """`dataset` with only `columns`, images still encoded, where it is a `datasets` one without a transform."""
    if not gives_rows_as_stored(dataset):
        return dataset
    # Workers decode; the process that reads should not.
    return leave_encoded(dataset.select_columns(list(columns)), columns)


class _Share:
    """Every `num_processes`-th example of an iterable that cannot divide itself."""

    def __init__(self, dataset: Any, process_index: int, num_processes: int) -> None:
        self.dataset, self.process_index, self.num_processes = dataset, process_index, num_processes

    def __iter__(self) -> Iterator[dict]:
        return islice(iter(self.dataset), self.process_index, None, self.num_processes)


def prepare_stream(dataset: Any, columns: Sequence[str], seed: int, process_index: int, num_processes: int) -> Any:
    """One process's share of a stream: images still encoded, shards in an order decided by the seed and the epoch."""
    import datasets
    from datasets.distributed import split_dataset_by_node

    if not isinstance(dataset, datasets.IterableDataset):
        return _Share(dataset, process_index, num_processes) if num_processes > 1 else dataset
    # A buffer of one shuffles the shards only. A larger one would be lost on resume; blocks do its work.
    dataset = prepare_columns(dataset, columns).shuffle(seed=seed, buffer_size=1)
    return split_dataset_by_node(dataset, process_index, num_processes) if num_processes > 1 else dataset


class _EvalStream:
    """The validation batches of one process, from a stream read by all of them."""

    def __init__(self, dataset, batch_size, limit, process_index, num_processes) -> None:
        self.dataset, self.batch_size, self.limit = dataset, batch_size, limit
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[list[tuple[tuple[int], dict]]]:
        samples = (((index,), row) for index, row in enumerate(islice(iter(self.dataset), self.limit)))
        for number in count():
            batch = list(islice(samples, self.batch_size))
            if not batch:
                return
            if number % self.num_processes == self.process_index:
                yield batch


def eval_samples(
    dataset: Any,
    columns: Sequence[str],
    batch_size: int,
    limit: int | None = None,
    process_index: int = 0,
    num_processes: int = 1,
) -> tuple[Any, Any]:
    r"""
    The validation batches of one process: every image once, in order, the last batch as short as it is.

    Returns:
        `tuple`: What `ImageBatches` reads from (`None` for a stream) and the batch sampler.
    """
    rows = prepare_columns(dataset, columns)
    if is_stream(dataset):
        return None, _EvalStream(rows, batch_size, limit, process_index, num_processes)
    size = min(len(dataset), limit or len(dataset))
    batches = [
        [((index,), None) for index in range(start, min(start + batch_size, size))]
        for start in range(0, size, batch_size)
    ]
    return rows, batches[process_index::num_processes]


class ImageBatches(torch.utils.data.Dataset):
    r"""
    What a `DataLoader` worker does: take the samples of one batch, decode, augment, normalise.

    A sample is `(key, row)`; `row` is `None` for map-style data, which is then read at `key[-1]`. A sample that cannot
    be read makes the batch `{"error": sentence}` instead of raising, so that the reader of the error sees one sentence
    and not a worker's traceback.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str,
        transform: TrainingTransform,
        label_column: str | None = None,
        label_reader: LabelReader | None = None,
    ) -> None:
        self.dataset = dataset
        self.image_column = image_column
        self.label_column = label_column
        self.transform = transform
        self.label_reader = label_reader or LabelReader()

    def __getitems__(self, samples: list[tuple[tuple[int, ...], dict | None]]) -> dict[str, Any]:
        keys = [key for key, _ in samples]
        rows = [row for _, row in samples if row is not None]
        if not rows:
            places = [key[-1] for key in keys]
            if hasattr(self.dataset, "__getitems__"):
                rows = self.dataset.__getitems__(places)
            else:
                rows = [self.dataset[place] for place in places]
        images, labels = [], []
        for key, row in zip(keys, rows, strict=True):
            try:
                images.append(self.transform.load(row[self.image_column]))
                if self.label_column is not None:
                    labels.append(self.label_reader(row[self.label_column]))
            except (OSError, ValueError, TypeError) as error:
                cell = row[self.image_column]
                path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
                where = f"sample {key[-1]}" + (f" ({path})" if path else "")
                # the decoder's own words, where there are some: the sample is named already
                problem = str(error.__cause__ or error).rstrip(".")
                return {"error": f"{where} of the dataset cannot be used: {problem}. Remove or repair it."}
        batch = {"pixel_values": self.transform(images, keys), "sample_ids": [key[-1] for key in keys]}
        if self.label_column is not None:
            batch["labels"] = torch.tensor(labels)
        return batch


class MapBatchSampler:
    r"""
    The micro-batches one process sees of a map-style data set, from a given optimiser step on.

    Every epoch is one permutation, a function of `(seed, epoch)`. An optimiser step takes the next
    `gradient_accumulation_steps * num_processes * batch_size` of it, process `r` the `r`-th part of every micro-batch;
    so `n` processes with `batch_size` see exactly what one process with `n * batch_size` sees. The rest of an epoch
    that does not fill a step is left out (another rest every epoch).
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        gradient_accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self.first_step, self.last_step = first_step, last_step
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.process_index, self.num_processes = process_index, num_processes
        self.steps_per_epoch = num_examples // (batch_size * gradient_accumulation_steps * num_processes)

    def __iter__(self) -> Iterator[list[tuple[tuple[int, int], None]]]:
        order, order_epoch = np.empty(0, dtype=np.int64), -1
        for step in range(self.first_step, self.last_step):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = np.random.default_rng((self.seed, epoch)).permutation(self.num_examples), epoch
            for micro in range(self.gradient_accumulation_steps):
                micro_batch = step_in_epoch * self.gradient_accumulation_steps + micro
                start = (micro_batch * self.num_processes + self.process_index) * self.batch_size
                yield [((epoch, int(index)), None) for index in order[start : start + self.batch_size]]

    def state_at(self, position: int) -> dict[str, Any]:
        """Nothing to remember: the step number says it all."""
        return {}


@contextlib.contextmanager
def _quiet_about_shuffle_buffers() -> Iterator[None]:
    """`datasets` warns that a resumed shuffle buffer is lost, also of a buffer of one, which loses nothing."""
    logger = logging.getLogger("datasets.iterable_dataset")

    def keep(record: logging.LogRecord) -> bool:
        return "shuffle buffer" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class StreamBatchSampler:
    r"""
    The micro-batches one process sees of a stream, endlessly, epoch after epoch.

    The stream is read in order by a thread of the main process, still encoded (decoding is the workers' job), in
    blocks of `shuffle_buffer_size` samples that are shuffled as a whole by `(seed, epoch, process, block)`. Unlike a
    sliding shuffle buffer a block can be read again from the stream's position at its start, so a resumed run loses
    and repeats nothing. The samples of an epoch that do not fill a batch go into the next epoch's first batch.

    Args:
        dataset: A `datasets.IterableDataset` of this process's share, or any iterable of dictionaries.
        batch_size (`int`): Samples per micro-batch.
        seed (`int`): Decides the order within blocks.
        shuffle_buffer_size (`int`): Samples in a block; up to three blocks of encoded images are in memory.
        process_index (`int`, *optional*, defaults to 0): Enters the seeds, so processes augment differently.
        state (`dict`, *optional*): What `state_at` returned.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int,
        shuffle_buffer_size: int,
        process_index: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.process_index = process_index
        self.start = {"position": 0, "block_start": 0, "epoch": 0, "block": 0, "dataset": None, **(state or {})}
        self._blocks: deque[dict[str, Any]] = deque()

    def state_at(self, position: int) -> dict[str, Any]:
        """The state from which a new sampler continues with sample number `position` of this process."""
        while len(self._blocks) > 1 and self._blocks[1]["block_start"] <= position:
            self._blocks.popleft()
        # Before the first block is read (or right at a resumed position) the state we started from still holds.
        return {**(self._blocks[0] if self._blocks else self.start), "position": position}

    def _read(self) -> Iterator[tuple[dict[str, Any], list[dict]]]:
        dataset, size = self.dataset, self.shuffle_buffer_size
        epoch, block, start = self.start["epoch"], self.start["block"], self.start["block_start"]
        state = self.start["dataset"]
        stateful = hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
        fresh = block == 0
        while True:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
            if stateful and state is not None:
                dataset.load_state_dict(state)
            rows = iter(dataset)
            if not stateful and block:
                next(islice(rows, block * size - 1, None), None)
            with _quiet_about_shuffle_buffers():
                chunk = list(islice(rows, size))
            while chunk:
                fresh = False
                yield {"block_start": start, "epoch": epoch, "block": block, "dataset": state}, chunk
                state = dataset.state_dict() if stateful else None
                start, block = start + len(chunk), block + 1
                chunk = list(islice(rows, size))
            if fresh:
                raise ValueError("the dataset is empty: training needs at least one image.")
            epoch, block, state, fresh = epoch + 1, 0, None, True

    def __iter__(self) -> Iterator[list[tuple[tuple[int, ...], dict]]]:
        blocks: queue.Queue = queue.Queue(maxsize=1)
        stopped = threading.Event()

        def put(item: Any) -> None:
            while not stopped.is_set():
                try:
                    return blocks.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            try:
                for item in self._read():
                    put(item)
                    if stopped.is_set():
                        return
            except BaseException as error:  # handed to the training loop, which raises it
                put(error)

        self._blocks.clear()
        threading.Thread(target=read, name="hf_explain-stream", daemon=True).start()
        batch: list[tuple[tuple[int, ...], dict]] = []
        skip = self.start["position"] - self.start["block_start"]
        try:
            while True:
                item = blocks.get()
                if isinstance(item, BaseException):
                    raise item
                info, rows = item
                self._blocks.append(info)
                key = (info["epoch"], self.process_index)
                order = np.random.default_rng((self.seed, *key, info["block"])).permutation(len(rows))
                for index in order[skip:]:
                    batch.append(((*key, info["block"] * self.shuffle_buffer_size + int(index)), rows[index]))
                    if len(batch) == self.batch_size:
                        yield batch
                        batch = []
                skip = 0
        finally:
            stopped.set()


class _Loader(torch.utils.data.DataLoader):
    """Says in a sentence why its workers do not start, or what they may have ended of."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            if not self.num_workers or "pickle" not in str(error):
                raise
            raise ValueError(
                f"dataloader_num_workers {self.num_workers} needs a data set that can be sent to another process, "
                f"where processes start by {multiprocessing.get_start_method()!r} ({error}): define its classes and "
                "functions in a module, or set dataloader_num_workers to 0."
            ) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            spawned = multiprocessing.get_start_method() != "fork"
            guard = ", or the script that was started lacks `if __name__ == '__main__':`" if spawned else ""
            raise ChildProcessError(
                f"A process that decodes images has ended ({str(error).splitlines()[0].rstrip('.')}): the memory may "
                f"be full{guard}; with dataloader_num_workers 0 there are none."
            ) from error


def make_loader(
    batches: ImageBatches, sampler: Any, num_workers: int, pin_memory: bool, seed: int
) -> torch.utils.data.DataLoader:
    """The `DataLoader` that gives each of the sampler's batches to a worker and returns the result unchanged."""
    return _Loader(
        batches,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        # Without its own generator a DataLoader draws from the global one.
        generator=torch.Generator().manual_seed(seed),
    )


def _as_is(batch: Any) -> Any:
    return batch
