"""Search by HTTP: the client's side of Search-R1's protocol, and of verl-agent's form of it."""

import json
import random
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, Literal, get_args

from sdar import http_client
from sdar.errors import ConfigError, EnvironmentFault, check_least, check_positive
from sdar.http_client import check_url, read_token, shown
from sdar.reading import parse_json
from sdar.registry import register
from sdar.search.base import Passage, SearchBackend
from sdar.search.shards import contents_of

RequestForm = Literal["search_r1", "verl_agent"]
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
PAUSE_LIMIT = 30.0


class RequestFailed(Exception):
    """One request got no usable answer; `kind` is what it is counted as."""

    def __init__(self, kind: str, reason: str, again: bool = True):
        super().__init__(reason)
        self.kind, self.again = kind, again


@register("http")
class HTTPBackend(SearchBackend):
    """A search server: Search-R1's, verl-agent's, or `sdar serve-search`.

    A request that fails (nobody there, too late, a server error, an answer that is cut off, has another number of results or
    malformed ones) is sent again; when all attempts have failed the search raises, and the episode ends with a status. Answers
    are remembered, and shared by all copies of the backend in a process.

    Args:
        url: E.g. ``http://127.0.0.1:8000/retrieve``.
        form: ``search_r1``: many queries in one request. ``verl_agent``: one.
        timeout: Seconds for one request, to the last byte. With `retries` it should fit into the deadline of the data module.
        retries: Further attempts.
        pause: Seconds before the first of them; doubled each time, and drawn between half of that and all of it.
        batch: Most queries in one request.
        cache: Most answers that are remembered; 0 for none.
        token_env: Environment variable that holds the token which the server wants (`sdar serve-search --token_env`).
    """

    def __init__(
        self,
        url: str,
        form: RequestForm = "search_r1",
        timeout: float = 5.0,
        retries: int = 3,
        pause: float = 0.5,
        batch: int = 64,
        cache: int = 50_000,
        token_env: str | None = None,
    ):
        check_url(url, "HTTPBackend.url", "http://127.0.0.1:8000/retrieve")
        if form not in get_args(RequestForm):
            raise ConfigError(f"HTTPBackend.form is {form!r}: the two forms are {' and '.join(get_args(RequestForm))}.")
        check_positive("HTTPBackend", "seconds", timeout=timeout)
        check_least("HTTPBackend", 0, retries=retries, cache=cache)
        check_least("HTTPBackend", 0, "seconds", pause=pause)
        check_least("HTTPBackend", 1, batch=batch)
        self.url, self.form = url, form
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.batch, self.cache = batch, cache
        self.token_env = token_env

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return self._client.search(queries, k)

    def check(self) -> None:
        try:
            self.search(["Rome"], 1)
        except EnvironmentFault as error:
            raise ConfigError(f"env.backend: {error}") from None

    @property
    def counts(self) -> dict[str, int]:
        """Of this process: ``queries``, ``cached``, ``requests``, ``retries``, ``failed/KIND`` for every attempt that failed
        (connection, timeout, status, refused, json, shape) and ``gave_up``."""
        return dict(self._client.counts)

    @property
    def _client(self) -> "_Client":
        return _client(self.url, self.form, self.timeout, self.retries, self.pause, self.batch, self.cache, self.token_env)


class _Client:
    """Remembered answers and counters of one process."""

    def __init__(
        self,
        url: str,
        form: RequestForm,
        timeout: float,
        retries: int,
        pause: float,
        batch: int,
        cache: int,
        token_env: str | None = None,
    ):
        self.url, self.form, self.token_env = url, form, token_env
        self.timeout, self.retries, self.pause = timeout, retries, pause
        self.batch, self.largest_cache = batch if form == "search_r1" else 1, cache
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[int, str], list[Passage]] = OrderedDict()

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        found: dict[str, list[Passage]] = {}
        with self._lock:
            self.counts["queries"] += len(queries)
            for query in queries:
                if (k, query) in self._answers:
                    self._answers.move_to_end((k, query))
                    found[query] = self._answers[k, query]
                    self.counts["cached"] += 1
        missing = [query for query in dict.fromkeys(queries) if query not in found]
        for first in range(0, len(missing), self.batch):
            asked = missing[first : first + self.batch]
            answers = self._insist(asked, k)
            found |= zip(asked, answers, strict=True)
            with self._lock:
                self._answers |= {(k, query): found[query] for query in asked}
                while len(self._answers) > self.largest_cache:
                    self._answers.popitem(last=False)
        return [list(found[query]) for query in queries]

    def _insist(self, queries: list[str], k: int) -> list[list[Passage]]:
        for attempt in range(self.retries + 1):
            if attempt:
                self._count("retries")
                time.sleep(min(PAUSE_LIMIT, self.pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
            self._count("requests")
            try:
                return self._ask(queries, k)
            except RequestFailed as error:
                self._count(f"failed/{error.kind}")
                failure = error
                if not error.again:
                    break
        self._count("gave_up")
        raise EnvironmentFault(
            f"the search server {shown(self.url)} gave no usable answer to {len(queries)} queries in {attempt + 1} attempts; the "
            f"last: {failure}. The episode ends: without passages it would be another task. Look at the server, or raise "
            "HTTPBackend.timeout or .retries."
        )

    def _ask(self, queries: list[str], k: int) -> list[list[Passage]]:
        asked: dict[str, Any] = {"queries": queries} if self.form == "search_r1" else {"query": queries[0]}
        body = json.dumps(asked | {"topk": k, "return_scores": True}).encode()  # escapes half a surrogate pair
        token = read_token(self.token_env, "HTTPBackend.token_env")
        try:
            answer = http_client.request("POST", self.url, body, timeout=self.timeout, token=token)
        except http_client.RequestFailed as error:
            kind = {"slow": "timeout", "large": "shape", "elsewhere": "refused"}.get(error.kind, error.kind)
            raise RequestFailed(kind, str(error)) from None
        if answer.status != 200:
            again = answer.status in TRY_AGAIN
            raise RequestFailed("status" if again else "refused", f"status {answer.status}: {answer.said()}", again)
        try:
            told = parse_json(answer.body, f"{len(answer.body)} bytes", ValueError, advice="")
        except ValueError as error:
            raise RequestFailed("json", str(error)) from None
        try:
            return read_results(told, len(queries), k)
        except ValueError as error:
            raise RequestFailed("shape", http_client.hide(str(error), token)) from None

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def read_results(answer: object, queries: int, k: int) -> list[list[Passage]]:
    """The passages in a server's answer, with or without scores; more than `k` are cut.

    Raises:
        ValueError: it has not the form ``{"result": [[{"document": {"contents": ...}, "score": ...}, ...], ...]}``.
    """
    results = answer.get("result") if isinstance(answer, dict) else None
    if not isinstance(results, list):
        raise ValueError('an answer without the list "result"')
    if len(results) != queries:
        raise ValueError(f"{len(results)} results for {queries} queries")
    passages = []
    for result in results:
        if not isinstance(result, list):
            raise ValueError(f"a result that is no list of passages: {str(result)[:100]}")
        passages.append([_read_passage(entry) for entry in result[:k]])
    return passages


def _read_passage(entry: object) -> Passage:
    document = entry.get("document", entry) if isinstance(entry, dict) else None
    contents = contents_of(document)
    if contents is None:
        raise ValueError(f"a passage without contents: {str(entry)[:100]}")
    assert isinstance(entry, dict) and isinstance(document, dict)
    score = entry.get("score", 0.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not isfinite(score):
        raise ValueError(f"a passage with the score {str(score)[:100]}")
    return Passage(str(document.get("id", "")), contents, float(score))


@lru_cache(maxsize=16)
def _client(*settings: Any) -> _Client:
    return _Client(*settings)
