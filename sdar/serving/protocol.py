"""The messages between a sampler or teacher and an engine's server: JSON over HTTP, tokens as ids, floats as 64-bit decimals.

``docs/serving.md`` describes them for whoever writes another client or server. Everything is read strictly: a wrong type, a
missing, unknown or doubled field, a number that no float holds raise `BadMessage`, and nothing else does.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, TypeVar

import msgspec
import torch
from msgspec import Meta, Struct
from torch import Tensor

from sdar.parts import Completion, SampleKey

if TYPE_CHECKING:
    from sdar.samplers.bound import TruncatingSampler

PROTOCOL: Final = 1
"""Changes when an older reader would misunderstand a message."""

ROUNDING = 1e-4
"""Nats by which the log-probability of a certain token may be above 0: logits of 100 have steps of 8e-6."""


LARGEST_SCORES = 2**24
"""Numbers in an answer to `ScoreRequest`, by default: about 300 MB of text."""

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Whole = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Ids = tuple[Whole, ...]


class BadMessage(ValueError):
    """What is wrong with a message."""


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a message."""


class Message(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Travels alone."""

    protocol: Literal[1] = PROTOCOL


M = TypeVar("M", bound=Message)


class Sampling(Part, frozen=True):
    """The density that is sampled from: `sdar.samplers.density.truncate` of the first `vocab_size` logits."""

    temperature: float
    top_k: Int
    top_p: float
    forbidden_ids: Ids
    stop_ids: Ids
    vocab_size: Int
    """Rows of the head from here on stand for no token."""
    max_new_tokens: Int

    @classmethod
    def of(cls, sampler: "TruncatingSampler") -> "Sampling":
        """That of a sampler which knows its vocabulary."""
        return cls(
            temperature=sampler.temperature,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            forbidden_ids=sampler.forbidden_ids,
            stop_ids=tuple(sorted(sampler.stop_ids)),
            vocab_size=sampler.vocab_size,
            max_new_tokens=sampler.max_new_tokens,
        )

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("vocab_size", self.vocab_size >= 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("forbidden_ids", _below(self.forbidden_ids, self.vocab_size), f"of ids from 0 to {self.vocab_size - 1}"),
            ("stop_ids", _below(self.stop_ids, self.vocab_size), f"of ids from 0 to {self.vocab_size - 1}"),
        ):
            if not fits:
                raise BadMessage(f'"sampling.{name}" is {str(getattr(self, name))[:100]}: it must be {what}')
        if len(set(self.forbidden_ids)) >= self.vocab_size:
            raise BadMessage(f'"sampling.forbidden_ids" holds all {self.vocab_size} tokens: nothing is left to sample')


class SampleRequest(Message, frozen=True):
    """One response is wanted for each prompt."""

    version: str
    """The weights that shall sample; an engine with others answers `stale`."""
    client: str
    """Who asks: an engine may keep what it has read for each client."""
    rollout: Int
    """Counts the client's rollouts: what was kept for another one is of no use."""
    deadline: float
    """Seconds after which nobody waits for the answer."""
    sampling: Sampling
    prompts: tuple[Ids, ...]
    draws: tuple[SampleKey, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.draws):
            raise BadMessage(f'{len(self.prompts)} "prompts" and {len(self.draws)} "draws": there is one draw for each prompt')
        if not 0 < self.deadline < math.inf:
            raise BadMessage(f'"deadline" is {self.deadline}: seconds, more than 0')
        if not all(self.prompts):
            raise BadMessage('"prompts" holds an empty prompt: there is nothing to go on from')


class Scoring(Part, frozen=True):
    """The density that is scored: the tempered softmax of the first `vocab_size` logits, without the forbidden ones."""

    temperature: float
    forbidden_ids: Ids
    vocab_size: Int
    top_k: Int
    """How many of the likeliest tokens are told at each place, beside the one that stands there."""

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("temperature", 0 < self.temperature < math.inf, "more than 0"),
            ("vocab_size", self.vocab_size >= 1, "at least 1"),
            ("top_k", 0 <= self.top_k <= self.vocab_size, f"from 0 to {self.vocab_size}"),
            ("forbidden_ids", _below(self.forbidden_ids, self.vocab_size), f"of ids from 0 to {self.vocab_size - 1}"),
        ):
            if not fits:
                raise BadMessage(f'"scoring.{name}" is {str(getattr(self, name))[:100]}: it must be {what}')


class ScoreRequest(Message, frozen=True):
    """Log-probabilities of some tokens of each row are wanted."""

    version: str | None
    """The weights that shall score; None: those that the engine was started with, before anybody gave it others."""
    deadline: float
    """Seconds after which nobody waits for the answer."""
    scoring: Scoring
    rows: tuple[Ids, ...]
    responses: tuple[tuple[tuple[Int, Int], ...], ...]
    """Of each row, which tokens are scored: [first, one behind the last) of each response, in order."""

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.responses):
            raise BadMessage(f'{len(self.rows)} "rows" and {len(self.responses)} "responses": each row says what is scored')
        if not 0 < self.deadline < math.inf:
            raise BadMessage(f'"deadline" is {self.deadline}: seconds, more than 0')
        unscored = set(self.scoring.forbidden_ids)
        for row, spans in zip(self.rows, self.responses, strict=True):
            bounds = [bound for span in spans for bound in span]
            if bounds != sorted(bounds) or (bounds and not 1 <= bounds[0] <= bounds[-1] <= len(row)):
                raise BadMessage(
                    f'"responses" holds {str(spans)[:100]} for a row of {len(row)} tokens: spans lie in it, in order, and the first token '
                    "has nothing before it"
                )
            for begin, end in spans:
                for token in row[begin:end]:
                    if token >= self.scoring.vocab_size or token in unscored:
                        raise BadMessage(f'"rows" has the token {token} in a response: it has no probability in "scoring"')

    def counts(self) -> list[int]:
        """How many tokens of each row are scored."""
        return [sum(end - begin for begin, end in spans) for spans in self.responses]

    def numbers(self) -> int:
        """How many numbers the answer holds."""
        return sum(self.counts()) * (1 + 2 * self.scoring.top_k)


@dataclass
class Scores:
    """What an engine thinks of the scored tokens of a row, in order; nats."""

    logp: Tensor
    """[tokens]"""
    top_ids: Tensor
    """[tokens, top_k]"""
    top_logp: Tensor
    """[tokens, top_k], the likeliest first."""


class WeightsFile(Part, frozen=True):
    """A safetensors file that the server can read."""

    path: str
    sha256: str


class LoadRequest(Message, frozen=True):
    """Weights to be sampled from now on."""

    path: ClassVar[str] = "/load"

    version: str
    files: tuple[WeightsFile, ...]
    tied: dict[str, str]
    """Name of a tensor -> name in the files of the one that it shares its memory with."""

    def seated(self, seat: str) -> "LoadRequest":
        """Files lie there for all."""
        return self


class Place(Part, frozen=True):
    """Where a tensor lies in a bucket."""

    name: str
    dtype: str
    """As torch calls it: ``bfloat16``."""
    shape: Ids
    begin: Whole
    """Its first byte."""


class Bucket(Part, frozen=True):
    """Tensors that travel together."""

    size: Whole
    """In bytes."""
    checksum: Int
    """`sdar.serving.buckets.checksum`."""
    tensors: tuple[Place, ...]


class ReceiveRequest(Message, frozen=True):
    """Weights to be sampled from now on, that the trainer sends to those who come for them (`sdar.serving.collective`)."""

    path: ClassVar[str] = "/receive"

    version: str
    host: str
    port: Annotated[int, Meta(ge=1, le=65535)]
    """Of the trainer's store."""
    seat: str
    """Names this request there. What the ranks of a run share holds the key that seats are signed with instead, and is never sent."""
    deadline: float
    """Seconds after which the trainer has given up."""
    buckets: tuple[Bucket, ...]
    tied: dict[str, str]
    """Name of a tensor -> name in the buckets of the one that it shares its memory with."""

    def __post_init__(self) -> None:
        if not 0 < self.deadline < math.inf:
            raise BadMessage(f'"deadline" is {self.deadline}: seconds, more than 0')

    def seated(self, seat: str) -> "ReceiveRequest":
        """The same weights for another request."""
        return msgspec.structs.replace(self, seat=f"{seat}.{seat_signature(self.seat, seat)}")


def seat_signature(key: str, seat: str) -> str:
    """Tells seats that a run handed out from others."""
    return hmac.new(key.encode(), seat.encode(errors="replace"), hashlib.sha256).hexdigest()


Weights = LoadRequest | ReceiveRequest


class ForgetRequest(Message, frozen=True):
    """What was kept for a client is of no more use."""

    client: str


class _Sampled(Message, frozen=True):
    version: str
    completions: tuple[Completion, ...]


class _RowScores(Part, frozen=True):
    logp: list[float]
    top_ids: list[list[int]]
    top_logp: list[list[float]]


class _Scored(Message, frozen=True):
    version: str | None
    scores: tuple[_RowScores, ...]


class _Spoken(Struct):
    protocol: msgspec.Raw = msgspec.Raw(b"null")


def dump(message: Any) -> bytes:
    """The body of a message."""
    return msgspec.json.encode(message)


def parse(body: bytes, kind: Any = dict[str, Any]) -> Any:
    """The JSON object of a body, of this protocol's version.

    Raises:
        BadMessage: it is none, or none of this kind.
    """
    try:
        spoken = bytes(msgspec.json.decode(body, type=_Spoken).protocol)
        if spoken != b"%d" % PROTOCOL:
            raise BadMessage(
                f'"protocol" is {spoken[:100].decode(errors="replace")}, here {PROTOCOL} is spoken: give both sides the same version '
                "of sdar"
            )
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadMessage(f"no {getattr(kind, '__name__', 'message').strip('_')}: {_short(error)}") from None
    except BadMessage:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage(f"{len(body)} bytes that are no JSON ({_short(error)})") from None


def read(body: bytes, kind: type[M]) -> M:
    """A message of one kind.

    Raises:
        BadMessage: it is none.
    """
    message = parse(body, kind)
    if _fields(body) != _fields(dump(message)):
        raise BadMessage(f"no {kind.__name__.strip('_')}: a field stands twice, or is unknown")
    return message


def _short(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error)[:200])


_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


def _fields(body: bytes) -> int:
    """How many fields a JSON text has. What was read holds each once."""
    return _TEXT.sub(b"", body).count(b":")


def write_completions(version: str, completions: Sequence[Completion]) -> bytes:
    """The answer to a `SampleRequest`."""
    return dump(_Sampled(version, tuple(completions)))


def read_completions(body: bytes, request: SampleRequest) -> list[Completion]:
    """Completions of an answer that keeps what the request asked for: its version, one for each prompt, allowed ids only, a density
    for each, an end where one is due.

    Raises:
        BadMessage: it does not.
    """
    answer = read(body, _Sampled)
    _check_version(answer.version, request.version)
    if len(answer.completions) != len(request.prompts):
        raise BadMessage(f"{len(answer.completions)} completions for {len(request.prompts)} prompts")
    sampling = request.sampling
    banned, stops = set(sampling.forbidden_ids), set(sampling.stop_ids)
    for c in answer.completions:
        if not 1 <= len(c.ids) <= sampling.max_new_tokens or not len(c.ids) == len(c.behaviour_logp) == len(c.kept_logmass):
            raise BadMessage(
                f"a completion of {len(c.ids)} ids, {len(c.behaviour_logp)} log-probabilities and {len(c.kept_logmass)} kept masses; at "
                f"most {sampling.max_new_tokens} tokens were asked for"
            )
        if wrong := [i for i in c.ids if not 0 <= i < sampling.vocab_size or i in banned]:
            raise BadMessage(f"a completion with the token {wrong[0]}, which is forbidden or none of {sampling.vocab_size}")
        if any(not -math.inf < x <= 1e-6 for x in (*c.behaviour_logp, *c.kept_logmass)):
            raise BadMessage("a completion with a log-probability or kept log-mass that is not in (-inf, 0]")
        if (
            c.stopped != (c.ids[-1] in stops)
            or stops.intersection(c.ids[:-1])
            or (not c.stopped and len(c.ids) < sampling.max_new_tokens)
        ):
            raise BadMessage(f"a completion of {len(c.ids)} tokens that says stopped={c.stopped}, against its ids")
    return list(answer.completions)


def write_scores(version: str | None, scores: Sequence[Scores]) -> bytes:
    """The answer to a `ScoreRequest`; one row at a time is held as numbers of Python."""

    def rows() -> Iterator[bytes]:
        for s in scores:
            yield dump(_RowScores(s.logp.tolist(), s.top_ids.tolist(), s.top_logp.tolist()))

    return dump(_Scored(version, ())).replace(b'"scores":[]', b'"scores":[%s]' % b",".join(rows()), 1)


def read_scores(body: bytes, request: ScoreRequest) -> list[Scores]:
    """Scores of an answer that keeps what the request asked for: its version, a log-probability for each scored token, as many
    different tokens of the vocabulary as were asked for with no more than all of the mass, the likeliest first.

    Raises:
        BadMessage: it does not.
    """
    answer = read(body, _Scored)
    _check_version(answer.version, request.version)
    if len(answer.scores) != len(request.rows):
        raise BadMessage(f"scores of {len(answer.scores)} rows for {len(request.rows)}")
    k, out = request.scoring.top_k, []
    for s, n in zip(answer.scores, request.counts(), strict=True):
        logp = _tensor(s.logp, "logp", torch.float64, n)
        ids, top = _tensor(s.top_ids, "top_ids", torch.int64, n, k), _tensor(s.top_logp, "top_logp", torch.float64, n, k)
        if not (logp.isfinite().all() and top.isfinite().all() and logp.le(ROUNDING).all() and top.le(ROUNDING).all()):
            raise BadMessage("a row with a log-probability that is not in (-inf, 0]")
        ordered = ids.sort(1).values
        if k and not (ordered.ge(0).all() and ordered.lt(request.scoring.vocab_size).all() and ordered.diff().gt(0).all()):
            raise BadMessage(f'"top_ids" with a token twice, or one that is none of {request.scoring.vocab_size}')
        if k and not (top.diff().le(0).all() and top.exp().sum(1).le(1 + 1e-3).all()):
            raise BadMessage('"top_logp" that rises, or with more than all of the mass')
        out.append(Scores(logp.float(), ids, top.float()))
    return out


def _check_version(told: str | None, wanted: str | None) -> None:
    if told != wanted:
        raise BadMessage(f'"version" is {str(told)[:200]!r}, {wanted!r} was asked for')


def _tensor(table: list[Any], name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers as a tensor of exactly this shape."""
    if not table and 0 in shape:
        return torch.zeros(shape, dtype=dtype)
    try:
        found = torch.tensor(table, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadMessage(f'"{name}" is no table of numbers ({str(error)[:100]})') from None
    if found.shape != shape:
        raise BadMessage(f'"{name}" of shape {list(found.shape)} where {list(shape)} is wanted')
    return found


def _below(ids: Sequence[int], size: int) -> bool:
    return all(0 <= i < size for i in ids)
