"""Responses of an engine in this process, each as soon as it has ended: the engine works on all of them, a token at a time."""

from collections.abc import Callable, Sequence
from typing import cast

from sdar.parts import Completion, SampleKey, Session
from sdar.serving.engine import Engine
from sdar.serving.protocol import SampleRequest


class EngineSession(Session):
    """Each prompt is a request of its own.

    Args:
        engine: Nobody else asks it meanwhile.
        request: What it is asked, from prompts, their keys and the most tokens of a response.
    """

    def __init__(self, engine: Engine, request: Callable[[Sequence[Sequence[int]], Sequence[SampleKey], int], SampleRequest]):
        self._engine, self._request = engine, request
        self._numbers: dict[int, int] = {}  # the engine's -> the caller's
        self._open = True

    @property
    def busy(self) -> bool:
        return bool(self._numbers)

    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        request = self._request([prompt], [key], most)
        self._numbers[self._engine.start(request, lambda: self._open)] = number

    def step(self) -> list[tuple[int, Completion]]:
        out: list[tuple[int, Completion]] = []
        for begun, outcome in self._engine.step():
            number = self._numbers.pop(begun)
            if isinstance(outcome, Exception):
                raise outcome
            [completion] = cast(list[Completion], outcome)
            out.append((number, completion))
        return sorted(out, key=lambda answered: answered[0])

    def close(self) -> None:
        self._open = False
        if self._numbers:
            self._engine.step()  # which drops what nobody waits for
