"""Advantages by hand and as properties."""

from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import (
    anchor_advantages,
    discounted_returns,
    dr_grpo_advantages,
    episode_group_advantages,
    group_advantages,
    overlong,
    reinforce_pp_advantages,
    rloo_advantages,
    similar_anchors,
)


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
    # episode 0: rows 1.0 and 0.8, so 0.9; episode 1: 0.1.  mean 1/2; variance (0.25 + 0.09) / 2 + 0.16 = 0.33, std 0.5744563.
    rewards, episodes = torch.tensor([1.0, 0.8, 0.1]), torch.tensor([4, 4, 9])
    actual = episode_group_advantages(rewards, torch.zeros(3, dtype=torch.long), episodes)
    torch.testing.assert_close(actual, torch.tensor([0.5, 0.3, -0.4]) / 0.5744573, atol=1e-6, rtol=0)


def test_one_invalid_action_in_each_of_two_failures_is_no_catastrophe() -> None:
    """Their means are equal, their rows are not: a deviation of the means would be 0, and the advantages -75,000 and 25,000."""
    rewards, episodes = torch.tensor([-0.1, 0.0, 0.0, 0.0] * 2), torch.tensor([0] * 4 + [1] * 4)
    group = torch.zeros(8, dtype=torch.long)
    # over rows: mean -1/40, unbiased variance (2 * 0.075^2 + 6 * 0.025^2) / 7, std 0.0462910.
    by_row = torch.tensor([-1.6201503, 0.5400501, 0.5400501, 0.5400501] * 2)
    torch.testing.assert_close(group_advantages(rewards, group), by_row, atol=1e-6, rtol=0)
    # over episodes: variance 2 * (0.075^2 + 3 * 0.025^2) / 4 / (2 - 1), std 0.0612372.
    by_episode = torch.tensor([-1.2247249, 0.4082416, 0.4082416, 0.4082416] * 2)
    torch.testing.assert_close(episode_group_advantages(rewards, group, episodes), by_episode, atol=1e-6, rtol=0)


def test_the_same_episode_number_in_two_groups_is_two_episodes() -> None:
    rewards, groups, episodes = torch.tensor([1.0, 0.0, 5.0, 3.0]), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    expected = group_advantages(rewards, groups)
    torch.testing.assert_close(episode_group_advantages(rewards, groups, episodes), expected)


def test_leave_one_out_golden() -> None:
    # group 7: 1 0 0 1; the others of a 1 have mean 1/3, those of a 0 have 2/3.  group 3 is alone.
    rewards, groups = torch.tensor([1.0, 0.0, 10.0, 0.0, 1.0]), torch.tensor([7, 7, 3, 7, 7])
    expected = torch.tensor([2 / 3, -2 / 3, 0.0, -2 / 3, 2 / 3])
    torch.testing.assert_close(rloo_advantages(rewards, groups), expected, atol=1e-6, rtol=0)


def test_dr_grpo_golden() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 10.0, 0.0, 0.0]), torch.tensor([7, 7, 3, 7, 7])
    assert dr_grpo_advantages(rewards, groups).tolist() == [0.75, -0.25, 0.0, -0.25, -0.25]


def test_reinforce_pp_golden() -> None:
    # mean 2, unbiased std sqrt(2 / 3) = 0.8164966: +-1 / 0.8164976 = +-1.2247434.
    actual = reinforce_pp_advantages(torch.tensor([3.0, 1.0, 2.0, 2.0]))
    torch.testing.assert_close(actual, torch.tensor([1.2247434, -1.2247434, 0.0, 0.0]), atol=1e-6, rtol=0)
    # baseline: means 2 and 10 leave 1 -1 2 -2, std sqrt(10 / 3) = 1.8257419.
    actual = reinforce_pp_advantages(torch.tensor([3.0, 1.0, 12.0, 8.0]), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(actual, torch.tensor([0.5477223, -0.5477223, 1.0954446, -1.0954446]), atol=1e-6, rtol=0)


def test_reinforce_pp_of_equal_rewards_and_of_one_row_is_nothing() -> None:
    for count in (1, 2, 3, 7, 11):
        rewards = torch.full((count,), 0.1)
        assert reinforce_pp_advantages(rewards).abs().max() < 1e-6
        assert reinforce_pp_advantages(rewards, torch.arange(count)).abs().max() < 1e-6


def test_discounted_returns_golden() -> None:
    # gamma 1/2: 1, 0 + 1/2, 0 + 1/4; then a trajectory of its own: -1, 2 - 1/2.
    returns = discounted_returns(torch.tensor([0.0, 0.0, 1.0, 2.0, -1.0]), torch.tensor([7, 7, 7, 3, 3]), 0.5)
    assert returns.tolist() == [0.25, 0.5, 1.0, 1.5, -1.0]


def test_a_discount_of_zero_and_of_one() -> None:
    rewards, trajectories = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 0])
    assert discounted_returns(rewards, trajectories, 0.0).tolist() == [1.0, 2.0, 4.0]
    assert discounted_returns(rewards, trajectories, 1.0).tolist() == [7.0, 6.0, 4.0]


def test_returns_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(ConfigError, match=r"discount is 1\.5: .*must not grow.*from 0 to 1"):
        discounted_returns(torch.zeros(2), torch.zeros(2, dtype=torch.long), 1.5)
    with pytest.raises(ValueError, match=r"hold 2 trajectories in 3 pieces: .*Sort by trajectory"):
        discounted_returns(torch.zeros(3), torch.tensor([0, 1, 0]), 0.5)


def test_anchor_advantages_golden() -> None:
    # group 0, state 4: returns 1 1/2 0, mean 1/2, unbiased std 1/2; state 9 is visited once, and so is state 4 of group 1.
    returns = torch.tensor([1.0, 0.5, 7.0, 0.0, 2.0])
    groups, anchors = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([4, 4, 9, 4, 4])
    assert anchor_advantages(returns, groups, anchors).tolist() == [0.5, 0.0, 0.0, -0.5, 0.0]
    normalized = anchor_advantages(returns, groups, anchors, normalize_std=True)
    torch.testing.assert_close(normalized, torch.tensor([0.999998, 0.0, 0.0, -0.999998, 0.0]), atol=1e-6, rtol=0)


def test_equal_texts_of_a_group_are_one_anchor() -> None:
    texts, groups = ["a room", "a shelf", "a room", "a room", "a shelf"], torch.tensor([5, 5, 5, 2, 5])
    for threshold in (None, 1.0):
        assert similar_anchors(texts, groups, threshold).tolist() == [0, 1, 0, 2, 1]


def test_similar_texts_join_the_first_cluster_whose_opener_they_resemble() -> None:
    # ratio = 2 * matches / characters: abcd and abcx 6/8; abcx and abxx 6/8, but abcd and abxx 4/8, which opens a cluster;
    # bcxx and abcd have bc, 4/8, bcxx and abxx have b and xx, 6/8.
    texts = ["abcd", "abcx", "abxx", "bcxx", "abcd", "abxx"]
    groups = torch.tensor([0, 0, 0, 0, 0, 1])
    assert similar_anchors(texts, groups, 0.75).tolist() == [0, 0, 1, 1, 0, 2]
    assert similar_anchors(texts, groups, 0.76).tolist() == [0, 1, 2, 3, 0, 4]


def test_long_texts_are_compared_in_all_their_characters() -> None:
    # from 200 characters on difflib ignores those that make up more than 1 %, here all of them
    text = "You see a cabinet 1, a shelf 2 and a drawer 3. " * 6
    other = "On the desk 1, " + text
    assert SequenceMatcher(None, text, other).ratio() < 0.1
    assert similar_anchors([text, other], torch.zeros(2, dtype=torch.long), 0.95).tolist() == [0, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=8), max_size=8), st.sampled_from([0.3, 0.5, 2 / 3, 0.8, 0.95]))
def test_similar_anchors_is_the_plain_rule(texts: list[str], threshold: float) -> None:
    openers: list[str] = []
    expected = []
    for text in texts:
        like = [i for i, o in enumerate(openers) if SequenceMatcher(None, text, o, autojunk=False).ratio() >= threshold]
        expected.append(like[0] if like else len(openers))
        if not like:
            openers.append(text)
    assert similar_anchors(texts, torch.zeros(len(texts), dtype=torch.long), threshold).tolist() == expected


def test_anchors_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(ConfigError, match=r"similarity threshold is 0\.0: .*all texts would be one state.*Use 0\.95"):
        similar_anchors(["a"], torch.tensor([0]), 0.0)
    with pytest.raises(ValueError, match=r"2 texts and 1 group ids"):
        similar_anchors(["a", "b"], torch.tensor([0]), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_advantages_are_wide_floats_without_a_graph(dtype: torch.dtype) -> None:
    rewards = torch.tensor([1, 0], dtype=dtype)
    if dtype.is_floating_point:
        rewards.requires_grad_()
    groups = torch.zeros(2, dtype=torch.long)
    for advantages in (
        group_advantages(rewards, groups),
        episode_group_advantages(rewards, groups, torch.arange(2)),
        rloo_advantages(rewards, groups),
        dr_grpo_advantages(rewards, groups),
        reinforce_pp_advantages(rewards),
        reinforce_pp_advantages(rewards, groups),
        discounted_returns(rewards, groups, 0.5),
        anchor_advantages(rewards, groups, groups),
    ):
        assert not advantages.requires_grad
        assert advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_no_rows_no_advantages() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert group_advantages(torch.zeros(0), none).shape == (0,)
    assert episode_group_advantages(torch.zeros(0), none, none).shape == (0,)
    assert rloo_advantages(torch.zeros(0), none).shape == (0,)
    assert dr_grpo_advantages(torch.zeros(0), none).shape == (0,)
    assert reinforce_pp_advantages(torch.zeros(0), none).shape == (0,)
    assert discounted_returns(torch.zeros(0), none, 0.9).shape == (0,)
    assert anchor_advantages(torch.zeros(0), none, none).shape == (0,)
    assert similar_anchors([], none, 0.9).shape == (0,)


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


penalties = st.lists(st.floats(0, 1e3).filter(lambda p: p == 0 or p > 1e-3), min_size=16, max_size=16)


@settings(max_examples=100, deadline=None)
@given(rows, penalties)
def test_no_penalty_makes_an_advantage_large(table: list[tuple[float, int, int]], penalties: list[float]) -> None:
    rewards, groups, episodes = columns(table)
    rewards = rewards - torch.tensor(penalties[: len(table)], dtype=torch.double)
    size = (groups[:, None] == groups).double().sum(1)
    of_row = (group_advantages(rewards, groups).abs(), (size - 1) / size**0.5, size)
    same_group, same_episode = groups[:, None] == groups, episodes[:, None] == episodes
    own = (same_group & same_episode).double().sum(1)
    others = (same_group / own).sum(1).round() - 1  # each episode of the group counts once
    of_episode = (episode_group_advantages(rewards, groups, episodes).abs(), (others * own) ** 0.5, others + 1)
    anchored = (anchor_advantages(rewards, groups, groups, True).abs(), *of_row[1:])
    for advantages, bound, compared in (of_row, of_episode, anchored):
        assert (advantages <= bound + 1e-9)[compared > 1].all()
    everywhere = reinforce_pp_advantages(rewards, groups).abs()
    assert (everywhere <= len(table) ** 0.5).all()


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans())
def test_what_has_no_special_case_for_one_sums_to_zero_in_every_group(
    table: list[tuple[float, int, int]], normalize: bool
) -> None:
    rewards, groups, anchors = columns(table)
    for group in groups.unique():
        of_group = groups == group
        for advantages in (
            rloo_advantages(rewards, groups),
            dr_grpo_advantages(rewards, groups),
            reinforce_pp_advantages(rewards, groups),
        ):
            assert abs(advantages[of_group].sum().item()) < 1e-8
        step = anchor_advantages(rewards, groups, anchors, normalize)
        for anchor in anchors[of_group].unique():
            assert abs(step[of_group & (anchors == anchor)].sum().item()) < 1e-8
    assert abs(reinforce_pp_advantages(rewards).sum().item()) < 1e-8


@settings(max_examples=60, deadline=None)
@given(rows)
def test_leaving_one_out_scales_the_mean_baseline_by_n_over_n_minus_one(table: list[tuple[float, int, int]]) -> None:
    rewards, groups, _ = columns(table)
    count = (groups[:, None] == groups).sum(1)
    expected = dr_grpo_advantages(rewards, groups) * count / (count - 1).clamp_min(1)
    torch.testing.assert_close(rloo_advantages(rewards, groups), expected)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_return_is_its_reward_plus_the_discounted_next_return(table: list[tuple[float, int, int]], gamma: float) -> None:
    rewards, trajectories, _ = columns(sorted(table, key=lambda row: row[1]))
    returns = discounted_returns(rewards, trajectories, gamma)
    follows = torch.cat([trajectories[1:] == trajectories[:-1], torch.tensor([False])])
    torch.testing.assert_close(returns, rewards + gamma * returns.roll(-1).where(follows, 0.0))


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
        (rloo_advantages(rewards, groups), rloo_advantages(*shuffled[:2])),
        (dr_grpo_advantages(rewards, groups), dr_grpo_advantages(*shuffled[:2])),
        (reinforce_pp_advantages(rewards, groups), reinforce_pp_advantages(*shuffled[:2])),
        (anchor_advantages(rewards, groups, episodes), anchor_advantages(*shuffled)),
    ]:
        torch.testing.assert_close(advantages[order], moved, atol=1e-9, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_with_one_row_per_episode_both_statistics_agree(table: list[tuple[float, int, int]]) -> None:
    rewards, groups, _ = columns(table)
    expected = group_advantages(rewards, groups)
    torch.testing.assert_close(episode_group_advantages(rewards, groups, torch.arange(len(table))), expected)


def test_two_rewards_are_one_standard_deviation_by_hand() -> None:
    # mean 1, unbiased variance (1 + 1) / 1 = 2: +-1 / sqrt 2
    torch.testing.assert_close(reinforce_pp_advantages(torch.tensor([0.0, 2.0])), torch.tensor([-1.0, 1.0]) / 2**0.5)


def test_a_similarity_above_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"similarity threshold is 1\.5"):
        similar_anchors(["a"], torch.tensor([0]), 1.5)


def test_the_last_tokens_cost_more_and_more():
    """SOD's settings: 1,024 of 20,480, factor 1."""
    lengths = torch.tensor([0, 19456, 19968, 20480, 20992])
    assert overlong(lengths, 20480, 1024, 1.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert overlong(lengths, 20480, 1024, 0.2).tolist() == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
