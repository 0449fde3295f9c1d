"""What Lightning's Trainer offers for short epochs of a data set, where there is one endless epoch: mapped, or refused at the start."""

import inspect
import re
from typing import Any, cast

import torch
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
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
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


def check_weights_move(optimizer: Any) -> None:
    """Look at whether weights of few bits can hold what a step adds: Adam and its kin add about the learning rate, and a bfloat16 weight
    that is more than some 400 times as large stays where it was, however often. Called behind the strategy's own wrapping: DeepSpeed
    steps float32 weights.

    Raises:
        ConfigError: hardly any weight could ever move.
    """
    for group in optimizer.param_groups:
        narrow = [p for p in group["params"] if p.is_floating_point() and torch.finfo(p.dtype).bits < 32]
        rate = float(group.get("initial_lr", group["lr"]))
        if "betas" not in group or not rate or not narrow:
            continue
        share = sum(_movable(p, rate) * p.numel() for p in narrow) / max(1, sum(p.numel() for p in narrow))
        if share > 0.5:
            continue
        kind = str(narrow[0].dtype).removeprefix("torch.")
        told = (
            f"the trained weights are {kind}, and a step of {type(optimizer).__name__} at the learning rate {rate:g} is less than half of "
            f"the last bit of {100 * (1 - share):.1f} % of them: these would never move. Leave policy.dtype out and set trainer.precision "
            "to bf16-mixed (weights in float32), train adapters (LoRAPolicy: theirs are float32), or use DeepSpeed, which steps a float32 "
            "copy."
        )
        if share < 0.01:
            raise ConfigError(told)
        rank_zero_warn(told)


@torch.no_grad()
def _movable(weight: Tensor, rate: float, most: int = 1 << 16) -> float:
    """Share of weights (of `most` of them, evenly spread) that adding the rate would change."""
    some = weight.detach().flatten()[:: max(1, weight.numel() // most)]
    _, exponent = torch.frexp(some.float())  # |w| is in [2^(exponent - 1), 2^exponent)
    half = torch.ldexp(torch.full_like(exponent, torch.finfo(weight.dtype).eps / 4, dtype=torch.float32), exponent)
    return float((half < rate).float().mean())


def _required(step: Any) -> str | None:
    """The first argument that a call of a method must give."""
    parameters = list(inspect.signature(step).parameters.values())[1:]  # behind self
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return next((p.name for p in parameters if p.default is p.empty and p.kind in plain), None)
