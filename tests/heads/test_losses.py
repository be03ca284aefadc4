"""The loss terms: the released values, every formula again as plain loops, and where they must not break."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_explain.heads.losses import (
    area_loss,
    correlation_loss,
    cross_entropy,
    ranked_masks,
    removal_loss,
    variation_loss,
)
from hf_explain.heads.modeling_mask_trained import MaskTrainedConfig


GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "tame_loss.safetensors")
RELEASED = MaskTrainedConfig()  # its defaults are the constants of the released code


def close(found, expected):
    torch.testing.assert_close(found.reshape(1), expected, rtol=1e-5, atol=0)


def test_released_terms_own():
    masks, batch_size = GOLDEN["masks"], len(GOLDEN["labels"])
    terms = (
        RELEASED.ce_weight * cross_entropy(GOLDEN["logits"], GOLDEN["labels"]),
        RELEASED.area_weight * area_loss(masks, RELEASED.area_power, RELEASED.area_epsilon),
        RELEASED.variation_weight * variation_loss(masks, batch_size, RELEASED.border_weight),
    )
    for found, name in zip(terms, ("weighted_cross_entropy", "weighted_area", "weighted_variation")):
        close(found, GOLDEN[name])
    close(sum(terms), GOLDEN["total"])


def test_released_terms_batch():
    masks, batch_size = GOLDEN["pair_masks"], len(GOLDEN["labels"])
    terms = (
        RELEASED.ce_weight * cross_entropy(GOLDEN["logits"], GOLDEN["labels"]),
        RELEASED.area_weight * area_loss(masks, RELEASED.area_power, RELEASED.area_epsilon),
        RELEASED.variation_weight * variation_loss(masks, batch_size, RELEASED.border_weight),
    )
    for found, name in zip(terms, ("weighted_cross_entropy", "pair_weighted_area", "pair_weighted_variation")):
        close(found, GOLDEN[name])
    close(sum(terms), GOLDEN["pair_total"])


def literal_area(maps, power, epsilon):
    values = maps.flatten().tolist()
    return sum((value + epsilon) ** power for value in values) / len(values)


def literal_variation(maps, batch_size, border_weight):
    total = 0.0
    for one in maps.reshape(-1, *maps.shape[-2:]).tolist():
        height, width = len(one), len(one[0])
        for i in range(height):
            for j in range(width):
                if i + 1 < height:
                    total += (one[i + 1][j] - one[i][j]) ** 2
                if j + 1 < width:
                    total += (one[i][j + 1] - one[i][j]) ** 2
                # a corner lies on two borders, and counts for both
                edges = (i == 0) + (i == height - 1) + (j == 0) + (j == width - 1)
                total += border_weight * edges * one[i][j] ** 2
    return total / (2 * batch_size)


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 4, 9), (2, 2, 5, 3), (1, 1, 6), (1, 5, 1), (1, 1, 1)])
def test_terms_against_plain_loops(shape):
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for power, epsilon in ((0.3, 5e-4), (1.0, 1e-3)):
        assert area_loss(maps, power, epsilon).item() == pytest.approx(literal_area(maps, power, epsilon))
    for border_weight in (0.3, 0.0, 2.0):
        found = variation_loss(maps, 5, border_weight).item()
        assert found == pytest.approx(literal_variation(maps, 5, border_weight))


def test_gradients():
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: area_loss(m, 0.3, 5e-4), maps)
    assert torch.autograd.gradcheck(lambda m: variation_loss(m, 2, 0.3), maps)
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: removal_loss(values, torch.tensor([0, 3, 1])), logits)


def test_area_gradient_is_finite_at_zero():
    maps = torch.zeros(1, 2, 2, requires_grad=True)
    area_loss(maps, RELEASED.area_power, RELEASED.area_epsilon).backward()
    assert maps.grad.isfinite().all() and (maps.grad > 0).all()


def test_removal_is_minus_log_of_one_minus_p():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    p = logits.softmax(1)[torch.arange(6), target]
    torch.testing.assert_close(removal_loss(logits, target), -(1 - p).log().mean())


def test_removal_where_p_rounds_to_one():
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 300.0, 0.0]], requires_grad=True)
    loss = removal_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(((200 - math.log(2)) + (300 - math.log(2))) / 2, rel=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all() and (logits.grad[[0, 1], [0, 1]] > 0).all()
    gone = torch.tensor([[-200.0, 0.0, 0.0]])
    assert removal_loss(gone, torch.tensor([0])).item() == 0
    assert logits.detach()[0].tolist() == [200.0, 0.0, 0.0]  # the input is not touched


def test_ranked_masks_keep_the_most_salient_part_asked_for():
    maps = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    area = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    for scaled in (maps, 1000 * maps + 7, maps / 50):  # order and contrast alone count
        masks = ranked_masks(scaled, area, 0.3)
        for one, part, mask in zip(maps, area, masks, strict=True):
            threshold = one.flatten().quantile(1 - part)
            expected = torch.sigmoid((one - threshold) / (0.3 * one.std(correction=0)))
            torch.testing.assert_close(mask, expected, rtol=1e-4, atol=1e-6)
    hard = ranked_masks(maps, area, 1e-6)
    assert [(mask > 0.5).sum().item() for mask in hard] == [0, 12, 39]  # the last one lies on the threshold


def test_ranked_masks_of_a_map_without_contrast():
    maps = torch.full((2, 3, 3), 4.0, requires_grad=True)
    masks = ranked_masks(maps, torch.tensor([0.2, 0.9]), 0.3)
    assert (masks == 0.5).all()
    masks.sum().backward()
    assert maps.grad.isfinite().all()


def test_gradient_of_ranked_masks():
    maps = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    area = torch.tensor([0.35, 0.8], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: ranked_masks(values, area, 0.3), maps)


def literal_correlation(one, other):
    """Pearson's r of two lists of numbers."""
    mean, other_mean = sum(one) / len(one), sum(other) / len(other)
    together = sum((a - mean) * (b - other_mean) for a, b in zip(one, other, strict=True))
    return together / math.sqrt(sum((a - mean) ** 2 for a in one) * sum((b - other_mean) ** 2 for b in other))


def test_correlation_by_hand():
    """Of the 2 × 2 maps 0 1 / 2 3 and 1 0 / 2 3 four of the five halves of the variance are shared; then turned."""
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[0.0, 1.0], [2.0, 3.0]]], dtype=torch.float64)
    reference = torch.tensor([[[1.0, 0.0], [2.0, 3.0]], [[3.0, 2.0], [1.0, 0.0]]], dtype=torch.float64)
    assert correlation_loss(maps[:1], reference[:1]).item() == pytest.approx(1 - 4 / 5, abs=1e-6)
    assert correlation_loss(maps[1:], reference[1:]).item() == pytest.approx(2, abs=1e-6)
    assert correlation_loss(maps, reference).item() == pytest.approx((0.2 + 2) / 2, abs=1e-6)


def test_correlation_against_plain_loops():
    generator = torch.Generator().manual_seed(0)
    maps, reference = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64).unbind()
    pairs = zip(maps.flatten(1).tolist(), reference.flatten(1).tolist(), strict=True)
    expected = sum(1 - literal_correlation(*pair) for pair in pairs) / 4
    # brightness and contrast do not count
    for scaled, other in ((maps, reference), (100 * maps + 7, reference), (maps, reference / 50 - 3)):
        assert correlation_loss(scaled, other).item() == pytest.approx(expected, rel=1e-4)
    assert correlation_loss(maps, maps).item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.gradcheck(lambda values: correlation_loss(values, reference), maps.requires_grad_())


def test_correlation_of_a_map_without_contrast():
    maps, reference = torch.full((1, 3, 3), 4.0, requires_grad=True), torch.arange(9.0).view(1, 3, 3)
    loss = correlation_loss(maps, reference)
    loss.backward()
    assert loss.item() == 1 and maps.grad.isfinite().all() and maps.grad.abs().max() > 0
    assert correlation_loss(reference, torch.zeros(1, 3, 3)).item() == 1


def test_cross_entropy_in_float32_whatever_comes():
    logits, target = torch.randn(4, 6), torch.tensor([1, 0, 5, 2])
    expected = -logits.bfloat16().float().log_softmax(1)[torch.arange(4), target].mean()
    found = cross_entropy(logits.bfloat16(), target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
