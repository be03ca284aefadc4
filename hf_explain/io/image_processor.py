"""Image processors: the one saved beside a classifier, pictures to `pixel_values`, and back to a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

from hf_explain.io.downloads import UntrustedCodeError, check_sizes, no_code_of_its_own
from hf_explain.io.files import read_json_file
from hf_explain.io.transformers_names import AutoImageProcessor, cached_file


# a picture of this side takes 200 MB as `pixel_values`
_MAX_SIDE = 2**12
_FILE = "preprocessor_config.json"
_MIN_CROP = 0.1  # of `crop_pct`: a picture is first resized to the crop's side divided by it

logger = logging.get_logger(__name__)


def load_image_processor(
    name: str, revision: str | None = None, *, trust_remote_code: bool | None = None, **kwargs: Any
) -> Any:
    """
    The image processor saved beside a classifier or a head.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*): Whether code of the repository may run; nobody is asked.
        kwargs: cache_dir, token, local_files_only, subfolder.

    Returns:
        The Transformers image processor, or `None` where none was saved.

    Raises:
        UntrustedCodeError: If it is code of the repository, which may not run.
        ValueError: If its sizes are out of all proportion.
    """
    try:
        found = cached_file(
            name,
            _FILE,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            **kwargs,
        )
        found = found or cached_file(
            name,
            "processor_config.json",
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            **kwargs,
        )
    except OSError:
        logger.warning("No image processor could be looked up for %s; its architecture's defaults are used.", name)
        return None
    if found is None:
        return None
    try:
        read_json_file(Path(found))
        with no_code_of_its_own(name):
            processor = AutoImageProcessor.from_pretrained(
                name, revision=revision or "main", trust_remote_code=bool(trust_remote_code), **kwargs
            )
    except (UntrustedCodeError, ImportError):
        raise
    except Exception as error:  # Transformers does not check what it reads
        raise _unusable(f"of {name!r} ({os.path.basename(found)})", error) from error
    check_image_processor(processor)
    return processor


def check_image_processor(image_processor: Any) -> None:
    """
    Refuse an image processor that somebody else wrote and that makes no pictures, or pictures that no memory holds.

    Args:
        image_processor: A Transformers image processor, just loaded.

    Raises:
        ValueError: If one of its sizes is out of all proportion, or it fails at a picture; the message names the place
            or the reason.
    """
    values = image_processor.to_dict() if hasattr(image_processor, "to_dict") else {}
    check_sizes(values, _FILE, _MAX_SIDE)
    crop_pct = values.get("crop_pct")  # pictures are resized to the crop's side by this
    if isinstance(crop_pct, (int, float)) and not crop_pct >= _MIN_CROP:
        raise ValueError(f"`{_FILE}.crop_pct` is {crop_pct}, less than any image classifier has ({_MIN_CROP}).")
    for key in ("image_mean", "image_std", "rescale_factor"):
        numbers = np.ravel(values.get(key, ()))
        if values.get(key) is not None and not (
            numbers.dtype.kind in "iuf" and np.isfinite(numbers).all() and (key == "image_mean" or numbers.all())
        ):
            wanted = "finite numbers" if key == "image_mean" else "finite numbers other than 0"
            raise ValueError(f"`{_FILE}.{key}` must be {wanted}, got {values[key]!r}.")
    for key, value in values.items():
        kind, words = (bool, "true or false") if key.startswith("do_") else (int, "the number of a filter")
        if (key.startswith("do_") or key == "resample") and value is not None and not isinstance(value, kind):
            raise ValueError(f"`{_FILE}.{key}` must be {words}, got {value!r}.")
    try:
        pixels = to_pixel_values(image_processor, [Image.new("RGB", (48, 32))])
    except Exception as error:  # each says something else of what it cannot use
        sizes = {key: values[key] for key in ("size", "crop_size") if values.get(key) is not None}
        raise _unusable(f"{type(image_processor).__name__} ({_FILE}, {sizes})", error) from error
    if pixels.numel() == 0:
        raise ValueError(f"`{_FILE}.size` makes pictures without a pixel, of shape {tuple(pixels.shape)}.")


def _unusable(which: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return ValueError(f"The image processor {which} cannot be used ({type(error).__name__}: {reason}).")


def to_pixel_values(image_processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    """
    What the classifier is given of pictures.

    Args:
        image_processor: The classifier's Transformers image processor.
        images (`Sequence[PIL.Image.Image]`): RGB pictures, of one size unless the processor brings them to one.

    Returns:
        `torch.FloatTensor` of shape `(num_images, 3, height, width)`.
    """
    # told, not guessed: for sides of 1, 3 or 4 pixels the layout could be taken for channels first
    return image_processor(images=list(images), return_tensors="pt", input_data_format=ChannelDimension.LAST)[
        "pixel_values"
    ]


def normalisation(image_processor: Any, num_channels: int = 3) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """
    Mean and standard deviation with which `pixel_values = (pixels - mean) / std`, for `pixels` in [0, 1].

    Args:
        image_processor: A Transformers image processor.
        num_channels (`int`, *optional*, defaults to 3): Channels of the classifier's images.

    Returns:
        `tuple[tuple[float, ...], tuple[float, ...]]`: `image_mean` and `image_std`, one number per channel; those of
        the processor wherever it rescales by 1/255, and 0 and 1 where it does not normalise either.
    """
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    if getattr(image_processor, "do_normalize", True):
        mean, std = image_processor.image_mean, image_processor.image_std
    white = 1.0  # what a white pixel is before it is normalised
    if not getattr(image_processor, "do_rescale", True):
        white = 255.0
    elif getattr(image_processor, "rescale_factor", None):
        white = 255 * image_processor.rescale_factor
    per_channel = [[each] * num_channels if isinstance(each, (int, float)) else each for each in (mean, std)]
    image_mean, image_std = (tuple(float(value) / white for value in values) for values in per_channel)
    return image_mean, image_std


def to_picture(pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> Image.Image:
    """
    What the classifier saw, as a picture: the inverse of [`to_pixel_values`], but for resizing and cropping.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(3, height, width)`): Normalised pixels of one image.
        image_mean, image_std (`Sequence[float]`): As of [`normalisation`].

    Returns:
        `PIL.Image.Image` in mode RGB; values outside [0, 1] are cut off.
    """
    pixels = pixel_values.detach().float().cpu()
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (image_mean, image_std))
    pixels = (pixels * std + mean).clamp(0, 1)
    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
