"""Curricula over the turns of an episode: temporal curricula of on-policy distillation (TCOD, arXiv 2604.24005)."""

from dataclasses import replace
from pathlib import Path

from sdar.errors import ConfigError
from sdar.parts import Environment, EpisodeController
from sdar.paths import resolve
from sdar.reading import read_json_lines
from sdar.registry import register
from sdar.rollout import Request
from sdar.schedules import numbered


@register("front_to_back")
class FrontToBack(EpisodeController):
    """The student plays the first `start` + iteration // `every` turns of an episode, then it is over.

    Args:
        every: Iterations until one more turn is added.
        start: Turns in the beginning.
        first: Number of the run's first iteration: 1 is the public code's, where the first window is one iteration shorter.
    """

    def __init__(self, every: int = 6, start: int = 1, first: int = 0):
        _check(every)
        if start < 1:
            raise ConfigError(f"controller.start is {start}: an episode needs at least 1 turn.")
        self.every, self.start, self.first = every, start, numbered("controller.first", first)

    def __call__(self, request: Request, iteration: int, env: Environment) -> Request:
        return replace(request, max_turns=self.start + (iteration + self.first) // self.every)


@register("back_to_front")
class BackToFront(EpisodeController):
    """A demonstration plays all but the last turns of an episode, one turn less every `every` iterations; then the student.

    What is replayed carries no loss.

    Args:
        every: Iterations until one more turn is the student's.
        start: Turns left to the student in the beginning.
        demonstrations: JSON lines ``{"task": id, "actions": [...]}``; by default the environment demonstrates.
        first: Number of the run's first iteration: 1 is the public code's.
    """

    def __init__(self, every: int = 5, start: int = 1, demonstrations: str | None = None, first: int = 0):
        _check(every)
        if start < 1:
            raise ConfigError(f"controller.start is {start}: the student needs at least 1 turn.")
        self.every, self.start, self.first = every, start, numbered("controller.first", first)
        self.stored: dict[str, list[str]] | None = None
        if demonstrations is not None:
            path = Path(resolve(demonstrations))
            if not path.is_file():
                raise ConfigError(f"controller.demonstrations {demonstrations!r} does not exist: give a file of JSON lines.")
            self.stored = dict(_demonstration(stored, where) for where, stored in read_json_lines(path, advice=_FORM))

    def __call__(self, request: Request, iteration: int, env: Environment) -> Request:
        actions = env.demonstration(request.task) if self.stored is None else self.stored.get(request.task.id)
        if actions is None:
            raise ConfigError(
                f"no demonstration of task {request.task.id}: back to front replays the beginning of one. Add it to "
                "controller.demonstrations, or use FrontToBack."
            )
        return replace(
            request, replay=tuple(actions[: max(0, len(actions) - self.start - (iteration + self.first) // self.every)])
        )


_FORM = 'Each line of controller.demonstrations is one JSON object {"task": id, "actions": [texts]}. Correct the line or remove it.'


def _demonstration(stored: object, where: str) -> tuple[str, list[str]]:
    """Task and actions of a line of a demonstration file; `where` names it in the error."""
    match stored:
        case {"task": str(task), "actions": [*actions]} if all(isinstance(a, str) for a in actions):
            return task, actions
    raise ConfigError(f"{where} is no demonstration. {_FORM}")


def _check(every: int) -> None:
    if every < 1:
        raise ConfigError(f"controller.every is {every}: the curriculum moves every 1 or more iterations.")
