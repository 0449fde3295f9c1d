"""What the terminal shows while a run works: a bar; or, where nobody watches, a line an iteration and a line a minute of a validation."""

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import mean
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sdar.training.measuring import Measuring

SHOWN = {
    "success/train": "success {:.1%}",
    "reward/mean": "reward {:.3g}",
    "train/loss": "loss {:.3g}",
    "rollout/tokens_per_second": "{:.0f} tok/s",
}
"""Metrics of an iteration that stand beside the bar, the most important first."""
TREND = 10
"""Iterations whose mean success is compared with that of as many before."""
QUIET = 60.0
"""Seconds between two lines of a validation where the output is no terminal."""
DRAWN = 0.1
"""Seconds between two drawings of its bar."""


def say(trainer: Any, text: str) -> None:
    """Print without getting into a bar's line; the first process only."""
    bar = trainer.progress_bar_callback
    if not trainer.is_global_zero:
        return
    if bar is None or isinstance(bar, TQDMProgressBar) or not bar.is_enabled:
        tqdm.write(text)
        sys.stdout.flush()
    else:
        bar.print(text)


def note(trainer: Any, doing: str) -> None:
    """Show what an iteration is at, where there is a bar."""
    if bar := _bar(trainer):
        bar.note(doing)


def measured(trainer: Any, measuring: Measuring, at_once: bool = False) -> None:
    """Show how far a validation is; `at_once`: a bar shows it however short ago it was drawn."""
    if bar := _bar(trainer):
        bar.measured(measuring, at_once)


def measurement_over(trainer: Any, measuring: Measuring) -> None:
    """A validation has ended."""
    if bar := _bar(trainer):
        bar.over(measuring)


def scored(trainer: Any, what: str, pieces: int) -> None:
    """Show how many pieces of stored episodes have been scored; where there is no bar, the line that is told of each says it."""
    if (bar := _bar(trainer)) and (shown := bar._predict_progress_bar) is not None:
        shown.n, shown.total = pieces, sum(trainer.num_predict_batches)
        shown.set_description_str(f"scored: {what} ({shown.n}/{shown.total})")


def _bar(trainer: Any) -> "IterationBar | None":
    bar = getattr(trainer, "progress_bar_callback", None)
    return bar if isinstance(bar, IterationBar) else None


class IterationBar(TQDMProgressBar):
    """Iterations done and to come, what the present one is at, success with its trend, reward, loss and speed; of a validation episodes
    that have ended, success so far and time left. Where the output is no terminal there is a line an iteration instead, and a line a minute
    of a validation.

    Args:
        refresh_rate: Iterations between two updates; 0 shows nothing.
    """

    BAR_FORMAT = "{desc} |{bar}| {elapsed}{postfix}"
    TRAIN_FORMAT = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"

    def __init__(self, refresh_rate: int = 1):
        super().__init__(refresh_rate)
        self._plain = False
        self._began = (0.0, 0)
        self._told = -math.inf  # when a validation was shown last
        self._successes: list[float] = []  # of the iterations of this process
        self._apart = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self._plain = self.is_enabled
            self.disable()
        elif self.is_enabled:
            self._apart.enter_context(_apart())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._apart.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for bar in (self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()
        self._apart.close()

    # ------------------------------------------------------------------ training

    def on_train_start(self, *_: Any) -> None:
        self._began = (time.monotonic(), self.done)
        self.train_progress_bar = self.init_train_tqdm()

    def init_train_tqdm(self) -> Tqdm:
        counts = {"initial": self.done, "total": self.total}  # of a run that goes on: the rate is that of what is done here
        where = {"position": 2 * self.process_position, "dynamic_ncols": True, "file": sys.stdout}
        return Tqdm(
            desc="training", leave=True, smoothing=0, bar_format=self.TRAIN_FORMAT, disable=self.is_disabled, **counts, **where
        )

    def on_train_epoch_start(self, *_: Any) -> None:
        """Nothing: iterations are counted over the whole run."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        known = trainer.callback_metrics
        if (success := known.get("success/train")) is not None:
            self._successes.append(float(success))
        if not self.refresh_rate or self.done % self.refresh_rate:
            return
        shown = [text.format(float(known[key])) for key, text in SHOWN.items() if key in known]
        if trend := rise(self._successes):
            shown[0] += f" ({trend})"
        if self._plain:
            times = {key[len("time/") : -len("_s")]: float(v) for key, v in known.items() if key.startswith("time/")}
            times.pop("validation", None)  # of an earlier iteration, and told where it ended
            print(
                self.line([*shown, *(f"{phase} {f'{s:.1f}s' if s < 10 else brief(s)}" for phase, s in times.items())]),
                flush=True,
            )
        bar = self.train_progress_bar
        bar.n, bar.total = self.done, self.total
        bar.set_description_str("training", refresh=False)
        bar.set_postfix_str(", ".join(shown))

    def on_train_epoch_end(self, *_: Any) -> None:
        pass

    def line(self, shown: list[str]) -> str:
        """An iteration that has just ended, in a line."""
        since, before = self._began
        done, total = self.done, self.total
        pace = (time.monotonic() - since) / (done - before)
        left = [f"{brief(pace * (total - done))} left"] if total is not None and total > done else []
        of = "" if total is None else f"/{total}"
        return f"iteration {done}{of}: {', '.join([*shown, *left])}"

    @property
    def done(self) -> int:
        """Iterations since the run began, in earlier processes too."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    @property
    def total(self) -> int | None:
        """Iterations that the run will have, as far as can be told: steps and actions are as many an iteration as there were so far."""
        trainer, module, done = self.trainer, cast(Any, self.trainer.lightning_module), self.done
        ends = [math.inf]
        if trainer.max_steps >= 0:
            updates = getattr(module, "updates_per_rollout", 1)
            if getattr(module, "rows_per_update", None) and done:
                updates = max(1.0, trainer.global_step / done)
            ends.append(done + math.ceil((trainer.max_steps - trainer.global_step) / updates))
        if (most := getattr(module, "max_env_steps", None)) is not None and done and module.env_steps:
            ends.append(done + math.ceil(max(0, most - module.env_steps) / (module.env_steps / done)))
        if (epochs := trainer.max_epochs or -1) > 0:
            ends.append(epochs * trainer.num_training_batches)
        return None if math.isinf(end := min(ends)) else int(end)

    # ------------------------------------------------------------------ measuring

    @property
    def sanity_check_description(self) -> str:
        return "before training"

    @property
    def validation_description(self) -> str:
        return "validation"

    def on_validation_batch_start(self, *_: Any) -> None:
        """Nothing, as in the next ones: episodes are counted, not pieces of a panel."""

    def on_validation_batch_end(self, *_: Any) -> None:
        pass

    def on_test_batch_start(self, *_: Any) -> None:
        pass

    def on_test_batch_end(self, *_: Any) -> None:
        pass

    def on_predict_batch_start(self, *_: Any) -> None:
        pass

    def on_predict_batch_end(self, *_: Any) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()

    def measured(self, measuring: Measuring, at_once: bool = False) -> None:
        """Show how far a validation, a test or a prediction is."""
        now = measuring.clock()
        if now - self._told < (QUIET if self._plain else 0 if at_once else DRAWN):
            return
        self._told = now
        left = "" if measuring.left is None else f"{brief(measuring.left)} left"
        facts = [fact for fact in (measuring.success, left) if fact]
        if self._plain:
            several = f" of the first of {measuring.ranks} processes" if measuring.ranks > 1 else ""
            print(
                f"{measuring.what} of {measuring.place}: {', '.join([f'{measuring.count} {measuring.unit}{several}', *facts])}",
                flush=True,
            )
            return
        bars = {"test": self._test_progress_bar, "predict": self._predict_progress_bar}
        if (bar := bars.get(str(self.trainer.state.fn), self._val_progress_bar)) is not None:
            bar.n, bar.total = measuring.share, 1
            bar.set_description_str(f"{measuring.what}: {measuring.place} {measuring.count}", refresh=False)
            bar.set_postfix_str(", ".join(facts))

    def over(self, measuring: Measuring) -> None:
        """Say that it has ended, where no bar did."""
        if self._plain and measuring.played:
            print(f"{measuring.what} took {brief(measuring.seconds)}: {'; '.join(measuring.played)}", flush=True)

    def note(self, doing: str) -> None:
        """Say what an iteration is at."""
        if self.trainer.training and self._train_progress_bar is not None:
            self.train_progress_bar.set_description_str(doing)


class NetworkSummary(ModelSummary):
    """What is trained, in a line for each network that has weights."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]], total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        columns = dict(summary_data)
        networks = zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        lines = [
            f"{name}: {kind}, {count.strip()} parameters"
            for name, kind, count in networks
            if count.strip() not in ("0", "n/a")
        ]
        rank_zero_info("\n".join([*lines, f"trained: {trainable_parameters:,} of {total_parameters:,} parameters"]))


def rise(successes: Sequence[float]) -> str:
    """By how many points the mean of the last `TREND` is above that of as many before; empty: there are not so many."""
    if len(successes) < 2 * TREND:
        return ""
    return f"{100 * (mean(successes[-TREND:]) - mean(successes[-2 * TREND : -TREND])):+.1f}"


def brief(seconds: float) -> str:
    """A time in at most six letters: 45s, 17m, 1h33m, 2d4h."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes < 1440 else f"{minutes // 1440}d{minutes % 1440 // 60}h"


@contextmanager
def _apart() -> Iterator[None]:
    """Messages of logging and warnings on lines of their own."""
    tell = warnings.showwarning

    def show(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        if file is not None:
            return tell(message, category, filename, lineno, file, line)
        tqdm.write(warnings.formatwarning(message, category, filename, lineno, line), file=sys.stderr, end="")

    loggers = [log for name in ("", "lightning", "lightning.pytorch") if (log := logging.getLogger(name)).handlers]
    with logging_redirect_tqdm(loggers):
        warnings.showwarning = show
        try:
            yield
        finally:
            warnings.showwarning = tell
