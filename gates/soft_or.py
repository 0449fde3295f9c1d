"""The soft-OR gate of SDAR (arXiv 2605.15155), with normalisations of our own."""

from torch import Tensor

from sdar import functional
from sdar.gates.beta import check_beta
from sdar.parts import Gate
from sdar.registry import register
from sdar.types import TokenView


@register("soft_or")
class SoftOrGate(Gate):
    """Opens where the teacher endorses the token or the student is uncertain: sigmoid(beta * [1 - (1 - h)(1 - D)]).

    h = entropy / ln(vocab_size), D = tanh(gap). See `sdar.functional.soft_or_gate` for the reasons.
    """

    def __init__(self, beta: float = 5.0) -> None:
        """
        Args:
            beta: steepness; for a certain student and a small gap it is that of the gap gate; 0 is the ungated form.
        """
        check_beta(beta, "a soft-OR gate opens for endorsed or uncertain tokens")
        self.beta = beta

    def __call__(self, tokens: TokenView) -> Tensor:
        return functional.soft_or_gate(tokens.gap, tokens.entropy, self.beta, tokens.vocab_size).detach()
