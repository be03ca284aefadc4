"""Files on disk: written whole or not at all, by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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


def remove_leftovers(output_dir: Path) -> None:
    """Delete what a killed run left half-written."""
    for path in output_dir.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_directory(path: Path) -> None:
    """Delete a directory so that, whatever happens, its name shows either all of it or nothing."""
    # renamed first: a process killed half-way through deleting must not leave something that looks complete
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
            remove_directory(directory)
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


@contextlib.contextmanager
def replace_directory(target: str, name: str) -> Iterator[str]:
    """
    A temporary directory to write to, moved to `target` once it is complete.

    A new directory is moved as a whole, the files of an existing one one by one with a way back, so a failure leaves
    what was there before; other files of an existing directory stay.

    Args:
        target (`str`): Absolute path; created where missing, with its parents.
        name (`str`): What the caller's argument is called, for the errors.

    Yields:
        `str`: The directory to write to. A `config.json` among its files gives all of them its permissions.

    Raises:
        OSError: If the directory cannot be written; nothing is left behind.
    """
    exists, parent = os.path.isdir(target), os.path.dirname(target)
    # inside an existing directory, which may be a mount of its own that nothing can be renamed into
    home = target if exists else parent
    created = _missing_ancestor(parent)
    try:
        os.makedirs(parent, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}.", dir=home)
    except OSError as error:
        _remove(created)
        raise OSError(f"`{name}` {target!r} cannot be written: {error.strerror or error}.") from error
    saved = False
    try:
        new = os.path.join(temporary, "new")  # a temporary directory itself is private to its owner
        yield new
        _share_permissions(new)
        if exists:
            _move_files(new, target, os.path.join(temporary, "old"))
        else:
            os.replace(new, target)
        saved = True
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own way
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Saving to {target!r} failed and was undone: {reason}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not saved:
            _remove(created)


def _missing_ancestor(directory: str) -> str | None:
    """The topmost directory that making `directory` would create."""
    created = None
    while not os.path.lexists(directory):
        created, directory = directory, os.path.dirname(directory)
    return created


def _share_permissions(directory: str) -> None:
    """Safetensors writes for its owner alone; every file gets what the umask gave config.json."""
    mode = stat.S_IMODE(os.stat(os.path.join(directory, "config.json")).st_mode)
    for entry in os.scandir(directory):
        if entry.is_file():
            os.chmod(entry.path, mode)


def _remove(directory: str | None) -> None:
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _move_files(source: str, target: str, old: str) -> None:
    """Move files over those of an existing directory, config.json last; after an error all are what they were."""
    os.mkdir(old)
    moved: list[str] = []
    try:
        for name in sorted(os.listdir(source), key=lambda name: name == "config.json"):
            destination, kept = os.path.join(target, name), os.path.join(old, name)
            if os.path.exists(destination):
                try:
                    os.link(destination, kept)
                except OSError:  # file systems without hard links
                    shutil.copy2(destination, kept)
            os.replace(os.path.join(source, name), destination)
            moved.append(name)
    except BaseException:
        for name in moved:
            destination, kept = os.path.join(target, name), os.path.join(old, name)
            if os.path.exists(kept):
                os.replace(kept, destination)
            else:
                os.remove(destination)
        raise
