"""ALFWorld's own games: all are found without what was said of them, their panels are the ones that are shipped."""

import runpy
from pathlib import Path

import pytest

from sdar.data import Panel
from sdar.envs import HouseholdEnv
from sdar.envs.household_official import data_root, trials
from sdar.envs.household_types import FAMILIES
from sdar.fetching.at_hand import take_folder
from sdar.fetching.catalogue import find_data_set

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "alfworld_games.tar.xz"
PANELS = {"seen": "conf/panels/alfworld_valid_seen.json", "unseen": "conf/panels/alfworld_valid_unseen.json"}


@pytest.mark.parametrize(("split", "count"), [("seen", 140), ("unseen", 134)])
def test_the_official_panels_are_shipped(split, count):
    panel = Panel.load(PANELS[split])
    assert len(panel) == count and panel.name == f"alfworld_valid_{split}" and list(panel.task_ids) == sorted(panel.task_ids)
    assert {i.split("-")[3].split(".")[0] for i in panel.task_ids} == set(FAMILIES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The games, unpacked as `sdar fetch alfworld --from` does it."""
    if not ARCHIVE.exists():
        pytest.skip("ALFWorld's games are not beside the checkout")
    folder = tmp_path_factory.mktemp("fetched")
    assert take_folder(find_data_set("alfworld").files[0], ARCHIVE, folder / "alfworld") == 3553 + 140 + 134 + 200
    return folder


@pytest.fixture(autouse=True)
def fetched(request, monkeypatch):
    if "root" in request.fixturenames:
        monkeypatch.setenv("SDAR_DATA", str(request.getfixturevalue("root")))
        monkeypatch.setenv("SDAR_CACHE", str(request.getfixturevalue("root") / "cache"))


@pytest.mark.slow
def test_all_official_games_are_those_of_the_panels(root):
    found = {split: Panel(split, tuple(sorted(trials(data_root("alfworld"), split)))) for split in ("train", "seen", "unseen")}
    assert {split: (len(panel), panel.hash) for split, panel in found.items()} == {
        "train": (3553, "977a7afc87a7"),
        **{split: (len(panel), panel.hash) for split, panel in ((s, Panel.load(file)) for s, file in PANELS.items())},
    }
    env = HouseholdEnv(data="alfworld")
    assert env.task(found["unseen"].task_ids[0]).instruction


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_our_plan_and_the_files_walkthrough_win_games_of_every_split(root, split):
    """Of all games: `python benchmarks/official_plans.py`."""
    plans = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "official_plans.py"))
    folders = list(plans["games"]("alfworld", split, 40))
    assert len(folders) == 40
    assert [folder for folder in folders if not plans["by_our_plan"](folder).won] == []
    assert [folder for folder in folders if not plans["by_the_walkthrough"](folder).won] == []
    assert not plans["played"](folders[0], ["look"]).won
