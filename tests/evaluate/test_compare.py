"""`sdar compare`: runs that were written by hand, read back, refused, compared, told and drawn."""

import csv
import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sdar.cli import main
from sdar.errors import ConfigError
from sdar.evaluate.command import main as command
from sdar.evaluate.compare import compare
from sdar.evaluate.curves import Curve
from sdar.evaluate.intervals import paired_difference
from sdar.evaluate.results import Setting, apart

TASKS = [f"heat/{i}" for i in range(6)] + [f"cool/{i}" for i in range(4)]


def episode(task: str, attempt: int, success: bool, status: str = "done") -> dict:
    return {
        "task": task,
        "family": task.partition("/")[0],
        "attempt": attempt,
        "status": status,
        "success": success,
        "reward": 10.0 * success,
    }


def measured(folder: Path, iteration: int, wins: list[str], panel: str = "unseen", **told: object) -> None:
    """A measurement as `sdar fit` leaves it; `wins` are the tasks that succeeded."""
    line = {"method": folder.parent.name, "seed": 0, "iteration": iteration, "env_steps": 100 * iteration, "panel": panel}
    line |= {"hash": "0123456789ab", "tasks": len(TASKS), "attempts": 1, f"success/{panel}": [0.5, 0.4, 0.6]} | told
    (folder / "episodes").mkdir(parents=True, exist_ok=True)
    with (folder / "validation.jsonl").open("a") as out:
        out.write(json.dumps(line) + "\n")
    episodes = [episode(task, 0, task in wins) for task in TASKS]
    file = folder / "episodes" / f"{panel}-policy-{iteration:06d}.jsonl"
    lines = "".join(json.dumps(e) + "\n" for e in episodes)
    if iteration:
        file.write_text(lines)  # as earlier releases wrote them
    else:
        file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def trained(
    folder: Path, seed: int, after: list[str], before: list[str] = TASKS[:1], speed: float = 1.0, **model: object
) -> Path:
    """A run of 20 iterations with 100 actions each, whose training success grows by `speed` percent an iteration."""
    measured(folder, 0, before, seed=seed)
    measured(folder, 20, after, seed=seed)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "model": {"init_args": model}, "data": {}}))
    names = ("step", "success/train", "train/env_steps", "rollout/tokens_per_second")
    with (folder / "metrics.csv").open("w") as out:
        table = csv.DictWriter(out, [*names, "time/rollout_s", "time/score_s", "time/update_s", "success/unseen"])
        table.writeheader()
        for i in range(1, 21):
            row = dict(zip(names, (i, speed * i / 100, 100 * i, 50.0), strict=True))
            table.writerow(row | {"time/rollout_s": 2.0, "time/score_s": 0.5, "time/update_s": 1.5})
            table.writerow({"step": i, "success/unseen": 0.5})  # of a validation: no iteration
    return folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three seeds of GRPO and three of SDAR, which wins four tasks more."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        trained(Path(f"runs/grpo/version_{seed}"), seed, TASKS[: 2 + seed % 2], speed=1)
        trained(Path(f"runs/sdar/version_{seed}"), seed, TASKS[: 6 + seed % 2], speed=2)
    return tmp_path


def compared(*words: str, **asked: object) -> dict:
    return compare(apart(map(Setting.read, words)), **asked)  # type: ignore[arg-type]


def test_seeds_of_two_settings_are_compared_on_the_same_tasks(there: Path) -> None:
    found = compared("runs/grpo", "runs/sdar")
    [panel] = found["panels"]
    assert (panel["panel"], panel["hash"], panel["tasks"], panel["attempts"]) == ("unseen", "0123456789ab", 10, 1)
    grpo, sdar = panel["settings"]
    assert [grpo["label"], sdar["label"]] == ["grpo", "sdar"] and [r["seed"] for r in grpo["runs"]] == [0, 1, 2]
    assert grpo["success"] == pytest.approx((0.2 + 0.3 + 0.2) / 3) and sdar["reward"] == pytest.approx(
        10 * (0.6 + 0.7 + 0.6) / 3
    )
    assert sdar["interquartile_mean"]["success"] == pytest.approx((0.25 * 0.6 + 0.6 + 0.25 * 0.7) / 1.5)
    assert sdar["runs"][0]["change"] == list(paired_difference([1.0] * 6 + [0.0] * 4, [1.0] + [0.0] * 9)[:3])
    [against] = panel["differences"]
    assert against["reference"] == "grpo" and against["success"]["varies"] == "seeds and tasks"
    mean, low, high = against["success"]["difference"]
    assert mean == pytest.approx(0.4) and -1 <= low < mean < high <= 1
    assert against["reward"]["difference"] == pytest.approx([10 * x for x in (mean, low, high)]), "scaled as rewards are"
    assert against["success"]["probability_of_improvement"]["over"] == "seeds"
    assert against["success"]["probability_of_improvement"]["estimate"][0] == 1
    assert {name: (of["tasks"], of["difference"][0]) for name, of in against["families"].items()} == {
        "cool": (4, pytest.approx(1 / 12)),  # the sixth and seventh task are of another family than the first ones
        "heat": (6, pytest.approx((4 + 3 + 4) / 18)),
    }
    assert found["notes"] == []


def test_one_setting_alone_is_a_table_of_its_runs(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["A=runs/sdar", "--json", "found.json"]) == 0
    said, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    assert found["panels"][0]["differences"] == [] and found["notes"] == []
    assert "| seed | A |" in said and said.count(" %, +") == 3 and "less" not in said
    with pytest.raises(ConfigError, match="--picture draws differences, and one setting is given"):
        command(["runs/sdar", "--picture", "found.svg"])


def test_one_seed_is_compared_over_tasks_alone_and_says_so(there: Path) -> None:
    found = compared("A=runs/grpo/version_0", "B=runs/sdar/version_0", "runs/sdar")
    [panel], notes = found["panels"], found["notes"]
    assert [of["label"] for of in panel["settings"]] == ["A", "B", "sdar"]
    one = panel["differences"][0]["success"]
    assert one["difference"] == pytest.approx(list(paired_difference([0.0] * 2 + [1.0] * 4 + [0.0] * 4, [0.0] * 10)[:3]))
    assert one["varies"] == "tasks" and one["probability_of_improvement"]["over"] == "tasks"
    assert one["probability_of_improvement"]["estimate"][0] == pytest.approx(0.5 + 0.4 / 2)
    assert any("how another seed would come out it does not tell" in note for note in notes)


def test_curves_are_read_at_the_same_cost(there: Path) -> None:
    """A run spends 100 actions, 100 tokens and 4 seconds an iteration; success is smoothed over five of them."""
    curve = Curve.read(Path("runs/grpo/version_0"))
    assert {name: (cost[0], cost[-1]) for name, cost in curve.costs.items()} == {
        "env_steps": (100, 2000),
        "tokens": (100, 2000),
        "seconds": (4, 80),
    }
    trained(Path("runs/slow/version_0"), 0, [], speed=2)
    table = Path("runs/slow/version_0/metrics.csv")
    table.write_text("\n".join(table.read_text().splitlines()[:21]))  # it ended after ten iterations
    curves = compared("runs/grpo", "runs/slow")["curves"]
    assert {cost: (of["at"][0], of["at"][-1]) for cost, of in curves.items()} == {
        "env_steps": (100, 1000),
        "tokens": (100, 1000),
        "seconds": (4, 40),
    }
    for of in curves.values():
        assert of["settings"]["slow"]["mean"][-1] == [pytest.approx(0.16), None, None]  # of one seed
        assert of["settings"]["grpo"]["mean"][-1] == pytest.approx([0.08] * 3)  # three that are alike
        assert np.shape(of["settings"]["grpo"]["seeds"]) == (3, 101)


def test_a_run_that_went_on_is_read_once(there: Path) -> None:
    """After an iteration was done twice, its later row and measurement count."""
    folder = Path("runs/grpo/version_0")
    with (folder / "metrics.csv").open("a") as out:
        out.write("20,0.9,2000,50,2,0.5,1.5,\n")
    measured(folder, 20, TASKS, seed=0)
    assert Curve.read(folder).success[-1] == 0.9 and len(Curve.read(folder).success) == 20
    assert compared("runs/grpo/version_0", "runs/sdar")["panels"][0]["settings"][0]["success"] == 1


def test_what_was_lost_is_in_no_number(there: Path) -> None:
    file = Path("runs/sdar/version_1/episodes/unseen-policy-000020.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(episode(TASKS[0], 0, False, "env_died")), *lines[1:]]))
    found = compared("runs/grpo", "runs/sdar")
    assert found["panels"][0]["tasks"] == 9 and "1 of the 10 tasks of panel unseen were lost" in found["notes"][0]


def test_an_earlier_measurement_and_other_costs_are_told(there: Path) -> None:
    measured(Path("runs/sdar/version_0"), 21, TASKS, seed=0)
    found = compared("runs/grpo", "runs/sdar")
    assert "sdar: 2,100, 2,000, 2,000" in found["notes"][0]
    assert compared("runs/grpo", "runs/sdar", iteration=20)["notes"] == []
    assert compared("runs/grpo", "runs/sdar", iteration=0)["panels"][0]["settings"][1]["success"] == pytest.approx(0.1)


def spoil(what: str) -> tuple[list[str], dict]:
    """Make a mistake with the runs; the words of the command."""
    words, other = ["runs/grpo", "runs/sdar"], Path("runs/sdar/version_0")
    if what == "another panel":
        measured(other, 30, TASKS, seed=0, hash="ba9876543210", tasks=64)
    elif what == "other attempts":
        measured(other, 30, TASKS, seed=0, attempts=4)
    elif what == "no common panel":
        (other / "validation.jsonl").unlink()
        measured(other, 0, TASKS, "seen", seed=0)
    elif what == "two settings":
        trained(Path("runs/sdar/version_7"), 7, TASKS, beta=3)
    elif what == "a seed twice":
        trained(Path("runs/sdar/version_7"), 1, TASKS)
    elif what == "no episodes":
        (other / "episodes/unseen-policy-000020.jsonl").unlink()
    elif what == "damaged episodes":
        (other / "episodes/unseen-policy-000020.jsonl").write_text('{"task": 3}')
    elif what == "nothing measured":
        (other / "validation.jsonl").write_text('{"panel": "held_out"}')
    elif what == "no run":
        words[1] = "runs/sdra"
    elif what == "no measurement":
        words[1] = "runs"
        for file in Path("runs").rglob("validation.jsonl"):
            file.unlink()
        words = words[1:] * 2
    return words, {"panel": "sen"} if what == "panel" else {"iteration": 7} if what == "iteration" else {}


REFUSED = {
    "another panel": r"panel unseen of runs/grpo/version_0 has hash 0123456789ab \(10 tasks, 1 attempts at each\), that of "
    r"runs/sdar/version_0 has hash ba9876543210 \(64 tasks.* Measure both on the same panel",
    "other attempts": r"has hash 0123456789ab \(10 tasks, 4 attempts at each\): where tasks or attempts differ",
    "no common panel": r"no panel was measured by all of these runs \(.*runs/sdar/version_0: seen.*data\.val_splits",
    "two settings": r"holds runs of 2 settings: version_0 and version_7 differ in model\.beta \(None, 3\)\..* sdar compare "
    r"runs/sdar/version_0,runs/sdar/version_1,runs/sdar/version_2 runs/sdar/version_7",
    "a seed twice": r"runs/sdar/version_1 and runs/sdar/version_7 are both of seed 1: the same run counted twice",
    "no episodes": r"unseen-policy-000020\.jsonl\.gz does not exist: how each attempt at panel unseen ended after iteration 20 is",
    "damaged episodes": r"line 1: Expected `str`, got `int`.*It is no file that a run wrote",
    "nothing measured": r"names no panel that was played: there is nothing to compare",
    "no run": r"runs/sdra is no folder: it is no run that measured something",
    "no measurement": r"runs holds no validation\.jsonl, and no folder version_N below it does",
    "panel": r"does not have a measurement of panel 'sen'; it has panel unseen after iteration 0, 20\. Correct",
    "iteration": r"does not have a measurement after iteration 7; it has panel unseen after iteration 0, 20\.",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compared_is_refused_by_name(there: Path, what: str) -> None:
    words, asked = spoil(what)
    with pytest.raises(ConfigError, match=REFUSED[what]):
        compared(*words, **asked)


def test_settings_with_the_same_method_are_told_apart(there: Path) -> None:
    words = ["runs/sdar/version_0", "runs/sdar/version_1,runs/sdar/version_2"]
    labels = [of["label"] for of in compared(*words)["panels"][0]["settings"]]
    assert labels == ["sdar (runs/sdar/version_0)", "sdar (runs/sdar/version_1)"]


def test_the_command_tells_writes_and_draws(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "runs/grpo", "runs/sdar", "--json", "found.json", "--picture", "found.svg"]) == 0
    told = capsys.readouterr().out
    assert "## unseen: 10 tasks, 1 attempt at each (panel 0123456789ab)\n\n| seed | grpo | sdar |\n|" in told
    assert re.search(r"^\| 0 \| 10\.0 % → 20\.0 %, \+10\.0 \[.*\] \| 10\.0 % → 60\.0 %, \+50\.0 \[", told, re.MULTILINE)
    assert re.search(
        r"^\| sdar \| \+40\.0 \[\S+, \S+\] \| \+4 \[.*\] \| 100 % \[\d+, 100\] over seeds \| seeds and tasks \|$", told, re.M
    )
    assert "| cool | 4 | 0.0 % → 8.3 %" in told and "| 2,000 environment steps | 18.0 % [18.0, 18.0] | 36.0 %" in told
    found = json.loads(Path("found.json").read_text())
    assert found == json.loads(json.dumps(compared("runs/grpo", "runs/sdar")))
    picture = Path("found.svg").read_text()
    for text in ("environment steps", "sampled tokens", "seconds of iterations", "points more than grpo", "heat", "sdar (3)"):
        assert text in picture
    assert main(["compare", "runs/grpo", "runs/sdar", "--picture", "again.svg"]) == 0
    assert Path("again.svg").read_text() == picture


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_read(
    there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file, why in (("found.xyz", "its name says which form it has"), ("no/found.svg", "there is no folder no")):
        assert main(["compare", "nowhere", "--picture", file]) == 2 and why in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", "nowhere", "--picture", "found.svg"]) == 2
    assert "--picture needs matplotlib, which is not installed: pip install" in capsys.readouterr().err


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    told = capsys.readouterr().out
    assert "sdar compare runs/grpo runs/sdar" in told and max(map(len, told.splitlines())) < 140
