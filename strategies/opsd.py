"""OPSD: on-policy self-distillation from the same model with the solution (arXiv 2601.18734).

    L = mean_t JSD_beta( student(. | s_t), teacher(. | s_t, solution) ) over the whole vocabulary

No reward. Defaults: beta 0.5 and the frozen initial weights, which the paper recommends; ``teacher: LiveTeacher`` and
``EMATeacher`` are its other two. What the SDAR code base calls OPSD is `GatedOPSD`.
"""

from jsonargparse import lazy_instance

from sdar.distillation import Distillation
from sdar.divergences import JensenShannon
from sdar.parts import Divergence, PrivilegedView, Teacher
from sdar.registry import register
from sdar.teachers import InitialTeacher, SolutionView


@register("opsd")
class OPSD(Distillation):
    """Full-vocabulary distillation from the same model with the solution.

    Value and gradient: JSD_beta(student, teacher), exact in every place that the student reached.

    Args:
        divergence: Per-token objective.
        teacher: Whose weights.
        view: What the teacher may see: the reference solution, or a hint.
    """

    def __init__(
        self,
        divergence: Divergence = lazy_instance(JensenShannon, beta=0.5),
        teacher: Teacher = lazy_instance(InitialTeacher),
        view: PrivilegedView = lazy_instance(SolutionView),
        **kwargs,
    ):
        super().__init__(divergence=divergence, teacher=teacher, view=view, **kwargs)
