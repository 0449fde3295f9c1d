"""The original engine as an environment: its process, and episodes that are taken up by playing them again.

What the engine itself says is the business of test_alfworld_parity.py; here something stands in for the interpreter.
"""

import copy
import json
import random
import sys
from pathlib import Path

import pytest

from sdar.envs import ALFWorldEnv, HouseholdEnv, alfworld
from sdar.envs import household_official as official
from sdar.envs.alfworld import original
from sdar.envs.household_files import DOMAIN_TEXT, TEXTS, Logic
from sdar.envs.household_official import export_games
from sdar.errors import ConfigError, EnvironmentFault
from sdar.rollout.pool import LocalPool
from sdar.types import Status

LOGIC = Logic(DOMAIN_TEXT, "\n".join([*TEXTS, '"rhs": "Your task is to: UNKNOWN GOAL."']))

STAND_IN = """#!{python}
import json, sys
print(json.dumps({{"python": "stand-in"}}), flush=True)
slots = {{}}
for line in sys.stdin:
    with open({log!r}, "a") as log:
        log.write(line)
    asked = json.loads(line)
    for left in asked["left"]:
        slots.pop(left, None)
    command = asked.get("act")
    if "load" in asked:
        slots[asked["slot"]] = []
    elif command == "die":
        print("a last word", file=sys.stderr)
        sys.exit(3)
    elif command == "fail":
        print(json.dumps({{"error": "ValueError: no"}}), flush=True)
        continue
    else:
        slots[asked["slot"]].append(command)
    told = "Nothing happens." if command == "fly" else "%s then %s" % (asked.get("task"), slots[asked["slot"]])
    print(json.dumps({{"observation": told, "admissible": ["look"], "won": command == "win", "score": 0}}), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alfworld")
    made = HouseholdEnv(receptacles="full")
    for split in ("train", "seen", "unseen"):
        export_games({task_id: made.game(task_id) for task_id in made.task_ids(split, 6, 0)}, folder, split, LOGIC)
    return folder


@pytest.fixture
def python(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    official.trials.cache_clear()
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, log=str(tmp_path / "log")))
    path.chmod(0o755)
    yield path
    original(str(path)).close()


@pytest.fixture
def env(data, python) -> ALFWorldEnv:
    return ALFWorldEnv(data=str(data), python=str(python), horizon=4)


def asked(python: Path) -> list[dict]:
    return [json.loads(line) for line in (python.parent / "log").read_text().splitlines()]


def test_tasks_are_those_of_the_household_on_the_same_files(env, data) -> None:
    household = HouseholdEnv(data=str(data))
    for split in env.splits:
        ids = household.task_ids(split, 6, 0)
        assert env.task_ids(split, 6, 0) == ids
        assert [env.task(task_id) for task_id in ids] == [household.task(task_id) for task_id in ids]
    task = env.task(ids[0])
    assert env.demonstration(task) == household.demonstration(task)


def test_an_episode_ends_at_the_goal_or_the_horizon(env) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    assert env.reset(task) == "None then []"
    assert env.admissible() == ["look"]
    result = env.step("look")
    assert (result.observation, result.valid, result.done, result.reward) == ("None then ['look']", True, False, 0.0)
    assert env.step("fly").valid is False
    result = env.step("win")
    assert (result.success, result.done, result.reward) == (True, True, 10.0)
    env.reset(task)
    assert [env.step("look").done for _ in range(4)] == [False, False, False, True]


def test_a_saved_episode_is_played_again_where_it_goes_on(env, python) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    env.reset(task)
    env.step("a")
    env.step("b")
    other = copy.deepcopy(env)
    state = env.save()
    assert other.step("c").observation == env.step("c").observation == "None then ['a', 'b', 'c']"
    env.restore(state)
    assert env.admissible() == ["look"]
    assert env.step("d").observation == "None then ['a', 'b', 'd']"
    commands = [one.get("act", "load") for one in asked(python)]
    assert commands == ["load", "a", "b", "load", "a", "b", "c", "c", "load", "a", "b", "d"]


def test_copies_share_a_process_and_leave_their_games(env, python) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    other = copy.deepcopy(env)
    env.reset(task)
    other.reset(task)
    first, second = (one["slot"] for one in asked(python))
    assert first != second
    other.close()
    env.step("look")
    assert asked(python)[-1]["left"] == [second]
    del env, other


def test_a_process_that_died_is_started_anew(env, python) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    env.reset(task)
    env.step("a")
    neighbour = copy.deepcopy(env)
    neighbour.step("b")
    with pytest.raises(EnvironmentFault, match=r"process ended with exit code 3; it had said: a last word"):
        env.step("die")
    assert neighbour.step("c").observation == "None then ['a', 'b', 'c']"


def test_an_interrupted_request_leaves_no_answer_behind(env, monkeypatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    env.reset(env.task(env.task_ids("train", 1, 0)[0]))
    env.step("a")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(alfworld.Original, "_answer", interrupt)
        env.step("never heard of")
    assert env.step("b").observation == "None then ['a', 'b']"


def test_an_error_of_the_engine_ends_the_episode_with_a_status(env) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    pool = LocalPool(env)
    pool.reset({0: task, 1: task})
    seen = pool.step({0: "fail", 1: "look"})
    assert (
        seen[0].fault is Status.ENV_ERROR
        and "the original engine failed at" in seen[0].error
        and "ValueError: no" in seen[0].error
    )
    assert seen[1].fault is None
    assert pool.reset({0: task})[0].fault is None


def test_hostile_commands_reach_the_engine_as_they_are(env, python) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    for command in ("\x00", "\ud800", "line\nbreak", "\u2028", "x" * 100_000):
        env.reset(task)
        env.step(command)
        assert asked(python)[-1]["act"] == command


def test_the_sentence_of_a_person_replaces_the_files(data, python) -> None:
    env = ALFWorldEnv(data=str(data), python=str(python), human_goals=True)
    task = env.task(env.task_ids("train", 1, 0)[0])
    assert env.reset(task) == f"{task.instruction} then []"


def test_the_expert_follows_the_episode_beside_it(env) -> None:
    task = env.task(env.task_ids("train", 1, 0)[0])
    household = HouseholdEnv(data=env.data)
    env.reset(task)
    household.reset(task)
    env.step("look")
    household.step("look")
    one, other = env.expert({}, random.Random(3)), household.expert({}, random.Random(3))
    for _ in range(40):
        command = one.act()
        assert other.act() == command
        one.watch(command)
        household.step(command)
        other.watch(command)
    assert household.running.won


def test_an_interpreter_that_is_not_there_or_has_no_alfworld_is_refused(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    env = ALFWorldEnv(data=str(data), python=str(tmp_path / "none"))
    task = env.task(env.task_ids("train", 1, 0)[0])
    for ask in (lambda: env.reset(task), env.check):
        with pytest.raises(ConfigError, match=r"env.python is '.*none', which cannot be started"):
            ask()
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    with pytest.raises(ConfigError, match=r"does not start with .*bare: No module named .*pip install alfworld"):
        ALFWorldEnv(data=str(data), python=str(bare)).reset(task)
    with pytest.raises(ConfigError, match="ALFWorldEnv was asked to act before `reset`"):
        ALFWorldEnv(data=str(data)).step("look")
