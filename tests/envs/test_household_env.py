"""The household as an environment: tasks from ids, one reward, and copies that do not know each other."""

import copy
import pickle
import random

import pytest

from sdar.envs import HouseholdEnv
from sdar.envs.household_engine import FAMILIES, GameError
from sdar.errors import ConfigError, PanelError
from sdar.types import Task


def first_task(env: HouseholdEnv, split: str = "train") -> Task:
    return env.task(env.task_ids(split, 1, 0)[0])


def win(env: HouseholdEnv, task: Task) -> list:
    """Results of the expert's actions until the episode is over."""
    env.reset(task)
    expert = env.expert(task.facts, random.Random(0))
    results = []
    while not (results and results[-1].done):
        action = expert.act()
        results.append(env.step(action))
        expert.watch(action)
    return results


@pytest.mark.parametrize("world", [4, "fresh"])
def test_a_task_knows_where_its_things_usually_are(world: int | str) -> None:
    env = HouseholdEnv(world=world)
    for task in map(env.task, env.task_ids("train", 12, 0)):
        goal = env.game(task.id).goal
        assert task.facts.keys() == {goal.object_type, goal.toggle_type} - {""}


def test_without_a_world_there_is_nothing_to_know() -> None:
    env = HouseholdEnv()
    assert env.facts() == {}
    assert all(env.task(t).facts == {} for t in env.task_ids("train", 12, 0))


def test_the_facts_of_a_world_are_the_same_in_every_task_and_fresh_ones_are_not() -> None:
    env = HouseholdEnv(world=4)
    assert HouseholdEnv(world=4, receptacles=20).facts() == env.facts() != HouseholdEnv(world=5).facts()
    told = [env.task(t).facts for split in ("train", "unseen") for t in env.task_ids(split, 30, 0)]
    assert all(env.facts()[thing] == place for facts in told for thing, place in facts.items())

    fresh = HouseholdEnv(world="fresh")
    assert fresh.facts() == {}
    places: dict[str, set[str]] = {}
    for task in map(fresh.task, fresh.task_ids("train", 120, 0)):
        for thing, place in task.facts.items():
            places.setdefault(thing, set()).add(place)
    assert sum(len(p) > 1 for p in places.values()) > 10


@pytest.mark.parametrize("families", [None, ["pick_heat_then_place_in_recep"], ["look_at_obj_in_light"]])
def test_fresh_facts_never_make_a_task_impossible(families: list[str] | None) -> None:
    """A mug that is usually on a bedroom's desk cannot be heated in a kitchen: then other facts are drawn."""
    env = HouseholdEnv(world="fresh", families=families, object_types=["mug", "book", "desklamp"], receptacles=8)
    tasks = [env.task(t) for t in env.task_ids("train", 60, 0)]
    assert all(task.facts for task in tasks)
    assert tasks == [env.task(t) for t in env.task_ids("train", 60, 0)]


def test_a_task_is_plain_data_that_names_its_family_and_instruction() -> None:
    env = HouseholdEnv(world=1)
    tasks = [env.task(t) for t in env.task_ids("train", 12, 0)]
    assert [t.family for t in tasks] == [*FAMILIES, *FAMILIES]  # every family as often as any other
    for task in tasks:
        assert env.reset(task).endswith(f"Your task is to: {task.instruction}.")
        assert pickle.loads(pickle.dumps(task)) == task


def test_the_reward_comes_once_with_success() -> None:
    env = HouseholdEnv(receptacles=6)
    for task in map(env.task, env.task_ids("unseen", 6, 0)):
        results = win(env, task)
        assert [r.reward for r in results] == [0.0] * (len(results) - 1) + [10.0]
        assert [r.done for r in results] == [r.success for r in results] == [False] * (len(results) - 1) + [True]
        assert all(r.valid for r in results)
    assert win(HouseholdEnv(receptacles=6, success_reward=1.0), task)[-1].reward == 1.0


def test_an_episode_ends_at_the_horizon_without_reward() -> None:
    env = HouseholdEnv(receptacles=6, horizon=4)
    env.reset(first_task(env))
    results = [env.step("look") for _ in range(4)]
    assert [r.done for r in results] == [False, False, False, True]
    assert not any(r.success or r.reward for r in results)
    env.reset(first_task(env))
    assert not env.step("look").done  # an episode begins anew with its steps


def test_success_at_the_last_step_counts() -> None:
    env = HouseholdEnv(receptacles=6)
    task = first_task(env)
    needed = len(win(env, task))
    last = win(HouseholdEnv(receptacles=6, horizon=needed), task)[-1]
    assert last.done and last.success and last.reward == 10.0
    assert not win(HouseholdEnv(receptacles=6, horizon=needed - 1), task)[-1].success


def test_an_action_is_valid_when_the_world_understands_it() -> None:
    env = HouseholdEnv(receptacles=6)
    env.reset(first_task(env))
    for action in ("fly away", "", "LOOK", "go to moon 1"):
        result = env.step(action)
        assert not result.valid and result.observation == "Nothing happens."
    for action in env.admissible():
        assert copy.deepcopy(env).step(action).valid


def test_copies_play_their_own_episodes() -> None:
    env = HouseholdEnv(receptacles=6)
    env.reset(first_task(env))
    there = next(a for a in env.admissible() if a.startswith("go to"))
    before, seen = env.admissible(), copy.deepcopy(env).step("look")
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        twin.step(there)
        assert twin.step("look") != seen
    assert env.admissible() == before and env.step("look") == seen


def test_a_world_that_was_pickled_in_the_middle_goes_on() -> None:
    env = HouseholdEnv(receptacles=6, horizon=10)
    rng = random.Random(0)
    env.reset(first_task(env))
    for _ in range(10):
        twin = pickle.loads(pickle.dumps(env))
        action = rng.choice(env.admissible())
        assert env.step(action) == twin.step(action)
        assert env.admissible() == twin.admissible()


@pytest.mark.parametrize("settings", [{}, {"world": 4}, {"world": "fresh", "receptacles": 20}])
@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_a_demonstration_wins_from_the_start(split: str, settings: dict) -> None:
    env = HouseholdEnv(**{"receptacles": 6} | settings)
    shown = searched = 0
    for task in map(env.task, env.task_ids(split, 12, 0)):
        actions = env.demonstration(task)
        env.reset(task)
        results = [env.step(a) for a in actions]
        assert [r.success for r in results] == [False] * (len(actions) - 1) + [True]  # and it stops there
        assert all(r.valid for r in results)
        shown, searched = shown + len(actions), searched + len(win(env, task))
    assert shown < searched  # the expert has to look for what this one knows


def test_a_demonstration_knows_its_task_and_nothing_of_the_episode_that_runs() -> None:
    env, other = HouseholdEnv(receptacles=6), HouseholdEnv(receptacles=6, horizon=2)
    first, second = (env.task(t) for t in env.task_ids("train", 2, 0))
    actions = env.demonstration(first)
    env.reset(second)
    there = next(a for a in env.admissible() if a.startswith("go to"))
    env.step(there)
    before = env.admissible(), env.running.steps
    assert env.demonstration(first) == actions == other.demonstration(first) != env.demonstration(second)
    assert (env.admissible(), env.running.steps) == before
    actions.clear()  # a list of one's own
    assert env.demonstration(first)
    with pytest.raises(PanelError, match=r"belongs to a household with other settings"):
        HouseholdEnv(receptacles=7).demonstration(first)


def test_the_solution_is_the_demonstration_as_a_text() -> None:
    env = HouseholdEnv(receptacles=6)
    task = first_task(env)
    assert env.solution(task) == "\n".join(env.demonstration(task)) and env.solution(task).startswith("go to ")


@pytest.mark.parametrize("world", [4, "fresh"])
def test_a_hint_says_where_the_things_of_the_task_usually_are(world: int | str) -> None:
    env = HouseholdEnv(world=world)
    for task in map(env.task, env.task_ids("train", 24, 0)):
        goal = env.game(task.id).goal
        things = [t for t in (goal.object_type, goal.toggle_type) if t]
        hint = env.hint(task)
        assert sorted(hint.replace(". ", ".|").split("|")) == sorted(
            f"The {thing} is usually in the {task.facts[thing]}." for thing in things
        )
        assert all(thing in task.instruction for thing in things)
    assert hint not in env.solution(task)


def test_in_a_world_without_facts_the_hint_is_the_first_step() -> None:
    env = HouseholdEnv(receptacles=6)
    for task in map(env.task, env.task_ids("train", 12, 0)):
        first, *others = env.demonstration(task)
        assert env.hint(task) == f"Begin with: {first}"
        assert not any(action in env.hint(task) for action in others if action != first)


def test_an_action_before_reset_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"HouseholdEnv was asked to act before `reset`"):
        HouseholdEnv().step("look")


def test_settings_that_make_no_game_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"names 'pick_heat_then_place': .*Did you mean 'pick_heat_then_place_in_recep'\?"):
        HouseholdEnv(families=["pick_heat_then_place"])
    with pytest.raises(ConfigError, match=r"env.horizon is 0: an episode needs at least 1 action"):
        HouseholdEnv(horizon=0)
    with pytest.raises(ConfigError, match=r"env.rooms is 0"):
        HouseholdEnv(rooms=0)
    with pytest.raises(GameError, match=r"should have 3 receptacles, but a task needs at least 6"):
        HouseholdEnv(receptacles=3)
    with pytest.raises(GameError, match=r"No task of family look_at_obj_in_light is possible"):
        HouseholdEnv(world=0, object_types=["apple"])  # all six families are asked for, and nobody reads an apple
    with pytest.raises(PanelError, match=r"no split 'trian'. Did you mean 'train'\? Splits: train, seen, unseen"):
        HouseholdEnv().task_ids("trian", 1, 0)


def test_the_corpus_follows_from_its_seed_alone() -> None:
    texts, phrases = HouseholdEnv().corpus(random.Random("a"))
    assert HouseholdEnv(world=3).corpus(random.Random("a")) == (texts, phrases)
    assert len(set(phrases)) == len(phrases)
    assert any("Your task is to:" in t for t in texts) and any(" is usually in the " in t for t in texts)
