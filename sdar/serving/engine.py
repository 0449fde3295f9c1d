"""What a sampling engine is: weights in, token ids in, token ids with true densities out. One thread at a time uses it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from sdar.errors import ConfigError, ContextOverflowError, PolicyError, first_line
from sdar.parts import Completion
from sdar.registry import part_kind
from sdar.serving.protocol import BadMessage, SampleRequest, ScoreRequest, Scores

Outcome = list[Completion] | list[Scores] | Exception


INCOMPLETE = ", incomplete"
"""Ends an engine's version while, and where, not all weights of it were taken: nobody asks for that one."""


class Abandoned(Exception):
    """Nobody waits for the answer any more."""


@part_kind("engines")
class Engine(ABC):
    """Samples (and perhaps scores) for a server (`sdar serve-policy`), or in the training process.

    The constructor takes settings only; `open` makes the model, in the thread that uses it from then on.
    """

    version: str | None = None
    """Whose weights it has; None: those that it was started with, which nobody named, and never any others."""
    scores = False
    """Whether it scores rows."""
    model: str
    """Directory or hub id of the model that it was started with."""
    context: int
    """Longest prompt and response together, in tokens; known after `open`."""
    vocab_size: int
    """Rows of the head; known after `open`."""
    parameters: int | None = None
    """How many numbers its weights are; known after `open`. It bounds what is read as weights."""
    device = "cpu"
    """Where its weights are, as torch calls it; known after `open`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Whatever an engine counts, for `GET /health`."""
        self._numbers = count()

    @abstractmethod
    def open(self) -> None:
        """Load the model.

        Raises:
            ConfigError, PolicyError: it cannot be served.
        """

    @abstractmethod
    def load(self, version: str, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take other weights and forget what was read with the old ones; not while a request is being worked on.

        Raises:
            PolicyError: they are those of another model.
        """

    def start(self, request: SampleRequest, wanted: Callable[[], bool] = lambda: True) -> int:
        """Take up a request; `step` answers it under the number returned, unless `wanted` turns false.

        Raises:
            BadMessage, ContextOverflowError: it cannot be answered by this model.
        """
        sampling = request.sampling
        if sampling.vocab_size > self.vocab_size:
            raise BadMessage(
                f'"sampling.vocab_size" is {sampling.vocab_size}, the engine\'s model has {self.vocab_size} tokens'
            )
        for prompt, key in zip(request.prompts, request.draws, strict=True):
            if max(prompt) >= self.vocab_size:
                raise BadMessage(f'"prompts" holds the token {max(prompt)}, the engine\'s model has {self.vocab_size} tokens')
            if len(prompt) + sampling.max_new_tokens > self.context:
                raise ContextOverflowError(
                    f"the prompt of task {key.task} has {len(prompt)} tokens and may get {sampling.max_new_tokens} more, but the "
                    f"engine's context is {self.context}: nothing is cut silently. Start the engine with a longer one."
                )
        number = next(self._numbers)
        self.admit(number, request, wanted)
        return number

    @abstractmethod
    def admit(self, number: int, request: SampleRequest, wanted: Callable[[], bool]) -> None:
        """Begin to work on a request that was checked."""

    def start_scoring(self, request: ScoreRequest, wanted: Callable[[], bool] = lambda: True) -> int:
        """Take up a request for scores, as `start` does.

        Raises:
            BadMessage, ContextOverflowError: it cannot be answered by this model.
        """
        if not self.scores:
            raise BadMessage(f"{type(self).__name__} cannot score rows: it is no engine for a teacher")
        if request.scoring.vocab_size > self.vocab_size:
            raise BadMessage(
                f'"scoring.vocab_size" is {request.scoring.vocab_size}, the engine\'s model has {self.vocab_size} tokens'
            )
        for row in request.rows:
            if max(row, default=0) >= self.vocab_size:
                raise BadMessage(f'"rows" holds the token {max(row)}, the engine\'s model has {self.vocab_size} tokens')
            if len(row) > self.context:
                raise ContextOverflowError(
                    f"a row has {len(row)} tokens, but the engine's context is {self.context}: nothing is cut silently. Start the engine "
                    "with a longer one."
                )
        number = next(self._numbers)
        self.admit_scoring(number, request, wanted)
        return number

    def admit_scoring(self, number: int, request: ScoreRequest, wanted: Callable[[], bool]) -> None:
        """Begin to score rows that were checked, where `scores` says that it can."""
        raise NotImplementedError

    @abstractmethod
    def step(self) -> list[tuple[int, Outcome]]:
        """Work for a while; the requests that are done by now, each with its completions or what went wrong."""

    @abstractmethod
    def forget(self, client: str) -> None:
        """Let go of what was kept for a client."""

    def release(self) -> None:
        """Give the accelerator's memory back until the next `load` or `start`."""

    def close(self) -> None:
        """Let go of everything."""

    def sample(self, request: SampleRequest) -> list[Completion]:
        """One request, at once."""
        return self._finish(self.start(request))

    def score(self, request: ScoreRequest) -> list[Scores]:
        """One request for scores, at once."""
        return self._finish(self.start_scoring(request))

    def _finish(self, number: int) -> Any:
        while True:
            for done, outcome in self.step():
                if done == number:
                    if isinstance(outcome, Exception):
                        raise outcome
                    return outcome

    def tokens(self) -> dict[str, int]:
        """The vocabulary of the tokenizer that lies beside the model.

        Raises:
            PolicyError: there is none.
        """
        try:
            return AutoTokenizer.from_pretrained(self.model).get_vocab()
        except (OSError, ValueError, ImportError) as error:
            raise PolicyError(
                f"no tokenizer can be read beside the model {self.model} ({first_line(error)}): a teacher's tokens cannot be compared with "
                "the student's. Save the tokenizer in the model's directory."
            ) from error


def longest_context(asked: int | None, known: int) -> int:
    """The context that is served.

    Raises:
        ConfigError: more is asked for than the model knows.
    """
    if asked is not None and asked > known:
        raise ConfigError(f"engine.context is {asked}, the model knows {known} positions: give at most that.")
    return asked or known
