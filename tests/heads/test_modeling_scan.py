"""SCAN: its published equations' numbers, slow per-image oracles, and the tester every head passes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from testing_common import (
    FAMILIES,
    ExplainerTesterMixin,
    random_pixels,
    randomize,
    tiny_classifier,
    train_steps,
)
from testing_zero_shot import tiny_tokenizer, tiny_zero_shot
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.losses import confidence_loss, confident_reconstruction_loss, coverage_penalty
from hf_explain.heads.scan import ScanConfig, ScanForSaliency
from hf_explain.heads.scan.decoders import AttentionBlock, CnnDecoder, TransformerDecoder, default_widths
from hf_explain.heads.scan.modeling_scan import confidence_of, positive_percentile


GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "scan.safetensors")
SMALL = {"decoder_width": 2, "num_attention_blocks": 1, "num_residual_modules": 1}


class TestScan(ExplainerTesterMixin):
    head_class = ScanForSaliency
    variants = {
        "paper": SMALL,
        "contribution": {**SMALL, "mask_by": "contribution", "percentile_range": (0.0, 60.0), "percentile": 25.0},
        "released": {**SMALL, "blur": "released", "confidence_channel": "first", "num_residual_modules": 0},
    }
    max_kilobytes = 96
    test_exported_is_one_graph_for_any_batch_and_class = None
    test_compiled_is_one_graph_for_any_batch_and_class = None

    def expected_size(self, head, pixel_values):
        return tuple(pixel_values.shape[-2:])


def make_head(family, **options):
    torch.manual_seed(1)
    return ScanForSaliency.from_classifier(tiny_classifier(family), **{**SMALL, **options})


@pytest.mark.parametrize(("family", "layer", "percentile", "levels"), [
    ("resnet", "stage4", 0, 1), ("convnext", "stage2", 0, 1), ("vit", "layer1", 50, 0), ("deit", "layer1", 50, 0),
])  # fmt: skip
def test_the_contribution_preset(family, layer, percentile, levels):
    config = make_head(family, preset="contribution").config
    assert (config.feature_layers, config.percentile, config.levels) == ([layer], percentile, levels)
    assert (config.mask_by, config.activation, config.percentile_range) == ("contribution", "sigmoid", [20, 90])
    assert make_head(family, preset="contribution", levels=2).config.levels == 2  # a field given beside it wins


# ------------------------------------------------------------------------------------------------------ golden numbers


def test_golden_losses():
    decoded, target = GOLDEN["decoder_output_conf_first"], GOLDEN["target"]
    confidence, reconstruction = confidence_of(decoded[:, 0], ScanConfig.activation), decoded[:, 1:]
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(confidence, GOLDEN["confidence"][:, 0], **close)
    torch.testing.assert_close(coverage_penalty(confidence, ScanConfig.alpha), GOLDEN["omega"], **close)
    first = confidence_loss(reconstruction, target, confidence, ScanConfig.alpha, ScanConfig.lam)
    second = confident_reconstruction_loss(reconstruction, target, confidence, ScanConfig.alpha)
    torch.testing.assert_close(first, GOLDEN["confidence_loss"], **close)
    torch.testing.assert_close(second, GOLDEN["reconstruction_loss"], **close)
    torch.testing.assert_close((first + second).mean()[None], GOLDEN["total"], **close)


def test_golden_gradient_mask():
    gradient = GOLDEN["positive_gradients"]
    threshold = positive_percentile(gradient.flatten(1), GOLDEN["percentile"].double().expand(len(gradient)))
    kept = GOLDEN["features"] * (gradient >= threshold.view(-1, 1, 1, 1))
    assert torch.equal(kept, GOLDEN["masked_features"])


def test_losses_of_extreme_maps_are_finite():
    image = torch.randn(2, 3, 4, 4)
    for value in (0.0, 1.0):
        confidence = torch.full((2, 4, 4), value, requires_grad=True)
        loss = confidence_loss(image + 1, image, confidence, 4.0, 0.1)
        loss = loss + confident_reconstruction_loss(image, image, confidence, 4.0)
        loss.sum().backward()
        assert loss.isfinite().all() and confidence.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------ the percentile


@pytest.mark.parametrize("percent", [0.0, 37.5, 70.0, 95.0, 99.9, 100.0])
def test_percentile_equals_a_loop(percent):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(7, 401, generator=generator)
    values[1] = -values[1].abs()  # none positive
    values[2] = -1
    values[2, 17] = 3.0  # one
    values[3, :300] = 0.25  # ties
    values[4] = values[4].abs() + 1e-6  # all
    values[5] = 0
    found = positive_percentile(values, torch.full((7,), percent, dtype=torch.float64))
    for row, value in zip(values, found):
        positive = row[row > 0].double()
        if len(positive) == 0:
            assert value == float("inf")
        else:
            expected = torch.quantile(positive, percent / 100).float()
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_percentile_per_row():
    values = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    percentile = torch.tensor([0.0, 70.0, 95.0, 100.0], dtype=torch.float64)
    expected = torch.stack([torch.quantile(row.double(), p / 100) for row, p in zip(values, percentile)]).float()
    torch.testing.assert_close(positive_percentile(values, percentile), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [1, 2])
def test_masked_features_equal_a_loop_over_images(family, layer):
    """The oracle differentiates the whole classifier, image by image, and knows nothing of tails."""
    head = make_head(family, feature_layers=[layer])
    pixel_values, targets, percents = random_pixels(family, 3), [0, 4, 2], [95.0, 0.0, 71.3]
    features = head.forward_features(pixel_values)
    found = head.masked_features(features, torch.tensor(targets), percents)
    assert not found.feature_map.requires_grad
    for index, (target, percent) in enumerate(zip(targets, percents)):
        image = pixel_values[index : index + 1].clone().requires_grad_(True)
        output = head.backbone.model(image, output_hidden_states=True)
        state = output.hidden_states[layer]
        (gradient,) = torch.autograd.grad(output.logits[0, target], state)
        positive = gradient[gradient > 0]
        masked = (state * (gradient >= torch.quantile(positive, percent / 100))).detach()[0]
        assert 0 < (masked != 0).sum() < masked.numel()
        if state.ndim == 4:
            own = found.feature_map[index]
        else:
            own = torch.cat([found.prefix_tokens[index], found.feature_map[index].flatten(1).T])
        # one entry on the edge of the percentile may fall either way with float rounding
        assert (own - masked).abs().gt(1e-4).sum() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_features_masked_by_contribution_equal_a_loop_over_positions(family):
    layer = 4 if family == "convnext" else 1  # a LayerNorm follows ConvNeXt's other stages: below
    head = make_head(family, feature_layers=[layer], mask_by="contribution")
    head.backbone.double()  # the shares are sums that cancel
    pixel_values, targets, percents = random_pixels(family, 3).double(), [0, 4, 2], [80.0, 10.0, 31.3]
    features = head.forward_features(pixel_values)
    found = head.masked_features(features, torch.tensor(targets), percents)
    assert found.prefix_tokens is None or not found.prefix_tokens.any()
    prefix = 0 if found.prefix_tokens is None else found.prefix_tokens.shape[1]
    for index, (target, percent) in enumerate(zip(targets, percents)):
        output = head.backbone.model(pixel_values[index : index + 1].requires_grad_(True), output_hidden_states=True)
        state = output.hidden_states[layer]
        (gradient,) = torch.autograd.grad(output.logits[0, target], state)
        tokens = state[0, prefix:].T if state.ndim == 3 else state[0].flatten(1)
        gradients = gradient[0, prefix:].T if state.ndim == 3 else gradient[0].flatten(1)
        shares = [float(tokens[:, place].detach() @ gradients[:, place]) for place in range(tokens.shape[1])]
        threshold = torch.quantile(torch.tensor([share for share in shares if share > 0]), percent / 100)
        own = found.feature_map[index].flatten(1)
        kept = [place for place, share in enumerate(shares) if share >= threshold]
        assert 0 < len(kept) < len(shares)
        wrong = 0
        for place in range(len(shares)):
            expected = tokens[:, place] if place in kept else torch.zeros_like(tokens[:, place])
            wrong += not torch.allclose(own[:, place], expected, atol=1e-4)
        # the percentile itself is taken in float32: one position at its edge may fall either way
        assert wrong <= 1


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "resnet"])
def test_contributions_are_taken_behind_the_norm_that_follows(family):
    """The oracle reads them from a hook on that norm; what is kept are the features before it."""
    convnext = family == "convnext"
    head = make_head(family, feature_layers=["stage2" if convnext else -2], mask_by="contribution", percentile=40.0)
    model = head.backbone.double().model
    blocks = model.convnext.encoder.stages if convnext else getattr(model, family.partition("-")[0]).layers
    norm = blocks[2].downsampling_layer[0] if convnext else blocks[-1].layernorm_before
    pixel_values, targets = random_pixels(family, 3).double(), [0, 4, 2]
    found = head.masked_features(head.forward_features(pixel_values), torch.tensor(targets)).feature_map
    for index, target in enumerate(targets):
        seen = []
        handle = norm.register_forward_hook(lambda module, args, output, seen=seen: seen.extend((args[0], output)))
        logits = model(pixel_values[index : index + 1].requires_grad_(True)).logits
        handle.remove()
        before, behind = seen
        (gradient,) = torch.autograd.grad(logits[0, target], behind)
        shares = (gradient * behind).sum(1 if convnext else 2)[0]
        if not convnext:
            prefix = head.backbone.num_prefix_tokens
            shares, before = shares[prefix:].view(4, 4), before[:, prefix:].transpose(1, 2).reshape(1, -1, 4, 4)
        kept = shares >= torch.quantile(shares[shares > 0].float(), 0.4)
        assert 0 < kept.sum() < kept.numel()
        wrong = ~torch.isclose(found[index], before[0].detach() * kept, atol=1e-4).all(0)
        assert wrong.sum() <= 1  # as above


class PositionNorm(nn.Module):
    def forward(self, state):
        return F.layer_norm(state.movedim(1, -1), state.shape[1:2], eps=1e-9).movedim(-1, 1)


def test_contributions_that_cancel_are_one_clear_sentence():
    """Of a classifier whose norms are not known, when the head is built; not after it was trained on rounding."""
    layers = (nn.Conv2d(3, 8, 4, 4), PositionNorm(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    classifier = FrozenClassifier(nn.Sequential(*layers), image_size=(32, 32))
    options = {**SMALL, "mask_by": "contribution"}
    with pytest.raises(ValueError, match="`layer` '0' is followed by a normalisation that makes gradient times"):
        ScanForSaliency.from_classifier(classifier, **options, feature_layers=["0"])
    assert ScanForSaliency.from_classifier(classifier, **options, feature_layers=["1"])(random_pixels("vit"))


def test_an_image_without_positive_gradients_keeps_nothing():
    head = make_head("resnet")
    with torch.no_grad():
        head.backbone.model.classifier[-1].weight.abs_().neg_()
        features = head.forward_features(random_pixels("resnet"))
    assert not head.masked_features(features, torch.tensor([0, 1])).feature_map.any()
    assert head(random_pixels("resnet")).saliency.isfinite().all()


# -------------------------------------------------------------------------------------------------- where P comes from


def test_the_feature_at_the_percentile_is_kept():
    head = make_head("resnet")
    features = head.forward_features(random_pixels("resnet", 2))
    target = torch.tensor([0, 3])
    (gradient,) = torch.autograd.grad(
        features.scores.gather(1, target[:, None]).sum(), features.read.feature_map, retain_graph=True
    )
    largest = gradient == gradient.amax((1, 2, 3), keepdim=True)
    for percentile, kept in ((100.0, largest), (0.0, gradient > 0)):
        masked = head.masked_features(features, target, percentile).feature_map
        assert torch.equal(masked, features.tap.feature_map.detach() * kept)


def test_percentile_at_inference():
    head = make_head("vit")
    pixel_values = random_pixels("vit", 3)
    default = head(pixel_values)
    assert torch.equal(default.saliency, head(pixel_values, percentile=95).saliency)
    assert not torch.equal(default.saliency, head(pixel_values, percentile=50).saliency)
    mixed = head(pixel_values, percentile=[95.0, 50.0, 0.0])
    torch.testing.assert_close(mixed.saliency[0], default.saliency[0], rtol=1e-4, atol=1e-4)
    alone = head(pixel_values[1:2], percentile=50.0, target=int(mixed.target[1]))
    torch.testing.assert_close(mixed.saliency[1], alone.saliency[0], rtol=1e-4, atol=1e-4)
    features = head.forward_features(pixel_values)
    shared = head.forward_head(features, percentile=50)
    assert torch.equal(shared.saliency, head(pixel_values, percentile=50).saliency)
    head.config.percentile = 50.0
    assert torch.equal(head(pixel_values).saliency, shared.saliency)


def test_percentile_in_training_is_drawn_per_image_and_follows_the_seed():
    head = make_head("vit").train()
    torch.manual_seed(3)
    drawn = head._percentiles(None, 500)
    torch.manual_seed(3)
    assert torch.equal(drawn, head._percentiles(None, 500))
    assert drawn.min() >= 70 and drawn.max() <= 100 and drawn.unique().numel() > 400
    assert abs(drawn.mean() - 85) < 2
    assert head.eval()._percentiles(None, 4).tolist() == [95.0] * 4
    head.config.percentile_range = (80.0, 80.0)
    assert head.train()._percentiles(None, 4).tolist() == [80.0] * 4
    pixel_values = random_pixels("vit")
    head.eval()
    fixed = [head(pixel_values, return_loss=True, percentile=p).loss for p in (80, 80, 10)]
    assert fixed[0] == fixed[1] != fixed[2]


# ----------------------------------------------------------------------------------------------- the graph, the passes


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_upstream_of_the_tap_has_a_graph_and_every_block_runs_once(family):
    head = make_head(family, feature_layers=[2])
    calls = {}

    def record(index):
        def hook(module, inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            calls.setdefault(index, []).append(output.requires_grad)

        return hook

    handles = [block.register_forward_hook(record(index)) for index, block in enumerate(head.backbone._blocks)]
    for run in (
        lambda: head(random_pixels(family)),
        lambda: head.train()(random_pixels(family), return_loss=True).loss.backward(),
    ):
        calls.clear()
        run()
        assert calls == {index: [index >= 2] for index in range(len(handles))}
    for handle in handles:
        handle.remove()
    with torch.inference_mode():
        inside = head.eval()(random_pixels(family), target=1)
    assert torch.equal(inside.saliency, head(random_pixels(family), target=1).saliency)
    assert not inside.logits.requires_grad and not inside.reconstruction.requires_grad


def test_classifiers_outside_the_table(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=4, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, stride=2, padding=1),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 16, 5),
    )
    head = ScanForSaliency.from_classifier(FrozenClassifier(model, image_size=(32, 32)), decoder_width=2)
    assert (head.config.feature_layers, head.config.levels, head.config.decoder_type) == (["2"], 3, "cnn")
    assert head(torch.randn(2, 3, 32, 32)).saliency.shape == (2, 32, 32)


_PLAIN = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
_PLAIN |= {"num_hidden_layers": 4}
PLAIN = {
    "clip": lambda: CLIPForImageClassification(CLIPConfig(vision_config=_PLAIN, text_config={}, num_labels=5)),
    "siglip": lambda: SiglipForImageClassification(SiglipConfig(vision_config=_PLAIN, text_config={}, num_labels=5)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(num_register_tokens=4, num_labels=5, **_PLAIN)
    ),
    "beit": lambda: BeitForImageClassification(BeitConfig(num_labels=5, use_mean_pooling=False, **_PLAIN)),
    "clip_texts": lambda: tiny_zero_shot("clip"),
}


@pytest.mark.parametrize("preset", [None, "contribution"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_transformers_outside_the_table(name, preset, tmp_path):
    """The block in the middle, or the first one, and the decoder of transformers: trained, saved and loaded."""
    classifier = FrozenClassifier(randomize(PLAIN[name]()), tokenizer=tiny_tokenizer())
    if name == "clip_texts":
        classifier = classifier.for_texts(["cat", "dog"])
    torch.manual_seed(0)
    head = ScanForSaliency.from_classifier(classifier, preset=preset, **SMALL)
    blocks = classifier.token_layout.blocks
    assert head.config.feature_layers == [blocks[len(blocks) // 2 - 1 if preset is None else 0]]
    assert isinstance(head.decoder, TransformerDecoder)
    pixel_values = random_pixels("vit")
    (loss,) = train_steps(head, pixel_values, steps=1)
    head.save_pretrained(tmp_path)
    loaded = ScanForSaliency.from_pretrained(tmp_path, classifier=classifier)
    maps, again = head(pixel_values, target=1).saliency, loaded(pixel_values, target=1).saliency
    assert math.isfinite(loss) and maps.shape == (2, 32, 32) and maps.amax() == 1
    torch.testing.assert_close(again, maps)
    if not classifier.token_layout.patches_read:
        with pytest.raises(ValueError, match="is the last layer of .* only the prefix tokens reach the logits"):
            ScanForSaliency.from_classifier(classifier, preset=preset, feature_layers=[blocks[-1]])


# --------------------------------------------------------------------------------------------------- blur and decoders


@pytest.mark.parametrize(("blur", "factor"), [("paper", 0.5), ("released", 1.0), ("none", 0.0)])
def test_blur_equals_a_loop_over_pixels(blur, factor):
    head = make_head("resnet", blur=blur)
    pixel_values = random_pixels("resnet", 2, (12, 20))
    found = head.blurred_image(pixel_values, (3, 4))  # 4 and 5 pixels per position
    mean, std = torch.tensor(head.config.image_mean), torch.tensor(head.config.image_std)
    image = (pixel_values * std[:, None, None] + mean[:, None, None]) * 2 - 1
    if blur == "none":
        torch.testing.assert_close(found, image)
        return
    weights = {}
    for dy in range(-4, 5):
        for dx in range(-5, 6):
            weights[dy, dx] = math.exp(-0.5 * ((dy / (4 * factor)) ** 2 + (dx / (5 * factor)) ** 2))
    total = sum(weights.values())

    def mirror(place, side):
        place = abs(place)
        return place if place < side else 2 * (side - 1) - place

    for y, x in ((0, 0), (11, 19), (5, 7), (2, 18), (10, 0)):
        value = sum(w * image[:, :, mirror(y + dy, 12), mirror(x + dx, 20)] for (dy, dx), w in weights.items())
        torch.testing.assert_close(found[:, :, y, x], value / total, rtol=1e-4, atol=1e-5)


def test_widths_are_the_papers():
    assert default_widths("cnn", 5) == [512, 384, 256, 192, 128, 64]
    assert default_widths("transformer", 4) == [256, 128, 64, 32]
    assert default_widths("cnn", 2, 8) == [24, 16, 8]
    assert default_widths("transformer", 0) == [] and default_widths("cnn", 0) == [64]


@pytest.mark.parametrize("levels", range(5))
@pytest.mark.parametrize("decoder", ["cnn", "transformer"])
def test_decoders_reach_every_power_of_two(decoder, levels):
    widths = default_widths(decoder, levels, 2)
    module = CnnDecoder(6, widths, 4, 2) if decoder == "cnn" else TransformerDecoder(6, widths, 4, 2, 4, 12)
    tokens = torch.randn(2, 1, 6) if decoder == "transformer" else None
    assert module(torch.randn(2, 6, 2, 3), tokens).shape == (2, 4, 2 * 2**levels, 3 * 2**levels)


@pytest.mark.parametrize(("patch", "levels"), [(2, 1), (4, 2), (7, 3), (14, 4), (16, 4)])
def test_other_ratios_take_a_last_resize(patch, levels):
    side = 3 * patch
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=side,
        patch_size=patch,
        num_labels=3,
    )
    head = ScanForSaliency.from_classifier(ViTForImageClassification(config), **SMALL)
    assert (head.config.levels, head.config.feature_layers) == (levels, ["layer1"])
    assert len(head.config.decoder_widths) == levels
    output = head(torch.randn(2, 3, side, side + 2 * patch), return_loss=True)
    assert output.saliency.shape == (2, side, side + 2 * patch)
    assert output.reconstruction.shape == (2, 3, side, side + 2 * patch)


def test_sizes_that_are_no_multiple_of_the_stride():
    output = make_head("resnet")(random_pixels("resnet", 2, (70, 77)), return_loss=True)
    assert output.saliency.shape == (2, 70, 77) and output.loss.isfinite()


def test_prefix_tokens_reach_the_transformer_decoder_and_not_the_cnn_decoder():
    for decoder, reaches in (("transformer", True), ("cnn", False)):
        head = make_head("deit", decoder_type=decoder, gradient_mask=False)
        features = head.forward_features(random_pixels("deit"))
        before = head.decode(features, torch.tensor([0, 0]))[0]
        features.tap = features.tap.replace(prefix_tokens=features.tap.prefix_tokens + 5)
        assert torch.equal(before, head.decode(features, torch.tensor([0, 0]))[0]) != reaches


def test_attention_heads_divide_the_width():
    for width, wanted, used in ((768, 12, 12), (32, 12, 8), (35, 12, 7), (13, 12, 1), (48, 3, 3)):
        assert AttentionBlock(width, wanted).num_heads == used


def test_attention_block_equals_pytorchs_post_norm_layer():
    torch.manual_seed(0)
    block = AttentionBlock(24, 12).eval()
    layer = torch.nn.TransformerEncoderLayer(24, 12, 96, dropout=0.0, activation="gelu", batch_first=True).eval()
    with torch.no_grad():
        for mine, theirs in (
            (block.query_key_value.weight, layer.self_attn.in_proj_weight),
            (block.query_key_value.bias, layer.self_attn.in_proj_bias),
            *zip(block.projection.parameters(), layer.self_attn.out_proj.parameters()),
            *zip(block.expansion.parameters(), layer.linear1.parameters()),
            *zip(block.contraction.parameters(), layer.linear2.parameters()),
        ):
            mine.copy_(theirs)
    tokens = torch.randn(2, 7, 24)
    torch.testing.assert_close(block(tokens), layer(tokens), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------- fields and errors


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0},
        {"lam": 0.0, "blur": "none"},
        {"gradient_mask": False},
        {"activation": "sigmoid"},
        {"mask_by": "contribution", "percentile": 50.0},
        {"percentile_range": (0.0, 0.0), "percentile": 0.0},
        {"decoder_widths": [4, 3, 2], "decoder_type": "transformer"},
        {"decoder_widths": [5, 4, 3, 2], "decoder_type": "cnn", "confidence_channel": "first"},
    ],
)
def test_ablations_train(options):
    head = make_head("vit", **options)
    pixel_values = random_pixels("vit")
    before = head(pixel_values, target=0)
    losses = train_steps(head, pixel_values, steps=12, lr=0.01)
    assert losses[-1] < losses[0]
    classes = [head(pixel_values, target=target).saliency for target in (0, 1)]
    assert torch.equal(*classes) == (options.get("gradient_mask") is False)
    assert not torch.equal(before.saliency, classes[0])


def test_the_confidence_channel_is_where_the_config_says():
    for position, index in (("last", 3), ("first", 0)):
        head = make_head("resnet", confidence_channel=position)
        with torch.no_grad():
            head.decoder.output.conv.weight[index].zero_()
            head.decoder.output.conv.bias[index] = 2.0
        output = head(random_pixels("resnet"))
        expected = (math.sin(2 * math.pi * 2 / 8.3) + 1) / 2
        torch.testing.assert_close(output.saliency_logits, torch.full((2, 64, 64), expected))
        assert not output.saliency.any()  # a constant map is all zeros
        assert output.reconstruction.shape == (2, 3, 64, 64) and output.reconstruction.abs().max() <= 1


def test_defaults():
    vit = make_head("vit").config
    assert (vit.feature_layers, vit.decoder_type, vit.levels) == (["layer1"], "transformer", 3)
    resnet = make_head("resnet").config
    assert (resnet.feature_layers, resnet.decoder_type, resnet.levels) == (["stage4"], "cnn", 5)
    assert (vit.alpha, vit.lam, vit.percentile, tuple(vit.percentile_range)) == (4.0, 0.1, 95.0, (70.0, 100.0))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("vit", {"percentile": 101.0}, r"`percentile` must lie in \[0, 100\], got 101"),
        ("vit", {"percentile": float("nan")}, r"`percentile` must lie in \[0, 100\], got nan"),
        ("vit", {"percentile_range": (80.0, 70.0)}, r"`percentile_range` must be \(low, high\)"),
        ("vit", {"percentile_range": (80.0, 170.0)}, r"`percentile_range` must be \(low, high\)"),
        ("vit", {"mask_by": "sum"}, "`mask_by` must be one of gradient, contribution, got 'sum'"),
        ("vit", {"blur": "soft"}, "`blur` must be one of paper, released, none, got 'soft'"),
        ("vit", {"activation": "relu"}, "`activation` must be one of sine, sigmoid, got 'relu'"),
        ("vit", {"confidence_channel": "2"}, "`confidence_channel` must be one of last, first, got '2'"),
        ("vit", {"decoder_type": "rnn"}, "`decoder_type` must be one of cnn, transformer, or None, got 'rnn'"),
        ("vit", {"alpha": 0.0}, "`alpha` must be above 0, got 0.0"),
        ("vit", {"lam": -1.0}, "`lam` must be at least 0, got -1.0"),
        ("vit", {"decoder_width": 0}, "`decoder_width` must be a whole number of at least 1, or None, got 0"),
        ("vit", {"feature_layers": ["layer1", "layer2"]}, "SCAN taps one layer; `feature_layers` has 2"),
        ("vit", {"feature_layers": ["layer3"]}, "`feature_layers` 'layer3' is the last layer.*tap an earlier layer"),
        ("vit", {"feature_layers": ["stage1"]}, "`layer` 'stage1' does not exist; the layers are stem, layer1"),
        ("vit", {"decoder_widths": [4, 4]}, "`decoder_widths` has 2 numbers; the 'transformer' decoder needs 3"),
        ("resnet", {"decoder_widths": [4] * 5}, "`decoder_widths` has 5 numbers; the 'cnn' decoder needs 6"),
        ("resnet", {"levels": 6}, "`levels` is 6, but from the 7x7 grid .* 224x224 pixels it takes 5"),
        ("resnet", {"levels": -1}, "`levels` is -1, .* give 0 to 5, or leave it out"),
    ],
)
def test_bad_configurations_are_one_clear_sentence(family, options, message):
    with pytest.raises(ValueError, match=message) as error:
        ScanForSaliency.from_classifier(tiny_classifier(family), **options)
    assert "\n" not in str(error.value)


def test_a_grid_that_cannot_be_reached():
    classifier = tiny_classifier("resnet")
    classifier = FrozenClassifier(classifier.model, image_size=(32, 32))
    with pytest.raises(ValueError, match="'stage4' has a grid of 1x1 for an image of 32x32 pixels"):
        ScanForSaliency.from_classifier(classifier)
    head = make_head("resnet")
    with pytest.raises(ValueError, match=r"`pixel_values` of \(32, 64\) pixels give a grid of \(1, 2\)"):
        head(random_pixels("resnet", 2, (32, 64)), return_loss=True)


def test_bad_calls_are_one_clear_sentence():
    head = make_head("vit")
    pixel_values = random_pixels("vit")
    for percentile in (-1, 100.5, float("nan"), [50, 101]):
        with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got"):
            head(pixel_values, percentile=percentile)
    with pytest.raises(ValueError, match=r"`percentile` must be one number or one per image \(2\), got shape \(3,\)"):
        head(pixel_values, percentile=[50, 60, 70])
    with pytest.raises(TypeError, match="`percentile` must be one number or one per image, got 'high'"):
        head(pixel_values, percentile="high")
    pixel_values[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="^Image 1 gets a gradient that is not finite; look for NaN"):
        head(pixel_values)
    head.backbone = None
    with pytest.raises(ValueError, match="has no classifier; build it with from_classifier"):
        head(pixel_values)
