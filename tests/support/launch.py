"""Starts the processes of a run on this machine, with a deadline, so that a hang is a failure."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SUPPORT = Path(__file__).parent


@dataclass
class Rank:
    """One process that was started."""

    process: subprocess.Popen
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
        command = [sys.executable, str(SUPPORT / script), *map(str, arguments)]
        with log.open("w") as out:
            process = subprocess.Popen(command, env=shared | {"LOCAL_RANK": str(rank)}, stdout=out, stderr=subprocess.STDOUT)
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
