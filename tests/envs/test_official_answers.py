"""Every answer of the original files: the one that they give counts, another does not."""

import gzip
import json
import re
from pathlib import Path

import pytest

from sdar.envs import MathEnv, SearchEnv
from sdar.envs.math_checking import is_correct
from sdar.envs.search_scoring import exact_match, f1
from sdar.search.bm25 import BM25Backend

DATA = Path(__file__).parents[3] / "shared" / "data"


def rows(name):
    file = DATA / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"there is no {file}")
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


def altered(answer: str) -> list[str]:
    """Answers that are another: each number one more, or, where there is none, something behind it."""
    numbers = list(re.finditer(r"\d+", answer))
    more = [answer[: m.start()] + str(int(m[0]) + 1) + answer[m.end() :] for m in numbers]
    return more or [answer + " + 1"]


def wrong_that_count(name):
    """(right answers that do not count, others that do) of a file."""
    env = MathEnv(files={"train": str(DATA / f"{name}.jsonl.gz")})
    answers = [env.task(i).facts["answer"] for i in env.task_ids("train", env.size("train"), 0)]
    refused = [a for a in answers if not is_correct(a, a)]
    accepted = [(a, other) for a in answers for other in altered(a)[:1] if is_correct(other, a)]
    return len(answers), refused, accepted


ALL = [pytest.param("gsm8k_train", 7473, marks=pytest.mark.slow), ("gsm8k_test", 1319), ("aime24", 30), ("aime25", 30)]


@pytest.mark.parametrize(("name", "count"), ALL)
def test_every_number_counts_and_the_next_does_not(name, count):
    rows(name)
    found, refused, accepted = wrong_that_count(name)
    assert (found, refused, accepted) == (count, [], [])


@pytest.mark.slow
def test_answers_of_math_count_and_others_do_not():
    rows("math500")
    found, refused, accepted = wrong_that_count("math500")
    assert found == 500 and refused == []
    # a base or a root that is one more is another value, too
    assert accepted == []


def test_every_answer_to_a_question_of_several_hops_counts():
    questions = rows("multihop_questions")
    assert len(questions) == 1200
    for row in questions:
        golds = row["golden_answers"]
        assert all(exact_match(gold, golds) and f1(gold, golds) == 1.0 for gold in golds)
        assert not exact_match(row["question"], golds)
    assert sum(len(row["golden_answers"]) > 1 for row in questions) > 20
    env = SearchEnv(
        data={"test": [str(DATA / "multihop_questions.jsonl.gz")]},
        in_domain=["hotpotqa"],
        backend=BM25Backend(corpus=str(DATA / "multihop_passages.jsonl.gz")),
    )
    assert (env.size("seen"), env.size("unseen")) == (100, 1100)
