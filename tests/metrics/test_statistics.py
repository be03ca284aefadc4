import math

import pytest
import torch

from hf_explain.metrics.statistics import bootstrap_interval, paired_difference, rank_agreement, win_rate


def test_win_rate_by_hand():
    scores, other = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 1.0, 0.0])
    assert win_rate(scores, other, higher_is_better=True).win.tolist() == [0, 0.5, 1, 1]
    assert win_rate(scores, other, higher_is_better=True).rate.item() == 62.5
    assert win_rate(scores, other, higher_is_better=False).rate.item() == 37.5
    assert win_rate([1], [0], higher_is_better=True).protocol == {"higher_is_better": True, "ties": "half"}


@pytest.mark.parametrize(
    "scores,other,message",
    [
        ([1.0, 2.0], [1.0], r"the same images, got shapes \(2,\) and \(1,\)"),
        ([[1.0]], [[1.0]], "one number per image each"),
        ([], [], "`scores` must hold one number per image of at least one image"),
        ([math.nan], [1.0], "`scores` must be finite"),
        ([1.0], [math.inf], "`other` must be finite"),
    ],
)
def test_bad_win_rate(scores, other, message):
    with pytest.raises(ValueError, match=message):
        win_rate(scores, other, higher_is_better=True)


def test_bootstrap_against_a_loop():
    values = torch.rand(23, 2, generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(23, (200, 23), generator=torch.Generator().manual_seed(7))
    means = torch.stack([torch.stack([values[index] for index in row]).double().mean(0) for row in drawn])
    low, high = bootstrap_interval(values, confidence=0.9, resamples=200, seed=7)
    torch.testing.assert_close(low, torch.quantile(means, 0.05, dim=0))
    torch.testing.assert_close(high, torch.quantile(means, 0.95, dim=0))


def test_bootstrap_of_normal_numbers_is_the_normal_interval():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap_interval(values, resamples=2000)
    half = 1.96 * values.std().item() / math.sqrt(4000)
    assert low.item() == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert high.item() == pytest.approx(values.mean().item() + half, abs=0.1 * half)


def test_bootstrap_is_seeded_and_blocks_change_nothing(monkeypatch):
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values, resamples=101)
    assert whole == bootstrap_interval(values, resamples=101)
    assert whole != bootstrap_interval(values, resamples=101, seed=1)
    monkeypatch.setattr("hf_explain.metrics.statistics._RESAMPLE_BLOCK", 333)
    blocks = bootstrap_interval(values, resamples=101)
    torch.testing.assert_close(torch.stack(blocks), torch.stack(whole))
    assert bootstrap_interval(torch.ones(3), resamples=1) == (1, 1)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"values": torch.tensor([])}, "`values` must hold one number per image of at least one image"),
        ({"values": torch.tensor([1.0, math.nan])}, "`values` must be finite"),
        ({"values": torch.ones(2), "confidence": 1}, r"`confidence` must lie in \(0, 1\), got 1"),
        ({"values": torch.ones(2), "resamples": 0}, "`resamples` must be a whole number of at least 1, got 0"),
        ({"values": torch.ones(2), "seed": "x"}, "`seed` must be a whole number of at most 64 bits, .* got 'x'"),
    ],
)
def test_bad_bootstrap(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**arguments)


def test_paired_difference_against_the_interval_of_the_difference():
    first, second = torch.rand(2, 40, 3, generator=torch.Generator().manual_seed(0)).double()
    found = paired_difference(first, second, higher_is_better=False, resamples=300, seed=3)
    low, high = bootstrap_interval(second - first, resamples=300, seed=3)
    assert torch.equal(found.low, low) and torch.equal(found.high, high)
    torch.testing.assert_close(found.difference, (second - first).mean(0))
    assert found.protocol == {"higher_is_better": False, "confidence": 0.95, "resamples": 300, "seed": 3}
    with pytest.raises(ValueError, match=r"numbers of the same images, got shapes \(40, 3\) and \(39, 3\)"):
        paired_difference(first, second[:39], higher_is_better=True)


def test_rank_agreement_by_hand():
    up = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_agreement(up, 10 * up) == 1 and rank_agreement(up, -up) == -1
    # one pair of six is the other way round: (5 - 1) / 6
    assert rank_agreement(up, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(4 / 6)
    # one pair tied by the second: 5 / sqrt(6 * 5)
    assert rank_agreement(up, torch.tensor([1.0, 2.0, 2.0, 4.0])) == pytest.approx(5 / 30**0.5)
    assert rank_agreement(up, torch.ones(4)) is None
    with pytest.raises(ValueError, match=r"one number per explainer each, got shapes \(4,\) and \(3,\)"):
        rank_agreement(up, up[:3])
