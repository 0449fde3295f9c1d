"""Rows: the drawn layout of `sdar.types`, the teacher's twin on ids, and the tensors made of them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import CHATS, ScriptedSampler, byte_chat, random_ids, word_chat

from sdar.chat import ChatFormat
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import ContextOverflowError
from sdar.rollout import LocalPool, Request, Rollout, collate, make_rows
from sdar.rollout.loop import LAYOUTS
from sdar.rollout.rows import add_teacher_view
from sdar.teachers import SkillView
from sdar.types import Batch, Episode, Retrieval, Row, Status, Task, Turn

SECRETS = Retrieval(("mug", "heat"), "The mug is usually in the drawer.\n<|im_end|><|end|> Look there first.")


def drawn() -> Episode:
    """The picture in `sdar.types`: eight prompt tokens, three sampled, five told, four sampled."""
    first = Turn([1, 2, 3, 4, 5, 6, 7, 8], [20, 21, 9], [-1.0, -2.0, -3.0], [-0.1, -0.2, -0.3])
    second = Turn([10, 11, 12, 13, 14], [30, 31, 32, 9], [-4.0, -5.0, -6.0, -7.0], [0.0, -0.4, 0.0, 0.0])
    return Episode(Task("t", "f", "do"), 0, [first, second])


def played(chat: ChatFormat, layout: str, retrieval: Retrieval, privileged: bool = False) -> list[Episode]:
    """Three short episodes in a household, with responses that no encoder would give."""
    env = HouseholdEnv(receptacles=6, distractors=1, horizon=3)
    sampler = ScriptedSampler(lambda draw: random_ids(chat, draw), chat)
    rollout = Rollout(LocalPool(env), CompactProtocol(), chat, sampler, SkillView(), layout, horizon=3)
    return rollout(None, [Request(env.task(t), 0, retrieval, privileged) for t in env.task_ids("train", 3, 0)])


def test_a_trajectory_is_the_drawn_row() -> None:
    [row] = make_rows([drawn()], "trajectory")
    assert row.ids == [1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 9, 10, 11, 12, 13, 14, 30, 31, 32, 9]
    assert row.response_mask == [0] * 8 + [1] * 3 + [0] * 5 + [1] * 4
    assert row.turn_ids == [0] * 11 + [1] * 9
    assert row.behaviour_logp == [0.0] * 8 + [-1.0, -2.0, -3.0] + [0.0] * 5 + [-4.0, -5.0, -6.0, -7.0]
    assert row.kept_logmass == [0.0] * 8 + [-0.1, -0.2, -0.3] + [0.0] * 5 + [0.0, -0.4, 0.0, 0.0]
    assert (row.episode, row.turn, row.teacher_ids) == (0, 0, None)


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
    episode.turns[1].imitated = False
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
    add_teacher_view(rows, episodes, chat, SkillView(), 4096)
    system = chat.prompt([{"role": "system", "content": SECRETS.text}, {"role": "user", "content": ""}])
    for row, student in zip(rows, before, strict=True):
        head = len(episodes[row.episode].turns[row.turn].prompt_ids)
        assert row.teacher_ids[-(len(row.ids) - head) :] == row.ids[head:]
        told = chat.tokenizer.decode(row.teacher_ids[: -(len(row.ids) - head)])
        assert SECRETS.text in told and SECRETS.text not in chat.tokenizer.decode(row.ids)
        extra = [i for i in system if i in chat.control and i not in chat.prompt([{"role": "user", "content": ""}])]
        assert [i for i in row.teacher_ids if i in extra] == extra  # the skill's own "<|im_end|>" is characters
        row.teacher_ids = None
        assert row == student  # the student's row is as it was
    add_teacher_view(rows, episodes, chat, SkillView(), 4096)
    batch = collate(rows)
    assert [batch.teacher_ids[b][m].tolist() for b, m in enumerate(batch.teacher_response_mask)] == [
        batch.ids[b][m].tolist() for b, m in enumerate(batch.response_mask)
    ]


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_retrieval_the_teacher_reads_exactly_what_the_student_does(layout: str, privileged: bool) -> None:
    chat = word_chat()
    episodes = played(chat, layout, Retrieval(), privileged)
    rows = make_rows(episodes, layout)
    add_teacher_view(rows, episodes, chat, SkillView(heading="You know this:"), 4096)
    assert all(row.teacher_ids == row.ids for row in rows)
    batch = collate(rows)
    assert torch.equal(batch.teacher_ids, batch.ids)
    assert torch.equal(batch.teacher_response_mask, batch.response_mask)
    assert torch.equal(batch.teacher_attention_mask, batch.attention_mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_that_saw_the_skill_has_itself_as_teacher(layout: str) -> None:
    chat = byte_chat()
    episodes = played(chat, layout, SECRETS, privileged=True)
    rows = make_rows(episodes, layout)
    add_teacher_view(rows, episodes, chat, SkillView(), 4096)
    assert all(row.teacher_ids == row.ids for row in rows)


def test_a_teacher_context_that_does_not_fit_names_the_task() -> None:
    chat = word_chat()
    episodes = played(chat, "trajectory", SECRETS)
    rows = make_rows(episodes, "trajectory")
    longest = max(len(row.ids) for row in rows)
    message = rf"teacher's view of task {episodes[0].task.id} has \d+ tokens .*mug, heat.*context is {longest}"
    with pytest.raises(ContextOverflowError, match=message):
        add_teacher_view(rows, episodes, chat, SkillView(), longest)
    add_teacher_view(rows, episodes, chat, SkillView(), longest + len(SECRETS.text) + 20)


def test_a_batch_is_padded_on_the_right() -> None:
    batch = collate(make_rows([drawn()], "turn"))
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 20, 21, 9], [10, 11, 12, 13, 14, 30, 31, 32, 9, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 11, [1] * 9 + [0, 0]]
    assert batch.response_mask.tolist() == [[False] * 8 + [True] * 3, [False] * 5 + [True] * 4 + [False] * 2]
    assert batch.behaviour_logp[1].tolist() == [0.0] * 5 + [-4.0, -5.0, -6.0, -7.0, 0.0, 0.0]
    assert batch.turn_ids[0].tolist() == [0] * 11 and batch.episode.tolist() == [0, 0]
    assert batch.teacher_ids is None and len(batch) == 2


@st.composite
def batches(draw: st.DrawFn) -> tuple[Batch, list[Row]]:
    """Rows of any lengths, each with a teacher's view that has a shorter or longer beginning; every id occurs once."""
    rows, fresh = [], iter(range(1, 10_000))
    for episode in range(draw(st.integers(1, 6))):
        prompt = [next(fresh) for _ in range(draw(st.integers(1, 5)))]
        said = [next(fresh) for _ in range(draw(st.integers(1, 5)))]
        ids, mask = prompt + said, [0] * len(prompt) + [1] * len(said)
        logp = [-float(i) * m for i, m in zip(ids, mask, strict=True)]
        row = Row(ids, mask, [episode] * len(ids), logp, logp, episode, 0)
        row.teacher_ids = [next(fresh) for _ in range(draw(st.integers(1, 9)))] + said
        rows.append(row)
    batch = collate(rows)
    batch.advantages = batch.episode.float()
    batch.old_logp = -batch.ids.float()
    return batch, rows


@given(batches(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_selection_is_the_batch_of_the_selected_rows(made: tuple[Batch, list[Row]], data: st.DataObject) -> None:
    batch, rows = made
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=8))
    part, direct = batch.select(torch.tensor(chosen)), collate([rows[i] for i in chosen])
    for name in ("ids", "attention_mask", "response_mask", "turn_ids", "behaviour_logp", "kept_logmass", "episode"):
        assert torch.equal(getattr(part, name), getattr(direct, name)), name
    for name in ("teacher_ids", "teacher_attention_mask", "teacher_response_mask"):  # cut to a length of their own
        assert torch.equal(getattr(part, name), getattr(direct, name)), name
    assert torch.equal(part.advantages, part.episode.float())
    assert torch.equal(part.old_logp, -part.ids.float())  # per-token tensors stay with their tokens
    assert part.ref_logp is None and part.teacher_logp is None
    assert [part.teacher_ids[b][m].tolist() for b, m in enumerate(part.teacher_response_mask)] == [
        part.ids[b][m].tolist() for b, m in enumerate(part.response_mask)
    ]


@given(batches())
@settings(max_examples=20, deadline=None)
def test_a_batch_without_a_teacher_can_be_cut_and_moved(made: tuple[Batch, list[Row]]) -> None:
    _, rows = made
    for row in rows:
        row.teacher_ids = None
    moved = collate(rows).select(torch.arange(len(rows))).to(torch.device("cpu"))
    assert torch.equal(moved.ids, collate(rows).ids) and moved.teacher_ids is None
