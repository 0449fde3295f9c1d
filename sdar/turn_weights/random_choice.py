"""Random turn weights: what is left of SOD (arXiv 2605.07725) when its weights know nothing of the turn."""

from random import Random

import torch
from torch import Tensor

from sdar.metrics import Metrics
from sdar.registry import register
from sdar.turn_weights.stepwise import StepwiseWeight
from sdar.turns import Turns
from sdar.types import TokenView


@register("random")
class RandomWeight(StepwiseWeight):
    """The weights of `StepwiseWeight`, dealt to the turns of the iteration at random: as much distillation, in other places.

    Its arguments but the seed are those of `StepwiseWeight`, whose weights are dealt.

    Args:
        seed: Of the order, beside the iteration.
        epsilon: Keeps the ratio finite, in nats.
        delta: How much more than the first a turn may count.
    """

    def __init__(self, seed: int = 0, epsilon: float = 1e-6, delta: float = 0.2):
        super().__init__(epsilon, delta)
        self.seed = seed

    def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
        weights = self.stepwise(tokens, turns, metrics)
        order = list(range(len(weights)))
        Random(f"turn weights/{self.seed}/{tokens.iteration}").shuffle(order)
        return weights[torch.tensor(order, dtype=torch.long, device=weights.device)]
