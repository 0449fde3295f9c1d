"""Files of science questions: GPQA, MMLU and its kin, MegaScience; what is refused, and how the row is named."""

import csv
import gzip
import json

import pytest

from sdar.envs import MathEnv, ScienceEnv
from sdar.envs.problem_rows import file_rows
from sdar.envs.science_questions import read_question
from sdar.errors import ConfigError

GPQA = {
    "Record ID": "rec06pnAkLOr2t2mp", "Question": "Which lifetime,\nof \"two\" states?", "Correct Answer": "10^-4 eV\n",
    "Incorrect Answer 1": "1e-11 eV",
    "Incorrect Answer 2": "10^-8 eV", "Incorrect Answer 3": "10^-9 eV", "Explanation": "By the uncertainty principle.",
    "Subdomain": "Physics (general)",
    "High-level domain": "Physics",
}  # fmt: skip
MEGA = {
    "question": "What is the boiling point?", "answer": "First ... so it is \\boxed{100}.", "reference_answer": "100 °C",
    "subject": "chemistry", "source": "textbook_reasoning", "ref_answer": None,
}  # fmt: skip
CHOICES = ["a cat", "a dog", "an owl", "a fox"]
MMLU = {"question": "Which?", "choices": CHOICES, "answer": 2, "type": "college_biology"}


def jsonl(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(folder / name)


def test_gpqas_file_is_read(tmp_path):
    path = tmp_path / "gpqa_diamond.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(GPQA))
        table.writeheader()
        table.writerows([GPQA, GPQA | {"Question": "Why?", "High-level domain": "", "Explanation": ""}])
    env = ScienceEnv(files={"unseen": str(path)}, split="unseen")
    first, second = sorted(map(env.task, env.task_ids("unseen", 2, 0)), key=lambda task: task.id)
    assert first.instruction.startswith('Which lifetime,\nof "two" states?\n\nA) ') and first.instruction.count("\n") == 8
    assert (first.family, second.family) == ("physics", "physics_general")
    question = env.problem(first.id)
    assert question.answer == "10^-4 eV" and set(question.options) == {"10^-4 eV", "1e-11 eV", "10^-8 eV", "10^-9 eV"}
    assert env.solution(first) == f"By the uncertainty principle.\n\nThe answer is {question.gold}) 10^-4 eV."
    assert env.solution(second).startswith("The answer is ") and env.size("unseen") == 2
    with pytest.raises(ConfigError, match=r"gpqa_diamond\.csv, row 1 has no hint, .*; `env\.hints: solution`"):
        env.hint(first)
    packed = tmp_path / "gpqa.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert file_rows(str(packed))[0][1][1]["question"] == "Why?"


@pytest.mark.parametrize(
    ("more", "right"),
    [
        ({"answer": 0}, 0),
        ({"answer": 2.0}, 2),
        ({"answer": "b"}, 1),
        ({"answer": "(C)"}, 2),
        ({"answer": "a  fox "}, 3),
        ({"answer": "3"}, 3),
        ({"choices": None, "options": CHOICES, "answer": None, "answerKey": "D"}, 3),
        ({"choices": dict(zip("ABCD", CHOICES, strict=True)), "answer": "c"}, 2),
        ({"choices": {"A": CHOICES[0], "B": CHOICES[1], "E": None}, "answer": "B"}, 1),
        ({"choices": {"text": CHOICES, "label": ["1", "2", "3", "4"]}, "answer": "3"}, 2),
        ({"choices": json.dumps(CHOICES), "answer": "1"}, 1),
        ({"choices": None, "A": "x1", "B": "x2", "C": "", "answer": "B"}, 1),
        ({"choices": [4, 3, 2.5], "answer": "2.5"}, 2),
        ({"choices": ["1", "2", "3", "4"], "answer": "2"}, 1),
    ],
)
def test_the_right_option_is_named_by_place_letter_or_text(tmp_path, more, right):
    question = read_question(file_rows(jsonl(tmp_path, MMLU | more))[0][0][1], "x")
    assert question.right == right and question.answer == question.options[right] and question.family == "college_biology"


def test_megasciences_gold_is_its_reference_answer(tmp_path):
    env = ScienceEnv(files={"train": jsonl(tmp_path, MEGA, MEGA | {"question": "How many?", "reference_answer": 4})})
    task = next(t for t in map(env.task, env.task_ids("train", 2, 0)) if "boiling" in t.instruction)
    assert task.facts == {"answer": "100 °C"} and task.family == "chemistry"
    assert task.instruction == "What is the boiling point?\n\nAnswer with the result alone."
    assert env.solution(task).startswith("First ... so it is")
    for answer, right in (("100 °C", True), ("100°C.", True), (MEGA["answer"], False), ("50 °C", False)):
        env.reset(task)
        assert env.step(f"answer\n{answer}").success == right, answer


def test_rows_of_megascience_without_a_reference_answer_are_left_out(tmp_path):
    blank = [MEGA | {"question": f"{gold}?", "reference_answer": gold} for gold in (None, "", " ")]
    with pytest.warns(
        UserWarning, match="3 of 4 rows have no reference_answer; they are left out, as no answer to them can be judged"
    ):
        assert ScienceEnv(files={"train": jsonl(tmp_path, *blank[:2], MEGA, blank[2])}).size("train") == 1
    with pytest.raises(ConfigError, match=r"none of the 3 rows of .* has a reference_answer\. Give a file with answers"):
        ScienceEnv(files={"train": jsonl(tmp_path, *blank, name="blank.jsonl")})


def test_parquet_is_read_too(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [MMLU, MMLU | {"question": "Who?", "answer": 1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    env = ScienceEnv(files={"train": str(tmp_path / "x.parquet")}, shuffle_seed=None)
    assert sorted(env.task(i).facts["answer"] for i in env.task_ids("train", 2, 0)) == ["B) a dog", "C) an owl"]


def test_a_question_counts_once_whatever_the_order_of_its_options(tmp_path):
    again = MMLU | {"choices": CHOICES[::-1], "answer": 1}
    other = MMLU | {"choices": ["x", "y"], "answer": 1}
    files = {"train": jsonl(tmp_path, MMLU, again, other), "unseen": jsonl(tmp_path, other, name="unseen.jsonl")}
    with pytest.warns(UserWarning, match="of 3 rows 1 repeat the text of an earlier one and 1 have a text that validation"):
        env = ScienceEnv(files=files)
    assert (env.size("train"), env.size("unseen")) == (1, 1)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("{", r"line 2: no JSON"),
        ("[]", r"row 2: list instead of an object with a question"),
        ({"choices": CHOICES, "answer": 1}, r"row 2 has no question: .* Its columns: 'choices, answer'"),
        (MMLU | {"question": " "}, r"row 2 has no question"),
        (MMLU | {"answer": 4}, r"row 2: the answer is 4, but there are 4 options, the first is 0\. Give the option's place"),
        (MMLU | {"answer": True}, r"row 2 has no answer in the column answer"),
        (MMLU | {"answer": "E"}, r"row 2: the answer 'E' means no option of \['a cat',"),
        (MMLU | {"choices": ["B", "A"], "answer": "A"}, r"row 2: the answer 'A' means options A and B of \['B', 'A'\]"),
        (MMLU | {"choices": ["687", "687", "1"], "answer": "687"}, r"row 2: the answer '687' means options A and B"),
        (MMLU | {"choices": ["only"], "answer": 0}, r"row 2 has 1 options; a question has 2 to 26"),
        (MMLU | {"choices": ["x", None], "answer": 0}, r"row 2: option 2 is None instead of a text"),
        (MMLU | {"choices": "x, y", "answer": 0}, r"row 2: options: no JSON .* Write them as a list of texts"),
        (MMLU | {"choices": {"A": "x", "a": "y"}, "answer": "A"}, r"row 2: the options are called \['A', 'A'\]"),
        (GPQA | {"Incorrect Answer 3": ""}, r"row 2 \('rec06pnAkLOr2t2mp'\): option 4 is '' instead of a text"),
        (GPQA | {"Incorrect Answer 3": "10^-4  eV"}, r"row 2 .*: the correct answer '10\^-4 eV' is an incorrect one, too"),
        (MEGA | {"reference_answer": "['a']"}, r"row 2 has neither options .* nor a reference_answer"),
        ({"question": "What is 2 + 3?", "answer": "5"}, r"row 2 has neither options"),
        (MMLU | {"type": "a\nb"}, r"row 2: type holds the character U\+000A"),
    ],
)
def test_a_row_that_is_broken_is_named_with_what_to_do(tmp_path, row, match):
    with pytest.raises(ConfigError, match=match) as refused:
        ScienceEnv(files={"train": jsonl(tmp_path, MMLU, row)})
    assert "rows.jsonl" in str(refused.value) and str(refused.value).count(". ") >= 1


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"question,answer\n", r"holds no problem"),
        (b"question,A,B,answer\nWhich, of these?,x,y,A\n", r"row 1 has 5 fields, but the first line names 4 columns"),
        (b'question,A,B,answer\n"Which?,x,y,A\n', r"cannot be read as CSV \(unexpected end of data\)"),
        (b"question,A,B,answer\n\xff,x,y,A\n", r"cannot be read as CSV .*Write it again in UTF-8, or give JSONL"),
    ],
)
def test_a_csv_file_that_is_broken_is_refused(tmp_path, content, match):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        ScienceEnv(files={"train": str(tmp_path / "x.csv")})


def test_an_order_that_gives_the_answer_away_is_refused(tmp_path):
    rows = [GPQA | {"Question": f"Question {number}?"} for number in range(12)]
    files = {"train": jsonl(tmp_path, *rows)}
    with pytest.raises(ConfigError, match=r"env\.shuffle_seed is null, and the right option of all 12 questions of .* is A"):
        ScienceEnv(files=files, shuffle_seed=None)
    assert len({ScienceEnv(files=files).problem(i).gold for i in ScienceEnv(files=files).task_ids("train", 12, 0)}) > 1


def test_columns_are_found_in_any_case_in_mathematics_too(tmp_path):
    (tmp_path / "aime.csv").write_text('ID,Problem,Solution,Answer\n1,"Two, plus 3?",text,5\n')
    env = MathEnv(files={"train": str(tmp_path / "aime.csv")})
    (task,) = map(env.task, env.task_ids("train", 1, 0))
    assert (task.instruction, task.facts["answer"]) == ("Two, plus 3?", "5")
    both = jsonl(tmp_path, {"Answer": "1", "answer": "2", "Problem": "x", "ANSWER": "3"})
    assert file_rows(both)[0][0][1] == {"answer": "2", "problem": "x"}
