"""A comparison as files: tables with their protocol, charts, pictures of the best and worst cases."""

from __future__ import annotations

import csv
import inspect
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_explain.evaluation.arguments import ComparisonArguments
from hf_explain.evaluation.explainer import Explainer
from hf_explain.evaluation.inputs import ExampleReader
from hf_explain.evaluation.ranking import ORACLE, is_control, standings
from hf_explain.evaluation.results import COST, Comparison, ExplainerResult, FailedExplainer
from hf_explain.io.charts import bar_chart, plot_curves
from hf_explain.io.files import write_atomically, write_json_file
from hf_explain.io.image_processor import to_picture
from hf_explain.io.labels import short_label
from hf_explain.io.pictures import overlay, saliency_grid, save_image
from hf_explain.metrics.number import Number
from hf_explain.registry import METHOD_ENTRIES, METHODS
from hf_explain.tensors.maps import resize_maps


_VECTORS = ("svg", "pdf")  # of every chart, beside its PNG
_MOST_BARS = 12  # of a chart
# What a curve shows, what happens to the pixels, and which way it is better
_CURVES = {
    "positive": ("most salient pixels removed first", "removed", "lower"),
    "negative": ("least salient pixels removed first", "removed", "higher"),
    "morf": ("most salient pixels removed first", "removed", "lower"),
    "lerf": ("least salient pixels removed first", "removed", "higher"),
    "deletion": ("most salient pixels removed first", "removed", "lower"),
    "insertion": ("most salient pixels shown first", "shown", "higher"),
}
_SCORES = {"agreement": "prediction unchanged (%)", "probability": "probability of the class (%)"}


@dataclass
class MeasuredComparison:
    """
    A comparison, with what its pictures are drawn from.

    Args:
        comparison ([`Comparison`]): The numbers.
        columns (`dict[str, dict[str, list]]`): For every explainer the metrics' columns, and `target` and
            `prediction`, one entry per image.
        explainers (`dict[str, Explainer]`): What made the maps.
    """

    comparison: Comparison
    columns: dict[str, dict[str, list]]
    explainers: dict[str, Explainer]


def write_comparison(
    measured: MeasuredComparison, data, arguments: ComparisonArguments, command: Sequence[str] | None = None
) -> None:
    """
    Write `results.json`, `results.csv`, `table.md`, charts and pictures to `arguments.output_dir`.

    Args:
        measured ([`MeasuredComparison`]): What was found.
        data: The images, for the pictures.
        arguments ([`ComparisonArguments`]): The settings it was measured by.
        command (list of `str`, *optional*): What a person typed; also written as `command.sh`.

    Raises:
        ValueError: If an image cannot be read again.
        OSError: If a file cannot be written.
    """
    folder = arguments.folder
    _write_tables(folder, measured.comparison, command)
    write_charts(folder, measured.comparison)
    if arguments.pictures:
        _write_pictures(folder, data, measured, arguments.pictures, arguments.image_column)


# ------------------------------------------------------------------------------------------------------------- tables


def markdown_table(comparison: Comparison) -> str:
    """The comparison as a table: main numbers with 95 % intervals, cost, and the reason where one failed."""
    # those a page has room for: the CSV and the JSON have all
    columns = [column for column in comparison.distinct_columns() if column.number.in_tables]
    first = {column.metric: column for column in reversed(columns)}  # of each metric the one with its interval
    headings = [column.number.heading_of(column.key) for column in columns]
    head = ["explainer", "images", *headings, "ms/image", "passes", "tail passes"]
    checked = any(result.sanity for result in comparison.measured.values())
    lines = [head + ["sanity"] * checked, ["---"] + ["---:"] * (len(head) - 1) + ["---"] * checked]
    for name, result in comparison.explainers.items():
        if isinstance(result, FailedExplainer):
            lines.append([name, f"failed: {result.error}".replace("|", "/"), *[""] * (len(lines[0]) - 2)])
            continue
        row = [name, str(result.num_images)]
        for column in columns:
            value, interval = result.value(column.metric, column.key), result.interval(column.metric, column.key)
            cell = "" if value is None else f"{value:.2f}"
            if cell and interval is not None and column is first[column.metric]:
                cell += " [{:.2f}, {:.2f}]".format(*interval)
            row.append(cell)
        row.append("" if result.seconds_per_image is None else f"{1000 * result.seconds_per_image:.1f}")
        passes = (result.forward_passes_per_image, result.tail_passes_per_image)
        row += ["" if count is None else f"{count:g}" for count in passes]
        lines.append(row + [(result.sanity and result.sanity.verdict) or ""] * checked)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def seeds_table(comparison: Comparison) -> str:
    """Heads that differ in their seed alone: mean, spread over the seeds and interval over images, apart."""
    known = {(one.metric, one.key) for one in comparison.seeds}
    columns = [one for one in comparison.distinct_columns() if one.number.in_tables and one[:2] in known]
    if not columns:
        return ""
    spreads = {(one.name, one.metric, one.key): one for one in comparison.seeds}
    headings = [column.number.heading_of(column.key) for column in columns]
    lines = [["head", "images", *headings], ["---"] + ["---:"] * (len(headings) + 1)]
    for name, count in {one.name: one.num_images for one in comparison.seeds}.items():
        cells = []
        for column in columns:
            one = spreads.get((name, column.metric, column.key))
            cell = "" if one is None else f"{one.mean:.2f} ± {one.deviation:.2f}"
            interval = one and one.interval
            cells.append(cell + (" [{:.2f}, {:.2f}]".format(*interval) if interval else ""))
        lines.append([name, str(count), *cells])
    about = (
        "Heads that differ in their seed alone: the mean of the seeds ± the standard deviation over seeds [95 % "
        "bootstrap interval over images of that mean, image by image]. Below they are one.\n\n"
    )
    return "\n## Several seeds\n\n" + about + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def reach_table(comparison: Comparison) -> str:
    """How much of what is possible every explainer reaches by every metric; nothing without the oracle."""
    if not comparison.reach:
        return ""
    own = comparison.measured[ORACLE]
    parameters = inspect.signature(METHODS[ORACLE]).parameters
    chosen = own.explainer.get("method_options", {})
    fill, grid = (chosen.get(name, parameters[name].default) for name in ("fill", "grid"))
    cells = grid if isinstance(grid, str) else " × ".join(map(str, grid))
    about = (
        f"0 % is what random maps get, 100 % the best order that a search found (`{ORACLE}`: cells {cells}, fill "
        f"{fill}, {own.forward_passes_per_image:g} passes an image), on the first {comparison.reach[0].num_images} "
        "images. It was searched for AUC-D with these cells and this fill; by anything else a map may reach more.\n\n"
    )
    metrics = {one.metric: comparison.number(one.metric, one.key).heading_of(one.key) for one in comparison.reach}
    lines = [["explainer", *metrics.values()], ["---"] + ["---:"] * len(metrics)]
    percents = {(one.explainer, one.metric): one.percent for one in comparison.reach}
    for name in dict.fromkeys(one.explainer for one in comparison.reach):
        found = [percents.get((name, metric)) for metric in metrics]
        lines.append([name, *("" if percent is None else f"{percent:.0f} %" for percent in found)])
    return "\n## How much of what is possible\n\n" + about + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def standings_tables(comparison: Comparison) -> str:
    """For every metric, who is ahead of whom and who is level, by the paired differences."""
    parts = []
    for heading, rows in standings(comparison):
        lines = [["explainer", heading, "ahead of", "level with"], ["---", "---:", "---", "---"]]
        lines += [[name, number, ", ".join(ahead), ", ".join(level)] for name, number, ahead, level in rows]
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    if not parts:
        return ""
    about = (
        "One explainer is ahead of another one where the 95 % bootstrap interval of their difference, image by image, "
        "lies above 0, and level with it where that holds 0.\n"
    )
    return "\n".join(["\n## Who is ahead\n", about, *parts])


def _agreement_lines(comparison: Comparison) -> str:
    """Where the metrics do not agree about the order of the explainers; nothing where there is one metric."""
    names = {metric: own[0].heading_of(own[0].key) for metric, own in comparison.numbers.items() if own}
    apart = [one for one in comparison.agreement if one.contradictions]
    lines = []
    for one in apart:
        pairs = [f"{better} ahead of {worse}" for better, worse in one.contradictions]
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        lines.append(
            f"- {names.get(one.metric, one.metric)} has {', '.join(pairs[:3])}{more}; by "
            f"{names.get(one.other, one.other)} it is the other way round (Kendall's τ over {one.num_explainers} "
            f"explainers {'undefined' if one.tau is None else f'{one.tau:.2f}'}).\n"
        )
    if lines:
        return "**The metrics do not agree about the order:**\n\n" + "".join(lines) + "\n"
    known = [one for one in comparison.agreement if one.tau is not None]
    if not known:
        return ""
    least = known[0]
    return (
        f"No two metrics contradict each other about two explainers; Kendall's τ is at least {least.tau:.2f} "
        f"({names.get(least.metric, least.metric)} and {names.get(least.other, least.other)}).\n\n"
    )


def _csv_table(comparison: Comparison) -> str:
    columns = list(comparison.columns())
    text = io.StringIO()
    writer = csv.writer(text)
    headings = [f"{one.metric}.{one.key}{end}" for one in columns for end in ("", "_low", "_high")]
    writer.writerow(["explainer", "error", *COST, *headings])
    for name, result in comparison.explainers.items():
        if isinstance(result, FailedExplainer):
            writer.writerow([name, result.error, *[""] * (len(COST) + len(headings))])
            continue
        row = [name, "", *(getattr(result, key) for key in COST)]
        for column in columns:
            value, interval = result.value(column.metric, column.key), result.interval(column.metric, column.key)
            row += ["" if value is None else value, *(interval or ("", ""))]
        writer.writerow(row)
    return text.getvalue()


def _write_tables(folder: Path, comparison: Comparison, command: Sequence[str] | None) -> None:
    write_json_file(folder / "results.json", comparison.to_json())
    write_atomically(folder / "results.csv", _csv_table(comparison).encode())
    dataset, classifier = comparison.dataset, comparison.classifier
    lines = [f"# Explainers of {classifier['id']}\n"]
    lines.append(
        f"{comparison.num_images} images of {dataset.get('name') or 'the data set'}"
        + (f" ({dataset['split']})" if dataset.get("split") else "")
        + f", classifier {classifier['classifier_fingerprint']}, on {comparison.device}. Numbers in brackets are "
        "95 % bootstrap intervals over images; passes are images through the classifier for one explanation.\n"
    )
    lines.append(_agreement_lines(comparison))
    lines.append(markdown_table(comparison))
    lines.append(seeds_table(comparison))
    lines.append(reach_table(comparison))
    lines.append(standings_tables(comparison))
    protocols: dict[str, Any] = {}
    for result in comparison.measured.values():
        for metric, one in result.metrics.items():
            protocols.setdefault(metric, one.protocol)
    for metric, protocol in protocols.items():
        if "note" in protocol:  # what nobody may read the numbers without
            heading = comparison.numbers[metric][0].heading_of(metric) if metric in comparison.numbers else metric
            lines.append(f"\n{heading}: {protocol['note']}.\n")
    fills = {
        name: one.protocol.get("trained_with")
        for name, result in comparison.measured.items()
        for one in result.metrics.values()
    }
    if trained := [f"{name}: {', '.join(own)}" for name, own in fills.items() if own]:
        lines.append(f"\nFills that heads were trained with (`seen`) are those of {'; '.join(trained)}.\n")
    lines.append("\n## Protocol\n\n```json\n" + json.dumps(protocols, indent=2) + "\n```\n")
    if command:
        lines.append(f"\n## Repeat\n\n```bash\n{shlex.join(command)}\n```\n")
        write_atomically(folder / "command.sh", (shlex.join(command) + "\n").encode())
    write_atomically(folder / "table.md", "".join(lines).encode())


# ------------------------------------------------------------------------------------------------- charts and pictures


def write_charts(folder: Path, comparison: Comparison, titles: Mapping[str, str] | None = None) -> None:
    """
    Bars of the main number of every metric, and its curves, as PNG and as vectors.

    Args:
        folder (`Path`): Where they go.
        comparison ([`Comparison`]): What they show.
        titles (`Mapping[str, str]`, *optional*): What heads are called; by default by their names.
    """
    for metric, numbers in comparison.numbers.items():
        _write_bars(folder, comparison, metric, numbers[0], _groups(comparison, metric, titles or {}))
    for metric, one in next(iter(comparison.measured.values())).metrics.items():
        for key in one.curves:
            _write_curves(folder, comparison, metric, key, _groups(comparison, metric, titles or {}))


_Groups = dict[str, tuple[str, list[ExplainerResult]]]


def _write_bars(folder: Path, comparison: Comparison, metric: str, number: Number, groups: _Groups) -> None:
    """The main number of a metric, with its interval, the best first."""
    higher = number.higher_is_better is not False
    values = {
        title: [one.metrics[metric].numbers[number.key] for one in results] for title, (_, results) in groups.items()
    }
    bars = {title: float(np.mean(found)) for title, found in values.items()}
    errors: dict[str, tuple[float, float]] = {}
    for title, (_, (first, *others)) in groups.items():
        if others:
            spread = float(np.std(values[title], ddof=1))
            errors[title] = (bars[title] - spread, bars[title] + spread)
        elif number.key in first.metrics[metric].intervals:
            low, high = first.metrics[metric].intervals[number.key]
            # where all bootstrap data sets agree, rounding may put an end a hair inside the mean
            errors[title] = (min(low, bars[title]), max(high, bars[title]))
    order = sorted(bars, key=lambda title: -bars[title] if higher else bars[title])
    controls = [title for title in order if groups[title][0] == "control"]
    measured = [title for title in order if title not in controls]
    kept = {*measured[: max(1, _MOST_BARS - len(controls))], *controls}
    shown = [title for title in order if title in kept]
    direction = "" if number.higher_is_better is None else f" ({'higher' if higher else 'lower'} is better)"
    seeds = any(len(results) > 1 for _, results in groups.values())
    whiskers = "whiskers: 95 % interval" + ", or standard deviation over seeds" * seeds
    left_out = f"; {len(order) - len(shown)} more in table.md" * (len(shown) < len(order))
    chart = bar_chart(
        {title: bars[title] for title in shown},
        {title: errors[title] for title in shown if title in errors},
        title=f"{number.title_of(number.key)}{direction}",
        x_label=f"{f'{number.unit}, ' if number.unit else ''}{whiskers}{left_out}",
        kinds={title: groups[title][0] for title in shown},
        precision=number.decimals,
        files=[folder / f"{metric}.{kind}" for kind in _VECTORS],
    )
    save_image(chart, folder / f"{metric}.png")


def _write_curves(folder: Path, comparison: Comparison, metric: str, key: str, groups: _Groups) -> None:
    first = next(iter(groups.values()))[1][0].metrics[metric]
    count = len(first.curves[key])
    steps = [100 * fraction for fraction in first.protocol.get("fractions", ())] or first.protocol.get("percents", ())
    if len(steps) != count:
        steps = np.linspace(0, 100, count).tolist()
    words, done, direction = _CURVES.get(key, (key, "removed", ""))
    curves = {
        title: 100 * np.array([one.metrics[metric].curves[key] for one in results])
        for title, (_, results) in groups.items()
    }
    order = sorted(curves, key=lambda title: curves[title].mean() * (1 if direction == "lower" else -1))
    controls = [title for title in order if groups[title][0] == "control"]
    kept = [title for title in order if title not in controls][: max(1, _MOST_BARS - len(controls))]
    shown = [title for title in order if title in kept or title in controls]
    main, better = comparison.numbers[metric][0], f", {direction} is better" * bool(direction)
    chart = plot_curves(
        {title: curves[title].mean(0) for title in shown},
        steps,
        bands={title: (curves[title].min(0), curves[title].max(0)) for title in shown if len(curves[title]) > 1},
        title=f"{words[:1].upper()}{words[1:]}\n{main.title_of(main.key)}{better}",
        x_label=f"pixels {done} (%)",
        y_label=_SCORES.get(first.protocol.get("score", ""), "score (%)"),
        kinds={title: groups[title][0] for title in shown},
        files=[folder / f"{metric}_{key}_curve.{kind}" for kind in _VECTORS],
    )
    save_image(chart, folder / f"{metric}_{key}_curve.png")


def _groups(comparison: Comparison, metric: str, titles: Mapping[str, str]) -> _Groups:
    """By what a chart calls it: the kind of an explainer and its results, those of one head's seeds together."""
    together = {name: one.name for one in comparison.seeds for name in one.explainers}
    found: _Groups = {}
    for name, result in comparison.measured.items():
        if metric not in result.metrics:
            continue
        known = METHOD_ENTRIES.get(name)
        kind = "trained head" if known is None else "training-free method"
        kind = "control" if is_control(name, result) else kind
        name = together.get(name, name)
        title = known.title if known is not None else titles.get(name, name)
        found.setdefault(title, (kind, []))[1].append(result)
    return found


def _write_pictures(folder: Path, data, measured: MeasuredComparison, count: int, image_column: str | None) -> None:
    """The images with the best and worst maps by the first metric, on average over the explainers except controls."""
    columns, built = measured.columns, measured.explainers
    metric, (judged, *_) = next(iter(measured.comparison.numbers.items()))
    key, sign = f"{metric}/{judged.key}", 1 if judged.higher_is_better else -1
    results = measured.comparison.measured
    shown = [name for name in built if not is_control(name, results[name])] or list(built)
    shared = min(len(columns[name][key]) for name in shown)
    scores = sign * np.mean([columns[name][key][:shared] for name in shown], axis=0)
    order = np.argsort(-scores, kind="stable").tolist()
    count = min(count, max(1, shared // 2))
    chosen = {"best": order[:count], "worst": order[::-1][:count]}
    wanted = {index for indices in chosen.values() for index in indices}
    reader = ExampleReader(data, built[shown[0]], image_column, max_examples=shared)
    examples = {
        index: reader.read(index, row) for _, rows in reader.shards(1, wanted.__contains__) for index, row in rows
    }
    classifier = built[shown[0]].classifier
    mean, std = classifier.image_mean, classifier.image_std
    panels = {index: [to_picture(example.pixel_values, mean, std)] for index, example in examples.items()}
    for name in shown:
        for index, example in examples.items():  # one by one: their sizes may differ
            pixel_values = example.pixel_values[None].to(device=classifier.device, dtype=classifier.dtype)
            target = torch.tensor([columns[name]["target"][index]], device=classifier.device)
            output = built[name].explain(pixel_values, target, torch.tensor([index]))
            maps = resize_maps(output.saliency.float(), pixel_values.shape[-2:])[0].clamp(0, 1)
            panels[index].append(overlay(panels[index][0], maps.cpu()))
    for kind, indices in chosen.items():
        captions = []
        for index in indices:
            label = short_label(classifier.id2label[columns[shown[0]]["prediction"][index]])
            captions.append([label, *(f"{columns[name][key][index]:.1f}" for name in shown)])
        grid = saliency_grid(
            [panels[index] for index in indices],
            columns=["image", *shown],
            captions=captions,
            row_labels=[f"image {index}" for index in indices],
        )
        save_image(grid, folder / f"{kind}.png")
