"""Science as an environment: generated questions, rewards, what an answer chooses, the whole of MMLU's science subjects."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sdar.data.tasks import protocol_of
from sdar.envs import FencedMathProtocol, HermesMathProtocol, HermesScienceProtocol, MathEnv, ScienceEnv
from sdar.envs.math_protocol import ANSWER, PYTHON
from sdar.envs.science_choices import BY_LETTER, LETTERS, Question, chosen, is_right, shuffled
from sdar.envs.science_generated import FAMILIES, SPLITS, generate
from sdar.envs.science_questions import file_questions, rows_as_written
from sdar.errors import ConfigError, PanelError

MMLU = Path(__file__).parents[3] / "shared" / "data" / "mmlu_stem.jsonl.gz"


def mmlu():
    if not MMLU.exists():
        pytest.skip(f"MMLU's science questions are not there: {MMLU}")
    return str(MMLU)


def begin(env, split="train", number=0):
    task = env.task(env.task_ids(split, number + 1, 0)[number])
    assert env.reset(task) == task.instruction
    return task


def test_every_gold_answer_of_mmlu_counts_and_no_other_option_does():
    questions, _ = file_questions(mmlu(), 0)
    assert len(questions) == 3018 and len({q.family for q in questions}) == 18
    for q in questions:
        for place, option in enumerate(q.options):
            right = place == q.right
            assert is_right(q, LETTERS[place]) == right == is_right(q, f"({LETTERS[place].lower()})")
            if q.options.count(option) == 1 and option.upper() not in "ABCD":  # a text that names one option
                assert is_right(q, option) == right, (q, option)


def test_options_of_mmlu_are_shuffled_evenly_and_alike():
    written, first, second = rows_as_written(mmlu())[0], file_questions(mmlu(), 0)[0], file_questions(mmlu(), 1)[0]
    assert file_questions(mmlu(), None)[0] == written
    for questions in (first, second):
        assert all(
            sorted(a.options) == sorted(b.options) and a.answer == b.answer for a, b in zip(questions, written, strict=True)
        )
        assert all(q.options[q.right] == q.answer for q in questions)
        assert all(
            0.22 < count / 3018 < 0.29 for count in Counter(q.gold for q in questions).values()
        )  # half of a deviation: 0.008
    assert (
        0.85 < sum(a.options != b.options for a, b in zip(first, second, strict=True)) / 3018 < 0.97
    )  # 23 of 24 orders are others
    assert [shuffled(q, 0) for q in written] == list(first)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (("a cat", "a dog", "an owl", "All of the above"), {3}),
        (("a cat", "none of these", "an owl", "a dog"), {1}),
        (("a cat", "a dog", "an owl", "Both A and C"), {0, 1, 2, 3}),
        (("a cat", "a dog", "Either (A) or (B).", "an owl"), {0, 1, 2, 3}),
        (("a cat", "a dog", "E and F are equal", "an owl"), set()),
        (("above the cat", "a dog", "an owl", "a fox"), set()),
    ],
)
def test_options_that_speak_of_others_stay_where_they_are(options, kept):
    question = Question("Which?", options[0], "x", options, 0)
    orders = {shuffled(question, seed).options for seed in range(40)}
    assert {place for place in range(4) if {order[place] for order in orders} == {options[place]}} == kept
    moved = [shuffled(replace(question, ordered=False), seed) for seed in range(40)]
    assert {q.gold for q in moved} == set("ABCD")  # as GPQA's, where nobody saw an order
    assert all(q.options[q.right] == options[0] for q in moved)


COPPER = ("silver", "Copper (Cu)", "tin", "2,000 kg")


@pytest.mark.parametrize(
    ("answer", "options", "choice"),
    [
        *(
            (said, COPPER, 1)
            for said in ("B", "b", "(B)", "b.", "[B]", "B)", "**B**", "$B$", "\\text{B}", "\\textbf{(B)}", "\\mathrm{B}.")
        ),
        *(
            (said, COPPER, 1)
            for said in ("Copper (Cu)", "copper (cu).", " Copper  (Cu) ", "B) Copper (Cu)", "\\text{B: copper (Cu)}")
        ),
        *((said, COPPER, 3) for said in ("2000 kg", "2,000 kg", "2{,}000\\text{ kg}", "D. 2000 kg")),
        *(
            (said, COPPER, None)
            for said in ("", " ", "AB", "A, B", "A and B", "B or C", "E", "Copper", "B) tin", "\\text{}", "5", "$")
        ),
        *((said, COPPER, None) for said in ("B" * 5000, "\x00", "\ud800", "\\text{" * 300, "the option B")),
        ("AA", ("AA", "Aa", "aa", "x"), 0),
        ("aA", ("AA", "Aa", "aa", "x"), None),
        ("aab", ("a ab", "aab", "ab", "b"), 1),
        ("687", ("687", "687", "1", "2"), None),
        ("C", ("C", "N", "O", "F"), 2),
        ("O", ("A", "B", "AB", "O"), 3),
    ],
)
def test_what_an_answer_chooses(answer, options, choice):
    assert chosen(answer, options) == choice


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("Mitochondria", "mitochondria.", True),
        ("Mitochondria", "\\text{mitochondria}", True),
        ("Co", "CO", False),
        ("Yes", "yes", True),
        ("5 MHz", "5 mHz", False),
        ("B", "(b)", True),
        ("12.5", "25/2", True),
        ("0.5 m", "0.5m", True),
        ("5", "6", False),
        ("water vapor", "water", False),
        ("x" * 2000, "x" * 2000, True),
        ("5", "\\text{" * 5000, False),
    ],
)
def test_an_answer_without_options_is_compared_as_text_or_number(gold, answer, right):
    assert is_right(Question("What?", gold, "x"), answer) == right


def test_a_generated_question_is_computed_and_answered():
    env = ScienceEnv(reward="signed", families=["masses", "elements"])
    task = begin(env, "unseen")
    question = env.problem(task.id)
    call, answer = env.demonstration(task)
    assert call == PYTHON + question.program and answer == ANSWER + question.gold
    assert task.facts == {"answer": f"{question.gold}) {question.answer}"} and task.family == "masses"
    expert = env.expert(task.facts, None)
    assert expert.act() == call
    seen = env.step(call)
    assert not seen.done and seen.valid and float(seen.observation) == float(question.answer.split()[0])
    assert expert.act() == answer
    end = env.step(answer)
    assert (end.done, end.success, end.reward, end.observation) == (True, True, 1.0, "Correct.")
    assert end.scores == {"correct": 1.0, "tool_error_share": 0.0}
    assert env.solution(task) == f"{question.program}\n\nThe answer is {question.told}." and "formula" in env.hint(task)
    other = begin(env, "unseen", 1)
    assert other.family == "elements" and len(env.demonstration(other)) == 1
    assert env.step(ANSWER + LETTERS[(env.problem(other.id).right + 1) % 4]).reward == -1.0
    env.close()


@pytest.mark.parametrize(("reward", "worth"), [("binary", (1.0, 0.0)), ("signed", (1.0, -1.0)), ("sod", (1.0, -0.9))])
def test_what_an_answer_is_worth(reward, worth):
    env = ScienceEnv(reward=reward)
    task = begin(env)
    for answer, paid in zip((env.problem(task.id).gold, "none"), worth, strict=True):
        env.reset(task)
        env.ongoing().calls = 1
        end = env.step(ANSWER + answer)
        assert end.done and end.valid and end.reward == pytest.approx(paid) and end.success == (paid == 1.0)
    env.reset(task)
    end = env.step(ANSWER)
    assert (end.valid, end.success, end.scores["correct"]) == (False, False, 0.0)


def test_generated_questions_have_one_right_option_and_a_split():
    for family in FAMILIES:
        stems = {split: {generate(family, split, str(n)).stem for n in range(60)} for split in SPLITS}
        assert not (stems["train"] & stems["seen"] or stems["train"] & stems["unseen"] or stems["seen"] & stems["unseen"])
        questions = [generate(family, split, str(n)) for split in SPLITS for n in range(60)]
        assert all(len(set(q.options)) == 4 and q.options[q.right] == q.answer and q.hint for q in questions)
        assert set(Counter(q.gold for q in questions)) == set("ABCD") and min(Counter(q.gold for q in questions).values()) > 25
        assert all(chosen(option, q.options) == place for q in questions for place, option in enumerate(q.options))


def test_programs_of_generated_questions_print_their_answers(capsys):
    for family in ("units", "masses", "formulas"):
        for number in range(20):
            question = generate(family, "train", str(number))
            exec(question.program)
            assert float(capsys.readouterr().out) == pytest.approx(float(question.answer.split()[0]), rel=1e-12)


def test_a_seed_of_options_belongs_to_a_panel(tmp_path):
    rows = '{"question": "Which?", "choices": ["a cat", "a dog", "an owl", "a fox"], "answer": 1}'
    (tmp_path / "x.jsonl").write_text(rows)
    for files in (None, {"train": str(tmp_path / "x.jsonl")}):
        envs = [ScienceEnv(files=files, shuffle_seed=seed) for seed in (0, 3, None)]
        assert len({env.fingerprint for env in envs}) == 3
        task_id = envs[0].task_ids("train", 1, 0)[0]
        assert pickle.loads(pickle.dumps(envs[0])).task(task_id) == ScienceEnv(files=files).task(task_id)
        with pytest.raises(PanelError, match="belongs to other settings or files"):
            envs[1].task(task_id)
    assert envs[2].task(envs[2].task_ids("train", 1, 0)[0]).instruction == (
        "Which?\n\nA) a cat\nB) a dog\nC) an owl\nD) a fox\n\nAnswer with the letter of the right option."
    )


def test_a_prompt_says_what_the_task_is_and_how_to_answer():
    env = ScienceEnv()
    task = begin(env)
    system, user = protocol_of(env, None).opening(task, task.instruction, ())
    assert system["content"].startswith("You answer questions of science and may call a function.")
    assert user["content"].startswith(task.instruction) and BY_LETTER in user["content"]
    assert user["content"].endswith("Put the final answer into \\boxed{}.")
    assert protocol_of(env, FencedMathProtocol()) and protocol_of(env, HermesMathProtocol())
    with pytest.raises(ConfigError, match="acts in a science, and MathEnv is none"):
        protocol_of(MathEnv(), HermesScienceProtocol())
    for protocol in (HermesScienceProtocol(), FencedMathProtocol()):
        assert protocol.parse("So it is (B).\n\\boxed{\\text{B}}", ()) == (ANSWER + "\\text{B}", True)
        assert protocol.parse("Answer: **B**", ()) == (ANSWER + "B", True)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"reward": "plus"}, r"env\.reward is 'plus': rewards are binary, signed and sod"),
        ({"families": ["unit"]}, r"env\.families names 'unit': no such family\. Did you mean 'units'\?"),
        ({"files": {"train": "x"}, "families": ["units"]}, r"env\.families chooses among generated problems"),
        (
            {"files": {"train": "/no/such.csv"}},
            r"/no/such\.csv, which does not exist\. Give the path of a JSONL, CSV or parquet file",
        ),
        ({"split": "test"}, r"env\.split is 'test', but there are problems for train, seen, unseen"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        ScienceEnv(**settings)
