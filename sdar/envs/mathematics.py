"""Mathematics with a code interpreter: problems with a checkable answer, Python as a tool."""

import random
from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Any, Literal

from sdar.envs import math_checking, math_problems
from sdar.envs.answer_env import RIGHT, WRONG, AnswerEnv
from sdar.envs.duplicates import distinct
from sdar.envs.math_checking import is_correct, last_boxed
from sdar.envs.math_problems import FAMILIES, LEVELS, Problem
from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.envs.problem_env import MALFORMED, NO_CALLS_LEFT, NO_OUTPUT, families_of, measured_elsewhere
from sdar.envs.problem_env import score as score
from sdar.envs.problem_env import shorten as shorten
from sdar.envs.problem_env import tell as tell
from sdar.envs.problem_rows import columns, file_rows
from sdar.envs.worked_solutions import Hints, behind_mark, check_hints, hint_of
from sdar.errors import ConfigError
from sdar.parts import Expert
from sdar.reading import is_written_list, read_name
from sdar.registry import register
from sdar.sandbox.base import CodeRunner
from sdar.skills import SkillBank

GENERATOR = 1
"""Raised whenever the same arguments would make another problem, so that no panel can mean two things."""

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


@register("math")
class MathEnv(AnswerEnv):
    r"""Problems with a checkable answer and a Python interpreter.

    Actions are ``python``, a line break and code, or ``answer``, a line break and an answer; `HermesMathProtocol` and
    `FencedMathProtocol` write them. An answer ends the episode; it is right when `is_correct` says so.

    Args:
        split: Where training problems come from. Generated problems of different splits never have the same text.
        files: Split -> JSONL (it may end in .gz), CSV or parquet file, instead of generated problems. Columns, in any case: ``problem``,
            ``question`` or ``prompt`` (text, or messages of which the last user's counts); ``answer`` (a text, a number, or GSM8K's
            worked text, whose answer follows ``####``), ``solution`` (its last ``\boxed{}``) or ``reward_model.ground_truth``; perhaps
            ``solution`` beside an answer, and ``hint``, for teachers; perhaps ``data_source``, which is the family. A row that repeats
            the text of an earlier one is left out, and a training row whose text stands in another split's file.
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
        hints: Where hints of a file come from. ``column``: the column ``hint``. ``solution``: where a row has none, the first half of the
            steps of its worked solution, without the last.
    """

    protocol_name, world_kind, id_prefix = "hermes_math", "mathematics", "math"
    generated_splits = math_problems.SPLITS

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
        hints: Hints = "column",
    ):
        super().__init__(split, files, runner, stateful, horizon, max_tool_calls, reward, output_chars)
        if level not in LEVELS:
            raise ConfigError(f"env.level is {level!r}: levels of generated problems are {' and '.join(LEVELS)}.")
        self.families = families_of(families, FAMILIES, files)
        check_hints(hints, files)
        self.level, self.hints = level, hints
        self.verify_python = verify_python
        self._mark([GENERATOR, self.families, level])

    def problem(self, task_id: str) -> Problem:
        """The problem of a task id, the same on every machine."""
        problem: Problem = self._problem(task_id)
        return problem

    def check(self) -> None:
        """Whether code can be run and answers compared on this machine; says what stands between the code and the machine."""
        super().check()
        math_checking.check(self.verify_python)

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "MathExpert":
        return MathExpert(self, self.problem(self.ongoing().task_id))

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        texts = [NO_CALLS_LEFT, NO_OUTPUT, MALFORMED, RIGHT, WRONG]
        texts += [skill.text for skill in SkillBank.load("conf/skills/math")] * 3  # read in words, not in bytes
        for i in range(60 * len(self.families)):
            family = self.families[i % len(self.families)]
            p = _generated(family, self.level, "train", f"corpus/{rng.random()}")
            texts += [p.text, f"```python\n{p.program}\n```", f"```output\n{p.answer}\n```", f"\\boxed{{{p.answer}}}", p.hint]
        return texts, PHRASES

    def _is_right(self, problem: Problem, answer: str) -> bool:
        return is_correct(problem.answer, answer, python=self.verify_python)

    def _generated(self, split: str, seed: str, index: int) -> Problem:
        return _generated(self.families[index % len(self.families)], self.level, split, f"{seed}/{index}")

    def _file(self, path: str) -> tuple[tuple[Problem, ...], str]:
        return _file_problems(path)

    def _kept(self, split: str) -> list[int]:
        return _kept(*measured_elsewhere(self, split))


class MathExpert(Expert):
    """Runs the reference program until the last output is the answer, then gives it."""

    def __init__(self, env: MathEnv, problem: Problem):
        self.env, self.problem = env, problem

    def act(self) -> str:
        known = self.env.ongoing().computed == self.problem.answer or not self.problem.program
        return ANSWER + self.problem.answer if known else PYTHON + self.problem.program

    def watch(self, action: str) -> None:
        """Everything that it goes by is in the episode."""


@lru_cache(maxsize=8192)
def _generated(family: str, level: str, split: str, name: str) -> Problem:
    return math_problems.generate(family, level, split, name)


@lru_cache(maxsize=16)
def _file_problems(path: str) -> tuple[tuple[Problem, ...], str]:
    """The problems of a file and a digest of its content."""
    rows, digest = file_rows(path)
    return tuple(_row(where, row) for where, row in rows), digest


@lru_cache(maxsize=16)
def _kept(path: str, measured: tuple[str, ...]) -> list[int]:
    others = [problem.text for other in measured for problem in _file_problems(other)[0]]
    return distinct(path, [problem.text for problem in _file_problems(path)[0]], others)


def _row(where: str, row: Any) -> Problem:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {type(row).__name__} instead of an object with a problem and an answer.")
    text = next((row[k] for k in ("problem", "question", "prompt") if row.get(k) is not None), None)
    if isinstance(text, list):
        text = next((m.get("content") for m in reversed(text) if isinstance(m, dict) and m.get("role") == "user"), None)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(
            f"{where} has no problem: a text in the column problem, question or prompt. Its columns: {columns(row)}."
        )
    model, answer, worked = row.get("reward_model"), row.get("answer"), row.get("solution")
    found = next((marked for told in (answer, worked) if isinstance(told, str) and (marked := behind_mark(told))), None)
    if found is not None:
        worked, answer = found
    if answer is None and isinstance(worked, str):
        answer = last_boxed(worked) or worked
    if answer is None and isinstance(model, dict):
        answer = model.get("ground_truth")
    number = isinstance(answer, int | float) and not isinstance(answer, bool) and isfinite(answer)
    if not number and not (isinstance(answer, str) and answer.strip() and not is_written_list(answer)):
        raise ConfigError(
            f"{where} has no answer: a text or a finite number in the column answer, solution or reward_model.ground_truth. Its columns: "
            f"{columns(row)}."
        )
    gold = str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer).strip()
    worked = worked.strip() if isinstance(worked, str) else ""
    family = read_name(row.get("data_source") or "math", f"{where}: data_source")
    return Problem(text, gold, family, hint=hint_of(row, where), worked="" if worked == gold else worked, where=where)
