"""What the parts of a method promise: who is told what, how credit is given, how much a token counts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdar.contracts import returned
from sdar.errors import ConfigError
from sdar.functional.per_id import PerId
from sdar.parts.part import Part
from sdar.parts.worlds import Environment
from sdar.registry import part_kind, part_name
from sdar.renamed import Renamed
from sdar.types import Episode, Request, Retrieval, StudentTokens, Task, TeacherSignal, TokenView

if TYPE_CHECKING:
    from sdar.metrics import Metrics
    from sdar.rollout.chat import ChatFormat
    from sdar.skills import SkillBank
    from sdar.turns import Turns


@part_kind("gates")
class Gate(Part, ABC):
    """How much a token trusts its teacher, in [0, 1]."""

    answers: ClassVar = {"__call__": returned.gate}

    @abstractmethod
    def __call__(self, tokens: TokenView) -> Float[Tensor, "*tokens"]:
        """Weights ``[batch, time]`` in [0, 1]; everything in `tokens` is detached, so the gate carries no gradient.

        It is called on micro-batches, again for each update, and by each rank on its share: it learns in `observe`.
        """

    @property
    def learns(self) -> bool:
        """Whether the gate has an `observe` of its own."""
        return type(self).observe is not Gate.observe

    def observe(self, tokens: TokenView, metrics: "Metrics") -> None:
        """Learn from all tokens of an iteration (`tokens.iteration`), once, before its updates: ``tokens.student_logp`` is that of the
        weights before them, and every rank is told the same. What explains the gate goes into `metrics`. A gate that has this method
        has all rows scored before the first update, by a pass more over its rows."""


@part_kind("retrievers")
class Retriever(Part, ABC):
    """Which skills a task's teacher (or student) gets; may learn from outcomes, and then has a state."""

    answers: ClassVar = {"retrieve": returned.retrieval}

    bank: "SkillBank | None" = None
    """The skills that it chooses from, where it has a bank: checked against the run's tasks."""

    meet = Renamed("bind_env")

    def bind_env(self, env: "Environment") -> None:
        """Called with the run's world before anything is retrieved."""

    def bind_worlds(self, envs: Mapping[str, Environment]) -> None:
        """Called before anything is retrieved, with the worlds of the run by their names; a run with one world has one without a name.

        Raises:
            ConfigError: there are several, and it is made for one.
        """
        if len(envs) > 1 and type(self).bind_env is not Retriever.bind_env:
            raise ConfigError(
                f"model.retriever is {part_name(self)}, which is made for one world, and this run has {', '.join(envs)}: its words would "
                "be about one of them. Use RoutedRetriever with one for each world."
            )
        for env in envs.values():
            self.bind_env(env)

    def bank_of(self, world: str) -> "SkillBank | None":
        """The skills that it chooses from for tasks of a world."""
        return self.bank

    @abstractmethod
    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        """The skills for a task. `visit` counts the visits of a run: a random retriever derives its choice from
        (its seed, task id, visit) alone, so that a resumed run retrieves the same."""

    def scores(self, task: Task) -> dict[str, float]:
        """By what it chooses for a task: a number for each skill that it chooses among, the highest first chosen. Empty: by no number."""
        return {}

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

    def needs(self) -> tuple[TeacherSignal, int]:
        """How much of the teacher's distribution it needs, and of how many tokens for TeacherSignal.TOP_K.

        More than SAMPLED: it is called on chunks of ``[tokens]``, with ``student.logits`` and the teacher's side in `tokens`.
        """
        return TeacherSignal.SAMPLED, 0

    def per_id(self) -> PerId | None:
        """The same as a sum over ids, where it is one: it is then computed tile by tile, never from a row of whole logits.

        None: it is called.
        """
        return None

    @property
    def reads(self) -> Literal["vocabulary", "support", "support differences"]:
        """Where it looks at ``student.logits``; TeacherSignal.TOP_K only.

        ``support``: at ``tokens.teacher_top_ids`` and ``tokens.ids``. Then only these are computed, which costs next to nothing: it is
        called with a column of log-probabilities for each of them, and with ids that name the columns. ``support differences``: the
        same, but a number that is added to all columns of a token changes nothing, because they are normalised again.
        """
        return "vocabulary"

    @abstractmethod
    def __call__(self, student: StudentTokens, tokens: TokenView) -> Float[Tensor, "*tokens"]:
        """Per-token loss, shaped like ``student.logp``; `student` carries the gradient, `tokens` is detached."""


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
    tells: bool = True
    """False: it never adds anything, so that a teacher that was told nothing is no fault."""
    per_turn: bool = False
    """True: it tells of each turn something else, in a growing conversation too, whose turns then become rows of their own."""

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

    def check_tasks(self, env: "Environment", task_ids: Sequence[str]) -> None:
        """Called before anything is loaded.

        Raises:
            ConfigError: what the view tells does not exist for one of these tasks of the world.
        """

    def uses_retrieval(self) -> bool:
        """True when the text comes from a retriever: a strategy with this view needs one."""
        return False

    def prompt(self, chat: "ChatFormat", messages: list[dict[str, str]], text: str) -> list[int]:
        """Ids of the conversation with `text` in it. Empty text: those of the conversation as it is."""
        content = f"{self.heading}\n{text}" if self.heading and text else text
        if not content:
            return chat.prompt(messages)
        if self.placement == "template":
            return [*chat.encode_text(f"{content}\n\n"), *chat.prompt(messages)]
        if self.placement == "system":
            return chat.prompt(chat.informed(messages, content))
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        joined = {"role": "user", "content": f"{content}\n\n{messages[at]['content']}"}
        return chat.prompt([*messages[:at], joined, *messages[at + 1 :]])


@dataclass
class Credit:
    """What an advantage estimator knows. Rows and turns belong to episodes, episodes to groups (attempts at one task)."""

    rewards: Float[Tensor, " rows"]
    """[rows] episode reward minus the penalties of the row's invalid actions."""
    groups: Int[Tensor, " rows"]
    """[rows]"""
    episodes: Int[Tensor, " rows"]
    """[rows]"""
    turns: "Turns"
    """Which turn each token of the rows belongs to."""
    turn_rewards: Float[Tensor, " turns"]
    """[turns] reward of each turn, in the order of `turns`."""
    turn_penalties: Float[Tensor, " turns"]
    """[turns] what an invalid action costs; 0 for a valid one."""
    turn_groups: Int[Tensor, " turns"]
    """[turns]"""
    observations: list[str]
    """[turns] what the world had said before each turn: the anchors of GiGPO."""
    survivor: Bool[Tensor, " rows"]
    """[rows] True where all other attempts of the group were lost (their world failed): there is nothing left to compare with. Not
    for a group that was one attempt from the start."""
    metrics: "Metrics"
    """What explains the advantages goes here."""


@part_kind("advantages")
class AdvantageEstimator(Part, ABC):
    """Credit: what each row's reward is worth against its group."""

    answers: ClassVar = {"__call__": returned.advantages}

    @abstractmethod
    def __call__(self, credit: Credit) -> Float[Tensor, " rows"] | Float[Tensor, "rows time"]:
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
    """Only tokens inside this tag of the protocol are reshaped, whatever is returned for others (`tokens.in_span`); None: all."""

    def tags(self) -> set[str]:
        """Tags of the protocol that it has to know: they are looked for only then."""
        return set() if self.span is None else {self.span}

    def weight(self, iteration: int) -> float:
        """How much what the teacher says counts in an iteration; at 0 the transform is not called, nor is the teacher for its sake."""
        return 1.0

    @abstractmethod
    def __call__(
        self, advantages: Float[Tensor, "*tokens"], tokens: TokenView, turns: "Turns", iteration: int, metrics: "Metrics"
    ) -> Float[Tensor, "*tokens"]:
        """Advantages ``[batch, time]`` from those before; ``tokens.student_logp`` is that of the weights before the update.

        It is called once in an iteration, with all turns and on every rank alike. What explains the transform goes into `metrics`.
        """


@part_kind("turn_weights")
class TurnWeight(Part, ABC):
    """How much each turn counts in the distillation term."""

    answers: ClassVar = {"__call__": returned.turn_weights}

    span: str | None = None
    """A tag of the protocol that it asks for (`tokens.inside`); None: none."""

    @abstractmethod
    def __call__(self, tokens: TokenView, turns: "Turns", metrics: "Metrics") -> Float[Tensor, " turns"]:
        """Weights ``[turns]``, not negative; ``tokens.student_logp`` is that of the weights before the update.

        It is called once in an iteration (`tokens.iteration`), with all turns and on every rank alike, and may learn then. What explains
        the weights goes into `metrics`.
        """


@part_kind("filters")
class SequenceFilter(Part, ABC):
    """Which episodes the distillation term learns from."""

    answers: ClassVar = {"__call__": returned.chosen}

    @abstractmethod
    def __call__(self, success: Shaped[Tensor, " episodes"], groups: Shaped[Tensor, " episodes"]) -> Bool[Tensor, " episodes"]:
        """Bool ``[episodes]`` from their success (0 or 1) and their group."""


@part_kind("policy_losses")
class PolicyLoss(Part, ABC):
    """The policy gradient's surrogate."""

    answers: ClassVar = {"__call__": returned.token_loss}

    @abstractmethod
    def __call__(
        self,
        logp: Float[Tensor, "batch time"],
        old_logp: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
        response_mask: Shaped[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
        """Per-token loss ``[batch, time]``; only `logp` carries a gradient."""

    def clipped(
        self,
        logp: Float[Tensor, "batch time"],
        old_logp: Float[Tensor, "batch time"],
        advantages: Float[Tensor, "batch time"] | Float[Tensor, " batch"],
        response_mask: Shaped[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time"]:
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
    def __call__(self, logp: Float[Tensor, "*tokens"], sampled_logp: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
        """Weights ``[batch, time]``, not negative and detached.

        Args:
            logp: What the trainer gave the sampled token before the update, in nats.
            sampled_logp: What the engine gave it, in nats. Both are of the tempered softmax, before anything was cut from it.
        """

    def cut(self, logp: Float[Tensor, "*tokens"], sampled_logp: Float[Tensor, "*tokens"]) -> Bool[Tensor, "*tokens"]:
        """Bool ``[batch, time]``: where the weight is bounded or zero instead of the ratio of the two."""
        return torch.zeros_like(logp, dtype=torch.bool)


@part_kind("controllers")
class EpisodeController(Part, ABC):
    """Changes how an attempt is played as training goes on: fewer turns, or a beginning that somebody else plays."""

    answers: ClassVar = {"__call__": returned.request}

    @abstractmethod
    def __call__(self, request: "Request", iteration: int, env: "Environment") -> "Request":
        """The attempt as it shall be played."""


@part_kind("schedules")
class Schedule(Part, ABC):
    """A coefficient as a function of the training iteration."""

    answers: ClassVar = {"__call__": returned.coefficient}

    @abstractmethod
    def __call__(self, iteration: int) -> float: ...
