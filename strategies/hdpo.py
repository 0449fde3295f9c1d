"""HDPO: distillation where reinforcement learning has nothing to go by (arXiv 2603.23871).

    cliffs = tasks that every attempt failed;   there, the teacher plays once more with the solution in its prompt
    L = L_GRPO + lambda * mean over the tokens of its *successful* episodes of JSD( student(. | s_t), teacher(. | s_t, solution) )

Only what was verified to succeed is learned from, and only where the group's rewards are flat. The privileged episodes carry no
policy gradient. The divergence puts all tokens outside of the teacher's 64 likeliest into one bucket; the paper renormalises and
adds their mass times ln 2.
"""

from jsonargparse import lazy_instance
from torch import Tensor

from sdar.distillation import Distillation
from sdar.divergences import TopKJensenShannon
from sdar.parts import Divergence, PrivilegedView, Schedule, Teacher
from sdar.registry import register
from sdar.rollout import Request
from sdar.strategies.grpo import GRPO
from sdar.teachers import LiveTeacher, SolutionView
from sdar.types import Batch, Episode


@register("hdpo")
class HDPO(Distillation, GRPO):
    """GRPO, and distillation on verified privileged rollouts of the tasks that every attempt failed.

    Value and gradient: those of GRPO plus distill_coef * JSD on the teacher's 64 likeliest tokens and a tail, exact.

    Args:
        divergence: Per-token objective.
        teacher: Whose weights play and judge: LiveTeacher (the paper's drifting teacher) or InitialTeacher.
        view: What the teacher may see.
        distill_coef: Weight of the distillation term; a number or a schedule (published: 0.01 drifting, 0.1 frozen).
        privileged_attempts: How often each such task is played with the solution; at most as often as without.
    """

    def __init__(
        self,
        divergence: Divergence = lazy_instance(TopKJensenShannon, k=64, tail="bucket"),
        teacher: Teacher = lazy_instance(LiveTeacher),
        view: PrivilegedView = lazy_instance(SolutionView),
        distill_coef: float | Schedule = 0.01,
        privileged_attempts: int = 4,
        **kwargs,
    ):
        super().__init__(divergence=divergence, teacher=teacher, view=view, distill_coef=distill_coef, **kwargs)
        self.privileged_attempts = privileged_attempts

    def extra_requests(self, groups: list[list[Episode]]) -> list[Request]:
        cliffs = [g for g in groups if not any(e.success for e in g)]
        self.metrics.add("hdpo/cliff_share", len(cliffs), len(groups))
        if not self.hears_teacher():
            return []
        return self.privileged_requests(cliffs, self.privileged_attempts, extra=True)

    def extra_attempts(self, group_size: int) -> int:
        return min(group_size, self.privileged_attempts)

    def chosen(self, batch: Batch, episodes: list[Episode]) -> Tensor:
        verified = batch.extra & (batch.success > 0)
        self.metrics.add("hdpo/verified_share", float(verified.sum()), max(float(batch.extra.sum()), 1.0))
        return super().chosen(batch, episodes) & verified[:, None]
