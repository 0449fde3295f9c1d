"""Surrogates of the policy gradient as parts."""

import torch
from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.parts import PolicyLoss
from sdar.registry import register


class _Clipped(PolicyLoss):
    def __init__(self, clip_low: float, clip_high: float) -> None:
        if not (0 < clip_low < 1 and clip_high > 0):
            raise ConfigError(
                f"policy_loss.clip_low is {clip_low}, clip_high {clip_high}: the ratio is kept in [1 - clip_low, 1 + clip_high], which "
                "would be empty or reach zero. Use e.g. 0.2."
            )
        self.clip_low, self.clip_high = clip_low, clip_high


@register("ppo")
class PPO(_Clipped):
    """The clipped surrogate of PPO (arXiv 1707.06347), with unequal bounds (clip-higher) and a dual clip.

    Value:    minus the clipped surrogate return.
    Gradient: -E[A grad logp] on-policy; zero where the clip is active.

    Args:
        clip_low, clip_high: The probability ratio is clipped to [1 - clip_low, 1 + clip_high].
        dual_clip: Bound of the loss for negative advantages (arXiv 1912.09729); None switches it off.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = 3.0) -> None:
        super().__init__(clip_low, clip_high)
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(
                f"policy_loss.dual_clip is {dual_clip}: it bounds the ratio and must exceed 1 (published: 3), or be null."
            )
        self.dual_clip = dual_clip

    def __call__(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        return functional.ppo_clip(logp, old_logp, advantages, self.clip_low, self.clip_high, self.dual_clip)

    def clipped(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        clipped = functional.clip_indicator(logp, old_logp, advantages, self.clip_low, self.clip_high)
        if self.dual_clip is None:
            return clipped
        bounds = (logp.detach(), old_logp, advantages, self.clip_low, self.clip_high)
        return clipped.where(functional.ppo_clip(*bounds) <= functional.ppo_clip(*bounds, self.dual_clip), 1.0)


@register("gspo")
class GSPO(_Clipped):
    """Sequence-level ratios (arXiv 2507.18071): the geometric mean over a row's response tokens is clipped, not each token.

    Value:    minus the clipped surrogate return.
    Gradient: -E[A grad logp] on-policy, each token weighted by its row's ratio.

    Args:
        clip_low, clip_high: Bounds of the row's ratio; much tighter than PPO's, because a mean hardly moves.
    """

    def __init__(self, clip_low: float = 3e-4, clip_high: float = 4e-4) -> None:
        super().__init__(clip_low, clip_high)

    def __call__(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        return functional.gspo_clip(logp, old_logp, advantages, response_mask, self.clip_low, self.clip_high)

    def clipped(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        log_ratio = functional.turn_mean(
            logp.detach() - old_logp, response_mask, torch.zeros_like(response_mask, dtype=torch.long)
        )
        clipped = functional.clip_indicator(log_ratio, torch.zeros_like(log_ratio), advantages, self.clip_low, self.clip_high)
        return clipped.where(response_mask.bool(), 0.0)


@register("importance")
class ImportanceSampling(PolicyLoss):
    """The plain importance-weighted policy gradient, without a trust region (Thinking Machines' OPD).

    Value:    -E[ratio A].
    Gradient: -E[min(ratio, cap) A grad logp].

    Args:
        cap: Largest ratio (truncated importance sampling); None: no bound.
    """

    def __init__(self, cap: float | None = None) -> None:
        if cap is not None and cap <= 0:
            raise ConfigError(
                f"policy_loss.cap is {cap}: it bounds a ratio of probabilities. Use e.g. 2, or null for no bound."
            )
        self.cap = cap

    def __call__(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        return functional.importance_policy_gradient(logp, old_logp, advantages, self.cap)
