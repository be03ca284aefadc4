"""Controls: maps that have not looked at the classifier, or at anything; and the best order that a search finds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import (
    FORWARD_BATCH_SIZE,
    logits_and_target,
    prepare_pixels,
    saliency_output,
    score_masked,
)
from hf_explain.metrics.engine import Filler
from hf_explain.tensors.batch_size import batches
from hf_explain.tensors.grids import Grid, grid_cells, spread_cells
from hf_explain.tensors.maps import check_finite
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.randomness import image_keys, random_uniform
from hf_explain.tensors.scalars import check_count, check_number


CENTRE_SIGMA = 0.25  # in sides of the image


@torch.inference_mode(False)
def random(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
) -> SaliencyOutput:
    """
    Random control: independent uniform values, a different map for every image and seed; AUC-D is about 0.

    Formula, at every pixel or position `i`:

        L_i ~ U(0, 1)

    Args:
        classifier ([`FrozenClassifier`]): Asked for its logits only.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): Draw at this layer's resolution instead of the image's.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the maps; overrides `layer`.
        seed (`int`, *optional*, defaults to 0): Changes every map.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): What tells images apart instead of their
            content, see [`~hf_explain.tensors.randomness.image_keys`].

    Returns:
        [`SaliencyOutput`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.controls import random

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> random(classifier, pixel_values).saliency.shape
    torch.Size([2, 32, 32])
    >>> random(classifier, pixel_values, layer="stage2").saliency.shape
    torch.Size([2, 4, 4])
    ```
    """
    pixel_values, size, logits, classes = _prepare(classifier, pixel_values, target, layer, size)
    return saliency_output(random_maps(pixel_values, size, seed, image_ids), logits, classes)


@torch.inference_mode(False)
def centre(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    size: tuple[int, int] | None = None,
    sigma: float = CENTRE_SIGMA,
) -> SaliencyOutput:
    """
    Centre control: the same Gaussian in every image, because photographs are centred on their subject.

    Formula, at row `i` of `h` and column `j` of `w`:

        L_ij = exp(−(((i − (h−1)/2) / h)² + ((j − (w−1)/2) / w)²) / (2 σ²))

    Args:
        classifier ([`FrozenClassifier`]): Asked for its logits only.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): Draw at this layer's resolution instead of the image's.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the maps; overrides `layer`.
        sigma (`float`, *optional*, defaults to 0.25): Standard deviation, in sides of the image.

    Returns:
        [`SaliencyOutput`].

    Raises:
        ValueError: If `sigma` is not positive.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.controls import centre

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> centre(classifier, pixel_values, size=(3, 3)).saliency[0]
    tensor([[0.0000, 0.2913, 0.0000],
            [0.2913, 1.0000, 0.2913],
            [0.0000, 0.2913, 0.0000]])
    ```
    """
    pixel_values, size, logits, classes = _prepare(classifier, pixel_values, target, layer, size)
    return saliency_output(centre_maps(pixel_values, size, sigma), logits, classes)


@torch.inference_mode(False)
def oracle(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    grid: Grid = (8, 8),
    fill: str | Sequence[float] = "black",
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    batch_size: int = FORWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Oracle control: the best order of cells that a greedy search for AUC-D finds; the ceiling. It is no explanation: it
    searches with the classifier and the fill that are measured with, and shows how much there is to be reached. The
    order turned round is the floor.

    Cells come one by one, the most salient first. The next one is that for which the target's softmax with all cells
    but those so far and this one removed, minus that with them alone removed, is largest; AUC-D by the softmax is the
    sum of these differences over the steps, so that each step takes what adds most to it. With `n` cells it costs `n
    (n + 1) − 2` passes per image, all candidates of a step together: 4,158 for 8 × 8, 270 for 4 × 4.

    Formula, with `p(S)` the target's softmax on the image of which the cells `S` are left, and `N` all of them:

        S_0 = ∅,  S_k+1 = S_k ∪ {argmax over c not in S_k of p(S_k ∪ {c}) − p(N \ (S_k ∪ {c}))}
        L_c = 1 − k / n at every pixel of the cell c that S_k+1 adds to S_k

    Args:
        classifier ([`FrozenClassifier`]): The classifier the order is searched for.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Not used; the search looks at inputs and outputs alone.
        grid (`str` or `tuple[int, int]`, *optional*, defaults to `(8, 8)`): `(height, width)` in cells, or `"patch"`:
            the patches that a vision transformer reads.
        fill (`str` or colour, *optional*, defaults to `"black"`): What removed cells become, as in
            [`~hf_explain.metrics.functional.perturbation_curves`], but for `"photo"`.
        seed (`int`, *optional*, defaults to 0): Of a fill that is drawn.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): For such a fill, see
            [`~hf_explain.tensors.randomness.image_keys`].
        batch_size (`int`, *optional*, defaults to 64): Images per forward pass, at most.

    Returns:
        [`SaliencyOutput`]: `saliency` at the image's resolution; `saliency_logits` falls from 1 to 1/n in equal steps.

    Raises:
        ValueError: If the cells of `grid` do not divide the image, there is only one of them, or an option is out of
            range.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.controls import oracle

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(1, 3, 32, 32)
    >>> oracle(classifier, pixel_values, grid=(2, 2), fill="mean").saliency_logits.unique()
    tensor([0.2500, 0.5000, 0.7500, 1.0000])
    ```
    """
    check_count(batch_size, "batch_size")
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    cells = grid_cells(grid, classifier, pixel_values.shape[-2:])
    if cells is None or cells == (1, 1):
        raise ValueError(
            f"`grid` of the oracle must be 'patch' or (height, width) in cells, not one cell, got {grid!r}."
        )
    if fill == "photo":
        raise ValueError("`fill` 'photo' is none of the oracle's, which has no other photographs; take another fill.")
    filler = Filler(classifier.image_mean, classifier.image_std, seed, image_ids)
    filled = filler.fill(pixel_values, fill, classes)
    images, size = len(pixel_values), pixel_values.shape[-2:]
    number = cells[0] * cells[1]
    chosen = torch.zeros(images, number, dtype=torch.bool, device=pixel_values.device)
    values = torch.full_like(chosen, 1 / number, dtype=torch.float32)  # of the cell that is left at the end
    for step in range(number - 1):
        left = chosen.byte().argsort(dim=1, stable=True)[:, : number - step]  # not `nonzero`, which waits for a GPU
        joined = chosen[:, None] | F.one_hot(left, number).bool()
        masks = torch.cat([joined, ~joined], dim=1)
        scores = torch.empty(masks.shape[:2], device=pixel_values.device)
        with torch.no_grad():
            for span in batches(classifier, pixel_values, masks.shape[1], batch_size, each=images):
                kept = spread_cells(masks[:, span].unflatten(2, cells), size).float()
                scores[:, span] = score_masked(classifier, pixel_values, kept, filled, classes, batch_size, True)
        alone, without = scores.chunk(2, dim=1)
        best = left.gather(1, (alone - without).argmax(1, keepdim=True))
        values.scatter_(1, best, 1 - step / number)
        chosen.scatter_(1, best, True)
    return saliency_output(spread_cells(values.unflatten(1, cells), size), logits, classes)


def _prepare(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target,
    layer: str | int | None,
    size: tuple[int, int] | None,
) -> tuple[torch.Tensor, tuple[int, int] | None, torch.Tensor, torch.Tensor]:
    """Checked pixels, the size of the maps, logits and classes."""
    pixel_values = prepare_pixels(pixel_values)
    with torch.no_grad():
        if layer is None:
            logits = classifier(pixel_values)
        else:
            features = classifier.features(pixel_values, [layer])
            height, width = features[layer].feature_map.shape[-2:]
            logits, size = features.logits, size or (height, width)
        check_finite(logits, "logits that are")
        classes = classifier.resolve_target(target, len(pixel_values), logits)
    return pixel_values, size, logits, classes


def random_maps(
    pixel_values: torch.Tensor,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
) -> torch.Tensor:
    """
    Random control: maps of independent uniform values, a different one for every image and seed.

    Formula, at every place `i`:

        L_i ~ U(0, 1)

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The images.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the maps; the image's own by default.
        seed (`int`, *optional*, defaults to 0): Seed.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): See [`image_keys`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, *size)`, in [0, 1).

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.methods.controls import random_maps

    >>> random_maps(torch.zeros(2, 3, 32, 32), size=(4, 4)).shape
    torch.Size([2, 4, 4])
    ```
    """
    height, width = size or pixel_values.shape[-2:]
    return random_uniform(image_keys(pixel_values, image_ids, seed), height * width).unflatten(1, (height, width))


def centre_maps(
    pixel_values: torch.Tensor, size: tuple[int, int] | None = None, sigma: float = CENTRE_SIGMA
) -> torch.Tensor:
    """
    Centre control: the same Gaussian bump in the middle of every image.

    Photographs are centred on their subject, so a method has to beat this map before it has looked at anything.

    Formula, at row `i` of `h` and column `j` of `w`:

        L_ij = exp(−(((i − (h−1)/2) / h)² + ((j − (w−1)/2) / w)²) / (2 σ²))

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The images.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the maps; the image's own by default.
        sigma (`float`, *optional*, defaults to 0.25): Standard deviation, in sides of the image.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, *size)`, in [0, 1].

    Raises:
        ValueError: If `sigma` is not positive.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.methods.controls import centre_maps

    >>> centre_maps(torch.zeros(1, 3, 32, 32), size=(3, 3))
    tensor([[[0.1690, 0.4111, 0.1690],
             [0.4111, 1.0000, 0.4111],
             [0.1690, 0.4111, 0.1690]]])
    ```
    """
    check_number(sigma, "sigma", "(0, inf)")
    height, width = size or pixel_values.shape[-2:]
    rows, columns = (
        torch.exp(-(((torch.arange(side, device=pixel_values.device) - (side - 1) / 2) / side) ** 2) / (2 * sigma**2))
        for side in (height, width)
    )
    bump = rows[:, None] * columns
    return (bump / bump.max()).expand(len(pixel_values), height, width).clone()
