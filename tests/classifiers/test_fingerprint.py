"""A checksum that sees every bit, every name and every shape, and knows rounded weights again."""

import copy

import pytest
import torch
from testing_common import FAMILIES, snapshot, tiny_model
from torch import nn

from hf_explain.classifiers.fingerprint import (
    FINGERPRINT_DTYPES,
    fingerprint,
    fingerprint_tensors,
    fingerprints,
    matches,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_weights_same_fingerprint(family):
    model = tiny_model(family)
    before = snapshot(model)
    found = fingerprint(model)
    assert found == fingerprint(copy.deepcopy(model)) == fingerprint(tiny_model(family))
    assert len(found) == 32 and int(found, 16)
    assert found != fingerprint(tiny_model(family, seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())
    assert matches(model, fingerprints(model))
    assert not matches(tiny_model(family, seed=1), fingerprints(model))


def test_every_single_bit_counts():
    model = tiny_model("resnet")
    original = fingerprint(model)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.numel():
            continue
        raw = tensor.view(-1).view(torch.uint8) if tensor.ndim else tensor.view(1).view(torch.uint8)
        for place in {0, len(raw) - 1, int(torch.randint(len(raw), (1,), generator=generator))}:
            bit = 1 << int(torch.randint(8, (1,), generator=generator))
            raw[place] ^= bit
            assert fingerprint(model) != original, (name, place)
            raw[place] ^= bit
    assert fingerprint(model) == original


def weights(values, name="weight", buffer=False):
    module = nn.Module()
    if buffer:
        module.register_buffer(name, values)
    else:
        module.register_parameter(name, nn.Parameter(values, requires_grad=False))
    return module


def test_edits_that_keep_sums_are_seen():
    """Folding adds; what moves values about, or changes several at once, must still show."""
    values = torch.arange(200_000, dtype=torch.float32)  # several rows of lanes, and a rest
    original = fingerprint(weights(values))
    swapped = values.clone()
    swapped[[3, 70_003]] = swapped[[70_003, 3]]
    for changed in (swapped, values.flip(0), values.roll(32_768), values.roll(1), -values, values[:-1]):
        assert fingerprint(weights(changed)) != original


LANE = 16_384  # 64-bit words from one to the next that is folded onto it
FACTOR = 0x9E3779B97F4A7C15 - 2**64


def flip(values, *words):
    """Values whose words have their topmost bit flipped: in float32 the sign of the second number of each pair."""
    changed = values.clone()
    changed.view(torch.int64)[list(words)] ^= -(2**63)
    return changed


def shift(values, *changes):
    changed = values.clone()
    for word, difference in changes:
        changed.view(torch.int64)[word] += difference
    return changed


def wrap(number):
    return (number + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: flip(values, 5, 5 + LANE),  # signs: a factor never moves the topmost bit, and two of them are 0
        lambda values: flip(values, 5, 5 + 2 * LANE),
        lambda values: flip(values, 5 + LANE, 5 + 2 * LANE),
        lambda values: flip(values, 0, LANE, 7, 7 + LANE, LANE - 1, 2 * LANE - 1),
        lambda values: shift(values, (5, 1), (5 + LANE, -FACTOR)),  # sums: what one word adds the next takes away
        lambda values: shift(values, (5, 3), (5 + 2 * LANE, wrap(-3 * FACTOR**2))),
        lambda values: shift(values, (5, 1), (5 + LANE, -1)),
        lambda values: shift(values, (5, 1), (6, -1)),
    ],
)
def test_edits_that_cancel_in_a_lane_are_seen(edit):
    values = torch.randn(6 * LANE + 10, generator=torch.Generator().manual_seed(0))  # three rows of lanes, and a rest
    changed = edit(values)
    assert not torch.equal(changed.view(torch.int32), values.view(torch.int32))
    assert fingerprint_tensors({"weight": changed}) != fingerprint_tensors({"weight": values})


def test_heads_that_are_out_there_know_their_classifier():
    """The numbers stand in configs: whatever gives others locks every saved head out."""
    values = torch.arange(100_003)
    several = {"weight": values.float(), "bias": values[:7].to(torch.int8), "steps": torch.tensor(3)}
    for tensors, dtype, expected in (
        ({}, None, "e3b0c44298fc1c149afbf4c8996fb924"),
        ({"weight": values[:5].float()}, None, "8dbadda0d4516966e41e16d001a79719"),
        ({"weight": values}, None, "acdd1e09b32c15dbce0b2603e6dd79da"),
        ({"weight": values.float()}, torch.bfloat16, "4efa21999563e09eee240c48d1adda02"),
        (several, None, "b20857461e3b932cb611810dc990b852"),
        (dict(reversed(several.items())), None, "b20857461e3b932cb611810dc990b852"),
    ):
        assert fingerprint_tensors(tensors, dtype) == expected


def test_names_shapes_and_dtypes_count():
    values = torch.arange(12, dtype=torch.float32)
    prints = {
        fingerprint(weights(values)),
        fingerprint(weights(values, "bias")),
        fingerprint(weights(values.view(3, 4))),
        fingerprint(weights(values.view(4, 3))),
        fingerprint(weights(values.double())),
        fingerprint(weights(values.view(torch.int32), buffer=True)),
        fingerprint(nn.Module()),
    }
    assert len(prints) == 7
    assert fingerprint(weights(values, buffer=True)) == fingerprint(weights(values))


def test_memory_layout_does_not_count():
    values = torch.randn(4, 6, 5, 5)
    expected = fingerprint(weights(values.clone()))
    assert fingerprint(weights(values.to(memory_format=torch.channels_last))) == expected
    shared = torch.cat([torch.zeros(3), values.flatten(), torch.zeros(2)])
    assert fingerprint(weights(shared[3:-2].view(4, 6, 5, 5))) == expected
    assert fingerprint(weights(torch.randn(6, 4).t().clone().t().contiguous())) is not None


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8, 16_384, 16_385, 40_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_any_size_and_dtype(count, dtype):
    values = torch.ones(count).to(dtype)
    found = fingerprint(weights(values, buffer=True))
    assert found == fingerprint(weights(values.clone(), buffer=True))
    if count:
        changed = values.clone()
        changed[-1] = 0
        assert fingerprint(weights(changed, buffer=True)) != found


def test_dtypes():
    model = tiny_model("resnet")
    recorded = fingerprints(model)
    assert tuple(recorded) == FINGERPRINT_DTYPES and len(set(recorded.values())) == 3
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert matches(copy.deepcopy(model).to(dtype), recorded), dtype
        assert not matches(tiny_model("resnet", seed=1).to(dtype), recorded), dtype


def test_record_of_rounded_weights_knows_the_original():
    """A classifier explained in bfloat16 is the same classifier when it is loaded from its float32 file."""
    model = tiny_model("resnet")
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    recorded = fingerprints(rounded)
    assert tuple(recorded) == ("bfloat16",)
    assert matches(rounded, recorded) and matches(model, recorded)
    assert matches(copy.deepcopy(rounded).float(), recorded)
    assert not matches(tiny_model("resnet", seed=1), recorded)
    assert not matches(model, {}) and not matches(model, {"int4": "0" * 32})
