"""OPSD as the SDAR code base calls it: SDAR without the policy gradient; KL to the reference and entropy bonus stay on.

This is not the OPSD of arXiv 2601.18734 (full-vocabulary JSD to a model that sees the solution), which is `OPSD`.
"""

from sdar.registry import register
from sdar.strategies.sdar import SDAR


@register("gated_opsd")
class GatedOPSD(SDAR):
    """The gated lift alone: on-policy self-distillation without a policy gradient."""

    policy_coef = 0.0
