"""What Lightning's Trainer offers for short epochs of a data set, where there is one endless epoch: mapped, or refused at the start."""

import inspect
import re
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from torch.optim.lr_scheduler import OneCycleLR

from sdar.errors import ConfigError

ENDLESS = (
    "training is one epoch without an end. Leave it out: trainer.max_steps (optimizer steps), model.max_env_steps or trainer.max_time end "
    "it, trainer.val_check_interval (iterations) measures; or give epochs a length with trainer.limit_train_batches (iterations)"
)
UNFIT = {
    BatchSizeFinder: "set model.micro_batch_tokens; `sdar plan` tells what fits",
    GradientAccumulationScheduler: "data.tasks_per_step and model.updates_per_rollout say how much an optimizer step sees",
    LearningRateFinder: "it trains on tasks that a run would see, and puts the weights back. Try a few short runs instead",
    ModelPruning: "samplers and teachers hold the whole network",
    BaseFinetuning: "it thaws layers behind the optimizer that the method made. Use LoRAPolicy to train a part",
    StochasticWeightAveraging: "it copies the method with its samplers, and schedules by epochs",
    WeightAveraging: "it copies the method with its samplers and worlds before there is a network. For a slow teacher use EMATeacher",
}  # fmt: skip


def check_trainer(trainer: Trainer) -> None:
    """Look at a Trainer before its callbacks are set up; what means the same here in other words is set so.

    Raises:
        ConfigError: an option that could have no effect, or none that is meant.
    """
    made = cast(Any, trainer)  # its options are attributes that its class does not declare
    if made.overfit_batches > 0:
        raise ConfigError(
            f"trainer.overfit_batches is {made.overfit_batches}: tasks are drawn anew for each iteration and validation has panels of "
            "its own. To train on the same few tasks set data.train_tasks to data.tasks_per_step."
        )
    if made.reload_dataloaders_every_n_epochs:
        raise ConfigError(
            f"trainer.reload_dataloaders_every_n_epochs is {made.reload_dataloaders_every_n_epochs}: the tasks of an iteration follow "
            "from seed and iteration alone, and nothing is loaded anew. Leave it out."
        )
    for callback in made.callbacks:
        _check_callback(callback)
    if isinstance(trainer.limit_train_batches, int) or made.fast_dev_run:
        return
    if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch == 1:
        trainer.check_val_every_n_epoch = None  # 1 would be taken for 1.0, an epoch, by whatever looks at a metric
    settings = {
        "max_epochs": trainer.max_epochs if trainer.max_epochs != 1000 else -1,  # what Lightning sets where nothing is given
        "min_epochs": trainer.min_epochs if trainer.min_steps is None or (trainer.min_epochs or 0) > 1 else 0,
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch or 1,
    }
    for name, value in settings.items():
        if value not in (None, -1, 0) and (name, value) != ("check_val_every_n_epoch", 1):
            raise ConfigError(f"trainer.{name} is {value}: {ENDLESS}.")
    trainer.fit_loop.min_epochs = 0  # min_steps alone would set 1, and nothing could stop early
    for callback in made.callbacks:
        if argument := _waits_for_an_epoch(callback):
            raise ConfigError(f"{type(callback).__name__}.{argument} waits for the end of an epoch, but {ENDLESS}.")


def _check_callback(callback: Callback) -> None:
    for cls, remedy in UNFIT.items():
        if isinstance(callback, cls):
            raise ConfigError(f"trainer.callbacks: {type(callback).__name__} does not fit to this training: {remedy}.")
    if isinstance(callback, ModelCheckpoint) and callback.filename and callback.auto_insert_metric_name:
        callback.filename, callback.auto_insert_metric_name = _named(callback.filename), False


def _named(filename: str) -> str:
    """A checkpoint's file name with the metrics' names written out, in which a slash makes no folder."""
    return re.sub(r"\{([^:{}]+)([^{}]*)\}", lambda m: f"{m[1].replace('/', '_')}={{{m[1]}{m[2]}}}", filename)


def _waits_for_an_epoch(callback: Callback) -> str | None:
    """The argument by which a callback acts at the end of an epoch only."""
    if isinstance(callback, ModelCheckpoint):
        if callback._save_on_train_epoch_end:
            return "save_on_train_epoch_end"
        return "every_n_epochs" if callback._every_n_epochs > 1 else None
    if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end:
        return "check_on_train_epoch_end"
    if isinstance(callback, Timer) and callback._interval == "epoch":
        return "interval"
    return "logging_interval" if isinstance(callback, LearningRateMonitor) and callback.logging_interval == "epoch" else None


def check_optimizer(optimizer: Any, schedule: Any, max_steps: int) -> None:
    """Look at what is stepped after every update.

    Args:
        max_steps: Optimizer steps of the run; -1: unknown.

    Raises:
        ConfigError: a step would ask for more than there is, or the schedule ends before the run.
    """
    if missing := _required(type(optimizer).step):  # of the class: schedulers wrap that of the object
        raise ConfigError(
            f"model.optimizer: {type(optimizer).__name__}.step needs {missing}, to compute the loss several times: a step here has one "
            "gradient, from several passes. Use AdamW, SGD or another that takes the gradient as it is."
        )
    if schedule is None:
        return
    if missing := _required(type(schedule).step):
        raise ConfigError(
            f"model.lr_scheduler: {type(schedule).__name__}.step needs {missing}, and schedules are stepped after each optimizer step, "
            "when nothing was measured. Use one that follows the number of steps, e.g. torch.optim.lr_scheduler.CosineAnnealingLR."
        )
    if isinstance(schedule, OneCycleLR) and schedule.total_steps < max_steps:
        raise ConfigError(
            f"model.lr_scheduler: OneCycleLR.total_steps is {schedule.total_steps} and trainer.max_steps is {max_steps}: it has no step "
            "after its last, and the run would end there. Give both the same number (optimizer steps)."
        )


def _required(step: Any) -> str | None:
    """The first argument that a call of a method must give."""
    parameters = list(inspect.signature(step).parameters.values())[1:]  # behind self
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((p.name for p in parameters if p.default is p.empty and p.kind in plain), None)
