"""A run that was killed or asked to stop and is continued ends with the same weights as one that never was, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from launch import finish, start
from transformers import AutoModelForCausalLM

from sdar.cli import main

STEPS = 24


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A run of twelve iterations with two optimizer steps each, without logs."""
    household = {"class_path": "HouseholdEnv", "init_args": {"world": 5, "receptacles": 6, "distractors": 1, "horizon": 3}}
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "key_value_heads": 2, "intermediate_size": 32, "context": 512}
    content = {
        "seed_everything": 3,
        "model": {
            "class_path": "SDAR",
            "init_args": {
                "policy": {"class_path": "FreshPolicy", "init_args": {"env": {"class_path": "HouseholdEnv"}, **size}},
                "retriever": {"class_path": "UCBRetriever", "init_args": {"skills": "conf/skills/quickstart"}},
                "sampler": {"class_path": "TorchSampler", "init_args": {"max_new_tokens": 6}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "updates_per_rollout": 2,
            },
        },
        "data": {
            "class_path": "TaskModule",
            "init_args": {
                "env": household,
                "protocol": "CompactProtocol",
                "layout": "trajectory",
                "tasks_per_step": 2,
                "group_size": 2,
                "train_tasks": 12,
                "val_tasks": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "limit_val_batches": 0,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path_factory.mktemp("settings") / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def straight(settings):
    """The folder of the run that nobody disturbs."""
    folder = settings.parent / "straight"
    assert main(["fit", "-c", str(settings), "--trainer.default_root_dir", str(folder)]) == 0
    return folder


def weights(folder):
    state = torch.load(folder / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS and state["sdar"]["iteration"] == STEPS // 2
    return state


def test_a_killed_run_ends_like_one_that_was_never_killed(settings, straight, tmp_path):
    killed = tmp_path / "killed"
    command = ["fit", "-c", str(settings), "--trainer.default_root_dir", str(killed)]
    [rank] = start(1, "rank_cli.py", *command, folder=tmp_path)
    process = rank.process
    kept = Path(killed / "version_0" / "checkpoints" / "last.ckpt")
    deadline = time.monotonic() + 200
    while not kept.exists():
        assert time.monotonic() < deadline and process.poll() is None, rank.said[-2000:]
        time.sleep(0.005)
    time.sleep(random.random() * 0.2)  # any moment is as good
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert torch.load(kept, weights_only=True)["global_step"] < STEPS
    assert main([*command, "--ckpt_path", "last"]) == 0
    one, other = weights(straight), weights(killed)
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][k], other["state_dict"][k]) for k in one["state_dict"])
    assert one["sdar"]["retriever"] == other["sdar"]["retriever"]


def asked_to_stop(ranks, folder, number):
    """The exit codes of a run of which one process gets SIGTERM after the first checkpoint."""
    kept = folder / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 200
    while not kept.exists():
        assert time.monotonic() < deadline and all(rank.process.poll() is None for rank in ranks), ranks[0].said[-2000:]
        time.sleep(0.005)
    ranks[number].process.send_signal(signal.SIGTERM)
    return finish(ranks, 100)


def test_a_preempted_run_saves_ends_well_and_goes_on(settings, straight, tmp_path, capsys):
    stopped = tmp_path / "stopped"
    command = ["fit", "-c", str(settings), "--trainer.default_root_dir", str(stopped)]
    ranks = start(1, "rank_cli.py", *command, folder=tmp_path)
    assert asked_to_stop(ranks, stopped, 0) == [0]
    at = torch.load(stopped / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert at["global_step"] == 2 * at["sdar"]["iteration"] < STEPS
    assert f"stopped by SIGTERM after iteration {at['sdar']['iteration']}. Nothing is lost" in ranks[0].said
    assert "continue with the same command and --ckpt_path last" in ranks[0].said
    assert main([*command, "--ckpt_path", "last"]) == 0
    one, other = weights(straight), weights(stopped)
    assert all(torch.equal(one["state_dict"][k], other["state_dict"][k]) for k in one["state_dict"])


def test_all_ranks_stop_together_when_one_is_asked_and_one_process_goes_on(settings, tmp_path, capsys):
    """Two ranks under ZeRO-3; the run is continued, exported and measured by one process."""
    folder, policy = tmp_path / "run", tmp_path / "policy"
    command = ["fit", "-c", str(settings), "--trainer.default_root_dir", str(folder)]
    both = ["--trainer.devices", "2", "--trainer.strategy", "deepspeed_stage_3"]
    ranks = start(2, "rank_cli.py", *command, *both, folder=tmp_path)
    assert asked_to_stop(ranks, folder, 1) == [0, 0]
    at = torch.load(folder / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(f"stopped by SIGTERM after iteration {at['sdar']['iteration']}." in rank.said for rank in ranks)
    assert main([*command, "--ckpt_path", "last", "--trainer.max_steps", str(STEPS)]) == 0
    end = weights(folder)
    export = ["export", "-c", str(folder / "version_0" / "config.yaml"), "--ckpt_path", "last", "--to", str(policy)]
    assert main([*export, "--dtype", "float32"]) == 0
    exported = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    assert all(torch.equal(values, end["state_dict"][f"model.{name}"]) for name, values in exported.items())
    assert main(export) == 2
    assert "is a directory with something in it: nothing is written over" in capsys.readouterr().err
    (folder / "version_0" / "checkpoints" / "last.ckpt").unlink()
    assert main([*export[:-1], str(tmp_path / "other")]) == 2
    assert "no run of these settings left a checkpoint" in capsys.readouterr().err
