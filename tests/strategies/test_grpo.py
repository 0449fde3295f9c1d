"""Advantages of rewards and of a judge's labels: GRPO's KL to the initial policy, GiGPO and CriticSearch."""

import math
from types import SimpleNamespace

import pytest
import torch
from one_step import HALF, Did, acted, assert_equal, by_layout, near, one_step, playing, turn_by_turn
from played import batch_of, episode, gathered, turn

from sdar.credit import GiGPOAdvantage, GroupAdvantage, NoAdvantage
from sdar.errors import ConfigError
from sdar.parts import Judge
from sdar.retrievers import NoRetriever
from sdar.rollout.loop import length
from sdar.strategies import GRPO, CriticSearch, GiGPO
from sdar.teachers import SkillView

# ------------------------------------------------------------------ the KL to the initial policy


@pytest.mark.parametrize(
    ("clamp", "losses", "slopes", "share"),
    [
        (10.0, [8.6824940, 10.0, 10.0], [-11.1824940, 0.0, 0.0], 2 / 3),
        (None, [8.6824940, 16.0855369, 2971.957987], [-11.1824940, -19.0855369, -2979.957987], None),
    ],
)
def test_a_token_far_below_the_initial_policy_has_no_gradient_unless_wished(small, clamp, losses, slopes, share):
    strategy = small.strategy(GRPO, kl_coef=0.5, kl_clamp=clamp, entropy_coef=0.0)
    batch = batch_of([episode(turn(3))], "trajectory")
    batch.ref_logp = batch.old_logp = batch.advantages = torch.zeros(batch.ids.shape)
    gaps = torch.tensor([[0.0, 0.0, 2.5, 3.0, 8.0]])
    now = SimpleNamespace(logp=(-gaps).requires_grad_(), entropy=torch.zeros(batch.ids.shape))
    loss = strategy.token_loss(batch, now)[batch.response_mask]
    [slope] = torch.autograd.grad(loss.sum(), now.logp)
    torch.testing.assert_close(loss.detach(), 0.5 * torch.tensor(losses))
    torch.testing.assert_close(slope[batch.response_mask], 0.5 * torch.tensor(slopes))
    assert strategy.metrics.compute().get("kl/reference_clamped_share") == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize("clamp", [0.0, -1.0])
def test_a_clamp_of_nothing_explains_itself(small, clamp):
    with pytest.raises(ConfigError, match=r"model\.kl_clamp is .*Use e\.g\. 10 \(published\), or null for no bound"):
        small.strategy(GRPO, kl_clamp=clamp)


# ------------------------------------------------------------------ the penalty for long episodes


@by_layout
def test_of_two_successes_the_one_that_fills_its_tokens_loses_reward(small, layout):
    """The short one ends where the buffer begins: rewards 1 and 1 - penalty, advantages of half a reward's distance from their mean."""
    play = playing([Did("look", reward=1.0)], ["look", Did("go to shelf 1", reward=1.0)])
    settings = {"advantage": GroupAdvantage("episode"), "kl_coef": 0.0}
    plain = one_step(small, small.strategy(GRPO, **settings), small.data(layout=layout), play)
    assert plain.metrics["reward/flat_group_share"] == 1 and not plain.batch.advantages.any()
    short, long = (length(e.turns, layout) for e in plain.episodes)
    data = small.data(layout=layout, max_episode_tokens=long)
    strategy = small.strategy(GRPO, overlong_buffer=long - short, overlong_penalty=0.5, drop_flat_groups=True, **settings)
    seen = one_step(small, strategy, data, play)
    by_hand = 0.25 / (0.5 * math.sqrt(0.5) + 1e-6)
    assert gathered(seen.batch, seen.batch.advantages) == near(
        turn_by_turn(seen.batch, lambda e, t, gap: (by_hand, -by_hand)[e])
    )
    assert seen.metrics["reward/overlong_penalty"] == 0.25 and seen.metrics["reward/overlong_share"] == 0.5
    assert seen.metrics["reward/mean"] == 1 and seen.metrics["rollout/token_limit_share"] == 0


@pytest.mark.parametrize(
    ("settings", "most", "message"),
    [
        (
            {"overlong_buffer": 8},
            None,
            r"model\.overlong_buffer is 8: .* data\.max_episode_tokens is not set\. Set it to more",
        ),
        ({"overlong_buffer": 8}, 8, r"data\.max_episode_tokens is 8\. Set it to more"),
        ({"overlong_buffer": 8, "advantage": NoAdvantage()}, 99, "model.advantage is NoAdvantage, which looks at none"),
        ({"overlong_buffer": -1}, 99, r"model\.overlong_buffer is -1"),
        ({"overlong_penalty": 0.0}, 99, r"model\.overlong_penalty is 0\.0"),
    ],
)
def test_a_penalty_for_long_episodes_that_could_not_work_is_refused(small, settings, most, message):
    with pytest.raises(ConfigError, match=message):
        one_step(small, small.strategy(GRPO, **settings), small.data(max_episode_tokens=most))


# ------------------------------------------------------------------ GiGPO


@by_layout
def test_gigpo_compares_what_two_attempts_did_at_the_observation_where_they_met(small, layout):
    """Returns 0.95^2, 0.95, 1 against 0: met at the door and in the hall, apart in the end."""
    play = playing(
        [Did("look", "The door."), Did("look", "The hall."), Did("look", "The attic.", reward=1.0)],
        [Did("open drawer 1", "The door."), Did("look", "The hall."), Did("look", "The den.")],
    )
    strategy = small.strategy(GiGPO, advantage=GiGPOAdvantage(normalize_std=False))
    seen = one_step(small, strategy, small.data(layout=layout), play)
    won = [0.5 + 0.5 * 0.95**2, 0.5 + 0.5 * 0.95, 0.5]
    found = [[t[0] for t in e] for e in gathered(seen.batch, seen.batch.advantages)]
    assert found == [pytest.approx(won), pytest.approx([-a for a in won])]
    assert seen.metrics["advantage/shared_anchor_share"] == pytest.approx(4 / 6)


# ------------------------------------------------------------------ CriticSearch


class Labels(Judge):
    """Labels by hand; keeps what it was told."""

    def __init__(self, *labels: list[float | None]):
        self.labels, self.told = list(labels), []

    def __call__(self, episodes, solutions):
        self.told += [(e.attempt, e.task.id, s) for e, s in zip(episodes, solutions, strict=True)]
        return self.labels


JUDGED_ALONE = ["go to shelf 1", Did("look", reward=1.0)]
JUDGED = playing(JUDGED_ALONE, ["open drawer 1", "close drawer 1"])
LABELS = ([1.0, -1.0], [None, 1.0])
# three labels with mean 1/3 and deviation sqrt(4/3)
GOOD, BAD = (2 / 3) / math.sqrt(4 / 3), -(4 / 3) / math.sqrt(4 / 3)


@by_layout
@pytest.mark.parametrize(
    ("settings", "kept", "coef"),
    [({}, 1.0, 0.25), ({"turn_coef": 0.5}, 1.0, 0.5), ({"mix": "convex"}, 0.75, 0.25)],
)
def test_critic_search_adds_the_group_normalised_labels_turn_by_turn(small, layout, settings, kept, coef):
    judge = Labels(*LABELS)
    strategy = small.strategy(
        CriticSearch, judge=judge, advantage=GroupAdvantage("episode"), **settings
    )  # alike in both layouts
    seen = one_step(small, strategy, small.data(layout=layout), JUDGED)
    by_hand = [[kept * HALF + coef * GOOD, kept * HALF + coef * BAD], [-kept * HALF, -kept * HALF + coef * GOOD]]
    found = gathered(seen.batch, seen.batch.advantages)
    assert found == near([[[a] * len(t) for a, t in zip(*e, strict=True)] for e in zip(by_hand, found, strict=True)])
    assert seen.metrics["judge/unlabelled_share"] == 0.25
    assert seen.metrics["judge/label"] == pytest.approx(1 / 3)
    # the first attempt reached the goal: of 1, -1 | 1 one label says how its episode went
    assert seen.metrics["judge/agreement"] == pytest.approx(1 / 3)
    assert (seen.metrics["judge/label_success"], seen.metrics["judge/label_failure"]) == (0.0, 1.0)
    task = seen.episodes[0].task
    assert judge.told == [(number, task.id, strategy.env.solution(task)) for number in (0, 1)]


def test_a_label_that_is_alone_in_its_group_says_nothing(small):
    seen = one_step(small, small.strategy(CriticSearch, judge=Labels([None, None], [None, 1.0])), play=JUDGED)
    assert gathered(seen.batch, seen.batch.advantages) == near(turn_by_turn(seen.batch, lambda e, t, gap: (HALF, -HALF)[e]))


def test_a_label_of_zero_agrees_with_nothing_and_an_outcome_that_nobody_had_has_no_label(small):
    seen = one_step(small, small.strategy(CriticSearch, judge=Labels([0.0, 0.5])), play=playing(JUDGED_ALONE))
    assert (seen.metrics["judge/agreement"], seen.metrics["judge/label_success"]) == (1.0, 0.25)
    assert "judge/label_failure" not in seen.metrics


def test_critic_search_asks_no_judge_whose_word_does_not_count(small):
    judge = Labels(*LABELS)
    seen = one_step(small, small.strategy(CriticSearch, judge=judge, turn_coef=0.0), play=JUDGED)
    assert judge.told == [] and "judge/label" not in seen.metrics
    assert_equal(seen.gradient, one_step(small, small.strategy(GRPO), play=JUDGED).gradient)


def test_without_any_verdict_critic_search_is_grpo(small):
    seen = one_step(small, small.strategy(CriticSearch, judge=Labels([None, None], [None, None])), play=JUDGED)
    plain = one_step(small, small.strategy(GRPO), play=JUDGED)
    assert seen.metrics["judge/unlabelled_share"] == 1
    assert_equal(seen.gradient, plain.gradient)


def test_labels_are_compared_within_a_group_only(small):
    def play(strategy, tasks):
        return [acted(strategy, task, number, "look") for task in tasks for number in (0, 1)]

    judge = Labels([1.0], [1.0], [-1.0], [1.0])
    batch = one_step(small, small.strategy(CriticSearch, judge=judge, turn_coef=1.0), play=play).batch
    assert [e[0][0] for e in gathered(batch, batch.advantages)] == pytest.approx([0.0, 0.0, -HALF, HALF], abs=1e-5)


def test_a_judge_that_cannot_be_asked_stops_before_training(small):
    class Broken(Labels):
        def check(self):
            raise ConfigError("the judge does not answer")

    strategy = small.strategy(CriticSearch, judge=Broken())
    with pytest.raises(ConfigError, match="the judge does not answer"):
        one_step(small, strategy, play=lambda *_: pytest.fail("an episode was played"))
    assert strategy.model is None


def test_a_blank_gold_answer_is_refused(small):
    strategy = small.strategy(CriticSearch, judge=Labels(*LABELS), view=SkillView(), retriever=NoRetriever())
    with pytest.raises(ConfigError, match=r"SkillView has no gold answer for 2 of 2 tasks, such as household-.*would guess"):
        one_step(small, strategy, play=JUDGED)
    assert strategy.judge.told == []
