"""Intervals against published numbers, exact coverage and enumeration."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.evaluate import Estimate, macro_mean, mean_interval, paired_difference, pass_at_k, wilson_interval

SHARES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, example of a proportion: 0.2553 to 0.3662
        (15, 148, 0.0624, 0.1605),  # "
        (0, 20, 0.0, 0.1611),  # "
        (1, 29, 0.0061, 0.1718),  # "
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson_interval(successes, n)
    assert (estimate.mean, estimate.n) == (successes / n, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [8, 32, 128])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_wilsons_interval_holds_the_truth_about_as_often_as_it_says(n: int, p: float) -> None:
    held = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k, n).low <= p <= wilson_interval(k, n).high
    )
    assert 0.90 < held < 0.99


@pytest.mark.parametrize("n", [4, 16, 40])
@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.0), (0.05, 0.05), (0.1, 0.02), (0.3, 0.1), (0.5, 0.1), (0.8, 0.0)])
def test_the_paired_interval_holds_the_truth_about_as_often_as_it_says(n: int, won: float, lost: float) -> None:
    """Over every outcome of n tasks; the plain normal interval falls to 0.08 here (four tasks that all agree)."""
    held = 0.0
    for i in range(n + 1):
        for j in range(n + 1 - i):
            chance = math.comb(n, i) * math.comb(n - i, j) * won**i * lost**j * (1 - won - lost) ** (n - i - j)
            estimate = paired_difference([1] * i + [0] * j + [0] * (n - i - j), [0] * i + [1] * j + [0] * (n - i - j))
            held += chance * (estimate.low <= won - lost <= estimate.high)
    assert held > 0.93


def test_the_mean_of_yes_and_no_is_a_proportion() -> None:
    assert mean_interval([1.0, 0.0, 1.0, 1.0]) == wilson_interval(3, 4)
    assert mean_interval([True, False]) == wilson_interval(1, 2)


def test_the_mean_of_several_attempts_has_a_normal_interval_over_tasks() -> None:
    estimate = mean_interval([0.5, 0.25, 0.75, 0.5])
    spread = math.sqrt((0.0625 + 0.0625) / 3 / 4)  # variance over n - 1, over n
    assert estimate.mean == 0.5 and estimate.n == 4
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 1.959964 * spread, 0.5 + 1.959964 * spread), abs=1e-6)


@given(SHARES)
def test_an_interval_holds_its_mean_and_stays_in_range(values: list[float]) -> None:
    estimate = mean_interval(values)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.mean == pytest.approx(sum(values) / len(values))
    assert estimate.low < estimate.high  # finitely many tasks never make a number certain
    mirrored = mean_interval([1 - v for v in values])
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30))
def test_a_paired_difference_holds_its_mean_and_turns_with_its_sign(pairs: list[tuple[float, float]]) -> None:
    after, before = zip(*pairs, strict=True)
    estimate, reverse = paired_difference(after, before), paired_difference(before, after)
    assert estimate.mean == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert -1 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.low < estimate.high
    assert (reverse.low, reverse.high) == pytest.approx((-estimate.high, -estimate.low))


def test_a_paired_difference_by_hand() -> None:
    """Six tasks: three won, one lost. With the added half tasks: sum 2, squares 4 + 1, eight tasks."""
    estimate = paired_difference([1, 1, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0])
    half = 1.959964 * math.sqrt((5 / 8 - (2 / 8) ** 2) / 8)
    assert estimate == pytest.approx((2 / 6, 0.25 - half, 0.25 + half, 6), abs=1e-6)


def test_pairing_uses_that_tasks_are_the_same() -> None:
    """Two runs that agree on most tasks differ more surely than two unrelated proportions would."""
    before = [1.0] * 40 + [0.0] * 60
    after = [1.0] * 52 + [0.0] * 48
    paired = paired_difference(after, before)
    assert paired.mean == pytest.approx(0.12) and paired.low > 0
    assert mean_interval(after).low < mean_interval(before).high  # unpaired, they overlap


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3 and 2 tasks cannot be paired: compare runs on one panel"):
        paired_difference([1, 1, 1], [0, 0])
    for nothing in (lambda: mean_interval([]), lambda: paired_difference([], []), lambda: wilson_interval(0, 0)):
        with pytest.raises(ValueError, match=r"no interval over 0 tasks"):
            nothing()


@pytest.mark.parametrize("attempts", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(attempts: int) -> None:
    for successes, k in itertools.product(range(attempts + 1), range(1, attempts + 1)):
        outcomes = [True] * successes + [False] * (attempts - successes)
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(successes, attempts, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_needs_k_attempts() -> None:
    with pytest.raises(ValueError, match=r"pass@5 needs at least 5 attempts, there are 4"):
        pass_at_k(1, 4, 5)
    with pytest.raises(ValueError, match=r"pass@0"):
        pass_at_k(1, 4, 0)


def test_an_estimate_reads_as_percent_with_its_tasks() -> None:
    assert str(Estimate(0.5, 0.25, 0.755, 128)) == " 50.0 % [25.0, 75.5] (n = 128)"


@pytest.mark.parametrize("strange", [3.7, -0.1, math.nan, math.inf])
def test_a_value_outside_of_zero_to_one_is_named(strange: float) -> None:
    with pytest.raises(ValueError, match=rf"{strange} is no value in \[0, 1\]"):
        mean_interval([0.5, strange])
    with pytest.raises(ValueError, match="are no proportion"):
        wilson_interval(3 * strange, 2)


@pytest.mark.parametrize(("p", "q"), [(0.05, 0.95), (0.3, 0.5), (0.9, 0.9)])
def test_a_mean_over_sets_holds_the_truth_about_as_often_as_it_says(p: float, q: float) -> None:
    """As far from 0 and 1 as here; with 2 % in both sets it does so 89 times of 100."""
    n, m = 30, 12

    def chance(k: int, of: int, rate: float) -> float:
        return math.comb(of, k) * rate**k * (1 - rate) ** (of - k)

    held = 0.0
    for a, b in itertools.product(range(n + 1), range(m + 1)):
        found = macro_mean([wilson_interval(a, n), wilson_interval(b, m)])
        assert found.mean == pytest.approx((a / n + b / m) / 2) and found.n == n + m
        held += chance(a, n, p) * chance(b, m, q) * (found.low <= (p + q) / 2 <= found.high)
    assert 0.93 < held <= 1


def test_a_mean_of_one_set_is_that_set() -> None:
    one = wilson_interval(5, 10)
    assert macro_mean([one]) == pytest.approx(one)
    with pytest.raises(ValueError, match="no mean over 0 sets: name at least 1"):
        macro_mean([])
