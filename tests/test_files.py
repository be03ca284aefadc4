"""The lock of an output directory; what is written whole is tested by the heads and tables that write it."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_explain import files
from hf_explain.files import LOCK_FILE, lock_directory


ROOT = Path(__file__).parents[1]
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
    """Another run may end between opening its lock file and locking it; then the file is another's, or nobody's."""
    flock, removed = files.fcntl.flock, []

    def late(descriptor, how):
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        return flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with lock_directory(tmp_path), pytest.raises(OSError, match="is in use"), lock_directory(tmp_path):
        pass
    assert removed and not files._HELD


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from hf_explain.files import lock_directory

with lock_directory(Path(sys.argv[1])):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_run_locks_nobody_out_even_where_its_workers_live_on(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(OSError, match=IN_USE), lock_directory(out):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(worker, 0)
        with lock_directory(out):
            pass
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
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
