"""How a question and its passages are told, and how a search or an answer is read from a response.

The world's actions are ``search[query]`` and ``answer[text]``. A ``~`` before them says that the response did not keep the
protocol's format; the action counts all the same, and `SearchEnv` may reward the format (``reward: em_format``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdar.envs.protocols import Templates, steps_taken
from sdar.envs.search_scoring import keeps_format
from sdar.envs.verl_agent_prompts import check_alone, read_prompts
from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.quoting import hanging, unmarked
from sdar.registry import register
from sdar.tags import Pair, first_pair, pairs
from sdar.types import Task

_ACTION = re.compile(r"\s*(~?)(search|answer)\[(.*)\]\s*", re.DOTALL)
UNREADABLE = ""
"""The action of a response that holds neither a search nor an answer."""


def read_action(action: str) -> tuple[str, str, bool] | None:
    """(``search`` or ``answer``, its text, whether the response kept the format); None: it is neither."""
    found = _ACTION.fullmatch(action)
    return None if found is None else (found[2], found[3].strip(), not found[1])


def write_action(kind: str, text: str, kept: bool = True) -> str:
    return f"{'' if kept else '~'}{kind}[{text.strip()}]"


def heard(text: str) -> str:
    """A response up to its first closing search tag, else answer tag: Search-R1 and verl-agent cut there, the rest was never
    said."""
    return next((text[: text.index(tag) + len(tag)] for tag in ("</search>", "</answer>") if tag in text), text)


class TagProtocol(Protocol):
    """What the protocols with tags share: `write`, and spans that are what `parse` reads."""

    tags = ("think", "search", "answer")
    action_form = "searches"
    flags = 0

    def acts(self, text: str) -> Pair | None:
        """The pair of tags in `heard` that acts."""
        return first_pair(heard(text), "search", "answer", flags=self.flags)

    def write(self, action: str) -> str:
        read = read_action(action)
        if read is None:
            return action
        kind, text, kept = read
        thought = "I know enough to answer." if kind == "answer" else "I need to look this up."
        return f"<think>{thought}</think>\n<{kind}>{text}</{kind}>" if kept else f"<{kind}>{text}</{kind}>"

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """Thoughts before the search or answer that counts, and that one."""
        act = self.acts(text)
        before = text if act is None else text[: act.start]
        found = [("think", pair.first, pair.end) for pair in pairs(before, "think", self.flags)]
        return found if act is None else [*found, (act.tag, act.first, act.end)]


@register("search_r1")
class SearchR1Protocol(TagProtocol):
    """Search-R1's loop (arXiv 2503.09516): reasoning in ``<think>``, a query in ``<search>``, passages in ``<information>``,
    the end in ``<answer>``; made for the trajectory layout.

    The first pair of search or answer tags counts, tags in lower case; what follows its end is not read. The prompt is in our
    own words. Passages come as a user turn, where Search-R1 goes on within the assistant's.

    Args:
        instruction: What the first prompt says before the question; by default our own words.
    """

    INSTRUCTION = (
        "Answer the question below. Whenever something new has come in, first reason about it inside <think> and </think>. If "
        "you then lack a fact, ask the search engine: <search> query </search>. It answers with the passages that fit best, "
        "between <information> and </information>, and you may search as often as you need. As soon as you know enough, give "
        "the final answer alone, without an explanation, inside <answer> and </answer>, for example <answer> Lisbon </answer>."
    )

    def __init__(self, instruction: str | None = None):
        _check_instruction(instruction)
        self.instruction = self.INSTRUCTION if instruction is None else instruction

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        past = "".join(f"\n{hanging(said)}\n{hanging(seen)}" for said, seen in _exchanges(history, observation, _tagged))
        return [{"role": "user", "content": f"{self.instruction}\nQuestion: {task.instruction}{past}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        act = self.acts(text)
        if act is None:
            return UNREADABLE, False
        return write_action(act.tag, act.within(text), keeps_format(heard(text))), True


@register("search_window")
class SearchWindowProtocol(TagProtocol):
    """verl-agent's rules for search (arXiv 2505.10978): the question, the last exchanges, what to do now; made for the turn
    layout.

    A search goes before an answer; tags in any case; what follows the first end of either is not read. A response that holds
    both kinds of tag, or one of them twice, acts but is invalid.

    Templates have the slots task, history, history_lines (without the last line break), shown (exchanges in the history), taken
    (turns before this one) and instruction; `exchange` also number, said and seen.

    Args:
        instruction: What every prompt ends with; by default our own words.
        first: Template of the first prompt.
        later: Template of the other prompts.
        exchange: Template of a past exchange.
        prompts_file: verl-agent's own prompts, from ``agent_system/environments/prompts/search.py`` of a checkout: in the turn layout
            every prompt is then the one of that code, character by character. Replaces all texts above.
    """

    flags = re.IGNORECASE
    INSTRUCTION = (
        "It is your turn. Reason first, inside <think> </think> tags. Then do exactly one of two things: if you lack "
        "knowledge, query the search engine with <search> your query </search>; if you are sure, give the final answer with "
        "<answer> </answer>, nothing but the answer itself, for example <answer>Lisbon</answer>."
    )

    TEMPLATES: Mapping[str, str] = {
        "first": "You are an expert agent that answers a question step by step.\nYour question: {task}\n\n{instruction}",
        "later": "You are an expert agent that answers a question step by step.\nYour question: {task}\nYour last {shown} steps, with "
        "what the search engine returned:\n{history_lines}\n\n{instruction}",
        "exchange": "Step {number}: {said} {seen}\n",
    }
    SLOTS = ("task", "history", "history_lines", "shown", "taken", "instruction", "number", "said", "seen")

    def __init__(
        self,
        instruction: str | None = None,
        first: str | None = None,
        later: str | None = None,
        exchange: str | None = None,
        prompts_file: str | None = None,
    ):
        given = {"first": first, "later": later, "exchange": exchange}
        self.verbatim = prompts_file is not None
        if prompts_file is not None:
            check_alone(**given, instruction=instruction)
            given |= read_prompts(prompts_file, "SEARCH") | {"exchange": "Step {number}:{said} {seen}\n\n"}
        _check_instruction(instruction)
        self.instruction = self.INSTRUCTION if instruction is None else instruction
        self.templates = Templates(self.TEMPLATES, given, self.SLOTS)

    def acts(self, text: str) -> Pair | None:
        said = heard(text)
        return first_pair(said, "search", flags=self.flags) or first_pair(said, "answer", flags=self.flags)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return f"{observation}\n\n{self.instruction}"

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        taken = steps_taken(history, sorted({"number", "taken"} & self.templates.used) if self.verbatim else [])
        told: dict[str, Any] = dict.fromkeys(self.SLOTS, "") | {"task": task.instruction, "instruction": self.instruction}
        told |= {"shown": len(history), "taken": taken}
        shape = str if self.verbatim else hanging
        steps = [
            self.templates.fill("exchange", **told | {"number": number, "said": shape(said), "seen": shape(seen)})
            for number, (said, seen) in enumerate(_exchanges(history, observation, _tagged), taken - len(history) + 1)
        ]
        told |= {"history": "".join(steps), "history_lines": "".join(steps).removesuffix("\n")}
        return [{"role": "user", "content": self.templates.fill("later" if history else "first", **told)}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        act = self.acts(text)
        if act is None:
            return UNREADABLE, False
        searches, answers = (len(re.findall(f"<{kind}>", text, re.IGNORECASE)) for kind in ("search", "answer"))
        return write_action(act.tag, act.within(text), keeps_format(heard(text).lower())), searches + answers == 1


@register("search_compact")
class CompactSearchProtocol(Protocol):
    """For small policies: the world's own sentences as user turns, ``search: query`` or ``answer: text`` as the response."""

    tags = ("search", "answer")
    action_form = "searches"

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        past = "".join(
            f"\n> {hanging(said)}\n{unmarked(seen, '>')}" for said, seen in _exchanges(history, observation, self.write)
        )
        return [{"role": "user", "content": f"{task.instruction}{past}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        kind, colon, content = text.strip().partition(":")
        if not colon or kind not in self.tags:
            return UNREADABLE, False
        return write_action(kind, content), True

    def write(self, action: str) -> str:
        read = read_action(action)
        return action if read is None else f"{read[0]}: {read[1]}"

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """What follows the colon, without the white space at its ends."""
        kind, colon, content = text.partition(":")
        first = len(kind) + 1 + len(content) - len(content.lstrip())
        end = len(text.rstrip())
        return [(kind.strip(), first, end)] if colon and kind.strip() in self.tags and first < end else []


def _exchanges(history: Sequence[tuple[str, str]], observation: str, say: Callable[[str], str]) -> list[tuple[str, str]]:
    """What was said and what came back, oldest first: the history holds what had been seen *before* each action."""
    seen = [*(before for before, _ in history[1:]), observation]
    return [(say(action) or "(nothing)", after) for (_, action), after in zip(history, seen, strict=False)]


def _tagged(action: str) -> str:
    read = read_action(action)
    return action if read is None else f"<{read[0]}>{read[1]}</{read[0]}>"


def _check_instruction(instruction: str | None) -> None:
    missing = [tag for tag in ("<think>", "<search>", "<answer>") if instruction is not None and tag not in instruction]
    if missing:
        raise ConfigError(
            f"protocol.instruction does not name {', '.join(missing)}: the model would not know how to act. Name the three "
            "tags."
        )
