"""What the rooms of a run share: its parts, its networks and where it stands. Every other class of this folder builds on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from sdar.data import TaskBatch, TaskSource
from sdar.data.panels import Panel
from sdar.distributed.communicator import Communicator
from sdar.distributed.sharding import Sharding
from sdar.episodes.tokens import TokenLog
from sdar.errors import ConfigError
from sdar.metrics.means import Metrics
from sdar.parts import (
    Correction,
    Environment,
    EpisodeController,
    Policy,
    PrivilegedView,
    RemoteModel,
    Retriever,
    Sampler,
    Teacher,
)
from sdar.registry import part_name
from sdar.renamed import OldNames, Renamed
from sdar.rollout import AgentLoop, Request
from sdar.rollout.chat import ChatFormat
from sdar.scoring import Head, Scorer
from sdar.training import bars
from sdar.training.heap import return_freed
from sdar.types import Batch, Episode, Retrieval, Task, TeacherSignal


class Measurements(Protocol):
    """What validation keeps between two of its reports, as checkpoints see it."""

    rollout: AgentLoop

    def first(self) -> dict[str, Any]:
        """What was measured first, by panel."""

    def take_first(self, state: dict[str, Any]) -> None:
        """Undo `first`."""


class EpisodeStore(Protocol):
    """Where the run's episodes are written, as validation sees it."""

    def validation(self, episodes: Sequence[Episode], panel: Panel, actor: str) -> object:
        """Write what somebody played of a panel."""


class Host(LightningModule, OldNames):
    """The state of a run, and questions about it that need nobody else."""

    retriever: Retriever | None = None
    """Skills, for strategies that have them."""
    teacher: Teacher | None = None
    """Whose weights score the privileged view, for strategies that distil."""
    controller: EpisodeController | None = None
    """Changes how attempts are played in training, for strategies with a curriculum."""
    teacher_signal = TeacherSignal.SAMPLED
    """How much of the teacher's distribution is needed."""
    top_k = 0
    """Size of the teacher's support, for TeacherSignal.TOP_K."""
    student_sees_skills = False
    """True when the policy's own prompts hold the retrieval in training."""
    learns_everywhere = False
    """True when rows carry a loss even where no teacher speaks. A class that overrides `token_loss` does, unless it says False."""
    needs_reference = False
    """True when `token_loss` uses ``batch.ref_logp``."""
    plays_attempts = True
    """True when its episodes are the attempts that its sampler plays. A class that overrides `collect` has to say it."""
    needs_spans = False
    """True when ``batch.spans`` is used."""
    teacher_acts = False
    """True when the teacher's network plays in training, or goes on from what the student said. A class that overrides
    `extra_requests` does, unless it says False."""

    checking: Callable[[], AbstractContextManager[Any]] = staticmethod(nullcontext)
    """What each check before a run stands in. `sdar doctor` collects there what a check raises, so that no mistake hides another."""

    # parts
    policy: Policy
    sampler: Sampler
    val_sampler: Sampler
    correction: Correction
    view: PrivilegedView
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    # networks, there from `configure_model` on
    model: PreTrainedModel
    """The policy that learns."""
    initial: PreTrainedModel | None
    """The policy as training found it, frozen, where somebody needs it."""
    teacher_networks: nn.ModuleDict
    teacher_heads: list[Head]
    """Of the teachers that read the rows of this iteration, where the whole distribution is compared."""
    # what is made of the parts, from `setup` on
    chat: ChatFormat
    context: int
    """Tokens that the policy can read."""
    scorer: Scorer
    rollout: AgentLoop
    ranks: Communicator
    sharding: Sharding
    # where the run stands
    seed: int
    iteration: int
    env_steps: int
    skipped: int
    """Optimizer steps in a row whose gradient was not finite."""
    stops: bool
    """True: the run ends when this iteration's checkpoint is written."""
    metrics: Metrics
    token_log: TokenLog
    """What the step knows of its tokens, in an iteration whose episodes are written."""
    episode_writer: EpisodeStore
    own_metrics: nn.ModuleList
    """Metrics of one's own, of `RunMetric`."""
    _said: set[str]
    settings: dict[str, Any]
    """Of the command that runs it, by dotted key."""
    origin: dict[str, str]
    """Fingerprints of what training started from and keeps."""
    validation: Measurements
    rollouts_ahead: int
    log_episodes_every: int
    log_episodes_mb: float | None
    micro_batch_tokens: int
    updates_per_rollout: int

    tally = Renamed("metrics")
    conclude = Renamed("finish_iteration")
    learn_skills = Renamed("update_retriever")
    look_ahead = Renamed("prefetch_rollout")
    informed_requests = Renamed("privileged_requests")
    acting = Renamed("synced")
    share = Renamed("local_micro_batches")
    measured = Renamed("map_rows")
    payload = Renamed("teacher_signal")
    tokens = Renamed("token_view")
    student = Renamed("forward_student")

    def networks(self) -> list[PreTrainedModel]:
        """Every network of the run: the policy, its frozen copy if there is one, the teacher's own."""
        teachers = cast(Iterator[PreTrainedModel], iter(self.teacher_networks.values()))
        return [n for n in (self.model, self.initial, *teachers) if n is not None]

    @property
    def tasks(self) -> TaskSource:
        """The tasks of the run: Lightning's ``trainer.datamodule``, which `setup` has looked at."""
        return cast(Any, self.trainer).datamodule

    @property
    def env(self) -> Environment:
        """The world of a run that has one; `env_of` a task works in every run."""
        return self.tasks.only.env

    def env_of(self, task: Task) -> Environment:
        """The world of a task."""
        return self.tasks.of(task).env

    def teacher_network(self, task: Task) -> PreTrainedModel | RemoteModel:
        """The network that is the teacher of a task, for a strategy that has a teacher."""
        assert self.teacher is not None, f"{type(self).__name__} asks a teacher and has none"
        return self.teacher.model(self.model, self.initial, task)

    def teacher_context(self, task: Task) -> int:
        """Tokens that the teacher of a task can read; as many as the policy where it says nothing else."""
        return (None if self.teacher is None else self.teacher.context(task)) or self.context

    def requests(
        self, task_batch: TaskBatch, privileged: bool, training: bool = True, iteration: int | None = None
    ) -> list[Request]:
        """Every attempt at every task of a step, for an `iteration` (by default this one); attempts of one task share a retrieval."""
        iteration = self.iteration if iteration is None else iteration
        wanted = []
        for part, task, visit in ((p, *each) for p in task_batch.parts for each in zip(p.tasks, p.visits, strict=True)):
            retrieval = Retrieval() if self.retriever is None else self.retriever.retrieve(task, visit)
            for g in range(part.attempts):
                request = Request(task, visit * part.attempts + g, retrieval, privileged)
                if privileged:
                    request.privileged_text = self.view.text(request.begin(), (), 0, self.env_of(task))
                if training and self.controller is not None:
                    request = self.controller(request, iteration, self.env_of(task))
                wanted.append(request)
        return wanted

    def privileged_requests(
        self, groups: Sequence[list[Episode]], most: int | None = None, extra: bool = False
    ) -> list[Request]:
        """The same attempts (at most `most` of each group) once more, with the same random numbers, by somebody who is told what the
        view tells of each: hindsight, if it has some."""
        return [
            Request(e.task, e.attempt, e.retrieval, True, self.view.text(e, group, 0, self.env_of(e.task)), extra=extra)
            for group in groups
            for e in group[:most]
        ]

    @property
    def control_ids(self) -> Tensor:
        """Tokens that chat templates put between texts."""
        return torch.tensor(sorted(self.chat.control), device=self.device)

    @property
    def teacher_scorer(self) -> Scorer:
        """The density in which the teacher scores: that of its own tokens, where it has some. Special ones are left out there if the
        student leaves some out."""
        teacher, own = self.teacher, self.scorer
        if teacher is None or teacher.shares_tokens:
            return own
        forbidden = teacher.forbidden_ids if own.forbidden_ids else ()
        return Scorer(own.temperature, forbidden, teacher.vocab_size, packed=own.packed)

    @property
    def divides_spans(self) -> bool:
        return self.teacher is not None and self.teacher.divides

    def hears_teacher(self) -> bool:
        """False in an iteration in which nothing that a teacher would say has a weight: then it reads no rows."""
        return self.teacher is not None

    def objective(self) -> dict[str, Any]:
        """What the loss is made with in this iteration, by name: coefficients and parts, for whoever reads the stored episodes."""
        return {}

    def say_once(self, kind: str, text: str) -> None:
        """Warn; of each kind once in this process, because what comes again is counted."""
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(text)

    def inside(self, batch: Batch, tag: str) -> Tensor:
        """Bool ``[batch, time]``: the response tokens inside a tag of the protocol."""
        return batch.response_mask & (batch.spans == 1 + self.rollout.tags.index(tag))

    def check_span(self, tag: str | None) -> None:
        """Raises ConfigError where no response has the tag."""
        for protocol in (world.protocol for world in self.tasks.worlds.values()):
            if tag is not None and tag not in protocol.tags:
                raise ConfigError(
                    f"the span is {tag!r}, but responses of {part_name(protocol)} hold {' and '.join(protocol.tags) or 'no tags'}: no "
                    "token would be chosen. Use one of them."
                )

    def add_tokens(self, name: str, values: Tensor, mask: Tensor, batch: Batch) -> None:
        """Log a per-token quantity ``[batch, time]``; in a run with several worlds also of each, as ``<name>/<world>``."""
        self.metrics.add_tokens(name, values, mask)
        self.add_world_tokens(name, values, mask, batch)

    def add_world_tokens(self, name: str, values: Tensor, mask: Tensor, batch: Batch) -> None:
        """The same for the worlds alone, and for none in a run with one."""
        for number, world in enumerate(self.tasks.worlds if batch.has("world") else ()):
            self.metrics.add_tokens(f"{name}/{world}", values, mask & (batch.world == number)[:, None].to(mask.device))

    def unsaved(self) -> set[str]:
        """Names in the state dict that no checkpoint holds: weights that never change and come from elsewhere."""
        names = set() if self.teacher is None else self.teacher.external()
        others = tuple(f"teacher_networks.{name}." for name in names)
        return self.original() | {k for k in self.state_dict() if k.startswith(others)}

    def original(self) -> set[str]:
        """Names in the state dict of weights that stay as training found them: the frozen copy, and what lies under adapters."""
        frozen = {f"model.{n}" for n, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {k for k in self.state_dict() if k in frozen or k.startswith("initial.")}

    @contextmanager
    def phase(self, name: str, rate: str | None = None) -> Iterator[None]:
        """A part of an iteration: it is timed, and the other ranks can tell that this one is in it."""
        self.ranks.set_progress(name)
        bars.note(self.trainer, name)
        with self.metrics.timed(f"time/{name}_s", rate):
            yield
            return_freed()

    def count_sampling(self) -> None:
        """Log what the sampler's engine counted."""
        for name, value in self.sampler.metrics().items():
            self.metrics.add(name, value)
