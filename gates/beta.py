"""What a gate does without a steepness, and which ones it refuses."""

import math

from sdar.errors import ConfigError

UNGATED = 0.5
"""The weight of every token at steepness 0: sigmoid(0), as in SDAR's sweep of {0, 1, 5, 10} (arXiv 2605.15155)."""


def check_beta(beta: float, otherwise: str) -> None:
    """Raise ConfigError unless a gate's steepness is finite and not negative; warn where it is 0.

    Args:
        otherwise: Why it cannot be negative or infinite.
    """
    if not 0 <= beta < math.inf:
        raise ConfigError(f"gate.beta is {beta}: {otherwise}, which takes a positive, finite beta. Use e.g. 5.0.")
    if beta == 0:
        from lightning.pytorch.utilities import rank_zero_warn  # a gate alone need not wait for it

        rank_zero_warn(
            f"gate.beta is 0: the gate is {UNGATED} for every token, which is the ungated form (ConstantGate). With the lift, SDAR's "
            "divergence, its expected gradient is zero: the teacher adds noise and teaches nothing. For distillation without a gate use a "
            "divergence that has a gradient of its own, such as k1."
        )
