"""Processes of their own that start at once: forked from one that imported the library and did nothing else."""

import contextlib
import multiprocessing
import os
import socket
import traceback
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest import mock


PATH = os.pathsep.join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1]))


def start(function, *arguments):
    """`function(pipe, *arguments)` in a process of its own; the process, and our end of that pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["testing_training", "testing_common", "hf_explain.apps.export", "evaluate"])
    with mock.patch.dict(os.environ, PYTHONPATH=PATH, OMP_NUM_THREADS="1"):  # read once, by the server
        forkserver.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def launch(function, *arguments, world=2):
    """What `function(rank, *arguments)` returns on each of several processes, joined as torchrun joins them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes, pipes = zip(*(start(_run, function, rank, environment, *arguments) for rank in range(world)))
    found = dict.fromkeys(pipes)
    waiting = list(pipes)
    try:
        while waiting:
            for pipe in connection.wait(waiting):
                waiting.remove(pipe)
                found[pipe], error = pipe.recv()
                assert error is None, error  # and the others are killed: they would wait for this one
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * world
    finally:
        for process, pipe in zip(processes, pipes):
            process.kill()
            pipe.close()
    return list(found.values())


def _run(pipe, function, rank, environment, *arguments):
    from hf_explain.io.processes import leave

    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    try:
        pipe.send((function(rank, *arguments), None))
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send((None, traceback.format_exc()))
        os._exit(1)
    leave(0)
