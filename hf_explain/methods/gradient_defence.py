"""FGVis' gradient defence: no gradient through an activation that the image itself does not excite that far.

A classifier's activations are found by the class of their modules, so nothing here knows an architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.thread_hooks import thread_hooks


# Pointwise and never negative: the lower bound of the defence, min(0, h(x)) = 0, always holds.
_NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
_SIGNED = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
# Keeps the product of two small activations from underflowing to the 0 that passes; a power of two rounds nothing.
_SCALE = 2.0**64


def activation_modules(model: nn.Module) -> dict[str, nn.Module]:
    """
    The modules of a model that apply a pointwise nonlinearity: torch's own and those of Transformers' `ACT2FN`.

    Args:
        model (`torch.nn.Module`): Any model.

    Returns:
        `dict[str, torch.nn.Module]`: Path to module, a shared instance once.
    """
    return {name: module for name, module in model.named_modules() if _is_activation(module)}


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, (*_NON_NEGATIVE, *_SIGNED)):
        return True
    # Classes of that module come and go between releases, but all of them are activations except the linear one.
    home = any(base.__module__ == "transformers.activations" for base in type(module).__mro__)
    return home and type(module).__name__ != "LinearActivation"


class GradientDefence:
    """
    Gradients that cannot create evidence the image does not hold.

    Behind every pointwise nonlinearity `h` the backward pass multiplies the gradient by
    `[h(e) <= max(0, h(x))] * [h(e) >= min(0, h(x))]`: `x` is the unperturbed image, recorded once, `e` the perturbed
    one. Equality passes, the forward pass is untouched. Bounds belong to one *call* of a module, so an activation
    shared within a block keeps one set per use. Use through [`gradient_defence`], which also removes it.

    Source: FGVis (https://huggingface.co/papers/1908.02686), section 3.2.

    Args:
        classifier ([`FrozenClassifier`]): Classifier to defend.

    Raises:
        ValueError: If the classifier has no activation modules.
    """

    def __init__(self, classifier: FrozenClassifier):
        self._classifier = classifier
        self._modules = activation_modules(classifier)
        if not self._modules:
            raise ValueError(
                f"`classifier` {classifier.model_class} has no nonlinearity to defend: none of its modules "
                "is an activation such as torch.nn.ReLU or torch.nn.GELU; pass defence=False."
            )
        self._hooks = contextlib.ExitStack()
        self._recording: list[torch.Tensor] | None = None
        self._bounds: list[torch.Tensor] = []
        self._last_output: torch.Tensor | None = None
        self._rooms: dict[int, torch.Tensor] = {}
        self._pending: dict[int, object] = {}
        self._call = 0

    def attach(self) -> None:
        """Put the hooks on the classifier; passes of other threads are not defended."""
        after = [(module, self._after_activation) for module in self._modules.values()]
        self._hooks.enter_context(thread_hooks(after, before=[(self._classifier, self._start)]))

    def remove(self) -> None:
        """Take every hook off and free the recorded activations; safe to call at any time."""
        self._hooks.close()
        self._bounds, self._recording = [], None
        self._rooms.clear()
        self._pending.clear()

    def record(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Run the unperturbed images without a graph and keep what their activations reach.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): The images.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels)`: their logits.

        Raises:
            ValueError: If no activation ran, or only one that produces the logits themselves.
        """
        self._recording = []
        try:
            with torch.no_grad():
                logits = self._classifier(pixel_values)
            bounds, last_output = self._recording, self._last_output
        finally:
            self._recording = self._last_output = None
        # An activation that ends the classification layer belongs to that layer, and is not defended
        if bounds and last_output is not None and last_output.data_ptr() == logits.data_ptr():
            bounds.pop()
        self._bounds = bounds
        if not self._bounds:
            raise ValueError(
                f"`classifier` {self._classifier.model_class} has no nonlinearity to defend: none of its "
                f"activation modules ({', '.join(self._modules)}) runs before the logits; pass defence=False."
            )
        return logits

    def _start(self, module: nn.Module, inputs: Any) -> None:
        self._call = 0

    def _after_activation(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        call, self._call = self._call, self._call + 1
        one_sided = isinstance(module, _NON_NEGATIVE)
        if self._recording is not None:
            # New tensors: a later `+=` on the output must not move its bounds. float16 cannot hold the scaled ones.
            wide = output.float() if output.dtype == torch.float16 else output
            self._recording.append(wide.clamp(min=0) if one_sided else wide * _SCALE)
            self._last_output = output
            return
        if not output.requires_grad:
            return
        if not self._bounds:
            raise ValueError("No unperturbed images are recorded: call record(pixel_values) before defended passes.")
        if call >= len(self._bounds):  # the classification layer's own
            return
        bound = self._bounds[call]
        if bound.shape != output.shape:
            raise ValueError(
                f"Activation call {call + 1} gives shape {tuple(output.shape)}, but {tuple(bound.shape)} was "
                "recorded: record the images anew when the batch changes."
            )
        value = output.detach()
        # One buffer per call for all passes: on a CPU, fresh memory costs more than what is computed in it
        room = self._rooms.get(call)
        if room is None or room.shape != bound.shape:
            room = self._rooms[call] = torch.empty_like(bound)
        if one_sided:
            torch.sub(bound, value, out=room)
        else:
            # Between 0 and h(x), whatever the sign of h(x), exactly where h(e) * (h(x) - h(e)) >= 0
            torch.sub(bound, value, alpha=_SCALE, out=room).mul_(value)
        self._pending[call] = token = object()
        output.register_hook(lambda gradient: self._gate(gradient, call, token))

    def _gate(self, gradient: torch.Tensor, call: int, token: object) -> torch.Tensor:
        if self._pending.pop(call, None) is not token:
            raise RuntimeError(
                "A defended pass can be differentiated once, inside the defence and before the next pass: run the "
                "classifier again."
            )
        room = self._rooms[call]
        if gradient.dtype == torch.float16:
            return gradient * (room >= 0)
        # `room >= 0` by the kernel of ReLU's backward, faster than a boolean mask on a CPU. The threshold is just
        # below 0: between it and 0 lies nothing that a normal number of this dtype can be.
        threshold = -torch.finfo(room.dtype).tiny
        return torch.ops.aten.threshold_backward.grad_input(gradient, room, threshold, grad_input=room)


@contextlib.contextmanager
def gradient_defence(classifier: FrozenClassifier) -> Iterator[GradientDefence]:
    """
    Defend a classifier's gradients, and leave it as it was even after an error or Ctrl-C.

    ```python
    with gradient_defence(classifier) as defence:
        defence.record(pixel_values)
        ...  # backward passes through classifier(perturbed) are defended
    ```

    Args:
        classifier ([`FrozenClassifier`]): Classifier to defend.

    Raises:
        ValueError: If the classifier has no activation modules.
    """
    defence = GradientDefence(classifier)
    try:
        defence.attach()
        yield defence
    finally:
        defence.remove()
