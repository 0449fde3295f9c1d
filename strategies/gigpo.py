"""GiGPO: group-in-group policy optimisation (arXiv 2505.10978). Credit for an episode, and for a turn among equal situations.

    A = A_episode + omega * A_step,   A_step = return of the turn - mean return of the group's turns that began alike

Two attempts that saw the same observation are compared from there on; no teacher, no value network. A turn whose situation no
other attempt met has no step advantage.
"""

from jsonargparse import lazy_instance

from sdar.credit import GiGPOAdvantage
from sdar.parts import AdvantageEstimator
from sdar.registry import register
from sdar.strategies.grpo import GRPO


@register("gigpo")
class GiGPO(GRPO):
    """GRPO with anchor-state step advantages.

    Value:    that of GRPO.
    Gradient: -E[(A_episode + omega A_step) grad student_logp], plus those of KL and entropy.

    Args:
        advantage: Credit; its settings are GiGPO's.
    """

    def __init__(self, advantage: AdvantageEstimator = lazy_instance(GiGPOAdvantage), **kwargs):
        super().__init__(advantage=advantage, **kwargs)
