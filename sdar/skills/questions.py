"""What a writer of skills is asked, and what is taken of its answers."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdar.chat_endpoint import NoAnswerError
from sdar.errors import ConfigError
from sdar.paths import resolve
from sdar.reading import LimitedDecoder, read_yaml
from sdar.skills.stored import StoredEpisode, record, spread

RULE = ("title", "principle", "when_to_apply")
MISTAKE = ("description", "why_it_happens", "how_to_avoid")
SUMMARY = ("success_analysis", "mistake_analysis", "golden_workflow")
FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "skillrl": {
        "general": ("families", "successes", "failures"),
        "family": ("family", "successes", "failures"),
        "mistakes": ("failures",),
    },
    "skill_sd": {"episode": ("outcome", "record")},
}
"""Style -> prompts -> what each of them is filled with."""
LONGEST = 2000
"""Characters of a field: a skill is short, and a model that repeats itself is not."""
MOST_TRIED = 300
"""Brackets of an answer that begin nothing, after which nobody looks further: a model may say the same one for ever."""
IN_GENERAL, IN_MISTAKES = 5, 15
"""Episodes of each outcome that a family brings to the general rules, and failures that the mistakes are made of, as in SkillRL."""


@dataclass(frozen=True)
class Question:
    """One request."""

    name: str
    """What it is about, for people."""
    text: str
    fields: tuple[str, ...]
    """Of each object in its answer."""
    family: str = ""
    """The kind of tasks that it is about; empty: all."""

    def read(self, answer: str) -> tuple[list[dict[str, str]], int]:
        """The objects in an answer that have all fields, and how many were left out: for want of one, or for the first one's being that of
        an earlier object.

        Raises:
            NoAnswerError: there is none.
        """
        objects = found_objects(answer)
        items: dict[str, dict[str, str]] = {}
        for item in filter(None, map(self._item, objects)):
            items.setdefault(item[self.fields[0]].casefold(), item)
        if not items:
            said = f"{len(objects)} objects, none with {', '.join(self.fields)}" if objects else "no JSON object"
            raise NoAnswerError(f"the answer holds {said}")
        return [*items.values()], len(objects) - len(items)

    def _item(self, told: Mapping[str, Any]) -> dict[str, str] | None:
        item = {field: " ".join(str(told[field]).split()) for field in self.fields if isinstance(told.get(field), str)}
        whole = len(item) == len(self.fields) and all(0 < len(text) <= LONGEST for text in item.values())
        return item if whole and "".join(item.values()).isprintable() else None


def found_objects(answer: str) -> list[dict[str, Any]]:
    """The JSON objects of the longest list in an answer, or its last object; models like to think and to talk before."""
    text = answer.rpartition("</think>")[2]
    lists: list[list[Any]] = []
    objects: list[dict[str, Any]] = []
    place, attempts = 0, 0
    while (
        attempts < MOST_TRIED
        and (place := min((p for p in (text.find("[", place), text.find("{", place)) if p >= 0), default=-1)) >= 0
    ):
        try:
            value, place = LimitedDecoder().raw_decode(text, place)
        except ValueError:
            place, attempts = place + 1, attempts + 1
            continue
        (lists if isinstance(value, list) else objects).append(value)
    longest = [item for item in max(lists, key=len, default=[]) if isinstance(item, dict)]
    return longest or objects[-1:]


def read_prompts(path: str, style: str) -> dict[str, str]:
    """The prompts of a style.

    Raises:
        ConfigError: one is missing, leaves out what it is filled with, or holds other fields.
    """
    file = Path(resolve(path))
    told = read_yaml(file, ConfigError)
    prompts = told.get(style) if isinstance(told, dict) else None
    for name, fields in FIELDS[style].items():
        text = prompts.get(name) if isinstance(prompts, dict) else None
        if not isinstance(text, str):
            raise ConfigError(f"{path} has no text {style}.{name}. Write it as in conf/skills/prompts.yaml.")
        try:
            held = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        except ValueError as error:
            raise ConfigError(f"{path}: {style}.{name} has a lone brace ({error}). Double braces that are no field.") from None
        if held != set(fields):
            raise ConfigError(
                f"{path}: {style}.{name} holds the fields {', '.join(sorted(held)) or 'none'}; it is filled with {', '.join(fields)}. "
                "Hold these; other braces are doubled."
            )
    assert isinstance(prompts, dict)
    return {name: str(prompts[name]) for name in FIELDS[style]}


def questions(
    style: str, prompts: Mapping[str, str], episodes: Sequence[StoredEpisode], per_family: int, sees: str, most: int
) -> list[Question]:
    """Everything that is asked of these episodes.

    Args:
        per_family: Most successes, and most failures, of one kind of task in a question about it (skillrl), or with a skill of their
            own (skill_sd).
        sees: ``response`` or ``action``: what is told of each turn.
        most: Characters of an episode.
    """
    families: dict[str, dict[bool, list[StoredEpisode]]] = {}
    for episode in episodes:
        families.setdefault(episode.family, {True: [], False: []})[episode.success].append(episode)

    def records(chosen: Sequence[StoredEpisode]) -> str:
        told = (f"{episode.family}:\n{record(episode, sees, most)}" for episode in chosen)
        return "\n\n".join(f"Attempt {k}, {text}" for k, text in enumerate(told, 1)) or "(none)"

    if style == "skill_sd":
        return [
            Question(
                f"{episode.task} ({'success' if success else 'failure'})",
                prompts["episode"].format(
                    outcome="reached the goal" if success else "did not reach the goal", record=record(episode, sees, most)
                ),
                SUMMARY,
                family,
            )
            for family, by_outcome in families.items()
            for success in (True, False)
            for episode in spread(by_outcome[success], per_family)
        ]
    shown = {s: [e for by in families.values() for e in spread(by[s], min(per_family, IN_GENERAL))] for s in (True, False)}
    told = {"successes": records(shown[True]), "failures": records(shown[False])}
    asked = [Question("general rules", prompts["general"].format(families=", ".join(families), **told), RULE)]
    for family, by in families.items():
        told = {"successes": records(spread(by[True], per_family)), "failures": records(spread(by[False], per_family))}
        asked.append(Question(f"rules for {family}", prompts["family"].format(family=family, **told), RULE, family))
    if failures := spread((e for by in families.values() for e in by[False]), IN_MISTAKES):
        asked.append(Question("mistakes", prompts["mistakes"].format(failures=records(failures)), MISTAKE))
    return asked
