"""TCOD: temporal curriculum on-policy distillation (arXiv 2604.24005). OPD over a growing part of the episode.

Front to back, an episode is over after k turns; back to front, a demonstration plays all but its last k turns and the student goes
on from there. k grows with the iterations. What was replayed carries no loss.
"""

from jsonargparse import lazy_instance

from sdar.curricula import FrontToBack
from sdar.parts import EpisodeController, PolicyLoss, Teacher
from sdar.policy_losses import PPO
from sdar.registry import register
from sdar.strategies.opd import OPD


@register("tcod")
class TCOD(OPD):
    """On-policy distillation whose episodes grow from the front or from the back.

    Value:    that of the clipped surrogate of the gap.
    Gradient: coef * grad KL(student || teacher) on the student's turns, on-policy.

    Args:
        teacher: Usually ExternalTeacher.
        controller: FrontToBack or BackToFront.
        policy_loss: The surrogate.
    """

    def __init__(
        self,
        teacher: Teacher,
        controller: EpisodeController = lazy_instance(FrontToBack),
        policy_loss: PolicyLoss = lazy_instance(PPO),
        **kwargs,
    ):
        super().__init__(teacher=teacher, policy_loss=policy_loss, **kwargs)
        self.controller = controller
