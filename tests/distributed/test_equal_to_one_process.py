"""Any number of ranks, any strategy: the same losses, gradient norms, weights, teacher and skills as one process.

Rounds are ragged: with four ranks one plays no episode, one an episode of a single turn, two the longest; optimizer steps have
four or five micro-batches of one or two rows.
"""

import pytest
import torch
from rank_results import WORLDS, assert_same

RUNS = [(world, kind) for world in (2, 4) for kind in WORLDS[world] if kind != "bf16"]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("world", "kind"), RUNS)
def test_ranks_end_where_one_process_ends(straight, world, kind):
    payload = kind.partition("-")[2]
    one, many = straight(1)[f"one-{payload}" if payload else "one"], straight(world)[kind]
    assert (
        len(one["losses"]) == 5
        and max(map(abs, one["losses"])) > 1e-3
        and min(one["norms"]) > (1e-2 if payload != "lora" else 1e-3)
    )
    torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many["norms"], one["norms"], rtol=1e-5, atol=1e-6)
    assert_same(one, many, atol=1e-5)
    moved = [(one["weights"][name] - one["teacher"][name]).abs().max() for name in one["weights"]]
    assert max(moved) > 1e-3  # it learned, and the average lags behind


@pytest.mark.xdist_group("ranks")
def test_in_bfloat16_a_run_stays_near_that_of_full_precision(straight):
    one, half = straight(1)["one"], straight(2)["bf16"]
    torch.testing.assert_close(half["losses"], one["losses"], rtol=0, atol=1e-2)
    assert all(values.dtype == torch.bfloat16 for values in half["weights"].values())
    assert 0 < max((one["weights"][name] - half["weights"][name]).abs().max() for name in one["weights"]) < 0.05
