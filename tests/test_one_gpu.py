"""The benchmark for a GPU: its commands on a CPU with a tiny policy, and what it is for where there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "one_gpu.py"


def run(folder, *arguments):
    command = [sys.executable, SCRIPT, "--runs", folder / "runs", "--to", folder / "found.json", *arguments]
    subprocess.run([*map(str, command)], check=True, timeout=1500, cwd=SCRIPT.parents[1])
    return json.loads((folder / "found.json").read_text())["runs"]


@pytest.mark.slow
def test_its_commands_run(tmp_path):
    for found in run(tmp_path, "--cpu", "--iterations", "2"):
        assert found["planned_gib"] > 0 and found["parameters"] > 10_000
        assert all(seconds > 0 for seconds in found["measured_s"].values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_a_plan_is_near_what_a_gpu_takes(tmp_path):
    for found in run(tmp_path):
        assert found["parameters"] > 4e8
        assert 0.7 < found["planned_gib"] / found["measured_gib"] < 1.5
