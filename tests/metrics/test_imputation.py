import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from hf_explain.metrics.imputation import linear_imputation, road
from hf_explain.tensors.perturbation import rank_pixels
from hf_explain.tensors.randomness import image_keys


def direct_solution(image, removed):
    """The published linear system, one equation after the other, solved densely in float64."""
    channels, height, width = image.shape
    places = [(row, column) for row in range(height) for column in range(width) if removed[row, column]]
    index = {place: number for number, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), channels))
    for place, number in index.items():
        for down in (-1, 0, 1):
            for along in (-1, 0, 1):
                row, column = place[0] + down, place[1] + along
                if (down, along) == (0, 0) or not (0 <= row < height and 0 <= column < width):
                    continue
                weight = 1 / 6 if down == 0 or along == 0 else 1 / 12
                matrix[number, number] += weight
                if (row, column) in index:
                    matrix[number, index[row, column]] -= weight
                else:
                    right[number] += weight * image[:, row, column].double().numpy()
    solved = image.double().clone()
    if places:
        rows, columns = zip(*places)
        solved[:, list(rows), list(columns)] = torch.from_numpy(np.linalg.solve(matrix, right).T)
    return solved


def holes(kind, height, width, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        saliency = torch.rand(1, height, width, generator=generator)
    elif kind == "smooth":
        coarse = torch.rand(1, 1, 4, 4, generator=generator)
        saliency = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    else:  # everything but one corner of the image, or a stripe
        saliency = -torch.arange(height * width, dtype=torch.float32).view(1, height, width)
    ranks = rank_pixels(saliency, torch.tensor([seed]))
    return ranks[0] < min(height * width - 1, round(share * height * width))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["smooth", "random", "rows"])
@pytest.mark.parametrize("size", [(28, 28), (30, 45), (33, 14), (5, 3), (2, 2)])
def test_against_the_direct_solution(size, kind, share):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    removed = torch.stack([holes(kind, *size, share, seed) for seed in (0, 1)])
    imputed, loosely = linear_imputation(images, removed, tolerance=2e-3), linear_imputation(images, removed)
    for image, hole, result, rough in zip(images, removed, imputed, loosely):
        exact = direct_solution(image, hole)
        assert (result.double() - exact).abs().max() < 1e-3 and (rough.double() - exact).abs().max() < 5e-3
        assert torch.equal(result[:, ~hole], image[:, ~hole])


def sparse_solution(image, removed):
    """The same system for images too large to write it out densely."""
    channels, height, width = image.shape
    places = np.arange(height * width).reshape(height, width)
    weights = sparse.csr_matrix((height * width,) * 2)
    for down, along, weight in ((0, 1, 1 / 6), (1, 0, 1 / 6), (1, 1, 1 / 12), (1, -1, 1 / 12)):
        first = places[: height - down, max(0, -along) : width - max(0, along)].ravel()
        second = places[down:, max(0, along) : width + min(0, along)].ravel()
        one_way = sparse.csr_matrix((np.full(len(first), weight), (first, second)), (height * width,) * 2)
        weights = weights + one_way + one_way.T
    operator = (sparse.diags(np.asarray(weights.sum(1)).ravel()) - weights).tocsr()
    unknown = removed.flatten().numpy()
    values = image.double().flatten(1).numpy().copy()
    right = -(operator[unknown][:, ~unknown] @ values[:, ~unknown].T)
    values[:, unknown] = spsolve(operator[unknown][:, unknown].tocsc(), right).T
    return torch.from_numpy(values).view(channels, height, width)


@pytest.mark.parametrize("kind", ["smooth", "random"])
def test_against_the_sparse_direct_solution_at_full_size(kind):
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    removed = holes(kind, 224, 224, 0.9)[None]
    imputed = linear_imputation(images, removed, tolerance=2e-3)
    assert (imputed[0].double() - sparse_solution(images[0], removed[0])).abs().max() < 1e-3


def test_by_hand():
    # one pixel missing in the middle of a row of three: the mean of its two direct neighbours
    images = torch.tensor([[[[1.0, 0.0, 4.0]]]])
    imputed = linear_imputation(images, torch.tensor([[[False, True, False]]]), 1e-6)
    torch.testing.assert_close(imputed, torch.tensor([[[[1.0, 2.5, 4.0]]]]))
    # a corner: direct neighbours 1 and 2 count 1/6 each, the diagonal one 3 counts 1/12; nothing else is in the image
    images = torch.tensor([[[[9.0, 1.0], [2.0, 3.0]]]])
    imputed = linear_imputation(images, torch.tensor([[[True, False], [False, False]]]), 1e-6)
    assert imputed[0, 0, 0, 0].item() == pytest.approx((2 * 1 + 2 * 2 + 3) / 5)


def test_constant_and_untouched_images_stay_what_they_are():
    images = torch.full((2, 3, 32, 32), 0.7)
    removed = torch.stack([holes("smooth", 32, 32, 0.5), torch.zeros(32, 32, dtype=torch.bool)])
    torch.testing.assert_close(linear_imputation(images, removed), images)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(linear_imputation(images, removed[1:]), images)


def test_blocks_change_nothing(monkeypatch):
    images = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    removed = torch.stack([holes("smooth", 28, 28, 0.1 + 0.15 * seed, seed) for seed in range(5)])
    whole, before = linear_imputation(images, removed, 2e-3), images.clone()
    monkeypatch.setattr("hf_explain.metrics.imputation._CPU_BLOCK_BYTES", 4 * 2 * 3 * 28 * 28)
    torch.testing.assert_close(linear_imputation(images, removed, 2e-3), whole, atol=1e-3, rtol=0)
    assert torch.equal(images, before)
    half = linear_imputation(images.bfloat16(), removed, 2e-3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0.05)


def test_bad_imputation():
    images, removed = torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`removed` must be a BoolTensor of shape \(2, 4, 4\), got torch.float32"):
        linear_imputation(images, removed.float())
    with pytest.raises(ValueError, match=r"`removed` must be a BoolTensor of shape \(2, 4, 4\), got .* \(1, 4, 4\)"):
        linear_imputation(images, removed[:1])
    removed[1] = True
    with pytest.raises(ValueError, match="`removed` leaves no pixel of image 1"):
        linear_imputation(images, removed)
    with pytest.raises(ValueError, match="`tolerance` must be above 0 and finite, got 0"):
        linear_imputation(images, removed[:1].expand(2, -1, -1), tolerance=0)
    hole = holes("smooth", 28, 28, 0.9)[None]
    with pytest.raises(RuntimeError, match="did not come within `tolerance` 1e-06 in 1 iterations"):
        linear_imputation(torch.randn(1, 3, 28, 28), hole, tolerance=1e-6, max_iterations=1)


# -------------------------------------------------------------------------------------------------------------- ROAD


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3 * 14 * 12, generator=generator) / 10
    pixel_values = torch.randn(8, 3, 14, 12, generator=generator)
    saliency = torch.rand(8, 5, 4, generator=generator)
    saliency[3] = 0.5
    return lambda images: images.flatten(1) @ weight.T, pixel_values, saliency


@pytest.mark.parametrize("score", ["probability", "accuracy", "agreement"])
def test_road_against_loops(setting, score):
    predict, pixel_values, saliency = setting
    labels = torch.arange(8) % 4
    result = road(predict, pixel_values, saliency, labels=labels, score=score, noise=0.0, percents=(25, 60), seed=2)
    full_size = torch.nn.functional.interpolate(saliency[:, None].double(), (14, 12), mode="bilinear")[:, 0].float()
    ranks = rank_pixels(full_size, image_keys(pixel_values, seed=2))
    top = predict(pixel_values).argmax(-1)
    for index, image in enumerate(pixel_values):
        for step, share in enumerate((0.25, 0.6)):
            count = math.floor(share * 168 + 0.5)
            for curve, removed in ((result.morf, ranks[index] < count), (result.lerf, ranks[index] >= 168 - count)):
                logits = predict(direct_solution(image, removed)[None].float())[0]
                if score == "probability":
                    expected = logits.softmax(0)[top[index]].item()
                else:
                    expected = float(logits.argmax() == (labels if score == "accuracy" else top)[index])
                assert curve[index, step].item() == pytest.approx(expected, abs=2e-3)
    by_hand = ((result.lerf - result.morf) / 2).mean(1)
    torch.testing.assert_close(result.combined, by_hand.double())
    assert result.protocol["score"] == score and result.protocol["percents"] == [25, 60]


def test_noise_is_on_imputed_pixels_alone_and_seeded(setting):
    _, pixel_values, saliency = setting
    seen = []

    def predict(images):
        seen.append(images)
        return images.mean((2, 3))

    options = {"percents": (50,), "tolerance": 1e-5, "logits": torch.rand(8, 3)}
    for noise, seed in ((0.0, 0), (0.01, 0), (0.01, 0), (0.01, 1)):
        road(predict, pixel_values, saliency, noise=noise, seed=seed, **options)
    clean, noisy, again, other = seen
    changed = (noisy != clean).any(1)
    assert changed.flatten(1).sum(1).tolist() == [84] * 16
    assert torch.equal(noisy, again) and not torch.equal(noisy, other)
    difference = (noisy - clean).permute(0, 2, 3, 1)[changed]
    assert difference.std().item() == pytest.approx(0.01, rel=0.05) and difference.mean().abs() < 1e-3


def noise_of(pixel_values, **options):
    """What `road` adds to each image's imputed pixels: half of the pixels of a constant map, which the seed draws."""
    seen = []

    def predict(images):
        seen.append(images)
        return images.mean((2, 3))

    size = len(pixel_values)
    options = {"percents": (50,), "tolerance": 1e-5, "logits": torch.rand(size, 3), **options}
    for noise in (1.0, 0.0):
        road(predict, pixel_values, torch.ones(size, 2, 2), noise=noise, **options)
    noisy, clean = (images.view(2, size, *pixel_values.shape[1:]).double() for images in seen)
    return (noisy - clean).sum(0)  # first one half of the pixels, then the other


def test_noise_is_of_the_image_and_the_seed_alone(setting):
    _, pixel_values, _ = setting
    noise = noise_of(pixel_values)
    assert noise.std().item() == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(noise_of(pixel_values), noise, rtol=0, atol=0)
    torch.testing.assert_close(noise_of(pixel_values[[5, 2]]), noise[[5, 2]], rtol=0, atol=1e-4)
    same = pixel_values[:1].expand(3, -1, -1, -1)
    by_id = noise_of(same, image_ids=[7, 8, 7])
    assert torch.equal(by_id[0], by_id[2])

    def correlation(one, other):
        return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs().item()

    for one, other in ((noise, noise_of(pixel_values, seed=1)), (noise[:-1], noise[1:]), (by_id[:2], by_id[1:])):
        assert correlation(one, other) < 0.15
    # nor is it the numbers that order ties: the pixels that go first would get the largest ones
    assert correlation(rank_pixels(torch.ones(8, 14, 12), image_keys(pixel_values)).double(), noise[:, 0].abs()) < 0.15


@pytest.mark.parametrize("batch_size", [1, 3])
def test_road_does_not_depend_on_the_batch(setting, batch_size):
    predict, pixel_values, saliency = setting
    whole = road(predict, pixel_values, saliency)
    parts = [
        road(predict, images, maps, max_batch=5)
        for images, maps in zip(pixel_values.split(batch_size), saliency.split(batch_size))
    ]
    torch.testing.assert_close(torch.cat([part.morf for part in parts]), whole.morf, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cat([part.combined for part in parts]), whole.combined, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"percents": ()}, r"`percents` of pixels removed must lie in \(0, 100\), at least one"),
        ({"percents": (50, 100)}, r"got \(50.0, 100.0\)"),
        ({"noise": -1}, "`noise` must be at least 0 and finite, got -1"),
        ({"score": "auc"}, "`score` must be one of"),
        ({"score": "accuracy"}, "`labels` are needed"),
        ({"saliency": -torch.ones(8, 2, 2)}, "`saliency` must not be negative"),
        ({"saliency": torch.ones(7, 2, 2)}, "`saliency` must have shape"),
    ],
)
def test_bad_road(setting, options, message):
    predict, pixel_values, saliency = setting
    with pytest.raises(ValueError, match=message):
        road(predict, **{"pixel_values": pixel_values, "saliency": saliency, **options})


def test_tiny_images_keep_one_pixel_to_impute_from(setting):
    result = road(lambda images: images.flatten(1), torch.rand(2, 1, 2, 2), torch.rand(2, 2, 2))
    assert result.morf.shape == (2, 9) and torch.isfinite(result.morf).all()
