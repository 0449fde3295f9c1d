"""Validation on conversations that were not learned from: nats a token, and how many tokens are the likeliest of their places."""

import math
from typing import Protocol, cast

from torch import Tensor

from sdar.data import TaskBatch
from sdar.data.chats import HELD_OUT
from sdar.evaluate.validation import Validation
from sdar.metrics.mean import Mean
from sdar.rollout.standing import Standing
from sdar.training import bars, reporting


class Likelihood(Protocol):
    """Who measures pieces of the panel."""

    def likelihood(self, task_batch: TaskBatch) -> Tensor: ...


class HeldOut(Validation):
    """Measures the held-out conversations, and plays the other panels."""

    _sums: Tensor | None = None
    _losses: tuple[tuple[int, float], ...] = ()

    def play(self, task_batch: TaskBatch) -> None:
        if task_batch.panel.name != HELD_OUT:
            return super().play(task_batch)
        count = len(task_batch.tasks)
        self.measuring.begin(HELD_OUT, "policy", count, count, unit="conversations")
        sums = cast(Likelihood, self.module).likelihood(task_batch)
        self._sums = sums if self._sums is None else self._sums + sums
        self._hear(
            Standing(
                -(-count // self.measuring.ranks), ended=-(-count // self.measuring.ranks), work=count / self.measuring.ranks
            )
        )

    def plan(self, piece: TaskBatch, teacher: bool) -> None:
        super().plan(piece, teacher and piece.panel.name != HELD_OUT)

    def report(self) -> None:
        if self._sums is not None:
            self._report(*self._sums.tolist())
            self._sums = None
        super().report()

    def changes(self) -> list[str]:
        told = [f"{HELD_OUT}: loss {loss:.4f} nats a token after iteration {n}" for n, loss in self._losses]
        return [*told[:1], *told[1:][-1:], *super().changes()]

    def _report(self, nats: float, hits: float, tokens: float, conversations: float) -> None:
        module = self.module
        loss, accuracy = nats / tokens, hits / tokens
        self._losses += ((module.iteration, loss),)
        metrics = {f"loss/{HELD_OUT}": Mean(), f"token_accuracy/{HELD_OUT}": Mean()}
        for metric, total in zip(metrics.values(), (nats, hits), strict=True):
            metric.update(total, tokens)
        self._log(
            HELD_OUT, dict(metrics), {f"loss/{HELD_OUT}": loss, f"token_accuracy/{HELD_OUT}": accuracy}, int(conversations)
        )
        if module.trainer.is_global_zero:
            bars.say(
                module.trainer,
                f"\nvalidation of {HELD_OUT} ({conversations:.0f} conversations, {tokens:.0f} tokens) after {module.iteration} iterations\n"
                f"  loss/{HELD_OUT}           {loss:.4f} nats a token (perplexity {math.exp(min(loss, 700.0)):.4g})\n"
                f"  token_accuracy/{HELD_OUT} {100 * accuracy:.1f} %",
            )
            numbers = {"panel": HELD_OUT, "conversations": int(conversations), "tokens": int(tokens)}
            reporting.write_validation(module, numbers | {f"loss/{HELD_OUT}": loss, f"token_accuracy/{HELD_OUT}": accuracy})
