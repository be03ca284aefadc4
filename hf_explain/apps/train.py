"""
`hf-explain train` and `scripts/train_explainer.py`: options in, a trained head out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.paths import public_name
from hf_explain.registry import resolve_head
from hf_explain.training.arguments import ExplainerTrainingArguments, add_dataclass_arguments
from hf_explain.training.loop import train


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainCommandArguments:
    """What to train on what; the settings of the training itself are `ExplainerTrainingArguments`."""

    classifier: str = field(metadata={"help": "Hub id or directory of the image classifier to explain"})
    dataset: str = field(metadata={"help": "Hub id, imagefolder, parquet file or directory, save_to_disk directory"})
    head: str = _option("lcam", "kind of head by its model_type, such as ttame; one that is none lists all")
    preset: str | None = _option(
        None,
        "fields of the head's config that go together, such as ttame's ranking; one that is none lists all",
    )
    classifier_revision: str | None = _option(None, "branch, tag or commit of the classifier")
    attn_implementation: str | None = _option(
        None, "attention of the classifier; for a small ViT in bf16 on a CPU 'eager' is faster"
    )
    dataset_config: str | None = _option(None, "configuration of a Hub data set")
    dataset_revision: str | None = _option(None, "branch, tag or commit of a Hub data set")
    train_split: str = _option("train", "split to train on")
    eval_split: str | None = _option(None, "split for the validation loss; no validation unless given")
    eval_dataset: str | None = _option(None, "data set of eval_split; the training one unless given")
    streaming: bool = _option(False, "read the data while training instead of downloading it first")
    cache_dir: str | None = _option(None, "cache directory of `datasets`")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of `main_from_args` to `parser`."""
    add_dataclass_arguments(parser.add_argument_group("what to train"), TrainCommandArguments)
    parser.add_argument(
        "--head_option",
        "--head-option",
        dest="head_options",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the head's config, e.g. variant=img or area_weight=2.0; may be repeated",
    )
    add_dataclass_arguments(parser.add_argument_group("how to train"), ExplainerTrainingArguments)


def parse_head_options(options: list[str]) -> dict[str, Any]:
    r"""
    `["variant=img", "area_weight=2.0"]` to `{"variant": "img", "area_weight": 2.0}`; values are JSON if possible.

    Raises:
        ValueError: If an option is not `name=value`.
    """
    fields = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"head_option {option!r} is not NAME=VALUE: write for example variant=img.")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return fields


def main_from_args(args: argparse.Namespace) -> dict[str, Any]:
    r"""
    Build the head, load the data, train.

    Args:
        args (`argparse.Namespace`): What a parser with `add_training_arguments` parsed.

    Returns:
        `dict[str, Any]`: The training record.

    Raises:
        ValueError: If an option cannot work.
        OSError: If the classifier or the data set cannot be found or read, or the output not be written.
    """
    settings, what = (
        kind(**{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(kind)})
        for kind in (ExplainerTrainingArguments, TrainCommandArguments)
    )
    head_class = resolve_head(what.head)
    fields = parse_head_options(args.head_options)
    if "preset" in fields:
        raise ValueError(f"head_option preset={fields['preset']} is no field of a head: write --preset instead.")
    options = {"cache_dir": what.cache_dir, "streaming": what.streaming}
    train_dataset = load_image_dataset(
        what.dataset, what.train_split, what.dataset_config, what.dataset_revision, **options
    )
    eval_dataset = None
    if what.eval_dataset is not None:
        eval_dataset = load_image_dataset(what.eval_dataset, what.eval_split or "validation", **options)
    elif what.eval_split is not None:
        eval_dataset = load_image_dataset(
            what.dataset, what.eval_split, what.dataset_config, what.dataset_revision, **options
        )
    loading = {} if what.attn_implementation is None else {"attn_implementation": what.attn_implementation}
    classifier = FrozenClassifier.from_pretrained(what.classifier, revision=what.classifier_revision, **loading)
    torch.manual_seed(settings.seed)  # for the weights a new head starts with; training draws from the seed itself
    head = head_class.from_classifier(classifier, preset=what.preset, **fields)
    description = {
        # Directories are named without their path: the record is published with the head.
        "classifier": public_name(what.classifier),
        "classifier_revision": what.classifier_revision,
        "head": what.head,
        "preset": what.preset,
        "head_options": fields,
        "dataset": public_name(what.dataset),
        "dataset_config": what.dataset_config,
        "dataset_revision": what.dataset_revision,
        "train_split": what.train_split,
        "eval_split": what.eval_split,
    }
    return train(head, train_dataset, eval_dataset, classifier.image_processor, settings, description)
