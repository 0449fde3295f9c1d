"""Runs of `rank_run.py`: started, read, compared."""

import torch
from launch import run

KINDS = ["ddp", "zero1", "zero2", "zero3"]
PAYLOADS = ["zero3-full", "zero3-top", "ddp-full", "zero2-top"]
OTHERS = ["offload2", "offload3", "ddp-lora", "zero3-lora"]
WORLDS = {1: ["one", "one-full", "one-top", "one-lora"], 2: [*KINDS, *OTHERS, "bf16"], 4: [*KINDS, *PAYLOADS]}
STEPS, HALF = 10, 4


def trained(world, kinds, folder, steps=STEPS, **environment):
    """What each kind ends with, and what its processes said."""
    ranks = run(world, "rank_run.py", folder / "out", steps, *kinds, folder=folder, deadline=500, **environment)
    return {kind: torch.load(f"{folder}/out.{kind}") for kind in kinds} | {"said": [rank.said for rank in ranks]}


def assert_same(one, other, networks=("weights", "teacher"), **tolerance):
    """Networks agree, by default bit for bit."""
    for network in networks:
        assert one[network].keys() == other[network].keys()
        for name, values in one[network].items():
            torch.testing.assert_close(
                other[network][name], values, **{"rtol": 0, "atol": 0} | tolerance, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert one["skills"] == other["skills"]
