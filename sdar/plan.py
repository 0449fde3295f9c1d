"""What a run will need before it starts: memory of each rank, forwards, tokens and time of an iteration, all by formula.

Pure functions of a `Run`, which `sdar.plan_settings` reads off the settings and `sdar.plan_report` tells. Memory is what the code of
`sdar.module`, `sdar.distributed` and `sdar.samplers` holds at its worst moment in each phase, counted in bytes; `benchmarks/plan_memory.py`
compares it with real runs. Times are estimates from peak numbers of a GPU and the shares of them below.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sdar.errors import ConfigError
from sdar.registry import did_you_mean
from sdar.types import Payload

GIB = 2**30
PHASES = ("start", "rollout", "score", "head", "update", "step")
"""Moments of a run: networks are made; episodes are played; rows are scored; in the last micro-batch of an optimizer step, the pass back
through the vocabulary and the pass back through the layers; the optimizer's step."""

RESERVED = int(1.5 * GIB)
"""Bytes that CUDA, cuBLAS and NCCL take on each GPU; assumed."""
LOST = 0.05
"""Share of the rest that the allocator loses in holes; assumed."""
CHUNK = 1024
"""Tokens whose logits exist at a time: the default of `sdar.scoring.Scorer`."""
LIVE_PARAMETERS = 10**9
"""Most numbers of a network that ZeRO-3 keeps gathered (DeepSpeed's stage3_max_live_parameters)."""
BATCH_BYTES = 92
"""Bytes that each rank's memory holds for one token of the rows' tensors: ids, masks, log-probabilities, the teacher's row."""
MATMUL_SHARE = 0.4
"""Share of its peak that a GPU reaches in scoring and updates; assumed."""
BANDWIDTH_SHARE = 0.6
"""Share of its memory's peak that a GPU reaches while it writes a response token by token; assumed."""
LAYER_LAUNCH_S = 4e-4
"""Seconds that transformers' Python takes for one layer and one token of a batch, whatever the GPU; assumed."""


class GPU(NamedTuple):
    """Peak numbers of a GPU, dense."""

    memory: float
    """GiB that torch can allocate from."""
    half: float
    """bfloat16 TFLOP/s, summed in float32."""
    single: float
    """float32 TFLOP/s without TF32, as torch computes by default."""
    bandwidth: float
    """GB/s."""


GPUS = {
    "a100-40": GPU(39.4, 312, 19.5, 1555),
    "a100-80": GPU(79.1, 312, 19.5, 2039),
    "h100": GPU(79.1, 989, 67, 3350),
    "h200": GPU(139.7, 989, 67, 4800),
    "l40s": GPU(44.4, 362, 91.6, 864),
    "rtx4090": GPU(23.5, 165, 82.6, 1008),
}


@dataclass(frozen=True)
class Architecture:
    """Sizes of a causal language model."""

    name: str
    kind: str
    """Class of transformers."""
    parameters: int
    active: int
    """Those that a token passes through: fewer than all where there are experts."""
    linear: int
    """Those in linear layers other than the head."""
    sides: int
    """Inputs and outputs of those layers: numbers of adapters of rank 1."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Of all experts that a token passes through."""
    vocab: int
    context: int
    """Positions."""
    qk_norm: bool
    tied: bool
    """Whether the head is the embedding."""

    @property
    def head(self) -> int:
        """Numbers of the head."""
        return self.vocab * self.hidden


@dataclass(frozen=True)
class Network:
    """A network of a run, as it is loaded."""

    role: str
    architecture: Architecture
    bytes: int
    """Of one number, before any strategy or precision casts it."""
    adapters: int = 0
    """Numbers of low-rank adapters beside it; they are float32."""
    trained: int = 0
    """Numbers with a gradient."""
    sharded: bool = True
    """False for a judge, which each rank has whole, on its own."""
    follows: bool = False
    """True for a copy that moves with the policy: checkpoints hold it."""
    averages: bool = False
    """True for a copy whose moves may be smaller than a narrow type holds: its average in float32 lies beside it."""

    @property
    def numbers(self) -> int:
        return self.architecture.parameters + self.adapters

    @property
    def loaded(self) -> int:
        """Bytes when it is made."""
        return self.architecture.parameters * self.bytes + 4 * self.adapters


@dataclass(frozen=True)
class Launch:
    """How the processes of a run share the work."""

    kind: str = "one"
    """one, ddp, fsdp or zero."""
    stage: int = 0
    """Of ZeRO; FSDP2 divides what its third one does."""
    ranks: int = 1
    nodes: int = 1
    precision: str = "32-true"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = 200_000_000
    """Numbers in DeepSpeed's buffer of gradients."""
    overlap: bool = True
    """DeepSpeed fills one such buffer while the other one travels."""
    counted: bool = False
    """Whether the number of devices is found when the run starts; here it is taken to be one."""
    stays: bool = False
    """Whether FSDP2 keeps layers gathered between forward and backward."""

    @property
    def half(self) -> bool:
        """Whether weights are cast to two bytes when the run starts."""
        return (self.precision.endswith("true") and not self.precision.startswith(("32", "64"))) or (
            self.kind == "zero" and self.precision not in ("32-true", "64-true")
        )  # fmt: skip

    @property
    def narrow(self) -> bool:
        """Whether passes have weights in two bytes: FSDP2 casts them when it gathers them."""
        return self.half or (self.kind == "fsdp" and self.precision.endswith("mixed"))

    @property
    def autocast(self) -> bool:
        return self.precision.endswith("mixed") and not self.narrow

    def __str__(self) -> str:
        name = {"one": "one process", "ddp": "ddp", "fsdp": "FSDP2", "zero": f"ZeRO-{self.stage}"}[self.kind]
        name += ", optimizer in host memory" * self.offload_optimizer + ", weights in host memory" * self.offload_parameters
        guess = " (trainer.devices is counted when the run starts; --ranks says how many)" if self.counted else ""
        return f"{self.ranks} rank(s) on {self.nodes} node(s){guess}, {name}, {self.precision}"


@dataclass(frozen=True)
class Work:
    """What an iteration does at most, over all ranks."""

    tasks: int
    attempts: int
    """At each task."""
    extra: int
    """Further episodes that the method may ask for."""
    turns: int
    """Of an episode."""
    response: int
    """Tokens of a turn."""
    layout: str
    splits: bool
    """Whether the chat template makes several rows of one growing conversation."""
    row: int
    """Tokens of the longest row."""
    row_mean: float
    """Tokens of a usual row of the longest episode."""
    prompt: int
    """Most tokens that the sampler reads at once, for one episode."""
    told: int
    """Tokens that the teacher's longest row has more."""
    updates: int
    """Optimizer steps."""
    micro_batch: int
    """Tokens of a pass."""
    passes: Mapping[str, float]
    """Scoring passes over every row, by the network that makes them."""
    plays: bool = True
    """False where the policy plays no episodes (behaviour cloning)."""
    in_process: bool = True
    """Whether the network that is trained samples."""
    together: int = 256
    """Most episodes that a rank samples at the same time."""
    measured: int = 0
    """Episodes of a validation batch, which are played at the same time."""
    truncates: bool = False
    """Whether top-p or top-k is used."""
    engine: float = 0.0
    """Share of the GPU that vLLM takes while episodes are played."""
    payload: str = Payload.SAMPLED.value
    support: int = 0

    @property
    def episodes(self) -> int:
        return self.tasks * self.attempts + self.extra

    @property
    def rows(self) -> int:
        return self.episodes * (self.turns if self.layout == "turn" or self.splits else 1)

    @property
    def sampled(self) -> int:
        """Response tokens."""
        most = self.turns * self.response
        return self.episodes * (min(most, self.row) if self.layout == "trajectory" and not self.splits else most)

    @property
    def tokens(self) -> float:
        """Tokens of all rows."""
        return self.rows * self.row_mean

    @property
    def read(self) -> float:
        """Tokens that the sampler reads: whole prompts in the turn layout, what is new in a growing conversation."""
        return self.tokens - self.sampled if self.tokens > self.sampled else 0.0

    @property
    def pass_tokens(self) -> int:
        """Most tokens of one pass: a single row may have more than a micro-batch shall."""
        return max(self.micro_batch, self.row)


@dataclass(frozen=True)
class Run:
    """Everything that memory and time follow from."""

    policy: Network
    others: tuple[Network, ...]
    launch: Launch
    work: Work
    state: float = 2.0
    """Numbers that the optimizer keeps for each one that is trained."""
    checkpointing: bool = False
    """Whether activations of the policy are computed again in the backward pass."""
    head_trained: bool = True
    key: str = "model.policy"
    """Where a PretrainedPolicy stands in the settings; empty where there is none."""
    notes: tuple[str, ...] = ()
    cut: tuple[str, ...] = field(default=(), compare=False)
    """What the two steps before had smaller than the settings."""


# ------------------------------------------------------------------ memory


def stored(run: Run, network: Network) -> int:
    """Bytes of one number of a network in a pass."""
    return 2 if run.launch.narrow and network.sharded else network.bytes


def kept(run: Run, network: Network) -> int:
    """The same between passes."""
    return 2 if run.launch.half and network.sharded else network.bytes


def weights(run: Run, network: Network) -> float:
    """Bytes of a network on one rank."""
    size = kept(run, network)
    whole = network.architecture.parameters * size + network.adapters * (2 if run.launch.half else 4)
    if not network.sharded or run.launch.stage < 3:
        return whole
    return 0.0 if run.launch.offload_parameters else whole / run.launch.ranks


def gathered(run: Run, network: Network) -> float:
    """Bytes of a divided network that a rank has whole in a pass: of FSDP2 the head, a layer and the next one."""
    a, numbers = network.architecture, float(network.numbers)
    if run.launch.kind == "zero":
        numbers = min(numbers, LIVE_PARAMETERS)
    elif not run.launch.stays:
        numbers = a.head + 2 * (numbers - a.head * (1 if a.tied else 2)) / a.layers
    return numbers * stored(run, network)


def layer_activations(a: Architecture, tokens: int, row: int, size: int, autocast: bool) -> float:
    """Bytes that one layer keeps of `tokens` tokens for its backward pass, attention scores not among them.

    With h, q, k, f the widths of hidden states, queries, keys and feed-forward, `s` bytes of a number and rows that are padded (so
    that keys and values are repeated for all heads, and a mask of a row's length stands beside each token):

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


def logits(run: Run, network: Network, gradient: bool) -> float:
    """Bytes that the head takes for a chunk of tokens; in the backward pass also what sums up the head's own gradient in float32."""
    a, n = network.architecture, CHUNK
    whole = {Payload.SAMPLED.value: 0, Payload.TOP_K.value: 3, Payload.FULL.value: 5}[run.work.payload]
    if not gradient:
        more = whole if run.work.payload == Payload.TOP_K.value else 0
        return 4.0 * n * a.vocab * (2 + more) + (2 * a.head if run.launch.autocast else 0)
    total = n * a.vocab * (4.0 * (3 + whole) + 2)
    if run.head_trained:
        total += a.head * (2 * 4 + stored(run, network))
    if run.launch.autocast:
        total += 2 * a.head
    return total


def cache_bytes(run: Run, network: Network) -> int:
    """Bytes of keys and values of one token. Under autocast keys are float32, as rotary positions are."""
    a, size = network.architecture, stored(run, network)
    pair = 6 if run.launch.autocast and size == 4 else 2 * size
    return a.layers * a.kv_heads * a.head_dim * pair


def playing(run: Run) -> int:
    """Episodes that one rank plays at the same time, in training or validation."""
    work = run.work
    most = max(work.episodes - work.extra if work.plays else 0, work.extra, work.measured)
    return math.ceil(most / run.launch.ranks)


def kv_cache(run: Run) -> float:
    """Bytes of keys and values of one rank's episodes; the buffers have a quarter of spare room."""
    if not run.work.in_process:
        return 0.0
    return 1.25 * playing(run) * run.work.row * cache_bytes(run, run.policy)


def memory(run: Run, gpu: GPU | None = None) -> dict[str, dict[str, float]]:
    """Phase -> what lies on one rank's device -> bytes.

    A sharded copy counts its share; ranks that differ by rounding count the most.
    """
    launch, work, policy = run.launch, run.work, run.policy
    networks = (policy, *run.others)
    zero, ranks = launch.kind == "zero", launch.ranks
    share = 1 / ranks if zero or launch.stage == 3 else 1.0
    trained_size = 2 if launch.half else (4 if policy.adapters else policy.bytes)
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

    cached, whole = kv_cache(run), stored(run, policy) * policy.numbers
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
            put("vLLM", work.engine * gpu.memory * GIB, "rollout")
    if work.passes:
        told = max(work.pass_tokens, work.row + work.told)
        put("activations", max(passing(run, n, told) for n in networks), "score")
        put("logits", max(logits(run, n, gradient=False) for n in networks), "score")
    put("activations", activations(run, work.pass_tokens), "head", "update")
    put("logits", logits(run, policy, gradient=True), "head")
    put("a layer's backward pass", backward(run, work.pass_tokens), "update")
    if work.payload == Payload.FULL.value:
        put("teacher's head", max(n.architecture.head * stored(run, n) for n in networks), *PHASES[2:])
    return sets


def host_memory(run: Run) -> dict[str, float]:
    """What -> bytes in the main memory of one node; rows and episodes lie in every process whole."""
    launch, work, policy = run.launch, run.work, run.policy
    here = math.ceil(launch.ranks / launch.nodes)
    each = BATCH_BYTES + work.support * 12
    if work.payload == Payload.FULL.value:
        each += max(n.architecture.hidden * stored(run, n) for n in (policy, *run.others))
    out = {"rows of an iteration, in every process": float(here * work.rows * (work.row + work.told) * each)}
    if launch.kind in ("fsdp", "zero"):
        copies = sum(n.numbers * (kept(run, n) + 4 * (n.averages and kept(run, n) < 4)) for n in run.others if n.follows)
        out["a checkpoint while it is gathered, first process"] = copies + 4 * (1 + run.state) * policy.trained
    if launch.stage == 3:
        out["networks at the start, in every process"] = here * sum(n.loaded for n in (policy, *run.others) if n.sharded)
    if launch.offload_optimizer:
        out["optimizer, float32 weights and gradients"] = here / launch.ranks * policy.trained * 4 * (run.state + 2)
    if launch.offload_parameters:
        out["weights"] = here / launch.ranks * sum(n.numbers * stored(run, n) for n in (policy, *run.others) if n.sharded)
    return {what: size for what, size in out.items() if size}


def peaks(run: Run, gpu: GPU | None = None) -> dict[str, float]:
    """Phase -> bytes on one rank's device, with what libraries take and the allocator loses."""
    return {phase: sum(parts.values()) * (1 + LOST) + RESERVED for phase, parts in memory(run, gpu).items()}


# ------------------------------------------------------------------ counts and time


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
    traffic = policy.numbers * (8 if launch.autocast and policy.bytes == 4 else stored(run, policy))
    past = together * work.row_mean * cache_bytes(run, policy)
    token = (traffic + past) / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE)
    if work.in_process:
        token = max(token, policy.architecture.layers * LAYER_LAUNCH_S)
    one_row = work.layout == "trajectory" and not work.splits
    written = min(work.turns * work.response, work.row) if one_row else work.turns * work.response
    rollout = flops(policy, work.read) / rate + math.ceil(here / together) * written * token
    return {"rollout": rollout, **out}


# ------------------------------------------------------------------ what to change


def changes(run: Run) -> Iterator[tuple[str, Run]]:
    """Settings that take memory off a rank, and the run with each: first what costs least."""
    launch, work, policy = run.launch, run.work, run.policy
    if launch.half and policy.bytes == 4 and run.key:  # the run casts them anyway, after they were made
        networks = (replace(n, bytes=2) if n.sharded and n.role == "initial copy" else n for n in run.others)
        yield f"--{run.key}.dtype bfloat16", replace(run, policy=replace(policy, bytes=2), others=tuple(networks))
    if not run.checkpointing and run.key:
        yield f"--{run.key}.gradient_checkpointing true", replace(run, checkpointing=True)
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
        if network.bytes == 4 and network.role.startswith("teacher"):
            other = tuple(replace(n, bytes=2) if n is network else n for n in run.others)
            yield "--model.teacher.policy.dtype bfloat16", replace(run, others=other)
    if launch.ranks > 1:
        for stage in range(launch.stage + 1 if launch.kind == "zero" else 1, 4):
            higher = replace(launch, kind="zero", stage=stage)
            yield f"--trainer.strategy deepspeed_stage_{stage}", replace(run, launch=higher)
    for stage in (2, 3):
        offloaded = replace(launch, kind="zero", stage=stage, offload_optimizer=True, offload_parameters=stage == 3)
        if not launch.offload_optimizer and stage >= launch.stage:
            yield f"--trainer.strategy deepspeed_stage_{stage}_offload", replace(run, launch=offloaded)
    if not policy.adapters and run.key:
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


def named(gpu: str) -> GPU:
    """
    Raises:
        ConfigError: a GPU that is not in the table.
    """
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: not in the table.{did_you_mean(gpu, GPUS)} Known: {', '.join(GPUS)}.")
    return GPUS[gpu]
