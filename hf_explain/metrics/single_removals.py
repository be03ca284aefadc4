"""Does a map order the parts of an image as their removal does, one at a time: the single deletion score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_explain.metrics.engine import (
    MAX_BATCH,
    Filler,
    Predict,
    as_input,
    base_logits,
    batch_limit,
    check_logits,
    fill_name,
    read_score,
    reference_classes,
    target_name,
)
from hf_explain.metrics.photographs import Photographs
from hf_explain.metrics.presets import PRESETS
from hf_explain.tensors.checks import check_pixel_values
from hf_explain.tensors.perturbation import full_size_saliency, rank_correlation
from hf_explain.tensors.scalars import check_choice, check_count
from hf_explain.tensors.sharing import shared


# Where a classifier's configuration says that it was fine-tuned on images with single patches removed, and which
TRAINED_ON = "removals"
_DEFAULT = PRESETS["single_deletion"]["default"]


@dataclass
class SingleDeletion:
    """
    How well maps order the patches of their images, one number per image.

    Args:
        correlation (`torch.DoubleTensor` of shape `(batch_size,)`): Rank correlation of map and fall, in [-1, 1];
            higher is better.
        fall (`torch.FloatTensor` of shape `(batch_size, patches * patches)`): What the score loses with each patch.
        saliency (`torch.FloatTensor` of the same shape): Mean of the map over each patch.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class whose score is read.
        protocol (`dict`): How it was measured.
    """

    correlation: torch.Tensor
    fall: torch.Tensor
    saliency: torch.Tensor
    target: torch.Tensor
    protocol: dict[str, Any]


def single_deletion(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    target: torch.Tensor | Sequence[int] | int | None = None,
    patches: int = _DEFAULT["patches"],
    score: str = _DEFAULT["score"],
    fill: str | Sequence[float] = _DEFAULT["fill"],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    photos: Photographs | None = None,
    logits: torch.Tensor | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    max_batch: int = MAX_BATCH,
    max_bytes: int | None = None,
) -> SingleDeletion:
    r"""
    Cut the image into patches, remove one at a time, and compare the fall of the class's score with the map.

    Only a small part of the image is ever missing, so that it stays nearer to what the classifier knows than one of
    which half is gone; how near, `protocol["in_domain"]` says: whether the classifier was fine-tuned on such images.

    Formula, with `f` the target's score, `x` the image, `x \ k` without its patch `k`, and `L_k` the map's mean there:

        single deletion = Spearman_k(L_k, f(x) − f(x \ k))

    Source: IDSDS (https://huggingface.co/papers/2407.11910), section 3, and its released code.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps, any resolution.
        target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): The top-1 by default.
        patches (`int`, *optional*, defaults to 4): Patches along each side; they must be equal.
        score (`str`, *optional*, defaults to `"logit"`): What falls: the target's `"logit"`, as published, or its
            `"probability"`.
        fill (`str` or colour, *optional*, defaults to `"mean"`): What a removed patch becomes: as in
            [`~hf_explain.metrics.functional.perturbation_curves`].
        image_mean, image_std, photos (*optional*): What the fill needs, likewise.
        logits, seed, image_ids, max_batch, max_bytes: As there.

    Returns:
        [`SingleDeletion`].

    Raises:
        ValueError: If maps are not one finite, non-negative map per image, `patches` is below 2 or does not divide the
            image, or an option is unknown.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import single_deletion

    >>> def predict(pixel_values):  # class 0 is as bright as the picture
    ...     total = pixel_values.sum((1, 2, 3))
    ...     return torch.stack([total, torch.zeros_like(total)], dim=1)

    >>> images = torch.tensor([[[[4.0, 1.0], [3.0, 2.0]]]])
    >>> result = single_deletion(predict, images, torch.tensor([[[0.9, 0.1], [0.4, 0.5]]]), patches=2)
    >>> result.fall, round(result.correlation.item(), 3)
    (tensor([[4., 1., 3., 2.]]), 0.8)
    ```
    """
    pixel_values = check_pixel_values(pixel_values)
    check_count(patches, "patches", minimum=2)
    check_choice(score, "score", ("logit", "probability"))
    size, (height, width) = len(pixel_values), pixel_values.shape[-2:]
    if height % patches or width % patches:
        raise ValueError(
            f"`patches` must divide the {height} × {width} pixels of the images into equal patches, got {patches}."
        )
    limit = batch_limit(pixel_values, max_batch, max_bytes)
    of_patches = full_size_saliency(saliency, pixel_values, cells=(patches, patches)).flatten(1)
    logits = base_logits(predict, pixel_values, logits, limit, "probability")
    classes = reference_classes("probability", logits, target, None)
    filled = Filler(image_mean, image_std, seed, image_ids, photos).fill(pixel_values, fill, classes)
    # the images without a patch do not depend on the map: a classifier that can, runs them once for all explainers
    run: Any = getattr(predict, "run_once", predict)
    found = []
    for images in _without_patches(predict, pixel_values, filled, patches, limit):
        with torch.no_grad():
            output = run(images)
        found.append(check_logits(getattr(output, "logits", output), len(images), "`predict`"))

    def read(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return logits.gather(1, classes[:, None])[:, 0] if score == "logit" else read_score(logits, classes, score)

    left = read(torch.cat(found), classes.repeat_interleave(patches * patches)).view(size, -1)
    fall = read(logits, classes)[:, None] - left
    trained_on = getattr(getattr(predict, "config", None), TRAINED_ON, None)
    in_domain = trained_on == {"patches": patches, "fill": fill_name(fill)}
    protocol = {
        "score": score,
        "target": target_name("probability", target),
        "patches": patches,
        "fill": fill_name(fill),
        "in_domain": in_domain,
        "chance": 0.0,
        "note": "chance is 0; "
        + ("in-domain: the classifier was fine-tuned on such removals" if in_domain else "not in-domain"),
        "image_size": [height, width],
        "seed": seed,
    }
    return SingleDeletion(rank_correlation(of_patches, fall), fall, of_patches, classes, protocol)


@shared
def _without_patches(
    predict: Predict, pixel_values: torch.Tensor, filled: torch.Tensor, patches: int, limit: int
) -> tuple[torch.Tensor, ...]:
    """Every image without each of its patches, as many at a time as go into one pass."""
    images = as_input(predict, pixel_values)
    filled = as_input(predict, filled.expand(images.shape))
    down, across = (side // patches for side in images.shape[-2:])
    copies = images.repeat_interleave(patches * patches, dim=0)
    for place in range(patches * patches):
        row, column = divmod(place, patches)
        patch = (..., slice(row * down, (row + 1) * down), slice(column * across, (column + 1) * across))
        copies[place :: patches * patches][patch] = filled[patch]
    return copies.split(limit)
