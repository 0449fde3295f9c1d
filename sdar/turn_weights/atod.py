"""ATOD's weight (arXiv 2606.27814)."""

from torch import Tensor

from sdar import functional
from sdar.metrics import Metrics
from sdar.registry import register
from sdar.turn_weights.distance import DistanceWeight
from sdar.turns import Turns
from sdar.types import TokenView


@register("atod")
class ATODWeight(DistanceWeight):
    """ATOD (arXiv 2606.27814): a turn counts if it is far from the teacher *or* surprising for the student.

    w_k = 1 - (1 - d_k)(1 - h_k) with d_k the mean |gap| and h_k the mean -student_logp of turn k, both scaled to [0, 1] within the
    episode (1/2 where all turns are alike).
    """

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        distance, surprise = self.distance(tokens, turns, metrics), turns.mean(-tokens.student_logp)
        weights = functional.atod_turn_weights(distance, surprise, turns.episode)
        metrics.add("turn/weight", float(weights.sum()), len(turns))
        return weights
