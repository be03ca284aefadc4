"""P-TAME: the paper's equations as the oracle, the second classifier in every way it can be given, and the tester."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from testing_common import (
    FAMILIES,
    ExplainerTesterMixin,
    assert_frozen,
    assert_unchanged,
    random_pixels,
    randomize,
    save_classifier,
    snapshot,
    tiny_classifier,
    tiny_model,
    tiny_processor,
    train_steps,
)
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.ptame import PTameConfig, PTameForSaliency
from hf_explain.heads.ttame import TTameForSaliency
from hf_explain.publish.cards import build_model_card
from hf_explain.publish.hub import plan_explainer
from hf_explain.publish.remote_code import remote_code_files
from hf_explain.registry import AutoModelForSaliency


def auxiliary(seed=7):
    return tiny_classifier("resnet", num_labels=3, seed=seed)


class TestPTame(ExplainerTesterMixin):
    head_class = PTameForSaliency
    variants = {
        "default": {},
        "preset-ranking": {"preset": "ranking"},
        "transformer": {"auxiliary": "vit"},
    }
    quick_families = ("vit", "resnet")  # the explained one is never looked into
    first_layers = "stem, stage1"  # of the auxiliary classifier

    def from_classifier(self, classifier, auxiliary="resnet", **options):
        """Beside a classifier on disk lies the auxiliary one, so that both can be moved together."""
        made = tiny_classifier(auxiliary, num_labels=3, seed=7)
        if isinstance(classifier, str):
            place = Path(classifier).parent / "auxiliary"
            place.mkdir(exist_ok=True)
            made = save_classifier(auxiliary, place, num_labels=3, seed=7)
        return super().from_classifier(classifier, auxiliary=made, **options)

    def expected_size(self, head, pixel_values):
        if head.config.mask_grid == "patch":
            return tuple(side // 8 for side in pixel_values.shape[-2:])
        pixels = head.auxiliary_pixels(pixel_values)
        features = head.auxiliary.forward_to_features(pixels, head.config.feature_layers[0])
        return tuple(features.feature_map.shape[-2:])

    @pytest.mark.slow  # the export of heads is tested with the others
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_exported_is_one_graph_for_any_batch_and_class(self, kind):
        super().test_exported_is_one_graph_for_any_batch_and_class(kind)


def make_head(family="vit", **options):
    """Explained and auxiliary classifier see pictures of other sizes, in other normalisations."""
    head = PTameForSaliency.from_classifier(tiny_classifier(family), auxiliary=auxiliary(), **options)
    classifiers, head.backbone, head.auxiliary = head.frozen, None, None
    randomize(head)
    head.backbone, head.auxiliary = classifiers["backbone"], classifiers["auxiliary"]
    return head.eval()


def literal_masks(head, model, pixels, training=False):
    """σ of a map of every class, as the paper has it; `model` is Transformers' own ResNet, `pixels` are its own."""
    with torch.no_grad():
        taps = model(pixels, output_hidden_states=True).hidden_states[1:]
    branches = []
    for tap, conv, norm in zip(taps, head.convs, head.bns, strict=True):
        mean, var = norm.running_mean, norm.running_var
        refined = F.conv2d(tap, conv.weight, conv.bias)
        if training:
            mean, var = refined.mean((0, 2, 3)), refined.var((0, 2, 3), correction=0)
        refined = (refined - mean[:, None, None]) / (var + norm.eps).sqrt()[:, None, None]
        refined = refined * norm.weight[:, None, None] + norm.bias[:, None, None]
        branches.append(F.interpolate((refined + tap).relu(), size=taps[0].shape[-2:], mode="bilinear"))
    return F.conv2d(torch.cat(branches, 1), head.fuser.weight).sigmoid()


# ------------------------------------------------------------------ the paper's equations


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_maps_and_loss_equal_the_papers_equations(family):
    head, model = make_head(family), tiny_model("resnet", num_labels=3, seed=7)
    head.config.image_mean, head.config.image_std = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]
    pixel_values, target = random_pixels(family, 3), torch.tensor([3, 0, 3])
    own_mean, own_std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    picture = pixel_values * own_std[:, None, None] + own_mean[:, None, None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (picture - mean[:, None, None]) / std[:, None, None]
    masks = literal_masks(head, model, pixels)
    output = head(pixel_values, target)
    torch.testing.assert_close(output.saliency_logits.sigmoid(), masks[range(3), target], rtol=0, atol=1e-4)

    masks = literal_masks(head, model, pixels, training=True)
    output = head.train()(pixel_values, target)
    own, every = masks[range(3), target], masks[:, target].flatten(0, 1)
    enlarged = F.interpolate(own[:, None], size=pixel_values.shape[-2:], mode="bilinear")
    if family == "vit":  # as T-TAME masks what a transformer sees
        weights, masked = (0.131, 0.839, 0.5), pixel_values * enlarged
    else:
        masked = (picture * enlarged - own_mean[:, None, None]) / own_std[:, None, None]
        weights = (0.161, 0.839, 0.3)
    logits = tiny_model(family)(masked).logits
    expected = weights[0] * F.cross_entropy(logits, target) + weights[1] * ((every + 5e-4) ** weights[2]).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    assert "bias" not in dict(head.fuser.named_parameters())


@pytest.mark.parametrize(
    ("family", "weights"),
    [("resnet", (0.161, 0.839, 0, 0.3)), ("deit", (0.131, 0.839, 0, 0.5)), ("convnext", (1.5, 2.0, 0.01, 0.3))],
)
def test_the_searched_weights_of_the_loss(family, weights):
    names = ("ce_weight", "area_weight", "variation_weight", "area_power")
    config = make_head(family).config
    assert tuple(getattr(config, name) for name in names) == weights
    assert make_head(family, area_weight=0.5).config.area_weight == 0.5
    ranking = make_head(family, preset="ranking").config
    tame = TTameForSaliency.from_classifier(tiny_classifier(family), preset="ranking").config
    for name in (*names, "ranking_weight", "contrast", "mask_fills", "mask_grid", "mask_space"):
        assert getattr(ranking, name) == getattr(tame, name), name


def test_the_auxiliary_classifier_sees_the_same_pictures(tmp_path):
    """In its own normalisation and size: what its image processor would have made of them."""
    for name, family in (("explained", "vit"), ("auxiliary", "resnet")):
        (tmp_path / name).mkdir()
        save_classifier(family, tmp_path / name)
    head = PTameForSaliency.from_classifier(tmp_path / "explained", auxiliary=tmp_path / "auxiliary")
    assert head.config.input_scale == 2  # 32 pixels, 64 pixels
    picture = torch.rand(2, 3, 32, 32)
    processor, other = head.backbone.image_processor, head.auxiliary.image_processor
    pixel_values, expected = (
        (picture - torch.tensor(each.image_mean)[:, None, None]) / torch.tensor(each.image_std)[:, None, None]
        for each in (processor, other)
    )
    found = head.auxiliary_pixels(pixel_values)
    torch.testing.assert_close(found, F.interpolate(expected, scale_factor=2, mode="bilinear"), rtol=0, atol=1e-5)
    head.config.input_scale = 0.5
    smaller = F.interpolate(expected, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(head.auxiliary_pixels(pixel_values), smaller, rtol=0, atol=1e-5)
    same = PTameForSaliency.from_classifier(tmp_path / "auxiliary", auxiliary=auxiliary())
    pixels = random_pixels("resnet")
    assert same.auxiliary_pixels(pixels) is pixels


def test_the_map_is_of_the_auxiliary_classifier_alone():
    head, pixel_values = make_head("vit"), random_pixels("vit")
    before = head(pixel_values, target=2)
    head.attach(tiny_classifier("vit", seed=5), verify_fingerprint=False)
    after = head(pixel_values, target=2)
    assert torch.equal(after.saliency, before.saliency) and not torch.equal(after.logits, before.logits)
    head.attach_auxiliary(auxiliary(seed=5), verify_fingerprint=False)
    other = head(pixel_values, target=2)
    assert torch.equal(other.logits, after.logits) and not torch.allclose(other.saliency, before.saliency, atol=0.05)


def test_any_classifier_with_a_gradient_and_any_convolutional_auxiliary():
    """The explained one has no layer that a head could tap, the auxiliary one is in no table."""
    torch.manual_seed(0)
    explained = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    helper = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    )  # fmt: skip
    given = [FrozenClassifier(each, image_size=(16, 16)) for each in (explained, helper)]
    explained.num_labels = 4
    given[0].config = PTameConfig(num_labels=4)
    head = PTameForSaliency.from_classifier(given[0], auxiliary=given[1])
    assert dict(zip(head.config.feature_layers, head.config.feature_channels)) == {"1": 6, "3": 8}
    before = snapshot(head)
    train_steps(head, torch.randn(2, 3, 16, 16))
    assert head(torch.randn(2, 3, 16, 16)).saliency.shape == (2, 4, 4)
    changed = {name for name, value in snapshot(head).items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith(("backbone.", "auxiliary.")) for name in changed)


# ------------------------------------------------------------------ two classifiers


@pytest.fixture
def saved(tmp_path):
    """A head, its directory and those of its two classifiers, side by side."""
    places = [tmp_path / name for name in ("head", "classifier", "auxiliary")]
    for place, (family, seed) in zip(places[1:], (("vit", 0), ("resnet", 7)), strict=True):
        place.mkdir()
        save_classifier(family, place, seed=seed)
    head = PTameForSaliency.from_classifier(places[1], auxiliary=str(places[2]))
    head.save_pretrained(places[0])
    return head, *places


def test_saved_by_reference_and_found_again(saved, tmp_path):
    head, directory, _, auxiliary = saved
    config = json.loads((directory / "config.json").read_text())
    assert config["auxiliary"] == "../auxiliary" and str(tmp_path) not in json.dumps(config)
    assert config["auxiliary_config"]["model_type"] == "resnet" and config["backbone_config"]["model_type"] == "vit"
    loaded = AutoModelForSaliency.from_pretrained(directory)
    assert type(loaded) is PTameForSaliency and loaded.config.auxiliary == str(auxiliary)
    for found in (loaded.auxiliary, loaded.backbone):
        assert_frozen(found)
    assert_unchanged(loaded.auxiliary.model, snapshot(tiny_model("resnet", seed=7)))
    pixel_values = random_pixels("vit")
    assert torch.equal(loaded(pixel_values).saliency, head(pixel_values).saliency)
    shutil.move(auxiliary, tmp_path / "renamed")
    with pytest.raises(
        FileNotFoundError, match=r"auxiliary classifier directory .*put it back or pass .*auxiliary=\.\.\."
    ):
        PTameForSaliency.from_pretrained(directory)
    for given in (tmp_path / "renamed", tiny_model("resnet", seed=7), tiny_classifier("resnet", seed=7)):
        again = PTameForSaliency.from_pretrained(directory, auxiliary=given)
        assert torch.equal(again(pixel_values).saliency, head(pixel_values).saliency)


def test_a_changed_auxiliary_classifier_is_refused(saved):
    _, directory, _, auxiliary = saved
    save_classifier("resnet", auxiliary, seed=8)
    with pytest.raises(ValueError, match="^The auxiliary classifier .* another fingerprint.*verify_fingerprint=False"):
        PTameForSaliency.from_pretrained(directory)
    loaded = PTameForSaliency.from_pretrained(directory, verify_fingerprint=False)
    assert_unchanged(loaded.auxiliary.model, snapshot(tiny_model("resnet", seed=8)))
    with pytest.raises(ValueError, match=r"taps \['stage1', .* with \[8, 12, 16, 24\] channels, the auxiliary .* has"):
        wide = tiny_model("resnet").config
        wide.hidden_sizes = [8, 12, 16, 32]
        loaded.attach_auxiliary(FrozenClassifier(type(tiny_model("resnet"))(wide)), verify_fingerprint=False)


def test_checkpoints_know_both_classifiers(saved):
    identity = saved[0].training_identity()
    assert list(identity) == ["classifier", "head", "auxiliary"]
    assert identity["classifier"] != identity["auxiliary"]
    assert not {"auxiliary", "auxiliary_fingerprint", "auxiliary_revision", "backbone"} & set(identity["head"])
    other = PTameForSaliency.from_classifier(tiny_classifier("vit"), auxiliary=tiny_classifier("resnet", seed=8))
    assert other.training_identity()["auxiliary"] != identity["auxiliary"]


def test_published_with_both_classifiers(saved, tmp_path):
    head, directory, *_ = saved
    local = str(build_model_card(directory))
    assert 'from_pretrained("head", classifier="classifier", auxiliary="auxiliary")' in local
    assert "- The auxiliary classifier's place on the Hub: " in local
    config = json.loads((directory / "config.json").read_text())
    pinned = {"backbone": "user/vit", "backbone_revision": "a" * 40}
    (directory / "config.json").write_text(json.dumps({**config, **pinned}))
    with pytest.raises(ValueError, match="head's auxiliary classifier .`auxiliary`. is a local directory"):
        plan_explainer(directory, "user/head")
    pinned["auxiliary"] = "user/resnet"
    (directory / "config.json").write_text(json.dumps({**config, **pinned}))
    with pytest.raises(
        ValueError, match="auxiliary classifier 'user/resnet' is not pinned: `auxiliary_revision` is None"
    ):
        plan_explainer(directory, "user/head")
    pinned["auxiliary_revision"] = "b" * 40
    (directory / "config.json").write_text(json.dumps({**config, **pinned}))
    files = {file.name: file.content.decode(errors="replace") for file in plan_explainer(directory, "user/head").files}
    assert "| auxiliary | `user/resnet` |" in files["README.md"]
    head.save_pretrained(tmp_path / "whole", self_contained=True)
    files = {file.name: file.content for file in plan_explainer(tmp_path / "whole", "user/head").files}
    published = json.loads(files["config.json"])
    assert published["auxiliary"] is None and published["backbone"] is None
    assert {"modeling_ptame.py", "modeling_branches.py"} <= set(remote_code_files(published, "self-contained"))


# ------------------------------------------------------------------ what cannot be an auxiliary classifier


def refused(message, error=ValueError, **options):
    with pytest.raises(error, match=message) as caught:
        PTameForSaliency.from_classifier(tiny_classifier("vit"), **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_auxiliary_classifier_is_one_clear_sentence(tmp_path):
    refused("^`auxiliary` is missing, .* such as 'microsoft/resnet-18'")
    refused("^`auxiliary` is 5, which is no classifier; give the directory", TypeError, auxiliary=5)
    nowhere = tmp_path / "nowhere"
    refused("^`auxiliary` .*nowhere' did not load: .* does not exist", FileNotFoundError, auxiliary=nowhere)
    save_classifier("vit", tmp_path)
    depth = {"model_type": "dpt", "architectures": ["DPTForDepthEstimation"]}
    (tmp_path / "config.json").write_text(json.dumps(depth))
    refused("^`auxiliary` .* did not load: .* is a DPTForDepthEstimation .*classifiers only", auxiliary=tmp_path)
    flat = FrozenClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), image_size=(32, 32))
    refused("^`auxiliary` 'Sequential' has no features to make maps of: .*no module with a", auxiliary=flat)
    options = {"auxiliary": auxiliary(), "auxiliary_revision": "v1"}
    refused("`auxiliary_revision` says how to load .* loaded already", TypeError, **options)
    refused("`input_scale` must be", auxiliary=auxiliary(), input_scale=0.0)
    classifier = tiny_classifier("resnet")
    with pytest.raises(ValueError, match="`auxiliary` is the explained classifier itself, .* use TTameForSaliency"):
        PTameForSaliency.from_classifier(classifier, auxiliary=classifier)
    grey = auxiliary()
    grey.config.num_channels = 1
    refused("^`auxiliary` 'ResNet.*' sees pictures of 1 channels, the explained classifier of 3", auxiliary=grey)


def test_pictures_of_another_shape_need_a_scale(tmp_path):
    wide, explained = auxiliary(), tiny_classifier("vit")
    wide.image_processor, explained.image_processor = (tiny_processor("vit", tmp_path) for _ in range(2))
    wide.image_processor.size = {"height": 32, "width": 48}
    with pytest.raises(ValueError, match="of 32 × 48 pixels, the explained .* of 32 × 32, .* pass input_scale="):
        PTameForSaliency.from_classifier(explained, auxiliary=wide)
    head = PTameForSaliency.from_classifier(explained, auxiliary=wide, input_scale=0.5)
    assert head(random_pixels("vit")).saliency.shape == (2, 4, 4)


def test_a_head_without_its_auxiliary_classifier_says_so():
    head = PTameForSaliency(make_head().config).attach(tiny_classifier("vit"))
    with pytest.raises(
        ValueError, match="has no auxiliary classifier; build it with from_classifier .*attach_auxiliary"
    ):
        head(random_pixels("vit"))
    head.attach_auxiliary(auxiliary())
    assert head(random_pixels("vit")).saliency.isfinite().all()
