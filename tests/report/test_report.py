"""`sdar report`: what of a run's folder is on the page, and that the page needs nothing else."""

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from left_run import left_run

from sdar.cli import main
from sdar.episodes import read
from sdar.report.changed import changed
from sdar.report.gather import Run, runs_of
from sdar.report.page import page
from sdar.report.viewed import choose, viewed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return left_run(tmp_path_factory.mktemp("runs") / "version_0", words=" </script><script>alert(1)</script> & \u2028 ünï")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return page(runs_of([f"SDAR={folder}"]))


def data(text: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def cells(text: str, section: str) -> list[list[str]]:
    """The rows of a section's table."""
    inside = re.search(rf'<section id="{section}">(.*?)</section>', text, re.DOTALL)[1]
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", inside, re.DOTALL)]


def test_results_alarms_and_families_are_those_of_the_folder(text: str, folder: Path) -> None:
    [[label, run, seed, panel, before, after, change, teacher, lift]] = cells(text, "result")
    assert (label, run, seed, panel) == ("SDAR", str(folder), "0", "unseen (6 tasks, abcdef012345)")
    assert (before, after) == ("20.0 % [10.0, 30.0]", "60.0 % [50.0, 70.0]")
    assert change.startswith("+33.3 [")  # of six tasks two more
    assert teacher == "80.0 % [70.0, 90.0]" and lift == "+20.0 [+10.0, +90.0]"
    assert cells(text, "alarms") == [["SDAR, version_0", "3", "gate_saturated", "gate/mean is 0.999", "at most 0.98", "Look."]]
    assert [row[2:] for row in cells(text, "families")] == [
        [f, "20.0 % [10.0, 30.0]", "60.0 % [50.0, 70.0]"] for f in ("heat", "clean")
    ]


def test_a_skill_is_told_by_family_with_what_it_was_worth(text: str) -> None:
    rows = {(row[1], row[2]): row[3:] for row in cells(text, "skills")}
    assert {key: row[0] for key, row in rows.items()} == {  # twelve attempts at each of six tasks
        ("fact:mug", "heat"): "24", ("fact:mug", "clean"): "24", ("fact:egg", "heat"): "12", ("fact:egg", "clean"): "12"
    }  # fmt: skip
    assert rows["fact:mug", "heat"][1].startswith("33.3 %") and rows["fact:mug", "heat"][2].startswith("33.3 %")
    # task-4 is heat with the mug: the teacher reaches it and the policy does not, before and after; task-2 after as well
    assert rows["fact:mug", "heat"][3].startswith("+75.0 [")


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(text: str) -> None:
    outside = re.sub(r'<script id="data".*?</script>', "", text, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', outside) == [] and "@import" not in outside and "url(http" not in outside
    scripts = re.findall(r"<script>(.*?)</script>", outside, re.DOTALL)
    [allowed] = re.findall(r"script-src '(sha256-[^']+)'", text)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == [
        allowed.removeprefix("sha256-")
    ]
    assert "default-src 'none'" in text and "alert(1)</script>" not in text


def test_the_viewer_has_each_episode_with_the_numbers_of_its_tokens(text: str, folder: Path) -> None:
    told, stored = data(text), read(folder)
    assert len(told["episodes"]) == len(stored) == 6 * 12 + 4 * 6
    first = told["episodes"][0]
    assert (first["what"], first["iteration"]) == ("train", 6)
    same = next(e for e in stored if (e.kind, e.iteration, e.task, e.attempt) == ("train", 6, first["task"], first["attempt"]))
    assert told["texts"][first["instruction"]] == same.instruction and "</script>" in same.instruction
    assert first["turns"][0]["values"]["gap"] == same.turns[0].gap and first["turns"][0]["pieces"] == same.turns[0].pieces
    assert told["texts"][first["turns"][0]["teacher_prompt"]] == same.turns[0].teacher_prompt
    bounds = {field["name"]: field["bound"] for field in told["fields"]}
    assert bounds["gate"] == 1 and bounds["gap"] > 0 and "old_logp" not in bounds
    assert Counter(e["what"] for e in told["episodes"]) == {
        "train": 72,
        "validation unseen": 12,
        "validation unseen (teacher plays)": 12,
    }


def test_of_many_episodes_the_last_and_first_measured_and_then_the_newest_are_shown(folder: Path) -> None:
    chosen = [(e.kind, e.iteration) for e in choose(read(folder), 30)]
    assert Counter(chosen) == {("validation", 6): 12, ("validation", 0): 12, ("train", 6): 6}
    assert len(choose(read(folder), 1000)) == 96 and choose(read(folder), 0) == []


def test_pictures_do_not_get_into_each_others_way(text: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    ids = [i for picture in drawn for i in set(re.findall(r'\bid="([^"]+)"', picture))]
    assert len(drawn) >= 8 and max(Counter(ids).values()) == 1
    for picture in drawn:
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', picture)) <= set(re.findall(r'\bid="([^"]+)"', picture))
    for title in ("success in training", "gate", "size of the gap by turn", "gap, SDAR", "seconds, SDAR", "success, unseen"):
        assert f">{title}<" in text


def test_several_seeds_are_one_setting_and_several_settings_are_told_apart(tmp_path: Path, folder: Path) -> None:
    for seed in (0, 1):
        left_run(tmp_path / "both" / f"version_{seed}", seed)
    runs = runs_of([str(tmp_path / "both"), f"ours={folder}"])
    assert [(run.label, run.seed) for run in runs] == [("SDAR", 0), ("SDAR", 1), ("ours", 0)]
    told = page(runs, most_episodes=30)
    assert [row[0] for row in cells(told, "result")] == ["SDAR", "SDAR", "ours"] and "<title>SDAR, ours</title>" in told
    assert Counter(e["run"] for e in data(told)["episodes"]) == {
        "SDAR, version_0": 10,
        "SDAR, version_1": 10,
        "ours, version_0": 10,
    }


def test_settings_that_are_defaults_are_left_out(folder: Path) -> None:
    assert {key: (value, default) for key, value, default in changed(Run(folder, "").settings)} == {
        "seed_everything": (0, None),
        "trainer.max_steps": (12, -1),
        "trainer.accelerator": ("cpu", "auto"),
        "model": ("SDAR", None),
        "model.distill_coef": (2.0, 0.01),
        "model.retriever": ("KeywordRetriever", None),
        "model.retriever.skills": ("bank", None),
        "model.gate.beta": (3.0, 5.0),
        "data.group_size": (4, 8),
    }


def test_a_run_without_episodes_metrics_or_measurements_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "seed_everything: 0\nmodel: {class_path: sdar.strategies.grpo.GRPO}\n", encoding="utf-8"
    )
    text = page(runs_of([str(tmp_path)]))
    assert "No panel was measured." in text and "No episodes are stored." in text and "<svg" not in text


def test_a_number_that_is_none_and_one_that_is_not_finite_are_told(folder: Path) -> None:
    e = read(folder)[0]
    e.turns[0].gap = [None, float("nan"), *(e.turns[0].gap or [])[2:]]
    assert json.loads(viewed([("run", e)]))["episodes"][0]["turns"][0]["values"]["gap"][:2] == [None, 0.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none is no folder: it is no run."),
        (["."], ". holds no config.yaml, and no folder version_N below it does: it is no run."),
        ([".", "--to", "a/b.html"], "--to a/b.html: there is no folder a."),
        ([".", "--episodes", "-1"], "--episodes is -1: give 0 for none"),
        ([".", "--watch", "0"], "--watch is 0: it is a number of seconds, at least 1."),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch, capsys, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command_writes_the_page(tmp_path: Path, folder: Path, capsys) -> None:
    assert main(["report", str(folder), "--to", str(tmp_path / "r.html"), "--episodes", "5"]) == 0
    assert len(data((tmp_path / "r.html").read_text(encoding="utf-8"))["episodes"]) == 5
    assert "r.html: " in capsys.readouterr().out
