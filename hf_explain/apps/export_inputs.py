"""
What `hf-explain export` is asked for and what it reads: the data set, its columns, and the shards each process does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import fsspec
import torch

from hf_explain.evaluation.arguments import EvaluationArguments
from hf_explain.io.datasets import is_stream, leave_encoded, load_image_dataset, resolve_columns
from hf_explain.io.labels import TARGETS
from hf_explain.registry import resolve_method
from hf_explain.tensors.scalars import check_choice, check_count


def _option(default: Any, help: str, **metadata) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ExportArguments:
    """
    What to explain and how.

    Raises:
        ValueError: If a value cannot work; the message names it.
    """

    model: str = field(metadata={"help": "trained head or plain classifier: directory or Hub id"})
    dataset: str = field(metadata={"help": "Hub id, imagefolder, parquet file or directory, save_to_disk directory"})
    revision: str | None = _option(None, "branch, tag or commit of the model")
    dataset_config: str | None = _option(None, "configuration of a Hub data set")
    dataset_revision: str | None = _option(None, "branch, tag or commit of a Hub data set")
    split: str = _option("train", "split to explain")
    image_column: str | None = _option(None, "column of images; found by its type unless given")
    id_column: str | None = _option(None, "column of whole numbers or text that becomes image_id; the row otherwise")
    label_column: str | None = _option(None, "column of labels, for target=label; found by its type unless given")
    method: str | None = _option(None, "training-free method, such as gradcam; the head itself when not given")
    target: str = _option(
        EvaluationArguments.target, "class to explain: the classifier's own or the label", choices=TARGETS
    )
    top_k: int = _option(1, "classes to explain per image, one row each, for target=prediction")
    batch_size: int = _option(EvaluationArguments.batch_size, "images per forward pass and process")
    shard_size: int = _option(500, "images per parquet file; an interruption loses at most one per process")
    max_examples: int | None = _option(None, "explain only the first ones")
    streaming: bool = _option(False, "read the data while exporting instead of downloading it first")
    on_error: str = _option("raise", "what to do about an image that cannot be read", choices=("raise", "skip"))
    num_workers: int = _option(0, "processes that decode images, per process; not for streaming")
    use_cpu: bool = _option(False, "use the CPU even where there is an accelerator")
    cache_dir: str | None = _option(None, "cache directory of `datasets`")
    disable_tqdm: bool = _option(False, "show no progress bar")

    def __post_init__(self) -> None:
        for name in ("top_k", "batch_size", "shard_size"):
            check_count(getattr(self, name), name)
        check_count(self.max_examples, "max_examples", optional=True)
        check_count(self.num_workers, "num_workers", minimum=0)
        for entry in dataclasses.fields(self):
            if choices := entry.metadata.get("choices"):
                check_choice(getattr(self, entry.name), entry.name, choices)
        if self.target == "label" and self.top_k > 1:
            raise ValueError(
                f"top_k {self.top_k} is for target 'prediction': with target 'label' every image has one class."
            )
        if self.streaming and self.num_workers:
            raise ValueError(
                f"num_workers {self.num_workers} needs streaming=False: a stream is read in order, by the process "
                "that explains it."
            )
        if self.method is not None:
            resolve_method(self.method)


class ExportRows(torch.utils.data.Dataset):
    """Images of a shard as the pipeline takes them, fetched one by one; workers can share the work."""

    def __init__(self, rows: datasets.Dataset, image_column: str, targets: list[int | None]):
        self.rows, self.image_column, self.targets = rows, image_column, targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.rows[index][self.image_column], "target": self.targets[index]}


@dataclass
class ExportChunk:
    """One shard to write: consecutive rows of the data set, encoded images."""

    name: str
    first_row: int
    rows: Any  # a datasets.Dataset, or an iterator of a stream

    @property
    def num_images(self) -> int:
        return len(self.rows)


@dataclass
class ExportSource:
    """The data set, reduced to the columns that are needed, with images left encoded."""

    dataset: Any
    streaming: bool
    features: dict[str, Any]
    image_column: str
    label_column: str | None
    id_column: str | None
    split: str

    @classmethod
    def load(cls, args: ExportArguments) -> ExportSource:
        dataset = load_image_dataset(
            args.dataset, args.split, args.dataset_config, args.dataset_revision, args.streaming, args.cache_dir
        )
        streaming = is_stream(dataset)
        if streaming and dataset.features is None:
            dataset = dataset._resolve_features()
        image, label = resolve_columns(dataset, args.image_column, args.label_column, args.target == "label")
        features = dict(dataset.features)
        if args.id_column is not None:
            id_feature(args.id_column, features)
        dataset = leave_encoded(dataset, [image])
        dataset = dataset.select_columns(list(dict.fromkeys(name for name in (image, label, args.id_column) if name)))
        if args.max_examples is not None:
            dataset = (
                dataset.take(args.max_examples)
                if streaming
                else dataset.select(range(min(args.max_examples, len(dataset))))
            )
        split = "_".join(part.split("[")[0].strip() for part in args.split.split("+"))
        return cls(dataset, streaming, features, image, label, args.id_column, split)

    def first_image(self) -> str:
        """A checksum by which two data sets of one name are told apart."""
        first = next(iter(self.dataset), None)
        if first is None:
            raise ValueError(f"split {self.split!r} of the dataset is empty: there is nothing to explain.")
        cell = first[self.image_column]
        content = encoded_image(cell)
        return hashlib.sha256(content if isinstance(content, bytes) else repr(content).encode()).hexdigest()[:16]

    def chunks(self, args: ExportArguments, done: set[str], rank: int, world_size: int) -> Iterable[ExportChunk]:
        """The shards of one process that are missing; those of all processes together are complete and disjoint."""
        if self.streaming:
            return self._stream_chunks(args.shard_size, done, rank, world_size)
        count = len(self.dataset)
        missing = [
            ExportChunk(self._name(index), first, None)
            for index, first in enumerate(range(0, count, args.shard_size))
            if self._name(index) not in done
        ][rank::world_size]
        for chunk in missing:
            chunk.rows = self.dataset.select(range(chunk.first_row, min(chunk.first_row + args.shard_size, count)))
        return missing

    def _stream_chunks(self, size: int, done: set[str], rank: int, world_size: int) -> Iterator[ExportChunk]:
        # Every process reads the whole stream, still encoded: only its position says which row it is, and only the
        # end of the stream how many there are. What costs is the decoding and explaining, and that is divided.
        complete = next(index for index in itertools.count() if self._name(index) not in done)
        rows = iter(self.dataset.skip(complete * size) if complete else self.dataset)
        for index in itertools.count(complete):
            part = itertools.islice(rows, size)
            first = next(part, None)
            if first is None:
                return
            if index % world_size == rank and self._name(index) not in done:
                part = itertools.chain([first], part)
                yield ExportChunk(self._name(index), index * size, part)
            for _ in part:
                pass

    def _name(self, index: int) -> str:
        return f"{self.split}-{index:06d}.parquet"

    def image_id(self, row: dict, number: int) -> int | str:
        if self.id_column is None:
            return number
        if row[self.id_column] is None:
            raise ValueError(f"id_column {self.id_column!r} is empty in row {number}: every image needs an id.")
        return row[self.id_column]


def id_feature(column: str, features: dict[str, Any]) -> datasets.Value:
    if column not in features:
        raise ValueError(
            f"id_column {column!r} is not a column of the dataset: its columns are "
            f"{', '.join(repr(name) for name in features)}."
        )
    kind = str(getattr(features[column], "dtype", type(features[column]).__name__))
    if kind.startswith(("int", "uint")):
        return datasets.Value("int64")
    if kind in ("string", "large_string"):
        return datasets.Value("string")
    raise ValueError(f"id_column {column!r} holds {kind}: an image_id is a whole number or text.")


def encoded_image(cell: Any) -> Any:
    """The file's bytes of an image cell; what is no file stays as it is."""
    if not isinstance(cell, dict):
        return cell
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if cell.get("path") is None:
        return b""
    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
