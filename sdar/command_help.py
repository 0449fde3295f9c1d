"""How the `sdar` command's help looks: our words and order instead of those of docstrings that were written for others."""

import argparse
import re
from typing import Any

from jsonargparse import ActionSubCommands, ArgumentParser, DefaultHelpFormatter

TITLES = {
    "Base of every strategy": "Training method and its parts (sdar list strategies; the arguments of one: --model.help SDAR)",
    "Panels of tasks and where they are played, in one world or several": "Tasks and the world they are played in (arguments: --data.help)",
    "Keeps one checkpoint, ``last.ckpt``, from which ``--ckpt_path last`` continues": "Checkpoints",
    "Runs the full optimization routine": "Going on from a checkpoint",
    "The Trainer of the `sdar` command": "Lightning's Trainer",
}
"""What jsonargparse calls the groups of arguments (first lines of docstrings) -> what a help says, in the order of a help."""

WORDS = {
    "trainer.max_steps": "Optimizer steps at which training ends; model.updates_per_rollout (or rows_per_update) says how many an "
    "iteration has.",
    "trainer.val_check_interval": "Iterations between two validations; in an iteration data.tasks_per_step tasks are played and "
    "learned from.",
    "trainer.limit_train_batches": "Iterations in an epoch; by default an epoch has no end.",
    "ckpt_path": "A checkpoint of `fit`; ``last``: that of the latest run of these settings.",
    "weights_only": "Checkpoints are always read as tensors and plain data only.",
}
"""Settings that mean something else in a run of this command than Lightning's documentation says, or less."""


_MARKUP = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")
"""References of Lightning's docstrings, whose last word is what a reader needs."""


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions, which show commands, and leaves out Lightning's list of commands, markup and classes."""

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, ActionSubCommands):
            super().add_argument(action)

    def _expand_help(self, action: argparse.Action) -> str:
        action.help = WORDS.get(action.dest, action.help)
        text = _MARKUP.sub(r"\1", super()._expand_help(action))
        text = re.sub(r" Default: (``[^`]*``|\w+)\.", "", text)  # Lightning's own; ours stands at the end
        return re.sub(r", known subclasses: [^)]*", "", text)  # `sdar list` tells them by name

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


class Ordered(ArgumentParser):
    """A parser whose help begins with the training method."""

    def format_help(self, *given: Any, **named: Any) -> str:
        groups = self._action_groups
        for group in groups:
            group.title = TITLES.get(str(group.title).removesuffix(":"), group.title)
        first = [*TITLES.values()]
        self._action_groups = sorted(groups, key=lambda g: first.index(g.title) if g.title in first else -1)
        try:
            return super().format_help(*given, **named)
        finally:
            self._action_groups = groups
