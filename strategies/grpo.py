"""GRPO (arXiv 2402.03300) for agents, as verl-agent trains it: episode rewards, group-relative credit, clipped policy gradient.

Differences from verl-agent, each a named option or documented: rows are never duplicated to fill a batch, the token mean is
taken over the whole optimizer step, and group statistics count each episode once (``GroupAdvantage(statistics="row")`` counts
turn rows).
"""

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from sdar import reporting
from sdar.credit import GroupAdvantage
from sdar.errors import ConfigError
from sdar.functional import TokenStats, clip_indicator, k3, ppo_clip
from sdar.module import AgentModule
from sdar.parts import AdvantageEstimator
from sdar.registry import register
from sdar.types import Batch, Episode


@register("grpo")
class GRPO(AgentModule):
    """Group-relative policy optimisation: clipped policy gradient, KL to the initial policy, entropy bonus.

    Value:    a surrogate; its gradient is the (clipped) policy gradient, plus that of k3, which follows KL(reference || student).

    Args:
        advantage: Credit within a group of attempts at one task.
        clip_low, clip_high: The probability ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: Bound of the loss for negative advantages; None switches it off.
        kl_coef: Weight of k3 against the initial policy.
        entropy_coef: Weight of the entropy bonus.
        invalid_penalty: Subtracted from a row's reward for each invalid action in it.
        drop_flat_groups: Leave out groups whose attempts all got the same reward (they carry no policy gradient).
    """

    policy_coef = 1.0

    def __init__(
        self,
        advantage: AdvantageEstimator = lazy_instance(GroupAdvantage),
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = 3.0,
        kl_coef: float = 0.01,
        entropy_coef: float = 0.001,
        invalid_penalty: float = 0.1,
        drop_flat_groups: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if clip_low <= 0 or clip_high <= 0:
            raise ConfigError(
                f"model.clip_low is {clip_low}, clip_high {clip_high}: the trust region would be empty. Use e.g. 0.2."
            )
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(
                f"model.dual_clip is {dual_clip}: it bounds the ratio and must exceed 1 (published: 3), or be null."
            )
        if min(kl_coef, entropy_coef, invalid_penalty) < 0:
            raise ConfigError(
                "model.kl_coef, entropy_coef and invalid_penalty are weights of penalties: they cannot be negative."
            )
        self.advantage = advantage
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.invalid_penalty = invalid_penalty
        self.drop_flat_groups = drop_flat_groups
        self.needs_reference = kl_coef > 0

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        group_of = {id(e): g for g, group in enumerate(reporting.groups(episodes)) for e in group}
        groups = torch.tensor([group_of[id(episodes[e])] for e in batch.episode.tolist()])
        rewards = torch.tensor(
            [self.reward(episodes[e], set(t)) for e, t in zip(batch.episode.tolist(), turns_of(batch), strict=True)]
        )
        batch.advantages = self.advantage(rewards, groups, batch.episode)
        flat = [len({episodes[e].reward for e in batch.episode[groups == g].tolist()}) == 1 for g in groups.tolist()]
        self.tally.add("reward/flat_group_share", sum(flat), len(flat))
        if not self.drop_flat_groups:
            return batch
        kept = torch.tensor([not f for f in flat]).nonzero()[:, 0]
        return batch.select(kept) if len(kept) else None

    def reward(self, episode: Episode, turns: set[int]) -> float:
        """Reward of a row that holds these turns of an episode."""
        return episode.reward - self.invalid_penalty * sum(not episode.turns[t].valid for t in turns)

    def token_loss(self, batch: Batch, now: TokenStats) -> Tensor:
        clipped = clip_indicator(now.logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high)
        self.tally.tokens("train/clip_share", clipped, batch.response_mask)
        loss = self.policy_coef * ppo_clip(
            now.logp, batch.old_logp, batch.advantages, self.clip_low, self.clip_high, self.dual_clip
        )
        if self.kl_coef:
            kl = k3(batch.ref_logp, now.logp)
            self.tally.tokens("kl/reference", kl, batch.response_mask)
            loss = loss + self.kl_coef * kl
        self.tally.tokens("kl/old", batch.old_logp - now.logp, batch.response_mask)
        return loss - self.entropy_coef * now.entropy


def turns_of(batch: Batch) -> list[list[int]]:
    """Turns whose responses each row holds."""
    return [t[m.bool()].unique().tolist() for t, m in zip(batch.turn_ids, batch.response_mask, strict=True)]
