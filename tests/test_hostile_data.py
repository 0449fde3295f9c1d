"""One good record of every format of other people, damaged in many ways: it is read, or told in one short message."""

import copy
import itertools
import json
import random
import time
from pathlib import Path

import pytest

from sdar.curricula import BackToFront
from sdar.data.conversations import read_conversations
from sdar.data.panels import Panel
from sdar.envs import code_files, household_files, household_official, mathematics, search_questions, webshop_data
from sdar.envs.code_livecodebench import Window
from sdar.errors import SdarError
from sdar.search.shards import IndexFolder, read_corpus
from sdar.skills import SkillBank

ROUNDS = 150
VALUES = [
    None, True, 0, -1, 1.5, 10**250, "", " ", "x", "\x1b[31m\n", "\ud800", "../../x", "x" * 3000, [], [[]], [None], {}, {"a": 1},
    [{"value": 5}], {"target": {"target": 1}},
]  # fmt: skip
TEXTS = ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 2000, "{", '"\\u"', "\x00", "\ufeff"]

QUESTION = {
    "id": 7, "question": "Who?", "golden_answers": ["A", "B"], "data_source": "nq", "extra_info": {"index": 3},
    "reward_model": {"ground_truth": {"target": ["A"]}}, "env_kwargs": {"question": "Who?", "ground_truth": {"target": ["A"]}},
}  # fmt: skip
PROBLEM = {
    "prompt": [{"role": "user", "content": "1 + 1?"}],
    "reward_model": {"ground_truth": "2"},
    "data_source": "math",
    "answer": 2,
}
PRODUCT = {
    "asin": "B000", "name": "Shirt", "full_description": "warm", "small_description": ["a", "b"], "category": "c", "query": "Q",
    "product_category": "a > b", "pricing": "$9.99$12.00", "customization_options": {"Size": [{"value": "L"}, {"value": "M"}], "x": None},
}  # fmt: skip
WISHES = {"B000": {"attributes": ["soft"], "instruction": "buy it", "instruction_attributes": ["soft"]}}
HUMAN = {"B000": [{"instruction": "buy it.", "instruction_attributes": ["soft"], "instruction_options": ["l"]}]}
GAME = {
    "pddl_domain": "(define x)", "grammar": 'task :: "Your task is to: put a mug."', "solvable": True,
    "pddl_problem": "(:objects a - object) (:init (atlocation agent1 l1)) (:goal (and))",
}  # fmt: skip
TRAJECTORY = {"task_type": "pick_and_place_simple", "turk_annotations": {"anns": [{"task_desc": "put a mug"}]}}


def write(folder: Path, name: str, *texts: str) -> Path:
    file = folder / name
    file.write_bytes("\n".join(texts).encode("utf-8", "surrogatepass"))
    return file


def webshop(folder, text, name):
    good = {"items_shuffle_1000.json": [PRODUCT], "items_ins_v2_1000.json": WISHES, "items_human_ins.json": HUMAN}
    for file, content in good.items():
        write(folder, file, text if file == name else json.dumps(content))
    for human in (False, True):
        source = webshop_data.read_folder(folder, "small", human)
        products = webshop_data.load_products(source, None, 0)
        webshop_data.make_goals(products, source, human, 0)


def alfworld(folder, text, name):
    for file, content in ((household_official.GAME_FILE, GAME), (household_official.TRAJ_FILE, TRAJECTORY)):
        write(folder, file, text if file == name else json.dumps(content))
    household_official._scan(folder.parent, folder.name, "seen")
    household_files.read_game(folder)


def index(folder, text):
    write(folder, "manifest.json", text)
    return IndexFolder.open(folder).passages


def skills(folder, text, name):
    write(folder, "a.md", "text")
    write(folder, name, text)
    return SkillBank.load(folder / name if name.startswith("claude") else folder)


CONTEST = {
    "question_content": "Double it.", "platform": "atcoder", "contest_date": "2024-08-10", "starter_code": "", "difficulty": "easy",
    "public_test_cases": '[{"input": "2", "output": "4", "testtype": "stdin"}]', "private_test_cases": "[]", "metadata": "{}",
}  # fmt: skip
CHECK = {
    "prompt": "def f(x):\n    'Twice.'\n", "canonical_solution": "    return x", "entry_point": "f", "query": "Double.",
    "test": "def check(candidate):\n    assert candidate(1) == 2", "meta": {"difficulty": "Easy"},
}  # fmt: skip
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 1}, {"role": "tool", "content": "2", "tool_call_id": "1"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "So."},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}  # fmt: skip
FORMATS = {
    "questions": (QUESTION, lambda f, t: search_questions.file_questions(
        (), ((str(write(f, "q.jsonl", t)), len(t), hash(t)),), ("nq",))),
    "problems": (PROBLEM, lambda f, t: mathematics._file_problems.__wrapped__(str(write(f, "m.jsonl", t)))),
    "conversations": (CHAT, lambda f, t: read_conversations([str(write(f, "s.jsonl", t))], "data.files")),
    "contests": (CONTEST, lambda f, t: code_files.file_problems.__wrapped__(str(write(f, "c.jsonl", t)), Window(since="2024-01-01"))),
    "checks": (CHECK, lambda f, t: code_files.file_problems.__wrapped__(str(write(f, "h.jsonl", t)), Window())),
    "products": ([PRODUCT], lambda f, t: webshop(f, t, "items_shuffle_1000.json")),
    "attributes": (WISHES, lambda f, t: webshop(f, t, "items_ins_v2_1000.json")),
    "instructions": (HUMAN, lambda f, t: webshop(f, t, "items_human_ins.json")),
    "game": (GAME, lambda f, t: alfworld(f, t, household_official.GAME_FILE)),
    "trajectory": (TRAJECTORY, lambda f, t: alfworld(f, t, household_official.TRAJ_FILE)),
    "corpus": ({"id": 1, "contents": '"T"\nx', "title": "T", "text": "x"}, lambda f, t: list(read_corpus(write(f, "c.jsonl", t)))),
    "manifest": ({"format": 1, "settings": {"kind": "bm25"}, "shards": [3], "complete": True}, index),
    "panel": ({"name": "unseen", "hash": Panel("unseen", ("a", "b")).hash, "task_ids": ["a", "b"]},
              lambda f, t: Panel.load(write(f, "p.json", t))),
    "demonstrations": ({"task": "t", "actions": ["look"]}, lambda f, t: BackToFront(demonstrations=str(write(f, "d.jsonl", t)))),
    "skills of ours": ({"a": {"file": "a.md", "families": ["x"], "keywords": ["y"]}}, lambda f, t: skills(f, t, "mapping.yaml")),
    "skills of SDAR": ({"skill_files": {"a": "a.md"}, "task_to_skill": {"x": "a"}, "task_keywords": {"x": ["y"]}},
                       lambda f, t: skills(f, t, "skill_mapping.json")),
    "skills of SkillRL": (
        {"general_skills": [{"title": "a", "principle": "b"}], "common_mistakes": [{"description": "a", "how_to_avoid": "b"}],
         "task_specific_skills": {"x": [{"title": "a", "principle": "b", "when_to_apply": "c"}]}},
        lambda f, t: skills(f, t, "claude_style_skills.json")),
}  # fmt: skip


def places(value, path=()):
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def damaged(record, rng: random.Random) -> str:
    """The record's JSON with one or two changes: a value of another kind, a key less or more, or a broken text."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.choice((1, 1, 2))):
        *way, last = rng.choice([p for p in places(record) if p] or [(None,)])
        if last is None:
            break
        inner = record
        for key in way:
            inner = inner[key]
        match rng.randrange(8):
            case 0:
                del inner[last]
            case 1 if isinstance(inner, dict):
                inner[rng.choice(["more", "\x1b", "\ud800"])] = copy.deepcopy(inner[last])
            case _:
                inner[last] = copy.deepcopy(rng.choice(VALUES))
    text = json.dumps(record, ensure_ascii=rng.random() < 0.7)
    match rng.randrange(6):
        case 0:
            begin = rng.randrange(len(text))
            text = text[:begin] + rng.choice(TEXTS) + text[begin + rng.randrange(3) :]
        case 1:
            text = text[: rng.randrange(len(text))]
        case 2:
            number = rng.choice([i for i, c in enumerate(text) if c in ":["] or [0])
            text = f"{text[: number + 1]}{rng.choice(TEXTS)}{text[number + 1 :]}"
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_a_good_record_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(household_files, "_check_logic", lambda *_: None)
    record, read = FORMATS[name]
    if name in ("game", "trajectory"):
        return  # a game is long; its reader is tested elsewhere
    read(tmp_path, json.dumps(record))


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_record_is_read_or_told_in_one_short_message(name, tmp_path, monkeypatch):
    monkeypatch.setattr(household_files, "_check_logic", lambda *_: None)
    record, read = FORMATS[name]
    rng, told = random.Random(name), 0
    for number in range(ROUNDS):
        text = damaged(record, rng)
        folder = tmp_path / str(number)
        folder.mkdir()
        begin = time.process_time()
        try:
            read(folder, text)
        except SdarError as error:
            told += 1
            assert len(str(error)) < 1000 and "\x1b" not in str(error), (text[:500], str(error))
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {text[:500]!r}") from error
        assert time.process_time() - begin < 2, text[:500]
    assert told > ROUNDS // 5


def test_a_product_with_endless_combinations_is_told_at_once(tmp_path):
    options = {f"o{i}": [{"value": f"v{j}"} for j in range(10)] for i in range(10)}
    begin = time.process_time()
    with pytest.raises(SdarError, match=r"'B000': its options combine to 10000000000 goals, at most 100000 of one product"):
        webshop(tmp_path, json.dumps([PRODUCT | {"customization_options": options}]), "items_shuffle_1000.json")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"golden_answers": "['A', 'B']"}, r"a list that was written as one text\. Give golden_answers as a list"),
        ({"golden_answers": ['["A"]']}, "a list that was written as one text"),
        ({"golden_answers": [""]}, r"row 1 has the answer '': nothing could be found"),
        ({"golden_answers": [1]}, r"row 1: .* at `\$.golden_answers"),
        ({"reward_model": "x"}, r"row 1: Expected `object \| null`, got `str` - at `\$.reward_model`"),
        ({"extra_info": "x"}, r"row 1: .* at `\$.extra_info`"),
        ({"data_source": "\x1b]0;x\x07"}, r"row 1: data_source holds the character U\+001B"),
        ({"id": "a\nb"}, r"row 1: id holds the character U\+000A"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(change, reason):
    with pytest.raises(SdarError, match=reason):
        search_questions._read_row(QUESTION | change, "row 1")


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), "", "['2', '3']", True, [2], None])
def test_an_answer_in_mathematics_is_a_text_or_a_finite_number(answer):
    with pytest.raises(SdarError, match="row 1 has no answer: a text or a finite number"):
        mathematics._row("m, row 1", {"problem": "p", "answer": answer})
    assert mathematics._row("m, row 1", {"problem": "p", "answer": "[1, 2]"}).answer == "[1, 2]"


def test_a_folder_is_not_called_missing(tmp_path):
    with pytest.raises(SdarError, match="which is no file"):
        mathematics._file_problems.__wrapped__(str(tmp_path))
    with pytest.raises(SdarError, match="is no file: name a"):
        list(search_questions._rows(tmp_path))


def test_files_with_a_byte_order_mark_are_read(tmp_path):
    mark = "\ufeff"
    assert list(search_questions._rows(write(tmp_path, "q.jsonl", mark + json.dumps(QUESTION)))) == [QUESTION]
    assert len(mathematics._file_problems.__wrapped__(str(write(tmp_path, "m.jsonl", mark + json.dumps(PROBLEM))))[0]) == 1
    assert list(read_corpus(write(tmp_path, "c.jsonl", mark + '{"id": 1, "contents": "x"}'))) == [("1", "x")]
    assert list(itertools.islice(webshop_data.read_list(write(tmp_path, "w.json", mark + "[{}]")), 2)) == [{}]


GOOD_ROW = {"problems": {"problem": "p", "answer": "1"}, "questions": QUESTION}
BROKEN = {
    "problems": {
        "[]": "list instead of an object",
        "{": "no JSON",
        '{"answer": 1}': "has no problem",
        '{"problem": " ", "answer": 1}': "has no problem",
        '{"prompt": [{"role": "system", "content": "s"}], "answer": 1}': "has no problem",
        '{"problem": "q"}': "has no answer",
        '{"problem": "q", "answer": " "}': "has no answer",
        '{"problem": "q", "answer": true}': "has no answer",
        '{"problem": "q", "answer": ["1"]}': "has no answer",
        '{"problem": "q", "answer": "[\'1\']"}': "has no answer",
        '{"problem": "q", "answer": "It is 1.\\n####"}': "has no answer",
        '{"problem": "q", "answer": NaN}': "NaN",
        '{"problem": "q", "answer": 1, "hint": 5}': "hint is 5 instead of a text",
        '{"problem": "q", "answer": 1, "data_source": "\\u001b"}': r"data_source holds the character U\+001B",
    },
    "questions": {
        "[]": "is list, not an object",
        "{": "no JSON",
        '{"golden_answers": ["a"]}': "has no question",
        '{"question": " ", "golden_answers": ["a"]}': "has no question",
        '{"question": "q"}': "has no question or no answers",
        '{"question": "q", "golden_answers": []}': "has no question or no answers",
        '{"question": "q", "golden_answers": "[\'a\', \'b\']"}': "a list that was written as one text",
        '{"question": "q", "golden_answers": [""]}': "has the answer \'\'",
        '{"question": "q", "golden_answers": [1]}': r"at `\$.golden_answers",
        '{"question": "q", "golden_answers": ["a"], "reward_model": "x"}': r"at `\$.reward_model`",
        '{"question": "q", "golden_answers": ["a"], "data_source": "\\u001b"}': r"data_source holds the character U\+001B",
        '{"question": "q", "golden_answers": ["a"], "id": "a\\nb"}': r"id holds the character U\+000A",
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in BROKEN.items() for row in rows])
def test_a_broken_row_is_named_with_its_file(kind, row, tmp_path):
    text = f"{json.dumps(GOOD_ROW[kind])}\n{row}"
    with pytest.raises(SdarError, match=rf"[mq]\.jsonl, (row|line) 2.*{BROKEN[kind][row]}"):
        FORMATS[kind][1](tmp_path, text)
