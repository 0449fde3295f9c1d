"""Divergences over the whole vocabulary: exact in every place, whatever token was sampled there."""

from functools import partial

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.functional.per_id import (
    PerId,
    forward_kl_term,
    jsd_term,
    reverse_kl_term,
    skew_forward_kl_term,
    skew_reverse_kl_term,
)
from sdar.parts import Divergence
from sdar.registry import register
from sdar.types import StudentTokens, TeacherSignal, TokenView


class VocabularyDivergence(Divergence):
    """A loss from both distributions as they are.

    Args:
        temperature: Divides the log-probabilities of both sides, which already are at the sampler's temperature.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ConfigError(f"divergence.temperature is {temperature}: it divides log-probabilities. Use a number above 0.")
        self.temperature = temperature

    def needs(self) -> tuple[TeacherSignal, int]:
        return TeacherSignal.FULL, 0


@register("forward")
class ForwardKL(VocabularyDivergence):
    """KL(teacher || student) over the vocabulary: covers what the teacher might say."""

    value_estimand = "KL(teacher || student)"
    gradient_estimand = "grad KL(teacher || student)"

    def per_id(self) -> PerId:
        return PerId(forward_kl_term, self.temperature)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.forward_kl(student.logits, tokens.teacher_logits, self.temperature)


@register("reverse")
class ReverseKL(VocabularyDivergence):
    """KL(student || teacher) over the vocabulary: avoids what the teacher would not say."""

    value_estimand = "KL(student || teacher)"
    gradient_estimand = "grad KL(student || teacher)"

    def per_id(self) -> PerId:
        return PerId(reverse_kl_term, self.temperature)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.reverse_kl(student.logits, tokens.teacher_logits, self.temperature)


@register("jensen_shannon")
class JensenShannon(VocabularyDivergence):
    """beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student (GKD, arXiv 2306.13649).

    Args:
        beta: The teacher's share of the mixture; 0 is KL(teacher || student), 1 is KL(student || teacher).
        temperature: Divides both sides once more.
    """

    value_estimand = "JSD_beta(student, teacher)"
    gradient_estimand = "grad JSD_beta(student, teacher)"

    def __init__(self, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if not 0 <= beta <= 1:
            raise ConfigError(
                f"divergence.beta is {beta}: it is the teacher's share of the mixture, in [0, 1]. Published: 0.5."
            )
        self.beta = beta

    def per_id(self) -> PerId:
        return PerId(partial(jsd_term, beta=self.beta), self.temperature)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.jsd(student.logits, tokens.teacher_logits, self.beta, self.temperature)


class _Skewed(VocabularyDivergence):
    def __init__(self, alpha: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        if not 0 <= alpha < 1:
            raise ConfigError(f"divergence.alpha is {alpha}: it is a share of the mixture, in [0, 1). Published: 0.1.")
        self.alpha = alpha


@register("skew_forward")
class SkewForwardKL(_Skewed):
    """KL(teacher || alpha teacher + (1 - alpha) student): a forward KL that stays bounded (DistiLLM, arXiv 2402.03898).

    Args:
        alpha: The teacher's share of what it is compared with.
        temperature: Divides both sides once more.
    """

    value_estimand = "KL(teacher || alpha teacher + (1 - alpha) student)"
    gradient_estimand = "grad KL(teacher || alpha teacher + (1 - alpha) student)"

    def per_id(self) -> PerId:
        return PerId(partial(skew_forward_kl_term, alpha=self.alpha), self.temperature)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.skew_forward_kl(student.logits, tokens.teacher_logits, self.alpha, self.temperature)


@register("skew_reverse")
class SkewReverseKL(_Skewed):
    """KL(student || alpha student + (1 - alpha) teacher): a reverse KL that stays bounded (DistiLLM, arXiv 2402.03898).

    Args:
        alpha: The student's share of what it is compared with.
        temperature: Divides both sides once more.
    """

    value_estimand = "KL(student || alpha student + (1 - alpha) teacher)"
    gradient_estimand = "grad KL(student || alpha student + (1 - alpha) teacher)"

    def per_id(self) -> PerId:
        return PerId(partial(skew_reverse_kl_term, alpha=self.alpha), self.temperature)

    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        return functional.skew_reverse_kl(student.logits, tokens.teacher_logits, self.alpha, self.temperature)
