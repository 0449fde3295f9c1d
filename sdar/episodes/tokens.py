"""What a training step knows of each token, kept where it is known: no number is computed for it, and none is kept in an iteration
whose episodes are not written."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdar.distributed.communicator import Communicator
from sdar.episodes.digits import rounded
from sdar.episodes.schema import NUMBERS
from sdar.errors import ConfigError
from sdar.types import Batch, Late

TurnKey = tuple[int, int]
"""Index of the episode in its iteration, and number of the turn."""
Entry = tuple[Batch, Tensor, Mapping[str, Tensor | Late | float]]
"""Rows, the tokens ``[batch, time]`` (bool) that something is known of, and what."""
Flat = tuple[np.ndarray, dict[str, np.ndarray]]
"""Episode, turn and place of tokens, ``[3, tokens]``, and what is known of each; NaN: nothing."""
Kept = dict[TurnKey, dict[str, Any]]
"""What is known of each turn, by the names of `StoredTurn`."""


class TokenLog:
    """Keeps what it is told of the tokens of an iteration; `add` wants nothing but references until `take` is called."""

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, wanted: bool) -> None:
        """An iteration begins, whose episodes are written or not."""
        self.wanted = wanted
        self._known: list[Entry] = []
        self._mine: list[Entry] = []
        self._rows: list[TurnKey] = []
        self._prompts: dict[TurnKey, list[int]] = {}
        self._update, self._normalizer = -1, 1.0

    def scored(self, batch: Batch) -> None:
        """All rows have been scored; every rank knows what was found."""
        if not self.wanted:
            return
        names = {name: name for name in ("spans", "old_logp", "ref_logp", "teacher_logp", "teacher_entropy")}
        names["entropy"] = "old_entropy"
        known = {name: vars(batch)[field] for name, field in names.items() if batch.has(field)}
        self._known.append((batch, batch.response_mask, known))
        firsts = batch.turn_ids.gather(1, batch.response_mask.int().argmax(1, keepdim=True))[:, 0]
        self._rows = list(zip(batch.episode.tolist(), firsts.tolist(), strict=True))
        for row, key in enumerate(self._rows if batch.has("teacher_ids") else ()):
            mask = batch.teacher_response_mask[row]
            if (batch.is_privileged[row] or batch.has("teacher_spans")) and mask.any():  # it read something else
                self._prompts[key] = batch.teacher_ids[row, : int(mask.int().argmax())].tolist()

    def weighed(self, batch: Batch, credited: bool) -> None:
        """What is decided once about the rows has been decided; every rank knows it.

        Args:
            credited: The advantages are those of a method that gives some.
        """
        if not self.wanted:
            return
        known: dict[str, Tensor | Late | float] = {"advantage": batch.advantages} if credited else {}
        if batch.has("teacher_logp"):
            known["gap"] = Late(lambda: batch.teacher_logp - batch.old_logp)
        if batch.has("turn_weights"):
            known["turn_weight"] = batch.turn_weights
        if batch.has("importance") and bool((batch.importance != 1).any()):
            known["importance"] = batch.importance
        self._known.append((batch, batch.response_mask, known))

    def begin_update(self, normalizer: Tensor) -> None:
        """An optimizer step begins, whose sum of losses is divided by `normalizer`."""
        if self.wanted:
            self._update, self._normalizer = self._update + 1, float(normalizer)

    def learned(self, part: Batch, **values: Tensor) -> None:
        """A pass over some rows of this rank found per-token values ``[batch, time]`` by the names of `StoredTurn`; they are of the tokens
        whose loss is computed.

        Raises:
            ConfigError: a name that is no number of a stored token, which nobody could read.
        """
        if wrong := values.keys() - {*NUMBERS}:
            raise ConfigError(
                f"token_log.learned is told {', '.join(sorted(wrong))}, and a stored token has no such number. It has {', '.join(NUMBERS)}."
            )
        if self.wanted and self._update >= 0:
            told = {name: value.detach() for name, value in values.items()}
            if "weight" in told and part.has("importance"):
                told["weight"] = part.importance * told["weight"]
            self._mine.append((part, part.loss_mask, told | {"update": self._update, "normalizer": self._normalizer}))

    def take(self, ranks: Communicator) -> Kept:
        """Everything that was kept in the iteration, of all ranks; all of them ask together. What was told later of a token wins."""
        mine = [_flat(*entry) for entry in self._mine]
        others = ranks.all_gather_object(mine, "tokens to write")
        found = _by_turn([*(_flat(*entry) for entry in self._known), *(one for rank in others for one in rank)])
        for key in self._rows:
            found.setdefault(key, {})["starts_row"] = True
        for key, prompt in self._prompts.items():
            found.setdefault(key, {})["teacher_prompt_ids"] = prompt
        self.begin(False)
        return found


def _flat(rows: Batch, mask: Tensor, values: Mapping[str, Tensor | Late | float]) -> Flat:
    """The response tokens of some rows. All tokens of a turn stand in one row, one behind the other."""
    said, mask = rows.response_mask.cpu(), mask.cpu()
    episode = rows.episode.cpu()[:, None].expand_as(said)[said].numpy()
    turn = rows.turn_ids.cpu()[said].numpy()
    begins = np.ones(len(turn), dtype=bool)
    begins[1:] = (np.diff(episode) != 0) | (np.diff(turn) != 0)
    starts = np.flatnonzero(begins)
    position = np.arange(len(turn)) - starts[np.cumsum(begins) - 1]
    columns = {}
    for name, value in values.items():
        value = value.find() if isinstance(value, Late) else value
        if isinstance(value, Tensor):
            columns[name] = value.float().cpu().where(mask, torch.nan)[said].double().numpy()
        else:
            columns[name] = np.full(len(turn), float(value))
    return np.stack([episode, turn, position]), columns


def _by_turn(entries: Sequence[Flat]) -> Kept:
    """All tokens together, in the order of episodes, turns and time, then divided."""
    places = np.concatenate([np.zeros((3, 0), dtype=np.int64), *(place for place, _ in entries)], axis=1)
    turns, longest = places.max(axis=1, initial=0)[1:] + 1
    codes, index = np.unique((places[0] * turns + places[1]) * longest + places[2], return_inverse=True)
    tokens = np.stack([codes // longest // turns, codes // longest % turns, codes % longest])
    columns: dict[str, np.ndarray] = {}
    told: dict[str, np.ndarray] = {}
    first = 0
    for place, of_entry in entries:
        here = index[first : first + place.shape[1]]
        first += place.shape[1]
        for name, value in of_entry.items():
            column = columns.setdefault(name, np.full(tokens.shape[1], np.nan))
            column[here] = np.where(np.isnan(value), column[here], value)  # no loss, and so no number of the step
            told.setdefault(name, np.zeros(tokens.shape[1], dtype=bool))[here] = True
    numbers = {name: rounded(column) for name, column in columns.items()}
    starts = np.flatnonzero(tokens[2] == 0).tolist()
    found: Kept = {}
    for begin, end in pairwise([*starts, tokens.shape[1]]):
        found[int(tokens[0, begin]), int(tokens[1, begin])] = {
            name: _value(name, column[begin:end]) for name, column in numbers.items() if told[name][begin]
        }
    return found


def _value(name: str, numbers: list[float | None]) -> Any:
    """Of a turn: a list, or one number."""
    if name in ("turn_weight", "normalizer"):
        return numbers[0]
    if name == "update":
        return int(numbers[0] or 0)
    return [int(n or 0) for n in numbers] if name == "spans" else numbers
