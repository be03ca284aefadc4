"""Layers of any classifier through hooks on its named modules, for those that no table describes."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
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
    channels_last: bool = False  # of a feature map: (batch_size, height, width, channels)
    overwritten: bool = False  # a later module works on its output in place
    in_attention: bool = False  # a part of an attention: queries, keys, values, ...


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
        self.image_size = image_size or _stated_size(self.config) or (224, 224)
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
        """
        The deepest layer whose positions reach the logits, by the gradient of one pair of images; a part of an
        attention, such as its values, only where there is no other.
        """
        names = tuple(self.layers)
        parts = [name for name in names if self.layers[name].in_attention]
        wholes = [name for name in names if not self.layers[name].in_attention]
        return next(filter(self._reaches_logits, (*reversed(wholes), *reversed(parts))), names[-1])

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
        for name in tokens:  # in the order they end, after what they contain: the outermost one is kept
            first, last = spans[name]
            if last - first == 1:
                blocks[first] = name
        if any(
            weights.shape[-1] == weights.shape[-2] and index not in blocks
            for index, weights in enumerate(recorder.weights)
        ):
            return None  # windows of the image in other blocks: these alone are not where the classifier looked
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
                        f"Layer {name!r} of {type(self.root).__name__} gives {type(output).__name__} for these "
                        "images; choose a layer with a spatial output."
                    )
                overwritten = self.layers[name].overwritten
                kept[name] = self._split(name, tensor.clone() if overwritten else tensor, pixel_values)

            return hook

        with self._hooks({name: keep(name) for name in names}):
            logits = logits_of(self.model(pixel_values))
        layers = {name: kept[name] for name in names}
        return ClassifierFeatures(logits, layers, tuple(self.layers), pixel_values.shape[-2:])

    def logits_from(self, features: LayerFeatures) -> torch.Tensor:
        """The logits with one module's output replaced; autograd records only what comes after it."""
        if features.pixel_values is None:
            raise ValueError(
                f"`features` of {type(self.root).__name__} must keep their pixel_values: this classifier's tail runs "
                "by running it whole and replacing the layer's output."
            )
        value, layer = features.feature_map, self.layers[features.layer]
        if layer.num_prefix_tokens is not None:
            value = grid_to_tokens(value, features.prefix_tokens)
        elif layer.channels_last:
            value = value.permute(0, 2, 3, 1)
        if layer.overwritten:
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
        running: list[str] = []
        watch = _AttentionWatch(running)
        registers = getattr(self.config, "num_register_tokens", None)
        prefixes = {0, 1 + registers} if registers else {0, 1, 2}
        # timm's transformers tell it themselves
        told = (getattr(module, "num_prefix_tokens", None) for module in self.model.modules())
        prefixes |= {count for count in told if isinstance(count, int)}
        grids = [self.image_size]

        def enter(name: str) -> PreHook:
            return lambda module, inputs: running.append(name)

        def record(name: str) -> Hook:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                running.pop()
                calls[name] = calls.get(name, 0) + 1
                tensor = _first_tensor(output)
                # windows of attention have a batch dimension of their own, and so has what is shared by all images
                if tensor is None or not tensor.is_floating_point() or len(tensor) != len(images):
                    return
                if tensor.ndim == 4 and not watch.passed_on(tensor):
                    first, last = self._is_grid(tensor.shape[2:]), self._is_grid(tensor.shape[1:3])
                    if not first and not last:
                        return  # such as the queries of every head
                    height, width = tensor.shape[2:] if first else tensor.shape[1:3]
                    grid = (height, width)
                    if grid not in grids:
                        grids.insert(0, grid)
                    found[name] = ProbedLayer(channels=tensor.shape[1 if first else 3], channels_last=not first)
                elif tensor.ndim == 3 and tensor.shape[2] > 1:
                    layout = self._token_layout(tensor.shape[1], self.image_size, prefixes, grids)
                    if layout is None:
                        return
                    found[name] = ProbedLayer(channels=tensor.shape[2], num_prefix_tokens=layout[1])
                else:
                    return
                outputs[name] = (tensor, tensor._version)

            return hook

        modules = {name: module for name, module in self.root.named_modules() if name}
        before = [(module, enter(name)) for name, module in modules.items()]
        after = [(module, record(name)) for name, module in modules.items()]
        with torch.inference_mode(False), torch.no_grad(), thread_hooks(after, before), watch:
            num_labels = logits_of(self._run(images)).shape[-1]
        # a module called several times has no single output to read or replace
        layers = {
            name: replace(
                layer,
                overwritten=outputs[name][0]._version != outputs[name][1],
                in_attention=any(name.startswith(f"{other}.") for other in watch.modules),
            )
            for name, layer in found.items()
            if calls[name] == 1
        }
        if not layers:
            height, width = self.image_size
            raise ValueError(
                f"{type(self.root).__name__} has no module with a spatial output for {height}x{width} pixels, so "
                f"there is no layer to explain from; its modules are {', '.join(list(modules)[:12])}, ... "
                "Pass image_size=(height, width) to FrozenClassifier if it expects another size."
            )
        return layers, num_labels

    def _run(self, images: torch.Tensor) -> Any:
        try:
            return self.model(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # each says something else of what it cannot use
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(
                f"{type(self.root).__name__} cannot run on a batch of images of shape {tuple(images.shape)} "
                f"({type(error).__name__}: {reason}); models are explained that need nothing but `pixel_values` of "
                "shape (batch_size, num_channels, height, width). Pass image_size=(height, width) to FrozenClassifier "
                "if it expects another size."
            ) from error

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

    def _is_grid(self, sides: Sequence[int]) -> bool:
        """Whether this can be the image made smaller, in both directions alike but for the rest of a cell."""
        (height, width), (tall, wide) = self.image_size, sides
        return min(sides) > 1 and abs(tall * width - wide * height) < max(height, width)

    def _token_layout(
        self, num_tokens: int, size: Sequence[int], prefixes: set[int], seen: Sequence[tuple[int, int]] | None = None
    ) -> tuple[tuple[int, int], int] | None:
        """
        Grid and number of prefix tokens of a token sequence, or `None` when it cannot be a grid. It is one of the
        config's patches, or where that tells none, one of the grids `seen`; or half as wide and high, and so on.
        """
        stated = getattr(self.config, "patch_size", None)
        if stated is None and seen is None:
            return self._grid_by_shape(num_tokens, size, prefixes)
        patch, starts = pair(stated or 1), [size] if stated or seen is None else seen
        for start in starts:
            for power in range(7):
                # Swin pads to whole patches, a plain patch convolution leaves the rest out
                for rounded in (lambda side, p: -(-side // p), lambda side, p: side // p):
                    height, width = (rounded(side, p * 2**power) for side, p in zip(start, patch))
                    prefix = num_tokens - height * width
                    if prefix in prefixes and height * width > 1:
                        return (height, width), prefix
        return None

    def _grid_by_shape(
        self, num_tokens: int, size: Sequence[int], prefixes: set[int]
    ) -> tuple[tuple[int, int], int] | None:
        """As [`_token_layout`], by the shape of the image alone."""
        for prefix in sorted(prefixes):
            height = round(math.sqrt((num_tokens - prefix) * size[0] / size[1]))
            width = (num_tokens - prefix) // max(height, 1)
            if height * width == num_tokens - prefix and abs(height * size[1] - width * size[0]) < max(size):
                return (height, width), prefix
        return None

    def _split(self, name: str, tensor: torch.Tensor, pixel_values: torch.Tensor) -> LayerFeatures:
        prefix = self.layers[name].num_prefix_tokens
        if prefix is None:
            if self.layers[name].channels_last:
                tensor = tensor.permute(0, 3, 1, 2)
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


class _AttentionWatch(AttentionRecorder):
    """
    Which modules compute weights of attention.

    Args:
        running (list of `str`): The modules that are running, the innermost one last; kept by the caller.
    """

    def __init__(self, running: list[str]):
        super().__init__()
        self.running = running
        self.modules: set[str] = set()

    def _keep(self, scores: torch.Tensor, weights: torch.Tensor) -> None:
        self.modules.update(self.running[-1:])
        self.weights = [weights]  # one block's at a time: those of all may be gigabytes

    def passed_on(self, tensor: torch.Tensor) -> bool:
        """Whether this is the last attention, which a softmax or a dropout puts out: as square as a feature map."""
        return any(
            tensor.shape == weights.shape and torch.equal(tensor, weights.to(tensor.dtype)) for weights in self.weights
        )


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """`(value, value)` of a number, or the two numbers there are."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _stated_size(config: Any) -> tuple[int, int] | None:
    """Height and width of the images a classifier was made for, where its config tells."""
    size = getattr(config, "image_size", None)
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    if size is None:  # timm's
        size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", ())[-2:]
    return pair(size) if size else None


def logits_of(output: Any) -> torch.Tensor:
    """
    The logits in whatever a classifier returns.

    Raises:
        TypeError: If there are none.
        ValueError: If there are several for each image, as of a detector.
    """
    logits = _find_logits(output)
    if logits is None:
        raise TypeError(
            f"The classifier returned {type(output).__name__}; a classifier must return logits, a tuple that starts "
            "with them, or an output with a `logits` field."
        )
    if logits.ndim != 2:
        raise ValueError(
            f"The model returned logits of shape {tuple(logits.shape)}, not (batch_size, num_labels): image "
            "classifiers only are explained; of a detector or a segmenter, a torch.nn.Module around it can be, that "
            "returns one score for each image and class."
        )
    return logits


def _find_logits(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    # PP-LCNet's classifier calls them so
    state = getattr(output, "last_hidden_state", None)
    return state if isinstance(state, torch.Tensor) and state.ndim == 2 else None


def _first_tensor(output: Any) -> torch.Tensor | None:
    """A module's own tensor; a `ModelOutput` holds several modules' and cannot be replaced by one."""
    if isinstance(output, ModelOutput):
        return None
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, torch.Tensor) else None
