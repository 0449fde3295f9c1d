"""The client's side: requests to several servers of one policy, with deadlines, back-off and counters.

A server is a *replica*. One that fails is left alone for a while and what was asked of it is asked of another one, at once; one that
has other weights than are wanted is told where to read them, and asked again. Every random number is named by the request, so an
answer does not depend on who gives it, or how often it was asked for.
"""

import logging
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Generic, TypeVar

import msgspec
import torch

from sdar.arguments import checked
from sdar.errors import ConfigError, EngineFault, PolicyError, check_least, check_positive
from sdar.http_client import Abort, check_url
from sdar.parts import Completion
from sdar.scoring import micro_batches
from sdar.serving.background import in_background
from sdar.serving.protocol import (
    LARGEST_SCORES,
    BadMessage,
    ForgetRequest,
    SampleRequest,
    ScoreRequest,
    Scores,
    Weights,
    dump,
    parse,
    read_completions,
    read_scores,
)
from sdar.serving.replica import CONNECT_S, Refused, Replica, RequestFailed, StaleReplica

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger("sdar.serving")
PAUSE_LIMIT = 30.0
AHEAD = 2
"""Requests for scores that a client has at a server: one is worked on while the other one travels."""


@checked
@dataclass
class RetryPolicy:
    """How long, and how often, a request is tried again.

    Args:
        timeout: Seconds for one request to sample or score, to the last byte.
        load_timeout: Seconds for a server to take other weights.
        retries: Further attempts at a request that a server answered wrongly or too late.
        outage: Seconds without any server at work, for as long as connections fail.
        pause: Seconds that a replica is left alone after it failed; doubled each time, drawn between half of that and all of it.
    """

    timeout: float = 600.0
    load_timeout: float = 600.0
    retries: int = 4
    outage: float = 900.0
    pause: float = 0.5

    def check(self, part: str) -> None:
        """Raise ConfigError where the settings of a `part` could not work."""
        check_positive(part, "seconds", timeout=self.timeout, load_timeout=self.load_timeout)
        check_least(part, 0, retries=self.retries)
        check_least(part, 0, "seconds", outage=self.outage, pause=self.pause)


@dataclass
class Seats:
    """The requests of a push that are on their way; a seat is the name of one."""

    expected: set[str] = field(default_factory=set)
    """Not answered yet."""
    lost: set[str] = field(default_factory=set)
    """Answered with a failure, or not at all."""


class Fleet:
    """The servers of one policy.

    Args:
        urls: E.g. ``["http://127.0.0.1:8000"]``.
        retry_policy: How long, and how often, requests are tried again.
        part: Whose servers they are, as settings name it: ``sampler``, ``teacher``.
        token_env: Environment variable that holds the servers' token.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(self, urls: Sequence[str], retry_policy: RetryPolicy, part: str = "sampler", token_env: str | None = None):
        check_urls(urls, part)
        retry_policy.check(part)
        urls = [url.rstrip("/") for url in urls]
        self.retry_policy, self.part, self.token_env = retry_policy, part, token_env
        self.replicas = [Replica(url, token_env, part) for url in urls]
        self.seats = Seats()
        self.weights: Weights | None = None
        """What a stale replica is told."""
        self.loaded: str | None = None
        """What the trainer calls them."""
        self.counts: Counter[str] = Counter()
        """``requests`` (attempts), ``retries``, ``failed/KIND`` for every attempt that failed, ``stale``, ``loads``."""
        self._lock = Lock()
        self._urls = list(urls)

    def begin_at(self, number: int) -> None:
        """Clients that begin at different replicas spread the little that each of them asks."""
        self.replicas.sort(key=lambda r: self._urls.index(r.url))
        number %= len(self.replicas)
        self.replicas = self.replicas[number:] + self.replicas[:number]

    def health(self, outage: float) -> list[dict[str, Any]]:
        """What each server says about itself, in the order of the replicas; those that do not answer are waited for.

        Raises:
            EngineFault: one was silent for `outage` seconds, or speaks another protocol.
        """
        due = time.monotonic() + outage
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            return list(pool.map(lambda replica: self._health(replica, due, outage), self.replicas))

    def _health(self, replica: Replica, due: float, outage: float) -> dict[str, Any]:
        while True:
            try:
                health = parse(replica.request("GET", "/health", None, CONNECT_S))
                if not all(type(health.get(name)) is int for name in ("vocab_size", "context")):
                    raise BadMessage('it does not say its "vocab_size" and "context"')
                return health
            except RequestFailed as error:
                if time.monotonic() > due:
                    raise EngineFault(
                        f"no policy server answers at {replica.url} ({error}; waited {outage:g} s): start it with `sdar serve-policy`, or "
                        f"correct {self.part}.urls."
                    ) from None
                time.sleep(min(1.0, self.retry_policy.pause))
            except (BadMessage, Refused, StaleReplica) as error:
                raise EngineFault(
                    f"what answers at {replica.url} is no policy server of this version: {error}. Correct {self.part}.urls, or "
                    "install the same version of sdar on both sides."
                ) from None

    def push(self, weights: Weights) -> None:
        """Tell every replica to take `weights`. Those that cannot be reached get them when they are asked to sample.

        Raises:
            EngineFault: none took them within ``outage`` seconds.
            PolicyError: they are those of another model.
        """
        self.weights = weights
        asleep_since, asked, taken = time.monotonic(), self.replicas, False
        while True:
            failures = self._hand_out(asked)
            taken = taken or len(failures) < len(asked)
            interrupted = [replica for replica, error in failures.items() if error.kind == "interrupted"]
            at_fault = [replica for replica in failures if replica not in interrupted] or interrupted
            for replica in at_fault:
                self._note_failure(replica, failures[replica])
            if len(at_fault) < len(failures):
                asked = interrupted  # what others had broken off
                continue
            if taken:
                return
            self.check_outage(asleep_since, f"take the weights of {weights.version}", failures[at_fault[0]])
            time.sleep(max(0.0, min(r.unavailable_until for r in self.replicas) - time.monotonic()))
            asked = self.replicas

    def _hand_out(self, replicas: Sequence[Replica]) -> dict[Replica, RequestFailed]:
        """To all of them at once; what went wrong."""
        seats = [secrets.token_hex(8) for _ in replicas]
        self.seats.lost.clear()
        self.seats.expected.update(seats)
        with ThreadPoolExecutor(len(replicas)) as pool:
            failures = list(pool.map(self._try_load, replicas, seats))
        return {replica: error for replica, error in zip(replicas, failures, strict=True) if error is not None}

    def _try_load(self, replica: Replica, seat: str) -> RequestFailed | None:
        try:
            self._load(replica, seat)
        except RequestFailed as error:
            return error
        finally:
            self.seats.expected.discard(seat)
        self.note_success(replica)
        return None

    def _load(self, replica: Replica, seat: str, abort: Abort | None = None) -> None:
        try:
            self._tell(replica, seat, abort)
        except Exception:
            self.seats.lost.add(seat)
            raise

    def _tell(self, replica: Replica, seat: str, abort: Abort | None) -> None:
        assert self.weights is not None
        self._count("requests")
        body = dump(self.weights.seated(seat))
        try:
            answer = parse(replica.request("POST", self.weights.path, body, self.retry_policy.load_timeout, abort))
        except BadMessage as error:
            raise RequestFailed("malformed", f"{replica.url}: {error}") from None
        except Refused as error:
            raise EngineFault(f"{error}. The weights of {self.weights.version} were not taken.") from None
        if answer.get("version") != self.weights.version:
            raise RequestFailed("malformed", f"{replica.url} took {answer.get('version')!r} for {self.weights.version!r}")
        self._count("loads")

    def forget(self, client: str) -> None:
        """Nothing kept for `client` is needed any more. A replica that does not answer will find out by itself."""
        body = dump(ForgetRequest(client))
        for replica in self.replicas:
            if replica.unavailable_until <= time.monotonic():
                try:
                    replica.request("POST", "/forget", body, CONNECT_S)
                except RequestFailed as error:
                    self._note_failure(replica, error)
                except (Refused, StaleReplica, PolicyError) as error:
                    log.warning("%s did not forget: %s", replica.url, error)

    def sample(self, request: SampleRequest, names: Sequence[Hashable], assigned: dict[Hashable, str]) -> list[Completion]:
        """Completions in the order of the prompts.

        Args:
            names: Of the episode of each prompt.
            assigned: Url of the replica that has read each episode so far; kept up to date.

        Raises:
            EngineFault: no attempt that the retry policy allows succeeded.
        """
        out: list[Completion | None] = [None] * len(request.prompts)

        def assign(shares: list[Share], ready: list[Replica], busy: Counter[str]) -> list[tuple[Replica, Share]]:
            return [
                (replica, replace(share, indices=indices))
                for share in shares
                for replica, indices in _divide(share.indices, names, assigned, ready)
            ]

        def ask(replica: Replica, indices: Sequence[int], abort: Abort) -> list[Completion]:
            return self.attempt(replica, _part(request, indices), abort)

        everything = [Share(tuple(range(len(request.prompts))))]
        for replica, share, completions in self._work_off(everything, assign, ask, "sample", "responses"):
            for index, completion in zip(share.indices, completions, strict=True):
                out[index] = completion
                assigned[names[index]] = replica.url
        return out  # type: ignore[return-value]  # all are there

    def score(self, request: ScoreRequest, tokens: int) -> list[Scores]:
        """Scores in the order of the rows, asked for in pieces: whoever is done with one gets the next.

        Args:
            tokens: Most tokens (padding included) of a piece.

        Raises:
            EngineFault: no attempt that the retry policy allows succeeded.
            PolicyError: a server has other weights than it was started with.
        """
        out: list[Scores | None] = [None] * len(request.rows)

        def assign(shares: list[Share], ready: list[Replica], busy: Counter[str]) -> list[tuple[Replica, Share]]:
            begun = []
            for share in shares:
                replica = min(ready, key=lambda r: busy[r.url])
                if busy[replica.url] == AHEAD:
                    break
                busy[replica.url] += 1
                begun.append((replica, share))
            return begun

        def ask(replica: Replica, indices: Sequence[int], abort: Abort) -> list[Scores]:
            rows, responses = tuple(request.rows[i] for i in indices), tuple(request.responses[i] for i in indices)
            return self._attempt_scores(replica, msgspec.structs.replace(request, rows=rows, responses=responses), abort)

        tokens = min(tokens, max(1, LARGEST_SCORES // (1 + 2 * request.scoring.top_k)))
        pieces = micro_batches(torch.tensor([len(row) for row in request.rows]), tokens)
        shares = [Share(tuple(piece.tolist())) for piece in pieces]
        for _, share, scores in self._work_off(shares, assign, ask, "score", "rows"):
            for index, answer in zip(share.indices, scores, strict=True):
                out[index] = answer
        return out  # type: ignore[return-value]  # all are there

    def _work_off(
        self, shares: Iterable["Share"], assign: "Assign", ask: "Ask[T]", verb: str, things: str
    ) -> Iterator[tuple[Replica, "Share", list[T]]]:
        """Each share with its answer, and who gave it."""
        with closing(Asking(self, assign, ask, verb, things)) as asking:
            asking.open += [share for share in shares if share.indices]
            while asking.busy:
                yield from asking.answers()

    def again(self, replica: Replica, share: "Share", error: RequestFailed, begun: float, things: str) -> "Share":
        """A share that a replica failed to answer, to be asked of somebody once more.

        Raises:
            EngineFault: it was asked for often enough.
        """
        self._note_failure(replica, error, begun)
        self._count("retries")
        attempts = share.attempts + (error.kind != "connection")
        if attempts > self.retry_policy.retries:
            raise EngineFault(
                f"{len(share.indices)} {things} were asked for {attempts} times in vain; the last time: {error}. Look at the server's "
                f"output, or raise the {self.part}'s timeout or retries."
            )
        return Share(share.indices, attempts, error)

    def attempt(self, replica: Replica, request: SampleRequest, abort: Abort) -> list[Completion]:
        """One attempt at completions; a replica with other weights is told where to read them first, once for all that find it so.

        Raises:
            RequestFailed: another attempt may succeed.
            EngineFault: none will.
        """
        for fresh in (False, True):
            loads = replica.loads
            try:
                return self._asked(replica, "/sample", request, read_completions, abort)
            except StaleReplica as error:
                if fresh:
                    raise RequestFailed("stale", str(error)) from None
                with replica.loading:
                    if replica.loads == loads:
                        self._count("stale")
                        log.warning("%s: it is told to read them", error)
                        try:
                            self._load(replica, secrets.token_hex(8), abort)
                        finally:
                            replica.loads += 1
        raise AssertionError("unreachable")

    def _attempt_scores(self, replica: Replica, request: ScoreRequest, abort: Abort) -> list[Scores]:
        try:
            return self._asked(replica, "/score", request, read_scores, abort)
        except StaleReplica as error:
            raise PolicyError(
                f"{error}: somebody gave this server other weights than it was started with, and its scores would be those of another "
                f"model than the {self.part} that was chosen. Start it again, and give samplers servers of their own."
            ) from None

    def _asked(self, replica: Replica, path: str, request: R, read: Callable[[bytes, R], list[T]], abort: Abort) -> list[T]:
        self._count("requests")
        try:
            return read(replica.request("POST", path, dump(request), self.retry_policy.timeout, abort), request)
        except BadMessage as error:
            raise RequestFailed("malformed", f"{replica.url}: {error}") from None
        except Refused as error:
            raise EngineFault(f"{error}. Asking again would not help: compare the settings of both sides.") from None

    def tokens(self, replica: Replica) -> dict[str, int]:
        """The vocabulary of the tokenizer that a server's model has.

        Raises:
            PolicyError: it has none.
            EngineFault: it does not answer.
        """
        try:
            tokens = parse(replica.request("GET", "/tokens", None, self.retry_policy.timeout)).get("tokens")
            if not isinstance(tokens, dict) or not all(type(number) is int for number in tokens.values()):
                raise BadMessage('it does not say its "tokens"')
            return tokens
        except (RequestFailed, BadMessage, Refused, StaleReplica) as error:
            raise EngineFault(f"the vocabulary of the policy server {replica.url} cannot be read: {error}.") from None

    def check_outage(self, since: float, what: str, last: Exception | None) -> None:
        """Raise EngineFault where nobody could do something for too long."""
        silent = time.monotonic() - since
        if silent > self.retry_policy.outage:
            raise EngineFault(
                f"none of {len(self.replicas)} policy servers could {what} for {silent:.0f} s; the last failure: {last}. Start them again: "
                f"the run goes on from its last checkpoint, or by itself next time with a longer {self.part}.outage."
            )

    def _note_failure(self, replica: Replica, error: RequestFailed, begun: float = math.inf) -> None:
        """Count it; the replica is left alone, and for longer each time, but for what began before it was known to fail."""
        self._count(f"failed/{error.kind}")
        with self._lock:
            if begun <= replica.failed_at:
                return
            replica.failures += 1
            pause = min(PAUSE_LIMIT, self.retry_policy.pause * 2 ** (replica.failures - 1)) * random.uniform(0.5, 1.0)
            replica.failed_at = time.monotonic()
            replica.unavailable_until = replica.failed_at + pause
        log.warning("policy server failed (%s), left alone for %.1f s: %s", error.kind, pause, error)

    def note_success(self, replica: Replica) -> None:
        """It is at work."""
        with self._lock:
            if replica.failures:
                log.warning("policy server %s is back after %d failures", replica.url, replica.failures)
            replica.failures, replica.unavailable_until = 0, 0.0

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def check_urls(urls: Sequence[str], part: str) -> None:
    """Raise ConfigError unless `urls` name servers, each once."""
    if not urls:
        raise ConfigError(f"{part}.urls is empty: name at least one server, as `sdar serve-policy` prints its address.")
    if doubled := [url for url, n in Counter(u.rstrip("/") for u in urls).items() if n > 1]:
        raise ConfigError(f"{part}.urls names {doubled[0]} twice: each server counts once. Remove one.")
    for url in urls:
        check_url(url, f"{part}.urls", "http://127.0.0.1:8000")


@dataclass
class Share:
    """Prompts or rows that travel together, and how often they failed to get an answer."""

    indices: tuple[int, ...]
    attempts: int = 0
    failure: RequestFailed | None = None


Assign = Callable[[list[Share], list[Replica], Counter[str]], list[tuple[Replica, Share]]]
"""Who begins with which of the open shares, or of their parts, now: from the shares, the replicas that may be asked and how many requests
each of them has by url. Shares of which nothing is begun wait."""
Ask = Callable[[Replica, Sequence[int], Abort], list[T]]
"""One attempt at a share's indices."""


class Asking(Generic[T]):
    """Shares that replicas are asked for, each until it is answered. `open` takes new ones at any time.

    Args:
        verb, things: What the replicas do, for errors: ``sample``, ``responses``.
    """

    def __init__(self, fleet: Fleet, assign: Assign, ask: Ask[T], verb: str, things: str):
        self.fleet, self.assign, self.ask, self.verb, self.things = fleet, assign, ask, verb, things
        self.open: list[Share] = []
        """That nobody was asked for yet, or that somebody failed to answer."""
        self._running: dict[Future[list[T]], tuple[Replica, Share, float]] = {}  # with when it began
        self._ended: SimpleQueue[Future[list[T]] | None] = SimpleQueue()
        self._abort = Abort()
        self._asleep_since: float | None = None

    @property
    def busy(self) -> bool:
        """Whether there are shares without an answer."""
        return bool(self.open or self._running)

    def wake(self) -> None:
        """`answers` returns soon, be there one or not; from any thread."""
        self._ended.put(None)

    def close(self) -> None:
        """Nobody waits for an answer any more: connections and threads end."""
        self._abort()
        wait(self._running, CONNECT_S)

    def answers(self) -> list[tuple[Replica, Share, list[T]]]:
        """Waits for something to end: shares with their answers, and who gave them.

        Raises:
            EngineFault: a share was asked for too often, or nobody is there for too long.
        """
        self.begin()
        if not self._running:
            self._asleep_since = self._asleep_since or time.monotonic()
            self.fleet.check_outage(self._asleep_since, f"{self.verb} {self._missing()} {self.things}", self.open[0].failure)
        out = []
        for future in self._next():
            replica, share, begun = self._running.pop(future)
            try:
                answer = future.result()
            except RequestFailed as error:
                self.open.append(self.fleet.again(replica, share, error, begun, self.things))
                continue
            self.fleet.note_success(replica)
            self._asleep_since = None
            out.append((replica, share, answer))
        return out

    def begin(self) -> None:
        """Ask for what is open, as far as somebody may be asked now."""
        now = time.monotonic()
        ready = [r for r in self.fleet.replicas if r.unavailable_until <= now]
        if not self.open or not ready:
            return
        begun = self.assign(self.open, ready, Counter(r.url for r, *_ in self._running.values()))
        taken = {i for _, share in begun for i in share.indices}
        self.open = [share for share in self.open if not taken.intersection(share.indices)]
        for replica, share in begun:
            future = in_background(self.ask, replica, share.indices, self._abort)
            self._running[future] = replica, share, now
            future.add_done_callback(self._ended.put)

    def _next(self) -> list[Future[list[T]]]:
        """Requests that have ended; waits for one of them, for `wake`, or for a replica that may be asked again."""
        ended: list[Future[list[T]] | None] = []
        patience = None
        if self.open:
            soonest = max(0.01, min(r.unavailable_until for r in self.fleet.replicas) - time.monotonic())
            patience = 1.0 if self._running else soonest
        with suppress(Empty):
            ended.append(self._ended.get(timeout=patience))
            while True:
                ended.append(self._ended.get_nowait())
        return [future for future in ended if future is not None]

    def _missing(self) -> int:
        return sum(len(share.indices) for share in self.open)


def _part(request: SampleRequest, indices: Sequence[int]) -> SampleRequest:
    prompts, draws = tuple(request.prompts[i] for i in indices), tuple(request.draws[i] for i in indices)
    return msgspec.structs.replace(request, prompts=prompts, draws=draws)


def _divide(
    indices: Sequence[int], names: Sequence[Hashable], assigned: dict[Hashable, str], ready: Sequence[Replica]
) -> list[tuple[Replica, tuple[int, ...]]]:
    """Each prompt to the replica that has read its episode, the others to whoever has least to do."""
    shares: dict[str, list[int]] = {r.url: [] for r in ready}
    unassigned: list[int] = []
    for i in indices:
        shares.get(assigned.get(names[i], ""), unassigned).append(i)
    for i in unassigned:
        min(shares.values(), key=len).append(i)
    return [(r, tuple(sorted(shares[r.url]))) for r in ready if shares[r.url]]
