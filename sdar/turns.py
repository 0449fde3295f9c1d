"""The turns of a batch in the order in which they were taken, whatever the layout of its rows.

Some weights recurse over the turns of an episode. In the turn layout these are rows of their own, in any order; here they
stand behind each other.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from sdar.types import Batch, TokenView


class Turns:
    """Turns of all episodes of a batch, by episode, then by time: ``[turns]``.

    Only turns with response tokens that carry a loss are there. A `TokenView` does not know the episodes: each of its rows counts as
    one, which is all that a gate can see.
    """

    mask: Shaped[Tensor, "rows time"]
    episode_of_row: Int[Tensor, " rows"]
    episode: Int[Tensor, " turns"]
    turn: Int[Tensor, " turns"]
    length: Int[Tensor, " turns"]
    row: Int[Tensor, " turns"]
    weights: Tensor | None = None
    """[turns] how much each counts in the distillation, once a turn weight has said it."""

    def __init__(self, rows: Batch | TokenView):
        self.mask = rows.response_mask
        width = int(rows.turn_ids.max()) + 1
        number = torch.arange(len(self.mask), device=self.mask.device)
        self.episode_of_row = rows.episode if isinstance(rows, Batch) else number
        """[rows] index of the episode."""
        keys = (self.episode_of_row[:, None] * width + rows.turn_ids)[self.mask]
        unique, self.index = torch.unique(keys, return_inverse=True)
        self.episode = unique // width
        """[turns] index of the episode."""
        self.turn = unique % width
        """[turns] number of the turn in its episode."""
        self.length = torch.bincount(self.index, minlength=len(unique))
        """[turns] response tokens."""
        row = number[:, None].expand_as(self.mask)[self.mask]
        self.row = torch.zeros_like(self.turn).index_copy_(0, self.index, row)
        """[turns] the row that each turn stands in."""

    def __len__(self) -> int:
        return len(self.turn)

    def sum(self, values: Tensor) -> Tensor:
        """``[batch, time]`` to its sum over the response tokens of each turn."""
        chosen = values[self.mask]
        return chosen.new_zeros(len(self)).index_add_(0, self.index, chosen)

    def mean(self, values: Tensor) -> Tensor:
        """``[batch, time]`` to its mean over the response tokens of each turn."""
        return self.sum(values) / self.length

    def weigh(self, weights: Tensor) -> Tensor:
        """Keep weights ``[turns]`` for those who look at the turns later, and `spread` them."""
        self.weights = weights
        return self.spread(weights)

    def spread(self, values: Tensor) -> Tensor:
        """``[turns]`` to ``[batch, time]``: each response token gets the value of its turn, other tokens 0."""
        out = values.new_zeros(self.mask.shape)
        out[self.mask] = values[self.index]
        return out
