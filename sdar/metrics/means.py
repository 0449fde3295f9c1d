"""Means over everything that an iteration saw, whatever the order and the pieces it came in."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdar.metrics.mean import Mean
from sdar.renamed import Renamed, old_names

if TYPE_CHECKING:
    from sdar.distributed.communicator import Communicator


__getattr__ = old_names(__name__, Tally="Metrics")

Number = float | Tensor
"""A number, or a tensor that holds one."""


class Metrics:
    """A mean for each name, of what is added to it.

    What is added is read when somebody asks, all at once: a device is never waited for while it computes.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        """Name -> total and count of all that was read."""
        self._added: list[tuple[str, Number, Number]] = []
        """Names with totals and counts that are not read yet, in order."""

    def __getitem__(self, name: str) -> Mean:
        """The mean of what has been added to `name`."""
        self._read()
        mean = Mean()
        mean.update(*self._sums.get(name, (0.0, 0.0)))
        return mean

    def add(self, name: str, total: Number, count: Number = 1.0) -> None:
        """`total` is a sum over `count` things."""
        self._added.append((name, _kept(total), _kept(count)))

    def _read(self) -> None:
        """Sum up what was added: one transfer from each device."""
        added, self._added = self._added, []
        numbers = [number for _, *both in added for number in both]
        told = {place: number.reshape(()) for place, number in enumerate(numbers) if isinstance(number, Tensor)}
        for device in {number.device for number in told.values()}:
            here = {place: number for place, number in told.items() if number.device == device}
            for place, value in zip(here, torch.stack([*here.values()]).tolist(), strict=True):
                numbers[place] = value
        for (name, *_), total, count in zip(added, numbers[::2], numbers[1::2], strict=True):
            so_far, of = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = so_far + float(total), of + float(count)

    def values(self, name: str, values: Sequence[float]) -> None:
        """Add numbers that count once each."""
        self.add(name, sum(values), len(values))

    def add_tokens(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add a per-token quantity ``[batch, time]``."""
        mask = mask.to(values.device).bool()
        # not `values[mask]`: how many there are would have to be known
        self.add(name, values.detach().where(mask, 0).sum(dtype=_exact(values)), mask.sum())

    def not_finite(self) -> list[str]:
        """Names whose sum is no finite number."""
        self._read()
        return [name for name, (total, _) in self._sums.items() if not math.isfinite(total)]

    @contextmanager
    def timed(self, name: str, rate: str | None = None) -> Iterator[None]:
        """Add the seconds that a block takes; they also divide what is added to `rate` with a count of 0."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self.add(name, seconds)
        if rate is not None:
            self.add(rate, 0.0, seconds)

    def sync(self, ranks: "Communicator") -> None:
        """Take in what all ranks were told, whose names may be others: one meeting for all names."""
        self._read()
        every = ranks.all_gather_object(self._sums, "metrics")
        self.reset()
        for of_rank in every:
            for name, (total, count) in of_rank.items():
                self.add(name, total, count)

    means = Renamed("compute")
    tokens = Renamed("add_tokens")

    def compute(self) -> dict[str, float]:
        """The means; empty ones are left out. All start anew."""
        self._read()
        out = {name: total / count for name, (total, count) in self._sums.items() if count}
        self.reset()
        return out

    def reset(self) -> None:
        self._sums, self._added = {}, []


def _kept(number: Number) -> Number:
    """A number that later computations do not change."""
    return number.detach().to(_exact(number), copy=True) if isinstance(number, Tensor) else number


def _exact(values: Tensor) -> torch.dtype:
    """What sums are kept in: MPS has no float64."""
    return torch.float32 if values.device.type == "mps" else torch.float64
