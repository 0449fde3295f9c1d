"""The gap gate of SDAR (arXiv 2605.15155)."""

from torch import Tensor

from sdar import functional
from sdar.gates.beta import check_beta
from sdar.parts import Gate
from sdar.registry import register
from sdar.types import TokenView


@register("gap")
class GapGate(Gate):
    """Opens where the teacher finds the sampled token likelier than the student does: sigmoid(beta * gap).

    With the lift, beta *is* the distillation signal: for small gaps the expected gradient is beta / 4 times that of
    KL(student || teacher), so beta and the coefficient of the loss are not independent.
    """

    def __init__(self, beta: float = 5.0) -> None:
        """
        Args:
            beta: steepness per nat of gap; the paper's best of 0 (the ungated form), 1, 5 and 10 is 5.
        """
        check_beta(beta, "a gap gate opens for tokens that the teacher endorses")
        self.beta = beta

    def __call__(self, tokens: TokenView) -> Tensor:
        return functional.gap_gate(tokens.gap, self.beta).detach()
