"""The one tester that every training-free method passes, and the gradients the literal oracles start from."""

import inspect

import pytest
import torch
from testing_common import (
    FAMILIES,
    assert_frozen,
    assert_unchanged,
    image_size,
    other_size,
    random_pixels,
    snapshot,
    tiny_classifier,
)

from hf_explain.tensors.maps import min_max


TRANSFORMERS = tuple(family for family in FAMILIES if family in ("vit", "deit", "deit-teacher"))
CONVOLUTIONAL = tuple(family for family in FAMILIES if family not in TRANSFORMERS)


def layer_index(classifier, layer=None):
    """Index of a layer in `hidden_states`, the default one for `None`."""
    return classifier.layer_names.index(layer or classifier.default_layer)


def hidden_state_gradients(classifier, pixel_values, classes, index):
    """
    A hidden state and its gradient of the target logit, as feature maps, from Transformers' own graph alone.

    Returns two lists with one `(channels, height, width)` tensor per image.
    """
    with torch.enable_grad():
        options = {"interpolate_pos_encoding": True} if classifier.is_transformer else {}
        output = classifier.model(pixel_values.clone().requires_grad_(), output_hidden_states=True, **options)
        state = output.hidden_states[index]
        score = sum(output.logits[image, label] for image, label in enumerate(classes.tolist()))
        (gradient,) = torch.autograd.grad(score, state)
    if classifier.is_transformer:
        grid = [side // classifier.config.patch_size for side in pixel_values.shape[-2:]]
        state, gradient = (
            value[:, classifier.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid) for value in (state, gradient)
        )
    return list(state.detach()), list(gradient)


def relu_unless_all_negative(map_):
    return map_.clamp(min=0) if (map_ > 0).any() else map_


def our_hooks(classifier):
    """Hooks of this package left on the classifier; Transformers keeps some of its own there."""
    return [
        hook
        for module in classifier.model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if hook.__module__.startswith("hf_explain")
    ]


class MethodTester:
    """
    A method's test is a subclass that names the function, the options that keep it cheap, and its families.

    `looks_at_class` is whether another target gives another map, `at_pixels` whether maps have the image's size.
    """

    method = None
    options = {}
    families = FAMILIES
    looks_at_class = True
    at_pixels = False
    tolerance = 1e-5
    bfloat16_correlation = 0.95

    def call(self, classifier, pixel_values, target=None, **options):
        return type(self).method(classifier, pixel_values, target, **{**self.options, **options})

    def each_family(self):
        for family in self.families:
            yield family, tiny_classifier(family)

    def test_signature(self):
        parameters = inspect.signature(type(self).method).parameters
        assert list(parameters)[:4] == ["classifier", "pixel_values", "target", "layer"]
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[3:])

    def test_output(self):
        for family, classifier in self.each_family():
            for size in (image_size(family), other_size(family)):
                pixel_values = random_pixels(family, 3, size)
                output = self.call(classifier, pixel_values)
                with torch.no_grad():
                    torch.testing.assert_close(output.logits, classifier(pixel_values), atol=1e-5, rtol=1e-5)
                assert output.target.tolist() == output.logits.argmax(-1).tolist()
                assert output.saliency.shape[0] == 3 and output.saliency.ndim == 3
                if self.at_pixels:
                    assert output.saliency.shape[1:] == size
                assert output.saliency.dtype == torch.float32
                torch.testing.assert_close(output.saliency, min_max(output.saliency_logits), atol=0, rtol=0)
                assert output.saliency.amin() >= 0 and output.saliency.amax() <= 1
                assert output.saliency.flatten(1).amax(1).eq(1).all(), f"a map of zeros on {family}"
                tensors = (output.saliency, output.saliency_logits, output.logits, output.target)
                assert not any(tensor.requires_grad for tensor in tensors)

    def test_batch_equals_singles(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family, 3)
            together = self.call(classifier, pixel_values, [0, 3, 1])
            for index, label in enumerate((0, 3, 1)):
                alone = self.call(classifier, pixel_values[index : index + 1], label)
                assert alone.target.tolist() == [label]
                scale = together.saliency_logits[index].abs().max()
                torch.testing.assert_close(
                    alone.saliency_logits[0], together.saliency_logits[index], atol=self.tolerance * scale, rtol=1e-3
                )

    def test_target_matters(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family, 1)
            first, second = (self.call(classifier, pixel_values, label) for label in ("cat", "church"))
            assert (first.target.item(), second.target.item()) == (1, 4)
            assert torch.equal(first.saliency_logits, second.saliency_logits) != self.looks_at_class, family

    def test_any_grad_mode_and_nothing_left_behind(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family, 1)
            before = snapshot(classifier)
            attention = classifier.config._attn_implementation
            expected = self.call(classifier, pixel_values, 0).saliency
            with torch.no_grad():
                assert torch.equal(self.call(classifier, pixel_values, 0).saliency, expected)
            with torch.inference_mode():
                inside = self.call(classifier, pixel_values.clone(), 0)
            assert torch.equal(inside.saliency, expected) and not inside.saliency.is_inference()
            assert not pixel_values.requires_grad
            assert_unchanged(classifier, before)
            assert_frozen(classifier)
            assert classifier.config._attn_implementation == attention
            assert not our_hooks(classifier)

    def test_bfloat16(self):
        """A classifier in half precision gives the float32 classifier's map, up to its own rounding."""
        family = self.families[-1]
        classifier, pixel_values = tiny_classifier(family), random_pixels(family)
        reference = self.call(classifier, pixel_values, [0, 3]).saliency
        classifier.model.to(torch.bfloat16)
        output = self.call(classifier, pixel_values, [0, 3])
        assert output.saliency.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
        assert output.saliency.flatten(1).amax(1).eq(1).all()
        for found, expected in zip(output.saliency.flatten(1), reference.flatten(1)):
            assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > self.bfloat16_correlation

    def test_bad_input(self):
        family = self.families[0]
        classifier, pixel_values = tiny_classifier(family), random_pixels(family, 2)
        with pytest.raises(ValueError, match="`layer` 'stage9' does not exist; the layers are stem, "):
            self.call(classifier, pixel_values, layer="stage9")
        with pytest.raises(ValueError, match="`target` 'dog' is not a label"):
            self.call(classifier, pixel_values, "dog")
        with pytest.raises(ValueError, match="3 entries for 2 images"):
            self.call(classifier, pixel_values, [0, 1, 2])
        with pytest.raises(ValueError, match="`pixel_values` must have shape"):
            self.call(classifier, pixel_values[0])
        with pytest.raises(TypeError, match="`pixel_values` must be floating point"):
            self.call(classifier, pixel_values.to(torch.uint8))
        pixel_values[1, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="mage 1 .*not finite.*look for NaN or infinity in its `pixel_values`"):
            self.call(classifier, pixel_values, 0)
