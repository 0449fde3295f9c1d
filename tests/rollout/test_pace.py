"""Episodes at their own pace: nobody waits for another, and what is played is the same wherever the worlds run."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from faulty_world import FaultyWorld
from scripted import ScriptedSampler, word_chat
from transformers import Qwen3ForCausalLM

from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.parts import Completion, SampleKey, Session
from sdar.rollout import LocalPool, Request, Rollout
from sdar.rollout.loop import LAYOUTS
from sdar.rollout.pool import EnvPool, ThreadPool
from sdar.rollout.standing import Standing
from sdar.samplers import TorchSampler
from sdar.teachers import SkillView
from sdar.types import Episode, Task


class Slowly(Session):
    """Says "go on", of an episode in its third turn "win"; a response takes as many steps as the number of its task."""

    def __init__(self, sampler: "Streaming", places: int):
        self.sampler, self.places = sampler, places
        self.asked: dict[int, tuple[SampleKey, int]] = {}
        self.left: list[str] = []
        self.order: list[str] = []
        self.closed = False

    @property
    def busy(self) -> bool:
        return bool(self.asked)

    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        self.asked[number] = key, int(key.task)
        self.order.append(f"{key.task}.{key.turn}")

    def step(self) -> list[tuple[int, Completion]]:
        self.asked = {number: (key, steps - 1) for number, (key, steps) in self.asked.items()}
        done = [number for number, (_, steps) in self.asked.items() if steps == 0]
        return [(number, self._said(self.asked.pop(number)[0])) for number in done]

    def _said(self, key: SampleKey) -> Completion:
        ids = self.sampler.chat.response("win" if key.turn == 2 else "go on")
        return Completion(ids, [-1.0] * len(ids), [0.0] * len(ids), True)

    def leave(self, key: SampleKey) -> None:
        self.left.append(key.task)

    def close(self) -> None:
        self.closed = True


class Streaming(ScriptedSampler):
    """Has sessions of its own."""

    def __init__(self, places: int):
        super().__init__(lambda draw: "never asked", word_chat())
        self.places, self.sessions = places, list[Slowly]()

    def session(self, model: object) -> Slowly:
        self.sessions.append(Slowly(self, self.places))
        return self.sessions[-1]


def rollout_of(pool: EnvPool, sampler: ScriptedSampler | TorchSampler, layout: str = "trajectory") -> Rollout:
    return Rollout(pool, CompactProtocol(), word_chat(), sampler, SkillView(), layout, horizon=6, seed=3)


def wanted(*tasks: str) -> list[Request]:
    return [Request(Task(task, "faulty", "begin"), 0) for task in tasks]


def test_a_response_goes_to_its_world_as_soon_as_it_ends() -> None:
    sampler = Streaming(places=9)
    episodes = rollout_of(LocalPool(FaultyWorld()), sampler)(None, wanted("1", "3", "2"))
    [session] = sampler.sessions
    assert session.order == ["1.0", "3.0", "2.0", "1.1", "1.2", "2.1", "3.1", "2.2", "3.2"]
    assert session.left == ["1", "2", "3"] and session.closed
    assert [e.task.id for e in episodes] == ["1", "3", "2"] and all(e.success for e in episodes)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_no_more_episodes_are_under_way_than_there_are_places(elsewhere: bool) -> None:
    pool = ThreadPool(FaultyWorld(), 2) if elsewhere else LocalPool(FaultyWorld())
    sampler, told = Streaming(places=2), list[Standing]()
    rollout = rollout_of(pool, sampler)
    rollout.progress = lambda standing: told.append(replace(standing))
    episodes = rollout(None, wanted("1", "2", "1", "1"))
    assert all(e.success for e in episodes)
    firsts = [sampler.sessions[0].order.index(first) for first in ("1.0", "2.0")]
    assert firsts == [0, 1] and sampler.sessions[0].order[-1] == "1.2"
    assert sampler.sessions[0].order.count("1.0") == 3
    assert [s.ended for s in told] == sorted(s.ended for s in told) and [s.work for s in told] == sorted(s.work for s in told)
    assert any(s.ended == 0 and s.work > 0 for s in told)  # before the first has ended, too
    last = told[-1]
    assert (last.of, last.ended, last.succeeded, last.lost) == (4, 4, 4, 0) and last.work == pytest.approx(4)


def test_worlds_elsewhere_step_beside_a_pass_and_are_waited_for_behind_it() -> None:
    sampler = Streaming(places=9)
    episodes = rollout_of(ThreadPool(FaultyWorld(), 4), sampler)(None, wanted("1", "3"))
    # task 1 is answered in the first pass, acts beside the second, and asks behind it
    assert sampler.sessions[0].order == ["1.0", "3.0", "1.1", "1.2", "3.1", "3.2"]
    assert all(e.success for e in episodes)


def played(pool: EnvPool, model: Qwen3ForCausalLM, layout: str, batch_size: int = 256) -> list[Episode]:
    chat, env = word_chat(), HouseholdEnv(receptacles=6, distractors=1, horizon=6)
    sampler = TorchSampler(max_new_tokens=5, batch_size=batch_size)
    sampler.bind(chat.tokenizer, chat.stop_ids, 2048)
    requests = [Request(env.task(task), attempt) for task in env.task_ids("train", 3, 0) for attempt in range(2)]
    return rollout_of(pool, sampler, layout)(model, requests)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rollout_is_the_same_wherever_its_worlds_run_and_bit_for_bit_where_they_are(
    layout: str, small_model: Qwen3ForCausalLM
) -> None:
    env = HouseholdEnv(receptacles=6, distractors=1, horizon=6)
    here = played(LocalPool(env), small_model, layout)
    assert here == played(LocalPool(env), small_model, layout)
    there = [played(ThreadPool(env, 2), small_model, layout) for _ in range(2)]
    assert there[0] == there[1]
    few = played(LocalPool(env), small_model, layout, batch_size=2)
    for other in (there[0], few):
        for a, b in zip(here, other, strict=True):
            assert [t.response_ids for t in a.turns] == [t.response_ids for t in b.turns]
            assert a.status == b.status and a.reward == b.reward
