"""SDAR: self-distilled agentic RL (arXiv 2605.15155). GRPO plus a gated lift towards a teacher that sees skills.

    L = L_GRPO + lambda * mean_t g_t (teacher_logp_t - student_logp_t),   g_t = sigmoid(beta * gap_t), detached

The lift is not a KL: with a constant gate its expected gradient is zero, so the gate *is* the signal. Defaults are the
published setting (lambda 0.01, beta 5, live teacher). The paper's code puts the skills before the first token of the chat
template and cuts them to the student's prompt limit; here they stand in a system message and are never cut.
"""

from jsonargparse import lazy_instance
from torch import Tensor

from sdar.divergences import Lift
from sdar.errors import ConfigError
from sdar.functional import TokenStats, log_prob_gap
from sdar.gates import GapGate
from sdar.parts import Divergence, Gate, PrivilegedView, Retriever, Teacher
from sdar.registry import register
from sdar.strategies.grpo import GRPO
from sdar.teachers import LiveTeacher, SkillView
from sdar.types import Batch, TokenView


@register("sdar")
class SDAR(GRPO):
    """GRPO and gated token-level distillation from the same model seeing more.

    Value:    that of GRPO plus distill_coef * gate * divergence.
    Gradient: that of GRPO plus, with the lift, -distill_coef * E[gate * grad student_logp]: for small gaps (distill_coef * beta / 4)
              times the gradient of KL(student || teacher); zero if the gate is constant.

    Args:
        retriever: Skills for the teacher.
        gate: How much each token trusts the teacher.
        divergence: Per-token objective.
        teacher: Whose weights.
        view: Where the skills stand in the teacher's prompt.
        distill_coef: Weight of the distillation term (lambda).
    """

    def __init__(
        self,
        retriever: Retriever,
        gate: Gate = lazy_instance(GapGate, beta=5.0),
        divergence: Divergence = lazy_instance(Lift),
        teacher: Teacher = lazy_instance(LiveTeacher),
        view: PrivilegedView = lazy_instance(SkillView),
        distill_coef: float = 0.01,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if distill_coef <= 0:
            raise ConfigError(
                f"model.distill_coef is {distill_coef}: the teacher would have no influence. Use GRPO to ask for that."
            )
        self.retriever, self.gate, self.divergence = retriever, gate, divergence
        self.teacher, self.view = teacher, view
        self.distill_coef = distill_coef

    def token_loss(self, batch: Batch, now: TokenStats) -> Tensor:
        tokens = self.view_of_tokens(batch, now)
        gate = self.gate(tokens)
        self.watch(tokens, gate, batch)
        return super().token_loss(batch, now) + self.distill_coef * gate * self.divergence(now.logp, tokens)

    def view_of_tokens(self, batch: Batch, now: TokenStats) -> TokenView:
        """What gate and divergence may know, detached."""
        student_logp = now.logp.detach()
        return TokenView(
            student_logp=student_logp,
            teacher_logp=batch.teacher_logp,
            gap=log_prob_gap(batch.teacher_logp, student_logp),
            entropy=now.entropy.detach(),
            response_mask=batch.response_mask,
            turn_ids=batch.turn_ids,
            advantages=batch.advantages,
            vocab_size=self.scorer.vocab_size,
        )

    def watch(self, tokens: TokenView, gate: Tensor, batch: Batch) -> None:
        """Log what explains the distillation term."""
        mask = tokens.response_mask
        self.tally.tokens("gate/mean", gate, mask)
        self.tally.tokens("gate/active_share", gate > 0.5, mask)
        self.tally.tokens("gap/mean", tokens.gap, mask)
        self.tally.tokens("gap/abs", tokens.gap.abs(), mask)
        self.tally.tokens("gap/negative_share", tokens.gap < 0, mask)
        extra = (batch.teacher_attention_mask.sum(1) - batch.attention_mask.sum(1)).float()
        self.tally.add("teacher/extra_tokens", float(extra.sum()), len(extra))
        self.tally.add("teacher/context_tokens", float(batch.teacher_attention_mask.sum()), len(extra))
        self.tally.add("teacher/empty_share", float((extra == 0).sum()), len(extra))
