"""Importance correction for the difference between the density that was sampled from and the one that is trained, as parts.

An engine computes otherwise than the trainer (kernels, precision, quantisation), and with rollouts ahead its weights are one update
older. Both are one ratio a token, pi / mu: the trainer's density before the update by the engine's. It multiplies everything that
the token's loss consists of, once and detached, because each term is a mean over the tokens that were sampled: the policy gradient
(whose own ratio, new by old, stays the trainer's: the decoupled objective of arXiv 2505.24298), objectives of the sampled token, the
KL to the reference. A term over the whole vocabulary stays as it was in expectation, since the mean of pi / mu under mu is 1.

Both densities are those of the tempered softmax over the whole vocabulary, before forbidden ids, top-k and top-p were cut from it:
``behaviour_logp + kept_logmass`` of the sampler, ``old_logp + allowed_logmass`` of the trainer. So the ratio corrects numbers and
staleness, not truncation: what top-p never lets through cannot be weighted back, and a ratio of a whole to a truncated density
would be off by the kept mass in every token. With S the ids that the engine kept, the weighted mean is (pi(S) / mu(S)) times that under
pi within S: the exact one where nothing is cut, else but for a factor that is 1 where the two agree.

The ratio is a token's, not a sequence's: what came before the token was sampled from mu and stays so. A product over the thousands of
tokens of an episode would be nearly always next to nothing or at its bound.
"""

import torch
from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.parts import Correction
from sdar.registry import register


@register("no_correction")
class NoCorrection(Correction):
    """Every token counts alike, as if the trainer itself had sampled it."""

    gradient_estimand = "-E_mu[A grad logp]"

    def __call__(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        return torch.ones_like(logp)


@register("truncated")
class TruncatedCorrection(Correction):
    """min(pi / mu, cap): truncated importance sampling (Ionides 2008; for engines Yao et al. 2025, fengyao.notion.site/off-policy-rl).

    Args:
        cap: Largest weight; None: no bound, which is unbiased and may have a huge variance.
    """

    gradient_estimand = "-E_mu[min(pi / mu, cap) A grad logp]; without a cap -E_pi[A grad logp]"

    def __init__(self, cap: float | None = 2.0) -> None:
        if cap is not None and not cap > 1:
            raise ConfigError(
                f"correction.cap is {cap}: it bounds a ratio that is 1 where sampler and trainer agree, and would make all tokens count "
                "the same or nothing. Use e.g. 2 (published), or null for no bound."
            )
        self.cap = cap

    def __call__(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        return functional.truncated_ratio(logp, sampled_logp, self.cap)

    def cut(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        if self.cap is None:
            return super().cut(logp, sampled_logp)
        return functional.truncated_ratio(logp, sampled_logp) > self.cap


@register("masked")
class MaskedCorrection(Correction):
    """pi / mu within [low, high], nothing outside: IcePop (arXiv 2510.18855). Masked tokens still count in the mean's denominator.

    Args:
        low, high: Bounds of the ratio.
    """

    gradient_estimand = "-E_mu[1(low <= pi / mu <= high) pi / mu A grad logp]"

    def __init__(self, low: float = 0.5, high: float = 5.0) -> None:
        if not 0 <= low < 1 < high:
            raise ConfigError(
                f"correction.low is {low}, high {high}: only tokens with a ratio within have a gradient, and where sampler and trainer "
                "agree it is 1, but for rounding. Use 0 <= low < 1 < high, e.g. 0.5 and 5 (published)."
            )
        self.low, self.high = low, high

    def __call__(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        return functional.masked_ratio(logp, sampled_logp, self.low, self.high)

    def cut(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        ratio = functional.truncated_ratio(logp, sampled_logp)
        return (ratio < self.low) | (ratio > self.high)
