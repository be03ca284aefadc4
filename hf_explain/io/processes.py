"""Work that several processes share: who is who, what the first one does for all, and how they part."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list


def check_launched(accelerator: Accelerator) -> None:
    """A ValueError where a launcher started several processes that Accelerate does not join."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        # Without a GPU Accelerate quietly makes each of them a run of its own, all writing to one directory.
        raise ValueError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}: on the CPU set "
            "ACCELERATE_USE_CPU=true and start with torchrun, or pass device='cpu'."
        )


def choose_device(device: str | int | torch.device | None = None) -> torch.device:
    """
    The device that was asked for, or the accelerator of this machine where there is one, or else the CPU.

    Raises:
        ValueError: If it is not a device, or this machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` {device!r} is not a device: write for example cpu, cuda or cuda:1.") from error
    own = accelerator is not None and chosen.type == accelerator.type
    if chosen.type != "cpu" and not (own and (chosen.index or 0) < torch.accelerator.device_count()):
        found = f"{torch.accelerator.device_count()} of kind {accelerator.type}" if accelerator else "none but the CPU"
        raise ValueError(f"`device` {device!r} is not on this machine, which has {found}.")
    return chosen


def wants_cpu(device: str | int | torch.device | None) -> bool:
    """
    What `Accelerator(cpu=...)` is to be told, where every process gets a device of its own.

    Raises:
        ValueError: As [`choose_device`], or if `device` is one of several accelerators.
    """
    chosen = choose_device(device)
    if device is not None and chosen.type != "cpu" and chosen.index is not None:
        raise ValueError(
            f"`device` {device!r} names one of several, and Accelerate gives each process its own: leave it out, and "
            "say with CUDA_VISIBLE_DEVICES which ones it sees."
        )
    return device is not None and chosen.type == "cpu"


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("hf_explain", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from its source, for example
            versions[name] = metadata.version(name)
    return versions


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages a result depends on, read once."""
    return dict(_package_versions())


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


def leave(status: int) -> int:
    """
    End a process of several: wait for the others when all went well, and close the connections between them.

    Without it the first process to exit takes the store the others still talk to with it, and they die at exit.

    Args:
        status (`int`): Exit status of this process; after an error the others are not waited for.

    Returns:
        `int`: `status`.
    """
    if dist.is_available() and dist.is_initialized():
        if status == 0:
            dist.barrier()
        dist.destroy_process_group()
        # threads of the backend can outlive the interpreter's shutdown and abort a process whose work is done
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
