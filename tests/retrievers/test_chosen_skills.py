"""Which skills each retriever gives, by hand."""

import pytest
from fact_bank import write_fact_bank

from sdar.errors import ConfigError
from sdar.retrievers import (
    FactRetriever,
    FullRetriever,
    KeywordRetriever,
    NoRetriever,
    RandomRetriever,
    ShuffledRetriever,
    UCBRetriever,
)
from sdar.types import Retrieval, Task

BANK = "conf/skills/household"
SPECIFIC = {"pick_and_place", "look_at_obj_in_light", "clean", "heat", "cool", "pick_two"}
FACTS = {"mug": "fridge", "desklamp": "shelf", "pen": "desk", "egg": "sinkbasin"}
HEAT = Task("t", "pick_heat_then_place_in_recep", "heat some mug and put it in cabinet")


@pytest.fixture
def facts(tmp_path):
    write_fact_bank(FACTS, tmp_path)
    return str(tmp_path)


@pytest.fixture
def only_general(tmp_path):
    (tmp_path / "mapping.yaml").write_text("g: {file: g.md, always: true}")
    (tmp_path / "g.md").write_text("text")
    return str(tmp_path)


def test_no_retriever_gives_nothing():
    assert NoRetriever().retrieve(HEAT) == Retrieval()


def test_full_retrieval_gives_the_general_skills_first(tmp_path):
    (tmp_path / "mapping.yaml").write_text("a: {file: a.md}\ng: {file: g.md, always: true}\n")
    (tmp_path / "a.md").write_text("a\na")
    (tmp_path / "g.md").write_text("g\ng")
    assert FullRetriever(str(tmp_path)).retrieve(HEAT) == Retrieval(("g", "a"), "g\ng\n\na\na")


def test_keywords_do_not_matter_where_the_family_is_known():
    task = Task("t", "pick_cool_then_place_in_recep", "cool some pan, do not heat or clean two of them")
    assert KeywordRetriever(BANK).retrieve(task).skill_ids == ("general", "cool")


@pytest.mark.parametrize(
    "instruction, text",
    [
        ("put some mug on desk", "The mug is usually in the fridge."),
        ("look at mug under the desklamp", "The mug is usually in the fridge. The desklamp is usually in the shelf."),
        ("under the desklamp, look at mug", "The desklamp is usually in the shelf. The mug is usually in the fridge."),
        ("put the smug eggs away", ""),
    ],
)
def test_a_fact_bank_tells_what_the_instruction_names(facts, instruction, text):
    assert KeywordRetriever(facts).retrieve(Task("t", "pick_and_place_simple", instruction)).text == text


def test_a_fact_bank_and_the_facts_of_the_world_read_the_same(facts):
    task = Task("t", "", "look at mug under the desklamp", facts={"mug": "fridge", "desklamp": "shelf"})
    assert FactRetriever().retrieve(task) == KeywordRetriever(facts).retrieve(task)
    assert FactRetriever().retrieve(task).skill_ids == ("fact:mug", "fact:desklamp")


def test_the_facts_template_is_the_users():
    task = Task("t", "", "", facts={"a {b}": "c"})
    assert FactRetriever("{place}: {thing}").retrieve(task).text == "c: a {b}"
    assert FactRetriever().retrieve(HEAT) == Retrieval()


def test_a_template_of_ones_own_stands_above_the_worlds(tiny_env):
    task = Task("t", "", "", facts={"mug": "fridge"})
    for template, text in [(None, "fridge holds mug"), ("{place:>8}: {thing:>5}", "  fridge:   mug")]:
        retriever = FactRetriever(template)
        tiny_env.fact_template = "{place} holds {thing}"
        retriever.bind_env(tiny_env)
        assert retriever.retrieve(task).text == text


@pytest.mark.parametrize("cls", [UCBRetriever, RandomRetriever, ShuffledRetriever])
def test_the_first_visit_is_the_one_before_any_count(cls):
    for number in range(20):
        task = Task(str(number), "room", "tidy up")
        assert cls(BANK).retrieve(task) == cls(BANK, seed=0).retrieve(task, 0)


@pytest.mark.parametrize(
    "template, message",
    [
        ("The {thing} is away.", r"template 'The \{thing\} is away\.' lacks \{place\}: the sentence would hide half"),
        ("The {thing} is in {plase}.", r"has the field \{plase\}, which a fact does not have\. Did you mean 'place'\? Use"),
        ("{thing} {place} {}", r"has the field \{\}, which a fact does not have\. Use \{thing\} and \{place\}"),
        ("{thing} {place", r"cannot be filled in: .*Write a literal brace as '\{\{'"),
        ("{thing:d} {place}", r"cannot be filled in: "),
    ],
)
def test_a_template_that_cannot_tell_a_fact_is_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        FactRetriever(template)


def test_a_random_choice_has_the_asked_size_and_reaches_every_skill():
    retriever = RandomRetriever(BANK, count=2, seed=3)
    draws = [retriever.retrieve(HEAT, draw).skill_ids for draw in range(60)]
    assert all(ids[0] == "general" and len(ids) == 3 for ids in draws)
    assert {s for ids in draws for s in ids} == {"general", *SPECIFIC}
    assert draws != [RandomRetriever(BANK, count=2, seed=4).retrieve(HEAT, draw).skill_ids for draw in range(60)]


@pytest.mark.parametrize("count", [0, 7])
def test_a_random_choice_refuses_a_size_it_cannot_have(count):
    with pytest.raises(ConfigError, match=rf"RandomRetriever\.count is {count}, but .* has 6 skills .* Choose 1 to 6"):
        RandomRetriever(BANK, count=count)


def test_a_random_choice_depends_on_the_task_and_takes_one_by_default():
    found = [RandomRetriever(BANK).retrieve(Task(str(number), "room", "tidy up")).skill_ids for number in range(20)]
    assert {len(ids) for ids in found} == {2} and len({*found}) > 1


def test_a_random_choice_needs_something_to_choose(only_general):
    with pytest.raises(ConfigError, match=r"has 0 skills to choose from besides the 1 .* Use FullRetriever, or add skills"):
        RandomRetriever(only_general)


@pytest.mark.parametrize("seed", range(5))
def test_the_placebo_gives_as_many_skills_and_never_a_right_one(facts, seed):
    cases = [
        (BANK, HEAT),
        (BANK, Task("t", "", "put two clean pen")),
        (facts, Task("t", "", "mug")),
        (facts, Task("t", "", "pen, egg")),
    ]
    for bank, task in cases:
        right = KeywordRetriever(bank).retrieve(task).skill_ids
        wrong = ShuffledRetriever(bank, seed).retrieve(task).skill_ids
        assert len(set(wrong)) == len(right)
        assert set(right) & set(wrong) <= {"general"}
        assert wrong[:1] == ("general",) or bank == facts


@pytest.mark.parametrize("seed", range(5))
def test_the_placebo_pairs_every_skill_with_another_one(facts, seed):
    retriever = ShuffledRetriever(facts, seed)
    partner = {thing: retriever.retrieve(Task("t", "", thing), draw).skill_ids for draw in range(3) for thing in FACTS}
    assert sorted(partner.values()) == sorted((f"fact:{thing}",) for thing in FACTS)
    assert all(ids != (f"fact:{thing}",) for thing, ids in partner.items())


def test_another_seed_is_another_placebo(facts):
    assert len({ShuffledRetriever(facts, seed).retrieve(Task("t", "", "mug")).text for seed in range(20)}) == 3


def test_the_placebo_runs_out_when_a_task_names_nearly_everything(facts):
    found = ShuffledRetriever(facts).retrieve(Task("t", "", "mug desklamp pen"))
    assert found.skill_ids == ("fact:egg",)


def test_the_placebo_of_two_skills_is_the_other_one(tmp_path):
    write_fact_bank({"mug": "fridge", "pen": "desk"}, tmp_path)
    placebo = ShuffledRetriever(str(tmp_path), seed=3)
    assert placebo.seed == 3
    assert [placebo.retrieve(Task("t", "", thing)).skill_ids for thing in ("mug", "pen")] == [("fact:pen",), ("fact:mug",)]


def test_the_placebo_needs_two_skills(only_general):
    with pytest.raises(
        ConfigError, match=r"has 0 skill\(s\) besides the general ones, and a placebo .* Use a bank with at least 2"
    ):
        ShuffledRetriever(only_general)
