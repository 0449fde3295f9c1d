"""The base classes of everything that can be swapped.

A part is a class with a typed constructor below one of these bases; the annotation in the constructor that takes it is all
that YAML needs. ``sdar list`` prints the registered ones.
"""

import copy
import pickle
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from sdar.contracts import returned
from sdar.distributed.ranks import ALONE, Ranks
from sdar.errors import ConfigError, PanelError
from sdar.quoting import hanging
from sdar.registry import did_you_mean, part_kind
from sdar.tags import pairs
from sdar.types import Completion as Completion
from sdar.types import Density, Episode, Payload, Request, Retrieval, StudentTokens, Task, TokenView
from sdar.types import Draw as Draw
from sdar.types import StepResult as StepResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sdar.rollout.chat import ChatFormat
    from sdar.skills import SkillBank
    from sdar.tally import Tally
    from sdar.turns import Turns


class Part(returned.Checked):
    """What the parts of a method share: answers that are looked at, and a state.

    Whatever `state_dict` tells goes into the checkpoint, and comes back bit for bit when a run goes on.
    """

    def state_dict(self) -> dict[str, Any]:
        """What was learned, as tensors and plain Python only; empty: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""


@part_kind("gates")
class Gate(Part, ABC):
    """How much a token trusts its teacher, in [0, 1]."""

    answers: ClassVar = {"__call__": returned.gate}

    @abstractmethod
    def __call__(self, tokens: TokenView) -> Tensor:
        """Weights ``[batch, time]`` in [0, 1]; everything in `tokens` is detached, so the gate carries no gradient.

        It is called on micro-batches, again for each update, and by each rank on its share: it learns in `observe`.
        """

    def observe(self, tokens: TokenView, tally: "Tally") -> None:
        """Learn from all tokens of an iteration (`tokens.iteration`), once, before its updates: ``tokens.student_logp`` is that of the
        weights before them, and every rank is told the same. What explains the gate goes into `tally`."""


@part_kind("retrievers")
class Retriever(Part, ABC):
    """Which skills a task's teacher (or student) gets; may learn from outcomes, and then has a state."""

    answers: ClassVar = {"retrieve": returned.retrieval}

    bank: "SkillBank | None" = None
    """The skills that it chooses from, where it has a bank: checked against the run's tasks."""

    def meet(self, env: "Environment") -> None:
        """Called with the run's world before anything is retrieved."""

    @abstractmethod
    def retrieve(self, task: Task, draw: int = 0) -> Retrieval:
        """The skills for a task. `draw` counts the visits of a run: a random retriever derives its choice from
        (its seed, task id, draw) alone, so that a resumed run retrieves the same."""

    def observe(self, task: Task, retrieval: Retrieval, success: float) -> None:
        """Learn from the mean success (0..1) of a group of attempts at `task` that used `retrieval`."""


@part_kind("divergences")
class Divergence(Part, ABC):
    """A per-token distillation objective: its value, and what its value and its gradient estimate."""

    answers: ClassVar = {"__call__": returned.divergence}

    value_estimand: str
    """What the expected value over student-sampled tokens is, e.g. ``KL(student || teacher)``."""
    gradient_estimand: str
    """What the expected gradient follows; often not the gradient of the value."""

    def needs(self) -> tuple[Payload, int]:
        """How much of the teacher's distribution it needs, and of how many tokens for Payload.TOP_K.

        More than SAMPLED: it is called on chunks of ``[tokens]``, with ``student.logits`` and the teacher's side in `tokens`.
        """
        return Payload.SAMPLED, 0

    @abstractmethod
    def __call__(self, student: StudentTokens, tokens: TokenView) -> Tensor:
        """Per-token loss, shaped like ``student.logp``; `student` carries the gradient, `tokens` is detached."""


@part_kind("samplers")
class Sampler(Part, ABC):
    """Token ids in, token ids with true densities out."""

    answers: ClassVar = {"sample": returned.completions}

    temperature: float
    forbidden_ids: tuple[int, ...] = ()
    max_new_tokens: int
    """Longest response, in tokens."""
    context: int
    """Longest prompt and response together, in tokens; known after `bind`."""
    ranks: Ranks = ALONE
    """The processes of the run, known before `bind`."""
    works_alone = False
    """True: its engine goes on sampling while the training process does something else."""
    own_engine = False
    """True: an engine of its own samples, with a copy of the weights that `load` brings up to date. False: the given network does."""
    engine_share: float = 0.0
    """Share of each rank's GPU that this engine takes while episodes are played, for `sdar plan`; 0: it runs on other GPUs."""

    @abstractmethod
    def bind(self, tokenizer: "PreTrainedTokenizerBase", stop_ids: Sequence[int], context: int) -> None:
        """Learn the vocabulary once: which ids end a turn, which a turn may not emit, how long a context may be."""

    @abstractmethod
    def sample(self, model: nn.Module, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Completion]:
        """One response for each prompt. A prompt that continues an earlier prompt and its response is cheap."""

    def reset(self) -> None:
        """Forget everything that was cached: the weights changed or another rollout begins."""

    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Give the engine other weights; called before `sample` where they are not those of `version` yet, on every rank.

        Args:
            version: Names a network and its optimizer step, e.g. ``policy@12``.
            weights: (name in the network's state dict, whole tensor). Making a tensor may need all ranks: each rank must take every
                one, also where only one rank passes them on.
        """

    def rest(self) -> None:
        """The rollout is over: what was cached is of no more use, and memory of the training's accelerator is given back."""

    def metrics(self) -> dict[str, float]:
        """What its engine counted since the last call, under the names that it is logged by (retries, failures, seconds)."""
        return {}

    def close(self) -> None:
        """Let go of processes and connections."""


@part_kind("environments")
class Environment(ABC):
    """A text world. One object runs one episode at a time; the rollout copies it once for each parallel episode.

    A copy must be cheap and must pickle: the object holds its settings and, in `running`, the episode. What is large and never
    changes (a catalogue, an index, parsed games) stands in a cache of the module that every copy in a process shares. What
    cannot be copied (a process, a connection) is opened at the first use.
    """

    splits: tuple[str, ...] = ("train", "seen", "unseen")
    """Names of the panels that there are. Their tasks have different ids; `shared` counts those that are the same all the same."""
    horizon: int
    """Largest number of actions in an episode."""
    protocol_name: str = "general"
    """Registered name of the protocol that tells it where ``data.protocol`` is not set."""
    action_form: str | None = None
    """What its actions are: ``commands``, ``searches`` (``search[...]``, ``answer[...]``) or ``programs``; protocols that give others
    are refused. None: it takes any text."""
    world_kind: str = ""
    """What a protocol's words may take it for: ``household``, ``shop``, ``questions``, ``mathematics``; empty: none of them."""
    fact_template: str = "{thing}: {place}"
    """How one of its tasks' facts is told, where nobody says otherwise."""
    running: Any = None
    """All that belongs to the episode that runs now: plain data or an object that pickles. None: no episode was begun."""

    @abstractmethod
    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        """An ordered list of `count` task ids of one of the `splits`: a function of its arguments alone.

        Raises:
            PanelError: no such split, or fewer tasks than asked for.
        """

    def size(self, split: str) -> int | None:
        """How many tasks there are in one of the `splits`; None: as many as are asked for."""
        self.check_split(split)
        return None

    @abstractmethod
    def task(self, task_id: str) -> Task:
        """The task of an id, the same on every machine."""

    def shared(self, trained: Sequence[str], measured: Sequence[str]) -> int:
        """How many of the `measured` tasks differ from each of the `trained` in nothing but their id."""
        return 0

    @abstractmethod
    def reset(self, task: Task) -> str:
        """Begin an episode; returns the first observation."""

    @abstractmethod
    def step(self, action: str) -> StepResult:
        """Act."""

    def admissible(self) -> list[str]:
        """Actions that the world would accept now, where it can tell."""
        return []

    def unfinished(self) -> StepResult:
        """The rollout ends here, in the middle of the episode: what it is worth as it stands, beyond the rewards so far.

        A world that makes an episode without an end cheaper than a bad end teaches a policy to fill its context. Without `scores`
        those of the last answer stand.
        """
        return StepResult("", done=True, truncated=True)

    def save(self) -> bytes:
        """The running episode, to be taken up by `restore` in any copy of this environment, in any process."""
        return pickle.dumps(self.running)

    def restore(self, state: bytes) -> None:
        """Go on from where `save` was called. The state is trusted: it is no format for data of other people."""
        self.running = pickle.loads(state)

    def ongoing(self) -> Any:
        """The episode that runs.

        Raises:
            ConfigError: none was begun.
        """
        if self.running is None:
            raise ConfigError(f"{type(self).__name__} was asked to act before `reset`: begin an episode first.")
        return self.running

    def close(self) -> None:
        """Let go of processes and connections; the object is not used afterwards."""

    def check(self) -> None:
        """Called once before training: raise now what would fail after time on a GPU was spent.

        Raises:
            ConfigError: no episode can be played with these settings on this machine.
        """

    @property
    def conditions(self) -> dict[str, str]:
        """What of this machine, beside the settings, decides what an action does: it stands beside every measurement."""
        return {}

    def check_split(self, split: str) -> None:
        """Raise PanelError unless `split` is one of the world's."""
        if split not in self.splits:
            raise PanelError(
                f"{type(self).__name__} has no split {split!r}.{did_you_mean(split, self.splits)} Splits: {', '.join(self.splits)}."
            )

    def expert(self, facts: Mapping[str, str], rng: random.Random) -> "Expert":
        """Somebody who can act from any state of the episode that runs now, knowing `facts` and what was observed since its
        start; where the facts leave a choice, `rng` makes it."""
        raise ConfigError(f"{type(self).__name__} has no expert: behaviour cloning needs a world that can demonstrate.")

    def demonstration(self, task: Task) -> list[str]:
        """Actions that solve the task from its start."""
        raise ConfigError(
            f"{type(self).__name__} has no demonstrations: it cannot say how a task is solved. Give them as a file, or use a "
            "method without them."
        )

    def solution(self, task: Task) -> str:
        """The reference solution as a text that a teacher may read: by default the actions of the demonstration."""
        return "\n".join(map(hanging, self.demonstration(task)))

    def hint(self, task: Task) -> str:
        """Less than the solution: a text that helps."""
        raise ConfigError(f"{type(self).__name__} has no hints. Use SolutionView or SkillView.")

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
class Protocol(Part, ABC):
    """How a world is told to a model and how its words become an action."""

    answers: ClassVar = {
        "parse": returned.parsed,
        "opening": returned.messages,
        "window": returned.messages,
        "answer": returned.text,
        "write": returned.text,
    }

    tags: tuple[str, ...] = ()
    """Names of the spans that a response may hold, e.g. ``("think", "action")``."""
    action_form: str = "commands"
    """What `parse` gives: `Environment.action_form`."""
    world_kind: str = ""
    """The world that its words speak of (`Environment.world_kind`); empty: any."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the chat template tells of, as JSON schemas in the form of OpenAI's `tools`; not told in any message."""

    def opening(self, task: Task, observation: str, admissible: Sequence[str]) -> list[dict[str, str]]:
        """Messages of the first prompt; by default a turn's own prompt without a history."""
        return self.window(task, (), observation, admissible)

    @abstractmethod
    def answer(self, observation: str, admissible: Sequence[str]) -> str:
        """User message that follows a response (trajectory layout)."""

    @abstractmethod
    def window(
        self, task: Task, history: Sequence[tuple[str, str]], observation: str, admissible: Sequence[str]
    ) -> list[dict[str, str]]:
        """Messages of a turn's own prompt (turn layout); `history` holds (observation, action), oldest first: from a rollout a
        `History`, which also says how many there were altogether."""

    @abstractmethod
    def parse(self, text: str, admissible: Sequence[str]) -> tuple[str, bool]:
        """The action in a response, and whether the response was valid."""

    def write(self, action: str) -> str:
        """The response that a demonstration gives for an action; `parse` reads the action back."""
        return action

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The spans of a response in the order of the text: tag, first character of the content, one behind its last.

        By default what stands between ``<tag>`` and the next ``</tag>``, in any case, for each of `tags`. Without a closing tag
        there is no span, as there is no action to be read.
        """
        found = [(tag, pair.first, pair.end) for tag in self.tags for pair in pairs(text, tag, re.IGNORECASE | re.ASCII)]
        return sorted(found, key=lambda span: span[1:])


@dataclass(frozen=True)
class Blueprint:
    """A policy's network before its weights are loaded: what `sdar plan` counts."""

    network: "PreTrainedModel"
    """On torch's meta device: sizes, and no weights."""
    dtype: torch.dtype = torch.float32
    """Of the weights as they are loaded."""
    adapters: int = 0
    """Parameters of adapters in float32, which are not in `network`. Where there are some, they alone are trained, and the initial weights
    are the same network's with them off (`Policy.frozen`): no copy."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Arguments of the policy that take memory off, by what they do: ``dtype``, ``gradient_checkpointing``. `sdar plan` advises them."""


@part_kind("policies")
class Policy(ABC):
    """Where the model that learns comes from: weights, tokenizer, chat template."""

    name: str
    """What errors call it."""
    chat_options: Mapping[str, Any] = {}
    """Arguments for the chat template."""

    def meet(self, env: Environment) -> None:
        """Called with the run's world before anything is loaded: for policies that are made for it."""

    @abstractmethod
    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with its chat template."""

    @abstractmethod
    def load_model(self) -> "PreTrainedModel":
        """A causal language model with its weights, each time a new one."""

    @abstractmethod
    def context(self) -> int:
        """Largest number of tokens that the model can attend to."""

    def frozen(self, model: "PreTrainedModel") -> nn.Module:
        """A model of this policy as it was loaded, for good, whatever is trained afterwards: by default a copy."""
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


class Elsewhere(ABC):
    """Stands for a network that is not in this process: somebody there reads rows with it."""

    @abstractmethod
    def score(
        self,
        density: Density,
        ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        payload: Payload,
        k: int,
        ranks: Ranks,
    ) -> dict[str, Tensor]:
        """What `Scorer.score` gives: ``logp`` and, for Payload.TOP_K, ``top_ids`` and ``top_logp``; of the response tokens alone
        (``[tokens, ...]``), row after row. `ranks` says who shares the work; each gets everything."""


@part_kind("teachers")
class Teacher(ABC):
    """Whose weights the teacher has."""

    needs_initial: bool = False
    """True: keep a frozen copy of the weights that training started from."""
    elsewhere: bool = False
    """True: other processes read rows for it. It tells log-probabilities of sampled and of the likeliest tokens and does not act."""

    def prepare(self, live: nn.Module, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
        """Called once, before training: load or copy what is needed. `tokenizer` and `name` are the student's.

        Raises:
            PolicyError: the teacher reads other tokens than the student writes.
        """

    def networks(self) -> dict[str, nn.Module]:
        """Networks of its own, by the name that they have in checkpoints. They lie as the student does: on which device, in which
        shards."""
        return {}

    def external(self) -> set[str]:
        """Those of them that never change and come from elsewhere: no checkpoint holds them."""
        return set()

    def copies(self) -> tuple[ModelCopy, ...] | None:
        """Its `networks` before they are there: what `sdar plan` counts. None: it has networks, and does not tell of them."""
        return () if type(self).networks is Teacher.networks else None

    def context(self, task: Task) -> int | None:
        """Largest number of tokens that the teacher of a task can attend to; None: as many as the student."""
        return None

    @abstractmethod
    def model(self, live: nn.Module, initial: nn.Module | None, task: Task) -> nn.Module | Elsewhere:
        """The network that scores (and, in validation, acts) as the teacher of a task, or what stands for one `elsewhere`."""

    def after_step(self, live: nn.Module) -> None:
        """The student took an optimizer step."""

    def after_iteration(self, live: nn.Module, iteration: int) -> None:
        """The student finished an iteration (they count from 0)."""

    def metrics(self) -> dict[str, float]:
        """What it counted since the last call, under the names that it is logged by."""
        return {}


Placement = Literal["system", "instruction", "template"]


@part_kind("views")
class PrivilegedView(Part, ABC):
    """What the teacher may see (`text`), and where it stands in the prompt.

    Args:
        placement: ``system``: a system message (appended to the one that is there or that the chat template inserts; before the
            first user text where the template has no system role). ``instruction``: before the first user text. ``template``: plain
            text before the first token of the chat template, as the public code of SDAR has it.
        heading: Line above the text; empty for none, null for the view's own.
    """

    answers: ClassVar = {"text": returned.view_text}

    own_heading = ""

    def __init__(self, placement: Placement = "system", heading: str | None = None):
        if placement not in get_args(Placement):
            raise ConfigError(
                f"view.placement is {placement!r}: privileged text can stand in {', '.join(get_args(Placement))}. Use one of them."
            )
        self.placement = placement
        self.heading = self.own_heading if heading is None else heading

    @abstractmethod
    def text(self, episode: Episode, group: Sequence[Episode], turn: int, env: "Environment") -> str:
        """What the teacher of an episode is told in the row that begins with `turn`; empty: nothing.

        `group` holds all attempts at the task, this one among them; it is empty before the episode.
        """

    def uses_retrieval(self) -> bool:
        """True when the text comes from a retriever: a strategy with this view needs one."""
        return False

    def prompt(self, chat: "ChatFormat", messages: list[dict[str, str]], text: str) -> list[int]:
        """Ids of the conversation with `text` in it. Empty text: those of the conversation as it is."""
        told = f"{self.heading}\n{text}" if self.heading and text else text
        if not told:
            return chat.prompt(messages)
        if self.placement == "template":
            return [*chat.encode_text(f"{told}\n\n"), *chat.prompt(messages)]
        if self.placement == "system":
            return chat.prompt(chat.informed(messages, told))
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        joined = {"role": "user", "content": f"{told}\n\n{messages[at]['content']}"}
        return chat.prompt([*messages[:at], joined, *messages[at + 1 :]])


@dataclass
class Credit:
    """What an advantage estimator knows. Rows and turns belong to episodes, episodes to groups (attempts at one task)."""

    rewards: Tensor
    """[rows] episode reward minus the penalties of the row's invalid actions."""
    groups: Tensor
    """[rows]"""
    episodes: Tensor
    """[rows]"""
    turns: "Turns"
    """Which turn each token of the rows belongs to."""
    turn_rewards: Tensor
    """[turns] reward of each turn, in the order of `turns`."""
    turn_penalties: Tensor
    """[turns] what an invalid action costs; 0 for a valid one."""
    turn_groups: Tensor
    """[turns]"""
    observations: list[str]
    """[turns] what the world had said before each turn: the anchors of GiGPO."""
    survivor: Tensor
    """[rows] True where all other attempts of the group were lost (their world failed): there is nothing left to compare with. Not
    for a group that was one attempt from the start."""
    tally: "Tally"
    """What explains the advantages goes here."""


@part_kind("advantages")
class AdvantageEstimator(Part, ABC):
    """Credit: what each row's reward is worth against its group."""

    answers: ClassVar = {"__call__": returned.advantages}

    @abstractmethod
    def __call__(self, credit: Credit) -> Tensor:
        """Advantages ``[rows]``, or ``[rows, time]`` where they differ between the turns of a row."""


@part_kind("advantage_transforms")
class AdvantageTransform(Part, ABC):
    """Reshapes advantages token by token, once before the updates; detached. Mostly by what a teacher thinks of them."""

    answers: ClassVar = {"__call__": returned.reshaped}

    gradient_estimand: str
    """What the expected gradient of the policy loss follows with these advantages, on-policy."""
    needs_teacher: bool = False
    """True: refused where there is no teacher. False: it may still read one's side, which raises where there is none."""
    span: str | None = None
    """Only tokens inside this tag of the protocol are reshaped; None: all."""

    def weight(self, iteration: int) -> float:
        """How much what the teacher says counts in an iteration; at 0 the transform is not called, nor is the teacher for its sake."""
        return 1.0

    @abstractmethod
    def __call__(self, advantages: Tensor, tokens: TokenView, turns: "Turns", iteration: int, tally: "Tally") -> Tensor:
        """Advantages ``[batch, time]`` from those before; ``tokens.student_logp`` is that of the weights before the update.

        What explains the transform goes into `tally`.
        """


@part_kind("turn_weights")
class TurnWeight(Part, ABC):
    """How much each turn counts in the distillation term."""

    answers: ClassVar = {"__call__": returned.turn_weights}

    @abstractmethod
    def __call__(self, tokens: TokenView, turns: "Turns", tally: "Tally") -> Tensor:
        """Weights ``[turns]``, not negative; ``tokens.student_logp`` is that of the weights before the update.

        It is called once in an iteration (`tokens.iteration`), with all turns and on every rank alike, and may learn then. What explains
        the weights goes into `tally`.
        """


@part_kind("filters")
class SequenceFilter(Part, ABC):
    """Which episodes the distillation term learns from."""

    answers: ClassVar = {"__call__": returned.chosen}

    @abstractmethod
    def __call__(self, success: Tensor, groups: Tensor) -> Tensor:
        """Bool ``[episodes]`` from their success (0 or 1) and their group."""


@part_kind("policy_losses")
class PolicyLoss(Part, ABC):
    """The policy gradient's surrogate."""

    answers: ClassVar = {"__call__": returned.token_loss}

    @abstractmethod
    def __call__(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        """Per-token loss ``[batch, time]``; only `logp` carries a gradient."""

    def clipped(self, logp: Tensor, old_logp: Tensor, advantages: Tensor, response_mask: Tensor) -> Tensor:
        """1 where the trust region took the gradient away, ``[batch, time]``."""
        return torch.zeros_like(logp)


@part_kind("corrections")
class Correction(Part, ABC):
    """How much a sampled token counts where the density that the trainer has is not the one that it was sampled from: the engine
    rounds otherwise, or its weights are older."""

    answers: ClassVar = {"__call__": returned.importance}

    gradient_estimand: str
    """What the expected gradient of a policy loss follows with these weights, before the first update."""

    @abstractmethod
    def __call__(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        """Weights ``[batch, time]``, not negative and detached.

        Args:
            logp: What the trainer gave the sampled token before the update, in nats.
            sampled_logp: What the engine gave it, in nats. Both are of the tempered softmax, before anything was cut from it.
        """

    def cut(self, logp: Tensor, sampled_logp: Tensor) -> Tensor:
        """Bool ``[batch, time]``: where the weight is bounded or zero instead of the ratio of the two."""
        return torch.zeros_like(logp, dtype=torch.bool)


@part_kind("controllers")
class EpisodeController(Part, ABC):
    """Changes how an attempt is played as training goes on: fewer turns, or a beginning that somebody else plays."""

    answers: ClassVar = {"__call__": returned.request}

    @abstractmethod
    def __call__(self, request: "Request", iteration: int, env: "Environment") -> "Request":
        """The attempt as it shall be played."""


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

    @abstractmethod
    def __call__(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float | None]]:
        """One label a turn of each episode: +1 good, -1 bad or between; None where no verdict was got.

        `solutions` holds the gold answer of each episode's task.
        """


@part_kind("schedules")
class Schedule(Part, ABC):
    """A coefficient as a function of the training iteration."""

    answers: ClassVar = {"__call__": returned.coefficient}

    @abstractmethod
    def __call__(self, iteration: int) -> float: ...
