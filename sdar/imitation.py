"""Imitation: cross-entropy on what somebody else said, whoever said it."""

from typing import Any

from torch import Tensor

from sdar.module import AgentModule
from sdar.scoring import StudentOutput
from sdar.types import Batch, Episode


class Imitation(AgentModule):
    """Base of methods that learn what others said: nothing is sampled, so nothing has to be known from before the update.

    Value and gradient: of the mean negative log-likelihood of the imitated tokens, in nats, at temperature 1 whatever the sampler's is.
    """

    plays_attempts = False

    def token_loss(self, batch: Batch, now: StudentOutput) -> Tensor:
        return -now.logp

    def objective(self) -> dict[str, Any]:
        return super().objective() | {"likelihood_coef": 1.0}

    def score(self, batch: Batch, episodes: list[Episode]) -> None:
        """Nothing to score: the loss needs no log-probabilities from before the update."""

    def scoring_passes(self) -> dict[str, float]:
        return {}
