"""Where answers of worlds come in: each is looked at once, before anything is computed from it.

A world is other people's code, and what is wrong with one answer ends one episode. Numbers of numpy and torch become Python's.
"""

import math
from collections.abc import Sequence
from typing import Any

from sdar.errors import EnvironmentFault
from sdar.parts import Environment, StepResult


def observation_of(env: Environment, answer: Any) -> str:
    """What `reset` returned.

    Raises:
        EnvironmentFault: no text.
    """
    return _text(f"{type(env).__name__}.reset", "returned", answer)


def result_of(env: Environment, answer: Any, call: str = "step") -> StepResult:
    """What `step` or `unfinished` returned, with Python's own numbers.

    Raises:
        EnvironmentFault: no StepResult; a reward that is not finite; a score outside of [0, 1]; another type.
    """
    who = f"{type(env).__name__}.{call}"
    if not isinstance(answer, StepResult):
        raise EnvironmentFault(f"{who} returned {_shown(answer)}: it returns a StepResult.")
    if not isinstance(answer.scores, dict):
        raise EnvironmentFault(f"{who} gave scores {_shown(answer.scores)}: they are a dict of numbers in [0, 1].")
    reward = _number(who, "reward", answer.reward)
    if not math.isfinite(reward):
        raise EnvironmentFault(f"{who} gave the reward {reward}: nothing can be learned from a reward that is not finite.")
    scores = {name: _number(who, f"score {name!r}", score) for name, score in answer.scores.items()}
    for name, score in scores.items():
        if not 0 <= score <= 1:
            raise EnvironmentFault(f"{who} gave the score {name!r} = {score}: scores lie in [0, 1]. Scale it in the world.")
    return StepResult(
        observation=_text(who, "gave the observation", answer.observation),
        reward=reward,
        scores=scores,
        tool_ok=None if answer.tool_ok is None else _truth(who, "tool_ok", answer.tool_ok),
        **{name: _truth(who, name, getattr(answer, name)) for name in ("done", "success", "valid", "truncated")},
    )


def admissible_of(env: Environment, answer: Any) -> list[str]:
    """What `admissible` returned.

    Raises:
        EnvironmentFault: no sequence of texts.
    """
    who = f"{type(env).__name__}.admissible"
    if isinstance(answer, str) or not isinstance(answer, Sequence | set | frozenset):
        raise EnvironmentFault(f"{who} returned {_shown(answer)}: it returns a list of actions, empty where it cannot tell.")
    return [_text(who, "names the action", action) for action in answer]


def _text(who: str, verb: str, answer: Any) -> str:
    if not isinstance(answer, str):
        raise EnvironmentFault(f"{who} {verb} {_shown(answer)}: a text (str) is needed.")
    return answer


def _plain(answer: Any) -> Any:
    """A scalar of numpy or torch as Python's."""
    return answer.item() if hasattr(answer, "item") and getattr(answer, "ndim", 1) == 0 else answer


def _number(who: str, what: str, answer: Any) -> float:
    plain = _plain(answer)
    if isinstance(plain, bool | int | float):
        try:
            return float(plain)
        except OverflowError:
            return math.inf if plain > 0 else -math.inf
    raise EnvironmentFault(f"{who} gave the {what} {_shown(answer)}: a number is needed.")


def _truth(who: str, what: str, answer: Any) -> bool:
    plain = _plain(answer)
    if isinstance(plain, bool | int) and plain in (0, 1):
        return bool(plain)
    raise EnvironmentFault(f"{who} gave {what} = {_shown(answer)}: it is True or False.")


def _shown(answer: Any) -> str:
    """A value for a message: its type and a little of it."""
    text = repr(answer)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(answer).__name__})"
