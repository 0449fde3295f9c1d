"""Rows in HumanEval's form, whose tests are a function ``check(candidate)``: HumanEval's own and LeetCodeDataset's."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from sdar.envs.code_problems import CheckTest, CodeProblem
from sdar.envs.code_published import CHECK_S
from sdar.errors import ConfigError
from sdar.reading import excerpt, read_name

FENCED = re.compile(r"```(?:python)?[ \t]*\n(.*?)```", re.DOTALL)


def is_check_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has this form."""
    return "entry_point" in row or ("test" in row and "prompt" in row)


def read_check_row(row: Mapping[str, Any], where: str) -> CodeProblem:
    """A row of HumanEval (``prompt``, ``test``, ``entry_point``, perhaps ``canonical_solution``) or of LeetCodeDataset (the same with
    ``query``, ``starter_code``, ``completion`` and ``difficulty``; its first versions have some of them in ``meta``).

    Raises:
        ConfigError: a column is missing, of another type, or no Python.
    """
    meta = row.get("meta")
    row = {**meta, **row} if isinstance(meta, dict) else row
    prompt, test, entry = (_text(row, name, where) for name in ("prompt", "test", "entry_point"))
    query = _text(row, "query", where, "")
    begun = _parsed(prompt, f"{where}: prompt")
    if not _defines(_parsed(test, f"{where}: test"), "check"):
        raise ConfigError(
            f"{where}: test defines no function check, which gets the program's function. Its text begins {excerpt(test.strip())}. Write "
            "the assertions into `def check(candidate):`."
        )
    if not isinstance(_parsed(entry, f"{where}: entry_point", "eval").body, ast.Name | ast.Attribute):
        raise ConfigError(
            f"{where}: entry_point is {excerpt(entry)}, which names no function. Write a name (two_sum) or a method (Solution().twoSum)."
        )
    if not query and not _defines(begun, entry):
        raise ConfigError(
            f"{where}: there is no query, and prompt does not define {excerpt(entry)}: nobody could know what to do. Begin the function in "
            "prompt, with its task as a docstring, as HumanEval has it, or write the task into query."
        )
    continued = _text(row, "canonical_solution", where, "")
    solution = prompt + continued if continued else _text(row, "completion", where, "")
    if solution:
        _parsed(solution, f"{where}: {'prompt and canonical_solution' if continued else 'completion'}")
    if query:
        text, starter, family = query, "", f"leetcode_{_text(row, 'difficulty', where, '').lower() or 'unrated'}"
        if not FENCED.search(query):
            starter = _text(row, "starter_code", where, "")
    else:
        text, starter, family = f"Complete the function {entry}.", prompt, "humaneval"
    return CodeProblem(
        text=text,
        family=read_name(family, f"{where}: difficulty"),
        tests=(CheckTest(test),),
        entry=entry,
        preamble=prompt,
        starter=starter,
        solution=solution,
        time_s=CHECK_S,
    )


def _text(row: Mapping[str, Any], name: str, where: str, default: str | None = None) -> str:
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (default is None and not value.strip()):
        told = "empty" if isinstance(value, str) else "missing" if value is None else type(value).__name__
        raise ConfigError(
            f"{where}: {name} is {told}; it has to be a text. Columns of the row: {excerpt(', '.join(row), 300)}. Correct the row, or "
            "leave it out."
        )
    return value


def _parsed(source: str, what: str, mode: str = "exec") -> Any:
    try:
        return ast.parse(source.strip() if mode == "eval" else source, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{what} is no Python ({getattr(error, 'msg', error)}), so that no program could pass. Correct the row."
        ) from None


def _defines(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
