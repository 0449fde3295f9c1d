"""Made-up episodes as batches in both layouts, for everything that is computed turn by turn.

``nested[episode][turn][token]`` is how values of tokens are written down; turns that carry no loss are in it like others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.metrics import Metrics
from sdar.parts import Credit
from sdar.rollout import collate, make_rows
from sdar.turns import Turns
from sdar.types import Batch, Episode, Task, TokenView, Turn

LAYOUTS = ("trajectory", "turn")
Nested = Sequence[Sequence[Sequence[float]]]


def turn(tokens: int = 1, reward: float = 0.0, observation: str = "", valid: bool = True, trainable: bool = True) -> Turn:
    """A turn of that many response tokens behind a prompt of two."""
    said = list(range(3, 3 + tokens))
    zeros = [0.0] * tokens
    return Turn([1, 2], said, zeros, zeros, observation=observation, valid=valid, reward=reward, trainable=trainable)


def episode(*turns: Turn, attempt: int = 0, reward: float | None = None) -> Episode:
    """An attempt; its reward is that of its turns, if none is given, and any reward is a success."""
    reward = sum(t.reward for t in turns) if reward is None else reward
    return Episode(Task("task", "family", "do it"), attempt, list(turns), success=reward > 0, reward=reward)


def batch_of(episodes: Sequence[Episode], layout: str, groups: Sequence[int] | None = None) -> Batch:
    """Rows of the episodes; one group, if no groups are given."""
    return collate(make_rows(episodes, layout), episodes, groups or [0] * len(episodes))


def credit_of(batch: Batch, episodes: Sequence[Episode], penalty: float = 0.0) -> Credit:
    """What an estimator is told, with a penalty for each invalid action: by the words of `Credit`, row by row."""
    turns = Turns(batch)
    taken = [episodes[e].turns[t] for e, t in zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)]
    cost = [0.0 if t.valid else penalty for t in taken]
    rewards = [episodes[e].reward for e in batch.episode.tolist()]
    for row, penalized in zip(turns.row.tolist(), cost, strict=True):
        rewards[row] -= penalized
    return Credit(
        rewards=torch.tensor(rewards),
        groups=batch.group,
        episodes=batch.episode,
        turns=turns,
        turn_rewards=torch.tensor([t.reward for t in taken]),
        turn_penalties=torch.tensor(cost),
        turn_groups=batch.group[turns.row],
        observations=[t.observation for t in taken],
        survivor=torch.zeros(len(batch), dtype=torch.bool),
        metrics=Metrics(),
    )


def spread(batch: Batch, nested: Nested, outside: float = 0.0) -> Tensor:
    """``[batch, time]``: the values at their response tokens, `outside` everywhere else. float64."""
    out = torch.full(batch.ids.shape, outside, dtype=torch.double)
    for row, e in enumerate(batch.episode.tolist()):
        seen: dict[int, int] = {}
        for time in batch.response_mask[row].nonzero()[:, 0].tolist():
            t = int(batch.turn_ids[row, time])
            out[row, time] = nested[e][t][seen.get(t, 0)]
            seen[t] = seen.get(t, 0) + 1
    return out


def gathered(batch: Batch, values: Tensor) -> list[list[list[float]]]:
    """`spread` undone; turns that carry no loss are left out."""
    found: dict[tuple[int, int], list[float]] = {}
    for row, time in batch.response_mask.nonzero().tolist():
        key = int(batch.episode[row]), int(batch.turn_ids[row, time])
        found.setdefault(key, []).append(float(values[row, time]))
    episodes = sorted({e for e, _ in found})
    return [[found[key] for key in sorted(found) if key[0] == e] for e in episodes]


def view_of(batch: Batch, gap: Tensor, advantages: Tensor | None = None) -> TokenView:
    """What is known about tokens that the student gave -1.5 nats."""
    student = torch.full_like(gap, -1.5)
    return TokenView(
        student_logp=student,
        teacher_logp=student + gap,
        gap=gap,
        entropy=torch.ones_like(gap),
        response_mask=batch.response_mask,
        turn_ids=batch.turn_ids,
        advantages=torch.zeros_like(gap) if advantages is None else advantages,
        vocab_size=8,
        group_success=batch.group_success[:, None].expand_as(gap),
    )


def shuffled(batch: Batch, seed: int = 0) -> tuple[Batch, Tensor]:
    """The rows in another order, and that order."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    return batch.select(order), order
