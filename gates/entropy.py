"""The entropy gate of SDAR (arXiv 2605.15155), with a normalisation of our own."""

import torch
from torch import Tensor

from sdar import functional
from sdar.gates.beta import UNGATED, check_beta
from sdar.parts import Gate
from sdar.registry import register
from sdar.types import TokenView


@register("entropy")
class EntropyGate(Gate):
    """Opens where the student is uncertain: tanh(beta * h / 2), h = entropy / ln(vocab_size).

    It does not depend on the sampled token. Times the lift its expected on-policy gradient is zero, as for a constant gate:
    combine it with a divergence that has a gradient of its own. See `sdar.functional.entropy_gate` for the normalisation.
    """

    def __init__(self, beta: float = 5.0) -> None:
        """
        Args:
            beta: steepness per unit of normalised entropy; 0 is the ungated form, not the limit of small ones, which is 0.
        """
        check_beta(beta, "an entropy gate lies in [0, 1] and opens with doubt")
        self.beta = beta

    def __call__(self, tokens: TokenView) -> Tensor:
        if self.beta == 0:
            return torch.full_like(tokens.entropy, UNGATED, dtype=torch.promote_types(tokens.entropy.dtype, torch.float32))
        return functional.entropy_gate(tokens.entropy, self.beta, tokens.vocab_size).detach()
