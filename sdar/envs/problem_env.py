"""What worlds of problems share: problems from files or generated, programs that may be run, an answer that ends the episode."""

import hashlib
import json
import random
import re
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_info

from sdar.envs.math_protocol import ANSWER, program_of
from sdar.errors import ConfigError, PanelError, check_least
from sdar.parts import Environment, StepResult
from sdar.paths import resolve
from sdar.registry import did_you_mean
from sdar.sandbox.base import CodeRunner, Result, RunStatus
from sdar.sandbox.choose import AutoRunner

MALFORMED = "The tool call could not be read. Nothing was run."
NO_CALLS_LEFT = "No tool calls are left. Give the final answer."
NO_OUTPUT = "[no output: print what you want to see]"
TURN_BONUS, BEST_WRONG = 0.1, -0.6
"""SOD: a wrong answer gets this much for each tool turn, up to this reward. A call that nobody could run is no tool turn: text
that looks like a call would be paid otherwise."""


class Problem(Protocol):
    """What every problem has."""

    @property
    def text(self) -> str: ...


@dataclass
class Attempt:
    """The episode that runs."""

    task_id: str
    turns: int = 0
    calls: int = 0
    """Programs that were run."""
    malformed: int = 0
    """Calls that could not be read. They earn nothing."""
    failed: int = 0
    """Programs that raised or broke a limit."""
    cells: tuple[str, ...] = ()
    """What was run before, where the interpreter keeps its state."""
    computed: str = ""
    """What the last call printed."""


class ProblemEnv(Environment):
    """Problems with an answer that can be checked, and a Python interpreter.

    Actions are those of `sdar.envs.math_protocol`: a program that is run, or an answer, which ends the episode.
    """

    action_form = "programs"
    has_tools = True
    id_prefix: str
    """What task ids begin with."""
    generated_splits: tuple[str, ...]
    """Splits of generated problems."""

    running: Attempt | None

    def __init__(
        self,
        split: str,
        files: Mapping[str, str] | None,
        runner: CodeRunner | None,
        stateful: bool,
        horizon: int,
        max_tool_calls: int | None,
        reward: str,
        output_chars: int,
    ):
        check_least("env", 1, horizon=horizon)
        check_least("env", 0, max_tool_calls=max_tool_calls)
        check_least("env", 80, output_chars=output_chars)
        if reward not in self.rewards():
            *others, last = self.rewards()
            raise ConfigError(f"env.reward is {reward!r}: rewards are {', '.join(others)} and {last}.")
        self.files: Any = None if files is None else dict(files)  # split -> path
        self.told_by_row = files is not None
        self.splits = self.generated_splits if files is None else tuple(files)
        if split not in self.splits:
            raise ConfigError(
                f"env.split is {split!r}, but there are problems for {', '.join(self.splits) or 'no split'}. "
                f"{'Choose one of them.' if files is None else 'Name a file for it in env.files.'}"
            )
        self.split = split
        self.runner = AutoRunner() if runner is None else runner
        self.stateful = stateful
        self.horizon = horizon
        self.max_tool_calls = max_tool_calls
        self.reward = reward
        self.output_chars = output_chars
        self.fingerprint = ""

    @staticmethod
    def rewards() -> Sequence[str]:
        """Names of the rewards that there are."""
        return ("binary", "signed", "sod")

    def _mark(self, settings: Sequence[Any], reading: Sequence[Any] = ()) -> None:
        """Tell what is left out of files, and make the fingerprint: of the files' contents and of the settings by which they are read
        (`reading`), or of the `settings` of generated problems."""
        texts = {name: self._file(str(resolve(path)))[1] for name, path in (self.files or {}).items()}
        for name in texts:
            self._kept(name)
        told = ([texts, *reading] if reading else texts) if self.files else settings
        self.fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        self.check_split(split)
        prefix = f"{self.id_prefix}-{self.fingerprint}-{split}"
        if self.files is None:
            return [f"{prefix}-{seed}-{i:06d}" for i in range(count)]
        kept = self._kept(split)
        if count > len(kept):
            raise PanelError(
                f"{self.files[split]} has {len(kept)} problems, but a panel of {count} is asked for: a problem may count once. Ask for "
                f"{len(kept)} or fewer."
            )
        order = random.Random(f"{self.id_prefix}/{split}/{seed}").sample(kept, count)
        return [f"{prefix}-row-{i:06d}" for i in order]

    def size(self, split: str) -> int | None:
        self.check_split(split)
        return None if self.files is None else len(self._kept(split))

    def _problem(self, task_id: str) -> Any:
        shape = re.fullmatch(rf"{self.id_prefix}-([0-9a-f]+)-(.+)-(row|-?\d+)-(\d+)", task_id)
        if shape is None:
            raise PanelError(
                f"{task_id!r} is no task of {self.world_kind}: ids look like {self.id_prefix}-FINGERPRINT-SPLIT-SEED-NUMBER."
            )
        fingerprint, split, seed, number = shape.groups()
        if fingerprint != self.fingerprint or split not in self.splits or (seed == "row") != (self.files is not None):
            raise PanelError(
                f"task {task_id} belongs to other settings or files (fingerprint {fingerprint}, these have {self.fingerprint}): it "
                "would be another problem under the same name. Use what the panel was made with."
            )
        index = int(number)
        if self.files is None:
            return self._generated(split, seed, index)
        rows = self._file(str(resolve(self.files[split])))[0]
        if index >= len(rows):
            raise PanelError(f"task {task_id}: {self.files[split]} has {len(rows)} problems only. Use the panel's own file.")
        return rows[index]

    def step(self, action: str) -> StepResult:
        attempt: Attempt = self.ongoing()
        attempt.turns += 1
        if action.startswith(ANSWER):
            return self._judge(attempt, action.removeprefix(ANSWER))
        program, worked = program_of(action), False
        if program is None:
            attempt.malformed += 1
            observation = MALFORMED
        elif self.max_tool_calls is not None and attempt.calls >= self.max_tool_calls:
            observation = NO_CALLS_LEFT
        else:
            failed = attempt.failed
            observation = self._call(attempt, *program)
            worked = attempt.failed == failed
        if attempt.turns >= self.horizon:
            return replace(self.unfinished(), observation=observation, valid=program is not None, tool_ok=worked)
        return StepResult(observation, valid=program is not None, tool_ok=worked, scores=self._scores(attempt))

    def unfinished(self) -> StepResult:
        """As a wrong answer: else a problem that is too hard would be worth more the longer the policy talks."""
        return replace(self._judge(self.ongoing(), ""), truncated=True)

    def check(self) -> None:
        """Whether code can be run on this machine; says what stands between the code and the machine."""
        self.runner.check()
        rank_zero_info(f"code sandbox: {', '.join(self.runner.layers)}")

    @property
    def conditions(self) -> dict[str, str]:
        """Sandboxes differ in what code may do: with bubblewrap it writes files below /tmp, with Landlock nowhere."""
        return {"code_sandbox": ", ".join(self.runner.layers)}

    def close(self) -> None:
        self.runner.close()

    def _call(self, attempt: Attempt, code: str, stdin: str) -> str:
        result = self.runner.run(code, attempt.cells, stdin)
        attempt.calls += 1
        attempt.failed += result.status != RunStatus.OK
        attempt.computed = result.stdout.strip()
        if self.stateful and result.status in (RunStatus.OK, RunStatus.ERROR, RunStatus.SYNTAX):
            attempt.cells = (*attempt.cells, code)
        return shorten(tell(result), self.output_chars)

    @abstractmethod
    def _judge(self, attempt: Attempt, answer: str) -> StepResult:
        """The end of an episode; an empty answer is none."""

    @abstractmethod
    def _scores(self, attempt: Attempt) -> dict[str, float]:
        """Scores of an episode that goes on."""

    @abstractmethod
    def _generated(self, split: str, seed: str, index: int) -> Problem:
        """A generated problem."""

    @abstractmethod
    def _file(self, path: str) -> tuple[Sequence[Problem], str]:
        """The problems of a file and a digest of its content."""

    @abstractmethod
    def _kept(self, split: str) -> list[int]:
        """Rows of a split's file that panels choose from."""


def families_of(chosen: Sequence[str] | None, families: Collection[str], files: Mapping[str, str] | None) -> list[str]:
    """The families of generated problems: those that are chosen, or all."""
    if files is not None and chosen is not None:
        raise ConfigError("env.families chooses among generated problems, but env.files replaces them. Take one of them out.")
    for family in chosen or []:
        if family not in families:
            raise ConfigError(
                f"env.families names {family!r}: no such family.{did_you_mean(family, families)} Families: {', '.join(families)}."
            )
    return list(chosen or families)


def measured_elsewhere(env: ProblemEnv, split: str) -> tuple[str, tuple[str, ...]]:
    """The file of a split, and those of the other splits, of which nothing may be trained on."""
    paths = {name: str(resolve(path)) for name, path in env.files.items()}
    return paths[split], tuple(path for name, path in paths.items() if name != split) if split == env.split else ()


def tool_error_share(attempt: Attempt) -> float:
    """Share of the calls that could not be read, raised or broke a limit."""
    return (attempt.failed + attempt.malformed) / max(1, attempt.calls + attempt.malformed)


def score(right: bool, calls: int, reward: str) -> float:
    """The reward of an episode in which `calls` programs were run."""
    if reward == "binary":
        return float(right)
    if right:
        return 1.0
    return -1.0 if reward == "signed" else min(BEST_WRONG, -1.0 + TURN_BONUS * calls)


def tell(result: Result) -> str:
    """What a model is told of a run."""
    notes = {
        RunStatus.TIMEOUT: f"[stopped: more than the allowed time ({result.layer} limit)]",
        RunStatus.MEMORY: "[stopped: more than the allowed memory]",
        RunStatus.OUTPUT: "[stopped: too much output]",
        RunStatus.KILLED: f"[the process was killed ({result.layer})]",
    }
    parts = [result.stdout.rstrip("\n"), result.stderr.rstrip("\n"), notes.get(result.status, "")]
    return "\n".join(part for part in parts if part) or NO_OUTPUT


def shorten(text: str, most: int) -> str:
    """At most `most` characters and a note: the beginning and the end, with the middle cut visibly."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"
