"""Any number of ranks, any strategy: the same losses, gradient norms, weights, teacher and skills as one process.

Rounds are ragged: with four ranks one plays no episode, one an episode of a single turn, two the longest; optimizer steps have
four or five micro-batches of one or two rows.
"""

import pytest
import torch
from launch import run

KINDS = ["ddp", "zero1", "zero2", "zero3"]
PAYLOADS = ["zero3-full", "zero3-top", "ddp-full", "zero2-top"]
RUNS = [*[(2, kind) for kind in KINDS], *[(4, kind) for kind in [*KINDS, *PAYLOADS]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(1, ["one", "one-full", "one-top"], tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What a number of ranks ends with, made once."""
    kept = {}

    def of(world):
        if world not in kept:
            kinds = [kind for w, kind in RUNS if w == world]
            kept[world] = trained(world, kinds, tmp_path_factory.mktemp(f"ranks{world}"))
        return kept[world]

    return of


def trained(world, kinds, folder):
    run(world, "rank_run.py", folder / "out", 10, *kinds, folder=folder, deadline=400)
    return {kind: torch.load(f"{folder}/out.{kind}") for kind in kinds}


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("world", "kind"), RUNS)
def test_ranks_end_where_one_process_ends(alone, together, world, kind):
    payload = kind.partition("-")[2]
    one, many = alone[f"one-{payload}" if payload else "one"], together(world)[kind]
    assert len(one["losses"]) == 5 and max(map(abs, one["losses"])) > 1e-3 and min(one["norms"]) > 1e-2
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-6)
    torch.testing.assert_close(many["norms"], one["norms"], rtol=1e-5, atol=1e-6)
    for network in ("weights", "teacher"):
        assert many[network].keys() == one[network].keys()
        for name, values in one[network].items():
            torch.testing.assert_close(many[network][name], values, rtol=0, atol=1e-5, msg=f"{network} {name}")
    assert many["skills"] == one["skills"]
    moved = [(one["weights"][name] - one["teacher"][name]).abs().max() for name in one["weights"]]
    assert max(moved) > 1e-3  # it learned, and the average lags behind
