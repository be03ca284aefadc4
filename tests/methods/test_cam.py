import numpy as np
import pytest
import torch
from testing_common import FAMILIES, random_pixels, tiny_classifier
from testing_methods import (
    CONVOLUTIONAL,
    TRANSFORMERS,
    MethodTester,
    hidden_state_gradients,
    layer_index,
    relu_unless_all_negative,
)

from hf_explain.methods.cam import ablationcam, eigencam, gradcam, gradcam_plus_plus, hirescam, layercam, xgradcam
from hf_explain.methods.controls import centre, random


class OracleTester(MethodTester):
    """Subclasses write their method again, slowly: one `(C, h, w)` activation and gradient to one map."""

    other_layer = 2

    def literal(self, activation, gradient):
        raise NotImplementedError

    def test_literal(self):
        for family, classifier in self.each_family():
            for layer in (None, classifier.layer_names[self.other_layer]):
                pixel_values = random_pixels(family, 2)
                output = self.call(classifier, pixel_values, [0, 3], layer=layer)
                index = layer_index(classifier, layer)
                states = hidden_state_gradients(classifier, pixel_values, output.target, index)
                for image, (activation, gradient) in enumerate(zip(*states)):
                    expected = self.literal(activation, gradient)
                    atol = 1e-5 * expected.abs().max().item()
                    torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-3)

    def test_last_block_of_a_transformer_is_refused(self):
        for family in TRANSFORMERS:
            with pytest.raises(ValueError, match="`layer` 'layer3' has no effect on the logits.*for example 'layer2'"):
                self.call(tiny_classifier(family), random_pixels(family), layer=-1)


def weighted(weights, activation):
    map_ = torch.zeros(activation.shape[1:])
    for channel, weight in enumerate(weights):
        map_ += weight * activation[channel]
    return relu_unless_all_negative(map_)


class TestGradCam(OracleTester):
    method = gradcam

    def literal(self, activation, gradient):
        return weighted([channel.mean() for channel in gradient], activation)


class TestGradCamPlusPlus(OracleTester):
    method = gradcam_plus_plus
    tolerance = 1e-4

    def literal(self, activation, gradient):
        weights = []
        for a, g in zip(activation, gradient):
            weight = 0.0
            for value in g.flatten():
                if value != 0:
                    share = value**2 / (2 * value**2 + value**3 * a.sum())
                    weight += share * max(value, torch.tensor(0.0))
            weights.append(weight)
        return weighted(weights, activation)


class TestXGradCam(OracleTester):
    method = xgradcam
    tolerance = 1e-4

    def literal(self, activation, gradient):
        weights = []
        for a, g in zip(activation, gradient):
            weights.append(sum(x / a.sum() * d for x, d in zip(a.flatten(), g.flatten())) if a.sum() != 0 else 0.0)
        return weighted(weights, activation)


class TestLayerCam(OracleTester):
    method = layercam

    def literal(self, activation, gradient):
        return relu_unless_all_negative(sum(g.clamp(min=0) * a for a, g in zip(activation, gradient)))


class TestHiResCam(OracleTester):
    method = hirescam

    families = CONVOLUTIONAL  # and transformers below
    other_layer = 0  # ConvNeXt normalises between stages

    def literal(self, activation, gradient):
        return relu_unless_all_negative(sum(g * a for a, g in zip(activation, gradient)))

    def test_convnext_is_read_behind_the_norm_between_stages(self):
        """Before it the products cancel; the oracle catches what the norm gives in the whole classifier."""
        classifier, pixel_values = tiny_classifier("convnext"), random_pixels("convnext")
        for index, layer in enumerate(("stage1", "stage2", "stage3"), 1):
            output = self.call(classifier, pixel_values, [0, 3], layer=layer)
            caught = []
            norm = classifier.model.convnext.encoder.stages[index].downsampling_layer[0]
            handle = norm.register_forward_hook(lambda module, inputs, found, caught=caught: caught.append(found))
            logits = classifier.model(pixel_values.clone().requires_grad_()).logits
            handle.remove()
            (gradient,) = torch.autograd.grad(logits[0, 0] + logits[1, 3], caught[0])
            for image, (activation, own) in enumerate(zip(caught[0].detach(), gradient)):
                expected = self.literal(activation, own)
                atol = 1e-5 * expected.abs().max().item()
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-3)
            (activation, _), (gradient, _) = hidden_state_gradients(classifier, pixel_values, output.target, index)
            assert (gradient * activation).sum(0).abs().max() < 1e-5 * (gradient * activation).abs().sum(0).max()

    def test_scale_of_a_patch_token_means_nothing_to_the_last_block(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        (activation, _), (gradient, _) = hidden_state_gradients(classifier, pixel_values, torch.tensor([0, 3]), 2)
        assert (gradient * activation).sum(0).abs().max() < 1e-5 * (gradient * activation).abs().sum(0).max()


class TestHiResCamOfTransformers(MethodTester):
    method = hirescam
    families = TRANSFORMERS

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3])
            read = []
            module = classifier.attention_modules()[-1]
            handle = module.register_forward_pre_hook(lambda module, args, read=read: read.append(args[0]))
            logits = classifier.model(pixel_values.clone().requires_grad_()).logits
            handle.remove()
            (gradient,) = torch.autograd.grad(logits[0, 0] + logits[1, 3], read[0])
            products = (gradient * read[0].detach())[:, classifier.num_prefix_tokens :]
            for image in range(2):
                expected = torch.tensor([token.sum() for token in products[image]]).view(4, 4)
                torch.testing.assert_close(output.saliency_logits[image], relu_unless_all_negative(expected))

    def test_earlier_layers_are_plain(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], layer="layer1")
            states = hidden_state_gradients(classifier, pixel_values, output.target, 1)
            for image, (activation, gradient) in enumerate(zip(*states)):
                expected = relu_unless_all_negative((gradient * activation).sum(0))
                atol = 1e-5 * expected.abs().max().item()
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-3)


class TestEigenCam(MethodTester):
    method = eigencam
    looks_at_class = False
    tolerance = 1e-3  # of a singular vector, not of the logits

    def test_literal(self):
        for family, classifier in self.each_family():
            for layer in (None, "stem"):
                pixel_values = random_pixels(family)
                output = self.call(classifier, pixel_values, layer=layer)
                states, _ = hidden_state_gradients(
                    classifier, pixel_values, output.target, layer_index(classifier, layer)
                )
                for image, activation in enumerate(states):
                    positions = activation.flatten(1).T.double().numpy()
                    _, _, right = np.linalg.svd(positions, full_matrices=False)
                    expected = positions @ right[0]
                    expected *= np.sign(expected[np.abs(expected).argmax()])
                    found = output.saliency_logits[image].flatten().double().numpy()
                    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())

    def test_any_layer(self):
        for family in TRANSFORMERS:
            assert self.call(tiny_classifier(family), random_pixels(family), layer=-1).saliency.amax() == 1


class TestAblationCam(MethodTester):
    method = ablationcam

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], batch_size=7)
            index = layer_index(classifier)
            states, _ = hidden_state_gradients(classifier, pixel_values, output.target, index)
            module = classifier._blocks[index - 1]
            for image, label in enumerate((0, 3)):
                base = output.logits[image, label]
                weights = []
                for channel in range(states[image].shape[0]):

                    def ablate(module, inputs, result, channel=channel, prefix=classifier.num_prefix_tokens):
                        result = result.clone()
                        if prefix:
                            result[:, prefix:, channel] = 0
                        else:
                            result[:, channel] = 0
                        return result

                    handle = module.register_forward_hook(ablate)
                    with torch.no_grad():
                        score = classifier.model(pixel_values[image : image + 1]).logits[0, label]
                    handle.remove()
                    weights.append((base - score) / base.abs())
                expected = weighted(weights, states[image])
                atol = 1e-4 * expected.abs().max().item()
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-3)

    def test_batch_size_changes_nothing(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family, 3)
            reference = self.call(classifier, pixel_values, batch_size=1000).saliency
            for batch_size in (1, 2, 5):
                found = self.call(classifier, pixel_values, batch_size=batch_size).saliency
                torch.testing.assert_close(found, reference, atol=1e-3, rtol=0)

    def test_errors(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got 0"):
            self.call(classifier, pixel_values, batch_size=0)
        with pytest.raises(ValueError, match="'layer3' has no effect on the logits"):
            self.call(classifier, pixel_values, layer="layer3")


class TestRandom(MethodTester):
    method = random
    looks_at_class = False
    at_pixels = True

    def test_output(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        output = random(classifier, pixel_values)
        assert output.saliency.shape == (2, 32, 32) and 0.4 < output.saliency.mean() < 0.6
        assert not torch.equal(output.saliency[0], output.saliency[1])
        assert not torch.equal(output.saliency, random(classifier, pixel_values, seed=1).saliency)
        assert random(classifier, pixel_values, layer="layer1").saliency.shape == (2, 4, 4)
        assert random(classifier, pixel_values, size=(3, 5)).saliency.shape == (2, 3, 5)
        ids = [random(classifier, pixel_values[:1], image_ids=[one]).saliency for one in (7, 8, 7)]
        assert torch.equal(ids[0], ids[2]) and not torch.equal(ids[0], ids[1])


class TestCentre(MethodTester):
    method = centre
    looks_at_class = False
    at_pixels = True

    def test_shape_of_the_bump(self):
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet")
        saliency = centre(classifier, pixel_values).saliency
        assert torch.equal(saliency, saliency.flip(1)) and torch.equal(saliency, saliency.flip(2))
        assert saliency[0].argmax() in (31 * 64 + 31, 31 * 64 + 32, 32 * 64 + 31, 32 * 64 + 32)
        assert centre(classifier, pixel_values, layer="stage1").saliency.shape == (2, 16, 16)
        with pytest.raises(ValueError, match="`sigma` must be above 0 and finite, got 0"):
            centre(classifier, pixel_values, sigma=0)


def _grad_cam_pp():
    """
    torchcam's Grad-CAM++ with the paper's weights. Its own (0.5.0) divide a copy, `alpha[mask].div_(...)`, so they
    are powers of the gradient alone, and sum gradient times activation where the paper sums the activation.
    """
    import torchcam.methods

    class GradCAMpp(torchcam.methods.GradCAMpp):
        def _get_weights(self, class_idx, scores, eps=1e-8, **kwargs):
            self._backprop(scores, class_idx, **kwargs)
            weights = []
            for activation, gradient in zip(self.hook_a, self.hook_g, strict=True):
                below = 2 * gradient**2 + gradient**3 * activation.sum((2, 3), keepdim=True)
                alpha = torch.where(gradient != 0, gradient**2 / below, 0.0)
                weights.append((alpha * gradient.relu()).sum((2, 3)))
            return weights

    return GradCAMpp


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize(
    "ours,theirs",
    [(gradcam, "GradCAM"), (gradcam_plus_plus, _grad_cam_pp), (xgradcam, "XGradCAM"), (layercam, "LayerCAM")],
)
def test_against_torchcam(family, ours, theirs):
    import torchcam.methods

    classifier, pixel_values = tiny_classifier(family), random_pixels(family)
    output = ours(classifier, pixel_values, [0, 3])
    layer = classifier._body.get_submodule("encoder.stages")[-1]
    theirs = getattr(torchcam.methods, theirs) if isinstance(theirs, str) else theirs()
    with theirs(classifier.model, target_layer=layer) as extractor:
        logits = classifier.model(pixel_values.clone().requires_grad_()).logits
        (maps,) = extractor([0, 3], logits, normalized=True)
    keep = maps.flatten(1).amax(1) > 0  # theirs is all zeros where no position speaks for the target
    assert keep.any()
    torch.testing.assert_close(output.saliency[keep], maps[keep], atol=1e-4, rtol=0)


def test_negative_evidence_alone_still_gives_a_map():
    classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet")
    worst = gradcam(classifier, pixel_values).logits.argmin(-1)
    output = gradcam(classifier, pixel_values, worst)
    assert output.saliency.flatten(1).amax(1).eq(1).all()


def test_a_layer_that_does_not_reach_the_logits_by_name():
    assert set(FAMILIES) == set(TRANSFORMERS) | set(CONVOLUTIONAL)
    classifier = tiny_classifier("deit-teacher")
    with pytest.raises(ValueError, match="reads the prefix tokens alone"):
        gradcam(classifier, random_pixels("deit-teacher"), layer="layer3")
