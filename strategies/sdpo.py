"""SDPO: self-distillation policy optimisation (arXiv 2601.20802). Feedback and siblings' successes instead of rewards.

    L = mean_t min(student / old, 2) * D( student_K(. | s_t), teacher_K(. | s_t, sibling's success or feedback) )

The teacher is a moving average of the student that reads the first success of another attempt or, if there is none, what the world
answered to this attempt's failure. D is a JSD on the student's 100 likeliest tokens with the rest in one bucket. Attempts about
which there is nothing to tell teach nothing.
"""

from jsonargparse import lazy_instance
from torch import Tensor

from sdar.distillation import Distillation
from sdar.divergences import TopKJensenShannon
from sdar.parts import Divergence, PrivilegedView, Teacher
from sdar.registry import register
from sdar.teachers import EMATeacher, FirstOf
from sdar.types import Batch, Episode


@register("sdpo")
class SDPO(Distillation):
    """Distillation from a moving average that sees what other attempts, or the world, have shown.

    Value and gradient: D on the student's likeliest tokens, exact, times the truncated ratio.

    Args:
        divergence: Per-token objective; beta 0 is the paper's alpha 0 (forward), 1 its alpha 1 (reverse).
        teacher: Whose weights.
        view: What the teacher may see.
        ratio_cap: Bound of the importance ratio.
    """

    def __init__(
        self,
        divergence: Divergence = lazy_instance(TopKJensenShannon, k=100, support="student", tail="bucket"),
        teacher: Teacher = lazy_instance(EMATeacher, rate=0.05, per="iteration"),
        view: PrivilegedView = lazy_instance(FirstOf),
        ratio_cap: float | None = 2.0,
        **kwargs,
    ):
        super().__init__(divergence=divergence, teacher=teacher, view=view, ratio_cap=ratio_cap, **kwargs)

    def chosen(self, batch: Batch, episodes: list[Episode]) -> Tensor:
        return super().chosen(batch, episodes) & batch.is_privileged[:, None]
