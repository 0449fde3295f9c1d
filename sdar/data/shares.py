"""How often each of several worlds has its turn: by shares, in a fixed order, never far from any share."""

import math
from collections.abc import Mapping
from fractions import Fraction

from sdar.errors import ConfigError


class Shares:
    """Deals places out to worlds, one after the other and for ever.

    After any number of places each world has had its share of them, to within one place (to within a half for two worlds). No random
    number is drawn: which world a place belongs to follows from the shares alone, so that a run that goes on needs to remember nothing.
    It is Tijdeman's solution of the chairman assignment problem (Discrete Mathematics 32, 1980); in exact fractions, no sum is rounded.

    Args:
        shares: Weight of each world; 3 and 1, or 0.75 and 0.25, are the same.

    Raises:
        ConfigError: no worlds, or a weight that is not positive.
    """

    def __init__(self, shares: Mapping[str, float]):
        for name, share in shares.items():
            if not share > 0:
                raise ConfigError(
                    f"data.envs.{name}.share is {share}: the world would never be played. Give a positive weight, or take it out."
                )
        weights = [Fraction(str(share)) for share in shares.values()]
        self.of = {name: weight / sum(weights) for name, weight in zip(shares, weights, strict=True)}
        """World -> its part of all places."""
        self._names, self._shares = [*self.of], [*self.of.values()]
        self._period = math.lcm(*(share.denominator for share in self._shares))
        """After so many places every world has had exactly its share, and all begins anew."""
        self._order: list[int] = []
        self._taken = [[0] * len(weights)]

    def at(self, place: int) -> str:
        """The world of a place."""
        place %= self._period
        self._deal(place + 1)
        return self._names[self._order[place]]

    def before(self, place: int) -> dict[str, int]:
        """How many of the first so many places each world has."""
        rounds, rest = divmod(place, self._period)
        self._deal(rest)
        whole = [int(share * self._period) * rounds for share in self._shares]
        return {name: w + t for name, w, t in zip(self._names, whole, self._taken[rest], strict=True)}

    def _deal(self, places: int) -> None:
        worlds = range(len(self._shares))
        slack = Fraction(1, max(1, 2 * len(worlds) - 2))
        while len(self._order) < places:
            taken, next_place = self._taken[-1], len(self._order) + 1
            owed = [share * next_place - had for share, had in zip(self._shares, taken, strict=True)]
            due = [w for w in worlds if owed[w] >= slack]  # who would otherwise have too many
            chosen = min(due, key=lambda w: ((1 - slack - owed[w]) / self._shares[w], w))  # whose place cannot wait
            self._order.append(chosen)
            self._taken.append([had + (w == chosen) for w, had in enumerate(taken)])
