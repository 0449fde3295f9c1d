"""Episodes to training rows: response ids verbatim, everything else masked; the teacher's view is another beginning.

Trajectory layout: one row an episode, and another one from each turn on whose prompt does not go on from what was told and said
before (`Turn.starts_row`); one a turn where the view tells of each turn something else. Turn layout: one row a
turn. In all of them only what stands before the first response of the row can be privileged, so the teacher's row is
``view.prompt(messages, text) + the same tail``.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdar.parts import Environment, PrivilegedView
from sdar.registry import part_name
from sdar.rollout.chat import ChatFormat
from sdar.types import Batch, Episode, Row, Turn


def make_rows(
    episodes: Sequence[Episode],
    layout: str | None = None,
    spans: Callable[[Episode, Turn], list[int]] | None = None,
    one_turn: bool = False,
) -> list[Row]:
    """Rows in episode order, then turn order. Episodes without a turn (a fault at reset) give none.

    Args:
        layout: Of all episodes; None: that in which each was played.
        spans: The number of the tag that each response token of a turn stands in, where somebody asks for it.
        one_turn: A row teaches one turn only: in a conversation each turn begins a row of its own, which repeats all that was before it.
    """
    rows: list[Row] = []
    for e, episode in enumerate(episodes):
        by_turn = bool(episode.turn_messages) if layout is None else layout == "turn"
        for t, turn in enumerate(episode.turns):
            if by_turn or t == 0 or turn.starts_row:
                rows.append(Row([], [], [], [], [], episode=e, turn=t))
            elif one_turn:
                rows.append(_behind(rows[-1], t))
            row, prompt, response = rows[-1], turn.prompt_ids, turn.response_ids
            row.ids += [*prompt, *response]
            row.response_mask += [0] * len(prompt) + [int(turn.trainable)] * len(response)
            row.turn_ids += [t] * (len(prompt) + len(response))
            row.behaviour_logp += [0.0] * len(prompt) + turn.behaviour_logp
            row.kept_logmass += [0.0] * len(prompt) + turn.kept_logmass
            if spans is not None:
                row.spans += [0] * len(prompt) + spans(episode, turn)
    return rows


def _behind(row: Row, turn: int) -> Row:
    """What the row of a further turn begins with: all of the one before, which is not learned from again."""
    known = copy.deepcopy(row)
    known.response_mask, known.view_turn = [0] * len(row.ids), turn
    return known


def messages_of(episode: Episode, turn: int) -> list[dict[str, Any]]:
    """The conversation that the prompt of `turn` (which begins a row) was made from, before anything privileged."""
    return (
        episode.turn_messages[turn]
        if episode.turn_messages
        else [*episode.first_messages, *episode.later_messages[: 2 * turn]]
    )


def without_privilege(row: Row, episode: Episode, chat: ChatFormat) -> Row:
    """The row of an episode that was played with privileged text as the student reads it: without."""
    head, plain = len(episode.turns[row.turn].prompt_ids), chat.prompt(messages_of(episode, row.turn))

    def moved(values: list, filler: float) -> list:
        return [filler] * len(plain) + values[head:]

    return replace(
        row,
        ids=plain + row.ids[head:],
        response_mask=moved(row.response_mask, 0),
        turn_ids=moved(row.turn_ids, row.turn),
        behaviour_logp=moved(row.behaviour_logp, 0.0),
        kept_logmass=moved(row.kept_logmass, 0.0),
        spans=moved(row.spans, 0) if row.spans else [],
        teacher_ids=row.ids,
        is_privileged=plain != row.ids[:head],
    )


def add_teacher_view(
    rows: Sequence[Row],
    episodes: Sequence[Episode],
    groups: Sequence[Sequence[Episode]],
    chat: ChatFormat,
    view: PrivilegedView,
    env: Environment,
    contexts: Sequence[int],
) -> dict[int, str]:
    """Give each row its privileged twin, on ids, where it has none. Without a text the twin is the row itself, token for token.

    Returns what to say of each row whose twin does not fit its teacher's context, by its place in `rows`. Nothing is cut: who asks
    leaves out the text or the row.

    Args:
        groups: Of each episode, all attempts at its task.
        contexts: Of each episode, how many tokens its teacher can attend to.
    """
    too_long: dict[int, str] = {}
    for place, row in enumerate(rows):
        episode = episodes[row.episode]
        if row.teacher_ids is None:
            text = view.text(episode, groups[row.episode], row.turn if row.view_turn is None else row.view_turn, env)
            head = len(episode.turns[row.turn].prompt_ids)
            # Another head [prompt], the same tail [time - head].
            prompt_ids = view.prompt(chat, messages_of(episode, row.turn), text) if text else row.ids[:head]
            row.is_privileged = prompt_ids != row.ids[:head]
            row.teacher_ids = prompt_ids + row.ids[head:]
        if len(row.teacher_ids) > (limit := contexts[row.episode]):
            added = ", ".join(episode.retrieval.skill_ids) or "text"
            without = (
                f"{len(row.ids)} without the {added} that {part_name(view)} adds" if row.is_privileged else "nothing is added"
            )
            too_long[place] = (
                f"the teacher's view of task {episode.task.id} has {len(row.teacher_ids)} tokens ({without}), but the teacher's context is "
                f"{limit}: privileged text is never cut. Use a model with a longer context, shorter texts, or `layout: turn`."
            )
    return too_long


def _pad(lists: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """``[batch, longest]``, filled up with 0 at the end."""
    out = torch.zeros(len(lists), max(map(len, lists)), dtype=dtype)
    for b, values in enumerate(lists):
        out[b, : len(values)] = torch.tensor(values, dtype=dtype)
    return out


def collate(rows: Sequence[Row], episodes: Sequence[Episode], groups: Sequence[int]) -> Batch:
    """Rows as right-padded tensors; `groups` numbers the group of each episode."""
    outcomes: dict[int, list[bool]] = {}
    for episode, group in zip(episodes, groups, strict=True):
        if not (episode.extra or episode.lost):
            outcomes.setdefault(group, []).append(episode.success)
    rates = {group: sum(won) / len(won) for group, won in outcomes.items()}
    batch = Batch(
        # [batch, time]
        ids=_pad([r.ids for r in rows], torch.long),
        attention_mask=_pad([[1] * len(r.ids) for r in rows], torch.long),
        response_mask=_pad([r.response_mask for r in rows], torch.bool),
        turn_ids=_pad([r.turn_ids for r in rows], torch.long),
        behaviour_logp=_pad([r.behaviour_logp for r in rows], torch.float32),
        kept_logmass=_pad([r.kept_logmass for r in rows], torch.float32),
        # [batch]
        episode=torch.tensor([r.episode for r in rows]),
        group=torch.tensor([groups[r.episode] for r in rows]),
        success=torch.tensor([float(episodes[r.episode].success) for r in rows], dtype=torch.float32),
        group_success=torch.tensor([rates.get(groups[r.episode], math.nan) for r in rows], dtype=torch.float32),
        is_privileged=torch.tensor([r.is_privileged for r in rows]),
        extra=torch.tensor([episodes[r.episode].extra for r in rows]),
    )
    if any(r.spans for r in rows):
        batch.spans = _pad([r.spans for r in rows], torch.long)
    teacher_rows = [r.teacher_ids for r in rows if r.teacher_ids is not None]
    if teacher_rows:
        assert len(teacher_rows) == len(rows), "a teacher reads every row of a batch or none"
        # Aligned at the end: only the beginnings differ, and either may be the longer one. A mask is [teacher time of its row].
        masks = [([0] * len(ids) + r.response_mask)[-len(ids) :] for ids, r in zip(teacher_rows, rows, strict=True)]
        # [batch, teacher time]
        batch.teacher_ids = _pad(teacher_rows, torch.long)
        batch.teacher_attention_mask = _pad([[1] * len(ids) for ids in teacher_rows], torch.long)
        batch.teacher_response_mask = _pad(masks, torch.bool)
    if any(r.teacher_spans for r in rows):  # the teacher has tokens of its own
        batch.teacher_spans = _pad([r.teacher_spans for r in rows], torch.long)
        batch.student_spans = _pad([r.spans_of_teacher for r in rows], torch.long)
        batch.teacher_response_mask = batch.teacher_spans > 0
    return batch
