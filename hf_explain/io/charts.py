"""Charts of the numbers about saliency maps: curves and bars, as RGB `PIL.Image.Image`, and as vectors for print.

They are drawn on their own matplotlib canvas, never through pyplot, so there is no global state: it works in threads
and without a display. Colours are safe for the colour-blind.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from hf_explain.io.colors import INK, KINDS, PALETTE
from hf_explain.io.files import write_atomically


_DASHES = ("-", "--", ":", "-.")
_SETTINGS = threading.Lock()  # matplotlib's are of the whole process
_DPI = 160  # a chart is 720 px wide: 10 pt type is still 11 px tall when a phone shows it 360 px wide


def plot_curves(
    curves: Mapping[str, Sequence[float]],
    steps: Sequence[float] | None = None,
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    title: str | None = None,
    x_label: str = "pixels removed (%)",
    y_label: str = "score (%)",
    kinds: Mapping[str, str] | None = None,
    files: Sequence[str | os.PathLike] = (),
) -> Image.Image:
    """
    Curves over the same steps, such as a perturbation curve per method.

    Up to six curves are labelled at their ends in their own colours; more get a legend below. Lines differ in dash
    and marker as well as in colour.

    Args:
        curves (`Mapping[str, Sequence[float]]`): A name and one value per step for each curve.
        steps (`Sequence[float]`, *optional*): Positions on the x axis; 0, 1, 2, … when absent.
        bands (`Mapping[str, tuple]`, *optional*): `(low, high)` for some of the curves, shaded (confidence bounds).
        title (`str`, *optional*): Above the chart.
        x_label (`str`, *optional*): With its unit.
        y_label (`str`, *optional*): With its unit.
        kinds (`Mapping[str, str]`, *optional*): What each curve is of, `"trained head"`, `"training-free method"` or
            `"control"`, which decides its colour: blue, warm, grey.
        files (`Sequence[str` or `os.PathLike]`, *optional*): Where the chart is written as well; `.svg` and `.pdf` are
            vectors, for print.

    Returns:
        `PIL.Image.Image`: RGB, 720 px wide, readable at half that width.

    Raises:
        ValueError: If there are no curves, lengths differ, values are not finite, a band has no curve, or a kind or
            the format of a file is unknown.

    Example:

    ```python
    >>> from hf_explain import plot_curves

    >>> curves = {"mine": [95, 30, 4, 0], "gradcam": [95, 60, 20, 0], "random": [95, 80, 40, 0]}
    >>> kinds = {"mine": "trained head", "gradcam": "training-free method", "random": "control"}
    >>> plot_curves(curves, [0, 30, 60, 100], kinds=kinds, y_label="probability (%)").width
    720
    ```
    """
    if not curves:
        raise ValueError("`curves` is empty; give at least one curve.")
    series = {name: _as_series(values, f"curves[{name!r}]") for name, values in curves.items()}
    length = len(next(iter(series.values())))
    positions = np.arange(length) if steps is None else _as_series(steps, "steps")
    bounds = {}
    for name, (low, high) in (bands or {}).items():
        if name not in series:
            raise ValueError(f"`bands` names {name!r}, which is not among the curves: {', '.join(series)}.")
        bounds[name] = _as_series(low, f"bands[{name!r}] (low)"), _as_series(high, f"bands[{name!r}] (high)")
    for name, values in [*series.items(), *((name, side) for name, pair in bounds.items() for side in pair)]:
        if len(values) != len(positions):
            raise ValueError(f"{name!r} has {len(values)} values, but there are {len(positions)} steps.")

    colors = _colors(series, kinds, PALETTE)
    direct = len(series) <= 6
    figure = _figure(3.4)
    axes = figure.add_subplot()
    for index, (name, values) in enumerate(series.items()):
        color, dash = colors[name], _DASHES[index % len(_DASHES)]
        axes.plot(
            positions, values, color=color, linestyle=dash, marker="os^Dv<>"[index % 7], markersize=3.5, label=name
        )
        if name in bounds:
            axes.fill_between(positions, *bounds[name], color=color, alpha=0.15, linewidth=0)
    _dress(axes, title, x_label, y_label)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    if direct:
        _label_ends(axes, positions, series, colors)
    else:
        rows = _legend(figure, axes.get_legend_handles_labels()[0], 9)
        figure.set_figheight(3.4 + 0.24 * rows)
    return _render(figure, files)


def bar_chart(
    values: Mapping[str, float],
    errors: Mapping[str, float | tuple[float, float]] | None = None,
    *,
    title: str | None = None,
    x_label: str = "",
    highlight: str | Sequence[str] = (),
    precision: int = 1,
    kinds: Mapping[str, str] | None = None,
    files: Sequence[str | os.PathLike] = (),
) -> Image.Image:
    """
    One horizontal bar per name, with its number beside it.

    Args:
        values (`Mapping[str, float]`): From the top down, in the order given.
        errors (`Mapping[str, float | tuple[float, float]]`, *optional*): For some of the names, the half-width of the
            error bar, or its `(low, high)` ends on the axis, as a bootstrap gives them.
        title (`str`, *optional*): Above the chart.
        x_label (`str`, *optional*): With its unit.
        highlight (`str` or `Sequence[str]`, *optional*): Names whose bars are drawn in the accent colour.
        precision (`int`, *optional*, defaults to 1): Decimals of the numbers.
        kinds (`Mapping[str, str]`, *optional*): What each bar is of, as for [`plot_curves`], instead of `highlight`;
            a legend says which colour is what.
        files (`Sequence[str` or `os.PathLike]`, *optional*): As for [`plot_curves`].

    Returns:
        `PIL.Image.Image`: RGB, 720 px wide, readable at half that width.

    Raises:
        ValueError: If there are no bars, numbers are not finite, or `errors` or `highlight` names an unknown bar.
    """
    if not values:
        raise ValueError("`values` is empty; give at least one bar.")
    names = list(values)
    lengths = _as_series(list(values.values()), "values")
    highlight = [highlight] if isinstance(highlight, str) else list(highlight)
    for option, given in (("errors", errors or {}), ("highlight", highlight)):
        unknown = [name for name in given if name not in values]
        if unknown:
            raise ValueError(f"`{option}` names {unknown[0]!r}, which is not among the bars: {', '.join(names)}.")
    low, high = lengths.copy(), lengths.copy()
    for name, error in (errors or {}).items():
        index = names.index(name)
        ends = (lengths[index] - error, lengths[index] + error) if np.isscalar(error) else error
        low[index], high[index] = _as_series(ends, f"errors[{name!r}]")
        if not low[index] <= lengths[index] <= high[index]:
            raise ValueError(
                f"`errors[{name!r}]` spans {low[index]:g} to {high[index]:g}, which does not hold the value "
                f"{lengths[index]:g}; give a positive half-width or the (low, high) ends."
            )

    colors = _colors(values, kinds, PALETTE[:1])
    colors |= dict.fromkeys(highlight, PALETTE[1])
    shown = list(dict.fromkeys(kinds[name] for name in names)) if kinds else []
    figure = _figure(0.9 + 0.32 * len(names) + 0.3 * (len(shown) > 1))
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    axes.barh(rows, lengths, height=0.66, color=[colors[name] for name in names])
    if len(shown) > 1:
        handles = [Patch(color=KINDS[kind][0], label=kind) for kind in KINDS if kind in shown]
        _legend(figure, handles, 8.5)
    drawn = [index for index, name in enumerate(names) if name in (errors or {})]
    if drawn:
        reach = np.stack([lengths - low, high - lengths])[:, drawn]
        axes.errorbar(lengths[drawn], rows[drawn], xerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
    for row, length in enumerate(lengths):
        end, side = (low[row], -1) if length < 0 else (high[row], 1)
        axes.annotate(
            f"{length:.{precision}f}".replace("-", "\N{MINUS SIGN}"),
            (end, row),
            xytext=(4 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)  # the first on top; margins of the bars' own would grow with their number
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.margins(x=0.16)  # room for the numbers
    _dress(axes, title, x_label, "")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, pad=10)  # clear of a negative number
    return _render(figure, files)


def _as_series(values, name: str) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be a list of finite numbers, got {values!r}.")
    return array


def _colors(names, kinds: Mapping[str, str] | None, plain: Sequence[str]) -> dict[str, str]:
    """A colour for each name: of its kind, or else the next of the plain ones."""
    if kinds is None:
        return {name: plain[index % len(plain)] for index, name in enumerate(names)}
    found: dict[str, str] = {}
    drawn: dict[str, int] = {}
    for name in names:
        kind = kinds.get(name)
        if kind not in KINDS:
            raise ValueError(f"`kinds` says {kind!r} of {name!r}; it must be one of {', '.join(KINDS)}.")
        found[name] = KINDS[kind][drawn.get(kind, 0) % len(KINDS[kind])]
        drawn[kind] = drawn.get(kind, 0) + (plain is PALETTE)  # bars of one kind have one colour
    return found


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(720 / _DPI, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, handles: Sequence, size: float) -> int:
    """Below the chart, in as many columns of three as are not wider than it; how many rows that is."""
    for columns in (3, 2, 1):
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, fontsize=size, frameon=False
        )
        if columns == 1 or legend.get_window_extent(_renderer(figure)).width <= figure.bbox.width:
            return -(-len(handles) // columns)
        legend.remove()
    raise AssertionError  # one column is taken whatever its width


def _fitted(figure: Figure, text: str, size: float, share: float) -> str:
    """The text in lines that a share of the figure's width has room for."""
    room, lines = share * figure.bbox.width, []
    for line in text.splitlines():
        begun = ""
        for word in line.split():
            longer = f"{begun} {word}".lstrip()
            width = Text(0, 0, longer, fontsize=size, figure=figure).get_window_extent(_renderer(figure)).width
            if begun and width > room:
                lines.append(begun)
                longer = word
            begun = longer
        lines.append(begun)
    return "\n".join(lines)


def _renderer(figure: Figure):
    return cast(FigureCanvasAgg, figure.canvas).get_renderer()


def _dress(axes, title: str | None, x_label: str, y_label: str) -> None:
    figure = axes.figure
    if title:
        # from the figure's edge: that of the axes stands further right, the longer the names of bars are
        figure.suptitle(_fitted(figure, title, 11, 0.96), x=0.02, ha="left", fontsize=11)
    # it ends where the axes end, so it may begin left of them, below the names of bars
    axes.set_xlabel(_fitted(figure, x_label, 10, 0.94), fontsize=10, loc="right")
    axes.set_ylabel(y_label, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _label_ends(axes, positions: np.ndarray, series: Mapping[str, np.ndarray], colors: Mapping[str, str]) -> None:
    """Name each curve at its right end, moving names apart where ends are close."""
    bottom, top = axes.get_ylim()
    room = (top - bottom) * 0.075  # one line of text
    order = sorted(series, key=lambda name: series[name][-1])
    heights = [float(series[name][-1]) for name in order]
    for index in range(1, len(heights)):  # up, away from the one below ...
        heights[index] = max(heights[index], heights[index - 1] + room)
    heights[-1] = min(heights[-1], top - room / 2)
    for index in range(len(heights) - 2, -1, -1):  # ... and back down from the frame
        heights[index] = min(heights[index], heights[index + 1] - room)
    for name, height in zip(order, heights):
        axes.annotate(
            name,
            (positions[-1], height),
            xytext=(8, 0),
            textcoords="offset points",
            color=colors[name],
            fontsize=9.5,
            va="center",
            annotation_clip=False,
        )


def _render(figure: Figure, files: Sequence[str | os.PathLike] = ()) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    figure.set_layout_engine("none")  # everything has its place now, in every format
    for file in map(Path, files):
        kind = file.suffix.lower().removeprefix(".")
        if kind not in ("svg", "pdf", "png"):
            raise ValueError(f"`files` has {str(file)!r}; a chart is written as .svg, .pdf or .png.")
        # the same bytes every time; letters of a PDF as an outline font, which journals ask for
        told = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        with _SETTINGS, matplotlib.rc_context({"svg.hashsalt": "hf_explain", "pdf.fonttype": 42}):
            figure.savefig(buffer := io.BytesIO(), format=kind, metadata=told)
        write_atomically(file, buffer.getvalue())
    return image
