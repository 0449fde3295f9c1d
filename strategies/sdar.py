"""SDAR: self-distilled agentic RL (arXiv 2605.15155). GRPO plus a gated lift towards a teacher that sees skills.

    L = L_GRPO + lambda * mean_t g_t (teacher_logp_t - student_logp_t),   g_t = sigmoid(beta * gap_t), detached

The lift is not a KL: with a constant gate its expected gradient is zero, so the gate *is* the signal. Defaults are the
published setting (lambda 0.01, beta 5, live teacher). The paper's code puts the skills before the first token of the chat
template (``SkillView(placement="template")``) and cuts them to the student's prompt limit; here they stand in a system message
and are never cut.
"""

from jsonargparse import lazy_instance

from sdar.distillation import Distillation
from sdar.divergences import Lift
from sdar.gates import GapGate
from sdar.parts import Divergence, Gate, PrivilegedView, Retriever, Schedule, Teacher
from sdar.registry import register
from sdar.strategies.grpo import GRPO
from sdar.teachers import LiveTeacher, SkillView


@register("sdar")
class SDAR(Distillation, GRPO):
    """GRPO and gated token-level distillation from the same model seeing more.

    Value:    that of GRPO plus distill_coef * gate * divergence.
    Gradient: that of GRPO plus, with the lift, -distill_coef * E[gate * grad student_logp]: for small gaps (distill_coef * beta / 4)
              times the gradient of KL(student || teacher); zero if the gate is constant.

    Args:
        retriever: Skills for the teacher; null with a view that tells something else.
        gate: How much each token trusts the teacher.
        divergence: Per-token objective.
        teacher: Whose weights.
        view: What the teacher may see, and where it stands in its prompt.
        distill_coef: Weight of the distillation term (lambda); a number or a schedule.
    """

    def __init__(
        self,
        retriever: Retriever | None,
        gate: Gate = lazy_instance(GapGate, beta=5.0),
        divergence: Divergence = lazy_instance(Lift),
        teacher: Teacher = lazy_instance(LiveTeacher),
        view: PrivilegedView = lazy_instance(SkillView),
        distill_coef: float | Schedule = 0.01,
        **kwargs,
    ):
        super().__init__(
            retriever=retriever,
            gate=gate,
            divergence=divergence,
            teacher=teacher,
            view=view,
            distill_coef=distill_coef,
            **kwargs,
        )
