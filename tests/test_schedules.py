"""Coefficients over the training."""

import pytest

from sdar.errors import ConfigError
from sdar.schedules import ConstantSchedule, LinearSchedule


def test_constant() -> None:
    assert [ConstantSchedule(0.01)(i) for i in (0, 1, 10**6)] == [0.01] * 3


def test_warm_down_golden() -> None:
    # 0.5 (1 - s / 4), then 0
    assert [LinearSchedule(0.5, 0.0, 4)(i) for i in range(6)] == [0.5, 0.375, 0.25, 0.125, 0.0, 0.0]


def test_warm_up_after_a_delay_golden() -> None:
    assert [LinearSchedule(0.0, 1.0, 2, delay=2)(i) for i in range(6)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]


def test_both_ends_are_exact() -> None:
    schedule = LinearSchedule(0.1, 0.7, 3, delay=5)
    assert schedule(-1) == schedule(5) == 0.1
    assert schedule(8) == schedule(1000) == 0.7


def test_impossible_lines_explain_themselves() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.iterations is 0: .*Use ConstantSchedule"):
        LinearSchedule(1.0, 0.0, 0)
    with pytest.raises(ConfigError, match=r"schedule\.delay is -1: .*Use 0 or more"):
        LinearSchedule(1.0, 0.0, 5, delay=-1)
