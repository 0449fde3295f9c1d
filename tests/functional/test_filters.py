"""Sequence filters by hand and against their words."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.functional import cliff_groups, failed_only, has_successful_sibling, mixed_groups

# group 7: one success of three; group 2: all failed; group 5: all succeeded; 9 and 1: alone, one failed, one succeeded.
SUCCESS = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 1])
GROUPS = torch.tensor([7, 2, 7, 7, 2, 5, 5, 9, 1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_filters_golden(dtype: torch.dtype) -> None:
    success = SUCCESS.to(dtype)
    assert failed_only(success, GROUPS).tolist() == [0, 1, 1, 1, 1, 0, 0, 1, 0]
    assert mixed_groups(success, GROUPS).tolist() == [1, 0, 1, 1, 0, 0, 0, 0, 0]
    assert cliff_groups(success, GROUPS).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0]
    assert has_successful_sibling(success, GROUPS).tolist() == [0, 0, 1, 1, 0, 1, 1, 0, 0]
    assert failed_only(success, GROUPS).dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=12))
def test_filters_do_what_they_say(table: list[tuple[bool, int]]) -> None:
    success = torch.tensor([s for s, _ in table], dtype=torch.bool)
    groups = torch.tensor([g for _, g in table], dtype=torch.long)
    weights = zip(
        failed_only(success, groups).tolist(),
        mixed_groups(success, groups).tolist(),
        cliff_groups(success, groups).tolist(),
        has_successful_sibling(success, groups).tolist(),
        strict=True,
    )
    for i, (won, group) in enumerate(table):
        outcomes = {s for s, g in table if g == group}
        siblings = [s for j, (s, g) in enumerate(table) if g == group and j != i]
        assert next(weights) == (not won, outcomes == {True, False}, outcomes == {False}, any(siblings))


def test_a_reward_is_no_success() -> None:
    with pytest.raises(ValueError, match=r"success of episode 1 is 10: .*not its reward"):
        failed_only(torch.tensor([0.0, 10.0]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=r"success of episode 0 is nan"):
        mixed_groups(torch.tensor([torch.nan]), torch.tensor([0]))
