"""Distillation losses on sampled tokens, one value per token, to be minimised.

*Value* is what the mean over student-sampled tokens estimates, *Gradient* what the mean gradient follows; the two often
differ, which is why both are stated. Write S for the student, T for the teacher, l = log S - log T of the sampled token.
`teacher_logp` and `old_logp` are always detached.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.precision import widen

MAX_LOG_K3 = 20.0
"""Bound of the exponent in k3, in its value and in its slope: beyond it a token pulls as hard as at it."""
MAX_LOG_RATIO = 10.0
"""Bound of the exponent in the importance ratio of `importance_k3`."""


def lift(teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """log T - log S of the sampled token: SDAR's surrogate (arXiv 2605.15155), before gate and reduction.

    Value:    -KL(S || T).
    Gradient: -E[grad log S] = 0, whoever the teacher is. Weighted by a detached gate g it is -E[g grad log S]: a step that
              raises E[g], zero if and only if g is the same for all tokens; for the gap gate with small beta it is
              (beta / 4) grad KL(S || T). It is never grad KL(S || T) itself.
    """
    return widen(teacher_logp).detach() - widen(student_logp)


def k1_policy_gradient(
    teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """l, with the gradient of the score function: detached l times grad log S.

    Value:    KL(S || T).
    Gradient: grad KL(S || T), on-policy. (Backpropagating through l itself would give zero.)
    """
    student = widen(student_logp)
    log_ratio = (student - widen(teacher_logp)).detach()
    return log_ratio + log_ratio * (student - student.detach())


def k2(teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """l^2 / 2.

    Value:    E[l^2] / 2, which is KL(S || T) to second order; biased.
    Gradient: grad KL(S || T), on-policy.
    """
    return 0.5 * (widen(student_logp) - widen(teacher_logp).detach()).square()


def k3(
    teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"], clamp: float | None = None
) -> Float[Tensor, "*tokens"]:
    """exp(-l) - 1 + l, the "low-variance KL"; the exponent is bounded by 20.

    Value:    KL(S || T).
    Gradient: grad KL(T || S), the *forward* KL, on-policy: of one token (1 - exp(-l)) grad log S. See `importance_k3` for the
              reverse one.

    With a `clamp` the value is at most that, and a token beyond it has gradient 0. At 10, as verl's ``low_var_kl`` has it, that
    is a token which the teacher likes more than e^2.61 = 13.5 times better than the student, or e^11 times less. Both value and
    gradient are then biased: without it one token of 8 nats has a gradient of 2,980.

    Args:
        clamp: Largest value, in nats; None: no bound.

    Raises:
        ConfigError: a clamp that is not positive.
    """
    if clamp is not None and not clamp > 0:
        raise ConfigError(
            f"clamp is {clamp}: it is the largest value of a KL estimate, which is 0 where both agree, so that no token would have a "
            "gradient. Use e.g. 10, or null for no bound."
        )
    log_ratio = widen(student_logp) - widen(teacher_logp).detach()
    growth = torch.expm1((-log_ratio.detach()).clamp(max=MAX_LOG_K3))
    # The slope is -growth, also where the exponent is bounded: there autograd would give +1, away from the teacher.
    kl = growth + log_ratio.detach() - growth * (log_ratio - log_ratio.detach())
    return kl if clamp is None else kl.clamp(max=clamp)


def importance_k3(
    teacher_logp: Float[Tensor, "*tokens"], student_logp: Float[Tensor, "*tokens"], old_logp: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """rho (exp(-l) - 1 + l) with rho = S / old carrying a gradient: the loss of Skill-SD (arXiv 2604.10674).

    The values are bounded as published: by 20 in the exponent of the bracket, by 10 in that of rho. Where the bracket is bounded
    the gradient is that of the unbounded one (as published it would be e^20 in size, away from the teacher).

    Value:    KL(S || T), over tokens sampled from `old_logp`.
    Gradient: grad KL(S || T), on-policy and off-policy: of one token rho l grad log S.
    """
    ratio = (widen(student_logp) - widen(old_logp).detach()).clamp(max=MAX_LOG_RATIO).exp()
    return ratio * k3(teacher_logp, student_logp)
