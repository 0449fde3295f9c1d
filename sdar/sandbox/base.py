"""Code runners: what they promise, and how long a run may be."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from signal import SIGKILL, SIGXCPU
from typing import Any

from sdar.arguments import checked
from sdar.errors import ConfigError
from sdar.registry import part_kind
from sdar.sandbox.cells import MEMORY, SYNTAX
from sdar.sandbox.probe import weakness

LONGEST_CODE = 1 << 20
"""Characters of all cells of a run together."""
LONGEST_INPUT = 16 << 20
"""Characters of a run's standard input."""
CUT = "\n[output cut after {} bytes]"
FENCE = re.compile(r"```(?:python3?|py)[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@checked
@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Args:
        wall_s: Seconds on the clock; then every process of the run is killed.
        cpu_s: Seconds of CPU time of a process, a whole number.
        memory_bytes: Address space of a process beyond that of the interpreter with its libraries.
        processes: Processes. 1: the run cannot make another, and its limits are those of one process.
        output_bytes: Bytes that are kept of stdout and of stderr each; a run that writes more is ended.
        file_bytes: Size of a file, and of all files of a run together.
    """

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 1
    output_bytes: int = 1 << 16
    file_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.wall_s <= 0:
            raise ConfigError(f"limits.wall_s is {self.wall_s}: no program could run. Give more than 0 seconds.")
        least = {"memory_bytes": 1 << 20}
        for name in ("cpu_s", "memory_bytes", "processes", "output_bytes", "file_bytes"):
            if getattr(self, name) < least.get(name, 1):
                raise ConfigError(
                    f"limits.{name} is {getattr(self, name)}: no program could run. Give {least.get(name, 1)} or more."
                )


class RunStatus(StrEnum):
    """How a run ended."""

    OK = "ok"
    ERROR = "error"
    """It raised, or left with a status other than 0."""
    SYNTAX = "syntax"
    """It does not compile, so nothing of it ran."""
    TIMEOUT = "timeout"
    """Too long, on the clock or in CPU time."""
    MEMORY = "memory"
    """More memory than it may have."""
    OUTPUT = "output"
    """It wrote more than is kept."""
    KILLED = "killed"
    """By a signal: a crash, or too many processes or threads."""
    REFUSED = "refused"
    """It was not started: the code is too long, or the service does not take it."""


@dataclass(frozen=True)
class Result:
    """What came of a run. Text and status are the run's own claims; only the limits are known to have held."""

    status: RunStatus
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0
    layer: str = ""
    """What ended the run, if it did not end by itself: 'wall', 'cpu', 'memory', 'output', 'processes', 'threads', 'signal N'."""
    exit_status: int | None = None
    """Its own, where it ended by itself."""
    cpu_s: float = 0.0
    """Seconds of CPU time; 0 where the runner is not told (a service)."""
    memory_bytes: int = 0
    """Most memory that it held at a time, the interpreter included; 0 where the runner is not told."""


@dataclass(frozen=True)
class Program:
    """Cells in order, of which the last is the new one; `show` prints the value of a bare expression at its end."""

    cells: tuple[str, ...]
    show: bool = True
    stdin: str = ""
    """Standard input of the last cell, as UTF-8; the others find it empty."""


@part_kind("code_runners")
class CodeRunner(ABC):
    """Runs untrusted Python in a process of its own.

    Cheap to copy and to pickle: processes start at the first run. State is what earlier cells left: they are run again, unheard,
    before the new one, so that an episode can be saved, moved and repeated; no process waits between two runs. The random
    generators of `random` and `numpy.random` begin every run in the same state where the runner owns the interpreter.
    """

    limits: Limits
    local = True
    """It runs on this machine."""
    isolates = True
    """It keeps code from this machine, which `check` tries."""

    def run(self, code: str, state: Sequence[str] = (), stdin: str = "") -> Result:
        """Run a cell behind the cells of `state`, with a text as its standard input; code in a Markdown fence is taken out of it.

        Raises:
            EnvironmentFault: the runner itself is down; nothing is known about the code.
        """
        return self.execute(Program((*state, extract_code(code)), stdin=stdin))

    def execute(self, program: Program, limits: Limits | None = None) -> Result:
        """Run a program as it is, by default within the runner's own limits."""
        length = sum(map(len, program.cells))
        if length > LONGEST_CODE:
            return Result(RunStatus.REFUSED, stderr=f"the code has {length} characters; at most {LONGEST_CODE} are run")
        if len(program.stdin) > LONGEST_INPUT:
            said = f"the standard input has {len(program.stdin)} characters; at most {LONGEST_INPUT} are given"
            return Result(RunStatus.REFUSED, stderr=said)
        began = time.monotonic()
        result = self._execute(program, limits or self.limits)
        return replace(result, wall_s=time.monotonic() - began)

    def check(self) -> None:
        """Called once before training: raise now what would fail after time on a GPU was spent.

        Raises:
            ConfigError: it cannot run code on this machine, or does not isolate it.
        """
        result = self.run("6 * 7")
        if result.stdout != "42\n":
            raise ConfigError(
                f"{type(self).__name__} cannot run code ({result.status}: {(result.stderr or result.stdout).strip()[-200:]}): 6 * 7 was "
                "to print 42. Look at its limits and packages, or use AutoRunner."
            )
        if self.isolates and (problem := weakness(self)):
            raise ConfigError(f"{type(self).__name__}: {problem}. Use another runner, or AutoRunner, which finds one.")

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """What stands between the code and this machine."""

    def __getstate__(self) -> dict[str, Any]:
        """The settings: what runs stays behind."""
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def close(self) -> None:
        """End the processes; a later run starts them again."""

    @abstractmethod
    def _execute(self, program: Program, limits: Limits) -> Result:
        """Run it."""


def extract_code(text: str) -> str:
    """The content of the first ```python fence, or the text itself."""
    fence = FENCE.search(text)
    return fence[1] if fence else text


def judge(
    verdict: str, code: int, outputs: Sequence[bytes], limits: Limits, cpu_s: float = 0.0, memory_bytes: int = 0
) -> Result:
    """The result of a process that ended by itself, or by our `verdict` on it.

    Args:
        code: Exit status; below 0, the signal that ended it.
        cpu_s: Seconds of CPU time that it used.
        memory_bytes: Most memory that it held.
    """
    used: dict[str, Any] = {"cpu_s": cpu_s, "memory_bytes": memory_bytes}
    stdout, stderr = (
        data[: limits.output_bytes].decode("utf-8", "replace")
        + (CUT.format(limits.output_bytes) if len(data) > limits.output_bytes else "")
        for data in outputs
    )
    if not verdict and (code == -SIGXCPU or (code == -SIGKILL and cpu_s >= limits.cpu_s)):
        verdict = "cpu"  # the kernel's first word can be ignored, its last is SIGKILL
    if verdict:
        status = {"wall": RunStatus.TIMEOUT, "cpu": RunStatus.TIMEOUT, "output": RunStatus.OUTPUT, "memory": RunStatus.MEMORY}
        return Result(status.get(verdict, RunStatus.KILLED), stdout, stderr, layer=verdict, **used)
    if code < 0:
        return Result(RunStatus.KILLED, stdout, stderr, layer=f"signal {-code}", **used)
    if code == MEMORY:
        return Result(RunStatus.MEMORY, stdout, stderr, layer="memory", **used)
    ended = {0: RunStatus.OK, SYNTAX: RunStatus.SYNTAX}.get(code, RunStatus.ERROR)
    return Result(ended, stdout, stderr, exit_status=code, **used)
