"""The nouns of a training step. Axis words, used everywhere: batch, turn, time, vocab.

Token ids are the truth; text is derived for people. One episode with two turns, drawn in the trajectory layout::

    prompt_ids (turn 1)   response 1   prompt_ids (turn 2)   response 2
    [p p p p p p p p]     [r r e]      [e? o o o o]          [r r r e]      e = end-of-turn token
    mask 0 0 0 ...        1 1 1        0 0 0 0 0             1 1 1 1

In the turn layout each turn's ``prompt_ids`` is a whole templated prompt and each turn becomes a row of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One thing to do. Plain data: it hashes, pickles and survives in JSON."""

    id: str
    family: str
    instruction: str
    seed: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    """What a teacher may be told and a student may not: hidden facts, a solution, a hint."""


class Status(StrEnum):
    """Why an episode ended."""

    DONE = "done"
    """The environment ended it (success included)."""
    HORIZON = "horizon"
    """The environment's step limit."""
    CONTEXT = "context"
    """The next prompt would not fit the model's context."""
    TIMEOUT = "timeout"
    """An environment call passed its deadline; the worker was replaced."""
    ENV_ERROR = "env_error"
    """The environment raised."""
    ENV_DIED = "env_died"
    """The environment's worker process died; it was replaced."""


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
    reward: float = 0.0
    imitated: bool = True
    """False for turns that somebody else took: they carry no loss."""


@dataclass
class Retrieval:
    """What a retriever gave for a task: skill ids and the text that a prompt may hold (empty: nothing)."""

    skill_ids: tuple[str, ...] = ()
    text: str = ""


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
    """True when the acting model saw the retrieval in its own prompt."""
    opening: list[dict[str, str]] = field(default_factory=list)
    """Messages of the first prompt, before anything privileged was added."""
    windows: list[list[dict[str, str]]] = field(default_factory=list)
    """Messages of each turn's prompt in the turn layout; empty in the trajectory layout."""
    final_observation: str = ""
    error: str = ""

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
    """First turn of the row (its only one in the turn layout)."""
    teacher_ids: list[int] | None = None
    """The privileged view: another beginning, the same tail. None until a teacher asks."""


@dataclass
class Batch:
    """Rows as right-padded tensors ``[batch, time]``; position t of every per-token tensor is about token t of `ids`."""

    ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    turn_ids: Tensor
    behaviour_logp: Tensor
    kept_logmass: Tensor
    episode: Tensor
    """[batch] index of the episode of each row."""
    teacher_ids: Tensor | None = None
    teacher_attention_mask: Tensor | None = None
    teacher_response_mask: Tensor | None = None
    advantages: Tensor | None = None
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    teacher_logp: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, rows: Tensor) -> "Batch":
        """The given rows, cut to the longest of them (teacher and student views separately)."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out = {k: v if v is None else v[rows] for k, v in out.items()}
        teacher = {"teacher_ids", "teacher_attention_mask", "teacher_response_mask"}
        time = int(out["attention_mask"].sum(1).max())
        for k, v in out.items():
            if v is not None and v.dim() == 2:
                length = int(out["teacher_attention_mask"].sum(1).max()) if k in teacher else time
                out[k] = v[:, :length]
        return Batch(**out)

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: v if v is None else v.to(device) for k, v in moved.items()})


@dataclass
class TokenView:
    """What is known about each token when it is weighed: ``[batch, time]``, all detached. Nats, unless said otherwise."""

    student_logp: Tensor
    teacher_logp: Tensor
    gap: Tensor
    """teacher_logp - student_logp; positive: the teacher endorses the sampled token."""
    entropy: Tensor
    """Of the student's next-token distribution."""
    response_mask: Tensor
    turn_ids: Tensor
    advantages: Tensor
    vocab_size: int
    """Size of the student's vocabulary: ln(vocab_size) is the largest entropy."""
