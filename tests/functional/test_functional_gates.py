"""Golden numbers of the gate formulas, worked by hand."""

import math

import pytest
import torch

from sdar.errors import ConfigError
from sdar.functional import entropy_gate, gap_gate, log_prob_gap, soft_or_gate


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def test_gap_is_teacher_minus_student() -> None:
    close(log_prob_gap(teacher_logp=torch.tensor([-1.0, -3.0]), student_logp=torch.tensor([-2.0, -2.5])), [1.0, -0.5])


def test_gap_gate_golden() -> None:
    # beta 5: sigmoid(0) = 1/2, sigmoid(5 * 0.2) = 1 / (1 + e^-1) = 0.7310586, and its complement.
    close(gap_gate(torch.tensor([0.0, 0.2, -0.2]), beta=5.0), [0.5, 0.7310586, 0.2689414])


def test_gap_gate_function_accepts_a_beta_of_zero() -> None:
    close(gap_gate(torch.tensor([-7.0, 0.0, 7.0]), beta=0.0), [0.5, 0.5, 0.5])


def test_entropy_gate_golden() -> None:
    # vocabulary 4, beta 2: h = 0, ln 2 / ln 4 = 1/2, 1; tanh(h) = 0, (e - 1) / (e + 1) = 0.4621172, 0.7615942.
    close(entropy_gate(torch.tensor([0.0, math.log(2), math.log(4)]), beta=2.0, vocab_size=4), [0.0, 0.4621172, 0.7615942])


def test_entropy_gate_is_the_published_sigmoid_stretched_to_the_unit_interval() -> None:
    h = torch.linspace(0, 1, 11)
    torch.testing.assert_close(entropy_gate(h * math.log(100), 5.0, 100), 2 * torch.sigmoid(5 * h) - 1)


def test_soft_or_gate_golden() -> None:
    # vocabulary 4, beta 2, gap = +-artanh(1/2), so D = +-1/2:
    #   h 0,   D 0:    1 - 1 * 1     =  0     sigmoid(0)    = 0.5
    #   h 0,   D -1/2: 1 - 1 * 3/2   = -1/2   sigmoid(-1)   = 0.2689414
    #   h 1/2, D 1/2:  1 - 1/2 * 1/2 =  3/4   sigmoid(3/2)  = 0.8175745
    #   h 1,   D -1/2: 1 - 0         =  1     sigmoid(2)    = 0.8807971
    gap = math.atanh(0.5)
    gate = soft_or_gate(
        torch.tensor([0.0, -gap, gap, -gap]), torch.tensor([0.0, 0.0, math.log(2), math.log(4)]), beta=2.0, vocab_size=4
    )
    close(gate, [0.5, 0.2689414, 0.8175745, 0.8807971])


def test_soft_or_gate_of_a_certain_student_is_the_gap_gate_for_small_gaps() -> None:
    gap = torch.tensor([-1e-3, 0.0, 1e-3], dtype=torch.double)
    torch.testing.assert_close(soft_or_gate(gap, torch.zeros_like(gap), 5.0, 10), gap_gate(gap, 5.0), atol=1e-8, rtol=0)


def test_half_precision_is_widened() -> None:
    half = torch.tensor([-1.0], dtype=torch.bfloat16)
    assert log_prob_gap(half, half).dtype == torch.float32
    assert gap_gate(half, 5.0).dtype == torch.float32
    assert entropy_gate(-half, 5.0, 9).dtype == torch.float32
    assert soft_or_gate(half.double(), half, 5.0, 9).dtype == torch.float64


def test_entropy_needs_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 1: entropy is divided by ln\(vocab_size\).*Pass the size"):
        entropy_gate(torch.zeros(1), 5.0, 1)


def test_rounding_of_the_entropy_does_not_leave_the_unit_interval() -> None:
    beyond = torch.tensor([-1e-3, math.log(4) + 1e-3])
    close(entropy_gate(beyond, beta=2.0, vocab_size=4), [0.0, 0.7615942])
    close(soft_or_gate(torch.zeros(2), beyond, beta=2.0, vocab_size=4), [0.5, 0.8807971])


def test_a_vocabulary_of_two_has_an_entropy() -> None:
    torch.testing.assert_close(entropy_gate(torch.tensor([math.log(2)]), 2.0, 2), torch.tensor([math.tanh(1.0)]))
