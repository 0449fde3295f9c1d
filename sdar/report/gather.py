"""What runs left in their folders, read back for a report."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdar.episodes import StoredEpisode, read
from sdar.errors import ConfigError
from sdar.reading import read_json_lines, read_yaml


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    label: str
    """Of its setting: runs that differ in their seeds alone share it."""

    @cached_property
    def settings(self) -> dict[str, Any]:
        file = self.folder / "config.yaml"
        found = read_yaml(file) if file.is_file() else {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, by iteration; of an iteration that was repeated the later ones."""
        file = self.folder / "metrics.csv"
        found: dict[int, dict[str, float]] = {}
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    numbers = {name: float(value) for name, value in row.items() if name and value}
                    if "step" in numbers:
                        found.setdefault(int(numbers["step"]), {}).update(numbers)
        return [found[step] for step in sorted(found)]

    @cached_property
    def measured(self) -> list[dict[str, Any]]:
        """The lines of ``validation.jsonl`` that are about a panel."""
        return [line for line in self._lines("validation.jsonl") if "panel" in line]

    @cached_property
    def alarms(self) -> list[dict[str, Any]]:
        return self._lines("alarms.jsonl")

    @cached_property
    def episodes(self) -> list[StoredEpisode]:
        """Stored ones, as they were written; none where none were."""
        folder = self.folder / "episodes"
        return read(self.folder) if folder.is_dir() and any(folder.rglob("*.jsonl*")) else []

    @property
    def method(self) -> str:
        name = (self.settings.get("model") or {}).get("class_path") or ""
        return str(self.measured[-1]["method"]) if self.measured else str(name).rpartition(".")[2]

    @property
    def seed(self) -> Any:
        return self.settings.get("seed_everything")

    def series(self, metric: str) -> tuple[list[float], list[float]]:
        """Iterations and values of a metric."""
        found = [(row["step"], row[metric]) for row in self.rows if metric in row]
        return [x for x, _ in found], [y for _, y in found]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        return [line for _, line in read_json_lines(file) if isinstance(line, dict)] if file.is_file() else []


def runs_of(words: Sequence[str]) -> list[Run]:
    """The runs that words name, each ``[LABEL=]FOLDER[,FOLDER...]``: a run's folder, or one with runs of training below.

    Raises:
        ConfigError: a folder is none of a run and holds none.
    """
    found: list[Run] = []
    for word in words:
        label, equals, paths = word.partition("=")
        label, paths = (label, paths) if equals else ("", word)
        folders = [folder for path in paths.split(",") for folder in _folders(Path(path).expanduser())]
        runs = [Run(folder, label) for folder in folders]
        label = label or _label(runs, paths, {run.label for run in found})
        found += [Run(run.folder, label) for run in runs if run.folder not in {r.folder for r in found}]
    return found


def _folders(path: Path) -> list[Path]:
    if (path / "config.yaml").is_file():
        return [path]
    if found := sorted(file.parent for file in path.glob("*/config.yaml") if file.parent.name.startswith("version_")):
        return found
    what = "holds no config.yaml, and no folder version_N below it does" if path.is_dir() else "is no folder"
    raise ConfigError(f"{path} {what}: it is no run. Give the folder of a run, e.g. runs/quickstart/version_0.")


def _label(runs: Sequence[Run], paths: str, taken: set[str]) -> str:
    methods = {run.method for run in runs}
    short = methods.pop() if len(methods) == 1 else paths
    return f"{short} ({paths})" if short in taken or not short else short


def plain(value: Any) -> str:
    """A value of a configuration in a line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
