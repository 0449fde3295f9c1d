"""Optimizer steps: rows in pieces, micro-batches divided among the ranks."""

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor

from sdar.errors import NonFiniteLossError
from sdar.scoring import StudentOutput
from sdar.training.finite import blame
from sdar.training.rows import Rows
from sdar.types import Batch


class Updating(Rows):
    """How a batch becomes optimizer steps, whatever the loss."""

    rows_per_update: int | None
    max_grad_norm: float
    max_skipped_steps: int

    def updates(self, batch: Batch) -> Iterator[Batch]:
        """Rows in random pieces, one for each optimizer step; the order derives from (seed, iteration)."""
        order = list(range(len(batch)))
        random.Random(f"{self.seed}/rows/{self.iteration}").shuffle(order)
        if (size := self.rows_per_update) is None:
            count = min(self.updates_per_rollout, len(order))
            pieces = [order[k::count] for k in range(count)]
        else:
            pieces = [order[first : first + size] for first in range(0, len(order), size)]
        for piece in pieces:
            if 0 <= self.trainer.max_steps <= self.trainer.global_step:
                return
            yield batch.select(torch.tensor(piece))

    def forward_student(self, part: Batch) -> StudentOutput:
        """The current student's statistics of the tokens whose loss is computed; carries the gradient."""
        return self.scorer(self.model, part.ids, part.attention_mask, part.loss_mask)

    def local_micro_batches(self, batch: Batch) -> list[tuple[Tensor, Batch]]:
        """This rank's micro-batches of a batch, and which rows they hold. Every rank gets equally many, so that none waits for a pass
        that another does not make: where there is nothing left it gets the shortest row once more, of which no token counts."""
        lengths = batch.attention_mask.sum(1)
        pieces = self.scorer.micro_batches(self.model, batch.ids, batch.attention_mask, self.micro_batch_tokens)
        self.ranks.check_same(
            (len(batch), [len(p) for p in pieces], zlib.crc32(batch.ids.numpy().tobytes())), "the micro-batches"
        )
        spare = lengths.argmin()[None]
        mine = [(rows, batch.select(rows)) for rows in self.ranks.shard(pieces, spare)]
        for rows, part in mine:
            if rows is spare:
                part.response_mask = part.loss_mask = torch.zeros_like(part.response_mask)
        return [(rows, part.to(self.device)) for rows, part in mine]

    @torch.no_grad()
    def map_rows(self, batch: Batch, measure: Callable[[Batch, StudentOutput], Tensor]) -> Tensor:
        """What `measure` gives for each micro-batch and the current student, for all rows: ``[batch, time]``."""
        out = torch.zeros(batch.ids.shape)
        for rows, part in self.local_micro_batches(batch):

            def measured(part: Batch = part) -> Tensor:
                return measure(part, self.forward_student(part))

            values = self.sharding.run_as_forward(measured)
            if part.response_mask.any():
                out[rows, : values.shape[1]] = values.to(out)
        return self.ranks.all_reduce_sum(out, "measurements")

    def _step(self, optimizer: Any, update: Batch) -> None:
        norm = self.sharding.clip_and_step(optimizer, self.max_grad_norm)  # taken only if it is finite
        if torch.isfinite(norm):
            if self.teacher is not None:
                self.teacher.after_step(self.model)
            if (schedule := cast(Any, self.lr_schedulers())) is not None:
                schedule.step()
            self.skipped = 0
            self.metrics.add("train/grad_norm", float(norm))
        else:
            self.skipped += 1
        self.metrics.add("train/skipped_steps", float(self.skipped > 0))
        if self.skipped > self.max_skipped_steps:
            raise NonFiniteLossError(
                f"iteration {self.iteration}: the loss or gradient was not finite in {self.skipped} optimizer steps in a row "
                f"(model.max_skipped_steps is {self.max_skipped_steps}). The weights were not changed by them and the last checkpoint "
                f"is good. {blame(update, self.metrics)}"
            )
