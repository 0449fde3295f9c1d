"""Means over turns."""

import torch

from sdar.functional import turn_mean


def test_turn_mean_golden() -> None:
    # row 0: turn 0 has response tokens 1 and 3, mean 2; turn 1 has 10.  row 1: turn 5 has 4, 5, 6, mean 5; the -1 is padding.
    values = torch.tensor([[9.0, 1.0, 3.0, 9.0, 10.0], [4.0, 5.0, 6.0, 9.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
    turns = torch.tensor([[0, 0, 0, 1, 1], [5, 5, 5, 5, -1]])
    assert turn_mean(values, mask, turns).tolist() == [[0.0, 2.0, 2.0, 0.0, 10.0], [5.0, 5.0, 5.0, 0.0, 0.0]]


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
