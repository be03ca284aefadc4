"""
What `hf-explain export` reads: the data set, its columns, and the shards each process does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch

from hf_explain.apps.arguments import ExportArguments
from hf_explain.io.datasets import cell_content, is_stream, leave_encoded, resolve_columns


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
    checksum: Any = field(default_factory=hashlib.sha256)  # of the rows, once they were read

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
        return hashlib.sha256(cell_content(first[self.image_column], fetch=True)).hexdigest()[:16]

    def read(self, rows: Iterable[dict], checksum: Any) -> Iterator[dict]:
        """The rows as they are, each added to a checksum of what decides about its maps and their names."""
        for row in rows:
            others = [row[name] for name in (self.label_column, self.id_column) if name is not None]
            image = hashlib.sha256(cell_content(row[self.image_column]))
            checksum.update(image.digest() + repr(others).encode())
            yield row

    def chunks(
        self,
        args: ExportArguments,
        done: Container[str],
        rank: int,
        world_size: int,
        checksums: Mapping[str, str] | None = None,
    ) -> Iterable[ExportChunk]:
        r"""
        The shards of one process that are missing; those of all processes together are complete and disjoint.

        Args:
            args ([`ExportArguments`]): What to explain and how.
            done (`set[str]`): Names of the shards that are there.
            rank, world_size (`int`): Number of this process, and of all.
            checksums (`dict[str, str]`, *optional*): Of the rows that shards were made of, by name.

        Raises:
            FileExistsError: If a shard was made of other rows than the data set has there now.
        """
        checksums = checksums or {}
        if self.streaming:
            return self._stream_chunks(args.shard_size, done, rank, world_size, checksums)
        count = len(self.dataset)
        for index, first in enumerate(range(0, count, args.shard_size)):
            if index % world_size == rank and self._name(index) in checksums:
                self._check(index, self.dataset.select(range(first, min(first + args.shard_size, count))), checksums)
        missing = [
            ExportChunk(self._name(index), first, None)
            for index, first in enumerate(range(0, count, args.shard_size))
            if self._name(index) not in done
        ][rank::world_size]
        for chunk in missing:
            chunk.rows = self.dataset.select(range(chunk.first_row, min(chunk.first_row + args.shard_size, count)))
        return missing

    def _check(self, index: int, rows: Iterable[dict], checksums: Mapping[str, str]) -> None:
        """See that a shard was made of these rows."""
        name, found = self._name(index), hashlib.sha256()
        for _ in self.read(rows, found):
            pass
        if found.hexdigest() != checksums[name]:
            raise FileExistsError(
                f"output_dir holds an export of other data: shard {name!r} was made of other images, labels or ids "
                "than the dataset has there now. Choose another directory, or delete that one to start anew."
            )

    def _stream_chunks(
        self, size: int, done: Container[str], rank: int, world_size: int, checksums: Mapping[str, str]
    ) -> Iterator[ExportChunk]:
        # Every process reads the whole stream, still encoded: only its position says which row it is, and only the
        # end of the stream how many there are. What costs is the decoding and explaining, and that is divided.
        names = map(self._name, itertools.count())
        complete = next(index for index, name in enumerate(names) if name not in done or name in checksums)
        rows = iter(self.dataset.skip(complete * size) if complete else self.dataset)
        for index in itertools.count(complete):
            part: Iterator[Any] = itertools.islice(rows, size)
            first = next(part, None)
            if first is None:
                if beyond := sorted(name for name in checksums if name >= self._name(index)):
                    raise FileExistsError(
                        f"output_dir holds an export of other data: the dataset ends before shard {beyond[0]!r}. "
                        "Choose another directory, or delete that one to start anew."
                    )
                return
            part = itertools.chain([first], part)
            if index % world_size == rank and self._name(index) not in done:
                checksum = hashlib.sha256()
                yield ExportChunk(self._name(index), index * size, self.read(part, checksum), checksum)
            elif index % world_size == rank and self._name(index) in checksums:
                self._check(index, part, checksums)
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
