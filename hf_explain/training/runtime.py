"""
What a run is built on: processes, precision, the optimiser, deterministic kernels, seeds, versions.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_explain.io.processes import check_launched, wants_cpu
from hf_explain.training.arguments import ExplainerTrainingArguments


def make_accelerator(args: ExplainerTrainingArguments) -> Accelerator:
    current = AcceleratorState._shared_state.get("_mixed_precision")
    if args.mixed_precision is not None and current is not None and current != args.mixed_precision:
        # Accelerate keeps the first precision of a process for good; a second run may want another.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.report_to or None,
        project_dir=args.output_dir,
        cpu=wants_cpu(args.device),
    )
    check_launched(accelerator)
    # The loop accumulates itself; a value left in the environment by a launcher must not divide the loss again.
    accelerator.gradient_accumulation_steps = 1
    if str(accelerator.mixed_precision) == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision 'fp16' does not exist on the CPU (it would run as float32): use 'bf16' or 'no'."
        )
    return accelerator


@contextlib.contextmanager
def deterministic_kernels():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


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


def derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def describe_machine(accelerator: Accelerator) -> dict[str, Any]:
    """Where a run took place, without names of users, hosts or directories."""
    on_gpu = accelerator.device.type == "cuda"
    return {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name() if on_gpu else accelerator.device.type,
        "num_processes": accelerator.num_processes,
        "mixed_precision": str(accelerator.mixed_precision),
    }


def summarize_losses(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The lines of a training log as a record keeps them: last values, validation, at most 200 points of training."""
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "eval_loss" in line]
    stride = max(1, math.ceil(len(training) / 200))
    return {
        "final_loss": training[-1]["loss"] if training else None,
        "final_eval_loss": validation[-1]["eval_loss"] if validation else None,
        "losses": [[line["step"], line["loss"]] for line in training[::stride]],
        "eval_losses": [[line["step"], line["eval_loss"]] for line in validation],
    }
