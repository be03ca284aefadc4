import importlib.util
import sys
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from testing_common import image_size, random_pixels, tiny_classifier
from testing_methods import MethodTester, hidden_state_gradients, layer_index, relu_unless_all_negative

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.methods.sampling import kernel_shap, lime, occlusion, rise, scorecam
from hf_explain.tensors.maps import min_max
from hf_explain.tensors.randomness import image_keys, random_uniform


def softmax_of(classifier, image, label):
    with torch.no_grad():
        return classifier.model(image[None]).logits.softmax(-1)[0, label]


def black(classifier):
    mean, std = (torch.tensor(values)[:, None, None] for values in (classifier.image_mean, classifier.image_std))
    return (0 - mean) / std


class SamplingTester(MethodTester):
    at_pixels = True

    def test_batch_size_changes_nothing(self):
        for family in ("deit", "resnet"):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family, 3)
            reference = self.call(classifier, pixel_values, [0, 3, 1], batch_size=1000).saliency
            for batch_size in (1, 2, 7):
                found = self.call(classifier, pixel_values, [0, 3, 1], batch_size=batch_size).saliency
                torch.testing.assert_close(found, reference, atol=1e-3, rtol=0)
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1, got 0"):
            self.call(classifier, pixel_values, batch_size=0)


class TestRise(SamplingTester):
    method = rise
    options = {"num_masks": 9}

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], grid_size=5, probability=0.3, seed=4)
            height, width = pixel_values.shape[-2:]
            for image, label in enumerate((0, 3)):
                total = torch.zeros(height, width)
                for number in range(9):
                    key = torch.tensor([number])
                    values = random_uniform(image_keys(key, key, 4), 5 * 5 + 2)[0]
                    grid = (values[2:] < 0.3).float().view(1, 1, 5, 5)
                    cell = -(-height // 5), -(-width // 5)
                    large = F.interpolate(grid, size=(6 * cell[0], 6 * cell[1]), mode="bilinear")[0, 0]
                    top, left = int(values[0] * cell[0]), int(values[1] * cell[1])
                    mask = large[top : top + height, left : left + width]
                    seen = black(classifier) + mask * (pixel_values[image] - black(classifier))
                    total += softmax_of(classifier, seen, label) * mask
                expected = total / 9 / 0.3
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=1e-5, rtol=1e-4)

    def test_cells_are_seen_or_hidden_whole(self):
        for family, grid, cells in (("deit", "patch", (4, 4)), ("resnet", (2, 4), (2, 4))):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], grid=grid, probability=0.3, seed=4)
            sides = [side // count for side, count in zip(pixel_values.shape[-2:], cells)]
            for image, label in enumerate((0, 3)):
                total = torch.zeros(cells)
                for number in range(9):
                    key = torch.tensor([number])
                    values = random_uniform(image_keys(key, key, 4), cells[0] * cells[1] + 2)[0, 2:]
                    opened = (values < 0.3).float().view(cells)
                    mask = torch.kron(opened, torch.ones(sides))
                    seen = black(classifier) + mask * (pixel_values[image] - black(classifier))
                    total += softmax_of(classifier, seen, label) * opened
                torch.testing.assert_close(output.saliency_logits[image], total / 9 / 0.3, atol=1e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="`grid`='patch' needs a classifier that reads its images in patches"):
            self.call(classifier, pixel_values, grid="patch")

    def test_seed_and_mask_space(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        reference = self.call(classifier, pixel_values).saliency
        assert torch.equal(self.call(classifier, pixel_values).saliency, reference)
        assert not torch.equal(self.call(classifier, pixel_values, seed=1).saliency, reference)
        assert not torch.equal(self.call(classifier, pixel_values, mask_space="normalized").saliency, reference)

    def test_masks_are_as_published(self):
        """Every cell is open with the probability asked for, wherever it lands on the image."""

        class Sees(torch.nn.Module):
            """Logits whose softmax of class 0 is exactly the mean of the mask."""

            def __init__(self):
                super().__init__()
                self.features = torch.nn.Conv2d(3, 3, 1)
                self.masks = []

            def forward(self, pixel_values):
                self.masks.append(pixel_values[:, 0].clone())
                shown = self.features(pixel_values).mean((1, 2, 3)) * 0
                return torch.stack([shown, shown], 1)

        model = Sees()
        classifier = FrozenClassifier(model, image_size=(28, 42))
        classifier.layer_names  # noqa: B018 the probe's images are not masks
        model.masks.clear()
        rise(classifier, torch.ones(1, 3, 28, 42), 0, num_masks=500, mask_space="normalized", batch_size=50)
        masks = torch.cat(model.masks[1:])
        sizes = [len(batch) for batch in model.masks]
        assert sizes[0] == 1 and max(sizes) == 50 and sum(sizes) == 501  # never more in memory than a batch
        assert masks.amin() >= 0 and masks.amax() <= 1
        assert (masks.mean(0) - 0.5).abs().max() < 0.1
        assert len(torch.unique(masks.flatten(1), dim=0)) == 500

    def test_errors(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        for options, message in (
            ({"num_masks": 0}, "`num_masks` must be a whole number of at least 1, got 0"),
            ({"grid_size": 2.5}, "`grid_size` must be a whole number of at least 1, got 2.5"),
            ({"probability": 1}, r"`probability` of a cell to be open must lie in \(0, 1\), got 1"),
            ({"mask_space": "grey"}, "`mask_space` must be one of pixel, normalized, got 'grey'"),
        ):
            with pytest.raises(ValueError, match=message):
                self.call(classifier, pixel_values, **options)


class TestScoreCam(SamplingTester):
    method = scorecam

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], batch_size=5)
            states, _ = hidden_state_gradients(classifier, pixel_values, output.target, layer_index(classifier))
            for image, label in enumerate((0, 3)):
                scores = []
                for channel in states[image]:
                    mask = F.interpolate(channel[None, None], size=image_size(family), mode="bilinear")[0, 0]
                    mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else 0 * mask
                    seen = black(classifier) + mask * (pixel_values[image] - black(classifier))
                    with torch.no_grad():
                        scores.append(classifier.model(seen[None]).logits[0, label])
                weights = torch.stack(scores).softmax(0)
                small = sum(weight * channel for weight, channel in zip(weights, states[image]))
                expected = F.interpolate(small[None, None], size=image_size(family), mode="bilinear")[0, 0]
                expected = relu_unless_all_negative(expected)
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=1e-5, rtol=1e-3)

    def test_against_torchcam(self):
        import torchcam.methods

        # activations behind a ReLU, so that clipping before and after enlarging is the same
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet")
        output = self.call(classifier, pixel_values, [0, 3], mask_space="normalized")
        layer = classifier._body.get_submodule("encoder.stages")[-1]
        wrapped = _LogitsOnly(classifier.model)
        with torchcam.methods.ScoreCAM(wrapped, target_layer=layer) as extractor, torch.no_grad():
            wrapped(pixel_values)
            (maps,) = extractor([0, 3], normalized=False)
        enlarged = F.interpolate(maps[:, None], size=(64, 64), mode="bilinear")[:, 0]
        torch.testing.assert_close(min_max(enlarged), output.saliency, atol=1e-4, rtol=0)


class _LogitsOnly(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


class TestOcclusion(SamplingTester):
    method = occlusion
    options = {"window_size": 16, "stride": 12}

    def test_literal(self):
        for family, classifier in self.each_family():
            pixel_values = random_pixels(family)
            output = self.call(classifier, pixel_values, [0, 3], batch_size=5, fill="black")
            height, width = pixel_values.shape[-2:]
            for image, label in enumerate((0, 3)):
                base = softmax_of(classifier, pixel_values[image], label)
                total, count = torch.zeros(height, width), torch.zeros(height, width)
                top = 0
                while True:
                    left = 0
                    while True:
                        window = slice(top, top + 16), slice(left, left + 16)
                        covered = pixel_values[image].clone()
                        covered[:, *window] = black(classifier)
                        total[window] += base - softmax_of(classifier, covered, label)
                        count[window] += 1
                        if left + 16 >= width:
                            break
                        left += 12
                    if top + 16 >= height:
                        break
                    top += 12
                expected = relu_unless_all_negative(total / count)
                torch.testing.assert_close(output.saliency_logits[image], expected, atol=1e-6, rtol=1e-3)

    def test_against_captum(self):
        import captum.attr

        for family in ("vit", "resnet"):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family)
            theirs = captum.attr.Occlusion(lambda pixels, c=classifier: c(pixels).softmax(-1)).attribute(
                pixel_values, (3, 16, 16), strides=(3, 12, 12), baselines=0.0, target=torch.tensor([0, 3])
            )
            output = self.call(classifier, pixel_values, [0, 3], fill="mean")
            expected = torch.stack([relu_unless_all_negative(map_) for map_ in theirs[:, 0].float()])
            torch.testing.assert_close(output.saliency_logits, expected, atol=1e-6, rtol=1e-3)

    def test_options(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        for fill in ("black", "mean", "blur", (0.5, 0.5, 0.5)):
            assert self.call(classifier, pixel_values, fill=fill).saliency.amax() == 1
        assert occlusion(classifier, pixel_values).saliency.amax() == 1
        for options, message in (
            ({"window_size": 33}, "`window_size` 33 is larger than the image, 32 by 32 pixels"),
            ({"window_size": 4, "stride": 5}, "`stride` 5 is larger than `window_size` 4 and misses pixels"),
            ({"stride": 0}, "`stride` must be a whole number of at least 1, got 0"),
            ({"fill": "grey"}, "`fill` must be one of black, mean, blur, white or a colour, got 'grey'"),
        ):
            with pytest.raises(ValueError, match=message):
                self.call(classifier, pixel_values, **options)


class CaptumTester(MethodTester):
    at_pixels = False
    options = {"num_samples": 40, "grid_size": 3}

    def test_shape_and_seed(self):
        classifier, pixel_values = tiny_classifier("convnext"), random_pixels("convnext", size=(64, 96))
        state = torch.get_rng_state()
        reference = self.call(classifier, pixel_values, grid_size=4).saliency
        assert torch.equal(torch.get_rng_state(), state)
        assert reference.shape == (2, 4, 4)
        assert torch.equal(self.call(classifier, pixel_values, grid_size=4).saliency, reference)
        assert not torch.equal(self.call(classifier, pixel_values, grid_size=4, seed=1).saliency, reference)
        with pytest.raises(ValueError, match="`grid_size` 65 asks for more squares per side than the image has"):
            self.call(classifier, pixel_values, grid_size=65)
        with pytest.raises(ValueError, match="`grid_size` must be a whole number of at least 2, got 1"):
            self.call(classifier, pixel_values, grid_size=1)
        with pytest.raises(ValueError, match="`num_samples` must be a whole number of at least 2, got 1"):
            self.call(classifier, pixel_values, num_samples=1)

    def test_missing_extra(self, monkeypatch):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        for module in ("captum", "sklearn"):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, module, None)
                assert importlib.util.find_spec(module) is None
                with pytest.raises(ImportError, match=rf'{module} cannot be imported: pip install "hf-explain\[base'):
                    self.call(classifier, pixel_values)

    def test_finds_the_square_that_matters(self):
        """A classifier that reads one square of nine gives its evidence to that square."""
        classifier = FrozenClassifier(_OneSquare(), image_size=(9, 9))
        output = self.call(classifier, torch.ones(2, 3, 9, 9), 1, num_samples=60)
        assert output.saliency.flatten(1).argmax(1).tolist() == [5, 5]
        rest = output.saliency_logits.flatten(1)[:, [0, 1, 2, 3, 4, 6, 7, 8]]
        assert rest.abs().max() < 0.1 * output.saliency_logits.amax()

    def test_cells_of_a_grid(self):
        """The patches of an image of 4 × 4 of them are the squares of such a grid."""
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit")
        by_size, by_patch = (
            self.call(classifier, pixel_values, 2, **options).saliency
            for options in ({"grid_size": 4}, {"grid": "patch"})
        )
        assert torch.equal(by_patch, by_size)
        assert self.call(classifier, pixel_values, 2, grid=(2, 4)).saliency.shape == (2, 2, 4)
        with pytest.raises(ValueError, match=r"`grid` \(1, 1\) makes the whole image one cell"):
            self.call(classifier, pixel_values, 2, grid=(1, 1))


class _OneSquare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 3, 1)

    def forward(self, pixel_values):
        seen = pixel_values[:, :, 3:6, 6:9].mean((1, 2, 3)) + 0 * self.features(pixel_values).mean((1, 2, 3))
        return torch.stack([torch.zeros_like(seen), seen], 1)


class TestLime(CaptumTester):
    method = lime


class TestKernelShap(CaptumTester):
    method = kernel_shap

    def test_exact_shapley_values(self):
        """With every coalition of four squares sampled many times, the regression is the Shapley value itself."""
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet", 1)
        output = kernel_shap(classifier, pixel_values, 2, grid_size=2, num_samples=600)
        values = torch.zeros(4)
        for order in permutations(range(4)):
            kept = torch.zeros(4)
            before = softmax_of(classifier, black(classifier).expand(3, 64, 64), 2)
            for square in order:
                kept[square] = 1
                mask = kept.view(2, 2).repeat_interleave(32, 0).repeat_interleave(32, 1)
                seen = black(classifier) + mask * (pixel_values[0] - black(classifier))
                after = softmax_of(classifier, seen, 2)
                values[square] += (after - before) / 24
                before = after
        expected = relu_unless_all_negative(values.view(2, 2))
        scale = values.abs().max()
        torch.testing.assert_close(output.saliency_logits[0], expected, atol=0.05 * scale.item(), rtol=0.05)


class _WithOther(torch.nn.Module):
    """A classifier of one logit as one of two classes: the other's logit is 0."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return F.pad(self.model(pixel_values).logits, (0, 1))


@pytest.mark.parametrize(
    "method,options",
    [
        (rise, {"num_masks": 6}),
        (occlusion, {"window_size": 32}),
        (lime, {"num_samples": 12, "grid_size": 2}),
        (kernel_shap, {"num_samples": 12, "grid_size": 2}),
    ],
)
def test_one_logit_is_a_sigmoid(method, options):
    """Its softmax is 1 whatever is hidden, and the map would be one of nothing."""
    alone, pixel_values = tiny_classifier("resnet", num_labels=1), random_pixels("resnet", 2)
    of_two = FrozenClassifier(_WithOther(alone.model), image_size=image_size("resnet"))
    found, expected = (method(classifier, pixel_values, 0, **options) for classifier in (alone, of_two))
    torch.testing.assert_close(found.saliency_logits, expected.saliency_logits, atol=1e-5, rtol=1e-4)
    assert found.saliency.flatten(1).amax(1).eq(1).all()
