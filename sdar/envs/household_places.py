"""Where things are in ALFWorld's games: what a player has to find out, and a teacher may be told.

Two kinds of facts of a game (thing -> types of places, `household_types.either`): where the wanted things lie in this very game, which
nobody can learn; or where such things usually are, counted over other games, which a player can come to know by heart.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from tqdm import tqdm

from sdar.envs.household_types import FAMILIES, Game, either
from sdar.errors import ConfigError
from sdar.paths import resolve
from sdar.reading import convert, read_yaml

Usual = Mapping[str, Sequence[str]]
"""Object type -> receptacle types, in the order in which somebody who knows would look."""

TOLD = 4
"""Most places that a fact names."""


def facts_of(game: Game, usual: Usual | None) -> dict[str, str]:
    """Of the things that the goal asks for, in which types of places they lie at the start, those with most of them first.

    A thing that lies where it shall come to is left out, unless something is to be done to it before.

    Args:
        usual: Told instead: of the places where such things usually are the first that this room has. Nothing of a thing that it
            does not know.
    """
    goal = game.goal
    types = {r.id: r.type for r in game.receptacles if r.location}
    facts = {}
    for thing in filter(None, (goal.object_type, goal.toggle_type)):
        if usual is None:
            lying = Counter(types[r] for o in game.objects if thing in o.types for r in o.receptacles if r in types)
            if not FAMILIES[goal.family].state:
                lying.pop(goal.receptacle_type, None)
            places = sorted(lying, key=lambda place: (-lying[place], place))
        else:
            places = [place for place in usual.get(thing, ()) if place in types.values()]
        if places:
            facts[thing] = either(places[:TOLD])
    return facts


@lru_cache(maxsize=8)
def read_usual(path: str) -> Usual:
    """A file of usual places, as `benchmarks/official_places.py` writes it.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    file = resolve(path)
    advice = "It holds for each type of things a list of types of places, e.g. `mug: [coffeemachine, desk]`."
    if not file.is_file():
        raise ConfigError(f"env.usual names {path!r}, and there is no such file. {advice}")
    return convert(read_yaml(file, ConfigError), dict[str, list[str]], str(file), ConfigError, advice=advice)


def usual_places(games: Iterable[Game], least: float = 0.05, rooms: int = 20) -> dict[str, list[str]]:
    """Where things usually are: for each type of things the types of places by the share of such places that hold one, in the rooms that
    have one.

    Args:
        least: Smallest share that counts.
        rooms: Fewest places of a type in such rooms: of fewer nothing is known.
    """
    holding, standing = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for game in tqdm(games, unit=" games", leave=False, disable=None):
        types = {r.id: r.type for r in game.receptacles if r.location}
        there = Counter(types.values())
        where = defaultdict[str, set[str]](set)
        for thing in game.objects:
            for kind in thing.types:
                where[kind].update(r for r in thing.receptacles if r in types)
        for kind, places in where.items():
            if places:
                standing[kind].update(there)
                holding[kind].update(types[r] for r in places)
    found = {}
    for kind in sorted(holding):
        share = {place: holding[kind][place] / n for place, n in standing[kind].items() if n >= rooms}
        found[kind] = sorted((p for p in share if share[p] >= least), key=lambda p: (-share[p], p))
    return found
