"""An alarm: a rule over what a run has measured, and what it says when something is wrong."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sdar.errors import check_least, check_positive, check_share
from sdar.registry import part_kind

FIRST, LAST = 10, 500
"""Values of a metric that are kept: from the beginning, and of late."""


@dataclass
class Measured:
    """What a run measured so far: for each metric its first values and its last ones, each with its iteration."""

    first: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    last: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take in what an iteration or a validation measured."""
        for name, value in metrics.items():
            early, late = self.first.setdefault(name, []), self.last.setdefault(name, [])
            if late and late[-1][0] >= iteration:  # measured again, by a run that goes on from an earlier checkpoint
                early[:] = [pair for pair in early if pair[0] < iteration]
                late[:] = [pair for pair in late if pair[0] < iteration]
            if len(early) < FIRST:
                early.append((iteration, value))
            late.append((iteration, value))
            del late[:-LAST]

    def names(self, pattern: str) -> list[tuple[str, str]]:
        """Metrics whose whole name the regular expression fits, each with what its first group holds."""
        found = ((name, re.fullmatch(pattern, name)) for name in self.last)
        return [(name, match[1] if match.groups() else name) for name, match in found if match]

    def values(self, name: str) -> list[float]:
        """The last values of a metric, the newest at the end."""
        return [value for _, value in self.last.get(name, ())]

    def recent(self, name: str, window: int) -> float | None:
        """The mean of the last `window` values; None where there are fewer."""
        return _mean(self.values(name)[-window:], window)

    def start(self, name: str, window: int) -> float | None:
        """The mean of the first `window` values, of `FIRST` at most; None until as many have followed them."""
        early = [value for _, value in self.first.get(name, [])[:window]]
        return _mean(early, min(window, FIRST)) if len(self.values(name)) >= 2 * len(early) else None


def _mean(values: Sequence[float], window: int) -> float | None:
    return sum(values) / window if len(values) >= window else None


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        fact: What was measured, with its numbers.
        usual: The range that is usual.
        remedy: What it may come from, and what to do.
    """

    fact: str
    usual: str
    remedy: str


@part_kind("alarms")
class Alarm:
    """A rule over the metrics of a run, asked after every iteration and every validation.

    It knows metrics only, so that it can be asked about a run that is over as well (`sdar.alarms.replay`).

    Args:
        window: Values of a metric whose mean is looked at.
    """

    def __init__(self, window: int = 10):
        check_least("alarm", 1, window=window)
        self.window = window

    @property
    def name(self) -> str:
        """What it is called in messages, files and ``alarms.silent``."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__.removeprefix("LazyInstance_")).lower()

    def look(self, run: Measured) -> Finding | None:
        """What is wrong now; None: nothing, or too little was measured to tell."""
        raise NotImplementedError


class Bound(Alarm):
    """Asked whether the mean of a metric over the last iterations lies outside of its range."""

    metric: ClassVar[str]
    """Regular expression of the whole name."""
    what: ClassVar[str]
    """What the number is, in words."""
    remedy: ClassVar[str]
    is_share: ClassVar[bool] = True
    """Its bounds lie in [0, 1]."""

    def __init__(self, window: int, least: float = -math.inf, most: float = math.inf):
        super().__init__(window)
        given = {name: bound for name, bound in (("least", least), ("most", most)) if math.isfinite(bound)}
        if self.is_share:
            check_share("alarm", "a share", **given)
        else:
            check_positive("alarm", **given)
        self.least, self.most = least, most

    def look(self, run: Measured) -> Finding | None:
        for name, _ in run.names(self.metric):
            value = run.recent(name, self.window)
            if value is not None and not self.least <= value <= self.most:
                return Finding(f"{name} is {value:.3g} over {self.window} iterations: {self.what}", self._usual(), self.remedy)
        return None

    def _usual(self) -> str:
        ends = [f"at least {self.least:g}"] * (self.least > -math.inf) + [f"at most {self.most:g}"] * (self.most < math.inf)
        return " and ".join(ends)
