"""
Checkpoints of a training run: written whole or not at all, read with a clear word when they cannot be.

A checkpoint directory holds what `save_pretrained` writes (so it loads like any trained head), `training_state.pt`
(weights, optimiser, position in the data) and `trainer_state.json` (step, settings, checksum).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
STATE_FILE = "training_state.pt"
INFO_FILE = "trainer_state.json"
LOG_FILE = "train_log.jsonl"
LOCK_FILE = ".hf_explain.lock"
# what file systems that know no locks answer
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_HELD: set[int] = set()  # open lock files of this process


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, its name shows either the old content or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(directory: Path) -> None:
    """
    Create `directory` if need be and write to it once.

    Raises:
        OSError: If it cannot be created or written to.
    """
    with _writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / ".write_test", b"")
        (directory / ".write_test").unlink()


@contextlib.contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise  # locked, not unwritable
    except OSError as error:
        raise OSError(
            f"output_dir {str(directory)!r} is not writable ({error.strerror or error}): choose another directory or "
            "change its permissions."
        ) from error


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """
    Keep `directory` to one run at a time: two would overwrite each other's files.

    The system gives a lock back when its process ends, however it ends; the lock's file goes with it unless the
    process was killed. Where there are no locks (Windows, some network file systems) nothing is locked.

    Args:
        directory (`Path`): Created if need be.

    Raises:
        OSError: If another run holds it, or it cannot be written to.
    """
    path = directory / LOCK_FILE
    try:
        with _writing_to(directory):
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = None if fcntl is None else _lock(path)
    except BlockingIOError:
        raise OSError(
            f"output_dir {str(directory)!r} is in use by another run, which is still going on: wait until it has "
            "ended, or choose another output_dir."
        ) from None
    try:
        yield
    finally:
        if descriptor in _HELD:  # in a process forked meanwhile it is not
            _HELD.discard(descriptor)
            with contextlib.suppress(OSError):  # one that stays locks nobody out
                path.unlink()  # while it is held: nobody else's has this name
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`, or `None` where files cannot be locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                _HELD.add(descriptor)
                return descriptor
        except FileNotFoundError:
            pass  # its last holder removed it in between, like one that is another by now: once more
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            return None
        finally:
            if descriptor not in _HELD:
                os.close(descriptor)


def _let_go() -> None:
    """A forked process, such as one that loads images, holds no lock: it may live longer than a killed parent."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))
    ]
    return [path for _, path in sorted(found)]


def remove_leftovers(output_dir: Path) -> None:
    """Delete what a killed run left half-written."""
    for path in output_dir.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_checkpoint(path: Path) -> None:
    # Renamed first: a process killed half-way through deleting must not leave something that looks complete.
    doomed = path.with_name(path.name + ".old.tmp")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def write_directory(directory: Path, write: Callable[[Path], None], merge: bool = False) -> None:
    r"""
    Write a directory whole or not at all.

    Args:
        directory (`Path`): Its final name.
        write (`Callable[[Path], None]`): Fills the temporary directory it is given.
        merge (`bool`, *optional*, defaults to `False`): Move the files one by one into an existing directory instead
            of taking its place.

    Raises:
        OSError: If the disk is full or cannot be written; nothing half-written is left.
    """
    temporary = (directory / "final.tmp") if merge else directory.with_name(directory.name + ".tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        write(temporary)
        _sync_tree(temporary)
        if merge:
            for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
                target = directory / path.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
            shutil.rmtree(temporary)
            _sync(directory)
            return
        if directory.exists():
            remove_checkpoint(directory)
        os.rename(temporary, directory)
        _sync(directory.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"could not save to {str(directory)!r}: {reason}. Nothing half-written was left there; free some space "
            "or choose another output_dir."
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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

    def write(temporary: Path) -> None:
        save_model(temporary)
        # Serialised in memory first: torch reports a full disk as an unspecific RuntimeError, a plain write does not.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        (temporary / STATE_FILE).write_bytes(content)
        described = {"step": step, "sha256": hashlib.sha256(content).hexdigest(), **info}
        (temporary / INFO_FILE).write_text(json.dumps(described, indent=2) + "\n")

    write_directory(directory, write)
    if keep is not None:
        for old in list_checkpoints(output_dir)[:-keep]:
            if old != directory:
                remove_checkpoint(old)
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
        info = json.loads((path / INFO_FILE).read_text())
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
    remove_leftovers(output_dir)
    checkpoints = list_checkpoints(output_dir)
    resume = None
    if resume_from is None:
        if checkpoints and not overwrite:
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds {checkpoints[-1].name} of an earlier run: continue it with "
                "resume_from_checkpoint='last', or pass overwrite_output_dir=True to delete it."
            )
        for checkpoint in checkpoints:
            remove_checkpoint(checkpoint)
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
