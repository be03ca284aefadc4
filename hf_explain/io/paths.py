r"""
What the name of a model or a data set is: a path, or an id on the Hub. Every place that asks, asks here.

| text                                                                | exists here | does not          |
|---------------------------------------------------------------------|-------------|-------------------|
| `/a/b`, `~/a`, `.`, `./a`, `../a`, `C:\a`, `C:/a`, `a\b`, `file:a`   | a path      | a path            |
| `user/name`, `name`                                                 | a path      | an id on the Hub  |
| anything else: `a/b/c`, `a/`, `.a`, `a b`, a URL                     | a path      | neither           |

What is neither cannot be loaded; the error speaks of a missing directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


_PATH = re.compile(r"[/\\~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|file:")


def is_local_path(text: str) -> bool:
    r"""
    Whether a text looks like a path, on this machine or another one. Hub ids, URLs and plain words do not.

    Example:

    ```python
    >>> from hf_explain.io.paths import is_local_path

    >>> [is_local_path(text) for text in ("./runs/head", "C:\\head", "~/head", "microsoft/resnet-50")]
    [True, True, True, False]
    ```
    """
    return _PATH.match(text) is not None or "\\" in text


def is_hub_id(name: str) -> bool:
    """Whether a name can be `user/name`, or `name` alone, on the Hub, as far as the text says."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # slow to import

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_source(name: str) -> None:
    """
    Refuse what is neither a directory here nor can be an id on the Hub, before anything asks the Hub for it.

    Args:
        name (`str`): Of a head or a classifier.

    Raises:
        FileNotFoundError: If it can be neither.
    """
    if not os.path.isdir(name) and not is_hub_id(name):
        raise FileNotFoundError(f"The directory {name!r} does not exist; give an existing directory or a Hub id.")


def exists_here(name: str | os.PathLike) -> bool:
    """Whether this machine has a file or a directory of that name, which then is meant rather than an id."""
    return bool(name) and Path(name).expanduser().exists()


def base_name(path: str) -> str:
    """The last part of a path, be it one of Windows or of another system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def public_name(source: str | os.PathLike | None) -> str | None:
    """
    What may be published of where something came from: a Hub id as it is, a path without its directories.

    Args:
        source (`str` or `os.PathLike`, *optional*): Path or Hub id.

    Returns:
        `str`, *optional*: `None` where there is nothing to say.
    """
    if not source:
        return None
    name = os.fspath(source)
    if exists_here(name):
        return Path(name).expanduser().resolve().name or None
    return name if is_hub_id(name) else base_name(name) or None


def portable_name(source: str | None) -> str | None:
    """A directory by its absolute path, so that it is found from any working directory; a Hub id as it is."""
    return os.path.abspath(source) if source and os.path.isdir(source) else source or None


def relative_name(source: str | None, folder: Path) -> str | None:
    """
    A directory by its way from a folder, so that it is found where both have moved; `.` or `..` comes first, which no
    Hub id has. What is not an absolute path of this machine, as a Hub id, stays as it is.
    """
    if not source or not os.path.isabs(source):
        return source
    try:
        way = os.path.relpath(source, folder).replace(os.sep, "/")
    except ValueError:  # on another drive
        return source
    return way if way.split("/")[0] == ".." else f"./{way}"


def resolved_name(source: str, folder: str | os.PathLike) -> str:
    """
    What [`relative_name`] made of a directory, as an absolute path again; other names stay as they are. A path that
    does not lead to a directory from `folder` may do so from the working directory.
    """
    if source.split("/")[0] not in (".", ".."):
        return source
    # a folder that is reached by a link has two parents
    starts = (os.path.abspath(folder), os.path.realpath(folder), os.getcwd())
    places = [os.path.normpath(os.path.join(start, source)) for start in starts]
    return next(filter(os.path.isdir, places), places[0])


def output_folder(path: str | os.PathLike, argument: str = "output_dir") -> Path:
    """
    A folder to write to, as somebody names it; `"."` means the working directory, an empty name is a mistake.

    Args:
        path (`str` or `os.PathLike`): Its name.
        argument (`str`, *optional*, defaults to `"output_dir"`): What the caller's argument is called, for the error.

    Raises:
        ValueError: If the name is empty, such as an unset variable of a shell gives.
    """
    if not os.fspath(path).strip():
        raise ValueError(f"`{argument}` is empty, got {os.fspath(path)!r}: name a folder, or '.' for this one.")
    return Path(path)
