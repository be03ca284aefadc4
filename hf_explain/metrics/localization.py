"""How much of a map lies on the object: the pointing game and the share of energy inside masks or boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_explain.metrics.presets import PRESETS
from hf_explain.tensors.checks import check_saliency
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.scalars import check_count


@dataclass
class Pointing:
    """
    Where maps point, one number per image.

    Args:
        hit (`torch.FloatTensor` of shape `(batch_size,)`): 1.0 where the maximum lies on the object, 0.0 where not;
            the share on it where several pixels are the maximum.
        energy (`torch.FloatTensor` of shape `(batch_size,)`): Share of the map's sum on the object, in [0, 1]; 0 for a
            map that is 0 everywhere.
        area (`torch.FloatTensor` of shape `(batch_size,)`): Share of the image the object covers: what the energy of a
            constant map would be.
        protocol (`dict`): How it was measured.
    """

    hit: torch.Tensor
    energy: torch.Tensor
    area: torch.Tensor
    protocol: dict[str, Any]


def pointing(
    saliency: torch.Tensor,
    masks: torch.Tensor | None = None,
    boxes: Sequence[torch.Tensor] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    margin: int = PRESETS["pointing"]["default"]["margin"],
) -> Pointing:
    """
    Pointing game and energy inside the object.

    Formula, with `L` the map and `O` the pixels of the object:

        hit    = [argmax L in O]
        energy = Σ_{i in O} L_i / Σ_i L_i

    Source: pointing game, Excitation Backprop (https://huggingface.co/papers/1608.00507); energy, Score-CAM
    (https://huggingface.co/papers/1910.01279), section 4.3.

    Args:
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps, any resolution;
            resized bilinearly to the masks.
        masks (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): Non-zero on the object.
        boxes (sequence of `batch_size` tensors of shape `(num_boxes, 4)`, *optional*): Instead of `masks`; see
            [`boxes_to_masks`].
        image_size (`tuple[int, int]`, *optional*): `(height, width)` boxes are given in.
        margin (`int`, *optional*, defaults to 0): A maximum this many pixels (along rows, columns or both) beside the
            object is a hit as well; the pointing game of its authors allows 15.

    Returns:
        [`Pointing`].

    Raises:
        ValueError: If masks (or boxes) are missing, do not fit the maps or mark nothing in an image, if maps are not
            finite and non-negative, or if `margin` is not a whole number of at least 0.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import pointing

    >>> saliency = torch.tensor([[[0.1, 0.2], [0.1, 0.6]]])
    >>> result = pointing(saliency, masks=torch.tensor([[[0, 1], [0, 1]]]))
    >>> result.hit.item(), round(result.energy.item(), 3), result.area.item()
    (1.0, 0.8, 0.5)
    ```
    """
    if (masks is None) == (boxes is None):
        raise ValueError("`pointing` needs either `masks` or `boxes` of the objects, and not both.")
    check_count(margin, "margin", minimum=0)
    if boxes is not None:
        if image_size is None:
            raise ValueError("`image_size` (height, width) is needed with `boxes`.")
        masks = boxes_to_masks(boxes, image_size)
    if not isinstance(masks, torch.Tensor) or masks.ndim != 3:
        got = tuple(masks.shape) if isinstance(masks, torch.Tensor) else type(masks).__name__
        raise ValueError(f"`masks` must have shape (batch_size, height, width), got {got}.")
    saliency = check_saliency(saliency, len(masks))
    on_object = (masks != 0).to(saliency.device)
    empty = ~on_object.flatten(1).any(1)
    if bool(empty.any()):
        raise ValueError(f"The object of image {int(empty.nonzero()[0])} is empty: there is nothing to point at.")

    full_size = resize_maps(saliency.double(), masks.shape[-2:])
    total = full_size.sum((1, 2))
    energy = (full_size * on_object).sum((1, 2)) / torch.where(total > 0, total, 1.0)
    # Interpolation makes equal values differ in float64's last digits; in float32 they are equal again
    full_size = full_size.float()
    highest = full_size == full_size.amax((1, 2), keepdim=True)
    near = on_object
    if margin:
        near = F.max_pool2d(on_object[:, None].float(), 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0
    hit = (highest & near).sum((1, 2)) / highest.sum((1, 2))
    protocol = {
        "region": "masks" if boxes is None else "boxes",
        "margin": margin,
        "image_size": list(masks.shape[-2:]),
    }
    return Pointing(hit, energy.float(), on_object.float().mean((1, 2)), protocol)


def boxes_to_masks(boxes: Sequence[torch.Tensor], image_size: tuple[int, int]) -> torch.Tensor:
    """
    Masks that are True inside any box of their image.

    Formula, the pixel of row `i` and column `j` is in a box where:

        left ≤ j + 1/2 < right and top ≤ i + 1/2 < bottom

    Args:
        boxes (sequence of tensors of shape `(num_boxes, 4)`): `(left, top, right, bottom)` in pixels, right and bottom
            outside the box; a pixel is in if its centre is.
        image_size (`tuple[int, int]`): `(height, width)`.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, height, width)`.

    Raises:
        ValueError: If an image has no box, or a box is not four numbers with right > left and bottom > top.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import boxes_to_masks

    >>> boxes_to_masks([torch.tensor([[1, 0, 3, 1]])], image_size=(2, 4)).int()
    tensor([[[0, 1, 1, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    ```
    """
    height, width = image_size
    counts = []
    for index, of_image in enumerate(boxes):
        of_image = torch.as_tensor(of_image)
        if of_image.ndim != 2 or of_image.shape[1] != 4 or len(of_image) == 0:
            raise ValueError(
                f"`boxes` of image {index} must have shape (num_boxes, 4) with at least one box, got "
                f"{tuple(of_image.shape)}."
            )
        counts.append(len(of_image))
    if not counts:
        raise ValueError("`boxes` must hold the boxes of at least one image.")
    every = torch.cat([torch.as_tensor(of_image).double() for of_image in boxes])
    wrong = ~((every[:, 2] > every[:, 0]) & (every[:, 3] > every[:, 1]))
    if bool(wrong.any()):
        raise ValueError(
            "`boxes` must be (left, top, right, bottom) with right > left and bottom > top, got "
            f"{tuple(every[wrong][0].tolist())}."
        )
    rows = torch.arange(height, device=every.device) + 0.5
    columns = torch.arange(width, device=every.device) + 0.5
    in_rows = (rows >= every[:, 1:2]) & (rows < every[:, 3:4])
    in_columns = (columns >= every[:, 0:1]) & (columns < every[:, 2:3])
    owner = torch.repeat_interleave(torch.tensor(counts, device=every.device))
    covered = every.new_zeros(len(counts), height, width, dtype=torch.float32)
    return covered.index_add_(0, owner, (in_rows[:, :, None] & in_columns[:, None, :]).float()) > 0
