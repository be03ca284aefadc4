#!/usr/bin/env python
"""
Train every head on every classifier, compare them with the training-free methods, and write one table.

    python scripts/run_evidence.py train    --classifiers resnet=DIR vit=DIR --dataset DATA --output_dir evidence
    python scripts/run_evidence.py sweep    --classifiers resnet=DIR --heads ttame --vary learning_rate=0.02,0.05 ...
    python scripts/run_evidence.py evaluate --classifiers resnet=DIR vit=DIR --dataset DATA --output_dir evidence
    python scripts/run_evidence.py table    --output_dir evidence
    python scripts/run_evidence.py summary  --output_dir evidence --numbers comparison/auc_d comparison/road

It only drives `hf-explain train` and `hf-explain evaluate`. Every run has a directory of its own, with the command,
the log, the record (settings, seed, versions) and the head: `OUT/CLASSIFIER/HEAD-seedN`, sweeps under
`OUT/CLASSIFIER/sweep`. What is finished is not done again, and what was killed goes on: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.results import Column, Comparison, ExplainerResult
from hf_explain.io.files import RECORD_FILE, write_atomically
from hf_explain.metrics import metric_numbers, names
from hf_explain.registry import CONTROLS, METHODS, SLOW_METHODS, methods_for
from hf_explain.tensors.perturbation import FILLS


Head = tuple[str, str | None, dict[str, Any]]  # kind, preset, fields of its config

# "as published" apart from what a name says
HEADS: dict[str, Head] = {
    "lcam-fm": ("lcam", None, {"variant": "fm"}),
    "lcam-img": ("lcam", None, {"variant": "img"}),
    "ttame": ("ttame", None, {}),
    # two doublings, then a bilinear resize: full resolution costs many times more and the target has no fine detail
    "scan": ("scan", None, {"levels": 2}),
    # ours: whole positions, by their contribution
    "scan-contribution": ("scan", "contribution", {}),
    "lcam-img-removal": ("lcam", None, {"variant": "img", "removal_weight": 1.0}),
    # black, also where the authors mask with the mean colour (ViT): what is removed is then what AUC-D removes
    "ttame-removal": ("ttame", None, {"removal_weight": 1.0, "mask_space": "pixel"}),
    # the ranking term instead of everything that looks at the map's area; with one map an image, "batch" has no sense
    "ttame-ranking": (
        "ttame",
        None,
        {"ranking_weight": 1.0, "ce_weight": 0.0, "area_weight": 0.0, "regularize": "own", "mask_space": "pixel"},
    ),
    # the same, whatever removed pixels become
    "ttame-ranking-fills": ("ttame", "ranking", {"ce_weight": 0.0, "contrast": None, "context_size": 1}),
    # and the map itself, at a contrast of its own, has to keep the class, too: what average drop asks
    "ttame-ranking-contrast": ("ttame", "ranking", {"mask_fills": None, "mask_space": "pixel"}),
    "ttame-ranking-contrast-fills": ("ttame", "ranking", {}),
}
# What a head's authors train with, where it is not the command's default
TRAINING: dict[str, dict[str, Any]] = {
    "scan": {"optimizer": "adam", "learning_rate": 1e-3, "lr_scheduler": "constant", "weight_decay": 0.0},
    # ours: the same, warmed up and annealed
    "scan-contribution": {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0},
}
# What a row is called where readers choose
TITLES = {
    "ttame-ranking-contrast-fills": "T-TAME, preset `ranking` (ours)",
    "ttame-ranking-contrast": "T-TAME, preset `ranking`, black alone",
    "ttame-ranking-fills": "T-TAME, ranking term and drawn fills",
    "ttame-ranking": "T-TAME, ranking term alone",
    "ttame-removal": "T-TAME, removal term",
    "ttame": "T-TAME as published",
    "lcam-img": "L-CAM-Img as published",
    "lcam-img-removal": "L-CAM-Img, removal term",
    "lcam-fm": "L-CAM-Fm as published",
    "scan": "SCAN as published",
    "scan-contribution": "SCAN, contribution (ours)",
}
COMPARISON = "results.json"
SCRIPT = "run.sh"
# The numbers in the tables, in this order; what they are called and how exact they are stands with their metrics
SHOWN = (
    "auc_d",
    "auc_d_fills",
    *(f"auc_d_fill_{fill}" for fill in FILLS),
    "average_drop",
    "increase_in_confidence",
    "insertion_auc",
    "deletion_auc",
    "road",
)


def pairs(entries: Iterable[str], argument: str) -> dict[str, str]:
    """`["a=b"]` as `{"a": "b"}`, or one sentence that says what is wrong."""
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (equals and name and value) or name in found:
            raise SystemExit(f"error: --{argument} {entry!r} is not NAME=VALUE, or {name!r} is given twice.")
        found[name] = value
    return found


def parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def train_command(head: Head, training: dict[str, Any], classifier: str, args) -> list[str]:
    kind, preset, fields = head
    words = ["--classifier", classifier, "--dataset", args.dataset, "--head", kind]
    if preset is not None:
        words += ["--preset", preset]
    for name, value in fields.items():
        words += ["--head_option", f"{name}={json.dumps(value)}"]
    for name, value in training.items():
        if value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def command(entry_point: str, words: list[str]) -> str:
    return shlex.join(["hf-explain", entry_point, *words]) + "\n"


def run(entry_point: str, words: list[str], directory: Path) -> bool:
    """Start an entry point in `directory`; its command and log stay there."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / SCRIPT, command(entry_point, words).encode())
    print(f"== {directory}: hf-explain {entry_point} ...", flush=True)
    with open(directory / "run.log", "ab") as log:
        code = f"import sys; from hf_explain.cli import main; sys.exit(main({[entry_point, *words]!r}))"
        status = subprocess.run([sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT).returncode
    if status != 0:
        last = (directory / "run.log").read_text(errors="replace").strip().splitlines()[-1:]
        print(f"   failed ({status}): {last[0] if last else 'no output'}", flush=True)
    return status == 0


def train(directory: Path, head: Head, training: dict[str, Any], classifier: str, args) -> bool:
    if (directory / RECORD_FILE).is_file():
        return True
    words = train_command(head, training, classifier, args)
    words += ["--output_dir", str(directory), "--resume_from_checkpoint", "last", "--no_progress"]
    return run("train", words, directory)


def heads(args) -> Iterator[tuple[str, Head, dict[str, Any]]]:
    """Name, kind with preset and fields, and training settings of the heads asked for."""
    fields_for_all = {name: parse(value) for name, value in pairs(args.head_option, "head_option").items()}
    common = {name: parse(value) for name, value in pairs(args.training, "training").items()}
    for name in args.heads:
        kind, preset, fields = HEADS[name]
        yield name, (kind, preset, {**fields, **fields_for_all}), {**TRAINING.get(name, {}), **common}


def train_all(args) -> bool:
    good = True
    for seed in args.seeds:
        for name, head, training in heads(args):
            for family, classifier in args.classifiers.items():
                directory = args.output_dir / family / f"{name}-seed{seed}"
                good &= train(directory, head, {**training, "seed": seed}, classifier, args)
    return good


def sweep(args) -> bool:
    """Every combination of the values in `--vary`, trained, measured on `--split`, and put side by side."""
    axes = {name: [parse(value) for value in values.split(",")] for name, values in pairs(args.vary, "vary").items()}
    good = True
    for family, classifier in args.classifiers.items():
        for name, (kind, preset, fields), training in heads(args):
            root = args.output_dir / family / "sweep"
            trained = {}
            for values in product(*axes.values()):
                chosen = dict(zip(axes, values, strict=True))
                options, settings = dict(fields), dict(training)
                for key, value in chosen.items():
                    owner, _, field = key.rpartition(".")
                    (options if owner == "head" else settings)[field] = value
                for seed in args.seeds:
                    settings["seed"] = seed
                    label = "-".join([name, *(f"{key.rpartition('.')[2]}_{value}" for key, value in chosen.items())])
                    directory = root / f"{label}-seed{seed}"
                    if train(directory, (kind, preset, options), settings, classifier, args):
                        trained[directory.name] = directory
                    else:
                        good = False
            varied = [key.rpartition(".")[2] for key in axes]
            good &= compare(classifier, trained, root / "-".join(["comparison", name, *varied]), args)
    return good


def compare(classifier: str, trained: dict[str, Path], directory: Path, args) -> bool:
    undefined = set(METHODS).difference(methods_for(FrozenClassifier.from_pretrained(classifier)))
    methods = [name for name in args.methods if name not in undefined]
    explainers = [f"{name}={head}" for name, head in trained.items()] + methods
    words = ["--classifier", classifier, "--dataset", args.dataset, "--split", args.split]
    words += ["--explainers", ",".join(explainers), "--metrics", args.metrics, "--max_examples", str(args.examples)]
    slow = [name for name in methods if name in args.slow_methods]
    if slow:
        words += ["--slow", ",".join(slow), "--slow_examples", str(args.slow_examples)]
    for option in args.method_option:
        if option.partition(".")[0] in methods:
            words += ["--method_option", option]
    for option in args.metric_option:
        words += ["--metric_option", option]
    words += ["--sanity"] * args.sanity + ["--batch_size", str(args.batch_size), "--output_dir", str(directory)]
    words.append("--no_progress")
    asked = (directory / COMPARISON).is_file() and (directory / SCRIPT).is_file() and (directory / SCRIPT).read_text()
    if asked == command("evaluate", words):
        comparison = read_comparison(directory / COMPARISON)
        if comparison.measured.keys() == comparison.explainers.keys():
            return True
    return run("evaluate", words, directory)  # what it has measured of this comparison, it does not measure again


def evaluate_all(args) -> bool:
    good = True
    for family, classifier in args.classifiers.items():
        found: dict[str, Path] = {}
        for name, seed in product(args.heads, args.seeds):
            directory = args.output_dir / family / f"{name}-seed{seed}"
            if (directory / RECORD_FILE).is_file():
                # the first one stands for the head, on its card too
                found[f"{name}-seed{seed}" if name in found else name] = directory
        good &= compare(classifier, found, args.output_dir / family / args.comparison, args)
    return good


def table(args) -> bool:
    """`table.md`: per comparison, every explainer; several seeds of a head as mean ± standard deviation."""
    lines: list[str] = []
    directions: dict[str, bool | None] = {}
    for file in sorted(args.output_dir.glob(f"*/{args.comparison}/{COMPARISON}")):
        comparison = read_comparison(file)
        rows = by_explainer(comparison)
        columns = [column for key in SHOWN for column in comparison.distinct_columns() if column.number.key == key]
        measured = [one for found in rows.values() for one in found]
        columns = [column for column in columns if all(has_number(one, column) for one in measured)]
        if not columns:
            continue
        directions |= {one.number.heading or one.number.name: one.number.higher_is_better for one in columns}
        lines += [f"\n### {file.parent.parent.name}, {file.parent.name}: {comparison.classifier['id']}\n"]
        headings = [column.number.heading_of(column.key) for column in columns]
        lines += ["| explainer | images | " + " | ".join([*headings, "ms/image", "passes"]) + " |"]
        lines += ["|---" + "|---:" * (len(headings) + 3) + "|"]
        for name, results in sorted(rows.items(), key=lambda row: -mean(values(row[1], columns[0]))):
            cells = [name, str(results[0].num_images)]
            cells += [spread(values(results, column), column.number.decimals) for column in columns]
            cells.append(f"{1000 * mean(one.seconds_per_image for one in results):.1f}")
            cells.append(f"{results[0].forward_passes_per_image:g}")
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        raise SystemExit(f"error: --output_dir {str(args.output_dir)!r} has no comparison; run `evaluate` first.")
    better = {"Higher": [], "Lower": []}
    for name, higher in directions.items():
        better["Higher" if higher else "Lower"].append(name)
    legend = (
        "# Every explainer on every classifier\n\n"
        + "".join(f"{word} is better: {'; '.join(found)}. " for word, found in better.items() if found)
        + "Several seeds: mean ± standard deviation. ms/image and passes: of the explanation alone. Printed by "
        "`scripts/run_evidence.py table`."
    )
    write_atomically(args.output_dir / "table.md", "\n".join([legend, *lines]).encode() + b"\n")
    print((args.output_dir / "table.md").read_text())
    return True


def read_comparison(file: Path) -> Comparison:
    return Comparison.from_json(json.loads(file.read_text()))


def by_explainer(comparison: Comparison) -> dict[str, list[ExplainerResult]]:
    """The results of every explainer that has some: those of a head's seeds together."""
    rows: dict[str, list[ExplainerResult]] = {}
    for name, result in comparison.measured.items():
        rows.setdefault(name.rpartition("-seed")[0] or name, []).append(result)
    return rows


def values(results: list[ExplainerResult], column: Column) -> list[float]:
    return [result.metrics[column.metric].numbers[column.key] for result in results]


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def summary(args) -> bool:
    """`summary.md`: a row an explainer, a column a classifier, in each cell `--numbers`, of several comparisons."""
    known = {number.key: Column(metric, number.key, number) for metric in names() for number in metric_numbers(metric)}
    numbers: list[tuple[str, Column | None]] = []  # comparison and number; None for the sanity checks
    for entry in args.numbers:
        directory, _, key = entry.rpartition("/")
        column = next((one._replace(key=key) for one in known.values() if one.number.describes(key)), None)
        if not directory or column is None and key != "sanity":
            listed = ", ".join([*known, "sanity"])
            raise SystemExit(f"error: --numbers {entry!r} is not COMPARISON/NUMBER with one of {listed}.")
        numbers.append((directory, column))
    found: dict[tuple[str, str], dict[str, list[ExplainerResult]]] = {}
    for directory in dict.fromkeys(directory for directory, _ in numbers):
        for file in sorted(args.output_dir.glob(f"*/{directory}/{COMPARISON}")):
            found[file.parent.parent.name, directory] = by_explainer(read_comparison(file))
    if not found:
        raise SystemExit(f"error: --output_dir {str(args.output_dir)!r} has none of --numbers; run `evaluate` first.")
    families = list(args.classifiers) or sorted({family for family, _ in found})
    lines = [f"| explainer | passes | {' | '.join(families)} |", "|---|---:" + "|---" * len(families) + "|"]
    for name in args.explainers or dict.fromkeys(name for rows in found.values() for name in rows):
        cells, costs = [], []
        for family in families:
            cell, options = [], None
            for place, (directory, column) in enumerate(numbers):
                results = found.get((family, directory), {}).get(name, [])
                own = [result.explainer.get("method_options") for result in results[:1]]
                options = own if options in (None, []) else options
                if own != options or not all(has_number(result, column) for result in results):
                    results = []  # with other options it is another explainer
                cell.append(summary_cell(results, column, args.intervals and place == 0))
                costs += [(one.forward_passes_per_image, one.tail_passes_per_image) for one in results]
            cells.append("–" if set(cell) == {"–"} else " · ".join(cell))
        cells.insert(0, passes(costs))
        lines.append(f"| {TITLES.get(name, f'`{name}`')} | {' | '.join(cells)} |")
    write_atomically(args.output_dir / "summary.md", "\n".join(lines).encode() + b"\n")
    print("\n".join(lines))
    return True


def has_number(result: ExplainerResult, column: Column | None) -> bool:
    return result.sanity is not None if column is None else result.value(column.metric, column.key) is not None


def summary_cell(results: list[ExplainerResult], column: Column | None, with_interval: bool) -> str:
    """One number of the results of one explainer, or the sanity checks."""
    if not results:
        return "–"
    if column is None:
        return failed_checks(results)
    text = spread(values(results, column), column.number.decimals)
    interval = results[0].interval(column.metric, column.key)
    if with_interval and len(results) == 1 and interval is not None:
        text += " [{:.{digits}f}, {:.{digits}f}]".format(*interval, digits=column.number.decimals)
    return text


def failed_checks(results: list[ExplainerResult]) -> str:
    """The sanity checks that one of the results at least failed."""
    checks = [check for result in results if result.sanity for check in result.sanity.checks.items()]
    failed = dict.fromkeys(name.replace("_", " ") for name, check in checks if not check.get("passed", True))
    return f"fails: {', '.join(failed)}" if failed else "passes"


def passes(costs: list[tuple[float, float]]) -> str:
    """Forward passes an image, the fewest and the most; `+ tail` where a part of the classifier runs once more."""
    if not costs:
        return "–"
    fewest, most = min(forward for forward, _ in costs), max(forward for forward, _ in costs)
    both = f"{fewest:g}" if fewest == most else f"{fewest:g}–{most:g}"
    return both + " + tail" * any(tail for _, tail in costs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "sweep", "evaluate", "table", "summary"))
    parser.add_argument(
        "--classifiers", nargs="+", default=[], metavar="NAME=DIR", help="name and directory or Hub id"
    )
    parser.add_argument("--dataset", help="images: `train` is trained on, `--split` is measured on")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--training", nargs="+", default=[], metavar="NAME=VALUE", help="settings of `hf-explain train`, for all heads"
    )
    parser.add_argument(
        "--head_option", nargs="+", default=[], metavar="NAME=VALUE", help="config fields, for all heads asked for"
    )
    parser.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="NAME=A,B",
        help="sweep: values of a training setting, or of a config field as head.NAME",
    )
    parser.add_argument("--split", default="validation", help="measured split, slices too (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=500, help="images measured (default: %(default)s)")
    parser.add_argument("--methods", nargs="*", default=["gradcam"], help="training-free methods compared with")
    parser.add_argument("--slow_methods", nargs="*", default=list(SLOW_METHODS), help="measured on --slow_examples")
    parser.add_argument("--slow_examples", type=int, default=100)
    parser.add_argument("--method_option", nargs="*", default=[], metavar="METHOD.OPTION=VALUE")
    parser.add_argument("--metrics", default="auc_d,average_drop")
    parser.add_argument("--metric_option", nargs="*", default=[], metavar="METRIC.OPTION=VALUE")
    parser.add_argument(
        "--comparison",
        default="comparison",
        metavar="NAME",
        help="directory `evaluate` writes to, below each classifier's; table: a pattern, for several",
    )
    parser.add_argument(
        "--numbers",
        nargs="+",
        default=["comparison/auc_d", "comparison/average_drop_100", "comparison/increase_in_confidence_100"],
        metavar="COMPARISON/NUMBER",
        help="summary: what stands in a cell (default: %(default)s)",
    )
    parser.add_argument("--explainers", nargs="+", default=[], metavar="NAME", help="summary: its rows (default: all)")
    parser.add_argument("--intervals", action="store_true", help="summary: 95 %% intervals of the first number")
    parser.add_argument("--sanity", action="store_true", help="also run the sanity checks")
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    # a summary only asks for the names, in order
    args.classifiers = pairs(
        [entry if "=" in entry or args.stage != "summary" else f"{entry}={entry}" for entry in args.classifiers],
        "classifiers",
    )
    if args.stage not in ("table", "summary") and not (args.classifiers and args.dataset):
        parser.error(f"{args.stage} needs --classifiers and --dataset")
    if args.stage == "sweep" and not args.vary:
        parser.error("sweep needs --vary")
    args.methods = [name for name in args.methods if name not in CONTROLS]
    stages = {"train": train_all, "sweep": sweep, "evaluate": evaluate_all, "table": table, "summary": summary}
    return 0 if stages[args.stage](args) else 1


if __name__ == "__main__":
    sys.exit(main())
