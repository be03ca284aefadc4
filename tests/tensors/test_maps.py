"""Resize, min-max, tokens, and the geometry of image processors checked on pictures of their own coordinates."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import IMAGENET_MEAN, IMAGENET_STD

from hf_explain.io.transformers_names import AutoImageProcessor
from hf_explain.tensors.maps import (
    CropGeometry,
    area_means,
    grid_to_tokens,
    min_max,
    position_contributions,
    resize_maps,
    standardize,
    tokens_to_grid,
    uncrop,
)


# ------------------------------------------------------------------ resize


def bilinear(image, size):
    """Bilinear with half-pixel centres and clamped edges, written out pixel by pixel."""
    height, width = len(image), len(image[0])
    rows = []
    for i in range(size[0]):
        y = min(max((i + 0.5) * height / size[0] - 0.5, 0), height - 1)
        top, bottom = int(y), min(int(y) + 1, height - 1)
        row = []
        for j in range(size[1]):
            x = min(max((j + 0.5) * width / size[1] - 0.5, 0), width - 1)
            left, right = int(x), min(int(x) + 1, width - 1)
            above = image[top][left] * (1 - x + left) + image[top][right] * (x - left)
            below = image[bottom][left] * (1 - x + left) + image[bottom][right] * (x - left)
            row.append(above * (1 - y + top) + below * (y - top))
        rows.append(row)
    return rows


@pytest.mark.parametrize("size", [(3, 5), (9, 4), (1, 1), (2, 13)])
def test_resize_is_bilinear_with_half_pixel_centres(size):
    maps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([bilinear(one.tolist(), size) for one in maps])
    torch.testing.assert_close(resize_maps(maps, size), expected, rtol=1e-5, atol=1e-6)
    with_channels = resize_maps(maps[None], size)
    torch.testing.assert_close(with_channels[0], expected, rtol=1e-5, atol=1e-6)


def test_resize_keeps_dtype_and_returns_the_input_where_nothing_is_to_do():
    maps = torch.rand(2, 4, 4)
    assert resize_maps(maps, (4, 4)) is maps
    assert resize_maps(maps.bfloat16(), (7, 5)).dtype == torch.bfloat16
    assert resize_maps(maps.double(), [7, 5]).shape == (2, 7, 5)
    maps.requires_grad_()
    resize_maps(maps, (8, 8)).sum().backward()
    torch.testing.assert_close(maps.grad, torch.full((2, 4, 4), 4.0))


def test_resize_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"`maps` must have shape .* got \(4, 4\)"):
        resize_maps(torch.rand(4, 4), (2, 2))
    for size in ((0, 3), (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match="`size` must be"):
            resize_maps(torch.rand(1, 4, 4), size)


# ------------------------------------------------------------------ min-max


def test_area_means_by_hand():
    maps = torch.arange(16.0).view(1, 4, 4)
    found = area_means(maps, (2, 1), (8, 8))
    assert found.tolist() == [[[sum(range(8)) / 8], [sum(range(8, 16)) / 8]]]
    assert area_means(maps, (4, 4), (8, 8)) is maps
    # coarser than the grid, or not a multiple of it: at the resolution of the image
    coarse = torch.tensor([[[0.0, 4.0]]])
    assert area_means(coarse, (1, 4), (4, 8)).tolist() == [[[0.0, 1.0, 3.0, 4.0]]]
    odd = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    enlarged = resize_maps(odd, (8, 12)).unflatten(-1, (4, 3)).unflatten(-3, (2, 4)).mean((-3, -1))
    torch.testing.assert_close(area_means(odd, (2, 4), (8, 12)), enlarged)
    # a grid that does not divide the image: windows that overlap by a pixel
    assert area_means(torch.tensor([[[0.0, 1.0, 2.0]]]), (1, 2), (1, 3)).tolist() == [[[0.5, 1.5]]]


def test_min_max_by_hand():
    maps = torch.tensor([[[0.0, 2.0], [4.0, 1.0]], [[-3.0, -3.0], [-3.0, -3.0]], [[5.0, 5.0], [5.0, 6.0]]])
    expected = torch.tensor([[[0.0, 0.5], [1.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]])
    assert torch.equal(min_max(maps), expected)
    assert torch.equal(min_max(maps[:, None]), expected[:, None])
    assert torch.equal(min_max(maps[0]), expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_min_max_stays_in_0_and_1_in_every_dtype(dtype):
    maps = torch.randn(8, 7, 5, generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)
    scaled = min_max(maps)
    assert scaled.dtype == dtype
    assert torch.equal(scaled.amin((1, 2)), torch.zeros(8, dtype=dtype))
    assert torch.equal(scaled.amax((1, 2)), torch.ones(8, dtype=dtype))
    assert torch.equal(scaled.flatten(1).argmax(1), maps.flatten(1).argmax(1))


def test_min_max_of_constant_and_tiny_maps_is_never_nan():
    assert torch.equal(min_max(torch.full((2, 3, 3), 7.0)), torch.zeros(2, 3, 3))
    assert torch.equal(min_max(torch.ones(1, 1, 1)), torch.zeros(1, 1, 1))
    tiny = torch.zeros(1, 2, 2)
    tiny[0, 0, 0] = 1e-38
    assert min_max(tiny).isfinite().all()
    constant = torch.zeros(1, 2, 2, requires_grad=True)
    min_max(constant).sum().backward()
    assert constant.grad.isfinite().all()


# ------------------------------------------------------------------ standardize


def test_standardize_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[100.0, 100.0], [100.0, 101.0]]])
    expected = torch.stack([(one - one.mean()) / one.std(correction=0) for one in maps])
    torch.testing.assert_close(standardize(maps), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(standardize(0.01 * maps[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    flat = torch.full((1, 3, 3), 7.0, requires_grad=True)
    scaled = standardize(flat)
    assert torch.equal(scaled, torch.zeros(1, 3, 3))
    scaled.square().sum().backward()
    assert flat.grad.isfinite().all()


# ------------------------------------------------------------------ contributions


def contributions(*sums):
    """One image per number: at one of its positions the products sum to the number, all others cancel; 2 in all."""
    products = torch.zeros(len(sums), 2, 1, 2, dtype=torch.float64)
    products[:, 0], products[:, 1] = 1.0, -1.0
    products[:, 0, 0, 1] += torch.tensor(sums, dtype=torch.float64)
    return position_contributions(products, torch.ones_like(products), "stage1")


def test_contributions_are_summed_over_the_channels():
    activation, gradient = torch.arange(12.0).view(1, 3, 2, 2), torch.arange(12.0).flip(0).view(1, 3, 2, 2)
    expected = sum(activation[:, channel] * gradient[:, channel] for channel in range(3))
    assert torch.equal(position_contributions(activation, gradient, "stem"), expected)


def test_contributions_that_cancel_everywhere_are_refused_and_small_ones_are_not():
    for sums in ((0.0, 0.0), (1e-6, -1e-6), (1.9e-5, 0.0)):
        with pytest.raises(ValueError, match="`layer` 'stage1' is followed by a normalisation .* sum to 0"):
            contributions(*sums)
    for sums in ((2.1e-5,), (-2.1e-5,), (0.0, 1e-3), (-1.0, 0.0)):  # one image among those that cancel is enough
        assert contributions(*sums)[:, 0].tolist() == [[0.0, pytest.approx(value, rel=1e-6)] for value in sums]
    nothing = torch.zeros(1, 2, 2, 2)
    assert torch.equal(position_contributions(nothing, nothing, "stage1"), nothing[:, 0])  # nothing there to cancel


# ------------------------------------------------------------------ tokens


def test_tokens_lie_row_by_row_from_the_top_left():
    tokens = torch.arange(8.0).view(1, 8, 1)
    grid = tokens_to_grid(tokens, (2, 3), num_prefix_tokens=2)
    assert grid.tolist() == [[[[2, 3, 4], [5, 6, 7]]]]
    assert torch.equal(grid_to_tokens(grid, tokens[:, :2]), tokens)
    assert torch.equal(grid_to_tokens(grid), tokens[:, 2:])


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_tokens_round_trip(prefix):
    tokens = torch.randn(3, prefix + 12, 7)
    grid = tokens_to_grid(tokens, (3, 4), prefix)
    assert grid.shape == (3, 7, 3, 4)
    assert torch.equal(grid_to_tokens(grid, tokens[:, :prefix]), tokens)


def test_tokens_that_are_no_grid():
    with pytest.raises(ValueError, match=r"has 197 tokens, but num_prefix_tokens=2 and grid_size=\(14, 14\) need 198"):
        tokens_to_grid(torch.zeros(1, 197, 4), (14, 14), 2)


# ------------------------------------------------------------------ crop geometry


def processor(directory, **settings):
    """A real image processor, through a file as a user gets it."""
    common = {"do_resize": True, "do_normalize": True, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    (directory / "preprocessor_config.json").write_text(json.dumps({**common, **settings}))
    return AutoImageProcessor.from_pretrained(directory)


VIT = {"image_processor_type": "ViTImageProcessor"}
DEIT = {"image_processor_type": "DeiTImageProcessor", "do_center_crop": True}
CONVNEXT = {"image_processor_type": "ConvNextImageProcessor"}
PROCESSORS = {
    "vit": {**VIT, "size": {"height": 56, "width": 56}},
    "vit-not-square": {**VIT, "size": {"height": 48, "width": 64}},
    "deit": {**DEIT, "size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}},
    "deit-odd": {**DEIT, "size": {"height": 65, "width": 63}, "crop_size": {"height": 56, "width": 54}},
    "deit-pads": {**DEIT, "size": {"height": 50, "width": 51}, "crop_size": {"height": 64, "width": 64}},
    "deit-shortest-edge": {**DEIT, "size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}},
    "convnext-crop": {**CONVNEXT, "size": {"shortest_edge": 56}, "crop_pct": 0.875},
    "convnext-odd": {**CONVNEXT, "size": {"shortest_edge": 57}, "crop_pct": 0.9},
    "convnext-no-crop": {**CONVNEXT, "size": {"shortest_edge": 56}, "crop_pct": 1.0},
    "convnext-warp": {**CONVNEXT, "size": {"shortest_edge": 384}, "crop_pct": 0.95},
    "textnet": {"image_processor_type": "TextNetImageProcessor", "size": {"shortest_edge": 50}},
    "no-resize": {**VIT, "do_resize": False, "size": {"height": 56, "width": 56}},
}
SIZES = [(80, 120), (121, 77), (64, 64), (57, 200), (300, 41)]  # height, width: even, odd, square, long, tall


def ramps(height, width):
    """A picture whose red grows from left to right and whose green grows from top to bottom, over the full range."""
    x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full((height, width), 255.0)], -1).round().astype(np.uint8))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", PROCESSORS)
def test_uncrop_puts_every_pixel_back_where_it_came_from(name, size, tmp_path):
    image_processor = processor(tmp_path, **PROCESSORS[name])
    height, width = size
    pixel_values = image_processor(ramps(height, width), return_tensors="pt")["pixel_values"]
    geometry = CropGeometry.from_processor(image_processor, size)
    assert geometry.crop_size == tuple(pixel_values.shape[-2:])

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    shown = pixel_values[0] * std + mean
    if name == "deit-pads":  # what was padded shows nothing of the picture
        top, left = (-side for side in geometry.offset)
        inner = shown[:, top : top + geometry.resized_size[0], left : left + geometry.resized_size[1]]
        assert (inner[2] > 0.99).all()
        assert shown[2].sum().item() == pytest.approx(inner[2].sum().item(), rel=1e-3)
    x, y, seen = uncrop(shown, geometry)

    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    centre = [
        (torch.arange(side) + 0.5) * resized / side - offset
        for side, resized, offset in zip(size, geometry.resized_size, geometry.offset)
    ]
    inside = [(position >= 0) & (position <= crop) for position, crop in zip(centre, geometry.crop_size)]
    inside = inside[0][:, None] & inside[1][None]
    assert inside.float().mean() > 0.1
    assert torch.equal(seen == 0, ~inside)  # zero exactly where the classifier never looked
    assert (x[~inside] == 0).all() and (y[~inside] == 0).all()

    # where the processor's own anti-aliasing at the picture's borders plays no part
    core = inside.clone()
    for dim, (side, resized) in enumerate(zip(size, geometry.resized_size)):
        margin = int(np.ceil(2 * max(1, side / resized))) + 1
        border = torch.arange(side)
        keep = (border >= margin) & (border < side - margin)
        core &= keep.view(-1, 1) if dim == 0 else keep.view(1, -1)
    assert core.float().mean() > 0.1
    error_x = ((x * (width - 1)) - columns).abs()[core]
    error_y = ((y * (height - 1)) - rows).abs()[core]
    assert error_x.mean() < 1 and error_y.mean() < 1
    # a shift would be the same everywhere: it must be far below a pixel, 8-bit rounding aside
    for found, wanted, side in ((x, columns, width), (y, rows, height)):
        shift = (found * (side - 1) - wanted)[core].mean().abs()
        assert shift < 0.3 + side / 255 / 4, (name, size, shift)


@pytest.mark.parametrize("crop", [False, True])
def test_what_is_padded_at_the_bottom_and_on_the_right(crop, tmp_path):
    settings = {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "do_center_crop": crop,
        "crop_size": {"height": 48, "width": 56},
        "do_rescale": True,
        "do_normalize": False,
        "do_pad": True,
        "pad_size": {"height": 80, "width": 128},
    }
    image_processor = processor(tmp_path, **settings)
    size = (100, 150)
    pixel_values = image_processor(ramps(*size), return_tensors="pt")["pixel_values"]
    geometry = CropGeometry.from_processor(image_processor, size)
    assert geometry.crop_size == tuple(pixel_values.shape[-2:]) == (80, 128)
    x, y, seen = uncrop(pixel_values[0], geometry)
    inside = seen > 0.5
    shown = (48 * 100 / 64) * (56 * 150 / 96) if crop else 100 * 150
    assert inside.sum() == pytest.approx(shown, rel=0.03)
    core = seen > 0.99
    assert (x * 149 - torch.arange(150))[core].abs().mean() < 1
    assert (y * 99 - torch.arange(100)[:, None])[core].abs().mean() < 1
    assert not inside.all() if crop else inside.all()

    image_processor.pad_size = None  # to the largest of a batch, and an image comes alone
    alone = image_processor(ramps(*size), return_tensors="pt")["pixel_values"]
    assert CropGeometry.from_processor(image_processor, size).crop_size == tuple(alone.shape[-2:])
    image_processor.__class__ = type("Own", (type(image_processor),), {"pad": lambda self, images: images})
    with pytest.raises(ValueError, match="Own pads in a way of its own, .* set image_processor.do_pad=False"):
        CropGeometry.from_processor(image_processor, size)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(8, 2000), (2000, 8), (1, 1), (1, 300)], ids=lambda size: "x".join(map(str, size)))
def test_extreme_shapes(name, size, tmp_path):
    """8000×30 pictures and single pixels: the sizes agree, the map is finite and in the range it came with."""
    image_processor = processor(tmp_path, **PROCESSORS[name])
    geometry = CropGeometry.from_processor(image_processor, size)
    picture = Image.new("RGB", size[::-1], (255, 128, 0))
    pixel_values = image_processor(picture, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert geometry.crop_size == tuple(pixel_values.shape[-2:])
    full = uncrop(torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0)), geometry)
    assert full.shape == (2, *size) and full.isfinite().all()
    assert full.min() >= 0 and full.max() <= 1


def test_geometry_by_hand():
    geometry = CropGeometry((100, 200), (50, 100), (40, 40))
    assert geometry.offset == (5, 30)
    full = uncrop(torch.ones(1, 4, 4), geometry)
    # crop rows 5..45 of 50 are original rows 10..90 of 100; columns 30..70 of 100 are 60..140 of 200
    expected = torch.zeros(1, 100, 200)
    expected[:, 10:90, 60:140] = 1
    assert torch.equal(full, expected)
    assert CropGeometry((10, 10), (10, 10), (13, 13)).offset == (-2, -2)  # padding puts the odd pixel in front


def test_uncrop_without_a_crop_is_the_resize():
    maps = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0))
    geometry = CropGeometry.from_processor(None, (31, 44))
    assert geometry == CropGeometry((31, 44), (31, 44), (31, 44))
    torch.testing.assert_close(uncrop(maps, geometry), resize_maps(maps, (31, 44)), rtol=0, atol=1e-5)
    # the resolution of the map and the processor's size do not matter for where things lie
    warped = CropGeometry((31, 44), (224, 224), (224, 224))
    torch.testing.assert_close(uncrop(maps, warped), resize_maps(maps, (31, 44)), rtol=0, atol=1e-5)


def test_uncrop_keeps_dtype_and_stays_sharp_on_a_large_image():
    geometry = CropGeometry((40_000, 2), (40_000, 2), (40_000, 2))
    ramp = torch.linspace(0, 1, 40_000).view(1, -1, 1).expand(1, -1, 2)
    torch.testing.assert_close(uncrop(ramp, geometry), ramp, rtol=0, atol=1e-6)
    assert uncrop(torch.rand(1, 3, 3).bfloat16(), geometry).dtype == torch.bfloat16


BOUNDED = {**VIT, "size": {"shortest_edge": 80, "longest_edge": 133}}


@pytest.mark.parametrize(
    "size",
    [(100, 160), (161, 100), (100, 301), (333, 90), (100, 303), (293, 60), (43, 134), (134, 44), (80, 90), (7, 7)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_bounded_edges(size, tmp_path):
    """`shortest_edge` with `longest_edge`, the other rule Transformers has, to the pixel."""
    image_processor = processor(tmp_path, **BOUNDED)
    geometry = CropGeometry.from_processor(image_processor, size)
    pixel_values = image_processor(Image.new("RGB", size[::-1]), return_tensors="pt")["pixel_values"]
    assert geometry.resized_size == geometry.crop_size == tuple(pixel_values.shape[-2:])


def test_edges_are_rounded_as_transformers_rounds_them():
    from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio

    class Processor:
        do_resize, do_center_crop, crop_pct = True, False, None

    sides = [*range(1, 12), *range(40, 48), 79, 80, 81, 132, 133, 134, 199, 301, 1024]
    for size in ((height, width) for height in sides for width in sides):
        Processor.size = {"shortest_edge": 80, "longest_edge": 133}
        assert CropGeometry.from_processor(Processor, size).resized_size == get_size_with_aspect_ratio(size, 80, 133)
        for short, crop_pct, resized in ((80, None, 80), (80, 0.87, 91), (383, 0.875, 437)):  # 91.95, 437.7
            Processor.size, Processor.crop_pct = {"shortest_edge": short}, crop_pct
            expected = get_resize_output_image_size(
                np.zeros((*size, 3)), resized, default_to_square=False, input_data_format="channels_last"
            )
            assert CropGeometry.from_processor(Processor, size).resized_size == expected
        Processor.crop_pct = None


def test_unknown_resize_is_refused():
    class Odd:
        do_resize, size, do_center_crop = True, {"max_height": 3, "max_width": 4}, False

    with pytest.raises(ValueError, match="`image_processor.size` is .*its resize can be undone when it has height"):
        CropGeometry.from_processor(Odd, (10, 10))
