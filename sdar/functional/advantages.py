"""Advantages: a reward against those of other attempts at the same task, a turn against others in the same state.

Statistics are taken in float64 and everything is detached. ``[turns]`` has one element per turn of all trajectories, ordered
by trajectory and then by time; equal `trajectory_ids` are consecutive.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen
from sdar.functional.turns import discounted_sums

EPSILON = 1e-6
"""Added to the standard deviation."""


def group_advantages(
    rewards: Real[Tensor, " N"], group_ids: Int[Tensor, " N"], normalize_std: bool = True
) -> Float[Tensor, " N"]:
    """(r - mean) / (std + 1e-6) within each group (GRPO, arXiv 2402.03300); std is the unbiased one. ``[N]``, detached.

    In a group of n > 1 no size exceeds (n - 1) / sqrt(n), whatever the rewards. A group of one has nothing to compare with:
    mean 0 and std 1, as in verl-agent. Without `normalize_std` the advantages are r - mean.

    Args:
        rewards: ``[N]``.
        group_ids: ``[N]`` integers; equal id: same group, in any order.
    """
    mean, std = _group_statistics(rewards.double(), group_ids)
    return _advantages(rewards, mean, std, normalize_std)


def episode_group_advantages(
    rewards: Real[Tensor, " N"], group_ids: Int[Tensor, " N"], episode_ids: Int[Tensor, " N"], normalize_std: bool = True
) -> Float[Tensor, " N"]:
    """`group_advantages` of rows, where each *episode* counts once in mean and std however many rows it has. ``[N]``.

    The mean is that of the episodes' means. The variance is that of the rows: the mean square within each episode, summed over
    the E episodes and divided by E - 1. So what is divided is what the deviation was taken of, and with n rows in the episode
    no size exceeds sqrt((E - 1) n). (The deviation of the episodes' means would be no bound: in two episodes with equal means
    it is 0, however much their rows differ.) A group of one episode has mean 0 and std 1. Equal episode ids in two groups are
    two episodes. Detached.
    """
    pairs, row_episode = torch.unique(torch.stack([group_ids, episode_ids]), dim=1, return_inverse=True)
    wide = rewards.double()
    total, rows = _group_sums(wide, row_episode)
    first = torch.zeros(pairs.shape[1], dtype=torch.long, device=wide.device).index_copy_(
        0, row_episode, torch.arange(len(wide), device=wide.device)
    )
    mean = (total / rows)[first]
    mean, _ = _group_statistics(mean, pairs[0])
    squares, _ = _group_sums((wide - mean[row_episode]).square(), row_episode)
    spread, episodes = _group_sums((squares / rows)[first], pairs[0])
    std = (spread / (episodes - 1).clamp_min(1)).sqrt().masked_fill(episodes == 1, 1.0)
    return _advantages(rewards, mean[row_episode], std[row_episode], normalize_std)


def rloo_advantages(rewards: Real[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """r minus the mean of the *others* of its group (RLOO, arXiv 2402.14740); a group of one gets 0. ``[N]``, detached.

    One element per attempt: with a row per turn, the other rows of an attempt would pass for others.
    """
    total, count = _group_sums(rewards.double(), group_ids)
    return _narrow((count * rewards.double() - total) / (count - 1).clamp_min(1), rewards)


def dr_grpo_advantages(rewards: Real[Tensor, " N"], group_ids: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """r - mean within each group (Dr. GRPO, arXiv 2503.20783); a group of one gets 0. ``[N]``, detached.

    Dr. GRPO takes two things out of GRPO: the division by the standard deviation, here, and the division of each sequence's
    loss by its length, which `masked_mean` never had: all tokens of a step share one normaliser. Unlike `group_advantages`
    without std, which gives a group of one its reward.
    """
    total, count = _group_sums(rewards.double(), group_ids)
    return _narrow(rewards.double() - total / count, rewards)


def reinforce_pp_advantages(rewards: Real[Tensor, " N"], group_ids: Int[Tensor, " N"] | None = None) -> Float[Tensor, " N"]:
    """(r - mean) / (std + 1e-6) over the whole batch (REINFORCE++, arXiv 2501.03262). ``[N]``, detached.

    With `group_ids` the mean of each group is taken off first: the paper's "baseline" variant. Pass all rows of the optimizer
    step, or mean and std are those of a part. The unbiased std and the 1e-6 are ours, as in `group_advantages`. The KL term
    that the paper has in its rewards is a loss elsewhere in this package.
    """
    wide = rewards.detach().double()
    if group_ids is not None:
        total, count = _group_sums(wide, group_ids)
        wide = wide - total / count
    centred = wide - wide.mean()
    std = (centred.square().sum() / max(len(centred) - 1, 1)).sqrt()
    return _narrow(centred / (std + EPSILON), rewards)


def discounted_returns(
    rewards: Real[Tensor, " turns"], trajectory_ids: Int[Tensor, " turns"], gamma: float
) -> Float[Tensor, " turns"]:
    """G_k = r_k + gamma G_{k+1} within each trajectory; its last turn has G = r. ``[turns]``, detached.

    Raises:
        ConfigError: a gamma outside of [0, 1].
        ValueError: a trajectory in several pieces.
    """
    return discounted_sums(rewards.flip(0), trajectory_ids.flip(0), gamma).flip(0)


def anchor_advantages(
    returns: Real[Tensor, " turns"],
    group_ids: Int[Tensor, " turns"],
    anchor_ids: Int[Tensor, " turns"],
    normalize_std: bool = False,
) -> Float[Tensor, " turns"]:
    """G - mean over the turns of the same group and anchor state: GiGPO's step advantage (arXiv 2505.10978). ``[turns]``.

    With `normalize_std` it is divided by the unbiased std + 1e-6. A turn that is alone in its state has nothing to compare
    with and gets 0. Equal anchor ids in two groups are two states. Detached.

    Args:
        returns: `discounted_returns`.
        group_ids: ``[turns]`` integers, the task of each turn.
        anchor_ids: ``[turns]`` integers, the state that each turn started from; see `similar_anchors`.
    """
    pairs = torch.unique(torch.stack([group_ids, anchor_ids]), dim=1, return_inverse=True)[1]
    mean, std = _group_statistics(returns.double(), pairs)
    _, count = _group_sums(returns.double(), pairs)
    return _advantages(returns, mean, std, normalize_std).masked_fill(count == 1, 0.0)


def similar_anchors(texts: Sequence[str], group_ids: Int[Tensor, " N"], threshold: float | None) -> Int[Tensor, " N"]:
    """An id per text, equal for texts of the same group that count as the same state. ``[N]`` int64, 0, 1, ... as they appear.

    With a threshold of None or 1.0 texts must be equal. Below 1.0 a text joins the first cluster of its group whose
    representative, the text that opened it, has a `difflib` ratio of at least `threshold` with it (verl-agent's rule, which
    depends on the order given). All characters count, where difflib's ``autojunk``, which verl-agent leaves on, ignores
    frequent ones in texts from 200 characters on.

    Raises:
        ConfigError: a threshold outside of (0, 1].
        ValueError: texts and group ids of different number.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ConfigError(
            f"similarity threshold is {threshold}: it bounds a ratio in [0, 1] from below, and at 0 all texts would be one "
            "state. Use 0.95, or null for equal texts."
        )
    if len(texts) != len(group_ids):
        raise ValueError(f"there are {len(texts)} texts and {len(group_ids)} group ids: each text needs the group it is of.")
    keys = list(zip(group_ids.tolist(), texts, strict=True))
    distinct = list(dict.fromkeys(keys))  # an equal text would meet the same clusters in the same order again
    cluster = dict(zip(distinct, _clusters(distinct, 1.0 if threshold is None else threshold), strict=True))
    return torch.tensor([cluster[key] for key in keys], dtype=torch.long, device=group_ids.device)


def _clusters(keys: list[tuple[int, str]], threshold: float) -> list[int]:
    """The cluster of each of these distinct texts."""
    if threshold == 1:
        return list(range(len(keys)))
    clusters: list[int] = []
    openers: dict[int, list[_Opener]] = {}
    count = 0
    for group, text in keys:
        known = openers.setdefault(group, [])
        clusters.append(next((opener.cluster for opener in known if opener.resembles(text, threshold)), count))
        if clusters[-1] == count:
            known.append(_Opener(text, count))
            count += 1
    return clusters


class _Opener:
    def __init__(self, text: str, cluster: int) -> None:
        self.text, self.cluster = text, cluster
        self.matcher = SequenceMatcher(None, "", text, autojunk=False)
        self.places: dict[str, int] = {}
        for place, character in enumerate(text):
            self.places[character] = self.places.get(character, 0) | 1 << place

    def resembles(self, text: str, threshold: float) -> bool:
        # What difflib matches is a common subsequence. The length of the longest one bounds it, takes a hundredth of the time
        # (one integer has a bit for each place of the opener that is not matched yet; Hyyrö 2004), and mostly settles it.
        full = (1 << len(self.text)) - 1
        unmatched = full
        for character in text:
            hits = unmatched & self.places.get(character, 0)
            unmatched = ((unmatched + hits) | (unmatched - hits)) & full
        longest = len(self.text) - unmatched.bit_count()
        if 2 * longest / (len(self.text) + len(text)) < threshold:
            return False
        self.matcher.set_seq1(text)
        return self.matcher.ratio() >= threshold


def _group_sums(values: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and size of each element's group, ``[N]`` each, detached."""
    values = values.detach()
    groups, index = torch.unique(group_ids, return_inverse=True)
    zero = torch.zeros(groups.shape[0], dtype=values.dtype, device=values.device)
    return zero.index_add(0, index, values)[index], zero.index_add(0, index, torch.ones_like(values))[index]


def _group_statistics(values: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std of each element's group, ``[N]`` each; 0 and 1 for a group of one. Two passes; detached."""
    values = values.detach()
    total, count = _group_sums(values, group_ids)
    mean = total / count
    squares, _ = _group_sums((values - mean).square(), group_ids)
    std = (squares / (count - 1).clamp_min(1)).sqrt()
    return mean.masked_fill(count == 1, 0.0), std.masked_fill(count == 1, 1.0)


def _advantages(rewards: Tensor, mean: Tensor, std: Tensor, normalize_std: bool) -> Tensor:
    # Statistics are in float64: in float32 the mean of equal rewards can differ from them by 1e-8, which EPSILON would blow
    # up to an advantage of several percent where there is nothing to learn.
    advantages = rewards.double() - mean
    if normalize_std:
        advantages = advantages / (std + EPSILON)
    return _narrow(advantages, rewards)


def _narrow(advantages: Tensor, rewards: Tensor) -> Tensor:
    """Detached, in the precision of the rewards, at least float32."""
    return advantages.detach().to(widen(rewards).dtype)


def overlong(lengths: Int[Tensor, " episodes"], most: int, buffer: int, penalty: float) -> Float[Tensor, " episodes"]:
    """What episodes of these lengths, in tokens, lose of their rewards: 0 up to ``most - buffer``, then more with each token, `penalty` at
    `most` (the soft overlong punishment of DAPO, arXiv 2503.14476; beyond `most` it goes on, as in verl)."""
    return ((lengths.double() - (most - buffer)) / buffer * penalty).clamp_min(0.0)
