"""Local support matching: divergences over a few likely tokens of a place (arXiv 2603.25562, SDPO 2601.20802)."""

from typing import Any, Literal

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.functional import TeacherTop
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TeacherSignal, TokenView


class LocalSupport(Divergence):
    """Student and teacher on the support, written student_K and teacher_K in the estimands."""

    def __init__(self, k: int, support: Literal["teacher", "student"], tail: Literal["drop", "bucket", "sampled"]) -> None:
        if k < 1:
            raise ConfigError(f"divergence.k is {k}: the support holds at least 1 token. Published: 16 or 32.")
        for name, value, known in (
            ("support", support, ("teacher", "student")),
            ("tail", tail, ("drop", "bucket", "sampled")),
        ):
            if value not in known:
                raise ConfigError(f"divergence.{name} is {value!r}: use one of {', '.join(known)}.")
        self.k, self.support, self.tail = k, support, tail

    def needs(self) -> tuple[TeacherSignal, int]:
        return (TeacherSignal.TOP_K, self.k) if self.support == "teacher" else (TeacherSignal.FULL, 0)

    @property
    def reads(self) -> Literal["vocabulary", "support", "support differences"]:
        return "support differences" if self.support == "teacher" and self.tail != "bucket" else "vocabulary"

    def compared(self, student: StudentTokens, tokens: TokenView) -> tuple[Tensor, Tensor | TeacherTop, int]:
        """The student's logits, what is known of the teacher, k."""
        if self.support == "student":
            return student.logits, tokens.teacher_logits, self.k
        return student.logits, TeacherTop(tokens.teacher_top_ids, tokens.teacher_top_logp, tokens.teacher_logp), self.k

    def choice(self, tokens: TokenView) -> dict[str, Any]:
        """Which categories are compared."""
        return {"support": self.support, "tail": self.tail, "sampled_ids": tokens.ids}


@register("top_k_reverse")
class TopKReverseKL(LocalSupport):
    """KL(student || teacher) on the support.

    Args:
        k: Tokens in the support.
        support: Whose likeliest tokens: the teacher's (fixed when a rollout is scored) or the current student's.
        tail: What becomes of the rest: ``drop`` (both renormalised on the support), ``bucket`` (one more category with the
            remaining mass), ``sampled`` (the sampled token is one more category).
        max_log_ratio: Bound of the log ratio, in nats (the public code: 5); None: no bound.
    """

    value_estimand = "KL(student_K || teacher_K)"
    gradient_estimand = "grad KL(student_K || teacher_K)"

    def __init__(
        self,
        k: int = 16,
        support: Literal["teacher", "student"] = "teacher",
        tail: Literal["drop", "bucket", "sampled"] = "drop",
        max_log_ratio: float | None = None,
    ) -> None:
        super().__init__(k, support, tail)
        if max_log_ratio is not None and max_log_ratio <= 0:
            raise ConfigError(
                f"divergence.max_log_ratio is {max_log_ratio}: it bounds log ratios, in nats. Use e.g. 5, or null for no bound."
            )
        self.max_log_ratio = max_log_ratio

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        compared = self.compared(student, tokens)
        return functional.top_k_reverse_kl(*compared, **self.choice(tokens), max_log_ratio=self.max_log_ratio)


@register("top_k_forward")
class TopKForwardKL(LocalSupport):
    """KL(teacher || student) on the support.

    Args:
        k, support, tail: As in TopKReverseKL.
    """

    value_estimand = "KL(teacher_K || student_K)"
    gradient_estimand = "grad KL(teacher_K || student_K)"

    def __init__(
        self,
        k: int = 16,
        support: Literal["teacher", "student"] = "teacher",
        tail: Literal["drop", "bucket", "sampled"] = "drop",
    ) -> None:
        super().__init__(k, support, tail)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.top_k_forward_kl(*self.compared(student, tokens), **self.choice(tokens))


@register("top_k_jensen_shannon")
class TopKJensenShannon(LocalSupport):
    """The Jensen-Shannon divergence on the support.

    Args:
        k, support, tail: As in TopKReverseKL.
        beta: The teacher's share of the mixture; 0 is KL(teacher || student), 1 is KL(student || teacher).
    """

    value_estimand = "JSD_beta(student_K, teacher_K)"
    gradient_estimand = "grad JSD_beta(student_K, teacher_K)"

    def __init__(
        self,
        k: int = 50,
        support: Literal["teacher", "student"] = "teacher",
        tail: Literal["drop", "bucket", "sampled"] = "drop",
        beta: float = 0.5,
    ) -> None:
        super().__init__(k, support, tail)
        if not 0 <= beta <= 1:
            raise ConfigError(
                f"divergence.beta is {beta}: it is the teacher's share of the mixture, in [0, 1]. Published: 0.5."
            )
        self.beta = beta

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.top_k_jsd(*self.compared(student, tokens), self.beta, **self.choice(tokens))
