"""The quickstart's picture data set: drawn in memory, with exact masks and one planted bias.

Six classes, small things of a garden, at random places, sizes, turns and colours, on blurred ground that looks like a
photograph's, among leaves, pebbles and berries of the same colours: a red thing with dots may be a ladybird, a
toadstool, a strawberry or a berry. One class carries a planted background bias: nearly all of its training images show
a photographer's tag in a corner.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hf_explain.tensors.scalars import check_number


LABELS = ("ladybird", "bee", "wasp", "butterfly", "snail", "toadstool")
BIASED_LABEL = "wasp"
TRAINING_CUE_RATE = 0.95
NUM_TRAIN, NUM_VALIDATION, IMAGE_SIZE = 1600, 480, 112
_BIASED = LABELS.index(BIASED_LABEL)
_CLUTTER = 6
_CHUNK = 128  # images drawn at once: some MB, which a processor keeps at hand

# Of the ground, in shade and in light: meadow, litter, moss on stone, sand, water, heather
_GROUNDS = (
    ((0.10, 0.23, 0.06), (0.47, 0.63, 0.25)),
    ((0.22, 0.14, 0.08), (0.63, 0.48, 0.31)),
    ((0.20, 0.25, 0.20), (0.60, 0.64, 0.53)),
    ((0.48, 0.39, 0.27), (0.86, 0.78, 0.63)),
    ((0.09, 0.19, 0.27), (0.46, 0.62, 0.68)),
    ((0.22, 0.13, 0.23), (0.61, 0.47, 0.60)),
)
_REACH = 1.45  # of a thing's shadow, in radii
_DARK, _WHITE = (0.09, 0.08, 0.08), (0.97, 0.96, 0.92)


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
        image_size (`int`, *optional*, defaults to 112): Side of the square images, in pixels, at least 32.
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
        num_train (`int`, *optional*, defaults to 1600): Training images.
        num_validation (`int`, *optional*, defaults to 480): Validation images.
        seed (`int`, *optional*, defaults to 0): Of both splits, which never share an image.
        image_size (`int`, *optional*, defaults to 112): Side of the images, in pixels.

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
        raise ValueError(f"`image_size` must be at least 32 pixels, got {image_size}: the drawings need room.")
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
    count, unit = len(labels), size / 112

    def uniform(low, high, *shape):
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    def place(smallest, largest, turn):
        radius = uniform(smallest, largest) * unit
        return radius[:, None] + uniform(0, 1, 2) * (size - 2 * radius[:, None]), radius, uniform(-turn, turn)

    image = _background(uniform, size)
    for _ in range(_CLUTTER):
        kinds = torch.randint(len(_LITTER), (count,), generator=generator)
        _paint(image, _LITTER, kinds, place(7, 15, math.pi), _sides(uniform), uniform(0, 1, 4))
    centre, radius, angle = place(17, 30, 0.6)
    cue = _tag(centre, has_cue, size)
    image = torch.where(cue[:, None], _tag_paint(size), image)
    objects = _paint(image, _OBJECTS, labels, (centre, radius, angle), _sides(uniform), uniform(0, 1, 4))
    image = image + 0.015 * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), objects, cue & ~objects


def _sides(uniform) -> torch.Tensor:
    """1 or -1 for each image: which way a thing looks."""
    return (uniform(0, 1, 1, 1) < 0.5) * 2.0 - 1


def _background(uniform, size: int) -> torch.Tensor:
    """Ground out of focus: `(count, 3, size, size)`."""

    def noise(channels: int, rows: int, columns: int) -> torch.Tensor:
        down, across = _spread(rows, size), _spread(columns, size)
        return down @ uniform(-1, 1, channels, rows, columns) @ across.T

    light = 0.5 + 0.32 * noise(1, 3, 3) + 0.2 * noise(1, 8, 8) + 0.1 * noise(1, 20, 20) + 0.06 * noise(1, 50, 50)
    light = light + uniform(0, 0.25, 1, 1, 1) * noise(1, 5, 45)  # blades and stalks
    half = torch.full((len(light),), size / 2)
    x, y = _local_frame(half[:, None].expand(-1, 2), half, uniform(-math.pi, math.pi), size)
    light = light + uniform(0, 0.25, 1, 1, 1) * x[:, None] - 0.1 * (x.square() + y.square())[:, None]
    for _ in range(3):  # spots of light, as a lens draws them
        centre, radius = uniform(0, size, 2), uniform(0.04, 0.14) * size
        x, y = _local_frame(centre, radius, uniform(0, 0), size)
        light = light + (uniform(0, 0.3, 1, 1) * (6 - 6 * torch.hypot(x, y)).sigmoid())[:, None]
    grounds = torch.tensor(_GROUNDS)[(uniform(0, len(_GROUNDS))).long(), ..., None, None]
    image = torch.lerp(grounds[:, 0], grounds[:, 1], light.clamp(-0.2, 1.3)) + 0.05 * noise(3, 4, 4)
    return image * uniform(0.85, 1.15, 3, 1, 1)


def _spread(cells: int, size: int) -> torch.Tensor:
    """Bicubic interpolation of so many values to `size`, `(size, cells)`; a product is faster than `interpolate`."""
    return F.interpolate(torch.eye(cells)[None, None], size=(size, cells), mode="bicubic", align_corners=False)[0, 0]


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


def _tag_paint(size: int) -> torch.Tensor:
    """White paper with three lines of blue writing in every tag: `(3, size, size)`, of which a tag shows its part."""
    steps = torch.arange(size) * 112 / size
    row, column = steps[:, None], steps[None, :]
    written = (row % 4 < 2) & (torch.sin(1.9 * column + 5 * (row // 4)) > -0.4)
    return torch.where(written, torch.tensor([0.1, 0.2, 0.6])[:, None, None], 0.96)


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


# ------------------------------------------------------------------------------------------------------- the drawings

# A drawing takes the thing's own frame, `x` to its right and `y` downwards, both `(count, size, size)`, and four
# random numbers in [0, 1] of each; it returns layers from the back to the front, each the distance to its edge (in
# radii, negative inside) and its colour.
Layer = tuple[torch.Tensor, torch.Tensor]


def _paint(image: torch.Tensor, drawings, kinds: torch.Tensor, place, side, chance) -> torch.Tensor:
    """Draw `drawings[kinds[i]]` into image i, in place, with its shadow: the pixels it covers."""
    size, (centre, radius, angle) = image.shape[-1], place
    covered = torch.zeros(len(image), size, size, dtype=torch.bool)
    for kind, drawing in enumerate(drawings):
        chosen = (kinds == kind).nonzero()[:, 0]
        if not len(chosen):
            continue
        # Only the square around the thing and its shadow, which is as large for all: a tenth of the image at times
        window = min(size, math.ceil(2 * _REACH * radius[chosen].max().item()) + 1)
        corner = (centre[chosen] - window / 2).round().clamp(0, size - window).long()
        columns, rows = (corner[:, None, :] + torch.arange(window)[None, :, None]).unbind(2)
        where = chosen[:, None, None], rows[:, :, None], columns[:, None, :]
        x, y = _local_frame(centre[chosen] - corner, radius[chosen], angle[chosen], window)
        x = x * side[chosen]
        canvas = image.permute(0, 2, 3, 1)[where].permute(0, 3, 1, 2)
        canvas = (
            canvas * (1 - 0.5 * ((_REACH - torch.hypot(x - 0.1, y - 0.15) - 0.2) / 0.5).clamp(0, 1).square())[:, None]
        )
        # light from above, and darker towards the edge: round things, not stickers
        light, outline = 1 - 0.25 * y[:, None], torch.full_like(x, math.inf)
        for distance, colour in drawing(x, y, chance[chosen]):
            rounded = 1 - 0.35 * (1 + distance / 0.14).clamp(0, 1).square()[:, None]
            canvas = torch.lerp(canvas, colour * light * rounded, _coverage(distance, radius[chosen]))
            outline = torch.minimum(outline, distance)
        image.permute(0, 2, 3, 1)[where] = canvas.permute(0, 2, 3, 1)
        covered[where] = outline <= 0
    return covered


def _ladybird(x, y, chance) -> list[Layer]:
    side, shell = x.abs(), _ellipse(x, y - 0.1, 0.78, 0.82)
    spots = torch.stack([_ellipse(side - a, y - b, 0.17, 0.17) for a, b in ((0.3, -0.28), (0.46, 0.18), (0.2, 0.5))])
    dots = torch.maximum(torch.minimum(spots.amin(0), side - 0.03), shell + 0.05)
    return [
        (_ellipse(x, y + 0.66, 0.4, 0.3), _plain(_DARK, x)),
        (_ellipse(side - 0.22, y + 0.76, 0.09, 0.09), _plain(_WHITE, x)),
        (shell, _hsv(chance[:, 0] * 0.6 - 0.1, 0.9, 0.75 + 0.2 * chance[:, 1])),
        (dots, _plain(_DARK, x)),
    ]


def _bee(x, y, chance) -> list[Layer]:
    return _striped(x, y, chance, 0.48, 8.5)


def _wasp(x, y, chance) -> list[Layer]:
    return _striped(x, y, chance, 0.38, 11.5)


def _striped(x, y, chance, width: float, bands: float) -> list[Layer]:
    side, body = x.abs(), _ellipse(x, y - 0.15, width, 0.78)
    turned_x, turned_y = 0.8 * (side - 0.52) + 0.6 * (y + 0.12), 0.8 * (y + 0.12) - 0.6 * (side - 0.52)
    return [
        (_ellipse(turned_x, turned_y, 0.5, 0.24), _plain((0.78, 0.86, 0.93), x)),
        (_ellipse(x, y + 0.68, 0.3, 0.26), _plain(_DARK, x)),
        (body, _hsv(0.65 + 0.25 * chance[:, 0], 0.85, 0.85 + 0.13 * chance[:, 1])),
        (torch.maximum(-torch.cos(bands * (y - 0.2)) * 1.4 / bands, body + 0.03), _plain(_DARK, x)),
    ]


def _butterfly(x, y, chance) -> list[Layer]:
    x, y = 1.15 * x, 1.15 * y
    side = x.abs()
    turned_x, turned_y = 0.85 * (side - 0.5) - 0.53 * (y + 0.32), 0.85 * (y + 0.32) + 0.53 * (side - 0.5)
    wings = torch.minimum(_ellipse(turned_x, turned_y, 0.55, 0.38), _ellipse(side - 0.42, y - 0.42, 0.38, 0.36))
    colour = _hsv(6 * chance[:, 0], 0.55 + 0.35 * chance[:, 1], 0.9)
    eyes = torch.minimum(_ellipse(side - 0.6, y + 0.42, 0.13, 0.13), _ellipse(side - 0.45, y - 0.46, 0.11, 0.11))
    return [
        (wings, _plain(_DARK, x)),
        (wings + 0.1, colour),
        (eyes, _plain(_WHITE, x)),
        (_ellipse(x, y, 0.1, 0.6), _plain(_DARK, x)),
    ]


def _snail(x, y, chance) -> list[Layer]:
    shell_x, shell_y = x + 0.14, y + 0.1
    radius, angle = torch.hypot(shell_x, shell_y), torch.atan2(shell_y, shell_x)
    shell = radius - 0.62
    winding = torch.maximum(0.09 * torch.cos(2 * math.pi * radius / 0.26 - angle) - 0.02, shell + 0.03)
    horns = torch.minimum(_line(x, y, (0.72, 0.2), (0.62, -0.35), 0.05), _line(x, y, (0.78, 0.2), (0.92, -0.3), 0.05))
    flesh = _hsv(0.5 + 0.5 * chance[:, 0], 0.3, 0.8)
    colour = _hsv(0.3 + 0.6 * chance[:, 1], 0.5 + 0.2 * chance[:, 2], 0.8)
    return [
        (horns, flesh),
        (torch.minimum(_ellipse(x - 0.02, y - 0.55, 0.92, 0.2), _ellipse(x - 0.75, y - 0.32, 0.2, 0.3)), flesh),
        (shell, colour),
        (winding, 0.45 * colour),
    ]


def _toadstool(x, y, chance) -> list[Layer]:
    cap = torch.maximum(_ellipse(x, y - 0.02, 0.95, 0.9), y - 0.1)
    stem = torch.maximum(x.abs() - 0.28 - 0.08 * y, torch.maximum(-y, y - 0.92))
    spots = torch.stack([_ellipse(x - a, y + b, c, 0.8 * c) for a, b, c in _SPOTS]).amin(0)
    return [
        (stem, _plain((0.93, 0.9, 0.8), x)),
        (_ellipse(x, y - 0.1, 0.9, 0.13), _plain((0.8, 0.74, 0.62), x)),
        (cap, _hsv(chance[:, 0] * 0.5 - 0.1, 0.85, 0.7 + 0.2 * chance[:, 1])),
        (torch.maximum(spots, cap + 0.03), _plain(_WHITE, x)),
    ]


_SPOTS = (
    (0.0, 0.5, 0.17),
    (-0.48, 0.28, 0.15),
    (0.5, 0.3, 0.16),
    (-0.2, 0.1, 0.12),
    (0.24, 0.08, 0.11),
    (0.8, 0.0, 0.1),
)


def _leaf(x, y, chance) -> list[Layer]:
    blade = torch.maximum(torch.hypot(x, y - 0.6), torch.hypot(x, y + 0.6)) - 1.05
    colour = _hsv(2.2 * chance[:, 0], 0.3 + 0.5 * chance[:, 1], 0.35 + 0.5 * chance[:, 2])
    return [(blade, colour), (torch.maximum(y.abs() - 0.04, blade + 0.05), 0.7 * colour)]


def _pebble(x, y, chance) -> list[Layer]:
    colour = _hsv(6 * chance[:, 0], 0.15 * chance[:, 1], 0.35 + 0.55 * chance[:, 2])
    return [(_ellipse(x, y, 0.9, 0.65), colour)]


def _berry(x, y, chance) -> list[Layer]:
    colour = _hsv(1.1 * chance[:, 0] - 0.2, 0.85, 0.6 + 0.35 * chance[:, 1])
    return [(_ellipse(x, y, 0.72, 0.72), colour), (_ellipse(x + 0.25, y + 0.25, 0.14, 0.14), _plain(_WHITE, x))]


def _petal(x, y, chance) -> list[Layer]:
    colour = _hsv(6 * chance[:, 0], 0.6 * chance[:, 1], 0.95)
    return [(_ellipse(x, y, 0.9, 0.4 + 0.15 * y.clamp(-1, 1)), colour)]


_OBJECTS: tuple[Callable[..., list[Layer]], ...] = (_ladybird, _bee, _wasp, _butterfly, _snail, _toadstool)
_LITTER: tuple[Callable[..., list[Layer]], ...] = (_leaf, _pebble, _berry, _petal)


def _ellipse(x, y, width, height) -> torch.Tensor:
    smaller = torch.minimum(torch.as_tensor(width), torch.as_tensor(height))
    return (torch.hypot(x / width, y / height) - 1) * smaller


def _line(x, y, start: tuple[float, float], end: tuple[float, float], thickness: float) -> torch.Tensor:
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    part = (((x - start[0]) * along_x + (y - start[1]) * along_y) / (along_x**2 + along_y**2)).clamp(0, 1)
    return torch.hypot(x - start[0] - part * along_x, y - start[1] - part * along_y) - thickness


def _plain(colour: tuple[float, float, float], x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(colour)[None, :, None, None].expand(len(x), -1, -1, -1)


def _hsv(hue: torch.Tensor, saturation, value) -> torch.Tensor:
    """A colour per image as RGB, hue in [0, 6) from red over green and blue: `(count, 3, 1, 1)`."""
    hue, saturation, value = (torch.as_tensor(part).expand(len(hue))[:, None] for part in (hue, saturation, value))
    k = (torch.tensor([[5.0, 3.0, 1.0]]) + hue) % 6
    return (value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1)))[:, :, None, None]


def _png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}
