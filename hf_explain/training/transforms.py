"""Decoded images to `pixel_values` for training, cropped and flipped at random.

Everything random here is a pure function of `(seed, epoch, sample)`, never of a global generator or of the worker
that happens to do the work. That is what lets a run that was killed continue with exactly the batches it would have
seen, in map-style and in streaming data sets alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from hf_explain.io.image_processor import normalisation, to_pixel_values
from hf_explain.io.images import ReducedImage, load_reduced_rgb, load_rgb
from hf_explain.tensors.scalars import check_choice
from hf_explain.training.arguments import AUGMENTATIONS


class TrainingTransform:
    r"""
    Images to `pixel_values`, with the augmentation of the L-CAM and T-TAME papers.

    Source: L-CAM (ECCV Workshops 2022), experiments: shorter side 256, random crop 224.

    Args:
        image_processor: The classifier's image processor: it decides size, resampling, rescaling and normalisation.
        augmentation (`str`, *optional*, defaults to `"crop"`): `"crop"`: shorter side to `resize_size`, random crop,
            random horizontal flip. `"flip"`: exactly the image processor, then a random horizontal flip. `"none"`:
            exactly the image processor.
        resize_size (`int`, *optional*): Shorter side before the random crop, in pixels; 256/224 of the classifier's
            input unless given.
        seed (`int`, *optional*, defaults to 0): Together with the key of a sample it decides crop and flip.
        decode_draft (`bool`, *optional*, defaults to `False`): `"crop"` alone: decode JPEGs at a size that
            [`~hf_explain.io.images.load_reduced_rgb`] finds large enough for `resize_size`.

    Raises:
        ValueError: If the augmentation is unknown, `resize_size` is below the crop, or the image processor does not
            bring all images to one size.
    """

    def __init__(
        self,
        image_processor: Any,
        augmentation: str = "crop",
        resize_size: int | None = None,
        seed: int = 0,
        decode_draft: bool = False,
    ) -> None:
        check_choice(augmentation, "augmentation", AUGMENTATIONS)
        if image_processor is None:
            raise ValueError("image_processor is None: pass the classifier's image processor.")
        self.image_processor = image_processor
        self.augmentation = augmentation
        self.seed = seed
        # Asking the processor itself is the only rule that holds for every family's reading of `size`.
        wide = to_pixel_values(image_processor, [PILImage.new("RGB", (96, 64))]).shape[-2:]
        tall = to_pixel_values(image_processor, [PILImage.new("RGB", (64, 96))]).shape[-2:]
        if wide != tall:
            raise ValueError(
                f"image_processor {type(image_processor).__name__} brings images to different sizes {tuple(wide)} and "
                f"{tuple(tall)}: training needs one size, so set do_center_crop=True with a crop_size."
            )
        self.image_size: tuple[int, int] = (int(wide[0]), int(wide[1]))
        self.resize_size = resize_size or round(max(self.image_size) * 256 / 224)
        if augmentation == "crop" and self.resize_size < max(self.image_size):
            raise ValueError(
                f"resize_size {resize_size} is smaller than the crop {self.image_size}: it must be at least "
                f"{max(self.image_size)}."
            )
        self.decode_draft = decode_draft

    def load(self, source: Any) -> PILImage.Image | ReducedImage:
        """One image, of whatever [`~hf_explain.io.images.load_rgb`] takes, as the transform wants it."""
        return load_reduced_rgb(source, self.resize_size) if self.decode_draft else load_rgb(source)

    def __call__(
        self, images: Sequence[PILImage.Image | ReducedImage], keys: Sequence[tuple[int, ...]]
    ) -> torch.Tensor:
        r"""
        Args:
            images (`Sequence[PIL.Image.Image]`): RGB images, from [`~TrainingTransform.load`].
            keys (`Sequence[tuple[int, ...]]`): For each image the integers that, with the seed, decide its crop and
                flip.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 3, height, width)`: pixel_values.
        """
        pictures = [image.image if isinstance(image, ReducedImage) else image for image in images]
        if self.augmentation == "none":
            return to_pixel_values(self.image_processor, pictures)
        # The tag keeps these draws apart from those that order the samples.
        generators = [np.random.default_rng((self.seed, 0xF11B, *key)) for key in keys]
        if self.augmentation == "flip":
            pixel_values = to_pixel_values(self.image_processor, pictures)
            flips = torch.tensor([generator.random() < 0.5 for generator in generators])
            return torch.where(flips.view(-1, 1, 1, 1), pixel_values.flip(-1), pixel_values)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation(self.image_processor))
        pixel_values = torch.empty(len(images), len(mean), *self.image_size)
        for own, image, generator in zip(pixel_values, images, generators, strict=True):
            # image by image, while it is in the processor's cache; a copy, because PyTorch wants to be able to write
            pixels = torch.from_numpy(np.array(self._random_crop(image, generator)))
            own.copy_(pixels.permute(2, 0, 1)).mul_(1 / 255).sub_(mean).div_(std)
        return pixel_values

    def _random_crop(self, image: PILImage.Image | ReducedImage, generator: np.random.Generator) -> PILImage.Image:
        height, width = self.image_size
        picture, size, box = image if isinstance(image, ReducedImage) else (image, image.size, None)
        scale = self.resize_size / min(size)
        wide, tall = (max(self.resize_size, round(side * scale)) for side in size)
        if (wide, tall) != picture.size or box not in (None, (0, 0, *picture.size)):
            resample = getattr(self.image_processor, "resample", None)
            resample = PILImage.Resampling.BILINEAR if resample is None else int(resample)
            picture = picture.resize((wide, tall), resample, box)
        left = int(generator.integers(0, wide - width + 1))
        top = int(generator.integers(0, tall - height + 1))
        picture = picture.crop((left, top, left + width, top + height))
        return picture.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else picture
