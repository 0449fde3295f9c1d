"""Many environments at once: in this process, or in worker processes that may raise, hang or die without harm to the others.

A pool has numbered slots, one running episode each. A fault ends the episode of its slot with a status; a worker that hangs
or dies is replaced, and the other episodes that lived in it are rebuilt by replaying their actions.
"""

import contextlib
import copy
import multiprocessing
import multiprocessing.connection
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from sdar.errors import ConfigError
from sdar.parts import Environment, StepResult
from sdar.types import Status, Task


@dataclass
class Seen:
    """What came back from a slot: the world's answer, or the fault that ended the episode."""

    result: StepResult
    admissible: list[str] = field(default_factory=list)
    fault: Status | None = None
    error: str = ""


class EnvPool(ABC):
    """Slots with one running episode each."""

    @abstractmethod
    def reset(self, tasks: Mapping[int, Task]) -> dict[int, Seen]:
        """Begin an episode in each named slot."""

    @abstractmethod
    def step(self, actions: Mapping[int, str]) -> dict[int, Seen]:
        """Act in each named slot."""

    def close(self) -> None:
        """End worker processes, if any."""


def _run(env: Environment, command: Task | str) -> Seen:
    """One reset or step, faults caught: an environment is other people's code."""
    try:
        result = StepResult(env.reset(command)) if isinstance(command, Task) else env.step(command)
        return Seen(result, [] if result.done else env.admissible())
    except Exception as error:
        return Seen(StepResult("", done=True), fault=Status.ENV_ERROR, error=f"{type(error).__name__}: {error}")


class LocalPool(EnvPool):
    """All slots in this process: fastest for environments in plain Python. A hanging environment hangs the run."""

    def __init__(self, env: Environment):
        self.env = env
        self.slots: dict[int, Environment] = {}

    def reset(self, tasks: Mapping[int, Task]) -> dict[int, Seen]:
        for slot in tasks:
            if slot not in self.slots:
                self.slots[slot] = copy.deepcopy(self.env)
        return {slot: _run(self.slots[slot], task) for slot, task in tasks.items()}

    def step(self, actions: Mapping[int, str]) -> dict[int, Seen]:
        return {slot: _run(self.slots[slot], action) for slot, action in actions.items()}


def _serve(env: Environment, pipe: Connection) -> None:
    """Worker process: (slot, command) in, (slot, Seen) out, one at a time, until the pipe closes."""
    slots: dict[int, Environment] = {}
    while True:
        try:
            slot, command = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        if slot not in slots:
            slots[slot] = copy.deepcopy(env)
        pipe.send(_run(slots[slot], command))


class WorkerPool(EnvPool):
    """Slots spread over worker processes; each call has a deadline.

    Args:
        env: Copied into every worker, so it must pickle.
        workers: Number of processes.
        deadline: Seconds that one reset or step may take.
        start_deadline: Seconds more that the first answer of a fresh process may take (imports).
    """

    def __init__(self, env: Environment, workers: int, deadline: float = 30.0, start_deadline: float = 60.0):
        if workers < 1:
            raise ConfigError(f"workers is {workers}: a worker pool needs at least 1 process. Use 0 to run in one process.")
        if deadline <= 0:
            raise ConfigError(f"env deadline is {deadline} seconds: every call would be late. Give a positive number.")
        self.env = env
        self.deadline = deadline
        self.start_deadline = start_deadline
        self.context = multiprocessing.get_context("spawn")
        self.replaced = 0
        self._history: dict[int, list[Task | str]] = {}
        self._fresh: set[int] = set()
        self._workers = [self._start(w) for w in range(workers)]

    def reset(self, tasks: Mapping[int, Task]) -> dict[int, Seen]:
        for slot in tasks:
            self._history[slot] = []
        return self._call(tasks)

    def step(self, actions: Mapping[int, str]) -> dict[int, Seen]:
        return self._call(actions)

    def close(self) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.join(timeout=1)
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []

    def _call(self, commands: Mapping[int, Task] | Mapping[int, str]) -> dict[int, Seen]:
        """Every worker works on one of its slots at a time, all workers at once."""
        queues: list[list[int]] = [[s for s in commands if s % len(self._workers) == w] for w in range(len(self._workers))]
        sent = [0.0] * len(queues)
        out: dict[int, Seen] = {}
        for w, queue in enumerate(queues):
            if queue:
                sent[w] = self._send(w, queue[0], commands[queue[0]])
        while any(queues):
            busy = {self._workers[w][1]: w for w, queue in enumerate(queues) if queue}
            soonest = min(self._limit(w) + sent[w] for w in busy.values())
            ready = multiprocessing.connection.wait(list(busy), timeout=max(0.0, soonest - time.monotonic()))
            late = [w for w in busy.values() if self._workers[w][1] not in ready and time.monotonic() >= sent[w] + self._limit(w)]
            for w in [*(busy[pipe] for pipe in ready), *late]:
                slot = queues[w][0]
                out[slot] = self._receive(w, slot, w in late)
                if out[slot].fault is None:
                    self._history[slot].append(commands[slot])
                else:
                    self._history.pop(slot, None)
                queues[w].pop(0)
                if queues[w]:
                    sent[w] = self._send(w, queues[w][0], commands[queues[w][0]])
        return out

    def _limit(self, worker: int) -> float:
        return self.deadline + (self.start_deadline if worker in self._fresh else 0.0)

    def _send(self, worker: int, slot: int, command: Task | str) -> float:
        with contextlib.suppress(OSError):  # the process is gone; the receiving side finds out and says so
            self._workers[worker][1].send((slot, command))
        return time.monotonic()

    def _receive(self, worker: int, slot: int, late: bool) -> Seen:
        process, pipe = self._workers[worker]
        if not late:
            try:
                seen = pipe.recv()
                self._fresh.discard(worker)
                return seen
            except (EOFError, OSError):
                process.join(timeout=5)
                fault, error = Status.ENV_DIED, f"worker process ended with exit code {process.exitcode}"
        else:
            fault, error = Status.TIMEOUT, f"no answer within {self.deadline} s"
        self._replace(worker, slot)
        return Seen(StepResult("", done=True), fault=fault, error=error)

    def _replace(self, worker: int, faulty: int) -> None:
        """A new process in which the worker's other episodes are played again up to where they were."""
        process, pipe = self._workers[worker]
        process.kill()
        process.join()
        pipe.close()
        self.replaced += 1
        self._workers[worker] = self._start(worker)
        for slot, history in self._history.items():
            if slot % len(self._workers) == worker and slot != faulty:
                for command in history:
                    started = self._send(worker, slot, command)
                    pipe = self._workers[worker][1]
                    if not pipe.poll(max(0.0, started + self._limit(worker) - time.monotonic())):
                        break  # it will miss its deadline again when it is asked next
                    try:
                        pipe.recv()
                    except (EOFError, OSError):
                        break
                    self._fresh.discard(worker)

    def _start(self, worker: int):
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(self.env, theirs), daemon=True, name=f"sdar-env-{worker}")
        process.start()
        theirs.close()
        self._fresh.add(worker)
        return process, ours


def make_pool(env: Environment, workers: int, deadline: float) -> EnvPool:
    """`workers` = 0: in this process."""
    return LocalPool(env) if workers == 0 else WorkerPool(env, workers, deadline)

