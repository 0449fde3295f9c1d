"""Whether an answer is right: equal as text or number, else by `math-verify` in a process that may be killed."""

import contextlib
import importlib.util
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdar.errors import ConfigError, EnvironmentFault
from sdar.versions import install

SCRIPT = str(Path(__file__).with_name("math_verdicts.py"))

LONGEST_ANSWER = 1000
"""Characters; a longer answer is wrong unless it is the gold answer letter for letter."""
DEADLINE_S = 5.0
"""Seconds that one comparison may take; after them the answer is wrong."""
START_S = 60.0
EXPONENT = 64
"""Largest exponent of ten that is read as a number; beyond it exact arithmetic would be costly."""
PRINTED = 12
"""Decimals from which on a number is taken for one that a computer printed: it may differ from the gold one by rounding."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname)\{([A-Za-z])\}")
"""``\\mathrm{e}``: math-verify stops reading there."""
_LITERAL = re.compile(r"\\[lcdv]?dots|\.\.\.|\d{4}-\d{2}-\d{2}")
"""Sequences and dates, of which math-verify reads a part: right letter for letter only."""
_UNIT = re.compile(r"\d(?:\\(?:text|mathrm)\{)?([kcmd]?m|[km]?g|[kcmd]?[lL]|s|min|h)\}?(\^[23])?$")
_BOXED, _BRACE = re.compile(r"\\f?boxed\s*\{"), re.compile("[{}]")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,2})?")


def boxed_span(text: str) -> tuple[int, int] | None:
    """Where the content of the last complete ``\\boxed{...}`` stands, its braces nested, without space around it."""
    boxes = {match.end() - 1 for match in _BOXED.finditer(text)}
    opened: list[int] = []
    last: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        place = brace.start()
        if text[place - 1 : place] == "\\":
            continue
        if text[place] == "{":
            opened.append(place)
        elif opened and (start := opened.pop()) in boxes and (last is None or start > last[0]):
            last = start, place
    if last is None:
        return None
    content = text[last[0] + 1 : last[1]]
    start = last[0] + 1 + len(content) - len(content.lstrip())
    return start, max(start, last[0] + 1 + len(content.rstrip()))


def last_boxed(text: str) -> str | None:
    """The content of the last complete ``\\boxed{...}``; None without one."""
    span = boxed_span(text)
    return None if span is None else text[slice(*span)]


def is_correct(gold: str, answer: str, deadline_s: float = DEADLINE_S, python: str | None = None) -> bool:
    """Whether `answer` means the same as `gold`. Any text may be given; a failure to read it is a wrong answer.

    Texts that are the same but for space and decoration, and plain numbers, are compared here: nearly all answers of contests.
    Everything else goes to math-verify, whose own time limits need the main thread and are not used.

    Args:
        python: Interpreter that has math-verify; by default this one.

    Raises:
        ConfigError: math-verify is needed and not installed.
        EnvironmentFault: its process does not start.
    """
    ours, theirs = plain(gold), plain(answer)
    if ours == theirs:
        return bool(ours)
    if not theirs or len(answer) > LONGEST_ANSWER:
        return False
    left, right = number(ours), number(theirs)
    if left is not None and right is not None:
        return left == right or (max(map(_decimals, (ours, theirs))) >= PRINTED and math.isclose(left, right, rel_tol=1e-12))
    if any(map(_LITERAL.search, (ours, theirs))) or _units_differ(ours, theirs):
        return False
    return _checker(python).verify(_LETTER.sub(r"\1", gold), _LETTER.sub(r"\1", answer), deadline_s)


def plain(text: str) -> str:
    """Without space, dollar signs, a closing period, size commands and commas between thousands; ``\\dfrac`` is ``\\frac``.

    A comma is one between thousands where no space follows it and no bracket stands anywhere: ``2, 100`` are two numbers, and so may be
    ``(1,200)``. Space between two digits stays: ``1 2/3`` is not ``12/3``.
    """
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:| )", "", text.strip())
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("$", "").replace("{,}", ",")
    if not re.search(r"[(\[]|\\\{", text):
        text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", " ", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).rstrip(".")


def _decimals(text: str) -> int:
    return len(text.partition(".")[2].partition("e")[0])


def _units_differ(gold: str, answer: str) -> bool:
    """Both end in the sign of a unit, and not in the same: math-verify leaves units out."""
    one, other = (_UNIT.search(text) for text in (gold, answer))
    return one is not None and other is not None and one.groups() != other.groups()


def number(text: str) -> Fraction | None:
    """An integer, a decimal or a fraction of them, as an exact number; None for anything else."""
    frac = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    parts = [frac[1] + frac[2], frac[3]] if frac else text.split("/")
    if len(parts) > 2 or not all(NUMBER.fullmatch(part) and len(part) <= 400 for part in parts):
        return None
    values = []
    for part in parts:
        exponent = re.search(r"e([+-]?\d+)", part)
        if exponent and abs(int(exponent[1])) > EXPONENT:
            return None
        values.append(Fraction(part))
    if len(values) == 1:
        return values[0]
    return values[0] / values[1] if values[1] else None


def check(python: str | None = None) -> None:
    """Raise now what `is_correct` would raise, or get wrong, at the first answer that is no plain number."""
    if not _checker(python).verify("x + 1", "1 + x", START_S):
        raise EnvironmentFault(
            "math-verify does not find x + 1 and 1 + x equal: answers other than plain numbers would all be wrong. Install it anew "
            f"({install('math')})."
        )


class _Checker:
    """The process of `math_verdicts`, replaced when it takes too long or dies."""

    def __init__(self, python: str | None = None) -> None:
        self.python = python or sys.executable
        self.lock = threading.Lock()
        self.process: subprocess.Popen | None = None

    def verify(self, gold: str, answer: str, deadline_s: float) -> bool:
        with self.lock:
            if self.process is None:
                self.start()
            return self.ask(json.dumps([gold, answer]).encode() + b"\n", deadline_s) == b"true\n"

    def start(self) -> None:
        if self.python == sys.executable and importlib.util.find_spec("math_verify") is None:
            raise ConfigError(
                "math-verify is not installed: answers other than plain numbers are compared with it. Install it "
                f"({install('math')})."
            )
        pipe = subprocess.PIPE  # -P: this folder holds names of other packages
        try:
            self.process = subprocess.Popen(
                [self.python, "-P", SCRIPT], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as error:
            raise ConfigError(
                f"env.verify_python is {self.python!r}, which cannot be started ({error}): give the path of an interpreter that has "
                "math-verify."
            ) from error
        if self.ask(b"", START_S) is None:
            raise EnvironmentFault(
                f"the process that asks math-verify did not start within {START_S:.0f} s: `{self.python} -c 'import "
                "math_verify'` says why, unless this machine is overloaded."
            )

    def ask(self, question: bytes, deadline_s: float) -> bytes | None:
        """The line that answers. None when there is none in time, or at all (out of memory or stack): without it, also when we are
        interrupted, the process is stopped, for a later line would answer another question."""
        process: Any = self.process  # its pipes are there
        said = None
        try:
            with contextlib.suppress(OSError):
                process.stdin.write(question)
            poll = select.poll()
            poll.register(process.stdout, select.POLLIN)
            if poll.poll(1000 * deadline_s):
                said = process.stdout.readline() or None
            return said
        finally:
            if said is None:
                self.stop()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


@lru_cache(maxsize=8)
def _checker_of(pid: int, python: str | None) -> _Checker:
    return _Checker(python)


def _checker(python: str | None = None) -> _Checker:
    return _checker_of(os.getpid(), python)
