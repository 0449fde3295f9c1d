"""Cross-entropy against a few weighted tokens of a place."""

from typing import Literal

from torch import Tensor

from sdar.errors import ConfigError
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TeacherSignal, TokenView


@register("top_k_cross_entropy")
class TopKCrossEntropy(Divergence):
    """-sum over the teacher's top k of teacher log student, in the whole vocabulary of both: nothing is renormalised.

    The objective of SDFT (arXiv 2601.19897, k = 20) and, with soft targets as the teacher, of TOPD's trajectory term. A token may be
    named twice; its weights add up.

    Args:
        k: Tokens of the teacher that are compared, the likeliest.
    """

    value_estimand = "-sum_K teacher student_logp"
    gradient_estimand = "grad -sum_K teacher student_logp"

    def __init__(self, k: int = 20) -> None:
        if k < 1:
            raise ConfigError(f"divergence.k is {k}: the support holds at least 1 token. Published: 20.")
        self.k = k

    def needs(self) -> tuple[TeacherSignal, int]:
        return TeacherSignal.TOP_K, self.k

    @property
    def reads(self) -> Literal["vocabulary", "support", "support differences"]:
        return "support"

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return -(tokens.teacher_top_logp.exp() * student.logits.gather(-1, tokens.teacher_top_ids)).sum(-1)
