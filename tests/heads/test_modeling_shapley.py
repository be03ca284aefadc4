"""The Shapley head: enumerated values as the oracle, literal loss, and the tester every head passes."""

import copy
import itertools
import math

import pytest
import torch
from testing_common import FAMILIES, ExplainerTesterMixin, random_pixels, tiny_classifier, tiny_model
from transformers import ViTForImageClassification

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.shapley import ShapleyConfig, ShapleyForSaliency
from hf_explain.heads.shapley.modeling_shapley import coalitions
from hf_explain.tensors.perturbation import blend, fill_values
from hf_explain.tensors.randomness import image_keys


class TestShapley(ExplainerTesterMixin):
    head_class = ShapleyForSaliency
    variants = {
        "default": {"num_coalitions": 4, "hidden_size": 8},
        "cells": {"grid": (2, 2), "fill": "black", "num_coalitions": 2, "hidden_size": 8},
    }

    @pytest.mark.slow  # ten seconds, and the export of heads is tested with the others
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_exported_is_one_graph_for_any_batch_and_class(self, kind):
        super().test_exported_is_one_graph_for_any_batch_and_class(kind)

    def expected_size(self, head, pixel_values):
        return tuple(head.config.grid) if head.config.grid else super().expected_size(head, pixel_values)


def scores(head, pixel_values, sets, target, grid):
    """The target's softmax of one image with each of some sets of cells, which are squares, kept."""
    size = pixel_values.shape[-1]
    masks = sets.view(-1, *grid).repeat_interleave(size // grid[0], 1).repeat_interleave(size // grid[1], 2)
    filled = fill_values(pixel_values, head.config.fill, head.config.image_mean, head.config.image_std)
    with torch.no_grad():
        logits = head.backbone(blend(pixel_values.expand(len(sets), -1, -1, -1), masks, filled))
    return logits.softmax(-1)[:, target].double()


def nothing_of(classifier):
    """The softmax of an image of the mean colour, of the classifier's own size."""
    return classifier(torch.zeros(1, 3, *classifier.image_size)).softmax(-1)[0]


def enumerated(head, pixel_values, target, grid):
    """Shapley values by their definition, over all sets of cells."""
    count = math.prod(grid)
    sets = torch.tensor(list(itertools.product([False, True], repeat=count)))
    worth = dict(zip(map(tuple, sets.tolist()), scores(head, pixel_values, sets, target, grid).tolist()))
    values = []
    for cell in range(count):
        value = 0.0
        for kept in worth:
            if not kept[cell]:
                size = sum(kept)
                weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                value += weight * (worth[(*kept[:cell], True, *kept[cell + 1 :])] - worth[kept])
        values.append(value)
    return torch.tensor(values)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_add_up_for_every_class(family):
    head = ShapleyForSaliency.from_classifier(tiny_classifier(family), hidden_size=8)
    pixel_values = random_pixels(family)
    for target in range(head.config.num_labels):
        output = head(pixel_values, target=target)
        expected = output.logits.softmax(-1)[:, target] - nothing_of(head.backbone)[target]
        torch.testing.assert_close(output.contributions.sum((1, 2)), expected, rtol=0, atol=1e-5)
        for values, saliency in zip(output.contributions, output.saliency, strict=True):
            shown = values.clamp(min=0) if values.max() > 0 else values - values.min()
            torch.testing.assert_close(saliency, (shown - shown.min()) / (shown.max() - shown.min()))


def test_training_ends_at_the_enumerated_shapley_values():
    config = copy.deepcopy(tiny_model("vit").config)
    config.image_size = 24  # nine patches
    torch.manual_seed(0)
    classifier = FrozenClassifier(ViTForImageClassification(config))
    head = ShapleyForSaliency.from_classifier(classifier, num_coalitions=2, feature_layers=[0], hidden_size=32).train()
    image = 3 * torch.randn(1, 3, 24, 24)
    target = int(classifier(image).argmax())
    exact = enumerated(head, image, target, (3, 3))
    assert exact.sum() == pytest.approx(float(head(image, target=target).contributions.sum()), abs=1e-5)
    assert exact.min() < 0 < exact.max()  # values of both signs
    batch = image.expand(24, -1, -1, -1)  # each copy has sets of its own
    optimizer = torch.optim.Adam([one for one in head.parameters() if one.requires_grad], lr=3e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, total_iters=200)
    for _ in range(200):
        head(batch, target=target, return_loss=True).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = head(image, target=target, return_loss=True).contributions.flatten().double()
    assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.999
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("fill", ["mean", "black", "white"])
def test_the_loss_is_that_of_the_paper(fill):
    head = ShapleyForSaliency.from_classifier(
        tiny_classifier("vit"), grid=(2, 2), fill=fill, num_coalitions=6, hidden_size=8
    )
    pixel_values, target = random_pixels("vit", 3), torch.tensor([0, 3, 1])
    output = head(pixel_values, target=target, return_loss=True)
    keys = image_keys(pixel_values, (torch.arange(3) / 3 * 2**53).long())  # validation's, the same every time
    errors = []
    for image, sets in enumerate(coalitions(keys, 3, 4)):
        values = output.contributions[image].flatten()
        asked = torch.cat([torch.zeros(1, 4).bool(), sets, ~sets])
        nothing, *found = scores(head, pixel_values[image : image + 1], asked, target[image], (2, 2))
        for kept, score in zip([*sets, *~sets], found, strict=True):
            errors.append((score - nothing - values[kept].sum()) ** 2)
    assert output.loss.item() == pytest.approx(float(sum(errors) / len(errors)), rel=1e-4)
    assert output.loss_terms["shapley"] == output.loss and output.loss.requires_grad
    assert torch.equal(head(pixel_values, target=target, return_loss=True).loss, output.loss)


def test_coalitions_are_drawn_by_the_shapley_kernel():
    count = 6
    sets = coalitions(torch.arange(40) * 7919, 500, count).flatten(0, 1)
    sizes = sets.sum(-1)
    kernel = torch.tensor([1 / (size * (count - size)) for size in range(1, count)])
    found = torch.bincount(sizes, minlength=count)[1:] / len(sets)
    torch.testing.assert_close(found, kernel / kernel.sum(), rtol=0, atol=0.015)
    assert sizes.min() == 1 and sizes.max() == count - 1
    # any set of a size is as likely as any other
    pairs = sets[sizes == 2].long() @ (2 ** torch.arange(count))
    assert len(pairs.unique()) == 15
    assert pairs.bincount()[pairs.unique()].min() > 0.7 * len(pairs) / 15
    assert coalitions(torch.tensor([3]), 20, 2).sum(-1).unique().tolist() == [1]


def test_no_gradient_goes_through_the_classifier():
    head = ShapleyForSaliency.from_classifier(tiny_classifier("resnet"), num_coalitions=2, hidden_size=8).train()
    seen = []
    hook = head.backbone.model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    head(random_pixels("resnet"), return_loss=True).loss.backward()
    hook.remove()
    assert seen == [False]  # about both sets; the first pass stops at the layers it taps


def test_another_classifier_is_measured_anew(tmp_path):
    head = ShapleyForSaliency.from_classifier(tiny_classifier("resnet"), hidden_size=8)
    head.save_pretrained(tmp_path)
    other = tiny_classifier("resnet", seed=5)
    loaded = ShapleyForSaliency.from_pretrained(tmp_path, classifier=other, verify_fingerprint=False)
    pixel_values = random_pixels("resnet")
    output = loaded(pixel_values, target=2)
    expected = output.logits.softmax(-1)[:, 2] - nothing_of(other)[2]
    torch.testing.assert_close(output.contributions.sum((1, 2)), expected, rtol=0, atol=1e-5)
    assert not torch.equal(loaded.nothing, head.nothing)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_coalitions", 3, "`num_coalitions` must be even, sets and their rests, got 3"),
        ("num_coalitions", 0, "`num_coalitions` must be"),
        ("fill", "blur", "`fill` must be one of mean, black, white, got 'blur'"),
        ("grid", (1, 1), r"`grid` \(1, 1\) makes the whole image one cell"),
        ("grid", "patch", r"`grid` must be \(height, width\) in cells, two whole numbers, got 'patch'"),
        ("hidden_size", 0, "`hidden_size` must be"),
    ],
)
def test_fields_that_no_head_can_work_with_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        ShapleyConfig(**{field: value})


def test_cells_must_divide_the_image():
    with pytest.raises(ValueError, match=r"`grid` must be .* divide the 32 × 32 pixels .*, got \(7, 3\)"):
        ShapleyForSaliency.from_classifier(tiny_classifier("vit"), grid=(7, 3))
