"""Group-relative advantages (GRPO, arXiv 2402.03300): a reward against those of the other attempts at the same task."""

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to the standard deviation."""


def group_advantages(rewards: Tensor, group_ids: Tensor, normalize_std: bool = True) -> Tensor:
    """(r - mean) / (std + 1e-6) within each group; std is the unbiased one. ``[N]``, detached.

    A group of one has nothing to compare with: mean 0 and std 1, as in verl-agent. Without `normalize_std` the advantages
    are r - mean.

    Args:
        rewards: ``[N]``.
        group_ids: ``[N]`` integers; equal id: same group, in any order.
    """
    mean, std = _group_statistics(rewards.double(), group_ids)
    return _advantages(rewards, mean, std, normalize_std)


def episode_group_advantages(rewards: Tensor, group_ids: Tensor, episode_ids: Tensor, normalize_std: bool = True) -> Tensor:
    """`group_advantages` of rows, where each *episode* counts once in mean and std however many rows it has. ``[N]``.

    An episode's reward is the mean over its rows. Equal episode ids in two groups are two episodes. Detached.
    """
    pairs, row_episode = torch.unique(torch.stack([group_ids, episode_ids]), dim=1, return_inverse=True)
    wide = rewards.double()
    count = torch.zeros(pairs.shape[1], dtype=wide.dtype, device=wide.device).index_add_(0, row_episode, torch.ones_like(wide))
    episode_rewards = torch.zeros_like(count).index_add_(0, row_episode, wide) / count
    mean, std = _group_statistics(episode_rewards, pairs[0])
    return _advantages(rewards, mean[row_episode], std[row_episode], normalize_std)


@torch.no_grad()
def _group_statistics(values: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std of each element's group, ``[N]`` each. Two passes."""
    groups, index = torch.unique(group_ids, return_inverse=True)
    zero = torch.zeros(groups.shape[0], dtype=values.dtype, device=values.device)
    count = zero.index_add(0, index, torch.ones_like(values))
    mean = zero.index_add(0, index, values) / count
    variance = zero.index_add(0, index, (values - mean[index]).square()) / (count - 1).clamp_min(1)
    alone = count == 1
    return mean.masked_fill(alone, 0.0)[index], variance.sqrt().masked_fill(alone, 1.0)[index]


@torch.no_grad()
def _advantages(rewards: Tensor, mean: Tensor, std: Tensor, normalize_std: bool) -> Tensor:
    # Statistics are in float64: in float32 the mean of equal rewards can differ from them by 1e-8, which EPSILON would blow
    # up to an advantage of several percent where there is nothing to learn.
    advantages = rewards.double() - mean
    if normalize_std:
        advantages = advantages / (std + EPSILON)
    return advantages.to(torch.promote_types(rewards.dtype, torch.float32))
