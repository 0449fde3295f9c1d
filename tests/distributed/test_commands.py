"""`sdar validate` on several ranks: the report of one process, whatever the strategy, and written once."""

import json
from pathlib import Path

import pytest
from launch import run

SETTINGS = Path(__file__).parents[2] / "conf/quickstart/sdar.yaml"


def report(world, strategy, folder):
    """What `sdar validate` wrote and what its first process said."""
    ranks = run(
        world, "rank_cli.py", "validate", "-c", SETTINGS, "--data.val_tasks", "6", "--trainer.devices", world,
        "--trainer.strategy", strategy, "--trainer.default_root_dir", folder / "runs", folder=folder, deadline=240,
    )  # fmt: skip
    [written] = (folder / "runs").rglob("validation.jsonl")
    assert not any("sync_dist" in rank.said for rank in ranks)  # every rank has the same number
    return [json.loads(line) for line in written.read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return report(1, "auto", tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("strategy", ["deepspeed_stage_2", "deepspeed_stage_3"])
def test_ranks_report_what_one_process_reports(alone, strategy, tmp_path):
    assert [line["tasks"] for line in alone] == [6] and 0 < alone[0]["teacher/success/unseen"][0] <= 1
    assert report(2, strategy, tmp_path) == alone
