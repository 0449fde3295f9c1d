"""A language model behind an OpenAI-compatible chat-completions endpoint, asked one question at a time, with patience."""

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from yarl import URL

from sdar import http_client
from sdar.http_client import check_url, hide
from sdar.reading import convert, parse_json

R = TypeVar("R")
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LARGEST_ANSWER = 4 * 2**20
"""Bytes."""


class Said(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    message: Said


class Completed(msgspec.Struct):
    """What is read of a chat completion."""

    choices: list[Choice]


class NoAnswerError(Exception):
    """One request failed; `again` says whether another may succeed, `wait` for how many seconds the endpoint wants to rest."""

    def __init__(self, reason: str, again: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.again, self.wait = again, wait


class ChatEndpoint:
    """Asks, and asks again.

    Args:
        part: What a setting's name begins with in errors, e.g. ``judge.``.
        url: Of the API, e.g. ``http://localhost:8000/v1``; ``/chat/completions`` is added to it. It holds no key.
        model: Its name there.
        api_key_env: Environment variable that holds the key, read at each request and written nowhere; where it is empty, no key
            is sent.
        timeout: Seconds for one request, from connecting to the last byte.
        retries: Further attempts for one question, after half a second, one second, two, ...
        options: Put into the body of every request; the temperature is 0 unless set here.
    """

    def __init__(
        self,
        part: str,
        url: str,
        model: str,
        api_key_env: str | None,
        timeout: float,
        retries: int,
        options: dict[str, Any] | None,
    ):
        self.part = part
        self.url = _address(url, f"{part}url")
        self.model = model
        self.api_key_env = api_key_env
        self.timeout, self.retries = timeout, retries
        self.options = {"temperature": 0.0} | dict(options or {})

    def insist(self, text: str, read: Callable[[str], R], deadline: float, out_of_time: str = "") -> R:
        """Ask until there is an answer that `read` takes, or no hope.

        Args:
            read: Makes something of an answer, or raises NoAnswerError.
            deadline: Of ``time.monotonic()``.
            out_of_time: What is said when there is no time left.

        Raises:
            NoAnswerError: of the last attempt.
        """
        for attempt in range(self.retries + 1):
            seconds = min(self.timeout, deadline - time.monotonic())
            if seconds <= 0:
                raise NoAnswerError(out_of_time)
            try:
                return read(self.ask(text, seconds))
            except NoAnswerError as error:
                pause = max(error.wait, 0.5 * 2**attempt)
                if not error.again or attempt == self.retries or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def ask(self, text: str, seconds: float) -> str:
        """What the model answers. After `seconds` nobody waits any more, whatever the endpoint or the network does."""
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}
        key = self._key()
        if not (key.isascii() and key.isprintable()):
            raise NoAnswerError(f"the key in {self.api_key_env} holds characters that no key has", again=False)
        try:
            answer = http_client.request(
                "POST", self.url, json.dumps(body).encode(), timeout=seconds, token=key, largest=LARGEST_ANSWER
            )
        except http_client.RequestFailed as error:
            late = f"no answer within {seconds:.3g} s ({self.part}timeout)"
            raise NoAnswerError(late if error.kind in ("timeout", "slow") else str(error)) from None
        if answer.status != 200:
            wait = answer.headers.get("Retry-After", "")
            seconds_to_wait = float(wait) if wait.isascii() and wait.isdecimal() and len(wait) < 10 else 0.0
            reason = f"it answered {answer.status} {answer.reason}: {answer.said()}"
            raise NoAnswerError(reason, answer.status in TRY_AGAIN, seconds_to_wait)
        try:
            told = convert(parse_json(answer.body, "the answer", ValueError), Completed, "the answer", ValueError)
            return told.choices[0].message.content or ""
        except (ValueError, LookupError):
            raise NoAnswerError(f"it answered with something else than a chat completion: {answer.said()}") from None

    def quoted(self, answer: str) -> str:
        """The beginning of an answer, on one line, without the key."""
        line = " ".join(hide(answer[:1000], self._key()).split())
        return repr(line if len(line) <= 200 else f"{line[:200]}...")

    def no_key(self) -> str:
        """What explains a refusal, where no key was sent."""
        if self.api_key_env and not os.environ.get(self.api_key_env):
            return f" No key was sent: the environment variable {self.api_key_env} is empty."
        return ""

    def _key(self) -> str:
        return os.environ.get(self.api_key_env or "", "").strip()


def _address(url: str, what: str) -> str:
    """Where to post questions to."""
    check_url(url, what, "http://localhost:8000/v1")
    parts = URL(url)
    path = parts.path.rstrip("/")
    return str(
        parts.with_fragment(None).with_path(f"{path.removesuffix('/chat/completions')}/chat/completions", keep_query=True)
    )
