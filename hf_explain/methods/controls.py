"""The two controls that stand beside every table: maps that have not looked at the classifier, or at anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_explain.backbones import FrozenClassifier
from hf_explain.maps import check_finite
from hf_explain.methods.common import prepare_pixels, saliency_output
from hf_explain.outputs import SaliencyOutput
from hf_explain.perturbation import centre_maps, random_maps


@torch.inference_mode(False)
def random(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target=None,
    *,
    layer: str | int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
) -> SaliencyOutput:
    """
    The random control: independent uniform values, a different map for every image and seed; AUC-D is about 0.

    Args:
        classifier ([`FrozenClassifier`]): Asked for its logits only.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): The class reported; the map ignores it.
        layer (`str` or `int`, *optional*): Draw at this layer's resolution instead of the image's.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the maps; overrides `layer`.
        seed (`int`, *optional*, defaults to 0): Changes every map.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): What tells images apart instead of their
            content, see [`~hf_explain.perturbation.image_keys`].

    Returns:
        [`SaliencyOutput`].
    """
    pixel_values, size, logits, classes = _prepare(classifier, pixel_values, target, layer, size)
    return saliency_output(random_maps(pixel_values, size, seed, image_ids), logits, classes)


@torch.inference_mode(False)
def centre(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target=None,
    *,
    layer: str | int | None = None,
    size: tuple[int, int] | None = None,
    sigma: float = 0.25,
) -> SaliencyOutput:
    """
    The centre control: the same Gaussian in every image, because photographs are centred on their subject.

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
    """
    pixel_values, size, logits, classes = _prepare(classifier, pixel_values, target, layer, size)
    return saliency_output(centre_maps(pixel_values, size, sigma), logits, classes)


def _prepare(classifier, pixel_values, target, layer, size):
    pixel_values = prepare_pixels(pixel_values)
    with torch.no_grad():
        if layer is None:
            logits = classifier(pixel_values)
        else:
            features = classifier.features(pixel_values, [layer])
            logits, size = features.logits, size or tuple(features[layer].feature_map.shape[-2:])
        check_finite(logits, "logits that are")
        classes = classifier.resolve_target(target, len(pixel_values), logits)
    return pixel_values, size, logits, classes
