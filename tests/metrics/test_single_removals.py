"""Single deletion by hand, and whatever the batch."""

import types

import pytest
import torch
from testing_common import random_pixels, tiny_classifier

from hf_explain.evaluation.explainer import PassCounter
from hf_explain.metrics.functional import single_deletion
from hf_explain.tensors.sharing import sharing


HALF = {"image_mean": (0.5,), "image_std": (0.5,)}


def brightness(pixel_values):
    """Two classes: as bright as the sum, and 0."""
    total = pixel_values.sum((1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], dim=1)


def test_the_fall_and_its_order_by_hand():
    """Four patches of one row of two pixels each, worth 7, 1, 3, 2."""
    images = torch.tensor([[[[4.0, 3.0, 1.0, 0.0], [3.0, 0.0, 0.0, 2.0]]]])
    images = images.view(1, 1, 2, 2, 2).reshape(1, 1, 2, 4)  # two rows, two patches each
    saliency = torch.tensor([[[0.9, 0.1], [0.4, 0.5]]])  # ranks 4, 1, 2, 3 against 4, 1, 3, 2
    result = single_deletion(brightness, images, saliency, patches=2, target=0)
    assert result.fall.tolist() == [[7, 1, 3, 2]]
    assert result.correlation.item() == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert single_deletion(brightness, images, -saliency + 1, patches=2, target=0).correlation < 0
    other = single_deletion(brightness, images, saliency, patches=2, target=1)  # its logit does not move
    assert other.fall.tolist() == [[0] * 4] and other.correlation.item() == 0
    probability = single_deletion(brightness, images, saliency, patches=2, target=1, score="probability")
    expected = torch.sigmoid(torch.tensor(-13.0)) - torch.sigmoid(torch.tensor([-6.0, -12.0, -10.0, -11.0]))
    torch.testing.assert_close(probability.fall[0], expected, atol=1e-6, rtol=1e-3)
    assert probability.correlation.item() == pytest.approx(-result.correlation.item())
    black = single_deletion(brightness, images, saliency, patches=2, fill="black", **HALF)  # -1 in pixel values
    assert black.fall.tolist() == [[9, 3, 5, 4]]
    flat = single_deletion(brightness, images, torch.ones(1, 1, 1), patches=2)
    assert flat.correlation.item() == 0 and flat.saliency.tolist() == [[1] * 4]


def test_what_a_result_says_of_its_domain():
    images, saliency = torch.rand(1, 1, 4, 4), torch.rand(1, 4, 4)

    def said(config, **options):
        predict = type("Predict", (), {"__call__": lambda self, images: brightness(images), "config": config})()
        protocol = single_deletion(predict, images, saliency, patches=2, **options, **HALF).protocol
        assert protocol["in_domain"] == ("not in-domain" not in protocol["note"])
        return protocol["in_domain"]

    tuned = types.SimpleNamespace(removals={"patches": 2, "fill": "mean"})
    assert said(tuned) and not said(None) and not said(types.SimpleNamespace())
    assert not said(tuned, fill="black")  # another removal than it was trained on
    assert not said(types.SimpleNamespace(removals={"patches": 4, "fill": "mean"}))


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_numbers_do_not_depend_on_the_batch(fill):
    generator = torch.Generator().manual_seed(0)
    images, saliency = torch.rand(5, 1, 8, 8, generator=generator), torch.rand(5, 3, 3, generator=generator)
    options = {"fill": fill, "score": "probability", **HALF}
    whole = single_deletion(brightness, images, saliency, image_ids=range(5), **options)
    alone = [
        single_deletion(brightness, images[i : i + 1], saliency[i : i + 1], image_ids=[i], max_batch=3, **options)
        for i in range(5)
    ]
    torch.testing.assert_close(torch.cat([one.fall for one in alone]), whole.fall)
    torch.testing.assert_close(torch.cat([one.correlation for one in alone]), whole.correlation)


def test_removals_are_run_once_for_all_maps_and_counted_for_each(monkeypatch):
    classifier, images = tiny_classifier("resnet"), random_pixels("resnet", 3)
    sent, forward = [], type(classifier).forward
    monkeypatch.setattr(
        type(classifier), "forward", lambda self, images: sent.append(len(images)) or forward(self, images)
    )
    logits = classifier(images)
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    apart = [single_deletion(classifier, images, one, logits=logits, patches=2) for one in maps]
    assert sent == [3, 12, 12]
    counts = []
    with sharing():
        for one, alone in zip(maps, apart):
            with PassCounter(classifier) as counter:
                found = single_deletion(classifier, images, one, logits=logits.clone(), patches=2)
            counts.append(counter.full)
            assert torch.equal(found.fall, alone.fall) and torch.equal(found.correlation, alone.correlation)
    assert sent == [3, 12, 12, 12] and counts == [12, 12]


def test_what_cannot_be_cut():
    images, saliency = torch.rand(1, 1, 8, 6), torch.rand(1, 2, 2)
    with pytest.raises(ValueError, match="`patches` must divide the 8 × 6 pixels of the images .*, got 4"):
        single_deletion(brightness, images, saliency)
    with pytest.raises(ValueError, match="`patches` must be a whole number of at least 2, got 1"):
        single_deletion(brightness, images, saliency, patches=1)
    with pytest.raises(ValueError, match="`score` must be one of logit, probability, got 'accuracy'"):
        single_deletion(brightness, images, saliency, patches=2, score="accuracy")
