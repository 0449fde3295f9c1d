"""Files of programming problems: three benchmarks' rows are read, and broken ones refused with file, row and reason."""

import base64
import gzip
import json
import pickle
import zlib

import pytest

from sdar.envs import code_packed
from sdar.envs.code_files import file_problems
from sdar.envs.code_livecodebench import Window
from sdar.envs.code_packed import pickled_text, unpack
from sdar.envs.code_problems import CallTest, CheckTest, StdinTest
from sdar.errors import ConfigError


def packed(tests, protocol=4):
    """As LiveCodeBench packs a row's private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests), protocol))).decode()


def cases_of(kind, *pairs):
    return [{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs]


READING = {
    "question_title": "Double", "question_content": "Double the number.\n\nSample: 2 gives 4.", "platform": "atcoder",
    "question_id": "abc1_a", "contest_id": "abc1", "contest_date": "2024-08-10T00:00:00", "starter_code": "", "difficulty": "easy",
    "public_test_cases": json.dumps(cases_of("stdin", ("2", "4"), ("777", "1554"))),
    "private_test_cases": packed(cases_of("stdin", ("3\n", "6\n"), ("5\n", "10\n"))), "metadata": "{}",
}  # fmt: skip
CALLING = READING | {
    "question_content": "Add two numbers.", "platform": "leetcode", "difficulty": "hard", "contest_date": "2023-05-01T00:00:00",
    "starter_code": "class Solution:\n    def add(self, a: int, b: int) -> int:\n        ",
    "public_test_cases": json.dumps(cases_of("functional", ("1\n2", "3"))),
    "private_test_cases": json.dumps(cases_of("functional", ("1\n-1", "0"))), "metadata": '{"func_name": "add"}',
}  # fmt: skip
LEETCODE = {
    "task_id": "add-two", "difficulty": "Medium", "tags": ["Math"], "prompt": "from typing import *\n", "starter_code": "class Solution:",
    "entry_point": "Solution().add", "test": "def check(candidate):\n    assert candidate(a = 1, b = 2) == 3\n",
    "completion": "class Solution:\n    def add(self, a, b):\n        return a + b\n", "query": "Add.\n```python\nclass Solution:\n```",
    "response": "...", "input_output": [{"input": "a = 1, b = 2", "output": "3"}],
}  # fmt: skip
HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": 'def double(x: int) -> int:\n    """ Twice x. """\n', "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "double",
}  # fmt: skip


def write(folder, *rows, name="p.jsonl"):
    text = json.dumps(list(rows)) if ".json" in name and ".jsonl" not in name else "\n".join(map(json.dumps, rows))
    data = text.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(folder / name)


def problems(path, **window):
    return file_problems.__wrapped__(path, Window(**window))[0]


def test_rows_of_livecodebench_are_read(tmp_path):
    reading, calling = problems(write(tmp_path, READING, CALLING))
    assert reading.all_tests() == (
        StdinTest("2", "4"), StdinTest("777", "1554"), StdinTest("3\n", "6\n"), StdinTest("5\n", "10\n")
    )  # fmt: skip
    assert (reading.family, reading.entry, reading.time_s, reading.solution) == ("livecodebench_easy", "", 6.0, "")
    assert reading.examples == (("777", "1554"),)  # the text tells the other
    assert "6\n" not in reading.statement and reading.statement.endswith("writes the answer to standard output.")
    assert calling.all_tests() == (CallTest("1\n2", "3"), CallTest("1\n-1", "0"))
    assert (calling.family, calling.entry) == ("livecodebench_hard", "Solution().add")
    assert (
        "Starter code:\n```python\nclass Solution:" in calling.statement
        and "Arguments:\n1\n2\nReturns:\n3" in calling.statement
    )
    assert "from typing import *" in calling.preamble


def test_rows_with_a_check_are_read(tmp_path):
    leet, human = problems(write(tmp_path, LEETCODE, HUMANEVAL, name="rows.json.gz"))
    assert (leet.family, leet.entry, leet.time_s, leet.preamble) == (
        "leetcode_medium",
        "Solution().add",
        3.0,
        LEETCODE["prompt"],
    )
    assert leet.statement == LEETCODE["query"] and leet.solution == LEETCODE["completion"]
    assert leet.tests == (CheckTest(LEETCODE["test"]),)
    assert (human.family, human.entry) == ("humaneval", "double")
    assert (
        human.solution == HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"]
        and HUMANEVAL["prompt"].strip() in human.statement
    )
    assert "assert" not in human.statement + leet.statement


def test_rows_of_the_first_leetcodedataset_are_read(tmp_path):
    inside = {name: LEETCODE[name] for name in ("query", "difficulty", "response")} | {"lang_code": "class Solution:"}
    old = {name: LEETCODE[name] for name in ("task_id", "prompt", "entry_point", "test", "completion")} | {"meta": inside}
    assert problems(write(tmp_path, old, name="old.jsonl")) == problems(write(tmp_path, LEETCODE))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_files_may_be_lines_or_a_list_and_compressed(tmp_path, name):
    assert [p.family for p in problems(write(tmp_path, READING, HUMANEVAL, name=name))] == ["livecodebench_easy", "humaneval"]


@pytest.mark.parametrize(
    ("window", "count"),
    [
        ({}, 3),
        ({"platforms": ["atcoder"]}, 2),
        ({"difficulties": ["hard"]}, 2),
        ({"since": "2024-08-10"}, 2),
        ({"since": "2024-08-11"}, 1),
        ({"until": "2024-08-10"}, 3),
        ({"until": "2023-12-31", "platforms": ["leetcode"]}, 2),
        ({"since": "2023-05-01", "until": "2023-05-01"}, 2),
    ],
)
def test_a_window_chooses_among_rows_of_livecodebench(tmp_path, window, count):
    assert len(problems(write(tmp_path, READING, CALLING, HUMANEVAL), **window)) == count


@pytest.mark.parametrize(
    ("window", "match"),
    [
        ({"platforms": ["topcoder"]}, r"env\.platforms names 'topcoder': it holds leetcode, codeforces, atcoder"),
        ({"difficulties": ["Easy"]}, r"env\.difficulties names 'Easy': it holds easy, medium, hard"),
        ({"since": "August"}, r"env\.since is 'August': a day is written as 2024-08-01"),
        (
            {"since": "2024-08-02", "until": "2024-08-01"},
            r"env\.since is 2024-08-02 and env\.until is 2024-08-01: no day lies between",
        ),
    ],
)
def test_a_window_that_cannot_be_is_refused(window, match):
    with pytest.raises(ConfigError, match=match):
        Window(**window)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


BROKEN = {
    "no object": ([5], r"list instead of an object"),
    "no form": ({"text": "x"}, r"is no programming problem that is known here: .* Its columns: 'text'\. Write the row"),
    "column missing": (without(READING, "starter_code"), r"starter_code is missing; it has to be a text, .* Correct the row"),
    "column of another type": (READING | {"metadata": {}}, r"metadata is dict; it has to be a text"),
    "no question": (READING | {"question_content": " "}, r"question_content is empty: .* leave it out"),
    "metadata": (READING | {"metadata": "{"}, r"metadata: no JSON"),
    "metadata is a list": (READING | {"metadata": "[]"}, r"metadata: Expected `object`, got `array`"),
    "function": (READING | {"metadata": '{"func_name": "a b"}'}, r"metadata\.func_name is 'a b', which is no name of a function"),
    "platform": (READING | {"platform": "x"}, r"platform is 'x'; it is one of leetcode, codeforces, atcoder"),
    "difficulty": (READING | {"difficulty": None}, r"difficulty is missing; it has to be a text"),
    "tests no JSON": (READING | {"public_test_cases": "[{"}, r"public_test_cases: they are: no JSON"),
    "tests no list": (READING | {"public_test_cases": '{"a": 1}'}, r"public_test_cases: they are: Expected `array`, got `object`"),
    "test without output": (
        READING | {"public_test_cases": '[{"input": "1", "testtype": "stdin"}]'},
        r"public_test_cases: test 1 has no output",
    ),
    "test of the other kind": (
        READING | {"private_test_cases": CALLING["private_test_cases"]},
        r"private_test_cases: test 1 is of the type 'functional', but metadata names no function: it has to be 'stdin'",
    ),
    "arguments no JSON": (
        CALLING | {"private_test_cases": json.dumps(cases_of("functional", ("1\nx", "3")))},
        r"private_test_cases: test 1: no JSON",
    ),
    "no tests": (READING | {"public_test_cases": "[]", "private_test_cases": "[]"}, r"there is no test, public or private"),
    "no base64": (READING | {"private_test_cases": "!!"}, r"private_test_cases: no base64 .*nothing else is read"),
    "no zlib": (READING | {"private_test_cases": "aGFsbG8="}, r"private_test_cases: no zlib stream"),
    "another pickle": (
        READING | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(print))).decode()},
        r"private_test_cases: a pickle of something else than one string",
    ),
    "prompt missing": (without(HUMANEVAL, "prompt"), r"prompt is missing; it has to be a text\. Columns of the row"),
    "prompt no Python": (HUMANEVAL | {"prompt": "def f(:"}, r"prompt is no Python \(invalid syntax\), so that no program could pass"),
    "test empty": (LEETCODE | {"test": ""}, r"test is empty; it has to be a text"),
    "test no Python": (HUMANEVAL | {"test": "def check("}, r"test is no Python \('\(' was never closed\)"),
    "no check": (HUMANEVAL | {"test": "assert 1"}, r"test defines no function check, .* Its text begins 'assert 1'"),
    "no task": (LEETCODE | {"query": None}, r"there is no query, and prompt does not define 'Solution\(\)\.add': .* into query"),
    "entry point": (HUMANEVAL | {"entry_point": "f()"}, r"entry_point is 'f\(\)', which names no function"),
    "entry point no Python": (HUMANEVAL | {"entry_point": "a b"}, r"entry_point is no Python"),
    "solution no Python": (HUMANEVAL | {"canonical_solution": "    return ("}, r"prompt and canonical_solution is no Python"),
    "solution of another type": (LEETCODE | {"completion": 5}, r"completion is int; it has to be a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_refused_by_file_and_row(name, tmp_path):
    row, match = BROKEN[name]
    path = write(tmp_path, HUMANEVAL, row)
    with pytest.raises(ConfigError, match=match) as told:
        problems(path)
    assert str(told.value).startswith(f"{path}, line 2") and len(str(told.value)) < 900


def test_a_day_that_is_none_matters_only_where_days_do(tmp_path):
    path = write(tmp_path, READING | {"contest_date": "soon"})
    assert len(problems(path)) == 1
    with pytest.raises(ConfigError, match=r"line 1: contest_date is 'soon', which is no day .* take these out"):
        problems(path, since="2024-01-01")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", b"", r"holds no problem that the settings let through"),
        ("a.json", b'{"a": 1}', r"dict instead of a list of rows"),
        ("a.jsonl.gz", b"no gzip", r"cannot be read \(Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-9], r"cannot be read \(Compressed file ended"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        problems(str(tmp_path / name))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"env\.files names /no/such, which does not exist"):
        problems("/no/such")
    with pytest.raises(ConfigError, match=r"which is no file"):
        problems(str(tmp_path))


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("text", ["", "é\ud800\x00", "x" * 300, "y" * 200_000])
def test_a_packed_string_is_read(protocol, text):
    data = pickle.dumps(text, protocol)
    assert pickled_text(data) == text
    assert unpack(base64.b64encode(zlib.compress(data)).decode()) == text


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Evil()),
        pickle.dumps("x")[:-1] + pickle.dumps(Evil()),
        pickle.dumps("x") + b".",
        pickle.dumps("x")[:-1],
        pickle.dumps("x" * 300)[:40],
        pickle.dumps(["x"]),
        pickle.dumps(b"x"),
        pickle.dumps(None),
        pickle.dumps("x", 0),
        b"X\xff\xff\xff\xffabc.",
        b"\x8d" + b"\xff" * 8 + b"abc.",
        b"",
        b".",
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_never_run(data):
    with pytest.raises(ValueError, match=r"a pickle (of something else than one string|that is cut)"):
        pickled_text(data)


def test_a_text_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(code_packed, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes when unpacked"):
        unpack(base64.b64encode(zlib.compress(bytes(10**6))).decode())
    stream = zlib.compress(pickle.dumps("x" * 50))
    for data in (stream[:-3], stream + b"more"):
        with pytest.raises(ValueError, match="a zlib stream that is cut, or that something follows"):
            unpack(base64.b64encode(data).decode())
