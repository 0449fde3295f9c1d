"""The messages between a sampler or teacher and an engine's server: JSON over HTTP, tokens as ids, floats as 64-bit decimals.

``docs/serving.md`` describes them for whoever writes another client or server. Everything is read strictly: a wrong type, a
missing or an unknown field raises `BadMessage` with the field's name.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sdar.parts import Completion, Draw

if TYPE_CHECKING:
    from sdar.samplers.bound import TruncatingSampler

PROTOCOL = 1
"""Changes when an older reader would misunderstand a message."""

ROUNDING = 1e-4
"""Nats by which the log-probability of a certain token may be above 0: logits of 100 have steps of 8e-6."""


class BadMessage(ValueError):
    """What is wrong with a message."""


@dataclass(frozen=True)
class Sampling:
    """The density that is sampled from: `sdar.samplers.density.truncate` of the first `vocab_size` logits."""

    temperature: float
    top_k: int
    top_p: float
    forbidden_ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    vocab_size: int
    """Rows of the head from here on stand for no token."""
    max_new_tokens: int

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


@dataclass(frozen=True)
class SampleRequest:
    """One response is wanted for each prompt."""

    version: str
    """The weights that shall sample; an engine with others answers `stale`."""
    client: str
    """Who asks: an engine may keep what it has read for each client."""
    rollout: int
    """Counts the client's rollouts: what was kept for another one is of no use."""
    deadline: float
    """Seconds after which nobody waits for the answer."""
    sampling: Sampling
    prompts: tuple[tuple[int, ...], ...]
    draws: tuple[Draw, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.draws):
            raise BadMessage(f'{len(self.prompts)} "prompts" and {len(self.draws)} "draws": there is one draw for each prompt')
        if not 0 < self.deadline < math.inf:
            raise BadMessage(f'"deadline" is {self.deadline}: seconds, more than 0')
        if not all(self.prompts):
            raise BadMessage('"prompts" holds an empty prompt: there is nothing to go on from')


@dataclass(frozen=True)
class Scoring:
    """The density that is scored: the tempered softmax of the first `vocab_size` logits, without the forbidden ones."""

    temperature: float
    forbidden_ids: tuple[int, ...]
    vocab_size: int
    top_k: int
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


@dataclass(frozen=True)
class ScoreRequest:
    """Log-probabilities of some tokens of each row are wanted."""

    version: str | None
    """The weights that shall score; None: those that the engine was started with, before anybody gave it others."""
    deadline: float
    """Seconds after which nobody waits for the answer."""
    scoring: Scoring
    rows: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[tuple[int, int], ...], ...]
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


@dataclass
class Scores:
    """What an engine thinks of the scored tokens of a row, in order; nats."""

    logp: Tensor
    """[tokens]"""
    top_ids: Tensor
    """[tokens, top_k]"""
    top_logp: Tensor
    """[tokens, top_k], the likeliest first."""


@dataclass(frozen=True)
class WeightsFile:
    """A safetensors file that the server can read."""

    path: str
    sha256: str


@dataclass(frozen=True)
class LoadRequest:
    """Weights to be sampled from now on."""

    path: ClassVar[str] = "/load"

    version: str
    files: tuple[WeightsFile, ...]
    tied: Mapping[str, str]
    """Name of a tensor -> name in the files of the one that it shares its memory with."""

    def seated(self, seat: str) -> "LoadRequest":
        """Files lie there for all."""
        return self


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a bucket."""

    name: str
    dtype: str
    """As torch calls it: ``bfloat16``."""
    shape: tuple[int, ...]
    begin: int
    """Its first byte."""


@dataclass(frozen=True)
class Bucket:
    """Tensors that travel together."""

    size: int
    """In bytes."""
    checksum: int
    """`sdar.serving.buckets.checksum`."""
    tensors: tuple[Place, ...]


@dataclass(frozen=True)
class ReceiveRequest:
    """Weights to be sampled from now on, that the trainer sends to those who come for them (`sdar.serving.collective`)."""

    path: ClassVar[str] = "/receive"

    version: str
    host: str
    port: int
    """Of the trainer's store."""
    seat: str
    """Names this request there."""
    deadline: float
    """Seconds after which the trainer has given up."""
    buckets: tuple[Bucket, ...]
    tied: Mapping[str, str]
    """Name of a tensor -> name in the buckets of the one that it shares its memory with."""

    def seated(self, seat: str) -> "ReceiveRequest":
        """The same weights for another request."""
        return replace(self, seat=seat)


Weights = LoadRequest | ReceiveRequest


def dump(message: Any) -> bytes:
    """The body of a message."""
    return json.dumps({"protocol": PROTOCOL, **asdict(message)}, separators=(",", ":")).encode()


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, of this protocol's version.

    Raises:
        BadMessage: it is none.
    """
    try:
        message = json.loads(body)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadMessage(f"{len(body)} bytes that are no JSON ({str(error)[:100]})") from None
    if not isinstance(message, dict):
        raise BadMessage("the body is no JSON object")
    if (spoken := message.pop("protocol", None)) != PROTOCOL:
        raise BadMessage(f'"protocol" is {spoken!r}, here {PROTOCOL} is spoken: give both sides the same version of sdar')
    return message


def read_sample(body: bytes) -> SampleRequest:
    """Raises BadMessage."""
    m = _fields(parse(body), SampleRequest)
    s = _fields(_typed(m["sampling"], dict, "sampling"), Sampling)
    sampling = Sampling(
        temperature=_number(s["temperature"], "sampling.temperature"),
        top_k=_whole(s["top_k"], "sampling.top_k"),
        top_p=_number(s["top_p"], "sampling.top_p"),
        forbidden_ids=_ids(s["forbidden_ids"], "sampling.forbidden_ids"),
        stop_ids=_ids(s["stop_ids"], "sampling.stop_ids"),
        vocab_size=_whole(s["vocab_size"], "sampling.vocab_size"),
        max_new_tokens=_whole(s["max_new_tokens"], "sampling.max_new_tokens"),
    )
    draws = []
    for given in _typed(m["draws"], list, "draws"):
        d = _fields(_typed(given, dict, "draws"), Draw)
        whole = {name: _whole(d[name], f"draws.{name}") for name in ("seed", "attempt", "turn")}
        draws.append(Draw(task=_typed(d["task"], str, "draws.task"), **whole))
    return SampleRequest(
        version=_typed(m["version"], str, "version"),
        client=_typed(m["client"], str, "client"),
        rollout=_whole(m["rollout"], "rollout"),
        deadline=_number(m["deadline"], "deadline"),
        sampling=sampling,
        prompts=tuple(_ids(p, "prompts") for p in _typed(m["prompts"], list, "prompts")),
        draws=tuple(draws),
    )


def read_score(body: bytes) -> ScoreRequest:
    """Raises BadMessage."""
    m = _fields(parse(body), ScoreRequest)
    s = _fields(_typed(m["scoring"], dict, "scoring"), Scoring)
    scoring = Scoring(
        temperature=_number(s["temperature"], "scoring.temperature"),
        forbidden_ids=_ids(s["forbidden_ids"], "scoring.forbidden_ids"),
        vocab_size=_whole(s["vocab_size"], "scoring.vocab_size"),
        top_k=_whole(s["top_k"], "scoring.top_k"),
    )
    responses = []
    for given in _typed(m["responses"], list, "responses"):
        spans = [_ids(span, "responses") for span in _typed(given, list, "responses")]
        if wrong := [span for span in spans if len(span) != 2]:
            raise BadMessage(f'"responses" holds {str(wrong[0])[:100]}: a response is the first token and one behind the last')
        responses.append(tuple((begin, end) for begin, end in spans))
    return ScoreRequest(
        version=None if m["version"] is None else _typed(m["version"], str, "version"),
        deadline=_number(m["deadline"], "deadline"),
        scoring=scoring,
        rows=tuple(_ids(r, "rows") for r in _typed(m["rows"], list, "rows")),
        responses=tuple(responses),
    )


def read_load(body: bytes) -> LoadRequest:
    """Raises BadMessage."""
    m = _fields(parse(body), LoadRequest)
    files = []
    for given in _typed(m["files"], list, "files"):
        f = _fields(_typed(given, dict, "files"), WeightsFile)
        files.append(WeightsFile(_typed(f["path"], str, "files.path"), _typed(f["sha256"], str, "files.sha256")))
    return LoadRequest(_typed(m["version"], str, "version"), tuple(files), _names(m["tied"], "tied"))


def read_receive(body: bytes) -> ReceiveRequest:
    """Raises BadMessage."""
    m = _fields(parse(body), ReceiveRequest)
    buckets = []
    for given in _typed(m["buckets"], list, "buckets"):
        b = _fields(_typed(given, dict, "buckets"), Bucket)
        places = []
        for described in _typed(b["tensors"], list, "buckets.tensors"):
            t = _fields(_typed(described, dict, "buckets.tensors"), Place)
            name, dtype = (_typed(t[key], str, f"buckets.tensors.{key}") for key in ("name", "dtype"))
            shape = _ids(t["shape"], "buckets.tensors.shape")
            places.append(Place(name, dtype, shape, _whole(t["begin"], "buckets.tensors.begin")))
        size, checksum = (_whole(b[key], f"buckets.{key}") for key in ("size", "checksum"))
        buckets.append(Bucket(size, checksum, tuple(places)))
    return ReceiveRequest(
        version=_typed(m["version"], str, "version"),
        host=_typed(m["host"], str, "host"),
        port=_whole(m["port"], "port"),
        seat=_typed(m["seat"], str, "seat"),
        deadline=_number(m["deadline"], "deadline"),
        buckets=tuple(buckets),
        tied=_names(m["tied"], "tied"),
    )


def write_completions(version: str, completions: Sequence[Completion]) -> dict[str, Any]:
    """The answer to a `SampleRequest`."""
    return {"protocol": PROTOCOL, "version": version, "completions": [asdict(c) for c in completions]}


def read_completions(body: bytes, request: SampleRequest) -> list[Completion]:
    """Completions of an answer that keeps what the request asked for: its version, one for each prompt, allowed ids only, a density
    for each, an end where one is due.

    Raises:
        BadMessage: it does not.
    """
    m = parse(body)
    if m.get("version") != request.version:
        raise BadMessage(f'"version" is {m.get("version")!r}, {request.version!r} was asked for')
    given = _typed(m.get("completions"), list, "completions")
    if len(given) != len(request.prompts):
        raise BadMessage(f"{len(given)} completions for {len(request.prompts)} prompts")
    sampling, out = request.sampling, []
    banned, stops = set(sampling.forbidden_ids), set(sampling.stop_ids)
    for entry in given:
        c = _fields(_typed(entry, dict, "completions"), Completion)
        ids = list(_ids(c["ids"], "ids"))
        logp, kept = ([_number(x, name) for x in _typed(c[name], list, name)] for name in ("behaviour_logp", "kept_logmass"))
        if not 1 <= len(ids) <= sampling.max_new_tokens or not len(ids) == len(logp) == len(kept):
            raise BadMessage(
                f"a completion of {len(ids)} ids, {len(logp)} log-probabilities and {len(kept)} kept masses; at most "
                f"{sampling.max_new_tokens} tokens were asked for"
            )
        if wrong := [i for i in ids if i >= sampling.vocab_size or i in banned]:
            raise BadMessage(f"a completion with the token {wrong[0]}, which is forbidden or none of {sampling.vocab_size}")
        if any(not -math.inf < x <= 1e-6 for x in (*logp, *kept)):
            raise BadMessage("a completion with a log-probability or kept log-mass that is not in (-inf, 0]")
        stopped = _typed(c["stopped"], bool, "stopped")
        if (
            stopped != (ids[-1] in stops)
            or stops.intersection(ids[:-1])
            or (not stopped and len(ids) < sampling.max_new_tokens)
        ):
            raise BadMessage(f"a completion of {len(ids)} tokens that says stopped={stopped}, against its ids")
        out.append(Completion(ids, logp, kept, stopped))
    return out


def write_scores(version: str | None, scores: Sequence[Scores]) -> dict[str, Any]:
    """The answer to a `ScoreRequest`."""
    told = [{name: values.tolist() for name, values in vars(s).items()} for s in scores]
    return {"protocol": PROTOCOL, "version": version, "scores": told}


def read_scores(body: bytes, request: ScoreRequest) -> list[Scores]:
    """Scores of an answer that keeps what the request asked for: its version, a log-probability for each scored token, as many
    different tokens of the vocabulary as were asked for with no more than all of the mass, the likeliest first.

    Raises:
        BadMessage: it does not.
    """
    m = parse(body)
    if m.get("version", "") != request.version:
        raise BadMessage(f'"version" is {m.get("version")!r}, {request.version!r} was asked for')
    given = _typed(m.get("scores"), list, "scores")
    if len(given) != len(request.rows):
        raise BadMessage(f"scores of {len(given)} rows for {len(request.rows)}")
    k, out = request.scoring.top_k, []
    for entry, n in zip(given, request.counts(), strict=True):
        s = _fields(_typed(entry, dict, "scores"), Scores)
        logp = _tensor(s["logp"], "logp", torch.float64, n)
        ids, top = _tensor(s["top_ids"], "top_ids", torch.int64, n, k), _tensor(s["top_logp"], "top_logp", torch.float64, n, k)
        if not (logp.isfinite().all() and top.isfinite().all() and logp.le(ROUNDING).all() and top.le(ROUNDING).all()):
            raise BadMessage("a row with a log-probability that is not in (-inf, 0]")
        ordered = ids.sort(1).values
        if k and not (ordered.ge(0).all() and ordered.lt(request.scoring.vocab_size).all() and ordered.diff().gt(0).all()):
            raise BadMessage(f'"top_ids" with a token twice, or one that is none of {request.scoring.vocab_size}')
        if k and not (top.diff().le(0).all() and top.exp().sum(1).le(1 + 1e-3).all()):
            raise BadMessage('"top_logp" that rises, or with more than all of the mass')
        out.append(Scores(logp.float(), ids, top.float()))
    return out


def _tensor(value: Any, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Numbers as a tensor of exactly this shape; whole numbers stay whole."""
    if value == [] and 0 in shape:
        return torch.zeros(shape, dtype=dtype)
    try:
        found = torch.tensor(_typed(value, list, name), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadMessage(f'"{name}" is no table of numbers ({str(error)[:100]})') from None
    if found.shape != shape:
        raise BadMessage(f'"{name}" of shape {list(found.shape)} where {list(shape)} is wanted')
    if dtype == torch.int64 and not (found == found.trunc()).all():
        raise BadMessage(f'"{name}" holds numbers that are not whole')
    return found.to(dtype)


def _fields(message: dict[str, Any], cls: type) -> dict[str, Any]:
    wanted = {f.name for f in fields(cls)}
    for word, names in (("lacks", wanted - set(message)), ("has unknown", set(message) - wanted)):
        if names:
            raise BadMessage(f"a {cls.__name__} {word} {', '.join(sorted(names))[:100]}")
    return message


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise BadMessage(f'"{name}" is {str(value)[:100]!r}: a {kind.__name__} is wanted')
    return value


def _whole(value: Any, name: str) -> int:
    if type(value) is not int:  # a bool is none
        raise BadMessage(f'"{name}" is {str(value)[:100]!r}: a whole number is wanted')
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float):
        raise BadMessage(f'"{name}" is {str(value)[:100]!r}: a number is wanted')
    return float(value)


def _names(value: Any, name: str) -> dict[str, str]:
    return {key: _typed(other, str, name) for key, other in _typed(value, dict, name).items()}


def _ids(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise BadMessage(f'"{name}" is {str(value)[:100]!r}: a list of token ids is wanted')
    return tuple(value)


def _below(ids: Sequence[int], size: int) -> bool:
    return all(0 <= i < size for i in ids)
