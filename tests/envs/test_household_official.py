"""ALFWorld's files as an environment: which games there are, how they are called, and what is refused."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from sdar.envs import HouseholdEnv
from sdar.envs import household_official as official
from sdar.envs.household_engine import FAMILIES
from sdar.envs.household_files import DOMAIN_TEXT, TEXTS, Logic
from sdar.envs.household_official import FOLDERS, export_games
from sdar.envs.household_places import usual_places
from sdar.envs.household_types import places_in
from sdar.errors import ConfigError, PanelError
from sdar.types import Task

LOGIC = Logic(DOMAIN_TEXT, "\n".join([*TEXTS, '"rhs": "Your task is to: UNKNOWN GOAL."']))
MADE = HouseholdEnv(receptacles="full")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve games for training, six and six others."""
    folder = tmp_path_factory.mktemp("alfworld")
    for split, count in (("train", 12), ("seen", 6), ("unseen", 6)):
        ids = MADE.task_ids(split, count, 0)
        export_games({task_id: MADE.game(task_id) for task_id in ids}, folder, split, LOGIC)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    official.trials.cache_clear()
    official.official_game.cache_clear()
    return tmp_path / "cache" / "alfworld"


def test_the_games_are_those_that_were_written(data: Path) -> None:
    env = HouseholdEnv(data=str(data))
    for split, count in (("train", 12), ("seen", 6), ("unseen", 6)):
        written = {MADE.game(task_id).hash() for task_id in MADE.task_ids(split, count, 0)}
        assert {env.game(task_id).hash() for task_id in env.task_ids(split, count, 5)} == written
        assert len(written) == count
    assert (data / "logic" / "alfred.pddl").read_text() == LOGIC.domain


def test_ids_do_not_depend_on_the_folders_place_or_order_but_on_what_the_games_are(data: Path, tmp_path: Path) -> None:
    ids = HouseholdEnv(data=str(data)).task_ids("train", 12, 0)
    assert ids != HouseholdEnv(data=str(data)).task_ids("train", 12, 1)  # the seed orders them
    assert HouseholdEnv(data=str(data)).task_ids("train", 5, 0) == ids[:5]
    other = tmp_path / "movable" / "Sliced"  # words that only count below the split's folder
    shutil.copytree(data / "json_2.1.1", other)
    assert HouseholdEnv(data=str(other)).task_ids("train", 12, 0) == ids

    game = next((other / "train").rglob("game.tw-pddl"))
    told = json.loads(game.read_text())
    game.write_text(json.dumps(told | {"walkthrough": [], "pddl_domain": "x " + DOMAIN_TEXT}))  # not what the task is
    official.trials.cache_clear()
    assert HouseholdEnv(data=str(other)).task_ids("train", 12, 0) == ids
    game.write_text(json.dumps(told | {"pddl_problem": told["pddl_problem"].replace("(:init", "(:init (checked agent1)")}))
    official.trials.cache_clear()
    assert len(set(HouseholdEnv(data=str(other)).task_ids("train", 12, 0)) - set(ids)) == 1


def test_files_are_read_once_and_then_known_by_names_sizes_and_times(
    data: Path, cache: Path, tmp_path: Path, monkeypatch
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    env = HouseholdEnv(data=str(copied))
    assert not cache.exists()  # nothing happens before the first use
    ids = env.task_ids("seen", 6, 0)
    assert len(list(cache.iterdir())) == 1
    official.trials.cache_clear()
    monkeypatch.setattr(official, "_scan", None)  # another process finds the scan
    assert env.task_ids("seen", 6, 0) == ids
    monkeypatch.undo()
    monkeypatch.setenv("SDAR_CACHE", str(cache.parent))
    for damaged in ("{ damaged", "[1]", '{"a": 1}', '{"a": {"b": 1}}'):
        official.trials.cache_clear()
        next(iter(cache.iterdir())).write_text(damaged)
        assert env.task_ids("seen", 6, 0) == ids
    official.trials.cache_clear()
    shutil.rmtree(next((copied / "json_2.1.1" / "valid_seen").iterdir()))
    assert len(env.task_ids("seen", 5, 0)) == 5  # other files, another scan


def test_a_scan_that_cannot_be_kept_is_told_and_used(data: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "file" / "below"))
    official.trials.cache_clear()
    with pytest.warns(
        UserWarning, match=r"the scan of \d+ files of .* cannot be kept .*: every process scans them again\. Set SDAR_"
    ):
        assert len(set(HouseholdEnv(data=str(data)).task_ids("seen", 6, 0))) == 6
    official.trials.cache_clear()


def test_what_the_original_leaves_out_is_left_out(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    folder = tmp_path / "data" / "json_2.1.1" / "train"
    trials = sorted(path.parent for path in folder.rglob("game.tw-pddl"))

    def change(trial: Path, file: str, **fields: object) -> None:
        told = json.loads((trial / file).read_text())
        (trial / file).write_text(json.dumps({k: v for k, v in (told | fields).items() if v is not ...}))

    change(trials[0], "game.tw-pddl", solvable=False)
    change(trials[1], "game.tw-pddl", solvable=...)
    change(trials[2], "traj_data.json", task_type="pick_and_place_with_movable_recep")
    change(trials[3], "traj_data.json", task_type="pick_clean_and_cook")
    (trials[4] / "game.tw-pddl").unlink()
    trials[5].parent.rename(folder / "pick_and_place_simple-AppleSliced-None-Fridge-1")
    trials[6].parent.rename(folder / "pick_and_place_with_movable_recep-Apple-Bowl-Fridge-1")
    assert len(set(HouseholdEnv(data=str(tmp_path / "data")).task_ids("train", 5, 0))) == 5
    with pytest.raises(
        PanelError, match=r"split 'train' of ALFWorld's files has 5 games of the 6 families, and 6 tasks were asked"
    ):
        HouseholdEnv(data=str(tmp_path / "data")).task_ids("train", 6, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_can_be_chosen(data: Path, family: str) -> None:
    env = HouseholdEnv(data=str(data), families=[family])
    assert [env.task(task_id).family for task_id in env.task_ids("train", 2, 0)] == [family, family]
    with pytest.raises(PanelError, match="has 2 games of the 1 families, and 3 tasks were asked for"):
        env.task_ids("train", 3, 0)


def test_an_episode_of_a_file_is_one_of_the_household(data: Path) -> None:
    env = HouseholdEnv(data=str(data), horizon=30)
    for task in map(env.task, env.task_ids("unseen", 6, 0)):
        assert task.facts.keys() <= {*task.instruction.split()} and task.seed == int(task.id.split("-")[2], 16)
        assert env.reset(task).endswith(f"Your task is to: {task.instruction}.")
        results = [env.step(command) for command in env.demonstration(task)]
        assert [r.success for r in results] == [False] * (len(results) - 1) + [True]
        assert results[-1].reward == 10.0 and results[-1].done
        told = " ".join(f"The {thing} is usually in the {place}." for thing, place in task.facts.items())
        assert env.hint(task) == (told or f"Begin with: {env.demonstration(task)[0]}")
        env.reset(task)
        expert = env.expert({}, random.Random(0))
        for _ in range(30):
            command = expert.act()
            result = env.step(command)
            expert.watch(command)
        assert result.done


def steps(env: HouseholdEnv, task: Task, facts: dict[str, str]) -> int:
    """How many commands an expert needs who was told these facts."""
    env.reset(task)
    expert = env.expert(facts, random.Random(0))
    done, number = False, 0
    while not done:
        command, number = expert.act(), number + 1
        done = env.step(command).done
        expert.watch(command)
    return number


def test_facts_say_where_the_wanted_things_lie_or_where_such_things_usually_do(data: Path, tmp_path: Path) -> None:
    env = HouseholdEnv(data=str(data), horizon=30)
    told = 0
    tasks = [env.task(task_id) for task_id in env.task_ids("train", 12, 0)]
    for task in tasks:
        game = env.game(task.id)
        types = {r.id: r.type for r in game.receptacles}
        for thing, places in task.facts.items():
            lying = {types[r] for o in game.objects if thing in o.types for r in o.receptacles}
            assert (
                set(places_in(places)) <= lying
            )  # a place that it shall come to, and other things than the first four, are left out
            told += 1
    assert told >= 12
    assert sum(steps(env, task, task.facts) for task in tasks) < 0.8 * sum(steps(env, task, {}) for task in tasks)
    counted = usual_places(map(env.game, env.task_ids("train", 12, 0)), rooms=1)
    file = tmp_path / "places.yaml"
    file.write_text(json.dumps(counted), encoding="utf-8")
    knowing = HouseholdEnv(data=str(data), usual=str(file))
    for task in map(knowing.task, knowing.task_ids("unseen", 6, 0)):
        room = {r.type for r in knowing.game(task.id).receptacles}
        for thing, places in task.facts.items():
            assert places_in(places) == [place for place in counted[thing] if place in room][:4]
    assert any(knowing.task(task_id).facts for task_id in knowing.task_ids("unseen", 6, 0))


def test_what_is_no_file_of_usual_places_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"env\.usual names 'nowhere\.yaml', and there is no such file\. It holds for each type"
    ):
        HouseholdEnv(data=str(data), usual="nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("mug: desk", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml: Expected `array`, got `str` - at `\$\[\.\.\.\]`\. It holds for each"):
        HouseholdEnv(data=str(data), usual=str(tmp_path / "bad.yaml"))
    with pytest.raises(
        ConfigError, match=r"env\.usual tells where things are in ALFWorld's own games, and generated games have facts"
    ):
        HouseholdEnv(usual="conf/real/places.yaml")


def test_tasks_can_be_told_in_the_words_of_people(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").rglob("traj_data.json"):
        told = json.loads(path.read_text())
        told["turk_annotations"]["anns"] = [{"task_desc": f"{path.parent.name} said {i}"} for i in range(3)]
        path.write_text(json.dumps(told))
    env = HouseholdEnv(data=str(tmp_path / "data"), human_goals=True)
    ids = env.task_ids("train", 12, 0)
    said = [env.task(task_id).instruction for task_id in ids]
    assert all(task_id.split(".")[-1] == words.split()[0] for task_id, words in zip(ids, said, strict=True))
    assert len({words[-1] for words in said}) > 1  # not always the first of the three
    assert said == [env.task(task_id).instruction for task_id in ids]
    assert env.reset(env.task(ids[0])).endswith(f"Your task is to: {said[0]}.")
    plain = HouseholdEnv(data=str(tmp_path / "data"))
    assert plain.task(ids[0]).instruction != said[0]


def test_without_traj_data_a_game_is_of_the_family_that_its_folder_names(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data").rglob("traj_data.json"):
        path.unlink()
    env, whole = HouseholdEnv(data=str(tmp_path / "data")), HouseholdEnv(data=str(data))
    ids = env.task_ids("train", 12, 0)
    assert ids == whole.task_ids("train", 12, 0)
    assert [env.task(i) for i in ids] == [whole.task(i) for i in ids]
    with pytest.raises(
        Exception, match=r"has no traj_data.json, which tells what people said\. `sdar fetch alfworld-words` puts"
    ):
        HouseholdEnv(data=str(tmp_path / "data"), human_goals=True).task(ids[0])


def test_official_is_the_folder_that_alfworld_knows(data: Path, monkeypatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    env = HouseholdEnv(data="official")
    assert env.task_ids("train", 12, 0) == HouseholdEnv(data=str(data / "json_2.1.1")).task_ids("train", 12, 0)
    assert FOLDERS == {"train": "train", "seen": "valid_seen", "unseen": "valid_unseen"}
    monkeypatch.delenv("ALFWORLD_DATA")
    with pytest.raises(
        ConfigError, match=r"env.data is 'official', ALFWORLD_DATA is not set, .*`sdar fetch alfworld` puts.*alfworld-download"
    ):
        env.task_ids("train", 1, 0)


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds none of the folders train, valid_seen, valid_unseen"):
        HouseholdEnv(data=str(tmp_path)).task_ids("train", 1, 0)
    with pytest.raises(ConfigError, match=r"files and not from the generator: env.world, env.rooms would have no effect"):
        HouseholdEnv(data=str(data), world=3, rooms=7)
    with pytest.raises(
        ConfigError, match=r"env.receptacles is 'full', and such scenes have no hidden facts: env.world would .*Remove it"
    ):
        HouseholdEnv(receptacles="full", world=1)
    with pytest.raises(ConfigError, match=r"env.human_goals is true, but generated games have no annotators"):
        HouseholdEnv(human_goals=True)
    env = HouseholdEnv(data=str(data))
    task_id = env.task_ids("train", 1, 0)[0]
    for wrong in ("household-1-train-0-0", "alfworld-nowhere-0-x", "alfworld"):
        with pytest.raises(
            PanelError, match=r"is no task of ALFWorld's files: ids look like alfworld-SPLIT-CONTENT-FOLDER.TRIAL"
        ):
            env.task(wrong)
    with pytest.raises(PanelError, match=r"is not among the games in .*valid_seen: the id names a trial and the content"):
        env.task(task_id.replace("train", "seen"))
    (tmp_path / "json_2.1.1" / "train" / "a" / "b").mkdir(parents=True)
    with pytest.raises(PanelError, match="there are no games of split 'train'"):
        HouseholdEnv(data=str(tmp_path)).task_ids("train", 1, 0)
    for name in ("game.tw-pddl", "traj_data.json"):
        (tmp_path / "json_2.1.1" / "train" / "a" / "b" / name).write_text("[1]")
    with pytest.raises(Exception, match=r"traj_data.json: Expected .*Download the file again"):
        HouseholdEnv(data=str(tmp_path)).task_ids("train", 1, 0)


def test_full_scenes_are_tasks_of_the_household() -> None:
    ids = [MADE.task_ids(split, 6, 0) for split in MADE.splits]
    games = [MADE.game(task_id) for many in ids for task_id in many]
    assert len({game.hash() for game in games}) == 18
    assert [MADE.task(task_id).family for task_id in ids[0]] == list(FAMILIES)
    assert not {r.id for g in games[6:12] for r in g.receptacles}.isdisjoint(r.id for g in games[:6] for r in g.receptacles)
    assert {r.id for g in games[12:] for r in g.receptacles}.isdisjoint(r.id for g in games[:12] for r in g.receptacles)
    texts, phrases = MADE.corpus(random.Random(0))
    assert len(texts) > 1000 and phrases
    assert os.environ["SDAR_CACHE"]  # nothing was written into somebody's home
