"""Half the squared log ratio of the sampled token."""

from torch import Tensor

from sdar import functional
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TokenView


@register("k2")
class K2(Divergence):
    """(student_logp - teacher_logp)^2 / 2: the reverse KL by plain backpropagation; its value is not a KL."""

    value_estimand = "E[(student_logp - teacher_logp)^2] / 2"
    gradient_estimand = "grad KL(student || teacher)"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.k2(tokens.teacher_logp, student.logp)
