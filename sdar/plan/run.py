"""What memory and time of a run follow from: its networks, how it is launched, what an iteration does, and the GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sdar.errors import ConfigError
from sdar.registry import did_you_mean
from sdar.types import TeacherSignal

GIB = 2**30


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


def named(gpu: str) -> GPU:
    """
    Raises:
        ConfigError: a GPU that is not in the table.
    """
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: not in the table.{did_you_mean(gpu, GPUS)} Known: {', '.join(GPUS)}.")
    return GPUS[gpu]


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
    dtype_option: str = ""
    """The setting of the type that it is loaded in; empty where there is none."""

    @property
    def parameters(self) -> int:
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
    """Share of the GPU that the sampling engine takes while episodes are played."""
    teacher_signal: str = TeacherSignal.SAMPLED.value
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
    options: Mapping[str, str] = field(default_factory=dict)
    """Settings of the policy that take memory off (``dtype``, ``gradient_checkpointing``), by their keys."""
    notes: tuple[str, ...] = ()
    cut: tuple[str, ...] = field(default=(), compare=False)
    """What the two steps before had smaller than the settings."""
