"""The examples an evaluation runs on, by their index in the data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hf_explain.classifiers.precision import Precision
from hf_explain.evaluation.explainer import Explainer
from hf_explain.io.datasets import LabelReader, cell_content, is_stream, leave_encoded, resolve_columns
from hf_explain.io.image_processor import to_pixel_values
from hf_explain.io.images import load_rgb, open_image
from hf_explain.io.paths import public_name
from hf_explain.tensors.maps import CropGeometry
from hf_explain.tensors.randomness import image_keys
from hf_explain.tensors.scalars import check_count


_LOOKED_AT = 16  # images by which `dtype="auto"` decides: the same ones whatever the batch size


@dataclass
class Example:
    """One image as the classifier sees it: `pixel_values` (3, h, w), `label` and `mask` (h, w) where wanted."""

    index: int
    pixel_values: torch.Tensor
    label: int | None
    mask: torch.Tensor | None


class ExampleReader:
    """
    The examples of a data set by their index, in a data set that can be indexed and in a stream alike.

    Args:
        data: A `datasets` data set (map-style or streaming), or a sequence of dictionaries.
        explainer ([`Explainer`]): Its image processor and its classifier's labels are used.
        image_column, label_column, mask_column (`str`, *optional*): Columns; the first two are found by their types.
        need_labels (`bool`): Whether labels are read.
        max_examples (`int`, *optional*): Only the first so many.
        label_mapping (`dict[str, int]`, *optional*): The classifier's labels and what the label column calls them.

    Raises:
        ValueError: If the data set is empty, or a column is missing.
    """

    def __init__(
        self,
        data,
        explainer: Explainer,
        image_column: str | None = None,
        label_column: str | None = None,
        mask_column: str | None = None,
        need_labels: bool = False,
        max_examples: int | None = None,
        label_mapping: Mapping[str, Any] | None = None,
    ):
        if isinstance(data, Mapping):
            raise ValueError(f"`data` holds the splits {', '.join(map(repr, data))}; give one of them.")
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise TypeError(f"`data` must be a dataset, got {type(data).__name__}.")
        check_count(max_examples, "max_examples", optional=True)
        self.streaming = is_stream(data)
        first = next(iter(data), None) if self.streaming else (data[0] if len(data) else None)
        if first is None:
            raise ValueError("`data` is empty: an evaluation needs at least one image.")
        self.image_column, self.label_column = resolve_columns(data, image_column, label_column, need_labels)
        if mask_column is not None and mask_column not in first:
            raise ValueError(
                f"mask_column {mask_column!r} is not a column of the dataset: its columns are "
                f"{', '.join(map(repr, first))}."
            )
        self.mask_column = mask_column
        features = getattr(data, "features", None) or {}
        self._labels = LabelReader(features.get(self.label_column), explainer.classifier.config, label_mapping)
        self._processor = explainer.image_processor
        self.total = None if self.streaming else min(len(data), max_examples or len(data))
        self.limit = max_examples
        self.identity = {
            "split": str(getattr(data, "split", None) or "") or None,
            "num_rows": None if self.streaming else len(data),
            "first_image": _checksum(first[self.image_column]),
            "last_image": None if self.streaming else _checksum(data[len(data) - 1][self.image_column]),
        }
        name = getattr(getattr(data, "info", None), "dataset_name", None)
        self.identity["name"] = public_name(name)
        # a stream's skipped images need not be decoded
        self.data = leave_encoded(data, [self.image_column])

    def shards(self, shard_size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """
        Runs of `shard_size` rows, each with its index in the data set.

        Args:
            shard_size (`int`): Rows per run; the last one may be shorter.
            wanted (`Callable`): Number of a run to whether it is read.

        Yields:
            `tuple[int, list[tuple[int, dict]]]`: its number, and `(index, row)` of its rows.
        """
        if self.total is not None:
            for shard in range(-(-self.total // shard_size)):
                if wanted(shard):
                    stop = min((shard + 1) * shard_size, self.total)
                    yield shard, [(index, self.data[index]) for index in range(shard * shard_size, stop)]
            return
        rows: list[tuple[int, Any]] = []
        shard = 0
        for index, row in enumerate(self.data):
            if self.limit is not None and index >= self.limit:
                break
            if index // shard_size != shard:
                if rows:
                    yield shard, rows
                rows, shard = [], index // shard_size
            if wanted(shard):
                rows.append((index, row))
        if rows:
            yield shard, rows

    @property
    def columns(self) -> list[str]:
        """Those that are read."""
        return [name for name in (self.image_column, self.label_column, self.mask_column) if name is not None]

    def checksum(self, rows: list[tuple[int, Any]]) -> str:
        """Of what decides about the results of rows: their images, labels and masks."""
        found = hashlib.sha256()
        for _, row in rows:
            for name in self.columns:
                found.update(hashlib.sha256(cell_content(row[name])).digest())
        return found.hexdigest()

    def shuffled(self, seed: int) -> Iterator[Example]:
        """
        All examples of the data set, however many of them are measured, in an order of the seed's; a stream's as they
        come.

        Args:
            seed (`int`): Of the order.

        Yields:
            [`Example`].

        Raises:
            ValueError: As for [`~ExampleReader.read`].
        """
        if self.total is None:
            yield from (self.read(index, row) for index, row in enumerate(self.data))
            return
        rows = torch.arange(len(self.data))
        for index in image_keys(rows, rows, seed).argsort().tolist():
            yield self.read(index, self.data[index])

    def read(self, index: int, row: Mapping[str, Any]) -> Example:
        """
        A row as the classifier sees it.

        Raises:
            ValueError: If its image, label or mask cannot be used; the message names the image.
        """
        try:
            image = load_rgb(row[self.image_column])
            pixel_values = to_pixel_values(self._processor, [image])[0]
            label = self._labels(row[self.label_column]) if self.label_column is not None else None
            mask = None
            if self.mask_column is not None:
                mask = _seen_mask(row[self.mask_column], (image.height, image.width), self._processor)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"image {index} of `data` cannot be used: {error}") from error
        return Example(index, pixel_values, label, mask)


def choose_precision(asked: str, explainer: Explainer, reader: ExampleReader, batch_size: int) -> Precision:
    """
    The precision of a whole evaluation, by its first images: not by those that a resumed one goes on with.

    Args:
        asked (`str`): As for [`~hf_explain.classifiers.precision.Precision`].
        explainer ([`Explainer`]): Its classifier is looked at.
        reader ([`ExampleReader`]): Reads the images.
        batch_size (`int`): Images per pass at most.

    Raises:
        ValueError: If one of the first images cannot be used.
    """

    def images() -> Iterator[torch.Tensor]:
        rows = next(rows for _, rows in reader.shards(_LOOKED_AT, lambda shard: shard == 0))
        sizes: dict[tuple[int, ...], list[torch.Tensor]] = {}
        for example in (reader.read(index, row) for index, row in rows):
            sizes.setdefault(tuple(example.pixel_values.shape), []).append(example.pixel_values)
        for alike in sizes.values():
            yield from torch.stack(alike).split(batch_size)

    precision = Precision(asked)
    precision.choose(explainer.classifier, images)
    return precision


def _checksum(image) -> str:
    if isinstance(image, dict) and image.get("bytes") is not None:
        image = load_rgb(image)
    if isinstance(image, Image.Image):
        content = image.mode.encode() + np.asarray(image).tobytes()
    else:
        content = repr(image).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _seen_mask(value, size: tuple[int, int], processor) -> torch.Tensor:
    """A mask of the original image as the part of it the classifier sees, at the size of its input."""
    if value is None:
        raise ValueError("it has no mask; leave out images without one.")
    if isinstance(value, (dict, str, Image.Image)):
        image = open_image(value)
        value = np.asarray(image)[..., :-1] if "A" in image.getbands() else np.asarray(image)
    mask = torch.from_numpy(np.asarray(value) != 0)
    if mask.ndim == 3:
        mask = mask.any(-1)
    if tuple(mask.shape) != size:
        raise ValueError(f"its mask is {tuple(mask.shape)} (height, width) and the image {size}; sizes must agree.")
    geometry = CropGeometry.from_processor(processor, size)
    resized = F.interpolate(mask.float()[None, None], size=geometry.resized_size, mode="nearest-exact")[0, 0]
    (top, left), (height, width) = geometry.offset, geometry.crop_size
    padded = F.pad(resized, (max(0, -left), max(0, width), max(0, -top), max(0, height)))
    top, left = max(0, top), max(0, left)
    seen = padded[top : top + height, left : left + width]
    bottom, right = geometry.cut_size or geometry.crop_size
    seen[bottom:], seen[:, right:] = 0, 0  # what is padded shows nothing of the image
    return seen
