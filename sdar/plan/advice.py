"""What to change when a run does not fit."""

from collections.abc import Iterator
from dataclasses import replace

from sdar.plan.memory import peaks, playing
from sdar.plan.run import GIB, GPU, Run


def changes(run: Run) -> Iterator[tuple[str, Run]]:
    """Settings that take memory off a rank, and the run with each: first what costs least."""
    launch, work, policy = run.launch, run.work, run.policy
    if launch.half and policy.bytes == 4 and "dtype" in run.options:  # the run casts them anyway, after they were made
        networks = (replace(n, bytes=2) if n.sharded and n.role == "initial copy" else n for n in run.others)
        yield f"--{run.options['dtype']} bfloat16", replace(run, policy=replace(policy, bytes=2), others=tuple(networks))
    if not run.checkpointing and "gradient_checkpointing" in run.options:
        yield f"--{run.options['gradient_checkpointing']} true", replace(run, checkpointing=True)
    least = max(work.row, 1024)
    if work.micro_batch > least:
        small = max(least, work.micro_batch // 4)
        yield f"--model.micro_batch_tokens {small}", replace(run, work=replace(work, micro_batch=small))
    if work.in_process and (work.plays or work.measured):
        share = playing(run)
        if work.together > 8 and share > 8:
            few = max(8, min(work.together, share) // 8)
            yield (
                f"--model.sampler.batch_size {few} (prompts are read in smaller pieces)",
                replace(run, work=replace(work, together=few)),
            )
        if work.measured / launch.ranks == share and work.measured > work.episodes:
            yield "a smaller --data.val_batch", replace(run, work=replace(work, measured=min(work.measured, work.episodes)))
        served = replace(work, in_process=False, engine=0.0, measured=0)
        yield "--model.sampler ServerSampler on other GPUs (docs/serving.md)", replace(run, work=served)
    for network in run.others:
        if network.bytes == 4 and network.dtype_option:
            other = tuple(replace(n, bytes=2) if n is network else n for n in run.others)
            yield f"--{network.dtype_option} bfloat16", replace(run, others=other)
    if launch.ranks > 1:
        for stage in range(launch.stage + 1 if launch.kind == "zero" else 1, 4):
            higher = replace(launch, kind="zero", stage=stage)
            yield f"--trainer.strategy deepspeed_stage_{stage}", replace(run, launch=higher)
    for stage in (2, 3):
        offloaded = replace(launch, kind="zero", stage=stage, offload_optimizer=True, offload_parameters=stage == 3)
        if not launch.offload_optimizer and stage >= launch.stage:
            yield f"--trainer.strategy deepspeed_stage_{stage}_offload", replace(run, launch=offloaded)
    if not policy.adapters and run.options:
        adapters = 64 * policy.architecture.sides
        lora = replace(policy, adapters=adapters, trained=adapters)
        others = tuple(n for n in run.others if n.role != "initial copy")
        yield (
            "LoRAPolicy (conf/policy/qwen3-1.7b_lora.yaml), rank 64",
            replace(run, policy=lora, others=others, head_trained=False),
        )


def combinations(run: Run, gpu: GPU) -> list[tuple[str, float]]:
    """Changes with the peak in bytes that each leads to; the first ones that together fit are joined."""
    now = max(peaks(run, gpu).values())
    single = [(what, max(peaks(other, gpu).values())) for what, other in changes(run)]
    helpful = [(what, size) for what, size in single if size < 0.99 * now]
    if any(size <= gpu.memory * GIB for _, size in helpful):
        return helpful
    names, joined = [], run
    while (best := _best(joined, gpu)) is not None:
        what, joined = best
        names.append(what)
        if (size := max(peaks(joined, gpu).values())) <= gpu.memory * GIB:
            return [*helpful, (" and ".join(names), size)]
    return helpful


def _best(run: Run, gpu: GPU) -> tuple[str, Run] | None:
    now = max(peaks(run, gpu).values())
    tried = [(max(peaks(other, gpu).values()), n, what, other) for n, (what, other) in enumerate(changes(run))]
    good = [t for t in tried if t[0] < 0.99 * now]
    return min(good)[2:] if good else None
