"""A language model behind an OpenAI-compatible endpoint as a judge. Training never waits for it long and never dies of it."""

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sdar.chat_endpoint import ChatEndpoint, NoAnswerError
from sdar.errors import ConfigError, check_least, check_positive
from sdar.http_client import shown
from sdar.judges import prompts
from sdar.parts import Judge
from sdar.reading import parse_json
from sdar.registry import register
from sdar.types import Episode

R = TypeVar("R")


@register("endpoint")
class EndpointJudge(Judge):
    """A model behind an OpenAI-compatible chat-completions endpoint: one request an episode, for a list of verdicts.

    An episode whose request failed, came late or was not answered with such a list gets no labels, after `retries` more
    attempts; it is counted in `failures`, and a warning tells of all such episodes of a call.

    Args:
        url: Of the API, e.g. ``http://localhost:8000/v1``; ``/chat/completions`` is added to it. It holds no key.
        model: Its name there.
        api_key_env: Environment variable that holds the key, read at each request and written nowhere; where it is empty, no key
            is sent.
        concurrency: Requests at the same time.
        timeout: Seconds for one request, from connecting to the last byte.
        retries: Further attempts for one episode, after half a second, one second, two, ...
        patience: Seconds for all episodes of a call; what has no answer then has failed.
        options: Put into the body of every request, e.g. ``{max_tokens: 2048, seed: 1}``; the temperature is 0 unless set here.
        good, bad: The two verdicts.
        sees: What it reads of each turn: ``response``, all that the agent said, thoughts too (the paper's whole trajectory), or
            ``action``, what the protocol made of it.
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
        sees: prompts.Sees = "response",
    ):
        self.template = template or prompts.TEMPLATE
        prompts.check_wording(self.template, good, bad, sees)
        self.sees = sees
        check_least("judge", 1, concurrency=concurrency)
        check_least("judge", 0, retries=retries)
        check_positive("judge", "seconds", timeout=timeout, patience=patience)
        self.endpoint = ChatEndpoint("judge.", url, model, api_key_env, timeout, retries, options)
        self.url, self.model = self.endpoint.url, model
        self.concurrency, self.patience = concurrency, patience
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
            self._insist('Answer with the JSON list ["ok"].', lambda answer: None, time.monotonic() + self.patience)
        except NoAnswerError as error:
            raise ConfigError(
                f"the judge {self.model!r} at {shown(self.url)} cannot be asked: {error}.{self.endpoint.no_key()} Training would go on "
                "without verdicts. Start the endpoint, or correct judge.url, judge.model or the key."
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
        return prompts.told(self.template, episode, solution, prompts.EPISODE_QUESTION, self.sees, **words)

    def _judge(self, text: str, turns: int, deadline: float) -> list[float | None] | str:
        """The labels of an episode, or why there are none."""
        try:
            return [*self._insist(text, lambda answer: self._read(answer, turns), deadline)] if turns else []
        except NoAnswerError as error:
            return str(error)

    def _insist(self, text: str, read: Callable[[str], R], deadline: float) -> R:
        out_of_time = f"there was no time left of the {self.patience:g} s (judge.patience)"
        return self.endpoint.insist(text, read, deadline, out_of_time)

    def _read(self, answer: str, turns: int) -> list[float]:
        """The last JSON list of as many verdicts as there are turns; models like to talk before."""
        for listed in reversed(re.findall(r"\[[^\[\]]*\]", answer)):
            try:
                verdicts = parse_json(listed, "the verdicts", ValueError)
                labels = [self._labels.get(str(verdict).strip().lower()) for verdict in verdicts]
            except ValueError:
                continue
            known = [label for label in labels if label is not None]
            if len(known) == len(labels) == turns:
                return known
        raise NoAnswerError(f"no list of {turns} verdicts in the answer {self.endpoint.quoted(answer)}")
