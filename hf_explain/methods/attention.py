"""Methods that read a transformer's attention."""

from __future__ import annotations

import torch

from hf_explain.classifiers.attention import AttentionFeatures, TokenLayout
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import prepare_pixels, saliency_output, target_logits
from hf_explain.methods.relevance import attention_relevance, block_layers, record, token_classifiers
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

    Formula, with `a_h` the attention weights of head `h`, `H` of them:

        L = (1/H Σ_h a_h)[CLS, patches]

    Args:
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given. The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): The block whose attention is shown (`"layer1"` is the first); the last when
            not given.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] on the grid of patches. Where the classifier reads several tokens
        after the last block, the map is the mean of theirs; the patches of mean pooling together count as one.

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
    found, classes = _attend(classifier, pixel_values, target)
    rows = _layout(classifier).read_rows(found.weights[block].float().mean(1)).mean(1)
    return saliency_output(_to_grid(classifier, rows, found), found.logits, classes)


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
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): See [`raw_attention`].
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`].

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
    found, classes = _attend(classifier, pixel_values, target)
    # A row times a matrix per block, from the last to the first: the full product is never needed
    rows = _start_rows(classifier, found)
    for attention in reversed(found.weights[first:]):
        rows = 0.5 * (rows @ attention.float().mean(1)) + 0.5 * rows
    return saliency_output(_to_grid(classifier, rows.mean(1), found), found.logits, classes)


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
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.
        rule (`str`, *optional*, defaults to `"attention"`): What the gradient weights: `"attention"` or `"relevance"`.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`].

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
        found, classes = _attend(classifier, pixel_values, target, graph=True)
        weighted = [attention.detach().float() for attention in found.weights[first:]]
    else:
        found, classes, weighted = _relevance(classifier, pixel_values, target, first)
    gradients = _attention_gradients(found, first, classes)
    rows = _start_rows(classifier, found)
    for gradient, weight in zip(reversed(gradients), reversed(weighted)):
        rows = rows + rows @ (gradient * weight).clamp(min=0).mean(1)
    return saliency_output(_to_grid(classifier, rows.mean(1), found), found.logits, classes)


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
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The block whose attention is shown; the last when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`]. Where no weight has positive relevance,
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
    found, classes, relevance = _relevance(classifier, pixel_values, target, first, graph=False)
    read_rows = _layout(classifier).read_rows
    rows = (read_rows(relevance[0].clamp(min=0)), read_rows(relevance[0]))
    maps, fallback = (_to_grid(classifier, part.mean((1, 2)), found) for part in rows)
    maps = torch.where((maps > 0).flatten(1).any(1)[:, None, None], maps, fallback)
    return saliency_output(maps, found.logits, classes)


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
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`]. Where no gradient is positive, the same
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
    found, classes = _attend(classifier, pixel_values, target, graph=True)
    read_rows = _layout(classifier).read_rows
    positive, signed = [], []
    for scores, gradient in zip(found.scores[first:], _attention_gradients(found, first, classes)):
        gate = scores.detach().float().sigmoid()
        positive.append(read_rows(gradient.clamp(min=0) * gate).sum(1))
        signed.append(read_rows(gradient * gate).sum(1))
    maps, fallback = (_to_grid(classifier, torch.stack(rows).sum(0).mean(1), found) for rows in (positive, signed))
    maps = torch.where((maps > 0).flatten(1).any(1)[:, None, None], maps, fallback)
    return saliency_output(maps, found.logits, classes)


@torch.inference_mode(False)
def legrad(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    LeGrad: per block, the class score read from that block's own tokens, and its gradient at that block's attention
    weights; the positive part, averaged over heads and over the tokens that attend, says how much each patch is asked
    for. Blocks add up.

    Formula, with `Z_b` the tokens after block `b`, `s` what follows the last block, `a_bh` the weights of head `h`:

        L = Σ_b 1/(H n) Σ_h Σ_i ReLU(∂ s(Z_b)[target] / ∂ a_bh)[i, patches],  H heads, n tokens that attend

    Source: Bousselham et al., 2024 (https://huggingface.co/papers/2404.03214).

    Args:
        classifier ([`FrozenClassifier`]): A plain vision transformer to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): The first block that counts; the first of all when not given.

    Returns:
        [`SaliencyOutput`]: See [`raw_attention`].

    Raises:
        ValueError: As for [`raw_attention`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ViTConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.attention import legrad

    >>> _ = torch.manual_seed(0)
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    >>> classifier = FrozenClassifier.from_config(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> legrad(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    first = _block_index(classifier, "legrad", layer, default=0)
    found, classes = _attend(classifier, pixel_values, target, graph=True)
    names = _layout(classifier).blocks
    rows = torch.zeros(())
    with torch.enable_grad():
        for name, weights in list(zip(names, found.weights))[first:]:
            # the tail behind the last block, on the tokens of this one
            tokens = found.features[name].replace(layer=names[-1])
            logits = classifier.forward_from_features(tokens)
            (gradient,) = torch.autograd.grad(target_logits(logits, classes).sum(), weights, retain_graph=True)
            rows = rows + gradient.float().clamp(min=0).mean((1, 2))
    return saliency_output(_to_grid(classifier, rows, found), found.logits, classes)


def _block_index(classifier: FrozenClassifier, method: str, layer: str | int | None, default: int) -> int:
    """Index into the attention of all blocks; one clear ValueError where there is no attention or no such block."""
    layout = classifier.token_layout
    if layout is None:
        raise ValueError(
            f"{method} needs attention among all patches; {classifier.model_class} has none; use gradcam, "
            "layercam or rise instead."
        )
    if layer is None:
        return default
    name = classifier.resolve_layer(layer)
    if name not in layout.blocks:
        raise ValueError(
            f"`layer` {layer!r} has no attention; {method} takes {layout.blocks[0]!r} to {layout.blocks[-1]!r}."
        )
    return layout.blocks.index(name)


def _layout(classifier: FrozenClassifier) -> TokenLayout:
    """The layout of a classifier that `_block_index` has let pass."""
    assert classifier.token_layout is not None
    return classifier.token_layout


def _attend(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, graph: bool = False
) -> tuple[AttentionFeatures, torch.Tensor]:
    """Attention and classes; with a graph from the weights to the logits if asked."""
    pixel_values = prepare_pixels(pixel_values)
    with torch.set_grad_enabled(graph):
        # no parameter requires a gradient, so the pixels must for there to be a graph
        found = classifier.attentions(pixel_values.requires_grad_() if graph else pixel_values)
    logits = found.logits.detach()
    check_finite(logits, "logits that are")
    return found, classifier.resolve_target(target, len(pixel_values), logits)


def _attention_gradients(found: AttentionFeatures, first: int, classes: torch.Tensor) -> list[torch.Tensor]:
    gradients = torch.autograd.grad(target_logits(found.logits, classes).sum(), found.weights[first:])
    return [gradient.float() for gradient in gradients]


def _relevance(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, first: int, graph: bool = True
) -> tuple[AttentionFeatures, torch.Tensor, list[torch.Tensor]]:
    """What [`_attend`] gives, and the relevance of the weights from block `first` on."""
    modules = [m for layers in block_layers(classifier)[first:] for m in layers.recorded]
    with record([*modules, *token_classifiers(classifier)]) as recorded:
        found, classes = _attend(classifier, pixel_values, target, graph=graph)
    with torch.no_grad():
        relevance = attention_relevance(classifier, recorded, found.weights, classes, first)
    return found, classes, relevance


def _start_rows(classifier: FrozenClassifier, found: AttentionFeatures) -> torch.Tensor:
    """The identity's rows for what the classifier reads, `(batch_size, num_read, sequence_length)`."""
    weights = found.weights[-1]
    identity = torch.eye(weights.shape[-1], device=weights.device)
    return _layout(classifier).read_rows(identity).expand(len(weights), -1, -1)


def _to_grid(classifier: FrozenClassifier, rows: torch.Tensor, found: AttentionFeatures) -> torch.Tensor:
    """The patches' part of `(batch_size, sequence_length)` as `(batch_size, height, width)`."""
    return rows[:, _layout(classifier).num_prefix_tokens :].unflatten(1, found.grid_size)
