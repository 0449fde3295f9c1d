"""What teachers are told of rows of problem files: worked solutions, GSM8K's form, hints."""

import gzip
import json
from pathlib import Path

import pytest

from sdar.data import TaskModule
from sdar.envs import CodeEnv, MathEnv, ScienceEnv
from sdar.envs.math_checking import is_correct
from sdar.envs.worked_solutions import beginning
from sdar.errors import ConfigError
from sdar.sandbox.choose import AutoRunner
from sdar.teachers import HintView, SolutionView

DATA = Path(__file__).parents[3] / "shared" / "data"
GSM8K = {"question": "48 and half as many?", "answer": "May: 48/2 = <<48/2=24>>24.\nBoth: 48+24 = <<48+24=72>>72.\n#### 72"}


def jsonl(folder, *rows):
    """A file of its own: what is read stays in memory under its path."""
    file = folder / f"{len([*folder.iterdir()])}x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def env_of(folder, *rows, world=MathEnv, **settings):
    return world(files={"train": jsonl(folder, *rows)}, runner=AutoRunner(), **settings)


def only(env):
    (task,) = map(env.task, env.task_ids("train", 1, 0))
    return task


def test_gsm8ks_answer_is_what_follows_the_mark_and_its_text_is_the_solution(tmp_path):
    env = env_of(tmp_path, GSM8K)
    task = only(env)
    assert task.facts == {"answer": "72"} and env.demonstration(task) == ["answer\n72"]
    assert env.solution(task) == "May: 48/2 = 24.\nBoth: 48+24 = 72.\n\nThe answer is 72."
    env = env_of(tmp_path, {"problem": "p", "solution": "One.\n#### 1,000"})
    assert only(env).facts == {"answer": "1,000"} and env.solution(only(env)) == "One.\n\nThe answer is 1,000."


def test_a_mark_with_nothing_behind_it_is_no_answer(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.jsonl, row 1 has no answer"):
        env_of(tmp_path, {"problem": "p", "answer": "72 clips\n####"})


def test_a_solution_beside_an_answer_is_told(tmp_path):
    env = env_of(tmp_path, {"problem": "p", "answer": 5.0, "solution": "As 1 << 2 >> 1.\nSo \\boxed{5}."})
    assert env.solution(only(env)) == "As 1 << 2 >> 1.\nSo \\boxed{5}.\n\nThe answer is 5."
    env = env_of(tmp_path, {"problem": "p", "solution": "$\\frac12$"})  # the answer, and nothing more
    assert env.solution(only(env)) == "The answer is $\\frac12$."


@pytest.mark.parametrize(
    ("worked", "hint"),
    [
        ("Add them. Divide by two. It is 3.", "Add them.\nDivide by two."),
        ("a = 1\n\nb = 2\nc = 3\nd = 4", "a = 1\nb = 2"),
        ("First. Thus \\boxed{2}. As $x$ says. And more.", "First."),
        ("It is \\boxed{2}.", ""),
        ("It is 2.", ""),
        ("", ""),
    ],
)
def test_a_hint_is_the_beginning_of_a_solution(worked, hint):
    assert beginning(worked) == hint


def test_hints_come_from_their_column_or_from_the_solution(tmp_path):
    rows = [GSM8K | {"Hint": " Halve 48. "}, GSM8K | {"question": "q", "hint": ""}]
    env = env_of(tmp_path, *rows, hints="solution")
    hints = {env.hint(task) for task in map(env.task, env.task_ids("train", 2, 0))}
    assert hints == {"Halve 48.", "May: 48/2 = 24."}
    SolutionView().check_tasks(env, env.task_ids("train", 2, 0))
    HintView().check_tasks(env, env.task_ids("train", 2, 0))
    env = env_of(tmp_path, *rows)
    with pytest.raises(
        ConfigError,
        match=r"x\.jsonl, row 2 has no hint, .* its column hint is missing or empty\. Write one, leave the task out \(data.leave_out\), or "
        r"use SolutionView; `env\.hints: solution` makes hints of worked solutions\.",
    ):
        HintView().check_tasks(env, env.task_ids("train", 2, 0))


def test_all_rows_that_have_nothing_to_tell_are_counted_and_named(tmp_path):
    env = env_of(tmp_path, *({"problem": f"p{n}", "answer": "1"} for n in range(30)))
    ids = env.task_ids("train", 30, 0)
    with pytest.raises(
        ConfigError, match=rf"has no hint, .* The same holds for 30 of 30 tasks: {ids[0]}, .*{ids[19]}, \.\.\.\.$"
    ):
        HintView().check_tasks(env, ids)


def test_a_row_of_which_no_hint_can_be_made_is_named(tmp_path):
    env = env_of(tmp_path, {"problem": "p", "answer": "1", "solution": "It is 1."}, hints="solution")
    with pytest.raises(ConfigError, match=r"row 1 has no hint, .*: nor has it a solution of several steps"):
        HintView().check_tasks(env, env.task_ids("train", 1, 0))
    with pytest.raises(ConfigError, match=r"row 1: hint is 5 instead of a text"):
        env_of(tmp_path, {"problem": "p", "answer": "1", "hint": 5})
    with pytest.raises(ConfigError, match=r"env\.hints is 'solution', .* problems are generated"):
        MathEnv(hints="solution")
    with pytest.raises(ConfigError, match=r"env\.hints is 'none': hints come from column or solution"):
        MathEnv(hints="none")


def test_science_and_programs_have_hints_too(tmp_path):
    question = {"question": "Why?", "reference_answer": "4", "answer": "Look. Then add. It is 4.", "hint": None}
    env = env_of(tmp_path, question, world=ScienceEnv, hints="solution")
    assert env.hint(only(env)) == "Look.\nThen add."
    program = {
        "prompt": "def f(x):\n    'Twice.'\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate(1) == 2",
    }
    env = env_of(tmp_path, program | {"hint": "Add."}, world=CodeEnv)
    assert env.hint(only(env)) == "Add."
    env = env_of(tmp_path, program, world=CodeEnv)
    for view, match in ((HintView, r"x\.jsonl, line 1 has no hint"), (SolutionView, r"x\.jsonl, line 1 has no solution")):
        with pytest.raises(ConfigError, match=match):
            view().check_tasks(env, env.task_ids("train", 1, 0))


@pytest.mark.parametrize("name", ["gsm8k_train", "gsm8k_test", "math500", "aime24", "aime25"])
def test_real_files_are_read(name, tmp_path):
    file = DATA / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"there is no file of real problems: {file}")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()[:500]]
    env = env_of(tmp_path, *rows, hints="solution")
    tasks = list(map(env.task, env.task_ids("train", env.size("train"), 0)))
    assert all(is_correct(task.facts["answer"], task.facts["answer"]) for task in tasks)
    if name.startswith("gsm8k"):
        told = [env.solution(task) for task in tasks]
        assert not any("<<" in text or "####" in text for text in told) and all(t.facts["answer"].isascii() for t in tasks)
        assert {task.facts["answer"] for task in tasks} <= {row["answer"].rpartition("#### ")[2] for row in rows}


def test_files_are_panels_of_their_own_sizes(tmp_path):
    many, few = ([{"problem": f"{name} {n}", "answer": str(n)} for n in range(count)] for name, count in (("a", 5), ("b", 3)))
    files = {
        "train": jsonl(tmp_path, *many),
        "aime24": jsonl(tmp_path, *few),
        "math500": jsonl(tmp_path, *few[:2], {"problem": "c", "answer": 1}),
    }
    settings = {"train_tasks": "all", "val_splits": ["aime24"], "test_splits": ["math500"]}
    data = TaskModule(MathEnv(files=files, runner=AutoRunner()), val_tasks={"aime24": "all", "math500": 2}, **settings)
    assert [len(panel) for panel in (data.train_panel, *data.val_panels, *data.test_panels)] == [5, 3, 2]
    data = TaskModule(MathEnv(files=files, runner=AutoRunner()), val_tasks="all", **settings)
    assert [len(panel) for panel in data.measured] == [3, 3]
