"""Who asks the alarms: a callback while a run goes on, a function about a run that is over."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sdar.alarms import policy, teacher  # noqa: F401 (who asks for every alarm has them registered)
from sdar.alarms.base import Alarm, Finding, Measured
from sdar.errors import ConfigError, check_least
from sdar.registry import did_you_mean, parts
from sdar.training import bars
from sdar.training.host import Host
from sdar.training.reporting import run_folder

PAGE = "docs/alarms.md"


def alarms(rules: Sequence[Alarm] | None = None, silent: Sequence[str] | None = None) -> list[Alarm]:
    """Every registered alarm with its defaults, those of `rules` in place of the ones of their names, without those of `silent`.

    Raises:
        ConfigError: `silent` has a name that no alarm carries.
    """
    known = {alarm.name: alarm for alarm in [*(cls() for cls in dict.fromkeys(parts("alarms").values())), *(rules or ())]}
    for name in silent or ():
        if known.pop(name, None) is None:
            near = did_you_mean(name, known) or f" Alarms: {', '.join(known)}."
            raise ConfigError(f"alarms.silent: there is no alarm {name!r}.{near}")
    return list(known.values())


class Watch:
    """Asks alarms about a run, one measurement after the other.

    Args:
        asked: The alarms.
        again: Iterations after which an alarm whose reason stays is told again.
    """

    def __init__(self, asked: Sequence[Alarm], again: int):
        self.asked, self.again = asked, again
        self.measured = Measured()
        self.told: dict[str, int] = {}
        """Alarm whose reason is still there -> iteration in which it was told last."""

    def look(self, iteration: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, Finding]]:
        """What is to be told now."""
        self.measured.add(iteration, metrics)
        for alarm in self.asked:
            finding = alarm.look(self.measured)
            if finding is None:
                self.told.pop(alarm.name, None)
            elif alarm.name not in self.told or iteration - self.told[alarm.name] >= self.again:
                self.told[alarm.name] = iteration
                yield alarm.name, finding


class Alarms(Callback):
    """Tells when a run goes wrong in a way that its losses do not show; quiet when nothing is wrong.

    What was told is in ``alarms.jsonl`` of the run's folder, too. `sdar list alarms` has all rules.

    Args:
        enabled: Whether any alarm is asked.
        rules: Alarms with other thresholds than their defaults, and alarms of your own; the others stay.
        silent: Names of alarms that are not asked.
        again: Iterations after which an alarm whose reason stays is told again.
    """

    def __init__(
        self, enabled: bool = True, rules: list[Alarm] | None = None, silent: list[str] | None = None, again: int = 100
    ) -> None:
        check_least("alarms", 1, again=again)
        self.watch = Watch(alarms(rules, silent) if enabled else [], again)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._look(trainer, cast(Host, pl_module), cast(Any, pl_module).last_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._look(trainer, cast(Host, pl_module), cast(Any, pl_module).validation.last_metrics)

    def _look(self, trainer: Trainer, module: Host, metrics: Mapping[str, float]) -> None:
        for name, finding in self.watch.look(module.iteration, metrics):
            bars.say(trainer, message(name, module.iteration, finding))
            if trainer.is_global_zero and (folder := run_folder(trainer)) is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "alarms.jsonl").open("a", encoding="utf-8") as out:
                    out.write(json.dumps({"iteration": module.iteration, "alarm": name, **asdict(finding)}) + "\n")

    def state_dict(self) -> dict[str, Any]:
        return {**asdict(self.watch.measured), "told": self.watch.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watch.told = dict(state_dict["told"])
        for part in ("first", "last"):
            pairs = {name: [(int(i), float(v)) for i, v in values] for name, values in state_dict[part].items()}
            setattr(self.watch.measured, part, pairs)


def message(name: str, iteration: int, finding: Finding) -> str:
    """What the terminal shows."""
    return (
        f"ALARM {name}, iteration {iteration}: {finding.fact}.\n  usual: {finding.usual}. {finding.remedy}\n"
        f"  {PAGE}#{name} explains it; alarms.silent: [{name}] silences it."
    )


def replay(run: str, asked: Sequence[Alarm] | None = None) -> list[tuple[int, str, Finding]]:
    """What alarms would have told of a run that is over: iteration, alarm, finding.

    Args:
        run: Its folder, with ``metrics.csv``.
        asked: The alarms; all by default.

    Raises:
        ConfigError: the folder has no ``metrics.csv``.
    """
    table = Path(run, "metrics.csv")
    if not table.is_file():
        raise ConfigError(
            f"there is no {table}: {run} is no folder of a run, or one without its metrics. Give runs/.../version_N."
        )
    watch, found = Watch(alarms() if asked is None else asked, again=100), []
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            metrics = {name: float(value) for name, value in row.items() if value}
            iteration = int(metrics["train/iteration"])
            found += [(iteration, *told) for told in watch.look(iteration, metrics)]
    return found
