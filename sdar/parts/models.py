"""What samplers, policies, teachers and judges promise: the parts that have a language model."""

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdar.contracts import returned
from sdar.distributed.communicator import SINGLE_PROCESS, Communicator
from sdar.errors import ConfigError
from sdar.parts.part import Part
from sdar.parts.worlds import Environment
from sdar.registry import part_kind
from sdar.renamed import OldNames, Renamed
from sdar.types import Completion, Density, Episode, Row, SampleKey, Task, TeacherSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sdar.parts.methods import PrivilegedView
    from sdar.rollout.chat import ChatFormat


class Session(ABC):
    """Prompts of independent episodes, each of which is answered as soon as can be."""

    places: int = sys.maxsize
    """Most episodes that should be under way at once."""
    elsewhere = False
    """True: responses come while this process does something else, so that prompts should be submitted as soon as they are there."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there are prompts without a response."""

    @abstractmethod
    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        """Ask for a response of at most `most` tokens, which a later `step` gives under this number."""

    @abstractmethod
    def step(self) -> list[tuple[int, Completion]]:
        """Go on by as little as there is, a token of each say: (number, response) of what has ended by then.

        Where responses are made `elsewhere` it waits until one has come, or for `wake`.
        """

    def wake(self) -> None:
        """There is something to do but wait for responses: a `step` that does returns. May be called from any thread."""

    def withdraw(self, number: int) -> None:
        """Nobody waits for the response of this number any more; it may still come."""

    def leave(self, key: SampleKey) -> None:
        """The episode of such a name (whatever the turn) asks no more."""

    def close(self) -> None:
        """Nobody asks any more."""


@part_kind("samplers")
class Sampler(Part, ABC):
    """Token ids in, token ids with true densities out.

    A shallow copy (`copy.copy`) of a bound sampler samples as the sampler does, and after `reset` and another `max_new_tokens` or
    `context` nothing of that is seen by the original: continuations and the comparison before training work with such copies.
    """

    answers: ClassVar = {"sample": returned.completions}

    temperature: float
    forbidden_ids: tuple[int, ...] = ()
    max_new_tokens: int
    """Longest response, in tokens."""
    context: int
    """Longest prompt and response together, in tokens; known after `bind`."""
    ranks: Communicator = SINGLE_PROCESS
    """The processes of the run, known before `bind`."""
    works_alone = False
    """True: its engine goes on sampling while the training process does something else."""
    own_engine = False
    """True: an engine of its own samples, with a copy of the weights that `load` brings up to date. False: the given network does."""
    engine_share: float = 0.0
    """Share of each rank's GPU that this engine takes while episodes are played, for `sdar plan`; 0: it runs on other GPUs."""

    rest = Renamed("release")

    @abstractmethod
    def bind(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int], context: int) -> None:
        """Learn the vocabulary once: which ids end a turn, which a turn may not emit, how long a context may be."""

    @abstractmethod
    def sample(
        self, model: "PreTrainedModel", prompts: Sequence[Sequence[int]], keys: Sequence[SampleKey]
    ) -> list[Completion]:
        """One response for each prompt. A prompt that continues an earlier prompt and its response is cheap."""

    def session(self, model: "PreTrainedModel") -> Session:
        """For prompts that come one by one. By default those that have come by a step are answered in one batch; the engines here answer
        each as soon as it has ended."""
        return BatchSession(self, model)

    def reset(self) -> None:
        """Forget everything that was cached: the weights changed or another rollout begins."""

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Give the engine other weights; called before `sample` where they are not those of `version` yet, on every rank.

        Args:
            version: Names a network and its optimizer step, ``network@optimizer step.iteration``, e.g. ``0@12.3``.
            weights: (name in the network's state dict, whole tensor). Making a tensor may need all ranks: each rank must take every
                one, also where only one rank passes them on.
        """

    def release(self) -> None:
        """The rollout is over: what was cached is of no more use, and memory of the training's accelerator is given back."""

    def metrics(self) -> dict[str, float]:
        """What its engine counted since the last call, under the names that it is logged by (retries, failures, seconds)."""
        return {}

    def close(self) -> None:
        """Let go of processes and connections."""


class BatchSession(Session):
    """A session with a sampler that answers batches: one call of `Sampler.sample` a step for each limit of new tokens."""

    def __init__(self, sampler: Sampler, model: "PreTrainedModel"):
        self.model = model
        self._samplers = {sampler.max_new_tokens: sampler}
        self._sampler = sampler
        self._waiting: list[tuple[int, Sequence[int], SampleKey, int]] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        self._waiting.append((number, prompt, key, most))

    def step(self) -> list[tuple[int, Completion]]:
        waiting, self._waiting = sorted(self._waiting, key=lambda asked: asked[0]), []
        out: list[tuple[int, Completion]] = []
        for limit in dict.fromkeys(most for *_, most in waiting):
            numbers, prompts, keys = zip(*((n, p, k) for n, p, k, most in waiting if most == limit), strict=True)
            out += zip(numbers, self._with(limit).sample(self.model, [*prompts], [*keys]), strict=True)
        return sorted(out, key=lambda answered: answered[0])

    def _with(self, limit: int) -> Sampler:
        if limit not in self._samplers:
            self._samplers[limit] = own = copy.copy(self._sampler)
            own.max_new_tokens = limit
            own.reset()
        return self._samplers[limit]


@dataclass(frozen=True)
class Blueprint:
    """A policy's network before its weights are loaded: what `sdar plan` counts."""

    network: "PreTrainedModel"
    """On torch's meta device: sizes, and no weights."""
    dtype: torch.dtype = torch.float32
    """Of the weights as `load_model` gives them."""
    adapters: int = 0
    """Parameters of adapters in float32, which are not in `network`. Where there are some, they alone are trained, and the initial weights
    are the same network's with them off (`Policy.frozen`): no copy."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the policy that take memory off, by what they do: ``dtype``, ``gradient_checkpointing``. `sdar plan` advises them."""
    frozen: torch.dtype | None = None
    """Of the weights as `load_frozen` gives them on a GPU; None: the same."""


@runtime_checkable
class SharedWeights(Protocol):
    """A network without weights of its own: a view of the model `live`, with its adapters off, say. It is neither divided among ranks
    nor saved a second time."""

    live: "PreTrainedModel"


@part_kind("policies")
class Policy(OldNames, ABC):
    """Where the model that learns comes from: weights, tokenizer, chat template."""

    name: str
    """What errors call it."""
    chat_options: Mapping[str, Any] = {}
    """Arguments for the chat template."""

    meet = Renamed("bind_env")

    def bind_env(self, env: Environment) -> None:
        """Called with the run's world before anything is loaded: for policies that are made for it."""

    @abstractmethod
    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with its chat template."""

    @abstractmethod
    def load_model(self) -> "PreTrainedModel":
        """A causal language model with its weights, each time a new one."""

    def load_frozen(self) -> "PreTrainedModel":
        """The same for weights that nobody trains, in evaluation mode; a policy may hold them in fewer bits."""
        return self.load_model().requires_grad_(False).eval()

    def precision(self, bfloat16: bool) -> str | None:
        """The trainer.precision of a run that trains what `load_model` gives, where no setting says it; None: products are computed in the
        type that the weights have.

        Args:
            bfloat16: Whether the run's device multiplies it.
        """
        return None

    @abstractmethod
    def context(self) -> int:
        """Largest number of tokens that the model can attend to."""

    def frozen(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """A model of this policy as it was loaded, for good, whatever is trained afterwards: by default a copy.

        A view of the model that trains, with its adapters off, is a `SharedWeights`.
        """
        return copy.deepcopy(model).requires_grad_(False).eval()

    def blueprint(self) -> Blueprint:
        """The network that `load_model` would give, without loading or downloading weights: `sdar plan` asks for it.

        Raises:
            PolicyError: its sizes cannot be read.
            ConfigError: this policy does not tell them.
        """
        raise ConfigError(
            f"{type(self).__name__} is a policy whose sizes `sdar plan` cannot tell without loading it: it has no `blueprint`. Give the "
            "PretrainedPolicy or FreshPolicy that it resembles for planning: --model.policy PretrainedPolicy --model.policy.path ..."
        )

    def found_in(self, folder: str) -> "Policy":
        """The same policy, whose configuration and tokenizer are read from ``<folder>/<name>`` where that is a model's folder."""
        return self

    def resized(self, network: "PreTrainedModel", folder: Path, cut: list[str]) -> "Policy":
        """The same policy with a small random network in place of its own, for the two steps of `sdar plan`.

        Args:
            network: Of the same architecture, as it shall be loaded.
            folder: Not there yet, for a policy that loads from files.
            cut: Gets a line for whatever else is not as in the settings.
        """
        small = copy.copy(self)
        small.load_model = lambda: copy.deepcopy(network)  # type: ignore[method-assign]
        return small


@dataclass(frozen=True)
class ModelCopy:
    """A network that lies beside the policy's: what `sdar plan` counts."""

    role: str
    """What it is called, e.g. ``EMATeacher's copy``."""
    policy: Policy | None = None
    """Where its weights come from; None: they are a copy of the student's, adapters and all."""
    follows: bool = False
    """True: it moves with the student, so that checkpoints hold it."""
    averages: bool = False
    """True: its moves may be smaller than a narrow type holds, and its average in float32 lies beside it."""
    key: str = ""
    """Where `policy` stands below ``model.teacher`` in the settings, e.g. ``policy``."""


class RemoteModel(ABC):
    """Stands for a network that is not in this process: somebody there reads rows with it."""

    @abstractmethod
    def score(
        self,
        density: Density,
        ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        signal: TeacherSignal,
        k: int,
        ranks: Communicator,
    ) -> dict[str, Tensor]:
        """What `Scorer.score` gives: ``logp`` and, for TeacherSignal.TOP_K, ``top_ids`` and ``top_logp``; of the response tokens alone
        (``[tokens, ...]``), row after row. `ranks` says who shares the work; each gets everything."""


@part_kind("teachers")
class Teacher(OldNames, ABC):
    """Whose weights the teacher has."""

    needs_initial: bool = False
    """True: keep a frozen copy of the weights that training started from."""
    is_remote: bool = False
    """True: other processes read rows for it. It tells log-probabilities of sampled and of the likeliest tokens and does not act."""

    shares_tokens: bool = True
    """False: it reads the same text in tokens of its own (`retell`), and its `vocab_size` and `forbidden_ids` are its own. It tells
    log-probabilities of what was sampled, by spans of text, and does not act."""
    vocab_size: int
    forbidden_ids: tuple[int, ...]
    divides = False
    """Whether a span's gap is divided among the student's tokens in it."""
    lacks: Mapping[int, str] = {}
    """Added tokens of the student that its vocabulary has not, known from `prepare` on: no row that it reads may hold one."""

    elsewhere = Renamed("is_remote")

    def check_student(self, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        """Look at the student that it is to teach, as far as that needs no weights: `sdar doctor` asks for it, and `prepare` does so first.
        `lacks` is known afterwards.

        Raises:
            ConfigError, PolicyError: it cannot teach this one.
        """

    def prepare(self, live: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        """Called once, before training: load or copy what is needed. `tokenizer` and `name` are the student's.

        Raises:
            PolicyError: the teacher reads other tokens than the student writes.
        """

    @property
    def acts(self) -> bool:
        """Whether it can play, too."""
        return self.shares_tokens and not self.is_remote

    def retell(self, row: Row, episode: Episode, text: str, view: "PrivilegedView", chat: "ChatFormat") -> Row:
        """A row with `teacher_ids`, `teacher_spans` and `spans_of_teacher`, of a teacher with tokens of its own.

        Args:
            text: What `view` tells.
            chat: The student's conversation format.
        """
        return row

    def networks(self) -> dict[str, "PreTrainedModel"]:
        """Networks of its own, by the name that they have in checkpoints. They lie as the student does: on which device, in which
        shards."""
        return {}

    def external(self) -> set[str]:
        """Those of them that never change and come from elsewhere: no checkpoint holds them."""
        return set()

    def copies(self) -> tuple[ModelCopy, ...] | None:
        """Its `networks` before they are there: what `sdar plan` counts. None: it has networks, and does not tell of them."""
        return () if type(self).networks is Teacher.networks else None

    def check_tasks(self, tasks: Iterable[Task]) -> None:
        """Called before anything is loaded with tasks of every world of the run.

        Raises:
            ConfigError: it is no teacher of one of them.
        """

    def context(self, task: Task) -> int | None:
        """Largest number of tokens that the teacher of a task can attend to; None: as many as the student."""
        return None

    @abstractmethod
    def model(self, live: "PreTrainedModel", initial: "PreTrainedModel | None", task: Task) -> "PreTrainedModel | RemoteModel":
        """The network that scores (and, in validation, acts) as the teacher of a task, or what stands for one elsewhere."""

    def after_step(self, live: "PreTrainedModel") -> None:
        """The student took an optimizer step."""

    def after_iteration(self, live: "PreTrainedModel", iteration: int) -> None:
        """The student finished an iteration (they count from 0)."""

    def metrics(self) -> dict[str, float]:
        """What it counted since the last call, under the names that it is logged by."""
        return {}


@part_kind("judges")
class Judge(Part, ABC):
    """Labels the turns of finished episodes, knowing the gold answer and all that happened."""

    answers: ClassVar = {"__call__": returned.labels}

    policy: Policy | None = None
    """Whose network judges, where each rank loads one for it."""

    def check(self) -> None:
        """Called once before training: raise now what would fail after time on a GPU was spent.

        Raises:
            ConfigError, PolicyError: the judge cannot be asked with these settings.
        """

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        """Called once before training with the policy's tokenizer, by a judge that reads the policy's ids to be compared with its own.

        Raises:
            PolicyError: they are not the same.
        """

    @abstractmethod
    def __call__(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float | None]]:
        """One label a turn of each episode: +1 good, -1 bad or between; None where no verdict was got.

        `solutions` holds the gold answer of each episode's task.
        """
