"""ALFWorld's own games, played to their end in our engine: by our planner, and as the original's file says that it is done.

    python benchmarks/official_plans.py --data alfworld [--splits train seen unseen] [--games 100]

`--data` is what `data.env.data` says: a folder, or what `sdar fetch` brought. Tells for each split how many games there are, how many our
plan and how many the file's own walkthrough win, the mean number of commands of both, and every game that one of them loses; the exit
code is 1 if there is one. All 3,827 games take half a minute of one core.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sdar.envs.household_engine import World
from sdar.envs.household_files import GAME_FILE, read_game
from sdar.envs.household_official import FOLDERS, data_root, trials
from sdar.envs.household_planner import PlanError, plan
from sdar.reading import read_json


@dataclass(frozen=True)
class Played:
    """Commands that were given, and whether they reach the goal at their end and not before."""

    commands: tuple[str, ...]
    won: bool


def by_our_plan(folder: Path) -> Played:
    """The game of a trial's folder, as the planner plays it."""
    try:
        return played(folder, plan(World(read_game(folder))))
    except PlanError:
        return Played((), False)


def by_the_walkthrough(folder: Path) -> Played:
    """The same, as its file says."""
    return played(folder, read_json(folder / GAME_FILE)["walkthrough"])


def played(folder: Path, commands: list[str]) -> Played:
    """What commands come to."""
    world = World(read_game(folder))
    world.reset()
    won = []
    for command in commands:
        world.step(command)
        won.append(world.won)
    return Played(tuple(commands), won.count(True) == 1 and won[-1])


def games(data: str, split: str, most: int | None) -> Iterator[Path]:
    """The folders of a split's games; of fewer than all those that are evenly spread over the sorted ids."""
    root = data_root(data)
    found = [root / FOLDERS[split] / trial.folder for trial in trials(root, split).values()]
    step = 1 if most is None else max(1, len(found) // most)
    yield from found[::step][:most]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="official")
    parser.add_argument("--splits", nargs="+", choices=list(FOLDERS), default=list(FOLDERS))
    parser.add_argument("--games", type=int, help="of each split; by default all")
    asked = parser.parse_args()
    lost = []
    print("| split | games | our plan wins | commands | the walkthrough wins | commands |\n|---|---|---|---|---|---|")
    for split in asked.splits:
        folders = list(games(asked.data, split, asked.games))
        ours, theirs = [], []
        for folder in tqdm(folders, desc=split, unit=" games", disable=None):
            ours.append(by_our_plan(folder))
            theirs.append(by_the_walkthrough(folder))
            lost += [f"{name}: {folder}" for name, of in (("our plan", ours), ("walkthrough", theirs)) if not of[-1].won]
        cells = [f"{sum(p.won for p in of)} | {sum(len(p.commands) for p in of) / len(of):.1f}" for of in (ours, theirs)]
        print(f"| {split} | {len(folders)} | {' | '.join(cells)} |", flush=True)
    print("\n".join(lost))
    return int(bool(lost))


if __name__ == "__main__":
    raise SystemExit(main())
