"""Means over turns, and weights of turns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.errors import ConfigError
from sdar.functional import (
    atod_turn_weights,
    iw_opd_weights,
    stepwise_turn_weights,
    stepwise_weights,
    turn_mean,
    weight_patterns,
)


def test_turn_mean_golden() -> None:
    # row 0: turn 0 has response tokens 1 and 3, mean 2; turn 1 has 10.  row 1: turn 5 has 4, 5, 6, mean 5; the -1 is padding.
    values = torch.tensor([[9.0, 1.0, 3.0, 9.0, 10.0], [4.0, 5.0, 6.0, 9.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
    turns = torch.tensor([[0, 0, 0, 1, 1], [5, 5, 5, 5, -1]])
    assert turn_mean(values, mask, turns).tolist() == [[0.0, 2.0, 2.0, 0.0, 10.0], [5.0, 5.0, 5.0, 0.0, 0.0]]


def test_turn_mean_of_more_rows_than_tokens() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0], [9.0, 2.0]])
    ids = torch.tensor([[0, 0], [0, 1], [1, 1]])
    assert turn_mean(values, torch.ones(3, 2), ids).tolist() == [[2.0, 2.0], [5.0, 7.0], [5.5, 5.5]]


def test_what_is_masked_does_not_matter() -> None:
    mask = torch.tensor([[True, False, True]])
    values = torch.tensor([[1.0, torch.nan, 3.0]], requires_grad=True)
    mean = turn_mean(values, mask, torch.tensor([[2, 2, 2]]))
    assert mean.tolist() == [[2.0, 0.0, 2.0]]
    mean.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_turn_mean_is_differentiable() -> None:
    values = torch.randn(2, 6, dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]])
    turns = torch.tensor([[0, 0, 0, 1, 1, 1], [3, 3, 4, 4, 4, 4]])
    assert torch.autograd.gradcheck(lambda v: turn_mean(v, mask, turns), (values,))


def test_taking_the_mean_twice_changes_nothing() -> None:
    values, mask, turns = torch.randn(2, 8), torch.ones(2, 8), torch.arange(8).expand(2, 8) // 3
    once = turn_mean(values, mask, turns)
    torch.testing.assert_close(turn_mean(once, mask, turns), once)


def test_stepwise_turn_weights_golden() -> None:
    # epsilon 0.1.  trajectory 8: 0.4 / 0.4, 0.4 / 0.2 = 2, at most 1.2, 0.4 / 0.8;  trajectory 2: 0.6 / 0.6, 0.6 / 1.
    weights = stepwise_turn_weights(torch.tensor([0.3, 0.1, 0.7, 0.5, 0.9]), torch.tensor([8, 8, 8, 2, 2]), epsilon=0.1)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.2, 0.5, 1.0, 0.6]))


def test_stepwise_weights_golden() -> None:
    # row 0: the turn called 7 comes first with |gaps| 1 and 3, d = 2; turn 4 has d = 4, w = 2 / 4.
    # row 1: turn 0 has d = 2, turn 1 has d = 1, w = min(2, 1.2).   row 2: nothing to weigh.
    student = torch.tensor([[-1.0, -4.0, -9.0, -5.0], [-2.0, -9.0, -3.0, -9.0], [-1.0, -1.0, -1.0, -1.0]])
    teacher = torch.tensor([[-2.0, -1.0, torch.nan, -1.0], [-4.0, -torch.inf, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    turns = torch.tensor([[7, 7, 7, 4], [0, 0, 1, -1], [0, 0, 0, 0]])
    weights = stepwise_weights(student.requires_grad_(), teacher, mask, turns)
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.5], [1.0, 0.0, 1.2, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    assert not weights.requires_grad


turn_table = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=12)


def turn_columns(table: list[tuple[int, float, float]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, first, second = zip(*sorted(table, key=lambda row: row[0]), strict=True)
    return torch.tensor(ids), torch.tensor(first, dtype=torch.double), torch.tensor(second, dtype=torch.double)


@settings(max_examples=60, deadline=None)
@given(turn_table, st.sampled_from([0.0, 0.2, float("inf")]))
def test_stepwise_weights_are_the_bounded_product_of_successive_ratios(
    table: list[tuple[int, float, float]], delta: float
) -> None:
    ids, divergence, _ = turn_columns(table)
    weights = stepwise_turn_weights(divergence, ids, 1e-3, delta)
    assert (weights > 0).all() and (weights <= 1 + delta).all()
    product, before = 1.0, None
    for trajectory, d, weight in zip(ids.tolist(), divergence.tolist(), weights.tolist(), strict=True):
        product = 1.0 if before is None or before[0] != trajectory else product * (before[1] + 1e-3) / (d + 1e-3)
        assert weight == pytest.approx(min(product, 1 + delta))
        before = trajectory, d


def test_stepwise_weights_of_tokens_are_those_of_turns() -> None:
    gap, turns = torch.randn(3, 8, dtype=torch.double), torch.arange(8).expand(3, 8) // 2
    weights = stepwise_weights(torch.zeros(3, 8), gap, torch.ones(3, 8), turns)
    divergence = gap.abs().unflatten(1, (4, 2)).mean(2).flatten()
    expected = stepwise_turn_weights(divergence, torch.arange(12) // 4).view(3, 4)
    torch.testing.assert_close(weights, expected.repeat_interleave(2, dim=1))


def test_stepwise_weights_refuse_what_they_cannot_mean() -> None:
    one, ids = torch.ones(3), torch.tensor([0, 1, 0])
    with pytest.raises(ConfigError, match=r"epsilon is 0\.0 and delta is 0\.2: .*Use an epsilon above 0"):
        stepwise_turn_weights(one, ids, epsilon=0.0)
    with pytest.raises(ConfigError, match=r"delta is -0\.1"):
        stepwise_turn_weights(one, ids, delta=-0.1)
    with pytest.raises(ValueError, match=r"2 trajectories in 3 pieces"):
        stepwise_turn_weights(one, ids)


def test_atod_turn_weights_golden() -> None:
    # trajectory 5: d 0 1/2 1, h 1 0 1/2; 1 - 1 * 0, 1 - 1/2 * 1, 1 - 0 * 1/2.
    # trajectory 9: one turn, d = h = 1/2.   trajectory 3: equal divergences, d = 1/2, h 0 1.
    divergence = torch.tensor([0.0, 1.0, 2.0, 7.0, 0.3, 0.3])
    surprise = torch.tensor([4.0, 2.0, 3.0, 7.0, 1.0, 2.0])
    weights = atod_turn_weights(divergence, surprise, torch.tensor([5, 5, 5, 9, 3, 3]))
    assert weights.tolist() == [1.0, 0.5, 1.0, 0.75, 0.5, 1.0]


@settings(max_examples=60, deadline=None)
@given(turn_table)
def test_atod_turn_weights_are_in_the_unit_interval_whatever_the_scale(table: list[tuple[int, float, float]]) -> None:
    ids, divergence, surprise = turn_columns([(i, round(d, 2), round(h, 2)) for i, d, h in table])
    weights = atod_turn_weights(divergence, surprise, ids)
    assert (weights >= 0).all() and (weights <= 1).all()
    torch.testing.assert_close(atod_turn_weights(3 * divergence + 1, 2 * surprise, ids), weights)
    torch.testing.assert_close(atod_turn_weights(surprise, divergence, ids), weights)


def test_iw_opd_weights_golden() -> None:
    # |gap| 1 2 1 of 4 in all: before them lie 0, 1/4, 3/4; 1 + (1 - share) / 2.
    gap = torch.tensor([[torch.nan, -1.0, 2.0, torch.inf, 1.0], [5.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 1, 0, 0]])
    weights = iw_opd_weights(gap, mask)
    assert weights.tolist() == [[0.0, 1.5, 1.375, 0.0, 1.125], [0.0, 1.5, 1.5, 0.0, 0.0]]
    assert not weights.requires_grad


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=1, max_size=12), st.floats(0, 2))
def test_iw_opd_weights_fall_from_one_plus_gamma_towards_one(gaps: list[float], gamma: float) -> None:
    weights = iw_opd_weights(torch.tensor([gaps], dtype=torch.double), torch.ones(1, len(gaps)), gamma)[0]
    assert weights[0] == pytest.approx(1 + gamma)
    assert (weights.diff() <= 1e-9).all() and (weights >= 1 - 1e-9).all()


def test_iw_opd_weighs_each_row_by_itself() -> None:
    gaps = torch.tensor([[1.0, 3.0], [50.0, -50.0]])
    weights = iw_opd_weights(gaps, torch.ones(2, 2), gamma=1.0)
    assert weights.tolist() == [[2.0, 1.75], [2.0, 1.5]]


def test_iw_opd_refuses_settings_without_a_meaning() -> None:
    zero = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"gamma is -1\.0 and epsilon is 1e-08: .*Use a gamma of 0 or more"):
        iw_opd_weights(zero, zero, -1.0)
    with pytest.raises(ConfigError, match=r"epsilon is 0"):
        iw_opd_weights(zero, zero, 0.5, 0)


def test_turn_weights_of_half_precision_are_wide_and_of_nothing_are_empty() -> None:
    half, ids = torch.ones(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.long)
    assert stepwise_weights(half, half, half, ids).dtype == torch.float32
    assert stepwise_turn_weights(half[0], ids[0]).dtype == torch.float32
    assert atod_turn_weights(half[0], half[0], ids[0]).dtype == torch.float32
    assert iw_opd_weights(half, half).dtype == torch.float32
    none, no_ids = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert stepwise_turn_weights(none, no_ids).shape == atod_turn_weights(none, none, no_ids).shape == (0,)


def test_a_trajectory_is_aligned_recovered_or_drifted() -> None:
    weights = torch.tensor([1.0, 1.2, 1.0, 1.0, 0.5, 1.0, 1.0, 1.2, 0.9, 1.0, 1.0, 0.2])
    ids = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 4])  # aligned, recovered, drifted, one turn, drifted
    aligned, recovered, drifted = (found.tolist() for found in weight_patterns(weights, ids))
    assert aligned == [True, False, False, False]
    assert recovered == [False, True, False, False]
    assert drifted == [False, False, True, True]
    assert [len(found) for found in weight_patterns(torch.ones(2), torch.arange(2))] == [0, 0, 0]
