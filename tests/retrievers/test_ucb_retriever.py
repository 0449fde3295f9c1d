import math

import pytest

from sdar.errors import ConfigError, SkillBankError
from sdar.retrievers import UCBRetriever
from sdar.types import Retrieval, Task

BANK = "conf/skills/household"
HEAT = Task("h", "pick_heat_then_place_in_recep", "heat some mug and put it in cabinet")
ROOM = Task("r", "room", "tidy up")


@pytest.fixture
def bank(tmp_path):
    entries = [f"{s}: {{file: {s}.md, families: [{f}]}}" for s, f in [("a", "fam"), ("b", "fam"), ("c", "fam"), ("d", "else")]]
    (tmp_path / "mapping.yaml").write_text("\n".join([*entries, "g: {file: g.md, always: true}"]))
    for name in "abcdg":
        (tmp_path / f"{name}.md").write_text(name)
    return str(tmp_path)


FAM = Task("t", "fam", "do it")


def feed(retriever, task, *outcomes):
    for skill, success in outcomes:
        retriever.observe(task, Retrieval(("g", skill)), success)


def test_the_score_is_ucb1_by_hand(bank):
    retriever = UCBRetriever(bank, c=2.0)
    feed(retriever, FAM, ("a", 1.0), ("a", 0.5), ("b", 0.25), ("c", 0.0))
    # N = 4, ln 4 = 1.3862944: a = 0.75 + 2 sqrt(0.6931472), b = 0.25 + 2 sqrt(1.3862944), c = 0 + 2 sqrt(1.3862944)
    assert retriever.score("fam", "a") == pytest.approx(2.4151092)
    assert retriever.score("fam", "b") == pytest.approx(2.6048200)
    assert retriever.score("fam", "c") == pytest.approx(2.3548200)
    assert retriever.score("fam", "d") == math.inf
    assert retriever.retrieve(FAM).skill_ids == ("g", "b")


def test_the_constant_decides_between_the_best_and_the_rarest(bank):
    for c, chosen in [(0.0, "a"), (5.0, "b")]:
        retriever = UCBRetriever(bank, c=c)
        feed(retriever, FAM, *[("a", 1.0)] * 5, ("b", 0.5), ("c", 0.0))
        assert retriever.retrieve(FAM).skill_ids == ("g", chosen)


def test_each_task_may_have_statistics_of_its_own(bank):
    other = Task("o", "fam", "do that")
    by = {per: UCBRetriever(bank, c=0.0, per=per) for per in ("family", "task")}
    for retriever in by.values():
        feed(retriever, FAM, ("a", 1.0), ("b", 0.0), ("c", 0.0))
        feed(retriever, other, ("a", 0.0), ("b", 1.0), ("c", 0.5))
    assert [by["task"].retrieve(t).skill_ids[1] for t in (FAM, other)] == ["a", "b"]
    assert {by["family"].retrieve(FAM, k).skill_ids[1] for k in range(20)} == {"a", "b"}
    assert by["task"].rounds == {"t": 3, "o": 3} and by["family"].rounds == {"fam": 6}


def test_untried_skills_come_where_they_are_put(bank):
    for untried, chosen in [(0.6, {"b"}), (0.4, {"a"})]:
        retriever = UCBRetriever(bank, c=0.0, untried=untried)
        feed(retriever, FAM, ("a", 0.5), ("c", 0.0))
        assert {retriever.retrieve(FAM, k).skill_ids[1] for k in range(10)} == chosen
    with pytest.raises(ConfigError, match=r"UCBRetriever\.untried is inf: it is compared with a success"):
        UCBRetriever(bank, untried=math.inf)
    with pytest.raises(ConfigError, match=r"UCBRetriever\.per is 'world': statistics are kept per family or per task"):
        UCBRetriever(bank, per="world")


def test_untried_skills_come_first(bank):
    retriever = UCBRetriever(bank)
    feed(retriever, FAM, ("a", 1.0), ("c", 1.0))
    assert {retriever.retrieve(FAM, draw).skill_ids for draw in range(10)} == {("g", "b")}


def test_ties_are_spread_over_draws_and_tasks(bank):
    retriever = UCBRetriever(bank)
    assert {retriever.retrieve(FAM, draw).skill_ids[1] for draw in range(30)} == {"a", "b", "c"}
    assert {retriever.retrieve(Task(str(i), "fam", "")).skill_ids[1] for i in range(30)} == {"a", "b", "c"}


def test_the_seed_decides_between_equal_scores(bank):
    chosen = [[UCBRetriever(bank, seed=seed).retrieve(FAM, draw).skill_ids for draw in range(30)] for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def test_families_learn_apart_and_unknown_ones_choose_among_all(bank):
    retriever = UCBRetriever(bank, c=0.0)
    feed(retriever, FAM, ("a", 1.0), ("b", 0.0), ("c", 0.0))
    feed(retriever, ROOM, ("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 1.0))
    assert retriever.retrieve(FAM).skill_ids == ("g", "a")
    assert retriever.retrieve(ROOM).skill_ids == ("g", "d")


def test_several_skills_share_the_credit_of_a_round(bank):
    retriever = UCBRetriever(bank, count=2, c=1.0)
    retriever.observe(FAM, Retrieval(("g", "a", "b")), 1.0)
    retriever.observe(FAM, Retrieval(("g", "a", "c")), 0.0)
    assert retriever.state_dict() == {"rounds": {"fam": 2}, "tried": {"fam": {"a": [2, 1.0], "b": [1, 1.0], "c": [1, 0.0]}}}
    assert retriever.score("fam", "a") == pytest.approx(0.5 + math.sqrt(math.log(2) / 2))
    assert retriever.retrieve(FAM).skill_ids == ("g", "a", "b")


def test_a_family_with_fewer_skills_gets_what_there_is(bank):
    assert UCBRetriever(bank, count=2).retrieve(Task("t", "else", "")).skill_ids == ("g", "d")


def test_a_group_without_a_chosen_skill_is_no_round(bank):
    retriever = UCBRetriever(bank)
    retriever.observe(FAM, Retrieval(), 1.0)
    retriever.observe(FAM, Retrieval(("g",)), 1.0)
    assert retriever.state_dict() == {"rounds": {}, "tried": {}}


def test_the_best_skill_is_found(bank):
    retriever = UCBRetriever(bank)
    chosen = []
    for draw in range(300):
        found = retriever.retrieve(FAM, draw)
        chosen.append(found.skill_ids[1])
        retriever.observe(FAM, found, {"a": 0.1, "b": 0.2, "c": 0.9}[chosen[-1]])
    assert chosen[-100:].count("c") > 80


def test_the_shipped_bank_has_one_candidate_per_family():
    assert UCBRetriever(BANK).retrieve(HEAT).skill_ids == ("general", "heat")


@pytest.mark.parametrize("c", [-0.1, math.nan, math.inf])
def test_a_bonus_that_cannot_order_is_refused(c):
    with pytest.raises(ConfigError, match=r"UCBRetriever\.c is .*: a bonus .* is finite and not negative\. UCB1 uses 1\.414"):
        UCBRetriever(BANK, c=c)


@pytest.mark.parametrize("count", [0, 7])
def test_a_count_that_the_bank_cannot_serve_is_refused(count):
    with pytest.raises(ConfigError, match=rf"UCBRetriever\.count is {count}, but .* has 6 skills .* Choose 1 to 6"):
        UCBRetriever(BANK, count=count)


@pytest.mark.parametrize("success", [math.nan, -0.5, 10.0])
def test_a_reward_that_is_no_success_is_refused(success):
    with pytest.raises(ConfigError, match=r"success of task 'h' is .*: UCB1 needs a mean of 0/1 outcomes"):
        UCBRetriever(BANK).observe(HEAT, Retrieval(("heat",)), success)


def test_statistics_of_another_bank_are_refused():
    with pytest.raises(
        SkillBankError, match=r"household lacks gone, which the saved statistics are about: the bank has changed"
    ):
        UCBRetriever(BANK).load_state_dict({"rounds": {"f": 1}, "tried": {"f": {"gone": [1, 1.0]}}})
