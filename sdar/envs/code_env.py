"""Programming: problems whose answer is a Python program, judged on tests that it never meets."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Literal

from sdar.envs import code_generated
from sdar.envs.code_files import file_problems
from sdar.envs.code_generated import FAMILIES
from sdar.envs.code_judging import Judgement, Verdict, judge_program
from sdar.envs.code_livecodebench import Window
from sdar.envs.code_problems import CodeProblem
from sdar.envs.duplicates import distinct
from sdar.envs.math_protocol import ANSWER
from sdar.envs.problem_env import (
    MALFORMED,
    NO_CALLS_LEFT,
    NO_OUTPUT,
    Attempt,
    ProblemEnv,
    families_of,
    measured_elsewhere,
    score,
    shorten,
    tool_error_share,
)
from sdar.envs.worked_solutions import no_hint
from sdar.errors import ConfigError, check_least
from sdar.parts import Expert, StepResult
from sdar.registry import register
from sdar.sandbox.base import CodeRunner
from sdar.skills import SkillBank
from sdar.types import Task

GENERATOR = 1
"""Raised whenever the same arguments would make another problem, so that no panel can mean two things."""
PASSED, NO_PROGRAM = "All tests passed.", "There is no program."
FAILURES = [verdict for verdict in Verdict if verdict != Verdict.PASSED]
PHRASES = [
    "```python\n",
    "\n```",
    "```output\n",
    "<answer>\n",
    "\n</answer>",
    "print(",
    "items = list(map(int, input().split()))\n",
    "items = list(input().split())\n",
    "def solve(items):\n    return ",
    " for x in items if ",
    "sum(",
    "max(",
    ", default=0)",
    "len(set(",
    "'-'.join(",
    "sorted(",
    "Of the given integers take ",
    "Of the given words take ",
    " each, and give ",
    " They stand in one line, with a space between two.",
    " Write a function solve(items).",
    "The program reads standard input and writes the answer to standard output.",
    "The program defines solve; it is called, and reads no input.",
    "Arguments:\n",
    "Returns:\n",
    "Input:\n",
    "Output:\n",
    "Example ",
    NO_CALLS_LEFT,
    NO_OUTPUT,
    MALFORMED,
]


@register("code")
class CodeEnv(ProblemEnv):
    """Programming problems with tests that stay hidden, and a Python interpreter to try programs in.

    Actions are those of `MathEnv`; the answer is a program. It is run in the sandbox on each hidden test, on standard input or by calls of
    its function, and is a success when it passes all of them. Scores: ``tests_passed``, the share of tests that it passed, and for each
    way to fail (``wrong_answer``, ``compile_error``, ``runtime_error``, ``time_out``, ``out_of_memory``, ``too_much_output``, ``crash``)
    1 where the first test that failed did so.

    Args:
        split: Where training problems come from. Generated problems of different splits never have the same text.
        files: Split -> JSONL or JSON file (it may end in .gz), instead of generated problems: rows of LiveCodeBench, LeetCodeDataset or
            HumanEval, told apart by their columns. A row that repeats the text of an earlier one is left out, and a training row whose
            text stands in another split's file. Perhaps ``hint``, for teachers.
        families: Families of generated problems, all by default.
        platforms: Of LiveCodeBench's rows, those from these platforms (leetcode, codeforces, atcoder).
        difficulties: Of LiveCodeBench's rows, those that are this hard (easy, medium, hard).
        since: Of LiveCodeBench's rows, those of contests from this day on, as 2024-08-01.
        until: Of LiveCodeBench's rows, those of contests up to this day.
        test_s: Seconds on the clock for each test; None: as many as the problem's benchmark gives (6 for LiveCodeBench, 3 for
            all calls of a program of LeetCodeDataset and HumanEval).
        test_memory_mb: Memory for each test, in MiB. A sandbox gives a run at most what its own limits say where it is a service.
        runner: What runs the code; by default the best sandbox of this machine.
        stateful: What earlier calls of an episode defined is there in later ones (they are run again, within the same limits).
        horizon: Most responses in an episode, answers included (SOD: 16).
        max_tool_calls: Most calls in an episode; None: as many as there are responses.
        reward: ``binary``: 1 or 0. ``share``: the share of tests that are passed. ``signed``: 1 or -1. ``sod``: signed, but a wrong program
            gets 0.1 for each program that was run before, at most -0.6 together.
        output_chars: Most characters of an output that are told; the middle is cut.
    """

    protocol_name, world_kind, id_prefix = "hermes_code", "programming", "code"
    generated_splits = code_generated.SPLITS

    def __init__(
        self,
        split: str = "train",
        files: dict[str, str] | None = None,
        families: list[str] | None = None,
        platforms: list[str] | None = None,
        difficulties: list[str] | None = None,
        since: str | None = None,
        until: str | None = None,
        test_s: float | None = None,
        test_memory_mb: int = 1024,
        runner: CodeRunner | None = None,
        stateful: bool = False,
        horizon: int = 16,
        max_tool_calls: int | None = None,
        reward: Literal["binary", "share", "signed", "sod"] = "binary",
        output_chars: int = 2000,
    ):
        super().__init__(split, files, runner, stateful, horizon, max_tool_calls, reward, output_chars)
        check_least("env", 1, test_memory_mb=test_memory_mb)
        if test_s is not None and test_s <= 0:
            raise ConfigError(f"env.test_s is {test_s}: no program could run. Give more than 0 seconds, or leave it out.")
        self.families = families_of(families, FAMILIES, files)
        self.window = Window(platforms, difficulties, since, until)
        if files is None and self.window != Window():
            raise ConfigError(
                "env.platforms, difficulties, since and until choose among rows of LiveCodeBench, but there is no file. Give env.files, or "
                "take them out."
            )
        self.test_s = test_s
        self.test_memory_mb = test_memory_mb
        self._mark([GENERATOR, self.families], [] if self.window == Window() else [asdict(self.window)])

    @staticmethod
    def rewards() -> Sequence[str]:
        return ("binary", "share", "signed", "sod")

    def problem(self, task_id: str) -> CodeProblem:
        """The problem of a task id, the same on every machine."""
        problem: CodeProblem = self._problem(task_id)
        return problem

    def task(self, task_id: str) -> Task:
        problem = self.problem(task_id)
        facts = {"solution": problem.solution} if problem.solution else {}
        seed = int(task_id.rpartition("-")[2])
        return Task(id=task_id, family=problem.family, instruction=problem.statement, seed=seed, facts=facts)

    def reset(self, task: Task) -> str:
        self.running = Attempt(task.id)
        return self.problem(task.id).statement

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "CodeExpert":
        return CodeExpert(self.demonstration(self.task(self.ongoing().task_id))[0])

    def demonstration(self, task: Task) -> list[str]:
        """The reference program."""
        return [ANSWER + self.solution(task).strip("\n")]

    def solution(self, task: Task) -> str:
        """The reference program."""
        problem = self.problem(task.id)
        if not problem.solution:
            raise ConfigError(
                f"CodeEnv has no demonstrations for task {task.id}: {problem.where} has no solution, as LiveCodeBench's rows have none. "
                "Use rows of LeetCodeDataset or HumanEval, or a method without them."
            )
        return problem.solution

    def hint(self, task: Task) -> str:
        problem = self.problem(task.id)
        if problem.where and not problem.hint:
            raise no_hint(problem.where, made=False, worked=False)
        return problem.hint or super().hint(task)

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        texts = [NO_CALLS_LEFT, NO_OUTPUT, MALFORMED, PASSED, NO_PROGRAM]
        texts += [skill.text for skill in SkillBank.load("conf/skills/code")] * 3  # read in words, not in bytes
        for i in range(60 * len(self.families)):
            problem = _generated(self.families[i % len(self.families)], "train", f"corpus/{rng.random()}")
            texts += [problem.statement, f"```python\n{problem.solution}\n```", f"<answer>\n{problem.solution}</answer>"]
        return texts, PHRASES

    def _judge(self, attempt: Attempt, answer: str) -> StepResult:
        """The end of an episode; an empty answer is none."""
        problem, judged = self.problem(attempt.task_id), Judgement(Verdict.WRONG, 0.0)
        if answer.strip():
            judged = judge_program(self.runner, problem, answer, self.test_s, self.test_memory_mb << 20)
        reward = judged.share if self.reward == "share" else score(judged.passed, attempt.calls, self.reward)
        told = PASSED if judged.passed else shorten(f"{judged.verdict}: {judged.said or NO_PROGRAM}", self.output_chars)
        return StepResult(told, reward, True, judged.passed, bool(answer.strip()), self._scores(attempt, judged))

    def _scores(self, attempt: Attempt, judged: Judgement | None = None) -> dict[str, float]:
        verdict = judged.verdict if judged and judged.said else None
        return {
            "tests_passed": judged.share if judged else 0.0,
            "tool_error_share": tool_error_share(attempt),
            **{failure.value: float(failure == verdict) for failure in FAILURES},
        }

    def _generated(self, split: str, seed: str, index: int) -> CodeProblem:
        return _generated(self.families[index % len(self.families)], split, f"{seed}/{index}")

    def _file(self, path: str) -> tuple[Sequence[CodeProblem], str]:
        return file_problems(path, self.window)

    def _kept(self, split: str) -> list[int]:
        return _kept(*measured_elsewhere(self, split), self.window)


class CodeExpert(Expert):
    """Gives the reference program."""

    def __init__(self, answer: str):
        self.answer = answer

    def act(self) -> str:
        return self.answer

    def watch(self, action: str) -> None:
        """Everything that it goes by is in the problem."""


@lru_cache(maxsize=8192)
def _generated(family: str, split: str, name: str) -> CodeProblem:
    return code_generated.generate(family, split, name)


@lru_cache(maxsize=16)
def _kept(path: str, measured: tuple[str, ...], window: Window) -> list[int]:
    others = [problem.statement for other in measured for problem in file_problems(other, window)[0]]
    return distinct(path, [problem.statement for problem in file_problems(path, window)[0]], others)
