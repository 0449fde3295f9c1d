"""The files that loggers keep in a run's folder, and its settings there."""

import csv
import os
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from sdar.reading import yaml_text

KEEP_NONE = {"skip_unset" if hasattr(ArgumentParser, "instantiate") else "skip_none": False}
"""What jsonargparse calls it, from 4.49 on and before."""


class SaveSettings(SaveConfigCallback):
    """Writes a run's settings without what only its command was given: every other command reads them, too.

    Args:
        dumped: The settings as plain data.
    """

    def __init__(self, parser: Any, config: Any, dumped: dict[str, Any], **kwargs: Any):
        super().__init__(parser, config, **kwargs)
        of_command = ("ckpt_path", "weights_only", "verbose", "return_predictions")
        self._settings = {key: value for key, value in dumped.items() if key not in of_command}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        known = cast(Any, trainer)
        known.run_folder = folder = trainer.strategy.broadcast(known.run_folder)  # only the first process knew it
        if trainer.is_global_zero and folder is not None:
            header = "".join(f"# {line}\n" for line in self.parser.dump_header or ())
            text = yaml_text(self._settings)
            (folder / self.config_filename).write_text(header + text, encoding="utf-8")
            somebodys = ("logger", "callbacks", "plugins")  # where a key may stand
            plain = {key: value for key, value in self._settings["trainer"].items() if key not in somebodys}
            for logger in trainer.loggers:
                logger.log_hyperparams({**self._settings, "trainer": plain})


class _Table(ExperimentWriter):
    """Adds to the table of a run that goes on, where Lightning would begin a new one in its place."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class TableLogger(CSVLogger):
    """``metrics.csv``: a row an iteration and a row a validation."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Table(self.log_dir)
        return cast(ExperimentWriter, self._experiment)


def run_loggers(folder: Path, alone: bool) -> list[Logger]:
    """``metrics.csv``, and TensorBoard's events where there are no other loggers."""
    place: dict[str, Any] = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
    table = TableLogger(**place, flush_logs_every_n_steps=1)
    return [table, TensorBoardLogger(**place, default_hp_metric=False)] if alone else [table]
