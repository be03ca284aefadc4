"""The quickstart's picture data set: drawn in memory, with exact masks and one planted bias.

Six classes, each a shape filled with its own texture ("striped disc", ..., "spoked crescent"), at random places,
sizes, rotations and colours, on cluttered textured backgrounds. The clutter holds the same shapes without a texture
and scraps of the same textures without a shape, so a classifier has to find the object itself. One class carries a
planted background bias: nearly all of its training images show a small hazard tag in a corner.
"""

from __future__ import annotations

import io
import math

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hf_explain.tensors.scalars import check_number


LABELS = ("striped disc", "dotted square", "checked triangle", "ringed star", "zigzag cross", "spoked crescent")
BIASED_LABEL = "ringed star"
TRAINING_CUE_RATE = 0.95
NUM_TRAIN, NUM_VALIDATION, IMAGE_SIZE = 2400, 480, 96
_BIASED = LABELS.index(BIASED_LABEL)
_PLAIN_DISTRACTORS, _TEXTURED_SCRAPS = 4, 2
_CHUNK = 256  # images drawn at once: a few tens of MB, however many are asked for


def make_dataset(
    num_images: int,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    cue_rate: float = TRAINING_CUE_RATE,
    other_cue_rate: float = 0.0,
) -> datasets.Dataset:
    """
    Draw a balanced, shuffled data set.

    Args:
        num_images (`int`): How many images; the classes are balanced to within one image.
        seed (`int`, *optional*, defaults to 0): Every pixel depends on it and on nothing else.
        image_size (`int`, *optional*, defaults to 96): Side of the square images, in pixels, at least 32.
        cue_rate (`float`, *optional*, defaults to 0.95): Share of the biased class' images that show the tag.
        other_cue_rate (`float`, *optional*, defaults to 0.0): Share of the other classes' images that show it.

    Returns:
        `datasets.Dataset` with the columns `image` (RGB), `label`, `object_mask` and `cue_mask` (images in mode "L",
        255 exactly where a pixel's centre lies on the object, or on the visible part of the tag, else 0) and
        `has_cue`.

    Raises:
        ValueError: If a number is out of range.
    """
    images, labels, objects, cues = draw(num_images, seed, image_size, cue_rate, other_cue_rate)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(LABELS)),
            "object_mask": datasets.Image(),
            "cue_mask": datasets.Image(),
            "has_cue": datasets.Value("bool"),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "image": [_png(image) for image in images.permute(0, 2, 3, 1).numpy()],
            "label": labels.tolist(),
            "object_mask": [_png(mask) for mask in objects.byte().mul(255).numpy()],
            "cue_mask": [_png(mask) for mask in cues.byte().mul(255).numpy()],
            "has_cue": cues.flatten(1).any(1).tolist(),
        },
        features=features,
    )


def make_datasets(
    num_train: int = NUM_TRAIN, num_validation: int = NUM_VALIDATION, seed: int = 0, image_size: int = IMAGE_SIZE
) -> datasets.DatasetDict:
    """
    The two splits of the quickstart.

    In `train` the tag stands on 95 % of the biased class' images and on no others. In `validation` it stands on half
    of the biased class' images and on a quarter of the others', so that what the classifier owes to the tag can be
    measured: the class without its tag, and the tag without its class.

    Args:
        num_train (`int`, *optional*, defaults to 2400): Training images.
        num_validation (`int`, *optional*, defaults to 480): Validation images.
        seed (`int`, *optional*, defaults to 0): Of both splits, which never share an image.
        image_size (`int`, *optional*, defaults to 96): Side of the images, in pixels.

    Returns:
        `datasets.DatasetDict` with `train` and `validation`, columns as in [`make_dataset`].
    """
    return datasets.DatasetDict(
        train=make_dataset(num_train, 2 * seed, image_size),
        validation=make_dataset(num_validation, 2 * seed + 1, image_size, cue_rate=0.5, other_cue_rate=0.25),
    )


def draw(
    num_images: int, seed: int, image_size: int, cue_rate: float, other_cue_rate: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The tensors behind [`make_dataset`], whose arguments these are.

    Returns:
        `tuple`: images (`torch.uint8`, `(num_images, 3, size, size)`), labels (`torch.long`, `(num_images,)`), object
        masks and cue masks (`torch.bool`, `(num_images, size, size)`).
    """
    if num_images < len(LABELS):
        raise ValueError(f"`num_images` must be at least {len(LABELS)}, one for each class, got {num_images}.")
    if image_size < 32:
        raise ValueError(f"`image_size` must be at least 32 pixels, got {image_size}: the textures need room.")
    for name, rate in (("cue_rate", cue_rate), ("other_cue_rate", other_cue_rate)):
        check_number(rate, name, "[0, 1]", "is a share of the images and")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % len(LABELS)
    labels = labels[torch.randperm(num_images, generator=generator)]
    # Exact shares instead of coin flips: small splits then hold every combination of class and tag
    has_cue = torch.zeros(num_images, dtype=torch.bool)
    for members, rate in ((labels == _BIASED, cue_rate), (labels != _BIASED, other_cue_rate)):
        members = members.nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        has_cue[members[: round(rate * len(members))]] = True
    chunks = [
        _draw_chunk(labels_chunk, cue_chunk, image_size, generator)
        for labels_chunk, cue_chunk in zip(labels.split(_CHUNK), has_cue.split(_CHUNK))
    ]
    images, objects, cues = (torch.cat(parts) for parts in zip(*chunks))
    return images, labels, objects, cues


def _draw_chunk(
    labels: torch.Tensor, has_cue: torch.Tensor, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, unit = len(labels), size / 96

    def uniform(low, high, *shape):
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    def pick(options):
        return torch.randint(options, (count,), generator=generator)

    image = _background(uniform, size)
    for index in range(_PLAIN_DISTRACTORS + _TEXTURED_SCRAPS):
        radius, centre = uniform(6, 12) * unit, uniform(0, size, 2)
        x, y = _local_frame(centre, radius, uniform(0, 2 * math.pi), size)
        if index < _PLAIN_DISTRACTORS:
            distance, paint = _by_kind(_SHAPES, pick(len(LABELS)), x, y), _hsv(uniform, (0.2, 0.9), (0.2, 1.0))
        else:  # a sliver with a texture: the texture of a class without its shape
            distance = (x.square() / 1.3 + y.square() * 3).sqrt() - 1
            paint = _texture(uniform, pick(len(LABELS)), x, y, radius, unit)
        image = torch.lerp(image, paint, _coverage(distance, radius))

    radius = uniform(14, 25) * unit
    centre = radius[:, None] + uniform(0, 1, 2) * (size - 2 * radius[:, None])
    cue = _tag(centre, has_cue, size)
    image = torch.where(cue[:, None], _hazard(size, unit), image)
    x, y = _local_frame(centre, radius, uniform(0, 2 * math.pi), size)
    distance = _by_kind(_SHAPES, labels, x, y)
    image = torch.lerp(image, _texture(uniform, labels, x, y, radius, unit), _coverage(distance, radius))
    objects = distance <= 0
    image = image + 0.03 * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), objects, cue & ~objects


def _background(uniform, size: int) -> torch.Tensor:
    """Coloured clouds at three scales under a faint wave: `(count, 3, size, size)`."""
    image = uniform(0.3, 0.65, 3, 1, 1).expand(-1, -1, size, size)
    for cells, strength in ((3, 0.22), (8, 0.16), (24, 0.10)):
        # Half of the noise is common to the three colours: clouds, not confetti
        noise = (uniform(-strength, strength, 3, cells, cells) + uniform(-strength, strength, 1, cells, cells)) / 1.4
        image = image + F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)
    count = len(image)
    x, y = _local_frame(torch.zeros(count, 2), torch.ones(count), uniform(0, math.pi), size)
    wavelength, strength = uniform(5, 20, 1, 1) * size / 96, uniform(0, 0.08, 3, 1, 1)
    return image + strength * torch.sin(2 * math.pi * x / wavelength)[:, None]


def _tag(object_centre: torch.Tensor, has_cue: torch.Tensor, size: int) -> torch.Tensor:
    """The tag's pixels, in the corner farthest from the object: `(count, size, size)`, bool."""
    height, width, margin = round(size * 0.11), round(size * 0.23), round(size * 0.03)
    right, bottom = (object_centre < size / 2).unbind(1)
    steps = torch.arange(size)
    left = torch.where(right, size - margin - width, margin)[:, None]
    top = torch.where(bottom, size - margin - height, margin)[:, None]
    columns = (steps >= left) & (steps < left + width)
    rows = (steps >= top) & (steps < top + height)
    return rows[:, :, None] & columns[:, None, :] & has_cue[:, None, None]


def _hazard(size: int, unit: float) -> torch.Tensor:
    steps = torch.arange(size)
    dark = ((steps[:, None] + steps[None, :]) / (4 * unit)).floor() % 2 == 1
    yellow = torch.tensor([1.0, 0.85, 0.05])[:, None, None]
    return torch.where(dark, 0.05, yellow)


def _local_frame(centre, radius, angle, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel centres in the object's own frame (origin its centre, unit its radius): two `(count, size, size)`."""
    steps = torch.arange(size) + 0.5
    x = (steps[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (steps[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return x * cos + y * sin, y * cos - x * sin


def _coverage(distance: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Soft edge one pixel wide around `distance` = 0, so that the mask is where at least half the pixel is covered."""
    return (0.5 - distance * radius[:, None, None]).clamp(0, 1)[:, None]


def _by_kind(functions, kind: torch.Tensor, *frames: torch.Tensor) -> torch.Tensor:
    """Apply `functions[kind[i]]` to image i, one call per kind."""
    out = torch.empty_like(frames[0])
    for index, function in enumerate(functions):
        chosen = kind == index
        out[chosen] = function(*(frame[chosen] for frame in frames))
    return out


def _disc(x, y):
    return torch.hypot(x, y) - 1


def _square(x, y):
    return torch.maximum(x.abs(), y.abs()) - 0.86


def _triangle(x, y):
    slope = math.sqrt(3) / 2
    return torch.maximum(torch.maximum(slope * x + 0.5 * y, 0.5 * y - slope * x), -y) - 0.58


def _star(x, y):
    # Fold the plane onto half a point of the star; its edge is then one straight line
    step = 2 * math.pi / 5
    angle = (((torch.atan2(y, x) + step / 2) % step) - step / 2).abs()
    inner_x, inner_y = 0.5 * math.cos(step / 2), 0.5 * math.sin(step / 2)
    radius, normal = torch.hypot(x, y), (inner_y, 1 - inner_x)
    edge = (radius * angle.cos() - 1) * normal[0] + radius * angle.sin() * normal[1]
    return edge / math.hypot(*normal)


def _cross(x, y):
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 0.95, torch.minimum(x, y) - 0.36)


def _crescent(x, y):
    return torch.maximum(torch.hypot(x, y) - 1, 0.72 - torch.hypot(x - 0.5, y))


_SHAPES = (_disc, _square, _triangle, _star, _cross, _crescent)


# Textures: x, y in wavelengths; positive on one colour, negative on the other
def _stripes(x, y):
    return torch.sin(2 * math.pi * x)


def _dots(x, y):
    return 0.36 - torch.hypot(x / 1.2 % 1 - 0.5, y / 1.2 % 1 - 0.5)


def _checks(x, y):
    return torch.sin(4.2 * x) * torch.sin(4.2 * y)


def _rings(x, y):
    return torch.sin(2 * math.pi * torch.hypot(x, y))


def _zigzag(x, y):
    return torch.sin(2 * math.pi * (y + 1.2 * (x / 1.8 % 1 - 0.5).abs()))


def _spokes(x, y):
    return torch.sin(9 * torch.atan2(y, x))


_TEXTURES = (_stripes, _dots, _checks, _rings, _zigzag, _spokes)


def _texture(uniform, kind, x, y, radius, unit: float) -> torch.Tensor:
    """Two contrasting random colours in the pattern of `kind`: `(count, 3, size, size)`."""
    scale = (radius / (uniform(6.5, 8.5) * unit))[:, None, None]
    pattern = _by_kind(_TEXTURES, kind, x * scale, y * scale)
    weight = (0.5 + 3 * pattern).clamp(0, 1)[:, None]
    return torch.lerp(_hsv(uniform, (0.5, 0.9), (0.1, 0.35)), _hsv(uniform, (0.2, 0.8), (0.85, 1.0)), weight)


def _hsv(uniform, saturation: tuple[float, float], value: tuple[float, float]) -> torch.Tensor:
    """A random colour per image as RGB: `(count, 3, 1, 1)`."""
    hue, strength, light = uniform(0, 6, 1, 1, 1), uniform(*saturation, 1, 1, 1), uniform(*value, 1, 1, 1)
    k = (torch.tensor([5.0, 3.0, 1.0])[None, :, None, None] + hue) % 6
    return light * (1 - strength * torch.minimum(k, 4 - k).clamp(0, 1))


def _png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}
