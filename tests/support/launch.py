"""Starts the processes of a run on this machine, with a deadline, so that a hang is a failure.

They are forked from one that has imported everything, which takes longer than most of these runs.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

SUPPORT = Path(__file__).parent
SERVER = forkserver._forkserver
ADDRESS = "SDAR_TESTS_FORKS"
"""In the environment: where another process of these tests has it already."""
FORKS = multiprocessing.get_context("forkserver")
IMPORTED = [
    "logged",
    "rank_run",
    "sdar.cli.run",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "functorch.compile",
    "transformers.models.qwen3.modeling_qwen3",
    "warm",
]


@cache
def forks() -> None:
    """Start the process that the others are forked from: in an environment of its own, for it looks at no other path."""
    if address := os.environ.get(ADDRESS):
        SERVER._forkserver_address, SERVER._forkserver_alive_fd = address, os.open(os.devnull, os.O_RDONLY)
        SERVER.ensure_running = resource_tracker.ensure_running
        return
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=str(SUPPORT), DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    FORKS.set_forkserver_preload(IMPORTED)
    SERVER.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def share_forks() -> None:
    """The same for all processes that are started from here, as long as this one lives; whose output its errors are not."""
    errors, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    forks()
    os.dup2(errors, 2)
    os.close(errors)
    os.close(nowhere)
    os.environ[ADDRESS] = SERVER._forkserver_address


class Script:
    """A Python file, or code, in a process of its own, with what subprocess.Popen has of it.

    Args:
        log: Where it writes; None: only its errors are shown.
    """

    running: ClassVar[WeakSet["Script"]] = WeakSet()

    def __init__(self, source: Path | str, arguments: list[str], environment: dict[str, str], log: Path | None = None):
        forks()
        self._process = FORKS.Process(target=_become, args=(source, arguments, environment, log, os.getpid()))
        self._process.start()
        self.pid = self._process.pid
        Script.running.add(self)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


@atexit.register
def _kill_all() -> None:
    for script in Script.running:
        script.kill()


def _become(source: Path | str, arguments: list[str], environment: dict[str, str], log: Path | None, starter: int) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if "torch" in sys.modules:  # its threads are gone with the fork: made anew here, and not by several threads at once
        sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", 1)))
    with open(log or os.devnull, "w") as out, nullcontext(out) if log else open(f"/proc/{starter}/fd/2", "a") as errors:
        os.dup2(out.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    if isinstance(source, Path):
        sys.argv = [str(source), *arguments]
        runpy.run_path(str(source), run_name="__main__")
    else:
        sys.argv = ["-c", *arguments]
        exec(source, {"__name__": "__main__"})


@dataclass
class Rank:
    """One process that was started."""

    process: Script
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def start(world: int, script: str, *arguments: object, folder: Path, **environment: str) -> list[Rank]:
    """`script` of this folder in `world` processes; each writes into ``folder/rank.N.log``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {"WORLD": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    shared |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(SUPPORT)} | environment
    ranks = []
    for rank in range(world):
        log = folder / f"rank.{rank}.log"
        log.touch()
        process = Script(SUPPORT / script, [*map(str, arguments)], shared | {"LOCAL_RANK": str(rank)}, log)
        ranks.append(Rank(process, log))
    return ranks


def finish(ranks: list[Rank], deadline: float) -> list[int]:
    """Exit codes; whatever is still there after `deadline` seconds is killed, and the test fails."""
    due = time.monotonic() + deadline
    try:
        return [rank.process.wait(max(0.1, due - time.monotonic())) for rank in ranks]
    except subprocess.TimeoutExpired:
        last = "\n".join(f"rank {i}: {rank.said[-1500:]}" for i, rank in enumerate(ranks))
        raise AssertionError(f"not finished after {deadline} s\n{last}") from None
    finally:
        for rank in ranks:
            rank.process.kill()


def run(world: int, script: str, *arguments: object, folder: Path, deadline: float, **environment: str) -> list[Rank]:
    """Start and finish; every process must end well."""
    ranks = start(world, script, *arguments, folder=folder, **environment)
    codes = finish(ranks, deadline)
    assert codes == [0] * world, "\n".join(
        f"rank {i}: exit {c}\n{r.said[-3000:]}" for i, (c, r) in enumerate(zip(codes, ranks, strict=True))
    )
    return ranks
