"""ALFWorld's own games: all are found without what was said of them, their panels are the ones that are shipped."""

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


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason="ALFWorld's games are not beside the checkout")
def test_all_official_games_are_those_of_the_panels(tmp_path, monkeypatch):
    monkeypatch.setenv("SDAR_DATA", str(tmp_path))
    monkeypatch.setenv("SDAR_CACHE", str(tmp_path / "cache"))
    assert take_folder(find_data_set("alfworld").files[0], ARCHIVE, tmp_path / "alfworld") == 3553 + 140 + 134 + 200
    root = data_root("alfworld")
    found = {split: Panel(split, tuple(sorted(trials(root, split)))) for split in ("train", "seen", "unseen")}
    assert {split: (len(panel), panel.hash) for split, panel in found.items()} == {
        "train": (3553, "977a7afc87a7"),
        **{split: (len(panel), panel.hash) for split, panel in ((s, Panel.load(file)) for s, file in PANELS.items())},
    }
    env = HouseholdEnv(data="alfworld")
    assert env.task(found["unseen"].task_ids[0]).instruction
