"""Game files of ALFWorld (arXiv:2010.03768), read and written: `game.tw-pddl` with its `traj_data.json`.

Read, such a file becomes a `Game` that plays as it does in the original (alfworld 0.4): the same names, texts, commands and
goal. A file that asks for anything else is refused. Written, a `Game` becomes files that the original package loads; the
planning domain and the text grammar inside them are its own data and are taken from where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path

import msgspec

from sdar.envs.household_types import FAMILIES, FLAGS, ORIGINAL, Game, GameError, Goal, Item, Receptacle
from sdar.errors import ConfigError
from sdar.reading import parse_json, read_record
from sdar.versions import install

__all__ = [
    "DOMAIN_TEXT",
    "GAME_FILE",
    "TEXTS",
    "TRAJ_FILE",
    "Logic",
    "folder_name",
    "game_names",
    "parse_game",
    "problem_pddl",
    "read_game",
    "sentence",
    "write_game",
]

GAME_FILE = "game.tw-pddl"
TRAJ_FILE = "traj_data.json"

TEXTS = (
    '"open {r}"', '"close {r}"', '"take {o} from {r}"', '"move {o} to {r}"', '"examine {r}"', '"examine {o}"', '"use {o}"',
    '"heat {o} with {r}"', '"clean {o} with {r}"', '"cool {o} with {r}"', '"slice {co} with {ko}"',
    '"You move the {o.name} to the {r.name}."', '"You are not carrying anything."', '"This is a cold {o.name}."',
)  # fmt: skip
"""What a grammar holds if the engine speaks as it does: commands and sentences that differ between versions of ALFWorld."""

DOMAIN_TEXT = "(?l - location, ?r - receptacle)"
"""What a domain holds if, as in the engine, only the object in hand can be examined: its comma makes the other case impossible."""

_SLOT = "UNKNOWN GOAL"
_TASK = re.compile(r'"Your task is to: ((?:[^"\\]|\\.)*)"')
_STATES = {"isClean": "clean", "isCool": "cool", "isHot": "hot", "isToggled": "on", "isSliced": "sliced"}
_ESCAPES = (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ","))

_WORDS = """
AlarmClock ArmChair BaseballBat BasketBall BathtubBasin ButterKnife CD CellPhone CoffeeMachine CoffeeTable CounterTop CreditCard
DeskLamp DiningTable DishSponge FloorLamp GarbageCan HandTowel HandTowelHolder HousePlant KeyChain LaundryHamper LightSwitch
PepperShaker RemoteControl SaltShaker ScrubBrush SideTable SinkBasin SoapBar SoapBottle SprayBottle StoveBurner StoveKnob
TVStand TeddyBear TennisRacket TissueBox ToiletPaper ToiletPaperHanger TowelHolder WateringCan WineBottle
"""
_SPELLED = {word.lower(): word for word in _WORDS.split()}


@dataclass(frozen=True)
class Logic:
    """The planning domain and the text grammar (with a slot for the task) of every game file."""

    domain: str
    grammar: str

    @classmethod
    def installed(cls) -> Logic:
        """From ``$ALFWORLD_DATA/logic``, else from the installed alfworld package (which is not imported)."""
        folders = []
        if os.environ.get("ALFWORLD_DATA"):
            folders.append(Path(os.environ["ALFWORLD_DATA"]) / "logic")
        package = importlib.util.find_spec("alfworld")
        if package is not None and package.origin is not None:
            folders.append(Path(package.origin).parent / "data")
        for folder in folders:
            if (folder / "alfred.pddl").is_file() and (folder / "alfred.twl2").is_file():
                return cls.load(folder)
        looked = ", ".join(map(str, folders)) or "ALFWORLD_DATA is not set and the package alfworld is not installed"
        raise ConfigError(
            f"the texts alfred.pddl and alfred.twl2 were not found ({looked}): a game file of ALFWorld holds them. Run "
            f"`{install('alfworld')}`, or let ALFWORLD_DATA name a folder with logic/alfred.pddl and logic/alfred.twl2."
        )

    @classmethod
    def load(cls, folder: str | Path) -> Logic:
        """From a folder that holds alfred.pddl and alfred.twl2."""
        texts = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("alfred.pddl", "alfred.twl2")]
        return cls(*texts)


class _GameFile(msgspec.Struct):
    pddl_domain: str
    grammar: str
    pddl_problem: str


def read_game(folder: str | Path, task: str | None = None) -> Game:
    """The game of a trial's folder; `task` is another sentence to ask for it with.

    Raises:
        GameError: not a game file, or not one that the engine plays as the original does.
    """
    path = Path(folder) / GAME_FILE
    data = read_record(path, _GameFile, GameError, advice="A game file is JSON with pddl_domain, grammar and pddl_problem.")
    domain, grammar, problem = data.pddl_domain, data.grammar, data.pddl_problem
    try:
        _check_logic(domain, _TASK.sub("", grammar, count=1))
        return parse_game(problem, sentence(grammar) if task is None else task)
    except GameError as error:
        raise GameError(f"{path}: {error}") from error


def parse_game(problem: str, task: str) -> Game:
    """The game of a PDDL problem; `task` is the sentence that asks for it, without its full stop."""
    text = re.sub(r";[^\n]*", "", problem).lower()
    begin, end = text.find("(:init"), text.find("(:goal")
    if not 0 <= begin < end:
        raise GameError("the problem has no (:init ...) before a (:goal ...), so it describes no game.")
    facts: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for fact in text[begin:end].replace(")", " ").split("("):  # no fact that matters holds another one
        words = fact.split()
        if len(words) == 3:
            facts[words[0]].append((words[1], words[2]))
        elif len(words) == 2:
            facts[words[0]].append((words[1], ""))
    agents = facts["atlocation"]
    if len(agents) != 1 or facts["holds"] or facts["holdsany"]:
        raise GameError(
            f"{len(agents)} agents stand somewhere and hold {len(facts['holds'])} objects at the start: one agent with an empty "
            "hand can play."
        )
    known = {word for many in facts.values() for fact in many for word in fact}
    declared = {kind: [name for name in names if name in known] for kind, names in _declared(text[:begin]).items()}
    receptacles, objects = declared.get("receptacle", []), declared.get("object", [])
    names = game_names([*receptacles, *objects])
    kinds, places = dict(facts["receptacletype"]), dict(facts["receptacleatlocation"])
    for table, predicate in ((kinds, "receptacletype"), (places, "receptacleatlocation")):
        if len(table) < len(set(facts[predicate])):
            raise GameError(
                f"{predicate} is said {len(set(facts[predicate]))} times of {len(table)} receptacles: each can have one."
            )
    openable, opened = dict(facts["openable"]), dict(facts["opened"])
    flags, states = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for flag in FLAGS:
        for o, _ in facts[flag]:
            flags[o].append(flag)
    for predicate, state in _STATES.items():
        for o, _ in facts[predicate.lower()]:
            states[o].append(state)
    types, homes, spots, inside = map(
        _grouped, (facts["objecttype"], facts["inreceptacle"], facts["objectatlocation"], facts["inreceptacleobject"])
    )
    return Game(
        receptacles=tuple(
            Receptacle(r, _kind(kinds.get(r, "")), names[r], places.get(r, ""), r in openable, r in opened)
            for r in receptacles
        ),
        objects=tuple(
            Item(
                id=o,
                types=tuple(map(_kind, types[o])),
                name=names[o],
                flags=tuple(flags[o]),
                receptacles=tuple(homes[o]),
                locations=tuple(spots[o]),
                inside=tuple(inside[o]),
                states=tuple(states[o]),
            )
            for o in objects
        ),
        can_contain=tuple((_kind(holder), _kind(thing)) for holder, thing in facts["cancontain"]),
        start=agents[0][1],
        task=task,
        goal=_parse_goal(text[end:]),
        rules=ORIGINAL,
    )


def game_names(ids: Iterable[str]) -> dict[str, str]:
    """What the player reads for each id: the type with a number, counted down in the order of the ids."""
    ordered = sorted(ids)
    types = {i: i.partition("_bar_")[0] + ("basin" if "basin" in i else "") for i in ordered if "_bar_" in i}
    left = Counter(types.values())
    names = {}
    for i in ordered:
        if i in types:
            names[i] = f"{types[i]} {left[types[i]]}"
            left[types[i]] -= 1
        else:
            names[i] = reduce(lambda text, sign: text.replace(*sign), _ESCAPES, i) + " "
    return names


def folder_name(game: Game, scene: int) -> str:
    """Name of a trial's parent folder: the task in five words, as ALFRED has it."""
    goal = game.goal
    words = (goal.family, _spelled(goal.object_type), "None", _spelled(goal.receptacle_type or goal.toggle_type), str(scene))
    return "-".join(words)


def write_game(
    game: Game,
    folder: str | Path,
    logic: Logic,
    *,
    scene: int = 1,
    walkthrough: Sequence[str] = (),
    humans: Sequence[str] = (),
) -> None:
    """Write `game.tw-pddl`, `initial_state.pddl` and `traj_data.json` of one trial; the folder's name is the trial's.

    scene:       number of the room, as in ALFRED (kitchens from 1, living rooms 201, bedrooms 301, bathrooms 401)
    walkthrough: commands that win
    humans:      what people would say instead of the task's sentence
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    problem = problem_pddl(game, folder.name)
    if _SLOT not in logic.grammar:
        raise ConfigError(
            f"the grammar has no slot {_SLOT!r} for the task: alfred.twl2 of alfworld 0.4 has one. Give that file."
        )
    data = {
        "pddl_domain": logic.domain,
        "grammar": logic.grammar.replace(_SLOT, json.dumps(game.task)[1:-1]),
        "pddl_problem": problem,
        "solvable": True,
        "walkthrough": list(walkthrough),
    }
    goal = game.goal
    trajectory = {
        "task_id": folder.name,
        "task_type": goal.family,
        "pddl_params": {
            "object_target": _spelled(goal.object_type),
            "parent_target": _spelled(goal.receptacle_type),
            "mrecep_target": "",
            "toggle_target": _spelled(goal.toggle_type),
            "object_sliced": False,
        },
        "scene": {"floor_plan": f"FloorPlan{scene}", "scene_num": scene},
        "turk_annotations": {"anns": [{"task_desc": said, "high_descs": [], "votes": []} for said in humans or (game.task,)]},
    }
    (folder / GAME_FILE).write_text(json.dumps(data), encoding="utf-8")
    (folder / "initial_state.pddl").write_text(problem, encoding="utf-8")
    (folder / TRAJ_FILE).write_text(json.dumps(trajectory), encoding="utf-8")


def problem_pddl(game: Game, name: str = "household") -> str:
    """The game as a PDDL problem, with the predicates of ALFWorld's domain."""
    ids = _ids(game)
    places = sorted(
        {game.start, *(r.location for r in game.receptacles), *(at for o in game.objects for at in o.locations)} - {""}
    )
    location = {place: place if "_bar_" in place else f"loc_bar_{i}_bar_0_bar_0_bar_30" for i, place in enumerate(places)}
    # the domain names these types, so every problem must declare them
    holders = {"sinkbasin", "microwave", "fridge"} | {r.type for r in game.receptacles} | {r for r, _ in game.can_contain}
    kinds = (
        {"knife", "butterknife"} | {kind for o in game.objects for kind in o.types} | {kind for _, kind in game.can_contain}
    )
    facts: list[tuple[str, ...]] = [("atLocation", "agent1", location[game.start])]
    for r in game.receptacles:
        facts += [("receptacleType", ids[r.id], _type(r.type))] if r.type else []
        facts += [("receptacleAtLocation", ids[r.id], location[r.location])] if r.location else []
        facts += [("openable", ids[r.id])] if r.openable else []
        facts += [("opened", ids[r.id])] if r.opened else []
    facts += [("canContain", _type(holder), _type(kind)) for holder, kind in game.can_contain]
    states = {state: predicate for predicate, state in _STATES.items()}
    for o in game.objects:
        facts += [("objectType", ids[o.id], _type(kind)) for kind in o.types]
        facts += [(flag, ids[o.id]) for flag in o.flags]
        facts += [(states[state], ids[o.id]) for state in o.states]
        facts += [("inReceptacle", ids[o.id], ids[r]) for r in o.receptacles]
        facts += [("inReceptacleObject", ids[o.id], ids[outer]) for outer in o.inside]
        facts += [("objectAtLocation", ids[o.id], location[at]) for at in o.locations]
    declared = [
        "agent1 - agent",
        *(f"{_type(kind)} - rtype" for kind in sorted(holders - {""})),
        *(f"{_type(kind)} - otype" for kind in sorted(kinds)),
        *(f"{ids[o.id]} - object" for o in game.objects),
        *(f"{ids[r.id]} - receptacle" for r in game.receptacles),
        *(f"{location[place]} - location" for place in places),
    ]
    lines = [f"(define (problem plan_{name})", "(:domain alfred)", "(:objects", *declared, ")", "(:init"]
    return "\n".join([*lines, *(f"({' '.join(fact)})" for fact in facts), ")", _goal_pddl(game.goal), ")", ""])


def _ids(game: Game) -> dict[str, str]:
    """Ids as ALFRED has them, in the same order: those that have its form stay, others get a position for their number."""
    ids, numbers = {}, Counter[str]()
    things: list[Receptacle | Item] = [*game.receptacles, *game.objects]
    for thing in things:
        kind = thing.type if isinstance(thing, Receptacle) else thing.name.rpartition(" ")[0]
        if "_bar_" in thing.id:
            prefix, bar, rest = thing.id.partition("_bar_")
            ids[thing.id] = _spelled(prefix) + bar + rest
        else:
            base = kind.removesuffix("basin")
            tail = f"_bar_{_spelled(kind)}" if base != kind else ""
            position = f"_bar__plus_00_dot_{numbers[kind]:02d}_bar__plus_00_dot_00_bar__plus_00_dot_00"
            ids[thing.id] = _spelled(base) + position + tail
            numbers[kind] += 1
    return ids


def _spelled(kind: str) -> str:
    """A type as ALFRED spells it."""
    return _SPELLED.get(kind, kind.capitalize())


def _type(kind: str) -> str:
    return _spelled(kind) + "Type"


@lru_cache(maxsize=4096)
def _kind(name: str) -> str:
    return name.removesuffix("type")


def _grouped(facts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = defaultdict(list)
    for first, second in facts:
        table[first].append(second)
    return table


def _declared(text: str) -> dict[str, list[str]]:
    """The names of each type in ``(:objects a b - type ...)``."""
    words = text[text.find("(:objects") + 9 :].replace(")", " ").split()
    table: dict[str, list[str]] = defaultdict(list)
    first = 0
    for dash in [i for i, word in enumerate(words) if word == "-"]:
        for kind in words[dash + 1 : dash + 2]:
            table[kind] += words[first:dash]
        first = dash + 2
    return table


def sentence(grammar: str) -> str:
    """What the task rule of a grammar asks for, without its full stop."""
    found = _TASK.search(grammar)
    said = parse_json(f'"{found[1]}"', "the sentence of the grammar", GameError, strict=False) if found else ""
    if not said.endswith("."):
        raise GameError(f"the grammar asks for {said!r}: a sentence with a full stop is expected.")
    return said[:-1]


@lru_cache(maxsize=8)
def _check_logic(domain: str, grammar: str) -> None:
    missing = [text for text in TEXTS if text not in grammar] + [DOMAIN_TEXT] * (DOMAIN_TEXT not in domain)
    if missing:
        raise GameError(
            f"it lacks {len(missing)} of {len(TEXTS) + 1} texts that the engine is made for (the first is {missing[0]}): it is of "
            "another version of ALFWorld, and would play differently there. Get the files that alfworld 0.4 downloads, or play "
            "this one with ALFWorldEnv."
        )


def _goal_pddl(goal: Goal) -> str:
    family = FAMILIES[goal.family]
    thing, place = _type(goal.object_type), _type(goal.receptacle_type)
    if family.place == "lamp":
        return (
            f"(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot "
            f"{_type(goal.toggle_type)}) (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) "
            f"(inReceptacle ?ot ?r))) (exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o)))))"
        )
    states = {state: predicate for predicate, state in _STATES.items()}
    state = f"({family.flag} ?o) ({states[family.state]} ?o) " if family.state else ""
    one = f"(objectType ?o {thing}) (receptacleType ?r {place}) {state}(inReceptacle ?o ?r)"
    if family.count == 2:
        other = f"(objectType ?o2 {thing}) (receptacleType ?r {place}) (inReceptacle ?o2 ?r)"
        one += f" (exists (?o2 - object) (and (not (= ?o ?o2)) {other}))"
    return f"(:goal (and (exists (?r - receptacle) (exists (?o - object) (and {one})))))"


@lru_cache(maxsize=1024)
def _parse_goal(text: str) -> Goal:
    """The goal whose formula says the same as `text` (in lower case)."""
    said = _formula(text)
    things = [kind for predicate, kind in said if predicate == "objecttype"]
    places = [kind for predicate, kind in said if predicate == "receptacletype"]
    for name, family in FAMILIES.items():
        lamp = family.place == "lamp"
        for thing in things:
            other = next((kind for kind in things if kind != thing), thing) if lamp else next(iter(places), "")
            goal = Goal(name, _kind(thing), toggle_type=_kind(other)) if lamp else Goal(name, _kind(thing), _kind(other))
            if other and _formula(_goal_pddl(goal).lower()) == said and (not lamp or _lamp(text) == other):
                return goal
    raise GameError(
        f"the goal {' '.join(text.split())[:300]} is none of the six families' ({', '.join(FAMILIES)}): the engine cannot tell "
        "when it is reached. Leave the game out."
    )


def _formula(goal: str) -> Counter[tuple[str, str]]:
    """What a goal demands: each predicate with the type that it names, and each sign that is more than a conjunction."""
    facts = re.findall(r"\(\s*([\w=]+)((?:\s+[^\s()]+)+)\s*\)", goal)
    kinds = [(predicate, " ".join(word for word in rest.split() if not word.startswith("?"))) for predicate, rest in facts]
    return Counter([*kinds, *((sign, "") for sign in re.findall(r"\(\s*(not|or|imply|forall|when)\b", goal))])


def _lamp(goal: str) -> str:
    """Type of the thing that must be switched on."""
    variable = re.search(r"\(\s*istoggled\s+(\?\w+)", goal)
    found = re.search(rf"objecttype\s+{re.escape(variable[1])}\s+(\S+?)\s*\)", goal) if variable else None
    return found[1] if found else ""
