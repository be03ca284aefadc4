"""
The settings of a training run, and what follows from them alone: steps, the path of a run, learning rate.

Nothing here needs PyTorch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from hf_explain.io.labels import TARGETS
from hf_explain.io.paths import output_folder
from hf_explain.tensors.options import check_options, option


OPTIMIZERS = ("sgd", "adamw", "adam")
SCHEDULERS = ("onecycle", "exponential", "cosine", "constant")
AUGMENTATIONS = ("crop", "flip", "none")


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
        distill_method (`str`, *optional*): A training-free method, by its name in `hf_explain.METHODS`. In the first
            `distill_steps` optimiser steps the loss is one minus Pearson's correlation of the head's raw map with this
            method's map of the same image and class; afterwards it is the head's own, in the same run and schedule.
            Validation is always by the head's own. For heads that are trained by masks.
        method_options (`dict[str, dict]`, *optional*): Options of that method, under its name. A random method draws
            anew in every step unless a `seed` is among them.
        resume_from_checkpoint (`str`, *optional*): A checkpoint directory, or `"last"`: the newest in `output_dir`, or
            a fresh start if there is none. The run ends at the weights it would have had without a break. With more
            steps than it was begun with (`max_steps`, `num_train_epochs`) it is made longer: from the step it resumes
            at, the learning rate is that of a run of the new length, which `"onecycle"` and `"cosine"` jump to.

    The other fields are described by their `help` metadata.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what would work.
    """

    options_title = "how to train"

    output_dir: str = option(help="where checkpoints, the log and the trained head go", short="-o")
    num_train_epochs: int = option(5, "passes over the data; max_steps wins", minimum=1)
    max_steps: int | None = option(None, "optimiser steps in all; needed for a stream of unknown length", minimum=1)
    per_device_batch_size: int = option(32, "images per process and micro-batch", minimum=1)
    gradient_accumulation_steps: int = option(1, "micro-batches per optimiser step", minimum=1)
    optimizer: str = option("sgd", "optimiser; sgd is Nesterov", choices=OPTIMIZERS)
    learning_rate: float = option(0.05, "learning rate; the maximum of onecycle", interval="(0, inf)")
    momentum: float = option(0.9, "momentum of sgd", interval="[0, 1)")
    weight_decay: float = option(5e-4, "on weights only; biases and norms get none", interval="[0, inf)")
    lr_scheduler: str = option("onecycle", "learning rate schedule", choices=SCHEDULERS)
    pct_start: float = option(0.3, "onecycle: the part of the steps in which the rate rises", interval="(0, 1)")
    cycle_momentum: bool = option(True, "onecycle: run momentum 0.95 -> 0.85 -> 0.95 against the rate, as torch does")
    lr_decay: float = option(0.95, "exponential: factor per epoch", interval="(0, inf)")
    max_grad_norm: float | None = option(None, "clip the gradient norm of the head", interval="(0, inf)")
    distill_method: str | None = option(
        None, "training-free method whose maps the head learns in its first distill_steps; for lcam, ttame and ptame"
    )
    distill_steps: int | None = option(
        None, "optimiser steps at the beginning that go by those maps instead of the head's own loss", minimum=1
    )
    method_options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "an option of distill_method, e.g. rise.num_masks=2000; may be repeated",
        flag="method_option",
        form="METHOD.OPTION=VALUE",
        example="rise.num_masks=2000",
    )
    torch_compile: bool = option(False, "compile the classifier: its first steps take minutes, the others less time")
    torch_compile_backend: str | None = option(None, "backend of torch.compile; inductor unless given")
    mixed_precision: str | None = option(
        None, "default: what `accelerate launch` says", choices=("no", "bf16", "fp16")
    )
    target: str = option("prediction", "class to explain: the model's top-1, or the label", choices=TARGETS)
    image_column: str | None = option(None, "column of the images; found by its type unless given")
    label_column: str | None = option(None, "column of the labels, for target=label; found by its type unless given")
    augmentation: str = option(
        "crop",
        "crop: resize, random crop, flip; flip: the image processor, then flip; none",
        choices=AUGMENTATIONS,
    )
    resize_size: int | None = option(
        None, "shorter side before the random crop; 256/224 of the input unless given", minimum=1
    )
    seed: int = option(0, "seed of everything random, a new head's weights included", minimum=0)
    deterministic: bool = option(False, "deterministic GPU kernels: resuming is then bit-identical there too")
    dataloader_num_workers: int = option(2, "processes that decode images", minimum=0)
    decode_draft: bool = option(
        False,
        "augmentation crop: decode large JPEGs at half, a quarter or an eighth of their size; faster, other pixels",
    )
    shuffle_buffer_size: int = option(1024, "streams: encoded images shuffled together", minimum=1)
    num_examples: int | None = option(
        None, "streams: images in one pass, where the data set does not say it", minimum=1
    )
    logging_steps: int = option(10, "steps between lines in the log", minimum=1)
    save_steps: int | None = option(500, "steps between checkpoints; 0 for none", minimum=0)
    save_total_limit: int | None = option(2, "checkpoints kept; 0 for all", minimum=0)
    eval_steps: int | None = option(None, "steps between validations; one epoch unless given", minimum=1)
    max_eval_samples: int | None = option(None, "validate on this many images, the first ones", minimum=1)
    report_to: list[str] = option([], "Accelerate trackers, e.g. tensorboard wandb", several=True)
    project_name: str = option("hf_explain", "project name for trackers")
    resume_from_checkpoint: str | None = option(
        None,
        "checkpoint directory, or 'last'; with more steps than before it is the schedule of the new length",
    )
    overwrite_output_dir: bool = option(False, "delete the checkpoints of an earlier run in output_dir")
    device: str | None = option(None, "cpu, or the accelerator: that is taken where there is one")
    progress: bool = option(True, "progress bars")
    # earlier names of device="cpu" and progress=False
    use_cpu: InitVar[bool | None] = None
    disable_tqdm: InitVar[bool | None] = None

    def __post_init__(self, use_cpu: bool | None, disable_tqdm: bool | None) -> None:
        self.device = "cpu" if use_cpu else self.device
        self.progress = self.progress if disable_tqdm is None else not disable_tqdm
        self.output_dir = os.fspath(output_folder(self.output_dir))
        self.report_to = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
        self.save_steps, self.save_total_limit = self.save_steps or 0, self.save_total_limit or 0
        check_options(self)
        self.save_steps, self.save_total_limit = self.save_steps or None, self.save_total_limit or None
        if self.decode_draft and self.augmentation != "crop":
            raise ValueError(
                f"decode_draft needs augmentation 'crop', got {self.augmentation!r}: with another one the image "
                "processor resizes, which has to see images as they are."
            )
        self.method_options = {name: dict(values) for name, values in self.method_options.items()}
        if self.report_to:
            _check_trackers(self.report_to)


def _check_trackers(names: list[str]) -> None:
    from accelerate.tracking import get_available_trackers

    available = [getattr(tracker, "value", str(tracker)) for tracker in get_available_trackers()]
    missing = [name for name in names if name != "all" and name not in available]
    if missing:
        raise ValueError(
            f"report_to {missing[0]!r} is not installed or unknown: available here are "
            f"{', '.join(available) or 'none'}; install it with pip."
        )


def check_distillation(args: ExplainerTrainingArguments) -> None:
    """
    Hold the settings of distilling against each other.

    Raises:
        ValueError: If one is there without the other, `method_options` are another method's, or the classifier would
            be compiled.
    """
    method, steps = args.distill_method, args.distill_steps
    if method is not None and steps is None:
        raise ValueError(f"distill_method {method!r} needs distill_steps, for how many steps at the beginning.")
    if steps is not None and method is None:
        raise ValueError(
            f"distill_steps {steps} needs distill_method, a training-free method such as transformer_attribution."
        )
    for name in args.method_options:
        if name != method:
            raise ValueError(f"method_option names {name!r}, but distill_method is {method!r}.")
    if method is not None and args.torch_compile:
        raise ValueError(
            f"distill_method {method!r} needs torch_compile off: methods look into the classifier by hooks, which "
            "compiled modules do not call."
        )


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
    "decode_draft",
    "torch_compile",
    "torch_compile_backend",
    "distill_method",
    "distill_steps",
)
# Of those, what all runs did before there was a choice; their checkpoints say nothing of it.
_PATH_BEFORE: dict[str, Any] = {"decode_draft": False, "torch_compile": False, "method_options": {}}


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
    if per_epoch is not None:
        per_epoch = max(per_epoch, 1)
        return per_epoch, args.max_steps or args.num_train_epochs * per_epoch
    if args.max_steps is None:
        raise ValueError("the dataset is a stream of unknown length: pass max_steps, or num_examples.")
    if args.lr_scheduler == "exponential":
        raise ValueError(
            "lr_scheduler 'exponential' decays per epoch and the stream's length is unknown: pass num_examples."
        )
    return None, args.max_steps


def describe_path(
    args: ExplainerTrainingArguments, num_examples: int | None, total_steps: int, num_processes: int, precision: str
) -> dict[str, Any]:
    """Everything that decides which weights a run arrives at, as a checkpoint remembers it."""
    path = {name: getattr(args, name) for name in _PATH_FIELDS}
    # as a file has them: a tuple is a list there
    path["method_options"] = json.loads(json.dumps(args.method_options, default=str))
    path.update(num_processes=num_processes, mixed_precision=precision, num_examples=num_examples)
    if args.lr_scheduler in ("onecycle", "cosine"):
        # These schedules bend to the length of the run; under the others it makes no difference.
        path["total_steps"] = total_steps
    return path


def check_same_path(checkpoint: Path, info: dict[str, Any], now: dict[str, Any], total_steps: int) -> None:
    r"""
    Refuse a checkpoint that a run with these settings, or a shorter one of them, could not have written.

    Args:
        checkpoint (`Path`): Named in the error.
        info (`dict[str, Any]`): What the checkpoint says of itself: `path` and `step`.
        now (`dict[str, Any]`): The `path` of this run.
        total_steps (`int`): Optimiser steps of this run.

    Raises:
        ValueError: Naming the first setting that differs, with both values.
    """
    if info["step"] > total_steps:
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} is at step {info['step']}, past the {total_steps} steps asked for: raise "
            "max_steps or num_train_epochs."
        )
    for name, value in now.items():
        saved = info["path"].get(name, _PATH_BEFORE.get(name))
        if saved != value and not (name == "total_steps" and lengthened(info, now)):
            same = f"{saved!r} or more (max_steps, num_train_epochs)" if name == "total_steps" else f"{saved!r}"
            raise ValueError(
                f"checkpoint {str(checkpoint)!r} was written with {name} {saved!r}, this run has {value!r}: resume "
                f"with {name} {same}, or start anew in another output_dir."
            )


def lengthened(info: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run goes on for longer than it was planned, under a schedule that bends to the length of a run."""
    before, after = info["path"].get("total_steps"), now.get("total_steps")
    return isinstance(before, int) and after is not None and after > before


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
        assert per_epoch is not None  # `plan_steps` refuses the schedule without it
        return peak * args.lr_decay ** (step // per_epoch), None
    if args.lr_scheduler == "cosine":
        return anneal(peak, 0.0, step / total), None
    return peak, None
