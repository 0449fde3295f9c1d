"""Token gates of SDAR (arXiv 2605.15155): how much a token trusts its teacher, in [0, 1].

The paper names three gates, of which the public code has the gap gate. The formulas of the other two are known from a note, without
scales of entropy and gap. Taken literally, an entropy in nats is never negative, so that gate never falls below 1/2, and the bracket
of the soft OR is unbounded. The choices made here are ours and stand in the docstrings. All functions are differentiable; a gate in
a loss is detached.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen


def log_prob_gap(teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """Teacher minus student log-probability of the sampled token, in nats; positive: the teacher endorses the token."""
    return widen(teacher_logp) - widen(student_logp)


def gap_gate(gap: Float[Tensor, "*tokens"], beta: float) -> Float[Tensor, "*tokens"]:
    """sigmoid(beta gap): 1/2 where teacher and student agree. The gate that SDAR trains with (its beta: 5).

    beta = 0 is 1/2 everywhere.
    """
    return torch.sigmoid(beta * widen(gap))


def entropy_gate(entropy: Float[Tensor, "*tokens"], beta: float, vocab_size: int) -> Float[Tensor, "*tokens"]:
    """2 sigmoid(beta h) - 1 = tanh(beta h / 2), with h = entropy / ln(vocab_size) in [0, 1].

    0 where the student is certain, growing with its doubt. As noted it is sigmoid(beta h) without a scale for h. Ours divides
    by the largest possible entropy and stretches the range [1/2, 1) to [0, 1): the order of tokens and the meaning of beta
    stay, and a token without any choice gets no weight. (Centring at h = 1/2 instead would shut the gate for practically
    every token of a language model, whose h is a few percent.)

    The gate is the same for every token that the student might have sampled in a place. Times `lift`, its expected on-policy
    gradient is therefore zero; use it with an objective that has a gradient of its own.

    Args:
        entropy: of the student's next-token distribution, in nats.
    """
    return torch.tanh(0.5 * beta * _normalized_entropy(entropy, vocab_size))


def soft_or_gate(
    gap: Float[Tensor, "*tokens"], entropy: Float[Tensor, "*tokens"], beta: float, vocab_size: int
) -> Float[Tensor, "*tokens"]:
    """sigmoid(beta [1 - (1 - h)(1 - D)]), with h = entropy / ln(vocab_size) and D = tanh(gap): endorsed *or* uncertain.

    A certain student (h = 0) gets sigmoid(beta D), which is the gap gate for small gaps; an undecided one (h = 1) gets
    sigmoid(beta) whatever the gap. The bracket lies in [-1, 1]. No scale is known; tanh is ours, because it
    keeps sign and slope of a small gap and bounds a large one.
    """
    doubt = _normalized_entropy(entropy, vocab_size)
    return torch.sigmoid(beta * (1 - (1 - doubt) * (1 - torch.tanh(widen(gap)))))


def _normalized_entropy(entropy: Tensor, vocab_size: int) -> Tensor:
    if vocab_size < 2:
        raise ConfigError(
            f"vocab_size is {vocab_size}: entropy is divided by ln(vocab_size), which needs at least 2 tokens. "
            "Pass the size of the student's vocabulary."
        )
    return (widen(entropy) / math.log(vocab_size)).clamp(0, 1)
