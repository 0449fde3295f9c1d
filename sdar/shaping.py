"""Advantage transforms: the teacher speaks through the policy gradient."""

import torch
from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.metrics.places import add_turns
from sdar.parts import AdvantageTransform, Schedule, TurnWeight
from sdar.registry import register
from sdar.schedules import scheduled
from sdar.turns import Turns
from sdar.types import TokenView


@register("gap")
class GapAdvantage(AdvantageTransform):
    """A + coef * w * (teacher_logp - student_logp): on-policy distillation as a reward for every token.

    With a discount a token is also credited with the weighted gaps that follow it in its episode (`gap_returns`): at 1 the gradient is
    that of the KL of whole episodes, without bias and with a variance that grows with their length; see docs/variance.md.

    Args:
        coef: Weight of the gap; a number or a schedule.
        turn_weight: Weight of each turn (SOD: StepwiseWeight); None: all alike.
        clip: Largest absolute gap, in nats; None: no bound.
        discount: What the gap of the episode's next token counts for a token: 0 (token level) to 1 (sequence level).
        span: Only gaps of tokens inside this tag of the protocol, such as ``code``, the tool calls of mathematics; None: all.
    """

    gradient_estimand = (
        "-E[A grad student_logp] + coef * w * grad KL(student || teacher) (with w taken as a constant; of each place by itself at "
        "discount 0, of whole episodes at 1)"
    )
    needs_teacher = True

    def __init__(
        self,
        coef: float | Schedule = 1.0,
        turn_weight: TurnWeight | None = None,
        clip: float | None = None,
        discount: float = 0.0,
        span: str | None = None,
    ):
        self.coef, self.turn_weight = scheduled(coef), turn_weight
        if clip is not None and clip <= 0:
            raise ConfigError(f"transform.clip is {clip}: it bounds the gap, in nats. Use e.g. 5, or null for no bound.")
        if not 0 <= discount <= 1:
            raise ConfigError(
                f"transform.discount is {discount}: the gap of the k-th next token counts discount^k. Use a number from 0, each token by "
                "itself, to 1, the whole episode."
            )
        self.clip, self.discount, self.span = clip, discount, span

    def tags(self) -> set[str]:
        return super().tags() | ({self.turn_weight.span} if self.turn_weight and self.turn_weight.span else set())

    def weight(self, iteration: int) -> float:
        return self.coef(iteration)

    def __call__(self, advantages: Tensor, tokens: TokenView, turns: Turns, iteration: int, metrics: Metrics) -> Tensor:
        weights = None
        if self.turn_weight is not None:
            of_turn = self.turn_weight(tokens, turns, metrics)  # [turns]
            add_turns(metrics, "turn/weight", of_turn, turns)
            weights = turns.weigh(of_turn)  # [batch, time]
        coef = self.coef(iteration)
        metrics.add("distill/coef", coef)
        sides = (tokens.teacher_logp, tokens.student_logp)
        if self.discount == 0:
            return functional.additive_gap(advantages, *sides, coef, weights, self.clip)
        gaps = functional.additive_gap(torch.zeros_like(advantages), *sides, coef, weights, self.clip)
        if self.span is not None:
            gaps = gaps.where(tokens.in_span, 0.0)
        where = (tokens.response_mask, tokens.turn_ids, turns.episode_of_row)
        return advantages + functional.gap_returns(gaps, *where, self.discount)


@register("evidence")
class EvidenceRatio(AdvantageTransform):
    """RLSD (arXiv 2604.03128): the advantage is scaled by the teacher's clipped evidence for the sampled token.

    A [(1 - lam) + lam clip(exp(sign(A) gap), 1 - clip, 1 + clip)]: never more than the sign that the reward gave.

    Args:
        lam: How much of the advantage is scaled; a number or a schedule.
        clip: Bound of the ratio.
        negative_only: Scale negative advantages alone.
        span: Scale only tokens inside this tag of the protocol, such as ``think``; None: all.
    """

    gradient_estimand = "-E[A ((1 - lam) + lam clip(exp(sign(A) gap))) grad student_logp]"
    needs_teacher = True

    def __init__(self, lam: float | Schedule = 0.5, clip: float = 0.2, negative_only: bool = False, span: str | None = None):
        _check_share(lam)
        if not 0 <= clip < 1:
            raise ConfigError(f"transform.clip is {clip}: the ratio is kept in [1 - clip, 1 + clip]. Published: 0.2.")
        self.lam, self.clip = scheduled(lam), clip
        self.negative_only, self.span = negative_only, span

    def weight(self, iteration: int) -> float:
        return self.lam(iteration)

    def __call__(self, advantages: Tensor, tokens: TokenView, turns: Turns, iteration: int, metrics: Metrics) -> Tensor:
        lam = self.lam(iteration)
        ratio = (advantages.sign() * tokens.gap).exp()
        metrics.add("distill/coef", lam)
        metrics.add_tokens("advantage/evidence_clipped_share", (ratio - 1).abs() > self.clip, tokens.response_mask)
        scaled = functional.rlsd_advantages(advantages, tokens.teacher_logp, tokens.student_logp, lam, self.clip)
        return scaled.where(advantages < 0, advantages) if self.negative_only else scaled


@register("belief")
class BeliefRevision(AdvantageTransform):
    """AgentOPSD (arXiv 2608.05987): turns that revise the belief in success most get the most credit.

    Evidence of a turn is its summed gap; the belief after it is sigmoid(logit(prior) + discounted evidence so far). The change of
    belief, z-scored within the episode, scales the advantage: A [(1 - lam) + lam clip(1 + band sign(A) z, 1 - band, 1 + band)].

    Args:
        lam: How much of the advantage is scaled; a number or a schedule.
        band: Bound of the scale.
        decay: Of the evidence, per turn; the public code uses 1.
    """

    gradient_estimand = "-E[A ((1 - lam) + lam clip(1 + band sign(A) z)) grad student_logp]"
    needs_teacher = True

    def __init__(self, lam: float | Schedule = 0.5, band: float = 0.2, decay: float = 0.95):
        _check_share(lam)
        if not 0 <= band < 1 or not 0 <= decay <= 1:
            raise ConfigError(f"transform.band is {band}, decay {decay}: both lie in [0, 1], the band below 1.")
        self.lam, self.band, self.decay = scheduled(lam), band, decay

    def weight(self, iteration: int) -> float:
        return self.lam(iteration)

    def __call__(self, advantages: Tensor, tokens: TokenView, turns: Turns, iteration: int, metrics: Metrics) -> Tensor:
        prior = turns.mean(tokens.group_success)
        revision = functional.belief_revision(turns.sum(tokens.gap), turns.episode, prior, self.decay)
        z = turns.spread(functional.trajectory_zscore(revision, turns.episode))
        lam = self.lam(iteration)
        metrics.add("distill/coef", lam)
        metrics.add("turn/belief_revision", float(revision.abs().sum()), len(revision))
        return functional.mix_advantages(advantages, functional.agent_opsd_weights(advantages, z, self.band), lam)


def _check_share(lam: float | Schedule) -> None:
    if not isinstance(lam, Schedule) and not 0 <= lam <= 1:
        raise ConfigError(
            f"transform.lam is {lam}: it is the share of the advantage that is scaled, in [0, 1]. Published: 0.5."
        )
