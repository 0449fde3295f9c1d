"""One pass over what is new in many rows: the last token of each that is being answered, with a draft of what comes behind it, and prompts
as far as they were not read before."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sdar.attention import RowLayout, read_logits
from sdar.samplers.slots import Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORT = 64
"""New tokens up to which prompts attend together."""
BLOCK = 16
"""Rows that attend together where their lengths differ."""


@dataclass
class _Read:
    """A piece of a prompt: its tokens in the pass, and how many of the row stand before them."""

    slot: int
    start: int
    stop: int
    past: int

    @property
    def tokens(self) -> numpy.ndarray:
        """Which of the pass it answers for, in order."""
        return numpy.arange(self.start, self.stop)

    def mask(self, window: int | None, device: torch.device) -> Tensor | None:
        """``[tokens, row]``; None where a plain causal one will do."""
        new = self.stop - self.start
        stop = self.past + new
        if (new == 1 or not self.past) and (window is None or stop <= window):
            return None
        places, queries = torch.arange(stop, device=device), torch.arange(self.past, stop, device=device)[:, None]
        return (places <= queries) & (places > queries - (window or stop))

    def attend(self, asked: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
        """``[tokens, heads, width]``"""
        query = asked[self.start : self.stop].transpose(0, 1)
        stop = self.past + query.shape[1]
        key, value = keys[self.slot, :, :stop], values[self.slot, :, :stop]
        return scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            is_causal=mask is None and query.shape[1] > 1,
            scale=scaling,
            enable_gqa=len(key) < len(query),
        )[0].transpose(0, 1)


class _Reads:
    """Short pieces of prompts that attend together, filled up to the longest."""

    def __init__(self, reads: list[_Read], device: torch.device):
        start, new = numpy.array([(read.start, read.stop - read.start) for read in reads]).T
        self.past = numpy.array([read.past for read in reads])
        self.lengths = self.past + new
        places = numpy.arange(new.max())
        index = start[:, None] + numpy.minimum(places, new[:, None] - 1)
        filled = places < new[:, None]
        self.tokens = index[filled]
        self.asking = torch.from_numpy(index).to(device)
        self.answered = torch.from_numpy(numpy.flatnonzero(filled)).to(device)
        self.slots = torch.tensor([read.slot for read in reads], device=device)

    def mask(self, window: int | None, device: torch.device) -> Tensor:
        """``[rows, 1, tokens, row]``"""
        length = int(self.lengths.max())
        queries = torch.from_numpy(self.past)[:, None, None] + torch.arange(self.asking.shape[1])[:, None]
        places = torch.arange(length)
        return ((places <= queries) & (places > queries - (window or length)))[:, None].to(device)

    def attend(self, asked: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
        """``[tokens, heads, width]``"""
        length = int(self.lengths.max())
        keys, values = (part[:, :, :length].index_select(0, self.slots) for part in (keys, values))
        query = asked.index_select(0, self.asking.flatten()).unflatten(0, self.asking.shape).transpose(1, 2)
        found = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=keys.shape[1] < query.shape[1]
        )
        return found.transpose(1, 2).flatten(0, 1).index_select(0, self.answered)


class _Block:
    """Neighbouring slots, most of which get new tokens: they attend together, up to the longest of them.

    Args:
        slots: All keys and values.
        rows: ``[rows]`` slots that get tokens.
        counts: ``[rows]`` how many each.
        first: Place of the first row's first token in the pass; the others follow.
    """

    def __init__(self, slots: Slots, rows: numpy.ndarray, counts: numpy.ndarray, first: int, device: torch.device):
        self.start, self.end, self.first, self.count = int(rows[0]), int(rows[-1]) + 1, first, int(counts.sum())
        self.length, self.most = int(slots.lengths[rows].max()), int(counts.max())
        self.seen = numpy.arange(self.start, self.end)
        self.picked: Tensor | None = None
        self.asking = self.answered = None
        if 3 * len(rows) < self.end - self.start:  # copying their keys is less work than going through all
            self.seen, self.picked = rows, torch.from_numpy(rows).to(device)
        # a slot that gets none is asked about another's, and a row that gets fewer several times about its last
        asking = numpy.searchsorted(rows, self.seen)
        gets = rows[asking] == self.seen
        places = numpy.minimum(numpy.arange(self.most), counts[asking, None] - 1)
        self.past = (slots.lengths[self.seen] - numpy.where(gets, counts[asking], 1))[:, None] + places
        if self.count < places.size:
            index = first + (counts.cumsum() - counts)[asking, None] + places
            answered = gets[:, None] & (numpy.arange(self.most) < counts[asking, None])
            self.asking = torch.from_numpy(index.reshape(-1)).to(device)
            self.answered = torch.from_numpy(numpy.flatnonzero(answered)).to(device)

    def mask(self, slots: Slots, window: int | None, device: torch.device) -> Tensor | None:
        """``[slots, 1, tokens, length]``; None where all is seen."""
        last = torch.from_numpy(self.past).clamp(0, self.length - 1)[:, :, None]
        places = torch.arange(self.length)
        mask = (places <= last) & (places > last - (window or self.length))
        return None if bool(mask.all()) else mask[:, None].to(device)

    def attend(self, asked: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
        """``[tokens, heads, width]``"""
        query = asked[self.first : self.first + self.count] if self.asking is None else asked.index_select(0, self.asking)
        if self.picked is None:
            keys, values = (part[self.start : self.end, :, : self.length] for part in (keys, values))
        else:
            keys, values = (part[:, :, : self.length].index_select(0, self.picked) for part in (keys, values))
        # the heads that share a key as its queries: the fast kernels know no groups, or read the key once for each head
        grouped = query.unflatten(1, (keys.shape[1], -1)).unflatten(0, (-1, self.most)).permute(0, 2, 3, 1, 4)
        share = grouped.shape[2]
        if mask is not None and self.most > 1 and share > 1:
            mask = mask.repeat(1, 1, share, 1)
        found = scaled_dot_product_attention(grouped.flatten(2, 3), keys, values, attn_mask=mask, scale=scaling)
        found = found.unflatten(2, (share, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
        return found if self.answered is None else found.index_select(0, self.answered)


class RowPass(RowLayout):
    """New tokens of some slots. `add_prompt` for each prompt, `run`; tokens that several new prompts begin with are read once.

    Args:
        slots: Their keys and values; gets the new ones.
        answering: ``[rows]`` slots with new tokens, in ascending order.
        counts: ``[rows]`` how many each.
        tokens: These tokens, one row's behind the other's.
    """

    def __init__(self, slots: Slots, answering: numpy.ndarray, counts: numpy.ndarray, tokens: numpy.ndarray):
        self.slots, self.answering, self.counts = slots, answering, counts
        rows, places = slots.extend(answering, counts, tokens)
        self.count = self._said = len(tokens)
        self._ids, self._positions = [tokens], [places]
        self._written = [(rows, places, numpy.arange(self.count))]  # slots, positions, tokens of the pass
        self._reads: list[_Read] = []
        self._wanted = [numpy.arange(self.count)]
        self._fresh: dict[int, tuple[int, numpy.ndarray]] = {}  # slot of a prompt -> first new position, tokens of the pass
        self._masks: dict[int | None, list[Tensor | None]] = {}

    def add_prompt(self, name: object, prompt: numpy.ndarray, busy: numpy.ndarray, ahead: Sequence[int] = ()) -> int:
        """The slot that a prompt was given, with the tokens `ahead` behind it; `busy` as `Slots.choose` takes it, which is then True
        there, too."""
        slots, common = self.slots, self.slots.common(prompt)
        prompt = numpy.append(prompt, numpy.array(ahead, dtype=prompt.dtype)) if ahead else prompt
        slot = slots.choose(name, common, busy)
        donor = int(common.argmax()) if len(common) else slot
        own, known = (int(common[s]) if s < len(common) else 0 for s in (slot, donor))
        first, fresh = known, numpy.arange(self.count, self.count + len(prompt) - known)
        if known > own:
            first, shared = self._new_in(donor)
            slots.copy(donor, slot, own, min(known, first))
            if first < known:
                fresh = numpy.concatenate([shared[max(0, own - first) : known - first], fresh])
            first = min(known, max(own, first))
        slots.take(slot, name, prompt)
        busy[slot] = True
        self._fresh[slot] = first, fresh
        self._ids.append(prompt[known:])
        self._positions.append(numpy.arange(known, len(prompt)))
        self._written.append((numpy.full(len(fresh), slot), numpy.arange(first, len(prompt)), fresh))
        self._reads.append(_Read(slot, self.count, self.count + len(prompt) - known, known))
        self.count += len(prompt) - known
        self._wanted.append(numpy.arange(self.count - 1 - len(ahead), self.count))
        return slot

    def _new_in(self, slot: int) -> tuple[int, numpy.ndarray]:
        """First new position of a slot, and the tokens of the pass that stand there."""
        at = int(numpy.searchsorted(self.answering, slot))
        if at < len(self.answering) and self.answering[at] == slot:
            start, count = int(self.counts[:at].sum()), int(self.counts[at])
            return int(self.slots.lengths[slot]) - count, numpy.arange(start, start + count)
        return self._fresh.get(slot, (int(self.slots.lengths[slot]), numpy.zeros(0, dtype=numpy.int64)))

    def run(self, model: "PreTrainedModel") -> Tensor:
        """Logits ``[tokens, vocab]`` behind the new tokens of the rows that are being answered, then behind each prompt and what is
        ahead of it."""
        device = next(model.parameters()).device

        def told(numbers: list[numpy.ndarray]) -> Tensor:
            return torch.from_numpy(numpy.concatenate(numbers)).to(device)

        self._to_slots, self._to_positions, source = (told([w[part] for w in self._written]) for part in range(3))
        self._source = None if len(source) == self.count else source
        self._blocks = _blocks_of(self.slots, self.answering, self.counts, device)
        self._together = _together(self._reads, device)
        order = numpy.concatenate([numpy.arange(self._said), *(part.tokens for part in self._together)])
        self._order = None if (order[1:] > order[:-1]).all() else torch.from_numpy(order.argsort()).to(device)
        return read_logits(model, told(self._ids), told(self._positions), self, told(self._wanted))

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        keys, values = self.slots.layer(layer, key, value)
        for buffer, new in ((keys, key), (values, value)):
            states = new.transpose(0, 1).to(buffer.dtype)
            buffer[self._to_slots, :, self._to_positions] = (
                states if self._source is None else states.index_select(0, self._source)
            )
        if window not in self._masks:
            self._masks[window] = [
                *(block.mask(self.slots, window, query.device) for block in self._blocks),
                *(reads.mask(window, query.device) for reads in self._together),
            ]
        asked = query.transpose(0, 1)
        parts = zip([*self._blocks, *self._together], self._masks[window], strict=True)
        out = torch.cat([part.attend(asked, keys, values, mask, scaling) for part, mask in parts])
        return out if self._order is None else out.index_select(0, self._order)


def _together(reads: list[_Read], device: torch.device) -> list[_Read | _Reads]:
    """Short ones of similar length in one; long ones alone, whose keys need not be copied."""
    groups: dict[tuple[int, int], list[_Read]] = defaultdict(list)
    for read in reads:
        new = read.stop - read.start
        groups[(new.bit_length(), (read.past + new).bit_length()) if new <= SHORT else (-read.start, 0)].append(read)
    return [_Reads(group, device) if len(group) > 1 else group[0] for group in groups.values()]


def _blocks_of(slots: Slots, rows: numpy.ndarray, counts: numpy.ndarray, device: torch.device) -> list[_Block]:
    """Rows that attend together: all, unless much would be gone through that short rows do not have."""
    if not len(rows):
        return []
    firsts = [0, *counts.cumsum().tolist()]

    def blocks(size: int) -> list[_Block]:
        starts = range(0, len(rows), size)
        return [_Block(slots, rows[a : a + size], counts[a : a + size], firsts[a], device) for a in starts]

    whole, pieces = blocks(len(rows)), blocks(BLOCK)
    work = [sum(len(block.seen) * block.length for block in found) for found in (whole, pieces)]
    return pieces if work[1] < 0.8 * work[0] else whole
