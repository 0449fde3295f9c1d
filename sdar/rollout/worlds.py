"""The agent loop of a run with several worlds: each has its own way of being told, and all share the sampler's passes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sdar.rollout.loop import AgentLoop, Rollout, play_together
from sdar.types import Episode, Request, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WorldsRollout(AgentLoop):
    """Plays episodes of several worlds together.

    Args:
        rollouts: The loop of each world by its name, all with one sampler.
    """

    def __init__(self, rollouts: Mapping[str, Rollout]):
        self.rollouts = dict(rollouts)
        self.sampler = next(iter(self.rollouts.values())).sampler
        self.progress = lambda standing: None

    @property
    def seed(self) -> int:  # type: ignore[override]
        return next(iter(self.rollouts.values())).seed

    @seed.setter
    def seed(self, seed: int) -> None:
        for rollout in self.rollouts.values():
            rollout.seed = seed

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(tag for rollout in self.rollouts.values() for tag in rollout.tags))

    def of(self, task: Task) -> Rollout:
        return self.rollouts[task.world]

    def __call__(self, model: "PreTrainedModel", requests: Sequence[Request]) -> list[Episode]:
        shares = {name: [n for n, r in enumerate(requests) if r.task.world == name] for name in self.rollouts}
        for rollout in self.rollouts.values():
            rollout.progress = self.progress
        loops = [(self.rollouts[name], [requests[n] for n in mine]) for name, mine in shares.items()]
        played = play_together(model, self.sampler, loops)
        episodes = {n: e for mine, of in zip(shares.values(), played, strict=True) for n, e in zip(mine, of, strict=True)}
        return [episodes[n] for n in range(len(requests))]
