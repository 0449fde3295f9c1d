"""A fixed threshold in place of SOD's ratio (arXiv 2605.07725)."""

import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.registry import register
from sdar.turn_weights.distance import Distance, DistanceWeight, Scope
from sdar.turns import Turns
from sdar.types import TokenView


@register("threshold")
class ThresholdWeight(DistanceWeight):
    """A turn counts fully up to a fixed distance from the teacher, and `beyond` it less or not at all. SOD without its relation to the
    first turn; no number is published.

    Args:
        threshold: Largest d_k of a turn that counts fully, in nats.
        beyond: Weight of the other turns.
        divergence: The distance of a token: ``abs``, |gap|; ``k2``, gap^2 / 2; ``k3``, whose mean estimates KL(student || teacher), of a
            token at most 10.
        span: d_k of the tokens inside this tag of the protocol, such as ``code``, the tool calls of mathematics; a turn without one is
            measured on all of its tokens. None: all.
        scope: ``step``: d_k of the turn's tokens. ``prefix``: of the episode's up to the end of the turn.
    """

    def __init__(
        self,
        threshold: float = 1.0,
        beyond: float = 0.0,
        divergence: Distance = "abs",
        span: str | None = None,
        scope: Scope = "step",
    ):
        super().__init__(divergence, span, scope)
        if threshold <= 0 or not 0 <= beyond < 1:
            raise ConfigError(
                f"turn_weight.threshold is {threshold}, beyond {beyond}: a distance above 0, e.g. 1 nat, and a weight in [0, 1) for turns "
                "that are farther, e.g. 0."
            )
        self.threshold, self.beyond = threshold, beyond

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        distance = self.distance(tokens, turns, metrics)
        weights = torch.where(distance <= self.threshold, 1.0, self.beyond).to(distance.dtype)
        metrics.add("turn/weight", float(weights.sum()), len(turns))
        return weights
