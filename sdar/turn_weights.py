"""Turn weights: how much each turn of an episode counts in the distillation."""

from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.parts import TurnWeight
from sdar.registry import register
from sdar.turns import Turns
from sdar.types import TokenView


@register("stepwise")
class StepwiseWeight(TurnWeight):
    """SOD (arXiv 2605.07725): a turn counts as the first one did, relative to how far it is from the teacher.

    d_k is the mean |gap| of turn k; w_1 = 1, w_k = min((d_1 + epsilon) / (d_k + epsilon), 1 + delta). There is no lower bound.

    Args:
        epsilon: Keeps the ratio finite, in nats.
        delta: How much more than the first a turn may count (the public code's default is 0.5, its script uses 0.2).
    """

    def __init__(self, epsilon: float = 1e-6, delta: float = 0.2):
        if epsilon <= 0 or delta < 0:
            raise ConfigError(
                f"turn_weight.epsilon is {epsilon}, delta {delta}: use an epsilon above 0 and a delta of 0 or more."
            )
        self.epsilon, self.delta = epsilon, delta

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        distance = turns.mean(tokens.gap.abs())
        weights = functional.stepwise_turn_weights(distance, turns.episode, self.epsilon, self.delta)
        metrics.add("turn/divergence", float(distance.sum()), len(turns))
        metrics.add("turn/weight", float(weights.sum()), len(turns))
        metrics.add("turn/weight_capped_share", float((weights >= 1 + self.delta).sum()), len(turns))
        return weights


@register("atod")
class ATODWeight(TurnWeight):
    """ATOD (arXiv 2606.27814): a turn counts if it is far from the teacher *or* surprising for the student.

    w_k = 1 - (1 - d_k)(1 - h_k) with d_k the mean |gap| and h_k the mean -student_logp of turn k, both scaled to [0, 1] within the
    episode (1/2 where all turns are alike).
    """

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        distance, surprise = turns.mean(tokens.gap.abs()), turns.mean(-tokens.student_logp)
        weights = functional.atod_turn_weights(distance, surprise, turns.episode)
        metrics.add("turn/divergence", float(distance.sum()), len(turns))
        metrics.add("turn/weight", float(weights.sum()), len(turns))
        return weights
