import math

import pytest
import torch

from hf_explain.methods.controls import centre_maps, random_maps
from hf_explain.tensors.checks import check_pixel_values, check_saliency
from hf_explain.tensors.perturbation import (
    blend,
    fill_values,
    full_size_saliency,
    gaussian_blur,
    keep_top,
    mask_space_fill,
    pixel_counts,
    random_fill_values,
    rank_correlation,
    rank_pixels,
    tied_ranks,
)
from hf_explain.tensors.randomness import image_keys, random_bits, random_normal, random_uniform


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def images():
    return torch.rand(5, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def normalized(images):
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# ------------------------------------------------------------------------------------------------------- randomness


def splitmix64(value):
    """The published finaliser, in Python's own integers."""
    value &= 2**64 - 1
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**40])
def test_random_numbers_are_splitmix64(images, seed):
    golden = 0x9E3779B97F4A7C15
    keys = image_keys(images, image_ids=[0, 1, 2, 3, 10**12], seed=seed)
    for key, image_id in zip(keys.tolist(), [0, 1, 2, 3, 10**12]):
        assert key % 2**64 == splitmix64(splitmix64(image_id + golden) + seed * golden)
    for key, pixels in zip(image_keys(images, seed=seed).tolist(), images.flatten(1).view(torch.int32).tolist()):
        content = sum(bits * (splitmix64(place) | 1) for place, bits in enumerate(pixels))
        assert key % 2**64 == splitmix64(splitmix64(content + golden) + seed * golden)
    bits = random_bits(keys, 50)
    for row, key in zip(bits.tolist(), keys.tolist()):
        assert row == [splitmix64(key + place * golden) >> 33 for place in range(50)]


def test_keys_depend_on_the_image_and_nothing_else(images):
    keys = image_keys(images)
    assert len(set(keys.tolist())) == 5
    assert torch.equal(image_keys(images[[3, 1]]), keys[[3, 1]])
    assert torch.equal(image_keys(images.flip(0)), keys.flip(0))
    assert not torch.equal(image_keys(images, seed=1), keys)
    assert len(set(image_keys(images[:1].expand(3, -1, -1, -1), image_ids=[4, 5, 6]).tolist())) == 3


def test_swapped_pixels_change_the_key(images):
    assert not torch.equal(image_keys(images.flip(-1)), image_keys(images))


def test_random_numbers_are_spread_as_they_should():
    keys = image_keys(torch.zeros(2, 1), image_ids=[0, 1])
    uniform, normal = random_uniform(keys, 100_001), random_normal(keys, 100_001)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert torch.allclose(uniform.mean(1), torch.full((2,), 0.5), atol=0.005)
    assert torch.allclose(uniform.var(1), torch.full((2,), 1 / 12), atol=0.002)
    assert normal.shape == (2, 100_001) and torch.isfinite(normal).all()
    assert torch.allclose(normal.mean(1), torch.zeros(2), atol=0.02)
    assert torch.allclose(normal.std(1), torch.ones(2), atol=0.01)
    assert abs(torch.corrcoef(normal)[0, 1]) < 0.02


@pytest.mark.parametrize("image_ids", [[1, 2], [0.5] * 5, [[1]] * 5])
def test_image_ids_must_fit(images, image_ids):
    with pytest.raises(ValueError, match=r"`image_ids` must hold one integer per image \(5\)"):
        image_keys(images, image_ids)


def test_control_maps(images):
    maps = random_maps(images, seed=3)
    assert maps.shape == (5, 6, 8) and not torch.equal(maps[0], maps[1])
    assert torch.equal(random_maps(images[[2]], seed=3)[0], maps[2])
    assert random_maps(images, size=(3, 2)).shape == (5, 3, 2)
    bump = centre_maps(images, size=(7, 9), sigma=0.5)
    assert bump.shape == (5, 7, 9) and bump[0].argmax() == 31 and bump[0, 3, 4] == 1
    assert bump[0, 0, 4].item() == pytest.approx(math.exp(-((3 / 7) ** 2) / 0.5), rel=1e-6)
    assert torch.equal(bump, bump.flip(1)) and torch.allclose(bump, bump.flip(2))
    with pytest.raises(ValueError, match="`sigma` must be above 0 and finite, got 0"):
        centre_maps(images, sigma=0)


# ------------------------------------------------------------------------------------------------------------ fills


def test_black_is_black_in_the_picture(images):
    black = fill_values(normalized(images), "black", MEAN, STD)
    assert torch.allclose(black, normalized(torch.zeros(1, 3, 1, 1)))
    assert torch.equal(fill_values(images, (0, 0, 0), MEAN, STD), black)


def test_colour_and_mean(images):
    colour = fill_values(images, (1, 0.5, 0.25), MEAN, STD)
    assert torch.allclose(colour, normalized(torch.tensor([1, 0.5, 0.25]).view(1, 3, 1, 1)))
    assert torch.equal(fill_values(images, "mean"), torch.zeros(1, 3, 1, 1))
    grey = fill_values(images, (1, 0.5, 0.25), (0.5,), (0.25,))  # one number for all channels
    assert torch.equal(grey, fill_values(images, (1, 0.5, 0.25), (0.5,) * 3, (0.25,) * 3))


def test_white_and_what_is_drawn_for_every_image(images):
    white = fill_values(images, "white", MEAN, STD)
    assert torch.equal(white, fill_values(images, (1, 1, 1), MEAN, STD))
    keys = image_keys(images, torch.arange(len(images)))
    noise = random_fill_values(images, "noise", keys, (0,), (1,))
    assert noise.shape == images.shape and 0 <= noise.min() and noise.max() < 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.01)
    color = random_fill_values(images, "color", keys, (0,), (1,))
    assert color.shape == (len(images), 3, 1, 1) and len(color.unique()) == color.numel()
    for fill in ("noise", "color"):
        whole = random_fill_values(images, fill, keys, MEAN, STD)
        assert torch.allclose(whole, normalized(random_fill_values(images, fill, keys, (0,), (1,))), atol=1e-6)
        alone = [random_fill_values(images[i : i + 1], fill, keys[i : i + 1], MEAN, STD) for i in range(len(images))]
        assert torch.equal(torch.cat(alone), whole)
        assert not torch.equal(random_fill_values(images, fill, image_keys(images, seed=1), MEAN, STD), whole)
    with pytest.raises(ValueError, match="`fill` must be one of noise, color, got 'black'"):
        random_fill_values(images, "black", keys)
    with pytest.raises(ValueError, match="`image_mean` and `image_std` are needed for fill='noise'"):
        random_fill_values(images, "noise", keys)


def folded_gaussian(kernel_size, sigma):
    """A discrete delta smoothed by a 4σ Gaussian inside a reflecting window, one place after the other."""
    radius, line = int(4 * sigma + 0.5), [0.0] * kernel_size
    total = sum(math.exp(-0.5 * (step / sigma) ** 2) for step in range(-radius, radius + 1))
    for step in range(-radius, radius + 1):
        place = kernel_size // 2 + step
        while not 0 <= place < kernel_size:
            place = -1 - place if place < 0 else 2 * kernel_size - 1 - place
        line[place] += math.exp(-0.5 * (step / sigma) ** 2) / total
    return torch.tensor(line)


@pytest.mark.parametrize("kernel_size,sigma", [(11, 5.0), (5, 1.0), (5, 0.7), (3, 4.0), (1, 1.0)])
def test_blur_is_a_2d_convolution_with_the_folded_kernel(images, kernel_size, sigma):
    line = folded_gaussian(kernel_size, sigma)
    assert line.sum().item() == pytest.approx(1, abs=1e-6)
    kernel = (line[:, None] * line).view(1, 1, kernel_size, kernel_size).expand(3, 1, -1, -1)
    expected = torch.nn.functional.conv2d(images, kernel, padding=kernel_size // 2, groups=3)
    assert torch.allclose(gaussian_blur(images, kernel_size, sigma), expected, atol=1e-6)
    if (kernel_size, sigma) == (11, 5.0):
        assert torch.equal(fill_values(images, "blur"), gaussian_blur(images))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("noise",), "`fill` must be one of black, mean, blur, white or a colour, got 'noise'"),
        (("white",), "`image_mean` and `image_std` are needed for fill='white'"),
        (((0, 0),), r"`fill` as a colour needs 3 numbers in \[0, 1\], got \(0.0, 0.0\)"),
        (((0, 0, 255),), r"needs 3 numbers in \[0, 1\]"),
        (("black",), "`image_mean` and `image_std` are needed for fill='black'"),
        (("black", (0.5, 0.5), STD), "`image_mean` must hold 3 numbers, one per channel, got 2"),
        (("black", MEAN, (1, 1, 0)), "`image_std` must be positive"),
    ],
)
def test_bad_fills(images, arguments, message):
    with pytest.raises(ValueError, match=message):
        fill_values(images, *arguments)


def test_bad_blur(images):
    with pytest.raises(ValueError, match="`kernel_size` must be odd and at least 1, got 4"):
        gaussian_blur(images, 4)
    with pytest.raises(ValueError, match="`sigma` must be above 0 and finite, got 0"):
        gaussian_blur(images, 5, 0)


def test_ranks_and_their_correlation_by_hand():
    values = torch.tensor([[3.0, 1.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert tied_ranks(values).tolist() == [[3, 0, 1.5, 1.5], [1.5] * 4]
    others = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    # ranks less their mean: (1.5, -1.5, 0, 0) and (1.5, -1.5, 0.5, -0.5)
    assert rank_correlation(values, others).tolist() == pytest.approx([4.5 / math.sqrt(4.5 * 5), 0])
    assert rank_correlation(others[:1], -others[:1]).tolist() == pytest.approx([-1])


@pytest.mark.parametrize("mask_space", ["pixel", "normalized"])
def test_blend_multiplies_the_picture_or_its_normalisation(images, mask_space):
    kept = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(1))
    filled = fill_values(images, mask_space_fill(mask_space), MEAN, STD)
    blended = blend(normalized(images), kept, filled)
    if mask_space == "pixel":
        expected = normalized(images * kept[:, None])
    else:
        expected = normalized(images) * kept[:, None]
    assert torch.allclose(blended, expected, atol=1e-6)
    assert torch.equal(blend(images, kept > 2, filled), filled.expand_as(images))
    assert torch.equal(blend(images, kept < 2, filled), images)
    with pytest.raises(ValueError, match="`mask_space` must be one of pixel, normalized, got 'rgb'"):
        mask_space_fill("rgb")


# --------------------------------------------------------------------------------------------------------- rankings


def test_ranks_by_hand():
    saliency = torch.tensor([[[0.1, 0.9], [0.5, 0.0]]])
    ranks = rank_pixels(saliency, torch.tensor([1]))
    assert ranks.tolist() == [[[2, 0], [1, 3]]]


def test_ranks_order_any_float():
    values = torch.tensor([-3.5, -1e-40, -0.0, 0.0, 1e-40, 1e-3, 0.1, 1.0, 7e8])
    shuffled = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    ranks = rank_pixels(values[shuffled].view(1, 3, 3), torch.tensor([5])).flatten()
    by_value = torch.empty(9, dtype=torch.long).scatter_(0, shuffled, ranks).tolist()
    assert by_value[:2] == [8, 7] and sorted(by_value[2:4]) == [5, 6] and by_value[4:] == [4, 3, 2, 1, 0]


def test_both_zeros_tie(images):
    keys = image_keys(images)
    zeros = torch.zeros(5, 6, 8)
    mixed = torch.where(torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(0)) < 0.5, -0.0, 0.0)
    assert torch.equal(rank_pixels(mixed, keys), rank_pixels(zeros, keys))
    assert torch.equal(rank_pixels(-zeros, keys), rank_pixels(zeros, keys))


def test_ties_are_seeded_random_and_independent_of_the_batch(images):
    saliency = torch.zeros(5, 6, 8)
    saliency[:, 2:4] = 1.0
    keys = image_keys(images, seed=1)
    ranks = rank_pixels(saliency, keys)
    for rank in ranks:
        assert rank.flatten().sort().values.tolist() == list(range(48))
        assert rank[2:4].flatten().sort().values.tolist() == list(range(16))
    assert torch.equal(rank_pixels(saliency[[4, 2]], keys[[4, 2]]), ranks[[4, 2]])
    assert not torch.equal(ranks[0], ranks[1])
    assert not torch.equal(rank_pixels(saliency, image_keys(images, seed=2)), ranks)
    # no place is favoured: over many images the mean rank of every tied pixel comes out the same
    many = rank_pixels(torch.ones(4000, 2, 3), image_keys(torch.zeros(4000, 1), image_ids=range(4000)))
    assert torch.allclose(many.float().mean(0), torch.full((2, 3), 2.5), atol=0.15)


def test_pixel_counts():
    fractions = [0, 0.1, 0.25, 1 / 3, 0.5, 0.9, 1]
    assert pixel_counts(fractions, 48) == [math.floor(fraction * 48 + 0.5) for fraction in fractions]
    assert pixel_counts([0.1, 0.3, 0.7], 50) == [5, 15, 35]
    assert pixel_counts([0.07, 0.29, 0.57], 100, "floor") == [7, 29, 57]  # 0.57 * 100 is 56.99999999999999
    assert pixel_counts([0.1, 0.5, 0.9], 256) == [26, 128, 230]
    assert pixel_counts([0.1, 0.5, 0.9], 256, "floor") == [25, 128, 230]
    assert pixel_counts([0.5], 5) == [3]
    with pytest.raises(ValueError, match=r"`fractions` must lie in \[0, 1\], got 1.1"):
        pixel_counts([1.1], 10)
    with pytest.raises(ValueError, match="`rounding` must be one of nearest, floor, got 'up'"):
        pixel_counts([0.1], 10, "up")


@pytest.mark.parametrize("percent", [100, 50, 15, 33.3, 2])
def test_keep_top(images, percent):
    saliency = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(2))
    saliency[0] = 0.5
    ranks = rank_pixels(saliency, image_keys(images))
    count = math.ceil(percent * 48 / 100 - 1e-9)
    kept = keep_top(saliency, percent, "ceil", ranks)
    assert (kept > 0).flatten(1).sum(1).tolist() == [count] * 5
    for one, full in zip(kept, saliency):
        assert one.flatten().sort(descending=True).values[:count].equal(full.flatten().topk(count).values)
    threshold = torch.quantile(saliency.flatten(1), 1 - percent / 100, dim=1).view(-1, 1, 1)
    assert torch.equal(keep_top(saliency, percent, "quantile"), saliency * (saliency >= threshold))
    assert torch.equal(keep_top(saliency, percent, "quantile")[0], saliency[0])  # ties all stay under this rule


def test_a_percentage_that_is_a_whole_number_of_pixels_keeps_as_many():
    saliency = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(2))
    ranks = rank_pixels(saliency, image_keys(saliency))
    for percent in range(1, 100):  # 7 / 100 * 100 is 7.000000000000001
        assert int((keep_top(saliency, percent, "ceil", ranks) > 0).sum()) == percent


@pytest.mark.parametrize(
    "percent,rule,message",
    [
        (0, "ceil", r"`percent` of pixels kept must lie in \(0, 100\], got 0"),
        (101, "ceil", "got 101"),
        (float("nan"), "ceil", "got nan"),
        (50, "best", "`rule` must be one of ceil, quantile, got 'best'"),
        (50, "ceil", "`ranks` .* needed for rule='ceil'"),
    ],
)
def test_bad_keep_top(percent, rule, message):
    with pytest.raises(ValueError, match=message):
        keep_top(torch.rand(1, 2, 2), percent, rule)


# ----------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    "saliency,message",
    [
        (torch.rand(5, 1, 4, 4), r"shape \(batch_size, height, width\) with batch_size 5, got \(5, 1, 4, 4\)"),
        (torch.rand(4, 4, 4), r"got \(4, 4, 4\)"),
        (torch.rand(5, 0, 4), r"got \(5, 0, 4\)"),
        (torch.full((5, 2, 2), float("nan")), "the map of image 0 holds NaN or infinity"),
        (torch.full((5, 2, 2), float("inf")), "the map of image 0 holds NaN or infinity"),
        (
            torch.tensor([0, 0, -0.25, 0, 0]).view(5, 1, 1),
            "must not be negative, but the map of image 2 goes down to -0.25",
        ),
        (
            torch.tensor([0, 0, 1.5, 0, 0]).view(5, 1, 1),
            r"must lie in \[0, 1\], but the map of image 2 goes up to 1.5",
        ),
        ([torch.rand(2, 2), torch.rand(3, 2)], r"`saliency` mixes the sizes \(2, 2\), \(3, 2\)"),
    ],
)
def test_bad_saliency(saliency, message):
    with pytest.raises(ValueError, match=message):
        check_saliency(saliency, 5, at_most_one=True)


def test_a_map_may_exceed_1_by_rounding_and_no_more():
    check_saliency(torch.full((1, 2, 2), 1 + 8e-6), 1, at_most_one=True)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        check_saliency(torch.full((1, 2, 2), 1 + 2e-5), 1, at_most_one=True)


def test_bad_types():
    with pytest.raises(TypeError, match="`saliency` must be one tensor, got str"):
        check_saliency("map", 1)
    with pytest.raises(TypeError, match="`pixel_values` must be floating point, got torch.uint8"):
        check_pixel_values(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`pixel_values` must have shape .* got \(3, 2, 2\)"):
        check_pixel_values(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="with nothing empty"):
        check_pixel_values(torch.zeros(0, 3, 2, 2))


def test_full_size_saliency(images):
    assert full_size_saliency(torch.rand(5, 2, 2, dtype=torch.float64), images).shape == (5, 6, 8)
    assert full_size_saliency([torch.rand(2, 2)] * 5, images).dtype == torch.float32


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7, 1.0])
def test_resized_plateaus_stay_ties(value):
    saliency = torch.zeros(1, 7, 7)
    saliency[:, 2:, 1:6] = value
    full_size = full_size_saliency(saliency, torch.zeros(1, 3, 224, 199))
    plateau = full_size[:, 32 * 2 + 16 :, round(199 / 7 * 1.5) + 1 : round(199 / 7 * 5.5) - 1]
    assert plateau.unique().tolist() == [saliency.max().item()]
