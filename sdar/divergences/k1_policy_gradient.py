"""The sampled reverse KL of on-policy distillation (arXiv 2605.07725 and others), as a loss term."""

from torch import Tensor

from sdar import functional
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TokenView


@register("k1")
class K1PolicyGradient(Divergence):
    """Policy gradient with the gap as its reward: raises tokens that the teacher endorses, lowers the others.

    Unlike the lift it is silent where teacher and student agree, so it needs no gate; with a gap gate what the teacher likes
    less is lowered little, what it likes more is raised fully.
    """

    value_estimand = "KL(student || teacher)"
    gradient_estimand = "grad KL(student || teacher)"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.k1_policy_gradient(tokens.teacher_logp, student.logp)
