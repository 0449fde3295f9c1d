"""What a figure is: a function from runs to charts and tables, whose numbers can be read as rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdar.episodes import StoredEpisode
from sdar.errors import ConfigError
from sdar.report import figures as drawing
from sdar.report.gather import Run

Settings = Mapping[str, Sequence[Run]]
"""Label of a setting -> its runs, one a seed."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """Values over a cost; of several seeds the mean with a band.

    Attributes:
        of: Setting -> x and y of each run.
        percent: Values are shares; drawn in percent, written as they are.
    """

    title: str
    of: Mapping[str, Sequence[drawing.Series]]
    unit: str = ""
    percent: bool = False
    x: str = "iteration"

    def rows(self) -> Iterator[Row]:
        for label, runs in self.of.items():
            for number, (xs, ys) in enumerate(runs):
                for x, y in zip(xs, ys, strict=True):
                    yield {"chart": self.title, "setting": label, "run": number, self.x: x, "value": y}

    def svg(self) -> str:
        return drawing.lines(self.title, self.of, self.unit, self.percent, self.x)


@dataclass(frozen=True)
class Places:
    """A value at each of some named places: turns, positions.

    Attributes:
        of: Setting -> its values, None where there is none.
    """

    title: str
    places: Sequence[str]
    of: Mapping[str, Sequence[float | None]]
    unit: str = ""

    def rows(self) -> Iterator[Row]:
        for label, values in self.of.items():
            for place, value in zip(self.places, values, strict=True):
                if value is not None:
                    yield {"chart": self.title, "setting": label, "place": place, "value": value}

    def svg(self) -> str:
        return drawing.places(self.title, self.places, self.of, self.unit)


@dataclass(frozen=True)
class Table:
    """Rows with the same names in each."""

    title: str
    of: Sequence[Row]

    def rows(self) -> Iterator[Row]:
        for row in self.of:
            yield {"chart": self.title, **row}

    def markdown(self) -> str:
        names = [*self.of[0]]
        lines = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in self.of]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names), *lines))


Chart = Lines | Places | Table
Draw = Callable[[Settings], list[Chart]]
Made = Mapping[str, Sequence[str]]
"""Label -> the method's file in ``conf/method``, and what is set beside it."""


@dataclass(frozen=True)
class Figure:
    """One that is registered."""

    name: str
    shows: str
    """Paper and number, in its own words."""
    differs: str
    """What is not as there."""
    made: Made
    """The runs that ``--make`` trains on the quickstart's world; none: the world has not what the figure shows."""
    draw: Draw


FIGURES: dict[str, Figure] = {}
"""Name -> figure, in the order in which they are listed."""


def figure(shows: str, differs: str, made: Made) -> Callable[[Draw], Draw]:
    """Register a function under its own name."""

    def add(draw: Draw) -> Draw:
        name = draw.__name__
        FIGURES[name] = Figure(name, shows, differs, made, draw)
        return draw

    return add


def curves(settings: Settings, metric: str, title: str, how: str, unit: str = "", percent: bool = False) -> Lines:
    """A metric over iterations.

    Args:
        how: What to do where a run has none.

    Raises:
        ConfigError: a run has none.
    """
    for run in (run for runs in settings.values() for run in runs):
        if not run.series(metric)[0]:
            raise ConfigError(f"{run.folder}: its metrics.csv has no {metric}, which this figure draws. {how}")
    return Lines(title, {label: [run.series(metric) for run in runs] for label, runs in settings.items()}, unit, percent)


def episodes_with(runs: Sequence[Run], number: str, how: str = "") -> list[StoredEpisode]:
    """The attempts of a policy that have a number of their tokens or turns.

    Args:
        how: What else to do where a run has none.

    Raises:
        ConfigError: a run has none.
    """
    found: list[StoredEpisode] = []
    for run in runs:
        mine = [
            e for e in run.episodes if not (e.extra or e.privileged) and any(getattr(t, number) is not None for t in e.turns)
        ]
        if not mine:
            raise ConfigError(
                f"{run.folder}: none of its stored episodes has {number}, which this figure draws. {how or _HOW.format(run.folder)}"
            )
        found += mine
    return found


_HOW = (
    "Train a method with a teacher and --model.log_episodes_every 1, or let `sdar score {} -c ...` write the episodes anew with a "
    "student and a teacher, and draw the folder that it makes."
)


def mean(values: Sequence[float | None] | None) -> float | None:
    """Of those that are known; None: none is."""
    known = [v for v in values or () if v is not None]
    return sum(known) / len(known) if known else None
