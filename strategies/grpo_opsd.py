"""GRPO + OPSD: the ungated baseline of the SDAR paper (its code sets beta to 0, which makes every gate 0.5).

On-policy its distillation term has an expected gradient of exactly zero, whatever the teacher says: what it does comes from
the steps after the first of a rollout, and from variance. It is here because published tables have it.
"""

from sdar.gates import ConstantGate
from sdar.parts import Retriever
from sdar.registry import register
from sdar.strategies.sdar import SDAR


@register("grpo_opsd")
class GRPOWithOPSD(SDAR):
    """GRPO plus the ungated lift; a baseline whose distillation gradient is zero in expectation.

    Args:
        trust: The same for every token.
    """

    def __init__(self, retriever: Retriever | None, trust: float = 0.5, **kwargs):
        super().__init__(retriever=retriever, gate=ConstantGate(trust), **kwargs)
