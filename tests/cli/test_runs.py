"""What a run of the command leaves, and how it goes on."""

import csv
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_command import ToyMethod, printed, told, write

from sdar.training.checkpoints import AtomicCheckpointIO


def test_a_run_leaves_logs_configuration_and_a_checkpoint(sdar) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    assert len(ToyMethod.numbers) == 2
    left = {p.name.partition(".tfevents")[0] for p in Path("runs/version_0").iterdir()}
    assert left >= {"metrics.csv", "events.out", "config.yaml"}
    rows = list(csv.DictReader(Path("runs/version_0/metrics.csv").read_text().splitlines()))
    assert [float(row["number"]) for row in rows] == pytest.approx(ToyMethod.numbers)
    assert [p.name for p in Path("runs/version_0/checkpoints").iterdir()] == ["last.ckpt"]


def test_trainer_defaults_suit_agents(sdar) -> None:
    trainer = printed(sdar("fit", "-c", "base.yaml", "--print_config")[1])["trainer"]
    expected = {
        "default_root_dir": "runs",
        "max_epochs": -1,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "logger": None,
        "callbacks": None,
    }
    assert {key: trainer[key] for key in expected} == expected


def test_the_saved_configuration_runs_again_and_continues(sdar) -> None:
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "4")
    straight = ToyMethod.numbers
    sdar("fit", "-c", "base.yaml", "--trainer.default_root_dir", "again")
    code, _, err = sdar("fit", "-c", "again/version_0/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert code == 0
    assert ToyMethod.numbers == straight[2:]
    assert "note:" not in err
    assert [p.name for p in Path("again").iterdir()] == ["version_0"]
    assert [p.name for p in Path("again/version_0/checkpoints").iterdir()] == ["last.ckpt"]


def test_a_second_fresh_run_overwrites_no_checkpoint_and_last_is_the_newer(sdar) -> None:
    sdar("fit", "-c", "base.yaml")
    first = Path("runs/version_0/checkpoints/last.ckpt").read_bytes()
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "3")
    assert Path("runs/version_0/checkpoints/last.ckpt").read_bytes() == first
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert len(ToyMethod.numbers) == 1
    args = ("--trainer.max_steps", "1", "--checkpoint.dirpath", "both")
    sdar("fit", "-c", "base.yaml", *args)
    sdar("fit", "-c", "base.yaml", *args)
    assert sorted(p.name for p in Path("both").iterdir()) == ["earlier-1.ckpt", "last.ckpt"]


def test_without_a_checkpoint_last_begins_anew(sdar, caplog: pytest.LogCaptureFixture) -> None:
    code, _, _ = sdar("fit", "-c", "base.yaml", "--ckpt_path", "last")
    assert code == 0 and len(ToyMethod.numbers) == 2
    assert "no run of these settings left a checkpoint below runs. A new run begins." in caplog.text
    code, _, _ = sdar("fit", "-c", "base.yaml", "--ckpt_path", "last", "--model.coef", "0.25")
    assert code == 0 and len(ToyMethod.numbers) == 2 and Path("runs/version_1").is_dir()
    assert (
        "the latest there, version_0, differs in model.coef (0.5, here 0.25). A new run begins. To go on from that one give"
        in caplog.text
    )


def test_checkpoints_count_iterations_and_the_last_one_is_kept(sdar, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(ToyMethod, "on_save_checkpoint", lambda self, checkpoint: saved.append(self.iteration))
    assert sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "5", "--checkpoint.every_n_iterations", "2")[0] == 0
    assert saved == [2, 4, 5]
    code, _, err = sdar("fit", "-c", "base.yaml", "--checkpoint.every_n_iterations", "0")
    assert code == 2
    assert "error: checkpoint.every_n_iterations is 0: use 1 or more" in err


def test_own_loggers_callbacks_and_none_are_respected(sdar) -> None:
    own = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine", "every_n_train_steps": 1, "save_top_k": -1}}
    write("own.yaml", trainer={"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "table"}}, "callbacks": [own]})
    assert sdar("fit", "-c", "base.yaml", "-c", "own.yaml", "--checkpoint.dirpath", "elsewhere")[0] == 0
    assert len(list(Path("mine").iterdir())) == 2
    assert Path("elsewhere/last.ckpt").exists()
    assert {p.name for p in Path("runs/version_0").iterdir()} == {"config.yaml", "metrics.csv", "hparams.yaml"}
    assert not list(Path("table").rglob("*tfevents*"))
    args = ("--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.default_root_dir", "bare")
    assert sdar("fit", "-c", "base.yaml", *args)[0] == 0
    assert [p.name for p in Path("bare/version_0").iterdir()] == ["config.yaml"]


def test_the_saved_configuration_holds_settings_only(sdar) -> None:
    sdar("fit", "-c", "base.yaml")
    sdar("fit", "-c", "base.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3")
    saved = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert not {"ckpt_path", "weights_only"} & saved.keys() and saved["model"]["class_path"].endswith("GatedToyMethod")
    assert saved["trainer"]["max_steps"] == 3


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_is_measured_must_be_there(sdar, command: str) -> None:
    code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "last")
    assert code == 2
    assert told("--ckpt_path last: no run of these settings left a checkpoint below runs. Give the path of a checkpoint.", err)
    code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "gone.ckpt")
    assert code == 2 and told("--ckpt_path gone.ckpt: there is no such file. Give the path of a checkpoint.", err)


@pytest.mark.parametrize(("given", "norm"), [("0", math.inf), ("0.5", 0.5), (None, 1.0)])
def test_gradients_are_clipped_as_the_trainer_is_told(
    sdar, monkeypatch: pytest.MonkeyPatch, given: str | None, norm: float
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(ToyMethod, "on_train_start", lambda self: seen.append(self.max_grad_norm))
    assert sdar("fit", "-c", "base.yaml", *(["--trainer.gradient_clip_val", given] if given else []))[0] == 0
    assert seen == [norm]


def test_gradients_are_not_turned_round(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--trainer.gradient_clip_val", "-1")
    assert code == 2 and told("trainer.gradient_clip_val is -1.0: gradients would be turned round. Give a norm, or 0", err)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_the_other_commands_take_the_last_checkpoint(sdar, command: str) -> None:
    sdar("fit", "-c", "base.yaml")
    trained = ToyMethod.numbers[-1]
    assert sdar(command, "-c", "runs/version_0/config.yaml", "--ckpt_path", "last")[0] == 0
    [row] = csv.DictReader(Path(f"runs/{command}_0/metrics.csv").read_text().splitlines())
    assert float(row["held_out/number"]) == pytest.approx(trained)


def test_a_checkpoint_is_whole_when_the_process_dies_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def dies(checkpoint: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path)["step"] == 1
    monkeypatch.undo()
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path)["step"] == 3
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_settings_that_a_checkpoint_holds_are_not_taken(sdar, folder: Path, command: str) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    (folder / "hostile_part.py").write_text(f"open({str(folder / 'CODE_RAN')!r}, 'w')\n")
    state = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    hostile = {"coef": 7.0, "gate": {"class_path": "hostile_part.Gate"}}
    for merged in (hostile, {**hostile, "_class_path": "hostile_part.Method"}):
        torch.save(state | {"hyper_parameters": merged}, "other.ckpt")
        assert sdar(command, "-c", "base.yaml", "--ckpt_path", "other.ckpt", "--trainer.max_steps", "3")[0] == 0
        assert "7.0" not in "".join(p.read_text() for p in Path("runs").glob("*/config.yaml"))
    assert not Path("CODE_RAN").exists()


def test_a_damaged_checkpoint_is_told_in_one_message(sdar) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    whole = Path("runs/version_0/checkpoints/last.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for command in ("fit", "validate"):
        code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "cut.ckpt")
        assert code == 1 or code == 2
        assert "error: " in err and "cut.ckpt" in err and "copy it anew" in err and "Traceback" not in err
