"""The checks tell a method that looks at the classifier from one that does not, and change nothing."""

import numpy as np
import pytest
import torch
from PIL import Image
from testing_common import assert_unchanged, snapshot, tiny_classifier, tiny_model, tiny_processor
from testing_training import processor

from hf_explain import FrozenClassifier, LCamForSaliency
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.sanity import (
    _Images,
    _judge,
    check_sanity,
    redraw_each_part,
    redraw_from_the_top,
    similarity,
)
from hf_explain.methods.cam import gradcam
from hf_explain.methods.controls import centre
from hf_explain.registry import METHODS


def pictures(count):
    rng = np.random.default_rng(0)
    return [{"image": Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))} for _ in range(count)]


@pytest.fixture
def classifier(tmp_path):
    return FrozenClassifier(tiny_model("resnet"), image_processor=tiny_processor("resnet", tmp_path))


def test_controls_fail_and_say_why(classifier):
    result = check_sanity(classifier, pictures(6), method="centre", seeds=1)
    assert not result["passed"]
    assert "maps survive random weights (rank correlation 1.00" in result["verdict"]
    assert "maps do not depend on the class (rank correlation 1.00, AUC-D falls by 0.0)" in result["verdict"]
    assert result["own_auc_d"] == result["centre_auc_d"] and result["num_images"] == 6
    result = check_sanity(classifier, pictures(6), method="random", seeds=1)
    assert not result["passed"] and not result["checks"]["random_map"]["passed"]


class Colours(torch.nn.Module):
    """A class for each of red, green and blue: it knows what it looks for, and where."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 9, 3, stride=2, padding=1), torch.nn.Linear(9, 3)
        own = torch.arange(9)[:, None] % 3 == torch.arange(3)
        noise = 0.02 * torch.randn(9, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.conv.weight.data = torch.where(own, 1.0, -1.0)[:, :, None, None] + noise
        self.head.weight.data = torch.where(own.T, 2.0, -1.0)
        self.conv.bias.data.zero_()
        self.head.bias.data.zero_()

    def forward(self, pixel_values):
        return self.head(self.conv(pixel_values).relu().mean((2, 3)))


def coloured_squares(count):
    rng, pictures = np.random.default_rng(0), []
    for _ in range(count):
        picture = np.full((32, 32, 3), 40, dtype=np.uint8)
        for colour, (place, side) in enumerate(zip(rng.permutation(4), rng.permutation([14, 10, 6]))):
            top, left = 16 * (place // 2), 16 * (place % 2)
            picture[top : top + side, left : left + side] = 255 * np.eye(3, dtype=np.uint8)[colour]
        pictures.append({"image": Image.fromarray(picture)})
    return pictures


def test_a_method_that_looks_at_the_classifier_passes():
    classifier = FrozenClassifier(Colours(), image_size=(32, 32), image_processor=processor(32))
    result = check_sanity(classifier, coloured_squares(8), method="gradcam")
    assert result["passed"] and result["verdict"] == "passes"
    assert all(result["checks"][name]["passed"] for name in ("random_weights", "random_label", "random_map"))
    assert result["own_auc_d"] > 50 > result["cascade"][-1]["auc_d"]


@pytest.mark.parametrize(
    ("check", "found", "passed"),
    [
        ("random_weights", {"similarity": 0.5, "gain_kept": 0.5}, True),
        ("random_weights", {"similarity": 0.51}, False),
        ("random_weights", {"similarity": -0.51}, False),
        ("random_weights", {"gain_kept": 0.51}, False),
        ("random_weights", {"gain_kept": -2.0}, True),
        ("random_weights", {"gain_kept": None}, True),
        ("random_label", {"similarity": 0.8, "fall_of_auc_d": 0.1}, True),
        ("random_label", {"similarity": -0.95}, True),
        ("random_label", {"similarity": 0.9}, False),
        ("random_label", {"fall_of_auc_d": 0.0}, False),
        ("random_map", {"gain_low": 0.1}, True),
        ("random_map", {"gain_low": 0.0}, False),  # on average better, but not surely
    ],
)
def test_where_the_line_is(check, found, passed):
    checks = {
        "random_weights": {"similarity": 0.1, "auc_d": 1.0, "gain_kept": 0.1},
        "random_label": {"similarity": 0.1, "fall_of_auc_d": 5.0},
        "random_map": {"gain_of_auc_d": 10.0, "gain_low": 5.0},
        "centre": {"gain_of_auc_d": 1.0},
    }
    checks[check] |= found
    verdict = _judge(checks)
    assert verdict["passed"] == passed == (verdict["verdict"] == "passes")
    told = {name: entry["passed"] for name, entry in checks.items() if name != "centre"}
    assert told == {**dict.fromkeys(told, True), check: passed}


def test_maps_worse_than_random_have_no_gain_to_keep(monkeypatch):
    def inverse(classifier, pixel_values, target=None):
        output = gradcam(classifier, pixel_values, target)
        output.saliency = 1 - output.saliency
        return output

    monkeypatch.setitem(METHODS, "inverse", inverse)
    classifier = FrozenClassifier(Colours(), image_size=(32, 32), image_processor=processor(32))
    result = check_sanity(classifier, coloured_squares(4), method="inverse", seeds=1)
    assert result["checks"]["random_map"]["gain_of_auc_d"] < 0
    assert {step["gain_kept"] for step in result["cascade"]} == {None}
    assert not result["passed"] and "no better than random maps" in result["verdict"]


def test_equal_pictures_have_random_maps_of_their_own(classifier):
    images = _Images(resolve_explainer(classifier), pictures(1) * 3, None, 3, 2, 0, "float32")
    maps = torch.cat(images.random_maps(4, 5))
    assert maps.shape == (3, 4, 5) and len(maps.flatten(1).unique(dim=0)) == 3


def test_the_other_class_is_another_one(monkeypatch, tmp_path):
    asked = []

    def spy(classifier, pixel_values, target=None):
        asked.append(target)
        return centre(classifier, pixel_values, target)

    monkeypatch.setitem(METHODS, "spy", spy)
    classifier = FrozenClassifier(
        tiny_model("resnet", num_labels=2), image_processor=tiny_processor("resnet", tmp_path)
    )
    check_sanity(classifier, pictures(8), method="spy", batch_size=8, seeds=1)
    assert torch.equal(asked[-1], 1 - asked[0])  # of two classes there is one other


def test_nothing_changes_and_the_seed_decides(classifier):
    torch.manual_seed(0)
    head = LCamForSaliency.from_classifier(classifier, variant="img").eval()
    before = snapshot(head)
    first = check_sanity(head, pictures(3), seed=1, batch_size=2, seeds=2)
    assert_unchanged(head, before)
    again = check_sanity(head, pictures(3), seed=1, batch_size=3, seeds=2)
    assert again["cascade"][-1]["similarity"] == pytest.approx(first["cascade"][-1]["similarity"], abs=1e-3)
    assert len(first["cascade"]) == 5 and first["cascade"][0]["tensors_redrawn"] == 2
    statistics = sum("running_" in name for name, _ in classifier.model.named_buffers())
    counts = [step["tensors_redrawn"] for step in first["cascade"]]
    assert counts == sorted(counts) and counts[-1] == len(list(classifier.model.parameters())) + statistics
    assert len(first["independent"]) == 5 and first["independent"][0] == first["cascade"][0]
    assert sum(step["tensors_redrawn"] for step in first["independent"]) == counts[-1]
    full = first["checks"]["random_weights"]
    assert full["lowest_similarity"] <= full["similarity"] <= full["highest_similarity"] and full["seeds"] == 2
    assert first["thresholds"]["max_similarity_random_weights"] == 0.5
    assert check_sanity(head, pictures(3), seed=2, seeds=1)["cascade"] != first["cascade"]


def test_half_precision_is_for_the_scores_of_the_unchanged_classifier(classifier, monkeypatch):
    seen = []  # whether the classifier is the unchanged one, whether it answers in half precision
    forward = FrozenClassifier.forward

    def spy(self, pixel_values, *args, **kwargs):
        logits = forward(self, pixel_values, *args, **kwargs)
        seen.append((self is classifier, logits.dtype is torch.bfloat16))
        return logits

    monkeypatch.setattr(FrozenClassifier, "forward", spy)
    plain = check_sanity(classifier, pictures(4), method="layercam", seeds=1)
    assert not any(half for _, half in seen)
    seen.clear()
    half = check_sanity(classifier, pictures(4), method="layercam", seeds=1, dtype="bfloat16")
    assert {half for unchanged, half in seen if not unchanged} == {False}
    assert sum(half for unchanged, half in seen if unchanged) > len(seen) / 2
    assert half["cascade"][-1]["similarity"] == plain["cascade"][-1]["similarity"]  # the maps are the same
    assert half["own_auc_d"] == pytest.approx(plain["own_auc_d"], abs=1.0)


@pytest.mark.parametrize("family", ["vit", "deit", "convnext", "resnet"])
def test_weights_are_redrawn_from_the_top(family):
    model, original = tiny_model(family), tiny_model(family)
    before = dict(original.named_parameters())
    steps = redraw_from_the_top(model, seed=0)
    next(steps)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed and all(name.startswith(("classifier", "cls_classifier")) for name in changed)
    list(steps)
    for name, parameter in model.named_parameters():
        spread = before[name].std(correction=0)
        if spread > 0:
            assert not torch.equal(parameter, before[name]), name
            assert (parameter.mean() - before[name].mean()).abs() < 4 * spread / parameter.numel() ** 0.5, name
    assert FrozenClassifier(model)(torch.randn(2, 3, 64 if family in ("convnext", "resnet") else 32, 64 if family in (
        "convnext", "resnet") else 32)).isfinite().all()  # fmt: skip


def test_a_batchnorm_forgets_what_it_knew_of_its_channels_and_parts_are_put_back():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 2))
    model[1].running_mean.copy_(torch.arange(8.0))
    model[1].running_var.copy_(torch.arange(1.0, 9.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for count in redraw_each_part(model, 0):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert 0 < len(changed) <= count
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    list(redraw_from_the_top(model, 0))
    assert not torch.equal(model[1].running_var, before["1.running_var"])
    assert torch.equal(model[1].running_var.sort().values, before["1.running_var"])


def test_similarity_is_spearmans(classifier):
    from scipy.stats import spearmanr

    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 6, 7, generator=generator).relu()  # half of the places tie
    others = (maps + torch.randn(3, 6, 7, generator=generator)).relu()
    expected = np.mean([spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps, others)])
    assert similarity([maps[:2], maps[2:]], [others[:2], others[2:]]) == pytest.approx(expected, abs=1e-9)
    assert similarity([maps], [torch.zeros_like(maps)]) == 0
    assert similarity([maps], [2 * maps + 1]) == pytest.approx(1)
    large, noisy = (torch.rand(2, 56, 84, generator=generator) for _ in range(2))
    pooled = [torch.nn.functional.avg_pool2d(one, (2, 3)) for one in (large, noisy)]
    assert similarity([large], [noisy]) == similarity([pooled[0]], [pooled[1]])  # the noise of pixels is not structure


def test_one_class_has_no_other(tmp_path):
    classifier = tiny_classifier("resnet", num_labels=1)
    classifier.image_processor = tiny_processor("resnet", tmp_path)
    with pytest.raises(ValueError, match="the classifier has only one class"):
        check_sanity(classifier, pictures(1), method="centre")
