"""Every explainer of one classifier on the same images: a table with its protocol, charts, pictures of extremes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch

from hf_explain.backbones import FrozenClassifier
from hf_explain.evaluation import SaliencyEvaluator
from hf_explain.evaluation_inputs import ExampleReader, Explainer, resolve_explainer, seen_image
from hf_explain.files import check_writable, lock_directory, write_atomically
from hf_explain.mapping import METHODS, AutoModelForSaliency
from hf_explain.maps import resize_maps
from hf_explain.metrics import path as metric_path
from hf_explain.runtime import launched_processes, on_first_process
from hf_explain.sanity import check_sanity
from hf_explain.visualization import bar_chart, overlay, plot_curves, saliency_grid, save_image


CONTROLS = ("random", "centre")
# What needs many passes per image, unless the caller says otherwise
SLOW_METHODS = ("ablationcam", "scorecam", "rise", "occlusion", "lime", "kernel_shap", "fgvis")
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


def parse_explainers(text: str | Sequence[str]) -> dict[str, str | None]:
    """
    `"lcam=DIR,gradcam"` as `{"lcam": "DIR", "gradcam": None}`.

    Args:
        text (`str` or a list of `str`): Training-free methods by name, and heads as `NAME=DIRECTORY_OR_HUB_ID`.

    Raises:
        ValueError: If a name is no method and no head was given for it, or one occurs twice.
    """
    entries = text.split(",") if isinstance(text, str) else list(text)
    found: dict[str, str | None] = {}
    for entry in filter(None, (entry.strip() for entry in entries)):
        name, equals, source = entry.partition("=")
        if equals and (not source or not name or "/" in name or name in (".", "..")):
            raise ValueError(f"explainer {entry!r} is not NAME=DIRECTORY; write for example lcam=heads/lcam.")
        if equals and name in METHODS:
            raise ValueError(f"explainer {entry!r} has the name of a training-free method; call the head otherwise.")
        if not equals and name not in METHODS:
            raise ValueError(
                f"explainer {name!r} is no training-free method ({', '.join(METHODS)}); a trained head is given as "
                "NAME=DIRECTORY."
            )
        if name in found:
            raise ValueError(f"explainer {name!r} is given twice.")
        found[name] = source or None
    if not found:
        raise ValueError("`explainers` names none; give for example lcam=heads/lcam,gradcam.")
    return found


def compare(
    classifier: str | os.PathLike | FrozenClassifier,
    data,
    explainers: Mapping[str, Any] | Sequence[str] | str,
    metrics: Sequence[str] | str = ("auc_d", "average_drop"),
    *,
    output_dir: str | os.PathLike,
    max_examples: int | None = None,
    slow: Sequence[str] | None = None,
    slow_examples: int | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    sanity: bool = False,
    sanity_examples: int = 32,
    pictures: int = 4,
    command: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    revision: str | None = None,
    report: Callable[[str], None] = print,
    **options,
) -> dict[str, Any]:
    """
    Measure several explainers of one classifier and write what was found.

    The controls `random` and `centre` are always among them. An explainer that fails is a row with its reason; the
    others are kept. Every explainer has a folder of partial results, so that a killed comparison continues. Under
    `accelerate launch` the images are split over the processes, and the first one writes.

    Args:
        classifier (`str`, `os.PathLike` or [`FrozenClassifier`]): The classifier explained.
        data: As for [`SaliencyEvaluator.compute`].
        explainers (`dict`, `str` or a list of `str`): Name to head (or its directory), or to `None` for the
            training-free method of that name; or as for [`parse_explainers`].
        metrics (`str` or a list, *optional*): Metrics by name. `win_rate` compares each with `gradcam` (with `random`
            where there is none), on the average drop (or the first metric).
        output_dir (`str` or `os.PathLike`): Gets `table.md`, `results.json`, `results.csv`, charts and pictures.
        max_examples (`int`, *optional*): Only the first so many images.
        slow (list of `str`, *optional*): Explainers measured on `slow_examples` images only; those of `SLOW_METHODS`
            where not given.
        slow_examples (`int`, *optional*): See `slow`; all images where not given.
        method_options (`dict[str, dict]`, *optional*): Options by method.
        sanity (`bool`, *optional*, defaults to `False`): Also run [`~hf_explain.sanity.check_sanity`] on each.
        sanity_examples (`int`, *optional*, defaults to 32): Images of the sanity checks.
        pictures (`int`, *optional*, defaults to 4): Best and worst images shown; 0 for none.
        command (list of `str`, *optional*): What a person typed, for the table.
        seed (`int`, *optional*, defaults to 0): Of everything random.
        device (*optional*): Where the classifier is put; a GPU where there is one.
        revision (`str`, *optional*): Of a classifier given by its Hub id.
        report (`Callable`, *optional*): Gets the table and progress, line by line.
        options: More arguments of [`SaliencyEvaluator.compute`] (`target`, `presets`, `batch_size`, `image_column`,
            `shard_size`, ...).

    Returns:
        `dict`: `explainers` (name to result, or to its `error`), `classifier`, `dataset`, `num_images`, `settings`.

    Raises:
        ValueError: If the arguments cannot work, or the controls cannot be measured.
        OSError: If the classifier cannot be loaded, or `output_dir` not be written to, or another run is using it.
    """
    if not isinstance(explainers, Mapping):
        explainers = parse_explainers(explainers)
    metrics = [name for name in (metrics.split(",") if isinstance(metrics, str) else metrics) if name]
    for name in metrics:
        metric_path(name)
    measured = [name for name in metrics if name != "win_rate"]
    if not measured:
        raise ValueError("`metrics` needs at least one that measures maps, such as auc_d.")
    names = [*explainers, *(name for name in CONTROLS if name not in explainers)]
    for argument, given in (("slow", slow or ()), ("method_options", method_options or {})):
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"`{argument}` names {unknown[0]!r}, which is no explainer: {', '.join(names)}.")
    slow = SLOW_METHODS if slow is None else slow
    folder = Path(output_dir)
    rank, world, own_device = launched_processes()
    main = rank == 0

    def claim() -> None:
        held.enter_context(lock_directory(folder))
        check_writable(folder)

    with contextlib.ExitStack() as held:
        on_first_process(rank, world, claim)
        if not isinstance(classifier, FrozenClassifier):
            classifier = FrozenClassifier.from_pretrained(classifier, revision=revision)
        classifier.to(device or own_device or ("cuda" if torch.cuda.is_available() else "cpu"))

        evaluator, results, columns, built = SaliencyEvaluator(), {}, {}, {}
        # the controls first: what keeps them from being measured is no fault of an explainer
        for name in sorted(names, key=lambda name: name not in CONTROLS):
            count = max_examples
            if name in slow and slow_examples is not None:
                count = min(slow_examples, max_examples or slow_examples)
            try:
                model = _model(name, explainers.get(name), classifier)
                method = name if explainers.get(name) is None else None
                own_options = (method_options or {}).get(name)
                result = evaluator.compute(
                    model,
                    data,
                    measured,
                    method=method,
                    method_options=own_options,
                    max_examples=count,
                    seed=seed,
                    output_dir=folder / "explainers" / name,
                    return_columns=True,
                    **options,
                )
                columns[name] = result.pop("columns")
                if sanity and name not in CONTROLS:
                    result["sanity"] = check_sanity(
                        model,
                        data,
                        method=method,
                        method_options=own_options,
                        max_examples=min(sanity_examples, count or sanity_examples),
                        image_column=options.get("image_column"),
                        batch_size=options.get("batch_size", 8),
                        seed=seed,
                    )
                results[name] = result
                built[name] = resolve_explainer(model, method, own_options, seed)
            except Exception as error:
                if name in CONTROLS:
                    raise
                # one failing method must not cost the hours of the others; the command still ends with an error
                reason = " ".join(str(error).split()) or type(error).__name__
                if not isinstance(error, (ValueError, OSError)):
                    reason = f"{type(error).__name__}: {reason}"
                results[name] = {"error": reason}
                columns.pop(name, None)
                if main:
                    report(f"{name} failed: {reason}")
        results = {name: results[name] for name in names}
        if "win_rate" in metrics:
            _add_win_rates(results, columns, measured)
        comparison = _describe(results, classifier, columns)
        if main:
            _write_tables(folder, comparison, command)
            _write_charts(folder, results)
            if pictures:
                _write_pictures(folder, data, built, columns, measured[0], pictures, options.get("image_column"))
            report((folder / "table.md").read_text())
        return comparison


def _model(name: str, source, classifier: FrozenClassifier):
    if source is None:
        return classifier
    if isinstance(source, (str, os.PathLike)):
        # onto this very classifier: a head of another one says so instead of being compared
        source = AutoModelForSaliency.from_pretrained(source, classifier=classifier)
    return source.to(classifier.device)


def _add_win_rates(results, columns, measured) -> None:
    reference = "gradcam" if "gradcam" in columns else "random"
    metric = "average_drop" if "average_drop" in measured else measured[0]
    judged = evaluate.load(metric_path(metric))
    key = f"{metric}/{judged.main_result}"
    for name, found in columns.items():
        if name == reference:
            continue
        shared = min(len(found[key]), len(columns[reference][key]))
        preset = "higher_is_better" if judged.higher_is_better else "lower_is_better"
        win_rate = evaluate.load(metric_path("win_rate"), preset)
        scores = win_rate.measure(scores=found[key][:shared], other=columns[reference][key][:shared])
        results[name]["win_rate"] = win_rate.compute(**scores)
        results[name]["win_rate"]["protocol"] |= {"against": reference, "by": key.replace("/", " ")}


def _describe(results, classifier, columns) -> dict[str, Any]:
    first = next(result for result in results.values() if "error" not in result)
    common = ("explainer", "dataset", "settings", "versions", "device")
    kept = {
        name: {key: value for key, value in result.items() if key not in common or key == "explainer"}
        for name, result in results.items()
    }
    settings = {key: value for key, value in first["settings"].items() if key not in ("explainer", "dataset")}
    identity = {key: value for key, value in first["explainer"].items() if key.startswith("classifier")}
    return {
        "explainers": kept,
        "classifier": {**identity, "num_labels": classifier.num_labels, "id": identity["classifier"]},
        "dataset": first["dataset"],
        "num_images": max(len(found["image_ids"]) for found in columns.values()),
        "settings": settings,
        "versions": first["versions"],
        "device": first["device"],
    }


# ------------------------------------------------------------------------------------------------------------- tables


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


# ------------------------------------------------------------------------------------------------- charts and pictures


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
