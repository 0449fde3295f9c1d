"""SDAR's surrogate (arXiv 2605.15155)."""

from torch import Tensor

from sdar import functional
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TokenView


@register("lift")
class Lift(Divergence):
    """log teacher - log student of the sampled token; the gate makes the signal.

    Published as a reverse KL, which it is not: with a gate that depends on the token, such as GapGate, it raises the expected
    gate; with one that does not, it is noise around zero.
    """

    value_estimand = "-KL(student || teacher)"
    gradient_estimand = "0 (with a gate: -E[gate * grad student_logp]; 0 again unless the gate depends on the token)"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.lift(tokens.teacher_logp, student.logp)
