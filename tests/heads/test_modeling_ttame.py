"""T-TAME: the released numbers, a literal K-map implementation as the oracle, and the tester every head passes."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from testing_common import (
    FAMILIES,
    LABELS,
    ExplainerTesterMixin,
    image_size,
    other_size,
    random_pixels,
    randomize,
    snapshot,
    tiny_classifier,
    tiny_model,
    train_steps,
)
from transformers import ViTForImageClassification

from hf_explain.classifiers.frozen_classifier import ClassifierFeatures, LayerFeatures
from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.heads.ttame import TTameConfig, TTameForSaliency
from hf_explain.tensors.maps import tokens_to_grid


GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = {
    "default": {},
    "hidden": {"feature_kind": "hidden_state", "regularize": "own", "removal_weight": 1.0},
    "one-tap-sigmoid": {"feature_layers": [1], "branch_activation": "sigmoid", "feature_kind": "hidden_state"},
    "no-skip": {"skip": False, "feature_layers": [2, 1], "max_map_size": 3},
    "no-norm": {"batch_norm": False},
    "no-skip-no-norm": {"skip": False, "batch_norm": False},
    "context": {"context_size": 3},
    "context-no-skip": {"context_size": 5, "skip": False, "feature_layers": [1, 2]},
    "products": {"tap_products": True},
    "products-no-norm": {"tap_products": True, "batch_norm": False, "feature_layers": [2, 1]},
    "products-one-tap": {"tap_products": True, "feature_layers": [1]},
}


class TestTTame(ExplainerTesterMixin):
    head_class = TTameForSaliency
    variants = {
        "default": VARIANTS["default"],
        "own-removal": VARIANTS["hidden"],
        "preset-ranking": {"preset": "ranking"},
        "context": VARIANTS["context"],
        "products": VARIANTS["products"],
        "cells": {"mask_grid": (2, 2), "ranking_weight": 1.0, "regularize": "own"},
    }

    def expected_size(self, head, pixel_values):
        cells = head.config.mask_grid
        return tuple(cells) if not isinstance(cells, str) else super().expected_size(head, pixel_values)


def literal_maps(head, features, training=False):
    """As published: branches at the map's size, concatenated, a map of every class; written again, slowly."""
    config, size, branches, feature_maps = head.config, None, [], []
    for index, layer in enumerate(config.feature_layers):
        tapped = features[layer]
        if config.feature_kind == "pre_norm":
            tapped = head.backbone.pre_attention_norm(tapped)
        feature_map = tapped.feature_map
        if config.token_product:
            feature_map = torch.stack(
                [patches * cls[0][:, None, None] for patches, cls in zip(feature_map, tapped.prefix_tokens)]
            )
        if size is None:
            size = [min(config.max_map_size, side) for side in feature_map.shape[-2:]]
        branch = feature_map
        if config.context_size > 1:
            side = config.context_size  # every channel's own weighted sum of the neighbourhood, zeros outside
            neighbours = F.unfold(feature_map, side, padding=side // 2).unflatten(1, (feature_map.shape[1], side**2))
            weights = head.contexts[index].weight.flatten(1)
            branch = (neighbours * weights[..., None]).sum(2).unflatten(2, feature_map.shape[-2:])
            branch = branch + head.contexts[index].bias[:, None, None]
        branch = F.conv2d(branch, head.convs[index].weight, head.convs[index].bias)
        if config.batch_norm:
            branch = literal_norm(head.bns[index], branch, training)
        if config.skip:
            branch = branch + feature_map
        branch = branch.clamp(min=0) if config.branch_activation == "relu" else branch.sigmoid()
        branches.append(branch)
        feature_maps.append(feature_map)
    if config.tap_products:
        for index, feature_map in enumerate(feature_maps[1:]):
            gate = F.conv2d(feature_map, head.gates[index].weight, head.gates[index].bias)
            if config.batch_norm:
                gate = literal_norm(head.gate_norms[index], gate, training)
            sides = branches[0].shape[-2:]
            product = branches[0] * F.interpolate(gate, size=sides, mode="bilinear", align_corners=False)
            branches.append(
                literal_norm(head.product_norms[index], product, training) if config.batch_norm else product
            )
    branches = [F.interpolate(branch, size=size, mode="bilinear", align_corners=False) for branch in branches]
    return F.conv2d(torch.cat(branches, 1), head.fuser.weight, head.fuser.bias)


def literal_norm(norm, branch, training):
    mean, variance = norm.running_mean, norm.running_var
    if training:
        mean, variance = branch.mean((0, 2, 3)), branch.var((0, 2, 3), unbiased=False)
    branch = (branch - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    return branch * norm.weight[:, None, None] + norm.bias[:, None, None]


def make_head(family, seed=1, **options):
    head = TTameForSaliency.from_classifier(tiny_classifier(family), **options)
    backbone, head.backbone = head.backbone, None
    randomize(head, seed)  # unit gain, and BatchNorm statistics that are not 0 and 1
    head.backbone = backbone
    return head


def golden_head(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    channels = [state[f"convs.{index}.weight"].shape[0] for index in range(3)]
    config = TTameConfig(
        feature_layers=["a", "b", "c"], feature_channels=channels, num_labels=len(state["fuser.weight"])
    )
    head = TTameForSaliency(config)
    missing = head.load_state_dict(state, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    if name.endswith("vit"):
        maps = [tokens_to_grid(golden[f"sequence_{index}"], (4, 4), 1) for index in range(3)]
    else:
        maps = [golden[f"feature_{index}"] for index in range(3)]
    layers = {name: LayerFeatures(name, feature_map) for name, feature_map in zip("abc", maps)}
    features = ClassifierFeatures(torch.zeros(len(maps[0]), config.num_labels), layers, ("a", "b", "c"))
    return golden, head, features


@pytest.mark.parametrize("name", ["tame_fusion_cnn", "tame_fusion_vit"])
def test_golden_in_eval_mode(name):
    golden, head, features = golden_head(name)
    before = snapshot(head)
    every_class = torch.arange(head.config.num_labels)
    maps = head.eval().pairwise_saliency_logits(features, every_class)
    torch.testing.assert_close(maps, golden["logit_maps"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.sigmoid(), golden["attention"], rtol=1e-5, atol=1e-5)
    for target in every_class:
        own = head.saliency_logits(features, target.expand(len(maps)))
        torch.testing.assert_close(own, golden["logit_maps"][:, target], rtol=1e-5, atol=1e-5)
    after = snapshot(head)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_golden_in_train_mode_moves_the_running_statistics():
    golden, head, features = golden_head("tame_fusion_cnn")
    before = snapshot(head)
    maps = head.train().pairwise_saliency_logits(features, torch.arange(head.config.num_labels))
    torch.testing.assert_close(maps.sigmoid(), golden["attention_train_mode"], rtol=1e-5, atol=1e-5)
    after = snapshot(head)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if "running" in key or "num_batches" in key}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_literal_form(family, variant):
    head = make_head(family, **VARIANTS[variant])
    target = torch.tensor([3, 0, 3])
    for size in (image_size(family), other_size(family)):
        features = head.forward_features(random_pixels(family, 3, size))
        with torch.no_grad():
            every = literal_maps(head.eval(), features)
            scale = max(1.0, every.abs().max().item())  # 1e-4 at unit scale
            own, pairs = head.saliency_logits(features, target), head.pairwise_saliency_logits(features, target)
            torch.testing.assert_close(own, every[torch.arange(3), target], rtol=0, atol=1e-4 * scale)
            torch.testing.assert_close(pairs, every[:, target], rtol=0, atol=1e-4 * scale)
            every = literal_maps(head, features, training=True)
            pairs = copy.deepcopy(head).train().pairwise_saliency_logits(features, target)
            torch.testing.assert_close(pairs, every[:, target], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("family", ["vit", "deit", "deit-teacher"])
@pytest.mark.parametrize("feature_kind", ["hidden_state", "pre_norm"])
def test_token_product_equals_the_literal_form(family, feature_kind):
    head = make_head(family, token_product=True, feature_kind=feature_kind)
    plain = make_head(family, feature_kind=feature_kind)
    features = head.forward_features(random_pixels(family))
    target = torch.tensor([1, 4])
    with torch.no_grad():
        every = literal_maps(head, features)
        own = head.saliency_logits(features, target)
        torch.testing.assert_close(own, every[[0, 1], target], rtol=0, atol=1e-4 * max(1, every.abs().max().item()))
        assert not torch.allclose(own, plain.saliency_logits(features, target), atol=1e-2)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_equal_those_of_the_literal_form(training, products):
    """Also through the folded weights: a head may be trained in eval mode, with its statistics fixed."""
    head = make_head("resnet", tap_products=products).train(training)
    features = head.forward_features(random_pixels("resnet", 3))
    target = torch.tensor([3, 0, 3])
    weights = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for maps in (head.saliency_logits(features, target), literal_maps(head, features, training)[range(3), target]):
        weights = weights[:, : maps.shape[1], : maps.shape[2]]
        own = {name: p for name, p in head.named_parameters() if not name.startswith("backbone.")}
        gradients.append(dict(zip(own, torch.autograd.grad((maps * weights).sum(), list(own.values())))))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("products", [False, True])
def test_no_map_of_every_class_and_no_full_size_branch(products):
    """37 classes: no tensor of the pass, forward or backward, has 37 channels but the fuser's own gradient."""
    classifier = tiny_classifier("resnet", num_labels=37)
    head = TTameForSaliency.from_classifier(classifier, tap_products=products).train()
    shapes = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            shapes.extend(tuple(x.shape) for x in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(x))
            return out

    pixel_values = random_pixels("resnet", 3)
    features = head.forward_features(pixel_values)
    target = torch.tensor([0, 36, 5])
    first = features[head.config.feature_layers[0]].feature_map
    with Record():
        for maps in (head.saliency_logits, head.pairwise_saliency_logits):
            maps(features, target).sum().backward()
        head.eval()(pixel_values)
    spatial = [shape for shape in shapes if len(shape) == 4 and shape[-2:] == first.shape[-2:]]
    assert spatial and not any(len(shape) == 4 and shape[1] == 37 for shape in shapes)
    assert max(shape[1] for shape in spatial) == first.shape[1] < sum(head.config.feature_channels)


def test_the_folded_form_follows_training_and_loading():
    head = make_head("convnext")
    pixel_values = random_pixels("convnext")
    for change in (
        lambda: train_steps(head, pixel_values, steps=2),
        lambda: head.load_state_dict(make_head("convnext", seed=7).state_dict()),
        lambda: head.bns[0].running_var.mul_(3.0),
    ):
        with torch.inference_mode():
            before = head(pixel_values).saliency_logits
        change()
        with torch.inference_mode():
            after = head(pixel_values, target=2)
        every = literal_maps(head, head.forward_features(pixel_values))
        torch.testing.assert_close(after.saliency_logits, every[:, 2].detach(), rtol=1e-4, atol=1e-4)
        assert not torch.equal(before, after.saliency_logits)


def test_defaults_follow_the_classifier():
    vit = TTameForSaliency.from_classifier(tiny_classifier("vit")).config
    assert (vit.feature_layers, vit.feature_kind, vit.mask_space) == (
        ["stem", "layer1", "layer2"],
        "pre_norm",
        "normalized",
    )
    for family in ("convnext", "resnet"):
        config = TTameForSaliency.from_classifier(tiny_classifier(family)).config
        assert (config.feature_layers, config.feature_kind, config.mask_space) == (
            ["stage2", "stage3", "stage4"],
            "hidden_state",
            "pixel",
        )
    chosen = TTameForSaliency.from_classifier(
        tiny_classifier("deit"), mask_space="pixel", feature_kind="hidden_state", feature_layers=["layer3", 1]
    ).config
    assert (chosen.feature_layers, chosen.feature_kind, chosen.mask_space) == (
        ["layer3", "layer1"],
        "hidden_state",
        "pixel",
    )


def test_the_ranking_preset():
    head = TTameForSaliency.from_classifier(tiny_classifier("convnext"), preset="ranking", contrast=1.5)
    assert head.config.ranking_weight == head.config.ce_weight == 1 and head.config.area_weight == 0
    assert head.config.mask_fills == ["black", "mean", "blur", "white", "noise", "color"]
    assert head.config.regularize == "own"
    assert head.config.variation_weight == 0 and head.config.ranking_temperature == 0.6
    assert head.config.contrast == 1.5  # a field given beside the preset wins
    assert (
        head.config.context_size == 3 and [tuple(conv.weight.shape[1:]) for conv in head.contexts] == [(1, 3, 3)] * 4
    )
    head.config.mask_fills.remove("blur")  # of this head alone
    assert TTameForSaliency.from_classifier(head.backbone, preset="ranking").config.mask_fills[2] == "blur"
    # one stage more than published, which products make something of
    assert head.config.feature_layers == ["stage1", "stage2", "stage3", "stage4"]

    resnet = TTameForSaliency.from_classifier(tiny_classifier("resnet"), preset="ranking")
    assert resnet.config.context_size == 1 and resnet.config.contrast == 2
    assert resnet.config.variation_weight == 0.01 and resnet.config.ranking_temperature == 0.3  # by rough maps it lost
    # measured on each: a ResNet gained nothing from products
    assert head.config.tap_products and [gate.weight.shape[0] for gate in head.gates] == [len(head.convs[0].bias)] * 3
    assert not resnet.config.tap_products and not hasattr(resnet, "gates")
    assert TTameForSaliency.from_classifier(tiny_classifier("vit"), preset="ranking").config.tap_products
    # whole patches where the classifier reads patches, unless they are asked for otherwise
    grids = {
        family: TTameForSaliency.from_classifier(tiny_classifier(family), preset="ranking") for family in FAMILIES
    }
    assert {family for family, made in grids.items() if made.config.variation_weight} == {"resnet"}
    assert {family: made.config.mask_grid for family, made in grids.items()} == {
        "vit": "patch", "deit": "patch", "deit-teacher": "patch", "convnext": "pixel", "resnet": "pixel"
    }  # fmt: skip
    given = TTameForSaliency.from_classifier(tiny_classifier("vit"), preset="ranking", mask_grid="pixel")
    assert given.config.mask_grid == TTameForSaliency.from_classifier(tiny_classifier("vit")).config.mask_grid

    config = copy.deepcopy(tiny_model("vit").config)
    config.num_hidden_layers = 12
    deep = ViTForImageClassification(config)
    head = TTameForSaliency.from_classifier(deep, preset="ranking")
    assert head.config.context_size == 1
    assert head.config.feature_layers == ["layer1", "layer4", "layer8", "layer11"]
    assert TTameForSaliency.from_classifier(tiny_classifier("vit"), preset="ranking").config.feature_layers
    with pytest.raises(ValueError, match="`preset` 'best' does not exist; TTameForSaliency has 'ranking'"):
        TTameForSaliency.from_classifier(deep, preset="best")
    with pytest.raises(ValueError, match="`preset` 'ranking' does not exist; LCamForSaliency has none"):
        LCamForSaliency.from_classifier(deep, preset="ranking")


def test_the_map_is_at_most_max_map_size():
    head = TTameForSaliency.from_classifier(tiny_classifier("resnet"), feature_layers=["stem", "stage4"])
    assert head(random_pixels("resnet", 1, (64, 288))).saliency.shape == (1, 16, 56)


def test_pre_norm_is_what_the_next_block_attends_to():
    head = make_head("vit", feature_layers=["layer1"])
    seen = []
    block = head.backbone.attention_modules()[1]
    handle = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args + tuple(kwargs.values()))[0]), with_kwargs=True
    )
    features = head.forward_features(random_pixels("vit"))
    handle.remove()
    tap = head._tap(features["layer1"])
    torch.testing.assert_close(tap, tokens_to_grid(seen[0], tuple(tap.shape[-2:]), 1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("resnet", {"feature_kind": "pre_norm"}, "`feature_kind` 'pre_norm' reads the LayerNorm.*'stage2' of ResNet"),
        ("vit", {"feature_layers": ["layer3"]}, "layer 'layer3' of ViT.*use feature_kind='hidden_state'"),
        ("convnext", {"token_product": True}, "`token_product` multiplies patch tokens by the CLS token.*ConvNext"),
        ("vit", {"feature_kind": "norm"}, "`feature_kind` must be one of hidden_state, pre_norm, or None, got 'norm'"),
        ("vit", {"branch_activation": "tanh"}, "`branch_activation` must be one of relu, sigmoid, got 'tanh'"),
        ("vit", {"max_map_size": 0}, "`max_map_size` must be a whole number of at least 1, got 0"),
        ("vit", {"context_size": 4}, "`context_size` must be odd and at least 1, got 4"),
        ("resnet", {"feature_layers": ["stage2", -3]}, "`feature_layers` names 'stage2' more than once"),
        ("resnet", {"feature_layers": ["stage5"]}, "`layer` 'stage5' does not exist; the layers are stem, stage1"),
        ("resnet", {"mask_space": "grey"}, "`mask_space` must be one of pixel, normalized, or None, got 'grey'"),
        ("resnet", {"regularize": "all"}, "`regularize` must be one of own, batch, got 'all'"),
    ],
)
def test_bad_configurations_are_one_clear_sentence(family, options, message):
    with pytest.raises(ValueError, match=message) as error:
        TTameForSaliency.from_classifier(tiny_classifier(family), **options)
    assert "\n" not in str(error.value)


def test_labels_are_the_classifiers():
    head = make_head("vit")
    assert head(random_pixels("vit", 1), target=LABELS[3]).target.tolist() == [3]


def test_kept_and_removed_images_share_one_pass():
    sizes, terms = [], []
    for weights in ({}, {"removal_weight": 1.0, "ranking_weight": 1.0}):
        torch.manual_seed(0)
        head = make_head("resnet", **weights).train()
        head.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        terms.append(head(random_pixels("resnet", 3), return_loss=True).loss_terms)
    assert sizes == [3, 12]  # besides the pass that gave the features
    assert terms[1].pop("removal") > 0 and terms[1].pop("ranking") > 0
    assert terms[0].keys() == terms[1].keys()
    for name, term in terms[0].items():  # reported beside the published loss, not inside it
        torch.testing.assert_close(terms[1][name], term)
