"""Skill-GRPO: GRPO whose policy itself sees the skills in training (a baseline of arXiv 2605.15155)."""

from sdar.registry import register
from sdar.strategies.grpo import GRPO
from sdar.strategies.skill_prompt import SkillsInPrompt


@register("skill_grpo")
class SkillGRPO(SkillsInPrompt, GRPO):
    """GRPO with skills in the policy's own training prompts."""
