import json
import re
import time
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sdar import reading
from sdar.errors import ConfigError, SkillBankError
from sdar.reading import (
    LimitedDecoder,
    convert,
    parse_json,
    parse_yaml,
    path_below,
    read_json,
    read_json_lines,
    read_name,
    read_yaml,
    yaml_text,
)

HOSTILE_JSON = {
    "not a number": ('{"a": NaN}', "it holds NaN"),
    "infinity": ("[Infinity]", "it holds Infinity"),
    "minus infinity": ("-Infinity", "it holds -Infinity"),
    "a number beyond double precision": ('{"a": -1e999}', "the number -1e999 is too large"),
    "an integer that no float holds": ("1" + "0" * 400, "it holds an integer of 401 digits"),
    "an integer that Python refuses": ("9" * 5000, "it holds an integer of 5000 digits"),
    "brackets": ("[" * 100_000, "nested more than 100 deep"),
    "closed brackets": ("[" * 150 + "]" * 150, "nested more than 100 deep"),
    "objects": ('{"a":' * 150 + "1" + "}" * 150, "nested more than 100 deep"),
    "UTF-16": ("[1]".encode("utf-16"), "no UTF-8 text (byte 0)"),
    "half a pair as bytes": (b'"\xed\xa0\x80"', "no UTF-8 text (byte 1)"),
    "trailing text": ("{} x", "no JSON (Extra data)"),
    "nothing": ("", "no JSON (Expecting value)"),
    "a later line": ('{\n"a" 1}', "no JSON (line 2, column 5: Expecting ':' delimiter)"),
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
@pytest.mark.parametrize("kind", [ConfigError, SkillBankError])
def test_json_that_is_no_plain_data_is_one_error_of_the_callers_kind(name, kind):
    text, reason = HOSTILE_JSON[name]
    with pytest.raises(kind) as caught:
        parse_json(text, "the answer", kind, advice="Ask again.")
    assert str(caught.value).startswith(f"the answer: {reason}") and str(caught.value).endswith(". Ask again.")
    assert len(str(caught.value)) < 200 and caught.value.__suppress_context__


def test_json_within_the_limits_is_what_python_reads():
    text = '{"a": [1, -2.5e3, true, null, "\\ud800 \\u0000"], "b": {"c": %s}}' % ("8" * 300)
    assert parse_json(text, "x") == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf[1]", "x") == [1]  # a byte order mark
    assert parse_json("[" * 100 + "]" * 100, "x")
    assert parse_json('{"a": 1, "a": 2}', "x") == {"a": 2}
    with pytest.raises(ConfigError, match="x: the name 'a' stands twice in one object"):
        parse_json('{"a": 1, "a": 2}', "x", unique=True)


def test_lines_are_read_one_by_one_and_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes('\ufeff{"a": 1}\n\n{"b": "\u2028"}\r\n[NaN]\n'.encode())
    rows = read_json_lines(file)
    assert next(rows) == (f"{file}, line 1", {"a": 1})
    assert next(rows) == (f"{file}, line 3", {"b": "\u2028"})
    with pytest.raises(ConfigError, match=r"rows.jsonl, line 4: it holds NaN.* Each line holds one JSON object"):
        next(rows)


@pytest.mark.parametrize("read", [read_json, read_yaml, lambda file, kind: list(read_json_lines(file, kind))])
def test_a_file_that_cannot_be_read_is_the_same_kind_of_error(tmp_path, read):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(SkillBankError, match=f"{path.name} cannot be read .{reason}"):
            read(path, SkillBankError)


def test_a_stream_has_the_same_limits():
    decoder = LimitedDecoder()
    assert decoder.raw_decode("[1] [2]", 0) == ([1], 3)
    for text, reason in (("[" * 100_000, "nested"), ("[" * 150 + "]" * 150, "nested"), ("[1e999]", "large"), ("[NaN]", "NaN")):
        with pytest.raises(ValueError, match=reason):
            decoder.raw_decode(text, 0)


def chain(width: int, length: int) -> str:
    """A YAML text whose aliases stand for width ** length values."""
    names = (f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]\n" for i in range(1, length))
    return "a0: &a0 [x]\n" + "".join(names)


HOSTILE_YAML = {
    "a bomb": (chain(9, 9), ": the aliases stand for more than 10000 values"),
    "a bomb of few aliases": (chain(3, 16), ": the aliases stand for more than 10000 values"),
    "a bomb of merges": (
        chain(5, 9).replace("[*", "{<<: [*").replace("]\n", "]}\n").replace("[x]}", "{x: 1}"),
        ": the aliases",
    ),
    "many aliases": ("a: &a 1\nb: [" + "*a, " * 51 + "]", ", line 2, column 205: more than 50 aliases"),
    "an alias of itself": ("model: &a {init_args: *a}", ", line 1, column 23: an alias stands for what it is in"),
    "brackets": ("[" * 5000, ", line 1, column 101: nested more than 100 deep"),
    "indentation": ("\n".join(" " * i + "a:" for i in range(150)), ": nested more than 100 deep"),
    "a name twice": ("a: 1\nb: {c: 1, c: 2}", ", line 2, column 11: the name 'c' stands here a second time"),
    "a long integer": ("a: " + "1" * 5000, ", line 1, column 4: it holds an integer of 5000 digits"),
    "a large number": ("a: 1e999", ", line 1, column 4: the number 1e999 is too large"),
    "UTF-16": ("a: 1".encode("utf-16"), ": no UTF-8 text"),
    "NUL": ("a: \0", ": the character #x0000 cannot stand in YAML"),
    "code": ("a: !!python/object/apply:os.system [ls]", ", line 1, column 4: could not determine a constructor"),
    "a date of no kind": ("a: !!timestamp x", ", line 1, column 4: it is no value of the type timestamp"),
    "an integer of no kind": ("a: !!int x", ", line 1, column 4: invalid literal"),
    "beyond Unicode": ('a: "\\UFFFFFFFF"', ": "),
    "a list as a name": ("? [a]\n: b", ", line 1, column 3: found unhashable key"),
    "two documents": ("a: 1\n---\nb: 1", ", line 2, column 1: but found another document"),
    "broken": ("a: [1", ", line 1, column 6: expected ',' or ']'"),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml_that_is_no_plain_data_is_one_short_error_with_its_place(name):
    text, reason = HOSTILE_YAML[name]
    begin = time.process_time()
    with pytest.raises(SkillBankError) as caught:
        parse_yaml(text, "bank.yaml", SkillBankError)
    assert str(caught.value).startswith("bank.yaml") and reason in str(caught.value), caught.value
    assert len(str(caught.value)) < 300 and time.process_time() - begin < 2


def test_yaml_means_what_a_reader_expects():
    text = "[2024-01-01, 2024-13-45, 1:30, 1e-5, 1.5E3, .5, 1., .inf, 1_000, 0x1F, 008, yes, ~, '1', -3, e5, +.inf, .]"
    told = ["2024-01-01", "2024-13-45", "1:30", 1e-5, 1500.0, 0.5, 1.0, float("inf"), 1000, 31, "008"]
    assert parse_yaml(text, "x") == [*told, True, None, "1", -3, "e5", float("inf"), "."]
    shared = "base: &base {lr: 1, steps: 2}\na: {<<: *base, steps: 3}\nb: *base"
    assert parse_yaml(shared, "x") == yaml.safe_load(shared)


class Row(msgspec.Struct):
    question: str
    kind: Literal["a", "b"] = "a"
    answers: list[str] = []


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn01:# -~", max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("aeno19", min_size=1, max_size=4), PLAIN, max_size=3))
def test_settings_are_read_as_they_were_written(settings):
    assert parse_yaml(yaml_text(settings), "the settings") == settings


def test_records_name_the_place_that_is_of_another_type():
    assert convert({"question": "q", "more": 1}, Row, "x") == Row("q")
    for value, reason in (
        ({"question": 1}, r"row 3: Expected `str`, got `int` - at `\$.question`. Correct it there."),
        ({"question": "q", "answers": ["a", None]}, r"got `null` - at `\$.answers\[1\]`"),
        ([], "Expected `object`, got `array`"),
        ({}, "missing required field `question`"),
        ({"question": "q", "kind": "\x1b[31m" * 1000}, r"Invalid enum value '\\x1b\[31m"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            convert(value, Row, "row 3")
        assert len(str(caught.value)) < 300 and "\x1b" not in str(caught.value)


def test_names_are_one_line_that_can_be_printed():
    for name in ("nq", "openai/gsm8k", "épreuve 日本", "pick_heat-v1.0"):
        assert read_name(name, "the family") == name
    for bad, reason in (
        ("\x1b[31m", r"U\+001B"), ("a\nb", r"U\+000A"), ("\ud800", r"U\+D800"), ("a\u202eb", r"U\+202E"),
        ("", "empty"), (" ", "empty"), (None, "NoneType"), (["u"], "list"), ("x" * 201, "201 characters"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"the family .*{reason}"):
            read_name(bad, "the family")
    for bad in ("../../escaped", "a/b", "a\\b", "..", ".", "C:x"):
        with pytest.raises(ConfigError, match="files are named after it"):
            read_name(bad, "the panel", file=True)


def test_a_path_out_of_data_stays_below_its_folder(tmp_path):
    bank, outside = tmp_path / "bank", tmp_path / "outside.md"
    (bank / "deep").mkdir(parents=True)
    outside.write_text("secret")
    (bank / "link.md").symlink_to(outside)
    (bank / "circle.md").symlink_to(bank / "circle.md")
    for name in ("a.md", "deep/b.md", "deep/../a.md", "not/there.md"):
        assert path_below(bank, name, "skill 'x'") == bank / name
    for name in ("../outside.md", str(outside), "link.md", "/etc/passwd", "deep/../../outside.md"):
        with pytest.raises(SkillBankError, match=r"skill 'x' names the file .* lies outside of"):
            path_below(bank, name, "skill 'x'", SkillBankError)
    for name in ("a\0b", "circle.md/x"):
        with pytest.raises(SkillBankError, match="which no file can be called"):
            path_below(bank, name, "skill 'x'", SkillBankError)


OURS = {
    "cli/run.py": "the settings that the parser has just printed",
    "encoding.py": "a tokenizer as the library prints it",
    "envs/alfworld.py": "answers of a process that it started",
    "envs/alfworld_server.py": "a script without sdar",
    "envs/code_calls.py": "a script without sdar",
    "envs/household.py": "a recipe of its own",
    "envs/household_official.py": "a cache of its own",
    "envs/math_verdicts.py": "a script without sdar",
    "envs/webshop.py": "a recipe of its own",
    "envs/webshop_search.py": "an index of its own",
    "sandbox/bubblewrap.py": "answers of the warden, which takes bounded text from a run",
    "sandbox/exec_child.py": "a script without sdar",
    "sandbox/fork_server.py": "a script without sdar",
    "search/index.py": "a build of its own",
    "spelling.py": "a tokenizer as the library prints it",
    "versions.py": "what pip wrote of the installation",
}
"""Modules that read JSON or YAML themselves, and what, which nobody else has written."""


def test_what_others_wrote_is_read_here_alone():
    package = Path(reading.__file__).parent
    readers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"\b(json|yaml)\.(load|loads|safe_load|full_load|unsafe_load|JSONDecoder)\(", file.read_text())
    }
    assert readers - {"reading.py"} <= set(OURS)
    writers = {file.name for file in package.rglob("*.py") if re.search(r"\byaml\.\w*dump\w*\(", file.read_text())}
    assert writers == {"reading.py"}
