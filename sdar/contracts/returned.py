"""What a part returned, looked at where it comes back: a wrong answer is told with the part, what was expected and what was found.

A base class says in `answers` which of its methods are looked at, and by what; each method of a subclass is wrapped when the class is
made, so a part of somebody else is checked like ours. A check gets the part, its answer and the arguments of the call; it never
blames a part for what was not finite before it was asked. What a part is given is looked at by `sdar.contracts.given`, at its first call
only: it comes from us, and is of one shape in all of a run, whereas an answer may be wrong for one batch alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdar.contracts import given
from sdar.errors import PartError
from sdar.registry import part_name
from sdar.types import Completion, Retrieval

Check = Callable[..., None]


class Checked:
    """A class whose methods' answers are looked at."""

    answers: ClassVar[dict[str, Check]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, check in cls.answers.items():
            method = vars(cls).get(name)
            if callable(method) and not getattr(method, "__isabstractmethod__", False):
                promised = next(vars(c)[name] for c in reversed(cls.__mro__) if name in vars(c))
                setattr(cls, name, _looked_at(method, promised, check))


def _looked_at(method: Callable[..., Any], promised: Callable[..., Any], check: Check) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given.first_call(self, method, promised, args, kwargs)
        answer = method(self, *args, **kwargs)
        check(self, answer, *args, **kwargs)
        return answer

    return call


def gate(part: Any, answer: Any, tokens: Any) -> None:
    """[batch, time] in [0, 1], without a gradient."""
    expected = "a gate returns weights in [0, 1], one a token"
    _tensor(part, answer, "*tokens", tokens.entropy.shape, expected)
    if answer.requires_grad:
        raise _wrong(part, expected + ", that carry no gradient (`detach()`)", "a tensor that requires one")
    known = tokens.response_mask.bool() & _known(tokens) & tokens.entropy.isfinite()
    _within(part, answer, known, 0.0, 1.0, expected)


def _known(tokens: Any) -> Tensor:
    """Bool, like the tokens: what the networks gave them is finite. Where it is not, no part is to blame."""
    finite = tokens.student_logp.isfinite()
    return finite & tokens.gap.isfinite() if tokens.has("gap") else finite


def turn_weights(part: Any, answer: Any, tokens: Any, turns: Any, *_: Any) -> None:
    """[turns], finite and not negative."""
    expected = "a turn weight returns one number a turn, finite and not negative"
    _tensor(part, answer, "turns", (len(turns),), expected)
    if _known(tokens)[tokens.response_mask.bool()].all():
        _within(part, answer, torch.ones_like(answer, dtype=torch.bool), 0.0, math.inf, expected)


def chosen(part: Any, answer: Any, success: Tensor, groups: Tensor) -> None:
    """Bool [episodes]."""
    _tensor(part, answer, "episodes", success.shape, "a filter returns True or False for each episode", torch.bool)


def advantages(part: Any, answer: Any, credit: Any) -> None:
    """[rows] or [rows, time], finite."""
    expected = "an advantage estimator returns one number a row, or one a token of the rows"
    by_row = getattr(answer, "ndim", 1) < 2
    axes, wanted = ("rows", credit.rewards.shape) if by_row else ("rows time", credit.turns.mask.shape)
    _tensor(part, answer, axes, wanted, expected)
    if _finite(credit.rewards, credit.turn_rewards):
        _within(part, answer, torch.ones_like(answer, dtype=torch.bool), -math.inf, math.inf, expected + ", each finite")


def reshaped(part: Any, answer: Any, before: Tensor, tokens: Any, *_: Any) -> None:
    """[batch, time], finite where there is a response."""
    expected = "an advantage transform returns one advantage a token"
    _tensor(part, answer, "*tokens", before.shape, expected)
    known = tokens.response_mask.bool() & before.isfinite() & _known(tokens)
    _within(part, answer, known, -math.inf, math.inf, expected + ", each finite")


def divergence(part: Any, answer: Any, student: Any, tokens: Any) -> None:
    """Shaped like the student's log-probabilities."""
    _tensor(part, answer, "*tokens", student.logp.shape, "a divergence returns one loss a token, shaped like student.logp")


def token_loss(part: Any, answer: Any, logp: Tensor, *_: Any, **__: Any) -> None:
    """[batch, time]."""
    _tensor(part, answer, "*tokens", logp.shape, "a policy loss returns one loss a token")


def importance(part: Any, answer: Any, logp: Tensor, sampled_logp: Tensor) -> None:
    """[batch, time], not negative, without a gradient."""
    expected = "a correction returns one weight a token, not negative"
    _tensor(part, answer, "*tokens", logp.shape, expected)
    _within(part, answer, logp.isfinite() & sampled_logp.isfinite(), 0.0, math.inf, expected, infinite=True)


def coefficient(part: Any, answer: Any, iteration: int) -> None:
    """A finite number."""
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        raise _wrong(part, "a schedule returns a finite number (float)", _shown(answer), f"at iteration {iteration}")


def retrieval(part: Any, answer: Any, task: Any, *_: Any, **__: Any) -> None:
    """A Retrieval of texts."""
    expected = "a retriever returns a Retrieval(skill_ids=(ids...), text=...)"
    if not isinstance(answer, Retrieval):
        raise _wrong(part, expected, _shown(answer), f"for task {task.id}")
    if isinstance(answer.skill_ids, str) or not all(isinstance(text, str) for text in (answer.text, *answer.skill_ids)):
        raise _wrong(part, expected + " whose ids and text are texts", _shown(answer), f"for task {task.id}")


def view_text(part: Any, answer: Any, episode: Any, *_: Any, **__: Any) -> None:
    """A text."""
    if not isinstance(answer, str):
        raise _wrong(
            part, "a view returns a text, empty where it tells nothing", _shown(answer), f"for task {episode.task.id}"
        )


def labels(part: Any, answer: Any, episodes: Sequence[Any], *_: Any) -> None:
    """One number in [-1, 1], or None, for each turn of each episode."""
    expected = "a judge returns, for each episode, one label a turn: a number in [-1, 1], or None"
    if not isinstance(answer, list | tuple) or len(answer) != len(episodes):
        raise _wrong(part, expected, f"{_shown(answer)} for {len(episodes)} episodes")
    for episode, said in zip(episodes, answer, strict=True):
        where = f"for task {episode.task.id}"
        if not isinstance(said, list | tuple) or len(said) != len(episode.turns):
            raise _wrong(part, expected, f"{_shown(said)} for {len(episode.turns)} turns", where)
        for label in said:
            if label is not None and not (isinstance(label, int | float) and -1 <= label <= 1):
                raise _wrong(part, expected, f"the label {_shown(label)}", where)


def parsed(part: Any, answer: Any, *_: Any) -> None:
    """An action and whether it is valid."""
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], str) and isinstance(answer[1], bool)):
        raise _wrong(part, "a protocol's `parse` returns (action, valid): a text and True or False", _shown(answer))


def messages(part: Any, answer: Any, *_: Any, **__: Any) -> None:
    """Messages of a conversation."""
    if (
        not isinstance(answer, list)
        or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in answer)
        or not answer
    ):
        expected = 'a protocol returns messages: a list of {"role": ..., "content": ...}'
        raise _wrong(part, expected, _shown(answer))


def text(part: Any, answer: Any, *_: Any, **__: Any) -> None:
    """A text."""
    if not isinstance(answer, str):
        raise _wrong(part, "a protocol's `answer` and `write` return a text", _shown(answer))


def request(part: Any, answer: Any, asked: Any, *_: Any, **__: Any) -> None:
    """A request for the same task."""
    if not isinstance(answer, type(asked)) or answer.task != asked.task:
        raise _wrong(part, "a controller returns the Request as it shall be played, of the same task", _shown(answer))


def completions(part: Any, answer: Any, model: Any, prompts: Sequence[Any], *_: Any) -> None:
    """One completion a prompt, its lists of one length; a response may be empty."""
    expected = "a sampler returns one Completion a prompt, in their order"
    if not isinstance(answer, list | tuple) or len(answer) != len(prompts):
        raise _wrong(part, expected, f"{_shown(answer)} for {len(prompts)} prompts")
    for completion in answer:
        if not isinstance(completion, Completion):
            raise _wrong(part, expected, _shown(completion))
        if not len(completion.ids) == len(completion.behaviour_logp) == len(completion.kept_logmass):
            raise _wrong(part, expected + ", with one log-probability and one mass for each of its ids", _shown(completion))


def _tensor(part: Any, answer: Any, axes: str, shape: Sequence[int], expected: str, dtype: torch.dtype | None = None) -> None:
    kind = "bool" if dtype is torch.bool else "floating point"
    expected = f"{expected}: a {kind} tensor of shape {given.axes(axes, len(shape))} = {tuple(shape)}"
    if not isinstance(answer, Tensor):
        raise _wrong(part, expected, _shown(answer))
    if tuple(answer.shape) != tuple(shape) or not (answer.dtype is dtype if dtype else answer.is_floating_point()):
        raise _wrong(part, expected, f"shape {tuple(answer.shape)} of {str(answer.dtype).removeprefix('torch.')}")


def _within(part: Any, answer: Tensor, where: Tensor, low: float, high: float, expected: str, infinite: bool = False) -> None:
    """Raise where a value is no number between the bounds, or (unless `infinite`) not finite."""
    good = (answer >= low) & (answer <= high)  # False for what is no number
    bad = where & ~(good if infinite else good & answer.isfinite())
    if bad.any():
        values = answer[bad].detach()
        raise _wrong(part, expected, f"{float(values[0]):g} (and {int(bad.sum()) - 1} more like it of {int(where.sum())})")


def _finite(*tensors: Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _wrong(part: Any, expected: str, found: str, where: str = "") -> PartError:
    return PartError(f"{part_name(part)} returned {found}{where and ' '}{where}: {expected}. Correct it.")


def _shown(answer: Any) -> str:
    text = repr(answer)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(answer).__name__})"
