"""Layer-wise relevance propagation through a ViT or DeiT, down to the attention weights of its blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.thread_hooks import Hook, thread_hooks


# Input and output of each module's call, detached and in float32
Recorded = dict[nn.Module, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class BlockLayers:
    """One transformer block and its linear maps; everything else in it passes relevance on unchanged."""

    block: nn.Module
    attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    expand: nn.Linear
    contract: nn.Linear

    @property
    def recorded(self) -> tuple[nn.Module, ...]:
        """The modules whose inputs and outputs relevance is computed from."""
        return self.block, self.query, self.key, self.value, self.output, self.expand, self.contract


def block_layers(classifier: FrozenClassifier) -> list[BlockLayers]:
    """
    The blocks of a ViT or DeiT with their linear maps, found by the order they are defined and run in.

    Raises:
        ValueError: If the classifier is another, or a block is not built as theirs are.
    """
    if not classifier.is_transformer:
        raise ValueError(
            f"Relevance is propagated through the modules of ViT and DeiT, not of {classifier.model_class}; "
            "use transformer_attribution with rule='attention', or legrad."
        )
    parents = {child: module for module in classifier.model.modules() for child in module.children()}
    found = []
    for attention in classifier.attention_modules():
        block = parents[attention]
        inside = [module for module in attention.modules() if isinstance(module, nn.Linear)]
        outside = [module for module in block.modules() if isinstance(module, nn.Linear) and module not in inside]
        if len(inside) != 4 or len(outside) != 2:
            raise ValueError(
                f"{type(block).__name__} has {len(inside)} linear maps in its attention and {len(outside)} outside of "
                "it; relevance is known for ViT's 4 (query, key, value, output) and 2."
            )
        found.append(BlockLayers(block, attention, *inside, *outside))
    return found


def token_classifiers(classifier: FrozenClassifier) -> list[nn.Linear]:
    """
    The classification heads of a ViT or DeiT, in the order of the prefix tokens they read: one on CLS, and for DeiT
    with a teacher a second one on the distillation token.
    """
    blocks = {id(module) for layers in block_layers(classifier) for module in layers.block.modules()}
    return [
        module
        for module in classifier.model.modules()
        if isinstance(module, nn.Linear) and id(module) not in blocks and module.out_features == classifier.num_labels
    ]


@contextlib.contextmanager
def record(modules: Iterable[nn.Module]) -> Iterator[Recorded]:
    """Input and output of each module's call inside the `with` block, by module; see [`Recorded`]."""
    kept: Recorded = {}

    def keep(module: nn.Module) -> Hook:
        def hook(running: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            kept[module] = (inputs[0].detach().float(), output.detach().float())

        return hook  # `running` may be a copy of the module that shares its hooks

    with thread_hooks((module, keep(module)) for module in modules):
        yield kept


def split_heads(tokens: torch.Tensor, num_heads: int) -> torch.Tensor:
    """`(batch_size, sequence_length, hidden_size)` as `(batch_size, num_heads, sequence_length, head_size)`."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attention_relevance(
    classifier: FrozenClassifier,
    recorded: Recorded,
    attentions: tuple[torch.Tensor, ...],
    classes: torch.Tensor,
    first: int = 0,
) -> list[torch.Tensor]:
    r"""
    Relevance of every attention weight for the target, from the logit down to block `first`.

    Linear maps pass relevance on along products of equal sign (`α = 1, β = 0`), without the bias; matrix products
    along their products, half to each factor; sums divide it among their summands, scaled so that the total stays the
    same; LayerNorm, GELU and softmax pass it on unchanged. Where two heads share the logit, each starts with half of
    the relevance.

    Source: Chefer et al., CVPR 2021 (https://huggingface.co/papers/2012.09838) and its released code.

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT.
        recorded (`dict`): From [`record`], of every module in [`block_layers`] and [`token_classifiers`].
        attentions (tuple of `torch.FloatTensor` of shape `(batch_size, num_heads, sequence_length, sequence_length)`):
            Attention weights of every block.
        classes (`torch.LongTensor` of shape `(batch_size,)`): Classes explained.
        first (`int`, *optional*, defaults to 0): The first block whose attention is asked for.

    Returns:
        `list[torch.FloatTensor]`: relevance with the shape of the attention weights, of blocks `first` to the last.
    """
    heads = token_classifiers(classifier)
    blocks = block_layers(classifier)
    relevance = torch.zeros_like(recorded[blocks[-1].contract][1])
    for index, head in enumerate(heads):
        start = F.one_hot(classes, classifier.num_labels).float() / len(heads)
        relevance[:, index] = _linear(head, recorded[head][0], start)
    found = []
    for number in range(len(blocks) - 1, first - 1, -1):
        attention_part, relevance = _block(blocks[number], recorded, attentions[number].detach().float(), relevance)
        found.append(attention_part)
    return found[::-1]


def _block(
    layers: BlockLayers, recorded: Recorded, attention: torch.Tensor, relevance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Relevance of one block's attention weights and of its input, from that of its output."""
    entering = recorded[layers.block][0]
    attended = recorded[layers.output][1]
    kept, changed = _sum(entering + attended, recorded[layers.contract][1], relevance)
    changed = _linear(layers.contract, recorded[layers.contract][0], changed)
    relevance = kept + _linear(layers.expand, recorded[layers.expand][0], changed)

    kept, changed = _sum(entering, attended, relevance)
    num_heads = attention.shape[1]
    changed = split_heads(_linear(layers.output, recorded[layers.output][0], changed), num_heads)
    query, key, value = (split_heads(recorded[m][1], num_heads) for m in (layers.query, layers.key, layers.value))
    attention_part, value_part = _product(attention, value, changed)
    query_part, key_part = _product(query, key.mT, attention_part)
    parts = ((layers.query, query_part), (layers.key, key_part.mT), (layers.value, value_part))
    normed = recorded[layers.query][0]
    for module, part in parts:
        kept = kept + _linear(module, normed, part.transpose(1, 2).flatten(2))
    return attention_part, kept


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """`above / below`, which stays finite for a `below` near 0 and is 0 where it is 0."""
    stable = torch.where(below < 0, below - 1e-9, below + 1e-9)
    return torch.where(below == 0, 0.0, above / stable)


def _linear(module: nn.Linear, entering: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    weight = module.weight.detach().float()
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    above, under = entering.clamp(min=0), entering.clamp(max=0)
    share = _ratio(relevance, above @ positive.mT + under @ negative.mT)
    return above * (share @ positive) + under * (share @ negative)


def _product(left: torch.Tensor, right: torch.Tensor, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    share = _ratio(relevance, left @ right)
    return left * (share @ right.mT) / 2, right * (left.mT @ share) / 2


def _sum(left: torch.Tensor, right: torch.Tensor, relevance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    share = _ratio(relevance, left + right)
    left, right = left * share, right * share
    left_sum, right_sum, total = (part.sum((1, 2), keepdim=True) for part in (left, right, relevance))
    size = left_sum.abs() + right_sum.abs()
    return (
        left * _ratio(_ratio(left_sum.abs(), size) * total, left_sum),
        right * _ratio(_ratio(right_sum.abs(), size) * total, right_sum),
    )
