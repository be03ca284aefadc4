"""Other photographs of a data set, which images are filled with or composed of; chosen image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_explain.tensors.checks import check_pixel_values
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.randomness import random_bits


@dataclass
class Photographs:
    """
    Photographs from all over a data set, and what the classifier takes them for.

    Args:
        pixel_values (`torch.Tensor` of shape `(num_photographs, channels, height, width)`): Normalised, on any device.
        logits (`torch.Tensor` of shape `(num_photographs, num_labels)`): The classifier's.
        ids (`torch.LongTensor` of shape `(num_photographs,)`): Their rows in the data set.
        labels (`torch.LongTensor` of shape `(num_photographs,)`, *optional*): True classes.

    Raises:
        ValueError: If these do not belong together.
    """

    pixel_values: torch.Tensor
    logits: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_pixel_values(self.pixel_values)
        lengths = {len(one) for one in (self.pixel_values, self.logits, self.ids, self.labels) if one is not None}
        if len(lengths) > 1:
            raise ValueError(f"`photos` needs one entry per photograph everywhere, got {sorted(lengths)}.")

    def others(
        self,
        pixel_values: torch.Tensor,
        keys: torch.Tensor,
        image_ids: torch.Tensor | Sequence[int] | None,
        classes: torch.Tensor,
    ) -> torch.Tensor:
        """
        For every image another photograph, which the classifier does not take for the image's class: it would go on
        showing what is removed. The key alone draws it among those there are.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The images.
            keys (`torch.LongTensor` of shape `(batch_size,)`): From
                [`~hf_explain.tensors.randomness.image_keys`].
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): The images' rows in the data set, so
                that none is filled with itself.
            classes (`torch.LongTensor` of shape `(batch_size,)`): The images' classes.

        Returns:
            `torch.Tensor` of the shape of `pixel_values`.

        Raises:
            ValueError: If there is none for an image.
        """
        device = self.ids.device
        allowed = self.logits.argmax(-1)[None] != classes.to(device)[:, None]
        if image_ids is not None:
            allowed &= self.ids[None] != torch.as_tensor(image_ids, device=device)[:, None]
        if not bool(allowed.any(1).all()):
            image = int((~allowed.any(1)).nonzero()[0])
            raise ValueError(
                f"`photos` has {len(self.ids)} photographs, and none that the classifier takes for another class than "
                f"{int(classes[image])}, which image {image} is filled with; give more of other classes, or leave out "
                "the fill 'photo'."
            )
        bits = random_bits(keys.to(device), len(self.ids))
        drawn = torch.where(allowed, bits, -1).argmax(1)
        chosen = resize_maps(self.pixel_values[drawn.to(self.pixel_values.device)], pixel_values.shape[-2:])
        return chosen.to(pixel_values)
