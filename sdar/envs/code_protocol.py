"""How programming problems are told to a model: the tool is that of mathematics, the final answer is a program."""

import re
from typing import Any, Literal

from sdar.envs.math_protocol import ANSWER, TOOL, FencedMathProtocol, HermesMathProtocol, TextMathProtocol, fenced
from sdar.registry import register
from sdar.tags import first_pair

FINAL = "Give the final program, all of it, in one ```python block."
FENCE = re.compile(r"(?m)^(`{3,})[ \t]*(python3?|py)?[ \t]*\r?\n(.*?)(?:\n?^\1[ \t]*$|\Z)", re.DOTALL | re.IGNORECASE)


PROGRAM_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL["function"]["name"],
        "description": "Run a Python program and return what it prints. There is no network.",
        "parameters": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "The program to run."},
                "stdin": {"type": "string", "description": "What it reads from standard input."},
            },
            "required": ["code"],
        },
    },
}


@register("hermes_code")
class HermesCodeProtocol(HermesMathProtocol):
    """Tool calls as in ``hermes_math``, where a program may be given standard input; the last fenced program behind the thoughts is the
    final one. A fence that says python goes before one that says nothing.

    Args:
        instructions: What follows the problem.
        tools: Who tells of the tool and of the form of a call: ``text``, a system message of its own, or ``template``, the policy's
            chat template.
    """

    world_kind = "programming"
    READS, ROLE = True, "write programs in Python"
    TOOL = PROGRAM_TOOL

    def __init__(
        self,
        instructions: str = f"Reason step by step; run programs where it helps. {FINAL}",
        tools: Literal["text", "template"] = "text",
    ):
        super().__init__(instructions, tools)

    def final(self, text: str) -> tuple[int, int] | None:
        return last_fence(text)

    def write_answer(self, answer: str) -> str:
        return fenced(answer)


@register("fenced_code")
class FencedCodeProtocol(FencedMathProtocol):
    """Code in a ```python fence is run, the final program stands between ``<answer>`` and ``</answer>``: short enough for small policies.

    Args:
        instructions: What follows the problem; empty for nothing.
    """

    world_kind = "programming"

    def __init__(
        self,
        instructions: str = "Write a ```python block to run it. Put the final program between <answer> and </answer>.",
    ):
        super().__init__(instructions)

    def call(self, text: str) -> tuple[int, int] | None:
        return None if self.final(text) else super().call(text)

    def final(self, text: str) -> tuple[int, int] | None:
        thought = text.rfind("</think>") + 1
        pair = first_pair(text[thought:], "answer")
        if pair is None:
            return None
        first, end = thought + pair.first, thought + pair.end
        if inner := last_fence(text[first:end]):
            return first + inner[0], first + inner[1]
        content = text[first:end]
        first += len(content) - len(content.lstrip("\r\n"))
        return first, max(first, first + len(content.strip("\r\n")))

    def write_answer(self, answer: str) -> str:
        plain = f"<answer>\n{answer}\n</answer>"
        return plain if self.parse(plain, ())[0] == ANSWER + answer else f"<answer>\n{fenced(answer)}\n</answer>"


@register("text_code")
class TextCodeProtocol(TextMathProtocol):
    """No tool: nothing tells of one, and the last fenced program of the first response behind the thoughts is the final one.

    Args:
        instructions: What follows the problem.
    """

    world_kind = "programming"

    def __init__(self, instructions: str = f"Reason step by step. {FINAL}"):
        super().__init__(instructions)

    def final(self, text: str) -> tuple[int, int] | None:
        return last_fence(text)

    def write_answer(self, answer: str) -> str:
        return fenced(answer)


def last_fence(text: str) -> tuple[int, int] | None:
    """Where the content of the last fence behind the thoughts stands, of those that say python where there is one."""
    thought = text.rfind("</think>") + 1
    found = list(FENCE.finditer(text, thought))
    named = [fence for fence in found if fence[2]] or found
    return named[-1].span(3) if named else None
