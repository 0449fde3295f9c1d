"""Files of programming problems: rows of LiveCodeBench, LeetCodeDataset or HumanEval, told apart by their columns."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdar.envs.code_checks import is_check_row, read_check_row
from sdar.envs.code_livecodebench import Window, is_livecodebench_row, read_livecodebench_row
from sdar.envs.code_problems import CodeProblem
from sdar.envs.worked_solutions import hint_of
from sdar.errors import ConfigError
from sdar.paths import how_to_fetch, resolve
from sdar.reading import excerpt, read_json, read_json_lines


@lru_cache(maxsize=16)
def file_problems(path: str, window: Window) -> tuple[tuple[CodeProblem, ...], str]:
    """The problems of a file and a digest of its content.

    Raises:
        ConfigError: the file, or a row of it, is none; the message names the row.
    """
    file = resolve(path)
    if not file.is_file():
        found = "is no file" if file.exists() else "does not exist"
        raise ConfigError(
            f"env.files names {path}, which {found}. Give the path of a JSONL or JSON file (it may end in .gz).{how_to_fetch(path)}"
        )
    rows = [(where, row) for where, row in _rows(file) if _counts(row, where, window)]
    problems = tuple(replace(_problem(row, where), hint=hint_of(row, where), where=where) for where, row in rows)
    if not problems:
        raise ConfigError(
            f"env.files: {path} holds no problem that the settings let through. Give a file with one row a problem, or fewer of "
            "env.platforms, env.difficulties, env.since and env.until."
        )
    with file.open("rb") as content:
        return problems, hashlib.file_digest(content, "sha256").hexdigest()


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    if file.name.endswith((".json", ".json.gz")):
        rows = read_json(file)
        if not isinstance(rows, list):
            raise ConfigError(
                f"{file}: {type(rows).__name__} instead of a list of rows. Write the rows into [ and ], or a line each."
            )
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))
        return
    yield from read_json_lines(file)


def _counts(row: Any, where: str, window: Window) -> bool:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {type(row).__name__} instead of an object with a problem and its tests. Correct the row.")
    return not is_livecodebench_row(row) or window.holds(row, where)


def _problem(row: dict[str, Any], where: str) -> CodeProblem:
    if is_livecodebench_row(row):
        return read_livecodebench_row(row, where)
    if is_check_row(row):
        return read_check_row(row, where)
    raise ConfigError(
        f"{where} is no programming problem that is known here: LiveCodeBench's rows have question_content, LeetCodeDataset's and "
        f"HumanEval's have prompt, test and entry_point. Its columns: {excerpt(', '.join(row), 300)}. Write the row in one of these forms."
    )
