"""Maps that say what speaks against a class, and maps of a difference of two classes, against literal forms."""

import pytest
import torch
from testing_common import random_pixels, randomize, tiny_classifier
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.registry import METHOD_ENTRIES, METHODS
from hf_explain.tensors.maps import min_max, signed_maps


def network():
    layers = (nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
    return randomize(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)))


class Difference(nn.Module):
    """A classifier whose first logit is the difference of two others."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, pixel_values):
        logits = self.module(pixel_values)
        return torch.stack([logits[:, 2] - logits[:, 1], logits[:, 0]], dim=1)


LINEAR = [name for name, entry in METHOD_ENTRIES.items() if entry.linear and name != "occlusion"]


@pytest.mark.parametrize("name", LINEAR)
def test_difference_of_maps_is_the_map_of_the_difference(name):
    pixel_values, layer = random_pixels("vit"), {"layer": "3"} if "cam" in name else {}
    module = network()
    plain, wrapped = (FrozenClassifier(one, image_size=(32, 32)) for one in (module, Difference(module)))
    one, other = (METHODS[name](plain, pixel_values, target, **layer).contributions for target in (2, 1))
    inner = {key: f"module.{value}" for key, value in layer.items()}
    expected = METHODS[name](wrapped, pixel_values, 0, **inner).contributions
    torch.testing.assert_close(one - other, expected, atol=1e-6, rtol=1e-4)
    assert expected.std() > 0


def test_signs_are_those_of_the_literal_forms():
    module, pixel_values = network(), random_pixels("vit")
    classifier = FrozenClassifier(module, image_size=(32, 32))
    activation = module[:4](pixel_values).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module[4:](activation)[:, 1].sum(), activation)
    found = METHODS["gradcam"](classifier, pixel_values, 1, layer="3")
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1)
    torch.testing.assert_close(found.contributions, expected.detach(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.saliency, min_max(expected.detach().clamp(min=0)), atol=1e-6, rtol=1e-4)

    pixels = pixel_values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(pixels)[:, 1].sum(), pixels)
    found = METHODS["input_x_gradient"](classifier, pixel_values, 1)
    torch.testing.assert_close(found.contributions, (gradient * pixel_values).sum(1), atol=1e-6, rtol=1e-4)

    black = (torch.zeros(3) - torch.tensor(classifier.image_mean)) / torch.tensor(classifier.image_std)
    with torch.no_grad():
        change = module(pixel_values)[:, 1] - module(black.view(1, 3, 1, 1).expand_as(pixel_values))[:, 1]
    found = METHODS["integrated_gradients"](classifier, pixel_values, 1, steps=200)
    torch.testing.assert_close(found.contributions.sum((1, 2)), change, atol=0.01, rtol=0.01)


def test_what_has_a_sign_says_so():
    cheap = {"lime": {"num_samples": 6, "grid_size": 2}, "kernel_shap": {"num_samples": 6, "grid_size": 2}}
    cheap |= {"occlusion": {"window_size": 16, "stride": 16}, "integrated_gradients": {"steps": 2}}
    classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet")
    for name, entry in METHOD_ENTRIES.items():
        if entry.signed:
            assert METHODS[name](classifier, pixel_values, 1, **cheap.get(name, {})).contributions is not None, name
        elif not entry.slow and not entry.attention:
            assert METHODS[name](classifier, pixel_values, 1).contributions is None, name
        assert entry.signed or not entry.linear


def test_signed_maps():
    maps = torch.tensor([[[1.0, -4.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert signed_maps(maps).tolist() == [[[0.25, -1.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]]
