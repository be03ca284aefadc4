"""`hf-explain`: the package from a terminal."""

from __future__ import annotations

import argparse
import sys

from hf_explain.apps.explain import add_explain_arguments
from hf_explain.apps.push import add_push_commands


def main(argv: list[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv (`list[str]`, *optional*): Arguments without the program's name; those of the process when not given.

    Returns:
        `int`: 0, or 1 when the command could not do what was asked; the reason is printed as one sentence.
    """
    parser = argparse.ArgumentParser(
        prog="hf-explain", description="See where an image classifier looked, train heads that tell, and measure them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_quickstart,
        _add_train,
        add_explain_arguments,
        _add_evaluate,
        _add_errors,
        _add_export,
        add_push_commands,
        _add_demo,
    ):
        add(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        # what a user can mend is one sentence; anything else is a bug and keeps its traceback
        print(f"hf-explain {args.command}: {error}", file=sys.stderr)
        return 1
    return 0


# ---------------------------------------------------------------------------------------------------------- quickstart


def _add_quickstart(commands) -> None:
    parser = commands.add_parser(
        "quickstart",
        help="train a classifier and a head on pictures made on the spot, and measure the head",
        description="Make a small picture data set, train a ResNet and an L-CAM head on it, explain, measure and "
        "write a page with the pictures and the numbers. No network, a few minutes on two CPU cores.",
    )
    parser.add_argument("-o", "--output_dir", default="quickstart", help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    parser.set_defaults(run=_quickstart)


def _quickstart(args: argparse.Namespace) -> None:
    from hf_explain.apps.quickstart import run_quickstart

    run_quickstart(args.output_dir, seed=args.seed)


# --------------------------------------------------------------------------------------------------------------- train


def _add_train(commands) -> None:
    from hf_explain.apps.train import add_training_arguments, main_from_args

    parser = commands.add_parser(
        "train",
        help="train a head on a frozen classifier",
        description="Train a head on a frozen classifier; under `accelerate launch` use scripts/train_explainer.py.",
    )
    add_training_arguments(parser)
    parser.set_defaults(run=main_from_args)


# ---------------------------------------------------------------------------------------------------------------- demo


def _add_demo(commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="explain pictures on a web page",
        description="Start a web page on this machine: upload a picture, pick a class, compare explainers, download "
        "the maps. Needs pip install 'hf-explain[demo]'.",
    )
    parser.add_argument(
        "--model", action="append", required=True, help="head or classifier: directory or Hub id; repeat to compare"
    )
    parser.add_argument("--classifier", help="used instead of the classifier that the heads name")
    parser.add_argument(
        "--examples", action="append", metavar="PATH", help="example picture or folder; repeat for more"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port of the server (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="also make a temporary public link, through Gradio")
    parser.add_argument(
        "--write-space", metavar="DIR", help="write the files of a Hugging Face Space instead of starting"
    )
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from hf_explain.apps.demo import launch, write_space

    if args.write_space:
        print(f"Wrote {write_space(args.write_space, args.model, args.classifier)}")
        return
    launch(
        args.model,
        args.classifier,
        examples=args.examples,
        device=args.device,
        share=args.share,
        port=args.port,
    )


# -------------------------------------------------------------------------------------------------------------- export


def _add_export(commands) -> None:
    from hf_explain.apps.export import add_export_arguments, main_from_args

    parser = commands.add_parser(
        "export",
        help="write the saliency maps of a whole data set as parquet",
        description="Write the saliency maps of a whole data set as sharded parquet that `datasets` loads. Started "
        "again, it goes on where it stopped. Under `torchrun` or `accelerate launch` use scripts/export_saliency.py.",
    )
    add_export_arguments(parser)
    parser.set_defaults(run=main_from_args)


# ------------------------------------------------------------------------------------------------------------ evaluate


def _add_evaluate(commands) -> None:
    from hf_explain.apps.evaluate import add_evaluate_arguments, main_from_args

    parser = commands.add_parser(
        "evaluate",
        help="compare explainers of a classifier on a data set",
        description="Measure trained heads and training-free methods on the same images, beside a random and a centre "
        "map, and write tables, charts and pictures; under `accelerate launch` use scripts/evaluate_explainers.py.",
    )
    add_evaluate_arguments(parser)
    parser.set_defaults(run=main_from_args)


# -------------------------------------------------------------------------------------------------------------- errors


def _add_errors(commands) -> None:
    from hf_explain.apps.errors import add_errors_arguments, main_from_args

    parser = commands.add_parser(
        "errors",
        help="group a classifier's mistakes by where it looked, and find biased classes",
        description="Compare the maps of the predicted and of the true class on every image the classifier gets "
        "wrong, look for classes whose maps lie off the object, and write a page with the pictures.",
    )
    add_errors_arguments(parser)
    parser.set_defaults(run=main_from_args)


if __name__ == "__main__":
    raise SystemExit(main())
