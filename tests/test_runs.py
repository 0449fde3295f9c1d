"""What a command leaves in its folder, on a policy of a few thousand weights: the real method, whole commands."""

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from sdar import episodes
from sdar.cli import main
from sdar.data import TaskModule
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.errors import ConfigError
from sdar.evaluate.curves import Curve
from sdar.policies import PretrainedPolicy
from sdar.samplers import TorchSampler
from sdar.strategies import GRPO
from sdar.training.runs import Runs, claim, lock

WORLD = {"world": 5, "receptacles": 6, "distractors": 1, "horizon": 2}
SETTINGS = {
    "model": {
        "class_path": "GRPO",
        "init_args": {
            "policy": {"class_path": "PretrainedPolicy", "init_args": {"path": "policy"}},
            "sampler": {"class_path": "TorchSampler", "init_args": {"max_new_tokens": 4}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "kl_coef": 0.0,
            "log_episodes_every": 1,
        },
    },
    "data": {
        "env": {"class_path": "HouseholdEnv", "init_args": WORLD},
        "protocol": "CompactProtocol",
        "layout": "trajectory",
        "tasks_per_step": 1,
        "group_size": 2,
        "train_tasks": 12,
        "val_tasks": 4,
        "val_batch": 2,
        "val_splits": ["unseen"],
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 1,
        "num_sanity_val_steps": -1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


def prepare(folder: Path, policy: Path) -> Path:
    """Make a folder in which ``-c run.yaml`` trains."""
    (folder / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    (folder / "policy").symlink_to(policy)
    return folder


def sdar(command: str, *args: str) -> None:
    assert main([command, "-c", "run.yaml", *args]) == 0


def files(folder: Path) -> set[str]:
    """The files below a folder, without the digits that loggers add."""
    return {re.sub(r"tfevents\..*", "tfevents", str(p.relative_to(folder))) for p in folder.rglob("*") if p.is_file()} - {
        "run.yaml"
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_policy_dir: Path) -> Path:
    """A working directory in which seeds 0 and 1 of GRPO were trained by the same command."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(prepare(folder, tiny_policy_dir))
    for seed in ("0", "1"):
        sdar("fit", "--seed_everything", seed)
    os.chdir(before)
    return folder


@pytest.fixture
def there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_policy_dir: Path) -> Path:
    monkeypatch.chdir(prepare(tmp_path, tiny_policy_dir))
    return tmp_path


def test_a_run_is_one_folder_and_the_next_one_another(there: Path) -> None:
    expected = {
        "config.yaml",
        "metrics.csv",
        "hparams.yaml",
        "events.out.tfevents",
        "checkpoints/last.ckpt",
        "validation.jsonl",
    }
    expected |= {f"episodes/{name}.jsonl.gz" for name in ("train-000001", "train-000002")}
    expected |= {f"episodes/unseen-policy-00000{n}.jsonl.gz" for n in range(3)}
    for number in (0, 1):
        folder = there / "runs" / f"version_{number}"
        assert files(folder) == expected
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] == number
        told = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert told["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.01 and "logger" not in told["trainer"]
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        measured = [(int(r["step"]), float(r["train/env_steps"]) > 0) for r in rows if r["success/unseen"]]
        assert measured == [(0, False), (1, True), (2, True)] and "epoch" not in rows[0]  # the one before training too
        trained = [r for r in rows if r["train/loss"]]
        for iteration, row in enumerate(trained, 1):
            turns = [t for e in episodes.read(folder, f"kind == 'train' and iteration == {iteration}") for t in e.turns]
            lengths = [len(t.response_ids) for t in turns]
            assert float(row["rollout/response_length_max"]) == max(lengths) <= 4
            assert float(row["rollout/cut_share"]) == pytest.approx(sum(not t.stopped for t in turns) / len(turns))
            assert all(t.stopped for t, n in zip(turns, lengths, strict=True) if n < 4)
            assert any(not t.stopped for t in turns)  # a policy that knows nothing seldom ends within four tokens
        told = [(x["run"], x["command"], x["method"], x["seed"], x["iteration"]) for x in lines(folder / "validation.jsonl")]
        assert told == [(f"version_{number}", "fit", "GRPO", number, n) for n in range(3)]
    assert {p.name for p in (there / "runs").iterdir()} >= {"version_0", "version_1"}


def test_last_is_the_latest_run_of_the_settings_that_are_given(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdar("validate", "--ckpt_path", "last")
    [line] = lines(there / "runs/validate_0/validation.jsonl")
    assert (line["command"], line["seed"], line["iteration"]) == ("validate", 0, 2)
    assert line["checkpoint"].endswith("runs/version_0/checkpoints/last.ckpt")
    assert line["success/unseen"] == lines(there / "runs/version_0/validation.jsonl")[-1]["success/unseen"]
    assert main(["validate", "-c", "run.yaml", "--ckpt_path", "last", "--model.optimizer.lr", "0.5"]) == 2
    told = capsys.readouterr().err
    assert "no run of these settings left a checkpoint below runs; the latest there, version_1, differs in" in told
    assert "model.optimizer.lr (0.01, here 0.5)" in told and not (there / "runs/validate_1").exists()


def test_other_tasks_can_be_measured_and_a_test_says_when_they_are_validations(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sdar("test", "--ckpt_path", "last", "--data.val_tasks", "2", "--data.val_attempts", "2")
    [line] = lines(there / "runs/test_0/validation.jsonl")
    assert (line["command"], line["tasks"], line["iteration"]) == ("test", 2, 2)
    assert {"pass@2/unseen", "success/unseen"} < line.keys() and any(k.startswith("success_by_family/unseen/") for k in line)
    told = capsys.readouterr().out
    assert "test of unseen (panel" in told and "Validation measures these tasks, too" in told


def test_seeds_and_runs_of_other_commands_are_compared(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdar("validate", "--ckpt_path", "runs/version_0/checkpoints/last.ckpt", "--trainer.default_root_dir", "measured")
    assert main(["compare", "GRPO=runs/version_0", "again=runs/version_1", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    [panel], measured = found["panels"], lines(there / "runs/version_1/validation.jsonl")[-1]
    assert (panel["panel"], panel["hash"]) == ("unseen", measured["hash"])
    assert panel["settings"][1]["success"] == measured["success/unseen"][0]
    assert panel["settings"][1]["runs"][0]["env_steps"] == measured["env_steps"]
    drawn = {cost: len(of["at"]) for cost, of in found["curves"].items()}
    assert drawn | {"seconds": 101} == dict.fromkeys(("env_steps", "tokens", "seconds"), 101)  # seconds may not overlap
    tokens = sum(e.response_tokens for e in episodes.read(there / "runs/version_0", kind="train"))
    assert Curve.read(there / "runs/version_0").costs["tokens"][-1] == pytest.approx(tokens)
    assert main(["compare", "runs/version_0", "last=measured/validate_0"]) == 0
    assert "validate_0 has no metrics.csv of a training: learning curves are left out" in capsys.readouterr().out


def test_predict_plays_every_task_and_keeps_every_episode(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdar("predict", "--ckpt_path", "last", "--data.test_splits", "[seen, unseen]", "--data.val_attempts", "2")
    told = capsys.readouterr()
    folder = there / "runs/predict_0"
    for panel in ("seen", "unseen"):
        played = episodes.read(folder, f"panel == '{panel}'", kind="predict")
        assert len({e.task for e in played}) == 4 and len(played) == 8
        assert f"{panel}: 4 episodes of 2 tasks, success " in told.out
    assert str(folder.relative_to(there) / "episodes") in told.out
    assert "last checkpoint" not in told.err


def test_python_gets_the_episodes_that_were_played(tmp_path: Path, tiny_policy_dir: Path) -> None:
    settings = {k: v for k, v in SETTINGS["data"].items() if k != "env"} | {"protocol": CompactProtocol()}
    data = TaskModule(HouseholdEnv(**WORLD), **settings)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    pieces = trainer.predict(GRPO(policy=PretrainedPolicy(str(tiny_policy_dir)), sampler=TorchSampler(max_new_tokens=4)), data)
    assert [len(piece) for piece in pieces] == [2, 2]
    assert [e.task.id for piece in pieces for e in piece] == list(data.test_panels[0].task_ids)


def test_a_run_that_goes_on_goes_on_in_its_folder_and_ends_like_a_straight_one(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ("--trainer.enable_progress_bar", "true", "--trainer.enable_model_summary", "true")
    sdar("fit", "--trainer.max_steps", "4", "--trainer.default_root_dir", "straight")
    sdar("fit", *shown)
    began = capsys.readouterr()
    sdar("fit", "--ckpt_path", "last", "--trainer.max_steps", "4", *shown)
    told = capsys.readouterr()
    silent = ("FLOPs", "ModuleDict", "TPU", "eval mode", "Sanity", "Epoch", "\r")  # what says nothing, and bars in a file
    for text in silent:
        assert text not in began.out + told.out + told.err
    for number, out in ((1, began.out), (2, began.out), (3, told.out), (4, told.out)):
        line = rf"^iteration {number}/{2 if number < 3 else 4}: success \d+\.\d%, reward \S+, loss \S+, \d+ tok/s"
        assert len(re.findall(line, out, re.MULTILINE)) == 1
    assert re.search(r"^iteration 3/4: .* \ds left$", told.out, re.MULTILINE) and "iteration 2/" not in told.out
    assert re.search(r"^unseen \(panel \w{12}\), iteration 0 → 4, paired change in points$", told.out, re.MULTILINE)
    assert "look at it:  sdar report runs/version_0\n" in told.out and "metrics:     runs/version_0/metrics.csv\n" in told.out
    of_a_log = ("iteration ", "validation took ")  # where nobody minds the width
    assert [line for line in began.out.splitlines() if len(line) > 80 and not line.startswith(of_a_log)] == []
    assert sorted(p.name for p in Path("runs").iterdir()) == ["version_0"]
    one, other = (torch.load(f"{root}/version_0/checkpoints/last.ckpt", weights_only=True) for root in ("straight", "runs"))
    assert all(torch.equal(one["state_dict"][k], other["state_dict"][k]) for k in one["state_dict"])
    assert [x["iteration"] for x in lines(Path("runs/version_0/validation.jsonl"))] == [0, 1, 2, 3, 4]
    rows = list(csv.DictReader(Path("runs/version_0/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [1, 2, 3, 4]
    sdar(
        "fit", "--ckpt_path", "runs/version_0/checkpoints/last.ckpt", "--model.optimizer.lr", "0.5", "--trainer.max_steps", "5"
    )
    assert lines(Path("runs/version_1/validation.jsonl"))[0]["iteration"] == 5  # other settings: a run of its own
    assert torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)["sdar"]["iteration"] == 4


def test_a_dry_run_writes_nothing(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sdar("fit", "--trainer.fast_dev_run", "2", "--model.export", "policy")
    assert files(fresh) == set() and "validation of unseen" in capsys.readouterr().out
    sdar("validate", "--trainer.fast_dev_run", "true")
    assert files(fresh) == set()


def test_a_run_that_comes_to_nothing_leaves_nothing(fresh: Path) -> None:
    assert main(["fit", "-c", "run.yaml", "--trainer.reload_dataloaders_every_n_epochs", "1"]) == 2
    assert main(["fit", "-c", "run.yaml", "--trainer.num_sanity_val_steps", "0", "--model.policy.context", "5"]) != 0
    assert sorted(p.name for p in fresh.iterdir()) == ["policy", "run.yaml"]


def test_a_policy_is_exported_to_a_new_folder_or_the_run_does_not_begin(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With Timer, whose default is no text that YAML knows of itself."""
    timer = {"class_path": "Timer", "init_args": {"duration": "01:00:00:00"}}
    (fresh / "timer.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [timer], "max_steps": 1}}))
    sdar("fit", "-c", "timer.yaml", "--model.export", "made/here")
    weights = (fresh / "made/here/model.safetensors").read_bytes()
    wrong = {
        "made/here": "model.export made/here is a directory with something in it: nothing is written over. Give another.",
        "run.yaml/x": f"model.export run.yaml/x: {fresh}/run.yaml is a file, and the policy is a directory. Give another.",
    }
    for path, told in wrong.items():
        assert main(["fit", "-c", "run.yaml", "--model.export", path]) == 2
        assert told in capsys.readouterr().err
    assert [p.name for p in (fresh / "runs").iterdir()] == ["version_0"]
    assert (fresh / "made/here/model.safetensors").read_bytes() == weights


def test_own_loggers_have_metrics_csv_beside_them(fresh: Path) -> None:
    own = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "mine"}}
    (fresh / "own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": own, "max_steps": 1}}))
    sdar("fit", "-c", "own.yaml")
    assert "metrics.csv" in files(fresh / "runs/version_0") and "events.out.tfevents" not in files(fresh / "runs/version_0")
    assert any("tfevents" in name for name in files(fresh / "mine"))


def test_processes_that_begin_together_get_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "version_7").mkdir()
    assert [claim(tmp_path, "version").name for _ in range(3)] == ["version_8", "version_9", "version_10"]
    assert claim(tmp_path, "test").name == "test_0"


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    held = lock(tmp_path / "checkpoints")
    with pytest.raises(
        ConfigError, match=r"another run writes its checkpoints to .*checkpoints: they would replace each other's"
    ):
        lock(tmp_path / "checkpoints")
    os.close(held)
    os.close(lock(tmp_path / "checkpoints"))


def test_what_differs_is_told_setting_by_setting() -> None:
    ours = {"model": {"class_path": "SDAR", "init_args": {"beta": 3, "export": "x"}}, "data": {"init_args": {"workers": 4}}}
    theirs = {
        "model": {"class_path": "SDAR", "init_args": {"beta": 5}},
        "data": {"init_args": {"workers": 0}},
        "seed_everything": 1,
    }
    told = Runs("runs", ours, "fit").differences(theirs)
    assert told == ["model.beta (5, here 3)", "seed_everything (1, here None)"]
