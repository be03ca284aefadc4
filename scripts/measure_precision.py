#!/usr/bin/env python
"""
What bfloat16 changes: every metric and every explainer by itself, against float32, on the same images.

    python scripts/measure_precision.py measure --classifier DIR --dataset data.parquet --explainers gradcam -o FILE
    python scripts/measure_precision.py table FILE ...

A metric is measured on float32 maps with the classifier's passes in either precision; the largest difference over all
explainers counts. An explainer is measured by AUC-D and average drop of its maps in either precision, both in bfloat16
and the average drop also in float32. What stays within the bounds on every classifier may have `allows_bfloat16`.
Measured explainers are kept in FILE: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.passes import shared_pass
from hf_explain.classifiers.precision import passes_in
from hf_explain.evaluation.arguments import EvaluationArguments
from hf_explain.evaluation.comparison import parse_explainers
from hf_explain.evaluation.evaluator import load_metrics
from hf_explain.evaluation.explainer import Explainer, resolve_explainer
from hf_explain.evaluation.inputs import ExampleReader
from hf_explain.evaluation.sweep import LoadedMetric
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import write_json_file
from hf_explain.metrics import metric_numbers
from hf_explain.metrics.number import find_number
from hf_explain.registry import AutoModelForSaliency
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.sharing import sharing


# Of the mean over images, of 100
BOUNDS = {"average_drop": 0.2}
BOUND = 0.3
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
# precisions a metric runs in on maps in bfloat16
OF_MAPS = {"auc_d": ("bfloat16",), "average_drop": ("float32", "bfloat16")}


def measure(args: argparse.Namespace) -> None:
    """Every explainer that FILE lacks."""
    classifier = FrozenClassifier.from_pretrained(args.classifier)
    data = load_image_dataset(args.dataset, args.split)
    known = json.loads(args.output.read_text()) if args.output.exists() else {}
    for name, head in parse_explainers(args.explainers).items():
        if name in known:
            continue
        if head is None:
            options = {"num_masks": args.num_masks} if name == "rise" and args.num_masks else {}
            explainer = resolve_explainer(classifier, name, options, args.seed)
        else:
            explainer = resolve_explainer(AutoModelForSaliency.from_pretrained(head, classifier=classifier))
        known[name] = measure_one(explainer, data, args)
        write_json_file(args.output, known)
        print(name, json.dumps(known[name]["seconds"]), flush=True)


def measure_one(explainer: Explainer, data, args: argparse.Namespace) -> dict[str, Any]:
    """
    Means over the images of one explainer's numbers.

    Returns:
        `dict`: `num_images`, `explainer`, `seconds` per image by what was run and its precision,
        `largest_map_difference`, and `numbers` by metric, precision of the maps and precision of the metric.
    """
    reader = ExampleReader(data, explainer, max_examples=args.max_examples)
    metrics = load_metrics(EvaluationArguments(metrics=args.metrics, seed=args.seed))
    columns: dict[tuple[str, str, str], dict[str, list]] = {}
    seconds: dict[str, float] = {}
    largest = 0.0
    for _, rows in reader.shards(args.batch_size, lambda shard: True):
        pixel_values = torch.stack([reader.read(index, row).pixel_values for index, row in rows])
        pixel_values = pixel_values.to(explainer.classifier.device)
        ids = torch.tensor([index for index, _ in rows])
        maps = {}
        for dtype in DTYPES:
            began = time.perf_counter()
            with passes_in(DTYPES[dtype]):
                maps[dtype] = explainer.explain(pixel_values, None, ids)
            add(seconds, f"explain {dtype}", time.perf_counter() - began)
        gap = (maps["float32"].saliency - maps["bfloat16"].saliency).abs()
        largest = max(largest, gap.max().item())
        for of_maps, output in maps.items():
            for name, metric in metrics.items():
                for dtype in DTYPES if of_maps == "float32" else OF_MAPS.get(name, ()):
                    began = time.perf_counter()
                    found = run_metric(metric, explainer.classifier, pixel_values, output, ids, dtype)
                    if of_maps == "float32":
                        add(seconds, f"{name} {dtype}", time.perf_counter() - began)
                    kept = columns.setdefault((name, of_maps, dtype), {})
                    for column, entries in found.items():
                        kept.setdefault(column, []).extend(entries)
    numbers: dict[str, Any] = {}
    for (name, of_maps, dtype), kept in columns.items():
        result = metrics[name].module.compute(**kept)
        means = {key: value for key, value in result.items() if isinstance(value, float)}
        numbers.setdefault(name, {}).setdefault(of_maps, {})[dtype] = means
    return {
        "num_images": reader.total,
        "explainer": explainer.identity,
        "seconds": {name: round(value / reader.total, 4) for name, value in seconds.items()},
        "largest_map_difference": largest,
        "numbers": numbers,
    }


def run_metric(
    metric: LoadedMetric,
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    output: SaliencyOutput,
    ids: torch.Tensor,
    dtype: str,
) -> dict[str, list]:
    """The metric's columns, everything it runs in one precision."""
    with sharing(), passes_in(DTYPES[dtype]):
        return metric.module.measure(
            classifier,
            pixel_values,
            output.saliency,
            target=output.target,
            logits=shared_pass(classifier, "forward", pixel_values),
            image_ids=ids,
            image_mean=classifier.image_mean,
            image_std=classifier.image_std,
            **metric.options,
        )


def add(totals: dict[str, float], name: str, value: float) -> None:
    totals[name] = totals.get(name, 0.0) + value


# ----------------------------------------------------------------------------------------------------------- the table


def tables(files: dict[str, dict[str, Any]]) -> str:
    """
    Two tables in Markdown: of the metrics and of the explainers, a column per classifier.

    Args:
        files (`dict`): By the name of a classifier what `measure` wrote.
    """
    rows: dict[str, dict[str, list[tuple[str, float]]]] = {"metric": {}, "explainer": {}}
    worst: dict[tuple[str, str], float] = {}
    for kind, name, number, classifier, difference, bound in differences(files):
        worst[kind, name] = max(worst.get((kind, name), 0.0), abs(difference) / bound)
        rows[kind].setdefault(f"`{name}` | {number}", []).append((classifier, difference))
    lines = []
    for kind, found in rows.items():
        lines += [f"| {kind} | number | {' | '.join(files)} | within bounds |", f"|---|---|{'---:|' * len(files)}---|"]
        for row, cells in found.items():
            by_classifier: dict[str, float] = {}
            for classifier, difference in cells:
                by_classifier[classifier] = max(by_classifier.get(classifier, 0.0), difference, key=abs)
            values = [f"{by_classifier[one]:+.2f}" if one in by_classifier else "–" for one in files]
            verdict = "yes" if worst[kind, row.split("`")[1]] <= 1 else "no"
            lines.append(f"| {row} | {' | '.join(values)} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def differences(files: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, str, float, float]]:
    """What differs (a metric or an explainer), its name, the number, the classifier, by how much of 100, the bound."""
    for classifier, explainers in files.items():
        for explainer, found in explainers.items():
            for metric, by_maps in found["numbers"].items():
                numbers, bound = metric_numbers(metric), BOUNDS.get(metric, BOUND)
                for of_maps, passes in product(by_maps, DTYPES):
                    whole = of_maps == "bfloat16"
                    # one thing at a time: other maps in the same passes, or other passes on the same maps
                    before = by_maps["float32"][passes if whole else "float32"]
                    for key, value in by_maps[of_maps].get(passes, {}).items():
                        number = find_number(numbers, key)
                        difference = (value - before[key]) * (1 if number.unit else 100)
                        if whole and key == numbers[0].key:
                            yield "explainer", explainer, f"{key}, in {passes}", classifier, difference, bound
                        elif not whole and passes == "bfloat16" and not (number.per_percent and key == number.key):
                            yield "metric", metric, key, classifier, difference, bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help="measure explainers and metrics on one classifier")
    measuring.add_argument("--classifier", required=True, help="directory or Hub id")
    measuring.add_argument("--dataset", required=True, help="data set: file, directory or Hub id")
    measuring.add_argument("--split", default="train", help="its split")
    measuring.add_argument("--explainers", required=True, help="as for `hf-explain evaluate`")
    measuring.add_argument("--metrics", default="auc_d,average_drop", help="metrics of hf_explain.metrics")
    measuring.add_argument("--num_masks", type=int, help="of rise, instead of its default")
    measuring.add_argument("--max_examples", type=int, help="only the first so many images")
    measuring.add_argument("--batch_size", type=int, default=8, help="images per pass")
    measuring.add_argument("--seed", type=int, default=0, help="seed of everything random")
    measuring.add_argument(
        "-o", "--output", type=Path, required=True, help="JSON file; what it has is not measured again"
    )
    measuring.set_defaults(run=measure)
    table = commands.add_parser("table", help="what several such files say")
    table.add_argument("files", nargs="+", type=Path, help="called after their classifiers")
    table.set_defaults(run=lambda args: print(tables({one.stem: json.loads(one.read_text()) for one in args.files})))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
