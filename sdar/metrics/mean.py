"""The mean that nearly every number of an iteration is."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """A sum over a count, each of which may be told before the other and in any pieces; NaN while the count is 0.

    Both are float64 and add up over ranks: what each rank adds as a whole counts as often in the sum as in the count.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # `Metrics.sync` brings the ranks together, all names at once
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: float | Tensor, count: float | Tensor = 1.0) -> None:
        """`total` is a sum over `count` things."""
        self.total += float(total)
        self.count += float(count)

    def compute(self) -> Tensor:
        return self.total / self.count
