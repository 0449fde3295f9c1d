"""Policy-gradient losses: PPO's clip (arXiv 1707.06347) with unequal bounds and the dual clip (arXiv 1912.09729), GSPO's
sequence ratio, and plain, truncated or masked importance sampling. `old_logp` and `advantages` are detached.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio|, so that a ratio never becomes infinite; beyond it a token has no gradient."""


def ppo_clip(
    logp: Float[Tensor, "*batch time"],
    old_logp: Float[Tensor, "*batch time"],
    advantages: Float[Tensor, "*batch"] | Float[Tensor, "*batch time"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "*batch time"]:
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


def clip_indicator(
    logp: Float[Tensor, "*batch time"],
    old_logp: Float[Tensor, "*batch time"],
    advantages: Float[Tensor, "*batch"] | Float[Tensor, "*batch time"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "*batch time"]:
    """1 where `ppo_clip` is clipped (dual clip aside), else 0; its `masked_mean` is the clip fraction."""
    with torch.no_grad():
        loss, clipped_loss, _ = _surrogates(logp, old_logp, advantages, clip_low, clip_high)
        return (clipped_loss > loss).to(loss.dtype)


def gspo_clip(
    logp: Float[Tensor, "batch time"],
    old_logp: Float[Tensor, "batch time"],
    advantages: Float[Tensor, " batch"] | Float[Tensor, "batch time"],
    response_mask: Shaped[Tensor, "batch time"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "batch time"]:
    """`ppo_clip` with one ratio for all tokens of a row, s = exp(mean over its response tokens of logp - old_logp).

    This is GSPO-token (arXiv 2507.18071): each token has a gradient of its own, so that advantages may differ within a row.
    The paper divides the sum over a row by its length and averages over rows; like GRPO's, that division is left to the
    reduction, and under `masked_mean` every token counts the same. Tokens outside of the mask, and so rows without a
    response token, are 0, whatever they hold. A row of one token has the loss of `ppo_clip`.

    Value:    minus the clipped surrogate return max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)).
    Gradient: -E[A s grad logp]; zero where the clip is active.

    Args:
        advantages: ``[batch]``, or ``[batch, time]``.
        clip_low: the ratio of a whole row hardly moves; the paper has 3e-4 here and 4e-4 above.
    """
    mask = response_mask.bool()
    log_ratio = (widen(logp) - widen(old_logp).detach()).where(mask, 0.0)
    mean = log_ratio.detach().sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    log_ratio = mean + (log_ratio - log_ratio.detach())
    loss, clipped_loss, _ = _surrogates(log_ratio, torch.zeros_like(log_ratio), advantages, clip_low, clip_high)
    return torch.maximum(loss, clipped_loss).where(mask, 0.0)


def importance_policy_gradient(
    logp: Float[Tensor, "*batch time"],
    old_logp: Float[Tensor, "*batch time"],
    advantages: Float[Tensor, "*batch"] | Float[Tensor, "*batch time"],
    cap: float | None = None,
) -> Float[Tensor, "*batch time"]:
    """-w A per token with w = `truncated_ratio`, which passes the gradient on even where it is capped.

    Without a cap this is the plain importance-sampling loss -r A of Thinking Machines' on-policy distillation; with one it is
    truncated importance sampling, the gradient of CISPO (arXiv 2506.13585; its upper bound 1 + epsilon is the cap).

    Value:    -w A.
    Gradient: -E[w A grad logp]; without a cap that of minus the return, off-policy too.

    Args:
        advantages: ``[batch, time]``, or ``[batch]`` for one advantage per sequence.
    """
    loss = -truncated_ratio(logp, old_logp, cap) * per_token(advantages, logp)
    return loss + loss * (widen(logp) - widen(logp).detach())


def truncated_ratio(
    logp: Float[Tensor, "*tokens"], old_logp: Float[Tensor, "*tokens"], cap: float | None = None
) -> Float[Tensor, "*tokens"]:
    """min(exp(logp - old_logp), cap), detached: an importance weight of bounded variance. SDPO (arXiv 2601.20802) has cap 2.

    Raises:
        ConfigError: a cap that is not positive.
    """
    if cap is not None and not cap > 0:
        raise ConfigError(
            f"cap is {cap}: it bounds importance ratios, which are positive, so no token would have a gradient. "
            "Use a number above 1, e.g. 2.0, or null for no bound."
        )
    log_ratio = (widen(logp) - widen(old_logp)).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp().clamp(max=cap) if cap is not None else log_ratio.exp()


def masked_ratio(
    logp: Float[Tensor, "*tokens"], old_logp: Float[Tensor, "*tokens"], low: float, high: float
) -> Float[Tensor, "*tokens"]:
    """r = exp(logp - old_logp) where it lies in [low, high], elsewhere 0; detached. IcePop (arXiv 2510.18855) has 0.5 and 5.

    Value:    r if low <= r <= high, else 0.
    Gradient: none; as a weight of -A logp it gives -E[r A grad logp] over the tokens inside, those outside have no gradient.

    Raises:
        ConfigError: bounds that do not contain a ratio of 1.
    """
    if not 0 <= low < 1 < high:
        raise ConfigError(
            f"low is {low} and high is {high}: only tokens with a ratio in [low, high] have a gradient, and where both densities "
            "are the same it is 1, but for rounding. Use 0 <= low < 1 < high, e.g. 0.5 and 5.0."
        )
    ratio = truncated_ratio(logp, old_logp)
    return ratio.where((ratio >= low) & (ratio <= high), 0.0)


def per_token(advantages: Tensor, like: Tensor) -> Tensor:
    """The advantages, detached and wide; one per row of `like` gets an axis of time."""
    advantages = widen(advantages).detach()
    return advantages.unsqueeze(-1) if advantages.dim() == like.dim() - 1 else advantages


def _surrogates(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain loss, the clipped loss, and the advantages shaped like them."""
    if not (0 <= clip_low < 1 and clip_high >= 0):
        raise ConfigError(
            f"clip_low is {clip_low} and clip_high is {clip_high}: the ratio is kept in [1 - clip_low, 1 + clip_high], which "
            "needs 0 <= clip_low < 1 and clip_high >= 0. Use 0.2 for both."
        )
    ratio = (widen(logp) - widen(old_logp).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages = per_token(advantages, logp).expand_as(ratio)
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high), advantages
