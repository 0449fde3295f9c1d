"""Steps per second of the household world on one core, admissible commands included.

`python benchmarks/household_steps.py` prints median and spread of several repeats, in processor time.
"""

import random
import statistics
import time
from collections.abc import Callable

from sdar.envs.household_engine import FAMILIES, Game, World
from sdar.envs.household_games import make_game, world_facts
from sdar.envs.household_planner import Expert

REPEATS = 7
STEPS = 40_000
EPISODE = 50


def random_steps(games: list[Game]) -> int:
    """Uniformly random admissible commands, in episodes of 50."""
    rng = random.Random(0)
    for number in range(STEPS // EPISODE):
        world = World(games[number % len(games)])
        for _ in range(EPISODE):
            admissible = world.admissible
            world.step(admissible[int(rng.random() * len(admissible))])
    return STEPS


def demonstrations(games: list[Game]) -> int:
    """Whole demonstrations by the expert that searches; each counts as one."""
    number = 600
    for index in range(number):
        game = games[index % len(games)]
        world, expert = World(game), Expert(game)
        while not world.won:
            command = expert.act(world)
            world.step(command)
            expert.watch(world, command)
    return number


def report(name: str, work: Callable[[list[Game]], int], games: list[Game]) -> None:
    work(games)
    rates = []
    for _ in range(REPEATS):
        begin = time.process_time()
        done = work(games)
        rates.append(done / (time.process_time() - begin))
    median = statistics.median(rates)
    print(f"{name:<32} median {median:>9,.0f}/s   min {min(rates):>9,.0f}   max {max(rates):>9,.0f}")


def main() -> None:
    usual = world_facts(0)
    for receptacles in (10, 30):
        games = [make_game(i, family=family, receptacles=receptacles, usual=usual) for family in FAMILIES for i in range(5)]
        report(f"steps, {receptacles} receptacles", random_steps, games)
        report(f"demonstrations, {receptacles} receptacles", demonstrations, games)
    report("games made, 10 receptacles", lambda games: len([make_game(i, usual=usual) for i in range(300)]), [])


if __name__ == "__main__":
    main()
