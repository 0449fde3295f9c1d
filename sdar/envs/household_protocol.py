"""How a household is told in few words: what small models read in half of the tokens."""

import re
from collections.abc import Sequence
from itertools import pairwise

from sdar.envs.protocols import CompactProtocol
from sdar.registry import register
from sdar.types import Task

_WELCOME = "-= Welcome to TextWorld, ALFRED! =-\n\n"
_ROOM = re.compile(r"You are in the middle of a room\. Looking quickly around you, you see (a [^.]+)\.")
_CAME = re.compile(r"You (?:arrive at|open the) ([^.]+)\. (?=(?:On the|The) \1(?:,| is ))")
_SEEN = re.compile(
    r"(?:On the (?P<on>[^.]+), you see|The (?P<inside>[^.]+) is open\. In it, you see) (?P<what>nothing|a [^.]+)\."
)
_CLOSED = re.compile(r"The ([^.]+) is closed\.")


@register("brief")
class BriefProtocol(CompactProtocol):
    """For small policies in the household: a bare command as the response, as in `CompactProtocol`, and the world's sentences shortened.

    A room is told as "Room: bed 1-2, drawer 1-4, desk 1.", a place as "desk 1: book 2, pen 1." or "drawer 3: closed."; every name that a
    command needs is there. All other sentences stay.
    """

    world_kind = "household"

    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        return super().answer(brief(observation), admissible)

    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        return super().window(task, [(brief(seen), action) for seen, action in history], brief(observation), admissible)


def brief(observation: str) -> str:
    """An observation of the household in few words; text of other worlds as it is."""
    text = _ROOM.sub(lambda found: f"Room: {_ranges(_names(found[1]))}.", observation.removeprefix(_WELCOME))
    text = _SEEN.sub(
        lambda found: f"{found['on'] or found['inside']}: {', '.join(_names(found['what']))}.", _CAME.sub("", text)
    )
    return _CLOSED.sub(r"\1: closed.", text).replace("\n\n", "\n")


def _names(listed: str) -> list[str]:
    """What a sentence lists: "a bed 2, a bed 1, and a desk 1"."""
    return [name.removeprefix("and ").removeprefix("a ") for name in listed.split(", ")]


def _ranges(names: list[str]) -> str:
    """Names of a kind together, "drawer 1-4" where their numbers leave nothing out."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        kind, _, number = name.rpartition(" ")
        if not number.isdigit():
            return ", ".join(names)
        kinds.setdefault(kind, []).append(int(number))
    told = []
    for kind, found in kinds.items():
        numbers = sorted(found)
        whole = len(numbers) > 1 and all(b == a + 1 for a, b in pairwise(numbers))
        told += [f"{kind} {numbers[0]}-{numbers[-1]}"] if whole else [f"{kind} {number}" for number in numbers]
    return ", ".join(told)
