"""The household engine beside the original one: the same game files, the same commands, one core, processor time.

    ALFWORLD_PYTHON=/path/to/python python benchmarks/household_speed.py

The interpreter needs the package alfworld; sdar may live in another one, and then ALFWORLD_LOGIC names the folder with its
alfred.pddl and alfred.twl2. Without the package only our side is measured, on files with a domain and grammar that say nothing.
"""

import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from sdar.envs import HouseholdEnv
from sdar.envs.alfworld import Original, original
from sdar.envs.household_engine import World
from sdar.envs.household_files import DOMAIN_TEXT, GAME_FILE, TEXTS, Logic, read_game
from sdar.envs.household_official import export_games
from sdar.errors import ConfigError
from sdar.rollout.pool import LocalPool

GAMES, EPISODE, REPEATS = 128, 50, 7


def main() -> None:
    env = HouseholdEnv(receptacles="full")
    engine = _original()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SDAR_CACHE"] = f"{folder}/cache"
        ids = env.task_ids("train", GAMES, 0)
        root = export_games({task_id: env.game(task_id) for task_id in ids}, folder, "train", _logic())
        trials = sorted(path.parent for path in root.rglob(GAME_FILE))
        size = statistics.mean(len(world.game.receptacles) for world in map(_world, trials))
        print(f"{GAMES} games, {size:.0f} receptacles and {_objects(trials):.0f} objects each on average")

        worlds = [_world(trial) for trial in trials]
        ours = best(lambda: play(worlds), GAMES * EPISODE)
        print(f"ours: {1e6 * ours:.1f} us a step, admissible commands included ({1 / ours:,.0f} steps/s)")
        load = best(lambda: [_world(trial).reset() for trial in trials], GAMES)
        games = [read_game(trial) for trial in trials]
        again = best(lambda: [World(game).reset() for game in games], GAMES)
        print(f"ours: load and reset {1e3 * load:.2f} ms from the file, {1e3 * again:.3f} ms for a game that is known")
        print(f"ours: {memory(trials) / 1024:.0f} kB a running game, each another game; {memory(trials[:1] * GAMES) / 1024:.1f} kB "
              "where all play one")  # fmt: skip
        parallel = pool(folder)
        print(f"ours: {GAMES} games in one process, through the pool: {1 / parallel:,.0f} steps/s")
        if engine is not None:
            load, step = theirs(engine, trials[:: GAMES // 6])
            print(f"original: load and reset {1e3 * load:.0f} ms, {1e3 * step:.1f} ms a step ({1 / step:.0f} steps/s)")
            print(f"ratio: {step / ours:,.0f} steps, {load / again:,.0f} load and reset")


def best(work: Callable[[], object], count: int) -> float:
    """Seconds of processor time for one of `count` things; the fastest of several repeats, which is the least disturbed."""
    times = []
    for _ in range(REPEATS):
        gc.collect()
        begin = time.process_time()
        work()
        times.append((time.process_time() - begin) / count)
    return min(times)


def something(world: World, rng: random.Random) -> str:
    """Something admissible, half of the time not walking or looking."""
    admissible = world.admissible
    doing = [c for c in admissible if not c.startswith(("go to", "examine", "help"))]
    return rng.choice(doing if rng.random() < 0.5 else admissible)


def play(worlds: list[World]) -> None:
    """Uniformly random admissible commands."""
    draw = random.Random(0).random
    for world in worlds:
        world.reset()
        for _ in range(EPISODE):
            admissible = world.admissible
            world.step(admissible[int(draw() * len(admissible))])


def memory(trials: list[Path]) -> float:
    """Bytes that one more running game takes, a few steps in."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    known = {trial: read_game(trial) for trial in set(trials)}
    worlds = [World(known[trial]) for trial in trials]
    rng = random.Random(0)
    for world in worlds:
        world.reset()
        for _ in range(10):
            world.step(something(world, rng))
            _ = world.admissible
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(worlds)


def pool(folder: str) -> float:
    env = HouseholdEnv(data=folder)
    tasks = {slot: env.task(task_id) for slot, task_id in enumerate(env.task_ids("train", GAMES, 0))}
    rng = random.Random(0)

    def rollout() -> None:
        local = LocalPool(env)
        seen = local.reset(tasks)
        for _ in range(EPISODE - 1):
            live = {slot: rng.choice(one.admissible) for slot, one in seen.items() if not one.result.done}
            seen = local.step(live)

    return best(rollout, GAMES * (EPISODE - 1))


def theirs(engine: Original, trials: list[Path]) -> tuple[float, float]:
    """Seconds of processor time of a load and reset, and of a step."""
    loads, steps = [], []
    rng = random.Random(0)
    for trial in trials:
        begin = engine.processor_time()
        engine.ask(slot="speed", load=str(trial / GAME_FILE), task=None)
        loads.append(engine.processor_time() - begin)
        world, begin = _world(trial), engine.processor_time()
        for _ in range(25):
            command = something(world, rng)
            world.step(command)
            engine.ask(slot="speed", act=command)
        steps.append((engine.processor_time() - begin) / 25)
    return statistics.median(loads), statistics.median(steps)


def _world(trial: Path) -> World:
    return World(read_game(trial))


def _objects(trials: list[Path]) -> float:
    return statistics.mean(len(read_game(trial).objects) for trial in trials)


def _logic() -> Logic:
    if os.environ.get("ALFWORLD_LOGIC"):
        return Logic.load(os.environ["ALFWORLD_LOGIC"])
    try:
        return Logic.installed()
    except ConfigError:
        return Logic(DOMAIN_TEXT, "\n".join([*TEXTS, json.dumps({"rhs": "Your task is to: UNKNOWN GOAL."})]))


def _original() -> Original | None:
    try:
        return original(os.environ.get("ALFWORLD_PYTHON"))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return None


if __name__ == "__main__":
    main()
