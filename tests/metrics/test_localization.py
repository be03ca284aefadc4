import pytest
import torch

from hf_explain.metrics.localization import boxes_to_masks, pointing


def test_by_hand():
    saliency = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[0, 1], [0, 0]]])
    result = pointing(saliency, masks)
    assert result.hit.tolist() == [1, 0.5, 0.25]
    assert result.energy.tolist() == pytest.approx([0.7, 0.5, 0])
    assert result.area.tolist() == [0.5, 0.5, 0.25]
    assert result.protocol == {"region": "masks", "margin": 0, "image_size": [2, 2]}


def test_against_loops():
    generator = torch.Generator().manual_seed(0)
    saliency, masks = torch.rand(4, 9, 7, generator=generator), torch.rand(4, 9, 7, generator=generator) > 0.8
    for margin in (0, 2):
        result = pointing(saliency, masks, margin=margin)
        for index in range(4):
            best, inside, total = (-1.0, 0, 0), 0.0, 0.0
            for row in range(9):
                for column in range(7):
                    value = saliency[index, row, column].item()
                    best = max(best, (value, row, column))
                    total += value
                    inside += value * masks[index, row, column].item()
            near = masks[index, max(0, best[1] - margin) : best[1] + margin + 1]
            near = near[:, max(0, best[2] - margin) : best[2] + margin + 1]
            assert result.hit[index].item() == float(near.any())
            assert result.energy[index].item() == pytest.approx(inside / total, abs=1e-6)


def test_maps_are_resized_to_the_masks():
    masks = torch.zeros(1, 64, 48)
    masks[:, :32] = 1
    result = pointing(torch.tensor([[[1.0], [0.0]]]), masks)
    assert result.hit.tolist() == [1] and result.energy.item() == pytest.approx(7 / 8, abs=1e-3)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
def test_equal_numbers_stay_equal_when_they_are_resized(value):
    """Interpolation tears them apart in the last digit; the share of a constant map on the object is its area."""
    masks = torch.zeros(1, 50, 31)
    masks[:, 10:20, 5:25] = 1
    result = pointing(torch.full((1, 7, 7), value), masks)
    assert result.hit.item() == pytest.approx(result.area.item(), abs=1e-6)


def test_boxes():
    boxes = [torch.tensor([[1, 0, 3, 2], [2, 1, 4, 3]]), torch.tensor([[0.6, 0.4, 2.5, 1.5]])]
    masks = boxes_to_masks(boxes, (3, 4))
    assert masks[0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert masks[1].int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    saliency = torch.rand(2, 3, 4)
    by_box, by_mask = pointing(saliency, boxes=boxes, image_size=(3, 4)), pointing(saliency, masks)
    assert torch.equal(by_box.energy, by_mask.energy) and torch.equal(by_box.hit, by_mask.hit)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({}, "`pointing` needs either `masks` or `boxes`"),
        ({"masks": torch.ones(2, 4, 4), "boxes": [[[0, 0, 1, 1]]] * 2}, "and not both"),
        ({"boxes": [[[0, 0, 1, 1]]] * 2}, r"`image_size` \(height, width\) is needed"),
        (
            {"masks": torch.ones(2, 1, 4, 4)},
            r"`masks` must have shape \(batch_size, height, width\), got \(2, 1, 4, 4\)",
        ),
        ({"masks": torch.ones(3, 4, 4)}, r"`saliency` must have shape .* batch_size 3"),
        ({"masks": torch.zeros(2, 4, 4)}, "The object of image 0 is empty"),
        ({"masks": torch.ones(2, 4, 4), "margin": -1}, "`margin` must be a whole number of at least 0, got -1"),
        ({"masks": torch.ones(2, 4, 4), "margin": "2"}, "`margin` must be a whole number of at least 0, got '2'"),
        ({"masks": torch.ones(2, 4, 4), "margin": 1.5}, "`margin` must be a whole number of at least 0, got 1.5"),
        ({"boxes": [[[0, 0, 1]]] * 2, "image_size": (4, 4)}, r"`boxes` of image 0 must have shape \(num_boxes, 4\)"),
        ({"boxes": [torch.zeros(0, 4)] * 2, "image_size": (4, 4)}, "with at least one box"),
        ({"boxes": [], "image_size": (4, 4)}, "at least one image"),
        ({"boxes": [[[2, 0, 1, 1]]] * 2, "image_size": (4, 4)}, r"right > left .* got \(2.0, 0.0, 1.0, 1.0\)"),
        ({"boxes": [[[8, 8, 9, 9]]] * 2, "image_size": (4, 4)}, "The object of image 0 is empty"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        pointing(torch.rand(2, 3, 3), **arguments)
