"""Whether a data set is the one of before, told without reading all of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from hf_explain.io.datasets import cell_content, is_stream
from hf_explain.io.paths import base_name


_ROWS = 1024  # read in every data set: the first one, the last one and others evenly between them
_ITEMS = 64  # the same where reading an item means making it
_BYTES = 32768  # read of an encoded image or a file: as many at its start, and at its end


class _Unknown(Exception):
    """Something that has no bytes of its own to compare."""


def data_checksum(dataset: Any, columns: Sequence[str]) -> dict[str, Any] | None:
    r"""
    What tells a data set from others, the same wherever it lies and however often it was loaded or saved.

    - A `datasets.Dataset`, as it is stored: of every row the size of the encoded image (the name of its file, where
      the image is not stored itself) and the label; of 1,024 rows the bytes, too. It can miss another image of exactly
      the same size in one of the other rows, and a transform that makes the rows when they are read.
    - A stream of `datasets`: the names of its files, in order, with the revision where they are on the Hub, and the
      size, start and end of local ones. It can miss a local file that changed in its middle only, a file behind
      another URL, and functions of `map` and `filter`.
    - Anything else with length and index: 64 rows, where reading them twice gives the same.

    Args:
        dataset: The data set.
        columns (`Sequence[str]`): Those that are read.

    Returns:
        `dict[str, Any]`, *optional*: `checksum`, and `num_files` of a stream; `None` where nothing can be told, as of
        a generator.
    """
    import datasets

    columns = list(columns)
    try:
        if isinstance(dataset, datasets.IterableDataset):
            files: list[str] = []
            digest = hashlib.sha256()
            _add_stream(digest, dataset._ex_iterable, columns, files)
            _add_files(digest, files)
            return {"num_files": len(files), "checksum": digest.hexdigest()[:32]}
        if is_stream(dataset):
            return None
        if isinstance(dataset, datasets.Dataset):
            digest = hashlib.sha256()
            _add_rows(digest, dataset, columns)
            return {"checksum": digest.hexdigest()[:32]}
        first, second = (_item_checksum(dataset, columns) for _ in range(2))
        return {"checksum": first} if first == second else None
    except _Unknown:
        return None


def _spread(size: int, limit: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, limit)).round().astype(np.int64))


def _add(digest: Any, content: Any) -> None:
    """The size of some bytes, their start and their end."""
    view = memoryview(content).cast("B")
    digest.update(f"{len(view)}|".encode())
    digest.update(view if len(view) <= 2 * _BYTES else view[:_BYTES])
    digest.update(b"" if len(view) <= 2 * _BYTES else view[-_BYTES:])


# ---------------------------------------------------------------------------------------------------------------- rows


def _add_rows(digest: Any, dataset: Any, columns: list[str]) -> None:
    table = dataset.data
    # a transform may make columns that are not stored: then all that are may be what it reads
    stored = set(columns) <= set(table.column_names)
    order = None if dataset._indices is None else dataset._indices.column(0).to_numpy()
    size = len(dataset)
    sampled = _spread(size, _ROWS) if order is None else order[_spread(size, _ROWS)]
    digest.update(f"{size}|".encode())
    for name in columns if stored else table.column_names:
        column = table.column(name)
        for values in _of_every_row(column):
            values = values if order is None else values[order]
            digest.update(values.tobytes() if values.dtype != object else "\n".join(values).encode())
        for row in sampled:
            _add_cell(digest, column[int(row)])


def _of_every_row(column: Any) -> Iterator[np.ndarray]:
    """What can be had of all the rows of a column quickly, because it is stored apart from their contents."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        encoded = pc.struct_field(column, "bytes")
        yield from _of_every_row(encoded)
        if encoded.null_count:
            paths = pc.if_else(pc.is_null(encoded), pc.struct_field(column, "path"), None)
            yield np.array([base_name(path or "") for path in paths.to_pylist()], dtype=object)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _of_every_row(pc.struct_field(column, field.name))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_string(kind):
        yield pc.fill_null(pc.binary_length(column), -1).to_numpy().astype(np.int64)
    elif pa.types.is_integer(kind):
        yield pc.fill_null(column, -1).to_numpy().astype(np.int64)


def _add_cell(digest: Any, scalar: Any) -> None:
    import pyarrow as pa

    if isinstance(scalar, pa.ExtensionScalar):
        scalar = scalar.value
    if scalar is None or not scalar.is_valid:
        digest.update(b"none|")
    elif isinstance(scalar, pa.StructScalar):
        names = list(scalar)
        if set(names) == {"bytes", "path"}:
            if not scalar["bytes"].is_valid and scalar["path"].is_valid:
                return _add_file(digest, scalar["path"].as_py())
            names = ["bytes"]  # where the image is stored itself, its path is not read
        for name in names:
            _add_cell(digest, scalar[name])
    elif isinstance(scalar, (pa.BinaryScalar, pa.StringScalar)):
        _add(digest, scalar.as_buffer())
    elif isinstance(scalar, (pa.ListScalar, pa.FixedSizeListScalar)):
        values = scalar.values
        while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        if pa.types.is_primitive(values.type):
            _add(digest, np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
        else:
            _add(digest, repr(values.to_pylist()).encode())
    else:
        _add(digest, repr(scalar.as_py()).encode())


def _item_checksum(dataset: Any, columns: list[str]) -> str:
    digest = hashlib.sha256(f"{len(dataset)}|".encode())
    for index in _spread(len(dataset), _ITEMS):
        item = dataset[int(index)]
        for column in columns:
            _add_value(digest, item.get(column) if isinstance(item, dict) else item[column])
    return digest.hexdigest()[:32]


def _add_value(digest: Any, value: Any) -> None:
    if isinstance(value, dict) and {"bytes", "path"} >= set(value):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (bytes, bytearray, memoryview)):
        _add(digest, value)
    elif isinstance(value, (str, os.PathLike)):
        _add_file(digest, os.fspath(value))
    elif value is None or isinstance(value, (bool, int, float)):
        digest.update(f"{value!r}|".encode())
    elif isinstance(value, PILImage.Image) or (hasattr(value, "__array__") and not np.asarray(value).dtype.hasobject):
        _add(digest, cell_content(value))
    else:
        raise _Unknown


# --------------------------------------------------------------------------------------------------------------- files


def _add_file(digest: Any, path: str) -> None:
    """The name of a file and what is in it, or the whole address where it is not a file here."""
    *inside, place = path.split("::")  # a member of an archive is written member::archive
    if not os.path.isfile(place):
        digest.update(f"{base_name(path) if os.path.exists(place) else path}|".encode())
        return
    digest.update(f"{'|'.join(inside)}|{base_name(place)}|".encode())
    with contextlib.suppress(OSError), open(place, "rb") as file:
        size = Path(place).stat().st_size
        digest.update(f"{size}|".encode())
        digest.update(file.read(_BYTES))
        file.seek(max(size - _BYTES, 0))
        digest.update(file.read(_BYTES))


def _add_files(digest: Any, files: list[str]) -> None:
    digest.update("\n".join(base_name(file) for file in files).encode())
    for index in _spread(len(files), _ROWS):
        _add_file(digest, files[index])


def _add_stream(digest: Any, node: Any, columns: list[str], files: list[str]) -> None:
    """
    The sources of a stream, in order; `files` gets their names.

    Raises:
        _Unknown: If a source is neither files nor rows.
    """
    parents = [node.ex_iterable] if hasattr(node, "ex_iterable") else list(getattr(node, "ex_iterables", ()))
    if isinstance(getattr(node, "n", None), int):  # what `skip` and `take` leave
        digest.update(f"{type(node).__name__}|{node.n}|".encode())
    for parent in parents:
        _add_stream(digest, parent, columns, files)
    if not parents:
        before = len(files)
        rows = list(_leaves(getattr(node, "kwargs", None), files))
        for dataset in rows:
            _add_rows(digest, dataset, columns)
        if len(files) == before and not rows:
            raise _Unknown


def _leaves(value: Any, files: list[str]) -> Iterator[Any]:
    """The data sets among the arguments of a stream's source; the texts, which name files, go to `files`."""
    import datasets

    if isinstance(value, str):
        files.append(str(value))
    elif isinstance(value, datasets.Dataset):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _leaves(entry, files)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _leaves(entry, files)
    elif isinstance(value, (set, frozenset)):
        for entry in sorted(value, key=repr):
            yield from _leaves(entry, files)
    elif hasattr(value, "args") and hasattr(value, "generator"):  # files that are listed when they are read
        yield from _leaves(value.args, files)
