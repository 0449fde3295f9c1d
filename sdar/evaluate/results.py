"""What runs left of their measurements, read back: which panel was measured when, and how each attempt at each of its tasks ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sdar.episodes.files import file_of
from sdar.errors import ConfigError
from sdar.reading import convert, read_json_lines, read_yaml
from sdar.training.runs import NAMES, differences
from sdar.types import Status

MEASUREMENTS = "validation.jsonl"
ADVICE = "It is no file that a run wrote, or was edited: restore it."


class _Line(msgspec.Struct):
    """A line of `MEASUREMENTS`, as far as it is about tasks that were played."""

    method: str
    seed: int
    iteration: int
    env_steps: int
    panel: str
    hash: str
    tasks: int
    attempts: int


class _Episode(msgspec.Struct):
    """A line of a file of episodes, as far as it is about how an attempt ended."""

    task: str
    family: str
    status: str
    success: bool
    reward: float


class Attempt(NamedTuple):
    """How an attempt at a task ended."""

    family: str
    success: bool
    reward: float


@dataclass(frozen=True)
class Measurement:
    """One panel, as a run measured it once."""

    folder: Path
    panel: str
    hash: str
    tasks: int
    attempts: int
    """Asked for at each task."""
    iteration: int
    env_steps: int

    def read_attempts(self) -> dict[str, list[Attempt]]:
        """By task, in the order of the panel: the policy's attempts that no fault of the world ended. The only reader of episodes here.

        Raises:
            ConfigError: the run's folder has no episodes of this measurement.
        """
        file = file_of(self.folder / "episodes", f"{self.panel}-policy-{self.iteration:06d}")
        if not file.is_file():
            raise ConfigError(
                f"{file} does not exist: how each attempt at panel {self.panel} ended after iteration {self.iteration} is not known. "
                "Restore the file, or measure again (sdar validate -c "
                f"{self.folder / 'config.yaml'} --ckpt_path ...) and compare the validate_N folder."
            )
        found: dict[str, list[Attempt]] = {}
        for where, line in read_json_lines(file):
            told = convert(line, _Episode, where, advice=ADVICE)
            attempts = found.setdefault(told.task, [])
            if not Status(told.status).lost:
                attempts.append(Attempt(told.family, told.success, told.reward))
        return {task: attempts for task, attempts in found.items() if attempts}


@dataclass(frozen=True)
class MeasuredRun:
    """A run's folder and its measurements, in their order."""

    folder: Path
    method: str
    seed: int
    settings: dict[str, Any]
    measurements: tuple[Measurement, ...]

    @classmethod
    def read(cls, folder: Path) -> "MeasuredRun":
        """
        Raises:
            ConfigError: nothing was measured there.
        """
        lines = [
            (where, line)
            for where, line in read_json_lines(folder / MEASUREMENTS)
            if isinstance(line, dict) and "hash" in line
        ]
        told = [convert(line, _Line, where, advice=ADVICE) for where, line in lines]
        if not told:
            raise ConfigError(f"{folder / MEASUREMENTS} names no panel that was played: there is nothing to compare.")
        measured = [Measurement(folder, x.panel, x.hash, x.tasks, x.attempts, x.iteration, x.env_steps) for x in told]
        config = folder / "config.yaml"
        settings = read_yaml(config) if config.is_file() else {}
        return cls(folder, told[0].method, told[0].seed, settings if isinstance(settings, dict) else {}, tuple(measured))

    def of_panel(self, panel: str, iteration: int | None = None) -> list[Measurement]:
        """Measurements of a panel up to an iteration, by iteration; of two after one iteration the later one (a run that went on)."""
        last = {m.iteration: m for m in self.measurements if m.panel == panel}
        found = [last[i] for i in sorted(last) if iteration is None or i <= iteration]
        return found if iteration is None or (found and found[-1].iteration == iteration) else []


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seeds alone."""

    label: str
    runs: tuple[MeasuredRun, ...]

    @classmethod
    def read(cls, word: str) -> "Setting":
        """
        Args:
            word: ``[LABEL=]FOLDER[,FOLDER...]``: a run's folder, or one with runs of training (``version_N``) below.

        Raises:
            ConfigError: no run is there; the runs differ in more than their seeds; two have the same seed.
        """
        label, equals, paths = word.partition("=")
        if not equals:
            label, paths = "", word
        runs = [MeasuredRun.read(folder) for path in paths.split(",") for folder in run_folders(Path(path).expanduser())]
        _check_one_setting(paths, runs)
        methods = {run.method for run in runs}
        return cls(label or (methods.pop() if len(methods) == 1 else paths), tuple(sorted(runs, key=lambda run: run.seed)))


def run_folders(path: Path) -> list[Path]:
    """The folder of a run, or those of the trainings that lie below a folder.

    Raises:
        ConfigError: there is none.
    """
    if (path / MEASUREMENTS).is_file():
        return [path]
    name = NAMES["fit"]
    found = sorted(file.parent for file in path.rglob(MEASUREMENTS) if file.parent.name.startswith(f"{name}_"))
    if not found:
        what = f"holds no {MEASUREMENTS}, and no folder {name}_N below it does" if path.is_dir() else "is no folder"
        raise ConfigError(
            f"{path} {what}: it is no run that measured something. Give the folder of a run, e.g. runs/{name}_0, or one with runs of "
            "several seeds."
        )
    return found


def _check_one_setting(paths: str, runs: Sequence[MeasuredRun]) -> None:
    kinds: list[list[MeasuredRun]] = []
    for run in runs:
        if same := [kind for kind in kinds if not _differ(kind[0], run)]:
            same[0].append(run)
        else:
            kinds.append([run])
    if len(kinds) > 1:
        key, one, other = _differ(kinds[0][0], kinds[1][0])[0]
        apart = " ".join(",".join(str(run.folder) for run in kind) for kind in kinds)
        raise ConfigError(
            f"{paths} holds runs of {len(kinds)} settings: {kinds[0][0].folder.name} and {kinds[1][0].folder.name} differ in {key} ({one}, "
            f"{other}). Seeds of one setting belong together, others apart: sdar compare {apart}"
        )
    seeds = [run.seed for run in runs]
    if twice := next((run for i, run in enumerate(runs) if run.seed in seeds[:i]), None):
        first = runs[seeds.index(twice.seed)]
        raise ConfigError(
            f"{first.folder} and {twice.folder} are both of seed {twice.seed}: the same run counted twice would make every interval too "
            "narrow. Name the folders that are meant, joined by commas."
        )


def _differ(one: MeasuredRun, other: MeasuredRun) -> list[tuple[str, Any, Any]]:
    return differences(one.settings, other.settings, ("model", "data"))


def apart(settings: Iterable[Setting]) -> list[Setting]:
    """The same with labels that differ: those that are alike get the folder of their first run behind them."""
    settings = list(settings)
    labels = [setting.label for setting in settings]
    return [replace(s, label=f"{s.label} ({s.runs[0].folder})") if labels.count(s.label) > 1 else s for s in settings]
