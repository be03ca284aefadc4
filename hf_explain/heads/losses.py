"""The terms heads are trained with, as pure functions of maps and logits; their constants are the configurations'."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_explain.tensors.maps import standardize


def area_loss(maps: torch.Tensor, power: float, epsilon: float) -> torch.Tensor:
    """
    Mean of `(maps + epsilon) ** power`: small maps are cheap, and near zero every bit of area counts most.

    Source: L-CAM (Gkartzonika et al., ECCV-W 2022).

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`): Attention in [0, 1], after the sigmoid.
        power (`float`): Exponent, in (0, 1].
        epsilon (`float`): Keeps the gradient finite at 0.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    return (maps + epsilon).pow(power).mean()


def variation_loss(maps: torch.Tensor, batch_size: int, border_weight: float) -> torch.Tensor:
    """
    Squared differences between neighbouring rows and columns, plus the weighted squares on the four borders.

    The sum runs over every map given and is divided by `2 * batch_size`, as released: with the "batch" regulariser
    there are `batch_size ** 2` maps and the term grows with the batch. Each border is summed by itself, so the maps
    need not be square.

    Args:
        maps (`torch.FloatTensor` of shape `(..., height, width)`): Attention in [0, 1], at the head's resolution.
        batch_size (`int`): Number of images (not of maps).
        border_weight (`float`): Weight of the border term.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    rows = (maps[..., 1:, :] - maps[..., :-1, :]).square().sum()
    columns = (maps[..., :, 1:] - maps[..., :, :-1]).square().sum()
    border = (
        maps[..., 0, :].square().sum()
        + maps[..., -1, :].square().sum()
        + maps[..., :, 0].square().sum()
        + maps[..., :, -1].square().sum()
    )
    return (rows + columns + border_weight * border) / (2 * batch_size)


def removal_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    `mean(-log(1 - softmax(logits)[target]))`: what is left of the class after its evidence was removed.

    `1 - p` is taken as the softmax mass of all *other* classes, in log space, so it is exact where `p` rounds to 1.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The classifier on the complement images.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class each map explains.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    others = logits.scatter(1, target[:, None], float("-inf"))
    return (logits.logsumexp(dim=1) - others.logsumexp(dim=1)).mean()


def ranked_masks(maps: torch.Tensor, area: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Soft masks that keep the most salient part of each map, of a size given per map.

    Every map is brought to mean 0 and standard deviation 1, so that only the order and the contrast of its values
    count, and goes through a sigmoid at its own threshold, the value that `area` of its positions exceed. A head that
    is asked about such masks at random areas learns an order of the positions, with no prior on its map's area.

    Args:
        maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): Raw maps, unbounded.
        area (`torch.FloatTensor` of shape `(batch_size,)`): Part of the positions to keep, in [0, 1].
        temperature (`float`): Width of the sigmoid, in standard deviations of the map.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, height, width)`, in [0, 1].
    """
    values = standardize(maps).flatten(1)  # of a map without any contrast half of every pixel is kept
    ordered = values.sort(dim=1).values
    # between the values of two ranks the threshold is interpolated: the kept area grows smoothly
    place = ((1 - area.to(values)) * (values.shape[1] - 1))[:, None]
    below = place.floor().long()
    above = place.ceil().long()
    threshold = torch.lerp(ordered.gather(1, below), ordered.gather(1, above), place - below)
    return ((values - threshold) / temperature).sigmoid().view_as(maps)


def correlation_loss(maps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """
    `mean(1 - r)`, r being Pearson's correlation of a map's values with those of a reference: how far the maps are from
    it in their order and relative distances, whatever their brightness and contrast.

    Source: the distance of DIST (Huang et al., NeurIPS 2022, https://huggingface.co/papers/2205.10536), there between
    predictions.

    Args:
        maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): Raw maps, unbounded.
        reference (`torch.FloatTensor` of the same shape): What they should be like.

    Returns:
        `torch.FloatTensor` of shape `()`, from 0 to 2. A map without any contrast counts as uncorrelated, 1.
    """
    return 1 - (standardize(maps) * standardize(reference)).mean()


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Mean cross-entropy of the explained class, in float32 whatever the logits' dtype.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The classifier on the kept images.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class each map explains.

    Returns:
        `torch.FloatTensor` of shape `()`.
    """
    return F.cross_entropy(logits.float(), target)


def coverage_penalty(confidence: torch.Tensor, alpha: float) -> torch.Tensor:
    """
    SCAN's ω: how far each map's mean is from `1 / (1 + alpha)`, in units of the variance a mean of that size can have.

    Source: SCAN (2026).

    Args:
        confidence (`torch.FloatTensor` of shape `(batch_size, height, width)`): In [0, 1].
        alpha (`float`): As in [`confident_reconstruction_loss`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`, at least 0.
    """
    mean = confidence.mean(dim=(-2, -1))
    # a map that is 0 or 1 everywhere is a huge penalty, not a division by zero
    return (mean - 1 / (1 + alpha)).square() / (mean * (1 - mean)).clamp(min=1e-6)


def confidence_loss(
    reconstruction: torch.Tensor, image: torch.Tensor, confidence: torch.Tensor, alpha: float, lam: float
) -> torch.Tensor:
    """
    SCAN's first loss, `(1 + ω) * (MSE + lam) - lam` of each image: reconstruct, with confidence of the right size.

    Source: SCAN (2026).

    Args:
        reconstruction (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): The decoder's image.
        image (`torch.FloatTensor` of the same shape): The image to reconstruct, in [-1, 1].
        confidence (`torch.FloatTensor` of shape `(batch_size, height, width)`): In [0, 1].
        alpha (`float`): Sets the mean confidence wanted, `1 / (1 + alpha)`.
        lam (`float`): Keeps ω's weight above 0 where the reconstruction is perfect.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    error = (reconstruction - image).square().mean(dim=(1, 2, 3))
    return (1 + coverage_penalty(confidence, alpha)) * (error + lam) - lam


def confident_reconstruction_loss(
    reconstruction: torch.Tensor, image: torch.Tensor, confidence: torch.Tensor, alpha: float
) -> torch.Tensor:
    """
    SCAN's second loss, `mean(alpha * C * e² + (1 - C) * e²)` of each image: confidence costs where the error is high.

    Source: SCAN (2026), the paper and the released PyTorch code.

    Args:
        reconstruction (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): The decoder's image.
        image (`torch.FloatTensor` of the same shape): The image to reconstruct, in [-1, 1].
        confidence (`torch.FloatTensor` of shape `(batch_size, height, width)`): C, in [0, 1].
        alpha (`float`): How much more an error costs where the decoder is confident.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`.
    """
    weight = 1 + (alpha - 1) * confidence
    return (weight[:, None] * (reconstruction - image).square()).mean(dim=(1, 2, 3))
