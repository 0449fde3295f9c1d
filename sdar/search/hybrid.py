"""Several backends as one, by reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""

from collections.abc import Sequence

from sdar.errors import ConfigError
from sdar.registry import register
from sdar.search.base import Passage, SearchBackend


@register("hybrid")
class HybridBackend(SearchBackend):
    """score(passage) = sum over backends of weight / (constant + rank); a passage is known by its id.

    Args:
        backends: At least two over the same corpus.
        weights: One for each; all 1 by default.
        depth: Passages that each backend is asked for, at least as many as are wanted in the end.
        constant: Larger: the first ranks matter less.
    """

    def __init__(
        self, backends: list[SearchBackend], weights: list[float] | None = None, depth: int = 50, constant: float = 60.0
    ):
        if len(backends) < 2:
            raise ConfigError(f"HybridBackend has {len(backends)} backends: there is nothing to fuse. Give 2 or more.")
        if weights is not None and (len(weights) != len(backends) or not all(w > 0 for w in weights)):
            raise ConfigError(
                f"HybridBackend.weights is {weights} for {len(backends)} backends: give one positive number for each."
            )
        if depth < 1 or constant < 0:
            raise ConfigError(
                f"HybridBackend with depth {depth} and constant {constant}: depth is 1 or more, constant 0 or more."
            )
        self.backends = list(backends)
        self.weights = list(weights or [1.0] * len(backends))
        self.depth, self.constant = depth, constant

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        answers = [backend.search(queries, max(k, self.depth)) for backend in self.backends]
        return [fuse(lists, self.weights, self.constant)[:k] for lists in zip(*answers, strict=True)]

    def check(self) -> None:
        for backend in self.backends:
            backend.check()


def fuse(lists: Sequence[Sequence[Passage]], weights: Sequence[float], constant: float) -> list[Passage]:
    """All passages of the lists by their fused score; of equal ones the first that was met comes first."""
    score: dict[str, float] = {}
    passage: dict[str, Passage] = {}
    for found, weight in zip(lists, weights, strict=True):
        for rank, p in enumerate(found, 1):
            key = p.id or p.contents  # a server need not send ids
            score[key] = score.get(key, 0.0) + weight / (constant + rank)
            passage.setdefault(key, p)
    best = sorted(score, key=lambda key: -score[key])
    return [Passage(passage[key].id, passage[key].contents, score[key]) for key in best]
