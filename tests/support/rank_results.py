"""Runs of `rank_run.py`: started, read, compared."""

import torch
from launch import run

KINDS = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]
PAYLOADS = ["zero3-full", "zero3-top", "ddp-full", "zero2-top"]
OTHERS = ["offload2", "offload3", "ddp-lora", "zero3-lora", "fsdp2-lora", "kept2-untied"]
HALVES = {"bf16": torch.bfloat16, "half2": torch.float32}
"""Kinds in bf16-mixed, and what they keep their weights in."""
SLOW = ["bf16-slow", "bf16zero2-slow"]
"""With a teacher that moves by less than its type can hold."""
WORLDS = {
    1: ["one", "one-full", "one-top", "one-lora", "one-untied", "one-slow"],
    2: [*KINDS, "sharded3", *OTHERS, *HALVES, *SLOW],
    4: [*KINDS, *PAYLOADS],
}
STEPS = 4


def trained(world, kinds, folder, **environment):
    """What each kind ends with after two iterations of two optimizer steps, and what its processes said."""
    ranks = run(world, "rank_run.py", folder / "out", STEPS, *kinds, folder=folder, deadline=500, **environment)
    return {kind: torch.load(f"{folder}/out.{kind}") for kind in kinds} | {"said": [rank.said for rank in ranks]}


def assert_same(one, other, networks=("weights", "teacher", "averages"), **tolerance):
    """Networks agree, by default bit for bit."""
    for network in networks:
        assert one[network].keys() == other[network].keys()
        for name, values in one[network].items():
            torch.testing.assert_close(
                other[network][name], values, **{"rtol": 0, "atol": 0} | tolerance, msg=lambda m, name=name: f"{name}: {m}"
            )
    assert one["skills"] == other["skills"]
