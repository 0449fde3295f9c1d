"""Seeded household games in the manner of ALFRED (arXiv:1912.01734): rooms, objects, tasks and hidden habits.

A game depends on its arguments alone, on every machine and Python version. Rooms, what fits where, and what can be done
to which object are tables of our own, close to ALFRED's; unlike in ALFRED's scenes, no two receptacles share a location.

Hidden habits (`usual`): in one world each object type has a receptacle type where it usually lies. `world_facts` draws
them; a game made with them follows them with probability `usual_share` per object and records those of its task in
`Game.facts`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sdar.envs.household_types import FAMILIES, Game, GameError, Goal, Item, Receptacle

__all__ = ["FAMILY_ROOMS", "OBJECTS", "OPENABLE", "ROOMS", "Kind", "make_game", "world_facts"]

T = TypeVar("T")

MIN_RECEPTACLES = 6
"""The fewest receptacles of a room: what a task needs (at most three) and as many to be wrong about."""

ROOMS: Mapping[str, Mapping[str, int]] = {
    "kitchen": {
        "cabinet": 9, "cart": 1, "coffeemachine": 1, "countertop": 3, "diningtable": 2, "drawer": 8, "fridge": 1,
        "garbagecan": 1, "microwave": 1, "shelf": 3, "sidetable": 1, "sinkbasin": 1, "stoveburner": 4, "toaster": 1,
    },
    "livingroom": {
        "armchair": 2, "cabinet": 4, "cart": 1, "coffeetable": 2, "desk": 1, "diningtable": 1, "drawer": 6, "dresser": 1,
        "garbagecan": 1, "ottoman": 1, "safe": 1, "shelf": 5, "sidetable": 3, "sofa": 2, "tvstand": 1,
    },
    "bedroom": {
        "armchair": 1, "bed": 1, "cabinet": 4, "coffeetable": 1, "desk": 2, "drawer": 8, "dresser": 1, "garbagecan": 1,
        "laundryhamper": 1, "ottoman": 1, "safe": 1, "shelf": 6, "sidetable": 2, "sofa": 1, "tvstand": 1,
    },
    "bathroom": {
        "bathtubbasin": 1, "cabinet": 6, "cart": 1, "countertop": 2, "drawer": 6, "dresser": 1, "garbagecan": 1,
        "handtowelholder": 2, "laundryhamper": 1, "shelf": 4, "sidetable": 1, "sinkbasin": 2, "toilet": 1,
        "toiletpaperhanger": 1, "towelholder": 1,
    },
}  # fmt: skip
"""Room -> receptacle type -> how many a full room has."""

OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})
"""Receptacle types that are closed at the start."""

FAMILY_ROOMS: Mapping[str, tuple[str, ...]] = {
    "pick_and_place_simple": ("kitchen", "livingroom", "bedroom", "bathroom"),
    "look_at_obj_in_light": ("livingroom", "bedroom"),
    "pick_clean_then_place_in_recep": ("kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "pick_two_obj_and_place": ("kitchen", "livingroom", "bedroom", "bathroom"),
}
"""Rooms in which each task family is possible."""


@dataclass(frozen=True)
class Kind:
    """What is true of a type of object: rooms that have it, what can be done to it, receptacle types that can hold it."""

    rooms: tuple[str, ...]
    flags: tuple[str, ...]
    holders: frozenset[str]


def _kind(rooms: str, flags: str, *holders: str) -> Kind:
    return Kind(tuple(rooms.split()), tuple(sorted(flags.split())), frozenset(" ".join(holders).split()))


_FLAT = "cart coffeetable countertop desk diningtable dresser shelf sidetable tvstand"
_STORED = "cabinet drawer"
_SEATS = "armchair bed ottoman sofa"
_WET = "bathtubbasin sinkbasin"
_LOW = "garbagecan"
_CARRY = "pickupable"
_BOWL = "pickupable isreceptacleobject"
_HOLDS_DRINK = "pickupable isreceptacleobject cleanable coolable heatable"
_FOOD = "pickupable cleanable coolable"
_COOKED = "pickupable cleanable coolable heatable"

OBJECTS: Mapping[str, Kind] = {
    "alarmclock": _kind("bedroom livingroom", _CARRY, _FLAT, "drawer"),
    "apple": _kind("kitchen", _COOKED + " sliceable", _FLAT, _LOW, "fridge microwave sinkbasin"),
    "baseballbat": _kind("bedroom", _CARRY, _FLAT, "bed laundryhamper armchair sofa"),
    "basketball": _kind("bedroom livingroom", _CARRY, "armchair bed desk dresser ottoman sofa laundryhamper garbagecan shelf"),
    "book": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, _SEATS),
    "bowl": _kind("kitchen livingroom", _BOWL + " cleanable coolable", _FLAT, "cabinet fridge microwave sinkbasin"),
    "box": _kind("livingroom bedroom", _BOWL, _FLAT, _SEATS),
    "bread": _kind("kitchen", "pickupable coolable heatable sliceable", _FLAT, _STORED, _LOW, "fridge microwave toaster"),
    "butterknife": _kind("kitchen", _CARRY + " cleanable", _FLAT, _STORED, "sinkbasin"),
    "candle": _kind("bathroom livingroom", _CARRY, _FLAT, _STORED, "bathtubbasin toilet"),
    "cd": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, _LOW, "bed safe"),
    "cellphone": _kind("bedroom livingroom kitchen", _CARRY, _FLAT, _STORED, _SEATS, "safe"),
    "cloth": _kind("bathroom bedroom kitchen", _CARRY + " cleanable", _FLAT, _STORED, _WET, "bed laundryhamper toilet"),
    "creditcard": _kind("bedroom livingroom kitchen", _CARRY, _FLAT, _STORED, _SEATS, "safe"),
    "cup": _kind("kitchen bathroom", _HOLDS_DRINK, _FLAT, "cabinet fridge microwave sinkbasin"),
    "dishsponge": _kind("kitchen bathroom", _CARRY + " cleanable", _FLAT, _STORED, _WET, _LOW, "toilet"),
    "egg": _kind("kitchen", _COOKED, _FLAT, _LOW, "fridge microwave sinkbasin"),
    "fork": _kind("kitchen", _CARRY + " cleanable", _FLAT, "drawer sinkbasin cabinet"),
    "glassbottle": _kind("kitchen", _CARRY + " cleanable coolable", _FLAT, _LOW, "cabinet fridge sinkbasin"),
    "handtowel": _kind("bathroom", _CARRY, _FLAT, _STORED, _WET, "handtowelholder laundryhamper toilet"),
    "kettle": _kind("kitchen", _CARRY + " cleanable", _FLAT, "cabinet sinkbasin stoveburner"),
    "keychain": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, _SEATS, "safe"),
    "knife": _kind("kitchen", _CARRY + " cleanable", _FLAT, "cabinet drawer sinkbasin"),
    "ladle": _kind("kitchen", _CARRY + " cleanable", _FLAT, _STORED, "sinkbasin stoveburner"),
    "laptop": _kind("bedroom livingroom", _CARRY, _FLAT, _SEATS),
    "lettuce": _kind("kitchen", _FOOD + " sliceable", _FLAT, _LOW, "fridge sinkbasin"),
    "mug": _kind("kitchen bedroom", _HOLDS_DRINK, _FLAT, _STORED, "coffeemachine fridge microwave sinkbasin"),
    "newspaper": _kind("livingroom bedroom", _CARRY, _FLAT, _STORED, _SEATS, _LOW),
    "pan": _kind("kitchen", _BOWL + " cleanable coolable", _FLAT, "cabinet fridge sinkbasin stoveburner"),
    "pen": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, _LOW, "bed safe"),
    "pencil": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, _LOW, "bed safe"),
    "peppershaker": _kind("kitchen", _CARRY, _FLAT, _STORED),
    "pillow": _kind("bedroom livingroom", _CARRY, _SEATS, "cabinet dresser laundryhamper shelf"),
    "plate": _kind("kitchen", _BOWL + " cleanable coolable heatable", _FLAT, "cabinet fridge microwave sinkbasin"),
    "plunger": _kind("bathroom", _CARRY, _LOW, "bathtubbasin cabinet cart countertop sidetable toilet"),
    "pot": _kind("kitchen", _BOWL + " cleanable coolable", _FLAT, "cabinet fridge sinkbasin stoveburner"),
    "potato": _kind("kitchen", _COOKED + " sliceable", _FLAT, _LOW, "fridge microwave sinkbasin"),
    "remotecontrol": _kind("livingroom bedroom", _CARRY, _FLAT, _STORED, _SEATS),
    "saltshaker": _kind("kitchen", _CARRY, _FLAT, _STORED),
    "scrubbrush": _kind("bathroom", _CARRY + " cleanable", _FLAT, _WET, _LOW, "cabinet toilet"),
    "soapbar": _kind("bathroom", _CARRY + " cleanable", _FLAT, _STORED, _WET, _LOW, "toilet"),
    "soapbottle": _kind("bathroom kitchen", _CARRY, _FLAT, _STORED, _WET, _LOW, "toilet"),
    "spatula": _kind("kitchen", _CARRY + " cleanable", _FLAT, _STORED, "sinkbasin stoveburner"),
    "spoon": _kind("kitchen", _CARRY + " cleanable", _FLAT, _STORED, "sinkbasin"),
    "spraybottle": _kind("bathroom kitchen", _CARRY, _FLAT, _STORED, _LOW, "toilet"),
    "statue": _kind("livingroom bedroom", _CARRY, _FLAT, "safe"),
    "teddybear": _kind("bedroom", _CARRY, _SEATS, "desk dresser laundryhamper shelf"),
    "tennisracket": _kind("bedroom", _CARRY, "armchair bed desk dresser laundryhamper safe sofa"),
    "tissuebox": _kind("bathroom bedroom livingroom", _CARRY, _FLAT, _STORED, _LOW, "toilet"),
    "toiletpaper": _kind("bathroom", _CARRY, _FLAT, _STORED, _LOW, "bathtubbasin toilet toiletpaperhanger"),
    "tomato": _kind("kitchen", _COOKED + " sliceable", _FLAT, _LOW, "fridge microwave sinkbasin"),
    "towel": _kind("bathroom", _CARRY, "bathtubbasin cabinet countertop dresser laundryhamper shelf sidetable towelholder"),
    "vase": _kind("livingroom bedroom kitchen", _CARRY, _FLAT, "cabinet safe"),
    "watch": _kind("bedroom livingroom", _CARRY, _FLAT, _STORED, "safe sofa"),
    "wateringcan": _kind("livingroom", _CARRY, _FLAT, "drawer garbagecan"),
    "winebottle": _kind("kitchen", _CARRY + " coolable", _FLAT, _LOW, "cabinet fridge"),
    "desklamp": _kind("livingroom bedroom", "toggleable", _FLAT, "ottoman"),
    "floorlamp": _kind("livingroom bedroom", "toggleable", _FLAT, "ottoman"),
}
"""Object type -> what is true of it. Types that are not pickupable are lamps."""

LAMPS = tuple(name for name, kind in OBJECTS.items() if "toggleable" in kind.flags)

SENTENCES: Mapping[str, tuple[str, ...]] = {
    "pick_and_place_simple": ("put a {obj} in {recep}", "put some {obj} on {recep}"),
    "look_at_obj_in_light": ("look at {obj} under the {toggle}", "examine the {obj} with the {toggle}"),
    "pick_clean_then_place_in_recep": ("put a clean {obj} in {recep}", "clean some {obj} and put it in {recep}"),
    "pick_heat_then_place_in_recep": ("put a hot {obj} in {recep}", "heat some {obj} and put it in {recep}"),
    "pick_cool_then_place_in_recep": ("put a cool {obj} in {recep}", "cool some {obj} and put it in {recep}"),
    "pick_two_obj_and_place": ("put two {obj} in {recep}", "find two {obj} and put them in {recep}"),
}

_LONGEST = {
    "obj": max(OBJECTS, key=len),
    "recep": max((name for room in ROOMS.values() for name in room), key=len),
    "toggle": max(LAMPS, key=len),
}
LONGEST_SENTENCE = max(len(text.format(**_LONGEST)) for texts in SENTENCES.values() for text in texts)
"""Most letters, all of them ASCII, that the task of a generated game can have."""


@dataclass(frozen=True)
class GameTask:
    """A drawn task: where it plays and what it needs. `home` is the receptacle type where the target surely can lie."""

    family: str
    room: str
    target: str
    home: str
    destination: str = ""
    lamp: str = ""
    lamp_home: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Receptacle types that the room must have."""
        types = (FAMILIES[self.family].tool, self.destination, self.home, self.lamp_home)
        return tuple(dict.fromkeys(name for name in types if name))


def make_game(
    seed: int | str,
    *,
    family: str | None = None,
    receptacles: int = 10,
    room: str | None = None,
    object_types: Sequence[str] | None = None,
    instances: int = 2,
    usual: Mapping[str, str] | None = None,
    usual_share: float = 0.9,
    distractors: int | None = None,
    layout: int | str | None = None,
) -> Game:
    """A solvable game, not solved at the start, that depends on the arguments alone; 1 and "1" are one seed.

    family, room:  drawn when None, among those in which a task is possible
    receptacles:   how many the room has; different types come first, then types repeat
    object_types:  the types that the game may contain; lamps among them say which lamps it may contain
    instances:     most objects of one type (a task that asks for two has at least two of its type)
    usual:         object type -> receptacle type where it usually lies; None: every allowed place is as likely
    usual_share:   probability that an object lies in its usual place; otherwise in any that can hold it
    distractors:   how many object types the game has beside the task's; None: as many as receptacles
    layout:        seed of the room's own furniture; games with one layout and room kind differ only in what their tasks need
    """
    _check_request(family, receptacles, room, object_types, instances, usual, usual_share, distractors)
    draw = Draw("game", seed)
    habits = dict(usual or {})
    pickable, lamps = split_types(object_types)
    task = draw_task(draw, family, room, receptacles, pickable, lamps, habits)
    places = _draw_receptacles(draw if layout is None else Draw("layout", layout, task.room), task, receptacles)
    types = [place.type for place in places]

    def home(kind: str, banned: str = "") -> Receptacle:
        allowed = [place for place in places if place.type in OBJECTS[kind].holders and place.type != banned]
        usual_type = habits.get(kind)
        if usual_type is not None and draw.chance(usual_share):
            allowed = [place for place in allowed if place.type == usual_type]
        return draw.pick(allowed)

    def can_stand(kind: str) -> bool:
        return habits[kind] in types if kind in habits else not OBJECTS[kind].holders.isdisjoint(types)

    two = FAMILIES[task.family].count == 2
    homes: dict[str, list[Receptacle]] = {}
    number = draw.between(2, max(2, instances)) if two else draw.between(1, instances)
    homes[task.target] = [home(task.target, banned=task.destination) for _ in range(number)]
    others = [name for name in pickable if task.room in OBJECTS[name].rooms and name != task.target and can_stand(name)]
    for name in draw.shuffled(others)[: receptacles if distractors is None else distractors]:
        homes[name] = [home(name) for _ in range(draw.between(1, instances))]
    lamp = task.lamp or draw.pick([name for name in lamps if task.room in OBJECTS[name].rooms and can_stand(name)] or [""])
    if lamp:
        homes[lamp] = [home(lamp)]

    sentence = draw.pick(SENTENCES[task.family]).format(obj=task.target, recep=task.destination, toggle=task.lamp)
    return Game(
        receptacles=places,
        objects=tuple(item for name, spots in homes.items() for item in _items(name, spots)),
        can_contain=tuple((place, name) for place in set(types) for name in homes if place in OBJECTS[name].holders),
        start="start",
        task=sentence,
        goal=Goal(task.family, task.target, task.destination, task.lamp),
        facts={name: habits[name] for name in (task.target, task.lamp) if name in habits},
    )


def world_facts(
    seed: int | str, object_types: Sequence[str] | None = None, rooms: Sequence[str] | None = None
) -> dict[str, str]:
    """The habits of one world: for each object type (lamps too) the receptacle type where it usually lies.

    Uniform among the receptacle types that can hold the object and stand in a room that has it. The habit of a type
    depends on the seed, the type and the rooms, not on which other types are asked for. `object_types` None: all that
    the rooms have.
    """
    asked = tuple(ROOMS) if rooms is None else tuple(rooms)
    _known("rooms", asked, ROOMS)
    _known("object types", object_types or (), OBJECTS)
    facts = {}
    for name in OBJECTS if object_types is None else dict.fromkeys(object_types):
        kind = OBJECTS[name]
        candidates = sorted({place for room in asked if room in kind.rooms for place in ROOMS[room] if place in kind.holders})
        if candidates:
            facts[name] = Draw("facts", seed, name).pick(candidates)
        elif object_types is not None:
            raise GameError(
                f"A {name} is in none of the {len(asked)} rooms ({', '.join(asked)}) but in {', '.join(kind.rooms)}, "
                "so it has no usual place there. Ask for other rooms or leave it out."
            )
    return facts


class Draw:
    """Random choices that are the same on every machine and Python version.

    Only `random.random()` has that promise in Python, so everything is built on it.
    """

    def __init__(self, *names: int | str) -> None:
        key = hashlib.sha256("\x1f".join(str(name) for name in names).encode("utf-8")).digest()
        self._random = random.Random(int.from_bytes(key, "big")).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        mixed = list(options)
        for last in range(len(mixed) - 1, 0, -1):
            other = int(self._random() * (last + 1))
            mixed[last], mixed[other] = mixed[other], mixed[last]
        return mixed


def split_types(object_types: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The types to pick up and the lamps among the allowed types, in an order that does not depend on the caller."""
    allowed = OBJECTS if object_types is None else set(object_types)
    pickable = sorted(name for name in allowed if name not in LAMPS)
    return pickable, sorted(name for name in allowed if name in LAMPS) or sorted(LAMPS)


def draw_task(
    draw: Draw,
    family: str | None,
    room: str | None,
    size: int,
    pickable: list[str],
    lamps: list[str],
    habits: Mapping[str, str],
) -> GameTask:
    for family_name in draw.shuffled(tuple(FAMILIES)) if family is None else [family]:
        rooms = [name for name in FAMILY_ROOMS[family_name] if sum(ROOMS[name].values()) >= size]
        for room_name in draw.shuffled(rooms) if room is None else [room]:
            if room_name not in rooms:
                continue
            for target in draw.shuffled(pickable):
                task = _complete_task(draw, family_name, room_name, target, lamps, habits)
                if task is not None:
                    return task
    raise GameError(
        f"No task of family {family or 'any'} is possible in room {room or 'any'} with {len(pickable)} object types and "
        f"{len(habits)} habits: an object needs a room, a usual place in it, and a destination elsewhere. "
        "Allow more object types or rooms."
    )


def _complete_task(
    draw: Draw, family: str, room: str, target: str, lamps: list[str], habits: Mapping[str, str]
) -> GameTask | None:
    """The task with this target, or None when the room or the habits do not allow it."""
    wanted, kind, here = FAMILIES[family], OBJECTS[target], ROOMS[room]
    if room not in kind.rooms or (wanted.flag and wanted.flag not in kind.flags):
        return None
    places = sorted(kind.holders & here.keys())
    homes = [place for place in places if habits.get(target, place) == place]
    if not homes:
        return None
    home = draw.pick(homes)
    if wanted.place == "lamp":
        pairs = [
            (lamp, place)
            for lamp in lamps
            if room in OBJECTS[lamp].rooms
            for place in sorted(OBJECTS[lamp].holders & here.keys())
            if habits.get(lamp, place) == place
        ]
        if not pairs:
            return None
        lamp = draw.pick(sorted({lamp for lamp, _ in pairs}))
        lamp_home = draw.pick([place for name, place in pairs if name == lamp])
        return GameTask(family, room, target, home, lamp=lamp, lamp_home=lamp_home)
    destinations = [place for place in places if place not in (home, wanted.tool)]
    return GameTask(family, room, target, home, destination=draw.pick(destinations)) if destinations else None


def _draw_receptacles(draw: Draw, task: GameTask, number: int) -> tuple[Receptacle, ...]:
    """What the task needs, then one of each further type in random order, then repetitions, up to the number."""
    full = ROOMS[task.room]
    types = list(task.needs)
    types += draw.shuffled([name for name in full if name not in types])
    extra = [name for name, most in full.items() for _ in range(most - 1)]
    chosen = (types + draw.shuffled(extra))[:number]
    counts = {name: chosen.count(name) for name in sorted(set(chosen))}
    entries = [(name, i, many) for name, many in counts.items() for i in range(many)]
    # Numbered from the end, as the original does with its sorted ids: lists read "a shelf 3, a shelf 2, and a shelf 1".
    return tuple(
        Receptacle(f"{name}_{i:02d}", name, f"{name} {many - i}", f"at_{name}_{i:02d}", name in OPENABLE)
        for name, i, many in entries
    )


def _items(name: str, homes: Sequence[Receptacle]) -> list[Item]:
    many = len(homes)
    return [
        Item(f"{name}_{i:02d}", (name,), f"{name} {many - i}", OBJECTS[name].flags, (home.id,), (home.location,))
        for i, home in enumerate(homes)
    ]


def check_request(family: str | None, room: str | None, object_types: Sequence[str] | None, instances: int) -> None:
    """Raise GameError for a family, room or object type that does not exist, or that does not go with the others."""
    _known("families", [family] if family is not None else [], FAMILIES)
    _known("rooms", [room] if room is not None else [], ROOMS)
    _known("object types", object_types or (), OBJECTS)
    if room is not None and family is not None and room not in FAMILY_ROOMS[family]:
        raise GameError(
            f"Family {family} is not possible in a {room}, which lacks what it needs. Use {' or '.join(FAMILY_ROOMS[family])}."
        )
    if instances < 1:
        raise GameError(f"There should be at most {instances} objects of a type: the game would be empty. Use 1 or more.")


def _check_request(
    family: str | None,
    receptacles: int,
    room: str | None,
    object_types: Sequence[str] | None,
    instances: int,
    usual: Mapping[str, str] | None,
    usual_share: float,
    distractors: int | None,
) -> None:
    check_request(family, room, object_types, instances)
    _known("object types", tuple(usual or ()), OBJECTS)
    for name, place in (usual or {}).items():
        if place not in OBJECTS[name].holders:
            holders = ", ".join(sorted(OBJECTS[name].holders))
            raise GameError(f"The usual place of {name} is {place!r}, which cannot hold it. Use one of {holders}.")
    rooms = [room] if room is not None else FAMILY_ROOMS[family] if family is not None else tuple(ROOMS)
    most = max(sum(ROOMS[name].values()) for name in rooms)
    if not MIN_RECEPTACLES <= receptacles <= most:
        raise GameError(
            f"The room should have {receptacles} receptacles, but a task needs at least {MIN_RECEPTACLES} and a full "
            f"{' or '.join(rooms)} has at most {most}. Ask for a number between them."
        )
    if not 0.0 <= usual_share <= 1.0:
        raise GameError(f"usual_share is {usual_share}, which is no probability. Use a number in [0, 1].")
    if distractors is not None and distractors < 0:
        raise GameError(f"There should be {distractors} further object types, which is less than none. Use 0 or more.")


def _known(what: str, names: Sequence[str], table: Mapping[str, object]) -> None:
    unknown = [name for name in names if name not in table]
    if unknown:
        raise GameError(f"{len(unknown)} unknown {what}: {', '.join(unknown)}. Known are {', '.join(table)}.")
