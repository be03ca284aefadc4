"""Directories written whole or not at all, and the lock of one."""

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest
from testing_common import files_below
from testing_processes import start

from hf_explain.io import files
from hf_explain.io.files import (
    LOCK_FILE,
    check_writable,
    lock_directory,
    read_json_file,
    remove_directory,
    write_atomically,
    write_directory,
    write_json_file,
)
from hf_explain.training.checkpoints import prepare_output_dir


IN_USE = "^output_dir '.*out' is in use by another run.*wait until it has ended, or choose another output_dir.$"


def test_one_run_at_a_time_and_nothing_is_left(tmp_path):
    out = tmp_path / "new/out"
    with lock_directory(out):
        for _ in range(2):  # the second one refused does not weaken the first
            with pytest.raises(OSError, match=IN_USE), lock_directory(out):
                pass
        assert (out / LOCK_FILE).exists()
    assert list(out.iterdir()) == []
    with pytest.raises(ZeroDivisionError), lock_directory(out):
        1 / 0  # noqa: B018
    assert list(out.iterdir()) == []
    (out / LOCK_FILE).touch()  # as a killed run leaves it
    with lock_directory(out), pytest.raises(OSError, match=IN_USE), lock_directory(out):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The holder may end between our opening its lock file and locking it; then the file is replaced or gone."""
    flock, removed = files.fcntl.flock, []

    def late(descriptor, how):
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        return flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with lock_directory(tmp_path), pytest.raises(OSError, match="is in use"), lock_directory(tmp_path):
        pass
    assert removed and not files._HELD


def hold(pipe, directory):
    with lock_directory(directory):
        if os.fork() == 0:
            pipe.send(os.getpid())  # of the worker itself: here it has let go, in the parent it may not have run yet
        time.sleep(600)


@pytest.mark.processes
def test_a_killed_run_locks_nobody_out_even_where_its_workers_live_on(tmp_path):
    out = tmp_path / "out"
    process, pipe = start(hold, out)
    worker = pipe.recv()
    try:
        with pytest.raises(OSError, match=IN_USE), lock_directory(out):
            pass
        process.kill()
        process.join()
        os.kill(worker, 0)
        with lock_directory(out):
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
    assert list(out.iterdir()) == []


def test_a_fork_that_leaves_the_block_takes_nothing_with_it(tmp_path):
    with contextlib.ExitStack() as held:
        held.enter_context(lock_directory(tmp_path))
        child = os.fork()
        if child == 0:
            held.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (tmp_path / LOCK_FILE).exists()
        with pytest.raises(OSError, match="is in use"), lock_directory(tmp_path):
            pass


def test_without_locks_it_does_without(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "fcntl", None)
        with lock_directory(tmp_path / "a"), lock_directory(tmp_path / "a"):
            assert list((tmp_path / "a").iterdir()) == []

    def unknown(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with lock_directory(tmp_path / "b"), lock_directory(tmp_path / "b"):
        assert list((tmp_path / "b").iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="^output_dir '.*file/out' is not writable .*choose another directory"):
        with lock_directory(tmp_path / "file/out"):
            pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomically(path, b"old")
    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                write_atomically(path, b"new")
        assert files_below(tmp_path) == {"record.json": b"old"}
    write_atomically(path, b"new")
    assert files_below(tmp_path) == {"record.json": b"new"}


def test_a_place_that_was_tried_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_run_left_goes_and_nothing_else(tmp_path, monkeypatch):
    class Killed(BaseException):
        """As a process that is killed: nothing is cleaned up."""

    def killed(*arguments, **options):
        raise Killed

    out = tmp_path / "run"
    (out / "checkpoint-3").mkdir(parents=True)
    for name in ("thesis.tmp", "record.json.tmp", ".write_test", "tmp", ".run.snapshot.tmp/weights", "run.tmp/photo",
                 ".run.abcdefgh.tmp/new/a", ".run.abcdefgh.tmp/photo", "checkpoint-2.old.tmp",
                 "checkpoint-x.old.tmp/a", "train_log.jsonl.tmp/a", ".checkpoint-1.short.tmp/new/a"):  # fmt: skip
        (out / name).parent.mkdir(exist_ok=True, parents=True)
        (out / name).write_text("somebody's")
    before = files_below(out)
    check_writable(out)
    write_atomically(out / "record.json", b"")
    (out / "record.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", killed)
        patch.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            write_atomically(out / "record.json", b"")
        for replace in (False, True):
            with pytest.raises(Killed), write_directory(out / "checkpoint-6", replace=replace) as new:
                (new / "weights").touch()
        with pytest.raises(Killed):
            remove_directory(out / "checkpoint-3")  # whose name is gone first
    del before["checkpoint-3"]
    # what version 0.1 left
    for name in (".write_test.tmp", "checkpoint-4.old.tmp/a", ".checkpoint-6.ab3_efgh.tmp/new/a",
                 ".run.12345678.tmp/new/a", ".run.12345678.tmp/old/a"):  # fmt: skip
        (out / name).parent.mkdir(exist_ok=True, parents=True)
        (out / name).write_text("ours")
    assert len(files_below(out)) > len(before) + 5
    prepare_output_dir(out)
    assert files_below(out) == before


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new/head"

    def write(content, replace=False):
        with write_directory(target, replace=replace) as new:
            (new / "part").mkdir()
            (new / "part/config.json").write_text(content)
            (new / "weights").write_text(content)

    write("one")
    (target / "other").write_text("stays")
    write("two")
    both = {"part": b"", "part/config.json": b"two", "weights": b"two"}
    assert files_below(target) == {**both, "other": b"stays"}
    write("three", replace=True)
    assert files_below(target) == {name: content and b"three" for name, content in both.items()}
    assert os.listdir(target.parent) == ["head"]


def test_a_failed_move_is_taken_back(tmp_path, monkeypatch):
    (tmp_path / "head").mkdir()
    (tmp_path / "head/weights").write_text("old")
    replace = os.replace

    def fail_at_the_last(source, destination):
        if destination.name == "config.json":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_at_the_last)
    message = "could not save to .*head': Disk quota exceeded. Nothing half-written .* choose another save_directory"
    with pytest.raises(OSError, match=message), write_directory(tmp_path / "head", "save_directory") as new:
        for name in ("weights", "config.json", "zzz"):
            (new / name).write_text("new")
    assert files_below(tmp_path) == {"head": b"", "head/weights": b"old"}


def test_whatever_ends_the_writing_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), write_directory(tmp_path / "far/away/head") as new:
        (new / "weights").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_json_files(tmp_path):
    file = tmp_path / "settings.json"
    write_json_file(file, {"name": "é", "list": [1]})
    assert read_json_file(file) == {"name": "é", "list": [1]}
    assert file.read_text().endswith("}\n") and os.listdir(tmp_path) == [file.name]
    for content, reason in (
        (b"{", "is not valid JSON: Expecting"),
        (b"\xff{}", "is not valid JSON: "),
        (b"[" * 100_000, "is not valid JSON: "),
        (b"[1]", "must hold a JSON object, got list"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"^'settings.json' {reason}"):
            read_json_file(file)
    with pytest.raises(FileNotFoundError):
        read_json_file(tmp_path / "nothing.json")


def test_what_makes_a_directory_whole_is_moved_last(tmp_path, monkeypatch):
    """Killed between two files, a directory that stays has no config.json, by which a head would be loaded."""
    names = ["config.json", "model.safetensors", "preprocessor_config.json", "training_record.json", "z/zebra.txt"]
    replace, moved = os.replace, []

    def watched(source, target):
        if Path(target).is_relative_to(tmp_path / "out"):
            moved.append(Path(target).relative_to(tmp_path / "out").as_posix())
        return replace(source, target)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files.os, "replace", watched)
    with write_directory(tmp_path / "out") as new:
        (new / "z").mkdir()
        for name in names:
            (new / name).write_text(name)
    assert sorted(moved) == names and moved[-2:] == ["config.json", "training_record.json"]
    assert files_below(tmp_path / "out").keys() == {*names, "z"}
