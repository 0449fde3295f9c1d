"""The original ALFWorld package (alfworld, TextWorld) as an environment: the oracle for `HouseholdEnv`, 1,000 times slower.

The engine lives in a process of its own (`alfworld_server`), possibly of another interpreter: its dependencies are licensed
under the GPL, and TextWorld is not thread-safe, overwrites `sys.argv` and swaps `sys.stdout`. The copies of an environment in
one process share one such process, which serves them one after the other: `data.workers` makes several.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from sdar.envs import alfworld_server
from sdar.envs.household import HouseholdEnv, HouseholdExpert
from sdar.envs.household_engine import NOTHING_HAPPENS, World
from sdar.envs.household_files import GAME_FILE
from sdar.envs.household_official import trial_of
from sdar.errors import ConfigError, EnvironmentFault
from sdar.parts import StepResult
from sdar.registry import register
from sdar.types import Task
from sdar.versions import install


@dataclass
class Played:
    """An episode as plain data: what was done, and the last answer."""

    task_id: str
    actions: list[str] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)


@register("alfworld")
class ALFWorldEnv(HouseholdEnv):
    """The original ALFWorld engine on its game files, in a process of its own; `HouseholdEnv` plays the same 1,000 times faster.

    Args:
        split: Where training tasks come from; train, seen and unseen are train, valid_seen and valid_unseen.
        data: The folder of ALFWorld's game files, or "official": the one that ALFWORLD_DATA names, else that of ``sdar fetch alfworld``.
        families: Task families, all six by default.
        horizon: Most actions in an episode (ALFWorld: 50).
        success_reward: Reward of reaching the goal.
        human_goals: Ask for the tasks in the words of ALFRED's annotators instead of the template's.
        python: Interpreter that has the package alfworld; by default this one. Its GPL dependencies may stay in an environment
            of their own.
    """

    data: str
    # another engine, other episodes
    running: Played | None  # type: ignore[assignment]

    def __init__(
        self,
        split: Literal["train", "seen", "unseen"] = "train",
        data: str = "official",
        families: list[str] | None = None,
        horizon: int = 50,
        success_reward: float = 10.0,
        human_goals: bool = False,
        python: str | None = None,
    ):
        super().__init__(
            split, families=families, horizon=horizon, success_reward=success_reward, data=data, human_goals=human_goals
        )
        self.python = python
        self._seat: _Seat | None = None

    def reset(self, task: Task) -> str:
        self.running = Played(task.id)
        self.running.answer = self._seated().begin(self.running, *self._file(task.id))
        return self.running.answer["observation"]

    def step(self, action: str) -> StepResult:
        played = self.ongoing()
        answer = self._seated().act(played, action, *self._file(played.task_id))
        played.actions.append(action)
        played.answer = answer
        won = answer["won"]
        return StepResult(
            observation=answer["observation"],
            reward=self.success_reward * won,
            done=won or len(played.actions) >= self.horizon,
            success=won,
            valid=answer["observation"] != NOTHING_HAPPENS,
            truncated=not won and len(played.actions) >= self.horizon,
        )

    def admissible(self) -> list[str]:
        return list(self.ongoing().answer["admissible"])

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> HouseholdExpert:
        """Our planner, beside our engine in the same state."""
        played = self.ongoing()
        world = World(self.game(played.task_id))
        for action in played.actions:
            world.step(action)
        return _Beside(world, facts, rng)

    def restore(self, state: bytes) -> None:
        """The actions are played again before the next one."""
        super().restore(state)
        self._leave()

    def check(self) -> None:
        original(self.python)

    def close(self) -> None:
        self._leave()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seat": None}

    def __del__(self) -> None:
        self._leave()

    def _file(self, task_id: str) -> tuple[str, str | None]:
        """Path of the game file, and the sentence to ask for the task with where it is another than the file's."""
        folder, _ = trial_of(self.data, task_id)
        return str(folder / GAME_FILE), self.game(task_id).task if self.human_goals else None

    def _seated(self) -> "_Seat":
        if self._seat is None or self._seat.engine.gone:
            self._seat = _Seat(original(self.python))
        return self._seat

    def _leave(self) -> None:
        seat, self._seat = self.__dict__.get("_seat"), None
        if seat is not None:
            seat.engine.left.append(seat.slot)


class _Beside(HouseholdExpert):
    """An expert in a copy of the episode, which follows it."""

    def watch(self, action: str) -> None:
        self.world.step(action)
        super().watch(action)


class Original:
    """A process that runs the original engine; slots are running games.

    Raises:
        ConfigError: the interpreter does not exist or has no alfworld.
    """

    def __init__(self, python: str):
        self.left: list[str] = []
        """Slots that nobody needs any more: the next request says so."""
        self._lock = threading.Lock()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        try:
            self._process = subprocess.Popen(
                [python, alfworld_server.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
                encoding="utf-8",
                env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
            )
        except OSError as error:
            self._said.close()
            raise ConfigError(
                f"env.python is {python!r}, which cannot be started ({error}): give the path of an interpreter that has alfworld."
            ) from error
        hello = self._answer()
        if "error" in hello:
            self.close()
            raise ConfigError(
                f"the original engine does not start with {python}: {hello['error']}. Run `pip install alfworld pyyaml` for that "
                f"interpreter (`{install('alfworld')}` for this one), or let env.python name another."
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            EnvironmentFault: the engine failed or its process ended.
        """
        assert self._process.stdin is not None
        with self._lock:
            request["left"], self.left[:] = self.left[:], []
            try:
                with contextlib.suppress(OSError):  # the process is gone: there is no answer, which says so
                    self._process.stdin.write(json.dumps(request) + "\n")
                    self._process.stdin.flush()
                answer = self._answer()
            except BaseException:  # its answer would be taken for that to the next request
                self.close()
                raise
        if "error" in answer:
            raise EnvironmentFault(f"the original engine failed at {str(request)[:300]}: {answer['error']}")
        return answer

    def processor_time(self) -> float:
        """Seconds of processor time that the process has used; only where the system has /proc."""
        with open(f"/proc/{self._process.pid}/stat", encoding="utf-8") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def gone(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 1000))
        said = self._said.read().decode("utf-8", "replace").strip()
        return {"error": f"its process ended with exit code {code}; it had said: {said or 'nothing'}"}


class _Seat:
    """One running game in the original's process; it takes up an episode by playing it again."""

    def __init__(self, engine: Original):
        self.engine = engine
        self.slot = uuid.uuid4().hex
        self.at: Played | None = None
        self.steps = 0

    def begin(self, played: Played, path: str, task: str | None) -> dict[str, Any]:
        answer = self.engine.ask(slot=self.slot, load=path, task=task)
        self.at, self.steps = played, 0
        return answer

    def act(self, played: Played, action: str, path: str, task: str | None) -> dict[str, Any]:
        if self.at is not played or self.steps != len(played.actions):
            answer = self.begin(played, path, task)
            for past in played.actions:
                answer = self.engine.ask(slot=self.slot, act=past)
            if answer != played.answer:
                raise EnvironmentFault(
                    f"the original engine did not repeat itself after {len(played.actions)} actions in task {played.task_id}: "
                    f"{str(answer)[:500]} instead of {str(played.answer)[:500]}. Report the game file."
                )
            self.steps = len(played.actions)
        answer = self.engine.ask(slot=self.slot, act=action)
        self.steps += 1
        return answer


def original(python: str | None = None) -> Original:
    """The process of an interpreter (by default this one) that all environments of this process share."""
    name = python or sys.executable
    if _process_of(name, os.getpid()).gone:
        _process_of.cache_clear()
    return _process_of(name, os.getpid())


@lru_cache(maxsize=8)
def _process_of(python: str, owner: int) -> Original:
    """`owner` tells a forked process that its parent's is not its own."""
    return Original(python)
