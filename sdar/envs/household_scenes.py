"""Seeded games in the full size and with the irregularities of ALFRED's scenes (arXiv:1912.01734).

About 30 receptacles and 50 to 80 objects. Unlike the games of `household_games`, whose tables of rooms and objects are used
here: several receptacles share one location, some cabinets and drawers have no door, some receptacles cannot be reached, an
object may lie in a movable receptacle (a bowl) or in two receptacles at once (a mug under the coffee machine on the counter
top), may have another viewpoint than its receptacle, and every room has things that nobody can take.
"""

from __future__ import annotations

from collections.abc import Sequence

from sdar.envs.household_engine import World
from sdar.envs.household_files import game_names
from sdar.envs.household_games import (
    OBJECTS,
    OPENABLE,
    ROOMS,
    SENTENCES,
    Draw,
    GameTask,
    check_request,
    draw_task,
    split_types,
)
from sdar.envs.household_planner import PlanError, plan
from sdar.envs.household_types import FAMILIES, ORIGINAL, Game, GameError, Goal, Item, Receptacle

__all__ = ["make_scene"]

FIXTURES = {
    "kitchen": ("chair", "faucet", "lightswitch", "sink", "stoveknob", "window"),
    "livingroom": ("chair", "curtains", "houseplant", "lightswitch", "painting", "television", "window"),
    "bedroom": ("blinds", "chair", "lightswitch", "mirror", "painting", "window"),
    "bathroom": ("faucet", "lightswitch", "mirror", "showerdoor", "sink", "window"),
}
"""Things that nobody can take."""

SHARED, LATCHED, LOST, TWICE, NESTED, ASTRAY = 0.25, 0.3, 0.04, 0.05, 0.06, 0.05
"""Probabilities: a receptacle shares a location; a cabinet or drawer that need not open does not; a receptacle is nowhere; an
object lies in two receptacles; in a movable one; has another viewpoint than its receptacle."""


def make_scene(
    seed: int | str,
    *,
    family: str | None = None,
    room: str | None = None,
    object_types: Sequence[str] | None = None,
    instances: int = 3,
    layout: int | str | None = None,
) -> Game:
    """A solvable game, not solved at the start, that depends on the arguments alone; it plays by the original's rules.

    family, room: drawn when None, among those in which a task is possible
    object_types: the types that the game may contain beside what nobody can take
    instances:    most objects of one type (a task that asks for two has at least two of its type)
    layout:       seed of the room's furniture; games with one layout and room kind differ only in what their tasks need
    """
    check_request(family, room, object_types, instances)
    for attempt in range(100):
        game = _make(Draw("scene", seed, attempt), family, room, object_types, instances, layout)
        world = World(game)
        try:
            if not world.won and plan(world):
                return game
        except PlanError:
            continue  # its object or place ended up where nobody can go
    raise GameError(f"100 scenes of seed {seed!r} had no solution: too few object types are allowed. Allow more of them.")


def _make(
    draw: Draw, family: str | None, room: str | None, allowed: Sequence[str] | None, instances: int, layout: int | str | None
) -> Game:
    pickable, lamps = split_types(allowed)
    task = draw_task(draw, family, room, 6, pickable, lamps, {})
    places = _receptacles(draw if layout is None else Draw("scene layout", layout, task.room), task)
    reachable = [place for place in places if place.location]
    movable: dict[str, list[Item]] = {}
    objects: list[Item] = []

    def put(kind: str, banned: str = "", plain: bool = False) -> None:
        holders = OBJECTS[kind].holders - {banned}
        homes = [place for place in (reachable if plain else places) if place.type in holders]
        if not homes:
            return
        home = draw.pick(homes)
        inside: tuple[str, ...] = ()
        receptacles: tuple[str, ...] = (home.id,)
        viewpoints = [home.location] if home.location else []
        if not plain and draw.chance(TWICE):
            receptacles = (home.id, draw.pick(homes).id)
        if not plain and draw.chance(ASTRAY):
            viewpoints = [draw.pick(reachable).location]
        if not plain and movable.get(home.id) and draw.chance(NESTED):
            inside = (draw.pick(movable[home.id]).id,)
        item = Item(_id(draw, kind), (kind,), "", OBJECTS[kind].flags, receptacles, tuple(viewpoints), inside)
        if "isreceptacleobject" in item.flags:
            movable.setdefault(home.id, []).append(item)
        objects.append(item)

    two = FAMILIES[task.family].count == 2
    for n in range(draw.between(2, max(2, instances)) if two else draw.between(1, instances)):
        put(task.target, banned=task.destination, plain=n < FAMILIES[task.family].count)
    for kind in draw.shuffled([name for name in pickable if task.room in OBJECTS[name].rooms and name != task.target]):
        for _ in range(draw.between(1, instances)):
            put(kind)
    for lamp in (
        [task.lamp] if task.lamp else [name for name in lamps if task.room in OBJECTS[name].rooms and draw.chance(0.5)]
    ):
        put(lamp, plain=True)
    for kind in FIXTURES[task.room]:
        for _ in range(draw.between(1, 2)):
            objects.append(Item(_id(draw, kind), (kind,), "", (), (), (draw.pick(reachable).location,)))

    start = draw.pick(reachable).location if draw.chance(0.1) else _location(draw)
    names = game_names([*(place.id for place in places), *(thing.id for thing in objects)])
    sentence = draw.pick(SENTENCES[task.family]).format(obj=task.target, recep=task.destination, toggle=task.lamp)
    kinds = {item.types[0] for item in objects} & OBJECTS.keys()
    return Game(
        receptacles=tuple(Receptacle(p.id, p.type, names[p.id], p.location, p.openable) for p in places),
        objects=tuple(
            Item(o.id, o.types, names[o.id], o.flags, o.receptacles, o.locations, o.inside, o.states) for o in objects
        ),
        can_contain=tuple((p, kind) for p in {place.type for place in places} for kind in kinds if p in OBJECTS[kind].holders),
        start=start,
        task=sentence,
        goal=Goal(task.family, task.target, task.destination, task.lamp),
        rules=ORIGINAL,
    )


def _receptacles(draw: Draw, task: GameTask) -> list[Receptacle]:
    """The room's furniture, without names; the first of each type that the task needs is one that can be used."""
    places: list[Receptacle] = []
    for kind, most in ROOMS[task.room].items():
        present = draw.chance(0.85)
        number = draw.between(max(1, most // 2), most)
        for n in range(number if present or kind in task.needs else 0):
            found = [place.location for place in places if place.location]
            shared, location = draw.chance(SHARED), _location(draw)
            lost, latched = draw.chance(LOST), draw.chance(LATCHED)
            if shared and found:
                location = draw.pick(found)
            needed = n == 0 and kind in (*task.needs, "fridge", "microwave", "sinkbasin")
            openable = kind in OPENABLE and not (latched and kind in ("cabinet", "drawer"))
            places.append(Receptacle(_id(draw, kind), kind, "", "" if lost and not needed else location, openable))
    return places


def _id(draw: Draw, kind: str) -> str:
    """An id in ALFRED's form: the type and a position, escaped; names follow from the order of the ids."""
    signs = ("_plus_", "_minus_")
    position = "".join(
        f"_bar_{signs[draw.between(0, 1)]}{draw.between(0, 6):02d}_dot_{draw.between(0, 99):02d}" for _ in range(3)
    )
    basin = kind.endswith("basin")
    return kind.removesuffix("basin") + position + (f"_bar_{kind}" if basin else "")


def _location(draw: Draw) -> str:
    numbers = (draw.between(-12, 12), draw.between(-12, 12), draw.between(0, 3), draw.pick((-30, 0, 15, 30, 45, 60)))
    return "loc" + "".join(f"_bar_{'_minus_' if n < 0 else ''}{abs(n)}" for n in numbers)
