"""Class activation maps: a layer's feature map, weighted by what each channel or position means for the target."""

from __future__ import annotations

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import (
    FORWARD_BATCH_SIZE,
    check_reaches_logits,
    chunks,
    contributions,
    features_and_target,
    repeat_features,
    saliency_output,
    signed_output,
    tail_gradient,
    target_logits,
)
from hf_explain.tensors.maps import positive_part
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.scalars import check_count


# Every method leaves inference mode: autograd would record nothing for a caller who is in it
@torch.inference_mode(False)
def gradcam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Grad-CAM: channels weighted by the mean over positions of the target logit's gradient, then ReLU.

    The classifier runs once without a graph; then the part after `layer` runs again with one.

    Formula, with `A` the feature map, `g` the target logit's gradient there, channels `k` and `N` positions `i`:

        w_k = 1/N Σ_i g_ki
        L_i = ReLU(Σ_k w_k A_ki)

    Source: Selvaraju et al., ICCV 2017 (https://huggingface.co/papers/1610.02391), equations 1 and 2.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Layer whose feature map is used; the last whose positions reach the logits
            (for ViT and DeiT the one before the last block) when not given.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] at the layer's resolution, `saliency_logits` before scaling. Where no
        position speaks for the target, the map before the ReLU, so that no map is all zeros.

    Raises:
        ValueError: If the layer does not exist or its positions have no effect on the logits, or the classifier has
            no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import gradcam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> output = gradcam(classifier, pixel_values, target=["LABEL_1", "LABEL_2"])
    >>> output.saliency.shape, output.target
    (torch.Size([2, 4, 4]), tensor([1, 2]))
    >>> output.saliency.amax((1, 2))
    tensor([1., 1.])
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    weights = tail_gradient(classifier, features, classes).mean((2, 3))
    maps = torch.einsum("bc,bchw->bhw", weights, features.feature_map.float())
    return signed_output(maps, logits, classes)


@torch.inference_mode(False)
def gradcam_plus_plus(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Grad-CAM++: positive gradients, each weighted by its position's share, give the channels' weights; then ReLU.

    With `Y = exp(S)` of the target logit `S`, the paper's higher derivatives are powers `g²` and `g³` of the gradient
    of `S`, times `exp(S)`, which scales the whole map and is left out: `a = g² / (2g² + g³ ΣA)`, `w = Σ a·ReLU(g)`.

    Formula, with `A` the feature map, `g` the gradient of the target logit there, channels `k`, positions `i`:

        α_ki = g_ki² / (2 g_ki² + g_ki³ Σ_j A_kj)
        w_k  = Σ_i α_ki ReLU(g_ki)
        L_i  = ReLU(Σ_k w_k A_ki)

    Source: Chattopadhay et al., WACV 2018 (https://huggingface.co/papers/1710.11063).

    Args, Returns, Raises:
        As for [`gradcam`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import gradcam_plus_plus

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> gradcam_plus_plus(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    gradient = tail_gradient(classifier, features, classes)
    activation = features.feature_map.float()
    # g² cancels; a gradient of 0 has weight 0 whatever its share
    below = 2 + gradient * activation.sum((2, 3), keepdim=True)
    share = torch.where((gradient != 0) & (below != 0), 1 / torch.where(below != 0, below, 1.0), 0.0)
    weights = (share * gradient.clamp(min=0)).sum((2, 3))
    maps = torch.einsum("bc,bchw->bhw", weights, activation)
    return saliency_output(positive_part(maps), logits, classes)


@torch.inference_mode(False)
def xgradcam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    XGrad-CAM: channels weighted by the mean of the gradient over positions, each counted by its share of the channel's
    activation; then ReLU. A channel whose activation sums to 0 has weight 0.

    Formula, with `A` the feature map, `g` the gradient of the target logit there, channels `k`, positions `i`:

        w_k = Σ_i g_ki A_ki / Σ_j A_kj
        L_i = ReLU(Σ_k w_k A_ki)

    Source: Fu et al., BMVC 2020 (https://huggingface.co/papers/2008.02312).

    Args, Returns, Raises:
        As for [`gradcam`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import xgradcam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> xgradcam(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    gradient = tail_gradient(classifier, features, classes)
    activation = features.feature_map.float()
    total = activation.sum((2, 3))
    weights = (gradient * activation).sum((2, 3)) / torch.where(total != 0, total, 1.0)
    maps = torch.einsum("bc,bchw->bhw", torch.where(total != 0, weights, 0.0), activation)
    return signed_output(maps, logits, classes)


@torch.inference_mode(False)
def layercam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    LayerCAM: every position weighted by its own positive gradient, summed over channels; then ReLU.

    Formula, with `A` the feature map, `g` the gradient of the target logit there, channels `k`, positions `i`:

        L_i = ReLU(Σ_k ReLU(g_ki) A_ki)

    Source: Jiang et al., IEEE TIP 2021 (https://doi.org/10.1109/TIP.2021.3089943).

    Args, Returns, Raises:
        As for [`gradcam`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import layercam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> layercam(classifier, pixel_values, target=1, layer="stage1").saliency.shape
    torch.Size([2, 8, 8])
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    gradient = tail_gradient(classifier, features, classes)
    maps = (gradient.clamp(min=0) * features.feature_map.float()).sum(1)
    return saliency_output(positive_part(maps), logits, classes)


@torch.inference_mode(False)
def hirescam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    HiResCAM: gradient times activation at every position, summed over channels; then ReLU.

    The last block of a ViT or DeiT sees the patch tokens through its LayerNorm alone and so whatever their scale, as
    each stage of a ConvNeXt sees the one before: there gradient times activation sums to 0 at every position. Both are
    taken behind that LayerNorm.

    Formula, with `A` the feature map, `g` the gradient of the target logit there, channels `k`, positions `i`:

        L_i = ReLU(Σ_k g_ki A_ki)

    Source: Draelos and Carin, 2020 (https://huggingface.co/papers/2011.08891).

    Args, Returns:
        As for [`gradcam`].

    Raises:
        ValueError: As for [`gradcam`], or if the products cancel at every position of another classifier's layer.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import hirescam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> hirescam(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    return signed_output(contributions(classifier, features, classes), logits, classes)


@torch.inference_mode(False)
def eigencam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target = None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Eigen-CAM: each position's coordinate along the first right singular vector of the (positions × channels) feature
    map. It looks at no class and needs no gradient, so any layer will do.

    A singular vector has no sign of its own: the one is taken that makes the coordinate of largest magnitude positive.

    Formula, with `A` the feature map as a matrix of positions by channels:

        A = U Σ Vᵀ
        L = A v₁

    Source: Muhammad and Yeasin, IJCNN 2020 (https://huggingface.co/papers/2008.00299).

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): Layer whose feature map is used; as for [`gradcam`] when not given.

    Returns:
        [`SaliencyOutput`]: See [`gradcam`]; there is no ReLU.

    Raises:
        ValueError: If the layer or the class does not exist.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import eigencam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> maps = eigencam(classifier, pixel_values, target=0).saliency
    >>> maps.shape
    torch.Size([2, 4, 4])
    >>> torch.equal(maps, eigencam(classifier, pixel_values, target=1).saliency)
    True
    ```
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    matrix = features.feature_map.flatten(2).float()  # (batch, channels, positions)
    # The leading eigenvector of the smaller Gram matrix: a full SVD costs many times more
    if matrix.shape[1] < matrix.shape[2]:
        vectors = torch.linalg.eigh(matrix @ matrix.mT).eigenvectors[..., -1]
        coordinates = torch.einsum("bcp,bc->bp", matrix, vectors)
    else:
        values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
        coordinates = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    largest = coordinates.gather(1, coordinates.abs().argmax(1, keepdim=True))
    maps = torch.where(largest < 0, -coordinates, coordinates).view(-1, *features.feature_map.shape[-2:])
    return saliency_output(maps, logits, classes)


@torch.inference_mode(False)
def ablationcam(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Ablation-CAM: channels weighted by the drop of the target logit when the channel is set to 0, relative to the
    logit; then ReLU. Only the tail after `layer` runs, `batch_size` ablated feature maps at a time.

    The drop is divided by the logit's magnitude: dividing by a negative logit, as the paper's formula would, turns the
    map upside down.

    Formula, with `A` the feature map, `S` the target logit and `S_k` the logit without channel `k`:

        w_k = (S − S_k) / |S|
        L_i = ReLU(Σ_k w_k A_ki)

    Source: Desai and Ramaswamy, WACV 2020 (https://doi.org/10.1109/WACV45572.2020.9093360).

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): See [`gradcam`].
        layer (`str` or `int`, *optional*): See [`gradcam`].
        batch_size (`int`, *optional*, defaults to 64): Ablated feature maps per pass through the tail.

    Returns:
        [`SaliencyOutput`]: See [`gradcam`].

    Raises:
        ValueError: As for [`gradcam`], or if `batch_size` is not a positive whole number.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.cam import ablationcam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> ablationcam(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    check_count(batch_size, "batch_size")
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    activation = features.feature_map
    images, channels = activation.shape[:2]
    base = target_logits(logits, classes).float()
    drop = torch.empty(images, channels, device=activation.device)
    with torch.no_grad():
        for group in chunks(images, batch_size):
            part = features.replace(
                feature_map=activation[group],
                prefix_tokens=None if features.prefix_tokens is None else features.prefix_tokens[group],
                pixel_values=None if features.pixel_values is None else features.pixel_values[group],
            )
            size = len(part.feature_map)
            for span in chunks(channels, max(1, batch_size // size)):
                count = span.stop - span.start
                ablated = part.feature_map.repeat_interleave(count, dim=0).unflatten(0, (size, count))
                rows = torch.arange(count, device=activation.device)
                ablated[:, rows, rows + span.start] = 0
                scores = classifier.forward_from_features(repeat_features(part, count, ablated.flatten(0, 1)))
                scores = target_logits(scores.float(), classes[group].repeat_interleave(count))
                drop[group, span] = base[group, None] - scores.view(size, count)
    check_reaches_logits(classifier, features.layer, drop)
    weights = drop / base.abs().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    maps = torch.einsum("bc,bchw->bhw", weights, activation.float())
    return signed_output(maps, logits, classes)
