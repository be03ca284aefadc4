"""
What a run stands on: processes, precision, deterministic kernels, seeds, versions.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from hf_explain.training_arguments import ExplainerTrainingArguments


def make_accelerator(args: ExplainerTrainingArguments) -> Accelerator:
    current = AcceleratorState._shared_state.get("_mixed_precision")
    if args.mixed_precision is not None and current is not None and current != args.mixed_precision:
        # Accelerate keeps the first precision of a process for good; a second run may want another.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.report_to or None,
        project_dir=args.output_dir,
        cpu=args.use_cpu,
    )
    check_launched(accelerator)
    # The loop accumulates itself; a value left in the environment by a launcher must not divide the loss again.
    accelerator.gradient_accumulation_steps = 1
    if str(accelerator.mixed_precision) == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision 'fp16' does not exist on the CPU (it would run as float32): use 'bf16' or 'no'."
        )
    return accelerator


def check_launched(accelerator: Accelerator) -> None:
    """A ValueError where a launcher started several processes that Accelerate does not join."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        # Without a GPU Accelerate quietly makes each of them a run of its own, all writing to one directory.
        raise ValueError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}: on the CPU set "
            "ACCELERATE_USE_CPU=true and start with torchrun, or pass use_cpu=True."
        )


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


def derive_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages a result depends on."""
    names = ("hf_explain", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow")
    installed = {found.name.lower().replace("-", "_") for found in metadata.distributions() if found.name}
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names if n in installed}}


def launched_processes() -> tuple[int, int, torch.device | None]:
    """Rank and number of the processes a launcher started, and the device of this one; joins them."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, None
    state = PartialState(cpu=not torch.cuda.is_available())
    return state.process_index, state.num_processes, state.device


def on_main_process(accelerator: Accelerator, action: Callable[[], Any]) -> Any:
    """Run `action` on the main process only; its result, or its error, reaches all of them."""
    return on_first_process(accelerator.process_index, accelerator.num_processes, action)


def on_first_process(rank: int, world: int, action: Callable[[], Any]) -> Any:
    """The same for process `rank` of `world` where there is no accelerator."""
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = action()
        except (OSError, ValueError) as error:
            if world == 1:
                raise
            outcome[1] = error
    if world > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


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
