"""`sdar skills`: a bank as a list, what a task gets of it and why, and what skills did in a run."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from left_run import left_run

from sdar.cli import main
from sdar.parts import Retriever
from sdar.retrievers import KeywordRetriever, RoutedRetriever, UCBRetriever
from sdar.types import Task

MAPPING = {
    "general": {"file": "general.md", "always": True},
    "heat": {"file": "heat.md", "families": ["heat"], "keywords": ["hot egg", "warm"]},
    "fact:mug": {"file": "mug.md", "keywords": ["mug"]},
    "fact:egg": {"file": "egg.md", "keywords": ["egg"]},
}


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    for name in ("general", "heat", "mug", "egg"):
        (folder / f"{name}.md").write_text(f"# About {name}\n\nIt \x1b[31mis {name}. {'Long. ' * 20}\n")
    return "bank"


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["skills", *words]) == 0
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    return said


def test_a_bank_is_listed_with_the_tasks_that_each_skill_is_for(bank, capsys):
    head, general, heat, *_, end, _ = told(capsys, bank).splitlines()
    assert head.split() == ["skill", "for", "characters", "begins"]
    assert re.fullmatch(r"general +every task +1\d\d +# About general It  \[31mis general\. .{20,40}\.\.\.", general)
    assert re.match(r'heat +heat, "hot egg", "warm" +1\d\d +# About heat', heat)
    assert re.fullmatch("4 skills, 6\\d\\d characters; 1 of them with 1\\d\\d are for every task.", end)
    assert told(capsys, bank, "--show", "heat").startswith(
        'heat (for heat, "hot egg", "warm"):\n    # About heat\n\n    It  [31mis heat.'
    )


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["put a hot egg away"], ['heat      the task says "hot egg"', 'fact:egg  the task says "egg"']),
        (["put it away", "--family", "heat"], ["heat     it is for the family heat"]),
        (["sing"], []),
        (["sing", "--retriever", "random", "--with", "count=1"], ["RandomRetriever chose it"]),
    ],
)
def test_what_a_task_gets_is_told_with_the_reason(bank, capsys, words, rows):
    said = told(capsys, bank, "--task", *words)
    assert re.search(r"^general +it is for every task$", said, re.MULTILINE) and all(row in said for row in rows)
    assert len(re.findall("the task says|the family heat|chose it", said)) == len(rows)
    assert "told:\n    # About general\n" in said and "score" not in said
    assert ("name one with --family" in said) == ("--family" not in words)


def test_a_retriever_with_scores_tells_them_and_what_it_learned_in_a_run(bank, capsys, tmp_path):
    ucb = ["--retriever", "ucb", "--with", "c=0", "--with", "untried=0.5"]
    said = told(capsys, bank, "--task", "put it away", "--family", "heat", *ucb)
    assert re.search(r"^heat +it is for the family heat +0\.5$", said, re.MULTILINE)
    run = left_run(tmp_path / "version_0", iterations=1)
    (run / "checkpoints").mkdir()
    state = {"rounds": {"heat": 4, "": 4}, "tried": {"": {"fact:egg": [2, 1.5], "heat": [2, 0.5]}}}
    lightning = {"state_dict": {}, "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.5"}
    torch.save(lightning | {"sdar": {"retriever": state}}, run / "checkpoints" / "last.ckpt")
    said = told(capsys, bank, "--task", "put it away", "--run", str(run), *ucb)
    assert re.search(r"^fact:egg +UCBRetriever chose it +0\.75$", said, re.MULTILINE)
    assert re.search(r"not given:\nskill +score\nfact:mug +0\.5\nheat +0\.25\n", said)


def test_scores_are_those_that_the_choice_is_made_by(bank):
    ucb, task = UCBRetriever(bank, seed=3), Task("t", "none", "sing")
    for skill, success in (("heat", 1.0), ("fact:mug", 0.0), ("fact:egg", 0.5)):
        ucb.rounds["none"] = ucb.rounds.get("none", 0) + 1
        ucb.tried.setdefault("none", {})[skill] = [1, success]
    scores = ucb.scores(task)
    assert [*scores] == ["heat", "fact:mug", "fact:egg"] and max(scores, key=scores.__getitem__) == "heat"
    assert ucb.retrieve(task).skill_ids == ("general", "heat")
    assert KeywordRetriever(bank).scores(task) == {} == Retriever.scores(KeywordRetriever(bank), task)
    assert RoutedRetriever({"": ucb}).scores(task) == scores


def test_what_skills_did_in_a_run_is_the_table_of_its_report(bank, capsys, tmp_path):
    run = left_run(tmp_path / "version_0", iterations=2)
    head, first, *_ = lines = told(capsys, "--run", str(run)).splitlines()
    assert head.split("  ")[0] == "skill" and head.endswith("lift, points")
    assert re.match(r"fact:(mug|egg) +(heat|clean) +\d+ +\d+\.\d % \[", first)
    assert any(re.search(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]$", line) for line in lines)
    assert lines[-1] == "Never used: general, heat"  # of the bank that the run's settings name
    (tmp_path / "bank" / "mapping.yaml").unlink()
    assert "Never used" not in told(capsys, "--run", str(run))  # it is not there any more


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            [],
            "skills needs a bank: a folder or a file, e.g. sdar skills conf/skills/household. Installed are conf/skills/code, ",
        ),
        (["conf/skills/houshold"], "Did you mean 'conf/skills/household'?"),
        (["BANK", "--show", "hat"], "--show hat: bank has no such skill. Did you mean 'heat'?"),
        (
            ["BANK", "--family", "heat"],
            "--family, --retriever and --with are about what is given for a task: name one with --task",
        ),
        (["BANK", "--task", "x", "--retriever", "keywrd"], "--retriever keywrd: there is none. Did you mean 'keyword'?"),
        (["BANK", "--task", "x", "--retriever", "fact"], "one that tells facts of a world has no bank."),
        (["BANK", "--task", "x", "--with", "count"], "--with count: give an argument of the retriever and its value"),
        (
            ["BANK", "--task", "x", "--retriever", "random", "--with", "count=9"],
            "RandomRetriever.count is 9, but bank has 3 skills",
        ),
        (["--run", "nowhere"], "nowhere is no folder: it is no run."),
    ],
)
def test_what_cannot_be_is_told(bank, capsys, words, error):
    assert main(["skills", *(word.replace("BANK", bank) for word in words)]) == 2
    assert error in capsys.readouterr().err


def test_a_run_without_what_is_asked_for_is_told(bank, capsys, tmp_path):
    run = left_run(tmp_path / "version_0", iterations=1)
    assert main(["skills", bank, "--task", "x", "--retriever", "ucb", "--run", str(run)]) == 2
    assert "last.ckpt is not there: scores would be those of an untried bank." in capsys.readouterr().err
    for file in (run / "episodes").glob("train-*"):
        file.unlink()
    assert main(["skills", "--run", str(run)]) == 2
    assert (
        "no attempt of training is stored, so nothing is known of skills. --model.log_episodes_every 1"
        in capsys.readouterr().err
    )
