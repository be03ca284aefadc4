"""The two controls that stand beside every table: maps that have not looked at the classifier, or at anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import prepare_pixels, saliency_output
from hf_explain.tensors.maps import check_finite
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.randomness import image_keys, random_uniform
from hf_explain.tensors.scalars import check_number


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
