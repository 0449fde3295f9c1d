r"""How problems with a code tool are told to a model: Hermes tool calls, or plain Markdown fences.

Both write the same actions: ``python`` and a line break and the code, or ``answer`` and a line break and the answer. A response
with a call is a call, whatever else it says; one without is the final answer, from its last ``\boxed{}``. A program that reads
standard input is called by ``python <``, the input as JSON, a line break and the code.
"""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from sdar.envs.math_checking import boxed_span, last_boxed
from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.reading import parse_json
from sdar.registry import part_name, register
from sdar.tags import first_pair
from sdar.types import Task

PYTHON, ANSWER = "python\n", "answer\n"
READING = "python < "
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "code_interpreter",
        "description": "Run Python code and return what it prints. sympy and numpy are installed; there is no network.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The code to run."}},
            "required": ["code"],
        },
    },
}


def call_of(code: str, stdin: str = "") -> str:
    """The action that runs a program."""
    return f"{READING}{json.dumps(stdin)}\n{code}" if stdin else PYTHON + code


def program_of(action: str) -> tuple[str, str] | None:
    """Code and standard input of an action that runs a program; None for any other."""
    if action.startswith(PYTHON):
        return action.removeprefix(PYTHON), ""
    head, line, code = action.partition("\n")
    if not (head.startswith(READING) and line):
        return None
    try:
        stdin = parse_json(head.removeprefix(READING), "input", ValueError)
    except ValueError:
        return None
    return (code, stdin) if isinstance(stdin, str) else None


FINAL = "Put the final answer into \\boxed{}."


class ToolProtocol(Protocol):
    """Responses that call the tool, or give the final answer."""

    tags: tuple[str, ...] = ("think", "code", "answer")
    action_form = "programs"

    def __init__(self, instructions: str):
        self.instructions = instructions

    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        system = self.system()
        told = [{"role": "system", "content": system}] if system else []
        return [
            *told,
            {"role": "user", "content": f"{observation}\n\n{self.instructions}" if self.instructions else observation},
        ]

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        told = [*(seen for seen, _ in history), observation]
        if told[0] == task.instruction:
            told.pop(0)
            past = zip([action for _, action in history], told, strict=True)
        else:  # what the oldest observation answered is outside the window
            past = zip(["", *(action for _, action in history)], told, strict=True)
        messages = self.opening(task, task.instruction, admissible)
        steps = [
            f"{self.write(action)}\n{self.answer(seen, ())}" if action else self.answer(seen, ()) for action, seen in past
        ]
        messages[-1]["content"] = "\n".join([messages[-1]["content"], *steps])
        return messages

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        call = self.call(text)
        if call is not None:
            program = self.code(text[slice(*call)])
            return ("", False) if program is None else (call_of(*program), True)
        found = self.final(text)
        return ANSWER + text[slice(*found)] if found else ANSWER, found is not None

    def write(self, action: str) -> str:
        program = program_of(action)
        return self.write_answer(action.removeprefix(ANSWER)) if program is None else self.write_call(*program)

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        thought = first_pair(text, "think")
        found = [("think", thought.first, thought.end)] if thought else []
        if call := self.call(text):
            found.append(("code", *call))
        elif answer := self.final(text):
            found.append(("answer", *answer))
        return sorted(found, key=lambda span: span[1:])

    def system(self) -> str:
        """The system message; empty for none."""
        return ""

    @abstractmethod
    def call(self, text: str) -> tuple[int, int] | None:
        """Where the content of the first tool call stands."""

    @abstractmethod
    def code(self, call: str) -> tuple[str, str] | None:
        """Code and standard input in the content of a call; None when it is malformed."""

    @abstractmethod
    def write_call(self, code: str, stdin: str = "") -> str:
        """A response that calls the tool."""

    def final(self, text: str) -> tuple[int, int] | None:
        """Where the final answer stands in a response without a call."""
        return final_answer(text)

    def write_answer(self, answer: str) -> str:
        """A response that gives the final answer."""
        boxed = f"\\boxed{{{answer}}}"
        return boxed if last_boxed(boxed) == answer else f"Answer: {answer}"


@register("hermes_math")
class HermesMathProtocol(ToolProtocol):
    """Tool calls as JSON in ``<tool_call>``, results in ``<tool_response>``: the format of Hermes, Qwen and SOD.

    Args:
        instructions: What follows the problem.
        tools: Who tells of the tool and of the form of a call: ``text``, a system message of its own, or ``template``, the policy's
            chat template (``apply_chat_template(tools=...)``, as SOD has it); it must write calls in ``<tool_call>``.
    """

    TOOL, READS, ROLE = TOOL, False, "solve mathematical problems"

    def __init__(
        self,
        instructions: str = f"Reason step by step; use the tool where it helps. {FINAL}",
        tools: Literal["text", "template"] = "text",
    ):
        if not instructions:
            raise ConfigError("protocol.instructions is empty: nothing would say how to answer. Name \\boxed{} at least.")
        if tools not in ("text", "template"):
            raise ConfigError(
                f"protocol.tools is {tools!r}: a tool is told of in a text or by the chat template. Use text or template."
            )
        super().__init__(instructions)
        self.tools = (self.TOOL,) if tools == "template" else ()

    def system(self) -> str:
        if self.tools:
            return ""
        return (
            f"You {self.ROLE} and may call a function.\n\n<tools>\n"
            + json.dumps(self.TOOL)
            + '\n</tools>\n\nA call is a JSON object with "name" and "arguments" between <tool_call> and </tool_call>:\n'
            + self.write_call("print(2**10)")
            + "\nThe result comes back between <tool_response> and </tool_response>."
        )

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        inside = observation.replace("</tool_response>", "< /tool_response>")  # what a program prints cannot end its result
        return f"<tool_response>\n{inside}\n</tool_response>"

    def call(self, text: str) -> tuple[int, int] | None:
        start = text.find("<tool_call>")
        end = text.find("</tool_call>", start)
        return None if start < 0 else (start + len("<tool_call>"), end if end >= 0 else len(text))

    def code(self, call: str) -> tuple[str, str] | None:
        try:
            told = parse_json(call, "call", ValueError, strict=False)
            arguments = told["arguments"]
            arguments = (
                parse_json(arguments, "arguments", ValueError, strict=False) if isinstance(arguments, str) else arguments
            )
            code = arguments["code"] if told["name"] == self.TOOL["function"]["name"] else None
            stdin = arguments.get("stdin") or "" if self.READS else ""
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return (code, stdin) if isinstance(code, str) and isinstance(stdin, str) else None

    def write_call(self, code: str, stdin: str = "") -> str:
        arguments = {"code": code, "stdin": stdin} if stdin else {"code": code}
        told = json.dumps({"name": self.TOOL["function"]["name"], "arguments": arguments})
        return f"<tool_call>\n{told.replace('</tool_call>', chr(92) + 'u003c/tool_call>')}\n</tool_call>"


@register("fenced_math")
class FencedMathProtocol(ToolProtocol):
    """Code in a ```python fence, results in an ```output fence: short enough for small policies.

    Args:
        instructions: What follows the problem; empty for nothing.
    """

    FENCE = re.compile(r"(?m)^(`{3,})(?:python|py)[ \t]*\n(.*?)(?:\n\1[ \t]*$|\Z)", re.DOTALL)

    def __init__(self, instructions: str = f"Write a ```python block to compute. {FINAL}"):
        super().__init__(instructions)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        ticks = _fence(observation)
        return f"{ticks}output\n{observation}\n{ticks}"

    def call(self, text: str) -> tuple[int, int] | None:
        found = self.FENCE.search(text)
        return found.span(2) if found else None

    def code(self, call: str) -> tuple[str, str] | None:
        return call, ""

    def write_call(self, code: str, stdin: str = "") -> str:
        return fenced(code)


@register("text_math")
class TextMathProtocol(ToolProtocol):
    r"""No tool: nothing tells of one, and the first response is the final answer, from its last ``\boxed{}``. Programs in it are not run.
    For mathematics and science.

    Args:
        instructions: What follows the problem.
    """

    tags = ("think", "answer")

    def __init__(self, instructions: str = f"Reason step by step. {FINAL}"):
        super().__init__(instructions)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def call(self, text: str) -> tuple[int, int] | None:
        return None

    def code(self, call: str) -> tuple[str, str] | None:
        return None

    def write_call(self, code: str, stdin: str = "") -> str:
        raise ConfigError(
            f"data.protocol is {part_name(self)}, which has no tool, and a demonstration calls one. Use a protocol with the tool, "
            "or demonstrations that only answer."
        )


def final_answer(text: str) -> tuple[int, int] | None:
    r"""Where the final answer stands: in the last ``\boxed{}`` behind the thoughts, else behind the last ``Answer:``."""
    thought = text.rfind("</think>") + 1
    boxed = boxed_span(text[thought:])
    if boxed is not None:
        return thought + boxed[0], thought + boxed[1]
    answers = [_rest_of_line(text, thought + said.end()) for said in _ANSWER.finditer(text[thought:])]
    return next((span for span in reversed(answers) if span is not None), None)


_ANSWER = re.compile(r"(?im)^[ \t*]*answer[ \t]*:")
_MARKS = " \t*"


def _rest_of_line(text: str, start: int) -> tuple[int, int] | None:
    """Where the text from `start` to the end of the line stands, without space and asterisks around it; an asterisk counts where there
    is nothing else."""
    end = text.find("\n", start)
    line = text[start:] if end < 0 else text[start:end]
    lead = len(line) - len(line.lstrip(_MARKS))
    if lead == len(line) or line[lead].isspace():
        lead = line.rfind("*", 0, lead)
    if lead < 0:
        return None
    return start + lead, start + max(lead + 1, len(line.rstrip(_MARKS)))


def fenced(code: str) -> str:
    """A program in a Markdown fence."""
    ticks = _fence(code)
    return f"{ticks}python\n{code}\n{ticks}"


def _fence(text: str) -> str:
    """More backticks than stand together anywhere in the text; at least three."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
