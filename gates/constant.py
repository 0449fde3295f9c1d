"""The same weight for every token: no gate."""

import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.parts import Gate
from sdar.registry import register
from sdar.types import TokenView


@register("constant")
class ConstantGate(Gate):
    """The same weight for every token.

    With the lift this is the ungated baseline, "GRPO + OPSD" (value 0.5): its expected on-policy gradient is zero, whoever
    the teacher is. With a divergence that has a gradient of its own, 1.0 means "no gate".
    """

    def __init__(self, value: float = 0.5) -> None:
        """
        Args:
            value: the weight, above 0 and at most 1.
        """
        if value == 0:
            raise ConfigError(
                "gate.value is 0: no token would be distilled and the teacher would be scored for nothing. "
                "Use GRPO for training without a teacher, or a value above 0."
            )
        if not 0 < value <= 1:
            raise ConfigError(
                f"gate.value is {value}: a gate is a weight in [0, 1]. Scale the loss with its coefficient instead."
            )
        self.value = value

    def __call__(self, tokens: TokenView) -> Tensor:
        return torch.full_like(tokens.gap, self.value, dtype=torch.promote_types(tokens.gap.dtype, torch.float32))
