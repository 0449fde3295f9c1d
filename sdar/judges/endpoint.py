"""A language model behind an OpenAI-compatible endpoint as a judge. Training never waits for it long and never dies of it."""

import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import Any

from sdar.errors import ConfigError
from sdar.judges import prompts
from sdar.parts import Judge
from sdar.registry import register
from sdar.types import Episode

TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LARGEST_ANSWER = 4 * 2**20
"""Bytes."""


class NoVerdictError(Exception):
    """One request failed; `again` says whether another may succeed, `wait` for how many seconds the endpoint wants to rest."""

    def __init__(self, reason: str, again: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.again, self.wait = again, wait


@register("endpoint")
class EndpointJudge(Judge):
    """A model behind an OpenAI-compatible chat-completions endpoint: one request an episode, for a list of verdicts.

    An episode whose request failed, came late or was not answered with such a list gets no labels, after `retries` more
    attempts; it is counted in `failures`, and a warning tells of all such episodes of a call.

    Args:
        url: Of the API, e.g. ``http://localhost:8000/v1``; ``/chat/completions`` is added to it.
        model: Its name there.
        api_key_env: Environment variable that holds the key, read at each request and written nowhere; where it is empty, no key
            is sent.
        concurrency: Requests at the same time.
        timeout: Seconds for one request, from connecting to the last byte.
        retries: Further attempts for one episode, after half a second, one second, two, ...
        patience: Seconds for all episodes of a call; what has no answer then has failed.
        options: Put into the body of every request, e.g. ``{max_tokens: 2048, seed: 1}``; the temperature is 0 unless set here.
        good, bad: The two verdicts.
        template: What it is told, with ``{task}``, ``{solution}``, ``{turns}``, ``{question}``, ``{good}`` and ``{bad}`` in it; by
            default our own words.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 2,
        patience: float = 300.0,
        options: dict[str, Any] | None = None,
        good: str = "Good",
        bad: str = "Bad",
        template: str | None = None,
    ):
        self.template = template or prompts.TEMPLATE
        prompts.check_wording(self.template, good, bad)
        for name, value, fits, least in (
            ("concurrency", concurrency, concurrency >= 1, "at least 1"),
            ("timeout", timeout, timeout > 0, "more than 0 seconds"),
            ("retries", retries, retries >= 0, "at least 0"),
            ("patience", patience, patience > 0, "more than 0 seconds"),
        ):
            if not fits:
                raise ConfigError(f"judge.{name} is {value}: it must be {least}.")
        self.url = _address(url)
        self.model = model
        self.api_key_env = api_key_env
        self.concurrency = concurrency
        self.timeout, self.retries, self.patience = timeout, retries, patience
        self.options = {"temperature": 0.0} | dict(options or {})
        self.good, self.bad = good, bad
        self.failures = 0
        """Episodes without a verdict so far."""
        self._labels = {good.strip().lower(): 1.0, bad.strip().lower(): -1.0}
        self._checked = False

    def check(self) -> None:
        """Ask one small question.

        Raises:
            ConfigError: it was not answered: a wrong address, model or key, or nobody is there.
        """
        try:
            self._insist('Answer with the JSON list ["ok"].', None, time.monotonic() + self.patience)
        except NoVerdictError as error:
            hint = ""
            if self.api_key_env and not os.environ.get(self.api_key_env):
                hint = f" No key was sent: the environment variable {self.api_key_env} is empty."
            raise ConfigError(
                f"the judge {self.model!r} at {self.url} cannot be asked: {error}.{hint} Training would go on without verdicts. Start "
                "the endpoint, or correct judge.url, judge.model or the key."
            ) from None
        self._checked = True

    def __call__(self, episodes: Sequence[Episode], solutions: Sequence[str]) -> list[list[float | None]]:
        if not self._checked:
            self.check()
        texts = [self._prompt(e, s) if e.turns else "" for e, s in zip(episodes, solutions, strict=True)]
        deadline = time.monotonic() + self.patience
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            asked = [pool.submit(self._judge, t, len(e.turns), deadline) for t, e in zip(texts, episodes, strict=True)]
            answers = [future.result() for future in asked]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted training does not wait for a judge
        reasons = Counter(answer for answer in answers if isinstance(answer, str))
        if failed := reasons.total():
            self.failures += failed
            warnings.warn(
                f"the judge {self.model!r} gave no verdict on {failed} of {len(episodes)} episodes ({self.failures} since the "
                f"start), so their turns have no label; most often because: {reasons.most_common(1)[0][0]}.",
                RuntimeWarning,
                stacklevel=2,
            )
        return [
            [None] * len(e.turns) if isinstance(answer, str) else answer for e, answer in zip(episodes, answers, strict=True)
        ]

    def _prompt(self, episode: Episode, solution: str) -> str:
        words = {"good": self.good, "bad": self.bad, "count": len(episode.turns)}
        return prompts.told(self.template, episode, solution, prompts.EPISODE_QUESTION, **words)

    def _judge(self, text: str, turns: int, deadline: float) -> list[float | None] | str:
        """The labels of an episode, or why there are none."""
        try:
            return [*self._insist(text, turns, deadline)] if turns else []
        except NoVerdictError as error:
            return str(error)

    def _insist(self, text: str, turns: int | None, deadline: float) -> list[float]:
        """Ask until there is an answer or no hope. `turns` None: any answer will do."""
        for attempt in range(self.retries + 1):
            seconds = min(self.timeout, deadline - time.monotonic())
            if seconds <= 0:
                raise NoVerdictError(f"there was no time left of the {self.patience:g} s (judge.patience)")
            try:
                answer = self._ask(text, seconds)
                return [] if turns is None else self._read(answer, turns)
            except NoVerdictError as error:
                pause = max(error.wait, 0.5 * 2**attempt)
                if not error.again or attempt == self.retries or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: str, turns: int) -> list[float]:
        """The last JSON list of as many verdicts as there are turns; models like to talk before."""
        for listed in reversed(re.findall(r"\[[^\[\]]*\]", answer)):
            try:
                labels = [self._labels.get(str(verdict).strip().lower()) for verdict in json.loads(listed)]
            except ValueError:  # no JSON
                continue
            known = [label for label in labels if label is not None]
            if len(known) == len(labels) == turns:
                return known
        raise NoVerdictError(f"no list of {turns} verdicts in the answer {_short(answer)!r}")

    def _ask(self, text: str, seconds: float) -> str:
        """What the model answers. After `seconds` nobody waits any more, whatever the endpoint or the network does."""
        answer: Future[str] = Future()

        def post() -> None:
            try:
                answer.set_result(self._post(text, seconds))
            except BaseException as error:
                answer.set_exception(error)

        Thread(target=post, name="judge request", daemon=True).start()
        try:
            return answer.result(seconds)
        except NoVerdictError:
            raise
        except Exception as error:  # of the network, of http, of the answer: none may end a training
            reason = getattr(error, "reason", error)  # urllib wraps
            if isinstance(reason, TimeoutError):
                reason = f"no answer within {seconds:.3g} s (judge.timeout)"
            raise NoVerdictError(str(reason) or type(error).__name__) from None

    def _post(self, text: str, seconds: float) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if key := os.environ.get(self.api_key_env or "", "").strip():
            if not (key.isascii() and key.isprintable()):
                raise NoVerdictError(f"the key in {self.api_key_env} holds characters that no key has", again=False)
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds) as response:
                told = response.read(LARGEST_ANSWER).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                said = _short(error.read(1000).decode("utf-8", "replace"))
            reason = f"it answered {error.code} {error.reason}: {said}"
            wait = error.headers.get("Retry-After", "")
            seconds_to_wait = float(wait) if wait.isdecimal() else 0.0
            reason = reason.replace(key, "...") if key else reason
            raise NoVerdictError(reason, error.code in TRY_AGAIN, seconds_to_wait) from None
        try:
            return str(json.loads(told)["choices"][0]["message"]["content"] or "")
        except (ValueError, LookupError, TypeError, RecursionError):
            raise NoVerdictError(f"it answered with something else than a chat completion: {_short(told)}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected question would be asked without its text, and the key would travel with it."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _address(url: str) -> str:
    """Where to post questions to."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"judge.url {url!r} is no address of an endpoint: it begins with http:// or https:// and a host, e.g. "
            "http://localhost:8000/v1."
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"judge.url for {parts.hostname} holds a user or password: settings are written to the run's folder. Put a key into the "
            "environment variable that judge.api_key_env names."
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _short(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
