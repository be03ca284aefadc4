"""Methods that read a transformer's attention; they switch the classifier to eager attention and back."""

from __future__ import annotations

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.hooked_layers import pair
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import prepare_pixels, saliency_output, target_logits
from hf_explain.methods.relevance import attention_relevance, block_layers, record, split_heads, token_classifiers
from hf_explain.tensors.maps import check_finite
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.scalars import check_choice


RULES = ("attention", "relevance")


@torch.inference_mode(False)
def raw_attention(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Raw attention: what the classifying token attends to in one block, the mean over heads. It looks at no class.

    Of DeiT with its teacher's head, which reads two tokens, the map is the mean of the CLS token's and the
    distillation token's; of DeiT without it, the CLS token's.

    Formula, with `a_h` the attention weights of head `h`, `H` of them:

        L = (1/H Σ_h a_h)[CLS, patches]

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given. The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): The block whose attention is shown (`"layer1"` is the first); the last when
            not given.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] on the grid of patches.

    Raises:
        ValueError: If the classifier has no attention, or the layer is not one of its blocks, or it has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import raw_attention

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> raw_attention(classifier, pixel_values, layer="layer1").saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    block = _block_index(classifier, "raw_attention", layer, default=-1)
    pixel_values, logits, attentions, classes = _attentions(classifier, pixel_values, target)
    rows = _read_rows(classifier, attentions[block].float().mean(1)).mean(1)
    return saliency_output(_to_grid(classifier, rows, pixel_values), logits, classes)


@torch.inference_mode(False)
def rollout(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Attention rollout: the product over blocks of half the attention, averaged over heads, and half the identity that
    stands for the residual connection; the classifying token's row of it. It looks at no class.

    Formula, with `a_bh` the attention weights of block `b` and head `h`, `B` blocks and `H` heads:

        Â_b = 1/2 (I + 1/H Σ_h a_bh)
        L   = (Â_B ··· Â_2 Â_1)[CLS, patches]

    Source: Abnar and Zuidema, ACL 2020 (https://huggingface.co/papers/2005.00928).

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): See [`raw_attention`].
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`], also for DeiT's two tokens.

    Raises:
        ValueError: As for [`raw_attention`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import rollout

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> maps = rollout(classifier, pixel_values, target=0).saliency
    >>> maps.shape
    torch.Size([2, 4, 4])
    >>> torch.equal(maps, rollout(classifier, pixel_values, target=1).saliency)
    True
    ```
    """
    first = _block_index(classifier, "rollout", layer, default=0)
    pixel_values, logits, attentions, classes = _attentions(classifier, pixel_values, target)
    # A row times a matrix per block, from the last to the first: the full product is never needed
    rows = _start_rows(classifier, attentions[-1])
    for attention in reversed(attentions[first:]):
        rows = 0.5 * (rows @ attention.float().mean(1)) + 0.5 * rows
    return saliency_output(_to_grid(classifier, rows.mean(1), pixel_values), logits, classes)


@torch.inference_mode(False)
def transformer_attribution(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    rule: str = "attention",
) -> SaliencyOutput:
    r"""
    Transformer attribution: per block, the attention weights times their gradient, the positive part averaged over
    heads, plus the identity; the classifying token's row of the product over blocks.

    The first of the two papers takes the weights' relevance (LRP) in place of the weights. Its rules divide by sums
    that can cancel: such a map can change with a change of the pixels that nobody sees, and in half precision.

    Formula, with `a_bh` the attention weights of block `b` and head `h`, `g_bh` the target logit's gradient there:

        Ā_b = I + 1/H Σ_h ReLU(g_bh ⊙ a_bh)
        L   = (Ā_B ··· Ā_2 Ā_1)[CLS, patches]

    Source: Chefer et al., ICCV 2021 (https://huggingface.co/papers/2103.15679), for
    `rule="attention"`; Chefer et al., CVPR 2021 (https://huggingface.co/papers/2012.09838), for
    `rule="relevance"`.

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.
        rule (`str`, *optional*, defaults to `"attention"`): What the gradient weights: `"attention"` or `"relevance"`.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`], also for DeiT's two tokens.

    Raises:
        ValueError: As for [`raw_attention`], or if `rule` is unknown.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import transformer_attribution

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> transformer_attribution(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    >>> transformer_attribution(classifier, pixel_values, target=1, rule="relevance").saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    check_choice(rule, "rule", RULES)
    first = _block_index(classifier, "transformer_attribution", layer, default=0)
    if rule == "attention":
        pixel_values, logits, attentions, classes = _attentions(classifier, pixel_values, target, graph=True)
        weighted = [attention.detach().float() for attention in attentions[first:]]
    else:
        pixel_values, logits, attentions, classes, weighted = _relevance(classifier, pixel_values, target, first)
    gradients = _attention_gradients(logits, attentions[first:], classes)
    rows = _start_rows(classifier, attentions[-1])
    for gradient, weight in zip(reversed(gradients), reversed(weighted)):
        rows = rows + rows @ (gradient * weight).clamp(min=0).mean(1)
    return saliency_output(_to_grid(classifier, rows.mean(1), pixel_values), logits, classes)


@torch.inference_mode(False)
def partial_lrp(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Partial LRP: relevance propagated from the target logit down to one block's attention weights; its positive part,
    averaged over heads, in the classifying token's row.

    Formula, with `R_h` the relevance of the block's attention weights in head `h`, `H` of them:

        L = (1/H Σ_h ReLU(R_h))[CLS, patches]

    Source: Voita et al., ACL 2019 (https://huggingface.co/papers/1905.09418), as the baseline of Chefer et al., CVPR
    2021 (https://huggingface.co/papers/2012.09838), whose propagation rules it uses.

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The block whose attention is shown; the last when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`], also for DeiT's two tokens. Where no weight has positive relevance,
        the relevance itself, so that no map is all zeros.

    Raises:
        ValueError: As for [`raw_attention`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import partial_lrp

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> partial_lrp(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    block = _block_index(classifier, "partial_lrp", layer, default=-1)
    first = block % len(block_layers(classifier))
    pixel_values, logits, _, classes, relevance = _relevance(classifier, pixel_values, target, first, graph=False)
    signed = _read_rows(classifier, relevance[0]).mean(2)
    positive = _read_rows(classifier, relevance[0].clamp(min=0)).mean(2)
    maps, fallback = (_to_grid(classifier, rows.mean(1), pixel_values) for rows in (positive, signed))
    maps = torch.where((maps > 0).flatten(1).any(1)[:, None, None], maps, fallback)
    return saliency_output(maps, logits, classes)


@torch.inference_mode(False)
def attention_guided_cam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Attention-guided CAM: positive gradients of the target logit at the classifying token's attention weights, times
    the sigmoid of the scores before their softmax, summed over heads and blocks.

    Formula, with `g_bh` the target logit's gradient at the attention weights of block `b`, head `h`:

        L = (Σ_b Σ_h ReLU(g_bh) ⊙ σ(q_bh k_bhᵀ / √d))[CLS, patches]

    Source: Leem and Seo, AAAI 2024 (https://huggingface.co/papers/2402.04563) and its released code.

    Args:
        classifier ([`FrozenClassifier`]): A ViT or DeiT to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`], also for DeiT's two tokens. Where no gradient is positive, the same
        sum with the gradients' signs, so that no map is all zeros.

    Raises:
        ValueError: As for [`raw_attention`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import attention_guided_cam

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> attention_guided_cam(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    first = _block_index(classifier, "attention_guided_cam", layer, default=0)
    blocks = block_layers(classifier)[first:]
    with record([module for layers in blocks for module in (layers.query, layers.key)]) as recorded:
        pixel_values, logits, attentions, classes = _attentions(classifier, pixel_values, target, graph=True)
    positive, signed = [], []
    for layers, gradient in zip(blocks, _attention_gradients(logits, attentions[first:], classes)):
        query, key = (split_heads(recorded[module][1], gradient.shape[1]) for module in (layers.query, layers.key))
        scores = _read_rows(classifier, query) @ key.mT * query.shape[-1] ** -0.5
        gradient = _read_rows(classifier, gradient)
        positive.append((gradient.clamp(min=0) * scores.sigmoid()).sum(1))
        signed.append((gradient * scores.sigmoid()).sum(1))
    maps, fallback = (_to_grid(classifier, sum(rows).mean(1), pixel_values) for rows in (positive, signed))
    maps = torch.where((maps > 0).flatten(1).any(1)[:, None, None], maps, fallback)
    return saliency_output(maps, logits, classes)


def _block_index(classifier: FrozenClassifier, method: str, layer: str | int | None, default: int) -> int:
    """Index into the attention of all blocks; one clear ValueError where there is no attention or no such block."""
    if not classifier.is_transformer:
        raise ValueError(
            f"{method} needs attention; {type(classifier.model).__name__} has none that this package knows; use "
            "gradcam, layercam or rise instead."
        )
    if layer is None:
        return default
    index = classifier.layer_names.index(classifier.resolve_layer(layer))
    if index == 0:
        raise ValueError(
            f"`layer` {layer!r} has no attention; {method} takes {classifier.layer_names[1]!r} to "
            f"{classifier.layer_names[-1]!r}."
        )
    return index - 1


def _attentions(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, graph: bool = False
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
    """Pixels, logits, attention weights and classes; with a graph from the weights to the logits if asked."""
    pixel_values = prepare_pixels(pixel_values)
    with torch.set_grad_enabled(graph):
        # no parameter requires a gradient, so the pixels must for there to be a graph
        logits, attentions = classifier.attentions(pixel_values.requires_grad_() if graph else pixel_values)
    pixel_values = pixel_values.detach()
    check_finite(logits.detach(), "logits that are")
    return pixel_values, logits, attentions, classifier.resolve_target(target, len(pixel_values), logits.detach())


def _attention_gradients(
    logits: torch.Tensor, attentions: tuple[torch.Tensor, ...], classes: torch.Tensor
) -> list[torch.Tensor]:
    gradients = torch.autograd.grad(target_logits(logits, classes).sum(), attentions)
    return [gradient.float() for gradient in gradients]


def _relevance(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, first: int, graph: bool = True
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor, list[torch.Tensor]]:
    """What [`_attentions`] gives, and the relevance of the weights from block `first` on."""
    modules = [m for layers in block_layers(classifier)[first:] for m in layers.recorded]
    with record([*modules, *token_classifiers(classifier)]) as recorded:
        pixel_values, logits, attentions, classes = _attentions(classifier, pixel_values, target, graph=graph)
    with torch.no_grad():
        relevance = attention_relevance(classifier, recorded, attentions, classes, first)
    return pixel_values, logits, attentions, classes, relevance


def _start_rows(classifier: FrozenClassifier, attention: torch.Tensor) -> torch.Tensor:
    """The identity's rows for the tokens a classification head reads, `(batch_size, num_read, sequence_length)`."""
    length = attention.shape[-1]
    rows = torch.eye(length, device=attention.device)[: len(token_classifiers(classifier))]
    return rows.expand(len(attention), -1, -1)


def _read_rows(classifier: FrozenClassifier, matrix: torch.Tensor) -> torch.Tensor:
    """Rows of the prefix tokens that a classification head reads: CLS, and distillation where it has a head."""
    return matrix[..., : len(token_classifiers(classifier)), :]


def _to_grid(classifier: FrozenClassifier, rows: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """The patches' part of `(batch_size, sequence_length)` as `(batch_size, height, width)`."""
    patch = pair(classifier.config.patch_size)
    grid = tuple(side // p for side, p in zip(pixel_values.shape[-2:], patch))
    return rows[:, classifier.num_prefix_tokens :].unflatten(1, grid)
