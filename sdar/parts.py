"""The base classes of everything that can be swapped.

A part is a class with a typed constructor below one of these bases; the annotation in the constructor that takes it is all
that YAML needs. ``sdar list`` prints the registered ones.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sdar.errors import ConfigError
from sdar.registry import part_kind
from sdar.types import Retrieval, Task, TokenView

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@part_kind("gates")
class Gate(ABC):
    """How much a token trusts its teacher, in [0, 1]."""

    @abstractmethod
    def __call__(self, tokens: TokenView) -> Tensor:
        """Weights ``[batch, time]`` in [0, 1]; everything in `tokens` is detached, so the gate carries no gradient."""


@part_kind("retrievers")
class Retriever(ABC):
    """Which skills a task's teacher (or student) gets; may learn from outcomes, and then has a state."""

    @abstractmethod
    def retrieve(self, task: Task, draw: int = 0) -> Retrieval:
        """The skills for a task. `draw` counts the visits of a run: a random retriever derives its choice from
        (its seed, task id, draw) alone, so that a resumed run retrieves the same."""

    def observe(self, task: Task, retrieval: Retrieval, success: float) -> None:
        """Learn from the mean success (0..1) of a group of attempts at `task` that used `retrieval`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python only: it goes into the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""


@part_kind("divergences")
class Divergence(ABC):
    """A per-token distillation objective: its value, and what its value and its gradient estimate."""

    value_estimand: str
    """What the expected value over student-sampled tokens is, e.g. ``KL(student || teacher)``."""
    gradient_estimand: str
    """What the expected gradient follows; often not the gradient of the value."""

    @abstractmethod
    def __call__(self, student_logp: Tensor, tokens: TokenView) -> Tensor:
        """Per-token loss ``[batch, time]``; `student_logp` carries the gradient, `tokens` is detached."""


@dataclass(frozen=True)
class Draw:
    """Names one response, so that its randomness depends on nothing else: not on the batch, the worker or the machine."""

    seed: int
    task: str
    attempt: int
    turn: int


@dataclass
class Completion:
    """What a sampler returns for one prompt; per-token lists are aligned with `ids`."""

    ids: list[int]
    behaviour_logp: list[float]
    """Log-probability under the density really sampled from, in nats."""
    kept_logmass: list[float]
    """Log of the mass of the tempered density that top-k, top-p and masks kept, in nats."""
    stopped: bool
    """True: the response ends with an end-of-turn token. False: it hit the limit of new tokens."""


@part_kind("samplers")
class Sampler(ABC):
    """Token ids in, token ids with true densities out."""

    temperature: float
    forbidden_ids: tuple[int, ...] = ()
    max_new_tokens: int
    """Longest response, in tokens."""
    context: int
    """Longest prompt and response together, in tokens; known after `bind`."""

    @abstractmethod
    def bind(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int], context: int) -> None:
        """Learn the vocabulary once: which ids end a turn, which a turn may not emit, how long a context may be."""

    @abstractmethod
    def sample(self, model: nn.Module, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Completion]:
        """One response for each prompt. A prompt that continues an earlier prompt and its response is cheap."""

    def reset(self) -> None:
        """Forget everything that was cached: the weights changed or another rollout begins."""


@dataclass
class StepResult:
    """What the world answered to one action."""

    observation: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    """False when the world did not understand or allow the action."""


@part_kind("environments")
class Environment(ABC):
    """A text world. One object runs one episode at a time; the rollout copies it once for each parallel episode."""

    horizon: int
    """Largest number of actions in an episode."""

    @abstractmethod
    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        """An ordered list of `count` task ids of ``train``, ``seen`` or ``unseen``: a function of its arguments alone."""

    @abstractmethod
    def task(self, task_id: str) -> Task:
        """The task of an id, the same on every machine."""

    @abstractmethod
    def reset(self, task: Task) -> str:
        """Begin an episode; returns the first observation."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Act."""

    def admissible(self) -> list[str]:
        """Actions that the world would accept now, where it can tell."""
        return []

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "Expert":
        """Somebody who can act from any state of the episode that runs now, knowing `facts` and what was observed since its
        start; where the facts leave a choice, `rng` makes it."""
        raise ConfigError(f"{type(self).__name__} has no expert: behaviour cloning needs a world that can demonstrate.")

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        """Texts of the world for a tokenizer, and the phrases that may become one token each."""
        raise ConfigError(
            f"{type(self).__name__} has no corpus: a fresh policy needs a world whose texts are known beforehand."
        )


class Expert(ABC):
    """Demonstrates in one running episode."""

    @abstractmethod
    def act(self) -> str:
        """The next action."""

    @abstractmethod
    def watch(self, action: str) -> None:
        """Take note of what `action`, taken by anybody, has just shown."""


@part_kind("protocols")
class Protocol(ABC):
    """How a world is told to a model and how its words become an action."""

    @abstractmethod
    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        """Messages of the first prompt."""

    @abstractmethod
    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        """User message that follows a response (trajectory layout)."""

    @abstractmethod
    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        """Messages of a turn's own prompt (turn layout); `history` holds (observation, action), oldest first."""

    @abstractmethod
    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        """The action in a response, and whether the response was valid."""

    def write(self, action: str) -> str:
        """The response that a demonstration gives for an action; `parse` reads the action back."""
        return action


@part_kind("policies")
class Policy(ABC):
    """Where the model that learns comes from: weights, tokenizer, chat template."""

    name: str
    """What errors call it."""
    chat_options: Mapping[str, Any] = {}
    """Arguments for the chat template."""

    @abstractmethod
    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with its chat template."""

    @abstractmethod
    def load_model(self) -> "PreTrainedModel":
        """A causal language model with its weights, each time a new one."""

    @abstractmethod
    def context(self) -> int:
        """Largest number of tokens that the model can attend to."""


@part_kind("teachers")
class Teacher(ABC):
    """Whose weights the teacher has."""

    needs_initial: bool = False
    """True: keep a frozen copy of the weights that training started from."""

    @abstractmethod
    def model(self, live: nn.Module, initial: nn.Module | None) -> nn.Module:
        """The network that scores (and, in validation, acts) as the teacher."""


@part_kind("views")
class PrivilegedView(ABC):
    """What the teacher may see, and where it stands in the prompt."""

    @abstractmethod
    def messages(self, messages: list[dict[str, str]], text: str, has_system_role: bool) -> list[dict[str, str]]:
        """The conversation with `text` in it. Empty text returns the messages unchanged."""


@part_kind("advantages")
class AdvantageEstimator(ABC):
    """Credit: what each row's reward is worth against its group."""

    @abstractmethod
    def __call__(self, rewards: Tensor, group_ids: Tensor, episode_ids: Tensor) -> Tensor:
        """Advantages ``[rows]`` from row rewards, the group (task) and the episode of each row."""


@part_kind("schedules")
class Schedule(ABC):
    """A coefficient as a function of the training iteration."""

    @abstractmethod
    def __call__(self, iteration: int) -> float: ...
