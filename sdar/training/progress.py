"""Iterations that bring no optimizer step: told at once, counted, and not for ever.

Training is counted in optimizer steps, so a run whose iterations bring none would never end.
"""

from collections import Counter
from collections.abc import Sequence

from lightning.pytorch.utilities import rank_zero_warn

from sdar.errors import NoProgressError
from sdar.rollout.groups import describe_lost
from sdar.training.host import Host
from sdar.types import Episode, Status

NOTHING_LEFT = {
    "rows": "no row of its episodes had a response to learn from",
    "credit": "credit left nothing to learn from (groups without a difference, say)",
    "weigh": "no row had a token to learn from (filter, span, nothing to tell)",
}
"""Part of an iteration that left no batch: what that means."""


class Progress:
    """Looks at each iteration when it is over. Every rank sees the same.

    Args:
        most: Iterations in a row that may end without a step.
    """

    def __init__(self, module: Host, most: int):
        self.module, self.most = module, most
        self.empty = 0
        """How many of the last iterations ended without a step."""
        self._reasons: Counter[str] = Counter()
        self._first_fault = ""

    def end(self, without: str | None, episodes: Sequence[Episode]) -> None:
        """An iteration is over.

        Args:
            without: The part that left nothing to learn from, a key of `NOTHING_LEFT`; None: there was a step.

        Raises:
            NoProgressError: too many in a row did not.
        """
        done = self.module.iteration
        lost = describe_lost(episodes)
        if lost:
            text = f"iteration {done}: faults of the world ended {lost}. Further ones are counted in rollout/<status>_share."
            self.module.say_once("fault", text)
        for e in episodes:
            if e.status == Status.CONTEXT and not e.turns:
                self.module.say_once(f"no room {e.task.id}", f"task {e.task.id} cannot be played: {e.error}")
        if without is None:
            self.empty, self._reasons, self._first_fault = 0, Counter(), ""
            return
        self.empty += 1
        every = bool(episodes) and all(e.lost for e in episodes)
        self._reasons["the world failed in every episode" if every else NOTHING_LEFT[without]] += 1
        self._first_fault = self._first_fault or lost
        reasons = "; ".join(f"{reason} ({n} of {self.empty})" for reason, n in self._reasons.most_common())
        fault = f" Faults of the world ended {self._first_fault}." if self._first_fault else ""
        if self.empty == 1:
            rank_zero_warn(f"iteration {done} brought no optimizer step: {reasons}.{fault}")
        if self.empty >= self.most:
            raise NoProgressError(
                f"{self.empty} iterations in a row, up to iteration {done}, brought no optimizer step (model.max_empty_iterations is "
                f"{self.most}): {reasons}.{fault} The weights were not changed by them. Mend what is named, or change tasks, group_size "
                "or filters so that there is something to learn from."
            )
