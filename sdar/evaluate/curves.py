"""Learning curves of runs, over what they cost: environment steps, sampled tokens, seconds."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from sdar.evaluate.intervals import Estimate
from sdar.evaluate.seeds import student_95

LATER = ("time/judge_s", "time/score_s", "time/update_s")
"""What follows the rollout in an iteration, where there is something to learn from; handing weights over lies within these."""


@dataclass(frozen=True)
class Curve:
    """Success on training tasks after each iteration of a run.

    Attributes:
        success: ``[iterations]``, of the iteration's own attempts.
        costs: ``env_steps``, ``tokens`` (sampled in training) and ``seconds`` (in iterations: neither validations nor checkpoints) ->
            ``[iterations]``, what was spent until then; without those that the run does not tell.
    """

    success: Array
    costs: dict[str, Array]

    @classmethod
    def read(cls, folder: Path) -> "Curve | None":
        """From the ``metrics.csv`` of a run's folder; None where there is none of a training that played."""
        file = folder / "metrics.csv"
        if not file.is_file():
            return None
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("success/train")]
        by_step = {int(float(row["step"])): row for row in rows}  # of a run that went on from an earlier iteration: the later
        rows = [by_step[step] for step in sorted(by_step)]
        if not rows:
            return None

        def column(name: str, missing: float = math.nan) -> Array:
            return np.array([float(row.get(name) or missing) for row in rows])

        rollout = column("time/rollout_s")
        costs = {
            "env_steps": column("train/env_steps"),
            "tokens": np.cumsum(column("rollout/tokens_per_second") * rollout),
            "seconds": np.cumsum(rollout + sum(column(name, 0.0) for name in LATER)),
        }
        return cls(column("success/train"), {name: cost for name, cost in costs.items() if np.isfinite(cost).all()})


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def aligned(curves: Sequence[tuple[Sequence[float], Sequence[float]]], points: int) -> tuple[Array, Array]:
    """Curves at the same places: as many `points` as asked for, from where the last one begins to where the first one ends.

    Args:
        curves: x and y of each; x grows.

    Returns:
        ``[points]`` and ``[curves, points]``.
    """
    at = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), points)
    return at, np.array([np.interp(at, x, y) for x, y in curves])


def mean_over_seeds(values: Float[Array, " seeds"]) -> Estimate:
    """The mean with its 95 % interval over seeds (Student's); of one seed the interval is not known (NaN)."""
    n, mean = len(values), float(values.mean())
    half = student_95(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, n)
