"""How far episodes are that are played together."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Standing:
    """Counts of episodes; those of several rollouts add up.

    Attributes:
        of: All that are played.
        ended: Those that have ended.
        lost: Those that a fault of the world ended.
        succeeded: Those that reached their goal.
        work: What of the work is done, in episodes: an ended one counts 1, one in play the share of its horizon that it has taken.
    """

    of: int
    ended: int = 0
    lost: int = 0
    succeeded: int = 0
    work: float = 0.0

    def __add__(self, other: "Standing") -> "Standing":
        return Standing(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def took_turn(self, horizon: int) -> None:
        """An episode takes a turn of at most `horizon`."""
        self.work += 1 / horizon

    def end(self, taken: int, horizon: int, lost: bool, succeeded: bool) -> None:
        """An episode has ended, after `taken` turns were told with `took_turn`."""
        self.ended += 1
        self.lost += lost
        self.succeeded += succeeded
        self.work += 1 - taken / horizon
