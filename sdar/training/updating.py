"""Optimizer steps: rows in pieces, micro-batches divided among the ranks."""

import random
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdar.corrections import NoCorrection
from sdar.distributed.sharding import Sharding
from sdar.errors import NonFiniteLossError
from sdar.heads import Head
from sdar.joint_passes import JointPasses
from sdar.scoring import Reading, Scored, StudentOutput, ask_teachers, densities
from sdar.training.finite import blame
from sdar.training.late_scores import LateScores
from sdar.training.reporting import sampling_mismatch
from sdar.training.rows import Rows
from sdar.types import Batch, Episode


class Updating(Rows):
    """How a batch becomes optimizer steps, whatever the loss."""

    rows_per_update: int | None
    max_grad_norm: float
    max_skipped_steps: int
    scoring_pass: StudentOutput | None = None
    """The forward pass that scored this iteration's rows, where it is that of their update, too."""
    late_scores: LateScores | None = None
    """What the policy thinks of the rows before the update, where the passes of the update find it out."""

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

    def normalizer(self, update: Batch) -> Tensor:
        """Tokens that the losses of an optimizer step are means over: those of the attempts, of extra episodes if there are no others."""
        attempts = update.loss_mask[~update.extra].sum()
        return attempts if attempts else update.loss_mask.sum()

    def updates_score(self) -> bool:
        """Whether passes of an update give each token what scoring gives it: they are of this process, and nothing is dropped in them."""
        if type(self.sharding) is not Sharding:
            return False
        return not any("Dropout" in type(layer).__name__ and getattr(layer, "p", 0) for layer in self.model.modules())

    def one_pass(self, batch: Batch) -> bool:
        """Whether one such pass learns from all rows."""
        one_step = self.updates_per_rollout == 1 and self.rows_per_update is None
        return one_step and self.updates_score() and len(self.micro_batches(batch)) == 1

    def scores_late(self) -> bool:
        """Whether the passes of the first step may score its rows: no token's loss is multiplied by what scoring finds, and nothing that
        is decided before the step reads it."""
        corrects = not isinstance(self.correction, NoCorrection) or type(self).correct is not Updating.correct
        return self.updates_score() and not corrects

    def ask_policy(self, batch: Batch, reading: Reading, passes: JointPasses) -> bool:
        """Have the policy read the rows: in the pass of their update, if it is one; in those of the first step, as far as they go; or with
        what others read in `passes`. Whether what it thinks is to be told before anybody updates."""
        if (asked := self.first_pass(batch)) is None and self.scores_late():
            apart = partial(JointPasses, self.micro_batch_tokens, self.sharding, self.ranks)
            self.late_scores = LateScores(batch, lambda rows: apart().ask(self.scorer, self.model, reading.of(rows))())
            return False
        asked = asked or passes.ask(self.scorer, self.model, reading)
        self.late_scores = LateScores(batch, lambda rows: asked())
        return True

    def tell_scores(self) -> None:
        """Fill in and report what the policy thought of the rows before the update, unless that has been done."""
        if (late := self.late_scores) is None:
            return
        self.late_scores, batch, scored = None, late.batch, late()
        batch.old_logp, batch.old_entropy = scored.logp, scored.entropy
        sampling_mismatch(self.metrics, batch, scored.allowed_logmass)
        self.correct(batch, scored.allowed_logmass)
        for tell in late.behind:
            tell()

    def when_scored(self, tell: Callable[[], None]) -> None:
        """Look at old log-probabilities as soon as they are known: now, or behind the passes of the update that find them out."""
        if self.late_scores is None:
            tell()
        else:
            self.late_scores.behind.append(tell)

    def first_pass(self, batch: Batch) -> Callable[[], Scored] | None:
        """What the policy thinks of rows, by the pass whose hidden states `forward_student` will use; None: there must be several."""
        if not self.one_pass(batch):
            return None
        part, predicts = batch.to(self.device), batch.response_mask[:, 1:].bool().to(self.device)

        def read() -> StudentOutput:
            hidden = self.scorer.states(self.model, part.ids, part.attention_mask, predicts)
            with torch.no_grad():
                now = self.scorer.output(self.model, hidden, part.ids, predicts)
            return now

        self.scoring_pass = now = self.sharding.run_as_forward(read)
        scored = Scored(*(v.to(batch.ids.device) for v in (now.logp, now.entropy, now.allowed_logmass)))
        return lambda: scored

    def correct(self, batch: Batch, allowed_logmass: Tensor) -> None:
        """Fill in how much each sampled token counts, for the difference between the sampler's density and the one before the update."""
        sampled, logp, sampled_logp = densities(batch, allowed_logmass)
        batch.importance = self.correction(logp, sampled_logp).where(sampled, 1.0)
        self.metrics.add_tokens("rollout/importance", batch.importance, sampled)
        self.metrics.add_tokens("rollout/importance_cut_share", self.correction.cut(logp, sampled_logp), sampled)

    def ask_teachers(self, batch: Batch, episodes: list[Episode], passes: JointPasses) -> Callable[[], list[Head]]:
        """What fills in the teacher's signal of each row, and gives the teachers' heads."""
        networks = [self.teacher_network(episodes[e].task) for e in batch.episode.tolist()]
        asked = (passes.ask, self.teacher_signal, self.top_k, self.sharding, self.ranks, self.divides_spans)
        return ask_teachers(batch, networks, self.teacher_scorer, *asked)

    def forward_student(self, part: Batch) -> StudentOutput:
        """The current student's statistics of the tokens whose loss is computed; carries the gradient. The pass that scored the rows is
        used where it was kept: once, and unless most of its rows have been left out since."""
        if (now := self.scoring_pass) is not None and part.has("scored_row") and 2 * len(part) >= len(now.predicts):
            if torch.is_grad_enabled():
                self.scoring_pass = None
            return now.select(part.scored_row, part.ids, part.loss_mask)
        now = self.scorer(self.model, part.ids, part.attention_mask, part.loss_mask)
        if self.late_scores is not None and torch.is_grad_enabled():
            self.late_scores.learned(part, now)
        return now

    def micro_batches(self, batch: Batch) -> list[Tensor]:
        """Rows of each micro-batch of an update."""
        return self.scorer.micro_batches(self.model, batch.ids, batch.attention_mask, self.micro_batch_tokens)

    def local_micro_batches(self, batch: Batch) -> list[tuple[Tensor, Batch]]:
        """This rank's micro-batches of a batch, and which rows they hold. Every rank gets equally many, so that none waits for a pass
        that another does not make: where there is nothing left it gets the shortest row once more, of which no token counts."""
        lengths = batch.attention_mask.sum(1)
        pieces = self.micro_batches(batch)
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
        self.tell_scores()
        self.scoring_pass = None  # weights change
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


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Have torch's own optimizers take a step in one kernel on a processor, where nobody chose: elsewhere that is their default."""
    for group in optimizer.param_groups:
        plain = all(p.device.type == "cpu" and type(p) is nn.Parameter and p.is_floating_point() for p in group["params"])
        if (
            plain
            and group.get("fused", False) is None
            and not any(group.get(k) for k in ("foreach", "differentiable", "capturable"))
        ):
            group["fused"] = True
