"""Places are dealt out to worlds so that each has had its share at any time, and nobody has to remember anything."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar.data.shares import Shares
from sdar.errors import ConfigError

WEIGHTS = st.lists(st.integers(1, 12) | st.floats(0.01, 3).map(lambda x: round(x, 2)), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 300))
def test_each_world_has_its_share_to_within_a_place_after_any_number_of_places(weights: list[float], places: int) -> None:
    shares = Shares({f"w{n}": weight for n, weight in enumerate(weights)})
    exact = [Fraction(str(weight)) for weight in weights]
    taken = shares.before(places)
    assert sum(taken.values()) == places
    bound = Fraction(1, 2) if len(weights) == 2 else 1
    assert all(abs(n - places * e / sum(exact)) <= bound for n, e in zip(taken.values(), exact, strict=True))
    after = shares.before(places + 1)
    assert {name for name in taken if after[name] > taken[name]} == {shares.at(places)}
    assert all(after[name] >= taken[name] for name in taken)


def test_two_worlds_with_equal_shares_take_turns_and_shares_are_weights():
    assert [Shares({"a": 1, "b": 1}).at(place) for place in range(6)] == [*"ababab"]
    three = [Shares({"a": 3, "b": 1}).at(place) for place in range(8)]
    assert three == [Shares({"a": 0.75, "b": 0.25}).at(place) for place in range(8)] == [*"aabaaaba"]
    assert Shares({"a": 0.9, "b": 0.1}).before(10**9) == {"a": 9 * 10**8, "b": 10**8}


@pytest.mark.parametrize("share", [0.0, -1.0])
def test_a_share_that_is_not_positive_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data.envs.b.share is .*: the world would never be played. Give a positive weight"):
        Shares({"a": 1.0, "b": share})
