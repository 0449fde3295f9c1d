"""Means over everything that an iteration saw, whatever the order and the pieces it came in."""

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


class Metrics:
    """A `Mean` for each name, made when something is first added to it."""

    def __init__(self) -> None:
        self._means: dict[str, Mean] = {}

    def __getitem__(self, name: str) -> Mean:
        if name not in self._means:
            self._means[name] = Mean()
        return self._means[name]

    def add(self, name: str, total: float | Tensor, count: float | Tensor = 1.0) -> None:
        """`total` is a sum over `count` things."""
        self[name].update(total, count)

    def values(self, name: str, values: Sequence[float]) -> None:
        """Add numbers that count once each."""
        self.add(name, sum(values), len(values))

    def add_tokens(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add a per-token quantity ``[batch, time]``."""
        chosen = values.detach()[mask.bool()].float()
        self.add(name, chosen.sum(), chosen.numel())

    def not_finite(self) -> list[str]:
        """Names whose sum is no finite number."""
        return [name for name, mean in self._means.items() if not torch.isfinite(mean.total)]

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
        # Tensors are slow to pickle
        sums = {name: (mean.total.item(), mean.count.item()) for name, mean in self._means.items()}
        every = ranks.all_gather_object(sums, "metrics")
        self.reset()
        for of_rank in every:
            for name, (total, count) in of_rank.items():
                self.add(name, total, count)

    means = Renamed("compute")
    tokens = Renamed("add_tokens")

    def compute(self) -> dict[str, float]:
        """The means; empty ones are left out. All start anew."""
        out = {name: mean.compute().item() for name, mean in self._means.items() if mean.count}
        self.reset()
        return out

    def reset(self) -> None:
        for mean in self._means.values():
            mean.reset()
