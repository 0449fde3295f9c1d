"""Differences over seeds and tasks: their intervals hold the truth as often as they say, on results with a known difference."""

import math

import numpy as np
import pytest

from sdar.evaluate.curves import mean_over_seeds
from sdar.evaluate.intervals import paired_difference
from sdar.evaluate.seeds import (
    difference,
    improvement_over_seeds,
    improvement_over_tasks,
    interquartile_mean,
    student_95,
)

TIMES, MORE = 600, 3000
"""Experiments of a simulation, and of a cheap one."""


def tolerance(times: int) -> float:
    """Three standard errors of a share of 0.95 in so many experiments: 0.0267 of 600, 0.0119 of 3,000."""
    return 3 * math.sqrt(0.95 * 0.05 / times)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (10, 2.2281), (30, 2.0423), (120, 1.9799)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert student_95(freedom) == pytest.approx(quantile, abs=6e-5)


def test_students_quantile_takes_any_freedom_and_ends_at_the_normal_one() -> None:
    assert student_95(2) > student_95(2.5) > student_95(3)
    assert student_95(math.inf) == pytest.approx(student_95(9e5), abs=1e-5) == pytest.approx(1.95996, abs=1e-5)


def played(
    rng: np.random.Generator, level: float, seeds: int, spread: float, hardness: np.ndarray, attempts: int
) -> np.ndarray:
    """``[seeds, tasks]``: avg@k of policies that differ in level by `spread` (in logits) on tasks that differ by their hardness."""
    logits = level + spread * rng.normal(size=(seeds, 1)) + hardness
    return rng.binomial(attempts, 1 / (1 + np.exp(-logits))) / attempts


def expected(level: float, spread: float, hardness: float) -> float:
    """Success of a new seed at a new task."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ (1 / (1 + np.exp(-(level + math.hypot(spread, hardness) * nodes))))) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(
    ("seeds", "others", "tasks", "attempts", "spread"),
    [
        (2, 2, 64, 1, 0.5),
        (3, 3, 128, 1, 0.3),
        (3, 3, 64, 4, 1.0),
        (5, 3, 64, 2, 0.5),
        (10, 10, 128, 1, 0.3),
        (10, 10, 32, 1, 1.0),
    ],
)
def test_the_interval_over_seeds_and_tasks_holds_the_truth_as_often_as_it_says(
    seeds: int, others: int, tasks: int, attempts: int, spread: float
) -> None:
    rng, held = np.random.default_rng(0), 0
    truth = expected(0.3, spread, 1.0) - expected(-0.5, spread, 1.0)
    for _ in range(TIMES):
        hardness = rng.normal(size=tasks)
        found = difference(
            played(rng, 0.3, seeds, spread, hardness, attempts), played(rng, -0.5, others, spread, hardness, attempts)
        )
        held += found.low <= truth <= found.high
    assert found.varies == "seeds and tasks"
    assert held / TIMES > 0.95 - tolerance(TIMES)
    assert held / TIMES < (0.95 + tolerance(TIMES) if seeds > 3 else 0.98), (
        "few seeds: Student's distribution is a little too wide"
    )


@pytest.mark.parametrize(("tasks", "attempts"), [(32, 1), (128, 1), (64, 4)])
def test_the_interval_over_tasks_holds_the_truth_of_two_policies_as_often_as_it_says(tasks: int, attempts: int) -> None:
    """Of one seed: what these two policies would do on other tasks."""
    rng, held = np.random.default_rng(2), 0
    truth = expected(0.8, 0, 1.0) - expected(-0.2, 0, 1.0)
    for _ in range(MORE):
        hardness = rng.normal(size=tasks)
        found = difference(played(rng, 0.8, 1, 0, hardness, attempts), played(rng, -0.2, 1, 0, hardness, attempts))
        held += found.low <= truth <= found.high
    assert found.varies == "tasks" and abs(held / MORE - 0.95) < tolerance(MORE)


def test_forgetting_the_seeds_would_promise_too_much() -> None:
    """The same runs, pooled as if tasks alone varied: the truth is missed in more than a third of the experiments."""
    rng, held, truth = np.random.default_rng(0), 0, expected(0.3, 1.0, 1.0) - expected(-0.5, 1.0, 1.0)
    for _ in range(TIMES):
        hardness = rng.normal(size=128)
        sides = [played(rng, level, 3, 1.0, hardness, 1).mean(0).tolist() for level in (0.3, -0.5)]
        found = paired_difference(*sides)
        held += found.low <= truth <= found.high
    assert held / TIMES < 2 / 3


@pytest.mark.parametrize(("m", "n", "shift"), [(3, 3, 0.0), (3, 3, 1.0), (5, 4, 1.0), (10, 10, 0.5)])
def test_the_probability_of_improvement_holds_the_truth_as_often_as_it_says(m: int, n: int, shift: float) -> None:
    rng, held = np.random.default_rng(2), 0
    truth = (1 + math.erf(shift / 2)) / 2  # of two normal values with variance 1
    for _ in range(TIMES):
        found = improvement_over_seeds(rng.normal(shift, size=m), rng.normal(size=n))
        held += found.low <= truth <= found.high
    assert held / TIMES > 0.95 - tolerance(TIMES)


def test_every_run_better_than_every_other_is_no_certainty() -> None:
    found = improvement_over_seeds(np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.2, 0.3]))
    assert (found.mean, found.high, found.n) == (1, 1, 9) and 0.2 < found.low < 0.5
    assert improvement_over_seeds(np.array([0.5, 0.5]), np.array([0.5, 0.5])).mean == 0.5
    assert improvement_over_tasks(np.array([1.0, 0.5, 0.5, 0.0])).mean == 0.5


def test_nothing_that_varies_leaves_the_width_of_a_few_tasks_that_agree() -> None:
    """Rewards that are all one number say nothing of others: no width."""
    ones = np.ones((3, 20))
    found = difference(ones, ones)
    assert found.mean == 0 and 0 < found.high < 0.1 and found.low == -found.high
    assert difference(ones, ones, unit=0)[:3] == (0, 0, 0) == difference(ones[:1], ones[:1], unit=0)[:3]
    assert difference(ones[:, :1], 0 * ones[:, :1]).low < 1, "a single task"


def test_an_interval_grows_with_the_unit_of_what_is_measured() -> None:
    rng = np.random.default_rng(3)
    for seeds in (1, 3):
        after, before = (rng.integers(0, 2, (seeds, 12)).astype(float) for _ in range(2))
        one, ten = difference(after, before), difference(10 * after, 10 * before, unit=10)
        assert ten[:3] == pytest.approx([10 * x for x in one[:3]])


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end() -> None:
    assert interquartile_mean(np.array([4.0, 1.0, 100.0, 2.0])) == 3
    assert interquartile_mean(np.array([7.0])) == 7
    assert interquartile_mean(np.array([0.0, 1.0, 5.0])) == pytest.approx((0.25 * 0 + 1 + 0.25 * 5) / 1.5)
    assert interquartile_mean(np.arange(8.0)) == 3.5


def test_a_mean_over_seeds_has_students_interval_and_one_seed_has_none() -> None:
    found = mean_over_seeds(np.array([0.2, 0.4, 0.6]))
    assert (found.mean, found.high - found.mean) == pytest.approx((0.4, 4.3027 * 0.2 / math.sqrt(3)), abs=1e-4)
    assert math.isnan(mean_over_seeds(np.array([0.2])).low)
