"""The gap gate of SDAR (arXiv 2605.15155)."""

import math

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
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
            beta: steepness per nat of gap; the paper's best of 1, 5 and 10 is 5.
        """
        if beta == 0:
            raise ConfigError(
                "gate.beta is 0: the gate would be 0.5 for every token and the teacher would have no influence (the lift "
                "times a constant has an expected gradient of zero). Use ConstantGate to ask for that."
            )
        if not 0 < beta < math.inf:
            raise ConfigError(
                f"gate.beta is {beta}: a gap gate opens for tokens that the teacher endorses, which takes a positive, finite "
                "beta. Use e.g. 5.0."
            )
        self.beta = beta

    def __call__(self, tokens: TokenView) -> Tensor:
        return functional.gap_gate(tokens.gap, self.beta).detach()
