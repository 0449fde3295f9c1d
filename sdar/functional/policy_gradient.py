"""The clipped policy-gradient loss of PPO (arXiv 1707.06347) with unequal bounds and the dual clip (arXiv 1912.09729)."""

import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio|, so that a ratio never becomes infinite; beyond it a token has no gradient."""


def ppo_clip(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) per token, r = exp(logp - old_logp); at most -A dual_clip if A < 0.

    Value:    minus the clipped surrogate return.
    Gradient: -E[A grad logp] at r = 1; zero where the clip is active. `old_logp` and `advantages` are detached.

    Args:
        advantages: ``[batch, time]``, or ``[batch]`` for one advantage per sequence.
        dual_clip: above 1; bounds what a token with negative advantage and a huge ratio may cost.

    Raises:
        ConfigError: bounds that do not contain a ratio of 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ConfigError(
            f"dual_clip is {dual_clip}: it bounds the ratio of tokens with a negative advantage and must be above 1, "
            "or on-policy tokens lose their gradient. Use 3.0, or null for no bound."
        )
    loss, clipped_loss, advantages = _surrogates(logp, old_logp, advantages, clip_low, clip_high)
    loss = torch.maximum(loss, clipped_loss)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clip_indicator(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """1 where `ppo_clip` is clipped (dual clip aside), else 0; its `masked_mean` is the clip fraction."""
    with torch.no_grad():
        loss, clipped_loss, _ = _surrogates(logp, old_logp, advantages, clip_low, clip_high)
        return (clipped_loss > loss).to(loss.dtype)


def _surrogates(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain loss, the clipped loss, and the advantages shaped like them."""
    if not (0 <= clip_low < 1 and clip_high >= 0):
        raise ConfigError(
            f"clip_low is {clip_low} and clip_high is {clip_high}: the ratio is kept in [1 - clip_low, 1 + clip_high], which "
            "needs 0 <= clip_low < 1 and clip_high >= 0. Use 0.2 for both."
        )
    advantages = widen(advantages).detach()
    if advantages.dim() == logp.dim() - 1:
        advantages = advantages.unsqueeze(-1)
    ratio = (widen(logp) - widen(old_logp).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages = advantages.expand_as(ratio)
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high), advantages
