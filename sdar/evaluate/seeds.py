"""Two settings on the same tasks, each run with one or several seeds: their difference, and what an interval says that lets them vary."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from sdar.evaluate.intervals import Z95, Estimate, paired_difference


class Difference(NamedTuple):
    """A difference of means with its 95 % interval.

    Attributes:
        varies: What another experiment would have anew, for which the interval stands: ``seeds and tasks``, or ``tasks`` alone.
        freedom: Degrees of freedom of its Student distribution (infinite: a normal one).
    """

    mean: float
    low: float
    high: float
    varies: str
    freedom: float


def difference(after: Float[Array, "seeds tasks"], before: Float[Array, " others tasks"], unit: float = 1.0) -> Difference:
    """Mean of `after` less mean of `before`, over the same tasks in the same order; each number is a task's mean over its attempts.

    With two or more seeds on both sides, seeds and tasks are both a sample. Every seed plays every task, so that the variance is that
    of a crossed design: of the seeds' means, of the tasks' mean differences, less what both of them count (the residual of seeds
    within tasks). Its degrees of freedom are Satterthwaite's (1946), as in Welch's test: few seeds make the interval
    wide, where resampling three of them would make it too narrow. Seeds of the two sides are independent.

    With one seed on a side nothing tells how much seeds vary: the interval is about these policies, on other tasks of their kind.

    Args:
        unit: Largest possible difference at one task, 1 for success. As `paired_difference` does, half a task of this size is added on
            either side, so that a few tasks that agree do not give an interval without width. 0: none is added.
    """
    mean, n, least = float(after.mean() - before.mean()), after.shape[1], min(len(after), len(before))
    pairs = after.mean(0) - before.mean(0)
    if least < 2:
        found = paired_difference((pairs / (unit or 1)).tolist(), [0.0] * n)
        return Difference(mean, unit * found.low, unit * found.high, "tasks", math.inf)
    centre = float(pairs.sum()) / (n + 2)
    tasks = (float((pairs**2).sum() + unit**2 / least) / (n + 2) - centre**2) / (n + 2)
    parts = [(max(0.0, tasks - _residual(after) - _residual(before)), max(1, n - 1))]
    parts += [(float(side.mean(1).var(ddof=1)) / len(side), len(side) - 1) for side in (after, before)]
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / of for part, of in parts)
    freedom = variance**2 / squares if squares else math.inf
    half = student_95(freedom) * math.sqrt(variance)
    low, high = max(-unit, min(mean, centre - half)), min(unit, max(mean, centre + half))
    return Difference(mean, low, high, "seeds and tasks", freedom)


def _residual(side: Float[Array, "seeds tasks"]) -> float:
    """What chance within a task, of one seed, adds to the variance of the mean."""
    seeds, tasks = side.shape
    if tasks < 2:
        return 0.0
    odd = side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()
    return float((odd**2).sum()) / ((seeds - 1) * (tasks - 1)) / (seeds * tasks)


def interquartile_mean(values: Float[Array, " n"]) -> float:
    """Mean of the middle half, the quarter at each end left out; a value at the border counts in part (arXiv 2108.13264)."""
    ordered, n = np.sort(values), len(values)
    place = np.arange(n)
    weights = np.clip(np.minimum(place + 1, 0.75 * n) - np.maximum(place, 0.25 * n), 0, 1)
    return float(weights @ ordered / weights.sum())


def improvement_over_seeds(after: Float[Array, " seeds"], before: Float[Array, " others"]) -> Estimate:
    """Probability that a run of one setting is better than a run of the other, both with new seeds, on these tasks; ties count half.

    The share of pairs (Mann and Whitney 1947), with Newcombe's interval (2006, method 5), which is sensible at 0 and 1. Its normal quantile
    is Student's here: with three seeds a side no order of runs is rarer than 1 in 20. `n` is the number of pairs.
    """
    m, n = len(after), len(before)
    gaps = after[:, None] - before
    share = float((np.sign(gaps).mean() + 1) / 2)
    grid = np.linspace(0, 1, 10_001)
    more = (m + n) / 2 - 1
    variance = grid * (1 - grid) / (m * n) * (1 + more * ((1 - grid) / (2 - grid) + grid / (1 + grid)))
    inside = grid[np.abs(grid - share) <= student_95(max(1, m + n - 2)) * np.sqrt(variance)]
    return Estimate(share, min(share, float(inside.min(initial=share))), max(share, float(inside.max(initial=share))), m * n)


def improvement_over_tasks(wins: Float[Array, " tasks"]) -> Estimate:
    """Probability that an attempt of one policy at a task is better than one of the other, of each task's shares of pairs of attempts
    (ties half) in [0, 1]; the interval is over tasks."""
    found = paired_difference((2 * wins - 1).tolist(), [0.0] * len(wins))
    return Estimate((found.mean + 1) / 2, (found.low + 1) / 2, (found.high + 1) / 2, found.n)


def student_95(freedom: float) -> float:
    """Student's quantile: 95 % of his distribution with `freedom` >= 1 (any number) lies within minus and plus this.

    With t = sqrt(freedom) tan(angle) his density is a power of the angle's cosine, which is summed up here.
    """
    if freedom > 1e6:
        return Z95
    angles = np.linspace(0, math.atan(14 / math.sqrt(freedom)), 4001)
    density = np.cos(angles) ** (freedom - 1)
    inside = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)]) * angles[1]
    inside *= math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) * 2 / math.sqrt(math.pi)
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, inside, angles)))
