"""Pictures in: anything a person calls an image becomes an upright RGB `PIL.Image`, or one clear error."""

from __future__ import annotations

import io
import os
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import Image as PILImage
from transformers.image_utils import load_image as load_image_source


# 2**27 pixels is a photograph of 13k by 10k, and under what Pillow itself refuses; a small file that unpacks to more
# is an attack or a mistake
MAX_PIXELS = 2**27


def load_rgb(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Open an image: upright (EXIF orientation applied), RGB, 8 bits per channel.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): A path, an
            http(s) URL, the content of an image file, a picture in any mode, or an array of shape `(height, width)`,
            `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels, `uint8` in [0, 255] or
            floating in [0, 1].
        timeout (`float`, *optional*): Seconds to wait for a URL.

    Returns:
        `PIL.Image.Image` in mode RGB.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If the image cannot be decoded, is empty, or has more than 2**27 pixels; the message names it.
        TypeError: If `source` is none of the above.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    name = repr(source) if isinstance(source, str) and len(source) < 300 else f"a {type(source).__name__}"
    if isinstance(source, bytes):
        name = f"of {len(source)} bytes"
    if isinstance(source, str) and not source.startswith(("http://", "https://", "data:image/")):
        if not os.path.isfile(source):
            raise FileNotFoundError(f"The image {name} does not exist; give a path, an http(s) URL or a picture.")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        image = _from_array(source)
    elif isinstance(source, (str, bytes, Image.Image)):
        try:
            with warnings.catch_warnings():
                # Pillow warns from 89 megapixels on; the limit here is the one stated
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = _open(source, timeout)
                _check_size(image.size, name)
                image.load()
                image = ImageOps.exif_transpose(image)
        except (FileNotFoundError, _TooLarge):
            raise
        except Image.DecompressionBombError as error:
            raise _TooLarge(
                f"The image {name} has more than the limit of {MAX_PIXELS} pixels; make it smaller."
            ) from error
        except Exception as error:  # decoders raise whatever they like, SyntaxError and struct.error among it
            raise ValueError(f"The image {name} cannot be read: {error or type(error).__name__}.") from error
    else:
        raise TypeError(
            "An image must be a path, a URL, a PIL image, a numpy array or a torch tensor, "
            f"got {type(source).__name__}."
        )
    if min(image.size) < 1:
        raise ValueError(f"The image {name} is empty: it has {image.size[0]}x{image.size[1]} pixels.")
    if image.mode.startswith(("I", "F")):  # 16-bit and float greyscale: Pillow's own conversion clips to white
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 else 1.0
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).round().astype(np.uint8))
    return image.convert("RGB")


class _TooLarge(ValueError):
    pass


def _open(source: str | bytes | Image.Image, timeout: float | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes):
        try:
            return Image.open(io.BytesIO(source))
        except UnidentifiedImageError:  # whose own message is the address of the buffer
            raise ValueError("it is in no known image format") from None
    if os.path.isfile(source):
        return Image.open(source)
    return load_image_source(source, timeout=timeout)


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _TooLarge(
            f"The image {name} has {size[0]}x{size[1]} pixels, more than the limit of {MAX_PIXELS}; make it smaller."
        )


def _from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):  # numpy has no bfloat16
        array = (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
    values = array
    shape = values.shape
    if values.ndim == 3 and shape[-1] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.size == 0 or values.ndim not in (2, 3) or values.ndim == 3 and values.shape[-1] not in (3, 4):
        raise ValueError(
            f"An image array must have shape (height, width), (height, width, channels) or (channels, height, width) "
            f"with 1, 3 or 4 channels and at least one pixel, got {tuple(shape)}."
        )
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError(
                f"A floating image array must lie in [0, 1], got [{values.min():.4g}, {values.max():.4g}]; undo any "
                "normalisation, or pass uint8."
            )
        values = (values * 255).round()
    elif values.dtype == bool:
        values = values * 255
    elif values.min() < 0 or values.max() > 255:
        raise ValueError(f"An integer image array must lie in [0, 255], got [{values.min()}, {values.max()}].")
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))


def decode_image(value: Any) -> PILImage.Image:
    """One cell of an image column (PIL image, `{"bytes", "path"}`, path or array) as an RGB PIL image."""
    if isinstance(value, dict) or isinstance(value, (str, os.PathLike)):
        from datasets import Image

        # The feature's own decoder also undoes EXIF rotation and opens remote paths.
        value = {"path": os.fspath(value), "bytes": None} if not isinstance(value, dict) else value
        value = Image().decode_example(value)
    elif isinstance(value, np.ndarray):
        value = PILImage.fromarray(value)
    elif not isinstance(value, PILImage.Image):
        raise TypeError(f"an image must be a PIL image, bytes, a path or an array, got {type(value).__name__}")
    return value if value.mode == "RGB" else value.convert("RGB")
