"""The nouns of a training step. Axis words, used everywhere: batch, turn, time, vocab.

Token ids are the truth; text is derived for people. One episode with two turns, drawn in the trajectory layout::

    prompt_ids (turn 1)   response 1   prompt_ids (turn 2)   response 2
    [p p p p p p p p]     [r r e]      [e? o o o o]          [r r r e]      e = end-of-turn token
    mask 0 0 0 ...        1 1 1        0 0 0 0 0             1 1 1 1

In the turn layout each turn's ``prompt_ids`` is a whole templated prompt and each turn becomes a row of its own. Where a chat
template tells the past otherwise than it was said (thinking removed), so does a turn of the trajectory layout that `starts_row`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdar.errors import ConfigError
from sdar.renamed import Renamed, old_names


@dataclass(frozen=True)
class Task:
    """One thing to do. Plain data: it hashes, pickles and survives in JSON."""

    id: str
    family: str
    instruction: str
    seed: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a teacher may be told and a student may not: hidden facts, a solution, a hint."""
    world: str = ""
    """Name of its world in a run that has several."""


class Status(StrEnum):
    """Why an episode ended."""

    DONE = "done"
    """The environment ended it (success included)."""
    HORIZON = "horizon"
    """The environment's step limit."""
    CONTEXT = "context"
    """The next prompt would not fit the model's context."""
    TOKEN_LIMIT = "token_limit"
    """The tokens of an episode (`data.max_episode_tokens`) are used up; the world may have ended it with the last of them."""
    TIMEOUT = "timeout"
    """An environment call passed its deadline; the worker was replaced."""
    ENV_ERROR = "env_error"
    """The environment raised."""
    ENV_DIED = "env_died"
    """The environment's worker process died; it was replaced."""

    @property
    def lost(self) -> bool:
        """True where the world failed: what the episode would have been worth is not known."""
        return self in (Status.TIMEOUT, Status.ENV_ERROR, Status.ENV_DIED)


@dataclass
class Turn:
    """One exchange: what the model was given, what it said, what the world answered."""

    prompt_ids: list[int]
    response_ids: list[int]
    behaviour_logp: list[float]
    """Per response token: log-probability under the density that was sampled from, in nats."""
    kept_logmass: list[float]
    """Per response token: log of the probability mass that truncation and masks kept, in nats (0: everything)."""
    text: str = ""
    observation: str = ""
    """What the world had said when this response was sampled."""
    action: str = ""
    valid: bool = True
    """The response had the right form, and the world accepted the action."""
    well_formed: bool = True
    """The protocol found an action in the response, whatever the world made of it."""
    reward: float = 0.0
    stopped: bool = True
    """The response ends with an end-of-turn token. False: it was cut at `max_new_tokens`, or at the bound of the
    episode."""
    trainable: bool = True
    """False for turns that somebody else took: they carry no loss."""
    starts_row: bool = False
    """True where `prompt_ids` does not go on from the turn before, in the trajectory layout: the turn begins a row."""
    tool_ok: bool | None = None
    """Whether the tool that the action called worked; None: it called none."""

    imitated = Renamed("trainable")
    restarts = Renamed("starts_row")


class History(list[tuple[str, str]]):
    """The last (observation, action) pairs of an episode, oldest first, and how many there were altogether."""

    def __init__(self, shown: Sequence[tuple[str, str]], taken: int):
        super().__init__(shown)
        self.taken = taken


@dataclass
class Retrieval:
    """What a retriever gave for a task: skill ids and the text that a prompt may hold (empty: nothing)."""

    skill_ids: tuple[str, ...] = ()
    text: str = ""


@dataclass
class Request:
    """One episode that is wanted."""

    task: Task
    attempt: int
    retrieval: Retrieval = field(default_factory=Retrieval)
    privileged: bool = False
    """True: the acting model itself is told `privileged_text`."""
    privileged_text: str = ""
    """Privileged text."""
    replay: tuple[str, ...] = ()
    """Actions of somebody else that the episode begins with; they carry no loss."""
    max_turns: int | None = None
    """The acting model gets at most this many turns (after the replay)."""
    extra: bool = False
    """True: played after its group had been seen; no attempt of the group."""

    told = Renamed("privileged_text")

    def begin(self) -> "Episode":
        """The episode that is wanted, before its first turn."""
        text = self.privileged_text if self.privileged else ""
        return Episode(
            self.task,
            self.attempt,
            retrieval=self.retrieval,
            privileged=self.privileged,
            privileged_text=text,
            extra=self.extra,
        )


__getattr__ = old_names(__name__, Draw="SampleKey", Payload="TeacherSignal")


@dataclass(frozen=True)
class SampleKey:
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


@dataclass
class StepResult:
    """What the world answered to one action."""

    observation: str
    reward: float = 0.0
    done: bool = False
    success: bool = False
    valid: bool = True
    """False when the world did not understand or allow the action."""
    scores: dict[str, float] = field(default_factory=dict)
    """Numbers in [0, 1] about the episode so far, beside `success`: a partial score, F1. The last answer's are reported."""
    truncated: bool = False
    """`done` for no other reason than that the actions of the episode are used up: the world itself would go on."""
    tool_ok: bool | None = None
    """Of an action that called a tool: whether the call was understood and ran without an error. None: it called none."""


@dataclass
class Episode:
    """One attempt at one task."""

    task: Task
    attempt: int
    turns: list[Turn] = field(default_factory=list)
    status: Status = Status.DONE
    success: bool = False
    reward: float = 0.0
    retrieval: Retrieval = field(default_factory=Retrieval)
    privileged: bool = False
    """True when the acting model was told what a teacher may know."""
    privileged_text: str = ""
    """The privileged text in the acting model's prompts."""
    extra: bool = False
    """True for an episode that was played after its group had been seen; it is no attempt of the group."""
    first_messages: list[dict[str, str]] = field(default_factory=list)
    """Messages of the first prompt, before anything privileged was added."""
    turn_messages: list[list[dict[str, str]]] = field(default_factory=list)
    """Messages of each turn's prompt in the turn layout; empty in the trajectory layout."""
    later_messages: list[dict[str, Any]] = field(default_factory=list)
    """What followed `first_messages`, a response and an answer for each turn but the first; only where the chat template rewrites it."""
    final_observation: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    """What the world measured beside success, each in [0, 1]."""
    error: str = ""

    told = Renamed("privileged_text")
    opening = Renamed("first_messages")
    windows = Renamed("turn_messages")
    dialogue = Renamed("later_messages")

    @property
    def lost(self) -> bool:
        """True where the world failed: neither a success nor a failure, but missing."""
        return self.status.lost

    @property
    def response_tokens(self) -> int:
        return sum(len(turn.response_ids) for turn in self.turns)


@dataclass
class Row:
    """One training sequence: ids with a response mask, and the same responses behind the teacher's context."""

    ids: list[int]
    response_mask: list[int]
    turn_ids: list[int]
    behaviour_logp: list[float]
    kept_logmass: list[float]
    episode: int
    """Index of the episode in the list that the rows were made from."""
    turn: int
    """First turn of the row (its only one in the turn layout, and where the template rewrites every response)."""
    spans: list[int] = field(default_factory=list)
    """Per token: 0, or 1 + the number of the tag (of the protocol) that it stands in. Empty where nobody asked."""
    teacher_ids: list[int] | None = None
    """The privileged view: another beginning, the same tail. None until a teacher asks."""
    is_privileged: bool = False
    """True when the teacher's beginning holds something that the student's does not."""
    view_turn: int | None = None
    """The turn that the teacher is told about where a row has been made for it alone; None: the first."""
    spans_of_teacher: list[int] = field(default_factory=list)
    """Per token, where the teacher has other tokens: 0, or the number of the span of text that it is compared in, from 1 on."""
    teacher_spans: list[int] = field(default_factory=list)
    """Per token of `teacher_ids` the same."""

    told = Renamed("is_privileged")


@dataclass(frozen=True)
class Late:
    """A tensor ``[batch, time]`` that is found out when its field is read."""

    find: Callable[[], Tensor]

    def __getitem__(self, place: Any) -> "Late":
        return Late(lambda: self.find()[place])

    def to(self, device: torch.device) -> "Late":
        return Late(lambda: self.find().to(device))

    def dim(self) -> int:
        return 2


class _Later:
    """See `later`."""

    def __init__(self, remedy: str):
        self.remedy = remedy

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner.__name__, name

    def __get__(self, noun: Any, owner: type | None = None) -> Any:
        if noun is None:
            return None  # the default that dataclass sees
        if self.name not in vars(noun):
            raise ConfigError(f"{self.owner}.{self.name} was not filled in: {self.remedy}")
        value = vars(noun)[self.name]
        if isinstance(value, Late):
            value = vars(noun)[self.name] = value.find()
        return value

    def __set__(self, noun: Any, value: Any) -> None:
        if value is None:
            vars(noun).pop(self.name, None)
        else:
            vars(noun)[self.name] = value


def later(remedy: str) -> Any:
    """A field that an iteration fills in when a method needs it. Whoever reads it before is told what to do; `has` only looks."""
    return _Later(remedy)


class Filled:
    """A noun of which some fields are filled in later."""

    def has(self, name: str) -> bool:
        """Whether a field was filled in."""
        return name in vars(self)

    def awaits(self, name: str) -> bool:
        """Whether a field is found out when it is read, and nobody has read it."""
        return isinstance(vars(self).get(name), Late)


NO_TEACHER = "no teacher reads these rows. Give the method a teacher, or use nothing that asks one."
SCORED = "rows are scored behind `credit`, with the weights before the update: read it in `weigh` or `token_loss`."


@dataclass(repr=False, eq=False)
class Batch(Filled):
    """Rows as right-padded tensors ``[batch, time]``; position t of every per-token tensor is about token t of `ids`.

    Raises:
        ConfigError: a field is read that was not filled in.
    """

    ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    """What the model said. Never narrowed."""
    turn_ids: Tensor
    behaviour_logp: Tensor
    kept_logmass: Tensor
    episode: Tensor
    """[batch] index of the episode of each row."""
    group: Tensor
    """[batch] index of the group (attempts at one task)."""
    success: Tensor
    """[batch] 1.0 where the row's episode reached its goal."""
    group_success: Tensor
    """[batch] share of the group's attempts that reached it, of those that were played to an end; NaN where none was."""
    is_privileged: Tensor
    """[batch] True where the teacher sees more than the student."""
    extra: Tensor
    """[batch] True where the row's episode was no attempt: it has no policy gradient."""
    world: Tensor = later("a run with one world has none.")
    """[batch] number of the world of the row's task, in the order of the run's worlds; where there are several."""
    spans: Tensor = later("set `needs_spans = True` in the method: tags are looked for only then.")
    """0, or 1 + the number of the protocol's tag that a token stands in."""
    teacher_ids: Tensor = later(NO_TEACHER)
    teacher_attention_mask: Tensor = later(NO_TEACHER)
    teacher_response_mask: Tensor = later(NO_TEACHER)
    teacher_spans: Tensor = later("the teacher has the student's tokens.")
    """[batch, teacher time] 0, or the number of the span of text in which a token of the teacher's is compared."""
    student_spans: Tensor = later("the teacher has the student's tokens.")
    """[batch, time] the same of the student's tokens."""
    loss_mask: Tensor = later("a batch has it from the beginning.")
    """The response tokens whose loss is computed; all of them, unless a method leaves some to no term at all."""
    advantages: Tensor = later("`credit` fills them in.")
    distill_weights: Tensor = later("`Distillation.weigh` fills them in.")
    """Turn weights, spans and filters of the distillation term, as one number a token."""
    turn_weights: Tensor = later("a turn weight fills them in.")
    """[batch, time] how much the turn of each response token counts in the distillation."""
    old_logp: Tensor = later(SCORED)
    old_entropy: Tensor = later(SCORED)
    scored_row: Tensor = later(SCORED)
    """[batch] number of the row among those that were scored."""
    importance: Tensor = later(SCORED)
    """What each token's loss is multiplied by, because its engine had another density than the trainer."""
    ref_logp: Tensor = later("set `needs_reference = True` in the method: the frozen policy reads the rows only then.")
    teacher_logp: Tensor = later(NO_TEACHER)
    teacher_top_ids: Tensor = later("the rows were not scored with TeacherSignal.TOP_K.")
    """[batch, time, k] the teacher's likeliest tokens."""
    teacher_top_logp: Tensor = later("the rows were not scored with TeacherSignal.TOP_K.")
    """[batch, time, k] over the whole vocabulary, so that what is missing to 1 is the tail."""
    teacher_hidden: Tensor = later("the rows were not scored with TeacherSignal.FULL.")
    """[batch, time, hidden] states that the teacher predicts each token from."""
    teacher_entropy: Tensor = later("a teacher elsewhere tells none.")
    """[batch, time] of the teacher's next-token distribution, in nats."""
    teacher_index: Tensor = later(NO_TEACHER)
    """[batch] which of several teachers read the row."""
    soft_target_ids: Tensor = later("`TOPD.weigh` fills them in.")
    """[batch, time, window] tokens of a teacher's future that an optimal transport sends to this place."""
    soft_target_logp: Tensor = later("`TOPD.weigh` fills them in.")
    """[batch, time, window] logs of their shares; -inf where none is sent."""

    told = Renamed("is_privileged")

    def __post_init__(self) -> None:
        if not self.has("loss_mask"):
            self.loss_mask = self.response_mask

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, rows: Tensor) -> "Batch":
        """The given rows, cut to the longest of them (teacher and student views separately)."""
        out = {name: values[rows] for name, values in vars(self).items()}
        teacher = {"teacher_ids", "teacher_attention_mask", "teacher_response_mask", "teacher_spans"}
        time = int(out["attention_mask"].sum(1).max())
        for k, v in out.items():
            if v.dim() > 1:
                length = int(out["teacher_attention_mask"].sum(1).max()) if k in teacher else time
                out[k] = v[:, :length]
        return Batch(**out)

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: values.to(device) for name, values in vars(self).items()})


class TeacherSignal(StrEnum):
    """How much of the teacher's distribution an objective needs."""

    SAMPLED = "sampled"
    """The log-probability of the sampled token."""
    TOP_K = "top_k"
    """The teacher's k likeliest tokens with their log-probabilities; what is missing to 1 is the tail."""
    FULL = "full"
    """The whole distribution, made from hidden states chunk by chunk."""


@dataclass(repr=False, eq=False, kw_only=True)
class TokenView(Filled):
    """What is known about each token when it is weighed: ``[batch, time]``, all detached. Nats, unless said otherwise.

    An objective over the vocabulary gets a chunk of the response tokens instead: ``[tokens]``, and ``[tokens, ...]`` for what
    is about several ids.

    Raises:
        ConfigError: something is read that nobody found out.
    """

    student_logp: Float[Tensor, "*tokens"]
    teacher_logp: Float[Tensor, "*tokens"] = later(NO_TEACHER)
    gap: Float[Tensor, "*tokens"] = later(NO_TEACHER)
    """teacher_logp - student_logp; positive: the teacher endorses the sampled token."""
    entropy: Float[Tensor, "*tokens"]
    """Of the student's next-token distribution."""
    response_mask: Shaped[Tensor, "*tokens"]
    """Bool: what the model said. What stands at other tokens means nothing."""
    turn_ids: Int[Tensor, "*tokens"]
    """Number of the turn in its episode. All tokens of a turn stand in one row, one behind the other; a row may hold several turns."""
    advantages: Float[Tensor, "*tokens"]
    """Those of before the first transform in one, of after the last elsewhere."""
    vocab_size: int
    """Size of the student's vocabulary: ln(vocab_size) is the largest entropy."""
    old_logp: Float[Tensor, "*tokens"] = later(SCORED)
    """Log-probability of the sampled token with the weights that started the iteration's updates."""
    ids: Int[Tensor, "*tokens"] = later("the sampled tokens were not told.")
    """The sampled tokens."""
    group_success: Float[Tensor, "*tokens"] = later("how the group went was not told.")
    """Share of the attempts at the token's task that succeeded."""
    teacher_top_ids: Int[Tensor, "*tokens k"] = later("the rows were not scored with TeacherSignal.TOP_K.")
    teacher_top_logp: Float[Tensor, "*tokens k"] = later("the rows were not scored with TeacherSignal.TOP_K.")
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"] = later("only an objective that needs TeacherSignal.FULL has them.")
    """``[tokens, vocab]``: log-probabilities of the whole vocabulary (TeacherSignal.FULL)."""
    in_span: Tensor = later("only an advantage transform is told.")
    """Bool: the response tokens that a transform reshapes, those inside its `span`; all where it has none."""
    spans: Int[Tensor, "*tokens"] = later("set `needs_spans = True` in the method: tags are looked for only then.")
    """0, or 1 + the number of the tag (of `tags`) that a token stands in."""
    tags: tuple[str, ...] = ()
    """Those of the protocol."""
    iteration: int = 0
    """The training iteration, from 0."""

    def inside(self, tag: str) -> Bool[Tensor, "*tokens"]:
        """The response tokens inside a tag of the protocol."""
        return self.response_mask.bool() & (self.spans == 1 + self.tags.index(tag))

    def at(self, tokens: Any) -> "TokenView":
        """What is known about some tokens: an index (or mask) of the leading axes."""
        known: dict[str, Any] = {k: v[tokens] if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return TokenView(**known)

    def including(self, **others: Tensor) -> "TokenView":
        """The same with some fields filled in, or with other values."""
        return TokenView(**vars(self) | others)


class Density(Protocol):
    """The density in which tokens are scored: tempered, without forbidden ids, over the tokenizer's ids."""

    temperature: float
    forbidden_ids: tuple[int, ...]
    vocab_size: int


@dataclass(repr=False, eq=False)
class StudentTokens(Filled):
    """The current student on the same tokens; carries the gradient.

    Raises:
        ConfigError: `logits` is read by an objective that does not need them.
    """

    logp: Float[Tensor, "*tokens"]
    """Of the sampled token, in nats."""
    entropy: Float[Tensor, "*tokens"]
    logits: Float[Tensor, "*tokens vocab"] = later(
        "only an objective over the vocabulary (TeacherSignal.TOP_K, TeacherSignal.FULL) has them."
    )
    """``[tokens, vocab]``: log-probabilities of the whole vocabulary, for objectives that need them."""
