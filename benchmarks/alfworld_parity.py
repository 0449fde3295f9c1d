"""Our household engine beside the original one: the same games, the same commands, every answer compared.

    ALFWORLD_PYTHON=/path/to/python python benchmarks/alfworld_parity.py --games 300
    ALFWORLD_PYTHON=... ALFWORLD_DATA=... python benchmarks/alfworld_parity.py --official valid_seen --games 140

The interpreter needs the package alfworld (`pip install alfworld pyyaml`); sdar may live in another one, and then
ALFWORLD_LOGIC names the folder with alfred.pddl and alfred.twl2 (alfworld/data of that package). Games are generated in the
full official size unless a split of the official files is named. They are played as the expert does (with noise), at random,
and with commands that the game must refuse among others: in turn, or each game in all three ways (--all-ways). Prints the
differences and what was compared; the exit code is 1 if there was one.
"""

import argparse
import hashlib
import json
import lzma
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdar.envs.alfworld import Original, original
from sdar.envs.household_engine import FAMILIES, Game, World
from sdar.envs.household_files import GAME_FILE, Logic, folder_name, problem_pddl, read_game, write_game
from sdar.envs.household_games import FAMILY_ROOMS
from sdar.envs.household_official import room_number
from sdar.envs.household_planner import Expert, PlanError
from sdar.envs.household_scenes import make_scene

MADE = {"clean": "cleanable", "cool": "coolable", "hot": "heatable", "on": "toggleable", "sliced": "sliceable"}
"""What a thing can become -> the flag that allows it."""

KINDS = ("expert", "random", "adversarial")
HOSTILE = (
    "", "   ", "\t\n", "look around", "LOOK", "Look", " look ", "look\n", "go  to fridge 1", "go to", "go to nowhere 1", "take",
    "open", "help me", "inventory ", "examine", "use", "0", "None", "null", "{o.name}", "go to {r}", "#look.feedback#", "[]", "\x00",
    "look\x00", "\u00a0look\u2003", "go to \u51b0\u7bb1 1", "\u202elook\u202c", "\U0001f9ca", "'; drop table", "<|im_end|>", "</s>",
    "slice apple 1 with apple 1", "heat microwave 1 with microwave 1", "take fridge 1 from fridge 1", "a" * 3000,
)  # fmt: skip
"""Commands that are malformed, empty, in other alphabets, in upper case, or about things that cannot be."""


@dataclass
class Report:
    games: int = 0
    answers: int = 0
    refused: int = 0
    won: int = 0
    original_seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    families: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


def commands(world: World, kind: str, rng: random.Random) -> Iterator[str]:
    """What to do next, forever; `world` is the state to choose from."""
    expert = Expert.all_knowing(world.game)
    while True:
        admissible = world.admissible
        if kind == "expert" and rng.random() < 0.8:
            try:
                command = expert.act(world)
            except PlanError:
                command = rng.choice(admissible)
        elif kind == "adversarial" and rng.random() < 0.6:
            command = _spoiled(world, rng)
        else:  # walking about is most of what can be done: half of the time do something else
            doing = [c for c in admissible if not c.startswith(("go to", "examine", "help"))]
            command = rng.choice(doing if rng.random() < 0.5 else admissible)
        yield command


def _spoiled(world: World, rng: random.Random) -> str:
    names = [*world.tables.receptacle_names, *world.tables.object_names]
    one, other = rng.choice(names), rng.choice(names)
    command = rng.choice(world.admissible)
    return rng.choice(
        [
            rng.choice(HOSTILE), command.upper(), command.replace(" ", "  "), f"  {command}\n", command[:-1], command + " 1",
            f"take {one} from {other}", f"move {one} to {other}", f"go to {one}", f"open {one}", f"close {one}", f"use {one}",
            f"examine {one}", f"slice {one} with {other}", f"heat {one} with {other}", f"clean {one} with {other}",
            f"cool {one} with {other}", f"put {one} in/on {other}",
        ]
    )  # fmt: skip


def compare(
    engine: Original, path: Path, kind: str, steps: int, seed: str, report: Report
) -> tuple[list[str], list[dict[str, Any]]]:
    """One episode of both engines; the commands and the original's answers."""
    world, rng = World(read_game(path.parent)), random.Random(seed)
    begin = time.perf_counter()
    theirs = engine.ask(slot="parity", load=str(path), task=None)
    ours = {"observation": world.reset(), "admissible": world.admissible, "won": world.won, "score": 0}
    past: list[str] = []
    answers = [theirs]
    for command in commands(world, kind, rng):
        report.original_seconds += time.perf_counter() - begin
        report.answers += 1
        if theirs != ours:
            wrong = {key: (theirs[key], ours[key]) for key in ours if theirs[key] != ours[key]}
            report.differences.append(f"{path} after {past!r}: (original, ours) {str(wrong)[:2000]}")
            break
        if len(past) == steps:
            break
        past.append(command)
        ours = answer(world, command)
        report.refused += not world.accepted
        begin = time.perf_counter()
        theirs = engine.ask(slot="parity", act=command)
        answers.append(theirs)
    report.won += world.won
    report.kinds[kind] += 1
    return past, answers


def answer(world: World, command: str) -> dict[str, Any]:
    """What our engine says to a command, in the form of the original's answer."""
    observation = world.step(command)
    return {"observation": observation, "admissible": world.admissible, "won": world.won, "score": int(world.won)}


def game(number: int, seed: int = 0) -> Game:
    """A full-size game; 14 numbers in a row cover every family in each room where it is possible."""
    pairs = [(family, room) for family in FAMILIES for room in FAMILY_ROOMS[family]]
    family, room = pairs[number % len(pairs)]
    return make_scene(f"parity/{seed}/{number}", family=family, room=room, layout=number // len(pairs))


def odd_games() -> dict[str, Game]:
    """What a file may say although none that is known does."""
    simple, heat, look = (
        make_scene("odd", family=family, room=FAMILY_ROOMS[family][0])
        for family in ("pick_and_place_simple", "pick_heat_then_place_in_recep", "look_at_obj_in_light")
    )
    done = [replace(o, states=tuple(s for s, f in MADE.items() if f in o.flags)) for o in heat.objects]
    place = next(r for r in simple.receptacles if r.type == simple.goal.receptacle_type and r.location)
    target = next(o for o in simple.objects if simple.goal.object_type in o.types)
    put = [replace(o, receptacles=(place.id,)) if o == target else o for o in simple.objects]
    needed = {simple.goal.receptacle_type} | {r.type for r in simple.receptacles if r.id in target.receptacles}
    far = [replace(r, location="") if i % 2 and r.type not in needed else r for i, r in enumerate(simple.receptacles)]
    kinds = [replace(o, types=(*o.types, "knife")) if "pickupable" in o.flags else o for o in heat.objects]
    return {
        "things were done before": replace(heat, objects=tuple(done)),
        "doors stand open": replace(heat, receptacles=tuple(replace(r, opened=r.openable) for r in heat.receptacles)),
        "won at the start": replace(simple, objects=tuple(put)),
        "half of the room is nowhere": replace(simple, receptacles=tuple(far)),
        "things of two types": replace(heat, objects=tuple(kinds)),
        "begins at a receptacle": replace(look, start=look.receptacles[0].location or look.start),
        "the sentence has a sign of the grammar": replace(look, task="look, it's 5% dark (caf\u00e9, \u51b0); see | here"),
        "the sentence has lines": replace(look, task="look at it\n  twice\t//now"),
        "lamps everywhere": replace(
            look, objects=tuple(replace(o, flags=tuple({*o.flags, "toggleable"})) for o in look.objects)
        ),
    }


def generated(root: Path, first: int, count: int, seed: int) -> Iterator[Path]:
    """Full-size games, written as they are asked for."""
    logic = Logic.load(os.environ["ALFWORLD_LOGIC"]) if os.environ.get("ALFWORLD_LOGIC") else Logic.installed()
    for number in range(first, first + count):
        yield write(game(number, seed), root, f"trial_T{seed:08d}_{number:06d}", logic)


def write(game: Game, root: Path, trial: str, logic: Logic) -> Path:
    folder = root / folder_name(game, room_number(game)) / trial
    write_game(game, folder, logic, scene=room_number(game))
    return folder / GAME_FILE


def record(engine: Original, to: Path, steps: int) -> Report:
    """Write what the original answers in 14 games and the odd ones: the sample that the tests hold our engine against."""
    report = Report()
    games = {str(number): game(number) for number in range(14)} | odd_games()
    logic = Logic.load(os.environ["ALFWORLD_LOGIC"]) if os.environ.get("ALFWORLD_LOGIC") else Logic.installed()
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for name, one in games.items():
            path = write(one, Path(folder), "trial_" + hashlib.sha256(name.encode()).hexdigest()[:8], logic)
            for kind in KINDS:
                told, answers = compare(engine, path, kind, steps, f"{name}/{kind}", report)
                entries.append({"game": name, "kind": kind, "commands": told, "answers": answers})
            report.games += 1
            print(f"{report.games}/{len(games)} games, {len(report.differences)} differences", flush=True)
    problems = {name: hashlib.sha256(problem_pddl(one).encode()).hexdigest() for name, one in games.items()}
    with lzma.open(to, "wt", encoding="utf-8", preset=9) as file:
        json.dump({"problems": problems, "episodes": entries}, file)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=300)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first game, to share the work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-ways", action="store_true", help="play each game three times")
    parser.add_argument("--official", help="a split below $ALFWORLD_DATA/json_2.1.1 instead of generated games")
    parser.add_argument("--record", type=Path, help="write the tests' sample there instead (20 steps are enough)")
    options = parser.parse_args()
    engine = original(os.environ.get("ALFWORLD_PYTHON"))
    report = record(engine, options.record, options.steps) if options.record else run(engine, options)
    for difference in report.differences:
        print(difference)
    print(json.dumps({k: v for k, v in vars(report).items() if k != "differences"}))
    print(f"{len(report.differences)} differences in {report.answers} answers of {report.games} games")
    return int(bool(report.differences))


def run(engine: Original, options: argparse.Namespace) -> Report:
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        if options.official:
            split = Path(os.environ["ALFWORLD_DATA"]) / "json_2.1.1" / options.official
            found = sorted(path for path in split.rglob(GAME_FILE) if not re.search("movable|Sliced", str(path)))
            files: Iterable[Path] = found[options.first : options.first + options.games]
        else:
            files = generated(Path(folder), options.first, options.games, options.seed)
        for number, path in enumerate(files, options.first):
            for kind in KINDS if options.all_ways else KINDS[number % len(KINDS) :][:1]:
                compare(engine, path, kind, options.steps, f"{options.seed}/{number}/{kind}", report)
            report.games += 1
            report.families[path.parent.parent.name.partition("-")[0]] += 1
            if report.games % 10 == 0:
                print(f"{report.games} games, {report.answers} answers, {len(report.differences)} differences", flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())
