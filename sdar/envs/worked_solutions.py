"""Worked solutions of problem files: GSM8K's answers behind ####, and hints."""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from sdar.envs.math_checking import last_boxed
from sdar.errors import ConfigError
from sdar.reading import excerpt

Hints = Literal["column", "solution"]
"""Where hints of a file come from: the column ``hint`` alone, or, where a row has none, the beginning of its worked solution."""

MARK = "####"
"""GSM8K's: the text before it works the answer out, the answer follows."""
_NOTE = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's notes for a calculator, ``<<48/2=24>>``: the text says the same without them."""
_STEPS = re.compile(r"\n\s*|(?<=[.!?])\s+(?=[A-Z$\\])")
"""Between two steps: a line break, or the end of a sentence."""


def behind_mark(text: str) -> tuple[str, str] | None:
    """What works the answer out, without notes, and the answer; None: there is no mark."""
    worked, mark, answer = text.rpartition(MARK)
    return (_NOTE.sub("", worked).strip(), answer.strip()) if mark else None


def hint_of(row: dict[str, Any], where: str) -> str:
    """The column ``hint`` of a row; empty: it has none.

    Raises:
        ConfigError: no text.
    """
    hint = row.get("hint")
    if hint is not None and not isinstance(hint, str):
        raise ConfigError(
            f"{where}: hint is {excerpt(hint)} instead of a text. Correct the row, or leave the hint out (null)."
        )
    return (hint or "").strip()


def beginning(worked: str) -> str:
    r"""The first half of the steps of a worked solution, without the last step and any from the first ``\boxed{}`` on; empty: there is
    no such step."""
    steps = [step for step in _STEPS.split(worked.strip()) if step.strip()]
    last = next((number for number, step in enumerate(steps) if last_boxed(step) is not None), len(steps) - 1)
    return "\n".join(steps[: min(last, (len(steps) + 1) // 2)])


def check_hints(hints: str, files: Mapping[str, str] | None) -> None:
    """Raise ConfigError for no setting of `Hints`, or one that no file is read by."""
    if hints not in get_args(Hints):
        raise ConfigError(f"env.hints is {hints!r}: hints come from {' or '.join(get_args(Hints))}. Use one of them.")
    if hints != "column" and files is None:
        raise ConfigError(
            f"env.hints is {hints!r}, which is about rows of files, but problems are generated, with hints of their own. Give env.files, "
            "or leave it out."
        )


def no_hint(where: str, made: bool, worked: bool) -> ConfigError:
    """The error of a row without a hint.

    Args:
        made: One would have been made of its solution.
        worked: It has a worked solution.
    """
    found = "nor has it a solution of several steps, to make one of" if made else "its column hint is missing or empty"
    return ConfigError(
        f"{where} has no hint, and HintView tells one of every task: {found}. Write one, leave the task out (data.leave_out), or use "
        "SolutionView" + ("; `env.hints: solution` makes hints of worked solutions." if worked and not made else ".")
    )
