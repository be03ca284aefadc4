"""The attention of any transformer: scores and weights as they are computed, and what the sequence is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from hf_explain.classifiers.features import ClassifierFeatures


_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


@dataclass(frozen=True)
class TokenLayout:
    """
    What the sequence of tokens of a transformer is made of, and which of them its classifier reads.

    Args:
        blocks (`tuple[str, ...]`): Names of the layers that attend, in network order.
        num_prefix_tokens (`int`): CLS, distillation and register tokens, all in front of the patches.
        prefix_read (`tuple[int, ...]`): Those of them that the logits depend on after the last block.
        patches_read (`bool`): Whether the logits depend on the patches after the last block, as with mean pooling.
    """

    blocks: tuple[str, ...]
    num_prefix_tokens: int
    prefix_read: tuple[int, ...]
    patches_read: bool

    def fits(self, weights: torch.Tensor, pixel_values: torch.Tensor, length: int) -> bool:
        """Whether weights are those of a block: `length` tokens of each image that attend to one another."""
        return len(weights) == len(pixel_values) and weights.shape[-2:] == (length, length)

    def read_rows(self, matrix: torch.Tensor) -> torch.Tensor:
        """
        The rows of what the classifier reads: one of every prefix token that it reads, and the mean of the patches'
        where it reads those.

        Args:
            matrix (`torch.Tensor` of shape `(..., sequence_length, length)`): Attention weights, for example.

        Returns:
            `torch.Tensor` of shape `(..., num_read, length)`.
        """
        rows = [matrix[..., index : index + 1, :] for index in self.prefix_read]
        if self.patches_read:
            rows.append(matrix[..., self.num_prefix_tokens :, :].mean(-2, keepdim=True))
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-2)


@dataclass(frozen=True)
class AttentionFeatures:
    """
    The attention of every block of one pass, in network order.

    Args:
        features ([`ClassifierFeatures`]): Output of every block, and the logits.
        weights (tuple of `torch.FloatTensor` of shape `(batch_size, num_heads, sequence_length, sequence_length)`):
            Attention weights; rows sum to 1.
        scores (tuple of `torch.FloatTensor` of the same shape): What the softmax makes them of.
        grid_size (`tuple[int, int]`): Height and width in patches.
    """

    features: ClassifierFeatures
    weights: tuple[torch.Tensor, ...]
    scores: tuple[torch.Tensor, ...]
    grid_size: tuple[int, int]

    @property
    def logits(self) -> torch.Tensor:
        """Of the classifier, shape `(batch_size, num_labels)`."""
        return self.features.logits


class AttentionRecorder(TorchFunctionMode):
    """
    Keeps the scores and the weights of every attention that the calling thread computes inside the `with` block.

    Fused attention gives no weights, so inside the block it is computed step by step. Nothing of the classifier is
    changed: other threads run the same modules as before.

    Attributes:
        scores (list of `torch.FloatTensor` of shape `(batch_size, num_heads, queries, keys)`): Before the softmax, in
            the order they are computed.
        weights (list of `torch.FloatTensor` of the same shapes): After it; rows sum to 1. Part of the graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _SOFTMAX and output.ndim == 4:
            self._keep(args[0] if args else kwargs["input"], output)
        return output

    def _keep(self, scores: torch.Tensor, weights: torch.Tensor) -> None:
        self.scores.append(scores)
        self.weights.append(weights)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """torch's scaled dot product attention by its definition; nothing is dropped of a frozen model."""
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (tensor.repeat_interleave(repeats, dim=-3) for tensor in (key, value))
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if hidden else scores + attn_mask
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        if scores.ndim == 4:
            self._keep(scores, weights)
        return weights @ value
