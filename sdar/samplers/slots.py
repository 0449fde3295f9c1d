"""Keys and values of many rows, a slot each, and the tokens that they belong to: what was read once is found by its tokens."""

from collections.abc import Collection
from typing import Any

import numpy
import torch
from torch import Tensor

SMALLEST_ROOM = 64


class Slots:
    """One buffer a layer, ``[slots, key_value_heads, room, width]``; a row's tokens stand from the start of its slot, without holes.

    Which keys and values two prompts share is decided by their tokens alone: the longest common beginning with any slot is taken over or
    copied.

    Args:
        limit: Most slots.
        expected: Tokens that the longest row is expected to have.
    """

    def __init__(self, limit: int, expected: int = SMALLEST_ROOM):
        self.limit, self.expected = limit, expected
        self.free = numpy.zeros(0, dtype=bool)
        """[slots] nobody needs the row: what it holds may be taken over."""
        self.lengths = numpy.zeros(0, dtype=numpy.int64)
        """[slots] how many tokens each holds, with those of the pass that is made ready."""
        self.tokens = numpy.zeros((0, 0), dtype=numpy.int64)
        """[slots, room]"""
        self._used = numpy.zeros(0, dtype=numpy.int64)
        self._own: dict[object, int] = {}  # name of a row -> slot
        self._of: dict[int, object] = {}  # slot -> name of the row that it was last taken for
        self._clock = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def room(self) -> int:
        """Most tokens of a slot."""
        return self.tokens.shape[1]

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The buffers of a layer that has such keys and values."""
        if number not in self._layers:
            self._layers[number] = self._empty(key), self._empty(value)
        return self._layers[number]

    def buffers(self) -> list[Tensor]:
        """Of all layers."""
        return [buffer for pair in self._layers.values() for buffer in pair]

    def _empty(self, states: Tensor) -> Tensor:
        kind = states.device.type  # under autocast attention is in the narrow type: nothing wider is kept
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        heads, _, width = states.shape
        return torch.zeros(len(self), heads, self.room, width, dtype=dtype, device=states.device)

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for so many rows, of so many tokens at most; a quarter to spare where rows are to grow."""
        have, room = len(self), self.room
        if slots <= have and tokens <= room:
            return
        slots = max(slots, have)
        if have:
            slots = max(slots, min(self.limit, have + have // 4)) if slots > have else have
        if tokens > room:
            room = self.expected if tokens <= self.expected else tokens + tokens // 4
        grown = numpy.zeros((slots, room), dtype=numpy.int64)
        grown[:have, : self.room] = self.tokens
        for number, pair in self._layers.items():
            self._layers[number] = (_grown(pair[0], slots, room), _grown(pair[1], slots, room))
        self.tokens = grown
        self.lengths, self._used = (numpy.pad(known, (0, slots - have)) for known in (self.lengths, self._used))
        self.free = numpy.pad(self.free, (0, slots - have), constant_values=True)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max(initial=0))

    def keep(self, names: Collection[object]) -> None:
        """Nobody needs the rows of other names any more."""
        for name in [name for name in self._own if name not in names]:
            self.leave(name)

    def leave(self, name: object) -> None:
        """Nobody needs the row of this name any more; what it holds may still be of use."""
        if name in self._own:
            self.free[self._own.pop(name)] = True

    def common(self, prompt: numpy.ndarray) -> numpy.ndarray:
        """[slots] how many tokens each has in common with the beginning of a prompt, whose last one is always read anew."""
        most = min(len(prompt) - 1, self.room)
        if not most:
            return numpy.zeros_like(self.lengths)
        differs = self.tokens[:, :most] != prompt[:most]
        found = numpy.where(differs.any(1), differs.argmax(1), most)
        return numpy.minimum(found, self.lengths)

    def choose(self, name: object, common: numpy.ndarray, busy: numpy.ndarray) -> int:
        """A slot for a row: its own from before, else one that nobody needs, else a new one, else that which was used least recently.

        Args:
            busy: bool ``[limit]``, True where a slot is out of the question.
        """
        own = self._own.get(name)
        if own is not None and not busy[own]:
            return own
        busy = busy[: len(self)]
        if len(free := numpy.flatnonzero(self.free & ~busy)):
            return int(free[common[free].argmax()])
        if len(self) < self.limit:
            self.reserve(len(self) + 1, self.room)
            return len(self) - 1
        return int(numpy.where(busy, self._clock + 1, self._used).argmin())

    def take(self, slot: int, name: object, prompt: numpy.ndarray) -> None:
        """A slot holds the tokens of a prompt from now on."""
        before = self._of.get(slot)
        if self._own.get(before) == slot:
            del self._own[before]
        if name in self._own:  # twice under one name: the later row is the one that goes on
            self.free[self._own[name]] = True
        self._own[name], self._of[slot] = slot, name
        self.free[slot] = False
        self.tokens[slot, : len(prompt)] = prompt
        self.lengths[slot] = len(prompt)
        self._clock += 1
        self._used[slot] = self._clock

    def extend(
        self, slots: numpy.ndarray, counts: numpy.ndarray, tokens: numpy.ndarray
    ) -> tuple[numpy.ndarray, numpy.ndarray]:
        """`counts` more tokens in each of some slots, one slot's behind the other's: of each token its slot and its place there."""
        rows = numpy.repeat(slots, counts)
        places = self.lengths[rows] + numpy.arange(len(rows)) - numpy.repeat(counts.cumsum() - counts, counts)
        self.tokens[rows, places] = tokens
        self.lengths[slots] += counts
        return rows, places

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Keys and values of the tokens from `start` to `stop`."""
        if stop > start:
            for buffer in self.buffers():
                buffer[target, :, start:stop] = buffer[source, :, start:stop]


def _grown(buffer: Tensor, slots: int, room: int) -> Tensor:
    have, heads, width, size = buffer.shape
    grown: Any = buffer.new_zeros(slots, heads, room, size)  # zeros, for what was not written must not be NaN
    grown[:have, :, :width] = buffer
    return grown
