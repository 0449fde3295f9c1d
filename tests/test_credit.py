"""Advantage estimators as parts."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from played import LAYOUTS, batch_of, credit_of, episode, gathered, shuffled, turn
from torch import Tensor

from sdar.credit import (
    DrGRPOAdvantage,
    GiGPOAdvantage,
    GroupAdvantage,
    LeaveOneOutAdvantage,
    NoAdvantage,
    ReinforceAdvantage,
    episode_values,
)
from sdar.errors import ConfigError
from sdar.functional import group_advantages
from sdar.metrics import Metrics
from sdar.parts import AdvantageEstimator, Credit
from sdar.registry import load_parts, parts
from sdar.strategies.grpo import GRPO
from sdar.types import Batch, Episode

load_parts()
ESTIMATORS = {name: cls for name, cls in parts("advantages").items() if cls.__module__.startswith("sdar.")}
by_estimator = pytest.mark.parametrize("name", ESTIMATORS)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)

# One row per turn: rewards of the rows 1, 1, 1 and 0, one group. Nobody saw what another saw.
LONG_AND_SHORT = [
    episode(turn(2, observation="a"), turn(observation="b"), turn(1, 1.0, "c")),
    episode(turn(2, observation="d"), attempt=1),
]
# Two groups; an invalid action, a replayed turn, observations that others saw too.
TWO_GROUPS = [
    episode(turn(2, 0.5, "a"), turn(1, 1.0, "b", valid=False)),
    episode(turn(1, 0.0, "a"), turn(2, 0.0, "c", valid=False), turn(1, 0.0, "b")),
    episode(turn(1, 0.0, "d"), attempt=2),
    episode(turn(2, 0.0, "a", trainable=False), turn(1, 1.0, "b")),
    episode(turn(1, 0.0, "b"), turn(1, 0.0, "b")),
]
GROUPS = [4, 4, 4, 1, 1]


def rows(episodes: list[Episode], layout: str, groups: list[int] | None = None) -> Batch:
    batch = batch_of(episodes, layout, groups)
    return batch.select(batch.response_mask.any(1).nonzero()[:, 0])


def turn_rows(episodes: list[Episode] = LONG_AND_SHORT, groups: list[int] | None = None) -> Credit:
    return credit_of(rows(episodes, "turn", groups), episodes)


def per_token(advantages: Tensor, batch: Batch) -> Tensor:
    return advantages if advantages.dim() == 2 else advantages[:, None].expand(batch.ids.shape)


# ------------------------------------------------------------------ what every estimator does


@by_layout
@by_estimator
def test_every_estimator_returns_one_advantage_per_row_or_per_token(name: str, layout: str) -> None:
    batch = rows(LONG_AND_SHORT, layout)
    advantages = ESTIMATORS[name]()(credit_of(batch, LONG_AND_SHORT))
    assert advantages.shape in ((len(batch),), batch.ids.shape)
    assert advantages.dtype == torch.float32 and not advantages.requires_grad and advantages.isfinite().all()
    success, failure = gathered(batch, per_token(advantages, batch))
    best, worst = success[0][0], failure[0][0]
    assert best == worst == 0 if name == "no_reward" else best > 0 > worst
    assert all(value == best for values in success for value in values)  # all turns, where none met another attempt


@by_layout
@by_estimator
def test_every_estimator_ignores_the_order_of_rows(name: str, layout: str) -> None:
    estimator, batch = ESTIMATORS[name](), rows(TWO_GROUPS, layout, GROUPS)
    plain = estimator(credit_of(batch, TWO_GROUPS, 0.25))
    for seed in range(3):
        moved, order = shuffled(batch, seed)
        torch.testing.assert_close(estimator(credit_of(moved, TWO_GROUPS, 0.25)), plain[order])


@by_layout
@by_estimator
def test_equal_rewards_teach_nothing(name: str, layout: str) -> None:
    """1.1 is no number of the machine: a mean that differs by its rounding must not become an advantage."""
    episodes = [episode(*(turn(1 + i) for i in range(n)), reward=1.1) for n in (1, 3, 2, 1, 2, 4)]
    for e, played in enumerate(episodes):
        for t, taken in enumerate(played.turns):
            taken.observation = f"{e} {t}"
    batch = rows(episodes, layout, [0, 0, 0, 3, 3, 3])
    advantages = ESTIMATORS[name]()(credit_of(batch, episodes))
    torch.testing.assert_close(advantages, torch.zeros_like(advantages), atol=1e-6, rtol=0)


@by_layout
@by_estimator
def test_numbers_of_groups_are_only_names(name: str, layout: str) -> None:
    estimator = ESTIMATORS[name]()
    one, other = (credit_of(rows(TWO_GROUPS, layout, g), TWO_GROUPS, 0.25) for g in (GROUPS, [-7, -7, -7, 40, 40]))
    torch.testing.assert_close(estimator(one), estimator(other))


# ------------------------------------------------------------------ GRPO


def test_row_statistics_count_rows() -> None:
    # mean 3/4, unbiased variance (3 / 16 + 9 / 16) / 3 = 1/4, std 1/2: 0.25 / 0.5 = 0.5 and -0.75 / 0.5 = -1.5.
    advantages = GroupAdvantage(statistics="row")(turn_rows())
    torch.testing.assert_close(advantages, torch.tensor([0.5, 0.5, 0.5, -1.5]), atol=1e-5, rtol=0)


def test_episode_statistics_count_episodes() -> None:
    # episode rewards 1 and 0, the same in all of their rows: mean 1/2, std sqrt(1/2): +-0.7071068.
    advantages = GroupAdvantage(statistics="episode")(turn_rows())
    torch.testing.assert_close(advantages, torch.tensor([0.7071068] * 3 + [-0.7071068]), atol=1e-5, rtol=0)


def test_without_the_deviation_only_the_mean_is_taken_off() -> None:
    assert GroupAdvantage("row", normalize_std=False)(turn_rows()).tolist() == [0.25, 0.25, 0.25, -0.75]
    assert GroupAdvantage("episode", normalize_std=False)(turn_rows()).tolist() == [0.5, 0.5, 0.5, -0.5]


@pytest.mark.parametrize("statistics", ["row", "episode"])
def test_with_one_row_an_episode_both_statistics_are_the_same(statistics: str) -> None:
    batch = rows(TWO_GROUPS, "trajectory", GROUPS)
    credit = credit_of(batch, TWO_GROUPS, 0.25)
    expected = group_advantages(credit.rewards, credit.groups)
    assert torch.equal(GroupAdvantage(statistics)(credit), expected)  # type: ignore[arg-type]


def test_statistics_are_over_rows_by_default() -> None:
    assert torch.equal(GroupAdvantage()(turn_rows()), GroupAdvantage("row")(turn_rows()))


@by_layout
@by_estimator
def test_penalties_do_not_blow_up(name: str, layout: str) -> None:
    """All attempts fail; each has 12 turns and one invalid action: their means are equal, their rows are not."""
    episodes = [episode(*(turn(1, valid=t != n, observation=f"{n} {t}") for t in range(12)), reward=0.0) for n in range(4)]
    batch = rows(episodes, layout)
    advantages = per_token(ESTIMATORS[name]()(credit_of(batch, episodes, penalty=1e-3)), batch)
    assert advantages.abs().max() <= 12**0.5 * 2


# One attempt is left of four; and a group that was one attempt from the start.
LOST = [episode(attempt=n) for n in range(3)]


def strategy_with(**settings: Any) -> SimpleNamespace:
    """What credit is asked of a strategy whose episodes lose nothing for their length."""
    strategy = SimpleNamespace(**{"penalize_refused": True, "overlong_buffer": 0, "metrics": Metrics(), **settings})
    strategy.lost_by_length = partial(GRPO.lost_by_length, strategy)
    return strategy


@by_layout
@by_estimator
def test_what_survives_of_a_group_is_compared_with_nothing(name: str, layout: str) -> None:
    survivor = episode(turn(2, observation="a"), turn(1, 1.0, "b"), attempt=3)
    episodes = [*LOST, survivor]
    batch = rows(episodes, layout)
    credit = GRPO.credit_of(strategy_with(invalid_penalty=0.1), batch, episodes)
    assert credit.survivor.all()
    assert not per_token(ESTIMATORS[name]()(credit), batch).abs().max() > 1e-6


@pytest.mark.parametrize("estimator", [GroupAdvantage(normalize_std=False), GiGPOAdvantage()])
def test_a_group_of_one_attempt_keeps_its_reward(estimator: AdvantageEstimator) -> None:
    episodes = [episode(turn(2, observation="a"), turn(1, 1.0, "b"))]
    batch = rows(episodes, "trajectory")
    credit = GRPO.credit_of(strategy_with(invalid_penalty=0.1), batch, episodes)
    assert not credit.survivor.any()
    torch.testing.assert_close(per_token(estimator(credit), batch)[batch.response_mask], torch.ones(3), atol=1e-5, rtol=0)


def test_unknown_statistics_explain_themselves() -> None:
    with pytest.raises(ConfigError, match=r"advantage statistics is 'turn': .*Use 'episode' or 'row'"):
        GroupAdvantage(statistics="turn")  # type: ignore[arg-type]


# ------------------------------------------------------------------ RLOO, REINFORCE++, none


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_episodes_value_is_the_mean_of_its_rows(layout: str) -> None:
    batch = rows(TWO_GROUPS, layout, GROUPS)
    values, groups, row = episode_values(credit_of(batch, TWO_GROUPS, 0.25))
    # 1.5 - 0.25 in one row, (1.5 + 1.25) / 2 in two; -0.25 in one row, (0 - 0.25 + 0) / 3 in three.
    expected = [1.25, -0.25, 0.0, 1.0, 0.0] if layout == "trajectory" else [1.375, -0.25 / 3, 0.0, 1.0, 0.0]
    torch.testing.assert_close(values, torch.tensor(expected))
    assert groups.tolist() == GROUPS and row.tolist() == batch.episode.tolist()


@by_layout
def test_leave_one_out_golden(layout: str) -> None:
    # rewards 3, 1, 2: 3 - 1.5, 1 - 2.5, 2 - 2; the other group 4, 0: 4 - 0, 0 - 4.
    episodes = [episode(turn(), turn(), reward=r) for r in (3.0, 1.0, 2.0, 4.0, 0.0)]
    batch = rows(episodes, layout, [0, 0, 0, 9, 9])
    advantages = LeaveOneOutAdvantage()(credit_of(batch, episodes))
    assert advantages.tolist() == [[1.5, -1.5, 0.0, 4.0, -4.0][e] for e in batch.episode.tolist()]


@by_layout
def test_dr_grpo_golden(layout: str) -> None:
    # rewards 3, 1, 2: mean 2; the other group 4, 0: mean 2; a group of one, which has nothing to be compared with.
    episodes = [
        episode(*(turn() for _ in range(n)), reward=r) for n, r in ((1, 3.0), (3, 1.0), (1, 2.0), (2, 4.0), (1, 0.0), (1, 5.0))
    ]
    batch = rows(episodes, layout, [0, 0, 0, 9, 9, 4])
    advantages = DrGRPOAdvantage()(credit_of(batch, episodes))
    assert advantages.tolist() == [[1.0, -1.0, 0.0, 2.0, -2.0, 0.0][e] for e in batch.episode.tolist()]


@by_layout
def test_reinforce_golden(layout: str) -> None:
    # rewards 3, 1 | 6, 2.  Without the groups: mean 3, deviations 0 -2 3 -1, variance 14 / 3.
    # Group means 2 and 4 off first: 1 -1 2 -2, mean 0, variance 10 / 3.
    episodes = [episode(*(turn() for _ in range(n)), reward=r) for n, r in ((1, 3.0), (2, 1.0), (3, 6.0), (1, 2.0))]
    batch = rows(episodes, layout, [0, 0, 5, 5])
    credit, row = credit_of(batch, episodes), batch.episode
    plain = torch.tensor([0.0, -2.0, 3.0, -1.0]) / (14 / 3) ** 0.5
    torch.testing.assert_close(ReinforceAdvantage(baseline=False)(credit), plain[row])
    torch.testing.assert_close(ReinforceAdvantage()(credit), torch.tensor([1.0, -1.0, 2.0, -2.0])[row] / (10 / 3) ** 0.5)
    # One attempt that faults of the world left alone changes nothing for the others, and gets nothing.
    batch = rows([*episodes, episode(turn(), reward=9.0)], layout, [0, 0, 5, 5, 9])
    credit = credit_of(batch, [*episodes, episode(turn(), reward=9.0)])
    credit.survivor = batch.group == 9
    expected = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])[batch.episode] / (10 / 3) ** 0.5
    torch.testing.assert_close(ReinforceAdvantage()(credit), expected)


@by_layout
def test_without_rewards_nothing_is_learned_from_them(layout: str) -> None:
    batch = rows(TWO_GROUPS, layout, GROUPS)
    assert torch.equal(NoAdvantage()(credit_of(batch, TWO_GROUPS, 0.25)), torch.zeros(len(batch)))


# ------------------------------------------------------------------ GiGPO

# Both saw "a" first; gamma 1/2. Returns 1/2, 1 and 0, 0: at "a" the mean is 1/4, "b" and "c" were seen once.
MET = [
    episode(turn(2, 0.0, "a"), turn(1, 1.0, "b")),
    episode(turn(1, 0.0, "a"), turn(3, 0.0, "c"), attempt=1),
]


@by_layout
def test_gigpo_golden(layout: str) -> None:
    batch = rows(MET, layout)
    advantages = GiGPOAdvantage(gamma=0.5, normalize_std=False)(credit_of(batch, MET))
    # episodes +-1/2, then the step at "a" +-1/4
    assert gathered(batch, advantages) == [[[0.75, 0.75], [0.5]], [[-0.75], [-0.5, -0.5, -0.5]]]
    weighted = GiGPOAdvantage(gamma=0.5, step_weight=2.0, normalize_std=False)(credit_of(batch, MET))
    assert gathered(batch, weighted) == [[[1.0, 1.0], [0.5]], [[-1.0], [-0.5, -0.5, -0.5]]]


def test_gigpo_with_deviations_golden() -> None:
    # episodes: 1/2 over the deviation sqrt(1/2); at "a": 1/4 over sqrt(1/8): both 0.7071.
    batch = rows(MET, "trajectory")
    advantages = GiGPOAdvantage(gamma=0.5)(credit_of(batch, MET))  # they are divided by default
    root = 0.5**0.5
    expected = [[[2 * root, 2 * root], [root]], [[-2 * root], [-root, -root, -root]]]
    for episode_, wanted in zip(gathered(batch, advantages), expected, strict=True):
        for values, numbers in zip(episode_, wanted, strict=True):
            assert values == pytest.approx(numbers, abs=1e-5)


@by_layout
def test_gigpo_tells_the_shorter_of_two_ways_that_both_succeed(layout: str) -> None:
    # returns 1/2, 1 and 1/4, 1/2, 1; at "a" the mean is 3/8, at "b", which they meet at different times, both have 1.
    episodes = [
        episode(turn(observation="a"), turn(1, 1.0, "b")),
        episode(turn(observation="a"), turn(observation="c"), turn(1, 1.0, "b")),
    ]
    batch = rows(episodes, layout)
    advantages = GiGPOAdvantage(gamma=0.5, normalize_std=False)(credit_of(batch, episodes))
    assert gathered(batch, advantages) == [[[0.125], [0.0]], [[-0.125], [0.0], [0.0]]]


def test_gigpo_charges_an_invalid_action_to_its_turn_alone() -> None:
    episodes = [
        episode(turn(observation="a"), turn(observation="b", valid=False)),
        episode(turn(observation="a"), turn(observation="b")),
    ]
    batch = rows(episodes, "trajectory")
    advantages = GiGPOAdvantage(gamma=0.5, normalize_std=False)(credit_of(batch, episodes, penalty=0.5))
    # episodes -1/4 and 1/4; returns 0, -1/2 and 0, 0
    assert gathered(batch, advantages) == [[[-0.25], [-0.5]], [[0.25], [0.5]]]


@by_layout
@pytest.mark.parametrize("normalize_std", [False, True])
def test_gigpo_without_a_shared_anchor_is_grpo(layout: str, normalize_std: bool) -> None:
    batch = rows(LONG_AND_SHORT, layout)
    credit = credit_of(batch, LONG_AND_SHORT)
    grpo = GroupAdvantage("row", normalize_std)(credit)
    expected = per_token(grpo, batch)[batch.response_mask]
    assert torch.equal(GiGPOAdvantage(normalize_std=normalize_std)(credit)[batch.response_mask], expected)
    batch = rows(MET, layout)
    credit = credit_of(batch, MET)
    expected = per_token(GroupAdvantage("row", normalize_std)(credit), batch)
    assert torch.equal(GiGPOAdvantage(step_weight=0.0, normalize_std=normalize_std)(credit), expected)


def test_gigpo_compares_within_a_group_only() -> None:
    """Every group begins at the same words."""
    alone = [*MET, *MET]
    batch = rows(alone, "trajectory", [0, 0, 8, 8])
    apart = gathered(batch, GiGPOAdvantage(gamma=0.5, normalize_std=False)(credit_of(batch, alone)))
    assert apart[:2] == apart[2:] == [[[0.75, 0.75], [0.5]], [[-0.75], [-0.5, -0.5, -0.5]]]


def test_gigpo_may_take_similar_observations_for_one() -> None:
    episodes = [
        episode(turn(observation="You see a mug on the shelf 1."), turn(1, 1.0, "x")),
        episode(turn(observation="You see a mug on the shelf 2."), turn(1, 0.0, "y")),
    ]
    batch = rows(episodes, "trajectory")
    apart, alike = (
        gathered(batch, GiGPOAdvantage(gamma=0.5, normalize_std=False, similarity=s)(credit_of(batch, episodes)))[0]
        for s in (1.0, 0.9)
    )
    assert apart == [[0.5], [0.5]] and alike == [[0.75], [0.5]]


def test_gigpo_tells_how_many_turns_met_another() -> None:
    episodes = [episode(turn(1, 1.0, "a"), turn(1, 0.0, "a")), episode(turn(1, 0.0, "a"), turn(1, 0.0, "b"))]
    credit = credit_of(rows(episodes, "turn"), episodes)
    for gamma in (0.0, 1.0):
        GiGPOAdvantage(gamma=gamma)(credit)
    assert credit.metrics.compute() == {"advantage/shared_anchor_share": 3 / 4}


def test_impossible_settings_of_gigpo_explain_themselves() -> None:
    with pytest.raises(ConfigError, match=r"advantage\.gamma is 1\.5: .*lies in \[0, 1\]"):
        GiGPOAdvantage(gamma=1.5)
    for similarity in (0.0, 1.01):
        with pytest.raises(ConfigError, match=rf"advantage\.similarity is {similarity}: .*Use 0\.95, or 1 for equal"):
            GiGPOAdvantage(similarity=similarity)


@by_layout
def test_grpo_tells_the_estimator_what_these_tests_tell_it(layout: str) -> None:
    class Spy(AdvantageEstimator):
        def __call__(self, credit: Credit) -> Tensor:
            self.credit = credit
            return credit.rewards.clone()

    batch, spy = rows(TWO_GROUPS, layout, GROUPS), Spy()
    batch.extra = batch.episode == batch.episode[-1]  # it is compared with nothing and has no advantage
    attempts = batch.select((~batch.extra).nonzero()[:, 0])
    strategy = strategy_with(advantage=spy, invalid_penalty=0.25, drop_flat_groups=False)
    strategy.credit_of = partial(GRPO.credit_of, strategy)
    GRPO.credit(strategy, batch, TWO_GROUPS)  # type: ignore[arg-type]
    told, expected = spy.credit, credit_of(attempts, TWO_GROUPS, 0.25)
    for name in ("rewards", "episodes", "groups", "turn_rewards", "turn_penalties", "turn_groups"):
        assert torch.equal(getattr(told, name), getattr(expected, name)), name
    assert told.observations == expected.observations
    length = attempts.ids.shape[1]
    assert torch.equal(batch.advantages[~batch.extra, :length], expected.rewards[:, None].expand(-1, length))
    assert not batch.advantages[batch.extra].any()


@by_layout
@pytest.mark.parametrize("penalize_refused", [True, False])
def test_a_refused_action_is_penalised_if_wished_one_of_the_wrong_form_always(layout: str, penalize_refused: bool) -> None:
    refused, malformed = turn(1, observation="a", valid=False), turn(2, observation="b", valid=False)
    malformed.well_formed = False
    episodes = [episode(refused, malformed, turn(1, 1.0, "c")), episode(turn(1, observation="a"), attempt=1)]
    batch = rows(episodes, layout)
    strategy = strategy_with(invalid_penalty=0.25, penalize_refused=penalize_refused)
    credit = GRPO.credit_of(strategy, batch, episodes)  # type: ignore[arg-type]
    cost = 0.25 if penalize_refused else 0.0
    assert credit.turn_penalties.tolist() == [cost, 0.25, 0.0, 0.0]  # GiGPO's step term takes these off
    expected = [1.0 - cost - 0.25, 0.0] if layout == "trajectory" else [1.0 - cost, 0.75, 1.0, 0.0]
    assert credit.rewards.tolist() == expected
