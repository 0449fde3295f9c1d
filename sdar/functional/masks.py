"""Which tokens take part: the first of each special token, and samples by importance (TIP, arXiv 2604.14084). All detached."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.gates import _normalized_entropy
from sdar.functional.precision import widen

LAST = -1e6
"""Log-weight of a token with weight 0: behind all others, however lucky its draw."""


def concentration(sizes: Float[Tensor, " N"], share: float) -> float:
    """What the ceil(share N) largest of the sizes are of their sum; NaN where that is 0. As large as `share` if all are alike.

    Args:
        sizes: not negative.

    Raises:
        ConfigError: a share outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of the tokens is {share}: a part of them is compared with all. Use e.g. 0.01.")
    sizes = widen(sizes)
    most = sizes.topk(math.ceil(share * len(sizes))).values
    return float(most.sum(dtype=torch.double) / sizes.sum(dtype=torch.double))


def effective_share(sizes: Float[Tensor, " N"]) -> float:
    """(sum of the sizes)^2 / (N sum of their squares): the effective sample size as a share of N, from 1 / N to 1; NaN where all are 0."""
    sizes = sizes.double()
    return float(sizes.sum().square() / (len(sizes) * sizes.square().sum()))


def first_occurrences(
    ids: Int[Tensor, "batch time"], response_mask: Shaped[Tensor, "batch time"], token_ids: Iterable[int]
) -> Bool[Tensor, "batch time"]:
    """True at the first response token of each row that has the id, for each of `token_ids`. Bool.

    Revisiting OPD (arXiv 2603.25562) takes the first ``<``, ``think`` and ``<|im_end|>`` of a response out of its loss.
    """
    mask = response_mask.bool()
    first = torch.zeros_like(mask)
    for token in token_ids:
        hits = (ids == token) & mask
        first |= hits & (hits.cumsum(-1) == 1)
    return first


def weighted_subset(
    weights: Float[Tensor, "*tokens"], mask: Shaped[Tensor, "*tokens"], share: float, generator: torch.Generator | None = None
) -> Bool[Tensor, "*tokens"]:
    """True for floor(share tokens in the mask), drawn without replacement with probability proportional to `weights`. Bool.

    At least one if there are any. A token with weight 0 comes only when all others are in, and then each is as likely.
    The same draw as `torch.multinomial`, which stops at 2^24 categories: the highest of log-weight plus Gumbel noise. What
    lies outside of the mask does not matter and uses up no random number.

    Args:
        weights: not negative, finite.
        generator: on the device of the weights.

    Raises:
        ConfigError: a share outside of (0, 1].
        ValueError: a weight in the mask that is negative or not finite.
    """
    if not 0 < share <= 1:
        raise ConfigError(
            f"share is {share}: it is the share of tokens that are kept. Use a number above 0, up to 1, e.g. 0.5."
        )
    mask = mask.bool()
    inside = weights.detach()[mask].double()
    bad = ~((inside >= 0) & inside.isfinite())
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(inside)} weights in the mask are negative or not finite, the first is "
            f"{inside[bad][0].item():g}: tokens are drawn in proportion to their weights. Pass finite weights of 0 or more."
        )
    keys = inside.log().clamp_min(LAST) - torch.empty_like(inside).exponential_(generator=generator).log()
    kept = torch.zeros_like(inside, dtype=torch.bool)
    count = math.floor(share * len(keys) + 1e-9)  # 0.29 * 100 is 28.999... in floating point
    kept[keys.topk(max(count, min(len(keys), 1))).indices] = True
    return torch.zeros_like(mask).masked_scatter(mask, kept)


def token_importance(
    entropy: Float[Tensor, "*tokens"], jsd: Float[Tensor, "*tokens"], vocab_size: int, alpha: float, gamma: float
) -> Float[Tensor, "*tokens"]:
    """h^alpha d^gamma in [0, 1], h = entropy / ln(vocab_size), d = jsd / ln 2: uncertain *and* divergent. TIP, detached.

    An exponent of 0 leaves its factor out.

    Args:
        entropy: of the student's next-token distribution, in nats.
        jsd: Jensen-Shannon divergence of teacher and student (beta 1/2), in nats.

    Raises:
        ConfigError: a negative exponent, a vocabulary of less than 2 tokens.
    """
    if not (alpha >= 0 and gamma >= 0):
        raise ConfigError(
            f"alpha is {alpha} and gamma is {gamma}: a token without entropy or divergence would have infinite importance. "
            "Use exponents of 0 or more, e.g. 1.0."
        )
    doubt, divergence = _scaled(entropy, jsd, vocab_size)
    return doubt.pow(alpha) * divergence.pow(gamma)


def soft_or_importance(
    entropy: Float[Tensor, "*tokens"], jsd: Float[Tensor, "*tokens"], vocab_size: int
) -> Float[Tensor, "*tokens"]:
    """h + d - h d in [0, 1]: uncertain *or* divergent, with h and d of `token_importance`. Detached.

    TIP names a soft-OR score without its formula; this, the usual one, is ours.
    """
    doubt, divergence = _scaled(entropy, jsd, vocab_size)
    return doubt + divergence - doubt * divergence


def _scaled(entropy: Tensor, jsd: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    return _normalized_entropy(entropy, vocab_size).detach(), (widen(jsd).detach() / math.log(2)).clamp(0, 1)
