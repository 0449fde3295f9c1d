"""ChatModule: conversations of files, to learn from and to measure a loss on, and the world, if any, that validation plays."""

import math
import random
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sdar.arguments import checked
from sdar.data.batches import Pieces, TaskBatch
from sdar.data.conversations import Conversation, read_conversations, shared_contents, words
from sdar.data.panels import Panel, check_disjoint
from sdar.data.tasks import TaskModule
from sdar.data.transcripts import Transcript
from sdar.errors import ConfigError, check_least
from sdar.parts import Environment
from sdar.registry import part_name
from sdar.types import StepResult, Task

HELD_OUT = "held_out"
"""The panel that a loss is measured on."""


@checked
class ChatModule(TaskModule):
    """Conversations of files, for methods that learn from them (SFT).

    Args:
        files: JSONL, CSV or parquet files of conversations to learn from (`sdar.data.conversations`).
        val_files: Files of conversations that the loss is measured on; none: no loss is measured.
        env: A world that validation plays as in other runs, with the splits and settings below; null: nothing is played.
        tasks_per_step: Conversations of an optimizer step.
        epochs: Passes over `files`, each in an order of its own, that end the run; the last step has what is left. null:
            trainer.max_steps alone ends it.
        max_tokens: Most tokens of a row; null: the policy's context. Nothing is ever cut.
        too_long: What becomes of a conversation with a longer row: ``error``, or ``drop``, with a count of them.
        **kwargs: Those of `TaskModule`; what they say of training episodes has no effect, for none are played.
    """

    def __init__(
        self,
        files: list[str],
        val_files: list[str] = [],  # noqa: B006
        env: Environment | None = None,
        tasks_per_step: int = 32,
        epochs: int | None = None,
        max_tokens: int | None = None,
        too_long: Literal["error", "drop"] = "error",
        **kwargs: Any,
    ):
        check_least("data", 1, epochs=epochs, max_tokens=max_tokens)
        if not files:
            raise ConfigError("data.files is empty: there is no conversation to learn from. Give at least one file.")
        if too_long not in ("error", "drop"):
            raise ConfigError(
                f"data.too_long is {too_long!r}: a conversation that is too long is an `error`, or you `drop` it."
            )
        self.epochs, self.max_tokens, self.too_long = epochs, max_tokens, too_long
        learned, measured = read_conversations(files, "data.files"), read_conversations(val_files, "data.val_files")
        self.chats = {c.id: c for c in (*learned, *measured)}
        self.chat_panel = Panel("train", tuple(c.id for c in learned))
        self.held_out = Panel(HELD_OUT, tuple(c.id for c in measured)) if measured else None
        if measured and (shared := shared_contents(learned, measured)):
            rank_zero_warn(
                f"{shared} of the {len(measured)} conversations of data.val_files are in data.files, too: the loss on them tells in part "
                "what was learned by heart. Take them out of one of the files."
            )
        self.has_world = env is not None
        super().__init__(env=_NoWorld([*self.chats.values()]) if env is None else env, tasks_per_step=tasks_per_step, **kwargs)
        self.group_size = 1

    def _make_panels(self, *settings: Any) -> None:
        left_out, known = self.left_out, self.left_out & self.chats.keys()
        self.val_panels, self.test_panels, self.measured = [], [], []
        self.left_out = left_out - known
        if self.has_world:
            super()._make_panels(*settings)
        elif self.left_out:
            raise ConfigError(f"data.leave_out names {min(self.left_out)!r}, which is no conversation of this run. Remove it.")
        self.left_out = left_out
        self.train_panel = self.chat_panel
        if self.held_out is not None:
            self.val_panels = [self.held_out, *self.val_panels]
            self.test_panels = self.test_panels or [self.held_out]
        check_disjoint(self.train_panel, *self.val_panels)

    def setup(self, stage: str) -> None:
        module = None if self.trainer is None else self.trainer.lightning_module
        if module is not None and not getattr(module, "reads_chats", False):
            raise ConfigError(
                f"data is a ChatModule, whose conversations nobody plays, and {part_name(module)} learns from episodes. Use TaskModule "
                "and a world, or a method that reads conversations (SFT)."
            )
        if stage == "predict" and not self.has_world:
            raise ConfigError("data.env is not set: there is nothing to play. Give a world, or use `sdar test` for the loss.")
        super().setup(stage)
        if stage == "fit" and self.epochs is not None and self.trainer is not None:
            steps = math.ceil(self.epochs * len(self.train_panel) / self.tasks_per_step)
            loop: Any = self.trainer.fit_loop.epoch_loop
            loop.max_steps = steps if loop.max_steps < 0 else min(steps, loop.max_steps)
            what = f"{self.epochs} epochs of {len(self.train_panel)} conversations, {self.tasks_per_step} a step, are {steps} steps"
            rank_zero_info(f"{what}; the run takes {loop.max_steps}.")

    def transcribe(self, transcriber: Callable[[Conversation], Transcript], context: int) -> dict[str, Transcript]:
        """Every conversation as ids, by its id; those that are too long are left out where they may be.

        Raises:
            ConfigError: one cannot be told to the model, or is too long; the first one is named.
        """
        limit = min(context, self.max_tokens or context)
        told = {name: transcriber(c) for name, c in self.chats.items() if name not in self.left_out}
        for panel in (self.chat_panel, self.held_out):
            names = [name for name in (() if panel is None else panel.task_ids) if name in told]
            longer = [name for name in names if told[name].longest > limit]
            if not longer:
                continue
            first, longest = self.chats[longer[0]].place, max(told[name].longest for name in longer)
            fault = (
                f"{len(longer)} of {len(names)} conversations have a row of more than {limit} tokens, the first at {first} with "
                f"{told[longer[0]].longest}; the longest has {longest}"
            )
            if self.too_long == "error" or len(longer) == len(names):
                raise ConfigError(
                    f"{fault}. None is cut: raise data.max_tokens (the policy's context is {context}), shorten them, or leave them out "
                    "with data.too_long: drop."
                )
            rank_zero_warn(f"{fault}. They are left out (data.too_long: drop).")
            self.left_out |= set(longer)
        return {name: transcript for name, transcript in told.items() if name not in self.left_out}

    def _positions(self, iteration: int) -> range:
        positions = super()._positions(iteration)
        return positions if self.epochs is None else positions[: self.epochs * len(self.train_panel) - positions.start]

    def pieces(self, panel: Panel) -> Pieces:
        return super().pieces(panel.without(self.left_out) if panel is self.held_out else panel)

    def _step(self, panel: Panel, wanted: list[tuple[str, int]], attempts: int) -> TaskBatch:
        if panel.name not in (self.chat_panel.name, HELD_OUT):
            return super()._step(panel, wanted, attempts)
        return TaskBatch(panel, [Task(name, "chat", "") for name, _ in wanted], [visit for _, visit in wanted], 1)


class _NoWorld(Environment):
    """Stands where a run plays nothing."""

    horizon = 1
    longest_instruction = 0

    def __init__(self, chats: list[Conversation]):
        self.chats = chats

    def task_ids(self, split: str, count: int, seed: int) -> list[str]:
        raise ConfigError("data.env is not set: there is no world whose tasks could be played.")

    def task(self, task_id: str) -> Task:
        raise ConfigError("data.env is not set: there is no world whose tasks could be played.")

    def reset(self, task: Task) -> str:
        raise ConfigError("data.env is not set: there is no world that could be played.")

    def step(self, action: str) -> StepResult:
        raise ConfigError("data.env is not set: there is no world that could be played.")

    def corpus(self, rng: random.Random) -> tuple[list[str], list[str]]:
        return words(self.chats), []
