"""FGVis' gradient defence: no gradient through an activation that the image itself does not excite that far.

A classifier's activations are found by the class of their modules, so nothing here knows an architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from hf_explain.backbones import FrozenClassifier


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
# Minus the smallest number of a dtype: `value > threshold` is then `value >= 0`, in one vectorised kernel.
_BELOW_ZERO = {torch.float32: -(2.0**-149), torch.float64: -(2.0**-1074), torch.bfloat16: -(2.0**-133)}
# Keeps the product of two small activations from underflowing to the 0 that passes; exact, and overflow keeps the sign.
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
    # The names in there come and go between releases; their home stays, and only its "linear" is no nonlinearity.
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
                f"`classifier` {type(classifier.model).__name__} has no nonlinearity to defend: none of its modules is "
                "an activation such as torch.nn.ReLU or torch.nn.GELU; pass defence=False."
            )
        self._handles: list = []
        self._recording: list[torch.Tensor] | None = None
        self._bounds: list[torch.Tensor] = []
        self._batch_size = 0
        self._call = 0

    def attach(self) -> None:
        """Put the hooks on the classifier."""
        self._handles.append(self._classifier.register_forward_pre_hook(self._start))
        for module in self._modules.values():
            self._handles.append(module.register_forward_hook(self._after_activation))

    def remove(self) -> None:
        """Take every hook off and free the recorded activations; safe to call at any time."""
        while self._handles:
            self._handles.pop().remove()
        self._bounds, self._recording = [], None

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
            bounds = self._recording
        finally:
            self._recording = None
        # An activation that ends the classification layer is that layer's, and not defended
        if bounds and bounds[-1][1].data_ptr() == logits.data_ptr():
            bounds.pop()
        self._bounds = [bound for bound, _ in bounds]
        if not self._bounds:
            raise ValueError(
                f"`classifier` {type(self._classifier.model).__name__} has no nonlinearity to defend: none of its "
                f"activation modules ({', '.join(self._modules)}) runs before the logits; pass defence=False."
            )
        self._batch_size = len(pixel_values)
        return logits

    def select(self, indices: torch.Tensor) -> None:
        """
        Go on with some of the recorded images only.

        Args:
            indices (`torch.LongTensor` of shape `(batch_size,)`): Which of them, in the order of the next batches.
        """
        # Windowed models fold windows into the batch dimension, one image's windows next to each other
        self._bounds = [
            bound.unflatten(0, (self._batch_size, -1)).index_select(0, indices).flatten(0, 1) for bound in self._bounds
        ]
        self._batch_size = len(indices)

    def _start(self, module, inputs) -> None:
        self._call = 0

    def _after_activation(self, module, inputs, output) -> None:
        call, self._call = self._call, self._call + 1
        one_sided = isinstance(module, _NON_NEGATIVE)
        if self._recording is not None:
            # Copies: a later `+=` on the output must not move its bounds
            self._recording.append((output.clamp(min=0) if one_sided else output * _SCALE, output))
            return
        if not output.requires_grad or call >= len(self._bounds):
            return
        bound = self._bounds[call]
        if bound.shape != output.shape:
            raise ValueError(
                f"Activation call {call + 1} gives shape {tuple(output.shape)}, but {tuple(bound.shape)} was recorded: "
                "the gradient defence needs the recorded images, in the same order and size."
            )
        value = output.detach()
        if one_sided:
            room = bound - value
        else:
            # Between 0 and h(x), whatever the sign of h(x), exactly where h(e) * (h(x) - h(e)) >= 0
            room = torch.sub(bound, value, alpha=_SCALE).mul_(value)
        below_zero = _BELOW_ZERO.get(room.dtype)
        if below_zero is None:
            allowed = room >= 0
            output.register_hook(lambda gradient: gradient * allowed)
        else:
            # The kernel of ReLU's backward: half the time of a boolean mask on a CPU
            output.register_hook(lambda gradient: torch.ops.aten.threshold_backward(gradient, room, below_zero))


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
