"""
Checkpoints of a training run: written whole or not at all, and a clear error where one cannot be read.

A checkpoint directory holds what `save_pretrained` writes (so it loads like any trained head), `training_state.pt`
(weights, optimiser, position in the data) and `trainer_state.json` (step, settings, what is trained and on which data,
checksum). Each of the last two knows the checksum of the other, so neither can change alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import pickle
import re
import reprlib
from collections.abc import Callable, Iterator
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
_MEGABYTE = 2**20
# more than any run writes: what is larger is not read at all
_LARGEST_INFO, _LARGEST_LOG = 16 * _MEGABYTE, 1024 * _MEGABYTE
# what every version wrote
_INFO_KEYS = {"step": int, "sha256": str, "path": dict, "elapsed": float}
_STATE_KEYS = ("model", "optimizer", "processes")


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
        described = {"step": step, **info}
        # Serialised in memory first: torch reports a full disk as an unspecific RuntimeError, a plain write does not.
        buffer = io.BytesIO()
        torch.save({**state, "info_sha256": _info_checksum(described)}, buffer)
        content = buffer.getvalue()
        (new / STATE_FILE).write_bytes(content)
        described |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (new / INFO_FILE).write_text(json.dumps(described, indent=2) + "\n")
    remove_old_checkpoints(output_dir, keep, directory)
    return directory


def remove_old_checkpoints(output_dir: Path, keep: int | None, but: Path | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`, where there is such a limit, and never `but`."""
    for old in list_checkpoints(output_dir)[:-keep] if keep is not None else ():
        if old != but:
            remove_directory(old)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""
    Read what `save_checkpoint` wrote.

    Args:
        path (`Path`): A checkpoint directory.

    Returns:
        `tuple[dict, dict]`: `(state, info)`, tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        OSError: If it cannot be read, or was changed; the message says which one can be tried instead.
    """
    with _reading(path):
        info = _read_info(path)
        file = path / STATE_FILE
        if file.stat().st_size != info.get("bytes", file.stat().st_size):
            raise ValueError(f"{STATE_FILE} is not of the size that {INFO_FILE} says")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != info["sha256"]:
            raise ValueError(f"{STATE_FILE} does not match its checksum")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        missing = [key for key in _STATE_KEYS if not isinstance(state, dict) or key not in state]
        if missing:
            raise ValueError(f"{STATE_FILE} lacks {missing[0]!r}")
        # version 0.1 wrote no checksum of the info
        if state.get("info_sha256", _info_checksum(info)) != _info_checksum(info):
            raise ValueError(f"{INFO_FILE} was changed after it was written")
        return state, info


def load_info(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, before it is loaded; the errors are those of [`load_checkpoint`]."""
    with _reading(path):
        return _read_info(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    if not path.is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint {str(path)!r} does not exist: pass a checkpoint-<step> directory, or 'last'."
        )
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        match = _CHECKPOINT.match(path.name)
        older = [
            other for other in list_checkpoints(path.parent) if match and int(other.name.split("-")[1]) < int(match[1])
        ]
        advice = f"delete it to resume from {older[-1].name}" if older else "delete it and start anew"
        raise OSError(f"checkpoint {str(path)!r} is unreadable ({reason}): {advice}.") from error


def _read_info(path: Path) -> dict[str, Any]:
    file = path / INFO_FILE
    _check_size(file, _LARGEST_INFO)
    info = read_json_file(file)
    for key, kind in _INFO_KEYS.items():
        value = info.get(key)
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(
                f"{INFO_FILE} lacks {key!r}" if key not in info else f"{key!r} in {INFO_FILE} is {reprlib.repr(value)}"
            )
        if isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{key!r} in {INFO_FILE} is {value!r}")
    return info


def _info_checksum(info: dict[str, Any]) -> str:
    """Of everything in it but what says which state it belongs to."""
    own = {key: value for key, value in info.items() if key not in ("sha256", "bytes")}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(own)), sort_keys=True).encode()).hexdigest()


def _check_size(file: Path, largest: int) -> None:
    size = file.stat().st_size
    if size > largest:
        raise ValueError(f"{file.name} has {size // _MEGABYTE} MB, more than any run writes")


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
    else:
        resume = find_checkpoint(output_dir, resume_from)
    return resume


def find_checkpoint(output_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint that `resume_from` means: a directory, or with `"last"` the newest in `output_dir`, if any."""
    if resume_from != "last":
        return Path(resume_from)
    return next(reversed(list_checkpoints(output_dir)), None)


def trim_log(output_dir: Path, step: int, checkpoint: Path | None = None) -> None:
    """
    Drop the lines after `step`: a run that resumes there writes them again. A checkpoint of another directory brings
    the lines of the log beside it, where there is one.

    Raises:
        ValueError: If a line before those is not one of a log.
    """
    log = output_dir / LOG_FILE
    if checkpoint is not None and (checkpoint.absolute().parent / LOG_FILE).exists():
        log = checkpoint.absolute().parent / LOG_FILE
    content = b""
    if log.exists() and step:
        _check_size(log, _LARGEST_LOG)
        content = log.read_bytes()
    kept, strange = [], None
    for number, line in enumerate(content.split(b"\n"), 1):
        entry = _log_entry(line)
        if entry is None and strange is None and line:
            strange = number  # harmless at the end: the line a killed process was writing
        elif entry is not None and entry["step"] <= step:
            if strange is not None:
                raise ValueError(
                    f"line {strange} of {str(log)!r} is not one of a training log: repair it, or delete the file and "
                    "its lines will be missing from the record of the run."
                )
            kept.append(line + b"\n")
    write_atomically(output_dir / LOG_FILE, b"".join(kept))


def read_log(output_dir: Path) -> list[dict[str, Any]]:
    """
    The lines of a log.

    Raises:
        ValueError: If one of them is not one of a log.
    """
    lines = (output_dir / LOG_FILE).read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        entry = _log_entry(line)
        if entry is not None:
            entries.append(entry)
        elif line:
            raise ValueError(f"line {number} of {str(output_dir / LOG_FILE)!r} is not one of a training log.")
    return entries


def _log_entry(line: bytes) -> dict[str, Any] | None:
    """A line of the log, or `None` where it is not one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int) and not isinstance(step, bool) else None
