"""Group advantages by hand and as properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.functional import episode_group_advantages, group_advantages


def test_group_advantages_golden() -> None:
    # group 7: rewards 1 0 0 1, mean 1/2, unbiased variance 4 * 0.25 / 3 = 1/3, std 0.5773503; +-0.5 / 0.5773513 = +-0.8660239.
    # group 3: alone, mean 0 and std 1: 10 / 1.000001 = 9.99999.   group 5: equal rewards, no advantage.
    rewards = torch.tensor([1.0, 0.1, 0.0, 10.0, 0.0, 0.1, 1.0, 0.1])
    groups = torch.tensor([7, 5, 7, 3, 7, 5, 7, 5])
    expected = torch.tensor([0.8660239, 0.0, -0.8660239, 9.99999, -0.8660239, 0.0, 0.8660239, 0.0])
    torch.testing.assert_close(group_advantages(rewards, groups), expected, atol=1e-6, rtol=0)


def test_without_std_only_the_mean_is_taken_off() -> None:
    rewards, groups = torch.tensor([3.0, 1.0, 10.0]), torch.tensor([0, 0, 1])
    assert group_advantages(rewards, groups, normalize_std=False).tolist() == [1.0, -1.0, 10.0]


def test_equal_rewards_give_exactly_no_advantage() -> None:
    # in float32 the mean of these differs from them by 7e-9, and 7e-9 / 1e-6 is an advantage of nearly one percent
    for count in range(2, 30):
        rewards = torch.full((count,), 0.1)
        assert group_advantages(rewards, torch.zeros(count, dtype=torch.long)).abs().max() < 1e-6


def test_episodes_count_once() -> None:
    # episode 0 has 3 rows with reward 1, episode 1 one row with 0: mean 1/2, std sqrt(1/2) = 0.7071068, A = +-0.7071058.
    rewards, episodes, groups = (
        torch.tensor([1.0, 1.0, 1.0, 0.0]),
        torch.tensor([0, 0, 0, 1]),
        torch.zeros(4, dtype=torch.long),
    )
    actual = episode_group_advantages(rewards, groups, episodes)
    torch.testing.assert_close(actual, torch.tensor([0.7071058] * 3 + [-0.7071058]), atol=1e-6, rtol=0)


def test_rows_of_an_episode_differ_by_their_penalties() -> None:
    # episode 0: rows 1.0 and 0.8, so 0.9; episode 1: 0.1.  mean 1/2, std 0.8 / sqrt(2) = 0.5656854.
    rewards, episodes = torch.tensor([1.0, 0.8, 0.1]), torch.tensor([4, 4, 9])
    actual = episode_group_advantages(rewards, torch.zeros(3, dtype=torch.long), episodes)
    torch.testing.assert_close(actual, torch.tensor([0.5, 0.3, -0.4]) / 0.5656864, atol=1e-6, rtol=0)


def test_the_same_episode_number_in_two_groups_is_two_episodes() -> None:
    rewards, groups, episodes = torch.tensor([1.0, 0.0, 5.0, 3.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    expected = group_advantages(rewards, groups)
    torch.testing.assert_close(episode_group_advantages(rewards, groups, episodes), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_advantages_are_wide_floats_without_a_graph(dtype: torch.dtype) -> None:
    rewards = torch.tensor([1, 0], dtype=dtype)
    if dtype.is_floating_point:
        rewards.requires_grad_()
    groups = torch.zeros(2, dtype=torch.long)
    for advantages in (group_advantages(rewards, groups), episode_group_advantages(rewards, groups, torch.arange(2))):
        assert not advantages.requires_grad
        assert advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_no_rows_no_advantages() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert group_advantages(torch.zeros(0), none).shape == (0,)
    assert episode_group_advantages(torch.zeros(0), none, none).shape == (0,)


rows = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=16
)


def columns(table: list[tuple[float, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    rewards, groups, episodes = zip(*table, strict=True)
    return torch.tensor(rewards, dtype=torch.double), torch.tensor(groups), torch.tensor(episodes)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans())
def test_advantages_sum_to_zero_in_every_group_of_two_or_more(table: list[tuple[float, int, int]], normalize: bool) -> None:
    rewards, groups, _ = columns(table)
    advantages = group_advantages(rewards, groups, normalize)
    for group in groups.unique():
        if (groups == group).sum() > 1:
            assert abs(advantages[groups == group].sum().item()) < 1e-8


@settings(max_examples=60, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(table: list[tuple[float, int, int]], random) -> None:
    rewards, groups, episodes = columns(table)
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = [column[order] for column in (rewards, groups, episodes)]
    for advantages, moved in [
        (group_advantages(rewards, groups), group_advantages(*shuffled[:2])),
        (episode_group_advantages(rewards, groups, episodes), episode_group_advantages(*shuffled)),
    ]:
        torch.testing.assert_close(advantages[order], moved, atol=1e-9, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_with_one_row_per_episode_both_statistics_agree(table: list[tuple[float, int, int]]) -> None:
    rewards, groups, _ = columns(table)
    expected = group_advantages(rewards, groups)
    torch.testing.assert_close(episode_group_advantages(rewards, groups, torch.arange(len(table))), expected)
