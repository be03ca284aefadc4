"""Layers of any classifier through hooks on its named modules, for those that no table describes."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_explain.classifiers.attention import AttentionRecorder, TokenLayout
from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures
from hf_explain.classifiers.thread_hooks import Hook, PreHook, thread_hooks
from hf_explain.tensors.maps import grid_to_tokens, tokens_to_grid


_Found = TypeVar("_Found")


def _once(find: Callable[[HookedLayers], _Found]) -> Callable[[HookedLayers], _Found]:
    """What a model tells when it is run, which it is once, for all [`~HookedLayers.twin`]s together."""

    @functools.wraps(find)
    def found(self: HookedLayers) -> _Found:
        if find.__name__ not in self._found:
            self._found[find.__name__] = find(self)
        return self._found[find.__name__]

    return found


@dataclass(frozen=True)
class ProbedLayer:
    """What one run told about a module."""

    channels: int
    num_prefix_tokens: int | None = None  # of a sequence of tokens; `None` for a feature map
    overwritten: bool = False  # a later module works on its output in place


class HookedLayers:
    """
    The modules of a classifier that have spatial outputs, found by running it once.

    Args:
        model (`torch.nn.Module`): The frozen classifier.
        image_size (`tuple[int, int]`, *optional*): Height and width of the images it is run on, in pixels; what its
            config says, or 224 by 224, when not given.
        root (`torch.nn.Module`, *optional*): The part of the model whose modules are named; all of it when not given.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int] | None = None, root: nn.Module | None = None):
        self.model = model
        self.root = root or model
        config = getattr(model, "config", None)
        # the image tower of a model of images and texts has a configuration of its own inside the whole one's
        self.config = getattr(config, "vision_config", config)
        self.image_size = image_size or pair(getattr(self.config, "image_size", None) or 224)
        self._found: dict[str, Any] = {}

    def twin(self, model: nn.Module) -> HookedLayers:
        """The layers of another model that is made of the same modules: what one has found, both know."""
        twin = copy.copy(self)
        twin.model = model
        return twin

    @property
    def num_labels(self) -> int:
        """Number of logits, by running the classifier once."""
        return self._probed[1]

    @property
    def layers(self) -> dict[str, ProbedLayer]:
        """Module path to what is known of it, in the order the modules finish."""
        return self._probed[0]

    @property
    @_once
    def default(self) -> str:
        """The deepest layer whose positions reach the logits, by the gradient of one pair of images."""
        names = tuple(self.layers)
        return next(filter(self._reaches_logits, reversed(names)), names[-1])

    @property
    @_once
    def token_layout(self) -> TokenLayout | None:
        """What the sequence is made of, by running the classifier once; `None` where no block attends to all of it."""
        images = self._images()
        recorder = AttentionRecorder()
        spans: dict[str, list[int]] = {}

        def start(name: str) -> PreHook:
            return lambda module, inputs: spans.__setitem__(name, [len(recorder.weights)])

        def end(name: str) -> Hook:
            return lambda module, inputs, output: spans[name].append(len(recorder.weights))

        tokens = [name for name, layer in self.layers.items() if layer.num_prefix_tokens is not None]
        modules = {name: self.root.get_submodule(name) for name in tokens}
        before = [(module, start(name)) for name, module in modules.items()]
        after = [(module, end(name)) for name, module in modules.items()]
        with torch.inference_mode(False), torch.no_grad(), thread_hooks(after, before), recorder:
            self.model(images)
        blocks: dict[int, str] = {}
        for name, (first, last) in spans.items():  # a module ends after what it contains: the outermost one is kept
            if last - first == 1:
                blocks[first] = name
        names = tuple(blocks[index] for index in sorted(blocks))
        prefixes = {self.layers[name].num_prefix_tokens for name in names}
        lengths = {recorder.weights[index].shape for index in blocks}
        if len(prefixes) != 1 or len(lengths) != 1:
            return None
        (shape,), (prefix,) = lengths, prefixes
        if len(shape) != 4 or shape[0] != len(images) or shape[2] != shape[3]:
            return None
        if prefix is None or self._token_layout(shape[2], self.image_size, {prefix}) is None:
            return None
        read = self._tokens_read(names[-1])
        patches = bool(read[prefix:].any())
        return TokenLayout(names, prefix, tuple(index for index in range(prefix) if read[index]), patches)

    def _tokens_read(self, layer: str) -> torch.Tensor:
        """Which tokens of a layer's output the logits depend on, by the gradient of a pair of images."""
        with torch.inference_mode(False), torch.enable_grad():
            features = self.features(self._images(), [layer])[layer]
            tokens = grid_to_tokens(features.feature_map, features.prefix_tokens).detach().requires_grad_()
            grid, prefix = features.feature_map.shape[-2:], tokens.shape[1] - features.feature_map[0, 0].numel()
            read = features.replace(
                feature_map=tokens_to_grid(tokens, tuple(grid), prefix), prefix_tokens=tokens[:, :prefix]
            )
            (gradient,) = torch.autograd.grad(self.logits_from(read).sum(), tokens)
        return gradient.abs().sum((0, 2)) > 0

    def features(self, pixel_values: torch.Tensor, names: list[str]) -> ClassifierFeatures:
        """One pass that keeps the outputs of the named modules, and the logits."""
        kept: dict[str, LayerFeatures] = {}

        def keep(name: str) -> Hook:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tensor = _first_tensor(output)
                if tensor is None:
                    raise ValueError(
                        f"Layer {name!r} of {type(self.model).__name__} gives {type(output).__name__} for these "
                        "images; choose a layer with a spatial output."
                    )
                overwritten = self.layers[name].overwritten
                kept[name] = self._split(name, tensor.clone() if overwritten else tensor, pixel_values)

            return hook

        with self._hooks({name: keep(name) for name in names}):
            logits = logits_of(self.model(pixel_values))
        return ClassifierFeatures(logits, {name: kept[name] for name in names}, tuple(self.layers))

    def logits_from(self, features: LayerFeatures) -> torch.Tensor:
        """The logits with one module's output replaced; autograd records only what comes after it."""
        if features.pixel_values is None:
            raise ValueError(
                f"`features` of {type(self.model).__name__} must keep their pixel_values: this classifier's tail runs "
                "by running it whole and replacing the layer's output."
            )
        value, layer = features.feature_map, self.layers[features.layer]
        if layer.num_prefix_tokens is not None:
            value = grid_to_tokens(value, features.prefix_tokens)
        elif layer.overwritten:
            value = value.clone()  # else an in-place ReLU behind it would change the caller's features

        def substitute(module: nn.Module, inputs: Any, output: Any) -> Any:
            return (value, *output[1:]) if isinstance(output, tuple) else value

        # upstream of the layer nothing requires a gradient
        with self._hooks({features.layer: substitute}):
            return logits_of(self.model(features.pixel_values))

    # ------------------------------------------------------------------ finding the layers

    @property
    @_once
    def _probed(self) -> tuple[dict[str, ProbedLayer], int]:
        """The layers and the number of logits."""
        images = self._images()
        found: dict[str, ProbedLayer] = {}
        outputs: dict[str, tuple[torch.Tensor, int]] = {}
        calls: dict[str, int] = {}
        registers = getattr(self.config, "num_register_tokens", None)
        prefixes = {0, 1 + registers} if registers else {0, 1, 2}

        def record(name: str) -> Hook:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                calls[name] = calls.get(name, 0) + 1
                tensor = _first_tensor(output)
                # windows of attention have a batch dimension of their own, and so has what is shared by all images
                if tensor is None or not tensor.is_floating_point() or len(tensor) != len(images):
                    return
                if tensor.ndim == 4 and min(tensor.shape[-2:]) > 1 and not _is_attention(tensor):
                    found[name] = ProbedLayer(channels=tensor.shape[1])
                elif tensor.ndim == 3 and tensor.shape[2] > 1:
                    layout = self._token_layout(tensor.shape[1], self.image_size, prefixes)
                    if layout is None:
                        return
                    found[name] = ProbedLayer(channels=tensor.shape[2], num_prefix_tokens=layout[1])
                else:
                    return
                outputs[name] = (tensor, tensor._version)

            return hook

        names = [name for name, _ in self.root.named_modules() if name]
        with torch.inference_mode(False), torch.no_grad(), self._hooks({name: record(name) for name in names}):
            num_labels = logits_of(self.model(images)).shape[-1]
        # a module called several times has no single output to read or replace
        layers = {
            name: replace(layer, overwritten=outputs[name][0]._version != outputs[name][1])
            for name, layer in found.items()
            if calls[name] == 1
        }
        if not layers:
            height, width = self.image_size
            raise ValueError(
                f"{type(self.model).__name__} has no module with a spatial output for {height}x{width} pixels, so "
                f"there is no layer to explain from; its modules are {', '.join(names[:12])}, ... "
                "Pass image_size=(height, width) to FrozenClassifier if it expects another size."
            )
        return layers, num_labels

    def _images(self) -> torch.Tensor:
        """Two images of noise: two tell the batch dimension from others that are 1, noise reaches every unit."""
        parameters = list(self.model.parameters())
        convolutions = (parameter.shape[1] for parameter in parameters if parameter.ndim == 4)
        channels = getattr(self.config, "num_channels", None) or next(convolutions, 3)
        noise = torch.randn(2, channels, *self.image_size, generator=torch.Generator().manual_seed(0))
        dtype = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), torch.float32)
        return noise.to(device=parameters[0].device, dtype=dtype)

    def _reaches_logits(self, layer: str) -> bool:
        with torch.inference_mode(False), torch.enable_grad():
            features = self.features(self._images(), [layer])[layer]
            feature_map = features.feature_map.detach().requires_grad_()
            logits = self.logits_from(features.replace(feature_map=feature_map))
            if not logits.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(logits.sum(), feature_map, allow_unused=True)
        return gradient is not None and bool((gradient != 0).any())

    def _token_layout(
        self, num_tokens: int, size: Sequence[int], prefixes: set[int]
    ) -> tuple[tuple[int, int], int] | None:
        """Grid and number of prefix tokens of a token sequence, or `None` when it cannot be a grid."""
        patch = pair(getattr(self.config, "patch_size", None) or 4)
        for power in range(7):
            # Swin pads to whole patches, a plain patch convolution leaves the rest out
            for rounded in (lambda side, p: -(-side // p), lambda side, p: side // p):
                height, width = (rounded(side, p * 2**power) for side, p in zip(size, patch))
                prefix = num_tokens - height * width
                if prefix in prefixes and height * width > 1:
                    return (height, width), prefix
        return None

    def _split(self, name: str, tensor: torch.Tensor, pixel_values: torch.Tensor) -> LayerFeatures:
        prefix = self.layers[name].num_prefix_tokens
        if prefix is None:
            return LayerFeatures(name, tensor, pixel_values=pixel_values)
        layout = self._token_layout(tensor.shape[1], pixel_values.shape[-2:], {prefix})
        if layout is None:
            raise ValueError(
                f"Layer {name!r} gives {tensor.shape[1]} tokens for an image of {tuple(pixel_values.shape[-2:])} "
                "pixels, which is not a grid of patches; choose a layer with a spatial output."
            )
        return LayerFeatures(name, tokens_to_grid(tensor, layout[0], prefix), tensor[:, :prefix], pixel_values)

    def _hooks(self, hooks: dict[str, Hook]) -> contextlib.AbstractContextManager[None]:
        return thread_hooks((self.root.get_submodule(name), hook) for name, hook in hooks.items())


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """`(value, value)` of a number, or the two numbers there are."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def logits_of(output: Any) -> torch.Tensor:
    """
    The logits in whatever a classifier returns.

    Raises:
        TypeError: If there are none.
    """
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


def _is_attention(tensor: torch.Tensor) -> bool:
    """Whether these are weights of attention, which a dropout or softmax puts out: no map, though as square as one."""
    if tensor.shape[-1] != tensor.shape[-2] or bool((tensor < 0).any()):
        return False
    rows = tensor.float().sum(-1)
    return torch.allclose(rows, torch.ones_like(rows), atol=1e-2)


def _first_tensor(output: Any) -> torch.Tensor | None:
    """A module's own tensor; a `ModelOutput` holds several modules' and cannot be replaced by one."""
    if isinstance(output, ModelOutput):
        return None
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, torch.Tensor) else None
