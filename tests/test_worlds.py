"""Several worlds in one run: whose tasks come when, how they are told and played, and what is refused before anything is loaded."""

from pathlib import Path

import pytest
from faulty_world import FaultyWorld
from scripted import Parrot, ScriptedSampler, word_chat

from sdar import registry
from sdar.data import MultiTaskModule, Panel, TaskModule, World
from sdar.envs import CompactProtocol, HouseholdEnv, MathEnv, ThinkActProtocol
from sdar.errors import ConfigError, PanelError
from sdar.retrievers import FactRetriever, NoRetriever, RoutedRetriever, UCBRetriever
from sdar.rollout import Request, Rollout
from sdar.rollout.pool import LocalPool
from sdar.rollout.standing import Standing
from sdar.rollout.worlds import WorldsRollout
from sdar.teachers import InitialTeacher, LiveTeacher, RoutedTeacher, SkillView
from sdar.types import Task

registry.load_parts()
HOUSE = {"world": 5, "receptacles": 6, "distractors": 1, "horizon": 3}


def house(**settings) -> World:
    return World(HouseholdEnv(**HOUSE), **{"protocol": CompactProtocol()} | settings)


def maths(**settings) -> World:
    return World(MathEnv(level="easy", horizon=2), **{"val_splits": ["unseen"], "layout": "trajectory"} | settings)


def two(first=None, second=None, **settings) -> MultiTaskModule:
    small = {"tasks_per_step": 4, "group_size": 2, "train_tasks": 12, "val_tasks": 4}
    return MultiTaskModule({"house": first or house(), "math": second or maths()}, **small | settings)


def names(step) -> list[str]:
    return [task.world for task in step.tasks]


def test_each_world_has_its_own_settings_and_those_of_the_run():
    data = two(house(max_new_tokens=3), maths(group_size=3, val_attempts=2), history=1)
    one, other = data.worlds.values()
    assert (one.layout, one.group_size, one.history, one.max_new_tokens, one.env.horizon) == ("turn", 2, 1, 3, 3)
    assert (other.layout, other.group_size, other.val_attempts, other.max_new_tokens) == ("trajectory", 3, 2, None)
    assert [p.name for p in data.panels()] == ["house/train", "house/seen", "house/unseen", "math/train", "math/unseen"]
    assert [[s.panel.name for s in pieces] for pieces in data.val_dataloader()] == [
        ["house/seen"],
        ["house/unseen"],
        ["math/unseen"],
    ]
    alone = TaskModule(HouseholdEnv(**HOUSE), train_tasks=12, val_tasks=4)
    assert [p.hash for p in data.panels()[:3]] == [p.hash for p in alone.panels()]


@pytest.mark.parametrize("batching", ["mixed", "sequential"])
def test_a_world_s_tasks_come_in_the_order_of_a_run_of_its_own(batching):
    data = two(house(share=3), maths(share=1), batching=batching)
    steps = [data.step(1, iteration) for iteration in range(8)]
    assert [len(step.tasks) for step in steps] == [4] * 8
    for name, world in data.worlds.items():
        mine = [(t.id, v) for s in steps for t, v in zip(s.tasks, s.visits, strict=True) if t.world == name]
        alone = world.drawn(1, range(len(mine)))
        assert mine == [(t.id, v) for t, v in zip(alone.tasks, alone.visits, strict=True)]
        assert len(mine) == (24 if name == "house" else 8)
    if batching == "mixed":
        assert all(names(step) == ["house"] * 3 + ["math"] for step in steps)
    else:
        assert [{*names(step)} for step in steps] == [{w} for w in ("house", "house", "math", "house") * 2]
    assert data.step(1, 5) == two(house(share=3), maths(share=1), batching=batching).step(1, 5)


def loops(chat, sampler) -> dict[str, Rollout]:
    """A world that one answers in three turns, and one of five, told in the other layout and with shorter responses."""
    short, long = LocalPool(Parrot(["one", "two", "three"])), LocalPool(FaultyWorld())
    return {
        "short": Rollout(short, CompactProtocol(), chat, sampler, SkillView(), "trajectory", horizon=3, seed=7),
        "long": Rollout(long, ThinkActProtocol(), chat, sampler, SkillView(), "turn", 2, 5, 7, max_new_tokens=6),
    }


def test_worlds_are_played_together_as_each_is_alone():
    """Every turn is one call for each limit of new tokens, and the episodes are those of either world's own loop, in order."""
    chat = word_chat()

    def script(draw):
        return "go" if draw.task == "a" else "say <action>go</action>"

    requests = [
        Request(Task(name, "faulty", "begin", world=world), n)
        for n, (name, world) in enumerate([("a", "short"), ("b", "long"), ("c", "long"), ("d", "short")])
    ]
    together = WorldsRollout(loops(chat, sampler := ScriptedSampler(script, chat)))
    told: list[Standing] = []
    together.progress = told.append
    played = together(None, requests)
    for world in ("short", "long"):
        alone = loops(chat, ScriptedSampler(script, chat))[world]
        mine = [n for n, r in enumerate(requests) if r.task.world == world]
        assert alone(None, [requests[n] for n in mine]) == [played[n] for n in mine]
    assert [len(call) for call in sampler.calls] == [2] * 8  # 3 turns of two episodes, and 5: other limits, other calls
    assert (told[-1].ended, told[-1].of) == (4, 4) and [e.task.id for e in played] == [*"abcd"]
    assert [bool(e.turn_messages) for e in played] == [False, True, True, False]
    assert {*together.tags} == {"think", "action"} and together.of(requests[1].task).max_new_tokens == 6
    together.seed = 9
    assert {loop.seed for loop in together.rollouts.values()} == {9}


def test_worlds_with_one_limit_share_the_sampler_s_calls():
    chat = word_chat()
    sampler = ScriptedSampler(lambda draw: "go", chat)
    pools = {name: LocalPool(Parrot(["one", "two"])) for name in "ab"}
    rollout = WorldsRollout(
        {n: Rollout(p, CompactProtocol(), chat, sampler, SkillView(), horizon=2) for n, p in pools.items()}
    )
    rollout(None, [Request(Task(f"{world}{n}", "f", "", world=world), 0) for world in "ab" for n in range(2)])
    assert [[draw.task for draw, _ in call] for call in sampler.calls] == [["a0", "a1", "b0", "b1"]] * 2
    assert sampler.resets == 1


def test_a_task_s_teacher_is_that_of_its_family_then_of_its_world():
    house, heat, other = InitialTeacher(), LiveTeacher(), LiveTeacher()
    routed = RoutedTeacher({"house": house, "heat": heat}, other)
    tasks = [
        Task("1", "cool", "", world="house"),
        Task("2", "heat", "", world="house"),
        Task("3", "algebra", "", world="math"),
    ]
    assert [routed.of(task) for task in tasks] == [house, heat, other]
    with pytest.raises(
        ConfigError, match=r"family 'algebra' in math, .*names no teacher. Routed worlds and families: house. Add"
    ):
        RoutedTeacher({"house": house}).of(tasks[2])


def test_each_world_has_a_retriever_of_its_own_that_learns_and_goes_on():
    def made():
        return RoutedRetriever({"house": UCBRetriever("conf/skills/quickstart"), "math": NoRetriever()})

    one, other, data = made(), made(), two()
    data.bind(NoPolicy(), one)
    task, answer = data.step(0, 0).tasks[0], data.step(0, 0).tasks[-1]
    assert one.retrieve(task).text and not one.retrieve(answer).text and one.bank_of("math") is None
    one.observe(task, one.retrieve(task), 1.0)
    assert [*one.state_dict()] == ["house"]
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() and other.retrieve(task, 1) == one.retrieve(task, 1)


class NoPolicy:
    def bind_env(self, env) -> None: ...


@pytest.mark.parametrize(
    "retriever, said",
    [
        (FactRetriever(), r"model.retriever is FactRetriever, which is made for one world, and this run has house, math"),
        (
            RoutedRetriever({"house": FactRetriever()}),
            r"routes names no retriever for the world 'math'; this run's worlds are house, m",
        ),
        (
            RoutedRetriever({"hous": NoRetriever(), "house": NoRetriever(), "math": NoRetriever()}),
            r"names 'hous'.*Did you mean 'house'",
        ),
    ],
)
def test_a_retriever_that_is_not_for_every_world_is_refused(retriever, said):
    with pytest.raises(ConfigError, match=said):
        two().bind(NoPolicy(), retriever)


@pytest.mark.parametrize(
    "make, error, said",
    [
        (
            lambda: MultiTaskModule({}),
            ConfigError,
            r"data.envs is empty: there is no world to play in. Name at least one, or use Task",
        ),
        (
            lambda: MultiTaskModule({"a b": house()}),
            ConfigError,
            r"data.envs has a world 'a b': names of worlds stand in names of",
        ),
        (
            lambda: two(batching="turns"),
            ConfigError,
            r"data.batching is 'turns': worlds are `mixed` in each iteration, or take turns",
        ),
        (lambda: two(tasks_per_step=0), ConfigError, r"data.tasks_per_step is 0"),
        (lambda: two(house(group_size=0)), ConfigError, r"data.envs.house: data.group_size is 0"),
        (lambda: two(house(max_new_tokens=0)), ConfigError, r"data.envs.max_new_tokens is 0"),
        (lambda: two(house(protocol=None), house()), PanelError, r"house and math both have the task .*Give them other tasks"),
        (
            lambda: two(val_means={"m": ["maths/unseen"]}),
            ConfigError,
            r"val_means.m names 'maths/unseen', and no panel 'maths'",
        ),
        (
            lambda: two(second=maths(val_splits=["seem"])),
            PanelError,
            r"data.envs.math: data.val_splits names 'seem'.*no split 'seem'",
        ),
        (lambda: two().only, ConfigError, r"this run has the worlds house, math, and one is asked for: .*self.env_of\(task\)"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_world(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_panels_of_a_world_come_from_files_by_its_own_splits(tmp_path: Path) -> None:
    own = Panel.generate(HouseholdEnv(**HOUSE), "unseen", 3, 99)
    own.save(tmp_path / "unseen.json")
    data = two(house(val_splits=["unseen"], panel_files={"unseen": str(tmp_path / "unseen.json")}))
    assert [(p.name, p.hash) for p in data.worlds["house"].val_panels] == [("house/unseen", own.hash)]
