"""
What `hf-explain export` reads: the data set, its columns, and the shards each process does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import fsspec
import torch

from hf_explain.apps.arguments import ExportArguments
from hf_explain.io.datasets import is_stream, leave_encoded, resolve_columns


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
        dataset = args.load()
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
                yield ExportChunk(self._name(index), index * size, itertools.chain([first], part))
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
    """The file's bytes of an image cell; other values stay as they are."""
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
