"""The messages between a sampler and an engine's server: JSON over HTTP, tokens as ids, floats as 64-bit decimals.

``docs/serving.md`` describes them for whoever writes another client or server. Everything is read strictly: a wrong type, a
missing or an unknown field raises `BadMessage` with the field's name.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sdar.parts import Completion, Draw

if TYPE_CHECKING:
    from sdar.samplers.bound import TruncatingSampler

PROTOCOL = 1
"""Changes when an older reader would misunderstand a message."""


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
class WeightsFile:
    """A safetensors file that the server can read."""

    path: str
    sha256: str


@dataclass(frozen=True)
class LoadRequest:
    """Weights to be sampled from now on."""

    version: str
    files: tuple[WeightsFile, ...]
    tied: Mapping[str, str]
    """Name of a tensor -> name in the files of the one that it shares its memory with."""


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


def read_load(body: bytes) -> LoadRequest:
    """Raises BadMessage."""
    m = _fields(parse(body), LoadRequest)
    files = []
    for given in _typed(m["files"], list, "files"):
        f = _fields(_typed(given, dict, "files"), WeightsFile)
        files.append(WeightsFile(_typed(f["path"], str, "files.path"), _typed(f["sha256"], str, "files.sha256")))
    tied = _typed(m["tied"], dict, "tied")
    return LoadRequest(
        _typed(m["version"], str, "version"), tuple(files), {n: _typed(other, str, "tied") for n, other in tied.items()}
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


def _ids(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(i) is not int or i < 0 for i in value):
        raise BadMessage(f'"{name}" is {str(value)[:100]!r}: a list of token ids is wanted')
    return tuple(value)


def _below(ids: Sequence[int], size: int) -> bool:
    return all(0 <= i < size for i in ids)
