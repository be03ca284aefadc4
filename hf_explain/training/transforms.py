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

    Raises:
        ValueError: If the augmentation is unknown, `resize_size` is below the crop, or the image processor does not
            bring all images to one size.
    """

    def __init__(
        self, image_processor: Any, augmentation: str = "crop", resize_size: int | None = None, seed: int = 0
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

    def __call__(self, images: Sequence[PILImage.Image], keys: Sequence[tuple[int, ...]]) -> torch.Tensor:
        r"""
        Args:
            images (`Sequence[PIL.Image.Image]`): RGB images.
            keys (`Sequence[tuple[int, ...]]`): For each image the integers that, with the seed, decide its crop and
                flip.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 3, height, width)`: pixel_values.
        """
        if self.augmentation == "none":
            return to_pixel_values(self.image_processor, images)
        # The tag keeps these draws apart from those that order the samples.
        generators = [np.random.default_rng((self.seed, 0xF11B, *key)) for key in keys]
        if self.augmentation == "flip":
            pixel_values = to_pixel_values(self.image_processor, images)
            flips = torch.tensor([generator.random() < 0.5 for generator in generators])
            return torch.where(flips.view(-1, 1, 1, 1), pixel_values.flip(-1), pixel_values)
        crops = [self._random_crop(image, generator) for image, generator in zip(images, generators, strict=True)]
        return self._normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))

    def _random_crop(self, image: PILImage.Image, generator: np.random.Generator) -> np.ndarray:
        height, width = self.image_size
        scale = self.resize_size / min(image.size)
        wide, tall = (max(self.resize_size, round(side * scale)) for side in image.size)
        if (wide, tall) != image.size:
            resample = getattr(self.image_processor, "resample", None)
            image = image.resize((wide, tall), PILImage.Resampling.BILINEAR if resample is None else int(resample))
        left = int(generator.integers(0, image.size[0] - width + 1))
        top = int(generator.integers(0, image.size[1] - height + 1))
        image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image)
        return pixels[:, ::-1] if generator.random() < 0.5 else pixels

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalisation(self.image_processor))
        return pixels.float().contiguous().mul_(1 / 255).sub_(mean).div_(std)
