"""The layer that makes a map per class, of which only the classes asked for are ever computed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.tensors.maps import resize_maps


class ClassConv2d(nn.Conv2d):
    """
    A 1×1 convolution with one output channel per class.

    Its weights are read inside `forward` alone, where hooks that bring offloaded weights expect it. It is made as
    every convolution is, because adapters (LoRA) make more of the same class.
    """

    def forward(
        self,
        features: torch.Tensor | Iterable[torch.Tensor],
        target: torch.Tensor | None = None,
        size: Sequence[int] | None = None,
        pairwise: bool = False,
    ) -> torch.Tensor:
        """As a convolution, the maps of every class; with a `target`, see [`class_maps`]."""
        if target is None:
            assert isinstance(features, torch.Tensor)
            return super().forward(features)
        assert size is not None
        rows = self.weight[target]
        parts, start = [], 0
        for branch in features:
            own = rows[:, start : start + branch.shape[1]]
            start += branch.shape[1]
            if pairwise:
                part = F.conv2d(branch, own)
            else:
                part = torch.bmm(own.flatten(1)[:, None], branch.flatten(2))[:, 0].unflatten(1, branch.shape[-2:])
            parts.append(resize_maps(part, size))
        maps = functools.reduce(torch.add, parts)
        return maps if self.bias is None else maps + self.bias[target][:, None, None]


def class_maps(
    layer: nn.Module, features: Iterable[torch.Tensor], target: torch.Tensor, size: Sequence[int], pairwise: bool
) -> torch.Tensor:
    """
    Raw maps of the classes asked for. Each feature map is reduced to them by itself and then resized, which is the
    same as the other way round: both are linear.

    Args:
        layer ([`ClassConv2d`]): The layer, or what stands around it.
        features (iterable of `torch.FloatTensor` of shape `(batch_size, channels, height, width)`): Feature maps.
        target (`torch.LongTensor` of shape `(num_targets,)`): One class per image, or those of all pairs.
        size (sequence of two `int`): Height and width of the maps.
        pairwise (`bool`): Every image's map of every target, rather than of its own.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, height, width)`, or pairwise
        `(batch_size, num_targets, height, width)`.
    """
    if isinstance(layer, ClassConv2d):
        return layer(features, target, size, pairwise)
    # an adapter around it (LoRA) knows a convolution and its maps of every class
    maps = layer(torch.cat([resize_maps(branch, size) for branch in features], dim=1))
    return maps[:, target] if pairwise else maps[torch.arange(len(target), device=target.device), target]


def is_bare(module: nn.Module) -> bool:
    """
    Whether reading a layer's weights is the same as calling it: not where an adapter stands around it, and not where
    hooks bring its weights from elsewhere.
    """
    plain = isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
    if torch.compiler.is_compiling():
        return plain
    return plain and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
