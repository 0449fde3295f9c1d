"""Memory of each rank and node, by formula: what the code of `sdar.module`, `sdar.distributed` and `sdar.samplers` holds at its worst
moment in each phase, counted in bytes. `benchmarks/plan_memory.py` compares it with real runs."""

import math

from sdar.functional.divergence_pass import LEAST
from sdar.functional.head import ELEMENTS, IDS
from sdar.joint_passes import without_gradient
from sdar.plan.run import GIB, GPU, Architecture, Network, Run
from sdar.types import TeacherSignal

PHASES = ("start", "rollout", "score", "head", "update", "step")
"""Moments of a run: networks are made; episodes are played; rows are scored; in the last micro-batch of an optimizer step, the pass back
through the vocabulary and the pass back through the layers; the optimizer's step."""

RESERVED = int(1.5 * GIB)
"""Bytes that CUDA, cuBLAS and NCCL take on each GPU; assumed."""
LOST = 0.05
"""Share of the rest that the allocator loses in holes; assumed."""
CHUNK = 1024
"""Most tokens in a tile of logits: the default of `sdar.scoring.Scorer`."""
LIVE_PARAMETERS = 10**9
"""Most numbers of a network that ZeRO-3 keeps gathered (DeepSpeed's stage3_max_live_parameters)."""
BATCH_BYTES = 92
"""Bytes that each rank's memory holds for one token of the rows' tensors: ids, masks, log-probabilities, the teacher's row."""


def stored(run: Run, network: Network) -> int:
    """Bytes of one number of a network in a pass."""
    return 2 if run.launch.narrow and network.sharded else kept(run, network)


def kept(run: Run, network: Network) -> int:
    """The same between passes; DeepSpeed has all in one type."""
    if not network.sharded:
        return network.bytes
    return 2 if run.launch.half else 4 if run.launch.kind == "zero" else network.bytes


def adapter_bytes(run: Run) -> int:
    """Bytes of one number of adapters, which DeepSpeed alone makes narrower."""
    return 2 if run.launch.half and run.launch.kind == "zero" else 4


def weights(run: Run, network: Network) -> float:
    """Bytes of a network on one rank."""
    size = kept(run, network)
    whole = network.architecture.parameters * size + network.adapters * adapter_bytes(run)
    if not network.sharded or run.launch.stage < 3:
        return whole
    return 0.0 if run.launch.offload_parameters else whole / run.launch.ranks


def gathered(run: Run, network: Network) -> float:
    """Bytes of a divided network that a rank has whole in a pass: of FSDP2 the head, a layer and the next one."""
    a, parameters = network.architecture, float(network.parameters)
    if run.launch.kind == "zero":
        parameters = min(parameters, LIVE_PARAMETERS)
    elif not run.launch.stays:
        parameters = a.head + 2 * (parameters - a.head * (1 if a.tied else 2)) / a.layers
    return parameters * stored(run, network)


def layer_activations(a: Architecture, tokens: int, row: int, size: int, autocast: bool) -> float:
    """Bytes that one layer keeps of `tokens` tokens for its backward pass, attention scores not among them.

    With h, q, k, f the widths of hidden states, queries, keys and feed-forward, `s` bytes of a number and rows that are padded (so
    that keys and values are repeated for all heads, and a mask of a row's length stands beside each token; rows without padding keep
    less):

        s = 4                 4 (6 h + 4 q + 4 f)     + 8 (q + k) where queries and keys are normalised  + 4 row
        s = 2                 16 h + 8 q + 8 f        + 6 (q + k)                                        + 2 row
        float32, autocast     26 h + 8 q + 8 f        + 6 (q + k)                                        + 2 row

    and a few numbers for each head. Norms keep float32 inputs; an autocast keeps a cast input for each linear layer.

    Args:
        row: Tokens of the longest row.
        size: Bytes of a number.
        autocast: Weights are float32, products are in two bytes.
    """
    h, q, k, f = a.hidden, a.heads * a.head_dim, a.kv_heads * a.head_dim, a.intermediate
    if autocast and size == 4:
        each, norm = 26 * h + 8 * q + 8 * f + 2 * row, 6
    elif size == 2:
        each, norm = 16 * h + 8 * q + 8 * f + 2 * row, 6
    else:
        each, norm = size * (6 * h + 4 * q + 4 * f + row), 2 * size
    small = 8 + 4 * a.heads + (4 * (a.heads + a.kv_heads) if a.qk_norm else 0)
    return float(tokens * (each + a.qk_norm * norm * (q + k) + small))


def activations(run: Run, tokens: int) -> float:
    """Bytes that the policy keeps of a micro-batch until its backward pass: of all layers, or each one's input."""
    a, size = run.policy.architecture, stored(run, run.policy)
    ends = tokens * a.hidden * 3 * max(size, 2)
    if run.checkpointing:
        return a.layers * tokens * a.hidden * size + ends
    autocast = run.launch.autocast and size == 4
    layer = layer_activations(a, tokens, min(run.work.row, tokens), size, autocast)
    return a.layers * layer + ends + autocast * 2 * a.linear  # each linear layer keeps its weights in two bytes, too


def backward(run: Run, tokens: int) -> float:
    """Bytes of one layer's backward pass: gradients at its widest place, and what is computed again."""
    a, size = run.policy.architecture, stored(run, run.policy)
    autocast = run.launch.autocast and size == 4
    narrow = 2 if autocast else size
    again = 0.0
    if run.checkpointing:
        again = layer_activations(a, tokens, min(run.work.row, tokens), size, autocast) + autocast * 2 * a.linear / a.layers
    return again + tokens * (2 * a.intermediate * narrow + 2 * a.hidden * size)


def passing(run: Run, network: Network, tokens: float) -> float:
    """Bytes that live at the widest place of a layer when nothing is kept for a backward pass."""
    a, size = network.architecture, stored(run, network)
    narrow = 2 if run.launch.autocast or size == 2 else size
    return tokens * (3 * a.intermediate * narrow + a.hidden * (size + 4 + narrow))


def scored_tokens(run: Run) -> int:
    """Most tokens of a pass that scores rows: those of the policy and of a live teacher are in it together."""
    work = run.work
    tokens = int(sum(work.passes.values()) * work.tokens + work.passes.get("teacher", 0.0) * work.rows * work.told)
    larger = min(tokens, without_gradient(work.micro_batch, tokens, run.launch.ranks))
    return max(larger, work.pass_tokens, work.row + work.told)


def logits(run: Run, network: Network, gradient: bool) -> float:
    """Bytes that the head takes: tiles of logits, rows of them where student and teacher are compared over the whole vocabulary, and the
    head's own gradient."""
    a, full = network.architecture, run.work.teacher_signal == TeacherSignal.FULL.value
    ids = min(a.vocab, IDS["cuda"])
    tile = ids * min(CHUNK, ELEMENTS["cuda"] // ids)
    block = 6.0 * ids * a.hidden  # rows of the weight in the precision of the product
    if not gradient:
        return 4.0 * 2 * tile + block
    total = 4.0 * 4 * tile + 2 * tile + block + (4.0 * 2 * LEAST * a.vocab if full else 0)
    if run.head_trained:
        sampled = run.work.teacher_signal == TeacherSignal.SAMPLED.value
        # objectives over several ids sum their share up in float32
        total += a.head * (stored(run, network) + (0 if sampled else 4))
    return total


def cache_bytes(run: Run, network: Network) -> int:
    """Bytes of keys and values of one token."""
    a, size = network.architecture, stored(run, network)
    return a.layers * a.kv_heads * a.head_dim * 2 * (2 if run.launch.autocast else size)


def playing(run: Run) -> int:
    """Episodes that one rank plays at the same time, in training or validation."""
    work = run.work
    most = max(work.episodes - work.extra if work.plays else 0, work.extra, work.measured)
    return math.ceil(most / run.launch.ranks)


def kv_cache(run: Run) -> float:
    """Bytes of keys and values of one rank's episodes; the buffers have a quarter of spare room."""
    if not run.work.in_process:
        return 0.0
    return 1.25 * min(playing(run), run.work.together) * run.work.row * cache_bytes(run, run.policy)


def device_memory(run: Run, gpu: GPU | None = None) -> dict[str, dict[str, float]]:
    """Phase -> what lies on one rank's device -> bytes.

    A sharded copy counts its share; ranks that differ by rounding count the most.
    """
    launch, work, policy = run.launch, run.work, run.policy
    networks = (policy, *run.others)
    zero, ranks = launch.kind == "zero", launch.ranks
    share = 1 / ranks if zero or launch.stage == 3 else 1.0
    trained_size = adapter_bytes(run) if policy.adapters else kept(run, policy)
    on_device = 0.0 if launch.offload_optimizer else 1.0
    sets: dict[str, dict[str, float]] = {phase: {} for phase in PHASES}

    def put(what: str, size: float, *phases: str) -> None:
        for phase in phases:
            if size:
                sets[phase][what] = sets[phase].get(what, 0.0) + size

    for network in networks:
        if network.sharded:  # whole in the type that it is loaded in; ZeRO-3 divides it on its way to the device
            put(f"weights: {network.role}", weights(run, network) if launch.stage == 3 else network.loaded, "start")
        put(f"weights: {network.role}", weights(run, network), *PHASES[1:])
        if network.averages and (size := kept(run, network)) < 4:
            put(f"average of {network.role}", weights(run, network) * 4 / size, *PHASES[1:])
    states = policy.trained * run.state * (4 if zero else trained_size) * share * on_device
    put("optimizer", states, *PHASES[1:])
    put("float32 weights", policy.trained * 4 * share * on_device if zero else 0.0, *PHASES[1:])
    parts = ranks if launch.stage >= 2 else 1
    put("gradients", policy.trained * trained_size / parts * (on_device if parts > 1 else 1), "head", "update", "step")
    if launch.kind == "ddp":
        put("buffers of gradients", policy.trained * trained_size, *PHASES[1:])
    if launch.kind == "fsdp":  # of a layer or the head, as they come and as they are summed
        a = policy.architecture
        unit = max(policy.trained / a.layers, a.head if run.head_trained else 0)
        put("buffers of gradients", unit * (stored(run, policy) + 4), "head", "update")
    if zero:
        put(
            "buffers of gradients",
            launch.bucket * trained_size * (2 if launch.overlap and launch.stage < 3 else 1),
            "head",
            "update",
        )
    put("the step's own", policy.trained * 4 * share * on_device * (2 if zero else 1), "step")
    if launch.stage == 3:
        for phase, role in (("score", networks), ("head", (policy,)), ("update", (policy,))):
            put("gathered layers", max(gathered(run, n) for n in role if n.sharded), phase)

    cached, whole = kv_cache(run), stored(run, policy) * policy.parameters
    if work.plays or work.measured:
        together = min(playing(run), work.together)
        if work.in_process:
            if launch.stage == 3:
                put("whole policy for sampling", whole, "rollout")
            put("keys and values", cached, "rollout")
            narrow = 2 if launch.narrow or launch.autocast else policy.bytes
            mask = together * work.prompt**2 * (1 + narrow)
            read = passing(run, policy, together * work.prompt) + mask
            draw = together * policy.architecture.vocab * 8.0 * (8 if work.truncates else 4)
            put("reading prompts, drawing tokens", max(read, draw), "rollout")
        elif work.engine and gpu:
            put("the sampling engine", work.engine * gpu.memory * GIB, "rollout")
    if work.passes:
        put("activations", max(passing(run, n, scored_tokens(run)) for n in networks), "score")
        put("logits", max(logits(run, n, gradient=False) for n in networks), "score")
        if launch.kind == "one" and work.updates == 1 and work.tokens <= work.micro_batch:  # `Updating.first_pass` keeps it
            put("the pass that the update learns from", activations(run, int(work.tokens)), "score")
    put("activations", activations(run, work.pass_tokens), "head", "update")
    put("logits", logits(run, policy, gradient=True), "head")
    put("a layer's backward pass", backward(run, work.pass_tokens), "update")
    if work.teacher_signal == TeacherSignal.FULL.value:
        put("teacher's head", max(n.architecture.head * stored(run, n) for n in networks), *PHASES[2:])
    return sets


def host_memory(run: Run) -> dict[str, float]:
    """What -> bytes in the main memory of one node; rows and episodes lie in every process whole."""
    launch, work, policy = run.launch, run.work, run.policy
    here = math.ceil(launch.ranks / launch.nodes)
    each = BATCH_BYTES + work.support * 12
    if work.teacher_signal == TeacherSignal.FULL.value:
        each += max(n.architecture.hidden * stored(run, n) for n in (policy, *run.others))
    out = {"rows of an iteration, in every process": float(here * work.rows * (work.row + work.told) * each)}
    if launch.kind in ("fsdp", "zero"):
        copies = sum(n.parameters * (kept(run, n) + 4 * (n.averages and kept(run, n) < 4)) for n in run.others if n.follows)
        out["a checkpoint while it is gathered, first process"] = copies + 4 * (1 + run.state) * policy.trained
    if launch.stage == 3:
        out["networks at the start, in every process"] = here * sum(n.loaded for n in (policy, *run.others) if n.sharded)
    if launch.offload_optimizer:
        out["optimizer, float32 weights and gradients"] = here / launch.ranks * policy.trained * 4 * (run.state + 2)
    if launch.offload_parameters:
        out["weights"] = here / launch.ranks * sum(n.parameters * stored(run, n) for n in (policy, *run.others) if n.sharded)
    return {what: size for what, size in out.items() if size}


def peaks(run: Run, gpu: GPU | None = None) -> dict[str, float]:
    """Phase -> bytes on one rank's device, with what libraries take and the allocator loses."""
    return {phase: sum(parts.values()) * (1 + LOST) + RESERVED for phase, parts in device_memory(run, gpu).items()}
