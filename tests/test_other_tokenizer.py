"""The study of docs/tokenizers.md: what its models are asked, that its tokenizers differ as it says, and that the page shows its arms."""

import importlib.util
from pathlib import Path

import pytest

from sdar.errors import PolicyError
from sdar.rollout.chat import ChatFormat
from sdar.teachers.weights import check_same_tokens

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("other_tokenizer", ROOT / "benchmarks/other_tokenizer.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_a_right_answer_is_worth_one() -> None:
    world = benchmark.Facts()
    first, *others = (world.task(i) for i in world.task_ids("train", 64, 0))
    assert len(others) == 63 and world.reset(first) == ""
    assert (
        world.step(benchmark.answer("small lamp")).success and not world.step(benchmark.answer("small lamp", "white")).success
    )


def test_the_teachers_differ_in_their_ends_and_in_their_tokens() -> None:
    words, end, letters = benchmark.words(), benchmark.words("<|pad|>"), benchmark.letters()
    assert check_same_tokens(words, "words", end, "end") == {}  # every id means the same, so nothing is refused
    assert ChatFormat(words).end_of_turn != ChatFormat(end).end_of_turn
    with pytest.raises(PolicyError, match="have different tokenizers"):
        check_same_tokens(words, "words", letters, "letters")


def test_the_table_tells_each_arm_and_so_does_the_page() -> None:
    names = ("success/train", "rollout/cut_share", "teacher/span_tokens", *benchmark.FIRST.values())
    row = dict.fromkeys(names, 0.5) | {"teacher/span_tokens": 2.0}
    made = benchmark.table({arm: [[row] * 5] * 2 for arm in benchmark.ARMS}).splitlines()
    assert made[2] == "| same tokens | 50 %, 50 % | 50 % | 50 % | 50 % | 2.0 |" and len(made) == 2 + len(benchmark.ARMS)
    page = (ROOT / "docs/tokenizers.md").read_text(encoding="utf-8")
    assert all(line in page for line in made[:1]) and all(f"| {arm} | " in page for arm in benchmark.ARMS)
    assert "other tokenizer, aligned" in (ROOT / "docs/tokenizers.svg").read_text(encoding="utf-8")
