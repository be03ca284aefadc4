"""
What a long measurement has finished, in a folder, so that a killed one goes on and nothing of another one is mixed in.

A shard is the result for some consecutive rows of the data. It knows a checksum of those rows, and one of itself.
Those of version 0.1 know neither; they are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_explain.io.files import (
    check_writable,
    lock_directory,
    read_json_file,
    remove_leftovers,
    write_atomically,
    write_json_file,
)


SETTINGS_FILE = "settings.json"


def claim(folder: Path, settings: Mapping[str, Any], held: contextlib.ExitStack) -> None:
    """
    Reserve a folder for the measurement with these settings, without what a killed one left half-written.

    Args:
        folder (`Path`): Created if need be.
        settings (`dict`): JSON values; what must be the same for partial results to belong together.
        held (`contextlib.ExitStack`): The folder is locked for other runs until it is closed.

    Raises:
        ValueError: If it holds partial results of other settings, or of settings that cannot be read.
        OSError: If another run holds it, or it cannot be written to.
    """
    held.enter_context(lock_directory(folder))
    check_writable(folder)
    remove_leftovers(folder, r"(\.write_test|settings\.json|result\.json|shard-\d{6}\.json)\.tmp")
    file = folder / SETTINGS_FILE
    if not file.is_file() or not any(_shards(folder)):  # one that was killed before it finished a shard binds nobody
        write_json_file(file, settings)
        return
    try:
        known = read_json_file(file)
    except ValueError as error:
        raise ValueError(
            f"output_dir {str(folder)!r} holds an evaluation whose settings cannot be read ({error}): choose another "
            "output_dir, or delete that one."
        ) from error
    if known != settings:
        name = next(name for name in {**known, **settings} if known.get(name) != settings.get(name))
        raise ValueError(
            f"output_dir {str(folder)!r} holds an evaluation with {name}={known.get(name)!r}, this one has "
            f"{settings.get(name)!r}: choose another output_dir, or delete that one."
        )


def give_back(folder: Path | None) -> None:
    """After an error: release a folder without partial results, so that the corrected call can use it."""
    if folder is not None and not any(_shards(folder)):
        (folder / SETTINGS_FILE).unlink(missing_ok=True)


def write_shard(folder: Path, shard: int, record: Mapping[str, Any]) -> None:
    """Keep the result of shard number `shard`, JSON values that name it as `shard`."""
    content = json.dumps({**record, "sha256": _checksum(record)}).encode()
    write_atomically(folder / f"shard-{shard:06d}.json", content)


def read_shards(folder: Path | None) -> dict[int, dict[str, Any]]:
    """
    The shards of an earlier run, by number.

    Raises:
        ValueError: If one is damaged; the message names it.
    """
    found = {}
    for file in sorted(_shards(folder)) if folder is not None else ():
        try:
            record = read_json_file(file)
            if record.pop("sha256", None) not in (None, _checksum(record)):
                raise ValueError("it does not match its checksum")
            found[int(record["shard"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The partial result {str(file)!r} is damaged; delete it to measure it again.") from error
    return found


def check_rows(folder: Path | None, record: Mapping[str, Any], checksum: str) -> None:
    """
    See that a shard was made of the rows that the data has there now.

    Args:
        folder (`Path`, *optional*): Named in the error.
        record (`dict`): The shard's.
        checksum (`str`): Of the rows.

    Raises:
        ValueError: If it was made of others.
    """
    if record.get("rows_sha256", checksum) != checksum:
        raise ValueError(
            f"output_dir {str(folder)!r} holds an evaluation of other data: its images from {record['start']} on were "
            "others than `data` has there now. Choose another output_dir, or delete that one."
        )


def _shards(folder: Path):
    return folder.glob("shard-*.json")


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()
