"""SOD: step-wise on-policy distillation (arXiv 2605.07725). A turn far from the teacher teaches less than the first.

    d_k = mean_{t in turn k} |gap_t|,   w_1 = 1,   w_k = min( (d_1 + eps) / (d_k + eps), 1 + delta )
    A_t = A_GRPO + coef * w_{k(t)} * gap_t,   clipped policy gradient (0.2 / 0.28), no KL, no entropy bonus

Its baselines are the same with ``turn_weight: null``: OPD; with the live model and ``SolutionView`` or ``HintView`` as well, OPSD
with the answer or with a hint (whose prompts the paper does not give: ours).
"""

from jsonargparse import lazy_instance

from sdar.distillation import Taught
from sdar.parts import PolicyLoss, PrivilegedView, Schedule, Teacher, TurnWeight
from sdar.policy_losses import PPO
from sdar.registry import register
from sdar.shaping import GapAdvantage
from sdar.strategies.grpo import GRPO
from sdar.teachers import PlainView
from sdar.turn_weights import StepwiseWeight


@register("sod")
class SOD(Taught, GRPO):
    """GRPO plus the gap to an external teacher, weighted turn by turn.

    Value:    that of the clipped surrogate.
    Gradient: -E[A_GRPO grad student_logp] + coef * w * grad KL(student || teacher), on-policy.

    Args:
        teacher: Usually ExternalTeacher.
        view: What the teacher may see; by default what the student sees.
        coef: Weight of the gap; a number or a schedule.
        turn_weight: Weight of each turn; None: all alike.
        policy_loss: The surrogate.
        kl_coef: Weight of k3 against the initial policy.
        entropy_coef: Weight of the entropy bonus.
    """

    def __init__(
        self,
        teacher: Teacher,
        view: PrivilegedView = lazy_instance(PlainView),
        coef: float | Schedule = 1.0,
        turn_weight: TurnWeight | None = lazy_instance(StepwiseWeight),
        policy_loss: PolicyLoss = lazy_instance(PPO, clip_low=0.2, clip_high=0.28, dual_clip=None),
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        **kwargs,
    ):
        super().__init__(
            teacher=teacher,
            view=view,
            transforms=[GapAdvantage(coef, turn_weight)],
            policy_loss=policy_loss,
            kl_coef=kl_coef,
            entropy_coef=entropy_coef,
            **kwargs,
        )
