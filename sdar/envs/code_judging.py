"""Judges a program in the sandbox: each test with limits of its own, and what is wrong told apart."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from sdar.envs import code_calls
from sdar.envs.code_comparison import same_output, same_value
from sdar.envs.code_problems import CallTest, CheckTest, CodeProblem, StdinTest, Test
from sdar.errors import EnvironmentFault
from sdar.reading import parse_json
from sdar.sandbox.base import CodeRunner, Limits, Program, Result, RunStatus

ROUNDS = 5
"""How often tests may ask for further calls that depend on what earlier ones returned."""
ANSWERS = 8 << 20
"""Bytes that the answers to calls may take."""
NO_ANSWER = "it gave no answer that can be read"
LIBRARY = (
    "import sys, types\nsdar_calls = types.ModuleType('sdar_calls')\nsys.modules['sdar_calls'] = sdar_calls\n"
    f"exec({Path(code_calls.__file__).read_text(encoding='utf-8')!r}, sdar_calls.__dict__)\ndel sdar_calls, sys, types\n"
)
"""A cell that makes `code_calls` known in the sandbox."""
BEGIN = "import sdar_calls\nsdar_calls.begin({})\ndel sdar_calls\n"


class Verdict(StrEnum):
    """What came of a program."""

    PASSED = "passed"
    WRONG = "wrong_answer"
    COMPILE = "compile_error"
    RAISED = "runtime_error"
    """It raised, or left with a status other than 0."""
    TIMEOUT = "time_out"
    MEMORY = "out_of_memory"
    OUTPUT = "too_much_output"
    CRASH = "crash"
    """The process was killed by a signal, or for too many threads."""


ENDS = {
    RunStatus.ERROR: Verdict.RAISED,
    RunStatus.SYNTAX: Verdict.COMPILE,
    RunStatus.TIMEOUT: Verdict.TIMEOUT,
    RunStatus.MEMORY: Verdict.MEMORY,
    RunStatus.OUTPUT: Verdict.OUTPUT,
    RunStatus.KILLED: Verdict.CRASH,
    RunStatus.REFUSED: Verdict.COMPILE,
}
HOPELESS = (Verdict.COMPILE, Verdict.TIMEOUT)
"""After these the tests that are left are not run: they would end alike, each after its full time."""


@dataclass(frozen=True)
class Judgement:
    """A program's verdict: that of the first test that it did not pass."""

    verdict: Verdict
    share: float
    """Of the tests that it passed; of assertions, where one test has many."""
    said: str = ""
    """The first failure, in a few words."""

    @property
    def passed(self) -> bool:
        return self.verdict == Verdict.PASSED


def judge_program(runner: CodeRunner, problem: CodeProblem, code: str, time_s: float | None, memory_bytes: int) -> Judgement:
    """Run a program on a problem's tests.

    Args:
        time_s: Seconds on the clock for each test; None: as many as the problem's benchmark gives.
        memory_bytes: Memory for each test.

    Raises:
        EnvironmentFault: the sandbox is down, or the tests themselves cannot be run.
    """
    seconds = problem.time_s if time_s is None else time_s
    limits = replace(runner.limits, wall_s=seconds, cpu_s=math.ceil(seconds) + 1, memory_bytes=memory_bytes)
    tests, judged, share = problem.all_tests(), Judgement(Verdict.PASSED, 1.0), 0.0
    for number, one in enumerate(_each(runner, problem, tests, code, limits), 1):
        share += one.share / len(tests)
        if judged.passed and not one.passed:
            judged = replace(one, said=f"test {number} of {len(tests)}: {one.said}")
        if one.verdict in HOPELESS:
            break
    return replace(judged, share=1.0 if judged.passed else min(share, 1.0))


def _each(runner: CodeRunner, problem: CodeProblem, tests: Sequence[Test], code: str, limits: Limits) -> Iterator[Judgement]:
    """The judgement on each test, as they are asked for."""
    if calls := [test for test in tests if isinstance(test, CallTest)]:
        yield from _called(runner, problem, calls, code, limits)
    for test in tests:
        if isinstance(test, StdinTest):
            few = replace(limits, output_bytes=(1 << 16) + 4 * len(test.expected))
            result = runner.execute(Program((problem.preamble, code), show=False, stdin=test.stdin), few)
            yield _ended(result) or _compared(same_output(test.expected, result.stdout), test.expected, result.stdout)
        elif isinstance(test, CheckTest):
            yield _checked(runner, problem, test, code, limits)


def _called(
    runner: CodeRunner, problem: CodeProblem, tests: Sequence[CallTest], code: str, limits: Limits
) -> Iterator[Judgement]:
    """All calls are made in one process, each within the time of a test, as the benchmark makes them."""
    arguments = [[parse_json(line, "argument", ValueError) for line in test.arguments.split("\n")] for test in tests]
    calls = [json.dumps(code_calls.encode([values, {}])) for values in arguments]
    whole = replace(limits, wall_s=limits.wall_s * len(tests), cpu_s=limits.cpu_s * len(tests))
    answers, result = _answers(runner, problem, code, calls, whole, limits.wall_s)
    ended = _ended(result)
    for test, answer in zip(tests, answers, strict=True):
        if "returned" not in answer:
            raised = Judgement(Verdict.RAISED, 0.0, str(answer.get("raised") or NO_ANSWER)[:300])
            yield raised if answer else ended or raised
            continue
        try:
            returned = code_calls.decode(answer["returned"])
        except Exception:  # whatever a program may have written
            yield Judgement(Verdict.WRONG, 0.0, "it returned what is no plain data")
            continue
        wanted = parse_json(test.expected, "expected", ValueError)
        yield _compared(same_value(wanted, returned), test.expected, repr(returned))


def _checked(runner: CodeRunner, problem: CodeProblem, test: CheckTest, code: str, limits: Limits) -> Judgement:
    """The program answers the calls that the tests make, elsewhere, until they ask for no others."""
    known: dict[str, Any] = {}
    said, ended = _first_round(runner, problem, test.source), None
    for _ in range(ROUNDS):
        answers, result = _answers(runner, problem, code, said["asked"], limits)
        known |= dict(zip(said["asked"], answers, strict=True))
        ended = _ended(result)
        if ended and ended.verdict == Verdict.COMPILE:
            return ended
        said = _tested(runner, problem, test.source, known) or {**said, "failed": 1, "first": NO_ANSWER}
        if ended or not said["asked"]:
            break
    share = said["passed"] / max(1, said["passed"] + said["failed"])
    if ended:
        return replace(ended, share=min(share, 0.99))
    if said["failed"] or said["asked"] or not said["passed"]:
        return Judgement(Verdict.RAISED if said["raised"] else Verdict.WRONG, share, said["first"] or "no assertion holds")
    return Judgement(Verdict.PASSED, 1.0)


MOST_KEPT = 4096
_asked: dict[tuple[str, str], dict[str, Any]] = {}


def _first_round(runner: CodeRunner, problem: CodeProblem, source: str) -> dict[str, Any]:
    """What the tests ask before they know anything: the same for every program."""
    key = (problem.preamble, source)
    if key not in _asked:
        said = _tested(runner, problem, source, {})
        if said is None or not said["asked"]:
            raise EnvironmentFault(
                f"the tests of a problem cannot be run: they make no call ({source.strip()[:200]!r}). Nothing is known about the program. "
                "Look at the row, or take it out of the file."
            )
        if len(_asked) >= MOST_KEPT:
            _asked.clear()
        _asked[key] = said
    return _asked[key]


def _tested(runner: CodeRunner, problem: CodeProblem, source: str, known: dict[str, Any]) -> dict[str, Any] | None:
    """What `code_calls.check` says; None where it says nothing."""
    cells = (LIBRARY, problem.preamble, f"import sdar_calls\nsdar_calls.check({source!r}, {problem.entry!r})")
    limits = replace(runner.limits, output_bytes=ANSWERS)
    result = runner.execute(Program(cells, show=False, stdin=json.dumps(known)), limits)
    try:
        return parse_json(result.stdout.strip().rpartition("\n")[2], "verdict", ValueError)
    except ValueError:
        return None


def _answers(
    runner: CodeRunner, problem: CodeProblem, code: str, calls: Sequence[str], limits: Limits, seconds: float = 0
) -> tuple[list[dict[str, Any]], Result]:
    """What the program answers to each call, of which each may take some seconds (0: as many as all of them), and how it ended; a
    call without an answer has an empty one."""
    cells = (LIBRARY, problem.preamble, BEGIN.format(seconds), f"{code}\n\nimport sdar_calls\nsdar_calls.answer()")
    asked = json.dumps({"entry": problem.entry, "calls": calls, "seconds": seconds})
    result = runner.execute(Program(cells, show=False, stdin=asked), replace(limits, output_bytes=ANSWERS))
    lines = result.stdout.rpartition(f"{code_calls.MARK}\n")[2].splitlines() if code_calls.MARK in result.stdout else []
    told = [_told(line) for line in lines[: len(calls)]]
    return [*told, *({} for _ in range(len(calls) - len(told)))], result


def _told(line: str) -> dict[str, Any]:
    """A line that a program may have written itself."""
    try:
        said = parse_json(line, "answer", ValueError)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _ended(result: Result) -> Judgement | None:
    """The verdict of a run that did not end well."""
    if result.status == RunStatus.OK:
        return None
    if result.exit_status == code_calls.LATE:
        return Judgement(Verdict.TIMEOUT, 0.0, "wall")
    lines = result.stderr.strip().splitlines()
    return Judgement(ENDS[result.status], 0.0, lines[-1][:300] if lines else str(result.layer or result.status))


def _compared(same: bool, expected: str, got: str) -> Judgement:
    if same:
        return Judgement(Verdict.PASSED, 1.0)
    return Judgement(Verdict.WRONG, 0.0, f"expected {expected.strip()[:100]!r}, not {got.strip()[:100]!r}")
