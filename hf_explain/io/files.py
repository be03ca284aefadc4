"""Files on disk: written whole or not at all, by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before every use

LOCK_FILE = ".hf_explain.lock"
RECORD_FILE = "training_record.json"  # what training writes beside the head; `hf_explain.training.record` reads it
TEMPORARY = ".hf_explain.tmp"  # how the names of what is half-written end, and no name that people choose
# what file systems that know no locks answer
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_HELD: set[int] = set()  # open lock files of this process
_MOVES: dict[Path, Path] = {}  # directories that are being written, and where they will lie
# what makes a directory look complete is moved there after everything else
_LAST = ("config.json", RECORD_FILE)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that, whatever happens, its name shows either the old content or the new one."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json_file(path: Path, value: Any) -> None:
    """Write a JSON file that people can read, as [`write_atomically`] does."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json_file(path: Path) -> dict[str, Any]:
    """
    The JSON object in a file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it holds no JSON object; the message names the file without its directories.
    """
    content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name!r} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name!r} must hold a JSON object, got {type(value).__name__}.")
    return value


def check_writable(directory: Path) -> None:
    """
    Create `directory` if need be and write to it once.

    Raises:
        OSError: If it cannot be created or written to.
    """
    with _writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # without a name that a file of somebody's could have


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
    Reserve `directory` for one run at a time: two would overwrite each other's files.

    The system releases a lock when its process ends, however it ends; the lock's file is deleted unless the process
    was killed. Where there are no locks (Windows, some network file systems) nothing is locked.

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
        if descriptor in _HELD:  # a process forked meanwhile does not hold it
            _HELD.discard(descriptor)
            with contextlib.suppress(OSError):  # a file that stays does no harm: only the lock counts
                path.unlink()  # while the lock is held, so that it is not another run's file
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`, or `None` where files cannot be locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else it was replaced meanwhile: again
                _HELD.add(descriptor)
                return descriptor
        except FileNotFoundError:
            pass  # its last holder removed it after it was opened: open it anew
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


def remove_leftovers(output_dir: Path, of_before: str) -> None:
    """
    Delete what a killed run left half-written, and nothing else.

    Args:
        output_dir (`Path`): Where it was written.
        of_before (`str`): Regular expression of the names that version 0.1 gave such files there.
    """
    for path in output_dir.glob("*.tmp"):
        if path.name.endswith(TEMPORARY) or re.fullmatch(of_before, path.name) and _is_as_of_before(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_as_of_before(path: Path) -> bool:
    """Whether something is of the kind that version 0.1 gave its name to."""
    if path.is_symlink():
        return False
    if path.name.startswith(".") and path.name != ".write_test.tmp":  # of `write_directory`
        return path.is_dir() and {"new"} <= set(os.listdir(path)) <= {"new", "old"}
    return path.is_dir() if path.name.endswith(".old.tmp") else path.is_file()


def remove_directory(path: Path) -> None:
    """Delete a directory so that, whatever happens, its name shows either all of it or nothing."""
    # renamed first: a process killed half-way through deleting must not leave something that looks complete
    doomed = path.with_name(path.name + ".old" + TEMPORARY)
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(path, doomed)
    shutil.rmtree(doomed)


@contextlib.contextmanager
def write_directory(directory: Path, argument: str = "output_dir", replace: bool = False) -> Iterator[Path]:
    r"""
    A temporary directory to write to, moved to `directory` once it is complete and on the disk.

    A new directory is moved as a whole. Of an existing one the files of the same names are replaced one by one, with
    a way back, and the others stay. So a failure leaves what was there before, and what a killed process leaves ends
    in `.hf_explain.tmp`.

    Args:
        directory (`Path`): Its final name; created where missing, with its parents.
        argument (`str`, *optional*, defaults to `"output_dir"`): What the caller's argument is called, for the errors.
        replace (`bool`, *optional*, defaults to `False`): Take the place of an existing directory as a whole.

    Yields:
        `Path`: The empty directory to write to.

    Raises:
        OSError: If the disk is full or cannot be written; nothing half-written is left.
    """
    directory = Path(os.path.abspath(directory))
    exists = directory.is_dir()
    # inside a directory that stays, which may be a mount of its own that nothing can be renamed into
    home = directory if exists and not replace else directory.parent
    created = _missing_ancestor(home)
    temporary, saved = None, False
    try:
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=TEMPORARY, dir=home))
        new = temporary / "new"  # a temporary directory itself is private to its owner
        new.mkdir()
        _MOVES[new] = directory
        yield new
        _share_permissions(new)
        _sync_tree(new)
        if exists and not replace:
            _move_files(new, directory, temporary / "old")
            _sync(directory)
        else:
            if exists:
                remove_directory(directory)
            os.replace(new, directory)
            _sync(directory.parent)
        saved = True
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"could not save to {str(directory)!r}: {reason}. Nothing half-written was left there; check its disk and "
            f"permissions, or choose another {argument}."
        ) from error
    finally:
        if temporary is not None:
            _MOVES.pop(temporary / "new", None)
            shutil.rmtree(temporary, ignore_errors=True)
        if created is not None and not saved:
            shutil.rmtree(created, ignore_errors=True)


def final_place(path: Path) -> Path:
    """Where what is written to `path` will lie: there, or where [`write_directory`] is going to move it."""
    path = Path(os.path.abspath(path))
    for folder in (path, *path.parents):
        if folder in _MOVES:
            return final_place(_MOVES[folder]) / path.relative_to(folder)
    return path


def _missing_ancestor(directory: Path) -> Path | None:
    """The topmost directory that making `directory` would create."""
    created = None
    while not os.path.lexists(directory):
        created, directory = directory, directory.parent
    return created


def _share_permissions(directory: Path) -> None:
    """Safetensors writes files that only their owner can read; give every file the permissions of the directory."""
    mode = stat.S_IMODE(directory.stat().st_mode) & 0o666
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _sync(path: Path) -> None:
    if os.name == "nt":  # Windows opens no directory and syncs nothing opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _move_files(source: Path, target: Path, old: Path) -> None:
    """Move files over those of an existing directory; after an error all are what they were."""
    moved: list[Path] = []
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    try:
        for name in sorted(names, key=lambda name: (_LAST.index(name.name) if name.name in _LAST else -1, name)):
            destination, kept = target / name, old / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if destination.exists():
                try:
                    os.link(destination, kept)
                except OSError:  # file systems without hard links
                    shutil.copy2(destination, kept)
            os.replace(source / name, destination)
            moved.append(name)
    except BaseException:
        for name in moved:
            if (old / name).exists():
                os.replace(old / name, target / name)
            else:
                (target / name).unlink()
        raise
