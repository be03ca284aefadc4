"""Pictures of saliency maps: overlays and grids, as RGB `PIL.Image.Image`, in colours safe for the colour-blind."""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_explain.io.colors import COLORMAPS, DIVERGING, INK, OPACITY, PAPER
from hf_explain.io.files import TEMPORARY
from hf_explain.io.images import load_rgb


LEAST_ROOM = 0.6  # of a grid's cell, in sides of the square that its pictures fit: for the text
_LEAST_TEXT, _MOST_TEXT = 14, 28  # pixels of the text of a sheet


def overlay(
    image,
    saliency_map,
    *,
    colormap: str = COLORMAPS[0],
    alpha: float = OPACITY,
    legend: bool = False,
    grayscale: bool = False,
    stretch: bool = True,
    signed: bool = False,
) -> Image.Image:
    """
    Lay a saliency map over its image; the more salient a pixel, the more opaque its colour.

    A map whose highest values stand on a few single pixels, as those of gradients and of FGVis do, would hardly be
    seen. Where the highest 2 % of the pixels do not reach 0.5, it is drawn brighter, until they do (at most tenfold);
    the legend then ends at the value drawn as the highest. Every other map is drawn as it is.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The picture: any PIL mode (its EXIF rotation is
            applied), `uint8` in [0, 255] or floating point in [0, 1], of shape `(height, width)`,
            `(height, width, 3)` or `(3, height, width)`. Channels are RGB.
        saliency_map (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor` of shape `(height, width)`): In [0, 1] (a PIL
            image of mode "L": in [0, 255]), at the image's size, as `pipeline("saliency")` returns both.
        colormap (`str`, *optional*, defaults to `"viridis"`): One of `COLORMAPS`.
        alpha (`float`, *optional*, defaults to 0.8): Opacity where the map is 1; at 0,
            the image shows unchanged.
        legend (`bool`, *optional*, defaults to `False`): Adds a strip below with the colour scale, from 0 to 1 or to
            the value that a stretched map's highest colour stands for.
        grayscale (`bool`, *optional*, defaults to `False`): Draws the image without its own colours, so that every
            colour seen is the map's; best for colourful pictures.
        stretch (`bool`, *optional*, defaults to `True`): Draws a map of few high pixels brighter, as above; `False`
            draws every map as it is.
        signed (`bool`, *optional*, defaults to `False`): The map lies in [-1, 1]: red where it speaks for the class,
            blue where against, the more opaque the farther from 0. `colormap` has no part in it.

    Returns:
        `PIL.Image.Image`: RGB, the image's size, or taller by the strip.

    Raises:
        ValueError: If the map's size is not the image's, values are NaN or out of range, or an option is unknown.
        TypeError: If `image` or `saliency_map` is of another type.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_explain import overlay

    >>> image = np.full((240, 320, 3), 200, dtype=np.uint8)  # or a `PIL.Image.Image`
    >>> saliency_map = np.linspace(0, 1, 240 * 320).reshape(240, 320)  # `pipe(image)[0]["saliency_map"]`
    >>> overlay(image, saliency_map, legend=True, grayscale=True).size
    (320, 269)
    ```
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` is an opacity and must lie in [0, 1], got {alpha}.")
    image = _as_image(image)
    saliency = _as_map(saliency_map, "saliency_map", signed)
    if signed:
        colormap = DIVERGING
    _check_size(saliency, image)
    if grayscale:
        image = image.convert("L").convert("RGB")
    highest = _highest_drawn(np.abs(saliency)) if stretch else 1.0
    drawn = np.clip(saliency / highest, -1, 1)
    blended = Image.fromarray(_blend(np.asarray(image, dtype=np.float32), drawn, colormap, alpha))
    return _with_legend(blended, colormap, alpha, highest) if legend else blended


def colorize(saliency_map, *, colormap: str = COLORMAPS[0]) -> Image.Image:
    """
    A saliency map as colours, without the image; arguments as in [`overlay`].

    Returns:
        `PIL.Image.Image`: RGB, the map's size.
    """
    return Image.fromarray(_paint(_as_map(saliency_map, "saliency_map"), colormap).round().astype(np.uint8))


def saliency_grid(
    rows: Sequence[Sequence],
    columns: Sequence[str] | None = None,
    captions: Sequence[Sequence[str | None]] | None = None,
    row_labels: Sequence[str] | None = None,
    cell_size: int = 160,
    text_size: int | None = None,
) -> Image.Image:
    """
    Pictures side by side: one row per image, one column per method, say.

    Args:
        rows (`Sequence[Sequence]`): Pictures as [`overlay`] takes or returns them; `None` leaves a cell empty. Rows
            may differ in length.
        columns (`Sequence[str]`, *optional*): A heading per column.
        captions (`Sequence[Sequence[str]]`, *optional*): A line under each picture, nested as `rows` is.
        row_labels (`Sequence[str]`, *optional*): A line above each row.
        cell_size (`int`, *optional*, defaults to 160): Side of the square every picture is fitted into, in pixels.
            Pictures keep their proportions; enlarged ones show their pixels. Where all are wider than tall, or
            narrower, so are the cells.
        text_size (`int`, *optional*): Height of the text in pixels; in proportion to the cells when not given. Larger
            text survives when a wide grid is shown on a phone.

    Returns:
        `PIL.Image.Image`: RGB, white background. Text too wide for its cell ends in "…".

    Raises:
        ValueError: If there are no pictures, or headings or captions do not fit them in number.
    """
    rows = [list(row) for row in rows]
    width = max((len(row) for row in rows), default=0)
    if width == 0:
        raise ValueError("`rows` holds no pictures; give at least one row with one picture.")
    if cell_size < 32:
        raise ValueError(f"`cell_size` must be at least 32 pixels, got {cell_size}.")
    for name, given, wanted in (("columns", columns, width), ("captions", captions, len(rows))):
        if given is not None and len(given) != wanted:
            raise ValueError(f"`{name}` has {len(given)} entries, but `rows` needs {wanted}.")
    if row_labels is not None and len(row_labels) != len(rows):
        raise ValueError(f"`row_labels` has {len(row_labels)} entries, but there are {len(rows)} rows.")
    for index, row in enumerate(rows):
        if captions is not None and len(captions[index]) != len(row):
            raise ValueError(
                f"`captions[{index}]` has {len(captions[index])} entries, but its row {len(row)} pictures."
            )

    gap, text_size = max(4, cell_size // 24), max(8, text_size or max(11, cell_size // 11))
    line = round(text_size * 1.5)
    heading, above = line * (columns is not None), line * (row_labels is not None)
    fitted = [[None if one is None else _fit(_as_image(one), cell_size) for one in row] for row in rows]
    # as tall as the tallest picture of the row: wide ones leave no bands
    widest = max((one.width for row in fitted for one in row if one is not None), default=0)
    room = max(widest, round(LEAST_ROOM * cell_size))
    tallest = [max((one.height for one in row if one is not None), default=0) for row in fitted]
    below = line * (captions is not None)
    height = gap + heading + sum(above + tall + below + gap for tall in tallest)
    sheet = Image.new("RGB", (gap + width * (room + gap), height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns or ()):
        _write(pen, gap + column * (room + gap), gap, text, room, text_size, bold=True)
    top = gap + heading
    for index, (row, tall) in enumerate(zip(fitted, tallest)):
        if row_labels is not None:
            _write(pen, gap, top, row_labels[index], sheet.width - 2 * gap, text_size, bold=True)
        for column, picture in enumerate(row):
            left = gap + column * (room + gap)
            if picture is not None:
                offset = (room - picture.width) // 2, (tall - picture.height) // 2
                sheet.paste(picture, (left + offset[0], top + above + offset[1]))
            caption = None if captions is None else captions[index][column]
            if caption:
                _write(pen, left, top + above + tall, caption, room, text_size)
        top += above + tall + below + gap
    return sheet


def explanation_sheet(
    image,
    saliency_maps: Sequence[Sequence],
    columns: Sequence[str],
    captions: Sequence[Sequence[str]],
    *,
    crop: tuple[int, int, int, int] | None = None,
    cell_size: int = 320,
    legend: bool = False,
    **options,
) -> Image.Image:
    """
    An image beside maps laid over it, with what each is above it and below.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): As for [`overlay`]; `None` draws the maps alone.
        saliency_maps (`Sequence[Sequence]`): Rows of maps, as for [`overlay`], all at the image's size.
        columns (`Sequence[str]`): A heading of every column of maps, such as its method.
        captions (`Sequence[Sequence[str]]`): A line under every map, such as its class and score.
        crop (`tuple[int, int, int, int]`, *optional*): `(left, top, right, bottom)` in pixels of the image, drawn as a
            frame on every panel: what the classifier saw.
        cell_size (`int`, *optional*, defaults to 320): Longer side of every panel, in pixels. Image and maps are
            brought to it before they are drawn, so that text and frame are sharp.
        legend (`bool`, *optional*, defaults to `False`): A colour scale under every map.
        options: `colormap`, `alpha`, `grayscale`, `stretch` and `signed` of [`overlay`].

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: As [`overlay`] and [`saliency_grid`].
    """
    signed = options.get("signed", False)
    rows = [[_as_map(one, "saliency_map", signed) for one in row] for row in saliency_maps]
    height, width = rows[0][0].shape
    picture = Image.new("RGB", (width, height), "#808080") if image is None else _as_image(image)
    for one in (one for row in rows for one in row):
        _check_size(one, picture)
    scale = cell_size / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    frame = None if crop is None else [round(edge * scale) for edge in crop]
    shown = picture.resize(size, Image.Resampling.LANCZOS)
    panels: list[list[Image.Image]] = []
    for row in rows:
        drawn = []
        for one in row:
            resized = np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR))
            drawn.append(overlay(shown, resized.clip(-1 if signed else 0, 1), legend=legend, **options))
        if image is not None:
            first = Image.new("RGB", drawn[0].size, PAPER)  # as tall as one with a legend
            first.paste(shown)
            drawn.insert(0, first)
        panels.append(drawn)
    if frame is not None:
        panels = [[_framed(one, frame) for one in row] for row in panels]
    lines = [list(row) for row in captions]
    if image is not None:
        said = "" if frame is None else "frame: part seen"
        columns, lines = ["image", *columns], [[said, *row] for row in lines]
    room = max(size[0], round(LEAST_ROOM * cell_size))
    text_size = min(_MOST_TEXT, max(_LEAST_TEXT, room // 15))
    return saliency_grid(panels, columns, lines, None, max(panels[0][-1].size), text_size)


def save_image(image: Image.Image, path: str | os.PathLike) -> Path:
    """
    Write a picture under a temporary name beside `path`, then rename it, so that `path` is never half a file.

    Args:
        image (`PIL.Image.Image`): The picture.
        path (`str` or `os.PathLike`): Where to; the suffix names the format (`.png`, `.jpg`, `.webp`, …).

    Returns:
        `pathlib.Path`: `path`.

    Raises:
        ValueError: If the suffix names no image format.
        FileNotFoundError: If the folder does not exist.
    """
    path = Path(path)
    file_format = Image.registered_extensions().get(path.suffix.lower())
    if file_format is None:
        raise ValueError(f"`path` is {str(path)!r}: {path.suffix!r} names no image format; use .png, for example.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` is {str(path)!r}, but the folder {str(path.parent)!r} does not exist.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            image.save(file, format=file_format)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _check_size(saliency: np.ndarray, image: Image.Image) -> None:
    if saliency.shape != (image.height, image.width):
        raise ValueError(
            f"`saliency_map` is {saliency.shape[0]}x{saliency.shape[1]} (height x width) and `image` is "
            f"{image.height}x{image.width}; bring the map to the image's size first, with "
            "`hf_explain.tensors.maps.resize_maps` or by using `pipeline('saliency')`, which does."
        )


def _framed(image: Image.Image, box: Sequence[int]) -> Image.Image:
    """The picture with a frame just inside a box, light between dark lines, so that it is seen on anything."""
    framed = image.copy()
    pen = ImageDraw.Draw(framed)
    left, top, right, bottom = box
    for inset, color in enumerate((INK, PAPER, PAPER, INK)):
        if right - left > 2 * inset + 1 and bottom - top > 2 * inset + 1:
            pen.rectangle((left + inset, top + inset, right - 1 - inset, bottom - 1 - inset), outline=color)
    return framed


def _as_image(image) -> Image.Image:
    if isinstance(image, Image.Image):
        return load_rgb(image)
    array = _as_array(image, "image")
    if array.ndim == 2:
        array = np.stack([array] * 3, axis=-1)
    elif array.ndim == 3 and array.shape[-1] != 3 and array.shape[0] == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(
            f"`image` must have shape (height, width), (height, width, 3) or (3, height, width), got {array.shape}."
        )
    if array.dtype != np.uint8:
        _check_range(array, "image", "undo the normalisation of `pixel_values` before showing them")
        array = (array * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


def _as_map(saliency_map, name: str, signed: bool = False) -> np.ndarray:
    if isinstance(saliency_map, Image.Image):
        array = np.asarray(saliency_map.convert("L"), dtype=np.float32) / 255
        return 2 * array - 1 if signed else array
    array = _as_array(saliency_map, name)
    if array.ndim != 2:
        raise ValueError(f"`{name}` must have shape (height, width), one map for one image, got {array.shape}.")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    array = array.astype(np.float32)
    remedy = "signed_maps" if signed else "min_max"
    _check_range(array, name, f"scale the map with `hf_explain.tensors.maps.{remedy}` first", -1 if signed else 0)
    return array


def _as_array(value, name: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    if isinstance(value, np.ndarray):
        return value
    raise TypeError(f"`{name}` must be a PIL image, a numpy array or a torch tensor, got {type(value).__name__}.")


def _check_range(array: np.ndarray, name: str, remedy: str, least: int = 0) -> None:
    if array.size == 0:
        raise ValueError(f"`{name}` is empty: its shape is {array.shape}.")
    low, high = float(array.min()), float(array.max())
    if not (low >= least and high <= 1):  # so that NaN is caught too
        raise ValueError(f"`{name}` must lie in [{least}, 1], got values from {low:g} to {high:g}; {remedy}.")


def _paint(saliency: np.ndarray, colormap: str) -> np.ndarray:
    if colormap == DIVERGING:
        saliency = (saliency + 1) / 2
    elif colormap not in COLORMAPS:
        raise ValueError(f"`colormap` is {colormap!r}; choose one that is safe for the colour-blind: {COLORMAPS}.")
    return matplotlib.colormaps[colormap](saliency)[..., :3].astype(np.float32) * 255


def _blend(image: np.ndarray, saliency: np.ndarray, colormap: str, alpha: float) -> np.ndarray:
    opacity = (alpha * np.abs(saliency))[..., None]
    return (image + opacity * (_paint(saliency, colormap) - image)).round().astype(np.uint8)


def _highest_drawn(saliency: np.ndarray) -> float:
    """The value drawn as 1: lower, the sparser the map, and 1 where its highest 2 % reach 0.5."""
    return float(np.clip(2 * np.quantile(saliency, 0.98), 0.1, 1)) if saliency.any() else 1.0


def _with_legend(image: Image.Image, colormap: str, alpha: float, highest: float) -> Image.Image:
    text_size = min(28, max(10, image.width // 20))
    strip, pad = round(text_size * 1.8), text_size // 2
    sheet = Image.new("RGB", (image.width, image.height + strip), PAPER)
    sheet.paste(image, (0, 0))
    pen, font = ImageDraw.Draw(sheet), _font(text_size, False)
    middle = image.height + strip // 2
    end = "1" if highest == 1 else f"{highest:.2f} to 1"
    least, start = (-1, "-1" if highest == 1 else f"-1 to -{highest:.2f}") if colormap == DIVERGING else (0, "0")
    left = pad + round(font.getlength(start)) + pad
    right = image.width - pad - round(font.getlength(end)) - pad
    pen.text((pad, middle), start, fill=INK, font=font, anchor="lm")
    pen.text((image.width - pad, middle), end, fill=INK, font=font, anchor="rm")
    if right > left:
        height = max(4, strip // 2)
        ramp = np.broadcast_to(np.linspace(least, 1, right - left, dtype=np.float32), (height, right - left))
        # On white, and as transparent as on the picture: the strip shows the colours the picture has
        bar = _blend(np.full((*ramp.shape, 3), 255, dtype=np.float32), ramp, colormap, alpha)
        sheet.paste(Image.fromarray(bar), (left, middle - height // 2))
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


@functools.lru_cache(maxsize=32)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib ships this font, so text looks the same on every machine
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _write(
    pen: ImageDraw.ImageDraw, left: int, top: int, text: str, width: int, size: int, bold: bool = False
) -> None:
    font, text = _font(size, bold), str(text)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text = text.rstrip() + "…"
    pen.text((left, top + size // 6), text, fill=INK, font=font)
