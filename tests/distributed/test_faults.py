"""Two ranks, one of which is killed, raises or stands still: the other ends with a named error, and the last checkpoint is good."""

import pytest
import torch
from launch import finish, start

CASES = [
    ("ddp", "rollout", 1, r"rank 1 is gone; the last that it said was: iteration 1, rollout"),
    (
        "zero3",
        "update",
        1,
        r"rank 1 is gone; the last that it said was: iteration 1, waiting for the others at the micro-batches",
    ),
    ("zero2", "checkpoint", 1, r"rank 1 is gone; the last that it said was: iteration 1, waiting for the others at metrics"),
    ("ddp", "update", 0, r"rank 0 is gone"),
    ("ddp", "error", 1, r"rank 1 failed at iteration 1: ContextOverflowError: the prompt of task 7 is too long"),
    (
        "ddp",
        "validation",
        1,
        r"rank 1 failed at validation after iteration 2: ContextOverflowError: the prompt of task 7 is too",
    ),
    ("ddp", "sleep", 1, r"rank 1 is alive, but did not come; the last that it said was: iteration 1, rollout"),
]


@pytest.mark.parametrize(("kind", "fault", "struck", "told"), CASES)
def test_the_other_rank_names_who_is_missing(tmp_path, kind, fault, struck, told):
    ranks = start(2, "rank_faults.py", tmp_path, kind, fault, folder=tmp_path, STRUCK=str(struck))
    other = ranks[1 - struck]
    try:
        assert finish([other], 150) == [3]
    finally:
        ranks[struck].process.kill()
    last = other.said.strip().splitlines()[-1]
    beat = "validation after iteration 2" if fault == "validation" else "iteration 1"
    assert last.startswith(f"RankError: {beat}: ") and told in last and "go on from the last checkpoint" in last
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    finished = 2 if kept["sdar"]["iteration"] == 2 else 1  # the second was over when the checkpoint began
    assert kept["sdar"]["iteration"] == finished and kept["global_step"] == 2 * finished
    assert kept["sdar"]["env_steps"] > 0
