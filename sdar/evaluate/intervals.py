"""Numbers with their 95 % intervals. The unit of evidence is the task: attempts at one task are not independent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z95 = 1.959963984540054


class Estimate(NamedTuple):
    """A mean with its 95 % interval over `n` tasks."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:5.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] (n = {self.n})"


def wilson_interval(successes: float, n: int) -> Estimate:
    """A proportion with Wilson's score interval; sensible at 0 and 1 too."""
    if n < 1:
        raise ValueError("there is no interval over 0 tasks: play at least 1.")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} tasks are no proportion: it is 0 to {n}.")
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean of per-task values in [0, 1] with a normal interval over tasks.

    Wilson's where values are 0 or 1; and where all are the same, because nothing then tells how much they vary (his interval
    is right for the widest variation that the mean allows).
    """
    n = len(values)
    if strange := [v for v in values if not 0 <= v <= 1]:
        raise ValueError(f"{strange[0]} is no value in [0, 1]: the interval is one of proportions and scores.")
    if len(set(values)) <= 1 or all(v in (0.0, 1.0) for v in values):
        return wilson_interval(sum(values), n)
    mean = sum(values) / n
    half = Z95 * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), n)


def macro_mean(sets: Sequence[Estimate]) -> Estimate:
    """The mean over data sets, each of which counts alike; `n` is the number of tasks in all of them.

    The distances of its ends from it are those of the sets' own ends, squared and added up (MOVER, Zou and Donner 2008): tasks of
    different sets are independent, and the sets are all that is asked about, no sample of others.
    """
    if not sets:
        raise ValueError("there is no mean over 0 sets: name at least 1.")
    k = len(sets)
    mean = sum(of.mean for of in sets) / k
    low = mean - math.sqrt(sum((of.mean - of.low) ** 2 for of in sets)) / k
    high = mean + math.sqrt(sum((of.high - of.mean) ** 2 for of in sets)) / k
    return Estimate(mean, max(0.0, low), min(1.0, high), sum(of.n for of in sets))


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Estimate:
    """Mean of per-task differences, each in [-1, 1], on the same tasks in the same order.

    The interval is normal after half a task was added to each of the four outcomes of a pair (Agresti and Min 2005): a few
    tasks that all agree prove little, and without this their interval would have no width.
    """
    if len(after) != len(before):
        raise ValueError(f"{len(after)} and {len(before)} tasks cannot be paired: compare runs on one panel.")
    if not after:
        raise ValueError("there is no interval over 0 tasks: play at least 1.")
    differences = [a - b for a, b in zip(after, before, strict=True)]
    n = len(differences)
    mean, centre = sum(differences) / n, sum(differences) / (n + 2)
    square = (sum(d * d for d in differences) + 1) / (n + 2)
    half = Z95 * math.sqrt((square - centre**2) / (n + 2))
    return Estimate(mean, max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), n)


def pass_at_k(successes: int, attempts: int, k: int) -> float:
    """Unbiased probability that at least one of k attempts succeeds (arXiv 2107.03374)."""
    if not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} needs at least {k} attempts, there are {attempts}.")
    if attempts - successes < k:
        return 1.0
    return 1.0 - math.comb(attempts - successes, k) / math.comb(attempts, k)
