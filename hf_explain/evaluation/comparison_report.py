"""A comparison as files: tables with their protocol, charts, pictures of the best and worst cases."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch

from hf_explain.evaluation.explainer import Explainer
from hf_explain.evaluation.inputs import ExampleReader, seen_image
from hf_explain.io.charts import bar_chart, plot_curves
from hf_explain.io.files import write_atomically
from hf_explain.io.pictures import overlay, saliency_grid, save_image
from hf_explain.metrics import path as metric_path
from hf_explain.registry import CONTROLS
from hf_explain.tensors.maps import resize_maps


# The field's short names, for tables; a key may go on behind them, as in average_drop_50
_HEADINGS = {
    "auc_d": "AUC-D",
    "positive_auc": "positive AUC",
    "negative_auc": "negative AUC",
    "average_drop": "AD",
    "increase_in_confidence": "IC",
    "road": "ROAD",
}
_NO_METRICS = ("num_images", "seconds_per_image", "forward_passes_per_image", "tail_passes_per_image")


def table_columns(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """`(metric, number)` of every scalar the metrics of a comparison give, the main number of each metric first."""
    found: dict[tuple[str, str], None] = {}
    for result in results.values():
        for metric, values in result.items():
            if isinstance(values, Mapping) and "protocol" in values:
                scalars = [key for key in values if isinstance(values[key], (int, float)) and key not in _NO_METRICS]
                found.update(dict.fromkeys((metric, key) for key in sorted(scalars, key=lambda key: key != metric)))
    return list(found)


def _shown_columns(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The columns a page has room for: the CSV and the JSON have all."""
    shown = [(metric, key) for metric, key in table_columns(results) if not key.startswith("mask_area")]
    for metric in dict(shown):
        # a main number that is the first of a series, such as AD at 100 %, would stand there twice
        series = [key for owner, key in shown if owner == metric and key.startswith(f"{metric}_")]
        measured = [result[metric] for result in results.values() if metric in result]
        if any(all(values[key] == values[metric] for values in measured) for key in series):
            shown.remove((metric, metric))
    return shown


def _heading(key: str) -> str:
    for name, short in _HEADINGS.items():
        if key.startswith(name):
            return (short + key.removeprefix(name).replace("_", " ")).strip()
    return key.replace("_", " ")


def markdown_table(comparison: Mapping[str, Any]) -> str:
    """The comparison as a table: main numbers with 95 % intervals, cost, and the reason where one failed."""
    results = comparison["explainers"]
    numbers = _shown_columns(results)
    first = {key for index, (metric, key) in enumerate(numbers) if metric not in dict(numbers[:index])}
    headings = [_heading(key) for _, key in numbers]
    head = ["explainer", "images", *headings, "ms/image", "passes", "tail passes"]
    checked = any("sanity" in result for result in results.values())
    lines = [head + ["sanity"] * checked, ["---"] + ["---:"] * (len(head) - 1) + ["---"] * checked]
    for name, result in results.items():
        if "error" in result:
            lines.append([name, f"failed: {result['error']}".replace("|", "/"), *[""] * (len(lines[0]) - 2)])
            continue
        row = [name, str(result["num_images"])]
        for metric, key in numbers:
            values = result.get(metric, {})
            cell = f"{values[key]:.2f}" if key in values else ""
            if cell and key in first and f"{key}_interval" in values:
                cell += " [{:.2f}, {:.2f}]".format(*values[f"{key}_interval"])
            row.append(cell)
        row += [f"{1000 * result['seconds_per_image']:.1f}"]
        row += [f"{result[key]:g}" for key in ("forward_passes_per_image", "tail_passes_per_image")]
        lines.append(row + [result["sanity"]["verdict"] if "sanity" in result else ""] * checked)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write_tables(folder: Path, comparison, command) -> None:
    results = comparison["explainers"]
    write_atomically(folder / "results.json", (json.dumps(comparison, indent=2) + "\n").encode())
    numbers = table_columns(results)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["explainer", "error", *_NO_METRICS]
        + [f"{metric}.{key}{end}" for metric, key in numbers for end in ("", "_low", "_high")]
    )
    for name, result in results.items():
        row = [name, result.get("error", ""), *(result.get(key, "") for key in _NO_METRICS)]
        for metric, key in numbers:
            values = result.get(metric, {})
            row += [values.get(key, ""), *values.get(f"{key}_interval", ("", ""))]
        writer.writerow(row)
    write_atomically(folder / "results.csv", text.getvalue().encode())
    dataset, classifier = comparison["dataset"], comparison["classifier"]
    lines = [f"# Explainers of {classifier['id']}\n"]
    lines.append(
        f"{comparison['num_images']} images of {dataset.get('name') or 'the data set'}"
        + (f" ({dataset['split']})" if dataset.get("split") else "")
        + f", classifier {classifier['classifier_fingerprint']}, on {comparison['device']}. Numbers in brackets are "
        "95 % bootstrap intervals over images; passes are images through the classifier for one explanation.\n"
    )
    lines.append(markdown_table(comparison))
    protocols = _protocols(results)
    lines.append("\n## Protocol\n\n```json\n" + json.dumps(protocols, indent=2) + "\n```\n")
    if command:
        lines.append(f"\n## Repeat\n\n```bash\n{shlex.join(command)}\n```\n")
        write_atomically(folder / "command.sh", (shlex.join(command) + "\n").encode())
    write_atomically(folder / "table.md", "".join(lines).encode())


def _protocols(results) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for result in results.values():
        for metric, values in result.items():
            if isinstance(values, Mapping) and "protocol" in values:
                found.setdefault(metric, values["protocol"])
    return found


def _write_charts(folder: Path, results) -> None:
    good = {name: result for name, result in results.items() if "error" not in result}
    first = next(iter(good.values()))
    for metric, key in table_columns(good):
        if key != metric:
            continue
        bars = {name: result[metric][key] for name, result in good.items() if metric in result}
        errors = {name: tuple(good[name][metric][f"{key}_interval"]) for name in bars}
        # where all bootstrap data sets agree, rounding may put an end a hair inside the mean
        errors = {name: (min(low, bars[name]), max(high, bars[name])) for name, (low, high) in errors.items()}
        ordered = sorted(bars, key=bars.get, reverse=True)
        chart = bar_chart(
            {name: bars[name] for name in ordered},
            errors,
            title=f"{_heading(metric)}, 95 % intervals",
            x_label=_heading(metric),
            highlight=[name for name in CONTROLS if name in bars],
        )
        save_image(chart, folder / f"{metric}.png")
    for metric, values in first.items():
        if not isinstance(values, Mapping):
            continue
        for key in [key for key in values if key.endswith("_curve")]:
            curves = {name: 100 * np.asarray(result[metric][key]) for name, result in good.items()}
            steps = values["protocol"].get("fractions")
            if steps is None or len(steps) != len(values[key]):
                steps = np.linspace(0, 1, len(values[key]))
            chart = plot_curves(
                curves,
                100 * np.asarray(steps),
                title=f"{_heading(metric)}: {key.removesuffix('_curve')}",
                x_label=f"pixels {'inserted' if key.startswith('insertion') else 'removed'} (%)",
                y_label=f"{values['protocol'].get('score', 'score')} (%)",
            )
            save_image(chart, folder / f"{metric}_{key}.png")


def _write_pictures(folder, data, built: dict[str, Explainer], columns, metric: str, count: int, image_column) -> None:
    """The images whose maps serve best and worst, by the mean over the explainers that are no controls."""
    judged = evaluate.load(metric_path(metric))
    key, sign = f"{metric}/{judged.main_result}", 1 if judged.higher_is_better else -1
    shown = [name for name in built if name not in CONTROLS] or list(built)
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
    panels = {index: [seen_image(example.pixel_values, classifier)] for index, example in examples.items()}
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
            label = classifier.id2label[columns[shown[0]]["prediction"][index]].split(",")[0]
            captions.append([label, *(f"{columns[name][key][index]:.1f}" for name in shown)])
        grid = saliency_grid(
            [panels[index] for index in indices],
            columns=["image", *shown],
            captions=captions,
            row_labels=[f"image {index}" for index in indices],
        )
        save_image(grid, folder / f"{kind}.png")
