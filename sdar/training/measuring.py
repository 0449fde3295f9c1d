"""How far a validation, a test or a prediction is: episodes that have ended, success so far, time left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdar.rollout.standing import Standing


@dataclass
class _Part:
    """What one actor plays of one panel."""

    planned: int = 0
    unit: str = "episodes"
    standings: list[Standing] = field(default_factory=list)  # of what was played together, the latest last

    @property
    def standing(self) -> Standing:
        return sum(self.standings, Standing(0))


class Measuring:
    """What is known while panels are played piece by piece.

    Args:
        what: validation, test or prediction.
        ranks: Processes that share the work; what is told is the first one's.
        clock: Gives seconds.
    """

    def __init__(self, what: str, ranks: int = 1, clock: Callable[[], float] = time.monotonic):
        self.what, self.ranks, self.clock = what, ranks, clock
        self._began = clock()
        self._parts: dict[tuple[str, str], _Part] = {}
        self._now = ("", "")

    def plan(self, panel: str, actor: str, episodes: int) -> None:
        """So many further episodes of a panel will be played by an actor, over all ranks."""
        self._parts.setdefault((panel, actor), _Part()).planned += episodes

    def begin(self, panel: str, actor: str, planned: int, episodes: int, unit: str = "episodes") -> None:
        """A piece begins, of which `planned` episodes were expected and `episodes` will be played.

        Args:
            unit: What they are; of others than episodes there is no success.
        """
        self.plan(panel, actor, episodes - planned)
        self._now = panel, actor
        self._parts[self._now].unit = unit

    def hear(self, standing: Standing) -> None:
        """How far the episodes are that are being played together: of the same ones it is the same object each time."""
        standings = self._parts.setdefault(self._now, _Part()).standings
        if not standings or standings[-1] is not standing:
            standings.append(standing)

    @property
    def played(self) -> list[str]:
        """What has ended here: how many of which panel, by whom."""
        ended = [(_place(*key), part.standing.ended, part.unit) for key, part in self._parts.items()]
        return [f"{count} {unit} of {place}" for place, count, unit in ended if count]

    @property
    def share(self) -> float:
        """Of the whole, in [0, 1]."""
        planned = sum(part.planned for part in self._parts.values()) / self.ranks
        return min(1.0, sum(part.standing.work for part in self._parts.values()) / planned) if planned else 1.0

    @property
    def seconds(self) -> float:
        return self.clock() - self._began

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take, at the pace so far; None: nothing is known yet."""
        return self.seconds * (1 - self.share) / self.share if self.share else None

    @property
    def place(self) -> str:
        """The panel that is being played, and by whom if not by the policy."""
        return _place(*self._now)

    @property
    def count(self) -> str:
        """How many of this panel and actor have ended, of how many; on the first rank where there are several."""
        return f"{self._part.standing.ended}/{-(-self._part.planned // self.ranks)}"

    @property
    def unit(self) -> str:
        return self._part.unit

    @property
    def success(self) -> str:
        """Of the episodes of this panel and actor that have ended; empty: of none."""
        standing = self._part.standing
        played = standing.ended - standing.lost
        return f"success {standing.succeeded / played:.1%}" if played and self.unit == "episodes" else ""

    @property
    def _part(self) -> _Part:
        return self._parts.get(self._now, _Part())


def _place(panel: str, actor: str) -> str:
    return panel if actor == "policy" else f"{panel}, {actor}"
