"""Where privileged text stands in a prompt."""

from typing import Literal

from sdar.parts import PrivilegedView
from sdar.registry import register


@register("skills")
class SkillView(PrivilegedView):
    """Skills in a system message, before everything else; nothing of the conversation changes and nothing is cut.

    Args:
        placement: ``system``: a system message (appended to the one that is there; before the first user text where the chat
            template has no system role). ``instruction``: before the first user text.
        heading: Line above the skills; empty for none.
    """

    def __init__(self, placement: Literal["system", "instruction"] = "system", heading: str = ""):
        self.placement = placement
        self.heading = heading

    def messages(self, messages: list[dict[str, str]], text: str, has_system_role: bool) -> list[dict[str, str]]:
        if not text:
            return messages
        told = f"{self.heading}\n{text}" if self.heading else text
        first = messages[0]
        if self.placement == "system" and has_system_role:
            if first["role"] == "system":
                return [{"role": "system", "content": f"{first['content']}\n\n{told}"}, *messages[1:]]
            return [{"role": "system", "content": told}, *messages]
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        joined = {"role": "user", "content": f"{told}\n\n{messages[at]['content']}"}
        return [*messages[:at], joined, *messages[at + 1 :]]
