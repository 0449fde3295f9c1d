"""Our household engine says what the original says: every observation, every list of commands in its order, every end.

The original's answers in 14 full-size games and 9 odd ones stand in a file that `benchmarks/alfworld_parity.py --record` wrote.
The live comparison needs an interpreter that has the package alfworld:

    ALFWORLD_PYTHON=/path/to/python ALFWORLD_LOGIC=/path/to/alfworld/data python -m pytest -m slow tests/envs/test_alfworld_parity.py
"""

import hashlib
import importlib.util
import json
import lzma
import os
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from sdar.envs import ALFWorldEnv, HouseholdEnv
from sdar.envs import household_official as official
from sdar.envs.alfworld import Original
from sdar.envs.household_engine import FAMILIES, World
from sdar.envs.household_files import Logic, parse_game, problem_pddl
from sdar.envs.household_games import FAMILY_ROOMS
from sdar.envs.household_official import export_games, room_number

SAMPLE = json.loads(lzma.decompress((Path(__file__).parent / "data" / "alfworld_transcripts.json.xz").read_bytes()))


def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "alfworld_parity.py"
    spec = importlib.util.spec_from_file_location("alfworld_parity", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


PARITY = benchmark()
GAMES = {str(number): PARITY.game(number) for number in range(14)} | PARITY.odd_games()
EPISODES = {f"{episode['game']}, {episode['kind']}": episode for episode in SAMPLE["episodes"]}


def test_the_sample_is_about_these_games() -> None:
    """What the original was given is what is made now, so nothing below compares two different games."""
    assert SAMPLE["problems"] == {
        name: hashlib.sha256(problem_pddl(game).encode()).hexdigest() for name, game in GAMES.items()
    }


def test_the_sample_covers_every_family_room_and_way_to_play() -> None:
    games = [GAMES[str(number)] for number in range(14)]
    assert {(g.family, room_number(g)) for g in games} == {
        (family, {"kitchen": 1, "livingroom": 201, "bedroom": 301, "bathroom": 401}[room])
        for family in FAMILIES
        for room in FAMILY_ROOMS[family]
    }
    assert len(EPISODES) == 3 * len(GAMES)
    commands = [command for episode in EPISODES.values() for command in episode["commands"]]
    answers = [answer for episode in EPISODES.values() for answer in episode["answers"]]
    verbs = {command.partition(" ")[0] for command in commands}
    assert verbs >= {
        "go",
        "take",
        "move",
        "open",
        "close",
        "use",
        "heat",
        "cool",
        "clean",
        "examine",
        "look",
        "inventory",
        "help",
    }
    assert sum(answer["won"] for answer in answers) >= 20
    assert sum(answer["observation"] == "Nothing happens." for answer in answers) >= 100


@pytest.mark.parametrize("name", EPISODES)
def test_our_engine_says_what_the_original_said(name: str) -> None:
    episode = EPISODES[name]
    game = GAMES[episode["game"]]
    world = World(parse_game(problem_pddl(game), game.task))
    first, *answers = episode["answers"]
    assert {"observation": world.reset(), "admissible": world.admissible, "won": world.won, "score": 0} == first
    for command, answer in zip(episode["commands"], answers, strict=True):
        assert PARITY.answer(world, command) == answer, command


PYTHON = os.environ.get("ALFWORLD_PYTHON")
live = pytest.mark.skipif(not PYTHON, reason="ALFWORLD_PYTHON does not name an interpreter that has the package alfworld")


@pytest.fixture(scope="module")
def engine():
    engine = Original(PYTHON)
    yield engine
    engine.close()


@pytest.mark.slow
@live
def test_the_original_says_what_our_engine_says(engine) -> None:
    options = Namespace(
        first=300, games=int(os.environ.get("ALFWORLD_GAMES", 14)), steps=50, seed=1, all_ways=False, official=None
    )
    report = PARITY.run(engine, options)
    assert report.differences == [] and report.games == options.games


@pytest.mark.slow
@live
@pytest.mark.skipif(not os.environ.get("ALFWORLD_DATA"), reason="ALFWORLD_DATA does not name the folder of ALFWorld's files")
@pytest.mark.parametrize("split", official.FOLDERS.values())
def test_the_original_says_what_our_engine_says_on_its_own_files(engine, split: str) -> None:
    options = Namespace(
        first=0, games=int(os.environ.get("ALFWORLD_GAMES", 14)), steps=50, seed=0, all_ways=False, official=split
    )
    report = PARITY.run(engine, options)
    assert report.differences == [] and report.games


@pytest.mark.slow
@live
@pytest.mark.parametrize("human_goals", [False, True])
def test_both_environments_play_one_episode(human_goals: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    made = HouseholdEnv(receptacles="full")
    logic = Logic.load(os.environ["ALFWORLD_LOGIC"]) if os.environ.get("ALFWORLD_LOGIC") else Logic.installed()
    export_games({task_id: made.game(task_id) for task_id in made.task_ids("train", 6, 0)}, tmp_path, "train", logic)
    for path in tmp_path.rglob("traj_data.json"):
        told = json.loads(path.read_text())
        told["turk_annotations"]["anns"] = [{"task_desc": 'Do it, please \\ "now"'.replace('"', "'")}]
        path.write_text(json.dumps(told))
    ours = HouseholdEnv(data=str(tmp_path), human_goals=human_goals)
    theirs = ALFWorldEnv(data=str(tmp_path), human_goals=human_goals, python=PYTHON)
    task = ours.task(ours.task_ids("train", 6, 0)[0])
    assert theirs.reset(task) == ours.reset(task)
    for command in ["look", "fly", "", *ours.demonstration(task)]:
        assert theirs.admissible() == ours.admissible()
        assert theirs.step(command) == ours.step(command)
    assert theirs.running.answer["won"]
