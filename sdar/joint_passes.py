"""Which rows networks read in an iteration: all rows of one network in one pass over them, so that nothing is read twice."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sdar.distributed.communicator import SINGLE_PROCESS, Communicator
from sdar.distributed.sharding import Sharding
from sdar.scoring import Reading, Scored, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHOUT_GRADIENT = 4
"""A pass that keeps nothing for a backward pass may have so many times the tokens of one that does."""
LEAST_PIECES = 4
"""Of each of several ranks: the last one of a rank may be empty."""


class JointPasses:
    """Collects what networks shall read; all rows of one network in one density are read together when the first answer is wanted.

    Args:
        max_tokens: Of a micro-batch of an update.
        sharding: How the networks lie on the ranks.
        ranks: Who shares the work; each gets everything.
    """

    def __init__(self, max_tokens: int, sharding: Sharding | None = None, ranks: Communicator = SINGLE_PROCESS):
        self.max_tokens, self.sharding, self.ranks = max_tokens, sharding, ranks
        self._asked: dict[tuple[int, int], list[Reading]] = {}
        self._answers: dict[tuple[int, int], list[Scored]] = {}

    def ask(self, scorer: Scorer, network: "PreTrainedModel | None", reading: Reading) -> Callable[[], Scored]:
        """Rows for a network; to be called for what it says of them when everybody has asked."""
        assert network is not None, "`configure_model` keeps the first policy whenever somebody needs it"
        key = id(network), id(scorer)
        assert key not in self._answers, "asked behind the pass"
        asked = self._asked.setdefault(key, [])
        asked.append(reading)
        place = len(asked) - 1

        def answer() -> Scored:
            if key not in self._answers:
                tokens = sum(int(reading.attention_mask.sum()) for reading in asked)
                most = without_gradient(self.max_tokens, tokens, self.ranks.world_size)
                lie = (self.max_tokens, self.sharding, self.ranks)
                self._answers[key] = scorer.score_together(network, asked, *lie, most)
            return self._answers[key][place]

        return answer


def without_gradient(max_tokens: int, tokens: int, ranks: int) -> int:
    """Tokens of a pass without a gradient where one with it has `max_tokens`, of `tokens` altogether: not so many that ranks wait."""
    most = WITHOUT_GRADIENT * max_tokens
    return most if ranks == 1 else max(max_tokens, min(most, tokens // (LEAST_PIECES * ranks)))
