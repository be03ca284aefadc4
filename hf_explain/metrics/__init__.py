"""Metrics of saliency maps: the maths in `functional`, and one thin `evaluate` module per folder."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_explain.metrics.number import Number


_FOLDER = Path(__file__).resolve().parent


def path(name: str) -> str:
    """
    Where the `evaluate` module of a metric lies, for `evaluate.load(hf_explain.metrics.path("auc_d"))`.

    Args:
        name (`str`): Name of the metric.

    Returns:
        `str`: Absolute path of its folder; it loads offline, from a checkout or an installed package.

    Raises:
        ValueError: If there is no such metric; the message lists those there are.
    """
    known = names()
    if name not in known:
        raise ValueError(f"Unknown metric {name!r}; hf_explain has: {', '.join(known)}.")
    return str(_FOLDER / name)


def names() -> list[str]:
    """The metrics there are, in alphabetical order."""
    return sorted(child.name for child in _FOLDER.iterdir() if (child / f"{child.name}.py").is_file())


def metric_numbers(name: str) -> tuple[Number, ...]:
    """
    What the numbers of a metric's result are called and which way they are better, as the metric itself says.

    Args:
        name (`str`): Name of the metric, or `NAME@PRESET`: then the numbers' names say the preset.

    Returns:
        `tuple[Number, ...]`: In the order of a table; the first one stands for the result.

    Raises:
        ValueError: As for [`path`].
    """
    name, preset = split_name(name)
    numbers = _metric_class(name).numbers
    if preset is None:
        return numbers
    return tuple(
        replace(one, name=f"{one.name} ({preset})", heading=f"{one.heading or one.name} ({preset})") for one in numbers
    )


def load(name: str, preset: str | None = None) -> Any:
    """
    What `evaluate.load(path(name), preset)` gives, made of the package's own module, and without files in the cache.

    Args:
        name (`str`): Name of the metric, or `NAME@PRESET`.
        preset (`str`, *optional*): Its settings.

    Returns:
        `evaluate.Metric`: An instance that collects its columns in memory.

    Raises:
        ValueError: As for [`path`], or if there is no such preset, or two are given.
    """
    base, own = split_name(name)
    if own is not None and preset is not None:
        raise ValueError(f"Metric {name!r} names its preset; {preset!r} cannot be one as well.")
    return _metric_class(base)(own or preset, keep_in_memory=True)


def split_name(name: str) -> tuple[str, str | None]:
    """`"auc_d@patch"`, under which one metric is measured in several ways, as `("auc_d", "patch")`."""
    base, _, preset = name.partition("@")
    return base, preset or None


def _metric_class(name: str) -> Any:
    path(name)
    module = importlib.import_module(f"{__name__}.{name}.{name}")
    return next(found for found in vars(module).values() if getattr(found, "metric_name", None) == name)
