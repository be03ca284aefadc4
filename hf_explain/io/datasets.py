"""Data sets of images: where they come from, which of their columns are wanted, and their labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from hf_explain.io.labels import synonyms
from hf_explain.io.paths import is_hub_id


def load_image_dataset(
    source: str | os.PathLike,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
):
    r"""
    Load a labelled (or unlabelled) image data set with `datasets`.

    Args:
        source (`str` or `os.PathLike`):
            A Hub id (`"ILSVRC/imagenet-1k"`), an imagefolder directory, a directory of parquet files, one parquet
            file, or a directory written by `Dataset.save_to_disk`.
        split (`str`, *optional*, defaults to `"train"`): Split name; slices such as `"train[:1000]"` work unless
            streaming.
        config_name (`str`, *optional*): Configuration of a Hub data set.
        revision (`str`, *optional*): Branch, tag or commit of a Hub data set.
        streaming (`bool`, *optional*, defaults to `False`): Read it on the way instead of downloading it first.
        cache_dir (`str`, *optional*): Where `datasets` keeps its cache.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` if `streaming`.

    Raises:
        FileNotFoundError: If `source` is neither a file, a directory nor a data set on the Hub.
        PermissionError: If the Hub data set is gated and its terms were not accepted.
        ValueError: If the split does not exist.
    """
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

    source = os.fspath(source)
    path = Path(source).expanduser()
    options: dict[str, Any] = {"streaming": streaming, "cache_dir": cache_dir}
    try:
        if path.is_dir() and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
            return _load_saved(path, split, streaming)
        if path.is_file():
            if path.suffix != ".parquet":
                raise ValueError(
                    f"dataset {source!r} is a file but not a .parquet file: pass a parquet file, a directory of "
                    "images or parquet files, a directory written by save_to_disk, or a Hub id."
                )
            # One file is one split, whatever its name says.
            base = split.split("[", 1)[0]
            return datasets.load_dataset("parquet", data_files={base: str(path)}, split=split, **options)
        if path.is_dir():
            return datasets.load_dataset(str(path), split=split, **options)
        if not is_hub_id(source) or path.suffix == ".parquet":
            raise FileNotFoundError(f"dataset {source!r} does not exist: no such file or directory.")
        return datasets.load_dataset(source, config_name, split=split, revision=revision, **options)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise PermissionError(
                f"dataset {source!r} is gated: accept its terms at https://huggingface.co/datasets/{source} and set "
                "HF_TOKEN to a token of that account (or run `hf auth login`)."
            ) from error
        raise FileNotFoundError(
            f"dataset {source!r} was not found, neither as a local path nor on the Hub"
            + (f" at revision {revision!r}" if revision else "")
            + ": check the spelling, and set HF_TOKEN if it is private."
        ) from error
    except DatasetGenerationError as error:
        raise ValueError(f"dataset {source!r} could not be read: {error.__cause__ or error}") from error
    except (DataFilesNotFoundError, EmptyDatasetError) as error:
        raise ValueError(f"dataset {source!r} is empty: it holds no image and no parquet file.") from error
    except ValueError as error:
        # `datasets` says 'Unknown split "x". Should be one of [...]' or 'Bad split: x. Available splits: [...]'.
        if "split" in str(error).lower() and not str(error).startswith("dataset "):
            raise ValueError(f"dataset {source!r} has no split {split!r}: {error}") from error
        raise


def _load_saved(path: Path, split: str, streaming: bool):
    import datasets

    base, _, window = split.partition("[")
    dataset = datasets.load_from_disk(str(path))
    if isinstance(dataset, datasets.DatasetDict):
        if base not in dataset:
            raise ValueError(f"dataset {str(path)!r} has no split {base!r}: it has {', '.join(map(repr, dataset))}.")
        dataset = dataset[base]
    if window:
        raise ValueError(
            f"split {split!r} asks for a slice, which a data set written by save_to_disk does not offer: slice it "
            "with Dataset.select before saving."
        )
    return dataset.to_iterable_dataset() if streaming else dataset


def is_stream(dataset: Any) -> bool:
    """Whether `dataset` can only be read in order (no length, no index)."""
    return not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"))


def num_stream_examples(dataset: Any) -> int | None:
    """The number of examples in one pass over a stream as its metadata states it, or `None` if it does not."""
    info, split = getattr(dataset, "info", None), getattr(dataset, "split", None)
    splits = getattr(info, "splits", None) or {}
    entry = splits.get(str(split)) if split is not None else None
    return getattr(entry, "num_examples", None) or None


def resolve_columns(
    dataset: Any, image_column: str | None = None, label_column: str | None = None, need_label: bool = False
) -> tuple[str, str | None]:
    r"""
    Find the image column and, where one is wanted, the label column.

    A column that was not named is found by its feature type (`Image`, `ClassLabel`) and then by its usual names.

    Args:
        dataset: A `datasets` data set, or anything whose examples are dictionaries.
        image_column (`str`, *optional*): Name of the image column.
        label_column (`str`, *optional*): Name of the label column.
        need_label (`bool`, *optional*, defaults to `False`): Whether a label column must be found.

    Returns:
        `tuple[str, str | None]`: The two names; the second is `None` if no label is needed or none was found.

    Raises:
        ValueError: If the data set is empty, or a column is missing or ambiguous; the message lists the columns.
    """
    features = getattr(dataset, "features", None)
    if not is_stream(dataset) and len(dataset) == 0:
        raise ValueError("the dataset is empty: at least one image is needed.")
    if features is None:
        first = dataset[0] if not is_stream(dataset) else next(iter(dataset), None)
        if first is None:
            raise ValueError("the dataset is empty: at least one image is needed.")
        if not isinstance(first, dict):
            raise TypeError(
                f"dataset examples must be dictionaries of columns, got {type(first).__name__}: return for example "
                "{'image': image, 'label': label}."
            )
        kinds = {name: "Image" if isinstance(value, PILImage.Image) else "" for name, value in first.items()}
    else:
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
    listing = ", ".join(repr(name) for name in kinds) or "none"

    def find(wanted: str | None, argument: str, kind: str, usual: Sequence[str], required: bool) -> str | None:
        if wanted is not None:
            if wanted not in kinds:
                raise ValueError(f"{argument} {wanted!r} is not a column of the dataset: its columns are {listing}.")
            return wanted
        found = [name for name in kinds if kinds[name] == kind]
        named = [name for name in usual if name in kinds and (not found or name in found)]
        if len(found) == 1 or (found and named):
            return named[0] if named else found[0]
        if not found and named:
            return named[0]
        if not required:
            return None
        problem = "several columns could be it" if found else "no column looks like it"
        raise ValueError(f"{argument} was not given and {problem}: name one of the dataset's columns, {listing}.")

    image = find(image_column, "image_column", "Image", ("image", "img", "pixel_values", "jpg", "png"), True)
    assert image is not None  # it is required
    label = find(label_column, "label_column", "ClassLabel", ("label", "labels", "fine_label", "cls"), need_label)
    return image, label if need_label else None


def gives_rows_as_stored(dataset: Any) -> bool:
    """
    Whether `dataset` is of the `datasets` library, its columns are known, and no transform (`set_transform`) makes
    other rows of them.
    """
    import datasets

    if isinstance(dataset, datasets.Dataset):
        return dataset.format["type"] != "custom"
    return isinstance(dataset, datasets.IterableDataset) and dataset.features is not None


def leave_encoded(dataset: Any, columns: Sequence[str]) -> Any:
    """
    A data set whose images are left encoded, for `load_rgb` to decode later, where an error can name the image.

    Args:
        dataset: A data set of the `datasets` library without a transform; any other comes back as it is.
        columns (`Sequence[str]`): Columns of it. Those of another type than `datasets.Image` stay as they are.

    Returns:
        `dataset`, with cells `{"bytes": ..., "path": ...}` in the image columns.
    """
    import datasets

    if gives_rows_as_stored(dataset):
        for column in columns:
            if isinstance(dataset.features[column], datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def cell_content(cell: Any, fetch: bool = False) -> bytes:
    """
    What tells a cell of a data set from others.

    Args:
        cell: Of an image column, decoded or not, or of any other.
        fetch (`bool`, *optional*, defaults to `False`): Read a file elsewhere, too. It is told by its address
            otherwise, which on the Hub names the version.

    Returns:
        `bytes`: Of an encoded image, or of the file it is in; the pixels of a decoded one, the numbers of an array,
        anything else as it is written. Nothing where the file cannot be read.
    """
    if isinstance(cell, PILImage.Image):
        return f"{cell.mode} {cell.size} ".encode() + cell.tobytes()
    if hasattr(cell, "__array__"):
        array = np.asarray(cell)
        return f"{array.dtype} {array.shape} ".encode() + array.tobytes()
    if not isinstance(cell, dict):
        return repr(cell).encode()
    content, path = cell.get("bytes"), cell.get("path")
    if content is not None or path is None:
        return content or b""
    if "://" in path and not fetch:
        return repr(path).encode()
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


class LabelReader:
    r"""
    Cells of a label column to the classifier's class indices.

    Integers are class indices. Names (strings, or those of a `ClassLabel` where every one is that of one of the
    classifier's classes) are looked up in the classifier's `label2id`, so a data set that numbers the classes
    differently, or has some of them only, means the right ones. Of a label such as "tench, Tinca tinca" each name
    counts.

    Args:
        feature: The column's `datasets` feature, if there is one.
        config: The classifier's config (`num_labels`, `label2id`), if there is one.
        mapping (`dict[str, int]`, *optional*): The classifier's labels and the cells that stand for them.

    Raises:
        ValueError: If `mapping` names a label that the classifier does not have.
    """

    def __init__(self, feature: Any = None, config: Any = None, mapping: Mapping[str, Any] | None = None) -> None:
        self.num_labels = getattr(config, "num_labels", None)
        self.label2id = {str(name): int(index) for name, index in (getattr(config, "label2id", None) or {}).items()}
        self.order: list[int] | None = None
        names = getattr(feature, "names", None)
        if names and self.label2id:
            named = {**self._synonyms(), **self.label2id}
            found = [named.get(name) for name in names]
            indices = [index for index in found if index is not None]
            if len(set(indices)) == len(names):
                self.order = indices
        self.mapped: dict[Any, int] = {}
        for name, cell in (mapping or {}).items():
            if name not in self.label2id:
                raise ValueError(f"`label_mapping` names {name!r}, which is not one of the classifier's labels.")
            self.mapped[cell] = self.label2id[name]

    def _synonyms(self) -> dict[str, int]:
        """Class index of every name within a label that is no other class's."""
        pairs = [(name, index) for label, index in self.label2id.items() for name in set(synonyms(label))]
        times = Counter(name for name, _ in pairs)
        return {name: index for name, index in pairs if times[name] == 1}

    def __call__(self, value: Any) -> int:
        if self.mapped:
            if value not in self.mapped:
                raise ValueError(f"label {value!r} is not in `label_mapping`")
            return self.mapped[value]
        if isinstance(value, str):
            if value not in self.label2id:
                raise ValueError(f"label {value!r} is not one of the classifier's labels")
            return self.label2id[value]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"label {value!r} is neither a class index nor a class name")
        if value < 0 or (self.num_labels is not None and value >= self.num_labels):
            raise ValueError(f"label {value} is outside the classifier's 0..{(self.num_labels or 0) - 1}")
        return self.order[value] if self.order is not None else int(value)
