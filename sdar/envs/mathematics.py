"""Mathematics with a code interpreter: problems with a checkable answer, Python as a tool."""

import hashlib
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from sdar.envs import math_checking, math_problems
from sdar.envs.duplicates import distinct
from sdar.envs.math_checking import is_correct, last_boxed
from sdar.envs.math_problems import FAMILIES, LEVELS, Problem
from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.errors import ConfigError, PanelError, check_least
from sdar.parts import Environment, Expert, StepResult
from sdar.paths import resolve
from sdar.reading import excerpt, is_written_list, read_json_lines, read_name
from sdar.registry import did_you_mean, register
from sdar.sandbox.base import CodeRunner, Result, RunStatus
from sdar.sandbox.choose import AutoRunner
from sdar.skills import SkillBank
from sdar.types import Task
from sdar.versions import install

GENERATOR = 1
"""Raised whenever the same arguments would make another problem, so that no panel can mean two things."""
MALFORMED = "The tool call could not be read. Nothing was run."
NO_CALLS_LEFT = "No tool calls are left. Give the final answer."
NO_OUTPUT = "[no output: print what you want to see]"
RIGHT, WRONG = "Correct.", "Incorrect."
TURN_BONUS, BEST_WRONG = 0.1, -0.6
"""SOD: a wrong answer gets this much for each tool turn, up to this reward. A call that nobody could run is no tool turn: text
that looks like a call would be paid otherwise."""

PHRASES = [
    "```python\n",
    "\n```",
    "```output\n",
    "\\boxed{",
    "print(",
    "from sympy import *\n",
    "from itertools import combinations\n",
    "for _ in range(",
    "symbols('",
    " = solve([",
    ").subs(s))",
    "combinations(range(1,",
    "sum(map(int,str(",
    "Find the remainder when ",
    " is divided by ",
    "How many integers from 1 to ",
    " are divisible by ",
    " but not by ",
    "A sequence has a(1) = ",
    ", a(2) = ",
    " and a(n) = ",
    "In how many ways can ",
    " different numbers be chosen from 1 to ",
    " so that their sum leaves remainder ",
    " modulo ",
    "Find the sum of the digits of ",
    NO_CALLS_LEFT,
    NO_OUTPUT,
    MALFORMED,
]


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


@register("math")
class MathEnv(Environment):
    r"""Problems with a checkable answer and a Python interpreter.

    Actions are ``python``, a line break and code, or ``answer``, a line break and an answer; `HermesMathProtocol` and
    `FencedMathProtocol` write them. An answer ends the episode; it is right when `is_correct` says so.

    Args:
        split: Where training problems come from. Generated problems of different splits never have the same text.
        files: Split -> JSONL or parquet file, instead of generated problems. Columns: ``problem``, ``question`` or ``prompt``
            (text, or messages of which the last user's counts); ``answer``, ``solution`` (its last ``\boxed{}``) or
            ``reward_model.ground_truth``; perhaps ``data_source``, which is the family. A row that repeats the text of an earlier one
            is left out, and a training row whose text stands in another split's file.
        families: Families of generated problems, all by default.
        level: Size of the numbers of generated problems.
        runner: What runs the code; by default the best sandbox of this machine.
        stateful: What earlier calls of an episode defined is there in later ones (they are run again, within the same limits).
        horizon: Most responses in an episode, answers included (SOD: 16).
        max_tool_calls: Most calls in an episode; None: as many as there are responses.
        reward: ``binary``: 1 or 0. ``signed``: 1 or -1 (ReTool, math_dapo). ``sod``: signed, but a wrong answer gets 0.1 for
            each program that was run, at most -0.6 together.
        output_chars: Most characters of an output that are told; the middle is cut.
        verify_python: Interpreter that has math-verify, which compares answers; by default this one. Its parser pins a version of
            antlr that Hydra's users cannot have, so it may stay in an environment of its own.
    """

    protocol_name, action_form, world_kind = "hermes_math", "programs", "mathematics"

    running: Attempt | None

    def __init__(
        self,
        split: str = "train",
        files: dict[str, str] | None = None,
        families: list[str] | None = None,
        level: Literal["easy", "full"] = "full",
        runner: CodeRunner | None = None,
        stateful: bool = False,
        horizon: int = 16,
        max_tool_calls: int | None = None,
        reward: Literal["binary", "signed", "sod"] = "binary",
        output_chars: int = 2000,
        verify_python: str | None = None,
    ):
        check_least("env", 1, horizon=horizon)
        check_least("env", 0, max_tool_calls=max_tool_calls)
        check_least("env", 80, output_chars=output_chars)
        if reward not in ("binary", "signed", "sod"):
            raise ConfigError(f"env.reward is {reward!r}: rewards are binary, signed and sod.")
        if level not in LEVELS:
            raise ConfigError(f"env.level is {level!r}: levels of generated problems are {' and '.join(LEVELS)}.")
        if files is not None and families is not None:
            raise ConfigError(
                "env.families chooses among generated problems, but env.files replaces them. Take one of them out."
            )
        for family in families or []:
            if family not in FAMILIES:
                raise ConfigError(
                    f"env.families names {family!r}: no such family.{did_you_mean(family, FAMILIES)} Families: {', '.join(FAMILIES)}."
                )
        self.files: Any = None if files is None else dict(files)  # split -> path
        self.splits = math_problems.SPLITS if files is None else tuple(files)
        if split not in self.splits:
            raise ConfigError(
                f"env.split is {split!r}, but there are problems for {', '.join(self.splits) or 'no split'}. "
                f"{'Choose one of them.' if files is None else 'Name a file for it in env.files.'}"
            )
        self.split = split
        self.families = list(families or FAMILIES)
        self.level = level
        self.runner = AutoRunner() if runner is None else runner
        self.stateful = stateful
        self.horizon = horizon
        self.max_tool_calls = max_tool_calls
        self.reward = reward
        self.output_chars = output_chars
        self.verify_python = verify_python
        texts = {name: _file_problems(str(resolve(path)))[1] for name, path in (files or {}).items()}
        for name in texts:
            self._kept(name)  # what is left out is told now
        settings = texts if files else [GENERATOR, self.families, level]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        self.check_split(split)
        if self.files is None:
            return [f"math-{self.fingerprint}-{split}-{seed}-{i:06d}" for i in range(count)]
        kept = self._kept(split)
        if count > len(kept):
            raise PanelError(
                f"{self.files[split]} has {len(kept)} problems, but a panel of {count} is asked for: a problem may count once. Ask for "
                f"{len(kept)} or fewer."
            )
        order = random.Random(f"math/{split}/{seed}").sample(kept, count)
        return [f"math-{self.fingerprint}-{split}-row-{i:06d}" for i in order]

    def size(self, split: str) -> int | None:
        self.check_split(split)
        return None if self.files is None else len(self._kept(split))

    def problem(self, task_id: str) -> Problem:
        """The problem of a task id, the same on every machine."""
        shape = re.fullmatch(r"math-([0-9a-f]+)-(.+)-(row|-?\d+)-(\d+)", task_id)
        if shape is None:
            raise PanelError(f"{task_id!r} is no task of mathematics: ids look like math-FINGERPRINT-SPLIT-SEED-NUMBER.")
        fingerprint, split, seed, number = shape.groups()
        if fingerprint != self.fingerprint or split not in self.splits or (seed == "row") != (self.files is not None):
            raise PanelError(
                f"task {task_id} belongs to other settings or files (fingerprint {fingerprint}, these have {self.fingerprint}): it "
                "would be another problem under the same name. Use what the panel was made with."
            )
        index = int(number)
        if self.files is not None:
            rows = self._rows(split)
            if index >= len(rows):
                raise PanelError(
                    f"task {task_id}: {self.files[split]} has {len(rows)} problems only. Use the panel's own file."
                )
            return rows[index]
        return _generated(self.families[index % len(self.families)], self.level, split, f"{seed}/{index}")

    def task(self, task_id: str) -> Task:
        problem = self.problem(task_id)
        return Task(
            id=task_id,
            family=problem.family,
            instruction=problem.text,
            seed=int(task_id.rpartition("-")[2]),
            facts={"answer": problem.answer},
        )

    def reset(self, task: Task) -> str:
        self.running = Attempt(task.id)
        return self.problem(task.id).text

    def step(self, action: str) -> StepResult:
        attempt: Attempt = self.ongoing()
        attempt.turns += 1
        if action.startswith(ANSWER):
            return self._judge(attempt, action.removeprefix(ANSWER))
        valid = action.startswith(PYTHON)
        if not valid:
            attempt.malformed += 1
            observation = MALFORMED
        elif self.max_tool_calls is not None and attempt.calls >= self.max_tool_calls:
            observation = NO_CALLS_LEFT
        else:
            observation = self._call(attempt, action.removeprefix(PYTHON))
        if attempt.turns >= self.horizon:
            return replace(self.unfinished(), observation=observation, valid=valid)
        return StepResult(observation, valid=valid, scores=self._scores(attempt, False))

    def unfinished(self) -> StepResult:
        """As a wrong answer: else a problem that is too hard would be worth more the longer the policy talks."""
        return replace(self._judge(self.ongoing(), ""), truncated=True)

    def check(self) -> None:
        """Whether code can be run and answers compared on this machine; says what stands between the code and the machine."""
        self.runner.check()
        rank_zero_info(f"code sandbox: {', '.join(self.runner.layers)}")
        math_checking.check(self.verify_python)

    @property
    def conditions(self) -> dict[str, str]:
        """Sandboxes differ in what code may do: with bubblewrap it writes files below /tmp, with Landlock nowhere."""
        return {"code_sandbox": ", ".join(self.runner.layers)}

    def close(self) -> None:
        self.runner.close()

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "MathExpert":
        return MathExpert(self, self.problem(self.ongoing().task_id))

    def demonstration(self, task: Task) -> list[str]:
        """One call of the reference program where there is one, then the answer."""
        problem = self.problem(task.id)
        return [*([PYTHON + problem.program] if problem.program else []), ANSWER + problem.answer]

    def solution(self, task: Task) -> str:
        """The reference program and the answer."""
        problem = self.problem(task.id)
        return (
            f"{problem.program}\n\nThe answer is {problem.answer}." if problem.program else f"The answer is {problem.answer}."
        )

    def hint(self, task: Task) -> str:
        hint = self.problem(task.id).hint
        return hint or super().hint(task)

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        texts = [NO_CALLS_LEFT, NO_OUTPUT, MALFORMED, RIGHT, WRONG]
        texts += [skill.text for skill in SkillBank.load("conf/skills/math")] * 3  # read in words, not in bytes
        for i in range(60 * len(self.families)):
            family = self.families[i % len(self.families)]
            p = _generated(family, self.level, "train", f"corpus/{rng.random()}")
            texts += [p.text, f"```python\n{p.program}\n```", f"```output\n{p.answer}\n```", f"\\boxed{{{p.answer}}}", p.hint]
        return texts, PHRASES

    def _call(self, attempt: Attempt, code: str) -> str:
        result = self.runner.run(code, attempt.cells)
        attempt.calls += 1
        attempt.failed += result.status != RunStatus.OK
        attempt.computed = result.stdout.strip()
        if self.stateful and result.status in (RunStatus.OK, RunStatus.ERROR, RunStatus.SYNTAX):
            attempt.cells = (*attempt.cells, code)
        return shorten(tell(result), self.output_chars)

    def _judge(self, attempt: Attempt, answer: str) -> StepResult:
        """The end of an episode; an empty answer is none."""
        right = bool(answer) and is_correct(self.problem(attempt.task_id).answer, answer, python=self.verify_python)
        reward = score(right, attempt.calls, self.reward)
        return StepResult(RIGHT if right else WRONG, reward, True, right, bool(answer), self._scores(attempt, right))

    def _scores(self, attempt: Attempt, right: bool) -> dict[str, float]:
        failed, calls = attempt.failed + attempt.malformed, attempt.calls + attempt.malformed
        return {"correct": float(right), "tool_error_share": failed / max(1, calls)}

    def _rows(self, split: str) -> tuple[Problem, ...]:
        return _file_problems(str(resolve(self.files[split])))[0]

    def _kept(self, split: str) -> list[int]:
        """Rows of a split's file that panels choose from."""
        paths = {name: str(resolve(path)) for name, path in self.files.items()}
        measured = [path for name, path in paths.items() if name != split] if split == self.split else []
        return _kept(paths[split], tuple(measured))


class MathExpert(Expert):
    """Runs the reference program until the last output is the answer, then gives it."""

    def __init__(self, env: MathEnv, problem: Problem):
        self.env, self.problem = env, problem

    def act(self) -> str:
        known = self.env.ongoing().computed == self.problem.answer or not self.problem.program
        return ANSWER + self.problem.answer if known else PYTHON + self.problem.program

    def watch(self, action: str) -> None:
        """Everything that it goes by is in the episode."""


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


@lru_cache(maxsize=8192)
def _generated(family: str, level: str, split: str, name: str) -> Problem:
    return math_problems.generate(family, level, split, name)


@lru_cache(maxsize=16)
def _file_problems(path: str) -> tuple[tuple[Problem, ...], str]:
    """The problems of a file and a digest of its content."""
    file = Path(path)
    if not file.is_file():
        found = "is no file" if file.exists() else "does not exist"
        raise ConfigError(f"env.files names {path}, which {found}. Give the path of a JSONL or parquet file.")
    rows = _parquet(file) if file.suffix == ".parquet" else (row for _, row in read_json_lines(file))
    problems = tuple(_row(path, number, row) for number, row in enumerate(rows, 1))
    if not problems:
        raise ConfigError(f"env.files: {path} holds no problem. Give a file with one row a problem.")
    return problems, hashlib.sha256(file.read_bytes()).hexdigest()


@lru_cache(maxsize=16)
def _kept(path: str, measured: tuple[str, ...]) -> list[int]:
    others = [problem.text for other in measured for problem in _file_problems(other)[0]]
    return distinct(path, [problem.text for problem in _file_problems(path)[0]], others)


def _parquet(file: Path) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{file} is parquet and pyarrow is not installed. Install it ({install('math')}).") from error
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ConfigError(f"{file} cannot be read as parquet ({error}). Write it again, or give JSONL.") from error


def _row(path: str, number: int, row: Any) -> Problem:
    where = f"{path}, row {number}"
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {type(row).__name__} instead of an object with a problem and an answer.")
    text = next((row[k] for k in ("problem", "question", "prompt") if row.get(k) is not None), None)
    if isinstance(text, list):
        text = next((m.get("content") for m in reversed(text) if isinstance(m, dict) and m.get("role") == "user"), None)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"{where} has no problem: a text in the column problem, question or prompt. Its columns: {excerpt(', '.join(row), 300)}."
        )
    model = row.get("reward_model")
    answer = row.get("answer")
    if answer is None and isinstance(row.get("solution"), str):
        answer = last_boxed(row["solution"]) or row["solution"]
    if answer is None and isinstance(model, dict):
        answer = model.get("ground_truth")
    number = isinstance(answer, int | float) and not isinstance(answer, bool) and isfinite(answer)
    if not number and not (isinstance(answer, str) and answer.strip() and not is_written_list(answer)):
        raise ConfigError(
            f"{where} has no answer: a text or a finite number in the column answer, solution or reward_model.ground_truth. Its columns: "
            f"{excerpt(', '.join(row), 300)}."
        )
    family = read_name(row.get("data_source") or "math", f"{where}: data_source")
    return Problem(text, str(answer).strip(), family)
