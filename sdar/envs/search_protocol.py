"""How a question and its passages are told, and how a search or an answer is read from a response.

The world's actions are ``search[query]`` and ``answer[text]``. A ``~`` before them says that the response did not keep the
protocol's format; the action counts all the same, and `SearchEnv` may reward the format (``reward: em_format``).
"""

import re
from collections.abc import Callable, Sequence

from sdar.envs.search_scoring import keeps_format
from sdar.errors import ConfigError
from sdar.parts import Protocol
from sdar.registry import register
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
    flags = re.DOTALL

    def acts(self, text: str) -> re.Match[str] | None:
        """The pair of tags in `heard` that acts: group 1 is its name, group 2 its content."""
        return re.search(r"<(search|answer)>(.*?)</\1>", heard(text), self.flags)

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
        before = text if act is None else text[: act.start()]
        found = [("think", *m.span(1)) for m in re.finditer(r"<think>(.*?)</think>", before, self.flags)]
        return found if act is None else [*found, (act[1].lower(), *act.span(2))]


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
        past = "".join(f"\n{said}\n{seen}" for said, seen in _exchanges(history, observation, _tagged))
        return [{"role": "user", "content": f"{self.instruction}\nQuestion: {task.instruction}{past}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        act = self.acts(text)
        if act is None:
            return UNREADABLE, False
        return write_action(act[1], act[2], keeps_format(heard(text))), True


@register("search_window")
class SearchWindowProtocol(TagProtocol):
    """verl-agent's rules for search (arXiv 2505.10978): the question, the last exchanges, what to do now; made for the turn
    layout.

    A search goes before an answer; tags in any case; what follows the first end of either is not read. A response that holds
    both kinds of tag, or one of them twice, acts but is invalid.

    Args:
        instruction: What every prompt ends with; by default our own words.
    """

    flags = re.DOTALL | re.IGNORECASE
    INSTRUCTION = (
        "It is your turn. Reason first, inside <think> </think> tags. Then do exactly one of two things: if you lack "
        "knowledge, query the search engine with <search> your query </search>; if you are sure, give the final answer with "
        "<answer> </answer>, nothing but the answer itself, for example <answer>Lisbon</answer>."
    )

    def __init__(self, instruction: str | None = None):
        _check_instruction(instruction)
        self.instruction = self.INSTRUCTION if instruction is None else instruction

    def acts(self, text: str) -> re.Match[str] | None:
        pairs = (re.search(rf"<({kind})>(.*?)</{kind}>", heard(text), self.flags) for kind in ("search", "answer"))
        return next((pair for pair in pairs if pair is not None), None)

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return f"{observation}\n\n{self.instruction}"

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        told = [f"You are an expert agent that answers a question step by step.\nYour question: {task.instruction}"]
        if history:
            steps = (f"Step {n}: {said} {seen}" for n, (said, seen) in enumerate(_exchanges(history, observation, _tagged), 1))
            told += [f"Your last {len(history)} steps, with what the search engine returned:", *steps]
        return [{"role": "user", "content": "\n".join(told) + f"\n\n{self.instruction}"}]

    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        act = self.acts(text)
        if act is None:
            return UNREADABLE, False
        searches, answers = (len(re.findall(f"<{kind}>", text, re.IGNORECASE)) for kind in ("search", "answer"))
        return write_action(act[1].lower(), act[2], keeps_format(heard(text).lower())), searches + answers == 1


@register("search_compact")
class CompactSearchProtocol(Protocol):
    """For small policies: the world's own sentences as user turns, ``search: query`` or ``answer: text`` as the response."""

    tags = ("search", "answer")

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return observation

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        past = "".join(f"\n> {said}\n{seen}" for said, seen in _exchanges(history, observation, self.write))
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
