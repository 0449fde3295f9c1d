"""What an iteration takes at most, and its time, estimated from peak numbers of a GPU and the shares of them below."""

import math

from sdar.plan.memory import cache_bytes, stored
from sdar.plan.run import GPU, Network, Run

MATMUL_SHARE = 0.4
"""Share of its peak that a GPU reaches in scoring and updates; assumed."""
BANDWIDTH_SHARE = 0.6
"""Share of its memory's peak that a GPU reaches while it writes a response token by token; assumed."""
LAYER_LAUNCH_S = 4e-4
"""Seconds that transformers' Python takes for one layer and one token of a batch, whatever the GPU; assumed."""


def counts(run: Run) -> dict[str, float]:
    """What an iteration takes at most, over all ranks."""
    work = run.work
    teacher = work.passes.get("teacher", 0.0)
    scored = sum(work.passes.values()) * work.tokens + teacher * work.rows * work.told
    per_pass = max(1, work.micro_batch // work.row)
    return {
        "episodes": work.episodes,
        "turns": work.episodes * work.turns,
        "response tokens": work.sampled,
        "prompt tokens that are read": work.read,
        "rows": work.rows,
        "tokens of rows": work.tokens,
        "scoring passes over each row": sum(work.passes.values()),
        "tokens of scoring passes": scored,
        "tokens of passes with a backward": work.tokens,
        "optimizer steps": work.updates,
        "micro-batches of each rank and step": math.ceil(math.ceil(work.rows / work.updates / per_pass) / run.launch.ranks),
    }


def seconds(run: Run, gpu: GPU) -> dict[str, float]:
    """Phase -> seconds of one iteration, estimated; without the world's own time, validation and checkpoints.

    Scoring and updates: 2 FLOPs for each parameter that a token passes (and 4 for each number of attention and token before it), three
    times that with a backward pass, four with gradient checkpointing, at MATMUL_SHARE of the peak. Rollouts: prompts likewise; each
    token of a response reads the weights and the cache once, at BANDWIDTH_SHARE of the bandwidth, but no layer is faster than
    LAYER_LAUNCH_S unless vLLM samples.
    """
    work, launch, policy = run.work, run.launch, run.policy
    narrow = launch.narrow or launch.autocast or policy.bytes == 2
    rate = (gpu.half if narrow else gpu.single) * 1e12 * MATMUL_SHARE * launch.ranks

    def flops(network: Network, tokens: float) -> float:
        a = network.architecture
        return tokens * (2 * a.active + 2 * a.layers * a.heads * a.head_dim * work.row_mean)

    by_role = {"policy": policy, "further": policy}
    by_role["reference"] = policy
    by_role["teacher"] = max(
        (n for n in run.others if n.role.startswith("teacher")), key=lambda n: n.architecture.active, default=policy
    )
    score = sum(
        times * flops(by_role[role], work.tokens + (work.rows * work.told if role == "teacher" else 0))
        for role, times in work.passes.items()
    )
    out = {"score": score / rate, "update": (4 if run.checkpointing else 3) * flops(policy, work.tokens) / rate}
    if not work.plays:
        return {"rollout": 0.0, **out}
    here = math.ceil((work.episodes - work.extra) / launch.ranks) + math.ceil(work.extra / launch.ranks)
    together = min(here, work.together) if work.in_process else here
    # autocast reads float32 weights and writes and reads them once more in two bytes, for each token
    traffic = policy.parameters * (8 if launch.autocast and policy.bytes == 4 else stored(run, policy))
    past = together * work.row_mean * cache_bytes(run, policy)
    token = (traffic + past) / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
    if work.in_process:
        token = max(token, policy.architecture.layers * LAYER_LAUNCH_S)
    one_row = work.layout == "trajectory" and not work.splits
    written = min(work.turns * work.response, work.row) if one_row else work.turns * work.response
    rollout = flops(policy, work.read) / rate + math.ceil(here / together) * written * token
    return {"rollout": rollout, **out}
