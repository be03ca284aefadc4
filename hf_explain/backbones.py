"""Frozen classifiers: uniform features of every layer, and the tail from any of them.

`ARCHITECTURES` is the only place in the package that knows how ViT, DeiT, ConvNeXt and ResNet are built. Every other
classifier goes through hooks on its named modules.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import AutoModelForImageClassification

# not from the top level: transformers 5.17 hands out a placeholder there that demands torchvision
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import ModelOutput, logging
from transformers.utils.hub import cached_file

from hf_explain.downloads import hub_errors, pin_revision, whole_downloads
from hf_explain.maps import grid_to_tokens, tokens_to_grid


logger = logging.get_logger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """How one `model_type` runs in stages: `embeddings`, then `layers` one by one, then the tail."""

    body: str
    embeddings: str
    layers: str
    layer_name: str
    pool: str  # "tokens": each classifier reads its own prefix token; "mean": mean, then norm; "module": a pooler
    classifiers: tuple[str, ...] = ("classifier",)
    norm: str | None = None
    pooler: str | None = None
    num_prefix_tokens: int = 0
    pre_attention_norm: str | None = None
    attention: str | None = None
    # of the architecture's own image processor, for a classifier that comes without one
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD


_VIT = Architecture(
    body="vit",
    embeddings="embeddings",
    layers="layers",
    layer_name="layer",
    pool="tokens",
    norm="layernorm",
    num_prefix_tokens=1,
    pre_attention_norm="layernorm_before",
    attention="attention",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
ARCHITECTURES: dict[str, Architecture] = {
    "ViTForImageClassification": _VIT,
    "DeiTForImageClassification": replace(
        _VIT, body="deit", num_prefix_tokens=2, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    ),
    "DeiTForImageClassificationWithTeacher": replace(
        _VIT,
        body="deit",
        num_prefix_tokens=2,
        classifiers=("cls_classifier", "distillation_classifier"),
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ),
    "ConvNextForImageClassification": Architecture(
        body="convnext",
        embeddings="embeddings",
        layers="encoder.stages",
        layer_name="stage",
        pool="mean",
        norm="layernorm",
    ),
    "ResNetForImageClassification": Architecture(
        body="resnet",
        embeddings="embedder",
        layers="encoder.stages",
        layer_name="stage",
        pool="module",
        pooler="pooler",
    ),
}


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

    def replace(self, **changes) -> LayerFeatures:
        """A copy with some fields changed, for example a masked `feature_map`."""
        return replace(self, **changes)


class ClassifierFeatures(dict):
    """
    Features of one batch, by layer name, in network order, with the `logits` the same pass produced.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The classifier's logits.
        layers (`dict[str, LayerFeatures]`): Layer name to features.
    """

    def __init__(self, logits: torch.Tensor, layers: dict[str, LayerFeatures], layer_names: tuple[str, ...]):
        super().__init__(layers)
        self.logits = logits
        self._layer_names = layer_names

    def __getitem__(self, layer: str | int) -> LayerFeatures:
        return super().__getitem__(_resolve_layer(layer, self._layer_names))


@dataclass(frozen=True)
class _ProbedLayer:
    """What one run told about a module of a classifier outside the table."""

    channels: int
    num_prefix_tokens: int | None = None  # of a sequence of tokens; None for a feature map
    overwritten: bool = False  # a later module works on its output in place


class FrozenClassifier(nn.Module):
    """
    An image classifier that never changes: no parameter requires a gradient and it stays in eval mode, whatever is
    called on it or on a model that contains it.

    Args:
        model (`torch.nn.Module`): `AutoModelForImageClassification` instances of ViT, DeiT, ConvNeXt and ResNet run
            in stages; any other classifier with spatial layers runs through hooks on its named modules. The instance
            itself is frozen, not a copy.
        image_processor (*optional*): The Transformers image processor the classifier was trained with; looked up
            beside the weights when not given.
        image_size (`tuple[int, int]`, *optional*): Height and width in pixels used to probe a classifier that is
            neither in the table nor tells its input size; 224 by 224 when not given.

    Attributes:
        layer_names (`tuple[str, ...]`): Layers from input to output. `("stem", "stage1", ...)` for ConvNeXt and
            ResNet, `("stem", "layer1", ...)` for ViT and DeiT (the k-th is `hidden_states[k]`), module paths for
            others.
    """

    def __init__(self, model: nn.Module, *, image_processor=None, image_size: tuple[int, int] | None = None):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`model` must be a torch.nn.Module, got {type(model).__name__}; "
                "use FrozenClassifier.from_pretrained for a directory or a Hub id."
            )
        if isinstance(model, FrozenClassifier):
            raise TypeError("`model` is a FrozenClassifier already; use it as it is.")
        # A compiled module ignores hooks and hides its structure; the original is the same weights.
        self.model = getattr(model, "_orig_mod", model)
        self.model.requires_grad_(False)
        self.eval()
        self.config = getattr(self.model, "config", None)
        self.name_or_path: str = getattr(self.config, "_name_or_path", "") or ""
        self.revision: str | None = None
        self._image_processor = image_processor
        self._probe_size = image_size
        self._architecture = ARCHITECTURES.get(type(self.model).__name__)
        self._probed: dict[str, _ProbedLayer] | None = None
        self._default_layer: str | None = None
        self._num_labels: int | None = None

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str | os.PathLike, *, revision: str | None = None, image_processor=None, **kwargs
    ) -> FrozenClassifier:
        """
        Load a classifier from a directory or the Hub and freeze it.

        Args:
            model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of an image classifier.
            revision (`str`, *optional*): Branch, tag or commit on the Hub; the commit found is kept in `.revision`.
            image_processor (*optional*): Used instead of the one saved beside the weights.
            kwargs: Passed to `AutoModelForImageClassification.from_pretrained` (dtype, device_map,
                attn_implementation, token, cache_dir, subfolder, trust_remote_code, ...).

        Raises:
            FileNotFoundError: If a local path does not exist or holds no `config.json`.
            OSError: If the Hub has no such model, or it cannot be reached, or a download was damaged.
            ValueError: If the weights are there as a pickle only.
        """
        name = os.fspath(model_name_or_path)
        local = os.path.isdir(name)
        if local and not os.path.isfile(os.path.join(name, kwargs.get("subfolder", ""), "config.json")):
            raise FileNotFoundError(
                f"The classifier directory {name!r} has no config.json; give a directory written by "
                "save_pretrained or a Hub id."
            )
        if not local and _looks_like_path(name):
            raise FileNotFoundError(
                f"The classifier directory {name!r} does not exist; give an existing directory or a Hub id."
            )
        names = ("cache_dir", "token", "local_files_only", "subfolder")
        hub_kwargs = {key: kwargs[key] for key in names if key in kwargs}
        kwargs["use_safetensors"] = True  # a pickle can run code
        kwargs.setdefault("trust_remote_code", False)  # unset, Transformers stops and asks on the terminal
        with hub_errors(name, f"loading the classifier {name!r}"):
            revision = pin_revision(name, revision, **hub_kwargs)
        with whole_downloads(name, revision, **hub_kwargs):
            model = AutoModelForImageClassification.from_pretrained(name, revision=revision or "main", **kwargs)
        classifier = cls(model, image_processor=image_processor)
        classifier.name_or_path = name
        if not local:
            classifier.revision = revision
        if image_processor is None:
            classifier.image_processor = load_image_processor(name, revision=classifier.revision, **hub_kwargs)
        return classifier

    @classmethod
    def from_config(cls, config, **kwargs) -> FrozenClassifier:
        """A classifier with the structure of `config` and no trained weights, for a self-contained head to fill."""
        return cls(AutoModelForImageClassification.from_config(config, **kwargs))

    # ------------------------------------------------------------------ frozen, always

    def train(self, mode: bool = True) -> FrozenClassifier:
        """Stays in eval mode whatever is asked: BatchNorm statistics and dropout must not move."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenClassifier:
        """Stays without gradients whatever is asked."""
        return super().requires_grad_(False)

    # ------------------------------------------------------------------ facts

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def num_labels(self) -> int:
        """Number of classes, from the config or, for a plain module, from the logits of one probe."""
        if self._num_labels is None:
            self._num_labels = getattr(self.config, "num_labels", None)
        if self._num_labels is None:
            self._probe()
        return self._num_labels

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to name."""
        labels = getattr(self.config, "id2label", None) or {}
        return {int(i): name for i, name in labels.items()} or {i: f"LABEL_{i}" for i in range(self.num_labels)}

    @property
    def is_transformer(self) -> bool:
        """Whether the classifier is one of the table's transformers (ViT, DeiT)."""
        return self._architecture is not None and self._architecture.pool == "tokens"

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patch tokens: CLS, distillation; 0 for convolutional classifiers."""
        return self._architecture.num_prefix_tokens if self._architecture else 0

    @property
    def image_processor(self):
        """The classifier's Transformers image processor, or `None` where there is none."""
        if self._image_processor is None and self.name_or_path and os.path.isdir(self.name_or_path):
            self._image_processor = load_image_processor(self.name_or_path)
        return self._image_processor

    @image_processor.setter
    def image_processor(self, image_processor) -> None:
        self._image_processor = image_processor

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Per-channel mean the pixels were normalised with; 0 where the processor does not normalise."""
        return self._normalisation("image_mean", 0.0)

    @property
    def image_std(self) -> tuple[float, ...]:
        """Per-channel standard deviation the pixels were normalised with; 1 where the processor does not normalise."""
        return self._normalisation("image_std", 1.0)

    def _normalisation(self, name: str, neutral: float) -> tuple[float, ...]:
        processor = self.image_processor
        channels = getattr(self.config, "num_channels", 3)
        if processor is None:
            return getattr(self._architecture or Architecture, name)[:channels]
        if not getattr(processor, "do_normalize", True):
            return (neutral,) * channels
        value = getattr(processor, name)
        return (float(value),) * channels if isinstance(value, (int, float)) else tuple(float(v) for v in value)

    # ------------------------------------------------------------------ layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        arch = self._architecture
        if arch is None:
            return tuple(self._probe())
        return ("stem",) + tuple(f"{arch.layer_name}{i + 1}" for i in range(len(self._blocks)))

    @property
    def default_layer(self) -> str:
        """
        The deepest layer whose positions still reach the logits: the last one, or for ViT and DeiT the one before it,
        because after the last block the classifier reads the prefix tokens alone. Outside the table the gradient of
        one image tells.
        """
        if self._architecture is not None:
            return self.layer_names[-2 if self.is_transformer else -1]
        if self._default_layer is None:
            self._default_layer = next(filter(self._reaches_logits, reversed(self.layer_names)), self.layer_names[-1])
        return self._default_layer

    def resolve_layer(self, layer: str | int) -> str:
        """
        Canonical name of a layer given by name or by index into `layer_names` (negative from the end).

        Raises:
            ValueError: If there is no such layer; the message lists the layers.
        """
        return _resolve_layer(layer, self.layer_names)

    def num_channels(self, layer: str | int) -> int:
        """Channels of a layer's feature map."""
        layer = self.resolve_layer(layer)
        if self._architecture is None:
            return self._probe()[layer].channels
        if self.is_transformer:
            return self.config.hidden_size
        stem = self.config.hidden_sizes[0] if self._architecture.body == "convnext" else self.config.embedding_size
        return [stem, *self.config.hidden_sizes][self.layer_names.index(layer)]

    # ------------------------------------------------------------------ forward

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The classifier's logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised
                pixels, any size the classifier accepts; position embeddings of ViT and DeiT are interpolated.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        self._check_pixels(pixel_values)
        return _logits(self.model(pixel_values.to(self.dtype), **self._input_options(pixel_values)))

    def features(
        self, pixel_values: torch.Tensor, layers: Sequence[str | int] | None = None
    ) -> ClassifierFeatures:
        """
        One pass that keeps the outputs of some layers, and the logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            layers (list of `str` or `int`, *optional*): Layers to keep; all when not given.

        Returns:
            [`ClassifierFeatures`]: by layer name or index; `.logits` is the classifier's own.

        Raises:
            ValueError: If a layer does not exist.
        """
        self._check_pixels(pixel_values)
        names = self.layer_names
        wanted = set(names) if layers is None else {self.resolve_layer(layer) for layer in layers}
        if self._architecture is None:
            return self._hooked_features(pixel_values, [name for name in names if name in wanted])
        kept, state = {}, self._embed(pixel_values)
        for index, name in enumerate(names):
            if index:
                state = self._run_block(index - 1, state)
            if name in wanted:
                kept[name] = self._to_features(name, state, pixel_values)
        return ClassifierFeatures(self._tail(state), kept, names)

    def forward_to_features(self, pixel_values: torch.Tensor, layer: str | int) -> LayerFeatures:
        """
        The output of one layer; for the table's architectures nothing after it is run.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            layer (`str` or `int`): The layer.

        Returns:
            [`LayerFeatures`].
        """
        self._check_pixels(pixel_values)
        layer = self.resolve_layer(layer)
        if self._architecture is None:
            return self._hooked_features(pixel_values, [layer])[layer]
        state = self._embed(pixel_values)
        for index in range(self.layer_names.index(layer)):
            state = self._run_block(index, state)
        return self._to_features(layer, state, pixel_values)

    def forward_from_features(self, features: LayerFeatures | ClassifierFeatures) -> torch.Tensor:
        """
        Continue the classifier from one layer's output: bit-identical to the full logits on unchanged features.

        Args:
            features ([`LayerFeatures`] or [`ClassifierFeatures`]): The output of one layer, changed or not (see
                [`LayerFeatures.replace`]); of several layers, the deepest is used.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        if isinstance(features, ClassifierFeatures):
            features = features[next(reversed(features))]
        layer = self.resolve_layer(features.layer)
        if self._architecture is None:
            return self._substituted_logits(features)
        state = features.feature_map
        if self.is_transformer:
            state = grid_to_tokens(state, features.prefix_tokens)
        for index in range(self.layer_names.index(layer), len(self._blocks)):
            state = self._run_block(index, state)
        return self._tail(state)

    def pre_attention_norm(self, features: LayerFeatures) -> LayerFeatures:
        """
        The LayerNorm that the next block applies to these features before its attention (T-TAME's released tap).

        Args:
            features ([`LayerFeatures`]): Of a ViT or DeiT layer other than the last.

        Raises:
            ValueError: If the classifier is no ViT or DeiT, or the layer is the last and has no next block.
        """
        index = self.layer_names.index(self.resolve_layer(features.layer))
        if not self.is_transformer or index >= len(self._blocks):
            raise ValueError(
                f"Layer {features.layer!r} of {type(self.model).__name__} is not followed by an attention block; "
                "the pre-attention LayerNorm exists for every ViT or DeiT layer but the last."
            )
        norm = getattr(self._blocks[index], self._architecture.pre_attention_norm)
        tokens = norm(grid_to_tokens(features.feature_map, features.prefix_tokens))
        grid = tuple(features.feature_map.shape[-2:])
        prefix = self.num_prefix_tokens
        return features.replace(feature_map=tokens_to_grid(tokens, grid, prefix), prefix_tokens=tokens[:, :prefix])

    # ------------------------------------------------------------------ attention

    def attention_modules(self) -> list[nn.Module]:
        """
        The self-attention modules of a ViT or DeiT, in network order.

        Raises:
            ValueError: If the classifier has none that is known.
        """
        if not self.is_transformer:
            raise ValueError(
                f"{type(self.model).__name__} has no attention that this package knows; attention-based methods "
                "need a ViT or DeiT classifier."
            )
        return [getattr(block, self._architecture.attention) for block in self._blocks]

    @contextlib.contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Switch to eager attention, the only kind that returns its weights, and back, even after an error."""
        self.attention_modules()
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    def attentions(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """
        Logits and the attention weights of every block, part of the graph where gradients are on.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            `tuple`: logits, and per block a `torch.FloatTensor` of shape
            `(batch_size, num_heads, sequence_length, sequence_length)` whose rows sum to 1.
        """
        self._check_pixels(pixel_values)
        with self.eager_attention():
            output = self.model(
                pixel_values.to(self.dtype), output_attentions=True, **self._input_options(pixel_values)
            )
        return output.logits, tuple(output.attentions)

    # ------------------------------------------------------------------ targets

    def resolve_target(self, target, batch_size: int, logits: torch.Tensor | None = None) -> torch.Tensor:
        """
        Classes to explain, one per image.

        Args:
            target (`int`, `str`, a list of them, `torch.Tensor` or `None`): A class index or label name for the whole
                batch, or one per image; `None` for the top class of `logits`.
            batch_size (`int`): Number of images.
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*): Needed for `None`.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`, on the classifier's device.

        Raises:
            ValueError: If a name is unknown (the nearest are named), an index is out of range, or a list has another
                length than the batch.
        """
        if target is None:
            if logits is None:
                raise ValueError("`target` is None, which means the top class, but no `logits` were given.")
            return logits.argmax(dim=-1)
        device = logits.device if logits is not None else self.device
        if isinstance(target, torch.Tensor) and (target.dtype.is_floating_point or target.dtype == torch.bool):
            raise TypeError(f"`target` must hold class indices (integers), got a tensor of {target.dtype}.")
        if isinstance(target, torch.Tensor) and target.ndim == 0 or isinstance(target, (int, str)):
            return torch.full((batch_size,), self._class_index(target), dtype=torch.long, device=device)
        if isinstance(target, torch.Tensor) and target.ndim == 1 and len(target) == batch_size:
            outside = (target < 0) | (target >= self.num_labels)
            if outside.any():  # one reduction, no per-element transfer
                self._class_index(int(target[outside][0]))
            return target.to(device=device, dtype=torch.long)
        if not isinstance(target, (Sequence, torch.Tensor)) and not hasattr(target, "__len__"):
            raise TypeError(
                f"`target` must be a class index, a label name or a list of them, got {type(target).__name__}."
            )
        if len(target) != batch_size:
            raise ValueError(
                f"`target` has {len(target)} entries for {batch_size} images; give one class for all of them or "
                "exactly one per image."
            )
        return torch.tensor([self._class_index(one) for one in target], dtype=torch.long, device=device)

    def _class_index(self, target) -> int:
        if isinstance(target, str):
            return self._label_index(target)
        if isinstance(target, (bool, float)) or not hasattr(target, "__index__") and not hasattr(target, "item"):
            raise TypeError(f"`target` must be a class index or a label name, got {target!r}.")
        index = int(target)
        if not 0 <= index < self.num_labels:
            raise ValueError(
                f"`target` {index} is out of range: the classifier has {self.num_labels} classes, "
                f"0 to {self.num_labels - 1}."
            )
        return index

    def _label_index(self, name: str) -> int:
        wanted = name.strip().casefold()
        exact, partial = [], []
        for index, label in self.id2label.items():
            folded = str(label).casefold()
            if folded == wanted:
                exact.append(index)
            elif wanted in (part.strip() for part in folded.split(",")):  # ImageNet: "tench, Tinca tinca"
                partial.append(index)
        found = exact or partial
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"`target` {name!r} names several classes: {found[:6]}; use the index of the one you mean."
            )
        labels = [str(label) for label in self.id2label.values()]
        # ImageNet's names are lists of synonyms: each counts, else a typo in one is far from the whole
        parts = {part.strip().casefold(): label for label in labels for part in (label, *label.split(","))}
        matches = difflib.get_close_matches(wanted, parts, n=6, cutoff=0.4)
        near = list(dict.fromkeys(parts[match] for match in matches))[:3] or labels[:3]
        raise ValueError(
            f"`target` {name!r} is no label of this classifier; the nearest are {', '.join(map(repr, near))}."
        )

    # ------------------------------------------------------------------ in stages (the table's architectures)

    @property
    def _body(self) -> nn.Module:
        return getattr(self.model, self._architecture.body)

    @property
    def _blocks(self) -> nn.ModuleList:
        return self._body.get_submodule(self._architecture.layers)

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        channels = getattr(self.config, "num_channels", None)
        if pixel_values.ndim != 4 or (channels is not None and pixel_values.shape[1] != channels):
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {channels or 'num_channels'}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )

    def _input_options(self, pixel_values: torch.Tensor) -> dict:
        """ViT and DeiT must be told when the image is not of the size they were trained on."""
        if not self.is_transformer:
            return {}
        native = _pair(self.config.image_size)
        return {"interpolate_pos_encoding": True} if tuple(pixel_values.shape[-2:]) != native else {}

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = getattr(self._body, self._architecture.embeddings)
        return embeddings(pixel_values.to(self.dtype), **self._input_options(pixel_values))

    def _run_block(self, index: int, state: torch.Tensor) -> torch.Tensor:
        output = self._blocks[index](state)
        return output[0] if isinstance(output, tuple) else output

    def _tail(self, state: torch.Tensor) -> torch.Tensor:
        arch, body = self._architecture, self._body
        heads = [getattr(self.model, name) for name in arch.classifiers]
        if arch.pool == "tokens":
            tokens = getattr(body, arch.norm)(state)
            logits = [head(tokens[:, index, :]) for index, head in enumerate(heads)]
            return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2
        if arch.pool == "mean":
            return heads[0](getattr(body, arch.norm)(state.mean([-2, -1])))
        return heads[0](getattr(body, arch.pooler)(state))

    def _to_features(self, layer: str, state: torch.Tensor, pixel_values: torch.Tensor) -> LayerFeatures:
        if not self.is_transformer:
            return LayerFeatures(layer, state)
        patch = _pair(self.config.patch_size)
        grid = tuple(side // p for side, p in zip(pixel_values.shape[-2:], patch))
        prefix = self.num_prefix_tokens
        return LayerFeatures(layer, tokens_to_grid(state, grid, prefix), state[:, :prefix])

    # ------------------------------------------------------------------ through hooks (every other classifier)

    @contextlib.contextmanager
    def _hooks(self, hooks: dict[str, object]) -> Iterator[None]:
        handles = [self.model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _probe_images(self) -> torch.Tensor:
        """Two images of noise: two tell the batch dimension from others that are 1, noise reaches every unit."""
        size = self._probe_size or _pair(getattr(self.config, "image_size", None) or 224)
        convolutions = (parameter.shape[1] for parameter in self.model.parameters() if parameter.ndim == 4)
        channels = getattr(self.config, "num_channels", None) or next(convolutions, 3)
        noise = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
        return noise.to(device=self.device, dtype=self.dtype)

    def _reaches_logits(self, layer: str) -> bool:
        with torch.inference_mode(False), torch.enable_grad():
            features = self.forward_to_features(self._probe_images(), layer)
            feature_map = features.feature_map.detach().requires_grad_()
            logits = self.forward_from_features(features.replace(feature_map=feature_map))
            if not logits.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(logits.sum(), feature_map, allow_unused=True)
        return gradient is not None and bool((gradient != 0).any())

    def _probe(self) -> dict[str, _ProbedLayer]:
        """Find the layers with spatial outputs by running the classifier once."""
        if self._probed is not None:
            return self._probed
        images = self._probe_images()
        size = tuple(images.shape[-2:])
        found: dict[str, _ProbedLayer] = {}
        outputs: dict[str, tuple[torch.Tensor, int]] = {}
        calls: dict[str, int] = {}
        registers = getattr(self.config, "num_register_tokens", None)
        prefixes = {0, 1 + registers} if registers else {0, 1, 2}

        def record(name):
            def hook(module, inputs, output):
                calls[name] = calls.get(name, 0) + 1
                tensor = _first_tensor(output)
                # windows of attention have a batch dimension of their own, and so has what is shared by all images
                if tensor is None or not tensor.is_floating_point() or len(tensor) != len(images):
                    return
                if tensor.ndim == 4 and min(tensor.shape[-2:]) > 1:
                    found[name] = _ProbedLayer(channels=tensor.shape[1])
                elif tensor.ndim == 3 and tensor.shape[2] > 1:
                    layout = self._token_layout(tensor.shape[1], size, prefixes)
                    if layout is None:
                        return
                    found[name] = _ProbedLayer(channels=tensor.shape[2], num_prefix_tokens=layout[1])
                else:
                    return
                outputs[name] = (tensor, tensor._version)

            return hook

        names = [name for name, _ in self.model.named_modules() if name]
        with torch.inference_mode(False), torch.no_grad(), self._hooks({name: record(name) for name in names}):
            output = self.model(images)
        # a module called several times has no single output to read or replace
        self._probed = {
            name: replace(layer, overwritten=outputs[name][0]._version != outputs[name][1])
            for name, layer in found.items()
            if calls[name] == 1
        }
        if self._num_labels is None:
            self._num_labels = _logits(output).shape[-1]
        if not self._probed:
            raise ValueError(
                f"{type(self.model).__name__} has no module with a spatial output for {size[0]}x{size[1]} pixels, so "
                f"there is no layer to explain from; its modules are {', '.join(names[:12])}, ... "
                "Pass image_size=(height, width) to FrozenClassifier if it expects another size."
            )
        return self._probed

    def _token_layout(
        self, num_tokens: int, size: Sequence[int], prefixes: set[int]
    ) -> tuple[tuple[int, int], int] | None:
        """Grid and number of prefix tokens of a token sequence, or None when it cannot be a grid."""
        patch = _pair(getattr(self.config, "patch_size", None) or 4)
        for power in range(7):
            # Swin pads to whole patches, a plain patch convolution leaves the rest out
            for rounded in (lambda side, p: -(-side // p), lambda side, p: side // p):
                grid = tuple(rounded(side, p * 2**power) for side, p in zip(size, patch))
                prefix = num_tokens - grid[0] * grid[1]
                if prefix in prefixes and grid[0] * grid[1] > 1:
                    return grid, prefix
        return None

    def _hooked_features(self, pixel_values: torch.Tensor, names: list[str]) -> ClassifierFeatures:
        layers = self._probe()
        kept: dict[str, LayerFeatures] = {}

        def keep(name):
            def hook(module, inputs, output):
                tensor = _first_tensor(output)
                kept[name] = self._split(name, tensor.clone() if layers[name].overwritten else tensor, pixel_values)

            return hook

        with self._hooks({name: keep(name) for name in names}):
            logits = self.forward(pixel_values)
        return ClassifierFeatures(logits, {name: kept[name] for name in names}, self.layer_names)

    def _split(self, name: str, tensor: torch.Tensor, pixel_values: torch.Tensor) -> LayerFeatures:
        prefix = self._probe()[name].num_prefix_tokens
        if prefix is None:
            return LayerFeatures(name, tensor, pixel_values=pixel_values)
        layout = self._token_layout(tensor.shape[1], tuple(pixel_values.shape[-2:]), {prefix})
        if layout is None:
            raise ValueError(
                f"Layer {name!r} gives {tensor.shape[1]} tokens for an image of {tuple(pixel_values.shape[-2:])} "
                "pixels, which is no grid of patches; choose a layer with a spatial output."
            )
        grid, _ = layout
        return LayerFeatures(name, tokens_to_grid(tensor, grid, prefix), tensor[:, :prefix], pixel_values)

    def _substituted_logits(self, features: LayerFeatures) -> torch.Tensor:
        if features.pixel_values is None:
            raise ValueError(
                f"`features` of {type(self.model).__name__} must keep their pixel_values: this classifier's tail runs "
                "by running it whole and replacing the layer's output."
            )
        value, layer = features.feature_map, self._probe()[features.layer]
        if layer.num_prefix_tokens is not None:
            value = grid_to_tokens(value, features.prefix_tokens)
        elif layer.overwritten:
            value = value.clone()  # else an in-place ReLU behind it would change the caller's features

        def substitute(module, inputs, output):
            return (value, *output[1:]) if isinstance(output, tuple) else value

        # upstream of the layer nothing requires a gradient, so autograd records only the tail
        with self._hooks({features.layer: substitute}):
            return self.forward(features.pixel_values)


def _resolve_layer(layer: str | int, names: tuple[str, ...]) -> str:
    if isinstance(layer, str) and layer in names:
        return layer
    if isinstance(layer, int) and not isinstance(layer, bool) and -len(names) <= layer < len(names):
        return names[layer]
    shown = ", ".join(names if len(names) <= 40 else (*names[:6], "...", *names[-12:]))
    raise ValueError(f"`layer` {layer!r} does not exist; the layers are {shown}, or their indices.")


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _first_tensor(output) -> torch.Tensor | None:
    """A module's own tensor; a `ModelOutput` is a report on many and cannot be replaced by one."""
    if isinstance(output, ModelOutput):
        return None
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, torch.Tensor) else None


def _logits(output) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise TypeError(
        f"The classifier returned {type(output).__name__}; a classifier must return logits, a tuple that starts with "
        "them, or an output with a `logits` field."
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or os.path.isabs(name) or name.count("/") > 1 or "\\" in name


def load_image_processor(name: str, revision: str | None = None, **kwargs):
    """
    The image processor saved beside a classifier or a head.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        kwargs: cache_dir, token, local_files_only, subfolder.

    Returns:
        The Transformers image processor, or `None` where none was saved.
    """
    try:
        found = cached_file(
            name, "preprocessor_config.json", revision=revision or "main", _raise_exceptions_for_missing_entries=False,
            **kwargs,
        )
        found = found or cached_file(
            name, "processor_config.json", revision=revision or "main", _raise_exceptions_for_missing_entries=False,
            **kwargs,
        )
    except OSError:
        logger.warning("No image processor could be looked up for %s; its architecture's defaults are used.", name)
        return None
    if found is None:
        return None
    return AutoImageProcessor.from_pretrained(name, revision=revision or "main", **kwargs)
