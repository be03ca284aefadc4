"""
Checks of one argument: the value as the code wants it, or one sentence that names the argument, the value and what
would work. Nothing here needs PyTorch, so that a command line can be checked before it is imported.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, TypeGuard, TypeVar


Count = TypeVar("Count", int, int | None)
Number = TypeVar("Number", float, float | None)


def check_count(value: Count, name: str, minimum: int = 1, optional: bool = False) -> Count:
    r"""
    A whole number of at least `minimum`. NumPy's integers are whole numbers, `True` and `2.0` are not.

    Args:
        value (`int`): What to check.
        name (`str`): Name of the argument, for the error.
        minimum (`int`, *optional*, defaults to 1): The least value that works.
        optional (`bool`, *optional*, defaults to `False`): Let `None` through as it is.

    Returns:
        `int`: `value` as Python's own integer.

    Raises:
        ValueError: If it is not a whole number, or is below `minimum`.

    Example:

    ```python
    >>> from hf_explain.tensors.scalars import check_count

    >>> check_count(8, "batch_size")
    8
    >>> check_count(0, "batch_size")
    Traceback (most recent call last):
    ValueError: `batch_size` must be a whole number of at least 1, got 0.
    ```
    """
    if optional and value is None:
        return value
    if not _is_whole(value) or value < minimum:
        raise ValueError(f"`{name}` must be a whole number of at least {minimum}{_or_none(optional)}, got {value!r}.")
    return int(value)


def check_seed(seed: int, name: str = "seed") -> int:
    """`seed` if it is a whole number of 64 bits, else a ValueError that names it."""
    if not _is_whole(seed) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"`{name}` must be a whole number of at most 64 bits, such as 0, got {seed!r}.")
    return int(seed)


def check_number(value: Number, name: str, interval: str, meaning: str = "", optional: bool = False) -> Number:
    r"""
    A number in an interval.

    Args:
        value (`float`): What to check.
        name (`str`): Name of the argument, for the error.
        interval (`str`): Where it must lie, as mathematics writes it: a bracket includes its end, a parenthesis does
            not. `"[0, 1]"`, `"(0, inf)"`.
        meaning (`str`, *optional*): What the number is, between its name and "must" in the error.
        optional (`bool`, *optional*, defaults to `False`): Let `None` through as it is.

    Returns:
        `float`: `value` as Python's own number.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is NaN or outside the interval.

    Example:

    ```python
    >>> from hf_explain.tensors.scalars import check_number

    >>> check_number(0.5, "alpha", "[0, 1]", "is an opacity and")
    0.5
    >>> check_number(0, "sigma", "(0, inf)")
    Traceback (most recent call last):
    ValueError: `sigma` must be above 0 and finite, got 0.
    ```
    """
    if optional and value is None:
        return value
    try:
        if value is None or isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a number{' or None' if optional else ''}, got {value!r}.") from error
    low, high = map(float, interval[1:-1].split(","))
    if (low < number or interval[0] == "[" and low == number) and (
        number < high or interval[-1] == "]" and number == high
    ):
        return number
    if math.isfinite(high):
        wanted = f"lie in {interval}"
    else:
        wanted = f"be {'at least' if interval[0] == '[' else 'above'} {low:g}{' and finite' * (interval[-1] == ')')}"
    subject = f"`{name}` {meaning}".strip()
    raise ValueError(f"{subject} must {wanted}{_or_none(optional)}, got {value}.")


def check_percent(percent: float) -> float:
    """`percent` as a float, or a ValueError if it is not in (0, 100]."""
    return check_number(percent, "percent", "(0, 100]", "of pixels kept")


def check_numbers(values: Sequence[float], name: str) -> tuple[float, ...]:
    """`values` as floats, or a TypeError that names the argument if they are not a list of numbers."""
    try:
        if isinstance(values, str):
            raise TypeError
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a list of numbers, got {values!r}.") from error


def check_choice(value: Any, name: str, choices: Iterable[str], optional: bool = False) -> Any:
    """`value` if it is one of `choices` (or `None`, if that is `optional`), else a ValueError that names them."""
    choices = tuple(choices)
    if value not in choices and not (optional and value is None):
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}{_or_none(optional)}, got {value!r}.")
    return value


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    r"""
    The end of a message about a name that does not exist: the known one that is spelled most like it, if one is.

    Case and separators do not count, and a known name that `name` is a part of, or that is a part of it, is like it.

    Args:
        name (`str`): What was asked for.
        known (iterable of `str`): The names that exist.

    Returns:
        `str`: A sentence with a space in front, or nothing.

    Example:

    ```python
    >>> from hf_explain.tensors.scalars import did_you_mean

    >>> did_you_mean("Grad-CAM", ("gradcam", "gradcam++", "rise"))
    " Did you mean 'gradcam'?"
    >>> did_you_mean("nothing", ("gradcam", "gradcam++", "rise"))
    ''
    ```
    """

    def plain(text: str) -> str:
        return re.sub(r"[^\w+]|_", "", text).casefold().replace("plusplus", "++")

    spelled = {plain(one): one for one in reversed(tuple(known))}
    asked = plain(str(name))
    like = [asked] if asked in spelled else difflib.get_close_matches(asked, spelled, 1, 0.75)
    like += [one for one in spelled if len(asked) > 3 and (asked in one or len(one) > 3 and one in asked)]
    return f" Did you mean {spelled[like[0]]!r}?" if like else ""


def _or_none(optional: bool) -> str:
    return ", or None" if optional else ""


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)
