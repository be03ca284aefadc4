"""The region a map points at, how much of it two maps share, and how much of it lies at the border of the image."""

from __future__ import annotations

import torch

from hf_explain.tensors.checks import check_saliency
from hf_explain.tensors.scalars import check_number


# Parts of the border, as quarters of each side: corners are 1/16 of the image, edges 1/4
BORDER_PLACES = (
    "top left corner",
    "top right corner",
    "bottom left corner",
    "bottom right corner",
    "corners",
    "top edge",
    "bottom edge",
    "left edge",
    "right edge",
)


def top_region(saliency: torch.Tensor, percent: float = 10.0) -> torch.Tensor:
    """
    The region a map points at: its most salient pixels, never one where the map is 0.

    It reads the order of the pixels only, so that maps of different sharpness compare fairly. A map with fewer pixels
    above 0 than asked for has a smaller region, an empty map none; pixels as salient as the last one are in it, too.

    Formula, with `t` the saliency of the k-th most salient pixel, k = round(percent / 100 HW):

        region = {i: L_i ≥ t and L_i > 0}

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, height, width)`): Non-negative maps.
        percent (`float`, *optional*, defaults to 10): Share of the pixels, in percent.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, height, width)`.

    Raises:
        ValueError: If the maps are not finite and non-negative, or `percent` is not above 0 and below 100.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.regions import top_region

    >>> top_region(torch.tensor([[[0.1, 0.9], [0.0, 0.3]]]), percent=50)
    tensor([[[False,  True],
             [False,  True]]])
    ```
    """
    check_number(percent, "percent", "(0, 100)", "is a share of the pixels and")
    flat = check_saliency(saliency, len(saliency)).flatten(1)
    count = max(1, round(percent / 100 * flat.shape[1]))
    last = flat.topk(count, dim=1).values[:, -1:]
    return ((flat >= last) & (flat > 0)).view(saliency.shape)


def region_overlap(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    Share of the pixels that two regions have in common, `2 |A and B| / (|A| + |B|)`; for regions of one size, the part
    of either that lies in the other.

    Regions of p % of the pixels, drawn at random, share p % on average.

    Formula, the Dice coefficient of the two:

        overlap = 2 |A ∩ B| / (|A| + |B|)

    Args:
        first, second (`torch.BoolTensor` of shape `(batch_size, height, width)`): Regions, see [`top_region`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`, in [0, 1]; 0 where a region is empty.

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.regions import region_overlap

    >>> region_overlap(torch.tensor([[[True, True, False]]]), torch.tensor([[[False, True, True]]]))
    tensor([0.5000])
    ```
    """
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(
            "`first` and `second` must both have shape (batch_size, height, width), got "
            f"{tuple(first.shape)} and {tuple(second.shape)}."
        )
    common = (first & second).flatten(1).sum(1)
    total = first.flatten(1).sum(1) + second.flatten(1).sum(1)
    return 2 * common / total.clamp(min=1)


def border_shares(region: torch.Tensor) -> torch.Tensor:
    """
    How much of each region lies in each of the `BORDER_PLACES`.

    Formula, with `R` the region and `P` the pixels of a place:

        share(P) = |R ∩ P| / |R|

    Args:
        region (`torch.BoolTensor` of shape `(batch_size, height, width)`): Regions, see [`top_region`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, 9)`, in [0, 1]; 0 for an empty region.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.regions import BORDER_PLACES, border_shares

    >>> region = torch.zeros(1, 8, 8, dtype=torch.bool)
    >>> region[:, :2, :4] = True  # the top left corner and a quarter of the image beside it
    >>> dict(zip(BORDER_PLACES, border_shares(region)[0].tolist()))["top left corner"]
    0.5
    ```
    """
    height, width = region.shape[-2:]
    row = ((torch.arange(height, device=region.device) + 0.5) / height)[:, None].expand(height, width)
    column = ((torch.arange(width, device=region.device) + 0.5) / width).expand(height, width)
    top, bottom, left, right = row < 0.25, row > 0.75, column < 0.25, column > 0.75
    corners = [top & left, top & right, bottom & left, bottom & right]
    places = torch.stack([*corners, (top | bottom) & (left | right), top, bottom, left, right])
    # counts of pixels are whole numbers, exact in float32
    inside = region.flatten(1).float() @ places.flatten(1).float().T
    return inside / region.flatten(1).sum(1, keepdim=True).clamp(min=1)
