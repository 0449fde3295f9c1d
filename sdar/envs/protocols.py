"""How a world is told to a model and how its words become an action."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.registry import did_you_mean, register
from sdar.types import History, Task


class Templates:
    """The texts of a protocol, with slots in braces that are filled when a prompt is made.

    Args:
        defaults: Name -> text.
        given: Name -> the user's text, or None for the default.
        slots: Names of the slots that the texts may use.
    """

    def __init__(self, defaults: Mapping[str, str], given: Mapping[str, str | None], slots: Sequence[str]):
        self.texts = {name: str(text if given[name] is None else given[name]) for name, text in defaults.items()}
        self.used: set[str] = set()
        """Slots that the texts have."""
        for name, text in self.texts.items():
            try:
                used = [slot for _, slot, form, sign in string.Formatter().parse(text) if slot is not None]
            except ValueError as error:
                raise ConfigError(
                    f"protocol.{name} is no template ({error}): braces stand for slots; write {{{{ and }}}} for the signs."
                ) from error
            for slot in used:
                if slot not in slots:
                    raise ConfigError(
                        f"protocol.{name} has a slot {{{slot}}}: nothing fills it.{did_you_mean(slot, slots)} "
                        f"Slots: {', '.join(slots)}."
                    )
            self.used |= set(used)

    def fill(self, name: str, **values: object) -> str:
        return self.texts[name].format(**values)


@register("compact")
class CompactProtocol(Protocol):
    """For small policies: the world's own sentences as user turns, a bare command as the response.

    A response is valid when the world understands the command; nothing lists the admissible ones.

    Args:
        prompt: Template of a turn's prompt, with the slots reminder, task, history, observation and admissible; by default
            what was seen and done, then what is seen now.
        exchange: Template of a past turn in it: observation, action.
    """

    tags = ("action",)
    TEMPLATES: Mapping[str, str] = {"prompt": "{reminder}{history}{observation}", "exchange": "{observation}\n> {action}\n"}
    SLOTS = ("reminder", "task", "history", "observation", "action", "admissible")

    def __init__(self, prompt: str | None = None, exchange: str | None = None):
        self.templates = Templates(self.TEMPLATES, {"prompt": prompt, "exchange": exchange}, self.SLOTS)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        fill = self.templates.fill
        past = "".join(
            fill("exchange", observation=seen, action=action, task="", reminder="", history="", admissible="")
            for seen, action in history
        )
        reminder = "" if task.instruction in past + observation else f"Your task is to: {task.instruction}.\n"
        text = fill(
            "prompt", reminder=reminder, task=task.instruction, history=past, observation=observation, action="",
            admissible=listed(admissible),
        )  # fmt: skip
        return [{"role": "user", "content": text}]

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

    The texts can be replaced by templates. Slots: role, task, reminder (the task, where the prompt does not name it otherwise),
    observation, admissible (a list without `help`), choice (the sentence with that list, or nothing), history, shown (turns in
    the history), taken (turns before this one), step (this turn's number), situation (the `situation` text), format (what a
    response looks like); in `exchange` also number and action.

    Args:
        role: First sentence of every prompt.
        list_admissible: Name the admissible commands in each prompt.
        first: Template of the first prompt.
        later: Template of the other prompts of the turn layout.
        situation: Template of what is seen and can be done now, which ends every prompt.
        exchange: Template of a past turn in the history.
    """

    tags = ("think", "action")
    TAGS = (
        "Think step by step about the situation inside <think> </think> tags. Then choose one admissible action for this step "
        "and give it inside <action> </action> tags."
    )
    TEMPLATES: Mapping[str, str] = {
        "first": "{role}{reminder}\n{situation}",
        "later": "{role}{reminder}\nThe last {shown} observations and actions were:\n{history}{situation}",
        "situation": "You now see: {observation}{choice}\n\n{format}",
        "exchange": "[Observation: {observation!r}, Action: {action!r}]\n",
    }
    SLOTS = (
        "role", "task", "reminder", "observation", "admissible", "choice", "history", "shown", "taken", "step", "situation",
        "format", "number", "action",
    )  # fmt: skip

    def __init__(
        self,
        role: str = "You are an expert agent acting in a household.",
        list_admissible: bool = True,
        first: str | None = None,
        later: str | None = None,
        situation: str | None = None,
        exchange: str | None = None,
    ):
        if not role.strip():
            raise ConfigError(
                "protocol.role is empty: the prompt would begin without saying what the model is. Give one sentence."
            )
        self.role = role
        self.list_admissible = list_admissible
        given = {"first": first, "later": later, "situation": situation, "exchange": exchange}
        self.templates = Templates(self.TEMPLATES, given, self.SLOTS)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return self._fill("situation", observation=observation, admissible=admissible)

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        taken = steps_taken(history, sorted({"number", "step", "taken"} & self.templates.used))
        told: dict[str, Any] = {"task": task.instruction, "taken": taken, "step": taken + 1, "shown": len(history)}
        past = [
            self._fill("exchange", number=number, observation=seen, action=action, **told)
            for number, (seen, action) in enumerate(history, taken - len(history) + 1)
        ]
        known = not history and task.instruction in observation
        told |= {
            "reminder": "" if known else f" Your task is to: {task.instruction}",
            "history": "".join(past),
            "observation": observation,
            "admissible": admissible,
        }
        situation = self._fill("situation", **told)
        text = self._fill("later" if history else "first", **told, situation=situation)
        return [{"role": "user", "content": text}]

    def _fill(self, template: str, **values: Any) -> str:
        commands = listed(values.pop("admissible", ()))
        choice = f"\nYour admissible actions: [{commands}]." if self.list_admissible else ""
        filled = dict.fromkeys(self.SLOTS, "") | {"role": self.role, "format": self.TAGS}
        return self.templates.fill(template, **filled | {"admissible": commands, "choice": choice} | values)

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        lowered = text.lower()
        action = re.search(r"<action>(.*?)</action>", lowered, re.DOTALL)
        thought = "<think>" in text and "</think>" in text
        foreign = re.search(r"[\u4e00-\u9fff]", text)
        valid = action is not None and thought and foreign is None
        return (action[1].strip() if action else lowered[-30:].strip()), valid

    def write(self, action: str) -> str:
        return f"<think>The next step is to {action}.</think><action>{action}</action>"


@register("think_act_counted")
class CountedThinkActProtocol(ThinkActProtocol):
    """As ``think_act``, and every prompt says how many steps were taken before and numbers those it shows, as verl-agent's does.

    The number comes from the `History` that it is given.
    """

    TEMPLATES: Mapping[str, str] = {
        **ThinkActProtocol.TEMPLATES,
        "later": "{role}{reminder}\nYou have taken {taken} step(s) before this one. The last {shown}, with what you saw and did:\n"
        "{history}This is step {step}. {situation}",
        "exchange": "[Observation {number}: {observation!r}, Action {number}: {action!r}]\n",
    }


def steps_taken(history: Sequence[tuple[str, str]], counts: Sequence[str]) -> int:
    """How many turns there were altogether; `counts` names the slots that tell it."""
    if history and counts and not isinstance(history, History):
        raise ConfigError(
            f"the protocol's templates count steps ({', '.join(counts)}), but it was given {len(history)} exchanges without the "
            "number of all: pass a History. Use ThinkActProtocol's own templates where nobody counts."
        )
    return history.taken if isinstance(history, History) else len(history)


def listed(admissible: Sequence[str]) -> str:
    """The commands in quotation marks, without `help`."""
    return ", ".join(f"'{action}'" for action in admissible if action != "help")
