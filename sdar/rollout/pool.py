"""Many environments at once: in this process, in threads, or in worker processes that may hang or die without harm to the others.

A pool has numbered slots, one running episode each. A fault ends the episode of its slot with a status; a ConfigError is no
accident of one episode and is raised. A worker that hangs or dies is replaced, and every other episode that lived in it is played
again, action by action, before its next action.
"""

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from sdar.errors import ConfigError, EnvironmentFault
from sdar.lifeline import die_at_end_of
from sdar.parts import Environment, StepResult
from sdar.rollout.border import admissible_of, observation_of, result_of
from sdar.types import Status, Task

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

Command = Task | str | None
"""Begin an episode, act in it, or end it as it stands."""


@dataclass
class EnvReply:
    """What came back from a slot: the world's answer, or the fault that ended the episode."""

    result: StepResult
    admissible: list[str] = field(default_factory=list)
    fault: Status | None = None
    error: str = ""
    wrong: ConfigError | None = None
    """What the world raised, where the fault lies in the settings."""

    def checked(self) -> "EnvReply":
        """Itself, unless the settings are wrong."""
        if self.wrong is not None:
            raise self.wrong
        return self


class EnvPool(ABC):
    """Slots with one running episode each."""

    elsewhere = False
    """True: its worlds do not need this thread, and step beside what it does (`begin`)."""

    def call(self, commands: Mapping[int, Command]) -> dict[int, EnvReply]:
        """Carry out a command in each named slot."""
        return self._call(commands)

    def begin(self, commands: Mapping[int, Command]) -> Future[dict[int, EnvReply]]:
        """Carry them out beside what the caller does next. One at a time in each `lane`."""
        done: Future[dict[int, EnvReply]] = Future()

        def work() -> None:
            try:
                done.set_result(self._call(commands))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name="sdar-worlds", daemon=True).start()
        return done

    def lane(self, slot: int) -> int:
        """Slots in different lanes may be called at the same time, in calls of their own."""
        return 0

    def reset(self, tasks: Mapping[int, Task]) -> dict[int, EnvReply]:
        """Begin an episode in each named slot."""
        return self._call(tasks)

    def step(self, actions: Mapping[int, str]) -> dict[int, EnvReply]:
        """Act in each named slot; its episode must be running."""
        return self._call(actions)

    def unfinished(self, slots: Iterable[int]) -> dict[int, EnvReply]:
        """End the episode of each slot where it stands; it must be running. What it is worth: `Environment.unfinished`."""
        return self._call(dict.fromkeys(slots))

    @abstractmethod
    def _call(self, commands: Mapping[int, Command]) -> dict[int, EnvReply]:
        """Carry out a command in each named slot."""

    @abstractmethod
    def close(self) -> None:
        """Close the environments and end worker processes, if any."""


class LocalPool(EnvPool):
    """All slots in this process: fastest for environments in plain Python. A hanging environment hangs the run."""

    def __init__(self, env: Environment):
        self._copies = _Copies(env)

    def close(self) -> None:
        self._copies.close()

    def _call(self, commands: Mapping[int, Command]) -> dict[int, EnvReply]:
        return {slot: self._copies.run(slot, command).checked() for slot, command in commands.items()}


class ThreadPool(EnvPool):
    """All slots in this process, several calls at once, each with a deadline: for worlds that wait for somebody else, a server say.

    Nothing can end a thread: that of a call which is late is left alone, together with its copy of the environment.

    Args:
        env: Its copies must not share anything that two threads may not use at once.
        threads: Most calls at once.
        deadline: Seconds that one reset or step may take.
    """

    elsewhere = True

    def __init__(self, env: Environment, threads: int, deadline: float = 30.0):
        _check_deadline(deadline)
        self.threads = threads
        self.deadline = deadline
        self._copies = _Copies(env)
        self._places = threading.Semaphore(threads)

    def lane(self, slot: int) -> int:
        return slot

    def close(self) -> None:
        self._copies.close()

    def _call(self, commands: Mapping[int, Command]) -> dict[int, EnvReply]:
        answers: SimpleQueue[tuple[int, EnvReply]] = (
            SimpleQueue()
        )  # of this call alone: late answers to earlier ones go nowhere
        waiting, out = list(commands.items())[::-1], dict[int, EnvReply]()
        due: dict[int, float] = {}
        copies = {slot: self._copies.take(slot) for slot in commands}

        def run(slot: int, command: Command) -> None:
            answers.put((slot, _play(copies[slot], command)))

        def over(slot: int) -> bool:
            """Its call needs no place any more; False where that is long known."""
            known = due.pop(slot, None) is None
            if not known:
                self._places.release()
            return not known

        try:
            while waiting or due:
                while waiting and self._places.acquire(blocking=not due):
                    slot, command = waiting.pop()
                    due[slot] = time.monotonic() + self.deadline
                    threading.Thread(target=run, args=(slot, command), daemon=True, name=f"sdar-env-{slot}").start()
                with contextlib.suppress(Empty):
                    slot, seen = answers.get(timeout=max(0.0, min(due.values()) - time.monotonic()))
                    if over(slot):
                        self._copies.give(slot, copies[slot], seen)
                        out[slot] = seen.checked()
                for slot in [slot for slot, late in due.items() if time.monotonic() >= late]:
                    over(slot)
                    out[slot] = _late(self.deadline)
        finally:
            for slot in list(due):
                over(slot)
        return {slot: out[slot] for slot in commands}


class WorkerPool(EnvPool):
    """Slots spread over worker processes; each call has a deadline.

    Where the system can, workers are forked from a server process that has imported sdar once: a worker starts in milliseconds
    and shares that memory.

    Args:
        env: Copied into every worker, so it must pickle.
        workers: Number of processes.
        deadline: Seconds that one reset or step may take.
        start_deadline: Seconds that a fresh process may take to be ready (imports).
    """

    elsewhere = True

    def __init__(self, env: Environment, workers: int, deadline: float = 30.0, start_deadline: float = 120.0):
        if workers < 1:
            raise ConfigError(f"workers is {workers}: a worker pool needs at least 1 process. Use 0 to run in one process.")
        _check_deadline(deadline)
        try:
            self._env = pickle.dumps(env)
        except Exception as error:  # pickle lets through whatever an object's own methods raise
            raise ConfigError(
                f"{type(env).__name__} does not pickle ({error}) and so cannot be copied into worker processes. Let it open "
                "files and connections in `reset`, or run it in this process (workers: 0)."
            ) from error
        self.deadline = deadline
        self.start_deadline = start_deadline
        self.replaced = 0
        """How many workers hung or died."""
        self._context = _start_method(env)
        self._past: dict[int, list[tuple[Command, EnvReply]]] = {}
        self._workers = [self._start() for _ in range(workers)]

    def lane(self, slot: int) -> int:
        return slot % len(self._workers)

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()  # an idle worker ends by itself
        patience = time.monotonic() + 1
        for worker in self._workers:
            worker.process.join(max(0.0, patience - time.monotonic()))
            worker.end()
        self._workers = []

    def _call(self, commands: Mapping[int, Command]) -> dict[int, EnvReply]:
        """All workers at once, each with one of its slots at a time."""
        self._past |= {slot: [] for slot, command in commands.items() if isinstance(command, Task)}
        assert self._past.keys() >= commands.keys(), "a command for a slot without a running episode"
        out: dict[int, EnvReply] = {}
        shares: list[dict[int, Command]] = [{} for _ in self._workers]
        for slot, command in commands.items():
            shares[slot % len(shares)][slot] = command
        jobs = [self._work(w, share, out) for w, share in enumerate(shares)]
        try:
            waiting = {w for w, job in enumerate(jobs) if next(job, False)}
            while waiting:
                soonest = min(self._workers[w].due for w in waiting)
                answered = wait([self._workers[w].pipe for w in waiting], max(0.0, soonest - time.monotonic()))
                now = time.monotonic()
                ready = [w for w in waiting if self._workers[w].pipe in answered or now >= self._workers[w].due]
                waiting -= {w for w in ready if not next(jobs[w], False)}
        except BaseException:  # what would still be answered belongs to nobody, so it must never be read
            for w, share in enumerate(shares):
                if share:
                    self._workers[w].end()
            raise
        return out

    def _work(self, w: int, commands: Mapping[int, Command], out: dict[int, EnvReply]) -> Iterator[bool]:
        """Serve the slots of one worker; yields True wherever an answer is awaited, to go on when it is there or overdue."""
        for slot, command in commands.items():
            if self._workers[w].gone:  # it died between two calls: no episode is to blame
                self._replace(w)
            worker, past = self._workers[w], self._past[slot]
            if not worker.ready:
                yield True
                worker.greet()
            again = [] if slot in worker.slots else past
            for sent, before in [*again, (command, None)]:
                worker.ask(slot, sent, self.deadline)
                yield True
                seen = worker.answer(self.deadline)
                if seen.fault in (Status.TIMEOUT, Status.ENV_DIED):
                    self._replace(w)
                elif before is not None and seen.fault is None and seen != before:  # the worker is well
                    seen = _faulty(Status.ENV_DIED, "its worker process was replaced and the world does not repeat itself")
                if seen.fault is not None:
                    break
            if seen.fault is None and not seen.result.done:
                worker.slots.add(slot)
                past.append((command, seen))
            else:
                del self._past[slot]
            out[slot] = seen

    def _start(self) -> "_Worker":
        return _Worker(self._context, self._env, self.start_deadline)

    def _replace(self, w: int) -> None:
        self._workers[w].end()
        self._workers[w] = self._start()
        self.replaced += 1


def make_pool(env: Environment, workers: int, deadline: float, threads: int = 0) -> EnvPool:
    """Worker processes or threads; in this process, one call after the other, without either."""
    if workers and threads:
        raise ConfigError(
            f"data.workers is {workers} and data.threads is {threads}: a world runs in processes or in threads. Set one to 0."
        )
    if workers:
        return WorkerPool(env, workers, deadline)
    return ThreadPool(env, threads, deadline) if threads else LocalPool(env)


def _check_deadline(deadline: float) -> None:
    if deadline <= 0:
        raise ConfigError(f"env deadline is {deadline} seconds: every call would be late. Give a positive number.")


class _Worker:
    """One process, our end of its pipe, and the slots whose episodes live in it."""

    def __init__(self, context: "ForkServerContext | SpawnContext", env: bytes, start_deadline: float):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(env, theirs), daemon=True, name="sdar-env")
        self.process.start()
        theirs.close()
        self.slots: set[int] = set()
        self.ready = False
        self.start_deadline = start_deadline
        self.due = time.monotonic() + start_deadline
        """When the answer that is awaited will be late."""

    @property
    def gone(self) -> bool:
        """True for an idle worker that has died: its end of the pipe is closed, and nothing else can be read from it."""
        return self.pipe.closed or (self.ready and self.pipe.poll())

    def greet(self) -> None:
        """Take the word that the process is ready."""
        seen = self.answer(self.start_deadline)
        if seen.fault is not None:
            raise EnvironmentFault(
                f"an environment worker could not start ({seen.error}): its own message stands above. A fresh process must be "
                "able to import the environment; workers: 0 runs it in this process."
            )
        self.ready = True

    def ask(self, slot: int, command: Command, deadline: float) -> None:
        with contextlib.suppress(OSError):  # the process is gone: `answer` finds out and says so
            self.pipe.send((slot, command))
        self.due = time.monotonic() + deadline

    def answer(self, deadline: float) -> EnvReply:
        """What came back, or why nothing will."""
        try:
            if self.pipe.poll():
                return self.pipe.recv().checked()
        except (EOFError, OSError):
            self.process.join(timeout=1)
            return _faulty(Status.ENV_DIED, f"worker process ended with exit code {self.process.exitcode}")
        return _late(deadline)

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join(timeout=5)


class _Copies:
    """One copy of an environment for each slot. One that failed is in no known state: it is closed and not used again."""

    def __init__(self, env: Environment):
        self.env = env
        self.slots: dict[int, Environment] = {}

    def run(self, slot: int, command: Command) -> EnvReply:
        """One call."""
        env = self.take(slot)
        seen = _play(env, command)
        self.give(slot, env, seen)
        return seen

    def take(self, slot: int) -> Environment:
        return self.slots.pop(slot) if slot in self.slots else copy.deepcopy(self.env)

    def give(self, slot: int, env: Environment, seen: EnvReply) -> None:
        if seen.fault is None:
            self.slots[slot] = env
        else:
            _close(env)

    def close(self) -> None:
        while self.slots:
            _close(self.slots.popitem()[1])


def _play(env: Environment, command: Command) -> EnvReply:
    """One call, faults caught and answers looked at: an environment is other people's code."""
    try:
        if isinstance(command, Task):
            result = StepResult(observation_of(env, env.reset(command)))
        elif command is None:
            result = result_of(env, env.unfinished(), "unfinished")
        else:
            result = result_of(env, env.step(command))
        return EnvReply(result, [] if result.done else admissible_of(env, env.admissible()))
    except (Exception, SystemExit) as error:
        seen = _faulty(Status.ENV_ERROR, f"{type(error).__name__}: {error}")
        seen.wrong = error if isinstance(error, ConfigError) else None
        return seen


def _close(env: Environment) -> None:
    with contextlib.suppress(Exception, SystemExit):
        env.close()


def _late(deadline: float) -> EnvReply:
    return _faulty(Status.TIMEOUT, f"no answer within {deadline} s")


def _faulty(fault: Status, error: str) -> EnvReply:
    return EnvReply(StepResult("", done=True), fault=fault, error=error)


def _serve(env: bytes, pipe: Connection) -> None:
    """Worker process: says that it is ready, then (slot, command) in, EnvReply out, one at a time, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that owns the pool
    _end_with_trainer()
    copies = _Copies(pickle.loads(env))
    with contextlib.suppress(EOFError, OSError):  # the pool was closed
        pipe.send(EnvReply(StepResult("")))
        while True:
            pipe.send(copies.run(*pipe.recv()))
    copies.close()


def _end_with_trainer() -> None:
    """End this worker when the process that owns the pool is gone, also in the middle of a step.

    The server that forks workers lives as long as one of them. Where the kernel does not help, a thread waits for the end, and must
    wait in turn while a world computes in C.
    """
    trainer = multiprocessing.parent_process()
    if trainer is None:  # called in the process that owns it, as tests do
        return
    if not die_at_end_of(trainer.sentinel):  # a pipe that only the trainer can write to, and no longer does
        threading.Thread(target=_end_after, args=(trainer,), daemon=True, name="sdar-trainer").start()
    elif not trainer.is_alive():  # it ended before the call
        os._exit(1)


def _end_after(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)


def _start_method(env: Environment) -> "ForkServerContext | SpawnContext":
    """How worker processes start: never a fork of this process, which may have threads and a GPU."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    imported = [name for name in sys.modules if name.partition(".")[0] == "sdar"]
    context.set_forkserver_preload([*imported, type(env).__module__])
    return context
