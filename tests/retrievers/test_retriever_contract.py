"""What every registered retriever promises; a new one is tested by being registered."""

import inspect
import json
import pickle

import pytest

import sdar.retrievers  # noqa: F401
from sdar.parts import Retriever
from sdar.registry import parts
from sdar.types import Retrieval, Task

BANK = "conf/skills/household"
HEAT = "pick_heat_then_place_in_recep"
TASKS = [
    Task("game-1", HEAT, "heat some mug and put it in cabinet", facts={"mug": "fridge"}),
    Task("game-2", "look_at_obj_in_light", "look at pen under the desklamp", facts={"pen": "desk", "desklamp": "shelf"}),
    Task("game-3", "", "find the watch"),
    Task("game-4", "unheard_of", "put two pen in dresser", facts={"pen": "drawer"}),
]

every_retriever = pytest.mark.parametrize("cls", parts("retrievers").values(), ids=parts("retrievers").keys())


def make(cls: type[Retriever]) -> Retriever:
    if "routes" in inspect.signature(cls).parameters:
        return cls({"": parts("retrievers")["ucb"](BANK)})
    return cls(BANK) if "skills" in inspect.signature(cls).parameters else cls()


def visit(retriever: Retriever, draws: range) -> list[Retrieval]:
    """Retrieve and learn as a run does; what helps is decided by the skills alone."""
    out = []
    for draw in draws:
        for task in TASKS:
            found = retriever.retrieve(task, draw)
            retriever.observe(task, found, len("".join(found.skill_ids)) % 5 / 4)
            out.append(found)
    return out


def test_all_retrievers_have_their_short_names():
    assert {"keyword", "full", "random", "ucb", "no", "shuffled", "fact"} <= set(parts("retrievers"))


@every_retriever
def test_the_same_visit_retrieves_the_same(cls):
    one, other = make(cls), make(cls)
    backwards = {(t.id, d): other.retrieve(t, d) for d in reversed(range(5)) for t in reversed(TASKS)}
    assert {(t.id, d): one.retrieve(t, d) for d in range(5) for t in TASKS} == backwards


@every_retriever
def test_a_resumed_retriever_continues_equal(cls):
    one, resumed = make(cls), make(cls)
    visit(one, range(6))
    state = one.state_dict()
    frozen = json.loads(json.dumps(state))
    resumed.load_state_dict(frozen)
    assert visit(one, range(6, 12)) == visit(resumed, range(6, 12))
    assert one.state_dict() == resumed.state_dict()


@every_retriever
def test_a_state_is_not_changed_by_what_comes_after_it(cls):
    retriever = make(cls)
    visit(retriever, range(3))
    state = retriever.state_dict()
    before = json.dumps(state)
    visit(retriever, range(3, 6))
    restored = make(cls)
    restored.load_state_dict(state)
    visit(restored, range(3, 6))
    assert json.dumps(state) == before


@every_retriever
def test_a_retriever_crosses_process_borders(cls):
    one = make(cls)
    visit(one, range(3))
    other = pickle.loads(pickle.dumps(one))
    assert visit(one, range(3, 6)) == visit(other, range(3, 6))


@every_retriever
def test_retrieved_ids_exist_once_and_carry_the_text(cls):
    retriever = make(cls)
    for found in visit(retriever, range(3)):
        assert bool(found.skill_ids) == bool(found.text)
        assert len(set(found.skill_ids)) == len(found.skill_ids)
        if retriever.bank is not None:
            assert found.text == "\n\n".join(retriever.bank[s].text for s in found.skill_ids)
            assert found.skill_ids[:1] == ("general",)


@every_retriever
def test_a_missing_bank_is_an_error_of_the_constructor(cls):
    if "skills" in inspect.signature(cls).parameters:
        with pytest.raises(ValueError, match="does not exist"):
            cls("no/such/bank")
