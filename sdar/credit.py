"""Credit: what a row's reward is worth against the other attempts at its task."""

from typing import Literal

import torch
from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.parts import AdvantageEstimator, Credit
from sdar.registry import register


@register("grpo")
class GroupAdvantage(AdvantageEstimator):
    """Reward minus the group's mean, over the group's standard deviation (GRPO, arXiv 2402.03300).

    Where an episode has one row per turn, an episode with more turns can count more or not: that is `statistics`. With one row
    per episode both are the same. In both the deviation is that of the rows, penalties included, so that penalties cannot make an
    advantage large. Without `normalize_std` it is Dr. GRPO (arXiv 2503.20783), except that a group of one keeps its reward, as in
    verl-agent; not so where the others of the group were lost: what survived has advantage 0. `DrGRPOAdvantage` has no exception.
    """

    def __init__(self, statistics: Literal["row", "episode"] = "row", normalize_std: bool = True) -> None:
        """
        Args:
            statistics: ``row`` counts each row, as verl-agent does, so that long episodes weigh more; ``episode`` counts each
                episode once in mean and deviation.
            normalize_std: divide by the standard deviation; without it hard and easy tasks weigh by their spread.
        """
        if statistics not in ("episode", "row"):
            raise ConfigError(
                f"advantage statistics is {statistics!r}: mean and deviation of a group are taken over its episodes or over "
                "its rows. Use 'episode' or 'row'."
            )
        self.statistics = statistics
        self.normalize_std = normalize_std

    def __call__(self, credit: Credit) -> Tensor:
        of_group = (credit.rewards, credit.groups)
        if self.statistics == "row":
            advantages = functional.group_advantages(*of_group, self.normalize_std)
        else:
            advantages = functional.episode_group_advantages(*of_group, credit.episodes, self.normalize_std)
        return advantages.masked_fill(credit.survivor, 0.0)


@register("dr_grpo")
class DrGRPOAdvantage(AdvantageEstimator):
    """Reward minus the group's mean, over no deviation (Dr. GRPO, arXiv 2503.20783); an episode's rows share its advantage."""

    def __call__(self, credit: Credit) -> Tensor:
        rewards, groups, row = episode_values(credit)
        return functional.dr_grpo_advantages(rewards, groups)[row]


@register("rloo")
class LeaveOneOutAdvantage(AdvantageEstimator):
    """Reward minus the mean of the group's *other* attempts (RLOO, arXiv 2402.14740); an episode's rows share its advantage."""

    def __call__(self, credit: Credit) -> Tensor:
        rewards, groups, row = episode_values(credit)
        return functional.rloo_advantages(rewards, groups)[row]


@register("reinforce_pp")
class ReinforceAdvantage(AdvantageEstimator):
    """Rewards normalised over the whole iteration (REINFORCE++, arXiv 2501.03262); an episode's rows share its advantage.

    Args:
        baseline: Subtract the group's mean first; what faults left alone of its group gets 0 and is in no statistics.
    """

    def __init__(self, baseline: bool = True) -> None:
        self.baseline = baseline

    def __call__(self, credit: Credit) -> Tensor:
        rewards, groups, row = episode_values(credit)
        if not self.baseline:
            return functional.reinforce_pp_advantages(rewards)[row]
        compared = torch.ones(len(rewards), dtype=torch.bool)
        compared[row] = ~credit.survivor
        advantages = torch.zeros_like(rewards)
        advantages[compared] = functional.reinforce_pp_advantages(rewards[compared], groups[compared])
        return advantages[row]


@register("gigpo")
class GiGPOAdvantage(AdvantageEstimator):
    """Episode advantage plus the advantage of a turn among turns that began at the same observation (arXiv 2505.10978).

    The episode advantage is taken over rows, as in the public code: in the turn layout long episodes weigh more in its mean.

    Args:
        step_weight: Weight of the step advantage (omega).
        gamma: Discount of a turn's return.
        normalize_std: Divide both advantages by their group's deviation, as the published scripts for ALFWorld and Search do
            (``mean_std_norm``); that for WebShop subtracts the mean only.
        similarity: Observations whose ratio of matching characters is at least this share an anchor; 1: equal ones only.
    """

    def __init__(
        self, step_weight: float = 1.0, gamma: float = 0.95, normalize_std: bool = True, similarity: float = 1.0
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ConfigError(f"advantage.gamma is {gamma}: a discount lies in [0, 1]. Published: 0.95.")
        if not 0 < similarity <= 1:
            raise ConfigError(
                f"advantage.similarity is {similarity}: it bounds a ratio in [0, 1] from below, and at 0 all observations would be "
                "one anchor. Use 0.95, or 1 for equal observations."
            )
        self.step_weight, self.gamma = step_weight, gamma
        self.normalize_std, self.similarity = normalize_std, similarity

    def __call__(self, credit: Credit) -> Tensor:
        episode = functional.group_advantages(credit.rewards, credit.groups, self.normalize_std)
        episode = episode.masked_fill(credit.survivor, 0.0)
        returns = functional.discounted_returns(credit.turn_rewards, credit.turns.episode, self.gamma) - credit.turn_penalties
        anchors = functional.similar_anchors(credit.observations, credit.turn_groups, self.similarity)
        alone = torch.bincount(anchors)[anchors] == 1
        credit.metrics.add("advantage/shared_anchor_share", float((~alone).sum()), len(alone))
        step = functional.anchor_advantages(returns, credit.turn_groups, anchors, self.normalize_std)
        return episode[:, None] + self.step_weight * credit.turns.spread(step)


@register("no_reward")
class NoAdvantage(AdvantageEstimator):
    """Zero for every row: rewards teach nothing, only what is added to the advantages (pure distillation)."""

    def __call__(self, credit: Credit) -> Tensor:
        return torch.zeros_like(credit.rewards)


def episode_values(credit: Credit) -> tuple[Tensor, Tensor, Tensor]:
    """Mean reward and group of each episode, and the episode of each row as an index into them."""
    episodes, row = torch.unique(credit.episodes, return_inverse=True)
    count = torch.bincount(row, minlength=len(episodes))
    rewards = credit.rewards.new_zeros(len(episodes)).index_add_(0, row, credit.rewards) / count
    groups = credit.groups.new_zeros(len(episodes))
    groups[row] = credit.groups
    return rewards, groups, row
