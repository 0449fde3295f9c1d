"""Advantage estimators as parts."""

import pytest
import torch

import sdar.credit  # noqa: F401  (registers)
from sdar.credit import GroupAdvantage
from sdar.errors import ConfigError
from sdar.registry import parts

ESTIMATORS = {name: cls for name, cls in parts("advantages").items() if cls.__module__.startswith("sdar.")}

REWARDS = torch.tensor([1.0, 1.0, 1.0, 0.0])
GROUPS = torch.zeros(4, dtype=torch.long)
EPISODES = torch.tensor([0, 0, 0, 1])


def test_row_statistics_count_rows() -> None:
    # mean 3/4, unbiased variance (3 / 16 + 9 / 16) / 3 = 1/4, std 1/2: 0.25 / 0.5 = 0.5 and -0.75 / 0.5 = -1.5.
    advantages = GroupAdvantage(statistics="row")(REWARDS, GROUPS, EPISODES)
    torch.testing.assert_close(advantages, torch.tensor([0.5, 0.5, 0.5, -1.5]), atol=1e-5, rtol=0)


def test_episode_statistics_count_episodes() -> None:
    # episode rewards 1 and 0: mean 1/2, std sqrt(1/2): +-0.7071068.
    advantages = GroupAdvantage(statistics="episode")(REWARDS, GROUPS, EPISODES)
    torch.testing.assert_close(advantages, torch.tensor([0.7071068] * 3 + [-0.7071068]), atol=1e-5, rtol=0)


def test_without_the_deviation_only_the_mean_is_taken_off() -> None:
    assert GroupAdvantage("row", normalize_std=False)(REWARDS, GROUPS, EPISODES).tolist() == [0.25, 0.25, 0.25, -0.75]
    assert GroupAdvantage("episode", normalize_std=False)(REWARDS, GROUPS, EPISODES).tolist() == [0.5, 0.5, 0.5, -0.5]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_returns_one_advantage_per_row(name: str) -> None:
    advantages = ESTIMATORS[name]()(REWARDS, GROUPS, EPISODES)
    assert advantages.shape == (4,) and not advantages.requires_grad and advantages.isfinite().all()
    assert advantages[0] > advantages[3]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_ignores_the_order_of_rows(name: str) -> None:
    order = torch.tensor([2, 3, 0, 1])
    estimator = ESTIMATORS[name]()
    moved = estimator(REWARDS[order], GROUPS[order], EPISODES[order])
    torch.testing.assert_close(moved, estimator(REWARDS, GROUPS, EPISODES)[order])


def test_unknown_statistics_explain_themselves() -> None:
    with pytest.raises(ConfigError, match=r"advantage statistics is 'turn': .*Use 'episode' or 'row'"):
        GroupAdvantage(statistics="turn")  # type: ignore[arg-type]
