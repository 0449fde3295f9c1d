"""Coefficients as functions of the training iteration, which counts from 0."""

from sdar.errors import ConfigError
from sdar.parts import Schedule
from sdar.registry import register


@register("constant")
class ConstantSchedule(Schedule):
    """The same value at every iteration."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, iteration: int) -> float:
        return self.value


@register("linear")
class LinearSchedule(Schedule):
    """A straight line from `start` to `end`, then constant: warm-up or warm-down.

    RLSD's warm-down (arXiv 2604.03128) is ``LinearSchedule(0.5, 0.0, 50)``.
    """

    def __init__(self, start: float, end: float, iterations: int, delay: int = 0) -> None:
        """
        Args:
            iterations: how long the line is; `end` is reached at iteration ``delay + iterations``.
            delay: iterations at `start` before it begins.
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

    def __call__(self, iteration: int) -> float:
        progress = min(max((iteration - self.delay) / self.iterations, 0.0), 1.0)
        return self.start * (1 - progress) + self.end * progress
