"""
The settings of a training run, and what follows from them alone: command line options, learning rate, optimiser.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import get_available_trackers

from hf_explain.io.labels import TARGETS
from hf_explain.tensors.scalars import check_choice, check_count, check_number
from hf_explain.training.transforms import AUGMENTATIONS


OPTIMIZERS = ("sgd", "adamw", "adam")
SCHEDULERS = ("onecycle", "exponential", "cosine", "constant")


_COUNTS = (
    "num_train_epochs",
    "per_device_batch_size",
    "gradient_accumulation_steps",
    "shuffle_buffer_size",
    "logging_steps",
)
_OPTIONAL_COUNTS = (
    "max_steps",
    "resize_size",
    "num_examples",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "max_eval_samples",
)


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    options: dict[str, Any] = {"metadata": {"help": help, "choices": choices}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), **options)
    return field(default=default, **options)


@dataclass
class ExplainerTrainingArguments:
    r"""
    Settings of a training run. `hf-explain train --help` prints the same list.

    Args:
        output_dir (`str`): Where checkpoints, the log and the trained head go.
        num_train_epochs (`int`, *optional*, defaults to 5): Passes over the data; `max_steps` wins.
        max_steps (`int`, *optional*): Optimiser steps in all. Needed for a stream of unknown length.
        per_device_batch_size (`int`, *optional*, defaults to 32): Images per process and micro-batch. One optimiser
            step sees `per_device_batch_size * gradient_accumulation_steps * num_processes` images.
        optimizer (`str`, *optional*, defaults to `"sgd"`): `"sgd"` (Nesterov), `"adamw"` or `"adam"`.
        lr_scheduler (`str`, *optional*, defaults to `"onecycle"`): `"onecycle"` (`learning_rate` is its maximum, as
            `torch.optim.lr_scheduler.OneCycleLR`), `"exponential"` (times `lr_decay` after every epoch), `"cosine"`,
            `"constant"`.
        resume_from_checkpoint (`str`, *optional*): A checkpoint directory, or `"last"`: the newest in `output_dir`, or
            a fresh start if there is none.

    The other fields are described by their `help` metadata.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what would work.
    """

    output_dir: str = field(metadata={"help": "where checkpoints, the log and the trained head go", "choices": None})
    num_train_epochs: int = _option(5, "passes over the data; max_steps wins")
    max_steps: int | None = _option(None, "optimiser steps in all; needed for a stream of unknown length")
    per_device_batch_size: int = _option(32, "images per process and micro-batch")
    gradient_accumulation_steps: int = _option(1, "micro-batches per optimiser step")
    optimizer: str = _option("sgd", "optimiser; sgd is Nesterov", OPTIMIZERS)
    learning_rate: float = _option(0.05, "learning rate; the maximum of onecycle")
    momentum: float = _option(0.9, "momentum of sgd")
    weight_decay: float = _option(5e-4, "on weights only; biases and norms get none")
    lr_scheduler: str = _option("onecycle", "learning rate schedule", SCHEDULERS)
    pct_start: float = _option(0.3, "onecycle: the part of the steps in which the rate rises")
    cycle_momentum: bool = _option(True, "onecycle: run momentum 0.95 -> 0.85 -> 0.95 against the rate, as torch does")
    lr_decay: float = _option(0.95, "exponential: factor per epoch")
    max_grad_norm: float | None = _option(None, "clip the gradient norm of the head")
    mixed_precision: str | None = _option(None, "default: what `accelerate launch` says", ("no", "bf16", "fp16"))
    target: str = _option("prediction", "class to explain: the model's top-1, or the label", TARGETS)
    image_column: str | None = _option(None, "image column; found by its type unless given")
    label_column: str | None = _option(None, "label column, for target=label; found by its type unless given")
    augmentation: str = _option(
        "crop", "crop: resize, random crop, flip; flip: the image processor, then flip; none", AUGMENTATIONS
    )
    resize_size: int | None = _option(None, "shorter side before the random crop; 256/224 of the input unless given")
    seed: int = _option(0, "seed of everything random, a new head's weights included")
    deterministic: bool = _option(False, "deterministic GPU kernels: resuming is then bit-identical there too")
    dataloader_num_workers: int = _option(2, "processes that decode images")
    shuffle_buffer_size: int = _option(1024, "streams: encoded images shuffled together")
    num_examples: int | None = _option(None, "streams: images in one pass, where the data set does not say it")
    logging_steps: int = _option(10, "steps between lines in the log")
    save_steps: int | None = _option(500, "steps between checkpoints; 0 for none")
    save_total_limit: int | None = _option(2, "checkpoints kept; 0 for all")
    eval_steps: int | None = _option(None, "steps between validations; one epoch unless given")
    max_eval_samples: int | None = _option(None, "validate on the first so many images")
    report_to: list[str] = _option([], "Accelerate trackers, e.g. tensorboard wandb")
    project_name: str = _option("hf_explain", "project name for trackers")
    resume_from_checkpoint: str | None = _option(None, "checkpoint directory, or 'last'")
    overwrite_output_dir: bool = _option(False, "delete the checkpoints of an earlier run in output_dir")
    use_cpu: bool = _option(False, "train on the CPU even where there is a GPU")
    disable_tqdm: bool = _option(False, "no progress bar")

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            if choices := entry.metadata.get("choices"):
                check_choice(getattr(self, entry.name), entry.name, choices, optional=entry.default is None)
        self.output_dir = os.fspath(self.output_dir)
        self.report_to = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        self.save_steps, self.save_total_limit = self.save_steps or None, self.save_total_limit or None
        for name in _COUNTS:
            check_count(getattr(self, name), name)
        for name in _OPTIONAL_COUNTS:
            check_count(getattr(self, name), name, optional=True)
        for name in ("seed", "dataloader_num_workers"):
            check_count(getattr(self, name), name, minimum=0)
        check_number(self.learning_rate, "learning_rate", "(0, inf)")
        check_number(self.max_grad_norm, "max_grad_norm", "(0, inf)", optional=True)
        check_number(self.lr_decay, "lr_decay", "(0, inf)")
        check_number(self.momentum, "momentum", "[0, 1)")
        check_number(self.weight_decay, "weight_decay", "[0, inf)")
        check_number(self.pct_start, "pct_start", "(0, 1)")
        missing = [name for name in self.report_to if name != "all" and name not in map(str, _trackers())]
        if missing:
            raise ValueError(
                f"report_to {missing[0]!r} is not installed or unknown: available here are "
                f"{', '.join(map(str, _trackers())) or 'none'}; install it with pip."
            )


def _trackers() -> list[str]:
    return [getattr(tracker, "value", str(tracker)) for tracker in get_available_trackers()]


# Two runs that agree in these walk the same path; a checkpoint of another path is refused.
_PATH_FIELDS = (
    "per_device_batch_size",
    "gradient_accumulation_steps",
    "optimizer",
    "learning_rate",
    "momentum",
    "weight_decay",
    "lr_scheduler",
    "pct_start",
    "cycle_momentum",
    "lr_decay",
    "max_grad_norm",
    "target",
    "augmentation",
    "resize_size",
    "seed",
    "shuffle_buffer_size",
)


def plan_steps(
    args: ExplainerTrainingArguments, num_examples: int | None, stream: bool, num_processes: int
) -> tuple[int | None, int]:
    r"""
    How many optimiser steps make an epoch and a run.

    Args:
        args (`ExplainerTrainingArguments`): Settings.
        num_examples (`int`, *optional*): Images in one pass; `None` for a stream that does not say.
        stream (`bool`): Whether the data is a stream, whose epochs run into each other.
        num_processes (`int`): Processes that share the data.

    Returns:
        `tuple[int | None, int]`: Steps per epoch, if known, and steps in all.

    Raises:
        ValueError: If the data is too small for one step, or its length is needed and unknown.
    """
    batch = args.per_device_batch_size * args.gradient_accumulation_steps * num_processes
    per_epoch = num_examples // batch if num_examples else None
    if per_epoch == 0 and not stream:
        raise ValueError(
            f"the dataset has {num_examples} images but one step takes {batch} (per_device_batch_size "
            f"{args.per_device_batch_size} x gradient_accumulation_steps {args.gradient_accumulation_steps} x "
            f"{num_processes} processes): lower per_device_batch_size."
        )
    if per_epoch is None and args.max_steps is None:
        raise ValueError("the dataset is a stream of unknown length: pass max_steps, or num_examples.")
    if per_epoch is None and args.lr_scheduler == "exponential":
        raise ValueError(
            "lr_scheduler 'exponential' decays per epoch and the stream's length is unknown: pass num_examples."
        )
    per_epoch = None if per_epoch is None else max(per_epoch, 1)
    return per_epoch, args.max_steps or args.num_train_epochs * per_epoch


def describe_path(
    args: ExplainerTrainingArguments, num_examples: int | None, total_steps: int, num_processes: int, precision: str
) -> dict[str, Any]:
    """Everything that decides which weights a run arrives at, as a checkpoint remembers it."""
    path = {name: getattr(args, name) for name in _PATH_FIELDS}
    path.update(num_processes=num_processes, mixed_precision=precision, num_examples=num_examples)
    if args.lr_scheduler in ("onecycle", "cosine"):
        # These schedules bend to the length of the run; under the others a run may be made longer.
        path["total_steps"] = total_steps
    return path


def check_same_path(checkpoint: Path, info: dict[str, Any], now: dict[str, Any], total_steps: int) -> None:
    r"""
    Refuse a checkpoint from which a run with these settings could not have come.

    Args:
        checkpoint (`Path`): Named in the error.
        info (`dict[str, Any]`): What the checkpoint says of itself: `path` and `step`.
        now (`dict[str, Any]`): The `path` of this run.
        total_steps (`int`): Optimiser steps of this run.

    Raises:
        ValueError: Naming the first setting that differs, with both values.
    """
    for name, value in now.items():
        saved = info["path"].get(name)
        if saved != value:
            raise ValueError(
                f"checkpoint {str(checkpoint)!r} was written with {name} {saved!r}, this run has {value!r}: resume "
                f"with {name} {saved!r}, or start anew in another output_dir."
            )
    if info["step"] > total_steps:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is at step {info['step']}, past the {total_steps} steps asked for: raise "
            "max_steps or num_train_epochs."
        )


def learning_rate_at(args: ExplainerTrainingArguments, step: int, total: int, per_epoch: int | None) -> tuple:
    r"""
    Learning rate and momentum of one optimiser step, as a pure function, so that resuming needs no scheduler state.

    Args:
        args (`ExplainerTrainingArguments`): Settings.
        step (`int`): Optimiser step, from 0.
        total (`int`): Optimiser steps of the whole run.
        per_epoch (`int`, *optional*): Optimiser steps of one epoch, for `"exponential"`.

    Returns:
        `tuple[float, float | None]`: Learning rate, and momentum if the schedule moves it.
    """

    def anneal(start: float, end: float, fraction: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))

    peak = args.learning_rate
    if args.lr_scheduler == "onecycle":
        # Same shape and constants as torch.optim.lr_scheduler.OneCycleLR (div_factor 25, final_div_factor 1e4).
        top, last = max(args.pct_start * total - 1, 0.0), max(total - 1, 1)
        rising = step <= top and top > 0
        fraction = step / top if rising else (step - top) / (last - top) if last > top else 0.0
        ends = ((peak / 25, peak), (0.95, 0.85)) if rising else ((peak, peak / 25e4), (0.85, 0.95))
        momentum = anneal(*ends[1], fraction) if args.cycle_momentum else None
        return anneal(*ends[0], fraction), momentum
    if args.lr_scheduler == "exponential":
        return peak * args.lr_decay ** (step // per_epoch), None
    if args.lr_scheduler == "cosine":
        return anneal(peak, 0.0, step / total), None
    return peak, None


def make_optimizer(model: torch.nn.Module, args: ExplainerTrainingArguments) -> torch.optim.Optimizer:
    r"""
    The optimiser over the trainable parameters: weight decay on weights, none on biases, norms and other vectors.

    Raises:
        ValueError: If the model has no trainable parameter.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"model {type(model).__name__} has no trainable parameter: nothing to train.")
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if args.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=args.learning_rate, momentum=args.momentum, nesterov=args.momentum > 0)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[args.optimizer](groups, lr=args.learning_rate)


def add_dataclass_arguments(parser: argparse.ArgumentParser, kind: type) -> None:
    """Give `parser` one option per field of a dataclass whose metadata has `help` (and `choices`)."""
    hints = typing.get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        names = sorted({f"--{entry.name}", f"--{entry.name.replace('_', '-')}"}, reverse=True)
        hint = hints[entry.name]
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        options: dict[str, Any] = {"help": entry.metadata.get("help"), "required": required}
        if not required:
            options["default"] = default
            if default not in (None, []):
                options["help"] += f" (default: {default})"
        if hint is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(hint) is list:
            options.update(nargs="*", type=inner[0])
        else:
            options.update(type=inner[0] if inner else hint, choices=entry.metadata.get("choices"))
            if not options["choices"]:
                options["metavar"] = options["type"].__name__.upper()
        parser.add_argument(*names, dest=entry.name, **options)
