#!/usr/bin/env python
"""
Train every head on every classifier, compare them with the training-free methods, and write one table.

    python scripts/run_evidence.py tune     --classifiers resnet=DIR vit=DIR --dataset DATA --output_dir evidence
    python scripts/run_evidence.py layers   --classifiers resnet=DIR vit=DIR --dataset DATA --output_dir evidence
    python scripts/run_evidence.py train    ... --tuned
    python scripts/run_evidence.py evaluate ... --tuned --split test
    python scripts/run_evidence.py table    --output_dir evidence
    python scripts/run_evidence.py summary  --output_dir evidence --numbers comparison/auc_d comparison/road
    python scripts/run_evidence.py keep     --output_dir evidence --keep_dir model_cards/results
    python scripts/run_evidence.py charts   --output_dir model_cards/results --charts auc_d_fills@all road_morf_curve
    python scripts/run_evidence.py cost     --output_dir evidence --examples 1000
    python scripts/run_evidence.py sweep    --classifiers resnet=DIR --heads ttame --vary head.levels=1,2 ...
    python scripts/run_evidence.py leave-one-fill-out --classifiers vit=DIR --heads ttame-ranking-soft ...

It only drives `hf-explain train` and `hf-explain evaluate`. Every run has a directory of its own, with the command,
the log, the record (settings, seed, versions) and the head: `OUT/CLASSIFIER/HEAD-seedN`, sweeps under
`OUT/CLASSIFIER/sweep`. What is finished is not done again, and what was killed goes on: start the same command again;
`--minutes` ends it by itself.

Rules that make the rows fair:
- `train` is for training and `--split validation` for every choice. `tune`, `layers`, `sweep` and `train` refuse
  photographs of a test split, by its name and by comparing the photographs. Tables of any others say so.
- Heads "as published" have their papers' optimiser and schedule, bent to the length of the run, which is the same for
  all heads (`--training max_steps=N` or `num_train_epochs=N`). `tune` trains each with its own rate times every one of
  `--factors`, for as many steps, and writes the best by the first metric to `OUT/CLASSIFIER/chosen.json`.
- `layers` measures every method that reads a layer with each layer, and writes the best of each there, too. With
  `--tuned`, heads are trained with the chosen rate, and methods stand in a second comparison (`NAME-chosen`) with the
  chosen layer, beside the literature's default.
- RISE has 2,000 masks, filled with what the metric removes pixels with, where it knows that fill (black or mean).

`keep` copies the results, without what no table is printed from; `table --output_dir model_cards/results` prints the
same tables from them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.comparison_report import standings_tables, write_charts
from hf_explain.evaluation.ranking import standing_columns
from hf_explain.evaluation.results import Column, Comparison, ExplainerResult
from hf_explain.io.datasets import cell_content, leave_encoded, load_image_dataset, resolve_columns
from hf_explain.io.files import RECORD_FILE, read_json_file, write_atomically, write_json_file
from hf_explain.metrics import metric_numbers, names
from hf_explain.metrics.engine import EVERY_FILL
from hf_explain.metrics.presets import PRESETS
from hf_explain.registry import CONTROLS, METHODS, SLOW_METHODS, methods_for, resolve_head
from hf_explain.training.arguments import ExplainerTrainingArguments


Head = tuple[str, str | None, dict[str, Any]]  # kind, preset, fields of its config

# what the preset asks for on a ResNet, and asked for everywhere
_SMOOTH = {"variation_weight": 0.01, "ranking_temperature": 0.3}
# and on ConvNeXt, ViT and DeiT
_ROUGH = {"variation_weight": 0.0, "ranking_temperature": 0.6}

# "as published" apart from what a name says
HEADS: dict[str, Head] = {
    "lcam-fm": ("lcam", None, {"variant": "fm"}),
    "lcam-img": ("lcam", None, {"variant": "img"}),
    "ttame": ("ttame", None, {}),
    "scan": ("scan", None, {}),
    # two doublings, then a bilinear resize: full resolution costs many times more and the target has no fine detail
    "scan-small": ("scan", None, {"levels": 2}),
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
    "ttame-ranking-fills": (
        "ttame",
        "ranking",
        {"ce_weight": 0.0, "contrast": None, "context_size": 1, "tap_products": False, **_SMOOTH},
    ),
    # and the map itself, at a contrast of its own, has to keep the class, too: what average drop asks
    "ttame-ranking-contrast": (
        "ttame",
        "ranking",
        {"mask_fills": None, "mask_space": "pixel", "tap_products": False, **_SMOOTH},
    ),
    # a ConvNeXt's has the preset's four stages; in the results that are kept it had the last three
    "ttame-ranking-contrast-fills": ("ttame", "ranking", {"tap_products": False, **_SMOOTH}),
    # and what a position of the first tap shows counts by what the deeper ones say there; on a ResNet the one before
    "ttame-ranking-products": ("ttame", "ranking", {**_SMOOTH}),
    # and nothing asks for smooth maps, and the ranking term's thresholds are softer; on a ResNet, too
    "ttame-ranking-soft": ("ttame", "ranking", {**_ROUGH}),
}
# What a head's authors train with, where it is not the command's default. `lr_decay_in_all`: what is left of the rate
# at the end of an exponential schedule of any length.
_LCAM = {
    "optimizer": "sgd", "learning_rate": 1e-4, "lr_scheduler": "exponential", "lr_decay_in_all": 0.95**25,
    "weight_decay": 0.0,
}  # fmt: skip
_SCAN = {"optimizer": "adam", "learning_rate": 1e-3, "lr_scheduler": "constant", "weight_decay": 0.0}
TRAINING: dict[str, dict[str, Any]] = {
    "lcam-fm": _LCAM,
    "lcam-img": _LCAM,
    "ttame": {"optimizer": "sgd", "learning_rate": 1e-3, "lr_scheduler": "onecycle", "weight_decay": 5e-4},
    "scan": {**_SCAN, "target": "label"},  # in training, its gradients are of the true class
    "scan-small": _SCAN,
    # ours: the same, warmed up and annealed
    "scan-contribution": {"optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0},
}
# What a method is measured with where nobody asks for something else
METHOD_OPTIONS: dict[str, dict[str, Any]] = {"rise": {"num_masks": 2000}}
# What a removed pixel becomes, as RISE's `mask_space` calls it
RISE_FILLS = {"black": "pixel", "mean": "normalized"}
# Methods that read one layer, which may be any
LAYERED = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "eigencam", "ablationcam", "scorecam")
# What a row computes where its name does not say it
NOTES = {
    "hirescam": "HiResCAM of a layer that is read through a LayerNorm alone (all stages of ConvNeXt but the last, the "
    "layer before the last block of ViT and DeiT) is gradient times normalised output: before the norm it sums to 0.",
    "gradcam": "A Grad-CAM without any positive value keeps its negative ones: they are ranked, not set to 0.",
    "rise": "RISE fills its masks with black where `mask_space` does not say otherwise.",
    "scan": "SCAN decodes to full resolution, as in the paper; its paper reduces maps to the grid before it measures "
    "(`--metric_option auc_d.grid_size=[7,7]`).",
}
# What a row is called where readers choose
TITLES = {
    "ttame-ranking-soft": "T-TAME, ranking, rough maps (ours)",
    "ttame-ranking-products": "T-TAME, ranking, contrast, fills, products",
    "ttame-ranking-contrast-fills": "T-TAME, ranking, contrast, fills",
    "ttame-ranking-contrast": "T-TAME, ranking, contrast, black alone",
    "ttame-ranking-fills": "T-TAME, ranking term and drawn fills",
    "ttame-ranking": "T-TAME, ranking term alone",
    "ttame-removal": "T-TAME, removal term",
    "ttame": "T-TAME as published",
    "lcam-img": "L-CAM-Img as published",
    "lcam-img-removal": "L-CAM-Img, removal term",
    "lcam-fm": "L-CAM-Fm as published",
    "scan": "SCAN as published",
    "scan-small": "SCAN, two levels",
    "scan-contribution": "SCAN, contribution (ours)",
}
COMPARISON, CHOSEN = "results.json", "chosen.json"
MOST_KEPT = 1_000_000  # bytes
MOST_COMPARED = 50_000  # photographs
SCRIPT = "run.sh"
# The numbers in the tables, in this order; what they are called and how exact they are stands with their metrics
SHOWN = (
    "auc_d",
    "auc_d_fills",
    "auc_d_fills_seen",
    "auc_d_fills_unseen",
    *(f"auc_d_fill_{fill}" for fill in EVERY_FILL),
    "average_drop",
    "increase_in_confidence",
    "insertion_auc",
    "deletion_auc",
    "road",
    "grid_pointing",
    "single_deletion",
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
    return words + attention(args)


def attention(args) -> list[str]:
    return [] if args.attn_implementation is None else ["--attn_implementation", args.attn_implementation]


def command(entry_point: str, words: list[str]) -> str:
    return shlex.join(["hf-explain", entry_point, *words]) + "\n"


class TimeIsUp(Exception):
    """`--minutes` are over."""


def run(entry_point: str, words: list[str], directory: Path, deadline: float | None) -> bool:
    """Start an entry point in `directory`; its command and log stay there."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        raise TimeIsUp
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / SCRIPT, command(entry_point, words).encode())
    print(f"== {directory}: hf-explain {entry_point} ...", flush=True)
    with open(directory / "run.log", "ab") as log:
        code = f"import sys; from hf_explain.cli import main; sys.exit(main({[entry_point, *words]!r}))"
        try:
            command_line = [sys.executable, "-c", code]
            status = subprocess.run(command_line, stdout=log, stderr=subprocess.STDOUT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            raise TimeIsUp from None
    if status != 0:
        last = (directory / "run.log").read_text(errors="replace").strip().splitlines()[-1:]
        print(f"   failed ({status}): {last[0] if last else 'no output'}", flush=True)
    return status == 0


def train(directory: Path, head: Head, training: dict[str, Any], classifier: str, args) -> bool:
    if (directory / RECORD_FILE).is_file():
        return True
    words = train_command(head, training, classifier, args)
    words += ["--output_dir", str(directory), "--resume_from_checkpoint", "last", "--no_progress"]
    return run("train", words, directory, args.deadline)


def heads(args) -> Iterator[tuple[str, Head, dict[str, Any]]]:
    """Name, kind with preset and fields, and training settings of the heads asked for."""
    fields_for_all = {name: parse(value) for name, value in pairs(args.head_option, "head_option").items()}
    common = {name: parse(value) for name, value in pairs(args.training, "training").items()}
    for name in args.heads:
        kind, preset, fields = HEADS[name]
        training = {**TRAINING.get(name, {}), **common}
        if "lr_decay_in_all" in training:
            training["lr_decay"] = training.pop("lr_decay_in_all") ** (1 / num_epochs(training, args))
        yield name, (kind, preset, {**fields, **fields_for_all}), training


def num_epochs(training: dict[str, Any], args) -> int:
    """Passes over the photographs; an exponential schedule has one step after each."""
    if "max_steps" not in training:
        return training.get("num_train_epochs", ExplainerTrainingArguments.num_train_epochs)
    batch = training.get("per_device_batch_size", ExplainerTrainingArguments.per_device_batch_size)
    per_epoch = max(1, len(load_image_dataset(args.dataset, "train")) // batch)
    return -(-training["max_steps"] // per_epoch)


def train_all(args) -> bool:
    good = True
    for seed in args.seeds:
        for name, head, training in heads(args):
            for family, classifier in args.classifiers.items():
                directory = args.output_dir / family / f"{name}-seed{seed}"
                tuned = {"learning_rate": chosen(args, family)["heads"][name]["best"]} if args.tuned else {}
                good &= train(directory, head, {**training, **tuned, "seed": seed}, classifier, args)
    return good


# ----------------------------------------------------------------------------------------------------------- choosing


def refuse_test(args, split: str) -> None:
    """Nothing is trained on or chosen by photographs that tables are made of."""
    base, path = split.partition("[")[0], Path(args.dataset)
    for name in (base, path.stem if path.suffix else ""):
        if re.fullmatch("test([-_.].*)?", name.lower()):
            raise SystemExit(
                f"error: `{args.stage}` on {name!r}: test photographs are for the tables of `evaluate` alone; "
                "train on `train` and choose on `validation`."
            )
    own = _photographs(args.dataset, split)
    for name in ("test", f"test{path.suffix}"):
        # one file is one split, whatever its name says: its test photographs are in the file beside it
        source = path.with_name(name) if path.suffix else args.dataset
        if args.test_dataset is None and path.suffix and not Path(source).exists():
            continue
        if shared := own & _photographs(args.test_dataset or source, "test"):
            raise SystemExit(
                f"error: `{args.stage}` on {split!r} of {args.dataset!r}: {len(shared)} of its photographs are test "
                "photographs, which are for the tables of `evaluate` alone."
            )


def _photographs(source: str | Path, split: str) -> set[bytes]:
    """What tells the photographs of a split; nothing where there is no such split, or it is too large to read."""
    try:
        data = load_image_dataset(source, split)
    except (FileNotFoundError, ValueError):
        if split != "test":
            raise
        return set()
    if len(data) > MOST_COMPARED:
        print(f"{source}: {len(data)} photographs are not compared with the test photographs one by one", flush=True)
        return set()
    image, _ = resolve_columns(data)
    rows = leave_encoded(data.select_columns([image]), [image])
    return {hashlib.sha256(cell_content(row[image])).digest() for row in rows}


def chosen(args, family: str) -> dict[str, dict[str, Any]]:
    """What `tune` and `layers` have chosen for a classifier."""
    file = args.output_dir / family / CHOSEN
    return {"heads": {}, "layers": {}, **(read_json_file(file) if file.is_file() else {})}


def choose(
    args, family: str, kind: str, name: str, tried: dict[str, tuple[Any, float]], column: Column, **more: Any
) -> Any:
    """The best of what was tried; it is kept, with how it was found."""
    higher = bool(column.number.higher_is_better)
    best = (max if higher else min)(tried.values(), key=lambda one: one[1])[0]
    budget = {"dataset": Path(args.dataset).name, "split": args.split, "images": args.examples, "trials": len(tried)}
    scores = {label: round(score, 4) for label, (_, score) in tried.items()}
    found = chosen(args, family)
    found[kind][name] = {"best": best, "by": column.key, "scores": scores, "budget": budget, **more}
    write_json_file(args.output_dir / family / CHOSEN, found)
    print(f"{family}, {name}: {best} ({column.key} {scores})", flush=True)
    return best


def main_column(comparison: Comparison) -> Column:
    return next(column for column in comparison.columns() if column.number.higher_is_better is not None)


def tune(args) -> bool:
    """The learning rate of every head: its own times each of `--factors`, the best on `--split`."""
    good = True
    for family, classifier in args.classifiers.items():
        for name, head, training in heads(args):
            own = training.get("learning_rate", ExplainerTrainingArguments.learning_rate)
            rates = [float(f"{own * factor:.3g}") for factor in args.factors]
            directory, done = sweep_head(family, classifier, name, head, training, {"learning_rate": rates}, args)
            good &= done
            if not (directory / COMPARISON).is_file():
                continue
            comparison = read_comparison(directory / COMPARISON)
            column, rows = main_column(comparison), by_explainer(comparison)
            tried = {}
            for rate in rates:
                if (row := f"{name}-learning_rate_{rate}") in rows:
                    tried[str(rate)] = rate, mean(values(rows[row], column))
            if not tried:
                continue
            best = choose(args, family, "heads", name, tried, column, training={**training, "seeds": args.seeds})
            if best in (min(rates), max(rates)):
                print("   the best rate is the smallest or largest one tried: other --factors may find a better one")
    return good


def candidate_layers(classifier: FrozenClassifier) -> list[str]:
    """By the same rule for all methods: stages and blocks, which are what stands in a list, and the default."""
    names = [name for name in classifier.layer_names if "." not in name or name.rpartition(".")[2].isdigit()]
    return list(dict.fromkeys([*names, classifier.default_layer]))


def layers(args) -> bool:
    """The layer of every method that reads one: each layer, the best on `--split`."""
    good = True
    for family, name_or_path in args.classifiers.items():
        classifier = FrozenClassifier.from_pretrained(name_or_path)
        methods = [name for name in args.methods if name in LAYERED]
        tried: dict[str, dict[str, tuple[Any, float]]] = {name: {} for name in methods}
        own = argparse.Namespace(**{**vars(args), "methods": methods, "sanity": False})
        for layer in candidate_layers(classifier):
            own.method_option = [*args.method_option, *(f"{name}.layer={layer}" for name in methods)]
            directory = args.output_dir / family / "layers" / layer
            compare(name_or_path, {}, directory, own)  # what does not reach the logits from there fails, and is no row
            if not (directory / COMPARISON).is_file():
                good = False
                continue
            comparison = read_comparison(directory / COMPARISON)
            column = main_column(comparison)
            for name in methods:
                if name in comparison.measured:
                    tried[name][layer] = layer, values([comparison.measured[name]], column)[0]
        for name, found in tried.items():
            if found:
                choose(args, family, "layers", name, found, column, default=classifier.default_layer)
    return good


def sweep(args) -> bool:
    """Every combination of the values in `--vary`, trained, measured on `--split`, and put side by side."""
    axes = {name: [parse(value) for value in values.split(",")] for name, values in pairs(args.vary, "vary").items()}
    good = True
    for family, classifier in args.classifiers.items():
        for name, head, training in heads(args):
            good &= sweep_head(family, classifier, name, head, training, axes, args)[1]
    return good


def sweep_head(
    family: str, classifier: str, name: str, head: Head, training: dict[str, Any], axes: dict[str, list], args
) -> tuple[Path, bool]:
    """One head with every combination of values: where they are compared, and whether all went well."""
    root, good = args.output_dir / family / "sweep", True
    kind, preset, fields = head
    trained = {}
    for values in product(*axes.values()):
        combined = dict(zip(axes, values, strict=True))
        options, settings = dict(fields), dict(training)
        for key, value in combined.items():
            owner, _, field = key.rpartition(".")
            (options if owner == "head" else settings)[field] = value
        label = "-".join([name, *(f"{key.rpartition('.')[2]}_{value}" for key, value in combined.items())])
        for seed in args.seeds:
            directory = root / f"{label}-seed{seed}"
            if train(directory, (kind, preset, options), {**settings, "seed": seed}, classifier, args):
                trained[directory.name] = directory
            else:
                good = False
    directory = root / "-".join(["comparison", name, *(key.rpartition(".")[2] for key in axes)])
    return directory, compare(classifier, trained, directory, args) and good


# ---------------------------------------------------------------------------------------------------------- measuring


def method_options(methods: list[str], args) -> list[str]:
    """What `--method_option` asks for and, where it does not, what is fair."""
    given = [option for option in args.method_option if option.partition(".")[0] in methods]
    own = {name: dict(options) for name, options in METHOD_OPTIONS.items() if name in methods}
    fills = [option.partition("=")[2] for option in args.metric_option if option.partition("=")[0].endswith(".fill")]
    if "rise" in own and len(set(fills)) == 1 and fills[0] in RISE_FILLS:
        own["rise"]["mask_space"] = RISE_FILLS[fills[0]]
    asked = {option.partition("=")[0] for option in given}
    return given + [
        f"{name}.{key}={value}"
        for name, options in own.items()
        for key, value in options.items()
        if f"{name}.{key}" not in asked
    ]


def by_patches(metric: str) -> bool:
    """Whether the preset that `metric`, NAME or NAME@PRESET, names removes patches."""
    name, _, preset = metric.partition("@")
    return PRESETS.get(name, {}).get(preset or "default", {}).get("grid") == "patch"


def compare(classifier: str, trained: dict[str, Path], directory: Path, args) -> bool:
    frozen = FrozenClassifier.from_pretrained(classifier)
    undefined = set(METHODS).difference(methods_for(frozen))
    # patches are a transformer's: what is measured by them is measured of transformers
    metrics = [one for one in args.metrics.split(",") if frozen.patch_size or not by_patches(one)]
    if not metrics:
        return True
    methods = [name for name in args.methods if name not in undefined]
    explainers = [f"{name}={head}" for name, head in trained.items()] + methods
    words = ["--classifier", classifier, "--dataset", args.dataset, "--split", args.split]
    words += ["--explainers", ",".join(explainers), "--metrics", ",".join(metrics)]
    words += ["--max_examples", str(args.examples)]
    slow = [name for name in methods if name in args.slow_methods]
    if slow:
        words += ["--slow", ",".join(slow), "--slow_examples", str(args.slow_examples)]
    for option in method_options(methods, args):
        words += ["--method_option", option]
    for option in args.metric_option:
        words += ["--metric_option", option]
    if args.dtype != "float32":
        words += ["--dtype", args.dtype]
    words += attention(args)
    if args.pictures is not None:
        words += ["--pictures", str(args.pictures)]
    words += ["--sanity"] * args.sanity + ["--batch_size", str(args.batch_size), "--output_dir", str(directory)]
    words.append("--no_progress")
    asked = (directory / COMPARISON).is_file() and (directory / SCRIPT).is_file() and (directory / SCRIPT).read_text()
    if asked == command("evaluate", words):
        comparison = read_comparison(directory / COMPARISON)
        if comparison.measured.keys() == comparison.explainers.keys():
            return True
    # what it has measured of this comparison, it does not measure again
    return run("evaluate", words, directory, args.deadline)


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
        layer_of = {name: one["best"] for name, one in chosen(args, family)["layers"].items() if name in args.methods}
        if args.tuned and layer_of:
            own = argparse.Namespace(**vars(args))
            own.methods = list(layer_of)
            own.method_option = [*args.method_option, *(f"{name}.layer={layer}" for name, layer in layer_of.items())]
            good &= compare(classifier, {}, args.output_dir / family / f"{args.comparison}-chosen", own)
    return good


def leave_one_fill_out(args) -> bool:
    """
    `fills.md`: AUC-D with a fill, of heads that were trained without this one alone, beside the head that has seen it
    and the training-free methods, which have seen none.
    """
    good, lines = True, []
    for family, classifier in args.classifiers.items():
        for name, (kind, preset, fields), training in heads(args):
            preset_fields = {} if preset is None else resolve_head(kind).presets[preset]
            fills = {**preset_fields, **fields}.get("mask_fills") or []
            if len(fills) < 2:
                raise SystemExit(
                    f"error: --heads {name!r} does not draw from several fills, so none can be left out; take one "
                    'that does, such as ttame-ranking-soft, or --head_option mask_fills=["black","mean"].'
                )
            trained = {}
            for fill, seed in product([None, *fills], args.seeds):
                own = fields if fill is None else {**fields, "mask_fills": [one for one in fills if one != fill]}
                directory = args.output_dir / family / f"{without(name, fill)}-seed{seed}"
                if train(directory, (kind, preset, own), {**training, "seed": seed}, classifier, args):
                    trained[directory.name] = directory
                else:
                    good = False
            known = set(PRESETS["auc_d_fills"]["default"]["fills"])
            args.metrics = "auc_d_fills" if known.issuperset(fills) else "auc_d_fills@all"
            directory = args.output_dir / family / f"fills-{name}"
            good &= compare(classifier, trained, directory, args)
            if (directory / COMPARISON).is_file():
                comparison = read_comparison(directory / COMPARISON)
                lines += fill_rows(f"{family}: {name}", name, fills, comparison, args.metrics)
    text = (
        "# One fill left out\n\nAUC-D with each fill, higher is better, in points; several seeds: mean ± standard "
        "deviation. ms/image: of the explanation alone. Printed by `scripts/run_evidence.py leave-one-fill-out`.\n"
    )
    write_atomically(args.output_dir / "fills.md", "\n".join([text, *lines]).encode() + b"\n")
    print((args.output_dir / "fills.md").read_text())
    return good


def without(name: str, fill: str | None) -> str:
    return name if fill is None else f"{name}-without-{fill}"


def fill_rows(title: str, name: str, fills: list[str], comparison: Comparison, metric: str) -> list[str]:
    """A row a fill, and the mean: the head that has not seen it, the one that has, and everything else."""
    rows = by_explainer(comparison)
    others = [one for one in rows if one != name and not one.startswith(without(name, ""))]
    heading = ["fill", "left out", "seen", *others]
    lines = [f"### {title}, {comparison.num_images} images\n", f"| {' | '.join(heading)} |"]
    lines.append("|---" + "|---:" * (len(heading) - 1) + "|")

    def numbers(explainer: str, fill: str) -> list[float]:
        found = (one.value(metric, f"auc_d_fill_{fill}") for one in rows.get(explainer, ()))
        return [value for value in found if value is not None]

    def mean_of(explainers: list[str]) -> list[float]:
        """Of every seed, over the fills: of the first explainer with the first one, and so on."""
        return [mean(values) for values in zip(*map(numbers, explainers, fills))]

    for fill in fills:
        cells = [numbers(one, fill) for one in (without(name, fill), name, *others)]
        lines.append(f"| {' | '.join([fill, *(spread(one, 1) if one else '–' for one in cells)])} |")
    columns = [[without(name, fill) for fill in fills], *([one] * len(fills) for one in (name, *others))]
    means = [mean_of(explainers) for explainers in columns]
    lines.append(f"| {' | '.join(['all of them', *(spread(one, 1) if one else '–' for one in means)])} |")
    times = [[one.seconds_per_image or 0 for key in set(keys) for one in rows.get(key, ())] for keys in columns]
    return [*lines, f"| {' | '.join(['ms/image', *(f'{1000 * mean(one):.1f}' if one else '–' for one in times)])} |\n"]


# ------------------------------------------------------------------------------------------------------------- tables


def table(args) -> bool:
    """`table.md`: per comparison, every explainer; several seeds of a head as mean ± standard deviation."""
    lines: list[str] = []
    directions: dict[str, bool | None] = {}
    notes: dict[str, None] = {}
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
        lines.append(f"{photographs_of(comparison)}\n")
        notes |= dict.fromkeys(name.partition("@")[0] for name in rows)
        headings = [one.number.heading_of(one.key) for one in columns]
        lines += ["| explainer | images | " + " | ".join([*headings, "ms/image", "passes"]) + " |"]
        lines += ["|---" + "|---:" * (len(headings) + 3) + "|"]
        for name, results in sorted(rows.items(), key=lambda row: -mean(values(row[1], columns[0]))):
            cells = [row_name(name, results), str(results[0].num_images)]
            cells += [spread(values(results, column), column.number.decimals) for column in columns]
            cells.append(f"{1000 * mean(one.seconds_per_image for one in results):.1f}")
            cells.append(f"{results[0].forward_passes_per_image:g}")
            lines.append(f"| {' | '.join(cells)} |")
        if args.standings and (standings := standings_tables(comparison)):
            lines.append(standings)
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
    lines += [f"\n{note}" for name, note in NOTES.items() if name in notes]
    write_atomically(args.output_dir / "table.md", "\n".join([legend, *lines]).encode() + b"\n")
    print((args.output_dir / "table.md").read_text())
    return True


def photographs_of(comparison: Comparison) -> str:
    """Which photographs a comparison is of, and whether it may be reported."""
    name, split = comparison.dataset.get("name") or "unnamed", str(comparison.dataset.get("split") or "unnamed")
    told = f"Photographs: {name}, split `{split}`"
    reported = split.partition("[")[0] == "test"
    return f"{told}." if reported else f"{told}: **for choosing, not for reporting; these are no test photographs.**"


def row_name(name: str, results: list[ExplainerResult]) -> str:
    """A method's row with the options that differ from its own: with others it is another explainer."""
    options = results[0].explainer.get("method_options") or {}
    told = ", ".join(f"{key} {value}" for key, value in options.items() if key != "seed")
    return f"{name} ({told})" if told else name


def keep(args) -> bool:
    """`results.json` of every comparison below `--keep_dir`, without what no table is printed from."""
    found = sorted(args.output_dir.glob(f"*/{args.comparison}/{COMPARISON}"))
    for file in found:
        value = json.loads(file.read_text())
        # differences by other numbers are most of a file, and no table has them
        told = {(column.metric, column.key) for column in standing_columns(read_comparison(file))}
        kept = [one for one in value.get("differences", ()) if (one["metric"], one["key"]) in told]
        value = {**value, "differences": kept}
        content = (json.dumps(value, separators=(",", ":")) + "\n").encode()
        if len(content) > MOST_KEPT:
            raise SystemExit(f"error: {file} has {len(content)} bytes; at most {MOST_KEPT} are kept: compare fewer.")
        target = args.keep_dir / file.relative_to(args.output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
        print(f"{target}: {len(content)} bytes")
    if not found:
        raise SystemExit(f"error: --output_dir {str(args.output_dir)!r} has no comparison; run `evaluate` first.")
    return True


def charts(args) -> bool:
    """`--charts` of the comparisons as `CLASSIFIER-CHART.png` in `--chart_dir`, heads by their titles."""
    args.chart_dir.mkdir(parents=True, exist_ok=True)
    titles = {name: title.replace("`", "") for name, title in TITLES.items()}
    for file in sorted(args.output_dir.glob(f"*/{args.comparison}/{COMPARISON}")):
        with tempfile.TemporaryDirectory() as folder:
            write_charts(Path(folder), read_comparison(file), titles)
            for chart in args.charts:
                if (drawn := Path(folder, f"{chart}.png")).is_file():
                    target = args.chart_dir / f"{file.parent.parent.name}-{chart.replace('@', '-')}.png"
                    write_atomically(target, drawn.read_bytes())
                    print(target)
    return True


def cost(args) -> bool:
    """What the comparisons would take for `--examples` photographs, by the seconds that they took."""
    lines, total = ["| classifier | comparison | explainer | s/photograph | photographs | hours |"], 0.0
    lines.append("|---|---|---|---:|---:|---:|")
    for file in sorted(args.output_dir.glob(f"*/{args.comparison}/{COMPARISON}")):
        for name, result in read_comparison(file).measured.items():
            seconds = [result.seconds_per_image, *(one.seconds_per_image for one in result.metrics.values())]
            each = sum(one for one in seconds if one is not None)
            count = min(args.examples, args.slow_examples if name in args.slow_methods else args.examples)
            total += each * count / 3600
            place = f"{file.parent.parent.name} | {file.parent.name} | {name}"
            lines.append(f"| {place} | {each:.3f} | {count} | {each * count / 3600:.2f} |")
    lines.append(f"| all | | | | | {total:.2f} |")
    print("\n".join(lines))
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


STAGES = {
    "train": train_all, "sweep": sweep, "tune": tune, "layers": layers, "evaluate": evaluate_all,
    "leave-one-fill-out": leave_one_fill_out,
    "table": table, "summary": summary, "keep": keep, "charts": charts, "cost": cost,
}  # fmt: skip
_READING = ("table", "summary", "keep", "charts", "cost")  # stages that read what is there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--classifiers", nargs="+", default=[], metavar="NAME=DIR", help="name and directory or Hub id"
    )
    parser.add_argument("--dataset", help="images: `train` is trained on, `--split` is measured on")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=HEADS, help="default: all")
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
    parser.add_argument("--standings", action="store_true", help="table: who is ahead of whom, too")
    parser.add_argument(
        "--charts", nargs="+", default=["auc_d_fills@all"], help="files of an evaluation, without .png"
    )
    parser.add_argument("--chart_dir", type=Path, default=Path("model_cards/pictures"), help="(default: %(default)s)")
    parser.add_argument("--keep_dir", type=Path, default=Path("model_cards/results"), help="(default: %(default)s)")
    parser.add_argument(
        "--factors", nargs="+", type=float, default=[0.1, 0.3, 1, 3, 10, 30, 100], help="tune: of a head's own rate"
    )
    parser.add_argument("--tuned", action="store_true", help="train, evaluate: with what tune and layers have chosen")
    parser.add_argument("--test_dataset", help="test photographs, where they are not those of --dataset")
    parser.add_argument("--minutes", type=float, help="stop after this time; the same command goes on")
    parser.add_argument("--sanity", action="store_true", help="also run the sanity checks")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "auto"), default="float32", help="of the passes that measure"
    )
    parser.add_argument("--attn_implementation", help="of the classifiers, as for `hf-explain train` and `evaluate`")
    parser.add_argument(
        "--pictures", type=int, help="best and worst images shown; with slow methods they take minutes"
    )
    args = parser.parse_args()
    # a summary only asks for the names, in order
    args.classifiers = pairs(
        [entry if "=" in entry or args.stage != "summary" else f"{entry}={entry}" for entry in args.classifiers],
        "classifiers",
    )
    if args.stage not in _READING and not (args.classifiers and args.dataset):
        parser.error(f"{args.stage} needs --classifiers and --dataset")
    if args.stage == "sweep" and not args.vary:
        parser.error("sweep needs --vary")
    args.methods = [name for name in args.methods if name not in CONTROLS]
    args.deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    for split in {"train": ["train"], "sweep": ["train", args.split], "tune": ["train", args.split]}.get(
        args.stage, [args.split] if args.stage == "layers" else []
    ):
        refuse_test(args, split)
    for family in args.classifiers if args.stage == "train" and args.tuned else ():
        if missing := [name for name in args.heads if name not in chosen(args, family)["heads"]]:
            parser.error(f"--tuned: no rate was chosen for {missing[0]} on {family}; run `tune` first")
    try:
        return 0 if STAGES[args.stage](args) else 1
    except TimeIsUp:
        print(f"--minutes {args.minutes:g} are over; start the same command again and it goes on")
        return 3


if __name__ == "__main__":
    sys.exit(main())
