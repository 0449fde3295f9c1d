"""Curricula: which turns of an episode are the student's, by hand and in a real world."""

import json
from dataclasses import replace

import pytest
from faulty_world import FaultyWorld
from scripted import ScriptedSampler, word_chat

from sdar.curricula import BackToFront, FrontToBack
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import ConfigError
from sdar.parts import EpisodeController
from sdar.registry import load_parts, parts
from sdar.rollout import LocalPool, Request, Rollout
from sdar.teachers import SkillView
from sdar.types import Episode, Retrieval, Status, Task

load_parts()
CONTROLLERS = {name: cls for name, cls in parts("controllers").items() if cls.__module__.startswith("sdar.")}

ACTIONS = ["a", "b", "c", "d", "e"]


class Demonstrating(FaultyWorld):
    """A world that can show how its tasks are solved."""

    def demonstration(self, task: Task) -> list[str]:
        return list(ACTIONS)


def request(task_id: str = "task-1", **kwargs) -> Request:
    return Request(Task(task_id, "faulty", "begin"), 3, **kwargs)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_curriculum_only_changes_how_an_attempt_is_played(name: str) -> None:
    """Task, attempt, retrieval and privilege are the request's; it is not changed itself; more turns come with time."""
    asked = request(retrieval=Retrieval(("s",), "skill"), privileged=True, privileged_text="skill", extra=True)
    before = replace(asked)
    turns = []
    for iteration in range(40):
        played = CONTROLLERS[name]()(asked, iteration, Demonstrating())
        assert asked == before and replace(played, max_turns=None, replay=()) == before
        turns.append(played.max_turns or len(ACTIONS) - len(played.replay))
        assert turns[-1] >= 1
    assert turns == sorted(turns) and turns[0] == 1 and turns[-1] > 1


@pytest.mark.parametrize(
    ("settings", "caps"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 2, 2]),  # every 6 iterations, as published
        ({"every": 1}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every": 3, "start": 2}, [2, 2, 2, 3, 3, 3, 4, 4]),
        ({"first": 1}, [1, 1, 1, 1, 1, 2, 2, 2]),  # as its code counts
    ],
)
def test_front_to_back_caps_the_turns(settings: dict, caps: list[int]) -> None:
    played = [FrontToBack(**settings)(request(), i, FaultyWorld()) for i in range(8)]
    assert [r.max_turns for r in played] == caps
    assert all(r.replay == () for r in played)


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, [1, 1, 1, 1, 1, 2, 2, 2]),
        ({"every": 2}, [1, 1, 2, 2, 3, 3, 4, 4]),
        ({"every": 1, "start": 2}, [2, 3, 4, 5, 5, 5, 5, 5]),  # all are the student's
        ({"start": 9}, [5] * 8),
        ({"every": 3, "first": 1}, [1, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_back_to_front_leaves_the_last_turns(settings: dict, left: list[int]) -> None:
    played = [BackToFront(**settings)(request(), i, Demonstrating()) for i in range(8)]
    assert [r.replay for r in played] == [tuple(ACTIONS[: 5 - n]) for n in left]
    assert all(r.max_turns is None for r in played)


def play(controller: EpisodeController, iteration: int) -> tuple[Episode, int]:
    """A household task that the student plays as the demonstration does; and how many turns that takes."""
    env, chat = HouseholdEnv(receptacles=6, distractors=1), word_chat()
    task = env.task(env.task_ids("train", 1, 0)[0])
    actions = env.demonstration(task)
    sampler = ScriptedSampler(lambda draw: actions[draw.turn], chat)
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(), horizon=env.horizon)
    [episode] = rollout(None, [controller(Request(task, 0), iteration, env)])
    return episode, len(actions)


@pytest.mark.parametrize("iteration", [0, 1, 2, 50])
def test_the_student_finishes_what_the_world_demonstrates(iteration: int) -> None:
    episode, needed = play(BackToFront(every=1), iteration)
    assert episode.success and episode.status == Status.DONE and episode.reward == 10.0
    own = min(iteration + 1, needed)
    assert [t.trainable for t in episode.turns] == [False] * (needed - own) + [True] * own


@pytest.mark.parametrize("iteration", [0, 1, 50])
def test_the_student_is_stopped_before_it_can_finish(iteration: int) -> None:
    episode, needed = play(FrontToBack(every=1), iteration)
    won = iteration + 1 >= needed
    assert (episode.success, episode.status) == ((True, Status.DONE) if won else (False, Status.HORIZON))
    assert len(episode.turns) == min(iteration + 1, needed) and all(t.trainable for t in episode.turns)


def test_demonstrations_can_come_from_a_file(tmp_path) -> None:
    """Then the world is not asked; an empty line is no line, and a text may hold any character."""
    path = tmp_path / "demonstrations.jsonl"
    odd = ["go\u2028on", 'say "ü"', "win"]
    lines = [{"task": "task-1", "actions": odd, "score": 1}, {"task": "task-2", "actions": []}]
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    controller = BackToFront(demonstrations=str(path))
    assert controller(request(), 0, FaultyWorld()).replay == tuple(odd[:2])
    assert controller(request("task-2"), 0, Demonstrating()).replay == ()
    message = r"no demonstration of task task-3: back to front replays the beginning of one. Add it to\s+controller.demonstr"
    with pytest.raises(ConfigError, match=message):
        controller(request("task-3"), 0, Demonstrating())


@pytest.mark.parametrize(
    "line",
    [
        '{"task": "task-2"',
        '["task-2", ["look"]]',
        '{"task": "task-2", "actions": "look"}',  # letter by letter, if it were taken for a list
        '{"task": "task-2", "actions": [1, 2]}',
        '{"task": 2, "actions": ["look"]}',
        '{"actions": ["look"]}',
    ],
)
def test_a_line_that_is_no_demonstration_is_named(line: str, tmp_path) -> None:
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(f'{{"task": "task-1", "actions": ["look"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(
        ConfigError,
        match=r'demonstrations.jsonl, line 2(: no JSON| is no demonstration).*\{"task": id, "actions": \[texts\]\}',
    ):
        BackToFront(demonstrations=str(path))


def test_settings_that_cannot_work_are_refused() -> None:
    for cls in (FrontToBack, BackToFront):
        with pytest.raises(ConfigError, match=r"controller.first is 2: the first iteration has number 0, or 1"):
            cls(first=2)
        with pytest.raises(ConfigError, match=r"controller.every is 0: the curriculum moves every 1 or more iterations"):
            cls(every=0)
        with pytest.raises(ConfigError, match=r"controller.start is 0: .* needs at least 1 turn"):
            cls(start=0)
    with pytest.raises(ConfigError, match=r"controller.demonstrations 'no/such.jsonl' does not exist: give a file of JSON"):
        BackToFront(demonstrations="no/such.jsonl")
    with pytest.raises(
        ConfigError, match=r"FaultyWorld has no demonstrations: .*Give them as a file, or use a method without"
    ):
        BackToFront()(request(), 0, FaultyWorld())
