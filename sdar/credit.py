"""Credit: what a row's reward is worth against the other attempts at its task."""

from typing import Literal

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.parts import AdvantageEstimator
from sdar.registry import register


@register("grpo")
class GroupAdvantage(AdvantageEstimator):
    """Reward minus the group's mean, over the group's standard deviation (GRPO, arXiv 2402.03300).

    Where an episode has one row per turn, an episode with more turns can count more or not: that is `statistics`. With one row
    per episode both are the same.
    """

    def __init__(self, statistics: Literal["episode", "row"] = "episode", normalize_std: bool = True) -> None:
        """
        Args:
            statistics: ``episode`` counts each episode once in mean and deviation; ``row`` counts each row, as verl-agent
                does, so that long episodes weigh more.
            normalize_std: divide by the standard deviation; without it hard and easy tasks weigh by their spread.
        """
        if statistics not in ("episode", "row"):
            raise ConfigError(
                f"advantage statistics is {statistics!r}: mean and deviation of a group are taken over its episodes or over "
                "its rows. Use 'episode' or 'row'."
            )
        self.statistics = statistics
        self.normalize_std = normalize_std

    def __call__(self, rewards: Tensor, group_ids: Tensor, episode_ids: Tensor) -> Tensor:
        if self.statistics == "row":
            return functional.group_advantages(rewards, group_ids, self.normalize_std)
        return functional.episode_group_advantages(rewards, group_ids, episode_ids, self.normalize_std)
