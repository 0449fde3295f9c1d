"""Worlds of problems train a tiny policy, on generated problems and on real files where they are there, and resume bit for bit."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml

from sdar.cli import main

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL = {"code": "humaneval.jsonl.gz", "science": "mmlu_stem.jsonl.gz"}
SCORE = {"code": "tests_passed", "science": "correct"}


def files_of(world, folder):
    """Real problems in two parts, where they are there."""
    if not (DATA / REAL[world]).exists():
        pytest.skip(f"there is no file of real problems: {DATA / REAL[world]}")
    rows = gzip.decompress((DATA / REAL[world]).read_bytes()).decode().splitlines()
    for name, part in (("train", rows[:100]), ("unseen", rows[100:164])):
        (folder / f"{name}.jsonl").write_text("\n".join(part))
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "unseen")}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["generated", "real"])
@pytest.mark.parametrize("method", ["grpo", "sod"])
@pytest.mark.parametrize("world", list(REAL))
def test_a_tiny_policy_trains_and_resumes_bit_for_bit(world, method, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = {"init_args": {"horizon": 2} | ({"files": files_of(world, tmp_path)} if data == "real" else {})}
    small = {
        "model": {"init_args": {"sampler": {"init_args": {"max_new_tokens": 16}}, "val_sampler": {"init_args": {"max_new_tokens": 16}}}},
        "data": {"init_args": {"tasks_per_step": 2, "group_size": 2, "train_tasks": 20, "val_tasks": 4, "env": env}},
        "trainer": {"val_check_interval": 4, "enable_progress_bar": False},
    }  # fmt: skip
    Path("small.yaml").write_text(yaml.safe_dump(small))
    files = [f"env/{world}_tiny.yaml", f"method/{method}.yaml", "scale/tiny.yaml"]
    command = ["fit", *(part for name in files for part in ("-c", f"conf/{name}")), "-c", "small.yaml"]
    command += ["--model.teacher", "InitialTeacher"] if method == "sod" else []

    def run(folder, steps, *more):
        assert main([*command, "--trainer.default_root_dir", folder, "--trainer.max_steps", str(steps), *more]) == 0
        return torch.load(Path(folder, "version_0", "checkpoints", "last.ckpt"), weights_only=True)

    straight = run("straight", 10)
    run("stopped", 4)
    resumed = run("stopped", 10, "--ckpt_path", "last")
    assert straight["global_step"] == resumed["global_step"] == 10
    assert all(torch.equal(straight["state_dict"][name], value) for name, value in resumed["state_dict"].items())
    validated = [json.loads(line) for line in Path("straight/version_0/validation.jsonl").read_text().splitlines()]
    assert any(SCORE[world] in name for name in validated[-1])
