"""Metrics of saliency maps: the maths in `functional`, and one thin `evaluate` module per folder."""

from __future__ import annotations

from pathlib import Path


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
    folder = Path(__file__).resolve().parent
    known = sorted(child.name for child in folder.iterdir() if (child / f"{child.name}.py").is_file())
    if name not in known:
        raise ValueError(f"Unknown metric {name!r}; hf_explain has: {', '.join(known)}.")
    return str(folder / name)
