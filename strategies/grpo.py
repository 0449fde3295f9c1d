"""GRPO (arXiv 2402.03300) for agents, as verl-agent trains it: episode rewards, group-relative credit, clipped policy gradient.

Differences from verl-agent, each a named option or documented: rows are never duplicated to fill a batch, the token mean is
taken over the whole optimizer step, group statistics count each episode once (``GroupAdvantage(statistics="row")`` counts turn
rows), and k3 bounds its exponent at 20 instead of its value at 10.
"""

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from sdar.credit import GroupAdvantage
from sdar.errors import ConfigError
from sdar.functional import k3
from sdar.module import AgentModule
from sdar.parts import AdvantageEstimator, AdvantageTransform, Credit, PolicyLoss
from sdar.policy_losses import PPO
from sdar.registry import register
from sdar.scoring import StudentPass
from sdar.turns import Turns
from sdar.types import Batch, Episode


@register("grpo")
class GRPO(AgentModule):
    """Group-relative policy optimisation: clipped policy gradient, KL to the initial policy, entropy bonus.

    Value:    a surrogate; its gradient is the (clipped) policy gradient, plus that of k3, which follows KL(reference || student).

    Args:
        advantage: Credit within a group of attempts at one task.
        transforms: Reshape the advantages by what a teacher thinks of the tokens, one after the other.
        policy_loss: The surrogate.
        kl_coef: Weight of k3 against the initial policy.
        entropy_coef: Weight of the entropy bonus.
        invalid_penalty: Subtracted from a row's reward for each invalid action in it.
        drop_flat_groups: Leave out groups whose attempts all got the same reward (DAPO's filter); not beside a teacher, who would
            lose them too.
    """

    policy_coef = 1.0
    learns_everywhere = True

    def __init__(
        self,
        advantage: AdvantageEstimator = lazy_instance(GroupAdvantage),
        transforms: list[AdvantageTransform] | None = None,
        policy_loss: PolicyLoss = lazy_instance(PPO),
        kl_coef: float = 0.01,
        entropy_coef: float = 0.001,
        invalid_penalty: float = 0.1,
        drop_flat_groups: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if min(kl_coef, entropy_coef, invalid_penalty) < 0:
            raise ConfigError(
                "model.kl_coef, entropy_coef and invalid_penalty are weights of penalties: they cannot be negative."
            )
        self.advantage, self.transforms, self.policy_loss = advantage, transforms or [], policy_loss
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.invalid_penalty = invalid_penalty
        self.drop_flat_groups = drop_flat_groups
        self.needs_reference = kl_coef > 0

    def setup(self, stage: str) -> None:
        if self.transforms and self.teacher is None:
            raise ConfigError(
                f"model.transforms reshape advantages by what a teacher thinks, and {type(self).__name__} has no teacher. Use a "
                "strategy with one, such as SOD or RLSD."
            )
        if self.drop_flat_groups and self.teacher is not None:
            raise ConfigError(
                f"model.drop_flat_groups leaves rows out in which only the teacher can speak, and {type(self).__name__} has a teacher. "
                "Use it with strategies that learn from rewards alone."
            )
        super().setup(stage)

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        batch.advantages = torch.zeros(batch.ids.shape, dtype=torch.float32)
        attempts = (~batch.extra).nonzero()[:, 0]  # extra episodes are compared with nothing
        if len(attempts):
            compared = batch.select(attempts)
            advantages = self.advantage(self.credit_of(compared, episodes))
            advantages = advantages if advantages.dim() > 1 else advantages[:, None].expand_as(compared.ids)
            batch.advantages[attempts, : advantages.shape[1]] = advantages
        rewards: dict[int, set[float]] = {}
        for e, g in zip(batch.episode[attempts].tolist(), batch.group[attempts].tolist(), strict=True):
            rewards.setdefault(g, set()).add(episodes[e].reward)
        flat = torch.tensor([len(rewards.get(g, ())) == 1 for g in batch.group.tolist()])
        self.tally.add("reward/flat_group_share", float(flat[attempts].sum()), len(attempts))
        if not self.drop_flat_groups:
            return batch
        kept = (~flat).nonzero()[:, 0]
        return batch.select(kept) if len(kept) else None

    def credit_of(self, batch: Batch, episodes: list[Episode]) -> Credit:
        """What the advantage estimator knows of the attempts."""
        turns = Turns(batch)
        taken = [episodes[e].turns[t] for e, t in zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)]
        penalties = torch.tensor([0.0 if t.valid else self.invalid_penalty for t in taken], dtype=torch.float64)
        of_row = penalties.new_zeros(len(batch)).index_add_(0, turns.row, penalties)
        rewards = torch.tensor([episodes[e].reward for e in batch.episode.tolist()], dtype=torch.float64) - of_row
        return Credit(
            rewards=rewards.float(),
            groups=batch.group,
            episodes=batch.episode,
            turns=turns,
            turn_rewards=torch.tensor([t.reward for t in taken], dtype=torch.float32),
            turn_penalties=penalties.float(),
            turn_groups=batch.group[turns.row],
            observations=[t.observation for t in taken],
            tally=self.tally,
        )

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        if self.transforms:
            turns, tokens = Turns(batch), self.tokens(batch, batch.old_logp, batch.old_entropy)
            before = batch.advantages
            for transform in self.transforms:
                batch.advantages = transform(batch.advantages, tokens, turns, self.iteration, self.tally)
            self.tally.tokens("advantage/reshaped_by", (batch.advantages - before).abs(), batch.response_mask)
        return super().weigh(batch, episodes)

    def token_loss(self, batch: Batch, now: StudentPass) -> Tensor:
        policy = (now.logp, batch.old_logp, batch.advantages, batch.response_mask)
        self.tally.tokens("train/clip_share", self.policy_loss.clipped(*policy), batch.response_mask)
        loss = self.policy_coef * self.policy_loss(*policy)
        if self.kl_coef:
            kl = k3(batch.ref_logp, now.logp)
            self.tally.tokens("kl/reference", kl, batch.response_mask)
            loss = loss + self.kl_coef * kl
        self.tally.tokens("kl/old", batch.old_logp - now.logp, batch.response_mask)
        loss = loss - self.entropy_coef * now.entropy
        return super().token_loss(batch, now) + loss.where(~batch.extra[:, None], 0.0)
