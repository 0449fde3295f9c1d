"""Whether a program's output is the expected one, as LiveCodeBench's evaluation has it."""

from decimal import Decimal, InvalidOperation
from typing import Any


def same_output(expected: str, printed: str) -> bool:
    """Whether two outputs agree line by line, white space at the ends of the lines and of the whole left out: as text, or else as
    numbers, exactly (``1.0`` is ``1``, ``0.33`` is not ``0.333``)."""
    ours, theirs = _lines(expected), _lines(printed)
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def same_value(expected: Any, returned: Any) -> bool:
    """Whether a returned value equals the expected one, which was JSON; a tuple counts as the list of its items."""
    try:
        return bool((list(returned) if isinstance(returned, tuple) else returned) == expected)
    except RecursionError:
        return False


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    words = ours.split(), theirs.split()
    if len(words[0]) != len(words[1]):
        return False
    try:
        return [Decimal(word) for word in words[0]] == [Decimal(word) for word in words[1]]
    except (InvalidOperation, ValueError):
        return False
