"""
Checkpoints of a training run: written whole or not at all, and a clear error where one cannot be read.

A checkpoint directory holds what `save_pretrained` writes (so it loads like any trained head), `training_state.pt`
(weights, optimiser, position in the data) and `trainer_state.json` (step, settings, checksum).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_explain.io.files import (
    check_writable,
    read_json_file,
    remove_directory,
    remove_leftovers,
    write_atomically,
    write_directory,
)


_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
STATE_FILE = "training_state.pt"
INFO_FILE = "trainer_state.json"
LOG_FILE = "train_log.jsonl"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))
    ]
    return [path for _, path in sorted(found)]


def save_checkpoint(
    output_dir: Path,
    step: int,
    state: dict[str, Any],
    info: dict[str, Any],
    save_model: Callable[[Path], None],
    keep: int | None = None,
) -> Path:
    r"""
    Write `checkpoint-<step>` and delete the oldest ones beyond `keep`.

    Args:
        output_dir (`Path`): Directory of the run.
        step (`int`): Optimiser steps done.
        state (`dict[str, Any]`): Tensors and plain values, as `torch.load(weights_only=True)` accepts them.
        info (`dict[str, Any]`): JSON values that identify the run.
        save_model (`Callable[[Path], None]`): Writes the head where it is told.
        keep (`int`, *optional*): How many checkpoints stay; all of them unless given.

    Returns:
        `Path`: The checkpoint.
    """
    directory = output_dir / f"checkpoint-{step}"

    with write_directory(directory, replace=True) as new:
        save_model(new)
        # Serialised in memory first: torch reports a full disk as an unspecific RuntimeError, a plain write does not.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        (new / STATE_FILE).write_bytes(content)
        described = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), **info}
        (new / INFO_FILE).write_text(json.dumps(described, indent=2) + "\n")
    if keep is not None:
        for old in list_checkpoints(output_dir)[:-keep]:
            if old != directory:
                remove_directory(old)
    return directory


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""
    Read what `save_checkpoint` wrote.

    Args:
        path (`Path`): A checkpoint directory.

    Returns:
        `tuple[dict, dict]`: `(state, info)`, tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        OSError: If it cannot be read; the message says which one can be tried instead.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint {str(path)!r} does not exist: pass a checkpoint-<step> directory, or 'last'."
        )
    try:
        info = read_json_file(path / INFO_FILE)
        content = (path / STATE_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != info["sha256"]:
            raise ValueError(f"{STATE_FILE} does not match its checksum")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), info
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        match = _CHECKPOINT.match(path.name)
        older = [
            other for other in list_checkpoints(path.parent) if match and int(other.name.split("-")[1]) < int(match[1])
        ]
        advice = f"delete it to resume from {older[-1].name}" if older else "delete it and start anew"
        raise OSError(f"checkpoint {str(path)!r} is unreadable ({reason}): {advice}.") from error


def prepare_output_dir(output_dir: Path, resume_from: str | None = None, overwrite: bool = False) -> Path | None:
    r"""
    Make a directory ready for a run: writable, and without what a killed run left half-written.

    Args:
        output_dir (`Path`): Directory of the run; created if need be.
        resume_from (`str`, *optional*): A checkpoint directory, or `"last"` for the newest in `output_dir` if any.
        overwrite (`bool`, *optional*, defaults to `False`): Delete the checkpoints of an earlier run.

    Returns:
        `Path | None`: The checkpoint to resume from.

    Raises:
        FileExistsError: If there are checkpoints and neither resuming nor overwriting was asked for.
        OSError: If the directory is not writable or the checkpoint unreadable.
    """
    check_writable(output_dir)
    remove_leftovers(
        output_dir,
        r"(\.write_test|train_log\.jsonl)\.tmp|checkpoint-\d+\.old\.tmp|"
        rf"\.(checkpoint-\d+|{re.escape(output_dir.absolute().name)})\.[a-z0-9_]{{8}}\.tmp",
    )
    checkpoints = list_checkpoints(output_dir)
    resume = None
    if resume_from is None:
        if checkpoints and not overwrite:
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds {checkpoints[-1].name} of an earlier run: continue it with "
                "resume_from_checkpoint='last', or pass overwrite_output_dir=True to delete it."
            )
        for checkpoint in checkpoints:
            remove_directory(checkpoint)
    elif resume_from != "last":
        resume = Path(resume_from)
    elif checkpoints:
        resume = checkpoints[-1]
    return resume


def trim_log(output_dir: Path, step: int) -> None:
    """Drop the lines after `step`: a run that resumes there writes them again."""
    log = output_dir / LOG_FILE
    lines = log.read_text().splitlines() if log.exists() else []
    write_atomically(log, "".join(line + "\n" for line in lines if _logged_step(line) <= step).encode())


def _logged_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf  # the line a killed process was writing
