"""What an evaluation runs on: an explainer behind one call, its cost in forward passes, examples by their index."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Image as ImageFeature
from PIL import Image
from torch import nn
from transformers import Pipeline, pipeline
from transformers.image_utils import ChannelDimension

from hf_explain.backbones import ClassifierFeatures, FrozenClassifier
from hf_explain.data import LabelReader, decode_image, is_stream, resolve_columns
from hf_explain.fingerprint import fingerprint
from hf_explain.images import load_rgb
from hf_explain.mapping import DEFAULT_METHOD, resolve_method
from hf_explain.maps import CropGeometry
from hf_explain.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.outputs import SaliencyOutput


# ----------------------------------------------------------------------------------------------------------- explainer


@dataclass
class Explainer:
    """
    A trained head or a training-free method, with the classifier it explains.

    Args:
        explain (`Callable`): `(pixel_values, target, image_ids)` to [`SaliencyOutput`].
        classifier ([`FrozenClassifier`]): What is explained.
        image_processor: Makes `pixel_values` of images.
        identity (`dict`): Names, options and checksums that tell it from every other one, as JSON has them.
        head ([`ExplainerPreTrainedModel`], *optional*): The head, where it is one.
    """

    explain: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], SaliencyOutput]
    classifier: FrozenClassifier
    image_processor: Any
    identity: dict[str, Any]
    head: ExplainerPreTrainedModel | None = None


def resolve_explainer(
    model_or_pipeline,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | int | torch.device | None = None,
) -> Explainer:
    """
    Whatever explains images, behind one call.

    Args:
        model_or_pipeline (`str`, `os.PathLike`, [`SaliencyPipeline`], [`ExplainerPreTrainedModel`],
            [`FrozenClassifier`] or `torch.nn.Module`): Directory or Hub id of a head or of a classifier, or the thing
            itself.
        method (`str`, *optional*): A training-free method, instead of the head or of the default method.
        method_options (`dict`, *optional*): Options of the method.
        seed (`int`, *optional*, defaults to 0): Of a method that draws random numbers, unless its options have one.
        device (*optional*): Where a model given by name is put; that of the model where not given.

    Returns:
        [`Explainer`].

    Raises:
        TypeError: If `model_or_pipeline` is none of these.
        ValueError: If there is no such method or option, or no image processor.
    """
    head, processor, options = None, None, dict(method_options or {})
    if isinstance(model_or_pipeline, (str, os.PathLike)):
        model_or_pipeline = pipeline("saliency", model=os.fspath(model_or_pipeline), device=device)
    if isinstance(model_or_pipeline, Pipeline):
        # by what it offers, not by its class: pipelines lie above this file
        classifier = getattr(model_or_pipeline, "classifier", None)
        if not isinstance(classifier, FrozenClassifier):
            raise TypeError(
                f"`model_or_pipeline` is a {type(model_or_pipeline).__name__}; give one of pipeline('saliency', ...)."
            )
        head, processor = model_or_pipeline.head, model_or_pipeline.image_processor
        preset = {name: value for name, value in model_or_pipeline._forward_params.items() if name != "top_k"}
        own_method = preset.pop("method", None)
        if method is None or method == own_method:
            method, options = own_method, {**preset, **options}
    elif isinstance(model_or_pipeline, ExplainerPreTrainedModel):
        head, classifier = model_or_pipeline, model_or_pipeline.backbone
        if classifier is None:
            raise ValueError("`model_or_pipeline` has no classifier; load it with from_pretrained or call attach.")
    elif isinstance(model_or_pipeline, FrozenClassifier):
        classifier = model_or_pipeline
    elif isinstance(model_or_pipeline, nn.Module):
        classifier = FrozenClassifier(model_or_pipeline)
    else:
        raise TypeError(
            "`model_or_pipeline` must be a saliency pipeline, a head, a classifier or the name of one, "
            f"got {type(model_or_pipeline).__name__}."
        )
    processor = processor or classifier.image_processor
    if processor is None:
        named = classifier.name_or_path or type(classifier.model).__name__
        raise ValueError(
            f"`model_or_pipeline` {named!r} has no image processor; "
            "give a FrozenClassifier(model, image_processor=...) or a directory with preprocessor_config.json."
        )
    identity: dict[str, Any] = {
        "classifier": public_name(classifier.name_or_path) or type(classifier.model).__name__,
        "classifier_revision": classifier.revision,
        "classifier_fingerprint": fingerprint(classifier.model),
    }
    if method is None and head is not None:
        if options:
            raise ValueError(f"`method_options` {sorted(options)} need a `method`; a trained head has none here.")
        identity |= {
            "explainer": head.config.model_type,
            "head": public_name(getattr(head.config, "_name_or_path", "")),
            "head_fingerprint": fingerprint(head),
        }
        return Explainer(_head_call(head), classifier, processor, identity, head)
    method = method or DEFAULT_METHOD
    function = resolve_method(method)
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in ("classifier", "pixel_values", "target", "image_ids")]
    for name in options:
        if name not in known:
            raise ValueError(f"{method!r} has no option {name!r}; its options are {', '.join(known) or 'none'}.")
    if "seed" in parameters:
        options.setdefault("seed", seed)
    takes_ids = "image_ids" in parameters

    def explain(pixel_values, target, image_ids):
        ids = {"image_ids": image_ids} if takes_ids else {}
        return function(classifier, pixel_values, target, **ids, **options)

    identity |= {"explainer": method, "method_options": options}
    return Explainer(explain, classifier, processor, identity)


def _head_call(head):
    def explain(pixel_values, target, image_ids):
        training = head.training
        head.eval()
        try:
            with torch.no_grad():
                return head(pixel_values, target)
        finally:
            head.train(training)

    return explain


def public_name(source: str | os.PathLike | None) -> str | None:
    """A Hub id as it is, a path without its directories: results are published."""
    if not source:
        return None
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else os.fspath(source)


class PassCounter:
    """
    Counts the images that go through a classifier while it is open.

    Attributes:
        full (`int`): Images that entered as pixels, however far they went.
        tail (`int`): Images that entered as features of a layer.
    """

    _FULL, _TAIL = ("forward", "features", "forward_to_features", "attentions"), "forward_from_features"

    def __init__(self, classifier: FrozenClassifier):
        self.classifier, self.full, self.tail, self._depth = classifier, 0, 0, 0

    def __enter__(self) -> PassCounter:
        for name in (*self._FULL, self._TAIL):
            setattr(self.classifier, name, self._counted(name, getattr(self.classifier, name)))
        return self

    def __exit__(self, *error) -> None:
        for name in (*self._FULL, self._TAIL):
            delattr(self.classifier, name)  # the class's own method shows again

    def _counted(self, name: str, function):
        def counted(inputs, *args, **kwargs):
            if self._depth == 0:
                if name != self._TAIL:
                    self.full += len(inputs)
                else:
                    self.tail += len(inputs.logits if isinstance(inputs, ClassifierFeatures) else inputs.feature_map)
            self._depth += 1  # a pass that another one is made of is no second one
            try:
                return function(inputs, *args, **kwargs)
            finally:
                self._depth -= 1

        return counted


# ------------------------------------------------------------------------------------------------------------ examples


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
    ):
        if isinstance(data, Mapping):
            raise ValueError(f"`data` holds the splits {', '.join(map(repr, data))}; give one of them.")
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise TypeError(f"`data` must be a dataset, got {type(data).__name__}.")
        if max_examples is not None and (isinstance(max_examples, bool) or max_examples < 1):
            raise ValueError(f"`max_examples` must be a whole number of at least 1, got {max_examples!r}.")
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
        self._labels = LabelReader(features.get(self.label_column), explainer.classifier.config)
        self._processor = explainer.image_processor
        self.total = None if self.streaming else min(len(data), max_examples or len(data))
        self.limit = max_examples if self.streaming else self.total
        self.identity = {
            "split": str(getattr(data, "split", None) or "") or None,
            "num_rows": None if self.streaming else len(data),
            "first_image": _checksum(first[self.image_column]),
            "last_image": None if self.streaming else _checksum(data[len(data) - 1][self.image_column]),
        }
        name = getattr(getattr(data, "info", None), "dataset_name", None)
        self.identity["name"] = public_name(name)
        if self.streaming and isinstance(features.get(self.image_column), ImageFeature):
            # skipped images need not be decoded
            data = data.cast_column(self.image_column, ImageFeature(decode=False))
        self.data = data

    def shards(self, shard_size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """
        Runs of `shard_size` rows, each with its index in the data set.

        Args:
            shard_size (`int`): Rows per run; the last one may be shorter.
            wanted (`Callable`): Number of a run to whether it is read.

        Yields:
            `tuple[int, list[tuple[int, dict]]]`: its number, and `(index, row)` of its rows.
        """
        if not self.streaming:
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

    def read(self, index: int, row: Mapping[str, Any]) -> Example:
        """
        A row as the classifier sees it.

        Raises:
            ValueError: If its image, label or mask cannot be used; the message names the image.
        """
        try:
            value = row[self.image_column]
            image = load_rgb(decode_image(value) if isinstance(value, dict) else value)
            pixel_values = self._processor(images=image, return_tensors="pt", input_data_format=ChannelDimension.LAST)[
                "pixel_values"
            ][0]
            label = self._labels(row[self.label_column]) if self.label_column is not None else None
            mask = None
            if self.mask_column is not None:
                mask = _seen_mask(row[self.mask_column], (image.height, image.width), self._processor)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"image {index} of `data` cannot be used: {error}") from error
        return Example(index, pixel_values, label, mask)


def seen_image(pixel_values: torch.Tensor, classifier: FrozenClassifier) -> Image.Image:
    """What the classifier saw, as a picture: `pixel_values` of shape `(3, height, width)`, normalisation undone."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (classifier.image_mean, classifier.image_std))
    picture = (pixel_values.float() * std + mean).clamp(0, 1)
    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _checksum(image) -> str:
    if isinstance(image, dict) and image.get("bytes") is not None:
        image = decode_image(image)
    if isinstance(image, Image.Image):
        content = image.mode.encode() + np.asarray(image).tobytes()
    else:
        content = repr(image).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _seen_mask(value, size: tuple[int, int], processor) -> torch.Tensor:
    """A mask of the original image as the part of it the classifier sees, at the size of its input."""
    if value is None:
        raise ValueError("it has no mask; leave out images without one.")
    mask = torch.from_numpy(np.array(decode_image(value) if isinstance(value, dict) else value))
    if mask.ndim == 3:
        mask = mask.amax(-1)
    if tuple(mask.shape) != size:
        raise ValueError(f"its mask is {tuple(mask.shape)} (height, width) and the image {size}; sizes must agree.")
    geometry = CropGeometry.from_processor(processor, size)
    resized = F.interpolate((mask != 0).float()[None, None], size=geometry.resized_size, mode="nearest-exact")[0, 0]
    (top, left), (height, width) = geometry.offset, geometry.crop_size
    padded = F.pad(resized, (max(0, -left), max(0, width), max(0, -top), max(0, height)))
    top, left = max(0, top), max(0, left)
    return padded[top : top + height, left : left + width]
