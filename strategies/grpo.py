"""GRPO (arXiv 2402.03300) for agents, as verl-agent trains it: episode rewards, group-relative credit, clipped policy gradient.

Differences from verl-agent:

* the token mean is taken over the whole optimizer step, and rows are never duplicated to fill a batch;
* rows are shuffled before they are divided among the optimizer steps, `updates_per_rollout` of them, or one for each
  `rows_per_update` rows;
* an action that the world refuses is penalised like one of the wrong form (``penalize_refused: false``: only the form counts);
* sampler and loss leave out special tokens but the end of a turn (``sampler.forbid: []``: none);
* episodes whose world failed take no part, and what is left of their group is not compared with nothing: its advantage is 0.
"""

from typing import Any

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from sdar import functional
from sdar.credit import GroupAdvantage, NoAdvantage
from sdar.errors import ConfigError, check_least, check_positive
from sdar.functional import k3
from sdar.module import AgentModule
from sdar.parts import AdvantageEstimator, AdvantageTransform, Credit, PolicyLoss
from sdar.policy_losses import PPO
from sdar.registry import described, part_name, register
from sdar.rollout.groups import by_group
from sdar.rollout.loop import length
from sdar.scoring import StudentOutput
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
        kl_clamp: Largest k3 of a token, in nats, beyond which the token has no gradient (verl: 10); None: no bound.
        entropy_coef: Weight of the entropy bonus.
        invalid_penalty: Subtracted from a row's reward for each invalid action in it.
        penalize_refused: Penalise well-formed actions that the world refuses, too; False: only those of the wrong form, as verl-agent.
        overlong_buffer: DAPO's soft penalty for long episodes (arXiv 2503.14476): over the last so many of ``data.max_episode_tokens`` the
            reward falls linearly; 0: no penalty.
        overlong_penalty: What an episode loses that has all of its tokens.
        drop_flat_groups: Leave out groups whose attempts all got the same reward (DAPO's filter); not beside a teacher, who would
            lose them too.
    """

    policy_coef = 1.0

    def __init__(
        self,
        advantage: AdvantageEstimator = lazy_instance(GroupAdvantage),
        transforms: list[AdvantageTransform] | None = None,
        policy_loss: PolicyLoss = lazy_instance(PPO),
        kl_coef: float = 0.01,
        kl_clamp: float | None = 10.0,
        entropy_coef: float = 0.001,
        invalid_penalty: float = 0.1,
        penalize_refused: bool = True,
        drop_flat_groups: bool = False,
        overlong_buffer: int = 0,
        overlong_penalty: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_least("model", 0, overlong_buffer=overlong_buffer)
        check_positive("model", overlong_penalty=overlong_penalty)
        if min(kl_coef, entropy_coef, invalid_penalty) < 0:
            raise ConfigError(
                "model.kl_coef, entropy_coef and invalid_penalty are weights of penalties: they cannot be negative."
            )
        if kl_clamp is not None and kl_clamp <= 0:
            raise ConfigError(
                f"model.kl_clamp is {kl_clamp}: it is the largest KL estimate of a token, in nats, and no token would have a gradient. "
                "Use e.g. 10 (published), or null for no bound; kl_coef 0 leaves the term out."
            )
        self.advantage, self.transforms, self.policy_loss = advantage, transforms or [], policy_loss
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.kl_clamp = kl_clamp
        self.invalid_penalty, self.penalize_refused = invalid_penalty, penalize_refused
        self.drop_flat_groups = drop_flat_groups
        self.overlong_buffer, self.overlong_penalty = overlong_buffer, overlong_penalty
        self.needs_reference = kl_coef > 0
        self.needs_spans = any(t.tags() for t in self.transforms)

    def setup(self, stage: str) -> None:
        if self.teacher is None and (asking := [part_name(t) for t in self.transforms if t.needs_teacher]):
            raise ConfigError(
                f"model.transforms: {' and '.join(asking)} reshape advantages by what a teacher thinks, and {type(self).__name__} has "
                "no teacher. Use a strategy with one, such as SOD or RLSD."
            )
        if self.drop_flat_groups and self.teacher is not None:
            raise ConfigError(
                f"model.drop_flat_groups leaves rows out in which only the teacher can speak, and {type(self).__name__} has a teacher. "
                "Use it with strategies that learn from rewards alone."
            )
        super().setup(stage)
        if self.overlong_buffer and isinstance(self.advantage, NoAdvantage):
            raise ConfigError(
                "model.overlong_buffer lowers rewards, and model.advantage is NoAdvantage, which looks at none. Take one of them out."
            )
        bounds = [world.max_episode_tokens for world in self.tasks.worlds.values()]
        most = min((bound for bound in bounds if bound is not None), default=None)
        if self.overlong_buffer and (most is None or most <= self.overlong_buffer):
            raise ConfigError(
                f"model.overlong_buffer is {self.overlong_buffer}: the last so many tokens of an episode cost reward, and "
                f"data.max_episode_tokens is {'not set' if most is None else most}. Set it to more."
            )
        for tag in {tag for transform in self.transforms for tag in transform.tags()}:
            self.check_span(tag)

    def hears_teacher(self) -> bool:
        return super().hears_teacher() and (not self.transforms or any(t.weight(self.iteration) != 0 for t in self.transforms))

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        batch.advantages = torch.zeros(batch.ids.shape, dtype=torch.float32)
        attempts = (~batch.extra).nonzero()[:, 0]  # extra episodes are compared with nothing
        if len(attempts):
            compared = batch.select(attempts)
            advantages = self.advantage(self.credit_of(compared, episodes))
            advantages = advantages if advantages.dim() > 1 else advantages[:, None].expand_as(compared.ids)
            batch.advantages[attempts, : advantages.shape[1]] = advantages
        lost = self.lost_by_length(episodes)
        if self.overlong_buffer:
            long = lost[batch.episode[attempts].unique()]
            self.metrics.add("reward/overlong_penalty", float(long.sum()), len(long))
            self.metrics.add("reward/overlong_share", float((long > 0).sum()), len(long))
        rewards: dict[int, set[float]] = {}
        for e, g in zip(batch.episode[attempts].tolist(), batch.group[attempts].tolist(), strict=True):
            rewards.setdefault(g, set()).add(episodes[e].reward - lost[e].item())
        flat = torch.tensor([len(rewards.get(g, ())) == 1 for g in batch.group.tolist()])
        self.metrics.add("reward/flat_group_share", float(flat[attempts].sum()), len(attempts))
        if not self.drop_flat_groups:
            return batch
        kept = (~flat).nonzero()[:, 0]
        return batch.select(kept) if len(kept) else None

    def credit_of(self, batch: Batch, episodes: list[Episode]) -> Credit:
        """What the advantage estimator knows of the attempts."""
        turns = Turns(batch)
        taken = [episodes[e].turns[t] for e, t in zip(turns.episode.tolist(), turns.turn.tolist(), strict=True)]
        fine = [t.valid if self.penalize_refused else t.well_formed for t in taken]
        penalties = torch.tensor([0.0 if f else self.invalid_penalty for f in fine], dtype=torch.float64)
        of_row = penalties.new_zeros(len(batch)).index_add_(0, turns.row, penalties)
        long = self.lost_by_length(episodes)
        rewards = (
            torch.tensor([episodes[e].reward for e in batch.episode.tolist()], dtype=torch.float64)
            - long[batch.episode]
            - of_row
        )
        last = torch.tensor([len(e.turns) - 1 for e in episodes])[turns.episode] == turns.turn  # with it the penalty comes
        return Credit(
            rewards=rewards.float(),
            groups=batch.group,
            episodes=batch.episode,
            turns=turns,
            turn_rewards=torch.tensor([t.reward for t in taken], dtype=torch.float32) - (long[turns.episode] * last).float(),
            turn_penalties=penalties.float(),
            turn_groups=batch.group[turns.row],
            observations=[t.observation for t in taken],
            survivor=survivors(batch, episodes),
            metrics=self.metrics,
        )

    def lost_by_length(self, episodes: list[Episode]) -> Tensor:
        """What each episode loses of its reward for its length, ``[episodes]``."""
        if not self.overlong_buffer:
            return torch.zeros(len(episodes), dtype=torch.float64)
        lost = torch.zeros(len(episodes), dtype=torch.float64)
        for name, world in self.tasks.worlds.items():
            mine = [number for number, e in enumerate(episodes) if e.task.world == name]
            if mine and world.max_episode_tokens is not None:
                lengths = torch.tensor([length(episodes[number].turns, world.layout) for number in mine])
                bounds = (world.max_episode_tokens, self.overlong_buffer, self.overlong_penalty)
                lost[mine] = functional.overlong(lengths, *bounds).double()
        return lost

    def scores_late(self) -> bool:
        return super().scores_late() and not self.transforms

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        if self.transforms:
            turns, tokens = Turns(batch), self.token_view(batch)
            before = batch.advantages
            for transform in self.transforms:
                if transform.weight(self.iteration) == 0:
                    self.metrics.add("distill/coef", 0.0)
                    continue
                inside = batch.response_mask if transform.span is None else self.inside(batch, transform.span)
                reshaped = transform(batch.advantages, tokens.including(in_span=inside), turns, self.iteration, self.metrics)
                if transform.span is not None:
                    reshaped = reshaped.where(inside, batch.advantages)
                batch.advantages = reshaped
            if turns.weights is not None:
                batch.turn_weights = turns.spread(turns.weights)
            self.metrics.add_tokens("advantage/reshaped_by", (batch.advantages - before).abs(), batch.response_mask)
        return super().weigh(batch, episodes)

    def objective(self) -> dict[str, Any]:
        mine = {"policy_coef": self.policy_coef, "policy_loss": described(self.policy_loss)}
        coefs = {"kl_coef": self.kl_coef, "kl_clamp": self.kl_clamp, "entropy_coef": self.entropy_coef}
        shaped = [described(t) | {"coef": t.weight(self.iteration)} for t in self.transforms]
        return super().objective() | mine | coefs | ({"transforms": shaped} if shaped else {})

    def token_loss(self, batch: Batch, now: StudentOutput) -> Tensor:
        policy = (now.logp, batch.old_logp, batch.advantages, batch.response_mask)
        self.metrics.add_tokens("train/clip_share", self.policy_loss.clipped(*policy), batch.response_mask)
        loss = self.policy_coef * self.policy_loss(*policy)
        if self.kl_coef:
            kl = k3(batch.ref_logp, now.logp, self.kl_clamp)
            self.metrics.add_tokens("kl/reference", kl, batch.response_mask)
            if self.kl_clamp is not None:
                self.metrics.add_tokens("kl/reference_clamped_share", kl >= self.kl_clamp, batch.response_mask)
            loss = loss + self.kl_coef * kl
        self.metrics.add_tokens("kl/old", batch.old_logp - now.logp, batch.response_mask)
        loss = loss - self.entropy_coef * now.entropy
        return super().token_loss(batch, now) + loss.where(~batch.extra[:, None], 0.0)


def survivors(batch: Batch, episodes: list[Episode]) -> Tensor:
    """Bool ``[rows]``: the only attempt of its group that has rows, of several that were played."""
    sizes = [len(group) for group in by_group([e for e in episodes if not e.extra]) for _ in group]
    in_order = iter(sizes)
    played = torch.tensor([1 if e.extra else next(in_order) for e in episodes])
    pairs = torch.unique(torch.stack([batch.group, batch.episode]), dim=1)
    left = (pairs[0] == batch.group[:, None]).sum(1)
    return (left == 1) & (played[batch.episode] > 1)
