"""What the policy thinks of rows before their updates, found out by the passes of the first update itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdar.scoring import Scored, StudentOutput
from sdar.types import Batch, Late


class LateScores:
    """Old log-probabilities and entropies of rows: of those that the first optimizer step learns from by its forward passes, of the
    others by passes of their own; of all by such passes, as soon as somebody reads one before.

    Args:
        batch: The rows.
        score: Reads those of these numbers now.
    """

    def __init__(self, batch: Batch, score: Callable[[Tensor], Scored]):
        self.batch, self._score = batch, score
        self.behind: list[Callable[[], None]] = []
        """What is done as soon as they are found."""
        self._found: Scored | None = None
        self._learned: list[tuple[Tensor, Scored]] = []  # numbers of rows, and what a pass gave them
        batch.scored_row = torch.arange(len(batch))
        late: dict[str, Any] = {"old_logp": Late(lambda: self().logp), "old_entropy": Late(lambda: self().entropy)}
        vars(batch).update(late)

    def __call__(self) -> Scored:
        """Of all rows; to be called before weights change for the first time."""
        if self._found is None:
            left = torch.ones(len(self.batch), dtype=torch.bool)
            for rows, _ in self._learned:
                left[rows.cpu()] = False
            if left.any():
                rows = left.nonzero()[:, 0]
                self._learned.append((rows, self._score(rows)))
            self._found = self._together()
        return self._found

    def learned(self, part: Batch, now: StudentOutput) -> None:
        """A pass of the update over some rows: what it gives their tokens is what they had before the update."""
        if self._found is not None or not part.awaits("old_logp") or not torch.equal(part.loss_mask, part.response_mask):
            return
        found = Scored(now.logp.detach(), now.entropy.detach(), now.allowed_logmass.detach())
        part.old_logp, part.old_entropy = found.logp, found.entropy
        self._learned.append((part.scored_row, found))

    def _together(self) -> Scored:
        ids, names = self.batch.ids, ("logp", "entropy", "allowed_logmass")
        out = {name: torch.zeros(ids.shape, dtype=self._learned[0][1].logp.dtype, device=ids.device) for name in names}
        for rows, found in self._learned:
            for name, values in out.items():
                values[rows.to(ids.device), : found.logp.shape[1]] = getattr(found, name).to(ids.device)
        return Scored(**out)
