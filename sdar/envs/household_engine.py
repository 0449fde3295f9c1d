"""The text world of ALFWorld (arXiv:2010.03768) in plain Python.

A `Game` is the whole description of one household task as plain data; a `World` is one running copy of it. Feedback
text, admissible commands and the winning condition are those of the original TextWorld game, its oddities included:

* Only the object in hand can be examined; a receptacle can be examined wherever the agent stands next to it.
* `look` next to a receptacle names only objects that were taken from a receptacle here before and are here again.
* `heat`, `cool` and `clean` work whether the appliance is open or closed; `use` works in a closed receptacle as well
  and is never undone.
* Receptacles may share one location; standing there, the agent reaches all of them.
* `won` describes the current state: it becomes false again when the agent takes the object away.

Generated games answer `look` and `help` in two cases in their own way: see `household_types.ORIGINAL`. The hand is empty at
the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdar.envs.household_types import (
    FAMILIES,
    FLAGS,
    GENERATED,
    ORIGINAL,
    STATES,
    Family,
    Game,
    GameError,
    Goal,
    Item,
    Receptacle,
)

__all__ = [
    "FAMILIES",
    "FLAGS",
    "GENERATED",
    "HELP",
    "NOTHING_HAPPENS",
    "ORIGINAL",
    "Family",
    "Game",
    "GameError",
    "Goal",
    "Item",
    "Receptacle",
    "Tables",
    "World",
]

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
"""The feedback to `help`, in a generated game."""

_SIGNS = re.compile(r'[;|"<>\[\]#{}]')

_Action = tuple[Callable[["World", int, int], str], int, int]


class Tables:
    """A game in numbers: receptacles, objects and locations by index, sets of them as bit masks."""

    def __init__(self, game: Game) -> None:
        family = FAMILIES[game.family]
        receptacles, objects = game.receptacles, game.objects
        location = {name: i for i, name in enumerate(sorted(_locations(game)))}

        self.receptacle_names = [r.name for r in receptacles]
        self.object_names = [o.name for o in objects]
        self.receptacle_index = {name: i for i, name in enumerate(self.receptacle_names)}
        self.object_index = {name: i for i, name in enumerate(self.object_names)}
        self.receptacle_types = [r.type for r in receptacles]
        self.start = location[game.start]
        self.location = [location[r.location] if r.location else -1 for r in receptacles]
        """Location of each receptacle, -1 for nowhere."""
        self.here = [tuple(r for r, at in enumerate(self.location) if at == i) for i in range(len(location))]
        """Receptacles of each location."""
        self.openable = _mask(i for i, r in enumerate(receptacles) if r.openable)
        self.opened = _mask(i for i, r in enumerate(receptacles) if r.opened)
        self.states, self.flags, kinds = dict.fromkeys(STATES, 0), dict.fromkeys(FLAGS, 0), dict[str, int]()
        index = {r.id: i for i, r in enumerate(receptacles)} | {o.id: i for i, o in enumerate(objects)}
        contents: list[list[int]] = [[] for _ in receptacles]
        inside: list[list[int]] = [[] for _ in objects]
        for i, o in enumerate(objects):
            for table, names in ((self.states, o.states), (self.flags, o.flags), (kinds, o.types)):
                for name in names:
                    table[name] = table.get(name, 0) | 1 << i
            for name in o.receptacles:
                contents[index[name]].append(i)
            for name in o.inside:
                inside[index[name]].append(i)
        self.pickupable, self.toggleable = self.flags["pickupable"], self.flags["toggleable"]
        self.blades = kinds.get("knife", 0) | kinds.get("butterknife", 0)
        self.sliceable = [i for i in range(len(objects)) if self.flags["sliceable"] >> i & 1]
        held = dict.fromkeys((r.type for r in receptacles), 0)
        for holder, kind in game.can_contain:
            if holder in held and kind in kinds:
                held[holder] |= kinds[kind]
        self.can_hold = [held[r.type] for r in receptacles]
        """Objects that each receptacle can hold, by type."""
        self.inside = list(map(tuple, inside))
        """Objects that lie in each movable receptacle."""
        self.contents = list(map(tuple, contents))
        self.places = [frozenset([location[name] for name in o.locations]) for o in objects]

        wanted = kinds.get(game.goal.object_type, 0)
        self.wanted = wanted & self.flags[family.flag] if family.flag else wanted
        """Objects that can fulfil the goal."""
        self.count, self.state, self.place = family.count, family.state, family.place
        self.destinations = [i for i, r in enumerate(receptacles) if r.type == game.goal.receptacle_type]
        self.appliances = [i for i, r in enumerate(receptacles) if family.tool and r.type == family.tool and r.location]
        """Receptacles that give an object the state that the goal asks for."""
        self.lamps = self.toggleable & kinds.get(game.goal.toggle_type, 0)

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
                elif at >= 0:
                    actions["go to " + names[r]] = (World._go, r, -1)
            actions = self._standing[location] = dict(sorted(actions.items()))
        return actions


def tables_of(game: Game) -> Tables:
    """The game in numbers, computed once and shared by all its worlds."""
    kept = vars(game)  # beside its fields, which alone are compared, hashed and pickled
    if "tables" not in kept:
        kept["tables"] = Tables(game)
    return kept["tables"]


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

    steps: int
    accepted: bool
    location: int
    held: int
    contents: list[tuple[int, ...]]
    opened: int
    clean: int
    hot: int
    cool: int
    on: int
    sliced: int
    _actions: dict[str, _Action] | None
    _admissible: list[str] | None
    _missed: frozenset[tuple[int, int]]
    """Pairs (object, receptacle): the object was taken from the receptacle and has not been put back there."""
    _places: list[frozenset[int]]
    """Locations of each object, apart from what the receptacles hold."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.tables = tables_of(game)
        self._restart()

    def reset(self) -> str:
        """Start anew; the observation with the header, the room and the task."""
        self._restart()
        seen = self._look() if self.tables.here[self.location] else self._room(True)
        task = f"{self.game.task}."
        if self.game.rules == ORIGINAL:  # its text generator loses what follows one of its own signs
            task = _SIGNS.split(task, maxsplit=1)[0]
        return f"-= Welcome to TextWorld, ALFRED! =-\n\n{seen}\n\nYour task is to: {task}"

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

    def __getstate__(self) -> dict[str, Any]:
        kept = [name for name in self.__slots__ if name not in ("tables", "_actions", "_admissible")]
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.tables, self._actions, self._admissible = tables_of(self.game), None, None

    def _restart(self) -> None:
        tables = self.tables
        self.steps = 0
        self.accepted = True
        self.location = tables.start
        self.held = -1
        self.contents = tables.contents[:]
        self.opened = tables.opened
        for state, mask in tables.states.items():
            setattr(self, state, mask)
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
        return HELP if self.game.rules == GENERATED else HELP.lstrip()

    def _look(self, _: int = -1, __: int = -1) -> str:
        tables = self.tables
        here = tables.here[self.location]
        if not here:
            return self._room(self.game.rules == GENERATED)
        beside = [tables.object_names[o] for o, r in sorted(self._missed) if r in here and self.location in self._places[o]]
        facing = _listing([tables.receptacle_names[r] for r in here])
        return f"You are facing the {facing}. Next to it, you see {_indefinite(beside)}."

    def _room(self, seen: bool) -> str:
        """The sentence for the middle of the room; `seen` False: without its receptacles."""
        tables = self.tables
        names = [tables.receptacle_names[r] for r, at in enumerate(tables.location) if at >= 0] if seen else []
        return f"You are in the middle of a room. Looking quickly around you, you see {_indefinite(names)}."

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
    names = {game.start, *(r.location for r in game.receptacles), *(name for o in game.objects for name in o.locations)}
    return names - {""}
