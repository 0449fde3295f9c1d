"""What errors share: bounds of settings, and the line that a message quotes."""

from math import inf, nan

import pytest

from sdar.errors import ConfigError, check_least, check_positive, check_share, first_line


@pytest.mark.parametrize(
    "check, told",
    [
        (lambda: check_least("data", 1, group_size=0), "data.group_size is 0: it must be at least 1."),
        (lambda: check_least("data", 1, a=1, b=0), "data.b is 0: it must be at least 1."),
        (lambda: check_least("", 1, batch_size=-2), "batch_size is -2: it must be at least 1."),
        (lambda: check_least("judge", 0, "seconds", pause=-0.5), "judge.pause is -0.5: it must be at least 0 seconds."),
        (lambda: check_least("model", 0, max_mismatch=nan), "model.max_mismatch is nan: it must be at least 0."),
        (lambda: check_positive("judge", "seconds", timeout=0.0), "judge.timeout is 0.0: it must be more than 0 seconds."),
        (lambda: check_positive("judge", timeout=nan), "judge.timeout is nan: it must be more than 0."),
        (lambda: check_share("model", astray_share=1.5), "model.astray_share is 1.5: it is a probability in [0, 1]."),
        (lambda: check_share("model", "a share of tokens,", a=nan), "model.a is nan: it is a share of tokens, in [0, 1]."),
    ],
)
def test_a_setting_out_of_bounds_is_told_with_its_key_its_value_and_the_bound(check, told):
    with pytest.raises(ConfigError) as error:
        check()
    assert str(error.value) == told


def test_bounds_themselves_and_settings_that_were_left_out_are_taken():
    check_least("data", 1, "seconds", a=1, b=inf, c=None)
    check_positive("data", a=1e-300, b=inf, c=None)
    check_share("data", a=0, b=1.0, c=None)


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("\n  one \ntwo"), "one"),
        (OSError(), "OSError"),
        (ValueError("\n"), "ValueError"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line
