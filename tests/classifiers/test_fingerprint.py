"""A checksum that sees every bit, every name and every shape, and knows rounded weights again."""

import copy

import pytest
import torch
from testing_common import FAMILIES, snapshot, tiny_model
from torch import nn

from hf_explain.classifiers.fingerprint import FINGERPRINT_DTYPES, fingerprint, fingerprints, matches


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
