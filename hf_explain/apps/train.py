"""
`hf-explain train` and `scripts/train_explainer.py`: options in, a trained head out.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

import torch

from hf_explain.apps.arguments import TrainCommand
from hf_explain.apps.command_line import part_of
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.io.paths import public_name
from hf_explain.registry import DEFAULT_METHOD, check_method_options, resolve_head, resolve_method
from hf_explain.training.arguments import ExplainerTrainingArguments, check_distillation
from hf_explain.training.loop import train


def run(arguments: TrainCommand) -> dict[str, Any]:
    r"""
    Build the head, load the data, train.

    Args:
        arguments ([`TrainCommand`]): What is trained, on what and how.

    Returns:
        `dict[str, Any]`: The training record.

    Raises:
        ValueError: If an option cannot work.
        OSError: If the classifier or the data set cannot be found or read, or the output not be written.
    """
    settings = part_of(arguments, ExplainerTrainingArguments)
    head_class = resolve_head(arguments.head)
    check_distillation(settings)
    method = None
    if settings.distill_method is not None:
        method = resolve_method(settings.distill_method, "distill_method")
        check_method_options(settings.distill_method, settings.method_options.get(settings.distill_method, ()))
    fields = dict(arguments.head_options)
    if "preset" in fields:
        raise ValueError(f"head_option preset={fields['preset']} is not a field of a head: write --preset instead.")
    train_dataset, eval_dataset = arguments.load(), None
    if arguments.eval_dataset is not None:
        eval_dataset = arguments.load(arguments.eval_dataset, arguments.eval_split or "validation")
    elif arguments.eval_split is not None:
        eval_dataset = arguments.load(split=arguments.eval_split)
    loading: dict[str, Any] = {"trust_remote_code": arguments.trust_remote_code}
    if arguments.attn_implementation is not None:
        loading["attn_implementation"] = arguments.attn_implementation
    classifier = FrozenClassifier.from_pretrained(
        arguments.classifier, revision=arguments.classifier_revision, **arguments.classes, **loading
    )
    torch.manual_seed(settings.seed)  # for the weights a new head starts with; training draws from the seed itself
    head = head_class.from_classifier(classifier, preset=arguments.preset, **fields)
    description = {
        # Directories are named without their path: the record is published with the head.
        "classifier": public_name(arguments.classifier),
        "classifier_revision": arguments.classifier_revision,
        "head": arguments.head,
        "preset": arguments.preset,
        "head_options": {
            name: public_name(value) if name in head_class.config_class.classifiers else value
            for name, value in fields.items()
        },
        **arguments.classes,
        "dataset": public_name(arguments.dataset),
        "dataset_config": arguments.dataset_config,
        "dataset_revision": arguments.dataset_revision,
        "train_split": arguments.split,
        "eval_split": arguments.eval_split,
    }
    record = train(head, train_dataset, eval_dataset, classifier.image_processor, settings, description, method)
    if int(os.environ.get("RANK", 0)) == 0:
        print("\n".join(_next_steps(arguments, record)))
    return record


def _next_steps(arguments: TrainCommand, record: dict[str, Any]) -> list[str]:
    """Where the head is, and the commands that explain and measure with it."""
    folder, again = str(arguments.output_dir), arguments.eval_dataset or arguments.dataset
    trusted = ["--trust_remote_code"] * arguments.trust_remote_code
    explain = ["hf-explain", "explain", "IMAGE", "--model", folder, *trusted]
    measure = ["hf-explain", "evaluate", "--classifier", arguments.classifier, "--dataset", again]
    if arguments.classifier_revision is not None:
        measure += ["--classifier_revision", arguments.classifier_revision]
    if arguments.eval_dataset is None:
        for name in ("dataset_config", "dataset_revision"):
            if (value := getattr(arguments, name)) is not None:
                measure += [f"--{name}", value]
    measure += ["--split", arguments.eval_split or ("validation" if arguments.eval_dataset else arguments.split)]
    measure += ["--streaming"] * arguments.streaming + ["--max_examples", "500"]
    measure += ["--explainers", f"{arguments.head}={folder},{DEFAULT_METHOD}", "-o", f"{folder}-results", *trusted]
    return [
        f"The head is in {folder}: {record['steps']} steps, {record['seconds']:.0f} s.",
        f"See where the classifier looks:  {shlex.join(explain)}",
        f"Measure the head:  {shlex.join(measure)}",
    ]
