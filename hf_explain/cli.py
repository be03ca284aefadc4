"""`hf-explain`: the package from a terminal. PyTorch is imported when a command runs, not when one is asked about."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hf_explain import __version__, register
from hf_explain.apps import arguments as options
from hf_explain.apps.command_line import add_options, current_words, read_options
from hf_explain.io.memory import keep_memory


@dataclass(frozen=True)
class Command:
    """
    A command of the program.

    Args:
        options (`type`): Dataclass of what it can be asked for.
        function (`str`): `"module:function"` that gets one; imported when the command runs.
        help (`str`): A line in the list of the commands.
        description (`str`): What `--help` says of it.
    """

    options: type
    function: str
    help: str
    description: str


COMMANDS = {
    "quickstart": Command(
        options.QuickstartCommand,
        "hf_explain.apps.quickstart.run:run",
        "train a classifier and a head on pictures made on the spot, and measure the head",
        "Make a small picture data set, train a ResNet and a T-TAME head on it, explain, measure and write a page "
        "with the pictures and the numbers. No network, a few minutes on two CPU cores.",
    ),
    "train": Command(
        options.TrainCommand,
        "hf_explain.apps.train:run",
        "train a head on a frozen classifier",
        "Train a head on a frozen classifier; under `accelerate launch` use scripts/train_explainer.py.",
    ),
    "explain": Command(
        options.ExplainCommand,
        "hf_explain.apps.explain:run",
        "explain images and write pictures",
        "Explain one or more images and write each as a picture: the image, and the map of every class.",
    ),
    "methods": Command(
        options.MethodsCommand,
        "hf_explain.apps.methods:run",
        "list the training-free methods: how they work, passes, architectures, papers",
        "List the training-free methods, each with its passes per image, the classifiers it is defined for and its "
        "paper; with a METHOD also its options, with --model what is defined for that classifier.",
    ),
    "evaluate": Command(
        options.EvaluateCommand,
        "hf_explain.apps.evaluate:run",
        "compare explainers of a classifier on a data set",
        "Measure trained heads and training-free methods on the same images, beside a random and a centre map, and "
        "write tables, charts and pictures; under `accelerate launch` use scripts/evaluate_explainers.py.",
    ),
    "errors": Command(
        options.ErrorsCommand,
        "hf_explain.apps.errors:run",
        "group a classifier's mistakes by where it looked, and find biased classes",
        "Compare the maps of the predicted and of the true class on every image the classifier gets wrong, look for "
        "classes whose maps lie off the object, and write a page with the pictures.",
    ),
    "export": Command(
        options.ExportCommand,
        "hf_explain.apps.export:run",
        "write the saliency maps of a whole data set as parquet",
        "Write the saliency maps of a whole data set as sharded parquet that `datasets` loads. Started again, it goes "
        "on where it stopped. Under `torchrun` or `accelerate launch` use scripts/export_saliency.py.",
    ),
    "push": Command(
        options.PushCommand,
        "hf_explain.apps.push:run",
        "publish a trained head on the Hub",
        "Publish a trained head: weights, configuration, image processor, card, records and pictures, in one commit. "
        "Lists the files before it sends them.",
    ),
    "push-metric": Command(
        options.PushMetricCommand,
        "hf_explain.apps.push:run_metric",
        "publish a metric as a Space, for evaluate.load",
        "Publish one of the package's metrics as a Space, where evaluate.load finds it.",
    ),
    "card": Command(
        options.CardCommand,
        "hf_explain.apps.push:run_card",
        "write model cards of trained heads into a folder",
        "Write the model card of every head as HEAD-CLASSIFIER.md, to be read by a person before it is released. HEAD "
        "is the head's name in the evaluation that measured its weights; pictures/HEAD-CLASSIFIER.jpg in the folder "
        "is shown on the card.",
    ),
    "onnx": Command(
        options.OnnxCommand,
        "hf_explain.apps.onnx:run",
        "write a trained head and its classifier as one ONNX graph",
        "Write a trained head and its classifier as one ONNX graph, pixel_values and target in, saliency and logits "
        "out (target -1 is the predicted class), checked against PyTorch before it is kept. Needs "
        "pip install 'hf-explain[onnx]'.",
    ),
    "demo": Command(
        options.DemoCommand,
        "hf_explain.apps.demo:run",
        "explain pictures on a web page",
        "Start a web page on this machine: pick a photograph or upload a picture, choose a class, compare explainers, "
        "remove the pixels they point at and watch the class go. The page's address keeps the settings. "
        "Needs pip install 'hf-explain[demo]'.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
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
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        add_options(commands.add_parser(name, help=command.help, description=command.description), command.options)
    words, notes = current_words(sys.argv[1:] if argv is None else argv)
    found = parser.parse_args(words)
    return _run(COMMANDS[found.command], found, notes, f"hf-explain {found.command}")


def run_script(name: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """
    One command as a program of its own, for `accelerate launch`.

    Args:
        name (`str`): The command.
        description (`str`, *optional*): For `--help`.
        argv (`list[str]`, *optional*): As for [`main`].

    Returns:
        `int`: As [`main`].
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, COMMANDS[name].options)
    words, notes = current_words(sys.argv[1:] if argv is None else argv)
    return _run(COMMANDS[name], parser.parse_args(words), notes, "error")


def _started_alone() -> list[str]:
    """A word on `accelerate launch --cpu`, which starts one process whatever number is asked for."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ  # set for several alone
    ranks = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if not launched or any(name in os.environ for name in ranks):
        return []
    return [
        "accelerate launch was asked for several processes and started this one alone, as it does on the CPU; for two "
        "there, write ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2."
    ]


def _run(command: Command, found: argparse.Namespace, notes: Sequence[str], name: str) -> int:
    for note in (*_started_alone(), *notes):
        print(f"{name}: {note}" if name != "error" else note, file=sys.stderr)
    try:
        asked: Any = read_options(command.options, found)
        keep_memory()
        register()
        module, _, function = command.function.partition(":")
        getattr(import_module(module), function)(asked)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        # what a user can mend is one sentence; anything else is a bug and keeps its traceback
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
