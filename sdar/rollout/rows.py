"""Episodes to training rows: response ids verbatim, everything else masked; the teacher's view is another beginning.

Trajectory layout: one row an episode. Turn layout: one row a turn. In both, only what stands before the first response of the
row can be privileged, so the teacher's row is ``chat.prompt(view(messages)) + the same tail``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.chat import ChatFormat
from sdar.errors import ContextOverflowError
from sdar.parts import PrivilegedView
from sdar.types import Batch, Episode, Row


def make_rows(episodes: Sequence[Episode], layout: str) -> list[Row]:
    """Rows in episode order, then turn order. Episodes without a turn (a fault at reset) give none."""
    rows: list[Row] = []
    for e, episode in enumerate(episodes):
        for t, turn in enumerate(episode.turns):
            if layout == "turn" or t == 0:
                rows.append(Row([], [], [], [], [], episode=e, turn=t))
            row, told, said = rows[-1], turn.prompt_ids, turn.response_ids
            row.ids += [*told, *said]
            row.response_mask += [0] * len(told) + [int(turn.imitated)] * len(said)
            row.turn_ids += [t] * (len(told) + len(said))
            row.behaviour_logp += [0.0] * len(told) + turn.behaviour_logp
            row.kept_logmass += [0.0] * len(told) + turn.kept_logmass
    return rows


def add_teacher_view(
    rows: Sequence[Row], episodes: Sequence[Episode], chat: ChatFormat, view: PrivilegedView, context: int
) -> None:
    """Give each row its privileged twin, on ids. Without a retrieval the twin is the row itself, token for token.

    Raises:
        ContextOverflowError: the longer context does not fit; names the task. Nothing is cut.
    """
    for row in rows:
        episode = episodes[row.episode]
        messages = episode.windows[row.turn] if episode.windows else episode.opening
        head = len(episode.turns[row.turn].prompt_ids)
        told = view.messages(messages, episode.retrieval.text, chat.has_system_role)
        row.teacher_ids = row.ids if told == messages else chat.prompt(told) + row.ids[head:]
        if len(row.teacher_ids) > context:
            raise ContextOverflowError(
                f"the teacher's view of task {episode.task.id} has {len(row.teacher_ids)} tokens ({len(row.ids)} without the "
                f"retrieved {', '.join(episode.retrieval.skill_ids) or 'text'}), but the model's context is {context}: skills "
                "are never cut. Use a model with a longer context, shorter skills, fewer of them, or `layout: turn`."
            )


def _pad(lists: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(lists), max(map(len, lists)), dtype=dtype)
    for b, values in enumerate(lists):
        out[b, : len(values)] = torch.tensor(values, dtype=dtype)
    return out


def collate(rows: Sequence[Row]) -> Batch:
    """Rows as right-padded tensors."""
    batch = Batch(
        ids=_pad([r.ids for r in rows], torch.long),
        attention_mask=_pad([[1] * len(r.ids) for r in rows], torch.long),
        response_mask=_pad([r.response_mask for r in rows], torch.bool),
        turn_ids=_pad([r.turn_ids for r in rows], torch.long),
        behaviour_logp=_pad([r.behaviour_logp for r in rows], torch.float32),
        kept_logmass=_pad([r.kept_logmass for r in rows], torch.float32),
        episode=torch.tensor([r.episode for r in rows]),
    )
    told = [r.teacher_ids for r in rows if r.teacher_ids is not None]
    if told:
        assert len(told) == len(rows), "a teacher reads every row of a batch or none"
        # aligned at the end: only the beginnings differ, and either may be the longer one
        masks = [([0] * len(ids) + r.response_mask)[-len(ids) :] for ids, r in zip(told, rows, strict=True)]
        batch.teacher_ids = _pad(told, torch.long)
        batch.teacher_attention_mask = _pad([[1] * len(ids) for ids in told], torch.long)
        batch.teacher_response_mask = _pad(masks, torch.bool)
    return batch
