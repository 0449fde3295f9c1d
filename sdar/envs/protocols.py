"""How a world is told to a model and how its words become an action."""

import re
from collections.abc import Sequence

from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.registry import register
from sdar.types import Task


@register("compact")
class CompactProtocol(Protocol):
    """For small policies: the world's own sentences as user turns, a bare command as the response.

    A response is valid when the world understands the command; nothing lists the admissible ones.
    """

    tags = ("action",)

    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        return self.window(task, (), observation, admissible)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        past = "".join(f"{seen}\n> {action}\n" for seen, action in history)
        reminder = "" if task.instruction in past + observation else f"Your task is to: {task.instruction}.\n"
        return [{"role": "user", "content": f"{reminder}{past}{observation}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        return text.strip(), True

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The whole response without the white space at its ends, as `parse` reads it."""
        first, end = len(text) - len(text.lstrip()), len(text.rstrip())
        return [("action", first, end)] if first < end else []


@register("think_act")
class ThinkActProtocol(Protocol):
    """Reasoning in ``<think>``, one command in ``<action>``, admissible commands listed; the rules of verl-agent.

    A response is valid when both pairs of tags are there and it holds no CJK character; without an action the last 30
    characters are sent. Whether the command is admissible is the world's business, not a rule of validity.

    Args:
        role: First sentence of every prompt.
        list_admissible: Name the admissible commands in each prompt.
    """

    tags = ("think", "action")
    TAGS = (
        "Think step by step about the situation inside <think> </think> tags. Then choose one admissible action for this step "
        "and give it inside <action> </action> tags."
    )

    def __init__(self, role: str = "You are an expert agent acting in a household.", list_admissible: bool = True):
        if not role.strip():
            raise ConfigError(
                "protocol.role is empty: the prompt would begin without saying what the model is. Give one sentence."
            )
        self.role = role
        self.list_admissible = list_admissible

    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        return self.window(task, (), observation, admissible)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        listed = ", ".join(f"'{a}'" for a in admissible if a != "help")
        choice = f"\nYour admissible actions: [{listed}]." if self.list_admissible else ""
        return f"You now see: {observation}{choice}\n\n{self.TAGS}"

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        known = not history and task.instruction in observation
        reminder = "" if known else f" Your task is to: {task.instruction}"
        past = "".join(f"[Observation: {seen!r}, Action: {action!r}]\n" for seen, action in history)
        if history:
            past = f"The last {len(history)} observations and actions were:\n{past}"
        return [{"role": "user", "content": f"{self.role}{reminder}\n{past}{self.answer(observation, admissible)}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        lowered = text.lower()
        action = re.search(r"<action>(.*?)</action>", lowered, re.DOTALL)
        thought = "<think>" in text and "</think>" in text
        foreign = re.search(r"[\u4e00-\u9fff]", text)
        valid = action is not None and thought and foreign is None
        return (action[1].strip() if action else lowered[-30:].strip()), valid

    def write(self, action: str) -> str:
        return f"<think>The next step is to {action}.</think><action>{action}</action>"
