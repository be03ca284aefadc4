"""The defence against its definition: bounds per call, equality passes, and nothing left behind."""

import pytest
import torch
from testing_common import FAMILIES, random_pixels, tiny_classifier
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import ACT2FN

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.methods.gradient_defence import activation_modules, gradient_defence


class TwoCalls(nn.Module):
    """A shared activation called twice, once on a tensor that is then added to in place."""

    def __init__(self, activation):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
        self.activation = activation

    def forward(self, pixel_values):
        hidden = self.activation(self.first(pixel_values))
        hidden = self.activation(self.second(hidden))
        hidden = self.third(hidden.mean((-2, -1)))
        return hidden


def defended_by_hand(model, image, perturbed):
    """The definition, literally: every activation's gradient times the two indicators, call by call."""
    with torch.no_grad():
        first = model.activation(model.first(image))
        second = model.activation(model.second(first))
    perturbed = perturbed.clone().requires_grad_()

    def gate(value, reference):
        upper = (value <= reference.clamp(min=0)).float()
        lower = (value >= reference.clamp(max=0)).float()
        # forward `value`, backward times the indicators
        return (value - value * upper * lower).detach() + value * upper * lower

    hidden = gate(model.activation(model.first(perturbed)), first)
    hidden = gate(model.activation(model.second(hidden)), second)
    logits = model.third(hidden.mean((-2, -1)))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), perturbed)
    return gradient


ACTIVATIONS = ["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "leaky_relu", "tanh", "mish"]


def images(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 9, 9, generator=generator, dtype=dtype)


def gradient_of(classifier, perturbed):
    perturbed = perturbed.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier(perturbed)[:, 1].sum(), perturbed)
    return gradient


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_is_the_definitions(name):
    model = TwoCalls(ACT2FN[name])
    classifier = FrozenClassifier(model)
    image, perturbed = images(0), images(0) + 0.5 * images(1)
    plain = gradient_of(classifier, perturbed)
    with gradient_defence(classifier) as defence:
        logits = defence.record(image)
        torch.testing.assert_close(logits, model(image), rtol=0, atol=0)
        torch.testing.assert_close(classifier(perturbed), model(perturbed), rtol=0, atol=0)
        defended = gradient_of(classifier, perturbed)
    expected = defended_by_hand(model, image, perturbed)
    torch.testing.assert_close(defended, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(defended, plain, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_indicators_in_every_dtype(name, dtype):
    """The gradient is exactly the activation's own slope times the two indicators."""

    class OneCall(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = ACT2FN[name]
            self.scale = nn.Parameter(torch.ones((), dtype=dtype))
            self.seen = None

        def forward(self, pixel_values):
            self.seen = self.activation(pixel_values * self.scale)
            return self.seen.flatten(1) * self.scale

    model = OneCall()
    classifier = FrozenClassifier(model)
    image = images(0).to(dtype)
    perturbed = torch.where(torch.rand(image.shape, generator=torch.Generator().manual_seed(2)) < 0.3, image, -image)
    perturbed = perturbed * torch.linspace(0.5, 1.5, 9).to(dtype)
    perturbed[0, 0] = image[0, 0]  # equality passes
    with gradient_defence(classifier) as defence:
        defence.record(image)
        reference = model.seen.clone()
        leaf = perturbed.clone().requires_grad_()
        (defended,) = torch.autograd.grad(classifier(leaf).sum(), leaf)
        value = model.seen.detach()
    slope_leaf = perturbed.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.activation(slope_leaf).sum(), slope_leaf)
    allowed = (value <= reference.clamp(min=0)) & (value >= reference.clamp(max=0))
    assert allowed[0, 0].all() and 0 < allowed.float().mean() < 1
    torch.testing.assert_close(defended, slope * allowed, rtol=0, atol=0)


def test_unperturbed_image_passes_everywhere():
    for name in ("relu", "gelu"):
        classifier = FrozenClassifier(TwoCalls(ACT2FN[name]))
        plain = gradient_of(classifier, images())
        with gradient_defence(classifier) as defence:
            defence.record(images())
            torch.testing.assert_close(gradient_of(classifier, images()), plain, rtol=0, atol=0)


def test_small_activations_do_not_underflow_into_passing():
    class Identity(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = nn.LeakyReLU(1.0)
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, pixel_values):
            return self.activation(pixel_values).flatten(1) * self.weight

    classifier = FrozenClassifier(Identity())
    image = torch.tensor([1e-25, 1e-25, -1e-25, -1e-25, 1e-25]).view(1, 1, 1, 5)
    perturbed = torch.tensor([2e-25, -1e-30, 1e-30, -5e-26, 5e-26]).view(1, 1, 1, 5).requires_grad_()
    with gradient_defence(classifier) as defence:
        defence.record(image)
        (gradient,) = torch.autograd.grad(classifier(perturbed).sum(), perturbed)
    assert gradient.flatten().tolist() == [0, 0, 0, 1, 1]


def test_in_place_activation_and_in_place_addition():
    class InPlace(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            generator = torch.Generator().manual_seed(3)
            self.conv = nn.Conv2d(3, 4, 3)
            for parameter in self.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator)
            self.first, self.second = nn.SiLU(inplace=in_place), nn.ReLU(inplace=in_place)
            self.in_place = in_place

        def forward(self, pixel_values):
            hidden = self.first(self.conv(pixel_values))
            if self.in_place:
                hidden += 0.3
            else:
                hidden = hidden + 0.3
            return self.second(hidden).mean((-2, -1))

    results = []
    for in_place in (False, True):
        classifier = FrozenClassifier(InPlace(in_place))
        with gradient_defence(classifier) as defence:
            defence.record(images(0))
            results.append(gradient_of(classifier, images(0) + 0.3 * images(1)))
    torch.testing.assert_close(*results)


def hooks_of(classifier):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in classifier.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_classifier_is_restored_after_an_error(error):
    classifier = FrozenClassifier(TwoCalls(nn.ReLU()))
    before = gradient_of(classifier, images(1))
    with pytest.raises(error):
        with gradient_defence(classifier) as defence:
            defence.record(images(0))
            assert hooks_of(classifier) > 0
            raise error
    assert hooks_of(classifier) == 0
    torch.testing.assert_close(gradient_of(classifier, images(1)), before, rtol=0, atol=0)


def test_classifier_is_restored_when_attaching_is_interrupted(monkeypatch):
    classifier = FrozenClassifier(TwoCalls(nn.ReLU()))

    class Interrupted(dict):
        def __setitem__(self, *item):
            raise KeyboardInterrupt

    monkeypatch.setattr(classifier.model.activation, "_forward_hooks", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        with gradient_defence(classifier):
            pass
    assert hooks_of(classifier) == 0


def test_activations_are_found_by_class():
    model = nn.ModuleDict({name: ACT2FN[name] for name in ("relu", "gelu", "gelu_new", "silu", "tanh", "linear")})
    model["identity"], model["softmax"], model["norm"] = nn.Identity(), nn.Softmax(-1), nn.LayerNorm(3)
    assert set(activation_modules(model)) == {"relu", "gelu", "gelu_new", "silu", "tanh"}


class Linear(nn.Module):
    def __init__(self, last=None):
        super().__init__()
        self.linear, self.last = nn.Linear(3 * 81, 4), last or nn.Identity()

    def forward(self, pixel_values):
        return self.last(self.linear(pixel_values.flatten(1)))


def test_errors_are_clear():
    with pytest.raises(ValueError, match="Linear has no nonlinearity to defend.*defence=False"):
        with gradient_defence(FrozenClassifier(Linear())):
            pass
    classifier = FrozenClassifier(Linear(nn.Sigmoid()))  # the classification layer's own is not defended
    with pytest.raises(ValueError, match=r"\(model.last\) runs before the logits"):
        with gradient_defence(classifier) as defence:
            defence.record(images())
    assert hooks_of(classifier) == 0
    classifier = FrozenClassifier(TwoCalls(nn.GELU()))
    with gradient_defence(classifier) as defence:
        with pytest.raises(ValueError, match="call record"):
            classifier(images().requires_grad_())
        defence.record(images())
        with pytest.raises(ValueError, match=r"Activation call 1 gives shape \(1, .*record the images anew"):
            classifier(images()[:1].requires_grad_())
        logits = classifier(images().requires_grad_())
        classifier(images().requires_grad_())
        with pytest.raises(RuntimeError, match="differentiated once.*before the next pass"):
            logits.sum().backward()


class Nonlinearities(TorchDispatchMode):
    """Counts the pointwise nonlinearities that run, whoever asks for them."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function.__name__.split(".")[0] in ("relu", "relu_", "gelu", "gelu_", "silu", "tanh", "sigmoid")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_nonlinearity_of_every_family_is_defended(family):
    classifier, pixel_values = tiny_classifier(family), random_pixels(family)
    perturbed = pixel_values + 0.5 * random_pixels(family, seed=1)
    plain = gradient_of(classifier, perturbed)
    with Nonlinearities() as ran, torch.no_grad():
        classifier(pixel_values)
    with gradient_defence(classifier) as defence:
        defence.record(pixel_values)
        assert len(defence._bounds) == ran.calls >= 3
        assert not torch.allclose(gradient_of(classifier, perturbed), plain)
    torch.testing.assert_close(gradient_of(classifier, perturbed), plain, rtol=0, atol=0)
