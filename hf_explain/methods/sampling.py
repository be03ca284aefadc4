"""Methods that ask the classifier about masked images: RISE, Score-CAM, occlusion, LIME and kernel SHAP."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import (
    FORWARD_BATCH_SIZE,
    chunks,
    compared_probabilities,
    features_and_target,
    logits_and_target,
    mask_fill,
    prepare_pixels,
    saliency_output,
    score_masked,
    signed_output,
    target_logits,
)
from hf_explain.tensors.batch_size import batches
from hf_explain.tensors.grids import Grid, grid_cells, spread_cells
from hf_explain.tensors.maps import min_max, positive_part, resize_maps
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.perturbation import mask_space_fill
from hf_explain.tensors.randomness import image_keys, random_uniform
from hf_explain.tensors.scalars import check_count, check_number, check_seed


# Held while torch's global random state is ours: it is every thread's
_RANDOM_STATE = threading.Lock()


@torch.inference_mode(False)
def rise(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    num_masks: int = 1000,
    grid_size: int = 7,
    grid: Grid = "pixel",
    probability: float = 0.5,
    mask_space: str = "pixel",
    seed: int = 0,
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    RISE: the mean of random masks, each weighted by the target's softmax on the image seen through it.

    A mask is a `grid_size`² grid of independent cells, open with `probability`, enlarged bilinearly to one cell more
    than the image and cut out at a random shift of up to one cell. Masks come from the seed and their own number: they
    are the same for every image, batch size and device, and only those of one forward pass are ever in memory.

    Formula, with `x` the image, `M_m` the masks, `n` of them, `q` the `probability` and `p` the target's softmax:

        L = 1/(n q) Σ_m p(x ⊙ M_m) M_m

    Source: Petsiuk et al., BMVC 2018 (https://huggingface.co/papers/1806.07421), equation 6; the paper
    uses 4,000 masks for VGG-16 and 8,000 for ResNet-50.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Not used; RISE looks at inputs and outputs alone.
        num_masks (`int`, *optional*, defaults to 1000): Masks per image, each one forward pass.
        grid_size (`int`, *optional*, defaults to 7): Cells per side of the mask before it is enlarged.
        grid (`str` or `tuple[int, int]`, *optional*, defaults to `"pixel"`): `"pixel"`, as published: masks of
            `grid_size`. `"patch"`: the cells are the patches that a vision transformer reads, whole: a mask is neither
            enlarged nor shifted. `(height, width)`: so many cells, likewise.
        probability (`float`, *optional*, defaults to 0.5): Chance of a cell to be open, in (0, 1).
        mask_space (`str`, *optional*, defaults to `"pixel"`): `"pixel"`: closed pixels are black; `"normalized"`: they
            are the mean colour, as in the released code.
        seed (`int`, *optional*, defaults to 0): Changes the masks.
        batch_size (`int`, *optional*, defaults to 64): Masked images per forward pass, at most.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] at the image's resolution, or with one value per cell of a `grid`;
        `saliency_logits` is the paper's map, an estimate of the expected softmax given that the pixel is seen.

    Raises:
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.sampling import rise

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> rise(classifier, pixel_values, target=1, num_masks=16).saliency.shape
    torch.Size([2, 32, 32])
    ```
    """
    check_count(num_masks, "num_masks")
    check_count(grid_size, "grid_size")
    check_count(batch_size, "batch_size")
    check_number(probability, "probability", "(0, 1)", "of a cell to be open")
    fill = mask_space_fill(mask_space)
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    height, width = pixel_values.shape[-2:]
    filled = mask_fill(classifier, pixel_values, fill)
    cells = grid_cells(grid, classifier, (height, width))
    down, across = cells or (grid_size, grid_size)
    # Enlarging is linear and separable: a mask is rows @ grid @ columns, and a shift chooses rows of these matrices
    axes = [_enlarging_matrix(grid_size, side, pixel_values.device) for side in (height, width)]
    shape = cells or (height, width)
    total = torch.zeros(len(pixel_values), shape[0] * shape[1], device=pixel_values.device)
    with torch.no_grad():
        for span in batches(classifier, pixel_values, num_masks, batch_size, each=len(pixel_values)):
            numbers = torch.arange(span.start, span.stop, device=pixel_values.device)
            uniform = random_uniform(image_keys(numbers, numbers, seed), down * across + 2)
            opened = (uniform[:, 2:] < probability).float().unflatten(1, (down, across))
            if cells is None:
                rows, columns = (
                    matrix[(uniform[:, axis] * cell).long()[:, None] + torch.arange(side, device=matrix.device)]
                    for axis, ((matrix, cell), side) in enumerate(zip(axes, (height, width)))
                )
                masks = opened = rows @ opened @ columns.mT
            else:
                masks = spread_cells(opened, (height, width))
            scores = score_masked(classifier, pixel_values, masks[None], filled, classes, batch_size, True)
            total.addmm_(scores, opened.flatten(1))
    maps = (total / (num_masks * probability)).view(-1, *shape)
    return saliency_output(maps, logits, classes)


@torch.inference_mode(False)
def scorecam(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    mask_space: str = "pixel",
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Score-CAM: channels weighted by the softmax, over channels, of the target logit on the image seen through each of
    them (enlarged to the image first, then scaled to [0, 1]); then ReLU. One forward pass per channel.

    Formula, with `x` the image, `A_k` channel `k` of the feature map, `S` the target logit:

        M_k = min_max(upsample(A_k))
        w   = softmax over k of S(x ⊙ M_k)
        L   = ReLU(Σ_k w_k upsample(A_k))

    Source: Wang et al., CVPR-W 2020 (https://huggingface.co/papers/1910.01279), algorithm 1. The logit of the baseline
    image, which the paper subtracts, cancels in the softmax.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Layer whose channels are used; the last whose positions reach the logits
            (for ViT and DeiT the one before the last block) when not given.
        mask_space (`str`, *optional*, defaults to `"pixel"`): `"pixel"`: what a channel hides is black;
            `"normalized"`: it is the mean colour.
        batch_size (`int`, *optional*, defaults to 64): Masked images per forward pass, at most.

    Returns:
        [`SaliencyOutput`]: `saliency` at the image's resolution: enlarged first, scaled after.

    Raises:
        ValueError: If an option is out of range, or the layer or the target does not exist.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.sampling import scorecam

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> scorecam(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 32, 32])
    ```
    """
    check_count(batch_size, "batch_size")
    fill = mask_space_fill(mask_space)
    pixel_values = prepare_pixels(pixel_values)
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    size = pixel_values.shape[-2:]
    activation = features.feature_map.float()
    images, channels = activation.shape[:2]
    filled = mask_fill(classifier, pixel_values, fill)
    scores = torch.empty(images, channels, device=activation.device)
    with torch.no_grad():
        for group in chunks(images, batch_size):
            count = len(activation[group])
            for span in batches(classifier, pixel_values, channels, batch_size, each=count):
                kept = min_max(resize_maps(activation[group, span], size))
                scores[group, span] = score_masked(
                    classifier, pixel_values[group], kept, filled, classes[group], batch_size, probability=False
                )
    maps = torch.einsum("bc,bchw->bhw", scores.softmax(1), activation)
    return saliency_output(positive_part(resize_maps(maps, size)), logits, classes)


@torch.inference_mode(False)
def occlusion(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    window_size: int | None = None,
    stride: int | None = None,
    fill: str | Sequence[float] = "mean",
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Occlusion: the drop of the target's softmax when a square window is covered, averaged over the windows that cover
    each pixel; then ReLU.

    Formula, with `x` the image, `p` the target's softmax, the mean over the windows `w` that cover pixel `i`:

        L_i = ReLU(mean_w (p(x) − p(x without w)))

    Source: Zeiler and Fergus, ECCV 2014 (https://huggingface.co/papers/1311.2901).

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Not used; occlusion looks at inputs and outputs alone.
        window_size (`int`, *optional*): Side of the window in pixels; a seventh of the image's shorter side.
        stride (`int`, *optional*): Pixels from one window to the next, at most `window_size`; half the window. The
            last row and column of windows are cut off at the image's edge.
        fill (`str` or sequence of `float`, *optional*, defaults to `"mean"`): What a window is covered with:
            `"mean"`, `"black"`, `"blur"` or a colour, see [`~hf_explain.tensors.perturbation.fill_values`].
        batch_size (`int`, *optional*, defaults to 64): Masked images per forward pass, at most.

    Returns:
        [`SaliencyOutput`]: `saliency` at the image's resolution.

    Raises:
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.sampling import occlusion

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> occlusion(classifier, pixel_values, target=1, window_size=8).saliency.shape
    torch.Size([2, 32, 32])
    ```
    """
    check_count(batch_size, "batch_size")
    height, width = prepare_pixels(pixel_values).shape[-2:]
    window_size = max(1, min(height, width) // 7) if window_size is None else check_count(window_size, "window_size")
    stride = max(1, window_size // 2) if stride is None else check_count(stride, "stride")
    if window_size > min(height, width):
        raise ValueError(f"`window_size` {window_size} is larger than the image, {height} by {width} pixels.")
    if stride > window_size:
        raise ValueError(f"`stride` {stride} is larger than `window_size` {window_size} and misses pixels.")
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    filled = mask_fill(classifier, pixel_values, fill)
    rows, columns = (_windows(side, window_size, stride, pixel_values.device) for side in (height, width))
    base = target_logits(compared_probabilities(classifier, logits), classes)
    drop = torch.empty(len(pixel_values), len(rows) * len(columns), device=pixel_values.device)
    with torch.no_grad():
        for span in batches(classifier, pixel_values, drop.shape[1], batch_size, each=len(pixel_values)):
            numbers = torch.arange(span.start, span.stop, device=pixel_values.device)
            kept = 1 - rows[numbers // len(columns), :, None] * columns[numbers % len(columns), None, :]
            scores = score_masked(classifier, pixel_values, kept[None], filled, classes, batch_size, True)
            drop[:, span] = base[:, None] - scores
    maps = rows.mT @ drop.unflatten(1, (len(rows), len(columns))) @ columns
    maps = maps / (rows.sum(0)[:, None] * columns.sum(0))
    return signed_output(maps, logits, classes)


@torch.inference_mode(False)
def lime(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    num_samples: int = 1000,
    grid_size: int = 7,
    grid: Grid = "pixel",
    mask_space: str = "pixel",
    seed: int = 0,
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    LIME: a linear model of the target's softmax on images with some squares hidden, through captum; then ReLU.

    The cells of a regular grid are the interpretable features. The fit is a ridge regression of strength 1, as in
    the authors' released code for images (captum's own default, a lasso, sets whole maps to 0), with captum's
    exponential kernel of the cosine distance. It fits one model per image and is slow by nature.

    Formula, with `z` in {0, 1} per square, `x_z` the image with the squares of `z` seen, `p` the target's softmax:

        β = argmin Σ_z π(z) (p(x_z) − β₀ − βᵀz)² + ‖β‖²,  π(z) = exp(−(1 − cos(x, x_z))² / 2)
        L = ReLU(β)

    Source: Ribeiro et al., KDD 2016 (https://huggingface.co/papers/1602.04938).

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Not used; LIME looks at inputs and outputs alone.
        num_samples (`int`, *optional*, defaults to 1000): Masked images per image.
        grid_size (`int`, *optional*, defaults to 7): Squares per side of the image.
        grid (`str` or `tuple[int, int]`, *optional*, defaults to `"pixel"`): `"pixel"`: squares of `grid_size`,
            wherever their borders fall. `"patch"`: the patches that a vision transformer reads. `(height, width)`: so
            many cells.
        mask_space (`str`, *optional*, defaults to `"pixel"`): `"pixel"`: hidden squares are black; `"normalized"`:
            they are the mean colour.
        seed (`int`, *optional*, defaults to 0): Changes the samples; torch's own random state is left alone.
        batch_size (`int`, *optional*, defaults to 64): Masked images per forward pass.

    Returns:
        [`SaliencyOutput`]: `saliency` with one value per square, `(batch_size, grid_size, grid_size)`, or per cell
        of a `grid`.

    Raises:
        ImportError: If captum or scikit-learn is missing.
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.sampling import lime

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> lime(classifier, pixel_values, target=1, num_samples=20, grid_size=4).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    return _captum(
        "Lime", classifier, pixel_values, target, layer, num_samples, grid_size, grid, mask_space, seed, batch_size
    )


@torch.inference_mode(False)
def kernel_shap(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    num_samples: int = 1000,
    grid_size: int = 7,
    grid: Grid = "pixel",
    mask_space: str = "pixel",
    seed: int = 0,
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Kernel SHAP: Shapley values of the squares of a regular grid for the target's softmax, estimated by a weighted
    linear regression, through captum; then ReLU. It fits one model per image and is slow by nature.

    Formula, with `z` in {0, 1} per square of `d`, `x_z` the image with those of `z` seen, `p` the target's softmax:

        φ = argmin Σ_z π(z) (p(x_z) − φ₀ − φᵀz)²,  π(z) = (d − 1) / (binomial(d, |z|) |z| (d − |z|))
        L = ReLU(φ)

    Source: Lundberg and Lee, NeurIPS 2017 (https://huggingface.co/papers/1705.07874).

    Args, Returns, Raises:
        As for [`lime`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.sampling import kernel_shap

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> kernel_shap(classifier, pixel_values, target=1, num_samples=20, grid_size=4).saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    return _captum(
        "KernelShap",
        classifier,
        pixel_values,
        target,
        layer,
        num_samples,
        grid_size,
        grid,
        mask_space,
        seed,
        batch_size,
    )


def _captum(
    name: str,
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target,
    layer: str | int | None,
    num_samples: int,
    grid_size: int,
    grid: Grid,
    mask_space: str,
    seed: int,
    batch_size: int,
) -> SaliencyOutput:
    """LIME or Kernel SHAP, by the name of captum's class, over the squares of a grid."""
    missing = [module for module in ("captum", "sklearn") if importlib.util.find_spec(module) is None]
    if missing:
        method = "lime" if name == "Lime" else "kernel_shap"
        raise ImportError(
            f"{method} needs captum and scikit-learn, and {' and '.join(missing)} cannot be imported: "
            'pip install "hf-explain[baselines]".'
        )
    import captum.attr
    from captum._utils.models.linear_model import SkLearnRidge  # where captum's own tutorials take it from

    check_count(num_samples, "num_samples", minimum=2)
    check_count(grid_size, "grid_size", minimum=2)
    check_count(batch_size, "batch_size")
    fill = mask_space_fill(mask_space)
    if grid_size > min(prepare_pixels(pixel_values).shape[-2:]):
        raise ValueError(
            f"`grid_size` {grid_size} asks for more squares per side than the image has pixels, "
            f"{tuple(pixel_values.shape[-2:])}."
        )
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    size = pixel_values.shape[-2:]
    cells = grid_cells(grid, classifier, size) or (grid_size, grid_size)
    if cells == (1, 1):
        raise ValueError(f"`grid` {grid} makes the whole image one cell; {name} needs at least two.")
    rows, columns = (
        torch.arange(side, device=pixel_values.device) * count // side for side, count in zip(size, cells)
    )
    squares = (rows[:, None] * cells[1] + columns)[None, None]
    baselines = mask_fill(classifier, pixel_values, fill).expand_as(pixel_values)

    def probabilities(pixels: torch.Tensor) -> torch.Tensor:
        return compared_probabilities(classifier, classifier(pixels))

    if name == "Lime":
        explainer = captum.attr.Lime(probabilities, interpretable_model=SkLearnRidge(alpha=1.0))
    else:
        explainer = captum.attr.KernelShap(probabilities)
    coefficients = []
    # captum fits one model per image and draws from torch's global state, which is seeded for each and then restored
    with _RANDOM_STATE, torch.no_grad(), torch.random.fork_rng():
        for index in range(len(pixel_values)):
            torch.manual_seed(check_seed(seed))
            coefficients.append(
                explainer.attribute(
                    pixel_values[index : index + 1],
                    baselines=baselines[index : index + 1],
                    target=classes[index : index + 1],
                    feature_mask=squares,
                    n_samples=num_samples,
                    perturbations_per_eval=batch_size,
                    return_input_shape=False,
                )
            )
    maps = torch.cat(coefficients).view(-1, *cells).to(pixel_values.device)
    return signed_output(maps, logits, classes)


def _enlarging_matrix(grid_size: int, side: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The matrix that enlarges `grid_size` cells to one cell more than `side` pixels, and a cell's pixels."""
    cell = -(-side // grid_size)
    cells = torch.eye(grid_size, device=device)[None]
    return resize_maps(cells, ((grid_size + 1) * cell, grid_size))[0], cell


def _windows(side: int, window_size: int, stride: int, device: torch.device) -> torch.Tensor:
    """1.0 where a window covers a pixel, shape `(num_windows, side)`; the windows reach the last pixel."""
    starts = torch.arange(0, side - window_size + stride, stride, device=device)
    pixels = torch.arange(side, device=device)
    return ((pixels >= starts[:, None]) & (pixels < starts[:, None] + window_size)).float()
