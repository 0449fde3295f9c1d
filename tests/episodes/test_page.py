"""docs/episodes.md has every field with the words of its description in the code, and the names that a condition knows."""

import ast
import re
from pathlib import Path

import pytest

from sdar.episodes import schema
from sdar.episodes.values import VALUES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/episodes.md").read_text(encoding="utf-8")
JSON = {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "Any": "anything"}


def in_json(annotation: str) -> str:
    """A type, in the words of the page."""
    kind = re.sub(r"\b(str|int|float|bool|Any)\b", lambda found: JSON[found[1]], annotation.removesuffix(" | None"))
    kind = (
        re.sub(r"dict\[text, (\w+)\]", r"object of \1s", kind)
        .replace("object of anythings", "object")
        .replace("StoredTurn", "turn")
    )
    return re.sub(r"list\[([\w ]+?)( \| None)?\]", lambda found: f"list of {found[1]}s{' or null' if found[2] else ''}", kind)


def described(name: str) -> list[str]:
    """A row for each field of a class, as the page has it."""
    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    [cls] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    rows = []
    for field, text in zip(cls.body, cls.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            words = " ".join(ast.literal_eval(text.value).split())
            rows.append(f"| `{field.target.id}` | {in_json(ast.unparse(field.annotation))} | {words} |")
    return rows


@pytest.mark.parametrize("name", ["StoredEpisode", "StoredTurn"])
def test_the_page_has_every_field_as_the_code_describes_it(name: str) -> None:
    rows, lines = described(name), PAGE.splitlines()
    assert len(rows) > 20 and [row for row in rows if row not in lines] == []


def test_the_page_has_no_field_that_is_not_there_and_says_the_version() -> None:
    rows = {*described("StoredEpisode"), *described("StoredTurn")}
    fields = re.findall(r"^\| `\w+` \| [^|]* \| [^|]* \|$", PAGE, re.MULTILINE)
    assert [row for row in fields if row not in rows] == [] and f"Version {schema.VERSION}" in PAGE


def test_the_page_has_every_name_that_a_condition_knows() -> None:
    named = {*re.findall(r"`(\w+)`", PAGE)}
    assert [name for name in VALUES if name not in named] == []
