"""Whose weights the teacher has."""

from torch import nn

from sdar.parts import Teacher
from sdar.registry import register


@register("live")
class LiveTeacher(Teacher):
    """The student's own weights as they are when a rollout is scored (the published setting of SDAR, arXiv 2605.15155)."""

    def model(self, live: nn.Module, initial: nn.Module | None) -> nn.Module:
        return live


@register("initial")
class InitialTeacher(Teacher):
    """The weights that training started from, frozen: a student cannot drag its teacher down."""

    needs_initial = True

    def model(self, live: nn.Module, initial: nn.Module | None) -> nn.Module:
        assert initial is not None, "AgentModule keeps a frozen copy whenever needs_initial is set"
        return initial
