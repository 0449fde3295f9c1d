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
        told = method(self, *args, **kwargs)
        check(self, told, *args, **kwargs)
        return told

    return call


def gate(part: Any, told: Any, tokens: Any) -> None:
    """[batch, time] in [0, 1], without a gradient."""
    expected = "a gate returns weights in [0, 1], one a token"
    _tensor(part, told, "*tokens", tokens.entropy.shape, expected)
    if told.requires_grad:
        raise _wrong(part, expected + ", that carry no gradient (`detach()`)", "a tensor that requires one")
    known = tokens.response_mask.bool() & _known(tokens) & tokens.entropy.isfinite()
    _within(part, told, known, 0.0, 1.0, expected)


def _known(tokens: Any) -> Tensor:
    """Bool, like the tokens: what the networks gave them is finite. Where it is not, no part is to blame."""
    finite = tokens.student_logp.isfinite()
    return finite & tokens.gap.isfinite() if tokens.has("gap") else finite


def turn_weights(part: Any, told: Any, tokens: Any, turns: Any, *_: Any) -> None:
    """[turns], finite and not negative."""
    expected = "a turn weight returns one number a turn, finite and not negative"
    _tensor(part, told, "turns", (len(turns),), expected)
    if _known(tokens)[tokens.response_mask.bool()].all():
        _within(part, told, torch.ones_like(told, dtype=torch.bool), 0.0, math.inf, expected)


def chosen(part: Any, told: Any, success: Tensor, groups: Tensor) -> None:
    """Bool [episodes]."""
    _tensor(part, told, "episodes", success.shape, "a filter returns True or False for each episode", torch.bool)


def advantages(part: Any, told: Any, credit: Any) -> None:
    """[rows] or [rows, time], finite."""
    expected = "an advantage estimator returns one number a row, or one a token of the rows"
    by_row = getattr(told, "ndim", 1) < 2
    axes, wanted = ("rows", credit.rewards.shape) if by_row else ("rows time", credit.turns.mask.shape)
    _tensor(part, told, axes, wanted, expected)
    if _finite(credit.rewards, credit.turn_rewards):
        _within(part, told, torch.ones_like(told, dtype=torch.bool), -math.inf, math.inf, expected + ", each finite")


def reshaped(part: Any, told: Any, before: Tensor, tokens: Any, *_: Any) -> None:
    """[batch, time], finite where there is a response."""
    expected = "an advantage transform returns one advantage a token"
    _tensor(part, told, "*tokens", before.shape, expected)
    known = tokens.response_mask.bool() & before.isfinite() & _known(tokens)
    _within(part, told, known, -math.inf, math.inf, expected + ", each finite")


def divergence(part: Any, told: Any, student: Any, tokens: Any) -> None:
    """Shaped like the student's log-probabilities."""
    _tensor(part, told, "*tokens", student.logp.shape, "a divergence returns one loss a token, shaped like student.logp")


def token_loss(part: Any, told: Any, logp: Tensor, *_: Any, **__: Any) -> None:
    """[batch, time]."""
    _tensor(part, told, "*tokens", logp.shape, "a policy loss returns one loss a token")


def importance(part: Any, told: Any, logp: Tensor, sampled_logp: Tensor) -> None:
    """[batch, time], not negative, without a gradient."""
    expected = "a correction returns one weight a token, not negative"
    _tensor(part, told, "*tokens", logp.shape, expected)
    _within(part, told, logp.isfinite() & sampled_logp.isfinite(), 0.0, math.inf, expected, infinite=True)


def coefficient(part: Any, told: Any, iteration: int) -> None:
    """A finite number."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
        raise _wrong(part, "a schedule returns a finite number (float)", _shown(told), f"at iteration {iteration}")


def retrieval(part: Any, told: Any, task: Any, *_: Any, **__: Any) -> None:
    """A Retrieval of texts."""
    expected = "a retriever returns a Retrieval(skill_ids=(ids...), text=...)"
    if not isinstance(told, Retrieval):
        raise _wrong(part, expected, _shown(told), f"for task {task.id}")
    if isinstance(told.skill_ids, str) or not all(isinstance(text, str) for text in (told.text, *told.skill_ids)):
        raise _wrong(part, expected + " whose ids and text are texts", _shown(told), f"for task {task.id}")


def view_text(part: Any, told: Any, episode: Any, *_: Any, **__: Any) -> None:
    """A text."""
    if not isinstance(told, str):
        raise _wrong(part, "a view returns a text, empty where it tells nothing", _shown(told), f"for task {episode.task.id}")


def labels(part: Any, told: Any, episodes: Sequence[Any], *_: Any) -> None:
    """One number in [-1, 1], or None, for each turn of each episode."""
    expected = "a judge returns, for each episode, one label a turn: a number in [-1, 1], or None"
    if not isinstance(told, list | tuple) or len(told) != len(episodes):
        raise _wrong(part, expected, f"{_shown(told)} for {len(episodes)} episodes")
    for episode, said in zip(episodes, told, strict=True):
        where = f"for task {episode.task.id}"
        if not isinstance(said, list | tuple) or len(said) != len(episode.turns):
            raise _wrong(part, expected, f"{_shown(said)} for {len(episode.turns)} turns", where)
        for label in said:
            if label is not None and not (isinstance(label, int | float) and -1 <= label <= 1):
                raise _wrong(part, expected, f"the label {_shown(label)}", where)


def parsed(part: Any, told: Any, *_: Any) -> None:
    """An action and whether it is valid."""
    if not (isinstance(told, tuple) and len(told) == 2 and isinstance(told[0], str) and isinstance(told[1], bool)):
        raise _wrong(part, "a protocol's `parse` returns (action, valid): a text and True or False", _shown(told))


def messages(part: Any, told: Any, *_: Any, **__: Any) -> None:
    """Messages of a conversation."""
    if (
        not isinstance(told, list)
        or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in told)
        or not told
    ):
        expected = 'a protocol returns messages: a list of {"role": ..., "content": ...}'
        raise _wrong(part, expected, _shown(told))


def text(part: Any, told: Any, *_: Any, **__: Any) -> None:
    """A text."""
    if not isinstance(told, str):
        raise _wrong(part, "a protocol's `answer` and `write` return a text", _shown(told))


def request(part: Any, told: Any, asked: Any, *_: Any, **__: Any) -> None:
    """A request for the same task."""
    if not isinstance(told, type(asked)) or told.task != asked.task:
        raise _wrong(part, "a controller returns the Request as it shall be played, of the same task", _shown(told))


def completions(part: Any, told: Any, model: Any, prompts: Sequence[Any], *_: Any) -> None:
    """One completion a prompt, its lists of one length; a response may be empty."""
    expected = "a sampler returns one Completion a prompt, in their order"
    if not isinstance(told, list | tuple) or len(told) != len(prompts):
        raise _wrong(part, expected, f"{_shown(told)} for {len(prompts)} prompts")
    for completion in told:
        if not isinstance(completion, Completion):
            raise _wrong(part, expected, _shown(completion))
        if not len(completion.ids) == len(completion.behaviour_logp) == len(completion.kept_logmass):
            raise _wrong(part, expected + ", with one log-probability and one mass for each of its ids", _shown(completion))


def _tensor(part: Any, told: Any, axes: str, shape: Sequence[int], expected: str, dtype: torch.dtype | None = None) -> None:
    kind = "bool" if dtype is torch.bool else "floating point"
    expected = f"{expected}: a {kind} tensor of shape {given.axes(axes, len(shape))} = {tuple(shape)}"
    if not isinstance(told, Tensor):
        raise _wrong(part, expected, _shown(told))
    if tuple(told.shape) != tuple(shape) or not (told.dtype is dtype if dtype else told.is_floating_point()):
        raise _wrong(part, expected, f"shape {tuple(told.shape)} of {str(told.dtype).removeprefix('torch.')}")


def _within(part: Any, told: Tensor, where: Tensor, low: float, high: float, expected: str, infinite: bool = False) -> None:
    """Raise where a value is no number between the bounds, or (unless `infinite`) not finite."""
    good = (told >= low) & (told <= high)  # False for what is no number
    bad = where & ~(good if infinite else good & told.isfinite())
    if bad.any():
        values = told[bad].detach()
        raise _wrong(part, expected, f"{float(values[0]):g} (and {int(bad.sum()) - 1} more like it of {int(where.sum())})")


def _finite(*tensors: Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _wrong(part: Any, expected: str, found: str, where: str = "") -> PartError:
    return PartError(f"{part_name(part)} returned {found}{where and ' '}{where}: {expected}. Correct it.")


def _shown(told: Any) -> str:
    text = repr(told)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(told).__name__})"
