"""How questions of science are told to a model: as problems of mathematics, in words of their own."""

from typing import Literal

from sdar.envs.math_protocol import FINAL, HermesMathProtocol
from sdar.registry import register


@register("hermes_science")
class HermesScienceProtocol(HermesMathProtocol):
    r"""Tool calls and the final answer as in ``hermes_math``: an option's letter, or a result, in ``\boxed{}``. The question itself says
    which of them is asked for.

    Args:
        instructions: What follows the question.
        tools: Who tells of the tool and of the form of a call: ``text``, a system message of its own, or ``template``, the policy's
            chat template.
    """

    world_kind = "science"
    ROLE = "answer questions of science"

    def __init__(
        self,
        instructions: str = f"Reason step by step; use the tool where something is to be computed. {FINAL}",
        tools: Literal["text", "template"] = "text",
    ):
        super().__init__(instructions, tools)
