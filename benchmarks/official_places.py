"""Where things usually are in ALFWorld's own training games, counted: the knowledge of `make real`'s teacher.

    python benchmarks/official_places.py --data alfworld --out conf/real/places.yaml [--shuffle SEED]

`--data` is what `data.env.data` says. For each type of things the types of places by the share of such places that hold one, in the rooms
that have such a thing; shares under 5 % are left out. `--shuffle` gives each thing the places of another, for a placebo. Twenty seconds.
"""

import argparse
import random
from pathlib import Path

import yaml

from sdar.envs.household_files import read_game
from sdar.envs.household_official import FOLDERS, data_root, trials
from sdar.envs.household_places import usual_places

HEAD = """\
# Where things usually are in ALFWorld's {games:,} training games: python benchmarks/official_places.py --data alfworld --out FILE{shuffled}
# Thing -> types of places by the share of such places that hold one, in rooms that have such a thing; shares of 5 % and more.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="alfworld")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--shuffle", type=int)
    given = parser.parse_args()
    root = data_root(given.data)
    folders = [root / FOLDERS["train"] / trial.folder for trial in trials(root, "train").values()]
    places = usual_places(map(read_game, folders))
    if given.shuffle is not None:
        others = random.Random(given.shuffle).sample([*places], len(places))
        places = dict(zip(others, [places[of] for of in [*others[1:], others[0]]], strict=True))
    shuffled = "" if given.shuffle is None else f" --shuffle {given.shuffle}"
    lines = [yaml.safe_dump({thing: places[thing]}, default_flow_style=None, width=1000) for thing in sorted(places)]
    given.out.write_text(HEAD.format(games=len(folders), shuffled=shuffled) + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
