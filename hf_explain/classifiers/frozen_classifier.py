"""Frozen classifiers: uniform features of every layer, and the tail from any of them.

The architectures of `ARCHITECTURES` run in stages; every other classifier goes through hooks on its named modules.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForZeroShotImageClassification

from hf_explain.classifiers.architectures import ARCHITECTURES, CHANNELS_LAST, Architecture
from hf_explain.classifiers.attention import AttentionFeatures, AttentionRecorder, TokenLayout
from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures, resolve_layer
from hf_explain.classifiers.hooked_layers import HookedLayers, logits_of, pair
from hf_explain.classifiers.passes import shared_pass, watched
from hf_explain.classifiers.precision import CLOSE, asked_dtype, in_precision, passes_in
from hf_explain.classifiers.targets import Target, resolve_target
from hf_explain.classifiers.thread_hooks import thread_hooks
from hf_explain.classifiers.zero_shot import (
    DEFAULT_TEMPLATE,
    ZeroShotClassifier,
    check_labels,
    check_template,
    check_zero_shot,
    is_zero_shot,
)
from hf_explain.io.downloads import check_shapes, read_config, whole_downloads
from hf_explain.io.image_processor import load_image_processor, normalisation
from hf_explain.io.paths import is_hub_id
from hf_explain.io.transformers_names import CONFIG_MAPPING_NAMES, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from hf_explain.tensors.maps import CropGeometry, grid_to_tokens, tokens_to_grid


# of kinds of models that are image classifiers, too
_OTHER_TASKS = re.compile("For(DepthEstimation|ObjectDetection|VideoClassification|[A-Z][a-z]+Segmentation)$")


def _leave_the_file(model: nn.Module) -> None:
    """
    Copy what was not laid out, a few MB, of a model that was loaded here: it still lies in the file, and all of that
    stays in memory as long as anything does, with the convolutions as nobody reads them any more. Not of a model that
    somebody hands over, who may share its tensors.
    """
    for parameter in model.parameters():
        if parameter.ndim != 4:
            parameter.data = parameter.data.clone()
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer._is_view():  # a new tensor: as `data` the copy would still know the file's
                setattr(module, name, buffer.clone())


class FrozenClassifier(nn.Module):
    """
    An image classifier that never changes: no parameter requires a gradient and it stays in eval mode, whatever is
    called on it or on a model that contains it.

    Args:
        model (`torch.nn.Module`): `AutoModelForImageClassification` instances of ViT, DeiT, ConvNeXt and ResNet run
            in stages; any other classifier with spatial layers runs through hooks on its named modules. The instance
            itself is frozen, not a copy; the weights of a ResNet or an EfficientNet are laid out in
            `torch.channels_last`, which changes no value, and any other classifier keeps the memory format it comes
            in. A model of `AutoModelForZeroShotImageClassification`, such as CLIP, gets its classes from
            [`~FrozenClassifier.for_texts`].
        image_processor (*optional*): The Transformers image processor the classifier was trained with; looked up
            beside the weights when not given.
        image_size (`tuple[int, int]`, *optional*): Height and width in pixels used to probe a classifier that is
            neither in the table nor tells its input size; 224 by 224 when not given.
        tokenizer (*optional*): The Transformers tokenizer of a model of images and texts, likewise.

    Attributes:
        layer_names (`tuple[str, ...]`): Layers from input to output. `("stem", "stage1", ...)` for ConvNeXt and
            ResNet, `("stem", "layer1", ...)` for ViT and DeiT (the k-th is `hidden_states[k]`), module paths for
            others.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_processor: Any = None,
        image_size: tuple[int, int] | None = None,
        tokenizer: Any = None,
    ):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`model` must be a torch.nn.Module, got {type(model).__name__}; "
                "use FrozenClassifier.from_pretrained for a directory or a Hub id."
            )
        if isinstance(model, FrozenClassifier):
            raise TypeError("`model` is a FrozenClassifier already; use it as it is.")
        # A compiled module ignores hooks and hides its structure; the original is the same weights.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        if is_zero_shot(type(self.model).__name__):
            self.model = ZeroShotClassifier(self.model, tokenizer)
        self.model.requires_grad_(False)
        self.eval()
        # a PreTrainedConfig with the fields of its architecture, or `None` for a plain module
        self.config: Any = getattr(self.model, "config", None)
        self.name_or_path: str = getattr(self.config, "_name_or_path", "") or ""
        self.revision: str | None = None
        self._image_processor = image_processor
        self._architecture = ARCHITECTURES.get(type(self.model).__name__)
        self.lay_out()
        self._hooked = HookedLayers(self.model, image_size, self.source_model)

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        image_processor: Any = None,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | None = None,
        **kwargs: Any,
    ) -> FrozenClassifier:
        """
        Load a classifier from a directory or the Hub and freeze it.

        Args:
            model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of an image classifier.
            revision (`str`, *optional*): Branch, tag or commit on the Hub; the commit found is kept in `.revision`.
            image_processor (*optional*): Used instead of the one saved beside the weights.
            candidate_labels, hypothesis_template (*optional*): Classes of a model that matches images with texts, as
                for [`~FrozenClassifier.for_texts`].
            kwargs: Passed to `AutoModelForImageClassification.from_pretrained` (dtype, device_map,
                attn_implementation, token, cache_dir, subfolder, trust_remote_code, ...).

        Raises:
            FileNotFoundError: If a local path does not exist or holds no `config.json`.
            OSError: If the Hub has no such model, or it cannot be reached, or a download was damaged.
            UntrustedCodeError: If the repository's own code would have to run, without `trust_remote_code=True`.
            ValueError: If it is a model of another task, or the weights are there as a pickle only, or lack tensors of
                the classifier.
        """
        name = os.fspath(model_name_or_path)
        local = os.path.isdir(name)
        if local and not os.path.isfile(os.path.join(name, kwargs.get("subfolder", ""), "config.json")):
            raise FileNotFoundError(
                f"The classifier directory {name!r} has no config.json; give a directory written by "
                "save_pretrained or a Hub id."
            )
        if not local and not is_hub_id(name):
            raise FileNotFoundError(
                f"The classifier directory {name!r} does not exist; give an existing directory or a Hub id."
            )
        names = ("cache_dir", "token", "local_files_only", "subfolder")
        hub_kwargs = {key: kwargs[key] for key in names if key in kwargs}
        kwargs["use_safetensors"] = True  # a pickle can run code
        # for None, Transformers stops and asks on the terminal
        trusted = kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        with whole_downloads(name, revision, "the classifier ", **hub_kwargs) as revision:
            values = read_config(name, revision, **hub_kwargs)
            zero_shot = is_zero_shot(next(iter(values.get("architectures") or ()), None))
            if zero_shot:
                check_zero_shot(values["model_type"], name)
            else:
                _check_task(values, name)
            auto = AutoModelForZeroShotImageClassification if zero_shot else AutoModelForImageClassification
            loaded: Any = auto.from_pretrained(
                name,
                revision=revision or "main",
                **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True},
            )
        model, info = loaded
        if not kwargs.get("ignore_mismatched_sizes"):
            check_shapes(info["mismatched_keys"], name, "the classifier ")
        missing = sorted(info["missing_keys"])  # filled with random numbers, which explain nothing
        if missing:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"The weights of the classifier {name!r} lack {len(missing)} of its tensors ({listed}); it was saved "
                "incompletely or as another kind of model: save or download it again, as an image classifier."
            )
        classifier = cls(model, image_processor=image_processor)
        if classifier.memory_format is torch.channels_last:
            _leave_the_file(classifier.model)
        classifier.name_or_path = name
        if not local:
            classifier.revision = revision
        if isinstance(classifier.model, ZeroShotClassifier):
            source = {"name": name, "revision": classifier.revision, "trust_remote_code": trusted, **hub_kwargs}
            classifier.model.tokenizer_source = source
        if image_processor is None:
            classifier.image_processor = load_image_processor(
                name, revision=classifier.revision, trust_remote_code=trusted, **hub_kwargs
            )
        if candidate_labels is not None or hypothesis_template is not None:
            return classifier.for_texts(candidate_labels, hypothesis_template)
        return classifier

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> FrozenClassifier:
        """A classifier with the structure of `config` and random weights, for a self-contained head to fill."""
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))  # as above
        zero_shot = is_zero_shot(next(iter(config.architectures or ()), None))
        auto = AutoModelForZeroShotImageClassification if zero_shot else AutoModelForImageClassification
        return cls(auto.from_config(config, **kwargs))

    # ------------------------------------------------------------------ texts as classes

    def for_texts(
        self, candidate_labels: Sequence[str] | None, hypothesis_template: str | None = None
    ) -> FrozenClassifier:
        """
        The classifier that a model of images and texts is for some texts. It has the same weights, and a linear
        classifier whose rows are the texts' embeddings. The last ones asked for are kept.

        Args:
            candidate_labels (list of `str`): The text of every class.
            hypothesis_template (`str`, *optional*, defaults to `"This is a photo of {}."`): What the model reads of a
                label, which goes into the place of its `{}`; both names and the default are those of Transformers'
                `pipeline("zero-shot-image-classification")`.

        Returns:
            [`FrozenClassifier`].

        Raises:
            ValueError: If the classifier has classes of its own, there is no tokenizer, or a text cannot be read.
        """
        model, name = self.model, self.name_or_path or self.model_class
        if not isinstance(model, ZeroShotClassifier):
            raise ValueError(
                f"`candidate_labels` and `hypothesis_template` are for models that match images with texts, such as "
                f"CLIP; {name!r} has {self.num_labels} classes of its own: leave them out."
            )
        if candidate_labels is None:
            raise ValueError("`hypothesis_template` is given without the `candidate_labels` that go into it.")
        labels = check_labels(candidate_labels)
        template = check_template(DEFAULT_TEMPLATE if hypothesis_template is None else hypothesis_template)

        def make() -> FrozenClassifier:
            twin = FrozenClassifier(model.with_texts(labels, template), image_processor=self.image_processor)
            twin.name_or_path, twin.revision = self.name_or_path, self.revision
            twin._hooked = self._hooked.twin(twin.model)
            return twin

        return model.made.get((labels, template), make)

    @property
    def takes_texts(self) -> bool:
        """Whether its classes are texts, those of [`~FrozenClassifier.for_texts`]."""
        return isinstance(self.model, ZeroShotClassifier)

    @property
    def texts(self) -> tuple[tuple[str, ...], str] | None:
        """`candidate_labels` and `hypothesis_template`, where its classes are texts and there are any."""
        if isinstance(self.model, ZeroShotClassifier) and self.model.candidate_labels:
            return self.model.candidate_labels, self.model.hypothesis_template
        return None

    @property
    def source_model(self) -> nn.Module:
        """The model as it was given, which for a model of images and texts has no classes."""
        return self.model.model if isinstance(self.model, ZeroShotClassifier) else self.model

    @property
    def model_class(self) -> str:
        """Name of the class of `source_model`, for messages."""
        return type(self.source_model).__name__

    @property
    def tokenizer(self) -> Any:
        """The Transformers tokenizer of a model of images and texts, or `None` of any other."""
        return self.model.tokenizer if isinstance(self.model, ZeroShotClassifier) else None

    def check_texts(self) -> None:
        """A ValueError where its classes are texts and there are none yet."""
        if self.takes_texts and self.texts is None:
            raise ValueError(
                f"`candidate_labels` are missing: {self.name_or_path or self.model_class!r} matches "
                "images with texts and has no classes of its own; pass for example candidate_labels=['cat', 'dog'], "
                "or to a pipeline target='a photo of a cat'."
            )

    # ------------------------------------------------------------------ frozen, always

    def train(self, mode: bool = True) -> FrozenClassifier:
        """Stays in eval mode whatever is asked: BatchNorm statistics and dropout must not move."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> FrozenClassifier:
        """Stays without gradients whatever is asked."""
        return super().requires_grad_(False)

    def lay_out(self) -> None:
        """
        Lay the weights out in the memory format their architecture is fastest in (`CHANNELS_LAST`). Done when the
        classifier is made; only weights that replace its own afterwards have to be laid out again.
        """
        if type(self.model).__name__ in CHANNELS_LAST:
            # not the model's own `to`, which refuses models that are quantised or spread over devices
            nn.Module.to(self.model, memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]

    # ------------------------------------------------------------------ facts

    @property
    def memory_format(self) -> torch.memory_format:
        """
        `torch.channels_last` where the convolutions' weights are laid out so, else `torch.contiguous_format`. Images
        in this format are taken as they are, others are copied first; results are bit-identical within one format.
        """
        # a dimension of 1 has no place in memory: such weights are in both formats at once
        weights = (weight for weight in self.model.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1)
        weight = next(weights, None)
        if weight is None or weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
            return torch.contiguous_format
        return torch.channels_last

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels of the images the classifier was made for, as far as it tells; else 224."""
        return self._hooked.image_size

    @property
    def picture_size(self) -> tuple[int, int]:
        """
        `(height, width)` in pixels of what the image processor makes of a picture; `image_size` where there is none,
        or it makes several sizes.
        """
        if self.image_processor is None:
            return self.image_size
        shapes = ((900, 1800), (900, 900))
        made = {CropGeometry.from_processor(self.image_processor, shape).crop_size for shape in shapes}
        return made.pop() if len(made) == 1 else self.image_size

    @property
    def device(self) -> torch.device:
        """Where the classifier computes; weights that are offloaded lie on the meta device meanwhile."""
        device = next(self.model.parameters()).device
        if device.type != "meta":
            return device
        hooks = (getattr(module, "_hf_hook", None) for module in self.model.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(place) for place in places if place is not None), device)

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def compute_dtype(self) -> torch.dtype:
        """
        The precision the next pass runs in: that of the weights, unless
        [`~hf_explain.classifiers.precision.passes_in`] asks for another one and no graph is recorded.
        """
        asked = asked_dtype()
        return self.dtype if asked is None or self.dtype != torch.float32 or torch.is_grad_enabled() else asked

    @property
    def num_labels(self) -> int:
        """Number of classes, from the config or, for a plain module, from the logits of one probe."""
        self.check_texts()
        known = getattr(self.config, "num_labels", None)
        return known if known is not None else self._hooked.num_labels

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to name."""
        self.check_texts()
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
    def patch_size(self) -> tuple[int, int] | None:
        """
        `(height, width)` in pixels of the patches in which a vision transformer reads its image, none of which shares
        a pixel with another; `None` for every other classifier.

        Such patches come of a first convolution that moves by as much as it sees. ConvNeXt begins so as well: it is
        the attention behind it that makes patches the units of what is read.
        """
        modules = list(self.model.modules())
        first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
        if first is None or first.kernel_size != first.stride or first.padding not in ((0, 0), "valid"):
            return None
        attends = any("attention" in type(module).__name__.lower() for module in modules)
        return pair(first.kernel_size) if attends else None

    @property
    def image_processor(self) -> Any:
        """The classifier's Transformers image processor, or `None` where there is none."""
        if self._image_processor is None and self.name_or_path and os.path.isdir(self.name_or_path):
            self._image_processor = load_image_processor(self.name_or_path)
        return self._image_processor

    @image_processor.setter
    def image_processor(self, image_processor: Any) -> None:
        self._image_processor = image_processor

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Per-channel mean the pixels in [0, 1] were normalised with; 0 where the processor does not normalise."""
        return self._normalisation[0]

    @property
    def image_std(self) -> tuple[float, ...]:
        """Per-channel standard deviation, likewise; 1 where the processor does not normalise."""
        return self._normalisation[1]

    @property
    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        processor = self.image_processor
        channels = getattr(self.config, "num_channels", 3)
        if processor is None:
            defaults = self._architecture or Architecture
            return defaults.image_mean[:channels], defaults.image_std[:channels]
        return normalisation(processor, channels)

    # ------------------------------------------------------------------ layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        if self._architecture is None:
            return tuple(self._hooked.layers)
        return ("stem", *(f"{self._architecture.layer_name}{i + 1}" for i in range(len(self._blocks))))

    @property
    def normed_layers(self) -> tuple[str, ...]:
        """
        Layers whose positions are read only through the LayerNorm behind them: all stages of ConvNeXt but the last,
        and the layer before the last block of ViT and DeiT, after which only the prefix tokens are read.
        """
        if self._architecture is None:
            return ()
        return tuple(name for name in self.layer_names if self._norm_behind(name) is not None)

    @property
    def default_layer(self) -> str:
        """
        The deepest layer whose positions still reach the logits: the last one, or for ViT and DeiT the one before it,
        because after the last block the classifier reads only the prefix tokens. Outside the table the layer is found
        by the gradient of a pair of images.
        """
        if self._architecture is not None:
            return self.layer_names[-2 if self.is_transformer else -1]
        return self._hooked.default

    def resolve_layer(self, layer: str | int) -> str:
        """
        Canonical name of a layer given by name or by index into `layer_names` (negative from the end).

        Raises:
            ValueError: If there is no such layer; the message lists the layers.
        """
        return resolve_layer(layer, self.layer_names)

    def num_channels(self, layer: str | int) -> int:
        """Channels of a layer's feature map."""
        layer = self.resolve_layer(layer)
        if self._architecture is None:
            return self._hooked.layers[layer].channels
        if self.is_transformer:
            return self.config.hidden_size
        stem = self.config.hidden_sizes[0] if self._architecture.body == "convnext" else self.config.embedding_size
        return [stem, *self.config.hidden_sizes][self.layer_names.index(layer)]

    # ------------------------------------------------------------------ forward

    @watched
    @in_precision
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
        return logits_of(self.model(self._prepare(pixel_values), **self._input_options(pixel_values)))

    def decided(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """
        Logits whose top class is that of the weights' own precision.

        Where [`~hf_explain.classifiers.precision.passes_in`] asks for another precision, images whose two top classes
        are too close for it go through the classifier once more, in that of the weights.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Images.
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): What [`~FrozenClassifier.forward`] gave.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        rows = self.undecided(logits)
        if len(rows) == 0:
            return logits
        with passes_in(None):
            return logits.index_copy(0, rows, self(pixel_values[rows]).to(logits.dtype))

    def undecided(self, logits: torch.Tensor) -> torch.Tensor:
        """
        The rows that [`~FrozenClassifier.decided`] would run once more.

        Args:
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): What [`~FrozenClassifier.forward`] gave.

        Returns:
            `torch.LongTensor` of shape `(num_rows,)`.
        """
        if self.compute_dtype == self.dtype or logits.shape[-1] < 2:
            return torch.empty(0, dtype=torch.long, device=logits.device)
        best = logits.topk(2, dim=-1).values
        close = (best[:, 0] - best[:, 1]) < CLOSE * (best[:, 0] - logits.amin(-1))
        return close.nonzero()[:, 0]

    @watched
    @in_precision
    def features(self, pixel_values: torch.Tensor, layers: Sequence[str | int] | None = None) -> ClassifierFeatures:
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
            kept_names = [name for name in names if name in wanted]
            return self._hooked.features(self._prepare(pixel_values), kept_names)
        kept, state = {}, self._embed(pixel_values)
        for index, name in enumerate(names):
            if index:
                state = self._run_block(index - 1, state)
            if name in wanted:
                kept[name] = self._to_features(name, state, pixel_values)
        return ClassifierFeatures(self._tail(state), kept, names, pixel_values.shape[-2:])

    def run_once(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The logits, without a graph; inside of [`~hf_explain.tensors.sharing.sharing`] run once for all that ask for
        those of the same tensor, and counted for each of them.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.
        """
        return shared_pass(self, "forward", pixel_values)

    @watched
    @in_precision
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
            return self._hooked.features(self._prepare(pixel_values), [layer])[layer]
        state = self._embed(pixel_values)
        for index in range(self.layer_names.index(layer)):
            state = self._run_block(index, state)
        return self._to_features(layer, state, pixel_values)

    @watched
    @in_precision
    def forward_from_features(
        self, features: LayerFeatures | ClassifierFeatures, normed: LayerFeatures | None = None
    ) -> torch.Tensor:
        """
        Continue the classifier from one layer's output: bit-identical to the full logits on unchanged features.

        Args:
            features ([`LayerFeatures`] or [`ClassifierFeatures`]): The output of one layer, changed or not (see
                [`LayerFeatures.replace`]); of several layers, the deepest is used.
            normed ([`LayerFeatures`], *optional*): From [`~FrozenClassifier.behind_norm`] of that layer, changed or
                not: read instead of what the norm gives.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`.

        Raises:
            ValueError: If `normed` is given for a layer that is not one of `normed_layers`.
        """
        if isinstance(features, ClassifierFeatures):
            features = features[next(reversed(features))]
        layer = self.resolve_layer(features.layer)
        norm = None if normed is None else self._norm_behind(layer)
        if normed is not None and norm is None:
            known = ", ".join(self.normed_layers) or "none"
            raise ValueError(f"`normed` is given for layer {layer!r}; layers read through a norm alone: {known}.")
        if self._architecture is None:
            self._check_gradients(features.feature_map)
            return self._hooked.logits_from(features)
        state = self._to_state(features)
        with contextlib.ExitStack() as stack:
            if normed is not None and norm is not None:
                read = self._to_state(normed)
                stack.enter_context(thread_hooks([(norm, lambda module, inputs, output: read)]))
            for index in range(self.layer_names.index(layer), len(self._blocks)):
                state = self._run_block(index, state)
            return self._tail(state)

    @in_precision
    def behind_norm(self, features: LayerFeatures) -> LayerFeatures | None:
        """
        These features behind the LayerNorm through which all later layers read them, or `None` for a layer that is
        not one of `normed_layers`.

        A LayerNorm undoes the scale of a position, so before it gradient times feature sums to 0 over the channels.

        Args:
            features ([`LayerFeatures`]): Of one layer.
        """
        layer = self.resolve_layer(features.layer)
        norm = self._norm_behind(layer)
        if norm is None:
            return None
        if self.is_transformer:
            return self.pre_attention_norm(features)
        return features.replace(feature_map=norm(features.feature_map))

    @in_precision
    def pre_attention_norm(self, features: LayerFeatures) -> LayerFeatures:
        """
        The LayerNorm that the next block applies to these features before its attention (T-TAME's released tap).

        Args:
            features ([`LayerFeatures`]): Of a ViT or DeiT layer other than the last.

        Raises:
            ValueError: If the classifier is not a ViT or DeiT, or the layer is the last and has no next block.
        """
        index = self.layer_names.index(self.resolve_layer(features.layer))
        if not self.is_transformer or index >= len(self._blocks):
            raise ValueError(
                f"Layer {features.layer!r} of {self.model_class} is not followed by an attention block; "
                "the pre-attention LayerNorm exists for every ViT or DeiT layer but the last."
            )
        norm = getattr(self._blocks[index], self._stages.pre_attention_norm)
        tokens = norm(grid_to_tokens(features.feature_map, features.prefix_tokens))
        grid = features.feature_map.shape[-2:]
        prefix = self.num_prefix_tokens
        return features.replace(feature_map=tokens_to_grid(tokens, grid, prefix), prefix_tokens=tokens[:, :prefix])

    # ------------------------------------------------------------------ attention

    @cached_property
    def token_layout(self) -> TokenLayout | None:
        """
        What the sequence of a transformer is made of, or `None` where the classifier has no attention in which every
        patch of one grid attends to every other: convolutional classifiers, and windows of attention as in Swin.
        Outside the table it is found by running the classifier once.
        """
        if self.is_transformer:
            read = tuple(range(len(self._stages.classifiers)))
            return TokenLayout(self.layer_names[1:], self.num_prefix_tokens, read, patches_read=False)
        return self._hooked.token_layout if self._architecture is None else None

    def attention_modules(self) -> list[nn.Module]:
        """The self-attention modules of a ViT or DeiT, in network order."""
        return [getattr(block, self._stages.attention) for block in self._blocks]

    @watched
    @in_precision
    def attentions(self, pixel_values: torch.Tensor) -> AttentionFeatures:
        """
        One pass that keeps the attention of every block, and its output; part of the graph where gradients are on.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            [`AttentionFeatures`].

        Raises:
            ValueError: If the classifier has no attention among patches, or it is computed by a kernel of its own.
        """
        self._check_pixels(pixel_values)
        layout = self.token_layout
        if layout is None:
            raise ValueError(
                f"{self.model_class} has no attention among all patches of the image; methods of attention "
                "need a plain vision transformer such as ViT, DeiT, DINOv2, BEiT, CLIP or SigLIP."
            )
        with AttentionRecorder() as recorder:
            features = self.features(pixel_values, layout.blocks)
        last = features[layout.blocks[-1]]
        height, width = last.feature_map.shape[-2:]
        length = layout.num_prefix_tokens + height * width
        kept = [index for index, weights in enumerate(recorder.weights) if layout.fits(weights, pixel_values, length)]
        if len(kept) != len(layout.blocks):
            raise ValueError(
                f"{len(kept)} of the {len(layout.blocks)} blocks of {self.model_class} show their attention "
                "weights; load the classifier with attn_implementation='sdpa' or 'eager'."
            )
        return AttentionFeatures(
            features,
            weights=tuple(recorder.weights[index] for index in kept),
            scores=tuple(recorder.scores[index] for index in kept),
            grid_size=(height, width),
        )

    # ------------------------------------------------------------------ compiled

    @contextlib.contextmanager
    def compiled(self, backend: str = "inductor") -> Iterator[None]:
        """
        Inside the block, the stem and every stage or block of a classifier that runs in stages go through
        `torch.compile`, each batch size and image size by itself. Weights, names and files stay as they are; hooks on
        modules inside of those are not called.

        Args:
            backend (`str`, *optional*, defaults to `"inductor"`): As for `torch.compile`.

        Raises:
            ValueError: If the classifier does not run in stages, or nothing can be compiled here.
        """
        if self._architecture is None:
            raise ValueError(
                f"`torch_compile` is for classifiers that run in stages ({', '.join(ARCHITECTURES)}); the layers of "
                f"{self.model_class} are found by hooks, which compiled modules do not call: leave it out."
            )
        try:
            torch.compile(torch.neg, backend=backend, dynamic=False)(torch.zeros(2, device=self.device))
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"`torch_compile` cannot compile anything on this {self.device.type} with the backend {backend!r} "
                f"({type(error).__name__}: {reason}); the default one needs a C++ compiler such as g++ on a CPU, and "
                "Triton on a GPU. Leave it out, or install what is missing."
            ) from error
        modules = [getattr(self._body, self._stages.embeddings), *self._blocks]
        # a number of shapes, with gradients and without, of every stage: after that many PyTorch gives up in silence
        with torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096):
            try:
                for module in modules:
                    module.compile(backend=backend, dynamic=False)
                yield
            finally:
                for module in modules:
                    module._compiled_call_impl = None

    # ------------------------------------------------------------------ targets

    def resolve_target(self, target: Target, batch_size: int, logits: torch.Tensor | None = None) -> torch.Tensor:
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
        return resolve_target(target, batch_size, self.id2label, self.device, logits)

    # ------------------------------------------------------------------ in stages (the table's architectures)

    @property
    def _stages(self) -> Architecture:
        """The table's entry, for code that only its architectures reach."""
        assert self._architecture is not None
        return self._architecture

    @property
    def _body(self) -> nn.Module:
        return getattr(self.model, self._stages.body)

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self._body.get_submodule(self._stages.layers)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        self.check_texts()
        channels = getattr(self.config, "num_channels", None)
        if pixel_values.ndim != 4 or (channels is not None and pixel_values.shape[1] != channels):
            raise ValueError(
                f"`pixel_values` must have shape (batch_size, {channels or 'num_channels'}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )

    def _prepare(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The images in the classifier's precision and, where that is `channels_last`, its memory format. Its first
        convolution would do the same, but not where its weights come and go (offloading), in another format.
        """
        return self._in_format(pixel_values.to(self.compute_dtype))

    def _in_format(self, values: torch.Tensor) -> torch.Tensor:
        self._check_gradients(values)
        if self.memory_format is torch.channels_last:
            return values.contiguous(memory_format=torch.channels_last)
        return values

    def _input_options(self, pixel_values: torch.Tensor) -> dict[str, bool]:
        """ViT and DeiT must be told when the image is not of the size they were trained on."""
        if not self.is_transformer:
            return {}
        native = pair(self.config.image_size)
        return {"interpolate_pos_encoding": True} if tuple(pixel_values.shape[-2:]) != native else {}

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = getattr(self._body, self._stages.embeddings)
        return embeddings(self._prepare(pixel_values), **self._input_options(pixel_values))

    def _run_block(self, index: int, state: torch.Tensor) -> torch.Tensor:
        output = self._blocks[index](state)
        return output[0] if isinstance(output, tuple) else output

    def _tail(self, state: torch.Tensor) -> torch.Tensor:
        arch, body = self._stages, self._body
        heads = [getattr(self.model, name) for name in arch.classifiers]
        if arch.pool == "tokens":
            tokens = getattr(body, arch.norm)(state)
            logits = [head(tokens[:, index, :]) for index, head in enumerate(heads)]
            return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2
        if arch.pool == "mean":
            return heads[0](getattr(body, arch.norm)(state.mean([-2, -1])))
        return heads[0](getattr(body, arch.pooler)(state))

    def _norm_behind(self, layer: str) -> nn.Module | None:
        arch = self._architecture
        index = self.layer_names.index(layer)
        if arch is None or index >= len(self._blocks):
            return None
        following = self._blocks[index]
        if self.is_transformer:
            return getattr(following, arch.pre_attention_norm) if index == len(self._blocks) - 1 else None
        # the stem of ConvNeXt ends with its own norm: its first stage starts without one
        start = list(getattr(following, arch.stage_norm)) if arch.stage_norm else []
        return start[0] if start else None

    def _to_state(self, features: LayerFeatures) -> torch.Tensor:
        """The inverse of `_to_features`."""
        if asked_dtype() is not None and torch.is_grad_enabled():
            # from a pass in half precision on to one in the weights' own
            prefix = features.prefix_tokens
            features = features.replace(
                feature_map=features.feature_map.to(self.dtype),
                prefix_tokens=None if prefix is None else prefix.to(self.dtype),
            )
        if not self.is_transformer:
            return self._in_format(features.feature_map)
        self._check_gradients(features.feature_map)
        return grid_to_tokens(features.feature_map, features.prefix_tokens)

    def _check_gradients(self, values: torch.Tensor) -> None:
        """An error, rather than gradients of what lies beside the quantised layers alone."""
        if not torch.is_grad_enabled() or not values.requires_grad or torch.compiler.is_compiling():
            return
        if any(type(module).__module__.startswith("torch.ao.nn.quantized") for module in self.model.modules()):
            raise ValueError(
                f"The layers of this {self.model_class} are quantised by PyTorch and have no gradients; it "
                "can be explained by heads and methods that take none, but to train a head, give the classifier "
                "itself."
            )

    def _to_features(self, layer: str, state: torch.Tensor, pixel_values: torch.Tensor) -> LayerFeatures:
        if not self.is_transformer:
            return LayerFeatures(layer, state)
        patch = pair(self.config.patch_size)
        grid = [side // p for side, p in zip(pixel_values.shape[-2:], patch)]
        prefix = self.num_prefix_tokens
        return LayerFeatures(layer, tokens_to_grid(state, grid, prefix), state[:, :prefix])


def _check_task(values: Mapping[str, Any], name: str) -> None:
    """Refuse what Transformers knows as something else than an image classifier, before its weights are downloaded."""
    kind, architecture = values.get("model_type"), next(iter(values.get("architectures") or ()), "")
    other_kind = kind in CONFIG_MAPPING_NAMES and kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if "auto_map" not in values and (other_kind or _OTHER_TASKS.search(str(architecture))):
        raise ValueError(
            f"{name!r} is a {architecture or 'model'} of the model type {kind!r}, and image classifiers only can be "
            "explained; give a model of AutoModelForImageClassification, or one that matches images with texts, such "
            "as CLIP."
        )
