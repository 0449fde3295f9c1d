"""ALFWorld's downloaded games: which there are, by ids that depend neither on the folder's place nor on its order.

``ROOT/json_2.1.1/{train,valid_seen,valid_unseen}/TASK-OBJECT-None-PLACE-SCENE/trial_.../{game.tw-pddl,traj_data.json}``; without the
second nobody's own words ask for a game. Left out, as in the original: folders of movable receptacles and sliced objects, and games that
were not shown to have a solution.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from tqdm import tqdm

from sdar.envs.household_engine import Game, GameError, World
from sdar.envs.household_files import GAME_FILE, TRAJ_FILE, Logic, folder_name, read_game, sentence, write_game
from sdar.envs.household_games import ROOMS
from sdar.envs.household_planner import plan
from sdar.envs.household_types import FAMILIES
from sdar.errors import ConfigError, PanelError
from sdar.paths import cache_folder, how_to_fetch, resolve
from sdar.reading import read_record

FOLDERS = {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
"""Split -> its folder."""

_FORMAT = 1
"""Version of a scan's file."""


@dataclass(frozen=True)
class Trial:
    """One game file: where it lies below the split's folder, and its family."""

    folder: str
    family: str


def data_root(data: str) -> Path:
    """The folder that holds the splits' folders. "official": the one that ALFWORLD_DATA names, else what `sdar fetch alfworld` brought.

    Raises:
        ConfigError: there is no such folder.
    """
    told = os.environ.get("ALFWORLD_DATA") or "alfworld" if data == "official" else data
    given = resolve(told)
    for root in (given / "json_2.1.1", given):
        if any((root / folder).is_dir() for folder in FOLDERS.values()):
            return root.resolve()
    if data == "official" and told == "alfworld":
        raise ConfigError(
            f"env.data is 'official', ALFWORLD_DATA is not set, and ALFWorld's games were not fetched.{how_to_fetch(told)} Where "
            "`alfworld-download` filled a folder, give that as ALFWORLD_DATA or env.data."
        )
    raise ConfigError(
        f"env.data names {str(given)!r}, which holds none of the folders {', '.join(FOLDERS.values())} (nor a json_2.1.1 with "
        f"them): there are no games. Give the folder that `alfworld-download` filled.{how_to_fetch(told)}"
    )


def trial_of(data: str, task_id: str) -> tuple[Path, Trial]:
    """The folder and the trial of a task id.

    Raises:
        PanelError: no such game here.
    """
    root = data_root(data)
    words = task_id.split("-", 2)
    if len(words) < 3 or words[0] != "alfworld" or words[1] not in FOLDERS:
        raise PanelError(f"{task_id!r} is no task of ALFWorld's files: ids look like alfworld-SPLIT-CONTENT-FOLDER.TRIAL.")
    found = trials(root, words[1]).get(task_id)
    if found is None:
        raise PanelError(
            f"task {task_id} is not among the games in {root / FOLDERS[words[1]]}: the id names a trial and the content of its "
            "game file. Use the files that the panel was made with."
        )
    return root / FOLDERS[words[1]] / found.folder, found


class _Description(msgspec.Struct):
    task_desc: str


class _Annotations(msgspec.Struct):
    anns: Annotated[list[_Description], msgspec.Meta(min_length=1)]


class _Said(msgspec.Struct):
    turk_annotations: _Annotations


class _Task(msgspec.Struct):
    task_type: str


class _Solvable(msgspec.Struct):
    solvable: bool | None = None
    grammar: str | None = None
    pddl_problem: str | None = None


@lru_cache(maxsize=1024)
def official_game(data: str, task_id: str, human: bool) -> Game:
    """The game of a task id; `human`: asked for in the words of one of ALFRED's annotators, the same for every attempt."""
    folder, _ = trial_of(data, task_id)
    said = None
    if human:
        if not (folder / TRAJ_FILE).exists():
            raise GameError(f"{folder} has no {TRAJ_FILE}, which tells what people said.{how_to_fetch('alfworld-words')}")
        advice = "Nobody said what to do there: set env.human_goals to false."
        told = read_record(folder / TRAJ_FILE, _Said, GameError, advice=advice).turk_annotations.anns
        said = told[int.from_bytes(hashlib.sha256(task_id.encode()).digest()[:4], "big") % len(told)].task_desc
    return read_game(folder, said)


def export_games(games: Mapping[str, Game], folder: str | Path, split: str, logic: Logic | None = None) -> Path:
    """Write games (by a name each) in the layout of the official files; returns the split's folder.

    The texts that belong to the original come from `logic`, by default the installed alfworld package.
    """
    logic = logic or Logic.installed()
    root = Path(folder) / "json_2.1.1" / FOLDERS[split]
    for number, (name, game) in enumerate(games.items()):
        scene = room_number(game) + number % 30
        digest = hashlib.sha256(name.encode()).hexdigest()
        trial = f"trial_T20200101_{int(digest[:5], 16) % 1_000_000:06d}_{number % 1_000_000:06d}"
        write_game(game, root / folder_name(game, scene) / trial, logic, scene=scene, walkthrough=plan(World(game)))
    texts = Path(folder) / "logic"
    texts.mkdir(parents=True, exist_ok=True)
    (texts / "alfred.pddl").write_text(logic.domain, encoding="utf-8")
    (texts / "alfred.twl2").write_text(logic.grammar, encoding="utf-8")
    return root


def room_number(game: Game) -> int:
    """The first of ALFRED's numbers for rooms of the kind that this one is most like."""
    types = [r.type for r in game.receptacles]
    kind = max(ROOMS, key=lambda room: sum(name in ROOMS[room] for name in types))
    return {"kitchen": 1, "livingroom": 201, "bedroom": 301, "bathroom": 401}[kind]


@lru_cache(maxsize=16)
def trials(root: Path, split: str) -> Mapping[str, Trial]:
    """The games of a split by task id. They are read once; later scans of unchanged files come from the cache.

    The cache's folder is ``$SDAR_CACHE``, else ``sdar`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    folder = root / FOLDERS[split]
    files = _listing(folder)
    if not files:
        raise PanelError(f"{folder} holds no {GAME_FILE}: there are no games of split {split!r}.")
    stamp = hashlib.sha256(json.dumps([_FORMAT, split, files]).encode()).hexdigest()
    cached = cache_folder() / "alfworld" / f"{stamp[:32]}.json"
    try:
        return {task_id: Trial(**found) for task_id, found in json.loads(cached.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # not scanned yet, or by a run that was interrupted
    found = {}
    for name, *_ in tqdm(files, desc=f"games of {FOLDERS[split]}", unit=" files"):
        one = _scan(folder, str(Path(name).parent), split) if name.endswith(GAME_FILE) else None
        if one is not None:
            found[one[0]] = one[1]
    found = dict(sorted(found.items()))
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({task_id: asdict(trial) for task_id, trial in found.items()}), encoding="utf-8")
        part.replace(cached)
    except OSError as error:
        warnings.warn(
            f"the scan of {len(files)} files of {folder} cannot be kept ({error}): every process scans them again. Set SDAR_CACHE to a "
            "folder that can be written to.",
            stacklevel=2,
        )
    return found


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every game file, and of the traj_data.json beside it where there is one, in the order of the names."""
    found = []
    for path, _, names in os.walk(folder):
        relative = Path(path).relative_to(folder).as_posix()
        if GAME_FILE in names and "movable" not in relative and "Sliced" not in relative:
            for name in {GAME_FILE, TRAJ_FILE}.intersection(names):
                status = os.stat(os.path.join(path, name))
                found.append((f"{relative}/{name}", status.st_size, status.st_mtime_ns))
    return sorted(found)


def _scan(root: Path, folder: str, split: str) -> tuple[str, Trial] | None:
    """Task id and trial; None for a game that the original leaves out as well. Where no traj_data.json tells the family, the first word of
    the task's folder does."""
    advice = f"{GAME_FILE} and {TRAJ_FILE} are JSON with pddl_problem, grammar and task_type. Download the file again, or remove it."
    told = root / folder / TRAJ_FILE
    family = read_record(told, _Task, GameError, advice=advice).task_type if told.exists() else folder.partition("-")[0]
    data = read_record(root / folder / GAME_FILE, _Solvable, GameError, advice=advice)
    if family not in FAMILIES or not data.solvable:
        return None
    if data.grammar is None or data.pddl_problem is None:
        raise GameError(f"{root / folder / GAME_FILE} has no grammar or no pddl_problem. {advice}")
    content = json.dumps([data.pddl_problem, sentence(data.grammar)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"alfworld-{split}-{digest}-{folder.replace('/', '.')}", Trial(folder, family)


def choose(found: Iterable[tuple[str, Trial]], families: list[str], count: int, seed: int, split: str) -> list[str]:
    """`count` ids in an order that the seed draws.

    Raises:
        PanelError: there are fewer.
    """
    ids = [task_id for task_id, trial in found if trial.family in families]
    if len(ids) < count:
        raise PanelError(
            f"split {split!r} of ALFWorld's files has {len(ids)} games of the {len(families)} families, and {count} tasks were "
            "asked for. Ask for fewer (data.train_tasks, data.val_tasks)."
        )
    return sorted(ids, key=lambda task_id: hashlib.sha256(f"{seed}/{task_id}".encode()).digest())[:count]
