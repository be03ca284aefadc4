"""The metric made visible: what a classifier still sees of a class as the pixels a map ranks highest are removed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from hf_explain.apps.demo_guard import plain
from hf_explain.io.colors import KINDS
from hf_explain.io.image_processor import to_picture
from hf_explain.io.labels import short_label
from hf_explain.metrics.engine import saliency_ranks
from hf_explain.metrics.functional import PRESETS, auc
from hf_explain.pipeline import SaliencyPipeline
from hf_explain.tensors.perturbation import fill_values, pixel_counts


FILL: str = PRESETS["auc_d"]["default"]["fill"]
FRACTIONS: tuple[float, ...] = PRESETS["auc_d"]["default"]["fractions"]
STEP = round(100 * FRACTIONS[1])  # percent of the pixels
_CLASSES = {"trained head": "head", "training-free method": "free", "control": "control"}


@dataclass(frozen=True)
class Removal:
    """
    What is left of a class's probability as pixels are removed, step by step.

    Args:
        seen (`PIL.Image.Image`): What the classifier sees of the whole picture.
        empty (`PIL.Image.Image`): The same, with every pixel removed.
        ranks (`np.ndarray` of shape `(height, width)`): 0 for the most salient pixel.
        counts (`tuple[int, ...]`): How many pixels are gone at each of `FRACTIONS`.
        positive (`tuple[float, ...]`): Probability of the class at each, most salient pixels first.
        negative (`tuple[float, ...]`): The same, least salient pixels first.
    """

    seen: Image.Image
    empty: Image.Image
    ranks: np.ndarray
    counts: tuple[int, ...]
    positive: tuple[float, ...]
    negative: tuple[float, ...]

    @property
    def auc_d(self) -> float:
        """The area between the two curves, times 100; higher is better, chance is about 0."""
        positive, negative = (auc(torch.tensor(curve), FRACTIONS) for curve in (self.positive, self.negative))
        return 100 * float(negative - positive)

    def picture(self, step: int) -> Image.Image:
        """What the classifier sees at a step, without the most salient pixels."""
        gone = Image.fromarray(self.ranks < self.counts[step])
        return Image.composite(self.empty, self.seen, gone)


def remove(
    pipe: SaliencyPipeline, pixel_values: torch.Tensor, saliency: torch.Tensor, logits: torch.Tensor, target: int
) -> Removal:
    """
    Remove pixels in the order of a map and in the opposite one, and run the classifier on all steps in one batch.

    Args:
        pipe ([`SaliencyPipeline`]): Its classifier, and how it tells probabilities.
        pixel_values (`torch.FloatTensor` of shape `(1, channels, height, width)`): The picture.
        saliency (`torch.FloatTensor` of shape `(1, map_height, map_width)`): The map.
        logits (`torch.FloatTensor` of shape `(num_labels,)`): Of the whole picture.
        target (`int`): The class.

    Returns:
        [`Removal`].
    """
    classifier = pipe.classifier
    mean, std = classifier.image_mean, classifier.image_std
    pixel_values = pixel_values.to(pipe.device)
    filled = fill_values(pixel_values, FILL, mean, std).expand_as(pixel_values)
    ranks = saliency_ranks(saliency, pixel_values, None, 0)
    counts = pixel_counts(FRACTIONS, ranks[0].numel())
    steps = torch.tensor(counts[1:], device=ranks.device).view(-1, 1, 1)  # the whole picture is known
    gone = torch.cat([ranks < steps, ranks >= ranks[0].numel() - steps[:-1]])  # the empty one is the same for both
    with torch.no_grad():
        left = classifier(torch.where(gone[:, None], filled, pixel_values)).cpu()
    whole, *scores = (float(pipe.scores(row)[target]) for row in [logits, *left])
    most, least = scores[: len(steps)], scores[len(steps) :]
    seen, empty = (to_picture(values[0], mean, std) for values in (pixel_values, filled))
    order = ranks[0].to(torch.int32).cpu().numpy()
    return Removal(seen, empty, order, tuple(counts), (whole, *most), (whole, *least, most[-1]))


class Explainer(Protocol):
    """What the chart says of an explainer; `kind` is a key of `KINDS`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def about(self) -> str: ...


def shades(kinds: Sequence[str]) -> list[str]:
    """Classes of the style for explainers beside one another: a colour by what each is, and one after the other."""
    return [f"{_CLASSES[kind]}{kinds[:place].count(kind) % len(KINDS[kind])}" for place, kind in enumerate(kinds)]


def chart(lines: Sequence[tuple[Explainer, Removal]], label: str, step: int) -> str:
    """
    For each explainer what the classifier sees at a step, and both curves with that step marked.

    Args:
        lines (`Sequence[tuple[Explainer, Removal]]`): For each explainer shown.
        label (`str`): The class.
        step (`int`): Index of `FRACTIONS`.

    Returns:
        `str`: HTML, in which no text of a model or a file is markup.
    """
    marks = shades([explainer.kind for explainer, _ in lines])
    figures, place = "", f"{100 * FRACTIONS[step]:.4g}%"
    ticks = "".join(f'<u style="bottom:{value}%">{value}%</u>' for value in (0, 50, 100))
    ticks += "".join(f'<s style="left:{value}%">{value}%</s>' for value in (0, 50, 100))
    for (explainer, removal), mark in zip(lines, marks):
        name = plain(explainer.name)
        most, least = (
            [f"{100 * x:.4g},{100 - 100 * y:.4g}" for x, y in zip(FRACTIONS, curve)]
            for curve in (removal.positive, removal.negative)
        )
        points = "".join(
            f'<i class="{kind}" style="left:{place};bottom:{100 * curve[step]:.4g}%"></i>'
            for kind, curve in (("least", removal.negative), ("most", removal.positive))
        )
        figures += (
            f'<figure class="{mark}"><img src="{_source(removal.picture(step))}" alt="What the classifier sees '
            f'without the pixels most salient by {name}"><div><figcaption><b>{name}</b> '
            f"<small>{explainer.kind}</small><span>{removal.positive[0]:.0%} → {removal.positive[step]:.0%}</span>"
            "</figcaption>"
            '<div class="chart" role="img" aria-label="Probability of the class over the share of pixels removed">'
            '<svg viewBox="0 0 100 100" preserveAspectRatio="none">'
            '<path class="grid" d="M0 0H100M0 50H100M0 100H100"/>'
            f'<polygon points="{" ".join([*most, *reversed(least)])}"/><polyline points="{" ".join(most)}"/>'
            f'<polyline class="least" points="{" ".join(least)}"/></svg>{points}{ticks}</div>'
            f'<p class="number">AUC-D <b>{_signed(removal.auc_d)}</b></p></div></figure>'
        )
    return (
        f'<div class="figures">{figures}</div><p class="note">Probability of <b>{plain(short_label(label))}</b> over '
        "the share of pixels removed. Solid line: the most salient pixels go first, as in the pictures. Dashed line: "
        "the least salient ones go first. The larger the area between the two (AUC-D, here of the probability), the "
        "better the map tells what the class rests on; chance is about 0.</p>"
    )


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def about(explainers: Sequence[Explainer]) -> str:
    """How explainers work, as HTML."""
    told = "".join(f"<li><b>{plain(one.name)}</b>: {plain(one.about)}.</li>" for one in explainers)
    return f"<ul>{told}</ul>" if told else ""


def _source(picture: Image.Image) -> str:
    picture.save(buffer := io.BytesIO(), format="WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _style() -> str:
    colours = [
        f".{_CLASSES[kind]}{place} {{--kind: {colour}}}\n"
        f".dark .{_CLASSES[kind]}{place} {{--kind: color-mix(in oklab, {colour}, white 35%)}}"
        for kind, found in KINDS.items()
        for place, colour in enumerate(found)
    ]
    return (
        "\n".join(colours)
        + """
#removal .figures {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(180px, 100%), 1fr)); gap: 16px}
#removal, #removal > div {padding: 0 !important}
#removal figure {margin: 0; min-width: 0}
#removal figure > img {width: 100%; height: auto; display: block; border-radius: 4px}
#removal figcaption {padding: 6px 0 10px; color: var(--body-text-color); font-size: 1rem; text-align: left}
#removal figcaption * {display: block; overflow-wrap: anywhere}
#removal figcaption small {color: var(--body-text-color-subdued)}
#removal figcaption span {font-variant-numeric: tabular-nums; font-weight: 600}
#removal .chart {position: relative; height: 130px; margin: 0 12px 30px 42px}
#removal svg {position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible}
#removal svg * {fill: none; vector-effect: non-scaling-stroke}
#removal polyline {stroke: var(--kind); stroke-width: 2.5px}
#removal polyline.least {stroke-dasharray: 5 4; stroke-width: 2px}
#removal polygon {fill: var(--kind); opacity: .15}
#removal .grid {stroke: var(--border-color-primary); stroke-width: 1px}
#removal .chart i {position: absolute; width: 12px; height: 12px; margin: 0 0 -6px -6px; border-radius: 50%;
  background: var(--kind); border: 2px solid var(--body-background-fill)}
#removal .chart i.least {background: var(--body-background-fill); border-color: var(--kind)}
#removal u, #removal s {position: absolute; text-decoration: none; font-size: .75rem;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums}
#removal u {right: 100%; margin: 0 6px -.6em 0; line-height: 1.2}
#removal s {top: 100%; margin-top: 4px; transform: translateX(-50%)}
#removal .number {margin: 0; text-align: right; border-bottom: 4px solid var(--kind); padding-bottom: 4px}
#removal .note {font-size: .9rem; margin: 14px 0 0; max-width: 46rem; color: var(--body-text-color-subdued)}
@media (max-width: 600px) {
  #removal figure {display: grid; grid-template-columns: 2fr 3fr; gap: 10px}
  #removal .chart {height: 90px; margin-bottom: 24px}
}
"""
    )


STYLE = _style()
