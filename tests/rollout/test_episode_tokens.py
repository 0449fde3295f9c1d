"""A bound on an episode's tokens: what is sampled before it is as without one, and nothing is behind it."""

import pytest
from faulty_world import FaultyWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedSampler, byte_chat, random_ids, word_chat

from sdar.data import TaskModule
from sdar.envs import CompactProtocol, FencedMathProtocol, HouseholdEnv, MathEnv
from sdar.errors import ConfigError
from sdar.rollout import LocalPool, Request, Rollout, make_rows
from sdar.rollout.loop import LAYOUTS, length
from sdar.sandbox import LimitsOnlyRunner
from sdar.teachers import SkillView
from sdar.types import Status, Task

CHAT = word_chat()


def play(most, layout="trajectory", script=lambda draw: random_ids(CHAT, draw), horizon=6, tasks=("a", "b")):
    requests = [Request(Task(f"task-{n}", "faulty", text), n) for n, text in enumerate(tasks)]
    sampler = ScriptedSampler(script, CHAT)
    rollout = Rollout(
        LocalPool(FaultyWorld()),
        CompactProtocol(),
        CHAT,
        sampler,
        SkillView(),
        layout,
        horizon=horizon,
        seed=3,
        max_tokens=most,
    )
    return rollout(None, requests), sampler


@pytest.mark.parametrize("layout", LAYOUTS)
@given(most=st.integers(1, 120))
@settings(max_examples=40)
def test_up_to_the_bound_an_episode_is_the_one_without(layout, most):
    for bounded, free in zip(play(most, layout)[0], play(None, layout)[0], strict=True):
        whole = length(free.turns, layout)
        assert length(bounded.turns, layout) <= most
        if whole < most:
            assert bounded == free
            continue
        assert bounded.status == Status.TOKEN_LIMIT and bounded.turns
        *before, last = bounded.turns
        assert before == free.turns[: len(before)]
        whole_turn = free.turns[len(before)]
        kept = len(last.response_ids)
        assert last.prompt_ids == whole_turn.prompt_ids and last.response_ids == whole_turn.response_ids[:kept]
        assert last.behaviour_logp == whole_turn.behaviour_logp[:kept] and last.kept_logmass == whole_turn.kept_logmass[:kept]
        assert last.text == CHAT.decode(last.response_ids)
        if kept < len(whole_turn.response_ids):
            assert not last.stopped and length(bounded.turns, layout) == most
        assert len(bounded.turn_messages) == (len(bounded.turns) if layout == "turn" else 0)


def test_what_the_world_answers_counts_in_a_conversation_alone():
    [episode, _], _ = play(None)
    rows = make_rows([episode], "trajectory")
    assert length(episode.turns, "trajectory") == len(rows[0].ids) - len(episode.turns[0].prompt_ids)
    assert length(episode.turns, "turn") == episode.response_tokens == sum(rows[0].response_mask)


def test_an_episode_that_ends_itself_with_its_last_token_was_not_cut():
    ids = CHAT.response("win")
    for most, status in ((len(ids), Status.DONE), (len(ids) - 1, Status.TOKEN_LIMIT)):
        [episode], sampler = play(most, script=lambda draw: "win", tasks=("a",))
        assert episode.status == status and episode.turns[0].response_ids == ids[:most] and len(sampler.calls) == 1
        assert episode.success and episode.turns[0].stopped == (status == Status.DONE)  # the world judged what was left


def test_a_cut_episode_is_worth_what_its_world_says():
    env = MathEnv(reward="signed", level="easy", runner=LimitsOnlyRunner(allow_unsafe=True))
    chat = byte_chat()
    sampler = ScriptedSampler(lambda draw: "```python\nprint(1)\n```", chat)
    parts = (LocalPool(env), FencedMathProtocol(), chat, sampler, SkillView())
    request = Request(env.task(env.task_ids("train", 1, 0)[0]), 0)
    for most, turns in ((60, 2), (24, 1)):  # in the middle of a response, and of what the world says
        [episode] = Rollout(*parts, horizon=5, max_tokens=most)(None, [request])
        assert (episode.status, episode.reward, episode.success) == (Status.TOKEN_LIMIT, -1.0, False)
        assert len(episode.turns) == turns


def test_the_bound_is_a_setting_of_the_data():
    data = {"val_tasks": 2, "train_tasks": 4}
    with pytest.raises(ConfigError, match=r"data\.max_episode_tokens is 0: it must be at least 1"):
        TaskModule(HouseholdEnv(), max_episode_tokens=0, **data)
    module = TaskModule(HouseholdEnv(), max_episode_tokens=9, **data)
    rollout = module.rollout(CHAT, ScriptedSampler(lambda draw: "look", CHAT), SkillView(), 0)
    assert rollout.max_tokens == 9
    module.teardown("fit")
