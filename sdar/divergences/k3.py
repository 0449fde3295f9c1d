"""The "low-variance KL" of the sampled token, without and with an importance ratio."""

from torch import Tensor

from sdar import functional
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TokenView


@register("k3")
class K3(Divergence):
    """exp(gap) - 1 - gap. Its value is the reverse KL, its gradient that of the *forward* KL."""

    value_estimand = "KL(student || teacher)"
    gradient_estimand = "grad KL(teacher || student)"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.k3(tokens.teacher_logp, student.logp)


@register("importance_k3")
class ImportanceK3(Divergence):
    """k3 times student / old with a gradient through both (Skill-SD, arXiv 2604.10674): the reverse KL, on- and off-policy."""

    value_estimand = "KL(student || teacher)"
    gradient_estimand = "grad KL(student || teacher)"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.importance_k3(tokens.teacher_logp, student.logp, tokens.old_logp)
