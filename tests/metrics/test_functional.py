import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_explain.metrics
from hf_explain.methods.controls import centre_maps, random_maps
from hf_explain.metrics import engine
from hf_explain.metrics.functional import (
    PRESETS,
    Photographs,
    auc,
    auc_d,
    auc_d_fills,
    average_drop,
    insertion_deletion,
    perturbation_curves,
    road,
    step_fractions,
)
from hf_explain.tensors.maps import min_max, resize_maps
from hf_explain.tensors.perturbation import gaussian_blur, rank_pixels
from hf_explain.tensors.randomness import image_keys
from hf_explain.tensors.sharing import sharing


GOLDEN = Path(__file__).parents[1] / "golden"
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


def close(actual, expected):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-5, atol=1e-7)


class Linear:
    """logits = flatten(pixel_values) W^T, with a count of the batches it was given; it says it reads 5 × 4 patches."""

    patch_size = (5, 4)

    def __init__(self, weight):
        self.weight, self.batches = weight, []

    def __call__(self, pixel_values):
        self.batches.append(len(pixel_values))
        return pixel_values.flatten(1) @ self.weight.T


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    predict = Linear(torch.randn(4, 3 * 10 * 12, generator=generator) / 10)
    pixel_values = torch.randn(8, 3, 10, 12, generator=generator)
    saliency = torch.rand(8, 5, 4, generator=generator)
    saliency[3] = 0.5  # constant: every pixel ties
    return predict, pixel_values, saliency


def remove(image, saliency_order, count, colour):
    """One image, pixel after pixel."""
    image = image.clone()
    width = image.shape[-1]
    for place in saliency_order[:count]:
        image[:, place // width, place % width] = colour
    return image


def pixel_order(pixel_values, saliency, index, seed=0):
    """The most salient pixel first, by a loop over places."""
    full_size = resize_maps(saliency, pixel_values.shape[-2:])
    ranks = rank_pixels(full_size, image_keys(pixel_values, seed=seed))[index].flatten().tolist()
    values = full_size[index].flatten().tolist()
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    assert all(values[a] >= values[b] for a, b in zip(order, order[1:]))
    return order


# ----------------------------------------------------------------------------------------------------------- golden


def test_golden_rise_auc():
    golden = load_file(GOLDEN / "rise_auc.safetensors")
    close(auc(golden["curve"])[None], golden["auc"])


@pytest.mark.parametrize("order", ["positive", "negative"])
@pytest.mark.parametrize("explained", ["predicted", "ground_truth"])
def test_golden_perturbation(order, explained):
    golden = load_file(GOLDEN / "perturbation.safetensors")
    predict = Linear(golden["classifier_weight"])
    pixel_values = (golden["images"] - 0.5) / 0.5
    saliency = min_max(golden["saliency"][:, 0])
    options = {**HALF, "fractions": step_fractions(9, 0.9), "rounding": "floor", "orders": order, "max_batch": 7}
    classes = golden[explained]
    hits = {"score": "accuracy", "labels": classes}
    curves = perturbation_curves(predict, pixel_values, saliency, **options, **hits)
    hits = getattr(curves, order)[:, 1:]
    close(hits.T, golden[f"{explained}.{order}.hits"])
    expected = golden[f"{explained}.{order}.auc_trapezoid_over_0.1_0.9"]
    close(auc(hits.mean(0), curves.fractions[1:], normalize=False)[None], expected)
    close(auc(hits, curves.fractions[1:], normalize=False).mean()[None], expected)
    curves = perturbation_curves(predict, pixel_values, saliency, **options, score="probability", target=classes)
    close(getattr(curves, order)[:, 1:].T, golden[f"{explained}.{order}.probability"])
    if explained == "predicted":
        curves = perturbation_curves(predict, pixel_values, saliency, **options, score="agreement")
        assert torch.equal(getattr(curves, order)[:, 1:], hits)
        assert torch.equal(curves.target, golden["predicted"])


@pytest.mark.parametrize("percent", [100, 50, 15])
def test_golden_average_drop(percent):
    golden = load_file(GOLDEN / "average_drop.safetensors")
    predict = Linear(golden["classifier_weight"])
    preset = {**PRESETS["average_drop"]["ttame"], "percents": [percent]}
    maps = min_max(golden["raw_maps"][:, 0])
    torch.testing.assert_close(maps, golden["minmax_maps"][:, 0])
    for suffix in ("", "_check"):
        result = average_drop(predict, golden["pixel_values"], maps, **preset, **IMAGENET, max_batch=7)
        close(result.probability, golden["confidence"])
        close(result.kept_probability[:, 0], golden[f"v{percent}{suffix}.masked_confidence"])
        close(result.average_drop, golden[f"v{percent}{suffix}.average_drop"])
        close(result.increase_in_confidence, golden[f"v{percent}{suffix}.increase_in_confidence"])
    assert torch.equal(result.target, golden["predicted"])


def test_golden_average_drop_in_normalized_space():
    golden = load_file(GOLDEN / "average_drop.safetensors")
    predict = Linear(golden["classifier_weight"])
    maps = golden["minmax_maps"][:, 0]
    result = average_drop(predict, golden["pixel_values"], maps, percents=[100], mask_space="normalized")
    close(result.kept_probability[:, 0], golden["mask_normalized_pixels.v100.masked_confidence"])
    close(result.average_drop, golden["mask_normalized_pixels.v100.average_drop"])
    close(result.increase_in_confidence, golden["mask_normalized_pixels.v100.increase_in_confidence"])


# ---------------------------------------------------------------------------------------------------------- by hand


def sum_classifier(pixel_values):
    """Two classes: the sum of the picture against 1.5."""
    total = pixel_values.sum((1, 2, 3))
    return torch.stack([total, torch.full_like(total, 1.5)], dim=1)


BY_HAND = {
    "pixel_values": torch.tensor([[[[2.0, 1.0], [0.0, 1.0]]]]),
    "saliency": torch.tensor([[[0.9, 0.4], [0.1, 0.3]]]),
    "image_mean": (0,),
    "image_std": (1,),
}


def test_curves_by_hand():
    # positive: sums 4, 2, 1, 0, 0; negative: sums 4, 4, 3, 2, 0
    curves = perturbation_curves(sum_classifier, **BY_HAND, fractions=(0, 0.25, 0.5, 0.75, 1))
    assert curves.positive.tolist() == [[1, 1, 0, 0, 0]]
    assert curves.negative.tolist() == [[1, 1, 1, 1, 0]]
    result = auc_d(sum_classifier, **BY_HAND, fractions=(0, 0.25, 0.5, 0.75, 1))
    assert result.positive_auc.tolist() == [37.5] and result.negative_auc.tolist() == [87.5]
    assert result.auc_d.tolist() == [50]
    accuracy = auc_d(sum_classifier, **BY_HAND, fractions=(0, 0.5), score="accuracy", labels=[1], normalize=False)
    assert accuracy.positive_auc.tolist() == [25] and accuracy.negative_auc.tolist() == [0]
    probability = perturbation_curves(sum_classifier, **BY_HAND, fractions=(0.5,), score="probability")
    assert probability.positive.item() == pytest.approx(1 / (1 + math.exp(0.5)))
    assert probability.negative.item() == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_average_drop_by_hand():
    result = average_drop(sum_classifier, **BY_HAND, percents=(100, 50))
    sigmoid = lambda total: 1 / (1 + math.exp(1.5 - total))  # noqa: E731
    p, everything, half = sigmoid(4), sigmoid(2 * 0.9 + 0.4 + 0.3), sigmoid(2 * 0.9 + 0.4)
    assert result.probability.item() == pytest.approx(p)
    assert result.kept_probability.tolist() == [pytest.approx([everything, half])]
    assert result.average_drop.tolist() == pytest.approx([100 * (p - everything) / p, 100 * (p - half) / p])
    assert result.increase_in_confidence.tolist() == [0, 0]
    assert result.area.tolist() == [pytest.approx([1.7 / 4, 1.3 / 4])]
    # for the other class less picture is more confidence
    other = average_drop(sum_classifier, **BY_HAND, percents=(100, 50), target=1)
    assert other.average_drop.tolist() == [0, 0] and other.increase_in_confidence.tolist() == [100, 100]


def test_average_drop_by_rank_by_hand():
    """The order 0.9, 0.4, 0.3, 0.1 is 1, 2/3, 1/3, 0, whatever the values."""
    sigmoid = lambda total: 1 / (1 + math.exp(1.5 - total))  # noqa: E731
    for power in (1, 3):
        changed = {**BY_HAND, "saliency": BY_HAND["saliency"] ** power}
        result = average_drop(sum_classifier, **changed, percents=(100, 50), scale="rank")
        expected = [sigmoid(2 * 1 + 2 / 3 + 1 / 3), sigmoid(2 * 1 + 2 / 3)]
        assert result.kept_probability.tolist() == [pytest.approx(expected)]
        assert result.area.tolist() == [pytest.approx([1 / 2, (1 + 2 / 3) / 4])]
        assert result.protocol["scale"] == "rank"
    tied = {**BY_HAND, "saliency": torch.tensor([[[0.4, 0.4], [0.1, 0.4]]])}  # three share places 1, 2 and 3
    result = average_drop(sum_classifier, **tied, percents=[100], scale="rank")
    assert result.kept_probability.item() == pytest.approx(sigmoid(4 * 2 / 3))
    constant = average_drop(
        sum_classifier, **{**BY_HAND, "saliency": torch.ones(1, 1, 1)}, percents=[100], scale="rank"
    )
    assert constant.kept_probability.item() == pytest.approx(sigmoid(4 / 2))
    # in cells: two columns of means 0.5 and 0.35
    cells = average_drop(sum_classifier, **BY_HAND, percents=[100], scale="rank", grid=(1, 2))
    assert cells.kept_probability.item() == pytest.approx(sigmoid(2))
    with pytest.raises(ValueError, match="`scale` must be one of map, rank, got 'order'"):
        average_drop(sum_classifier, **BY_HAND, scale="order")


def test_an_unchanged_probability_is_no_increase():
    result = average_drop(sum_classifier, **{**BY_HAND, "saliency": torch.ones(1, 2, 2)}, percents=[100])
    assert result.increase.tolist() == [[False]] and result.drop.tolist() == [[0]]


def test_a_target_of_probability_zero_drops_by_zero():
    def predict(pixel_values):
        return torch.tensor([[0.0, 1000.0]]).expand(len(pixel_values), 2)

    assert average_drop(predict, **BY_HAND, target=0).average_drop.tolist() == [0, 0, 0]


def test_insertion_and_deletion_by_hand():
    result = insertion_deletion(sum_classifier, **BY_HAND, steps=2, insertion_fill="mean")
    sigmoid = lambda total: 1 / (1 + math.exp(1.5 - total))  # noqa: E731
    assert result.deletion.tolist() == [pytest.approx([sigmoid(4), sigmoid(1), sigmoid(0)])]
    assert result.insertion.tolist() == [pytest.approx([sigmoid(0), sigmoid(3), sigmoid(4)])]
    assert result.deletion_auc.item() == pytest.approx((sigmoid(4) / 2 + sigmoid(1) + sigmoid(0) / 2) / 2)
    assert result.protocol["steps"] == 2 and result.protocol["pixels_per_step"] == 2


# ----------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("score", ["agreement", "accuracy", "probability"])
def test_curves_against_loops(setting, score):
    predict, pixel_values, saliency = setting
    labels = torch.arange(8) % 4
    options = {"labels": labels} if score == "accuracy" else {"target": labels} if score == "probability" else {}
    result = perturbation_curves(predict, pixel_values, saliency, score=score, fill="mean", seed=5, **options)
    for index, image in enumerate(pixel_values):
        order = pixel_order(pixel_values, saliency, index, seed=5)
        for name, places in (("positive", order), ("negative", order[::-1])):
            for step, fraction in enumerate(result.fractions):
                perturbed = remove(image, places, round(fraction * 120), 0)
                logits = predict(perturbed[None])[0]
                if score == "probability":
                    expected = logits.softmax(0)[labels[index]].item()
                else:
                    wanted = labels[index] if score == "accuracy" else predict(image[None])[0].argmax()
                    expected = float(logits.argmax() == wanted)
                assert getattr(result, name)[index, step].item() == pytest.approx(expected, abs=1e-5)


def test_insertion_and_deletion_against_loops(setting):
    predict, pixel_values, saliency = setting
    result = insertion_deletion(predict, pixel_values, saliency, steps=7)
    assert result.protocol["pixels_per_step"] == 18 and result.deletion.shape == (8, 8)
    blurred = gaussian_blur(pixel_values)
    for index, image in enumerate(pixel_values):
        order = pixel_order(pixel_values, saliency, index)
        top = predict(image[None]).argmax()
        inserted = blurred[index].clone()
        for step in range(8):
            for place in order[18 * (step - 1) : 18 * step] if step else []:
                inserted[:, place // 12, place % 12] = image[:, place // 12, place % 12]
            deleted = remove(image, order, 18 * step, 0)
            for curve, perturbed in ((result.insertion, inserted), (result.deletion, deleted)):
                expected = predict(perturbed[None])[0].softmax(0)[top].item()
                assert curve[index, step].item() == pytest.approx(expected, abs=1e-5)
    curve = result.deletion[0].tolist()
    assert result.deletion_auc[0].item() == pytest.approx((sum(curve) - curve[0] / 2 - curve[-1] / 2) / 7)


def test_exact_rule_keeps_exactly_the_asked_part_of_tied_maps(setting):
    predict, pixel_values, _ = setting
    result = average_drop(predict, pixel_values, torch.ones(8, 2, 2), percents=(50, 15), mask_space="normalized")
    assert result.area.tolist() == [pytest.approx([0.5, 18 / 120])] * 8
    everything = average_drop(
        predict, pixel_values, torch.ones(8, 10, 12), percents=(50,), rule="quantile", mask_space="normalized"
    )
    assert everything.area.tolist() == [[1.0]] * 8


# ---------------------------------------------------------------------------------------------------- independence


def per_image(name, predict, pixel_values, saliency, max_batch, **options):
    if name == "auc_d":
        result = auc_d(
            predict, pixel_values, saliency, max_batch=max_batch, score="probability", fill="blur", **options
        )
        return torch.stack([result.auc_d, result.positive_auc, result.negative_auc], 1)
    if name == "agreement":
        return auc_d(predict, pixel_values, saliency, max_batch=max_batch, **HALF, **options).curves.positive
    if name == "insertion_deletion":
        result = insertion_deletion(predict, pixel_values, saliency, steps=6, max_batch=max_batch, **options)
        return torch.cat([result.insertion, result.deletion], 1)
    result = average_drop(predict, pixel_values, saliency, max_batch=max_batch, **HALF, **options)
    return torch.cat([result.drop, result.increase, result.area], 1)


METRICS = ["auc_d", "agreement", "insertion_deletion", "average_drop"]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_numbers_do_not_depend_on_the_batch(setting, name, batch_size):
    predict, pixel_values, saliency = setting
    whole = per_image(name, predict, pixel_values, saliency, 64)
    assert len(whole) == 8
    parts = [
        per_image(name, predict, images, maps, batch_size)
        for images, maps in zip(pixel_values.split(batch_size), saliency.split(batch_size))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    reversed_order = per_image(name, predict, pixel_values.flip(0), saliency.flip(0), 5)
    torch.testing.assert_close(reversed_order.flip(0), whole, rtol=1e-4, atol=1e-5)
    ids = torch.arange(100, 108)
    by_id = per_image(name, predict, pixel_values, saliency, 64, image_ids=ids)
    parts = [
        per_image(name, predict, images, maps, 64, image_ids=some)
        for images, maps, some in zip(
            pixel_values.split(batch_size), saliency.split(batch_size), ids.split(batch_size)
        )
    ]
    torch.testing.assert_close(torch.cat(parts), by_id, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_only_ties_depend_on_the_seed(setting, name):
    predict, pixel_values, saliency = setting
    saliency = torch.rand(8, 10, 12, generator=torch.Generator().manual_seed(1))
    saliency[3] = 0.5
    first, second = (per_image(name, predict, pixel_values, saliency, 64, seed=seed) for seed in (0, 1))
    distinct = [index for index in range(8) if index != 3]
    torch.testing.assert_close(first[distinct], second[distinct])
    assert name == "agreement" or not torch.equal(first[3], second[3])


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_modified_and_no_graph_is_built(setting, name):
    predict, pixel_values, saliency = setting
    images, maps = pixel_values.clone(), saliency.clone().requires_grad_()
    predict.weight.requires_grad_()
    result = per_image(name, predict, images, maps, 3)
    assert torch.equal(images, pixel_values) and torch.equal(maps, saliency)
    assert not result.requires_grad


def test_half_precision_images(setting):
    predict, pixel_values, saliency = setting
    full = per_image("auc_d", predict, pixel_values.bfloat16().float(), saliency, 64)
    weight = predict.weight
    half = per_image(
        "auc_d", lambda images: images.float().flatten(1) @ weight.T, pixel_values.bfloat16(), saliency, 64
    )
    torch.testing.assert_close(half, full, rtol=0.05, atol=1.0)


def test_forward_passes_are_shared(setting):
    predict, pixel_values, saliency = setting
    auc_d(predict, pixel_values, saliency, **HALF, max_batch=50)
    # 8 unperturbed; 9 steps x 2 orders x 8 images and 1 black image for the whole batch, in full batches
    assert predict.batches == [8, 50, 50, 45]
    predict.batches.clear()
    logits = pixel_values.flatten(1) @ predict.weight.T
    auc_d(predict, pixel_values, saliency, fill="blur", logits=logits, max_batch=50)
    assert predict.batches == [50, 50, 50, 2]
    predict.batches.clear()
    average_drop(predict, pixel_values, saliency, mask_space="normalized", max_batch=64, max_bytes=7 * 4 * 360)
    assert predict.batches == [7, 1, 7, 7, 7, 3]
    predict.batches.clear()
    perturbation_curves(predict, pixel_values[:2], saliency[:2], fill="mean", fractions=(0, 0.5, 1), max_bytes=1)
    assert predict.batches == [1] * 7  # at least one at a time, however little memory is allowed


class Recorder(torch.nn.Module):
    """A classifier that runs in bfloat16 and channels_last, and writes down what it is given."""

    dtype, memory_format = torch.bfloat16, torch.channels_last

    def __init__(self, weight):
        super().__init__()
        self.weight, self.seen = weight, []

    def forward(self, pixel_values):
        assert pixel_values.dtype == self.dtype
        assert pixel_values.is_contiguous(memory_format=self.memory_format)
        self.seen.append(pixel_values.data_ptr())
        return pixel_values.float().flatten(1) @ self.weight.T


@pytest.mark.parametrize("name", METRICS)
def test_images_are_made_in_the_precision_and_layout_of_the_classifier(setting, name):
    predict, pixel_values, saliency = setting
    recorder = Recorder(predict.weight)
    rounded = pixel_values.bfloat16().float()
    found = per_image(name, recorder, rounded, saliency, 8)
    torch.testing.assert_close(
        found, per_image(name, predict, rounded, saliency, 8), rtol=0.05, atol=1.0 if "auc" in name else 0.05
    )
    assert len(set(recorder.seen)) <= 2 < len(recorder.seen)  # one batch for the images themselves, one for the others


def test_maps_are_ranked_once_for_all_metrics_of_a_batch(setting, monkeypatch):
    predict, pixel_values, saliency = setting
    ranked = []
    monkeypatch.setattr(engine, "rank_pixels", lambda *args: ranked.append(1) or rank_pixels(*args))
    apart = [per_image(name, predict, pixel_values, saliency, 64) for name in METRICS]
    assert len(ranked) == 4
    with sharing():
        together = [per_image(name, predict, pixel_values, saliency, 64) for name in METRICS]
    assert len(ranked) == 5 and all(torch.equal(*pair) for pair in zip(apart, together))


def test_random_maps_have_no_auc_d_and_the_centre_counts_where_the_object_is():
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.rand(64, 1, 12, 12, generator=generator) * 0.2
    pixel_values[:, :, 4:8, 4:8] += 1

    def predict(images):
        total = images.mean((1, 2, 3)) * 100
        return torch.stack([total, torch.full_like(total, 5.0)], 1)

    unit = {"image_mean": (0,), "image_std": (1,)}
    assert auc_d(predict, pixel_values, random_maps(pixel_values), **unit).auc_d.mean().abs() < 5
    assert auc_d(predict, pixel_values, centre_maps(pixel_values), **unit).auc_d.mean() > 40


@pytest.mark.parametrize(
    "metric,name",
    [
        (metric, name)
        for metric in PRESETS
        if metric not in ("pointing", "grid_pointing", "single_deletion")  # other inputs, or 4 x 4 patches
        for name in PRESETS[metric]
    ],
)
def test_presets_run(setting, metric, name):
    predict, pixel_values, saliency = setting
    function = getattr(hf_explain.metrics.functional, metric)
    options = dict(PRESETS[metric][name])
    if options.get("score") == "accuracy":
        options["labels"] = torch.arange(8) % 4
    if "photo" in options.get("fills", ()):
        options["photos"] = Photographs(pixel_values, predict(pixel_values), torch.arange(8))
    options |= {} if metric == "road" else HALF
    protocol = function(predict, pixel_values, saliency, **options).protocol
    for key, value in PRESETS[metric][name].items():
        assert protocol[key] == (list(value) if isinstance(value, tuple) else value)


def test_chefer_convention_is_the_area_over_nine_tenths_in_percent(setting):
    predict, pixel_values, saliency = setting
    labels = predict(pixel_values).argmax(-1)
    result = auc_d(predict, pixel_values, saliency, labels=labels, **PRESETS["auc_d"]["chefer"], **HALF)
    for curve, area in zip(result.curves.positive.tolist(), result.positive_auc.tolist()):
        assert area == pytest.approx(100 * sum(0.1 * (a + b) / 2 for a, b in zip(curve, curve[1:])))


def test_grid_size_averages_maps_first(setting):
    predict, pixel_values, _ = setting
    fine = torch.rand(8, 10, 12, generator=torch.Generator().manual_seed(3))
    coarse = fine.view(8, 5, 2, 4, 3).mean((2, 4))
    options = {"score": "probability", "fill": "mean"}
    by_grid = auc_d(predict, pixel_values, fine, grid_size=(5, 4), **options)
    torch.testing.assert_close(by_grid.auc_d, auc_d(predict, pixel_values, coarse, **options).auc_d)


def test_cells_go_as_wholes_by_hand():
    """Four columns of one picture, in two cells: 4 and 0 are one of them, 3 and 2 the other."""
    images = torch.tensor([[[[4.0, 0.0, 3.0, 2.0]]]])
    saliency = torch.tensor([[[0.9, 0.1, 0.7, 0.6]]])  # means 0.5 and 0.65: the second cell goes first
    options = {"score": "probability", "target": 0, "fill": "mean", "fractions": (0, 0.5, 1)}

    def predict(pixel_values):
        total = pixel_values.sum((1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], dim=1)

    def probabilities(*totals):
        return torch.sigmoid(torch.tensor([totals]))

    pixels = perturbation_curves(predict, images, saliency, **options)
    torch.testing.assert_close(pixels.positive, probabilities(9.0, 2.0, 0.0))
    cells = perturbation_curves(predict, images, saliency, grid=(1, 2), **options)
    torch.testing.assert_close(cells.positive, probabilities(9.0, 4.0, 0.0))
    torch.testing.assert_close(cells.negative, probabilities(9.0, 5.0, 0.0))
    assert cells.protocol["grid"] == [1, 2] == cells.protocol["cells"] and "cells" not in pixels.protocol
    predict.patch_size = (1, 2)
    patches = perturbation_curves(predict, images, saliency, grid="patch", **options)
    assert torch.equal(patches.positive, cells.positive) and torch.equal(patches.negative, cells.negative)
    assert patches.protocol["grid"] == "patch" and patches.protocol["cells"] == [1, 2]

    moved = insertion_deletion(predict, images, saliency, target=0, steps=2, insertion_fill="mean", grid="patch")
    torch.testing.assert_close(moved.deletion, probabilities(9.0, 4.0, 0.0))
    torch.testing.assert_close(moved.insertion, probabilities(0.0, 5.0, 9.0))
    assert moved.protocol["pixels_per_step"] == 2
    removed = road(predict, images, saliency, target=0, percents=(50,), noise=0, grid="patch")
    # what is imputed of a row from its one known neighbour is that neighbour: 0 of the first cell, 3 of the second
    torch.testing.assert_close(removed.morf, probabilities(4.0)[:, :1], atol=1e-3, rtol=0)
    torch.testing.assert_close(removed.lerf, probabilities(11.0)[:, :1], atol=1e-3, rtol=0)
    dropped = average_drop(
        predict, images, saliency, target=0, percents=(100, 50), mask_space="normalized", grid="patch"
    )
    torch.testing.assert_close(dropped.kept_probability, probabilities(0.5 * 4.0 + 0.65 * 5.0, 0.65 * 5.0))
    torch.testing.assert_close(dropped.area, torch.tensor([[0.575, 0.325]]))


def test_cells_are_the_means_of_a_maps_own_values(setting):
    predict, pixel_values, _ = setting
    options = {"score": "probability", "fill": "mean"}
    own = torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(3))  # one value per patch of 5 x 4
    fine = own.repeat_interleave(4, 1).repeat_interleave(2, 2) + torch.tensor([0.1, -0.1]).repeat(3) + 0.1
    expected = auc_d(
        predict, pixel_values, own.repeat_interleave(5, 1).repeat_interleave(4, 2), grid=(2, 3), **options
    )
    for maps in (own, fine):  # an enlarged one would have other means
        assert torch.equal(auc_d(predict, pixel_values, maps, grid="patch", **options).auc_d, expected.auc_d)
    other = torch.rand(8, 3, 3, generator=torch.Generator().manual_seed(4))  # no multiple of the cells: enlarged first
    found = auc_d(predict, pixel_values, other, grid="patch", **options)
    by_hand = resize_maps(other.double(), (10, 12)).view(8, 2, 5, 3, 4).mean((2, 4))
    assert torch.equal(found.auc_d, auc_d(predict, pixel_values, by_hand, grid="patch", **options).auc_d)
    # an order of cells is one of six, whatever the seed: a constant map has its ties among cells
    constant = torch.ones(8, 1, 1)
    drawn = [auc_d(predict, pixel_values, constant, grid="patch", seed=seed, **options).auc_d for seed in (0, 1)]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("name", METRICS)
def test_numbers_of_cells_do_not_depend_on_the_batch(setting, name):
    predict, pixel_values, saliency = setting
    whole = per_image(name, predict, pixel_values, saliency, 64, grid="patch")
    alone = [
        per_image(name, predict, *pair, 3, grid="patch") for pair in zip(pixel_values.split(1), saliency.split(1))
    ]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole, per_image(name, predict, pixel_values, saliency, 64))


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "grid,message",
    [
        ("patches", "`grid` must be one of pixel, patch, got 'patches'"),
        ((3, 4), r"`grid` must be .* two whole numbers that divide the 10 × 12 pixels of the images, got \(3, 4\)"),
        ((5,), r"`grid` must be 'pixel', 'patch' or \(height, width\) in cells"),
        ((5, 1.5), r"got \(5, 1.5\)"),
        ((0, 4), r"got \(0, 4\)"),
        ((5, "x"), "`grid` must be a list of numbers"),
    ],
)
def test_bad_grids(setting, grid, message):
    predict, pixel_values, saliency = setting
    for function in (auc_d, average_drop, insertion_deletion, road):
        with pytest.raises((ValueError, TypeError), match=message):
            function(predict, pixel_values, saliency, grid=grid, **({} if function is road else HALF))


def test_patches_are_those_of_a_classifier_that_has_some(setting):
    predict, pixel_values, saliency = setting
    with pytest.raises(ValueError, match="reads its images in patches, as ViT and Swin do, which function does not"):
        auc_d(lambda images: predict(images), pixel_values, saliency, grid="patch")
    with pytest.raises(ValueError, match="needs images that are whole patches of 5 × 4 pixels, got 10 × 10"):
        auc_d(predict, pixel_values[..., :10], saliency, grid="patch", fill="mean")


@pytest.mark.parametrize(
    "options,message",
    [
        ({"saliency": torch.rand(7, 4, 4)}, r"`saliency` must have shape .* batch_size 8, got \(7, 4, 4\)"),
        ({"saliency": torch.full((8, 2, 2), float("nan"))}, "`saliency` must be finite"),
        ({"saliency": -torch.ones(8, 2, 2)}, "`saliency` must not be negative"),
        ({"saliency": [torch.rand(2, 2), torch.rand(3, 3)]}, "`saliency` mixes the sizes"),
        ({"pixel_values": torch.rand(0, 3, 10, 12)}, "`pixel_values` must have shape .* nothing empty"),
        ({"fractions": ()}, "`fractions` must name at least one"),
        ({"fractions": (0.5, 0.5)}, "`fractions` must increase"),
        ({"fractions": (0, 2)}, r"`fractions` must lie in \[0, 1\], got 2.0"),
        ({"score": "f1"}, "`score` must be one of accuracy, probability, agreement, got 'f1'"),
        ({"score": "accuracy"}, "`labels` are needed for score='accuracy'"),
        ({"score": "accuracy", "labels": [0, 1]}, r"`labels` must hold one class index per image \(8\)"),
        ({"score": "accuracy", "labels": torch.full((8,), 4)}, "`labels` 4 is out of range: there are 4 classes"),
        ({"score": "probability", "target": -1}, "`target` -1 is out of range"),
        ({"score": "probability", "target": torch.rand(8)}, "`target` must hold one class index per image"),
        ({"fill": "grey"}, "`fill` must be one of"),
        ({"fill": "black"}, "`image_mean` and `image_std` are needed"),
        ({"orders": ("up",)}, r"`orders` must be some of positive, negative, got \('up',\)"),
        ({"rounding": "up"}, "`rounding` must be one of"),
        ({"grid_size": (0, 2)}, "`grid_size` must be"),
        ({"max_batch": 0}, "`max_batch` must be a whole number of at least 1, got 0"),
        ({"max_bytes": 0}, "`max_bytes` must be at least 1 and finite, got 0"),
        ({"logits": torch.rand(3, 4)}, r"`logits` must give logits of shape \(8, num_labels\), got \(3, 4\)"),
        ({"predict": lambda images: images.mean((1, 2, 3))[:, None]}, "gives 1 number per image; class .* at least 2"),
        ({"seed": "x"}, "`seed` must be a whole number of at most 64 bits, such as 0, got 'x'"),
        ({"seed": 2**63}, "`seed` must be a whole number of at most 64 bits, such as 0, got 9223372036854775808"),
        ({"seed": 1.5}, "`seed` must be a whole number"),
        ({"predict": lambda images: images.flatten(1)[:, :0]}, "`predict` gives 0 numbers per image"),
        ({"predict": lambda images: None}, r"`predict` must give logits of shape \(8, num_labels\), got NoneType"),
        ({"predict": lambda images: images.flatten(1) * float("nan")}, "`predict` gives logits that are NaN"),
    ],
)
def test_bad_curves(setting, options, message):
    predict, pixel_values, saliency = setting
    arguments = {"predict": predict, "pixel_values": pixel_values, "saliency": saliency, "fill": "mean", **options}
    with pytest.raises(ValueError, match=message):
        perturbation_curves(**arguments)


@pytest.mark.parametrize("name", ["target", "labels"])
def test_label_names_are_no_indices(setting, name):
    predict, pixel_values, saliency = setting
    for given in ("cat", ["cat"] * 8):
        score = "probability" if name == "target" else "accuracy"
        with pytest.raises(TypeError, match=f"^`{name}` must hold class indices, got .*'cat'.*resolve_target"):
            perturbation_curves(predict, pixel_values, saliency, fill="mean", score=score, **{name: given})


@pytest.mark.parametrize(
    "options,message",
    [
        ({"percents": (50, 0)}, r"`percent` of pixels kept must lie in \(0, 100\], got 0"),
        ({"percents": (100.5,)}, "got 100.5"),
        ({"percents": ()}, "`percents` must name at least one"),
        ({"rule": "top"}, "`rule` must be one of ceil, quantile, got 'top'"),
        ({"mask_space": "rgb"}, "`mask_space` must be one of"),
        ({"mask_space": "pixel"}, "`image_mean` and `image_std` are needed"),
        ({"saliency": torch.full((8, 2, 2), 2.0)}, r"`saliency` must lie in \[0, 1\]"),
        ({"saliency": torch.rand(8, 1, 2, 2)}, r"got \(8, 1, 2, 2\)"),
    ],
)
def test_bad_average_drop(setting, options, message):
    predict, pixel_values, saliency = setting
    arguments = {"pixel_values": pixel_values, "saliency": saliency, "mask_space": "normalized", **options}
    with pytest.raises(ValueError, match=message):
        average_drop(predict, **arguments)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_bad_steps(setting, steps):
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1"):
        step_fractions(steps)
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1"):
        insertion_deletion(*setting, steps=steps)


def test_bad_areas():
    with pytest.raises(ValueError, match="`curve` needs at least 2 points for an area, got 1"):
        auc(torch.ones(3, 1))
    with pytest.raises(ValueError, match="`fractions` must be 3 increasing numbers"):
        auc(torch.ones(3), (0, 1))
    with pytest.raises(ValueError, match=r"`stop` must lie in \(0, 1\], got 1.5"):
        step_fractions(3, 1.5)


def test_the_mean_over_fills_names_no_single_fill(setting):
    protocol = auc_d_fills(*setting, **HALF).protocol
    assert "fill" not in protocol and protocol["fills"] == ["black", "mean", "blur"]


def test_areas():
    assert auc(torch.ones(2, 5), (0, 0.2, 0.3, 0.4, 0.9)).tolist() == pytest.approx([1, 1])
    assert auc(torch.ones(5), (0, 0.2, 0.3, 0.4, 0.9), normalize=False).item() == pytest.approx(0.9)


def test_an_area_is_divided_by_its_range_wherever_that_begins():
    assert auc(torch.ones(3), (0.1, 0.2, 0.9)).item() == pytest.approx(1)
    assert auc(torch.tensor([1.0, 0.0, 0.0]), (0.5, 0.75, 1)).item() == pytest.approx(0.25)
    assert auc(torch.tensor([1.0, 0.0, 0.0]), (0.5, 0.75, 1), normalize=False).item() == pytest.approx(0.125)
    # positive: sums 2, 1, 0; negative: sums 4, 3, 2
    result = auc_d(sum_classifier, **BY_HAND, fractions=(0.25, 0.5, 0.75))
    assert result.positive_auc.tolist() == [25] and result.negative_auc.tolist() == [100]


def test_model_outputs_are_understood(setting):
    from transformers.modeling_outputs import ImageClassifierOutput

    predict, pixel_values, saliency = setting
    wrapped = perturbation_curves(
        lambda images: ImageClassifierOutput(logits=predict(images)), pixel_values, saliency, fill="mean"
    )
    assert torch.equal(wrapped.positive, perturbation_curves(predict, pixel_values, saliency, fill="mean").positive)


def test_unknown_metric_path():
    with pytest.raises(ValueError, match="Unknown metric 'auc'; hf_explain has: "):
        hf_explain.metrics.path("auc")
