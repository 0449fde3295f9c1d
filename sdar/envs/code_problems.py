"""What a programming problem is: a text, tests that stay hidden, perhaps a solution."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sdar.envs.code_packed import unpack
from sdar.envs.code_published import CONTEST_S, RECURSION
from sdar.reading import convert, parse_json

IMPORTED = (
    "string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, operator, json, "
    "builtins, typing"
)
"""Modules whose names a contest's program finds without importing them, in the order of LiveCodeBench's evaluation."""
CONTEST = (
    "".join(f"from {name} import *\n" for name in IMPORTED.split(", "))
    + f"import {IMPORTED}, io, sys\nsys.setrecursionlimit({RECURSION})\n"
)


@dataclass(frozen=True)
class StdinTest:
    """What the program reads and what it has to print."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class CallTest:
    """Arguments of the function, a line of JSON each, and what it has to return, as JSON."""

    arguments: str
    expected: str


@dataclass(frozen=True)
class CheckTest:
    """Python that defines ``check(candidate)``: assertions on what calls return."""

    source: str


Test = StdinTest | CallTest | CheckTest


@dataclass(frozen=True)
class CodeProblem:
    """A task whose answer is a Python program.

    Args:
        text: The task in words.
        family: What kind of problem it is.
        tests: What the program has to pass, beside those that are `packed`.
        packed: Further tests in LiveCodeBench's form, as the file has them: they may be long, so they are read when they are needed.
        entry: An expression for the function that is called; empty: the program reads standard input.
        preamble: Python that runs before the program.
        starter: Code that the program shall begin with or complete.
        examples: Inputs and outputs that are told, where the text does not tell them.
        solution: A program that passes; empty where nobody wrote one.
        time_s: Seconds that the benchmark gives for a test.
        hint: Less than the solution; empty where nobody wrote it.
        where: File and row, for errors.
    """

    text: str
    family: str
    tests: tuple[Test, ...] = ()
    packed: str = ""
    entry: str = ""
    preamble: str = ""
    starter: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    solution: str = ""
    time_s: float = CONTEST_S
    hint: str = ""
    where: str = field(default="", compare=False)

    @property
    def statement(self) -> str:
        """What a model is told: the text, the code to begin with, examples, and where input and output are."""
        parts = [self.text.strip()]
        if self.starter.strip():
            parts.append(f"Starter code:\n```python\n{self.starter.strip()}\n```")
        for number, (given, wanted) in enumerate(self.examples, 1):
            ends = ("Arguments", "Returns") if self.entry else ("Input", "Output")
            parts.append(f"Example {number}\n{ends[0]}:\n{given.strip()}\n{ends[1]}:\n{wanted.strip()}")
        if not self.entry:
            parts.append("The program reads standard input and writes the answer to standard output.")
        elif not self.starter.strip() and "```" not in self.text:  # else the text shows what is to be written
            parts.append(f"The program defines {self.entry}; it is called, and reads no input.")
        return "\n\n".join(parts)

    def all_tests(self) -> tuple[Test, ...]:
        """The packed ones read."""
        return (*self.tests, *packed_tests(self.packed, bool(self.entry))) if self.packed else self.tests


@lru_cache(maxsize=16)
def packed_tests(column: str, calls: bool) -> tuple[Test, ...]:
    """Tests of a row of LiveCodeBench: a JSON list, as it is or packed (`unpack`).

    Raises:
        ValueError: they cannot be read, or are of the other kind.
    """
    text = column if column.lstrip()[:1] in ("[", "{") else unpack(column)
    rows = convert(
        parse_json(text, "they are", ValueError, advice=""), list[dict[str, str]], "they are", ValueError, advice=""
    )
    return tuple(_test(row, number, calls) for number, row in enumerate(rows, 1))


def _test(row: dict[str, str], number: int, calls: bool) -> Test:
    if missing := [name for name in ("input", "output", "testtype") if name not in row]:
        raise ValueError(f"test {number} has no {missing[0]}")
    wanted = "functional" if calls else "stdin"
    if row["testtype"] != wanted:
        why = "names a function" if calls else "names no function"
        raise ValueError(f"test {number} is of the type {row['testtype'][:40]!r}, but metadata {why}: it has to be {wanted!r}")
    if calls:
        for line in (*row["input"].split("\n"), row["output"]):
            parse_json(line, f"test {number}", ValueError, advice="")
    return (CallTest if calls else StdinTest)(row["input"], row["output"])


def shown(examples: Sequence[Test], text: str) -> tuple[tuple[str, str], ...]:
    """Inputs and outputs of tests that everybody may see, without those that the text tells itself."""
    pairs = [
        (test.stdin, test.expected) if isinstance(test, StdinTest) else (test.arguments, test.expected)
        for test in examples
        if not isinstance(test, CheckTest)
    ]
    plain = " ".join(text.split())
    return tuple(pair for pair in pairs if not all(" ".join(part.split()) in plain for part in pair))
