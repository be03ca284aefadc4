"""FGVis: the four games, what the defence keeps out, budgets, and every image on its own."""

import math
import types

import pytest
import torch
from testing_common import FAMILIES, random_pixels, tiny_classifier
from testing_methods import MethodTester
from torch import nn

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.methods.fgvis import GAMES, fgvis
from hf_explain.tensors.perturbation import fill_values


class TestFGVis(MethodTester):
    method = staticmethod(fgvis)
    options = {"budget": 6, "rounds": 2}
    at_pixels = True
    # steps are thresholds: where the last bit decides, a batch of another size may decide otherwise
    tolerance = 1e-3
    bfloat16_correlation = 0.9  # and steps in half precision part ways: the gradient's largest entry sets their scale


def score_of(classifier, pixel_values, target):
    with torch.no_grad():
        return classifier(pixel_values).softmax(1).gather(1, target[:, None])[:, 0]


def confident(family):
    """A tiny classifier that is sure of itself, as trained ones are."""
    classifier = tiny_classifier(family)
    for name, parameter in classifier.model.named_parameters():
        if "classifier" in name:
            parameter.data *= 4
    return classifier


def literal_deletion(classifier, image, filled, target, steps, learning_rate, weight):
    """One image without the defence, m itself and one class at a time: the m after every step."""
    kept = torch.ones_like(image)
    masks = []
    for _ in range(steps):
        masks.append(kept.clone())
        leaf = kept.clone().requires_grad_()
        logits = classifier((leaf * image + (1 - leaf) * filled)[None])[0]
        probability = logits.double().softmax(0)[target]
        (gradient,) = torch.autograd.grad(torch.log(probability / (1 - probability)), leaf)
        largest = max(float(g) for g, m in zip(gradient.flatten(), kept.flatten()) if m > 0)
        kept = (kept - learning_rate * (gradient / largest - weight)).clamp(0, 1)
    return masks


def test_steps_are_the_definitions():
    classifier = tiny_classifier("convnext")
    image = random_pixels("convnext", 1)
    filled = fill_values(image, "black", classifier.image_mean, classifier.image_std)
    target = int(classifier(image).argmax())
    masks = literal_deletion(classifier, image[0], filled[0], target, 5, 0.1, 0.02)
    scores = [float(score_of(classifier, (m * image + (1 - m) * filled), torch.tensor([target]))) for m in masks]
    best = min(range(5), key=lambda step: scores[step])
    output = fgvis(classifier, image, goal=1e-6, defence=False, budget=5, l1_weight=0.02, learning_rate=0.1)
    torch.testing.assert_close(output.saliency_logits[0], 1 - masks[best].mean(0), atol=2e-4, rtol=1e-3)
    assert output.explanation_score.item() == pytest.approx(scores[best], rel=1e-3)


class Weighted(nn.Module):
    """Two classes and a row of pixels of 1 whose log-odds are a weighted sum, so that every step can be said."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights)[None])
        self.config = types.SimpleNamespace(num_channels=1, num_labels=2, id2label={0: "one", 1: "other"})

    def forward(self, pixel_values):
        evidence = (pixel_values[:, 0] * self.weights).sum((1, 2))
        return torch.stack([evidence, torch.zeros_like(evidence)], dim=1)


def play(weights, **options):
    """The cost of every pixel in the best mask of one game, and the score it leaves."""
    classifier = FrozenClassifier(Weighted(*weights), image_size=(1, len(weights)))
    pixel_values = torch.ones(1, 1, 1, len(weights))
    output = fgvis(classifier, pixel_values, 0, fill="mean", defence=False, **options)
    return output.saliency_logits.flatten().tolist(), output.explanation_score.item()


def logistic(odds):
    return 1 / (1 + math.exp(-odds))


def test_what_is_removed_already_does_not_set_the_scale():
    """Once the first pixel is gone, the second's gain is measured by itself, or by 1 % of the first's."""
    options = {"l1_weight": 0.0, "learning_rate": 0.5, "goal": 1e-9}
    for gain, scale in ((2.0, 2.0), (0.1, 1.0)):
        costs, _ = play([100.0, gain], budget=4, **options)  # three steps: the fourth only looks
        assert costs == pytest.approx([1, 2 * 0.5 * gain / 100 + 0.5 * gain / scale], rel=1e-4)


def test_nothing_is_given_back_while_the_goal_is_lost():
    """The second pixel's evidence is worth less than its weight: it goes until the goal is lost, and comes back."""
    options = {"mode": "preservation", "l1_weight": 0.5, "learning_rate": 0.5, "goal": logistic(1 + 0.3 * 0.52)}
    expected = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.65, 0.55]  # the steps; at 0.5 the goal is lost
    for steps, best in enumerate([1, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.55], start=1):
        costs, score = play([1.0, 0.3], budget=steps, **options)
        assert costs == pytest.approx([1, best], abs=1e-5) and best in expected[:steps]
        assert score == pytest.approx(logistic(1 + 0.3 * best), abs=1e-6)


def test_goals_by_default_are_shares_of_the_score_of_the_image():
    # the second pixel goes by 0.05 a step, while 0.9 of the score is left; at 0.30 it is 0.897
    costs, score = play([1.0, 0.9], mode="preservation", l1_weight=0.95, learning_rate=1.0, budget=30)
    assert costs == pytest.approx([1, 0.35], abs=1e-4) and score >= 0.9 * logistic(1.9) > logistic(1 + 0.9 * 0.3)
    # the first one goes by 0.1 a step, until 0.05 of the score is left; at 0.8 it is 0.084
    costs, score = play([8.0, -4.0], l1_weight=0.0, learning_rate=0.1, budget=30)
    assert costs == pytest.approx([0.9, 0], abs=1e-4) and score <= 0.05 * logistic(4) < logistic(4 - 8 * 0.8)


def steps_of(weights, **options):
    """What the classifier is asked in every step of one game, `(steps, pixels)`: 1 where a pixel is there."""
    classifier = FrozenClassifier(Weighted(*weights), image_size=(1, len(weights)))
    asked = []
    handle = classifier.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0].detach().flatten()))
    fgvis(classifier, torch.ones(1, 1, 1, len(weights)), 0, fill="mean", defence=False, **options)
    handle.remove()
    return torch.stack(asked[1:-1])  # the image before, the explanation after


def test_weights_are_bisected_geometrically():
    """A step of the pixel that sets the scale is 1 less the weight; each round begins with the whole image."""
    start = (0.001 * 1) ** 0.5
    lost = [start, (0.001 * start) ** 0.5, (0.001 * (0.001 * start) ** 0.5) ** 0.5]
    asked = steps_of([8.0, -4.0], learning_rate=0.1, goal=1e-9, budget=6, rounds=3)
    assert torch.equal(asked[::2], torch.ones(3, 2))
    assert asked[1::2, 0].tolist() == pytest.approx([1 - 0.1 * (1 - weight) for weight in lost], abs=1e-6)
    # a round that starts free of cost ends where its goal is met, here after its second look
    met = [start, start**0.5, start**0.25]
    asked = steps_of([8.0, -4.0], learning_rate=1.0, goal=0.5, budget=30, rounds=3)
    assert torch.equal(asked[::2], torch.ones(3, 2))
    assert asked[1::2, 0].tolist() == pytest.approx(met, abs=1e-6)


def test_noise_is_turned_in_every_step():
    asked = steps_of([1.0, 0.5] * 50, learning_rate=1e-9, noise=0.1, goal=1e-9, budget=5, rounds=1)
    noise = asked - 1
    assert noise.std().item() == pytest.approx(0.1, rel=0.2)
    ordered = noise.sort(dim=1).values
    torch.testing.assert_close(ordered, ordered[:1].expand_as(ordered), atol=1e-6, rtol=0)  # drawn once
    assert all(not torch.equal(one, other) for one, other in zip(noise, noise[1:]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", GAMES)
def test_every_game_on_every_family(mode, family):
    classifier = confident(family)
    pixel_values = random_pixels(family, 2)
    output = fgvis(classifier, pixel_values, mode=mode, budget=16, rounds=2)
    before = score_of(classifier, pixel_values, output.target)
    filled = fill_values(pixel_values, "black", classifier.image_mean, classifier.image_std).expand_as(pixel_values)
    blank = score_of(classifier, filled, output.target)
    torch.testing.assert_close(output.explanation_score, score_of(classifier, output.explanation, output.target))
    if mode == "deletion":
        assert (output.explanation_score < 0.9 * before).all()
    elif mode == "preservation":
        assert (output.explanation_score >= 0.9 * before - 1e-4).all()
        assert (output.saliency_logits.flatten(1).mean(1) <= 1).all()
    elif mode == "generation":
        assert ((output.explanation_score > blank) | (output.explanation_score >= 0.9 * before - 1e-4)).all()
    else:
        assert (output.explanation_score <= torch.maximum(blank, 0.05 * before) + 1e-4).all()
    # valid pixel values: between the image and the fill, everywhere
    low, high = torch.minimum(pixel_values, filled), torch.maximum(pixel_values, filled)
    assert ((output.explanation >= low - 1e-6) & (output.explanation <= high + 1e-6)).all()
    # the map is the mask the explanation was made with, averaged over colours
    removed = (pixel_values - output.explanation) / (pixel_values - filled)
    cost = removed if GAMES[mode].removes else 1 - removed
    clear = ((pixel_values - filled).abs() > 0.05).all(1)
    torch.testing.assert_close(output.saliency_logits[clear], cost.mean(1)[clear], atol=1e-3, rtol=0)


class Difference(nn.Module):
    """Class 1 shows where red exceeds green. A grey image holds no such place; a mask that drops green makes one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.conv.weight.data = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
        self.conv.bias.data.fill_(0.1)
        self.activation = nn.ReLU()

    def forward(self, pixel_values):
        evidence = self.activation(self.conv(pixel_values)).mean((1, 2, 3))
        return torch.stack([torch.full_like(evidence, 10.0), 20 * evidence], dim=1)


def test_defence_keeps_out_evidence_the_image_does_not_hold():
    classifier = FrozenClassifier(Difference(), image_size=(6, 6))
    options = {"mode": "generation", "fill": "mean", "goal": 0.9, "learning_rate": 0.1, "budget": 80, "rounds": 4}
    grey = torch.ones(2, 3, 6, 6)
    assert (score_of(classifier, grey, torch.tensor([1, 1])) < 0.001).all()
    undefended = fgvis(classifier, grey, 1, defence=False, **options)
    assert (undefended.explanation_score >= 0.9).all()
    defended = fgvis(classifier, grey, 1, **options)
    assert (defended.explanation_score < 0.01).all()
    # a red image does hold it, and the defence lets it through
    red = grey * torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert (fgvis(classifier, red, 1, **options).explanation_score >= 0.9).all()


def test_defence_on_a_random_network():
    """The same without anything built in: three layers of random filters, a class no image is anywhere near."""
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 16), (16, 16), (16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    model[-1].weight.data *= 60
    classifier = FrozenClassifier(model, image_size=(12, 12))
    pixel_values = torch.randn(6, 3, 12, 12)
    with torch.no_grad():
        target = classifier(pixel_values).argmin(1)
    options = {"mode": "generation", "fill": "mean", "goal": 0.8, "l1_weight": 0.003, "budget": 100}
    before = score_of(classifier, pixel_values, target)
    undefended = fgvis(classifier, pixel_values, target, defence=False, **options).explanation_score
    defended = fgvis(classifier, pixel_values, target, **options).explanation_score
    assert before.max() < 0.05
    assert undefended.mean() > 0.6 and undefended.min() > 0.25
    assert defended.max() < 0.05


def test_images_stop_on_their_own():
    """Easy images among hard ones end as they do alone, and the batch goes on with the others."""
    classifier = confident("resnet")
    pixel_values = random_pixels("resnet", 3)
    sizes = []
    handle = classifier.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    together = fgvis(classifier, pixel_values, budget=24, rounds=3, goal=0.1)
    handle.remove()
    assert sizes[0] == 3 and sizes[-1] == 3 and min(sizes) < 3
    for index in range(3):
        alone = fgvis(classifier, pixel_values[index : index + 1], budget=24, rounds=3, goal=0.1)
        torch.testing.assert_close(alone.saliency[0], together.saliency[index], atol=1e-3, rtol=0)


def test_weight_is_bisected_per_image():
    """More rounds never cost an image anything, and a fixed weight is played as given."""
    classifier = confident("resnet")
    pixel_values = random_pixels("resnet", 3)
    costs = []
    for rounds in (1, 2, 4):
        output = fgvis(classifier, pixel_values, budget=12 * rounds, rounds=rounds, goal=0.3)
        met = output.explanation_score <= 0.3 + 1e-5
        costs.append(torch.where(met, output.saliency_logits.flatten(1).mean(1), 2.0))
    assert (costs[1] <= costs[0] + 1e-6).all() and (costs[2] <= costs[1] + 1e-6).all()
    heavy, light = (
        fgvis(classifier, pixel_values, budget=4, l1_weight=weight, goal=1e-6).saliency_logits for weight in (0.9, 0.0)
    )
    assert (heavy.flatten(1).mean(1) < light.flatten(1).mean(1)).all()


def test_budget_in_iterations():
    classifier = tiny_classifier("vit")
    pixel_values = random_pixels("vit", 2)
    calls = []
    handle = classifier.register_forward_pre_hook(lambda module, inputs: calls.append(torch.is_grad_enabled()))
    for budget, rounds in ((1, 4), (5, 1), (7, 2)):
        calls.clear()
        fgvis(classifier, pixel_values, budget=budget, rounds=rounds, goal=1e-9, defence=False)
        # rounds of equal length; the images once before and the explanations once after
        assert len(calls) == budget // min(rounds, budget) * min(rounds, budget) + 2
    handle.remove()


def test_budget_in_seconds(monkeypatch):
    classifier = tiny_classifier("vit")
    clock = iter(range(1000))
    monkeypatch.setattr("hf_explain.methods.fgvis.time.monotonic", lambda: float(next(clock)))
    steps = []
    handle = classifier.register_forward_pre_hook(lambda module, inputs: steps.append(1))
    output = fgvis(classifier, random_pixels("vit", 2), budget=500, max_seconds=3, goal=1e-9, defence=False)
    handle.remove()
    assert len(steps) == 3 + 2
    assert output.saliency_logits.max() > 0


@pytest.mark.parametrize("fill", ["black", "blur", "mean", (0.5, 0.1, 0.9)])
def test_fills(fill):
    classifier = confident("resnet")
    pixel_values = random_pixels("resnet", 2)
    output = fgvis(classifier, pixel_values, fill=fill, budget=6, rounds=1)
    filled = fill_values(pixel_values, fill, classifier.image_mean, classifier.image_std).expand_as(pixel_values)
    low, high = torch.minimum(pixel_values, filled), torch.maximum(pixel_values, filled)
    assert ((output.explanation >= low - 1e-6) & (output.explanation <= high + 1e-6)).all()
    assert not torch.equal(output.explanation, pixel_values)


def test_noise_is_seeded_and_belongs_to_the_image():
    classifier = tiny_classifier("resnet")
    pixel_values = random_pixels("resnet", 2)
    options = {"noise": 0.1, "budget": 6, "rounds": 1, "goal": 1e-9}
    first = fgvis(classifier, pixel_values, 0, **options).saliency_logits
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(first, fgvis(classifier, pixel_values, 0, **options).saliency_logits)
    assert not torch.equal(first, fgvis(classifier, pixel_values, 0, seed=1, **options).saliency_logits)
    quiet = fgvis(classifier, pixel_values, 0, **{**options, "noise": 0}).saliency_logits
    assert not torch.equal(first, quiet)
    assert torch.equal(quiet, fgvis(classifier, pixel_values, 0, seed=1, **{**options, "noise": 0}).saliency_logits)
    alone = fgvis(classifier, pixel_values[1:], 0, **options).saliency_logits
    torch.testing.assert_close(alone[0], first[1], atol=1e-3, rtol=1e-3)


def test_bfloat16():
    classifier = FrozenClassifier(tiny_classifier("vit").model.bfloat16())
    pixel_values = random_pixels("vit", 2).bfloat16()
    output = fgvis(classifier, pixel_values, budget=4, rounds=1)
    assert output.explanation.dtype == torch.bfloat16
    assert torch.isfinite(output.saliency).all() and output.saliency.max() == 1


def test_progress_bar_counts_steps(capsys):
    classifier = tiny_classifier("vit")
    fgvis(classifier, random_pixels("vit", 1), budget=4, rounds=2, goal=1e-9, progress=True)
    assert "4/4" in capsys.readouterr().err
    fgvis(classifier, random_pixels("vit", 1), budget=4, rounds=2, goal=1e-9)
    assert capsys.readouterr().err == ""


class Interrupting(nn.Module):
    """A classifier that stops its fourth call, by Ctrl-C or an error."""

    def __init__(self, error):
        super().__init__()
        self.conv, self.activation, self.error, self.calls = nn.Conv2d(3, 4, 3), nn.ReLU(), error, 0

    def forward(self, pixel_values):
        self.calls += 1
        if self.calls == 4:
            raise self.error
        return self.activation(self.conv(pixel_values)).mean((-2, -1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_classifier_is_restored_after_an_interruption(error):
    classifier = FrozenClassifier(Interrupting(error), image_size=(8, 8))
    classifier._num_labels = 4
    with pytest.raises(error):
        fgvis(classifier, torch.randn(2, 3, 8, 8), 1, budget=50, goal=1e-9)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())


class NotANumberLater(nn.Module):
    """Finite on the images; its gradient is not for any image whose first pixel has moved."""

    def __init__(self):
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, pixel_values):
        logits = self.activation(self.conv(pixel_values)).mean((-2, -1))
        return logits + torch.where(pixel_values[:, :1, 0, 0] == 1, 0.0, math.nan)


def test_gradients_that_are_not_finite_are_named():
    classifier = FrozenClassifier(NotANumberLater(), image_size=(8, 8))
    classifier._num_labels = 4
    torch.manual_seed(0)
    pixel_values = torch.randn(3, 3, 8, 8)
    pixel_values[:, :, 0, 0] = 1
    pixel_values[:2] = 1  # no gain anywhere but 0: these two never move
    pixel_values[2, 0, 0, 0] = 2
    with pytest.raises(ValueError, match="gradient of image 2 is not finite at iteration 1;"):
        fgvis(classifier, pixel_values, 1, budget=10, goal=1e-9)


def test_classifier_without_nonlinearities():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, pixel_values):
            return self.conv(pixel_values).mean((-2, -1))

    classifier = FrozenClassifier(Linear(), image_size=(8, 8))
    pixel_values = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="Linear has no nonlinearity to defend.*pass defence=False"):
        fgvis(classifier, pixel_values)
    assert fgvis(classifier, pixel_values, budget=3, defence=False).saliency.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "removal"}, ValueError, "`mode` must be one of deletion, preservation, generation, repression"),
        ({"fill": "grey"}, ValueError, "`fill` must be one of black, mean, blur, white or a colour, got 'grey'"),
        ({"fill": (0, 2, 0)}, ValueError, "`fill` as a colour needs 3 numbers"),
        ({"budget": 0}, ValueError, "`budget` must be a whole number of at least 1, got 0"),
        ({"budget": 2.5}, ValueError, "`budget` must be a whole number of at least 1, got 2.5"),
        ({"budget": True}, ValueError, "`budget` must be a whole number of at least 1, got True"),
        ({"rounds": 0}, ValueError, "`rounds` must be a whole number of at least 1, got 0"),
        ({"max_seconds": 0}, ValueError, "`max_seconds` must be above 0, or None, got 0"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be above 0 and finite, got 0.0"),
        ({"learning_rate": math.nan}, ValueError, "`learning_rate` must be above 0 and finite, got nan"),
        ({"l1_weight": 1.0}, ValueError, r"`l1_weight` .* must lie in \[0, 1\), .* got 1.0"),
        ({"goal": 0}, ValueError, r"`goal` is a softmax and must lie in \(0, 1\), or None, got 0"),
        ({"goal": "low"}, TypeError, "`goal` must be a number or None, got 'low'"),
        ({"max_seconds": "9"}, TypeError, "`max_seconds` must be a number or None, got '9'"),
        ({"learning_rate": None}, TypeError, "`learning_rate` must be a number, got None"),
        ({"noise": -1}, ValueError, "`noise` must be at least 0 and finite, got -1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        fgvis(tiny_classifier("vit"), random_pixels("vit", 1), **options)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="`classifier` has one class.*needs two"):
        fgvis(tiny_classifier("vit", num_labels=1), random_pixels("vit", 1))
