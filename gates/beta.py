"""What every gate with a steepness refuses."""

import math

from sdar.errors import ConfigError

NO_SAY = (
    "the gate would be 0.5 for every token and the teacher would have no influence (the lift times a constant has an expected gradient "
    "of zero). Use ConstantGate to ask for that."
)
"""At steepness 0, of a gate that is a sigmoid."""


def check_beta(beta: float, at_zero: str, otherwise: str) -> None:
    """Raise ConfigError unless a gate's steepness is positive and finite.

    Args:
        at_zero: What a steepness of 0 would mean, and what to use instead.
        otherwise: Why it has to be positive and finite.
    """
    if beta == 0:
        raise ConfigError(f"gate.beta is 0: {at_zero}")
    if not 0 < beta < math.inf:
        raise ConfigError(f"gate.beta is {beta}: {otherwise}, which takes a positive, finite beta. Use e.g. 5.0.")
