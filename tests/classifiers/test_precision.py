"""Half precision: where it runs and where not, and that `auto` takes it only where it changes nothing."""

import pytest
import torch
from testing_common import FAMILIES, random_pixels, tiny_classifier, tiny_model

from hf_explain.classifiers import precision
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.passes import shared_pass, watch_passes
from hf_explain.classifiers.precision import Precision, passes_in
from hf_explain.metrics.engine import run_passes
from hf_explain.metrics.functional import perturbation_curves
from hf_explain.tensors.sharing import sharing


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_without_a_graph_run_in_half_precision(family):
    classifier, pixel_values = tiny_classifier(family), random_pixels(family)
    exact = classifier(pixel_values)
    with torch.no_grad(), passes_in(torch.bfloat16):
        assert classifier.compute_dtype == torch.bfloat16 and classifier.dtype == torch.float32
        features = classifier.features(pixel_values)
        assert not torch.equal(features.logits.float(), exact)
        torch.testing.assert_close(features.logits.float(), exact, rtol=0.1, atol=0.1)
        assert torch.equal(classifier(pixel_values), features.logits)
        assert torch.equal(classifier(pixel_values.bfloat16()), features.logits)
        for name in classifier.layer_names:  # the tail's promise holds within a precision, too
            assert torch.equal(classifier.forward_from_features(features[name]), features.logits), name
            classifier.behind_norm(features[name])
    assert classifier.compute_dtype == torch.float32 and torch.equal(classifier(pixel_values), exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_in_the_precision_of_the_weights(family):
    classifier, pixel_values = tiny_classifier(family), random_pixels(family).requires_grad_()
    (expected,) = torch.autograd.grad(classifier(pixel_values).sum(), pixel_values)
    with passes_in(torch.bfloat16):
        assert classifier.compute_dtype == torch.float32
        (found,) = torch.autograd.grad(classifier(pixel_values).sum(), pixel_values)
        with torch.no_grad():
            layer = classifier.features(pixel_values, [1])[1]
        leaf = layer.replace(feature_map=layer.feature_map.detach().requires_grad_())
        logits = classifier.forward_from_features(leaf)  # from half precision on to full
        assert logits.dtype == torch.float32 and logits.requires_grad
    assert torch.equal(found, expected)


def test_hooks_see_passes_in_half_precision():
    classifier, seen = tiny_classifier("vit"), []
    handle = classifier.model.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    with torch.no_grad(), passes_in(torch.bfloat16):
        classifier(random_pixels("vit"))
    handle.remove()
    assert seen == [torch.bfloat16]


def test_auto_takes_half_precision_where_it_changes_nothing(monkeypatch):
    classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet", 4)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    choice = Precision("auto")

    def images():
        return pixel_values.split(3)

    assert choice.choose(classifier, images) == torch.bfloat16
    with choice.passes(classifier, allowed=True), torch.no_grad():
        assert classifier.compute_dtype == torch.bfloat16
    assert "on the first 4 images bfloat16 changes the top class of 0 and a probability by 0.0" in choice.reason
    assert choice.settings(classifier, allowed=True) == {"dtype": "bfloat16"}
    stated = {"asked": "auto", "dtype": "bfloat16", "reason": choice.reason}
    assert choice.protocol(classifier, allowed=True) == {"precision": stated}
    # what was not measured to keep its numbers
    with choice.passes(classifier, allowed=False), torch.no_grad():
        assert classifier.compute_dtype == torch.float32
    assert choice.settings(classifier, allowed=False) == {}
    assert choice.protocol(classifier, allowed=False)["precision"]["dtype"] == "float32"

    monkeypatch.setattr(precision, "MAX_DIFFERENCE", 1e-9)
    assert choice.choose(classifier, images) == torch.bfloat16  # it was chosen
    choice = Precision("auto")
    assert choice.choose(classifier, images) == torch.float32 and "allowed are 0 and 1e-09" in choice.reason
    assert choice.settings(classifier, allowed=True) == {}
    assert choice.protocol(classifier, allowed=True)["precision"]["dtype"] == "float32"
    monkeypatch.setattr(precision, "MAX_DIFFERENCE", 1.0)
    monkeypatch.setattr(FrozenClassifier, "forward", lambda self, pixels: _alternating(self, pixels))
    choice = Precision("auto")
    assert choice.choose(classifier, images) == torch.float32 and "changes the top class of 4" in choice.reason


def test_what_is_asked_for_is_taken_without_a_look():
    classifier = tiny_classifier("resnet")
    for asked in ("float32", "bfloat16"):
        choice = Precision(asked)
        assert choice.choose(classifier, lambda: pytest.fail("no images are needed")) == getattr(torch, asked)
    assert choice.protocol(classifier, allowed=True)["precision"]["reason"] == "asked for"
    assert Precision("float32").protocol(classifier, allowed=True) == {}
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, auto, got 'float16'"):
        Precision("float16")


def test_a_compiled_classifier_keeps_the_precision_of_its_weights():
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
    compiled = torch.compile(classifier, fullgraph=True, backend="eager")
    with torch.no_grad():
        exact = classifier(pixel_values)
        torch.testing.assert_close(compiled(pixel_values), exact)
        with passes_in(torch.bfloat16):
            torch.testing.assert_close(compiled(pixel_values), exact)


def _alternating(classifier, pixel_values):
    """Logits whose top class depends on the precision alone."""
    half = classifier.compute_dtype == torch.bfloat16
    return torch.tensor([[0.0, 1.0], [1.0, 0.0]][half]).expand(len(pixel_values), 2)


def test_auto_where_the_device_has_none(monkeypatch):
    classifier = tiny_classifier("resnet")
    capabilities = {"avx2": True, "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    choice = Precision("auto")
    assert choice.choose(classifier, lambda: pytest.fail("no images are needed")) == torch.float32
    assert choice.reason == "this cpu has no instructions for bfloat16"
    capabilities["amx_bf16"] = True
    assert precision.has_bfloat16(torch.device("cpu")) and not precision.has_bfloat16(torch.device("meta"))


def test_weights_in_half_precision_stay_what_they_are():
    classifier, choice = FrozenClassifier(tiny_model("vit").bfloat16()), Precision("auto")
    assert choice.choose(classifier, list) == torch.bfloat16 and choice.reason == "that of the weights"
    with choice.passes(classifier, allowed=True), torch.no_grad():
        assert classifier.compute_dtype == torch.bfloat16
    assert choice.settings(classifier, allowed=True) == {}


def test_what_half_precision_cannot_tell_is_looked_at_again(monkeypatch):
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit", 6)
    exact = classifier(pixel_values).detach()
    assert classifier.decided(pixel_values, exact) is exact
    with torch.no_grad(), passes_in(torch.bfloat16):
        half = classifier(pixel_values).float()
        best = half.topk(2).values
        part = (best[:, 0] - best[:, 1]) / (best[:, 0] - half.amin(1))
        monkeypatch.setattr("hf_explain.classifiers.frozen_classifier.CLOSE", part.sort().values[2:4].mean().item())
        found = classifier.decided(pixel_values, half)
        close = part <= part.sort().values[2]
        torch.testing.assert_close(found[close], exact[close], rtol=0, atol=1e-6)
        assert close.sum() == 3 and torch.equal(found[~close], half[~close])
        monkeypatch.setattr("hf_explain.classifiers.frozen_classifier.CLOSE", 0.0)
        assert classifier.decided(pixel_values, half) is half
    # what a metric asks of the top class, it asks of the weights' own precision
    monkeypatch.setattr("hf_explain.classifiers.frozen_classifier.CLOSE", 2.0)
    options = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "fractions": (0, 0.5, 1), "logits": half}
    seen = []
    with passes_in(torch.bfloat16), watch_passes(lambda classifier, name, images, shared: seen.append(len(images))):
        for score, passes in (("agreement", [6, 13, 13]), ("probability", [13])):
            for gradients in (False, True):  # those of the caller, such as an evaluation, which leaves them on
                with torch.set_grad_enabled(gradients):
                    perturbation_curves(classifier, pixel_values, pixel_values.abs().mean(1), score=score, **options)
                assert seen == passes
                seen.clear()


def test_a_shared_pass_is_shared_within_a_precision():
    classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
    with sharing():
        exact = shared_pass(classifier, "forward", pixel_values)
        with passes_in(torch.bfloat16):
            half = shared_pass(classifier, "forward", pixel_values)
        assert half.dtype == torch.bfloat16
        assert shared_pass(classifier, "forward", pixel_values) is exact


@pytest.mark.parametrize("max_batch, sizes", ((4, [3]), (2, [2, 2, 1]), (1, [1] * 10)))
def test_what_several_passes_cannot_tell_is_looked_at_in_one(max_batch, sizes):
    """The first image of every pass is too close; in the other precision its logits are those of its number."""
    seen = []

    class Half:
        def __call__(self, images):
            return torch.stack([torch.zeros(len(images)), images[:, 0, 0, 0]], dim=1)

        def undecided(self, logits):
            return torch.tensor([0])

        def decided(self, images, logits):
            seen.append(len(images))
            torch.testing.assert_close(logits, self(images))
            return torch.stack([images[:, 0, 0, 0]] * 2, dim=1)

    def build(span, batch):
        batch.copy_(torch.arange(span.start, span.stop, dtype=batch.dtype)[:, None, None, None].expand(batch.shape))

    passes = list(run_passes(Half(), torch.zeros(1, 3, 2, 2), build, 10, max_batch, "agreement"))
    assert [number for span, _ in passes for number in range(span.start, span.stop)] == list(range(10))
    found = torch.cat([logits for _, logits in passes])
    assert found[:, 0].tolist() == [float(number * (number % max_batch == 0)) for number in range(10)]
    assert found[:, 1].tolist() == list(map(float, range(10))) and seen == sizes
