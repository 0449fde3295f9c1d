"""Skill-Prompt: no training; the policy acts with skills in its prompt (a baseline of arXiv 2605.15155)."""

from jsonargparse import lazy_instance

from sdar.errors import ConfigError
from sdar.module import AgentModule
from sdar.parts import PrivilegedView, Retriever
from sdar.registry import register
from sdar.teachers import SkillView


class SkillsInPrompt(AgentModule):
    """The policy's own prompts hold skills.

    Validation plays every panel twice: without skills (the published row) and with them (its starred row).

    Args:
        retriever: Skills for the policy.
        view: Where they stand in the prompt.
    """

    student_sees_skills = True

    def __init__(self, retriever: Retriever, view: PrivilegedView = lazy_instance(SkillView), **kwargs):
        super().__init__(**kwargs)
        self.retriever, self.view = retriever, view


@register("skill_prompt")
class SkillPrompt(SkillsInPrompt):
    """Validation only: every panel without and with the skills."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            raise ConfigError(
                "SkillPrompt does not train: it is the policy as it is, with skills in its prompt. Use `sdar validate`, or SkillGRPO."
            )
        super().setup(stage)
