"""Divergences over the whole vocabulary, ``[*, V]`` logits to ``[*]`` nats, to be minimised.

Write S and T for the student's and the teacher's softmax of logits / temperature, z for the student's logits. Values and
gradients are exact, not estimates; a temperature divides the gradient too and no factor temperature^2 makes up for it. Logits
may be log-probabilities. The teacher is detached; padded vocabularies are cut to their common prefix.

A logit of -inf or the lowest float forbids an id. Forbidden on both sides, it counts for nothing and gets no gradient. Where
only one side forbids it and the KL is infinite, the value is the other side's mass there times 1.7e38 nats (float32; 65,504
for float16's lowest number): unmistakable, but finite like its gradient. A row with all ids forbidden counts as uniform.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen


def forward_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(T || S), mass-covering.

    Value:    sum_v T (log T - log S).
    Gradient: (S - T) / temperature, with respect to z.
    """
    student, teacher = _both_log_probs(student_logits, teacher_logits, temperature)
    return kl(teacher, student)


def reverse_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(S || T), mode-seeking: what `k1_policy_gradient` samples.

    Value:    sum_v S (log S - log T).
    Gradient: S (log S - log T - KL(S || T)) / temperature.
    """
    student, teacher = _both_log_probs(student_logits, teacher_logits, temperature)
    return kl(student, teacher)


def jsd(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649): M = beta T + (1 - beta) S.

    beta = 0 is KL(T || S) and beta = 1 is KL(S || T), as in GKD and TRL: the limits of jsd / beta and jsd / (1 - beta), where
    jsd itself goes to zero. A small beta is therefore a weak loss, and beta = 0 is not.

    Value:    beta KL(T || M) + (1 - beta) KL(S || M), at most ln 2; symmetric in S and T at beta = 1/2.
    Gradient: (1 - beta) S (log S - log M - KL(S || M)) / temperature.

    Raises:
        ConfigError: beta outside of [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ConfigError(
            f"beta is {beta}: it is the teacher's share of the mixture and lies in [0, 1]. "
            "Use 0.5 for the symmetric divergence, 0 for KL(teacher || student), 1 for KL(student || teacher)."
        )
    student, teacher = _both_log_probs(student_logits, teacher_logits, temperature)
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = _log_mixture(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def skew_forward_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    alpha: float,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(T || M), M = alpha T + (1 - alpha) S: the skew KL of DistiLLM (arXiv 2402.03898; there alpha = 0.1).

    Value:    at most -ln alpha; KL(T || S) at alpha = 0.
    Gradient: -(1 - alpha) S (T / M - E_S[T / M]) / temperature.

    Raises:
        ConfigError: alpha outside of [0, 1).
    """
    _check_alpha(alpha)
    student, teacher = _both_log_probs(student_logits, teacher_logits, temperature)
    return kl(teacher, _log_mixture(teacher, student, alpha))


def skew_reverse_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    alpha: float,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(S || M), M = alpha S + (1 - alpha) T: the skew reverse KL of DistiLLM (arXiv 2402.03898; there alpha = 0.1).

    Value:    at most -ln alpha; KL(S || T) at alpha = 0.
    Gradient: S (c - E_S[c]) / temperature with c = log S - log M - alpha S / M.

    Raises:
        ConfigError: alpha outside of [0, 1).
    """
    _check_alpha(alpha)
    student, teacher = _both_log_probs(student_logits, teacher_logits, temperature)
    return kl(student, _log_mixture(student, teacher, alpha))


def common_vocabulary(
    student_logits: Float[Tensor, "*tokens student_vocab"], teacher_logits: Float[Tensor, "*tokens teacher_vocab"]
) -> tuple[Float[Tensor, "*tokens vocab"], Float[Tensor, "*tokens vocab"]]:
    """Both cut to the narrower vocabulary: embeddings are padded behind the last token (Qwen: 151,936 and 152,064 rows).

    Zeros instead would be logits like any others, and can hold most of the mass.

    Raises:
        ValueError: different rows.
    """
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, teacher_logits {tuple(teacher_logits.shape)}: only the "
            "vocabulary may differ, rows are compared one by one. Select the same tokens on both sides."
        )
    width = min(student_logits.shape[-1], teacher_logits.shape[-1])
    return student_logits[..., :width], teacher_logits[..., :width]


def kl(
    logp: Float[Tensor, "*tokens vocab"], logq: Float[Tensor, "*tokens vocab"], max_log_ratio: float | None = None
) -> Float[Tensor, "*tokens"]:
    """sum_v p (log p - log q) of finite log-probabilities; the log ratio is kept in [-max, max] if there is a `max_log_ratio`.

    Raises:
        ConfigError: a bound that is not above 0.
    """
    log_ratio = logp - logq
    if max_log_ratio is not None:
        if not max_log_ratio > 0:
            raise ConfigError(
                f"max_log_ratio is {max_log_ratio}: log ratios are kept within plus and minus this, and nothing would be left. "
                "Use a number above 0, e.g. 5.0, or null for no bound."
            )
        log_ratio = log_ratio.clamp(-max_log_ratio, max_log_ratio)
    return (logp.exp() * log_ratio).sum(-1)


def log_probs(logits: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "*tokens vocab"]:
    """The log-softmax of finite logits; torch's own sums a row on the CPU with an error of 1e-5 nats for 152,000 ids."""
    logits = logits - logits.detach().amax(-1, keepdim=True)
    return logits - logits.logsumexp(-1, keepdim=True)


def finite_logits(logits: Float[Tensor, "*tokens vocab"], temperature: float = 1.0) -> Float[Tensor, "*tokens vocab"]:
    """Logits / temperature in at least float32; forbidden ids get a finite number, of which 0 log 0 is 0, and no gradient.

    Raises:
        ConfigError: a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}: logits are divided by it. Use the temperature above 0 that the rollout sampled with."
        )
    logits = widen(logits) / temperature
    return logits.clamp_min(forbidden_logit(logits.dtype))


def forbidden_logit(dtype: torch.dtype) -> float:
    """Half of the lowest number, so that the sum of a row stays finite."""
    return torch.finfo(dtype).min / 2


def _both_log_probs(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = common_vocabulary(student_logits, teacher_logits.detach())
    return log_probs(finite_logits(student, temperature)), log_probs(finite_logits(teacher, temperature))


def _log_mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    if share == 0:
        return logq
    return torch.logaddexp(logp + math.log(share), logq + math.log1p(-share))


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise ConfigError(
            f"alpha is {alpha}: it is the share of the first distribution in the mixture that it is compared with, from 0 to "
            "below 1, where nothing is left to learn. Use 0.1, or 0 for the plain KL."
        )
