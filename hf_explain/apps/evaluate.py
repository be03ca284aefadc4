"""`hf-explain evaluate` and `scripts/evaluate_explainers.py`: explainers and a data set in, a comparison out."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import Any

from hf_explain.evaluation.comparison import compare, parse_explainers
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.labels import TARGETS
from hf_explain.io.paths import public_name


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of `main_from_args` to `parser`."""
    what = parser.add_argument_group("what to compare")
    what.add_argument("--classifier", required=True, help="Hub id or directory of the image classifier")
    what.add_argument("--classifier_revision", help="branch, tag or commit of the classifier")
    what.add_argument(
        "--explainers",
        required=True,
        metavar="NAME[=DIR],...",
        help="trained heads as NAME=DIRECTORY and training-free methods by name; random and centre are always added",
    )
    what.add_argument(
        "--method_option",
        action="append",
        default=[],
        metavar="METHOD.OPTION=VALUE",
        help="an option of a method, e.g. rise.num_masks=1000; may be repeated",
    )
    on = add_data_arguments(parser, masks="column of the object's masks, for the metric pointing")
    on.add_argument("--slow", metavar="NAME,...", help="explainers for slow_examples; those of many passes by default")
    on.add_argument("--slow_examples", type=int, help="images for the slow ones; all where not given")
    how = parser.add_argument_group("how to measure")
    how.add_argument("--metrics", default="auc_d,average_drop", help="metrics (default: %(default)s)")
    how.add_argument(
        "--preset", action="append", default=[], metavar="METRIC=PRESET", help="published settings; may be repeated"
    )
    how.add_argument(
        "--metric_option",
        action="append",
        default=[],
        metavar="METRIC.OPTION=VALUE",
        help="a setting that replaces the preset's, e.g. auc_d.steps=20; may be repeated",
    )
    how.add_argument("--target", default="prediction", choices=TARGETS, help="class explained (default: %(default)s)")
    how.add_argument("--sanity", action="store_true", help="also run the sanity checks on every explainer")
    how.add_argument("--sanity_examples", type=int, default=32, help="images of the checks (default: %(default)s)")
    how.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    how.add_argument("--batch_size", type=int, default=8, help="images per pass (default: %(default)s)")
    how.add_argument("--shard_size", type=int, default=64, help="images per partial result (default: %(default)s)")
    how.add_argument("--device", help="torch device; a GPU where there is one")
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output_dir", required=True, help="folder of the results; a killed run continues there")
    out.add_argument("--pictures", type=int, default=4, help="best and worst images shown (default: %(default)s)")
    out.add_argument("--no_progress", action="store_true", help="no progress bars")


def add_data_arguments(parser: argparse.ArgumentParser, masks: str) -> argparse._ArgumentGroup:
    """Add the options that name labelled images, `masks` being the help of their mask column; returns their group."""
    on = parser.add_argument_group("on what")
    on.add_argument(
        "--dataset", required=True, help="Hub id, imagefolder, parquet file or directory, save_to_disk directory"
    )
    on.add_argument("--dataset_config", help="configuration of a Hub data set")
    on.add_argument("--dataset_revision", help="branch, tag or commit of a Hub data set")
    on.add_argument("--split", default="validation", help="split (default: %(default)s)")
    on.add_argument("--streaming", action="store_true", help="read the data on the way, without downloading it first")
    on.add_argument("--image_column", help="column of the images; found by its type where not given")
    on.add_argument("--label_column", help="column of the labels, likewise")
    on.add_argument("--mask_column", help=masks)
    on.add_argument("--max_examples", type=int, help="only the first so many images")
    return on


def parse_dotted(options: list[str], argument: str) -> dict[str, dict[str, Any]]:
    """
    `["rise.num_masks=10"]` to `{"rise": {"num_masks": 10}}`; values are JSON where possible.

    Raises:
        ValueError: If an option is not `name.option=value`.
    """
    found: dict[str, dict[str, Any]] = {}
    for option in options:
        key, equals, value = option.partition("=")
        owner, dot, name = key.partition(".")
        if not (equals and dot and owner and name):
            raise ValueError(f"{argument} {option!r} is not NAME.OPTION=VALUE: write for example rise.num_masks=1000.")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = {"True": True, "False": False, "None": None}.get(value, value)
        found.setdefault(owner, {})[name] = parsed
    return found


def main_from_args(args: argparse.Namespace, program: list[str] | None = None) -> dict[str, Any]:
    """
    Load, compare, write.

    Args:
        args (`argparse.Namespace`): What a parser with `add_evaluate_arguments` parsed.
        program (list of `str`, *optional*): How the program was called, for the command that repeats it.

    Returns:
        `dict`: See [`~hf_explain.evaluation.comparison.compare`].

    Raises:
        ValueError: If an option cannot work, or an explainer failed; the results of the others are kept.
        OSError: If something cannot be read or written.
    """
    explainers = parse_explainers(args.explainers)
    presets = {}
    for preset in args.preset:
        metric, equals, name = preset.partition("=")
        if not equals:
            raise ValueError(f"preset {preset!r} is not METRIC=PRESET: write for example auc_d=chefer.")
        presets[metric] = name
    method_options = parse_dotted(args.method_option, "method_option")
    metric_options = parse_dotted(args.metric_option, "metric_option")
    data = load_image_dataset(
        args.dataset, args.split, args.dataset_config, args.dataset_revision, streaming=args.streaming
    )
    comparison = compare(
        args.classifier,
        data,
        explainers,
        args.metrics,
        output_dir=args.output_dir,
        revision=args.classifier_revision,
        max_examples=args.max_examples,
        slow=args.slow.split(",") if args.slow else None,
        slow_examples=args.slow_examples,
        method_options=method_options,
        sanity=args.sanity,
        sanity_examples=args.sanity_examples,
        pictures=args.pictures,
        command=[*(program or ["hf-explain", "evaluate"]), *_arguments(args)],
        seed=args.seed,
        device=args.device,
        target=args.target,
        presets=presets,
        metric_options=metric_options,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        image_column=args.image_column,
        label_column=args.label_column,
        mask_column=args.mask_column,
        progress=not args.no_progress,
        dataset_info={
            "name": public_name(args.dataset),
            "split": args.split,
            "config": args.dataset_config,
            "revision": args.dataset_revision,
        },
    )
    failed = [name for name, result in comparison["explainers"].items() if "error" in result]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(comparison['explainers'])} explainers failed ({', '.join(failed)}); the reasons "
            f"and the results of the others are in {shlex.quote(args.output_dir)}."
        )
    return comparison


def _arguments(args: argparse.Namespace) -> list[str]:
    """The options as they were given, with those that were not at their defaults."""
    parser = argparse.ArgumentParser()
    add_evaluate_arguments(parser)
    words: list[str] = []
    for action in parser._actions:
        if action.dest == "help":
            continue
        value = getattr(args, action.dest)
        if value is True:
            words.append(action.option_strings[-1])
        elif isinstance(value, list):
            words += [word for entry in value for word in (action.option_strings[-1], entry)]
        elif value is not None and value is not False:
            words += [action.option_strings[-1], str(value)]
    return words


def main(argv: list[str] | None = None) -> int:
    """
    The script under `accelerate launch`.

    Returns:
        `int`: 0, or 1 when it could not do what was asked; the reason is printed as one sentence.
    """
    parser = argparse.ArgumentParser(description="Compare explainers of an image classifier.")
    add_evaluate_arguments(parser)
    args = parser.parse_args(argv)
    try:
        main_from_args(args, ["accelerate", "launch", "scripts/evaluate_explainers.py"])
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
