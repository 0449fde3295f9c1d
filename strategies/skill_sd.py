"""Skill-SD: skill-conditioned self-distillation with an importance-weighted k3 (arXiv 2604.10674).

    L = L_GRPO + lambda(iteration) * mean_t rho_t (exp(gap_t) - 1 - gap_t),   rho_t = student / old, with a gradient

Because rho carries a gradient this is the reverse KL, on- and off-policy; k3 alone would follow the forward KL. The teacher is
the student itself, scored anew in every iteration, with skills. The warm-down that the port in the SDAR code computes, logs and
does not apply is here a schedule: ``distill_coef: {class_path: LinearSchedule, ...}``.
"""

from jsonargparse import lazy_instance

from sdar.distillation import Distillation
from sdar.divergences import ImportanceK3
from sdar.parts import PrivilegedView, Retriever, Schedule, Teacher
from sdar.registry import register
from sdar.strategies.grpo import GRPO
from sdar.teachers import LiveTeacher, SkillView


@register("skill_sd")
class SkillSD(Distillation, GRPO):
    """GRPO and the importance-weighted k3 to a teacher with skills.

    Value:    that of GRPO plus distill_coef * KL(student || teacher).
    Gradient: that of GRPO plus distill_coef * grad KL(student || teacher), also after the first step of a rollout.

    Args:
        retriever: Skills for the teacher.
        teacher: Whose weights.
        view: Where the skills stand in the teacher's prompt.
        distill_coef: Weight of the distillation term; a number or a schedule (warm-down).
    """

    def __init__(
        self,
        retriever: Retriever,
        teacher: Teacher = lazy_instance(LiveTeacher),
        view: PrivilegedView = lazy_instance(SkillView),
        distill_coef: float | Schedule = 0.001,
        **kwargs,
    ):
        super().__init__(
            retriever=retriever, teacher=teacher, view=view, distill_coef=distill_coef, divergence=ImportanceK3(), **kwargs
        )
