"""The agent loop: what was sampled is what is trained on, and every episode ends with a status."""

import random
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from families import chat_of
from faulty_world import FaultyWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import CHATS, Parrot, ScriptedSampler, byte_chat, random_ids, word_chat
from transformers import Qwen3ForCausalLM

from sdar.envs import CompactProtocol, FencedMathProtocol, HouseholdEnv, MathEnv, ThinkActProtocol
from sdar.errors import ConfigError
from sdar.parts import Environment, Protocol, SampleKey
from sdar.quoting import quoted
from sdar.rollout import LocalPool, Request, Rollout, WorkerPool, make_rows
from sdar.rollout.chat import ChatFormat
from sdar.rollout.loop import LAYOUTS
from sdar.rollout.rows import messages_of
from sdar.samplers import TorchSampler
from sdar.sandbox import LimitsOnlyRunner
from sdar.teachers import SkillView
from sdar.types import Episode, Retrieval, Status, Task

SECRETS = Retrieval(("mug", "heat"), "The mug is usually in the drawer.")


def play(
    env: Environment,
    script: Callable[[SampleKey], str | list[int]],
    requests: list[Request],
    chat: ChatFormat | None = None,
    protocol: Protocol | None = None,
    layout: str = "trajectory",
    **kwargs,
) -> tuple[list[Episode], ScriptedSampler, Rollout]:
    """Episodes that `script` acts in, what the sampler was asked, and the rollout itself."""
    chat = chat or word_chat()
    sampler = ScriptedSampler(script, chat, kwargs.pop("context", 4096))
    settings_ = {"history": 2, "horizon": env.horizon, "seed": 11} | kwargs
    rollout = Rollout(LocalPool(env), protocol or CompactProtocol(), chat, sampler, SkillView(), layout, **settings_)
    return rollout(None, requests), sampler, rollout


def wanted(*instructions: str, **kwargs) -> list[Request]:
    """A request for each instruction, which the faulty world obeys at reset."""
    return [Request(Task(f"task-{i}", "faulty", text), i, **kwargs) for i, text in enumerate(instructions)]


def words(*script: str) -> Callable[[SampleKey], str]:
    """One word a turn, the same in every episode."""
    return lambda draw: script[draw.turn]


@pytest.mark.parametrize("chat_name", CHATS)
def test_a_trajectory_is_one_sequence_of_what_was_told_and_sampled(chat_name: str) -> None:
    chat = CHATS[chat_name]()
    env = HouseholdEnv(receptacles=6, distractors=1, horizon=5)
    requests = [Request(env.task(t), 0) for t in env.task_ids("train", 3, 0)]
    episodes, sampler, _ = play(env, lambda draw: random_ids(chat, draw), requests, chat)
    for number, episode in enumerate(episodes):
        draw = [SampleKey(11, episode.task.id, 0, t) for t in range(5)]
        told = chat.prompt(episode.first_messages)
        for t, turn in enumerate(episode.turns):
            assert sampler.calls[t][number] == (draw[t], told)  # the model is given all of it, id by id
            assert turn.response_ids == random_ids(chat, draw[t])  # never decoded and encoded again
            assert turn.text == chat.decode(turn.response_ids)
            told = told + turn.response_ids
            after = episode.turns[t + 1].observation if t < 4 else ""
            told += chat.reply(after, ended=turn.response_ids[-1] == chat.end_of_turn)
        ids = [i for turn in episode.turns for i in turn.prompt_ids + turn.response_ids]
        assert ids == told[: len(ids)]
        assert len(episode.turns) == 5 and episode.turn_messages == []


@pytest.mark.parametrize("history", [0, 1, 3])
def test_a_turn_has_a_prompt_of_its_own_with_the_last_exchanges(history: int) -> None:
    chat, env = word_chat(), HouseholdEnv(receptacles=6, distractors=1, horizon=5)
    protocol = ThinkActProtocol()
    requests = [Request(env.task(t), 0) for t in env.task_ids("train", 2, 0)]
    says = protocol.write("inventory")
    episodes, sampler, _ = play(env, lambda draw: says, requests, chat, protocol, "turn", history=history)
    for number, episode in enumerate(episodes):
        exchanges = [(t.observation, t.action) for t in episode.turns]
        for t, turn in enumerate(episode.turns):
            past = exchanges[max(0, t - history) : t]
            text = chat.decode(turn.prompt_ids)
            assert turn.prompt_ids == sampler.calls[t][number][1] == chat.prompt(episode.turn_messages[t])
            assert text.count(", Action: ") == len(past)
            assert all(quoted(seen) in text for seen, _ in past)
            assert turn.observation in text and episode.task.instruction in text
        assert len(episode.turn_messages) == len(episode.turns) == 5 and episode.first_messages == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finished_episodes_are_not_sampled_again(layout: str) -> None:
    last = {"task-0": 3, "task-1": 0, "task-2": 1}
    episodes, sampler, _ = play(
        FaultyWorld(), lambda draw: "win" if draw.turn == last[draw.task] else "go on", wanted("a", "b", "c"), layout=layout
    )
    asked = [[draw.task for draw, _ in call] for call in sampler.calls]
    assert asked == [["task-0", "task-1", "task-2"], ["task-0", "task-2"], ["task-0"], ["task-0"]]
    assert [len(e.turns) for e in episodes] == [4, 1, 2]
    assert all(e.status == Status.DONE and e.success for e in episodes)
    assert sampler.resets == 1


def test_episodes_come_back_in_the_order_of_the_requests() -> None:
    requests = [Request(Task(f"task-{i}", "faulty", "begin"), 5 - i) for i in (4, 0, 3, 1)]
    episodes, _, _ = play(FaultyWorld(), lambda draw: "win" if draw.turn == draw.attempt % 3 else "go on", requests)
    assert [(e.task, e.attempt) for e in episodes] == [(r.task, r.attempt) for r in requests]
    assert [len(e.turns) for e in episodes] == [r.attempt % 3 + 1 for r in requests]


def test_no_request_is_no_episode() -> None:
    episodes, sampler, _ = play(FaultyWorld(), words(), [])
    assert episodes == [] and sampler.calls == []


def test_every_way_to_end_has_its_status() -> None:
    last = {"task-0": "win", "task-1": "give up", "task-2": "raise", "task-3": "go on"}
    script = lambda draw: last[draw.task] if draw.turn == 2 else "go on"  # noqa: E731
    episodes, _, _ = play(FaultyWorld(), script, wanted("a", "b", "c", "d", "raise"), horizon=4)
    assert [e.status for e in episodes] == [Status.DONE, Status.DONE, Status.ENV_ERROR, Status.HORIZON, Status.ENV_ERROR]
    assert [e.success for e in episodes] == [True, False, False, False, False]
    assert [len(e.turns) for e in episodes] == [3, 3, 3, 4, 0]
    assert [e.error for e in episodes] == ["", "", "RuntimeError: the roof fell in", "", "RuntimeError: the roof fell in"]
    assert [t.reward for t in episodes[0].turns] == [2.0, 3.0, 4.0] and episodes[0].reward == 9.0
    assert episodes[0].final_observation == "task-0 / go on / go on / win"
    assert [t.observation for t in episodes[0].turns] == ["task-0 begins", "task-0 / go on", "task-0 / go on / go on"]
    assert episodes[2].final_observation == episodes[4].final_observation == ""  # an action that got no answer


def test_the_world_that_ends_at_its_horizon_without_success_ran_out_of_steps() -> None:
    env = HouseholdEnv(receptacles=6, horizon=3)
    [episode], _, _ = play(env, lambda draw: "look", [Request(env.task(env.task_ids("train", 1, 0)[0]), 0)])
    assert episode.status == Status.HORIZON and len(episode.turns) == 3 and not episode.success


def test_a_dying_worker_ends_one_episode_of_the_rollout() -> None:
    script = lambda draw: "exit 3" if (draw.task, draw.turn) == ("task-1", 1) else ("win" if draw.turn == 3 else "go on")  # noqa: E731
    calm, _, _ = play(FaultyWorld(), lambda draw: "win" if draw.turn == 3 else "go on", wanted(*"abcd"))
    pool = WorkerPool(FaultyWorld(), 2)
    chat = word_chat()
    try:
        rollout = Rollout(pool, CompactProtocol(), chat, ScriptedSampler(script, chat), SkillView())
        episodes = rollout(None, wanted(*"abcd"))
    finally:
        pool.close()
    assert episodes[1].status == Status.ENV_DIED and episodes[1].error == "worker process ended with exit code 3"
    assert len(episodes[1].turns) == 2
    assert [e for i, e in enumerate(episodes) if i != 1] == [e for i, e in enumerate(calm) if i != 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("room", [60, 100, 200])
def test_an_episode_ends_before_its_context_does_and_nothing_is_cut(layout: str, room: int) -> None:
    roomy, _, _ = play(FaultyWorld(), words(*["talk"] * 9), wanted("a"), layout=layout, horizon=9, history=9)
    [episode], sampler, _ = play(
        FaultyWorld(), words(*["talk"] * 9), wanted("a"), layout=layout, horizon=9, history=9, context=room
    )
    assert episode.status == Status.CONTEXT
    assert 0 < len(episode.turns) < 9
    assert episode.turns[:-1] == roomy[0].turns[: len(episode.turns) - 1]  # everything before is as with all the room
    assert all(len(prompt) + sampler.max_new_tokens <= room for call in sampler.calls for _, prompt in call)
    assert len(episode.turn_messages) == (len(episode.turns) if layout == "turn" else 0)
    assert episode.final_observation  # the world's last word was heard, only not answered


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_first_prompt_that_does_not_fit_ends_its_episode_and_no_other(layout: str) -> None:
    class LongAtB(FaultyWorld):
        def reset(self, task: Task) -> str:
            return super().reset(task) * (100 if task.id == "task-1" else 1)

    [first, second, third], sampler, _ = play(LongAtB(), words("win"), wanted(*"abc"), layout=layout, context=100)
    assert first.success and third.success and [d.task for call in sampler.calls for d, _ in call] == ["task-0", "task-2"]
    assert second.status == Status.CONTEXT and not second.turns and not second.turn_messages and second.reward == -1.0
    assert re.fullmatch(
        r"its first prompt has \d+ tokens and may get 8 more, but the context is 100: .*data.leave_out.*", second.error
    )


def test_a_turn_is_valid_when_the_response_and_the_world_say_so() -> None:
    said = ["no tags", "<think>a</think><action>mumble</action>", "<think>a</think><action>go on</action>"]
    [episode], _, _ = play(FaultyWorld(), words(*said), wanted("a"), protocol=ThinkActProtocol(), horizon=3)
    assert [t.valid for t in episode.turns] == [False, False, True]
    assert [t.well_formed for t in episode.turns] == [False, True, True]  # "mumble" is an action that the world refuses
    assert [t.action for t in episode.turns] == ["no tags", "mumble", "go on"]
    assert [t.text for t in episode.turns] == said


def test_every_response_is_named_by_seed_task_attempt_and_turn() -> None:
    requests = [Request(Task("t", "faulty", "begin"), a) for a in (0, 1)]
    _, sampler, _ = play(FaultyWorld(), words("go on", "win"), requests, seed=5)
    assert [[draw for draw, _ in call] for call in sampler.calls] == [
        [SampleKey(5, "t", 0, n), SampleKey(5, "t", 1, n)] for n in (0, 1)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_actor_that_may_see_the_skill_has_it_in_its_system_message(layout: str) -> None:
    chat = byte_chat()
    told, _, _ = play(
        FaultyWorld(),
        words("go on", "win"),
        wanted("a", retrieval=SECRETS, privileged=True, privileged_text=SECRETS.text),
        chat,
        layout=layout,
    )
    untold, _, _ = play(FaultyWorld(), words("go on", "win"), wanted("a", retrieval=SECRETS), chat, layout=layout)
    system = f"<|im_start|>system\n{SECRETS.text}<|im_end|>\n"
    prompts = [[chat.decode(t.prompt_ids) for t in e.turns] for e in (told[0], untold[0])]
    assert prompts[0][0] == system + prompts[1][0]
    assert prompts[0][1] == (system if layout == "turn" else "") + prompts[1][1]
    assert told[0].privileged and told[0].retrieval == SECRETS and told[0].privileged_text == SECRETS.text
    assert not untold[0].privileged and untold[0].privileged_text == ""
    assert told[0].first_messages == untold[0].first_messages  # kept as they were without it
    assert told[0].turn_messages == untold[0].turn_messages
    assert [t.response_ids for t in told[0].turns] == [t.response_ids for t in untold[0].turns]


def test_an_actor_whose_retrieval_is_empty_is_told_nothing() -> None:
    told, _, _ = play(FaultyWorld(), words("win"), wanted("a", privileged=True))
    untold, _, _ = play(FaultyWorld(), words("win"), wanted("a"))
    assert told[0].turns == untold[0].turns


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_prompts_of_privileged_requests_hold_the_text(layout: str) -> None:
    chat, script = byte_chat(), words("go on", "win")
    requests = [replace(r, privileged_text=f"The secret of {r.task.id}.") for r in wanted("a", "b", "c")]
    requests[1] = replace(requests[1], privileged=True)
    episodes, sampler, _ = play(FaultyWorld(), script, requests, chat, layout=layout)
    plain, _, _ = play(FaultyWorld(), script, wanted("a", "b", "c"), chat, layout=layout)
    assert episodes[0] == plain[0] and episodes[2] == plain[2]
    secrets = [["The secret of task-1." in chat.decode(prompt) for _, prompt in call] for call in sampler.calls]
    assert secrets == [[False, True, False]] * 2
    assert "The secret of task-0" not in "".join(chat.decode(p) for call in sampler.calls for _, p in call)
    assert [e.privileged_text for e in episodes] == ["", "The secret of task-1.", ""]


def test_an_episode_knows_whether_it_is_extra() -> None:
    episodes, _, _ = play(FaultyWorld(), words("win"), [*wanted("a"), *wanted("b", extra=True)])
    assert [e.extra for e in episodes] == [False, True]


# ------------------------------------------------------------------ beginnings that somebody else plays


@pytest.mark.parametrize("protocol", [CompactProtocol(), ThinkActProtocol()])
@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_replayed_beginning_is_told_as_if_it_had_been_said(layout: str, chat_name: str, protocol: Protocol) -> None:
    """The same prompts, the same draws and the same world, but nobody sampled it and nobody learns it."""
    chat = CHATS[chat_name]()
    actions = ["go on", "talk <|im_end|>", "look", "win"]
    script = words(*map(protocol.write, actions))
    [whole], asked, _ = play(FaultyWorld(), script, wanted("a"), chat, protocol, layout)
    [episode], sampler, _ = play(FaultyWorld(), script, wanted("a", replay=tuple(actions[:2])), chat, protocol, layout)
    assert [t.action for t in episode.turns] == actions and episode.success
    assert [t.trainable for t in episode.turns] == [False, False, True, True]
    assert sampler.calls == asked.calls[2:]
    zeros = [[0.0] * len(t.response_ids) for t in whole.turns[:2]]
    replayed = [
        replace(t, behaviour_logp=z, kept_logmass=z, trainable=False) for t, z in zip(whole.turns[:2], zeros, strict=True)
    ]
    assert episode.turns == replayed + whole.turns[2:]
    assert replace(episode, turns=[]) == replace(whole, turns=[])
    learned = [[i for i, m in zip(r.ids, r.response_mask, strict=True) if m] for r in make_rows([episode], layout)]
    sampled = [t.response_ids for t in episode.turns[2:]]
    assert learned == ([[], [], *sampled] if layout == "turn" else [sampled[0] + sampled[1]])


@pytest.mark.parametrize(
    ("last", "status", "success"),
    [("win", Status.DONE, True), ("give up", Status.DONE, False), ("raise", Status.ENV_ERROR, False)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_episode_that_ends_in_its_replay_is_over(layout: str, last: str, status: Status, success: bool) -> None:
    """It says what happened: nobody acts after the end, and the model has no part in it."""
    requests = wanted("a", replay=("go on", last, "never", "played"))
    [episode], sampler, _ = play(FaultyWorld(), words(), requests, layout=layout)
    assert sampler.calls == [] and [t.action for t in episode.turns] == ["go on", last]
    assert (episode.status, episode.success) == (status, success)
    assert episode.reward == (2.0 + 3.0 if status == Status.DONE else 2.0)
    assert not any(t.trainable for t in episode.turns)
    assert not any(m for row in make_rows([episode], layout) for m in row.response_mask)


def test_a_replayed_action_that_the_world_does_not_allow_is_invalid() -> None:
    [episode], _, _ = play(FaultyWorld(), lambda draw: "win", wanted("a", replay=("mumble", "go on")))
    assert [(t.action, t.valid, t.trainable) for t in episode.turns] == [
        ("mumble", False, False),
        ("go on", True, False),
        ("win", True, True),
    ]


def test_a_replay_ends_at_the_horizon() -> None:
    [episode], sampler, _ = play(FaultyWorld(), words(), wanted("a", replay=("go on",) * 9), horizon=4)
    assert len(episode.turns) == 4 and episode.status == Status.HORIZON and sampler.calls == []


def test_a_replay_that_does_not_fit_ends_with_the_context() -> None:
    requests = wanted("a", replay=("talk",) * 9)
    [roomy], _, _ = play(FaultyWorld(), words(), requests, horizon=9)
    [episode], sampler, _ = play(FaultyWorld(), words(), requests, horizon=9, context=60)
    assert episode.status == Status.CONTEXT and sampler.calls == []
    assert 0 < len(episode.turns) < 9 and episode.turns[:-1] == roomy.turns[: len(episode.turns) - 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_episode_with_a_limit_ends_at_its_horizon(layout: str) -> None:
    """The limit counts the model's own turns; the horizon of the world counts all."""
    requests = wanted("a", "b", "c", "d")
    requests[0] = replace(requests[0], max_turns=2)
    requests[1] = replace(requests[1], max_turns=2, replay=("go on",))
    requests[2] = replace(requests[2], max_turns=9, replay=("go on", "go on"))
    episodes, sampler, _ = play(FaultyWorld(), lambda draw: "look", requests, layout=layout, horizon=5)
    assert [[t.trainable for t in e.turns] for e in episodes] == [
        [True] * 2, [False] + [True] * 2, [False] * 2 + [True] * 3, [True] * 5,
    ]  # fmt: skip
    assert all(e.status == Status.HORIZON and not e.success for e in episodes)
    asked = [[draw.task[-1] for draw, _ in call] for call in sampler.calls]
    assert asked == [["0", "1", "2", "3"], ["0", "1", "2", "3"], ["2", "3"], ["3"], ["3"]]  # nobody waits for a replay


@pytest.mark.parametrize("last", ["win", "give up", "raise"])
def test_what_ends_an_episode_at_its_limit_is_told_apart(last: str) -> None:
    [episode], _, _ = play(FaultyWorld(), words("go on", last), wanted("a", max_turns=2))
    [free], _, _ = play(FaultyWorld(), words("go on", last), wanted("a"))
    assert episode == free and episode.status != Status.HORIZON


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_sampled_does_not_depend_on_the_replays_of_others(layout: str, small_model: Qwen3ForCausalLM) -> None:
    """Beginnings of different lengths, so that episodes join and leave the batch at different turns."""
    chat, env = word_chat(), HouseholdEnv(receptacles=6, distractors=1, horizon=6)
    sampler = TorchSampler(max_new_tokens=5)
    sampler.bind(chat.tokenizer, chat.stop_ids, 2048)
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(), layout, horizon=6, seed=3)
    tasks = [env.task(t) for t in env.task_ids("train", 4, 0)]
    lengths, caps = (0, 1, 3, 2), (None, 3, None, 1)
    requests = [
        Request(task, 0, replay=tuple(env.demonstration(task)[:length]), max_turns=cap)
        for task, length, cap in zip(tasks, lengths, caps, strict=True)
    ]
    together = rollout(small_model, requests)
    alone = [rollout(small_model, [request])[0] for request in requests]
    for length, cap, a, b in zip(lengths, caps, together, alone, strict=True):
        assert [t.trainable for t in a.turns] == [False] * length + [True] * (cap or 6 - length)
        assert [(t.prompt_ids, t.response_ids, t.action) for t in a.turns] == [
            (t.prompt_ids, t.response_ids, t.action) for t in b.turns
        ]
        for t, u in zip(a.turns, b.turns, strict=True):
            assert t.behaviour_logp == pytest.approx(u.behaviour_logp, abs=1e-4)
        assert a.status == b.status == Status.HORIZON
    replayless = rollout(small_model, [Request(tasks[2], 0)])[0]
    assert replayless.turns[3].response_ids != together[2].turns[3].response_ids  # the model read what was replayed


def test_a_response_without_a_single_token_is_no_end_of_the_run() -> None:
    chat = word_chat()
    [episode], _, _ = play(FaultyWorld(), lambda draw: [] if draw.turn == 0 else "win", wanted("a"), chat)
    assert episode.success
    assert episode.turns[1].prompt_ids == chat.reply("task-0 / ", ended=False)


CONTROL = sorted({t for make in CHATS.values() for t in make().tokenizer.get_added_vocab()})
TEXTS = st.lists(
    st.one_of(st.sampled_from(CONTROL), st.sampled_from([t[:-1] for t in CONTROL]), st.text(max_size=8)), max_size=5
).map("".join)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chat_name", CHATS)
@given(texts=st.lists(TEXTS, min_size=2, max_size=3))
@settings(max_examples=25, deadline=None)
def test_what_the_world_says_is_never_a_control_token(chat_name: str, layout: str, texts: list[str]) -> None:
    """A page or an observation that spells out a control token is told as the characters that it has."""
    chat = CHATS[chat_name]()
    requests = [Request(Task("t", "parrot", "listen"), 0)]
    plain, _, _ = play(Parrot(["x"] * len(texts)), lambda draw: "go on", requests, chat, layout=layout)
    [episode], _, _ = play(Parrot(texts), lambda draw: "go on", requests, chat, layout=layout)
    control = [[i for i in t.prompt_ids if i in chat.control] for t in episode.turns]
    assert control == [[i for i in t.prompt_ids if i in chat.control] for t in plain[0].turns]
    for turn, said in zip(episode.turns, texts, strict=True):
        assert said in chat.tokenizer.decode(turn.prompt_ids, skip_special_tokens=False)


def test_layouts_that_cannot_be_are_refused() -> None:
    chat = word_chat()
    parts = (LocalPool(FaultyWorld()), CompactProtocol(), chat, ScriptedSampler(words(), chat), SkillView())
    with pytest.raises(ConfigError, match=r"layout is 'row': the two row layouts are trajectory and turn"):
        Rollout(*parts, layout="row")


# ------------------------------------------------------------------ templates that tell the past in their own way


def test_a_template_that_rewrites_the_past_is_said_once(recwarn: pytest.WarningsRecorder) -> None:
    chat = ChatFormat(chat_of("qwen3").tokenizer, name="a-new-qwen3")
    parts = (LocalPool(FaultyWorld()), CompactProtocol(), chat, ScriptedSampler(words(), chat), SkillView())
    Rollout(*parts, layout="turn")
    assert not recwarn.list
    Rollout(*parts, layout="trajectory")
    Rollout(*parts, layout="trajectory")
    [said] = [str(w.message) for w in recwarn.list]
    assert said.startswith("the chat template of a-new-qwen3 tells past assistant turns otherwise than they were said")
    assert "an episode becomes several training rows" in said and "`layout: turn`" in said


def thoughtful(chat: ChatFormat, draw: SampleKey, share: float) -> list[int]:
    """Ids that no encoder would give, often behind a thought; some end properly."""
    rng = random.Random(f"{draw.task}/{draw.attempt}/{draw.turn}")
    thought = [*chat.encode_control("<think>"), *random_ids(chat, draw)[:3], *chat.encode_control("</think>")]
    told = [i for i in random_ids(chat, draw) if i != chat.end_of_turn]
    return (thought if rng.random() < share else []) + told + [chat.end_of_turn] * (draw.turn % 2)


@pytest.mark.filterwarnings("ignore:the chat template of")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("thinking", [None, True, False])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=5)
def test_every_row_is_what_the_model_was_given(thinking: bool | None, share: float, layout: str, seed: int) -> None:
    """Each response stands in its row behind exactly the ids that the sampler was asked with; no id is patched."""
    chat = chat_of("qwen3", thinking)
    texts = ["You see a mug.", "<|im_end|>", "<tool_response>\n4\n</tool_response>", "<think>", "The end."]
    requests = [Request(Task(f"t{seed}", "parrot", "listen"), a) for a in range(2)]
    episodes, sampler, _ = play(Parrot(texts), lambda d: thoughtful(chat, d, share), requests, chat, layout=layout)
    rows = make_rows(episodes, layout)
    for row in rows:
        mine = [t for t in dict.fromkeys(row.turn_ids)]
        assert mine == list(range(row.turn, row.turn + len(mine)))
        for t in mine:
            begin = next(i for i, (turn, m) in enumerate(zip(row.turn_ids, row.response_mask, strict=True)) if turn == t and m)
            [asked] = [
                prompt for call in sampler.calls for draw, prompt in call if draw.turn == t and draw.attempt == row.episode
            ]
            said = episodes[row.episode].turns[t].response_ids
            assert row.ids[:begin] == asked and row.ids[begin : begin + len(said)] == said
    for e, episode in enumerate(episodes):
        begins = [row.turn for row in rows if row.episode == e]
        if layout == "turn":
            assert begins == list(range(5)) and not any(t.starts_row for t in episode.turns)
        else:
            assert begins == [0, *(t for t in range(1, 5) if episode.turns[t].starts_row)]
            for t in begins:  # a row begins with what the template gives for the conversation so far
                told = [*episode.first_messages]
                for n in range(t):
                    told += [chat.said(episode.turns[n].response_ids), {"role": "user", "content": texts[n + 1]}]
                assert episode.turns[t].prompt_ids == chat.prompt(told) and messages_of(episode, t) == told


@pytest.mark.filterwarnings("ignore:the chat template of")
def test_a_row_goes_on_where_the_template_changes_nothing() -> None:
    """A response without a thought is told as it was said; one with a thought is not, and what follows it begins a row."""
    chat = chat_of("qwen3")
    thoughts = {1: "<think>\nhm\n</think>\n\n", 3: "<think>\nhm\n</think>\n\n"}
    [episode], _, _ = play(FaultyWorld(), lambda d: thoughts.get(d.turn, "") + "go on", wanted("a"), chat, horizon=5)
    assert [t.starts_row for t in episode.turns] == [False, False, True, False, True]
    assert [(r.turn, sorted(set(r.turn_ids))) for r in make_rows([episode], "trajectory")] == [
        (0, [0, 1]),
        (2, [2, 3]),
        (4, [4]),
    ]
    off, _, _ = play(FaultyWorld(), words(*["go on"] * 3), wanted("a"), chat_of("qwen3", False), horizon=3)
    assert [t.starts_row for t in off[0].turns] == [False, True, True]  # the empty thought of its prompt is not told again


@pytest.mark.filterwarnings("ignore:the chat template of")
def test_a_rewritten_episode_that_does_not_fit_ends_with_the_context() -> None:
    chat, said = chat_of("qwen3"), "<think>\nhm\n</think>\n\ntalk"
    [roomy], _, _ = play(FaultyWorld(), words(*[said] * 9), wanted("a"), chat, horizon=9)
    [episode], sampler, _ = play(FaultyWorld(), words(*[said] * 9), wanted("a"), chat, horizon=9, context=150)
    assert episode.status == Status.CONTEXT and 1 < len(episode.turns) < 9
    assert episode.turns[:-1] == roomy.turns[: len(episode.turns) - 1]
    assert len(episode.later_messages) == 2 * len(episode.turns) - 2
    assert all(len(prompt) + sampler.max_new_tokens <= 150 for call in sampler.calls for _, prompt in call)


@pytest.mark.filterwarnings("ignore:the chat template of")
def test_a_privileged_actor_has_the_text_at_the_start_of_every_row() -> None:
    chat, said = chat_of("qwen3"), "<think>\nhm\n</think>\n\ngo on"
    [told], _, _ = play(
        FaultyWorld(), words(*[said] * 3), wanted("a", privileged=True, privileged_text="The secret."), chat, horizon=3
    )
    [plain], _, _ = play(FaultyWorld(), words(*[said] * 3), wanted("a"), chat, horizon=3)
    system = "<|im_start|>system\nThe secret.<|im_end|>\n"
    assert [chat.decode(t.prompt_ids) for t in told.turns] == [system + chat.decode(t.prompt_ids) for t in plain.turns]
    assert told.later_messages == plain.later_messages and all(t.starts_row for t in told.turns[1:])


@pytest.mark.parametrize("chat_name", CHATS)
def test_a_template_that_repeats_what_was_said_keeps_no_second_account_of_it(chat_name: str) -> None:
    chat = CHATS[chat_name]()
    [episode], _, _ = play(FaultyWorld(), lambda draw: random_ids(chat, draw), wanted("a"), chat, horizon=4)
    assert episode.later_messages == [] and not any(t.starts_row for t in episode.turns)


@pytest.mark.parametrize(("status", "settings", "cut"), [(Status.CONTEXT, {"context": 420}, None), (Status.HORIZON, {}, 2)])
def test_an_episode_that_is_cut_is_worth_what_its_world_says(status, settings, cut):
    env = MathEnv(reward="signed", level="easy", runner=LimitsOnlyRunner(allow_unsafe=True))
    task = env.task(env.task_ids("train", 1, 0)[0])
    request = Request(task, 0, max_turns=cut)
    protocol = FencedMathProtocol()
    [episode], *_ = play(env, lambda draw: "```python\nprint(1)\n```", [request], byte_chat(), protocol, **settings)
    assert (episode.status, episode.reward, episode.turns[-1].reward) == (status, -1.0, -1.0)
    assert episode.scores == {"correct": 0.0, "tool_error_share": 0.0} and len(episode.turns) < env.horizon
    assert [turn.tool_ok for turn in episode.turns] == [True] * len(episode.turns)
