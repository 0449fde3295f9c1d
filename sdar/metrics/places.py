"""Token means by place: by the number of a turn in its episode, and by the position of a token in its response."""

import torch
from torch import Tensor

from sdar.metrics.means import Metrics
from sdar.turns import Turns
from sdar.types import Batch

TURNS = {"1": 1, "2": 2, "3": 3, "4": 4, "5-8": 8, "9-16": 16, "17-32": 32, "33-64": 64, "65+": None}
"""Ranges of turn numbers, counted from 1, each with its last one."""
POSITIONS = {"1": 1, "2-4": 4, "5-16": 16, "17-64": 64, "65-256": 256, "257-1024": 1024, "1025+": None}
"""Ranges of token positions in a response, counted from 1, each with its last one."""


class Places:
    """Where each response token of a batch stands.

    Args:
        batch: Rows; a response is a run of response tokens.
    """

    def __init__(self, batch: Batch):
        self.mask = batch.response_mask
        counted = self.mask.long().cumsum(1)  # [batch, time]
        position = counted - counted.masked_fill(self.mask, 0).cummax(1).values  # [batch, time]: from 1 in each response
        self._of = {"turn": (TURNS, _range(batch.turn_ids + 1, TURNS)), "position": (POSITIONS, _range(position, POSITIONS))}

    def add(self, metrics: Metrics, name: str, values: Tensor, chosen: Tensor | None = None) -> None:
        """Add a per-token quantity ``[batch, time]`` as ``<name>/turn/<range>`` and ``<name>/position/<range>``; no device is waited for.

        Args:
            chosen: Bool ``[batch, time]``: the response tokens that count; None: all.
        """
        counts = (self.mask if chosen is None else chosen & self.mask).float()  # [batch, time]
        both = torch.stack([values.detach().float().where(counts > 0, 0.0), counts]).flatten(1)  # [2, tokens]
        for kind, (ranges, index) in self._of.items():
            sums = both.new_zeros(2, len(ranges)).index_add_(1, index, both)
            for place, total, count in zip(ranges, *sums, strict=True):
                metrics.add(f"{name}/{kind}/{place}", total, count)


def add_turns(metrics: Metrics, name: str, values: Tensor, turns: Turns) -> None:
    """Add a number of each turn ``[turns]`` as ``<name>/turn/<range>``."""
    sums = torch.stack([values, torch.ones_like(values)]).float()  # [2, turns]
    sums = sums.new_zeros(2, len(TURNS)).index_add_(1, _range(turns.turn + 1, TURNS), sums)
    for place, total, count in zip(TURNS, *sums, strict=True):
        metrics.add(f"{name}/turn/{place}", total, count)


def _range(numbers: Tensor, ranges: dict[str, int | None]) -> Tensor:
    """The index of the range that each number lies in, flat: ``[batch * time]``."""
    ends = [last for last in ranges.values() if last is not None]
    return torch.bucketize(numbers.flatten(), torch.tensor(ends, device=numbers.device))
