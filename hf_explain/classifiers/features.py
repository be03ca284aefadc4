"""What layers put out, the same for every architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class LayerFeatures:
    """
    The output of one layer, the same for every architecture.

    Args:
        layer (`str`): Canonical name of the layer.
        feature_map (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Spatial features.
        prefix_tokens (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens, channels)`, *optional*):
            CLS, distillation and register tokens of a transformer.
        pixel_values (`torch.FloatTensor`, *optional*): The input, kept only where the tail needs it to run again
            (classifiers outside `ARCHITECTURES`).
    """

    layer: str
    feature_map: torch.Tensor
    prefix_tokens: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None

    def replace(self, **changes: Any) -> LayerFeatures:
        """A copy with some fields changed, for example a masked `feature_map`."""
        return replace(self, **changes)

    def select(self, rows: list[int]) -> LayerFeatures:
        """The features of some images of the batch, in the order of `rows`."""
        prefix, pixels = (None if value is None else value[rows] for value in (self.prefix_tokens, self.pixel_values))
        return self.replace(feature_map=self.feature_map[rows], prefix_tokens=prefix, pixel_values=pixels)


class ClassifierFeatures(dict[str, LayerFeatures]):
    """
    Features of one batch, by layer name, in network order, with the `logits` the same pass produced.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The classifier's logits.
        layers (`dict[str, LayerFeatures]`): Layer name to features.
        layer_names (`tuple[str, ...]`): All layers of the classifier, kept or not, for access by index.
        image_size (sequence of two `int`, *optional*): `(height, width)` of the images, in pixels; every pass of a
            classifier says it.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        layers: dict[str, LayerFeatures],
        layer_names: tuple[str, ...],
        image_size: Sequence[int] = (),
    ):
        super().__init__(layers)
        self.logits = logits
        self.image_size = image_size
        self._layer_names = layer_names

    def __getitem__(self, layer: str | int) -> LayerFeatures:
        name = resolve_layer(layer, self._layer_names)
        if name not in self:
            raise ValueError(f"`layer` {layer!r} was not kept in this pass; kept were {', '.join(self)}.")
        return super().__getitem__(name)

    def select(self, rows: list[int]) -> ClassifierFeatures:
        """The features of some images of the batch, in the order of `rows`."""
        layers = {name: features.select(rows) for name, features in self.items()}
        return ClassifierFeatures(self.logits[rows], layers, self._layer_names, self.image_size)


def resolve_layer(layer: str | int, names: tuple[str, ...]) -> str:
    """
    Canonical name of a layer given by name or by index into `names` (negative from the end).

    Raises:
        ValueError: If there is no such layer; the message lists the layers.
    """
    if isinstance(layer, str) and layer in names:
        return layer
    if isinstance(layer, int) and not isinstance(layer, bool) and -len(names) <= layer < len(names):
        return names[layer]
    shown = ", ".join(names if len(names) <= 40 else (*names[:6], "...", *names[-12:]))
    raise ValueError(f"`layer` {layer!r} does not exist; the layers are {shown}, or their indices.")
