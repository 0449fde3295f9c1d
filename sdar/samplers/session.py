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
    said: Completion = field(default_factory=lambda: Completion([], [], [], False))
    slot: int = -1


class TorchSession(Session):
    """Answers prompts that come at any time.

    Args:
        sampler: In whose density the responses are sampled.
        slots: What was read before.
        batch_size: Most rows in one pass.
    """

    def __init__(self, sampler: TruncatingSampler, model: "PreTrainedModel", slots: Slots, batch_size: int):
        self.sampler, self.model, self.slots, self.places = sampler, model, slots, batch_size
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
        self._waiting.append(_Row(number, prompt, key, most))

    def withdraw(self, number: int) -> None:
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._rows = [row for row in self._rows if row.number != number]

    def leave(self, key: SampleKey) -> None:
        self.slots.leave((key.seed, key.task, key.attempt))

    def close(self) -> None:
        self.sampler.longest = max(self.sampler.longest, self.slots.longest)
        self.model.train(self._was_training)

    @torch.no_grad()
    def step(self) -> list[tuple[int, Completion]]:
        """One forward pass: a token more of each row, the first one of those that have come."""
        answering = numpy.array([row.slot for row in self._rows], dtype=numpy.int64)
        tokens = numpy.array([row.said.ids[-1] for row in self._rows], dtype=numpy.int64)
        longest = max((len(row.prompt) for row in self._waiting), default=0)
        self.slots.reserve(min(self.slots.limit, len(self._rows) + len(self._waiting)), longest)
        if len(answering):
            self.slots.reserve(0, int(self.slots.lengths[answering].max()) + 1)
        part = RowPass(self.slots, answering, tokens)
        busy = numpy.zeros(self.slots.limit, dtype=bool)
        busy[answering] = True
        rows = list(self._rows)
        while self._waiting and len(rows) < self.places and part.count - len(answering) < MOST_READ:
            row = self._waiting.popleft()
            prompt = numpy.array(row.prompt, dtype=numpy.int64)
            row.slot = part.add_prompt((row.key.seed, row.key.task, row.key.attempt), prompt, busy)
            rows.append(row)
        if not rows:
            return []
        return self._answer(rows, part.run(self.model))

    def _answer(self, rows: list[_Row], logits: torch.Tensor) -> list[tuple[int, Completion]]:
        s = self.sampler
        drawn = [uniform(row.key, len(row.said.ids)) for row in rows]
        uniforms = torch.tensor(drawn, dtype=torch.float64, device=self._device)
        found = draw(logits[:, : s.vocab_size], uniforms, s.temperature, s.top_k, s.top_p, self._forbidden)
        ended = []
        for row, token, logp, kept in zip(rows, *torch.stack([f.double() for f in found]).tolist(), strict=True):
            said = row.said
            said.ids.append(int(token))
            said.behaviour_logp.append(logp)
            said.kept_logmass.append(kept)
            said.stopped = said.ids[-1] in s.stop_ids
            if said.stopped or len(said.ids) == row.most:
                ended.append((row.number, said))
                row.slot = -1
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
        first = RowPass(slots, then[:0], then[:0])
        busy = numpy.zeros(2, dtype=bool)
        for number, prompt in enumerate(prompts):
            first.add_prompt(number, prompt, busy)
        found = [first.run(model), RowPass(slots, numpy.arange(2), then).run(model)]
    except (PolicyError, TypeError):  # it hands nothing on, or cannot be asked for some logits alone
        return False
    off = float((torch.stack(found, 1) - wanted).abs().max())
    return off < 1e-3 + 8 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
