"""How far a turn is from the teacher: d_k of SOD (arXiv 2605.07725), and what else it could have been."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.parts import TurnWeight
from sdar.turns import Turns
from sdar.types import TokenView

Distance = Literal["abs", "k2", "k3"]
Scope = Literal["step", "prefix"]
SIZES: dict[str, Callable[[TokenView], Tensor]] = {
    "abs": lambda tokens: tokens.gap.abs(),
    "k2": lambda tokens: functional.k2(tokens.teacher_logp, tokens.student_logp),
    "k3": lambda tokens: functional.k3(tokens.teacher_logp, tokens.student_logp, clamp=10.0),
}
"""Of each token ``[batch, time]``, not negative, in nats (k2: squared)."""


class DistanceWeight(TurnWeight):
    """A weight that goes by d_k, the mean distance of turn k's tokens from the teacher.

    Args:
        divergence: The distance of a token: ``abs``, |gap|, as SOD; ``k2``, gap^2 / 2; ``k3``, whose mean estimates KL(student ||
            teacher), of a token at most 10.
        span: Only tokens inside this tag of the protocol, such as ``code``, the tool calls of mathematics; a turn without one is
            measured on all of its tokens. None: all.
        scope: ``step``: tokens of the turn. ``prefix``: of the episode up to the end of the turn.
    """

    def __init__(self, divergence: Distance = "abs", span: str | None = None, scope: Scope = "step"):
        for name, value, known in (("divergence", divergence, Distance), ("scope", scope, Scope)):
            if value not in get_args(known):
                raise ConfigError(f"turn_weight.{name} is {value!r}: use one of {', '.join(get_args(known))}.")
        self.divergence, self.span, self.scope = divergence, span, scope

    def distance(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        """d_k, ``[turns]``; its mean is logged."""
        values = SIZES[self.divergence](tokens).detach()
        total, count = turns.sum(values), turns.length.to(values.dtype)
        if self.span is not None:
            inside = tokens.inside(self.span)
            some = turns.sum(inside.to(values.dtype))
            total = turns.sum(values.where(inside, 0.0)).where(some > 0, total)
            count = some.where(some > 0, count)
        if self.scope == "prefix":
            total, count = (functional.discounted_sums(x, turns.episode, 1.0) for x in (total, count))
        distance = total / count
        metrics.add("turn/divergence", float(distance.sum()), len(turns))
        return distance
