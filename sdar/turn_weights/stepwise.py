"""SOD's weight (arXiv 2605.07725): a turn counts as the first one did, relative to how far it is from the teacher."""

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.registry import register
from sdar.turn_weights.distance import Distance, DistanceWeight, Scope
from sdar.turns import Turns
from sdar.types import TokenView


@register("stepwise")
class StepwiseWeight(DistanceWeight):
    """SOD (arXiv 2605.07725): a turn counts as the first one did, relative to how far it is from the teacher.

    d_k is the mean |gap| of turn k; w_1 = 1, w_k = min((d_1 + epsilon) / (d_k + epsilon), 1 + delta). There is no lower bound.

    Args:
        epsilon: Keeps the ratio finite, in nats.
        delta: How much more than the first a turn may count (the public code's default is 0.5, its script uses 0.2).
        divergence: The distance of a token: ``abs``, |gap|, as published; ``k2``, gap^2 / 2; ``k3``, whose mean estimates KL(student ||
            teacher), of a token at most 10.
        span: d_k of the tokens inside this tag of the protocol, such as ``code``, the tool calls of mathematics; a turn without one is
            measured on all of its tokens. None: all.
        scope: ``step``: d_k of the turn's tokens. ``prefix``: of the episode's up to the end of the turn.
    """

    def __init__(
        self,
        epsilon: float = 1e-6,
        delta: float = 0.2,
        divergence: Distance = "abs",
        span: str | None = None,
        scope: Scope = "step",
    ):
        super().__init__(divergence, span, scope)
        if epsilon <= 0 or delta < 0:
            raise ConfigError(
                f"turn_weight.epsilon is {epsilon}, delta {delta}: use an epsilon above 0 and a delta of 0 or more."
            )
        self.epsilon, self.delta = epsilon, delta

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        weights = self.stepwise(tokens, turns, metrics)
        patterns = functional.weight_patterns(weights, turns.episode)
        for name, episodes in zip(("aligned", "recovered", "drifted"), patterns, strict=True):
            metrics.add(f"turn/pattern_{name}", float(episodes.sum()), len(episodes))
        return weights

    def stepwise(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        """w_k, ``[turns]``."""
        distance = self.distance(tokens, turns, metrics)
        weights = functional.stepwise_turn_weights(distance, turns.episode, self.epsilon, self.delta)
        metrics.add("turn/weight", float(weights.sum()), len(turns))
        later = weights[turns.episode.diff(prepend=turns.episode[:1] - 1) == 0]  # a first turn counts 1, whatever its distance
        metrics.add("turn/weight_capped_share", float((later >= 1 + self.delta).sum()), len(later))
        return weights
