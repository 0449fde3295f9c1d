"""The text world of ALFWorld (arXiv:2010.03768) in plain Python.

A `Game` is the whole description of one household task as plain data; a `World` is one running copy of it. Feedback
text, admissible commands and the winning condition are those of the original TextWorld game, its oddities included:

* Only the object in hand can be examined; a receptacle can be examined wherever the agent stands next to it.
* `look` next to a receptacle names only objects that were taken from a receptacle here before and are here again.
* `heat`, `cool` and `clean` work whether the appliance is open or closed; `use` works in a closed receptacle as well
  and is never undone.
* Receptacles may share one location; standing there, the agent reaches all of them.
* `won` describes the current state: it becomes false again when the agent takes the object away.

Assumed of a game: nothing is clean, hot, cool, sliced, switched on or open at the start, and the hand is empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdar.errors import SdarError

__all__ = [
    "FAMILIES",
    "FLAGS",
    "HELP",
    "NOTHING_HAPPENS",
    "Family",
    "Game",
    "GameError",
    "Goal",
    "Item",
    "Receptacle",
    "Tables",
    "World",
]

FORMAT = 1
"""Version of the JSON form of a game."""

FLAGS = ("cleanable", "coolable", "heatable", "isreceptacleobject", "pickupable", "sliceable", "toggleable")
"""What an object can be or have done to it."""

NOTHING_HAPPENS = "Nothing happens."
"""The feedback to every command that is not admissible."""

HELP = """
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
"""The feedback to `help`."""

_BLADES = frozenset({"knife", "butterknife"})


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
    """A place that holds objects. `type` is lower case ("sinkbasin"), `name` what the player reads ("sinkbasin 1")."""

    id: str
    type: str
    name: str
    location: str
    openable: bool = False


@dataclass(frozen=True, order=True)
class Item:
    """An object. `receptacles`, `locations` and `inside` say where it is at the start.

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
    see but a teacher may know: object type -> receptacle type where it usually lies.
    """

    receptacles: tuple[Receptacle, ...]
    objects: tuple[Item, ...]
    can_contain: tuple[tuple[str, str], ...]
    start: str
    task: str
    goal: Goal
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle = object.__setattr__
        settle(self, "receptacles", tuple(sorted(self.receptacles)))
        settle(self, "objects", tuple(sorted(map(_sorted_item, self.objects))))
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

    @cached_property
    def tables(self) -> Tables:
        """The game in numbers, computed once and shared by all its worlds."""
        return Tables(self)

    def to_dict(self) -> dict[str, Any]:
        """The game as JSON-able data; `from_dict` is its inverse."""
        return {
            "format": FORMAT,
            "task": self.task,
            "goal": asdict(self.goal),
            "start": self.start,
            "receptacles": [asdict(receptacle) for receptacle in self.receptacles],
            "objects": [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(o).items()} for o in self.objects],
            "can_contain": [list(pair) for pair in self.can_contain],
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Game:
        """The game that `to_dict` described."""
        if data.get("format") != FORMAT:
            raise GameError(
                f"The game has format {data.get('format')!r} and this version reads format {FORMAT}. "
                "Write it again with `Game.save` of this version."
            )
        try:
            return cls(
                receptacles=tuple(Receptacle(**part) for part in data["receptacles"]),
                objects=tuple(_item(part) for part in data["objects"]),
                can_contain=tuple((receptacle, thing) for receptacle, thing in data["can_contain"]),
                start=data["start"],
                task=data["task"],
                goal=Goal(**data["goal"]),
                facts=data["facts"],
            )
        except (KeyError, TypeError) as error:
            raise GameError(
                f"The game lacks a part or has one too many ({error}), so it is not the form that `Game.to_dict` writes. "
                "Write it again with `Game.save`."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the game as one line of canonical JSON."""
        Path(path).write_text(self._canonical() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Game:
        """Read a game that `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise GameError(f"{path} is not JSON ({error}), so it holds no game. Write it again with `Game.save`.") from error
        return cls.from_dict(data)

    def hash(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the same on every machine."""
        return hashlib.sha256(self._canonical().encode("utf-8")).hexdigest()

    def _canonical(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


_Action = tuple[Callable[["World", int, int], str], int, int]


class Tables:
    """A game in numbers: receptacles, objects and locations by index, sets of them as bit masks."""

    def __init__(self, game: Game) -> None:
        family = FAMILIES[game.family]
        receptacles, objects = game.receptacles, game.objects
        location = {name: i for i, name in enumerate(sorted(_locations(game)))}
        holds = set(game.can_contain)

        self.receptacle_names = [r.name for r in receptacles]
        self.object_names = [o.name for o in objects]
        self.receptacle_index = {name: i for i, name in enumerate(self.receptacle_names)}
        self.object_index = {name: i for i, name in enumerate(self.object_names)}
        self.receptacle_types = [r.type for r in receptacles]
        self.start = location[game.start]
        self.location = [location[r.location] for r in receptacles]
        """Location of each receptacle."""
        self.here = [tuple(r for r, at in enumerate(self.location) if at == i) for i in range(len(location))]
        """Receptacles of each location."""
        self.openable = _mask(i for i, r in enumerate(receptacles) if r.openable)
        self.flags = {flag: _mask(i for i, o in enumerate(objects) if flag in o.flags) for flag in FLAGS}
        self.pickupable, self.toggleable = self.flags["pickupable"], self.flags["toggleable"]
        self.blades = _mask(i for i, o in enumerate(objects) if _BLADES & set(o.types))
        self.sliceable = [i for i, o in enumerate(objects) if "sliceable" in o.flags]
        self.can_hold = [
            _mask(i for i, o in enumerate(objects) if any((r.type, kind) in holds for kind in o.types)) for r in receptacles
        ]
        """Objects that each receptacle can hold, by type."""
        self.inside = [tuple(i for i, o in enumerate(objects) if container.id in o.inside) for container in objects]
        """Objects that lie in each movable receptacle."""
        self.contents = [tuple(i for i, o in enumerate(objects) if r.id in o.receptacles) for r in receptacles]
        self.places = [frozenset(location[name] for name in o.locations) for o in objects]

        wanted = _mask(i for i, o in enumerate(objects) if game.goal.object_type in o.types)
        self.wanted = wanted & self.flags[family.flag] if family.flag else wanted
        """Objects that can fulfil the goal."""
        self.count, self.state, self.place = family.count, family.state, family.place
        self.destinations = [i for i, r in enumerate(receptacles) if r.type == game.goal.receptacle_type]
        self.appliances = [i for i, r in enumerate(receptacles) if family.tool and r.type == family.tool]
        """Receptacles that give an object the state that the goal asks for."""
        self.lamps = self.toggleable & _mask(i for i, o in enumerate(objects) if game.goal.toggle_type in o.types)

        self._treatments: dict[str, tuple[str, int, Callable[[World, int, int], str]]] = {
            "sinkbasin": ("clean", self.flags["cleanable"], World._clean),
            "microwave": ("heat", self.flags["heatable"], World._heat),
            "fridge": ("cool", self.flags["coolable"], World._cool),
        }
        self.treatment = [self._treatments.get(r.type) for r in receptacles]
        self._standing: dict[int, dict[str, _Action]] = {}

    def standing(self, location: int) -> dict[str, _Action]:
        """The commands that are always admissible at a location, sorted."""
        actions = self._standing.get(location)
        if actions is None:
            names = self.receptacle_names
            actions = {
                "help": (World._help, -1, -1),
                "look": (World._look, -1, -1),
                "inventory": (World._inventory, -1, -1),
            }
            for r, at in enumerate(self.location):
                if at == location:
                    actions["examine " + names[r]] = (World._examine_receptacle, r, -1)
                else:
                    actions["go to " + names[r]] = (World._go, r, -1)
            actions = self._standing[location] = dict(sorted(actions.items()))
        return actions


class World:
    """One running game.

    The public attributes after `steps` are the state in the numbers of `tables`; read them, do not write them.

    steps:    commands given since the reset, also those that did nothing
    accepted: whether the last command was admissible
    location: where the agent stands
    held:     the object in hand, -1 for none
    contents: for each receptacle its objects, ascending
    opened:   mask of open receptacles; clean, hot, cool, on, sliced: masks of objects
    """

    __slots__ = (
        "_actions", "_admissible", "_missed", "_places", "accepted", "clean", "contents", "cool", "game", "held", "hot",
        "location", "on", "opened", "sliced", "steps", "tables",
    )  # fmt: skip

    _actions: dict[str, _Action] | None
    _admissible: list[str] | None
    _missed: frozenset[tuple[int, int]]
    """Pairs (object, receptacle): the object was taken from the receptacle and has not been put back there."""
    _places: list[frozenset[int]]
    """Locations of each object, apart from what the receptacles hold."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.tables = game.tables
        self._restart()

    def reset(self) -> str:
        """Start anew; the observation with the header, the room and the task."""
        self._restart()
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{self._look()}\n\nYour task is to: {self.game.task}."

    def step(self, command: str) -> str:
        """Do what the command says; the feedback. A command that is not admissible changes nothing."""
        self.steps += 1
        action = self._ground().get(command.strip())
        if action is None:
            self.accepted = False
            return NOTHING_HAPPENS
        self.accepted = True
        handler, first, second = action
        return handler(self, first, second)

    @property
    def admissible(self) -> list[str]:
        """The commands that do something now, sorted. The list is shared between calls: do not change it."""
        if self._admissible is None:
            self._admissible = sorted(self._ground())
        return self._admissible

    @property
    def won(self) -> bool:
        """Whether the goal holds now."""
        tables, contents = self.tables, self.contents
        if tables.place == "lamp":
            if self.held < 0 or not tables.wanted >> self.held & 1:
                return False
            lit = tables.lamps & self.on
            return bool(lit) and any(lit >> o & 1 for r in tables.here[self.location] for o in contents[r])
        good = tables.wanted
        if tables.state:
            good &= getattr(self, tables.state)
        if not good:
            return False
        return any(sum(good >> o & 1 for o in contents[r]) >= tables.count for r in tables.destinations)

    def copy(self) -> World:
        """An independent world in the same state."""
        new = World.__new__(World)
        new.game, new.tables, new.steps, new.accepted = self.game, self.tables, self.steps, self.accepted
        new.location, new.held, new.opened = self.location, self.held, self.opened
        new.clean, new.hot, new.cool, new.on, new.sliced = self.clean, self.hot, self.cool, self.on, self.sliced
        new.contents, new._places, new._missed = self.contents[:], self._places[:], self._missed
        new._actions, new._admissible = self._actions, self._admissible
        return new

    def snapshot(self) -> tuple[object, ...]:
        """The state as a hashable value: two worlds of one game behave alike from here on iff it is equal."""
        return (
            self.location, self.held, tuple(self.contents), tuple(self._places), self._missed,
            self.opened, self.clean, self.hot, self.cool, self.on, self.sliced,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        kept = [name for name in self.__slots__ if name not in ("tables", "_actions", "_admissible")]
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.tables, self._actions, self._admissible = self.game.tables, None, None

    def _restart(self) -> None:
        tables = self.tables
        self.steps = 0
        self.accepted = True
        self.location = tables.start
        self.held = -1
        self.contents = tables.contents[:]
        self.opened = self.clean = self.hot = self.cool = self.on = self.sliced = 0
        self._places = tables.places[:]
        self._missed = frozenset()
        self._changed()

    def _ground(self) -> dict[str, _Action]:
        if self._actions is not None:
            return self._actions
        tables, held = self.tables, self.held
        names = tables.object_names
        actions = tables.standing(self.location).copy()
        for r in tables.here[self.location]:
            name = tables.receptacle_names[r]
            reachable = True
            if tables.openable >> r & 1:
                if self.opened >> r & 1:
                    actions["close " + name] = (World._close, r, -1)
                else:
                    actions["open " + name] = (World._open, r, -1)
                    reachable = False
            for o in self.contents[r]:
                if held < 0 and reachable and tables.pickupable >> o & 1:
                    actions[f"take {names[o]} from {name}"] = (World._take, o, r)
                if tables.toggleable >> o & 1:
                    actions["use " + names[o]] = (World._use, o, -1)
            if held >= 0:
                if reachable and tables.can_hold[r] >> held & 1:
                    actions[f"move {names[held]} to {name}"] = (World._move, held, r)
                treatment = tables.treatment[r]
                if treatment is not None and treatment[1] >> held & 1:
                    actions[f"{treatment[0]} {names[held]} with {name}"] = (treatment[2], held, r)
        if held >= 0:
            actions["examine " + names[held]] = (World._examine_object, held, -1)
            if tables.blades >> held & 1:
                for o in tables.sliceable:
                    if self.location in self._places[o]:
                        actions[f"slice {names[o]} with {names[held]}"] = (World._slice, o, held)
        self._actions = actions
        return actions

    def _changed(self) -> None:
        self._actions = self._admissible = None

    def _go(self, r: int, _: int = -1) -> str:
        self.location = self.tables.location[r]
        self._changed()
        return f"You arrive at {self.tables.receptacle_names[r]}. {self._examine_receptacle(r)}"

    def _open(self, r: int, _: int = -1) -> str:
        self.opened |= 1 << r
        self._changed()
        return f"You open the {self.tables.receptacle_names[r]}. {self._examine_receptacle(r)}"

    def _close(self, r: int, _: int = -1) -> str:
        self.opened &= ~(1 << r)
        self._changed()
        return f"You close the {self.tables.receptacle_names[r]}."

    def _take(self, o: int, r: int) -> str:
        self.contents[r] = tuple(x for x in self.contents[r] if x != o)
        self._places[o] -= {self.location}
        self._missed |= {(o, r)}
        self.held = o
        self._changed()
        return f"You pick up the {self.tables.object_names[o]} from the {self.tables.receptacle_names[r]}."

    def _move(self, o: int, r: int) -> str:
        self.contents[r] = tuple(sorted((*self.contents[r], o)))
        self._places[o] |= {self.location}
        self._missed -= {(o, r)}
        self.held = -1
        self._changed()
        return f"You move the {self.tables.object_names[o]} to the {self.tables.receptacle_names[r]}."

    def _clean(self, o: int, r: int) -> str:
        self.clean |= 1 << o
        return f"You clean the {self.tables.object_names[o]} using the {self.tables.receptacle_names[r]}."

    def _heat(self, o: int, r: int) -> str:
        self.hot |= 1 << o
        self.cool &= ~(1 << o)
        return f"You heat the {self.tables.object_names[o]} using the {self.tables.receptacle_names[r]}."

    def _cool(self, o: int, r: int) -> str:
        self.cool |= 1 << o
        self.hot &= ~(1 << o)
        return f"You cool the {self.tables.object_names[o]} using the {self.tables.receptacle_names[r]}."

    def _use(self, o: int, _: int = -1) -> str:
        self.on |= 1 << o
        return f"You turn on the {self.tables.object_names[o]}."

    def _slice(self, o: int, blade: int) -> str:
        self.sliced |= 1 << o
        return f"You sliced the {self.tables.object_names[o]} with the {self.tables.object_names[blade]}."

    def _inventory(self, _: int = -1, __: int = -1) -> str:
        if self.held < 0:
            return "You are not carrying anything."
        return f"You are carrying: a {self.tables.object_names[self.held]}."

    def _help(self, _: int = -1, __: int = -1) -> str:
        return HELP

    def _look(self, _: int = -1, __: int = -1) -> str:
        tables = self.tables
        here = tables.here[self.location]
        if not here:
            room = _indefinite(tables.receptacle_names)
            return f"You are in the middle of a room. Looking quickly around you, you see {room}."
        beside = [tables.object_names[o] for o, r in sorted(self._missed) if r in here and self.location in self._places[o]]
        facing = _listing([tables.receptacle_names[r] for r in here])
        return f"You are facing the {facing}. Next to it, you see {_indefinite(beside)}."

    def _examine_receptacle(self, r: int, _: int = -1) -> str:
        tables = self.tables
        name = tables.receptacle_names[r]
        openable = tables.openable >> r & 1
        if openable and not self.opened >> r & 1:
            return f"The {name} is closed."
        inside = _indefinite([tables.object_names[o] for o in self.contents[r]])
        return f"The {name} is open. In it, you see {inside}." if openable else f"On the {name}, you see {inside}."

    def _examine_object(self, o: int, _: int = -1) -> str:
        tables = self.tables
        name = tables.object_names[o]
        if tables.flags["isreceptacleobject"] >> o & 1:
            inside = _indefinite([tables.object_names[x] for x in tables.inside[o]])
            return f"This is a normal {name}. In it, you see {inside}."
        clean, hot, cool, sliced = self.clean >> o & 1, self.hot >> o & 1, self.cool >> o & 1, self.sliced >> o & 1
        words = ["hot"] if hot else ["cool"] if cool else []
        # The original says "cold" of an object that is cool and nothing else, and "cool" in every combination.
        if clean:
            words.append("clean")
        if words:
            text = "cold" if words == ["cool"] and not sliced else " and ".join(words)
            return f"This is a {text} sliced {name}." if sliced else f"This is a {text} {name}."
        if tables.toggleable & self.on & 1 << o:
            return f"This {name} is on."
        if sliced:
            return f"This is a sliced {name}."
        return f"There's nothing special about {name}."


def _listing(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def _indefinite(names: list[str]) -> str:
    return _listing(["a " + name for name in names])


def _mask(indices: Iterable[int]) -> int:
    mask = 0
    for index in indices:
        mask |= 1 << index
    return mask


def _locations(game: Game) -> set[str]:
    return {game.start, *(r.location for r in game.receptacles), *(name for o in game.objects for name in o.locations)}


def _item(data: Mapping[str, Any]) -> Item:
    parts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    return Item(**parts)


def _sorted_item(item: Item) -> Item:
    tuples = ("types", "flags", "receptacles", "locations", "inside")
    parts: dict[str, Any] = {name: tuple(sorted(set(getattr(item, name)))) for name in tuples}
    return replace(item, **parts)


def _check(game: Game) -> None:
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
        unknown = sorted((set(item.receptacles) - receptacles) | (set(item.inside) - objects) | (set(item.flags) - set(FLAGS)))
        if unknown:
            raise GameError(
                f"Object {item.id!r} refers to {', '.join(unknown)}, which the game does not have. "
                f"Name receptacles and objects by id, and flags among {', '.join(FLAGS)}."
            )
    goal = game.goal
    needed = "toggle_type" if FAMILIES[goal.family].place == "lamp" else "receptacle_type"
    if not getattr(goal, needed):
        raise GameError(f"The goal of family {goal.family} has no {needed}, so nothing could win. Set {needed}.")
