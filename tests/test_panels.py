"""Panels: lists of tasks that mean the same on every machine, and say so when they do not."""

import hashlib
import itertools
import json

import pytest
from scripted import Parrot

from sdar.data.panels import Panel, check_disjoint
from sdar.envs import HouseholdEnv
from sdar.errors import PanelError


def test_a_panel_is_named_by_its_ordered_tasks() -> None:
    panel = Panel("unseen", ("b", "a", "c"))
    assert len(panel) == 3
    assert panel.hash == hashlib.sha256(b"b\na\nc").hexdigest()[:12] == "ca51fc172948"
    assert Panel("another name", ("b", "a", "c")).hash == panel.hash
    assert Panel("unseen", ("a", "b", "c")).hash != panel.hash


def test_the_tasks_of_a_panel_never_change() -> None:
    """Frozen: a change here makes every number from before incomparable. Raise GENERATOR if it has to be."""
    env = HouseholdEnv(world=3, receptacles=12)
    panel = Panel.generate(env, "unseen", 60, seed=7)
    assert panel.name == "unseen" and panel.hash == "857140099ffb"
    games = hashlib.sha256("".join(env.game(t).hash() for t in panel.task_ids).encode()).hexdigest()[:12]
    assert games == "3843bd423e47"


def test_a_shorter_panel_is_the_beginning_of_a_longer_one() -> None:
    env = HouseholdEnv()
    assert Panel.generate(env, "seen", 5, 0).task_ids == Panel.generate(env, "seen", 9, 0).task_ids[:5]


def test_panels_of_different_seeds_and_splits_share_no_task() -> None:
    env = HouseholdEnv()
    sizes = ((0, 4), (1, 300), (12, 37))
    panels = [Panel.generate(env, split, n, seed) for split in ("train", "seen", "unseen") for seed, n in sizes]
    for a, b in itertools.combinations(panels, 2):
        assert not set(a.task_ids) & set(b.task_ids)
    check_disjoint(*panels[::3])


def test_unseen_rooms_are_not_rooms_of_training() -> None:
    """Not only other names: `seen` tasks play in the rooms of `train`, `unseen` tasks do not."""
    env = HouseholdEnv(rooms=1, families=["look_at_obj_in_light"], receptacles=20)

    def rooms(split: str) -> set[tuple[str, ...]]:
        return {tuple(r.type for r in env.game(t).receptacles) for t in env.task_ids(split, 40, 0)}

    assert rooms("seen") & rooms("train")
    assert not rooms("unseen") & rooms("train")


def test_a_saved_panel_is_the_same_panel(tmp_path) -> None:
    panel = Panel.generate(HouseholdEnv(), "seen", 7, 3)
    panel.save(tmp_path / "panels" / "seen.json")
    assert Panel.load(tmp_path / "panels" / "seen.json") == panel
    assert json.loads((tmp_path / "panels" / "seen.json").read_text())["hash"] == panel.hash


def test_a_panel_file_that_was_edited_is_refused(tmp_path) -> None:
    path = tmp_path / "panel.json"
    Panel("seen", ("a", "b", "c")).save(path)
    for edited in (["a", "c", "b"], ["a", "b"], ["a", "b", "d"]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"task_ids": edited}))
        message = rf"panel.json says hash \w+, but its {len(edited)} tasks hash to \w+: it was edited"
        with pytest.raises(PanelError, match=message):
            Panel.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[]",
        b'{"name": "x", "hash": "y"}',
        b'{"name": "x", "task_ids": ["a"]}',
        b'{"name": "x", "hash": "y", "task_ids": [1]}',
        b"\xff",
        b"[" * 100_000,
        b'{"name": "x", "hash": ' + b"1" * 5000 + b"}",
        b'{"name": ["u"], "hash": "y", "task_ids": ["a"]}',
    ],
)
def test_a_file_that_is_no_panel_is_refused(content: bytes, tmp_path) -> None:
    (tmp_path / "panel.json").write_bytes(content)
    with pytest.raises(PanelError, match=r"panel.json: .*\. A panel file holds name, hash and task_ids; restore it"):
        Panel.load(tmp_path / "panel.json")


@pytest.mark.parametrize("name", ["../../../escaped", "a/b", "..", "\x1b]0;x\x07", "a\nb", "\ud800", "x" * 300, " "])
def test_the_name_of_a_panel_is_a_word(name: str, tmp_path) -> None:
    """Files of a run are called after it, and it is printed."""
    Panel(name, ("task-1",)).save(tmp_path / "panel.json")
    with pytest.raises(PanelError, match=r"panel.json: the name .* (is|has|holds) ") as caught:
        Panel.load(tmp_path / "panel.json")
    assert str(caught.value).isprintable()
    Panel("x", ("task-1", "\x1b[31m")).save(tmp_path / "panel.json")
    with pytest.raises(PanelError, match=r"the task id '\\x1b\[31m' holds the character U\+001B"):
        Panel.load(tmp_path / "panel.json")


def test_a_file_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(PanelError, match=r"nowhere.json does not exist: give the path of a file that `Panel.save` wrote"):
        Panel.load(tmp_path / "nowhere.json")


def test_a_panel_needs_tasks_and_each_once() -> None:
    with pytest.raises(PanelError, match=r"panel 'seen' is empty: .*Ask for 1 task or more"):
        Panel("seen", ())
    with pytest.raises(PanelError, match=r"panel 'seen' is empty"):
        Panel.generate(Parrot(["x"]), "seen", 0, 0)
    with pytest.raises(PanelError, match=r"panel 'seen' names task b twice"):
        Panel("seen", ("a", "b", "c", "b"))


def test_panels_that_overlap_are_refused() -> None:
    with pytest.raises(PanelError, match=r"panels 'train' and 'hard' share 2 tasks \(for example b\)"):
        check_disjoint(Panel("train", ("a", "b", "c")), Panel("seen", ("x",)), Panel("hard", ("c", "b")))
    with pytest.raises(PanelError, match=r"two panels are called 'seen' \(hashes \w+ and \w+\): their numbers would be mixed"):
        check_disjoint(Panel("seen", ("a",)), Panel("seen", ("b",)))


def test_a_task_of_another_household_is_refused() -> None:
    """The same name would be another game."""
    [task_id] = HouseholdEnv(receptacles=8).task_ids("train", 1, 0)
    with pytest.raises(PanelError, match=r"belongs to a household with other settings \(fingerprint \w+, this one is \w+\)"):
        HouseholdEnv(receptacles=9).task(task_id)
    for wrong in ("", "webshop-1", "household-x-train-0-one", task_id.replace("train", "moon")):
        with pytest.raises(PanelError):
            HouseholdEnv(receptacles=8).task(wrong)


def test_settings_that_do_not_change_a_game_keep_its_name() -> None:
    env = HouseholdEnv(horizon=5, success_reward=1.0, split="seen")
    assert env.task_ids("train", 3, 0) == HouseholdEnv().task_ids("train", 3, 0)
