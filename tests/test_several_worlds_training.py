"""ALFWorld and mathematics in one run of the tiny policy: ten steps, resumed bit for bit; on real files where they are there."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from launch import finish, start

from sdar.cli import main

DATA = Path(__file__).parents[2] / "shared" / "data"
GAMES = 30


def real(folder):
    """Official games and GSM8K's problems below `folder`; the settings that read them."""
    games, train, test = (DATA / name for name in ("alfworld_games.tar.xz", "gsm8k_train.jsonl.gz", "gsm8k_test.jsonl.gz"))
    if not all(path.exists() for path in (games, train, test)):
        pytest.skip(f"there are no real files: {games}, {train}, {test}")
    left = dict.fromkeys(("train", "valid_seen", "valid_unseen"), GAMES)
    with tarfile.open(games) as archive:
        for member in archive:
            split = member.name.split("/")[1] if member.name.endswith("game.tw-pddl") else ""
            if left.get(split, 0):
                archive.extract(member, folder / "alfworld", filter="data")
                game = folder / "alfworld" / member.name
                kind = game.parent.parent.name.partition("-")[0]  # all that is read of the file that the archive leaves out
                (game.parent / "traj_data.json").write_text(json.dumps({"task_type": kind}))
                left[split] -= 1
            if not any(left.values()):
                break
    for name, path in (("train", train), ("unseen", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(gzip.decompress(path.read_bytes()).decode().splitlines()[:60]))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "unseen")}
    return {"data": str(folder / "alfworld")}, {"files": files}


def generated(folder):
    return {"world": 5, "receptacles": 6}, {"level": "easy", "families": ["digits"]}


@pytest.mark.slow
@pytest.mark.parametrize("files", [generated, real])
@pytest.mark.parametrize("method", ["grpo", "top_k_opd"])
def test_a_tiny_policy_trains_in_both_and_resumes_bit_for_bit(method, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    house, maths = files(tmp_path)
    teacher = {"class_path": "RoutedTeacher", "init_args": {"routes": {"alfworld": "InitialTeacher", "math": "LiveTeacher"}}}
    world = {"train_tasks": 20, "val_tasks": 4, "val_splits": ["unseen"]}
    small = {
        "model": {"init_args": {"sampler": {"init_args": {"max_new_tokens": 16}}, "val_sampler": {"init_args": {"max_new_tokens": 16}}}},
        "data": {
            "class_path": "MultiTaskModule",
            "init_args": {
                "tasks_per_step": 2, "group_size": 2, "val_means": {"worlds": ["alfworld/unseen", "math/unseen"]},
                "envs": {
                    "alfworld": {"env": {"class_path": "HouseholdEnv", "init_args": house | {"horizon": 3}}, "protocol": "CompactProtocol"}
                    | world,
                    "math": {"env": {"class_path": "MathEnv", "init_args": maths | {"horizon": 1}}, "protocol": "TextMathProtocol",
                             "layout": "trajectory", "max_new_tokens": 8} | world,
                },
            },
        },
        "trainer": {"val_check_interval": 3, "enable_progress_bar": False},
    }  # fmt: skip
    if method == "top_k_opd":
        small["model"]["init_args"]["teacher"] = teacher
    Path("small.yaml").write_text(yaml.safe_dump(small))
    command = [
        "fit",
        *("-c", f"conf/method/{method}.yaml", "-c", "conf/scale/tiny.yaml", "-c", "small.yaml"),
        *("--model.updates_per_rollout", "1"),
    ]

    def run(folder, steps, *more):
        assert main([*command, "--trainer.default_root_dir", folder, "--trainer.max_steps", str(steps), *more]) == 0
        return torch.load(Path(folder, "version_0", "checkpoints", "last.ckpt"), weights_only=True)

    straight = run("straight", 10)
    if method == "grpo":  # two processes play and learn the same
        ranks = start(2, "rank_cli.py", *command, "--trainer.devices", "2", "--trainer.default_root_dir", "ranks",
                      "--trainer.max_steps", "10", folder=tmp_path)  # fmt: skip
        assert finish(ranks, 200) == [0, 0], ranks[0].said[-2000:]
        shared = torch.load("ranks/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.allclose(straight["state_dict"][name], value, atol=1e-5) for name, value in shared.items())
    run("stopped", 4)
    resumed = run("stopped", 10, "--ckpt_path", "last")
    assert straight["global_step"] == resumed["global_step"] == 10
    assert all(torch.equal(straight["state_dict"][name], value) for name, value in resumed["state_dict"].items())
    validated = [json.loads(line) for line in Path("straight/version_0/validation.jsonl").read_text().splitlines()]
    assert {line.get("panel") for line in validated} == {"alfworld/unseen", "math/unseen", None}
