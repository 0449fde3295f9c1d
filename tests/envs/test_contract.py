"""What a rollout relies on, of every registered environment: a new one is covered by being registered."""

import copy
import math
import pickle
import random

import pytest
from worlds import WORLDS, made

from sdar.errors import ConfigError, PanelError
from sdar.parts import Environment
from sdar.rollout.pool import LocalPool, make_pool
from sdar.types import Task

HOSTILE = [
    "",
    " ",
    "\x00",
    "<|im_end|>",
    "<|eot_id|><|start_header_id|>",
    "\u202eabc\u202c",
    "[" * 40,
    "search[",
    "\ud800",
    "x" * 100_000,
]


@pytest.fixture(params=WORLDS)
def env(request) -> Environment:
    return made(request.param)


def actions(env: Environment, rng: random.Random) -> str:
    """Something that the world would accept, or something that nobody should say."""
    told = env.admissible()
    return rng.choice(told) if told and rng.random() < 0.7 else rng.choice(HOSTILE)


def test_panels_are_a_function_of_their_arguments_and_share_no_task(env: Environment) -> None:
    ids = {split: env.task_ids(split, 4, 0) for split in env.splits}
    assert {split: made(type(env).__name__).task_ids(split, 4, 0) for split in env.splits} == ids
    every = [task_id for split in env.splits for task_id in ids[split]]
    assert len(set(every)) == 4 * len(env.splits)
    assert env.task_ids(env.splits[0], 2, 0) == ids[env.splits[0]][:2]
    with pytest.raises(PanelError, match=rf"{type(env).__name__} has no split 'nowhere'"):
        env.task_ids("nowhere", 1, 0)


def test_a_task_is_plain_data_and_the_same_for_every_copy(env: Environment) -> None:
    other = made(type(env).__name__)
    for split in env.splits:
        for task_id in env.task_ids(split, 3, 0):
            task = env.task(task_id)
            assert task == other.task(task_id)
            assert task.id == task_id and task.family and task.instruction
            assert all(isinstance(text, str) for pair in task.facts.items() for text in pair)
            assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(PanelError):
        env.task("no-such-task")


def test_a_copy_is_small(env: Environment) -> None:
    env.task(env.task_ids(env.splits[0], 1, 0)[0])
    assert len(pickle.dumps(env)) < 20_000
    assert copy.deepcopy(env).task_ids(env.splits[0], 2, 0) == env.task_ids(env.splits[0], 2, 0)


def test_an_episode_ends_in_time_whatever_is_said_and_a_saved_one_goes_on(env: Environment) -> None:
    for number, task_id in enumerate(env.task_ids(env.splits[0], 3, 0)):
        rng, other = random.Random(number), made(type(env).__name__)
        task = env.task(task_id)
        assert env.reset(task)
        taken, half = 0, max(1, env.horizon // 4)
        while True:
            if taken == half:
                other.restore(env.save())
            action = actions(env, rng)
            result = env.step(action)
            taken += 1
            if taken > half:
                assert other.step(action) == result
            assert isinstance(result.observation, str) and math.isfinite(result.reward)
            assert all(0 <= score <= 1 for score in result.scores.values())
            assert result.done or not result.success
            assert not result.truncated or (result.done and not result.success and taken == env.horizon)
            if result.done:
                break
            assert taken < env.horizon
            assert taken <= half or other.admissible() == env.admissible()
        other.close()
    env.close()


def test_an_episode_that_says_nothing_is_truncated_and_one_that_is_cut_is_worth_no_more(env: Environment) -> None:
    task = env.task(env.task_ids(env.splits[0], 1, 0)[0])
    env.reset(task)
    results = [env.step("") for _ in range(env.horizon)]
    assert [(r.done, r.truncated) for r in results] == [(False, False)] * (env.horizon - 1) + [(True, True)]
    env.reset(task)
    env.step("")
    cut = env.unfinished()
    assert cut.done and cut.truncated and not cut.success
    assert cut.reward <= results[-1].reward and all(0 <= score <= 1 for score in cut.scores.values())
    env.close()


def test_attempts_at_one_task_in_a_pool_do_not_touch_each_other(env: Environment) -> None:
    task = env.task(env.task_ids(env.splits[0], 1, 0)[0])
    alone, pool = LocalPool(env), make_pool(env, 0, 60.0, threads=3)
    expected = [alone.reset({0: task})[0], *(alone.step({0: said})[0] for said in ("one", "two"))]
    assert all(seen.fault is None for seen in expected)
    seen = pool.reset({slot: task for slot in range(3)})
    assert seen == {slot: expected[0] for slot in range(3)}
    assert pool.step({0: "one", 2: "one"}) == {0: expected[1], 2: expected[1]}
    assert pool.step({0: "two"}) == {0: expected[2]}
    assert pool.step({1: "one"}) == {1: expected[1]}
    for each in (alone, pool):
        each.close()


def test_demonstrations_reach_the_goal(env: Environment) -> None:
    for split in env.splits:
        for task_id in env.task_ids(split, 6, 1):
            task = env.task(task_id)
            try:
                shown = env.demonstration(task)
            except ConfigError as error:
                assert "has no demonstrations" in str(error)
                return
            env.reset(task)
            results = [env.step(action) for action in shown]
            assert [r.done for r in results] == [False] * (len(shown) - 1) + [True]
            assert results[-1].success and len(shown) <= env.horizon
            assert env.solution(task)
    env.close()


def test_acting_before_an_episode_is_an_error_that_says_so(env: Environment) -> None:
    with pytest.raises(ConfigError, match=rf"{type(env).__name__} was asked to act before `reset`: begin an episode first"):
        LocalPool(env).step({0: "go"})


def test_how_long_one_may_try_is_no_part_of_a_task() -> None:
    for name in WORLDS:
        env = made(name)
        other = made(name, horizon=env.horizon + 1)
        assert other.horizon == env.horizon + 1
        assert isinstance(other.task(env.task_ids(env.splits[0], 1, 0)[0]), Task)
