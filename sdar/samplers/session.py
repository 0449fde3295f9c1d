"""Continuous batching in this process: one forward pass after the other over what is new in all rows that are being answered."""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy
import torch

from sdar.attention import can_lay_out, kind_of
from sdar.errors import PolicyError
from sdar.parts import Completion, SampleKey, Session
from sdar.samplers.bound import TruncatingSampler
from sdar.samplers.density import draw, uniform
from sdar.samplers.drafts import LONGEST, Drafts
from sdar.samplers.row_pass import RowPass
from sdar.samplers.slots import Slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_READ = 4096
"""Tokens of prompts in one pass, but for the last prompt: what is read at once takes memory and need not be more."""


@dataclass
class _Row:
    number: int
    prompt: Sequence[int]
    key: SampleKey
    most: int
    recent: list[int]
    """The last tokens of prompt and response."""
    said: Completion = field(default_factory=lambda: Completion([], [], [], False))
    slot: int = -1
    draft: list[int] = field(default_factory=list)
    """Tokens of the pass behind what was said."""


class TorchSession(Session):
    """Answers prompts that come at any time.

    Args:
        sampler: In whose density the responses are sampled.
        slots: What was read before.
        batch_size: Most rows in one pass.
        draft_tokens: Most draft tokens of a row in one pass.
    """

    def __init__(self, sampler: TruncatingSampler, model: "PreTrainedModel", slots: Slots, batch_size: int, draft_tokens: int):
        self.sampler, self.model, self.slots, self.places = sampler, model, slots, batch_size
        self.drafts, self.draft_tokens = Drafts(), draft_tokens
        self._was_training = model.training
        model.eval()
        self._device = next(model.parameters()).device
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []  # that are being answered, by their slots
        self._forbidden: torch.Tensor | None = None
        if sampler.forbidden_ids:
            self._forbidden = torch.zeros(sampler.vocab_size, dtype=torch.bool, device=self._device)
            self._forbidden[list(sampler.forbidden_ids)] = True

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._rows)

    def submit(self, number: int, prompt: Sequence[int], key: SampleKey, most: int) -> None:
        self.sampler.check_room([prompt], [key])
        self._waiting.append(_Row(number, prompt, key, most, list(prompt[-LONGEST:])))

    def withdraw(self, number: int) -> None:
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._rows = [row for row in self._rows if row.number != number]

    def leave(self, key: SampleKey) -> None:
        self.slots.leave((key.seed, key.task, key.attempt))

    def close(self) -> None:
        self.sampler.longest = max(self.sampler.longest, self.slots.longest + self.draft_tokens)
        self.model.train(self._was_training)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Completion]]:
        """One forward pass: a token more of each row, the first one of those that have come, and as many more as their drafts had right."""
        answering = numpy.array([row.slot for row in self._rows], dtype=numpy.int64)
        self._draft()
        tokens = [[row.said.ids[-1], *row.draft] for row in self._rows]
        counts = numpy.array([len(new) for new in tokens], dtype=numpy.int64)
        longest = max((len(row.prompt) + min(self.draft_tokens, row.most - 1) for row in self._waiting), default=0)
        self.slots.reserve(min(self.slots.limit, len(self._rows) + len(self._waiting)), longest)
        if len(answering):
            self.slots.reserve(0, int((self.slots.lengths[answering] + counts).max()))
        part = RowPass(self.slots, answering, counts, numpy.array([t for new in tokens for t in new], dtype=numpy.int64))
        busy = numpy.zeros(self.slots.limit, dtype=bool)
        busy[answering] = True
        rows = list(self._rows)
        while self._waiting and len(rows) < self.places and part.count - int(counts.sum()) < MOST_READ:
            row = self._waiting.popleft()
            prompt = numpy.array(row.prompt, dtype=numpy.int64)
            row.slot = part.add_prompt((row.key.seed, row.key.task, row.key.attempt), prompt, busy, self._propose(row))
            rows.append(row)
        if not rows:
            return []
        return self._answer(rows, part.run(self.model))

    def _draft(self) -> None:
        """Drafts of the rows that are being answered. These attend together, for as many tokens each as the longest draft has: no more
        than what at least a quarter of them would have."""
        lengths = sorted(len(self._propose(row)) for row in self._rows)
        for row in self._rows:
            row.draft = row.draft[: lengths[-1 - len(lengths) // 4]]

    def _propose(self, row: _Row) -> list[int]:
        """A draft of what the row says next; the pass itself gives one token more."""
        row.draft = self.drafts.propose(row.recent, min(self.draft_tokens, row.most - len(row.said.ids) - 1))
        return row.draft

    def _answer(self, rows: list[_Row], logits: torch.Tensor) -> list[tuple[int, Completion]]:
        s = self.sampler
        drawn = [uniform(row.key, len(row.said.ids) + ahead) for row in rows for ahead in range(len(row.draft) + 1)]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=self._device)
        found = draw(logits[:, : s.vocab_size], uniforms, s.temperature, s.top_k, s.top_p, self._forbidden)
        sampled = torch.stack([f.double() for f in found], 1).tolist()
        ended, place = [], 0
        for row in rows:
            said, slot = row.said, row.slot
            for right, (token, logp, kept) in enumerate(sampled[place : place + len(row.draft) + 1]):
                said.ids.append(int(token))
                said.behaviour_logp.append(logp)
                said.kept_logmass.append(kept)
                said.stopped = said.ids[-1] in s.stop_ids
                if self.draft_tokens:
                    self.drafts.learn(row.recent, said.ids[-1])
                    row.recent = [*row.recent, said.ids[-1]][-LONGEST:]
                if said.stopped or len(said.ids) == row.most:
                    ended.append((row.number, said))
                    row.slot = -1
                    break
                if row.draft[right : right + 1] != said.ids[-1:]:
                    break
            self.slots.lengths[slot] -= len(row.draft) - right  # what stands behind a wrong draft token is of no use
            place += len(row.draft) + 1
        self._rows = sorted((row for row in rows if row.slot >= 0), key=lambda row: row.slot)
        return ended


_asked: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()
_kinds: dict[Hashable, bool] = {}


def reads_rows(model: "PreTrainedModel") -> bool:
    """Whether a model gives rows that are read so the logits that it gives them alone; of each kind one is asked about a few tokens."""
    if model not in _asked:
        kind = kind_of(model)
        if kind not in _kinds:
            _kinds[kind] = can_lay_out(model) and _reads_rows(model)
        _asked[model] = _kinds[kind] if kind else _kinds.pop(kind)
    return _asked[model]


@torch.no_grad()
def _reads_rows(model: "PreTrainedModel") -> bool:
    prompts, then = numpy.array([[1, 2, 3, 4, 5], [1, 2, 3, 0, 2]]), numpy.array([4, 1])
    device = next(model.parameters()).device
    alone = numpy.concatenate([prompts, then[:, None]], 1)
    rows = [torch.from_numpy(row)[None].to(device) for row in alone]
    wanted = torch.stack([model(input_ids=row, use_cache=True).logits[0, -2:] for row in rows])
    slots = Slots(2)
    slots.reserve(2, 8)
    try:
        first = RowPass(slots, then[:0], then[:0], then[:0])
        busy = numpy.zeros(2, dtype=bool)
        for number, prompt in enumerate(prompts):
            first.add_prompt(number, prompt, busy)
        found = [first.run(model), RowPass(slots, numpy.arange(2), numpy.ones_like(then), then).run(model)]
    except (PolicyError, TypeError):  # it hands nothing on, or cannot be asked for some logits alone
        return False
    off = float((torch.stack(found, 1) - wanted).abs().max())
    return off < 1e-3 + 8 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
