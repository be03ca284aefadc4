"""
Long runs are killed (SIGKILL) and started again: the result is that of a run nobody disturbed, bit by bit, nothing
half-written stays, and nothing of the killed run is in the way of the next one.

Every run is the command itself, in a process forked from this one, which has everything imported. Half of the kills
come at a place: just before a run changes one of its files, such as between writing and renaming it. The others come
at a moment, whatever the run is doing then. Both are drawn from a seed. A kill of a run that had ended before it is
drawn again.

The table of what was tried is printed at the end, and written as JSON to the file that the environment variable
KILLS_TABLE names.
"""

import contextlib
import hashlib
import importlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from testing_common import save_classifier
from testing_training import parquet_shards

from hf_explain import LCamForSaliency
from hf_explain.cli import COMMANDS, run_script
from hf_explain.io.processes import leave


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes"),
]
PLACES, MOMENTS = 10, 10  # kills of each kind
LONGEST = 300  # seconds until a run counts as hanging
# what differs from run to run: how long things took, and checksums of files that say so
TIMES = ("seconds", "seconds_waiting_for_data", "seconds_per_image", "images_per_second", "eval_seconds", "elapsed",
         "cost", "sha256", "bytes")  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


@dataclass
class Kind:
    """
    A command that is killed.

    Args:
        command (`str`): Its name.
        words (list of `str`): Its options, without the output folder, which is always `out`.
        again (list of `str`): What is added to start it again after a kill.
        processes (`int`): How many of them are one run.
    """

    command: str
    words: list[str]
    again: list[str] = field(default_factory=list)
    processes: int = 1


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    root = tmp_path_factory.mktemp("kills")
    classifier = save_classifier("resnet", root / "classifier", num_labels=3)
    LCamForSaliency.from_classifier(classifier, variant="img").save_pretrained(root / "head")
    pictures = str(parquet_shards(root / "pictures"))
    data = ["--dataset", pictures, "--split", "train", "--no_progress"]
    training = ["--classifier", classifier, *data, "--head_option", "variant=img", "--max_steps", "6", "--save_steps",
                "2", "--save_total_limit", "2", "--logging_steps", "1"]  # fmt: skip
    alone = [*training, "--per_device_batch_size", "4"]
    last = ["--resume_from_checkpoint", "last"]
    export = ["--model", classifier, *data, "--shard_size", "8", "--batch_size", "4"]
    evaluate = ["--classifier", classifier, *data, "--explainers", f"lcam={root / 'head'},gradcam", "--metric_option",
                "auc_d.steps=2", "--max_examples", "12", "--shard_size", "4", "--batch_size", "4", "--pictures", "1",
                "--sanity", "--sanity_examples", "2"]  # fmt: skip
    errors = ["--model", str(root / "head"), *data, "--shard_size", "8", "--batch_size", "4", "--pictures", "1",
              "--min_images", "2", "--permutations", "200"]  # fmt: skip
    return {
        # with a process that loads images, which outlives its parent for a while
        "training, map-style": Kind("train", [*alone, "--dataloader_num_workers", "1"], last),
        "training, streaming": Kind(
            "train", [*alone, "--dataloader_num_workers", "0", "--streaming", "--shuffle_buffer_size", "5"], last
        ),
        "training, two processes": Kind(
            "train", [*training, "--per_device_batch_size", "2", "--dataloader_num_workers", "0"], last, processes=2
        ),
        "export": Kind("export", export),
        "evaluate": Kind("evaluate", evaluate),
        "errors": Kind("errors", errors),
    }


class Table:
    """What was tried and what survived, by kind; pytest prints it when all tests are through."""

    def __init__(self):
        self.rows: dict[str, tuple[int, int]] = {}

    def pytest_terminal_summary(self, terminalreporter):
        width = max(map(len, self.rows), default=4)
        terminalreporter.write_line(f"\n{'kind':{width}}  tried  survived")
        for kind, (tried, survived) in self.rows.items():
            terminalreporter.write_line(f"{kind:{width}}  {tried:5}  {survived:8}")
        if file := os.environ.get("KILLS_TABLE"):
            rows = [{"kind": kind, "tried": tried, "survived": ok} for kind, (tried, ok) in self.rows.items()]
            Path(file).write_text(json.dumps(rows, indent=2) + "\n")


@pytest.fixture(scope="module")
def table(pytestconfig):
    plugin = Table()
    pytestconfig.pluginmanager.register(plugin)
    return plugin.rows


# ------------------------------------------------------------------------------------------------------------ the runs


class Run:
    """A command in one or more forked processes, in the folder `home`, which is their working directory."""

    def __init__(self, kind: Kind, home: Path, again: bool = False, watch: tuple[Path, int] | None = None):
        words = [*kind.words, *(kind.again if again else []), "-o", "out"]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.started = time.monotonic()
        self.processes = []
        for rank in range(kind.processes):
            launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": kind.processes, "MASTER_ADDR": "127.0.0.1",
                        "LOCAL_WORLD_SIZE": kind.processes, "MASTER_PORT": port}  # fmt: skip
            process = os.fork()
            if process == 0:
                launched = launched if kind.processes > 1 else {}
                self._be(kind.command, words, home, launched, None if rank else watch)
            self.processes.append(process)

    def _be(self, command, words, home, launched, watch):
        status = 70
        try:
            os.setsid()
            with open(home / "log", "ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os.chdir(home)
            (home / "tmp").mkdir(exist_ok=True)
            tempfile.tempdir = str(home / "tmp")
            os.environ.update({name: str(value) for name, value in launched.items()}, ACCELERATE_USE_CPU="true")
            AcceleratorState._reset_state(True)
            torch.set_num_threads(1)  # threads of before the fork are not there
            if watch is not None:
                sys.addaudithook(_Changes(home / "out", *watch))
            status = leave(run_script(command, None, words))
        except SystemExit as error:
            status = error.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)

    def kill(self, places, delay: float = 0.0) -> None:
        time.sleep(max(0.0, self.started + delay - time.monotonic()))
        for place in places:
            os.kill(self.processes[place], signal.SIGKILL)

    def wait(self) -> list[int]:
        """The exit statuses; a killed process has a negative one. Where one was killed, the others are ended."""
        statuses: dict[int, int] = {}
        end = time.monotonic() + LONGEST
        while len(statuses) < len(self.processes):
            for process in set(self.processes) - set(statuses):
                done, status = os.waitpid(process, os.WNOHANG)
                if done:
                    statuses[process] = os.waitstatus_to_exitcode(status)
            late = time.monotonic() > end
            if late or any(status < 0 for status in statuses.values()):  # what a launcher does
                for process in set(self.processes) - set(statuses):
                    os.kill(process, signal.SIGKILL if late else signal.SIGTERM)
            time.sleep(0.005)
        return [statuses[process] for process in self.processes]


class _Changes:
    """An audit hook that writes down every change of a file in a folder, and ends the process just before one."""

    def __init__(self, folder: Path, log: Path, deadly: int):
        self.folder, self.log, self.deadly, self.count = str(folder), os.open(log, os.O_CREAT | os.O_WRONLY), deadly, 0

    def __call__(self, event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and event not in CHANGES or not isinstance(args[0], (str, os.PathLike)):
            return
        path = os.path.abspath(args[0])
        if path.startswith(self.folder):
            if self.count == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            os.write(self.log, f"{event} {path[len(self.folder) :] or '/'}\n".encode())


# ---------------------------------------------------------------------------------------------------- what they wrote


def contents(folder: Path) -> dict[str, object]:
    """Every file in a folder, by name, without the times in it."""
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*"))}


def content(path: Path):
    if path.is_dir():
        return "directory"
    if path.name in ("table.md", "results.csv"):  # they state times; results.json has the same numbers
        return "file"
    if path.suffix in (".json", ".jsonl"):
        return [without_times(json.loads(line)) for line in json_texts(path)]
    if path.suffix == ".pt":  # the place in a stream, also in it, is told from where that was opened
        state = torch.load(path, weights_only=True)
        return plain({name: state[name] for name in ("model", "optimizer")})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def json_texts(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def plain(value):
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def differences(found: dict, expected: dict) -> list[str]:
    lost, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    changed = [name for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return [*(f"lost {name}" for name in lost), *(f"left {name}" for name in more), *(f"other {n}" for n in changed)]


# ---------------------------------------------------------------------------------------------------------- the kills


def problems_after(kind: Kind, home: Path, expected: dict) -> list[str]:
    """What is wrong with the run that goes on after a kill."""
    before = (home / "log").stat().st_size
    statuses = Run(kind, home, again=True).wait()
    if any(statuses):
        said = (home / "log").read_bytes()[before:].decode(errors="replace").strip().splitlines()
        return [f"status {statuses}: {said[-1] if said else 'nothing said'}"]
    found = differences(contents(home / "out"), expected)
    # Python's own, for what processes that load images send: a killed process cannot remove it
    return found + [f"left tmp/{one.name}" for one in (home / "tmp").iterdir() if not one.name.startswith("pymp-")]


@pytest.fixture
def folder():
    """With a short name, unlike `tmp_path`: sockets are made below it, whose names may have 100 characters."""
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    "name",
    ["training, map-style", "training, streaming", "training, two processes", "export", "evaluate", "errors"],
)
def test_killed_runs_go_on(kinds, table, name, folder):
    kind, draw, problems, tried = kinds[name], random.Random(0), {}, 0
    importlib.import_module(COMMANDS[kind.command].function.split(":")[0])

    def home(number) -> Path:
        (folder / str(number)).mkdir()
        return folder / str(number)

    # twice: the first one also fills the cache of `datasets`
    for number in ("first", "undisturbed"):
        place = home(number)
        run = Run(kind, place, watch=(place / "changes", -1))
        assert run.wait() == [0] * kind.processes, (place / "log").read_text()
    seconds, expected = time.monotonic() - run.started, contents(place / "out")
    assert differences(contents(folder / "first/out"), expected) == []
    changes = (place / "changes").read_text().splitlines()
    # the renames first: before one, a file is written and does not have its name yet
    renames = [number for number, change in enumerate(changes) if change.startswith("os.rename")]
    others = sorted(set(range(len(changes))) - set(renames))
    chosen = draw.sample(renames, min(PLACES // 2, len(renames)))
    chosen += draw.sample(others, min(PLACES - len(chosen), len(others)))
    for number in chosen:
        place = home(f"place-{number}")
        statuses = Run(kind, place, watch=(place / "changes", number)).wait()
        if statuses[0] != -signal.SIGKILL:
            problems[f"before {changes[number]}"] = [f"was not reached: {statuses}"]
            continue
        tried += 1
        if wrong := problems_after(kind, place, expected):
            problems[f"before {changes[number]}"] = wrong
    victims = [[0], [1], [0, 1]] if kind.processes == 2 else [[0]]
    number = 0
    while tried < PLACES + MOMENTS and number < 10 * MOMENTS:
        place, delay = home(f"moment-{number}"), draw.uniform(0.05, 1) * seconds
        run = Run(kind, place)
        with contextlib.suppress(ProcessLookupError):
            run.kill(victims[number % len(victims)], delay)
        number += 1
        if -signal.SIGKILL not in run.wait():
            seconds = min(seconds, delay)  # it had ended
            continue
        tried += 1
        if wrong := problems_after(kind, place, expected):
            problems[f"after {delay:.2f} s"] = wrong
    table[name] = (tried, tried - len(problems))
    assert not problems, "\n".join(f"{where}: {'; '.join(wrong)}" for where, wrong in problems.items())
    assert tried >= 20
