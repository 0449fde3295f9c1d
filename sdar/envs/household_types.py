"""A household task as plain data: rooms, objects, a goal and the sentence that asks for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

from sdar.errors import SdarError

FLAGS = ("cleanable", "coolable", "heatable", "isreceptacleobject", "pickupable", "sliceable", "toggleable")
"""What an object can be or have done to it."""

STATES = ("clean", "cool", "hot", "on", "sliced")
"""What an object can become."""

GENERATED, ORIGINAL = 1, 2
"""The two editions of the rules. They differ in two answers: where no receptacle stands, `look` names all receptacles of the
room in a generated game and nothing in the original's; the answer to `help` begins with an empty line in a generated game."""


class GameError(SdarError, ValueError):
    """A game that cannot be played as described, or a request for one that cannot exist."""


@dataclass(frozen=True)
class Family:
    """What a task family asks for: how many objects, in which state (and the appliance for it), in a receptacle or
    under a lamp."""

    count: int = 1
    state: str = ""
    flag: str = ""
    tool: str = ""
    place: str = "receptacle"


FAMILIES: Mapping[str, Family] = {
    "pick_and_place_simple": Family(),
    "look_at_obj_in_light": Family(place="lamp"),
    "pick_clean_then_place_in_recep": Family(state="clean", flag="cleanable", tool="sinkbasin"),
    "pick_heat_then_place_in_recep": Family(state="hot", flag="heatable", tool="microwave"),
    "pick_cool_then_place_in_recep": Family(state="cool", flag="coolable", tool="fridge"),
    "pick_two_obj_and_place": Family(count=2),
}
"""The six task families of ALFRED (arXiv:1912.01734) that ALFWorld plays."""


@dataclass(frozen=True, order=True)
class Receptacle:
    """A place that holds objects. `type` is lower case ("sinkbasin"), `name` what the player reads ("sinkbasin 1").

    A receptacle with an empty `location` is nowhere: it is not seen and cannot be reached.
    """

    id: str
    type: str
    name: str
    location: str
    openable: bool = False
    opened: bool = False


@dataclass(frozen=True, order=True)
class Item:
    """An object. `receptacles`, `locations` and `inside` say where it is at the start, `states` what it has become before.

    `locations` is a fact of its own in the original: it decides what a knife reaches and what `look` tells. `inside`
    names the movable receptacles (a bowl) that it lies in; play never changes that.
    """

    id: str
    types: tuple[str, ...]
    name: str
    flags: tuple[str, ...] = ("pickupable",)
    receptacles: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Goal:
    """What wins: `receptacle_type` for the families that place, `toggle_type` for the one that looks under a lamp."""

    family: str
    object_type: str
    receptacle_type: str = ""
    toggle_type: str = ""


@dataclass(frozen=True)
class Game:
    """One household task as plain data, the same for every player.

    Lists in observations follow the order of ids, as in the original, so `receptacles` and `objects` are kept sorted by
    id. `task` is the sentence without "Your task is to: " and without its full stop. `facts` are what a player cannot
    see but a teacher may know: object type -> receptacle type where it usually lies, or several (`either`), likeliest first.
    `rules` is GENERATED or ORIGINAL.
    """

    receptacles: tuple[Receptacle, ...]
    objects: tuple[Item, ...]
    can_contain: tuple[tuple[str, str], ...]
    start: str
    task: str
    goal: Goal
    facts: Mapping[str, str] = field(default_factory=dict)
    rules: int = GENERATED

    def __post_init__(self) -> None:
        settle = object.__setattr__
        settle(self, "receptacles", tuple(sorted(self.receptacles, key=attrgetter("id"))))
        settle(self, "objects", tuple(sorted(map(_sorted_item, self.objects), key=attrgetter("id"))))
        settle(self, "can_contain", tuple(sorted(set(self.can_contain))))
        settle(self, "facts", dict(self.facts))
        _check(self)

    def __hash__(self) -> int:
        return int(self.hash()[:15], 16)

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def family(self) -> str:
        """One of the six names in `FAMILIES`."""
        return self.goal.family

    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the same on every machine."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self._canonical().encode("utf-8")).hexdigest()

    def _canonical(self) -> str:
        data = {
            "format": 1,  # the hashes of panels and tests depend on it
            "task": self.task,
            "goal": asdict(self.goal),
            "start": self.start,
            "receptacles": [_plain(receptacle) for receptacle in self.receptacles],
            "objects": [_plain(item) for item in self.objects],
            "can_contain": [list(pair) for pair in self.can_contain],
            "facts": dict(self.facts),
        } | ({} if self.rules == GENERATED else {"rules": self.rules})
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def either(places: Sequence[str]) -> str:
    """Receptacle types as a fact names them: "shelf, desk or bed"."""
    return " or ".join(filter(None, (", ".join(places[:-1]), *places[-1:])))


def places_in(fact: str) -> list[str]:
    """The receptacle types that a fact names."""
    return re.split(", | or ", fact)


def _plain(part: Receptacle | Item) -> dict[str, Any]:
    """Fields as JSON-able data; those that games of the first edition did not have only where they say something."""
    data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(part).items()}
    return {k: v for k, v in data.items() if v or k not in ("opened", "states")}


def _sorted_item(item: Item) -> Item:
    tuples = ("types", "flags", "receptacles", "locations", "inside", "states")
    parts: dict[str, Any] = {name: tuple(sorted(set(getattr(item, name)))) for name in tuples if len(getattr(item, name)) > 1}
    changed = {name: value for name, value in parts.items() if value != getattr(item, name)}
    return replace(item, **changed) if changed else item


def _check(game: Game) -> None:
    if game.rules not in (GENERATED, ORIGINAL):
        raise GameError(f"The game has rules {game.rules!r}, which nobody plays. Use {GENERATED} (generated) or {ORIGINAL}.")
    if game.family not in FAMILIES:
        raise GameError(f"The goal's family is {game.family!r}, which no rule plays. Use one of {', '.join(FAMILIES)}.")
    everything: list[Receptacle | Item] = [*game.receptacles, *game.objects]
    for part in ("id", "name"):
        values = [getattr(thing, part) for thing in everything]
        twice = sorted({value for value in values if values.count(value) > 1}) if len(set(values)) < len(values) else []
        if twice:
            raise GameError(
                f"{len(twice)} {part}s occur more than once ({', '.join(twice[:5])}), so commands would be ambiguous. "
                f"Give every receptacle and object its own {part}."
            )
    receptacles, objects = {r.id for r in game.receptacles}, {o.id for o in game.objects}
    for item in game.objects:
        unknown = sorted(
            {
                *(name for name in item.receptacles if name not in receptacles),
                *(name for name in item.inside if name not in objects),
                *(name for name in item.flags if name not in FLAGS),
                *(name for name in item.states if name not in STATES),
            }
        )
        if unknown:
            raise GameError(
                f"Object {item.id!r} refers to {', '.join(unknown)}, which the game does not have. "
                f"Name receptacles and objects by id, flags among {', '.join(FLAGS)} and states among {', '.join(STATES)}."
            )
    goal = game.goal
    needed = "toggle_type" if FAMILIES[goal.family].place == "lamp" else "receptacle_type"
    if not getattr(goal, needed):
        raise GameError(f"The goal of family {goal.family} has no {needed}, so nothing could win. Set {needed}.")
