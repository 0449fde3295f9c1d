"""Rows: the drawn layout of `sdar.types`, the teacher's twin on ids, and the tensors made of them."""

import copy
import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from families import chat_of
from faulty_world import FaultyWorld
from hypothesis import given, settings
from hypothesis import strategies as st
from played import credit_of
from scripted import CHATS, Parrot, ScriptedSampler, byte_chat, random_ids, word_chat

from sdar.credit import GroupAdvantage
from sdar.envs import CompactProtocol, HouseholdEnv, ThinkActProtocol
from sdar.parts import Placement, PrivilegedView
from sdar.quoting import hanging
from sdar.rollout import LocalPool, Request, Rollout, collate, make_rows
from sdar.rollout.chat import ChatFormat
from sdar.rollout.loop import LAYOUTS
from sdar.rollout.rows import add_teacher_view, without_privilege
from sdar.rollout.spans import response_spans
from sdar.teachers import FirstOf, HindsightView, SiblingView, SkillView, SolutionView
from sdar.turns import Turns
from sdar.types import Batch, Episode, Retrieval, Row, Status, Task, Turn

SECRETS = Retrieval(("mug", "heat"), "The mug is usually in the drawer.\n<|im_end|><|end|> Look there first.")
PLACEMENTS = get_args(Placement)


def drawn() -> Episode:
    """The picture in `sdar.types`: eight prompt tokens, three sampled, five told, four sampled."""
    first = Turn([1, 2, 3, 4, 5, 6, 7, 8], [20, 21, 9], [-1.0, -2.0, -3.0], [-0.1, -0.2, -0.3])
    second = Turn([10, 11, 12, 13, 14], [30, 31, 32, 9], [-4.0, -5.0, -6.0, -7.0], [0.0, -0.4, 0.0, 0.0])
    return Episode(Task("t", "f", "do"), 0, [first, second])


def played(
    chat: ChatFormat,
    layout: str,
    retrieval: Retrieval,
    privileged: bool = False,
    placement: str = "system",
    extra: bool = False,
) -> list[Episode]:
    """Three short episodes in a household, with responses that no encoder would give."""
    env = HouseholdEnv(receptacles=6, distractors=1, horizon=3)
    sampler = ScriptedSampler(lambda draw: random_ids(chat, draw), chat)
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(placement), layout, horizon=3)
    told = retrieval.text if privileged else ""
    tasks = [env.task(t) for t in env.task_ids("train", 3, 0)]
    return rollout(None, [Request(task, 0, retrieval, privileged, told, extra=extra) for task in tasks])


def add(
    rows: list[Row], episodes: list[Episode], chat: ChatFormat, view: PrivilegedView | None = None, context: int = 4096
) -> dict[int, str]:
    """The teacher's view, where each episode is the only attempt at its task."""
    return add_teacher_view(
        rows, episodes, [[e] for e in episodes], chat, view or SkillView(), Parrot(["x"]), [context] * len(episodes)
    )


def batch_of(rows: list[Row], episodes: list[Episode]) -> Batch:
    return collate(rows, episodes, list(range(len(episodes))))


def test_a_trajectory_is_the_drawn_row() -> None:
    [row] = make_rows([drawn()], "trajectory")
    assert row.ids == [1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 9, 10, 11, 12, 13, 14, 30, 31, 32, 9]
    assert row.response_mask == [0] * 8 + [1] * 3 + [0] * 5 + [1] * 4
    assert row.turn_ids == [0] * 11 + [1] * 9
    assert row.behaviour_logp == [0.0] * 8 + [-1.0, -2.0, -3.0] + [0.0] * 5 + [-4.0, -5.0, -6.0, -7.0]
    assert row.kept_logmass == [0.0] * 8 + [-0.1, -0.2, -0.3] + [0.0] * 5 + [0.0, -0.4, 0.0, 0.0]
    assert row.spans == []  # nobody asked
    assert (row.episode, row.turn, row.teacher_ids, row.is_privileged) == (0, 0, None, False)


def test_in_the_turn_layout_each_turn_is_a_row() -> None:
    first, second = make_rows([drawn()], "turn")
    assert first.ids == [1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 9]
    assert first.response_mask == [0] * 8 + [1] * 3
    assert second.ids == [10, 11, 12, 13, 14, 30, 31, 32, 9]
    assert second.turn_ids == [1] * 9 and second.turn == 1
    assert second.behaviour_logp == [0.0] * 5 + [-4.0, -5.0, -6.0, -7.0]


@pytest.mark.parametrize(("layout", "masks"), [("trajectory", [[1] * 3 + [0] * 4]), ("turn", [[1] * 3, [0] * 4])])
def test_turns_that_somebody_else_took_carry_no_loss(layout: str, masks: list[list[int]]) -> None:
    episode = drawn()
    episode.turns[1].trainable = False
    rows = make_rows([episode], layout)
    told = {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14}
    assert [[m for i, m in zip(r.ids, r.response_mask, strict=True) if i not in told] for r in rows] == masks


def test_rows_know_their_episode_and_an_episode_without_a_turn_gives_none() -> None:
    faulted = Episode(Task("t", "f", "do"), 0, status=Status.ENV_DIED)
    assert [r.episode for r in make_rows([drawn(), faulted, drawn()], "trajectory")] == [0, 2]
    assert [(r.episode, r.turn) for r in make_rows([faulted, drawn()], "turn")] == [(1, 0), (1, 1)]


@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_hold_the_ids_that_were_sampled(layout: str, chat_name: str) -> None:
    episodes = played(CHATS[chat_name](), layout, Retrieval())
    for row in make_rows(episodes, layout):
        turns = episodes[row.episode].turns if layout == "trajectory" else [episodes[row.episode].turns[row.turn]]
        said = [i for t in turns for i in t.response_ids]
        assert [i for i, m in zip(row.ids, row.response_mask, strict=True) if m] == said
        logp = [x for t in turns for x in t.behaviour_logp]
        assert [x for x, m in zip(row.behaviour_logp, row.response_mask, strict=True) if m] == logp


@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_teacher_reads_the_same_tail_behind_another_beginning(layout: str, chat_name: str) -> None:
    chat = CHATS[chat_name]()
    episodes = played(chat, layout, SECRETS)
    rows = make_rows(episodes, layout)
    before = copy.deepcopy(rows)
    add(rows, episodes, chat)
    system = chat.prompt([{"role": "system", "content": SECRETS.text}, {"role": "user", "content": ""}])
    for row, student in zip(rows, before, strict=True):
        head = len(episodes[row.episode].turns[row.turn].prompt_ids)
        assert row.teacher_ids[-(len(row.ids) - head) :] == row.ids[head:]
        told = chat.tokenizer.decode(row.teacher_ids[: -(len(row.ids) - head)])
        assert SECRETS.text in told and SECRETS.text not in chat.tokenizer.decode(row.ids)
        extra = [i for i in system if i in chat.control and i not in chat.prompt([{"role": "user", "content": ""}])]
        assert [i for i in row.teacher_ids if i in extra] == extra  # the skill's own "<|im_end|>" is characters
        assert row.is_privileged
        row.teacher_ids, row.is_privileged = None, False
        assert row == student  # the student's row is as it was
    add(rows, episodes, chat)
    batch = batch_of(rows, episodes)
    assert batch.is_privileged.tolist() == [True] * len(rows)
    assert [batch.teacher_ids[b][m].tolist() for b, m in enumerate(batch.teacher_response_mask)] == [
        batch.ids[b][m].tolist() for b, m in enumerate(batch.response_mask)
    ]


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_retrieval_the_teacher_reads_exactly_what_the_student_does(layout: str, privileged: bool) -> None:
    chat = word_chat()
    episodes = played(chat, layout, Retrieval(), privileged)
    rows = make_rows(episodes, layout)
    add(rows, episodes, chat, SkillView(heading="You know this:"))
    assert all(row.teacher_ids == row.ids for row in rows)
    batch = batch_of(rows, episodes)
    assert not batch.is_privileged.any()
    assert torch.equal(batch.teacher_ids, batch.ids)
    assert torch.equal(batch.teacher_response_mask, batch.response_mask)
    assert torch.equal(batch.teacher_attention_mask, batch.attention_mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_that_saw_the_skill_has_itself_as_teacher(layout: str) -> None:
    chat = byte_chat()
    episodes = played(chat, layout, SECRETS, privileged=True)
    rows = make_rows(episodes, layout)
    add(rows, episodes, chat)
    assert all(row.teacher_ids == row.ids and not row.is_privileged for row in rows)


def test_a_teacher_context_that_does_not_fit_names_the_task() -> None:
    chat = word_chat()
    episodes = played(chat, "trajectory", SECRETS)
    rows = make_rows(episodes, "trajectory")
    longest = max(len(row.ids) for row in rows)
    message = rf"teacher's view of task {episodes[0].task.id} has \d+ tokens .*mug, heat.*context is {longest}"
    assert re.search(message, add(rows, episodes, chat, context=longest)[0])
    assert add(rows, episodes, chat, context=longest + len(SECRETS.text) + 20) == {}
    again = add(rows, episodes, chat, context=longest)  # rows that have their view are looked at as well
    assert "privileged text is never cut. Use a model with a longer context" in again[0]


class Demonstrating(FaultyWorld):
    """A world that tells how each of its tasks is solved."""

    def solution(self, task: Task) -> str:
        return f"Solve {task.id} so."


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_is_told_of_its_own_episode_group_and_world(layout: str) -> None:
    """Two tasks, two attempts each; the second attempt at the first task wins."""
    chat, env = byte_chat(), Demonstrating()
    script = lambda draw: "win" if (draw.task, draw.attempt, draw.turn) == ("t0", 1, 1) else f"say {draw.attempt}.{draw.turn}"  # noqa: E731
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, ScriptedSampler(script, chat), SkillView(), layout, horizon=2)
    episodes = rollout(None, [Request(Task(f"t{i // 2}", "faulty", "begin"), i % 2) for i in range(4)])
    groups = [episodes[:2], episodes[:2], episodes[2:], episodes[2:]]

    def texts(view: PrivilegedView) -> list[list[str]]:
        """What each episode's rows are told more than the student."""
        rows = make_rows(episodes, layout)
        add_teacher_view(rows, episodes, groups, chat, view, env, [4096] * len(episodes))
        out: list[list[str]] = [[] for _ in episodes]
        for row in rows:
            added = len(row.teacher_ids) - len(row.ids)
            assert row.teacher_ids[added:] == row.ids and row.is_privileged == bool(added)  # template: all of it is in front
            out[row.episode].append(chat.tokenizer.decode(row.teacher_ids[:added]).removesuffix("\n\n"))
        return out

    times = 2 if layout == "turn" else 1
    solutions = [[f"Solve t{i // 2} so."] * times for i in range(4)]
    assert texts(SolutionView("template", heading="")) == solutions
    assert texts(SiblingView("template", heading="")) == [["say 1.0\nwin"] * times, [""] * times, [""] * times, [""] * times]
    hindsight = [
        ["Correct: say 1.0; win", "This attempt so far: say 0.0\nCorrect: say 1.0; win"],
        ["Incorrect: say 0.0; say 0.1", "Incorrect: say 0.0; say 0.1\nThis attempt so far: say 1.0"],
        ["Incorrect: say 1.0; say 1.1", "This attempt so far: say 0.0\nIncorrect: say 1.0; say 1.1"],
        ["Incorrect: say 0.0; say 0.1", "Incorrect: say 0.0; say 0.1\nThis attempt so far: say 1.0"],
    ]
    assert texts(HindsightView("template", heading="")) == [told[:times] for told in hindsight]
    first = texts(FirstOf(placement="template"))
    assert [t[0].partition("\n")[0] for t in first] == [
        "A successful attempt at the task:", "", *["A failed attempt at the task, and what came of it:"] * 2,
    ]  # fmt: skip


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("chat_name", CHATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_privileged_episode_is_read_by_the_student_without_the_privilege(
    layout: str, chat_name: str, placement: str
) -> None:
    """And by the teacher as it was played. The responses are the same ids behind either beginning."""
    chat = CHATS[chat_name]()
    spans = lambda _, turn: list(range(1, 1 + len(turn.response_ids)))  # noqa: E731
    plain = make_rows(played(chat, layout, SECRETS), layout, spans)
    episodes = played(chat, layout, SECRETS, True, placement, extra=True)
    rows = make_rows(episodes, layout, spans)
    kept = copy.deepcopy(rows)
    students = [without_privilege(row, episodes[row.episode], chat) for row in rows]
    assert rows == kept
    assert [replace(row, teacher_ids=None, is_privileged=False) for row in students] == plain
    assert [row.teacher_ids for row in students] == [row.ids for row in rows]
    assert all(row.is_privileged and len(row.teacher_ids) > len(row.ids) for row in students)
    add(students, episodes, chat, SkillView(heading="Not this one:"))  # they have their teacher's view
    assert [row.teacher_ids for row in students] == [row.ids for row in rows]
    batch = collate(students, episodes + [replace(e, extra=False) for e in episodes], [0, 1, 2, 0, 1, 2])
    assert batch.extra.all() and batch.is_privileged.all()
    teacher, student = (
        [batch.teacher_ids[b][m].tolist() for b, m in enumerate(batch.teacher_response_mask)],
        [batch.ids[b][m].tolist() for b, m in enumerate(batch.response_mask)],
    )
    assert teacher == student and all(student)
    shift = batch.teacher_attention_mask.sum(1) - batch.attention_mask.sum(1)
    for b, places in enumerate(batch.response_mask):  # aligned at the end, position by position
        where = places.nonzero()[:, 0]
        assert torch.equal(batch.teacher_response_mask[b].nonzero()[:, 0], where + shift[b])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_privileged_episode_that_was_told_nothing_is_the_students_own(layout: str) -> None:
    chat = word_chat()
    episodes = played(chat, layout, Retrieval(), privileged=True)
    for row in make_rows(episodes, layout):
        student = without_privilege(row, episodes[row.episode], chat)
        assert student == replace(row, teacher_ids=row.ids, is_privileged=False)


# ------------------------------------------------------------------ episodes of several rows


def rewritten(told: str = "", extra: bool = False, share: float = 1.0) -> tuple[ChatFormat, list[Episode]]:
    """Three episodes of four turns under a template that removes thinking; with `share` below 1 some turns have none."""
    chat, env = chat_of("qwen3"), Parrot([f"You see {n} mugs." for n in range(4)])
    thought = [
        *chat.encode_control("<think>"),
        *chat.encode_text("hm"),
        *chat.encode_control("</think>"),
        *chat.encode_text("\n\n"),
    ]
    script = lambda draw: (thought if (draw.turn + draw.attempt) % 2 < 2 * share - 1e-9 else []) + random_ids(chat, draw)  # noqa: E731
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, ScriptedSampler(script, chat), SkillView(), horizon=4)
    requests = [Request(Task(f"t{i}", "parrot", "listen"), i, SECRETS, bool(told), told, extra=extra) for i in range(3)]
    return chat, rollout(None, requests)


splits = pytest.mark.parametrize("share", [0.5, 1.0])
quiet = pytest.mark.filterwarnings("ignore:the chat template of")


@quiet
@splits
def test_the_teacher_is_told_at_the_start_of_every_row(share: float) -> None:
    chat, episodes = rewritten(share=share)
    rows = make_rows(episodes, "trajectory")
    assert [r.turn for r in rows if r.episode == 0] == ([0, 1, 2, 3] if share == 1 else [0, 1, 3])
    add(rows, episodes, chat)
    system = chat.prompt([{"role": "system", "content": SECRETS.text}, {"role": "user", "content": ""}])
    system = system[: len(system) - len(chat.prompt([{"role": "user", "content": ""}]))]
    for row in rows:
        assert row.is_privileged and row.teacher_ids == [*system, *row.ids]
    batch = batch_of(rows, episodes)
    assert batch.is_privileged.all() and batch.episode.tolist() == [r.episode for r in rows]
    turns = Turns(batch)
    assert list(zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)) == [(e, t) for e in range(3) for t in range(4)]
    assert turns.length.tolist() == [len(t.response_ids) for e in episodes for t in e.turns]


@quiet
def test_a_view_of_hindsight_tells_each_row_of_what_was_before_it() -> None:
    chat, episodes = rewritten()
    rows = make_rows(episodes, "trajectory")
    add(rows, episodes, chat, HindsightView("template", heading=""))
    for row in rows:
        asked = [hanging(t.action) for t in episodes[row.episode].turns[: row.turn]]
        told = chat.decode(row.teacher_ids[: len(row.teacher_ids) - len(row.ids)])
        assert told == (f"This attempt so far: {'; '.join(asked)}\n\n" if asked else "")


@quiet
@splits
def test_every_row_of_a_privileged_episode_is_read_without_the_privilege(share: float) -> None:
    chat, plain = rewritten(share=share)
    _, episodes = rewritten(SECRETS.text, extra=True, share=share)
    rows = make_rows(episodes, "trajectory")
    students = [without_privilege(row, episodes[row.episode], chat) for row in rows]
    assert [replace(row, teacher_ids=None, is_privileged=False) for row in students] == make_rows(plain, "trajectory")
    assert [row.teacher_ids for row in students] == [row.ids for row in rows] and all(row.is_privileged for row in students)


@quiet
def test_the_rows_of_an_episode_share_its_credit_and_each_pays_for_its_own_actions() -> None:
    """As in the turn layout: statistics over episodes count each once, over rows each row."""
    _, episodes = rewritten(share=0.5)
    for e, reward in zip(episodes, (3.0, 0.0, 0.0), strict=True):
        e.reward = reward
    batch = collate(make_rows(episodes, "trajectory"), episodes, [0, 0, 0])
    assert batch.episode.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    episodes[0].turns[1].valid = False  # begins the second row of the first episode
    credit = credit_of(batch, episodes, penalty=0.3)
    assert credit.rewards[:3].tolist() == pytest.approx([3.0, 2.7, 3.0])
    by_row = GroupAdvantage("row")(credit)
    expected = (credit.rewards - credit.rewards.mean()) / (credit.rewards.std() + 1e-6)
    assert torch.allclose(by_row, expected, atol=1e-5)
    by_episode = GroupAdvantage("episode")(credit)
    assert by_episode[0] == by_episode[2] > by_episode[1] > 0 > by_episode[3] == by_episode[7]


# ------------------------------------------------------------------ spans


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spans_stand_on_the_tokens_of_their_tag(layout: str) -> None:
    """Bytes, so that a token is a character; the prompt's own "<think> </think>" is nobody's thought."""
    chat, protocol = byte_chat(), ThinkActProtocol()
    said = ["<think>where?</think><action>go on</action>", "no tags at all", "<action>win</action>"]
    sampler = ScriptedSampler(lambda draw: said[draw.turn - 1], chat)
    rollout = Rollout(LocalPool(FaultyWorld()), protocol, chat, sampler, SkillView(), layout, horizon=9)
    [episode] = rollout(None, [Request(Task("t", "faulty", "begin"), 0, replay=("look",))])
    assert len(episode.turns) == 4 and episode.success
    rows = make_rows(
        [episode], layout, lambda _, turn: response_spans(turn.response_ids, chat.tokenizer, protocol, chat.stop_ids)
    )

    def under(tag: str) -> list[str]:
        """Text of the tokens of each turn that are marked with a tag."""
        turns = [""] * 4
        for row in rows:
            assert len(row.spans) == len(row.ids)
            for i, span, turn in zip(row.ids, row.spans, row.turn_ids, strict=True):
                turns[turn] += chat.tokenizer.decode([i]) if span == 1 + protocol.tags.index(tag) else ""
        return turns

    assert under("think") == ["The next step is to look.", "where?", "", ""]
    assert under("action") == ["look", "go on", "", "win"]
    batch = batch_of(rows, [episode])
    for b, row in enumerate(rows):
        assert batch.spans[b].tolist() == row.spans + [0] * (batch.ids.shape[1] - len(row.ids))
    learned = [i for row in rows for i, s, m in zip(row.ids, row.spans, row.response_mask, strict=True) if m and s == 2]
    assert chat.tokenizer.decode(learned) == "go onwin"  # what was replayed is not trainable, wherever it stands


# ------------------------------------------------------------------ tensors


def test_a_batch_is_padded_on_the_right() -> None:
    batch = batch_of(make_rows([drawn()], "turn", lambda _, turn: [1] * len(turn.response_ids)), [drawn()])
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 9], [10, 11, 12, 13, 14, 30, 31, 32, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 11, [1] * 9 + [0, 0]]
    assert batch.response_mask.tolist() == [[False] * 8 + [True] * 3, [False] * 5 + [True] * 4 + [False] * 2]
    assert batch.behaviour_logp[1].tolist() == [0.0] * 5 + [-4.0, -5.0, -6.0, -7.0, 0.0, 0.0]
    assert batch.turn_ids[0].tolist() == [0] * 11 and batch.episode.tolist() == [0, 0]
    assert batch.spans.tolist() == [[0] * 8 + [1] * 3, [0] * 5 + [1] * 4 + [0] * 2]
    assert not batch.has("teacher_ids") and len(batch) == 2
    assert batch.is_privileged.tolist() == batch.extra.tolist() == [False, False] and batch.group.tolist() == [0, 0]


def test_the_share_of_a_group_that_succeeded_counts_its_attempts_only() -> None:
    """Group 4: one of two attempts, and an extra success. Group 7: none of three, and two extra successes."""
    won = [True, False, False, False, False, True, True, True]
    groups, extra = [4, 4, 7, 7, 7, 4, 7, 7], [False] * 5 + [True] * 3
    episodes = [replace(drawn(), success=w, extra=x) for w, x in zip(won, extra, strict=True)]
    rows = make_rows(episodes, "turn")
    batch = collate(rows, episodes, groups)
    twice = lambda values: [v for v in values for _ in range(2)]  # noqa: E731  (two turns each)
    assert batch.group.tolist() == twice(groups) and batch.extra.tolist() == twice(extra)
    assert batch.success.tolist() == twice([float(w) for w in won])
    assert batch.group_success.tolist() == twice([0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    some = collate(rows[-2:], episodes, groups)  # a group whose attempts left no row is a group all the same
    assert some.group_success.tolist() == [0.0, 0.0] and some.episode.tolist() == [7, 7]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, list[Row], Callable[[list[Row]], Batch]]:
    """Rows of any lengths, each with a teacher's view that has a shorter or longer beginning; every id occurs once."""
    rows, fresh = [], iter(range(1, 10_000))
    for episode in range(draw(st.integers(1, 6))):
        prompt = [next(fresh) for _ in range(draw(st.integers(1, 5)))]
        said = [next(fresh) for _ in range(draw(st.integers(1, 5)))]
        ids, mask = prompt + said, [0] * len(prompt) + [1] * len(said)
        logp = [-float(i) * m for i, m in zip(ids, mask, strict=True)]
        row = Row(ids, mask, [episode] * len(ids), logp, logp, episode, 0, spans=[i % 3 for i in ids])
        row.teacher_ids = [next(fresh) for _ in range(draw(st.integers(1, 9)))] + said
        row.is_privileged = draw(st.booleans())
        rows.append(row)
    episodes = [Episode(Task("t", "f", "do"), e, success=draw(st.booleans()), extra=e % 2 == 1) for e in range(len(rows))]

    def make(some: list[Row]) -> Batch:
        return collate(some, episodes, [e // 2 for e in range(len(episodes))])

    batch = make(rows)
    batch.advantages = batch.episode.float()
    batch.old_logp = -batch.ids.float()
    batch.distill_weights = batch.ids.float() / 2
    batch.teacher_index = batch.episode % 2
    batch.teacher_top_ids = batch.ids[..., None] * torch.tensor([1, 2, 3])
    batch.teacher_top_logp = -batch.teacher_top_ids.float()
    batch.teacher_hidden = batch.ids[..., None].expand(-1, -1, 5).half()
    return batch, rows, make


Made = tuple[Batch, list[Row], Callable[[list[Row]], Batch]]
COLLATED = (
    "ids", "attention_mask", "response_mask", "turn_ids", "behaviour_logp", "kept_logmass", "spans", "episode", "group", "success",
    "group_success", "is_privileged", "extra", "teacher_ids", "teacher_attention_mask", "teacher_response_mask",
)  # fmt: skip


@given(batches(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_selection_is_the_batch_of_the_selected_rows(made: Made, data: st.DataObject) -> None:
    batch, rows, make = made
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=8))
    part, direct = batch.select(torch.tensor(chosen)), make([rows[i] for i in chosen])
    for name in COLLATED:  # the teacher's are cut to a length of their own
        assert torch.equal(getattr(part, name), getattr(direct, name)), name
    assert torch.equal(part.advantages, part.episode.float()) and torch.equal(part.teacher_index, part.episode % 2)
    assert torch.equal(part.old_logp, -part.ids.float())  # per-token tensors stay with their tokens
    assert torch.equal(part.distill_weights, part.ids.float() / 2)
    assert torch.equal(part.teacher_top_ids, part.ids[..., None] * torch.tensor([1, 2, 3]))
    assert torch.equal(part.teacher_top_logp, -part.teacher_top_ids.float())
    assert torch.equal(part.teacher_hidden, part.ids[..., None].expand(-1, -1, 5).half())
    assert not any(part.has(name) for name in ("ref_logp", "teacher_logp", "old_entropy"))
    assert [part.teacher_ids[b][m].tolist() for b, m in enumerate(part.teacher_response_mask)] == [
        part.ids[b][m].tolist() for b, m in enumerate(part.response_mask)
    ]
    batch.advantages = batch.ids.float() * 3  # advantages may differ between tokens
    assert torch.equal(batch.select(torch.tensor(chosen)).advantages, part.ids.float() * 3)


@given(batches())
@settings(max_examples=20, deadline=None)
def test_a_batch_without_a_teacher_can_be_cut_and_moved(made: Made) -> None:
    _, rows, make = made
    for row in rows:
        row.teacher_ids = None
    moved = make(rows).select(torch.arange(len(rows))).to(torch.device("cpu"))
    assert torch.equal(moved.ids, make(rows).ids) and not moved.has("teacher_ids")


@given(batches())
@settings(max_examples=5, deadline=None)
def test_all_of_a_batch_is_moved(made: Made) -> None:
    batch, _, _ = made
    moved = batch.to(torch.device("meta"))
    assert vars(batch).keys() == vars(moved).keys()
    for name, before in vars(batch).items():
        after = getattr(moved, name)
        assert before.device.type == "cpu" and after.device.type == "meta" and after.shape == before.shape, name
    missing = {
        "importance",
        "old_entropy",
        "scored_row",
        "teacher_entropy",
        "world",
        "ref_logp",
        "teacher_logp",
        "soft_target_ids",
        "soft_target_logp",
        "turn_weights",
    }
    missing |= {"teacher_spans", "student_spans"}  # of teachers with tokens of their own
    assert {f.name for f in fields(Batch)} - vars(batch).keys() == missing


def test_a_row_of_one_turn_repeats_the_conversation_before_it() -> None:
    [whole] = make_rows([drawn()], "trajectory")
    first, second = make_rows([drawn()], "trajectory", one_turn=True)
    assert second.ids == whole.ids and first.ids == whole.ids[: len(first.ids)] and len(first.ids) == 11
    assert second.turn_ids == whole.turn_ids and second.behaviour_logp == whole.behaviour_logp
    assert [a + b for a, b in zip(first.response_mask + [0] * 9, second.response_mask, strict=True)] == whole.response_mask
    assert sum(first.response_mask) == 3 and sum(second.response_mask) == 4
    assert (first.turn, first.view_turn, second.turn, second.view_turn) == (0, None, 0, 1)
