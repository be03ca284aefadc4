"""Pictures in: anything a person calls an image becomes an upright RGB `PIL.Image`, or one clear error."""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.constants import ENDPOINT
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from hf_explain.io.urls import download


# 2**27 pixels is a photograph of 13k by 10k, and under what Pillow itself refuses; a small file that unpacks to more
# is an attack or a mistake
MAX_PIXELS = 2**27
_ORIENTATION = ExifTags.Base.Orientation


def load_rgb(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Open an image: upright (EXIF orientation applied), RGB, 8 bits per channel.

    Training, evaluation, the pipeline, the export and the demo all read images here, so that one image means the same
    pixels everywhere:

    - 16-bit greyscale (mode `I;16`, `uint16` arrays, PGM files above 8 bits) is scaled from [0, 65535], however dark
      the picture is.
    - Modes `I` and `F` do not say their range. It is the smallest of [0, 1] (`F` alone), [0, 255] and [0, 65535] that
      holds all values of the picture.
    - Transparency is left out: a transparent pixel has the colour that is stored under it, as after
      `PIL.Image.Image.convert("RGB")`.
    - Every other mode is converted by Pillow.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `dict`, `PIL.Image.Image`, `numpy.ndarray` or `torch.Tensor`): A path,
            an http(s) URL or any other that `datasets` opens, the content of an image file, a cell
            `{"bytes": ..., "path": ...}` of a `datasets` image column, a picture in any mode, or an array of shape
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels:
            `bool`, floating in [0, 1], `uint16` in [0, 65535], or other integers in [0, 255].
        timeout (`float`, *optional*): Seconds an http(s) URL may take altogether; 60 when not given.

    Returns:
        `PIL.Image.Image` in mode RGB; `source` itself, not a copy, where it is one already.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If the image cannot be decoded, is empty, has values outside its range or has more than 2**27
            pixels, or a URL takes longer, sends more than 64 MiB or redirects to where it may not
            ([`~hf_explain.io.urls.download`]); the message names it.
        TypeError: If `source` is none of the above.
    """
    return _rgb(source, open_image(source, timeout))


class ReducedImage(NamedTuple):
    """
    A picture that may have been decoded at less than its size.

    Args:
        image (`PIL.Image.Image`): In mode RGB.
        size (`tuple[int, int]`): `(width, height)` of the whole picture in pixels.
        box (`tuple[float, float, float, float]`): Where in `image` the whole picture is, as Pillow has it: the pixels
            of a smaller one do not always end where it does.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]


def load_reduced_rgb(source: Any, shorter_side: int) -> ReducedImage:
    """
    As [`load_rgb`], for a picture that will be made smaller: a JPEG is decoded at half, a quarter or an eighth of its
    size where its shorter side is no shorter then than `shorter_side`. That is faster, and the pixels are others.

    One that its EXIF orientation turns is decoded in full: which of its sides ends between two pixels would be
    another one.

    Args:
        source: As of [`load_rgb`].
        shorter_side (`int`): In pixels.

    Returns:
        [`ReducedImage`].
    """
    size, box = (0, 0), None

    def reduce(image: Image.Image) -> None:
        nonlocal size, box
        size = image.size
        mine = image is not source and isinstance(image, JpegImagePlugin.JpegImageFile)
        if mine and image.getexif().get(_ORIENTATION, 1) == 1:
            _, box = image.draft(None, (shorter_side, shorter_side)) or (None, None)

    image = _rgb(source, open_image(source, reduce=reduce))
    return ReducedImage(image, size, box) if box else ReducedImage(image, image.size, (0, 0, *image.size))


def _rgb(source: Any, image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    try:
        return _to_rgb(image)
    except Exception as error:
        raise _unreadable(source, error) from error


def open_image(
    source: Any, timeout: float | None = None, reduce: Callable[[Image.Image], None] | None = None
) -> Image.Image:
    """
    Open an image upright, in the mode it has: for masks, whose values are not colours.

    Args:
        source, timeout: As of [`load_rgb`].
        reduce (`Callable`, *optional*): Called with the picture before it is decoded.

    Returns:
        `PIL.Image.Image`: Arrays become 8-bit pictures; `source` itself where it is an upright picture already.

    Raises:
        FileNotFoundError, ValueError, TypeError: As [`load_rgb`].
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _from_array(source)
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, (str, bytes, bytearray, Image.Image)) and not is_image_cell(source):
        raise TypeError(
            "An image must be a path, a URL, a PIL image, a numpy array or a torch tensor, "
            f"got {type(source).__name__}."
        )
    if isinstance(source, str) and not _is_url(source) and not os.path.isfile(source):
        raise FileNotFoundError(f"The image {_name(source)} does not exist; give a path, an http(s) URL or a picture.")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on; the limit here is the one stated
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open(source, timeout)
            if image.width * image.height > MAX_PIXELS:
                raise _TooLarge(
                    f"The image {_name(source)} has {image.width}x{image.height} pixels, more than the limit of "
                    f"{MAX_PIXELS}; make it smaller."
                )
            if reduce is not None:
                reduce(image)
            image.load()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
    except _TooLarge:
        raise
    except Image.DecompressionBombError as error:
        raise _TooLarge(
            f"The image {_name(source)} has more than the limit of {MAX_PIXELS} pixels; make it smaller."
        ) from error
    except Exception as error:  # decoders raise whatever they like, SyntaxError and struct.error among it
        raise _unreadable(source, error) from error
    if min(image.size) < 1:
        raise ValueError(f"The image {_name(source)} is empty: it has {image.width}x{image.height} pixels.")
    return image


def is_image_cell(value: Any) -> bool:
    """Whether a value is a cell of a `datasets` image column that was left encoded."""
    return isinstance(value, dict) and bool(value) and value.keys() <= {"bytes", "path"}


class _TooLarge(ValueError):
    pass


def _is_url(source: str) -> bool:
    return "://" in source or source.startswith("data:image/")


def _name(source: Any) -> str:
    """How messages call an image; a cell of a data set by its file name, since its folder may be another machine's."""
    if isinstance(source, dict):
        path, content = source.get("path"), source.get("bytes")
        source = os.path.basename(path) if path else content if content is not None else source
    if isinstance(source, str) and len(source) < 300:
        return repr(source)
    return f"of {len(source)} bytes" if isinstance(source, (bytes, bytearray)) else f"of type {type(source).__name__}"


def _unreadable(source: Any, error: Exception) -> ValueError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if isinstance(source, dict) and source.get("path"):
        reason = reason.replace(source["path"], os.path.basename(source["path"]))
    return ValueError(f"The image {_name(source)} cannot be read: {reason.rstrip('.')}.")


def _open(source: str | bytes | bytearray | dict | Image.Image, timeout: float | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    content: Any = source
    if isinstance(source, dict):
        content = source["path"] if source.get("bytes") is None else source["bytes"]
        if content is None:
            raise ValueError("the cell has neither bytes nor a path")
    elif isinstance(source, str) and source.startswith("data:image/"):
        content = base64.b64decode(source.partition(",")[2])
    if isinstance(content, str) and content.lower().startswith(("http://", "https://")):
        # a data set's own file on the Hub is left to `datasets`, which signs in
        if not (isinstance(source, dict) and content.startswith(f"{ENDPOINT}/")):
            content = download(content, timeout)
    if isinstance(content, str) and _is_url(content):
        from datasets import Image as ImageFeature

        return ImageFeature().decode_example({"path": content, "bytes": None})
    try:
        return Image.open(content if isinstance(content, str) else io.BytesIO(content))
    except UnidentifiedImageError:  # whose own message is the address of the buffer
        raise ValueError("cannot identify image file: it is in no known image format") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion clips to white
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    elif image.mode in ("I", "F"):
        tops = [255, 65535] if image.mode == "I" else [1, 255, 65535]
        if image.format == "PPM" and image.mode == "I":  # whose decoder scales whatever has more than 8 bits to 16
            tops = [65535]
        image = Image.fromarray(_to_8_bit(np.asarray(image), f"A picture in mode {image.mode}", tops))
    elif image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    with warnings.catch_warnings():
        # Pillow warns that a palette with transparency should become RGBA; here transparency is left out
        warnings.simplefilter("ignore", UserWarning)
        return image.convert("RGB")


def _to_8_bit(values: np.ndarray, name: str = "", tops: Sequence[int] = ()) -> np.ndarray:
    """
    Values of one scale as `uint8`.

    Args:
        values (`numpy.ndarray`): At least one value.
        name (`str`): What they are, for the message.
        tops (`Sequence[int]`): Ends of the ranges they can have, which all start at 0: the first that holds them all
            counts. Types whose range is known, `bool`, `uint8` and `uint16`, need none.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # either byte order
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = values.min(), values.max()
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:  # NaN among them too
        hint = "undo any normalisation, or pass uint8" if values.dtype.kind == "f" else "scale it, or pass uint16"
        raise ValueError(f"{name} must lie in [0, {tops[-1]}], got [{low:g}, {high:g}]; {hint}.")
    return (values * (255 / top)).round().astype(np.uint8)


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
    floating = values.dtype.kind == "f"
    values = _to_8_bit(values, f"{'A floating' if floating else 'An integer'} image array", [1 if floating else 255])
    return Image.fromarray(np.ascontiguousarray(values))
