"""How often a policy calls its tools."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.metrics.base import EpisodeMetric
from sdar.registry import register
from sdar.rollout.groups import finished
from sdar.types import Episode


@register("tool_calls")
class ToolCalls(EpisodeMetric):
    """Mean number of an episode's tool calls, those with an error among them, of every validation as well (SOD, arXiv 2605.07725)."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")  # calls, episodes

    def update(self, episodes: Sequence[Episode]) -> None:
        played = finished(episodes)
        calls = sum(turn.tool_ok is not None for episode in played for turn in episode.turns)
        self.counts += torch.tensor([calls, len(played)], dtype=torch.float64)

    def compute(self) -> Tensor:
        return self.counts[0] / self.counts[1]
