"""Coefficients as functions of the training iteration, which counts from 0.

Code that counts its rollouts from 1 has the same line one iteration earlier: ``first: 1``.
"""

from bisect import bisect_right
from itertools import pairwise

from sdar.errors import ConfigError
from sdar.parts import Schedule
from sdar.registry import register


@register("constant")
class ConstantSchedule(Schedule):
    """The same value at every iteration.

    Args:
        value: That value.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, iteration: int) -> float:
        return self.value


@register("linear")
class LinearSchedule(Schedule):
    """A straight line from `start` to `end`, then constant: warm-up or warm-down.

    The RLSD baseline of SDAR's code (0.495, 0.49, ... 0.005, 0 in rollouts 1 to 100) is ``LinearSchedule(0.5, 0.0, 100, first=1)``.
    """

    def __init__(self, start: float, end: float, iterations: int, delay: int = 0, first: int = 0) -> None:
        """
        Args:
            start: value before and at the beginning of the line.
            end: value from the end of the line on.
            iterations: how long the line is; `end` is reached at iteration ``delay + iterations - first``.
            delay: iterations at `start` before it begins.
            first: number of the run's first iteration.
        """
        if iterations < 1:
            raise ConfigError(
                f"schedule.iterations is {iterations}: a line needs at least 1 iteration. Use ConstantSchedule for no change."
            )
        if delay < 0:
            raise ConfigError(f"schedule.delay is {delay}: a schedule cannot begin before the training. Use 0 or more.")
        self.start = start
        self.end = end
        self.iterations = iterations
        self.delay = delay
        self.first = numbered("schedule.first", first)

    def __call__(self, iteration: int) -> float:
        progress = min(max((iteration + self.first - self.delay) / self.iterations, 0.0), 1.0)
        return self.start * (1 - progress) + self.end * progress


@register("piecewise")
class PiecewiseSchedule(Schedule):
    """Straight lines between points, constant before the first and after the last: a warm-up followed by a decay.

    Args:
        iterations: Of each point, in rising order.
        values: Of each point.
        first: Number of the run's first iteration.
    """

    def __init__(self, iterations: list[int], values: list[float], first: int = 0) -> None:
        if not iterations or len(iterations) != len(values) or any(b <= a for a, b in pairwise(iterations)):
            raise ConfigError(
                f"schedule.iterations is {iterations}, values {values}: each point has an iteration and a value, and iterations rise. "
                "Use e.g. [0, 10, 60] and [0.0, 0.5, 0.0]."
            )
        self.iterations, self.values = iterations, values
        self.first = numbered("schedule.first", first)

    def __call__(self, iteration: int) -> float:
        now = iteration + self.first
        after = bisect_right(self.iterations, now)
        if after in (0, len(self.iterations)):
            return float(self.values[max(after - 1, 0)])
        begin, end = self.iterations[after - 1 : after + 1]
        progress = (now - begin) / (end - begin)
        return self.values[after - 1] * (1 - progress) + self.values[after] * progress


@register("window")
class WindowSchedule(Schedule):
    """`value` from iteration `start` on (until before `stop`), 0 otherwise.

    Args:
        value: The value within the window.
        start: First iteration of the window, counted from 0.
        stop: First iteration after it; None: it stays open.
    """

    def __init__(self, value: float, start: int, stop: int | None = None) -> None:
        if start < 0 or (stop is not None and stop <= start):
            raise ConfigError(
                f"schedule.start is {start}, stop {stop}: the window would be empty. Use 0 <= start < stop, or no stop."
            )
        self.value = value
        self.start = start
        self.stop = stop

    def __call__(self, iteration: int) -> float:
        return self.value if self.start <= iteration and (self.stop is None or iteration < self.stop) else 0.0


def numbered(setting: str, first: int) -> int:
    """The number of a run's first iteration, 0 or 1."""
    if first not in (0, 1):
        raise ConfigError(f"{setting} is {first}: the first iteration has number 0, or 1 as in verl.")
    return first


def scheduled(coef: float | Schedule) -> Schedule:
    """A number as a schedule that never changes."""
    return coef if isinstance(coef, Schedule) else ConstantSchedule(coef)
