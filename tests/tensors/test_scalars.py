"""Every check of a number: what passes, and the one sentence that an argument that does not gets."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest

from hf_explain.tensors.scalars import check_choice, check_count, check_number, check_seed


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_python_and_numpy(value):
    assert check_count(value, "steps", 3) == 3 and type(check_count(value, "steps", 3)) is int
    assert check_seed(value) == 3 and type(check_seed(value)) is int


@pytest.mark.parametrize("value", [2, 3.0, True, "3", None, np.float32(3), np.bool_(True), math.nan])
def test_no_whole_number_in_range(value):
    with pytest.raises(
        ValueError, match=f"^`steps` must be a whole number of at least 3, got {re.escape(repr(value))}.$"
    ):
        check_count(value, "steps", 3)


def test_a_seed_has_64_bits():
    assert check_seed(-(2**63)) == -(2**63) and check_seed(2**63 - 1) == 2**63 - 1
    for wrong in (2**63, -(2**63) - 1, False, 0.0):
        with pytest.raises(ValueError, match=rf"`draw_seed` must be a whole number of at most 64 bits.* got {wrong}"):
            check_seed(wrong, "draw_seed")


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("[0, 1]", (0, 0.5, 1), (-0.1, 1.1), "lie in [0, 1]"),
        ("(0, 1)", (0.5,), (0, 1), "lie in (0, 1)"),
        ("(0, 1]", (0.5, 1), (0, 2), "lie in (0, 1]"),
        ("[0, 1)", (0, 0.5), (-1, 1), "lie in [0, 1)"),
        ("(0, inf)", (1e-9, 1e9), (0, -1, math.inf), "be above 0 and finite"),
        ("[0, inf)", (0, 1e9), (-1e-9, math.inf), "be at least 0 and finite"),
        ("(0, inf]", (1, math.inf), (0, -1), "be above 0"),
    ],
)
def test_a_number_in_an_interval(interval, inside, outside, words):
    for value in inside:
        assert check_number(np.float64(value), "alpha", interval) == value
        assert type(check_number(np.float64(value), "alpha", interval)) is float
    for value in (*outside, math.nan):
        with pytest.raises(ValueError, match=f"^`alpha` must {re.escape(words)}, got {value}.$"):
            check_number(value, "alpha", interval)


@pytest.mark.parametrize("value", ["0.5", True, None, [0.5], 1j])
def test_no_number(value):
    with pytest.raises(TypeError, match=f"^`alpha` must be a number, got {re.escape(repr(value))}.$"):
        check_number(value, "alpha", "[0, 1]")


def test_what_may_be_left_out():
    assert check_count(None, "steps", optional=True) is None
    assert check_number(None, "goal", "(0, 1)", optional=True) is None
    with pytest.raises(ValueError, match="`steps` must be a whole number of at least 1, or None, got 0"):
        check_count(0, "steps", optional=True)
    with pytest.raises(ValueError, match=r"`goal` is a softmax and must lie in \(0, 1\), or None, got 1"):
        check_number(1, "goal", "(0, 1)", "is a softmax and", optional=True)
    with pytest.raises(TypeError, match="`goal` must be a number or None, got 'low'"):
        check_number("low", "goal", "(0, 1)", optional=True)


def test_one_of_several():
    assert check_choice("floor", "rounding", ("nearest", "floor")) == "floor"
    with pytest.raises(ValueError, match="^`rounding` must be one of nearest, floor, got 'up'.$"):
        check_choice("up", "rounding", iter(("nearest", "floor")))
    assert check_choice(None, "decoder", ("cnn",), optional=True) is None
    with pytest.raises(ValueError, match="`decoder` must be one of cnn, or None, got 'rnn'"):
        check_choice("rnn", "decoder", ("cnn",), optional=True)


def test_needs_no_torch():
    """The command line checks its numbers before it imports anything that takes a second."""
    path = sys.modules[check_count.__module__].__file__
    code = f"import runpy, sys; runpy.run_path({path!r}); assert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
