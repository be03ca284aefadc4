"""L-CAM: the released values, the paper's arithmetic again in plain form, and the common tester."""

import functools
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from testing_common import (
    FAMILIES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ExplainerTesterMixin,
    image_size,
    other_size,
    random_pixels,
    randomize,
    save_classifier,
    tiny_classifier,
    tiny_model,
    train_steps,
)
from torch import nn

from hf_explain.classifiers.frozen_classifier import ClassifierFeatures, FrozenClassifier, LayerFeatures
from hf_explain.heads.lcam import LCamConfig, LCamForSaliency


TRANSFORMERS = ("vit", "deit", "deit-teacher")


class TestLCam(ExplainerTesterMixin):
    head_class = LCamForSaliency
    variants = {"img": {"variant": "img"}, "fm": {"variant": "fm"}}


# ------------------------------------------------------------------ released values


def test_golden_attention():
    golden = load_file(Path(__file__).parents[1] / "golden" / "lcam_attention.safetensors")
    config = LCamConfig(variant="fm", num_labels=6, feature_layers=["stage4"], feature_channels=[8])
    head = LCamForSaliency(config)
    with torch.no_grad():
        head.attention.weight.copy_(golden["weight"])
        head.attention.bias.copy_(golden["bias"])
    tapped = LayerFeatures("stage4", golden["feature_maps"])
    features = ClassifierFeatures(torch.zeros(4, 6), {"stage4": tapped}, ("stage4",))
    maps = head.saliency_logits(features, golden["labels"])
    torch.testing.assert_close(maps, golden["cam_logits"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps.sigmoid(), golden["cam"], rtol=1e-5, atol=0)
    pairs = head.pairwise_saliency_logits(features, golden["labels"])
    torch.testing.assert_close(pairs[range(4), range(4)], golden["cam_logits"], rtol=1e-5, atol=1e-6)
    for i in range(4):
        for j in range(4):
            alone = head.saliency_logits(features, golden["labels"][j].repeat(4))[i]
            torch.testing.assert_close(pairs[i, j], alone, rtol=1e-5, atol=1e-6)

    seen = []
    head.backbone = types.SimpleNamespace(forward_from_features=seen.append)
    head.masked_logits(torch.zeros(4, 3, 8, 8), features, golden["cam"])
    torch.testing.assert_close(seen[0].feature_map, golden["lcam_fm_masked_features"], rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------ the paper again, literally


def literal_loss(family, head, pixel_values, target, own_tap):
    """
    Everything the slow way: the maps of all classes and then the target's, the classifier as Transformers runs it, a
    hook where L-CAM-Fm masks, one pass per image set, and the loss term by term.
    """
    config, model = head.config, tiny_model(family)
    batch_size = len(target)
    options = {"interpolate_pos_encoding": True} if family in TRANSFORMERS else {}
    prefix = {"vit": 1, "deit": 2, "deit-teacher": 2}.get(family, 0)
    with torch.no_grad():
        states = model(pixel_values, output_hidden_states=True, **options).hidden_states
    feature_map = states[own_tap]
    if prefix:
        grid = (pixel_values.shape[-2] // 8, pixel_values.shape[-1] // 8)
        feature_map = feature_map[:, prefix:].transpose(1, 2).reshape(batch_size, -1, *grid)
    scores = F.conv2d(feature_map, head.attention.weight, head.attention.bias)  # (B, K, h, w)
    enlarge = functools.partial(F.interpolate, size=pixel_values.shape[-2:], mode="bilinear")
    if config.mask_grid != "pixel":
        cells = grid if config.mask_grid == "patch" else config.mask_grid
        whole = all(side % count == 0 for side, count in zip(scores.shape[-2:], cells))
        scores = F.adaptive_avg_pool2d(scores if whole else enlarge(scores), cells)
        enlarge = functools.partial(F.interpolate, size=pixel_values.shape[-2:], mode="nearest")
    all_maps = torch.sigmoid(scores)
    if config.contrast:
        flat = [(one - one.mean()) / one.std(correction=0) for one in scores.flatten(0, 1)]
        all_maps = torch.sigmoid(config.contrast * torch.stack(flat)).view_as(scores)
    own = all_maps[torch.arange(batch_size), target]

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (config.image_mean, config.image_std))

    def ask(attention):
        if config.variant == "img":
            upsampled = enlarge(attention[:, None])
            if config.mask_fills:
                # in eval mode the images of a batch take the fills in turn
                masked = pixel_values.clone()
                for i in range(batch_size):
                    fill = config.mask_fills[i % len(config.mask_fills)]
                    filled = {"black": -mean / std, "mean": 0 * mean, "blur": rise_blur(pixel_values[i : i + 1])}[fill]
                    masked[i] = upsampled[i] * pixel_values[i] + (1 - upsampled[i]) * filled[0]
                return model(masked, **options).logits
            if config.mask_space == "pixel":
                picture = pixel_values * std + mean
                return model((picture * upsampled - mean) / std, **options).logits
            return model(pixel_values * upsampled, **options).logits

        def mask(module, inputs, output):
            if not prefix:
                return output * attention[:, None]
            kept = attention.flatten(1)[:, :, None]
            return torch.cat([output[:, :prefix], output[:, prefix:] * kept], dim=1)

        body = getattr(model, {"vit": "vit", "deit": "deit", "deit-teacher": "deit"}.get(family, family))
        layers = body.layers if prefix else body.encoder.stages
        handle = layers[own_tap - 1 if own_tap > 0 else own_tap].register_forward_hook(mask)
        logits = model(pixel_values, **options).logits
        handle.remove()
        return logits

    cross_entropy = -ask(own).log_softmax(1)[torch.arange(batch_size), target].mean()
    regularized = own if config.regularize == "own" else all_maps[:, target]
    area = (regularized + config.area_epsilon).pow(config.area_power).mean()
    rows = (regularized[..., 1:, :] - regularized[..., :-1, :]).pow(2).sum()
    columns = (regularized[..., :, 1:] - regularized[..., :, :-1]).pow(2).sum()
    edges = [regularized[..., 0, :], regularized[..., -1, :], regularized[..., :, 0], regularized[..., :, -1]]
    border = sum(edge.pow(2).sum() for edge in edges)
    variation = (rows + columns + config.border_weight * border) / (2 * batch_size)
    loss = config.ce_weight * cross_entropy + config.area_weight * area + config.variation_weight * variation
    if config.removal_weight:
        p = ask(1 - own).softmax(1)[torch.arange(batch_size), target]
        loss = loss - config.removal_weight * (1 - p).log().mean()
    if config.ranking_weight:
        # in eval mode the parts kept of the images of a batch are evenly spread
        for part in range(config.ranking_parts):
            areas = [((i + 0.5) / batch_size + part / config.ranking_parts) % 1 for i in range(batch_size)]
            areas = [area**config.ranking_area_power for area in areas]
            kept = torch.stack([ranked_mask(scores[i, target[i]], areas[i], config) for i in range(batch_size)])
            p = ask(kept).softmax(1)[torch.arange(batch_size), target]
            q = ask(1 - kept).softmax(1)[torch.arange(batch_size), target]
            loss = loss - config.ranking_weight * (p.log().mean() + (1 - q).log().mean()) / config.ranking_parts
    return loss, own


def rise_blur(image):
    """SciPy's Gaussian of the unit impulse in the middle of an 11×11 window, as RISE makes its kernel."""
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.tensor(gaussian_filter(impulse, 5), dtype=torch.float32)
    return torch.cat([F.conv2d(channel[:, None], kernel[None, None], padding=5) for channel in image.unbind(1)], dim=1)


def ranked_mask(scores, area, config):
    """One map, one threshold: the value below which `1 - area` of the positions lie."""
    threshold = scores.flatten().quantile(1 - area)
    return torch.sigmoid((scores - threshold) / (config.ranking_temperature * scores.std(correction=0)))


CASES = {
    "img-batch": {},
    "img-own": {"regularize": "own"},
    "img-normalized": {"mask_space": "normalized", "regularize": "own"},
    "img-removal": {"removal_weight": 0.7, "regularize": "own"},
    "img-ranking": {"ranking_weight": 0.8, "regularize": "own"},
    "img-fills": {"mask_fills": ["blur", "black"], "mask_space": "normalized", "removal_weight": 0.7},
    "ranking-fills": {"mask_fills": ["mean", "black", "blur"], "ranking_weight": 0.8},
    "one-fill": {"mask_fills": ["blur"]},
    "parts": {"ranking_weight": 0.8, "ranking_parts": 3, "ranking_area_power": 2.0, "regularize": "own"},
    "cells": {"mask_grid": (2, 2), "removal_weight": 0.7},
    "cells-ranking": {"mask_grid": [8, 4], "ranking_weight": 0.8, "contrast": 2.0, "mask_fills": ["mean", "blur"]},
    "patch-ranking": {"mask_grid": "patch", "ranking_weight": 0.8, "regularize": "own"},
    "fm-ranking": {"variant": "fm", "ranking_weight": 0.8, "ranking_temperature": 0.7},
    "contrast-batch": {"contrast": 2.0},
    "ranking-contrast": {"contrast": 0.7, "ranking_weight": 0.8, "regularize": "own", "mask_space": "normalized"},
    "ranking-alone": {"ranking_weight": 1.0, "ce_weight": 0.0, "area_weight": 0.0, "variation_weight": 0.0},
    "img-star": {"area_weight": 0.0, "variation_weight": 0.0},
    "fm-batch": {"variant": "fm"},
    "fm-own": {"variant": "fm", "regularize": "own"},
    "fm-star": {"variant": "fm", "area_weight": 0.0, "variation_weight": 0.0},
    "fm-removal": {"variant": "fm", "removal_weight": 0.5},
    "constants": {
        "ce_weight": 0.9,
        "area_weight": 1.1,
        "area_power": 0.6,
        "area_epsilon": 0.01,
        "variation_weight": 0.2,
        "border_weight": 1.7,
    },
}


@pytest.mark.parametrize(
    ("family", "case"),
    [
        (family, case)
        for family in FAMILIES
        for case in CASES
        if (family in ("vit", "resnet") or case in ("img-batch", "fm-batch", "cells"))
        and (family != "resnet" or case != "patch-ranking")
    ],
)
def test_loss_and_gradient_against_the_literal_form(family, case):
    torch.manual_seed(0)
    head = LCamForSaliency.from_classifier(tiny_classifier(family), **CASES[case])
    pixel_values = random_pixels(family, 3, other_size(family))
    target = torch.tensor([1, 4, 1])  # a class twice, as batches have it
    own_tap = -2 if family in TRANSFORMERS else -1
    expected, own = literal_loss(family, head, pixel_values, target, own_tap)
    expected.backward()
    expected_gradients = [parameter.grad.clone() for parameter in head.attention.parameters()]
    head.zero_grad()

    output = head(pixel_values, target=target, return_loss=True)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    # with a contrast of its own the map masked with is the map given out; without, the raw map is, as released
    given = own if head.config.contrast else output.saliency_logits
    if not head.config.contrast:
        torch.testing.assert_close(output.saliency_logits.sigmoid(), own, rtol=1e-4, atol=1e-5)
    for i in range(len(target)):
        scaled = (given[i] - given[i].min()) / (given[i].max() - given[i].min())
        torch.testing.assert_close(output.saliency[i], scaled.detach(), rtol=1e-3, atol=1e-4)
    output.loss.backward()
    for parameter, gradient in zip(head.attention.parameters(), expected_gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
        assert (parameter.grad[[0, 2, 3]] == 0).all()  # rows of classes that are not in the batch
    names = {"cross_entropy", "area", "variation"}
    if case.endswith("star"):
        names = {"cross_entropy"}
    elif "removal" in case or case in ("img-fills", "cells"):
        names |= {"removal"}
    elif case == "ranking-alone":
        names = {"ranking"}
    elif "ranking" in case or case == "parts":
        names |= {"ranking"}
    assert output.loss_terms.keys() == names


@pytest.mark.parametrize("family", FAMILIES)
def test_default_tap_is_one_that_the_logits_still_read(family):
    for variant in ("img", "fm"):
        head = LCamForSaliency.from_classifier(tiny_classifier(family), variant=variant)
        assert head.config.feature_layers == [("layer2" if family in TRANSFORMERS else "stage4")]
        assert head.config.feature_channels == [32 if family in TRANSFORMERS else 24]
        assert head.attention.weight.shape[:2] == (5, head.config.feature_channels[0])


@pytest.mark.parametrize("layer", ["stage3", -2, 0, "stem"])
def test_any_tap(layer):
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), feature_layers=[layer], variant="fm")
    name = {-2: "stage3", 0: "stem"}.get(layer, layer)
    assert head.config.feature_layers == [name]
    output = head(random_pixels("resnet"), return_loss=True)
    side = {"stem": 16, "stage3": 4}[name]
    assert output.saliency.shape == (2, side, side)
    output.loss.backward()
    assert head.attention.weight.grad.any()


def test_training_lowers_the_loss():
    for family in ("vit", "resnet"):
        for variant in ("img", "fm"):
            torch.manual_seed(0)
            head = LCamForSaliency.from_classifier(tiny_classifier(family), variant=variant)
            losses = train_steps(head, random_pixels(family, 4), steps=15, lr=0.1)
            assert losses[-1] < losses[0] - 0.05


def test_plain_module_with_named_layers():
    """VGG-16 comes this way; the in-place ReLUs must not write into the tapped features."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    model = randomize(nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)))
    for variant in ("img", "fm"):
        for tap, side in ((None, 2), (["0.3"], 16), (["0.5"], 8)):
            classifier = FrozenClassifier(model, image_size=(32, 32))
            head = LCamForSaliency.from_classifier(classifier, variant=variant, feature_layers=tap)
            output = head(random_pixels("vit"), target="LABEL_2", return_loss=True)
            assert output.saliency.shape == (2, side, side)
            assert torch.equal(output.logits, model(random_pixels("vit")))
            output.loss.backward()
            assert head.attention.weight.grad[2].any()


def test_plain_module_round_trip(tmp_path):
    layers = (nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = randomize(nn.Sequential(*layers))
    head = LCamForSaliency.from_classifier(FrozenClassifier(model, image_size=(32, 32)))
    head.save_pretrained(tmp_path / "head")
    with pytest.raises(ValueError, match=r"does not name its classifier .*pass from_pretrained\("):
        LCamForSaliency.from_pretrained(tmp_path / "head")
    loaded = LCamForSaliency.from_pretrained(
        tmp_path / "head", classifier=FrozenClassifier(model, image_size=(32, 32))
    )
    pixel_values = random_pixels("vit")
    assert torch.equal(loaded(pixel_values).saliency, head(pixel_values).saliency)
    with pytest.raises(ValueError, match="needs a Transformers classifier"):
        head.save_pretrained(tmp_path / "all", self_contained=True)
    with pytest.raises(ValueError, match="needs a Transformers classifier; Sequential has no config"):
        LCamForSaliency.from_classifier(FrozenClassifier(model, image_size=(32, 32)), self_contained=True)


def test_mask_spaces_differ_where_they_should():
    """A map that hides everything: black pixels in pixel space, the mean colour in normalised space."""
    family = "resnet"
    pixel_values = random_pixels(family)
    black = -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)
    for space, value in (("pixel", black), ("normalized", torch.zeros(3))):
        head = LCamForSaliency.from_classifier(tiny_classifier(family), mask_space=space)
        features = head.forward_features(pixel_values)
        logits = head.masked_logits(pixel_values, features, torch.zeros(2, 2, 2))
        blank = value.view(1, 3, 1, 1).expand(2, 3, *image_size(family))
        torch.testing.assert_close(logits, head.backbone(blank), rtol=1e-4, atol=1e-5)
        kept = head.masked_logits(pixel_values, features, torch.ones(2, 2, 2))
        torch.testing.assert_close(kept, features.logits, rtol=1e-4, atol=1e-5)


def test_training_draws_the_fill_per_image_and_step():
    """Everything hidden: what is left is the fill, the same for all copies of an image in one pass."""
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=["black", "mean", "blur"]).train()
    pixel_values = random_pixels("resnet", 40)
    black = (-torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD)).view(1, 3, 1, 1)
    fills = torch.stack([black.expand_as(pixel_values), torch.zeros_like(pixel_values), rise_blur(pixel_values)])
    seen = []
    head.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    def steps(seed):
        torch.manual_seed(seed)
        for _ in range(2):
            head.masked_logits(pixel_values, None, torch.zeros(80, 2, 2))
        drawn = []
        for images in (seen.pop(0), seen.pop(0)):
            assert torch.equal(images[:40], images[40:])
            near = (images[:40] - fills).abs().amax(dim=(2, 3, 4)) < 1e-5  # (fills, images)
            assert (near.sum(0) == 1).all()
            drawn.append(near.int().argmax(0).tolist())
        return drawn

    first, second = steps(0)
    assert first != second and {*first} == {*second} == {0, 1, 2}
    assert steps(0) == [first, second] != steps(1)
    head.eval()
    assert steps(0) == steps(1) == [[i % 3 for i in range(40)]] * 2


def hidden(head, pixel_values):
    """What the classifier is shown where everything is hidden, twice."""
    seen = []
    handle = head.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(2):
        head.masked_logits(pixel_values, None, torch.zeros(2 * len(pixel_values), 4, 4))
    handle.remove()
    for images in seen:
        assert torch.equal(*images.chunk(2))  # the same for all copies of an image in one pass
    return [images[: len(pixel_values)] for images in seen]


def test_drawn_fills():
    """Noise and colours of the picture's range, a photograph of the batch, what is left of a strong blur."""
    pixel_values = random_pixels("resnet", 6)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for fill in ("noise", "color"):
        head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=[fill]).train()
        torch.manual_seed(0)
        first, second = (images * std + mean for images in hidden(head, pixel_values))
        torch.manual_seed(0)
        assert torch.equal(hidden(head, pixel_values)[0] * std + mean, first) and not torch.equal(first, second)
        assert -1e-5 < first.min() < 0.2 and 0.8 < first.max() < 1 + 1e-5
        assert (first.std((2, 3)).amax() < 1e-6) == (fill == "color")
        assert len(first.flatten(1).unique(dim=0)) == 6
        first, second = hidden(head.eval(), pixel_values)
        assert torch.equal(first, second)
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=["photo"]).train()
    torch.testing.assert_close(hidden(head, pixel_values)[0], pixel_values[[5, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="`mask_fills` with 'photo' .* a single image; train with larger batches"):
        head(pixel_values[:1], return_loss=True)
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=["photo", "white"])
    white = ((1 - mean) / std).expand(1, 3, *image_size("resnet"))
    torch.testing.assert_close(hidden(head, pixel_values[:1])[0].expand_as(white), white)
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=["strong_blur"])
    left = hidden(head, pixel_values)[0]
    torch.testing.assert_close(left[:, :, ::63, ::63], F.adaptive_avg_pool2d(pixel_values, 4)[:, :, ::3, ::3])


def test_fills_mixed_within_an_image():
    """A fill for each position of the map, in training and, always the same, in validation."""
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_fills=["black", "white"], mix_fills=True)
    pixel_values, mean = random_pixels("resnet", 6), torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    for mode in (True, False):
        head.train(mode)
        first, second = ((images * std + mean).round() for images in hidden(head, pixel_values))
        assert torch.equal(first, second) != mode
        cells = F.avg_pool2d(first[:, 0], 16)
        assert {*cells.flatten().tolist()} == {0.0, 1.0}  # whole cells
        assert 0.3 < cells.mean() < 0.7 and all(0 < share < 1 for share in cells.mean((1, 2)))


def test_training_draws_the_target_among_the_first_classes():
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), target_top_k=2)
    pixel_values = random_pixels("resnet", 12)
    first, second = head(pixel_values).logits.topk(2).indices.unbind(1)
    drawn = head.train()(pixel_values, return_loss=True).target
    assert ((drawn == first) | (drawn == second)).all() and (drawn == first).any() and (drawn == second).any()
    assert (head(pixel_values, target=4, return_loss=True).target == 4).all()
    assert torch.equal(head.eval()(pixel_values, return_loss=True).target, first)
    head.config.target_top_k = 50  # more than there are
    assert head.train()(pixel_values, return_loss=True).target.max() <= 4


def test_masks_of_whole_cells_mix_no_pixels():
    """Half of the patches hidden: each pixel is the image's or the fill's, and the map has a value per patch."""
    head = LCamForSaliency.from_classifier(tiny_classifier("deit"), mask_grid="patch", mask_fills=["mean"])
    pixel_values = random_pixels("deit", 2, other_size("deit"))
    assert head(pixel_values).saliency.shape == (2, 6, 4)
    seen = []
    head.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    kept = (torch.arange(24).view(1, 6, 4) % 2).float().expand(2, 6, 4)
    head.masked_logits(pixel_values, None, kept)
    cells = kept.bool().repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert torch.equal(seen[0], torch.where(cells, pixel_values, 0.0))


def test_a_head_without_the_field_masks_pixel_by_pixel(tmp_path):
    """Configurations of earlier versions do not have it."""
    save_classifier("vit", tmp_path / "classifier")
    head = LCamForSaliency.from_classifier(tmp_path / "classifier")
    head.save_pretrained(tmp_path / "head")
    path = tmp_path / "head" / "config.json"
    values = json.loads(path.read_text())
    assert values.pop("mask_grid") == "pixel"
    path.write_text(json.dumps(values))
    assert LCamForSaliency.from_pretrained(tmp_path / "head").config.mask_grid == "pixel"


def test_patches_need_a_classifier_that_has_them():
    with pytest.raises(ValueError, match="`mask_grid`='patch' needs a classifier .* which ResNetFor.* does not"):
        LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_grid="patch")
    head = LCamForSaliency.from_classifier(tiny_classifier("resnet"), mask_grid=(5, 5))
    with pytest.raises(ValueError, match="`mask_grid` must be .* that divide the 64 × 64 pixels of the images"):
        head(random_pixels("resnet"))


def test_fills_belong_to_pixels():
    with pytest.raises(ValueError, match="`mask_fills` fills pixels, but variant='fm' masks features"):
        LCamConfig(variant="fm", mask_fills=["blur"])
    with pytest.raises(ValueError, match="`mask_grid` 'patch' is a grid of pixels, but variant='fm' masks features"):
        LCamConfig(variant="fm", mask_grid="patch")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("variant", "both", "`variant` must be 'img' .* or 'fm' .*got 'both'"),
        ("regularize", "none", "`regularize` must be one of own, batch, got 'none'"),
        ("mask_space", "lab", "`mask_space` must be one of pixel, normalized, or None, got 'lab'"),
        ("mask_grid", "cell", "`mask_grid` must be one of pixel, patch, got 'cell'"),
        ("mask_grid", (8, 2.5), "`mask_grid` must be 'pixel', 'patch' or .* got \\(8, 2.5\\)"),
        ("mask_fills", [], r"`mask_fills` must be one or several of black, .*photo, each once, got \[\]"),
        ("mask_fills", ["black", "grey"], r"`mask_fills` must be one or .*got \['black', 'grey'\]"),
        ("mix_fills", True, "`mix_fills` needs several `mask_fills` to draw from, got mask_fills=None"),
        ("ranking_parts", 0, "`ranking_parts` must be a whole number of at least 1, got 0"),
        ("ranking_area_power", 0.0, "`ranking_area_power` must be above 0"),
        ("target_top_k", 0, "`target_top_k` must be a whole number of at least 1, got 0"),
        ("mask_fills", ["blur", "blur"], r"`mask_fills` .*each once, got \['blur', 'blur'\]"),
        ("ce_weight", -1.0, "`ce_weight` must be at least 0 and finite, got -1.0"),
        ("removal_weight", -0.5, "`removal_weight` must be at least 0"),
        ("removal_weight", float("nan"), "`removal_weight` must be at least 0 and finite, got nan"),
        ("ranking_weight", -1.0, "`ranking_weight` must be at least 0 and finite, got -1.0"),
        ("ranking_temperature", 0.0, "`ranking_temperature` must be above 0 and finite, got 0.0"),
        ("contrast", 0.0, "`contrast` must be above 0 and finite, or None, got 0.0"),
        ("ce_weight", 0.0, "`ce_weight`, `removal_weight` and `ranking_weight` are all 0"),
        ("area_power", 0.0, r"`area_power` must lie in \(0, 1\], got 0.0"),
        ("area_power", 1.5, r"`area_power` must lie in \(0, 1\]"),
        ("area_epsilon", 0.0, "`area_epsilon` must be above 0"),
        ("feature_layers", ["stage1", "stage2"], "L-CAM taps one layer; `feature_layers` has 2"),
    ],
)
def test_bad_fields(field, value, message):
    with pytest.raises(ValueError, match=message):
        LCamForSaliency.from_classifier(tiny_classifier("resnet"), **{field: value})
    with pytest.raises(ValueError, match=message):
        LCamConfig(**{field: value})
