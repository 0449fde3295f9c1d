"""OPD: on-policy distillation from a stronger model, as Thinking Machines' tinker-cookbook does it.

    A_t = coef * (teacher_logp_t - old_logp_t),   L = -mean_t ratio_t A_t

The reward is not used unless an advantage estimator is given, whose credit is then added. Each token by itself: the gradient is that
of the reverse KL in each place, not of the KL between whole episodes, which is that of ``gap_discount: 1``. Tinker sums over tokens
and divides by the sampler's own probabilities; here it is a mean, and the probabilities were computed again before the update.
"""

from jsonargparse import lazy_instance

from sdar.credit import NoAdvantage
from sdar.distillation import Taught
from sdar.parts import AdvantageEstimator, PolicyLoss, PrivilegedView, Schedule, Teacher, TurnWeight
from sdar.policy_losses import ImportanceSampling
from sdar.registry import register
from sdar.shaping import GapAdvantage
from sdar.strategies.grpo import GRPO
from sdar.teachers import PlainView
from sdar.types import Batch, Episode


@register("opd")
class OPD(Taught, GRPO):
    """The gap to an external teacher as a reward for every token.

    Value:    minus the importance-weighted gap.
    Gradient: coef * grad KL(student || teacher), on-policy: in each place by itself, of whole episodes with ``gap_discount: 1``.

    Args:
        teacher: Usually ExternalTeacher.
        view: What the teacher may see; by default what the student sees.
        coef: Weight of the gap; a number or a schedule.
        turn_weight: Weight of each turn; None: all alike.
        gap_clip: Largest absolute gap, in nats; None: no bound.
        mask_first: Tokens whose first occurrence in a row gets no gap; the end-of-turn token is always among them unless this is empty.
            The sampled-token baseline of arXiv 2603.25562 is ``["<", think]`` with ``policy_loss: PPO`` and no clip.
        advantage: Credit from rewards, added to the gap; none by default.
        policy_loss: The surrogate.
        kl_coef: Weight of k3 against the initial policy.
        entropy_coef: Weight of the entropy bonus.
        gap_discount: What the gap of the episode's next token counts for a token, from 0 (token level) to 1 (sequence level).
        gap_span: Only gaps of tokens inside this tag of the protocol, such as ``code``, the tool calls of mathematics; None: all.
    """

    def __init__(
        self,
        teacher: Teacher,
        view: PrivilegedView = lazy_instance(PlainView),
        coef: float | Schedule = 1.0,
        turn_weight: TurnWeight | None = None,
        gap_clip: float | None = None,
        mask_first: list[str] = [],  # noqa: B006
        advantage: AdvantageEstimator = lazy_instance(NoAdvantage),
        policy_loss: PolicyLoss = lazy_instance(ImportanceSampling),
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        gap_discount: float = 0.0,
        gap_span: str | None = None,
        **kwargs,
    ):
        super().__init__(
            teacher=teacher,
            view=view,
            transforms=[GapAdvantage(coef, turn_weight, gap_clip, gap_discount, gap_span)],
            advantage=advantage,
            policy_loss=policy_loss,
            kl_coef=kl_coef,
            entropy_coef=entropy_coef,
            **kwargs,
        )
        self.mask_first = mask_first

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        if self.hears_teacher():
            masked = self.first_of_each(batch, self.mask_first)
            batch.teacher_logp = batch.teacher_logp.where(~masked, batch.old_logp)  # no gap, nor in a turn's weight
        return super().weigh(batch, episodes)
