import pytest
import torch
from testing_common import random_pixels, tiny_classifier
from testing_methods import MethodTester, relu_unless_all_negative

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.methods.gradients import input_x_gradient, integrated_gradients, smoothgrad
from hf_explain.tensors.randomness import image_keys, random_normal


def pixel_gradient(classifier, image, label):
    image = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.model(image).logits[0, label], image)
    return gradient[0]


class GradientTester(MethodTester):
    at_pixels = True

    def literal(self, classifier, image, label):
        raise NotImplementedError

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3])
            for image, label in enumerate((0, 3)):
                expected = self.literal(classifier, pixel_values[image], label)
                atol = 1e-4 * expected.abs().max().item()
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=atol, rtol=1e-3)

    def test_batch_size_changes_nothing(self):
        for family in ("deit-teacher", "resnet"):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family, 3)
            reference = self.call(classifier, pixel_values, batch_size=100).saliency
            for batch_size in (1, 2, 7):
                found = self.call(classifier, pixel_values, batch_size=batch_size).saliency
                torch.testing.assert_close(found, reference, atol=1e-3, rtol=0)
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got -1"):
            self.call(classifier, pixel_values, batch_size=-1)


class TestInputXGradient(GradientTester):
    method = input_x_gradient

    def literal(self, classifier, image, label):
        gradient = pixel_gradient(classifier, image, label)
        return relu_unless_all_negative(sum(image[channel] * gradient[channel] for channel in range(3)))

    def test_against_captum(self):
        import captum.attr

        classifier, pixel_values = tiny_classifier("convnext"), random_pixels("convnext")
        theirs = captum.attr.InputXGradient(classifier).attribute(
            pixel_values.clone().requires_grad_(), target=torch.tensor([0, 3])
        )
        output = input_x_gradient(classifier, pixel_values, [0, 3])
        torch.testing.assert_close(output.saliency_logits, theirs.detach().sum(1).clamp(min=0), atol=1e-6, rtol=1e-4)


class TestIntegratedGradients(GradientTester):
    method = integrated_gradients
    options = {"steps": 6}

    def literal(self, classifier, image, label):
        mean, std = (torch.tensor(v)[:, None, None] for v in (classifier.image_mean, classifier.image_std))
        black = (0 - mean) / std
        total = 0
        for step in range(6):
            total = total + pixel_gradient(classifier, black + (step + 0.5) / 6 * (image - black), label)
        return relu_unless_all_negative(((image - black) * total / 6).sum(0))

    def test_against_captum(self):
        import captum.attr

        for family in ("vit", "resnet"):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family)
            theirs = captum.attr.IntegratedGradients(classifier).attribute(
                pixel_values, 0.0, target=torch.tensor([0, 3]), n_steps=8, method="riemann_middle"
            )
            output = integrated_gradients(classifier, pixel_values, [0, 3], steps=8, baseline="mean")
            expected = theirs.float().sum(1).clamp(min=0)
            torch.testing.assert_close(output.saliency_logits, expected, atol=1e-5, rtol=1e-3)

    def test_exact_for_a_linear_classifier(self):
        """Every pixel gets its own term of the logit, whatever the number of steps."""

        class Linear(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.features = torch.nn.Conv2d(3, 3, 1)
                self.weight = torch.nn.Parameter(torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)))

            def forward(self, pixel_values):
                return torch.einsum("bchw,kchw->bk", self.features(pixel_values), self.weight)

        model = Linear()
        classifier = FrozenClassifier(model, image_size=(8, 8))
        pixel_values = random_pixels("vit", size=(8, 8))
        output = integrated_gradients(classifier, pixel_values, 2, steps=1, baseline="mean")
        weight = torch.einsum("chw,cd->dhw", model.weight[2], model.features.weight[:, :, 0, 0])
        expected = (pixel_values * weight).sum(1).clamp(min=0)
        torch.testing.assert_close(output.saliency_logits, expected, atol=1e-5, rtol=1e-4)

    def test_options(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        for baseline in ("black", "mean", "blur", (0.2, 0.4, 0.6)):
            assert self.call(classifier, pixel_values, baseline=baseline).saliency.amax() == 1
        with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1, got 0"):
            self.call(classifier, pixel_values, steps=0)
        with pytest.raises(ValueError, match="`fill` must be one of black, mean, blur, white or a colour, got 'grey'"):
            self.call(classifier, pixel_values, baseline="grey")


class TestSmoothGrad(GradientTester):
    method = smoothgrad
    options = {"num_samples": 5}

    def literal(self, classifier, image, label):
        key = image_keys(image[None])
        total = 0
        for sample in range(5):
            noise = random_normal(image_keys(key + sample, key + sample), image.numel()).view(image.shape)
            total = total + pixel_gradient(classifier, image + 0.15 * (image.max() - image.min()) * noise, label)
        return (total / 5).abs().sum(0)

    def test_seed_and_noise(self):
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet")
        reference = self.call(classifier, pixel_values).saliency
        assert torch.equal(self.call(classifier, pixel_values).saliency, reference)
        assert not torch.equal(self.call(classifier, pixel_values, seed=1).saliency, reference)
        plain = self.call(classifier, pixel_values, 3, noise_level=0.0).saliency_logits
        expected = torch.stack([pixel_gradient(classifier, image, 3).abs().sum(0) for image in pixel_values])
        torch.testing.assert_close(plain, expected, atol=1e-6, rtol=1e-4)
        with pytest.raises(ValueError, match="`noise_level` .* must be at least 0 and finite, got -0.1"):
            self.call(classifier, pixel_values, noise_level=-0.1)

    def test_noise_is_normal_and_independent(self):
        keys = image_keys(random_pixels("vit", 1))
        ids = (keys[:, None] + torch.arange(64)).flatten()
        noise = random_normal(image_keys(ids, ids), 4096)
        assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
        assert (torch.corrcoef(noise) - torch.eye(64)).abs().max() < 0.1
