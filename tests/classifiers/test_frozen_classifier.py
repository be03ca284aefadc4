"""Frozen classifiers: Transformers' own hidden states, tails without a bit of error, and clear words otherwise."""

import copy
import json
import logging
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from testing_common import (
    FAMILIES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LABELS,
    assert_frozen,
    assert_unchanged,
    image_size,
    other_size,
    random_pixels,
    randomize,
    save_classifier,
    snapshot,
    tiny_classifier,
    tiny_model,
)
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithNoAttention

from hf_explain.classifiers.architectures import ARCHITECTURES
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.tensors.maps import grid_to_tokens


TRANSFORMERS = ("vit", "deit", "deit-teacher")
# sizes that are not a multiple of the patch, smaller and larger than the native one, not square
SIZES = {"transformer": ((32, 32), (48, 40), (24, 64), (35, 50)), "cnn": ((64, 64), (96, 64), (61, 90))}


def sizes(family):
    return SIZES["transformer" if family in TRANSFORMERS else "cnn"]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


# ------------------------------------------------------------------ the table's architectures


def test_features_are_transformers_own_hidden_states(family):
    classifier = tiny_classifier(family)
    model = tiny_model(family).to(memory_format=classifier.memory_format)
    for size in sizes(family):
        pixel_values = random_pixels(family, 2, size)
        options = {"interpolate_pos_encoding": True} if family in TRANSFORMERS else {}
        with torch.no_grad():
            expected = model(pixel_values, output_hidden_states=True, **options)
        features = classifier.features(pixel_values)
        assert tuple(features) == classifier.layer_names
        assert len(features) == len(expected.hidden_states)
        # of the native size the classifier is not asked to interpolate; that it may be is a rounding of the embedding
        tolerance = 0 if size != image_size(family) or not options else 1e-5
        torch.testing.assert_close(features.logits, expected.logits, rtol=tolerance, atol=tolerance)
        for index, (name, state) in enumerate(zip(classifier.layer_names, expected.hidden_states)):
            layer = features[name]
            assert layer.layer == name and features[index] is layer
            if family in TRANSFORMERS:
                prefix = 1 if family == "vit" else 2
                grid = (size[0] // 8, size[1] // 8)
                assert layer.feature_map.shape == (2, 32, *grid) and layer.prefix_tokens.shape == (2, prefix, 32)
                found = torch.cat([layer.prefix_tokens, layer.feature_map.flatten(2).transpose(1, 2)], dim=1)
                # row by row from the top left
                patch = 1 * grid[1] + 2
                assert torch.equal(layer.feature_map[:, :, 1, 2], found[:, prefix + patch])
            else:
                found = layer.feature_map
                assert layer.prefix_tokens is None
            torch.testing.assert_close(found, state, rtol=tolerance, atol=tolerance)
            assert classifier.num_channels(name) == layer.feature_map.shape[1]


def test_forward_is_the_classifiers_own(family):
    classifier, model = tiny_classifier(family), tiny_model(family)
    pixel_values = random_pixels(family)
    theirs = model(pixel_values).logits
    torch.testing.assert_close(classifier(pixel_values), theirs, rtol=1e-5, atol=1e-6)
    if classifier.memory_format is not torch.contiguous_format:
        theirs = model.to(memory_format=classifier.memory_format)(pixel_values).logits
    assert torch.equal(classifier(pixel_values), theirs)


def test_resnets_run_in_channels_last(family, tmp_path):
    classifier, pixel_values = tiny_classifier(family), random_pixels(family)
    resnet = family == "resnet"
    assert classifier.memory_format is (torch.channels_last if resnet else torch.contiguous_format)
    features = classifier.features(pixel_values)
    other = classifier.features(pixel_values.to(memory_format=torch.channels_last))
    if resnet:
        for name, layer in features.items():
            assert layer.feature_map.is_contiguous(memory_format=torch.channels_last), name
            assert torch.equal(other[name].feature_map, layer.feature_map)
            # features that somebody made anew go on in the same format
            anew = layer.replace(feature_map=layer.feature_map.contiguous())
            assert torch.equal(classifier.forward_from_features(anew), features.logits)
    torch.testing.assert_close(other.logits, features.logits, rtol=1e-5, atol=1e-6)
    # on disk nothing changes
    tiny_model(family).save_pretrained(tmp_path / "before")
    classifier.model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped stands in /proc")
def test_the_loaded_file_does_not_stay_in_memory(tmp_path):
    """Its weights are laid out anew; a running mean that still lay in it would keep all of it."""
    tiny_model("resnet").save_pretrained(tmp_path)
    classifier = FrozenClassifier.from_pretrained(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert classifier.memory_format is torch.channels_last


def test_a_model_that_is_handed_over_keeps_its_other_tensors():
    model = tiny_model("resnet")
    kept = [*(one for one in model.parameters() if one.ndim != 4), *model.buffers()]
    places = [one.data_ptr() for one in kept]
    FrozenClassifier(model)
    now = [*(one for one in model.parameters() if one.ndim != 4), *model.buffers()]
    assert [one.data_ptr() for one in now] == places


def test_an_efficientnet_runs_in_channels_last_too():
    model = randomize(efficientnet())
    pixel_values = random_pixels("vit", 2, (64, 96))
    with torch.no_grad():
        expected = model(pixel_values).logits
    classifier = FrozenClassifier(model)
    assert classifier.memory_format is torch.channels_last
    torch.testing.assert_close(classifier(pixel_values), expected, rtol=1e-4, atol=1e-5)
    features = classifier.features(pixel_values)
    layer = features[classifier.default_layer]
    assert layer.feature_map.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(classifier.forward_from_features(layer), features.logits)


def test_a_classifier_outside_the_table_keeps_its_memory_format():
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))

    images = torch.randn(2, 3, 32, 32)
    classifier = FrozenClassifier(model(), image_size=(32, 32))
    turned = FrozenClassifier(model().to(memory_format=torch.channels_last), image_size=(32, 32))
    assert classifier.memory_format is torch.contiguous_format and turned.memory_format is torch.channels_last
    assert turned.features(images)["0"].feature_map.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(turned(images), classifier(images))
    assert FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))).memory_format is torch.contiguous_format


def test_tail_equals_the_full_logits_exactly_at_every_layer(family):
    classifier = tiny_classifier(family)
    for size in sizes(family):
        pixel_values = random_pixels(family, 2, size)
        features = classifier.features(pixel_values)
        assert torch.equal(features.logits, classifier(pixel_values))
        assert torch.equal(classifier.forward_from_features(features), features.logits)
        for name in classifier.layer_names:
            assert torch.equal(classifier.forward_from_features(features[name]), features.logits), name
            alone = classifier.forward_to_features(pixel_values, name)
            assert torch.equal(alone.feature_map, features[name].feature_map)
            assert torch.equal(classifier.forward_from_features(alone), features.logits)


def test_tail_equals_the_full_logits_in_bfloat16(family):
    classifier = FrozenClassifier(tiny_model(family).to(torch.bfloat16))
    assert classifier.dtype == torch.bfloat16
    pixel_values = random_pixels(family)  # float32 pixels are cast to what the classifier is
    features = classifier.features(pixel_values)
    for name in classifier.layer_names:
        assert torch.equal(classifier.forward_from_features(features[name]), features.logits)


def test_only_the_layers_asked_for_are_kept(family):
    classifier = tiny_classifier(family)
    pixel_values = random_pixels(family)
    names = classifier.layer_names
    features = classifier.features(pixel_values, [names[1], -2, 0])
    assert tuple(features) == ("stem", names[1], names[-2])  # network order
    assert features[-2] is features[names[-2]]
    assert torch.equal(classifier.forward_from_features(features), features.logits)  # from the deepest


def test_changed_features_change_the_logits_and_carry_the_gradient(family):
    classifier = tiny_classifier(family)
    features = classifier.features(random_pixels(family))
    for name in classifier.layer_names:
        feature_map = features[name].feature_map.detach().clone().requires_grad_()
        logits = classifier.forward_from_features(features[name].replace(feature_map=feature_map))
        (gradient,) = torch.autograd.grad(logits.sum(), feature_map)
        dead = family in TRANSFORMERS and name == classifier.layer_names[-1]
        assert gradient.any() != dead, name  # after the last block no patch is read any more
        masked = classifier.forward_from_features(features[name].replace(feature_map=0 * feature_map))
        assert torch.equal(masked, features.logits) == dead
    assert classifier.default_layer == classifier.layer_names[-2 if family in TRANSFORMERS else -1]
    assert classifier.is_transformer == (family in TRANSFORMERS)
    assert classifier.num_prefix_tokens == {"vit": 1, "deit": 2, "deit-teacher": 2}.get(family, 0)


def test_no_graph_upstream_of_a_layer(family):
    classifier = tiny_classifier(family)
    pixel_values = random_pixels(family)
    features = classifier.features(pixel_values)  # gradients are on, yet nothing asks for one
    assert not features.logits.requires_grad
    assert not any(layer.feature_map.requires_grad for layer in features.values())
    pixel_values.requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(pixel_values).sum(), pixel_values)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_pre_attention_norm(family):
    classifier, model = tiny_classifier(family), tiny_model(family)
    pixel_values = random_pixels(family, 2, other_size(family))
    seen = []
    body = getattr(model, "vit" if family == "vit" else "deit")
    for block in body.layers:
        block.layernorm_before.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(pixel_values, interpolate_pos_encoding=True)
    features = classifier.features(pixel_values)
    for index in range(3):
        normed = classifier.pre_attention_norm(features[index])
        assert torch.equal(grid_to_tokens(normed.feature_map, normed.prefix_tokens), seen[index])
        assert normed.layer == features[index].layer
    with pytest.raises(ValueError, match="'layer3'.*not followed by an attention block"):
        classifier.pre_attention_norm(features["layer3"])
    with pytest.raises(ValueError, match="'stage1' of ResNetForImageClassification is not followed"):
        resnet = tiny_classifier("resnet")
        resnet.pre_attention_norm(resnet.forward_to_features(random_pixels("resnet"), "stage1"))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_read_through_a_norm(family):
    classifier, pixel_values = tiny_classifier(family), random_pixels(family)
    known = {"convnext": ("stage1", "stage2", "stage3"), "resnet": ()}.get(family, ("layer2",))
    assert classifier.normed_layers == known
    for name, features in classifier.features(pixel_values).items():
        normed = classifier.behind_norm(features)
        assert (normed is None) == (name not in known)
        if normed is None:
            with pytest.raises(ValueError, match=f"`normed` is given for layer '{name}'; layers read through a norm"):
                classifier.forward_from_features(features, features)
            continue
        logits = classifier.forward_from_features(features)
        assert torch.equal(classifier.forward_from_features(features, normed), logits)
        other = normed.replace(feature_map=torch.zeros_like(normed.feature_map))
        assert not torch.allclose(classifier.forward_from_features(features, other), logits)
        # nothing stays on the classifier, and the positions are read in no other way
        assert torch.equal(classifier.forward_from_features(features), logits)
        blank = features.replace(feature_map=torch.zeros_like(features.feature_map))
        torch.testing.assert_close(classifier.forward_from_features(blank, normed), logits)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_attentions_whatever_the_implementation(family):
    model = tiny_model(family)
    model.set_attn_implementation("sdpa")
    classifier = FrozenClassifier(model)
    assert len(classifier.attention_modules()) == 3
    pixel_values = random_pixels(family, 2, other_size(family)).requires_grad_()
    found = classifier.attentions(pixel_values)
    logits, attentions = found.logits, found.weights
    torch.testing.assert_close(found.scores[1].softmax(-1), attentions[1])
    tokens = classifier.num_prefix_tokens + 4 * 6
    assert [a.shape for a in attentions] == [(2, 2, tokens, tokens)] * 3
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(2, 2, tokens))
    torch.testing.assert_close(logits, classifier(pixel_values), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(attentions[-1].square().sum(), pixel_values)[0].abs().sum() > 0
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    output = model(pixel_values, output_attentions=True, interpolate_pos_encoding=True)
    assert torch.equal(logits, output.logits) and all(map(torch.equal, attentions, output.attentions))


def test_attention_of_a_classifier_without_any():
    with pytest.raises(
        ValueError, match="ResNetForImageClassification has no attention .* a plain vision transformer"
    ):
        tiny_classifier("resnet").attentions(random_pixels("resnet"))


# ------------------------------------------------------------------ frozen


def test_frozen_and_in_eval_mode_whatever_is_called(family):
    model = tiny_model(family).train().requires_grad_(True)
    before = snapshot(model)
    classifier = FrozenClassifier(model)
    assert classifier.model is model  # the instance itself, not a copy
    for call in (
        lambda c: c.train(),
        lambda c: c.requires_grad_(),
        lambda c: c.apply(lambda module: module.train()),
        lambda c: c.apply(lambda module: module.requires_grad_(True)),
        lambda c: nn.Sequential(c).train(),
    ):
        call(classifier)
        assert_frozen(classifier)
        classifier(random_pixels(family, 4))
    assert_unchanged(model, before)
    for made in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert_frozen(made.train())
        assert torch.equal(made(random_pixels(family)), classifier(random_pixels(family)))
    assert_frozen(copy.deepcopy(classifier).half())
    assert FrozenClassifier(tiny_model(family).bfloat16())(random_pixels(family)).dtype == torch.bfloat16


def test_compiled_instance_is_unwrapped(family):
    model = tiny_model(family)
    classifier = FrozenClassifier(torch.compile(model))  # lazy: nothing is compiled before the first call
    assert classifier.model is model
    assert classifier.layer_names == tiny_classifier(family).layer_names
    assert torch.equal(classifier(random_pixels(family)), model(random_pixels(family)).logits)


# ------------------------------------------------------------------ loading


def test_from_pretrained_directory(family, tmp_path):
    directory = save_classifier(family, tmp_path)
    classifier = FrozenClassifier.from_pretrained(tmp_path)
    assert classifier.name_or_path == directory and classifier.revision is None
    assert_frozen(classifier)
    assert_unchanged(classifier.model, snapshot(tiny_model(family)))
    assert classifier.num_labels == 5 and classifier.id2label == dict(enumerate(LABELS))
    assert classifier.image_processor is not None
    mean, std = ([0.5, 0.4, 0.3], [0.5, 0.25, 0.2]) if family == "vit" else (IMAGENET_MEAN, IMAGENET_STD)
    assert classifier.image_mean == tuple(mean) and classifier.image_std == tuple(std)
    # an instance that was loaded from a directory knows it
    again = FrozenClassifier(type(tiny_model(family)).from_pretrained(directory))
    assert again.image_mean == classifier.image_mean


def test_loading_options_arrive(tmp_path):
    save_classifier("vit", tmp_path)
    classifier = FrozenClassifier.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager", device_map="cpu"
    )
    assert classifier.dtype == torch.bfloat16 and classifier.device.type == "cpu"
    assert classifier.model.config._attn_implementation == "eager"
    save_classifier("resnet", tmp_path / "inner")
    inner = FrozenClassifier.from_pretrained(tmp_path, subfolder="inner")
    assert inner.layer_names[-1] == "stage4" and inner.image_mean == tuple(IMAGENET_MEAN)


def test_normalisation_without_a_processor(family):
    classifier = tiny_classifier(family)
    assert classifier.image_processor is None
    expected = (0.5, 0.5, 0.5) if family == "vit" else tuple(IMAGENET_MEAN)
    assert classifier.image_mean == expected


def test_processor_that_does_not_normalise(tmp_path):
    save_classifier("vit", tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    classifier = FrozenClassifier.from_pretrained(tmp_path)
    assert classifier.image_mean == (0.0, 0.0, 0.0) and classifier.image_std == (1.0, 1.0, 1.0)


def test_missing_directories_are_named(tmp_path):
    for name in (tmp_path / "nothing", "./nothing", "a/b/nothing"):
        with pytest.raises(FileNotFoundError, match="nothing' does not exist; give an existing directory or a Hub id"):
            FrozenClassifier.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        FrozenClassifier.from_pretrained(tmp_path)


def test_hub_id_and_revision(hub, tmp_path, monkeypatch):
    import huggingface_hub

    save_classifier("resnet", tmp_path)
    commits = []
    for seed in (0, 1):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        save_classifier("resnet", tmp_path, seed=seed)
        huggingface_hub.create_repo("user/resnet", exist_ok=True)
        commits.append(huggingface_hub.upload_folder(repo_id="user/resnet", folder_path=tmp_path).oid)
    newest = FrozenClassifier.from_pretrained("user/resnet")
    assert newest.name_or_path == "user/resnet" and newest.revision == commits[1]
    assert_unchanged(newest.model, snapshot(tiny_model("resnet", seed=1)))
    first = FrozenClassifier.from_pretrained("user/resnet", revision=commits[0])
    assert first.revision == commits[0]
    assert_unchanged(first.model, snapshot(tiny_model("resnet", seed=0)))
    assert first.image_mean == tuple(IMAGENET_MEAN)


def test_what_is_no_classifier():
    with pytest.raises(TypeError, match="must be a torch.nn.Module, got str; use FrozenClassifier.from_pretrained"):
        FrozenClassifier("microsoft/resnet-50")
    with pytest.raises(TypeError, match="is a FrozenClassifier already"):
        FrozenClassifier(tiny_classifier("vit"))
    with pytest.raises(ValueError, match=r"`pixel_values` must have shape .*got \(3, 32, 32\)"):
        tiny_classifier("vit")(torch.zeros(3, 32, 32))


# ------------------------------------------------------------------ layers and targets


def test_layers_by_name_and_index(family):
    classifier = tiny_classifier(family)
    kind, count = ("layer", 3) if family in TRANSFORMERS else ("stage", 4)
    assert classifier.layer_names == ("stem", *(f"{kind}{i}" for i in range(1, count + 1)))
    assert classifier.resolve_layer(0) == "stem" and classifier.resolve_layer(-1) == f"{kind}{count}"
    for wrong in ("layer99", 99, -99, True, None, 1.0):
        with pytest.raises(ValueError, match=f"does not exist; the layers are stem, {kind}1, .*or their indices"):
            classifier.resolve_layer(wrong)
    with pytest.raises(ValueError, match="`layer` 'nope' does not exist"):
        classifier.features(random_pixels(family), ["nope"])


def test_targets():
    classifier = tiny_classifier("resnet")
    logits = torch.tensor([[0.0, 1, 0, 0, 0], [0, 0, 0, 2, 0]])
    for target, expected in (
        (None, [1, 3]),
        (2, [2, 2]),
        ("cat", [1, 1]),
        (" French HORN ", [3, 3]),
        ("Tinca tinca", [0, 0]),
        ("tench", [0, 0]),
        ("tench, tinca tinca", [0, 0]),
        (["church", 1], [4, 1]),
        (("church", "cat"), [4, 1]),
        (torch.tensor(3), [3, 3]),
        (torch.tensor([3, 0]), [3, 0]),
        (torch.tensor([3, 0], dtype=torch.int32), [3, 0]),
        (torch.tensor([3, 0]).numpy(), [3, 0]),
        ([torch.tensor(3), 0], [3, 0]),
    ):
        found = classifier.resolve_target(target, 2, logits)
        assert found.tolist() == expected and found.dtype == torch.long, target
    for target, message in (
        ("tehnch", "'tehnch' is not a label of this classifier; the nearest are 'tench, Tinca tinca'"),
        ("tigre cat", "the nearest are 'tiger cat'"),
        ("zzzz", "the nearest are 'tench, Tinca tinca', 'cat', 'tiger cat'"),
        (5, "`target` 5 is out of range: the classifier has 5 classes, 0 to 4"),
        (-1, "`target` -1 is out of range"),
        ([1], "`target` has 1 entries for 2 images; give one class for all of them or exactly one per image"),
        ([], "`target` has 0 entries"),
        (torch.tensor([1, 2, 3]), "`target` has 3 entries for 2 images"),
        (torch.tensor([1, 7]), "`target` 7 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.resolve_target(target, 2, logits)
    for target in (1.5, True, [1.5, 0], [None, 1], torch.tensor([1.0, 2.0]), torch.tensor(1.0), object()):
        with pytest.raises(TypeError, match="`target` must"):
            classifier.resolve_target(target, 2, logits)
    with pytest.raises(ValueError, match="`target` is None, which means the top class, but no `logits`"):
        classifier.resolve_target(None, 2)


def test_label_of_several_classes():
    classifier = tiny_classifier("resnet")
    classifier.config.id2label = {0: "crane", 1: "crane", 2: "cat", 3: "a, cat", 4: "b"}
    with pytest.raises(ValueError, match=r"'crane' names several classes: \[0, 1\]; use the index"):
        classifier.resolve_target("crane", 1)
    assert classifier.resolve_target("cat", 1).item() == 2  # the whole name beats a synonym


# ------------------------------------------------------------------ every other classifier


def swin():
    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4, num_labels=5
    )
    return SwinForImageClassification(config)


def dinov2_with_registers():
    config = Dinov2WithRegistersConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=42,
        patch_size=14,
        num_labels=5,
    )
    return Dinov2WithRegistersForImageClassification(config)


def mobilenet_v2():
    config = MobileNetV2Config(image_size=64, depth_multiplier=0.25, num_labels=5)
    return MobileNetV2ForImageClassification(config)


def efficientnet():
    config = EfficientNetConfig(
        image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, num_labels=5
    )
    return EfficientNetForImageClassification(config)


def vgg_like():
    """The papers' VGG-16 in small, with its in-place ReLUs."""
    layers, channels = [], 3
    for width in (4, 8):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    features = nn.Sequential(*layers)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))


# default layer, and a tapped layer with its channels, grid and prefix tokens for a non-square input
OTHERS = {
    "swin": (swin, "swin.layernorm", (64, 96), "swin.encoder.layers.0.blocks.0", (8, 16, 24), 0),
    "dinov2_with_registers": (
        dinov2_with_registers,
        "dinov2_with_registers.layernorm",
        (60, 42),
        "dinov2_with_registers.encoder.layer.0",
        (16, 4, 3),
        5,
    ),
    "mobilenet_v2": (mobilenet_v2, "mobilenet_v2.conv_1x1", (64, 96), "mobilenet_v2.layer.15", (80, 2, 3), None),
    "efficientnet": (
        efficientnet,
        "efficientnet.encoder.top_activation",
        (64, 96),
        "efficientnet.encoder.blocks.0",
        None,
        None,
    ),
    "vgg_like": (vgg_like, "1", (32, 48), "0.3", (8, 16, 24), None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_through_their_modules(name):
    build, default_layer, size, tap, shape, prefix = OTHERS[name]
    model = randomize(build())
    reference = copy.deepcopy(model)
    classifier = FrozenClassifier(model, image_size=(32, 32) if name == "vgg_like" else None)
    assert classifier.default_layer == default_layer
    assert classifier.num_labels == 5 and len(classifier.id2label) == 5
    assert not classifier.is_transformer
    pixel_values = random_pixels("vit", 2, size)
    with torch.no_grad():  # to the bit in one memory format
        expected = reference.to(memory_format=classifier.memory_format)(pixel_values)
    expected = getattr(expected, "logits", expected)
    features = classifier.features(pixel_values)
    assert torch.equal(features.logits, expected)
    assert tuple(features) == classifier.layer_names
    for layer in {*classifier.layer_names[:: 1 + len(classifier.layer_names) // 30], tap, default_layer}:
        before = features[layer].feature_map.clone()
        assert len(before) == 2, layer  # never attention windows, whose batch is not the images'
        assert torch.equal(classifier.forward_from_features(features[layer]), expected), layer
        assert torch.equal(features[layer].feature_map, before), layer
        assert classifier.num_channels(layer) == before.shape[1]
    if shape is not None:
        assert features[tap].feature_map.shape[1:] == shape
    assert (None if features[tap].prefix_tokens is None else features[tap].prefix_tokens.shape[1]) == prefix

    for layer in (tap, default_layer):
        feature_map = features[layer].feature_map.clone().requires_grad_()
        logits = classifier.forward_from_features(features[layer].replace(feature_map=feature_map))
        (gradient,) = torch.autograd.grad(logits.sum(), feature_map)
        assert gradient.any()
        alone = classifier.forward_to_features(pixel_values, layer)
        assert torch.equal(alone.feature_map, features[layer].feature_map)
        with pytest.raises(ValueError, match="must keep their pixel_values"):
            classifier.forward_from_features(features[layer].replace(pixel_values=None))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="`layer` 'stage4' does not exist; the layers are .*or their indices"):
        classifier.resolve_layer("stage4")
    assert_frozen(classifier)


def test_hidden_states_of_other_architectures():
    """The generic path against what Transformers itself reports."""
    for build, layers in (
        (dinov2_with_registers, ["dinov2_with_registers.encoder.layer.0", "dinov2_with_registers.encoder.layer.1"]),
        (mobilenet_v2, ["mobilenet_v2.layer.0", "mobilenet_v2.layer.15"]),
    ):
        model = randomize(build())
        classifier = FrozenClassifier(model)
        pixel_values = random_pixels("vit", 2, (model.config.image_size, model.config.image_size))
        with torch.no_grad():
            states = model(pixel_values, output_hidden_states=True).hidden_states
        features = classifier.features(pixel_values, layers)
        for layer, state in zip(layers, (states[1] if len(states) == 3 else states[0], states[-1])):
            found = features[layer]
            value = found.feature_map
            if found.prefix_tokens is not None:
                value = grid_to_tokens(value, found.prefix_tokens)
            assert torch.equal(value, state), layer


class ClassTokenNet(nn.Module):
    """A plain transformer that reads its class token alone, as timm's ViT does."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, pixel_values):
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, 0])


def test_patches_are_what_a_transformer_reads():
    sizes = {family: tiny_classifier(family).patch_size for family in FAMILIES}
    transformers = dict.fromkeys(("vit", "deit", "deit-teacher"), (8, 8))
    assert sizes == {**transformers, "convnext": None, "resnet": None}  # ConvNeXt's stem reads patches, too
    assert FrozenClassifier(swin()).patch_size == (4, 4)
    assert FrozenClassifier(dinov2_with_registers()).patch_size == (14, 14)
    plain = FrozenClassifier(randomize(ClassTokenNet()), image_size=(32, 32))
    assert plain.patch_size == (8, 8)
    plain.model.patches.padding = "valid"  # as SigLIP says it
    assert plain.patch_size == (8, 8)
    plain.model.patches.stride = (4, 4)  # patches that overlap are no units
    assert plain.patch_size is None


def test_default_layer_is_one_that_the_logits_still_read():
    classifier = FrozenClassifier(randomize(ClassTokenNet()), image_size=(32, 32))
    assert "norm" in classifier.layer_names and "blocks.1" in classifier.layer_names
    layer = classifier.default_layer
    assert layer == "blocks.0"  # the norm and the last block's own patches reach nothing
    features = classifier.features(random_pixels("vit"), [layer])
    feature_map = features[layer].feature_map.clone().requires_grad_()
    classifier.forward_from_features(features[layer].replace(feature_map=feature_map)).sum().backward()
    assert feature_map.grad.any()
    assert features[layer].prefix_tokens.shape == (2, 1, 16)


class ChannelsLastNet(nn.Module):
    """Positions first and channels last, with attention whose weights a dropout passes on, as timm's Swin has both."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.norm = nn.LayerNorm(12)
        self.attention = AttentionPool(12)
        self.head = nn.Linear(12, 4)

    def forward(self, pixel_values):
        positions = self.norm(self.patches(pixel_values).permute(0, 2, 3, 1))
        tokens = positions.flatten(1, 2)
        return self.head(self.attention(tokens))


class AttentionPool(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens):
        query, key, value = (layer(tokens)[:, None] for layer in (self.query, self.key, self.value))
        return (self.dropout((query @ key.mT).softmax(-1)) @ value).mean((1, 2))


def test_channels_last_and_attention_outside_the_table():
    model = randomize(ChannelsLastNet())
    classifier = FrozenClassifier(model, image_size=(32, 32))
    # weights of attention are no feature map, however square; values are read, but nobody calls them the last layer
    assert "attention.dropout" not in classifier.layer_names and "attention.value" in classifier.layer_names
    assert classifier.default_layer == "norm" and classifier.num_channels("norm") == 12
    pixel_values = random_pixels("vit", 2, (32, 48))
    features = classifier.features(pixel_values)
    with torch.no_grad():
        expected = model.norm(model.patches(pixel_values).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(features["norm"].feature_map, expected) and expected.shape == (2, 12, 4, 6)
    assert features["attention.value"].feature_map.shape == (2, 12, 4, 6)
    for layer in ("norm", "attention.value"):
        assert torch.equal(classifier.forward_from_features(features[layer]), features.logits), layer
        halved = features[layer].replace(feature_map=features[layer].feature_map / 2)
        assert not torch.equal(classifier.forward_from_features(halved), features.logits), layer


def test_windows_of_attention_in_some_blocks_are_no_attention_among_all_patches():
    """As of a Swin, whose last stage is one window."""
    classifier = FrozenClassifier(randomize(swin()))
    assert classifier.image_size == (64, 64) and classifier.token_layout is None
    model = SwinForImageClassification(
        SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=5)
    )
    with pytest.raises(ValueError, match="has no attention among all patches"):
        FrozenClassifier(randomize(model)).attentions(random_pixels("vit"))


def test_module_that_is_called_twice_is_no_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.shared = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, pixel_values):
            return (self.head(self.shared(self.shared(self.first(pixel_values))).mean([-2, -1])),)

    classifier = FrozenClassifier(Twice(), image_size=(8, 8))
    assert classifier.layer_names == ("first",)
    assert classifier.num_labels == 3  # the logits of a tuple are its first


def test_classifier_without_a_spatial_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    classifier = FrozenClassifier(model, image_size=(16, 16))
    with pytest.raises(ValueError, match="Sequential has no module with a spatial output for 16x16 pixels"):
        classifier.layer_names  # noqa: B018


def test_output_that_holds_no_logits():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values):
            return {"scores": self.conv(pixel_values)}

    with pytest.raises(TypeError, match="The classifier returned dict; a classifier must return logits"):
        FrozenClassifier(Odd())(torch.zeros(1, 3, 8, 8))


def test_what_classifies_no_images():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values):
            return self.conv(pixel_values).flatten(2)  # a score for every place and class

    with pytest.raises(ValueError, match=r"logits of shape \(2, 4, 36\), not \(batch_size, num_labels\): image class"):
        FrozenClassifier(Detector(), image_size=(8, 8)).layer_names  # noqa: B018
    with pytest.raises(ValueError, match=r"ConvNd cannot run on .* \(2, 3, 8, 8\) \(RuntimeError: .*Pass image_size="):
        FrozenClassifier(type("ConvNd", (nn.Conv3d,), {})(3, 4, 3), image_size=(8, 8)).layer_names  # noqa: B018


def test_logits_under_another_name():
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, pixel_values):
            return BaseModelOutputWithNoAttention(last_hidden_state=self.head(self.conv(pixel_values).mean((2, 3))))

    assert FrozenClassifier(LeNet(), image_size=(8, 8)).num_labels == 5  # as of PP-LCNet


@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ({"image_size": {"height": 48, "width": 64}}, (48, 64)),
        ({"pretrained_cfg": {"input_size": [3, 40, 56]}}, (40, 56)),
        ({"vision_config": types.SimpleNamespace(image_size=96)}, (96, 96)),
        ({}, (224, 224)),
    ],
)
def test_image_size_that_a_config_states(stated, size):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.config = types.SimpleNamespace(**stated)
    assert FrozenClassifier(model).image_size == size


def test_probing_works_inside_inference_mode():
    model = randomize(vgg_like())
    with torch.inference_mode():
        classifier = FrozenClassifier(model, image_size=(32, 32))
        assert classifier.default_layer == "1"
        features = classifier.features(random_pixels("vit"))
    assert features["0.3"].feature_map.min() < 0  # the convolution's own output, before the in-place ReLU


def test_table_names_what_transformers_has():
    for name, architecture in ARCHITECTURES.items():
        family = next(f for f in FAMILIES if type(tiny_model(f)).__name__ == name)
        body = getattr(tiny_model(family), architecture.body)
        assert len(body.get_submodule(architecture.layers)) >= 3


def test_nothing_is_logged_while_explaining(family, caplog):
    with caplog.at_level(logging.WARNING):
        classifier = tiny_classifier(family)
        classifier.features(random_pixels(family, 1, other_size(family)))
        if classifier.is_transformer:
            classifier.attentions(random_pixels(family))
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("yolos", "YolosForObjectDetection"),
        ("segformer", "SegformerForSemanticSegmentation"),
        ("videomae", "VideoMAEForVideoClassification"),
        ("bert", "BertModel"),
    ],
)
def test_a_model_of_another_task_is_refused_by_its_config_alone(kind, architecture, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
    (tmp_path / "model.safetensors").touch()  # never read
    with pytest.raises(
        ValueError,
        match=f"is a {architecture} of the model type '{kind}', and image classifiers only can be explained",
    ):
        FrozenClassifier.from_pretrained(tmp_path)
