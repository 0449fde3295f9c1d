"""Worlds of problems and questions train a tiny policy, on what they make themselves and on real files where they are there, and resume bit
for bit: by GRPO and by the methods of the papers that run on them."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import yaml

from sdar.cli import main

DATA = Path(__file__).parents[3] / "shared" / "data"
TAUGHT = "--model.teacher InitialTeacher"
HINTED = "--model.turn_weight null --model.teacher LiveTeacher --model.view HintView"
JUDGED = "--model.judge EvidenceJudge --model.judge.policy FreshPolicy --model.judge.policy.env SearchEnv"
JUDGED += " --model.judge.policy.env.passages 80 --model.judge.policy.env.short true --model.judge.policy.vocab_size 2048"
JUDGED += " --model.judge.policy.context 4096"
MATH = {"train": "gsm8k_train", "aime24": "aime24", "aime25": "aime25", "math500": "math500"}
OF_SETS = ["--data.val_splits", "[aime24, aime25, math500]", "--data.val_means", "{sets: [aime24, aime25, math500]}"]


class Run(NamedTuple):
    """A composed run; its `score` stands among the measured numbers. `real`: split -> file of real rows."""

    files: str
    options: str = ""
    score: str = "correct"
    real: Mapping[str, str] = MappingProxyType({})


RUNS = {
    "code grpo": Run("env/code_tiny method/grpo", "", "tests_passed", {"": "humaneval"}),
    "code sod": Run("env/code_tiny method/sod", TAUGHT, "tests_passed", {"": "humaneval"}),
    "science grpo": Run("env/science_tiny method/grpo", "", "correct", {"": "mmlu_stem"}),
    "science sod": Run("env/science_tiny method/sod", TAUGHT, "correct", {"": "mmlu_stem"}),
    "math grpo": Run("env/math_text method/grpo env/math_long", "", "correct", MATH),
    "math opd": Run("env/math_text method/opd env/math_long env/math_opd", TAUGHT, "correct", MATH),
    "math top-K": Run("env/math_text method/top_k_opd env/math_long env/math_topk", TAUGHT, "correct", MATH),
    "math topd": Run("env/math_text method/topd env/math_long", TAUGHT, "correct", MATH),
    "SOD grpo": Run("env/math method/grpo env/math_rl env/math_grpo", "", "correct", MATH),
    "SOD sod": Run("env/math method/sod env/math_rl", TAUGHT, "correct", MATH),
    "SOD opsd with hint": Run("env/math method/sod env/math_rl", HINTED, "correct", MATH),
    "search grpo": Run("env/search_r1 method/grpo", "", "em"),
    "search critic": Run("env/search_r1 method/critic_search", JUDGED, "em"),
    "search hindsight": Run(
        "env/search_r1 method/sd_search env/search_queries",
        "--model.view.per_turn true --model.advantage.statistics episode --model.distill_coef 0.1",
        "em",
    ),
}


def files_of(real, folder):
    """Real problems, 100 of each file, where they are there; of one file alone a part for training and a part that is measured."""
    files = {}
    for split, name in real.items():
        if not (DATA / f"{name}.jsonl.gz").exists():
            pytest.skip(f"there is no file of real problems: {DATA / name}.jsonl.gz")
        rows = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()
        for part, taken in ({split: rows[:100]} if split else {"train": rows[:100], "unseen": rows[100:164]}).items():
            files[part] = str(folder / f"{part}.jsonl")
            Path(files[part]).write_text("\n".join(taken))
    return files


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"{data} {name}" for name, run in RUNS.items() for data in ("made", "real")[: 1 + bool(run.real)]]
)
def test_a_tiny_policy_trains_and_resumes_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, _, name = name.partition(" ")
    run = RUNS[name]
    env = {"horizon": 2} if "_tiny" in run.files else {}
    if "search" in run.files:
        env = {"passages": 80, "short": True}
    elif data == "real":
        env |= {"files": files_of(run.real, tmp_path)} | ({"hints": "solution"} if run.real is MATH else {})
    short = {"init_args": {"max_new_tokens": 16}}
    small = {
        "model": {"init_args": {"sampler": short, "val_sampler": short, "updates_per_rollout": 1}},
        "data": {"init_args": {"tasks_per_step": 2, "group_size": 2, "train_tasks": 20, "val_tasks": 4, "val_attempts": 2}},
        "trainer": {"val_check_interval": 4, "enable_progress_bar": False},
    }  # fmt: skip
    small["data"]["init_args"]["env"] = {"init_args": env}
    if "math_long" in run.files or "math_rl" in run.files:
        small["data"]["init_args"]["max_episode_tokens"] = 20 if "math_rl" not in run.files else 1030
    Path("small.yaml").write_text(yaml.safe_dump(small))
    files = [f"conf/{file}.yaml" for file in (*run.files.split(), "scale/tiny")]
    command = ["fit", *(part for file in (*files, "small.yaml") for part in ("-c", file)), *run.options.split()]
    command += OF_SETS if data == "real" and run.real is MATH else []

    def fit(folder, steps, *more):
        assert main([*command, "--trainer.default_root_dir", folder, "--trainer.max_steps", str(steps), *more]) == 0
        return torch.load(Path(folder, "version_0", "checkpoints", "last.ckpt"), weights_only=True)

    straight = fit("straight", 10)
    fit("stopped", 4)
    resumed = fit("stopped", 10, "--ckpt_path", "last")
    assert straight["global_step"] == resumed["global_step"] == 10
    assert all(torch.equal(straight["state_dict"][name], value) for name, value in resumed["state_dict"].items())
    validated = [json.loads(line) for line in Path("straight/version_0/validation.jsonl").read_text().splitlines()]
    if "--data.val_means" in command:
        assert validated[-1]["sets"] == ["aime24", "aime25", "math500"] and "success_mean/sets" in validated[-1]
        validated.pop()
    assert any(run.score in key for key in validated[-1])
