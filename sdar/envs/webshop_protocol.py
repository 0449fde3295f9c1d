"""How WebShop is told to a language model: reasoning and one action in tags, by the rules of verl-agent."""

from collections.abc import Sequence

from sdar.envs.protocols import ThinkActProtocol, steps_taken
from sdar.envs.webshop_pages import SEPARATOR
from sdar.errors import ConfigError
from sdar.registry import register
from sdar.types import Task

_LAST_CHARACTERS = 20


@register("webshop_think_act")
class WebShopProtocol(ThinkActProtocol):
    """The page as quoted segments, admissible actions listed one a line, the task in every prompt, and with a past the numbers of its
    steps.

    What a page repeats of the instruction is left out. As in verl-agent, the past is dropped where the prompt would be longer
    than `max_chars`, and a response without an action sends its last 20 characters.

    Args:
        role: First sentence of every prompt.
        list_admissible: Name the admissible actions in each prompt.
        max_chars: Longest prompt with a past, in characters. The current page is never cut.
    """

    TAGS = (
        "Think step by step inside <think> </think> tags: what the page shows, what is still missing, and which action brings the "
        "purchase closer. Then give exactly one admissible action inside <action> </action> tags."
    )

    def __init__(
        self,
        role: str = "You are an expert shopper who works in the web shop WebShop.",
        list_admissible: bool = True,
        max_chars: int = 13_000,
    ):
        super().__init__(role, list_admissible)
        if max_chars < 1:
            raise ConfigError(f"protocol.max_chars is {max_chars}: a prompt has at least 1 character. verl-agent uses 13000.")
        self.max_chars = max_chars

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return f"The page now shows: {_quoted(observation)}.\n{self._choice(admissible)}\n{self.TAGS}"

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        page = f"The page shows: {page_text(observation, task.instruction)}.\n{self._choice(admissible)}\n{self.TAGS}"
        task_line = f"{self.role}\nYour task is to: {task.instruction}.\n"
        content = task_line + page
        if history:
            taken = steps_taken(history, ["step"])
            past = "".join(
                f"[Observation {number}: {page_text(seen, task.instruction)!r}, Action {number}: {action!r}]\n"
                for number, (seen, action) in enumerate(history, taken - len(history) + 1)
            )
            whole = (
                f"{task_line}You have taken {taken} step(s) before this one. The last {len(history)} pages and your actions on them "
                f"were:\n{past}This is step {taken + 1}. {page}"
            )
            content = whole if len(whole) <= self.max_chars else content
        return [{"role": "user", "content": content}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        action, valid = super().parse(text, admissible)
        tagged = any(tag == "action" for tag, *_ in self.spans(text))
        return (action if tagged else text.lower()[-_LAST_CHARACTERS:].strip()), valid

    def _choice(self, admissible: Sequence[str]) -> str:
        if not self.list_admissible:
            return ""
        return "Your admissible actions are:\n" + "".join(f"'{action}',\n" for action in admissible)


def page_text(observation: str, instruction: str) -> str:
    """A page of mode ``text`` as verl-agent tells it: the segments behind the instruction, quoted. Other texts as they are."""
    segments = observation.split(SEPARATOR)
    if instruction.strip() not in segments:
        return observation
    return _join(segments[segments.index(instruction.strip()) + 1 :])


def _quoted(observation: str) -> str:
    """The same where the task is not at hand: behind the heading ``Instruction:`` and what follows it."""
    segments = observation.split(SEPARATOR)
    return _join(segments[segments.index("Instruction:") + 2 :]) if "Instruction:" in segments else observation


def _join(segments: Sequence[str]) -> str:
    return SEPARATOR.join(f"'{segment}'" for segment in segments)
