"""Skill-GRPO: GRPO whose policy itself sees the skills in training (a baseline of arXiv 2605.15155).

Validation plays every panel twice: without skills (the published row) and with them (its starred row).
"""

from jsonargparse import lazy_instance

from sdar.parts import PrivilegedView, Retriever
from sdar.registry import register
from sdar.strategies.grpo import GRPO
from sdar.teachers import SkillView


@register("skill_grpo")
class SkillGRPO(GRPO):
    """GRPO with skills in the policy's own training prompts.

    Args:
        retriever: Skills for the policy.
        view: Where they stand in the prompt.
    """

    student_sees_skills = True

    def __init__(self, retriever: Retriever, view: PrivilegedView = lazy_instance(SkillView), **kwargs):
        super().__init__(**kwargs)
        self.retriever, self.view = retriever, view
