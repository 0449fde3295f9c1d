"""Made-up episodes and tokens that parts are called with when they are checked."""

import torch

from sdar.metrics import Metrics
from sdar.parts import Credit, Environment, StepResult
from sdar.rollout.rows import collate, make_rows
from sdar.turns import Turns
from sdar.types import Batch, Episode, Task, TokenView, Turn

LAYOUTS = ("trajectory", "turn")


class World(Environment):
    """Where they were played, as far as a view or a curriculum asks."""

    horizon = 4

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        return ["task-a", "task-b"]

    def task(self, task_id: str) -> Task:
        return Task(task_id, "family", "do it", facts={"mug": "shelf 1"})

    def reset(self, task: Task) -> str:
        return "You see a mug."

    def step(self, action: str) -> StepResult:
        return StepResult("Taken.", 1.0, done=True, success=True)

    def demonstration(self, task: Task) -> list[str]:
        return ["open door", "take mug", "put mug on shelf 1"]

    def hint(self, task: Task) -> str:
        return "A mug belongs on a shelf."


def attempts() -> list[Episode]:
    """Two attempts at each of two tasks, of one to three turns; the first one of each succeeded."""
    found = []
    for name in ("a", "b"):
        for number, lengths in enumerate(((2, 1, 3), (4,))):
            turns = [Turn([1, 2], list(range(3, 3 + n)), [-0.5] * n, [0.0] * n, observation=f"seen {n}") for n in lengths]
            turns[-1].reward = float(number == 0)
            found.append(Episode(World().task(f"task-{name}"), number, turns, success=number == 0, reward=turns[-1].reward))
    return found


def batch(layout: str) -> Batch:
    """Their rows."""
    return collate(make_rows(attempts(), layout), attempts(), [0, 0, 1, 1])


def tokens(rows: Batch, gap: float | None = None, iteration: int = 0) -> TokenView:
    """What is known about each token: a teacher that differs by up to 8 nats, or by `gap` everywhere. Equal in both layouts."""
    position = torch.zeros(rows.ids.shape)
    for row in range(len(rows)):
        for time in rows.response_mask[row].nonzero()[:, 0].tolist():
            position[row, time] = (
                float(rows.ids[row, time]) + 3 * float(rows.turn_ids[row, time]) + 5 * float(rows.episode[row])
            )
    student = -0.1 - (position * 0.37) % 4
    difference = (position * 1.7) % 16 - 8 if gap is None else torch.full_like(position, gap)
    return TokenView(
        student_logp=student,
        teacher_logp=student + difference,
        gap=difference,
        entropy=(position * 0.23) % 2,
        response_mask=rows.response_mask,
        turn_ids=rows.turn_ids,
        advantages=torch.where(rows.success[:, None] > 0, 1.0, -1.0).expand(rows.ids.shape),
        vocab_size=16,
        old_logp=student,
        ids=rows.ids,
        group_success=rows.group_success[:, None].expand(rows.ids.shape),
        in_span=rows.response_mask,
        iteration=iteration,
    )


def credit(rows: Batch) -> Credit:
    """What an advantage estimator is told of them."""
    turns, episodes = Turns(rows), attempts()
    taken = [episodes[e].turns[t] for e, t in zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)]
    return Credit(
        rewards=torch.tensor([episodes[e].reward for e in rows.episode.tolist()]),
        groups=rows.group,
        episodes=rows.episode,
        turns=turns,
        turn_rewards=torch.tensor([t.reward for t in taken]),
        turn_penalties=torch.zeros(len(turns)),
        turn_groups=rows.group[turns.row],
        observations=[t.observation for t in taken],
        survivor=torch.zeros(len(rows), dtype=torch.bool),
        metrics=Metrics(),
    )
