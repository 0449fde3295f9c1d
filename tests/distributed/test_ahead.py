"""Rollouts ahead on several ranks: each samples its share in the background; weights are handed over by all together."""

import torch
from launch import run


def test_ranks_that_look_ahead_end_where_one_process_ends(tmp_path):
    found = {}
    for world, kinds in ((1, ["one"]), (2, ["ddp"])):
        run(world, "rank_ahead.py", tmp_path / "out", *kinds, folder=tmp_path, deadline=240)
        found |= {kind: torch.load(tmp_path / f"out.{kind}") for kind in kinds}
    one = found.pop("one")
    assert one["stale"] == [0, 1, 1]
    for many in found.values():
        assert many["stale"] == one["stale"]
        torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(many["weights"], one["weights"], rtol=0, atol=1e-5)
