"""The oracle: a search written again without batches, what it costs, and that no map does better where it searched."""

import pytest
import torch
from testing_common import random_pixels, tiny_classifier
from testing_methods import MethodTester

from hf_explain.evaluation.explainer import PassCounter
from hf_explain.methods.controls import oracle, random
from hf_explain.metrics.functional import auc_d
from hf_explain.tensors.perturbation import fill_values


def literal_oracle(classifier, image, label, cells, fill):
    """One image, one candidate, one pass at a time, and every mask painted by hand."""
    (down, across), (height, width) = cells, image.shape[-2:]
    filled = fill_values(image[None], fill, classifier.image_mean, classifier.image_std)[0].expand_as(image)

    def probability(left):
        painted = filled.clone()
        for row, column in left:
            rows = slice(row * height // down, (row + 1) * height // down)
            columns = slice(column * width // across, (column + 1) * width // across)
            painted[:, rows, columns] = image[:, rows, columns]
        return classifier(painted[None]).softmax(-1)[0, label].item()

    everything = {(row, column) for row in range(down) for column in range(across)}
    order = []
    while len(order) < len(everything):
        gains = {}
        for cell in everything - set(order):
            first = {*order, cell}
            gains[cell] = probability(first) - probability(everything - first)
        order.append(max(gains, key=gains.get))
    return order


class TestOracle(MethodTester):
    method = oracle
    options = {"grid": (2, 4)}
    at_pixels = True
    bfloat16_correlation = -1.1  # its order is a search's, which a last digit may send another way

    def test_target_matters(self):
        for family, classifier in self.each_family():
            maps = [self.call(classifier, random_pixels(family, 1), label).saliency for label in range(5)]
            assert not all(torch.equal(one, maps[0]) for one in maps), family

    @torch.no_grad()
    def test_finds_what_the_literal_search_finds(self):
        for family, fill in (("vit", "black"), ("resnet", "blur")):
            classifier, pixel_values = tiny_classifier(family), random_pixels(family, 2)
            output = oracle(classifier, pixel_values, [3, 1], grid=(2, 4), fill=fill)
            for maps, image, label in list(zip(output.saliency_logits, pixel_values, (3, 1)))[family == "resnet" :]:
                order = literal_oracle(classifier, image, label, (2, 4), fill)
                down, across = image.shape[-2] // 2, image.shape[-1] // 4
                for place, (row, column) in enumerate(order):
                    cell = maps[row * down : (row + 1) * down, column * across : (column + 1) * across]
                    assert cell.eq(1 - place / 8).all(), (family, order)

    def test_passes_and_ceiling(self):
        classifier, pixel_values = tiny_classifier("vit"), random_pixels("vit", 2)
        with PassCounter(classifier) as passes:
            found = oracle(classifier, pixel_values, grid="patch").saliency  # 4 x 4 patches
        assert passes.full == 2 * (1 + 16 * 17 - 2)
        options = {"grid": "patch", "score": "probability", "fractions": [step / 16 for step in range(17)]}
        options |= {"image_mean": classifier.image_mean, "image_std": classifier.image_std}
        best = auc_d(classifier, pixel_values, found, **options).auc_d
        for seed in range(5):
            other = random(classifier, pixel_values, seed=seed).saliency
            assert (auc_d(classifier, pixel_values, other, **options).auc_d < best).all()
        floor = auc_d(classifier, pixel_values, 1 - found, **options).auc_d
        torch.testing.assert_close(floor, -best, atol=1e-3, rtol=0)

    def test_a_drawn_fill_is_the_images_own(self):
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet", 2)
        together = oracle(classifier, pixel_values, grid=(4, 4), fill="noise", image_ids=[7, 8]).saliency
        alone = oracle(classifier, pixel_values[1:], grid=(4, 4), fill="noise", image_ids=[8]).saliency
        assert torch.equal(together[1:], alone)

    def test_wrong_options(self):
        classifier, pixel_values = tiny_classifier("resnet"), random_pixels("resnet", 1)
        for options, message in (
            ({"grid": "pixel"}, "`grid` of the oracle must be .patch. or .height, width. in cells, not one cell"),
            ({"grid": (1, 1)}, "not one cell, got .1, 1."),
            ({"grid": (3, 4)}, "two whole numbers that divide the 64 × 64 pixels of the images, got .3, 4."),
            ({"grid": "patch"}, "in patches, as ViT and Swin do, which ResNetForImageClassification does not"),
            ({"fill": "photo"}, "`fill` 'photo' is none of the oracle's"),
            ({"fill": "grey"}, "`fill` must be one of black, mean, blur, white"),
            ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ):
            with pytest.raises(ValueError, match=message):
                oracle(classifier, pixel_values, **options)
