"""A skill: a short text that tells an agent how to act, and the tasks that it is for."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from random import Random

from sdar.types import Retrieval

FACT_TEMPLATE = "The {thing} is usually in the {place}."
"""How a hidden fact of a world is told."""


@dataclass(frozen=True)
class Skill:
    """One text and the tasks that it is for."""

    id: str
    text: str
    families: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    always: bool = False


def retrieval(skills: Iterable[Skill]) -> Retrieval:
    """What a prompt gets. Neighbouring one-line facts form one paragraph; longer texts stand apart by a blank line."""
    skills = tuple(skills)
    paragraphs: list[str] = []
    for long, group in groupby(skills, key=lambda skill: "\n" in skill.text):
        texts = [skill.text for skill in group]
        paragraphs += texts if long else [" ".join(texts)]
    return Retrieval(tuple(s.id for s in skills), "\n\n".join(paragraphs))


def seeded(*words: object) -> Random:
    """A random generator that depends on `words` and on nothing else: not on the process, not on the order of calls."""
    return Random(int.from_bytes(sha256(repr(words).encode()).digest(), "big"))
