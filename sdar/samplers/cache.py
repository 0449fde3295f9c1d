"""A ragged key-value cache that survives between turns: rows of different lengths, holes masked, buffers written in place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What models call keys and values, as an argument and in what they return: ``cache`` from transformers 5.24 on."""


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with spare room: a new token is written into a buffer instead of copying everything before it."""

    _key_room: Tensor
    _value_room: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if old == 0 or new > self._key_room.shape[-2]:
            room = max(64, new + new // 4)
            self._key_room = self._grow(self.keys, key_states, old, room)
            self._value_room = self._grow(self.values, value_states, old, room)
        self._key_room[:, :, old:new] = key_states
        self._value_room[:, :, old:new] = value_states
        self.keys, self.values = self._key_room[:, :, :new], self._value_room[:, :, :new]
        return self.keys, self.values

    @staticmethod
    def _grow(kept: Tensor | None, states: Tensor, old: int, room: int) -> Tensor:
        batch, heads, _, width = states.shape
        grown = states.new_empty(batch, heads, room, width)  # nobody reads what was not written
        if old and kept is not None:
            grown[:, :, :old] = kept
        return grown


class RaggedCache:
    """Keys and values of a batch of rows; ``mask[b, l]`` says whether position l of row b holds a token of that row."""

    def __init__(self, names: Sequence[object], device: torch.device):
        self.layers = Cache(layer_class_to_replicate=GrowingLayer)
        self.names = list(names)
        self.ids: list[list[int]] = [[] for _ in names]
        self.mask = torch.zeros(len(names), 0, dtype=torch.long, device=device)

    def continues(self, names: Sequence[object], prompts: Sequence[Sequence[int]]) -> list[int] | None:
        """Cached row of each prompt, or None unless every prompt goes on from what its row holds."""
        where = {name: row for row, name in enumerate(self.names)}
        rows = [where.get(name, -1) for name in names]
        for row, prompt in zip(rows, prompts, strict=True):
            if row < 0 or len(prompt) <= len(self.ids[row]) or list(prompt[: len(self.ids[row])]) != self.ids[row]:
                return None
        return rows

    def keep(self, rows: Sequence[int]) -> None:
        """Only the given rows, holes closed: finished episodes leave the batch at once."""
        self.names = [self.names[r] for r in rows]
        self.ids = [self.ids[r] for r in rows]
        mask = self.mask[torch.tensor(rows, device=self.mask.device)]
        counts = mask.sum(1)
        length = int(counts.max())
        if list(rows) == list(range(len(self.mask))) and mask.shape[1] <= length + length // 4:
            return
        columns = mask.sort(dim=1, stable=True).indices[:, mask.shape[1] - length :]  # tokens to the right, in order
        picked = torch.tensor(rows, device=mask.device)[:, None]
        layers: list[Any] = self.layers.layers
        for layer in layers:
            keys = layer.keys.transpose(1, 2)[picked, columns].transpose(1, 2)
            values = layer.values.transpose(1, 2)[picked, columns].transpose(1, 2)
            layer.lazy_initialization(keys, values)  # forgets what it held
            layer.update(keys, values)
        self.mask = mask.gather(1, columns)

    def extend(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded new tokens ``[batch, new]`` (rows may get none), the mask over everything, and positions."""
        width, device = max(len(row) for row in ids), self.mask.device
        tokens = torch.tensor([[0] * (width - len(row)) + [*row] for row in ids], dtype=torch.long)
        fresh = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], dtype=torch.long).to(device)
        self.ids = [[*known, *row] if row else known for known, row in zip(self.ids, ids, strict=True)]
        positions = (self.mask.sum(1, keepdim=True) + fresh.cumsum(1) - 1).clamp_min(0)
        self.mask = torch.cat([self.mask, fresh], 1)
        return tokens.to(device), self.mask, positions
