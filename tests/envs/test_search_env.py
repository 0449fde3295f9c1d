"""Answering questions: episodes, scores, questions from files, and a world of its own whose answers are known."""

import copy
import dataclasses
import json
import pickle
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.data.panels import Panel, check_disjoint
from sdar.envs import EncyclopediaBackend, SearchEnv
from sdar.envs.search import cut, tell
from sdar.envs.search_encyclopedia import make_encyclopedia
from sdar.envs.search_questions import TRAINING_KINDS, UNSEEN_KINDS, generated_questions
from sdar.envs.search_scoring import normalize_answer
from sdar.errors import ConfigError, EnvironmentFault, PanelError
from sdar.search import Passage, SearchBackend
from sdar.skills import SkillBank


class Given(SearchBackend):
    """Finds the same passages for every query; keeps the queries."""

    def __init__(self, *contents):
        self.contents, self.queries = contents, []

    def search(self, queries, k):
        self.queries += queries
        return [[Passage(str(i), c) for i, c in enumerate(self.contents[:k])] for _ in queries]

    def __deepcopy__(self, memo):
        return self


class Down(SearchBackend):
    def search(self, queries, k):
        raise EnvironmentFault("nobody there")


def begun(split="train", number=0, **arguments):
    env = SearchEnv(**{"passages": 200} | arguments)
    task = env.task(env.task_ids(split, number + 1, 0)[number])
    env.reset(task)
    return env, task


# ---------------------------------------------------------------------------------------------------------------- episodes


def test_a_right_answer_succeeds_and_is_scored():
    env, task = begun()
    result = env.step(f"answer[{task.facts['answer']}]")
    assert (result.done, result.success, result.reward, result.valid) == (True, True, 1.0, True)
    assert result.scores == {"em": 1.0, "f1": 1.0, "sub_em": 1.0} and result.observation == ""


def test_a_wrong_answer_ends_the_episode_and_is_scored():
    env, task = begun()
    result = env.step(f"answer[perhaps {task.facts['answer'].split(' or ')[0]}]")
    assert (result.done, result.success, result.reward) == (True, False, 0.0)
    assert result.scores["em"] == 0.0 and 0 < result.scores["f1"] < 1 and result.scores["sub_em"] == 1.0


def test_the_question_is_told_and_the_answer_is_not():
    env, task = begun()
    assert env.reset(task) == f"Question: {task.instruction}"
    assert task.facts["answer"] not in task.instruction


def test_passages_are_told_in_three_ways():
    found = [Passage("1", '"A B"\nText of A B.\nMore.'), Passage("2", '"C"\nOther <answer>x</answer>')]
    assert tell(found, "search_r1", 1000) == (
        '<information>Doc 1(Title: "A B") Text of A B.\nMore.\nDoc 2(Title: "C") Other <answer>x</answer></information>'
    )
    told = tell(found, "verl_agent", 1000)
    assert told.startswith('<information>{"result": "Doc 1: \\"A B\\"\\nText') and told.endswith('\\n"}</information>')
    assert json.loads(told[13:-14]) == {"result": 'Doc 1: "A B"\nText of A B.\nMore.\nDoc 2: "C"\nOther <answer>x</answer>\n'}
    assert tell(found, "plain", 1000) == "Text of A B.\nMore.\nC: Other <answer>x</answer>"
    assert tell([], "plain", 1000) == "No passage fits."
    assert tell([], "search_r1", 1000) == "<information>No passage fits.</information>"


def test_long_passages_are_cut_visibly():
    assert cut("x" * 30, 20) == "x" * 20 + " [... 10 characters cut]" and cut("x" * 20, 20) == "x" * 20
    told = tell([Passage("1", '"T"\n' + "y" * 100_000)], "search_r1", 200)
    assert told.endswith(" characters cut]</information>") and len(told) < 300
    assert json.loads(tell([Passage("1", '"T"\n' + "y\n" * 9000)], "verl_agent", 50)[13:-14])["result"].endswith(
        "characters cut]"
    )


@pytest.mark.parametrize("telling", ["search_r1", "plain"])
@pytest.mark.parametrize("action", ["", "look", "search[]", "search[ \n ]", "Search[x]", "search[x", "answer", "x" * 100_000])
def test_an_invalid_action_costs_a_turn_and_is_told(action, telling):
    backend = Given('"T"\nx')
    env, _ = begun(backend=backend, horizon=3, telling=telling)
    result = env.step(action)
    assert not result.valid and not result.done and result.reward == 0
    assert ("<search>" in result.observation) == (telling == "search_r1") and result.observation
    assert env.step("search[x]").valid and backend.queries == ["x"]
    result = env.step(action)
    assert result.done and not result.valid and result.scores == {"em": 0.0, "f1": 0.0, "sub_em": 0.0}


def test_the_search_of_the_last_turn_is_not_carried_out():
    backend = Given('"T"\nx')
    env, _ = begun(backend=backend, horizon=2)
    assert not env.step("search[a]").done
    result = env.step("search[b]")
    assert result.done and result.valid and result.observation == "" and result.scores["em"] == 0.0
    assert backend.queries == ["a"]
    env, task = begun(horizon=1)
    assert env.step(f"answer[{task.facts['answer'].split(' or ')[0]}]").success  # the last turn may answer


def test_searches_may_be_fewer_than_turns():
    backend = Given('"T"\nx')
    env, task = begun(backend=backend, horizon=4, max_searches=1)
    env.step("search[a]")
    result = env.step("search[b]")
    assert not result.valid and result.observation == "All 1 searches are used up: only an answer is left."
    assert env.step(f"answer[{task.facts['answer'].split(' or ')[0]}]").success and backend.queries == ["a"]


def test_an_endless_query_is_not_sent():
    backend = Given('"T"\nx')
    env, _ = begun(backend=backend)
    result = env.step(f"search[{'q' * 5000}]")
    assert not result.valid and result.observation == "The query has 5000 characters; the search engine takes 2000."
    assert backend.queries == []


@pytest.mark.parametrize(
    ("actions", "reward"),
    [
        (["search[a]", "answer[GOLD]"], 1.0),
        (["search[a]", "~answer[GOLD]"], 0.8),
        (["~search[a]", "answer[GOLD]"], 0.8),
        (["nonsense", "answer[GOLD]"], 0.8),
        (["search[a]", "answer[wrong]"], 0.2),
        (["search[gold]", "answer[wrong]"], 0.2),
        (["~search[a]", "answer[wrong]"], 0.1),
        (["search[a]", "search[b]", "search[c]", "search[d]"], 0.0),
    ],
)
def test_the_format_reward_looks_at_every_turn(actions, reward):
    env, task = begun(reward="em_format", success_reward=2.0)
    gold = task.facts["answer"].split(" or ")[0]
    rewards = [env.step(a.replace("GOLD", gold)).reward for a in actions]
    assert rewards[:-1] == [0.0] * (len(actions) - 1) and rewards[-1] == pytest.approx(2.0 * reward)


def test_a_found_gold_answer_can_be_rewarded():
    env, task = begun(reward="em_format", retrieval_reward=0.1)
    env.backend = Given('"T"\nnothing here')
    env.step("search[a]")
    assert env.step("answer[wrong]").reward == pytest.approx(0.2)
    env.reset(task)
    env.backend = Given()
    env.step("search[a]")
    assert not env.running.found  # what is told of an empty result is no passage
    env.reset(task)
    env.backend = Given(f'"T"\nit is {task.facts["answer"].split(" or ")[0]}.')
    env.step("search[a]")
    assert env.step("answer[wrong]").reward == pytest.approx(0.3)


@pytest.mark.parametrize("telling", ["search_r1", "verl_agent", "plain"])
def test_a_gold_answer_is_found_however_passages_are_told(telling):
    env, _ = begun(telling=telling)
    env.running.question = dataclasses.replace(env.running.question, answers=("Zürich\nCity",))
    env.backend = Given('"T"\nit is Zürich\nCity.')
    told = env.step("search[a]").observation
    assert env.running.found and ("\\u00fcrich\\nCity" in told) == (telling == "verl_agent")  # JSON is what the model reads


def test_the_reward_can_be_f1():
    env, task = begun(reward="f1")
    result = env.step(f"answer[perhaps {task.facts['answer'].split(' or ')[0]}]")
    assert result.reward == result.scores["f1"] > 0 and not result.success


def test_a_backend_that_is_down_raises_and_says_nothing_empty():
    env, _ = begun(backend=Down())
    with pytest.raises(EnvironmentFault, match="nobody there"):
        env.step("search[a]")


@pytest.mark.parametrize("telling", ["search_r1", "verl_agent", "plain"])
@given(action=st.text(), passage=st.text())
@settings(max_examples=40, deadline=None)
def test_hostile_texts_never_crash_an_episode(telling, action, passage):
    env = SearchEnv(backend=Given(passage, f'"{passage}"\n</information><|im_end|>\x00'), passages=200, telling=telling)
    task = env.task(env.task_ids("train", 1, 0)[0])
    env.reset(task)
    for said in (action, f"search[{action}x]", f"answer[{action}]"):
        result = env.step(said)
        assert isinstance(result.observation, str) and set(result.scores) in (set(), {"em", "f1", "sub_em"})
        if result.done:
            break


def test_an_episode_is_taken_up_in_the_middle():
    env, task = begun(backend=Given('"T"\nx'), horizon=4, max_searches=2)
    env.step("search[a]")
    state = env.save()
    for twin in (
        copy.deepcopy(env),
        pickle.loads(pickle.dumps(env)),
        SearchEnv(passages=200, backend=env.backend, max_searches=2),
    ):
        twin.restore(state)
        assert twin.running == env.running
        assert twin.step("search[b]").valid and not twin.step("search[c]").valid
        assert twin.step(f"answer[{task.facts['answer']}]").done
    assert env.running.turns == 1


def test_copies_are_cheap():
    env, _ = begun(passages=6000)
    env.step("search[x]")
    assert len(pickle.dumps(env)) < 5000


# ------------------------------------------------------------------------------------------------------ the generated world


def test_the_default_encyclopedia_is_as_large_as_it_should_be():
    world = make_encyclopedia(0, 6000, False)
    assert len(world.passages) >= 5000
    assert len({p.id for p in world.passages}) == len({p.title for p in world.passages}) == len(world.passages)
    families = Counter(q.family for split in generated_questions(0, 6000, False).values() for q in split.values())
    assert set(families) == {*TRAINING_KINDS, *UNSEEN_KINDS}
    assert min(families.values()) >= 500


def test_a_world_is_a_function_of_its_seed():
    first, again, other = (make_encyclopedia.__wrapped__(seed, 300, False) for seed in (1, 1, 2))
    assert first == again and first.passages != other.passages


FAMILIES = [*(("seen", f) for f in TRAINING_KINDS), *(("unseen", f) for f in UNSEEN_KINDS)]


@pytest.mark.parametrize(("split", "family"), FAMILIES)
def test_demonstrations_find_every_thing_and_answer_right(split, family):
    """Two hundred questions of each kind: each hop's passage is among the three found and says what the hop says."""
    env = SearchEnv()
    questions = [q for q in env.questions()[split].values() if q.family == family]
    for question in random.Random(0).sample(questions, 200):
        task = env.task(f"search-{env.fingerprint}-{split}-{question.id}")
        env.reset(task)
        seen, results = "", []
        for action in env.demonstration(task):
            results.append(env.step(action))
            seen += results[-1].observation
        assert len(results) <= env.horizon
        assert [r.success for r in results] == [False] * (len(results) - 1) + [True] and all(r.valid for r in results)
        for hop in question.hops:
            assert f'(Title: "{hop.title}")' in seen and normalize_answer(hop.value) in normalize_answer(seen)


@pytest.mark.parametrize("short", [False, True])
def test_a_question_has_one_answer_in_its_world(short):
    """The passages of a hop say one value: no other value of the kind stands where it is asked for."""
    world = make_encyclopedia(3, 300, short)
    passage = {p.title: p.text for p in world.passages}
    for q in [q for split in generated_questions(3, 300, short).values() for q in split.values()]:
        for hop in q.hops:
            assert hop.value.replace(" kilometres", "") in passage[hop.title]
        if q.family == "same":
            assert (q.answers == ("yes",)) == (q.hops[0].value == q.hops[1].value)
        elif q.family == "comparison":
            years = {hop.title: int(hop.value) for hop in q.hops}
            assert q.answers[0] == min(years, key=years.get) and len(set(years.values())) == 2
        elif q.family == "longer":
            lengths = {hop.title: int(hop.value.split()[0]) for hop in q.hops}
            assert q.answers[0] == max(lengths, key=lengths.get) and len(set(lengths.values())) == 2
        else:
            assert q.answers[0] == q.hops[-1].value
            for one, following in zip(q.hops, q.hops[1:], strict=False):
                assert one.value == following.title


def test_an_expert_goes_on_from_any_state_and_answers_at_once_when_told():
    env, _ = begun("unseen", number=0, horizon=6)
    task = next(env.task(t) for t in env.task_ids("unseen", 9, 0) if env.task(t).family == "chain")
    env.reset(task)
    env.step("search[something else]")
    expert, steps = env.expert({}, random.Random(0)), []
    while not steps or not steps[-1].done:
        action = expert.act()
        steps.append(env.step(action))
        expert.watch(action)
    assert steps[-1].success and len(steps) == len(env.demonstration(task))
    env.reset(task)
    assert env.step(env.expert(task.facts, random.Random(0)).act()).success


def test_a_teacher_is_told_the_way_and_a_hint_says_less():
    env, _ = begun()
    task = next(env.task(t) for t in env.task_ids("train", 9, 0) if env.task(t).family == "bridge")
    (first, person), (second, value), (_, answer) = task.facts.items()
    assert env.solution(task) == f"The {first} is {person}. The {second} is {value}. The answer is {answer}."
    assert env.hint(task) == f"First find the {first}." and answer not in env.hint(task)


def test_a_corpus_for_tokenizers_holds_the_words_of_the_world():
    env = SearchEnv(passages=60, short=True, telling="plain")
    texts, phrases = env.corpus(random.Random(0))
    assert env.corpus(random.Random(0)) == (texts, phrases)
    together = "\n".join(texts)
    assert all(p.title in together for p in make_encyclopedia(0, 60, True).passages) and "answer:" in together


# ------------------------------------------------------------------------------------------------------------------- panels


def test_panels_are_balanced_disjoint_and_a_function_of_their_arguments():
    env, twin = SearchEnv(passages=1000), SearchEnv(passages=1000)
    panels = [Panel.generate(env, split, 60, 0) for split in env.splits]
    check_disjoint(*panels)
    assert panels == [Panel.generate(twin, split, 60, 0) for split in env.splits]
    assert env.task_ids("train", 20, 0) == env.task_ids("train", 60, 0)[:20] != env.task_ids("train", 20, 1)
    families = [Counter(env.task(t).family for t in panel.task_ids) for panel in panels]
    assert families[0] == families[1] == {"direct": 15, "attribute": 15, "bridge": 15, "comparison": 15}
    assert families[2] == {"chain": 20, "longer": 20, "same": 20}
    texts = [{env.task(t).instruction for t in panel.task_ids} for panel in panels]
    assert not texts[0] & texts[1]


def test_panels_that_cannot_be_are_refused():
    env = SearchEnv(passages=60)
    with pytest.raises(PanelError, match="has no split 'test'"):
        env.task_ids("test", 1, 0)
    with pytest.raises(PanelError, match=r"split 'seen' has \d+ questions, 100000 were asked for"):
        env.task_ids("seen", 100_000, 0)
    foreign = SearchEnv(passages=60, world=1).task_ids("train", 1, 0)[0]
    with pytest.raises(PanelError, match="belongs to other questions"):
        env.task(foreign)
    for task_id, message in (
        ("household-1-train-x", "is no search task"),
        ("search", "is no search task"),
        (f"search-{env.fingerprint}-train-none", "is not among the"),
    ):
        with pytest.raises(PanelError, match=message):
            env.task(task_id)


# -------------------------------------------------------------------------------------------------------------------- files

ROWS = [
    ("nq", "train", "who wrote faust", ["Goethe", "Johann Wolfgang von Goethe"]),
    ("hotpotqa", "train", "Is Pisa older than Lucca?", ["yes"]),
    ("nq", "test", "when did it end", ["1918"]),
    ("hotpotqa", "test", "where is it", ["Rome"]),
    ("triviaqa", "test", "which river", ["Po"]),
    ("popqa", "test", "what sport", ["judo"]),
]


def search_r1_row(number, source, split, question, answers):
    return {
        "id": f"{split}_{number}",
        "question": question,
        "golden_answers": answers,
        "data_source": source,
        "prompt": [{"role": "user", "content": f"Answer the given question. Question: {question}?"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"split": split, "index": number},
    }


def write_rows(folder, form, rows=ROWS):
    """Train and test files of a form; returns `data` for the environment."""
    out = {}
    for split in ("train", "test"):
        made = [search_r1_row(n, *row) for n, row in enumerate(rows) if row[1] == split]
        if form == "verl_agent":
            for row in made:
                truth = {"target": row.pop("golden_answers")}
                row["env_kwargs"] = {"ground_truth": truth, "question": row.pop("question"), "data_source": row["data_source"]}
                row.pop("reward_model")
        path = folder / f"{split}.{'parquet' if form == 'parquet' else 'jsonl'}"
        if form == "parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(made), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in made))
        out[split] = [str(path)]
    return out


@pytest.mark.parametrize("form", ["parquet", "jsonl", "verl_agent"])
def test_questions_are_read_from_the_files_of_search_r1_and_verl_agent(tmp_path, form):
    env = SearchEnv(backend=Given('"T"\nx'), data=write_rows(tmp_path, form))
    found = {split: {env.task(t).family: env.task(t) for t in env.task_ids(split, 2, 0)} for split in env.splits}
    assert {split: sorted(tasks) for split, tasks in found.items()} == {
        "train": ["hotpotqa", "nq"],
        "seen": ["hotpotqa", "nq"],
        "unseen": ["popqa", "triviaqa"],
    }
    task = found["train"]["nq"]
    assert task.instruction == "who wrote faust?" and task.facts == {"answer": "Goethe or Johann Wolfgang von Goethe"}
    assert found["train"]["hotpotqa"].instruction == "Is Pisa older than Lucca?"
    env.reset(task)
    assert env.step("answer[johann wolfgang von goethe.]").success
    assert env.solution(task) == "The answer is Goethe or Johann Wolfgang von Goethe."
    assert env.hint(task) == "The answer has 1 words."
    with pytest.raises(ConfigError, match="come without a way to their answers"):
        env.demonstration(task)
    with pytest.raises(ConfigError, match=r"no corpus for env.data"):
        env.corpus(random.Random(0))


def test_task_ids_do_not_depend_on_the_order_of_rows_or_files(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    rows = [search_r1_row(n, *row) for n, row in enumerate(ROWS) if row[1] == "test"]
    (first / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (second / "u.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[3:]))
    (second / "v.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[2::-1]))
    one = SearchEnv(backend=Given(), data={"test": [str(first / "t.jsonl")]})
    two = SearchEnv(backend=Given(), data={"test": [str(second / "v.jsonl"), str(second / "u.jsonl")]})
    for split in ("seen", "unseen"):
        assert one.task_ids(split, 2, 3) == two.task_ids(split, 2, 3)


def test_a_question_counts_once_and_none_is_trained_on_that_is_measured(tmp_path):
    rows = [
        *ROWS,
        ("nq", "train", "Who  wrote Faust", ["Goethe"]),  # the same text, said otherwise
        ("nq", "train", "where is it", ["Rome"]),  # seen
        ("nq", "train", "WHICH river?", ["Po"]),  # unseen
        ("popqa", "test", "what sport", ["judo", "Judo"]),
        ("nq", "test", "what sport", ["judo"]),  # another split: it stays
    ]
    data = write_rows(tmp_path, "jsonl", rows)
    with pytest.warns(UserWarning) as told:
        for _ in range(2):
            questions = SearchEnv(backend=Given(), data=data).questions()
    found = {split: {q.text for q in questions[split].values()} for split in questions}
    assert found["train"] == {"who wrote faust?", "Is Pisa older than Lucca?"}
    assert found["seen"] == {"when did it end?", "where is it?", "what sport?"}
    assert found["unseen"] == {"which river?", "what sport?"}
    assert [str(w.message).partition("; they are left out")[0] for w in told] == [
        "env.data, split train: of 5 rows 1 repeat the text of an earlier one and 2 have a text that validation or test measures",
        "env.data, split unseen: of 3 rows 1 repeat the text of an earlier one and 0 have a text that validation or test measures",
    ]


def test_a_question_that_was_changed_is_another_task(tmp_path):
    data = write_rows(tmp_path, "jsonl")
    env = SearchEnv(backend=Given(), data=data)
    [task_id] = [t for t in env.task_ids("train", 2, 0) if env.task(t).family == "nq"]
    write_rows(tmp_path, "jsonl", [(*ROWS[0][:3], ["Schiller"]), *ROWS[1:]])
    with pytest.raises(PanelError, match=r"is not among the 2 questions of split 'train': the file .* was changed"):
        env.task(task_id)


BAD_ROWS = {
    '{"question": "q"}': "row 1 has no question or no answers",
    '{"golden_answers": ["a"]}': "row 1 has no question or no answers",
    '{"question": " ", "golden_answers": ["a"]}': "row 1 has no question or no answers",
    '{"question": "q", "golden_answers": []}': "row 1 has no question or no answers",
    '{"question": "q", "golden_answers": [1]}': r"row 1: Expected `str`, got `int` - at `\$\.golden_answers\[0\]`",
    "[1]": "row 1 is list, not an object",
    "{": "line 1: no JSON",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_is_no_question_is_named(tmp_path, row):
    (tmp_path / "test.jsonl").write_text(row + "\n")
    with pytest.raises(ConfigError, match=BAD_ROWS[row]):
        SearchEnv(backend=Given(), data={"test": [str(tmp_path / "test.jsonl")]}).task_ids("seen", 1, 0)


def test_data_that_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"env.backend is not set: the generated encyclopedia knows nothing of them"):
        SearchEnv(data={"test": ["x"]})
    for data, message in (
        ({"validation": ["x"]}, "env.data has validation: its keys are train and test"),
        ({"test": "x"}, r"env.data.test is 'x': it is a list"),
        ({"test": []}, "it is a list of one file or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchEnv(backend=Given(), data=data)
    with pytest.raises(ConfigError, match=r"env.short is set beside env.data: they belong to the generated encyclopedia"):
        SearchEnv(backend=Given(), data={"test": ["x"]}, short=True)
    with pytest.raises(ConfigError, match=r"none.jsonl does not exist"):
        SearchEnv(backend=Given(), data={"test": [str(tmp_path / "none.jsonl")]}).task_ids("seen", 1, 0)
    for name, content in (("x.csv", b""), ("x.parquet", b"no parquet")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="question file"):
            SearchEnv(backend=Given(), data={"test": [str(tmp_path / name)]}).task_ids("seen", 1, 0)
    data = write_rows(tmp_path, "jsonl")
    with pytest.raises(ConfigError, match=r"trains on 'hotpotqa', which is not in env.in_domain \(nq\)"):
        SearchEnv(backend=Given(), data=data, in_domain=["nq"]).task_ids("train", 1, 0)


def test_settings_that_cannot_work_are_refused():
    for arguments, message in (
        ({"horizon": 0}, r"env.horizon is 0: it must be at least 1"),
        ({"top_k": 0}, r"env.top_k is 0"),
        ({"max_chars": 1}, r"env.max_chars is 1"),
        ({"max_searches": 4}, r"env.max_searches is 4 with env.horizon 4: it is 0 to 3"),
        ({"reward": "bleu"}, r"env.reward is 'bleu': it is one of em, f1, em_format"),
        ({"telling": "loud"}, r"env.telling is 'loud'"),
        ({"retrieval_reward": 0.1}, r"env.retrieval_reward is 0.1, but env.reward is em"),
        ({"passages": 10}, r"env.passages is 10: the encyclopedia has names for 40 to 10000"),
        ({"in_domain": ["nq"]}, r"env.in_domain is set, but env.data is not"),
    ):
        with pytest.raises(ConfigError, match=message):
            SearchEnv(**arguments)
    with pytest.raises(ConfigError, match="asked to act before `reset`"):
        SearchEnv().step("answer[x]")
    with pytest.raises(ConfigError, match=r"EncyclopediaBackend.passages is 1"):
        EncyclopediaBackend(passages=1)


def test_the_shipped_skills_serve_every_kind_of_question_and_every_dataset():
    bank = SkillBank.load("conf/skills/search")
    for family in ("direct", "attribute", "bridge", "comparison", "chain", "longer", "same"):
        assert bank.of_family(family)
    for family in ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"):
        assert bank.of_family(family)
    assert bank.general
