"""Turn weights as parts."""

import math

import pytest
import torch
from played import LAYOUTS, batch_of, episode, gathered, shuffled, spread, turn, view_of

from sdar.errors import ConfigError
from sdar.functional import stepwise_weights
from sdar.metrics import Metrics
from sdar.registry import load_parts, parts
from sdar.turn_weights import ATODWeight, RandomWeight, StepwiseWeight, ThresholdWeight
from sdar.turns import Turns

load_parts()
WEIGHTS = {name: cls for name, cls in parts("turn_weights").items() if cls.__module__.startswith("sdar.")}
by_weight = pytest.mark.parametrize("name", WEIGHTS)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)

# Mean |gap| of the turns: 2, 4, 1 | 3 | 4, 2 (the first turn of the last episode was somebody else's).
EPISODES = [episode(turn(2), turn(1), turn(1)), episode(turn(3)), episode(turn(2, trainable=False), turn(1), turn(2))]
GAPS = [[[1.0, -3.0], [-4.0], [1.0]], [[3.0, -2.0, 4.0]], [[90.0, 90.0], [-4.0], [1.0, -3.0]]]


@by_layout
@by_weight
def test_every_weight_is_one_number_a_turn_and_not_negative(name: str, layout: str) -> None:
    batch = batch_of(EPISODES, layout)
    turns = Turns(batch)
    gap = spread(batch, GAPS).requires_grad_()
    weights = WEIGHTS[name]()(view_of(batch, gap), turns, Metrics())
    assert weights.shape == (len(turns),) == (6,)
    assert (weights >= 0).all() and weights.isfinite().all() and not weights.requires_grad


@by_weight
def test_layout_order_of_rows_and_what_is_masked_change_no_weight(name: str) -> None:
    found, told = [], []
    for layout in LAYOUTS:
        for outside in (0.0, torch.nan):
            batch, _ = shuffled(batch_of(EPISODES, layout), 2)
            metrics = Metrics()
            found.append(WEIGHTS[name]()(view_of(batch, spread(batch, GAPS, outside)), Turns(batch), metrics))
            told.append(metrics.compute())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    assert told[0] and all(other == pytest.approx(told[0]) for other in told[1:])


@by_layout
def test_stepwise_golden(layout: str) -> None:
    # epsilon 1: 3/3; 3/5; 3/2, at most 1.2 | 1 | 1; 5/3, at most 1.2
    batch, metrics = batch_of(EPISODES, layout), Metrics()
    turns = Turns(batch)
    weights = StepwiseWeight(epsilon=1.0, delta=0.2)(view_of(batch, spread(batch, GAPS)), turns, metrics)
    assert weights.tolist() == pytest.approx([1.0, 0.6, 1.2, 1.0, 1.0, 1.2])
    assert [[t[0] for t in e] for e in gathered(batch, turns.spread(weights))] == [
        pytest.approx([1.0, 0.6, 1.2]),
        [1.0],
        pytest.approx([1.0, 1.2]),
    ]
    patterns = {"turn/pattern_aligned": 1 / 2, "turn/pattern_recovered": 1 / 2, "turn/pattern_drifted": 0.0}  # of two episodes
    assert metrics.compute() == pytest.approx(
        {"turn/divergence": 16 / 6, "turn/weight": 6 / 6, "turn/weight_capped_share": 2 / 3} | patterns
    )


@by_layout
def test_atod_golden(layout: str) -> None:
    # d = (2, 4, 1) -> 1/3, 1, 0 | 1/2 | 1, 0;  h of 1, 2, 3 nats | 9 | 4, 2 -> 0, 1/2, 1 | 1/2 | 1, 0;  1 - (1 - d)(1 - h)
    batch, metrics = batch_of(EPISODES, layout), Metrics()
    turns, view = Turns(batch), view_of(batch, spread(batch, GAPS))
    surprise = [[[1.0, 1.0], [2.0], [3.0]], [[9.0, 9.0, 9.0]], [[0.0, 0.0], [4.0], [2.0, 2.0]]]
    weights = ATODWeight()(view.including(student_logp=-spread(batch, surprise)), turns, metrics)
    assert weights.tolist() == pytest.approx([1 / 3, 1.0, 1.0, 0.75, 1.0, 0.0])
    assert metrics.compute() == pytest.approx({"turn/divergence": 16 / 6, "turn/weight": (1 / 3 + 3.75) / 6})


def test_defaults_are_the_published_script_s() -> None:
    settings = vars(StepwiseWeight())
    assert settings == {"epsilon": 1e-6, "delta": 0.2, "divergence": "abs", "span": None, "scope": "step"}
    assert StepwiseWeight(delta=0.0).delta == 0.0


def test_stepwise_spread_over_the_tokens_is_the_function_for_trajectories() -> None:
    batch = batch_of(EPISODES, "trajectory")
    view, turns = view_of(batch, spread(batch, GAPS)), Turns(batch)
    expected = stepwise_weights(view.student_logp, view.teacher_logp, batch.response_mask, batch.turn_ids, 0.5, 0.3)
    torch.testing.assert_close(turns.spread(StepwiseWeight(0.5, 0.3)(view, turns, Metrics())), expected)


def test_in_half_precision_the_bound_still_counts_as_the_bound() -> None:
    """float32 has no 1.2."""
    batch, metrics = batch_of([episode(turn(), turn())], "trajectory"), Metrics()
    view = view_of(batch, spread(batch, [[[2.0], [0.5]]]).float())
    weights = StepwiseWeight(delta=0.2)(view, Turns(batch), metrics)
    assert weights.dtype == torch.float32 and metrics.compute()["turn/weight_capped_share"] == 1


def test_where_the_teacher_agrees_everywhere_all_turns_count_alike() -> None:
    batch = batch_of(EPISODES, "turn")
    weights = StepwiseWeight()(view_of(batch, torch.zeros(batch.ids.shape)), Turns(batch), Metrics())
    assert weights.tolist() == [1.0] * 6


@by_layout
@pytest.mark.parametrize(
    ("settings", "distances"),
    [
        ({"divergence": "k2"}, [2.5, 8.0, 0.5, 29 / 6, 8.0, 2.5]),
        ({"scope": "prefix"}, [2.0, 8 / 3, 9 / 4, 3.0, 4.0, 8 / 3]),  # sums 4, 8, 9 over 2, 3, 4 tokens | | 4, 8 over 1, 3
        ({"span": "act"}, [3.0, 4.0, 1.0, 2.0, 4.0, 3.0]),  # the second tokens, where there are any
        ({"span": "act", "scope": "prefix"}, [3.0, 7 / 2, 8 / 3, 2.0, 4.0, 7 / 2]),
    ],
)
def test_the_distance_of_a_turn_is_what_it_is_asked_to_be(settings: dict, distances: list[float], layout: str) -> None:
    batch, metrics = batch_of(EPISODES, layout), Metrics()
    view = view_of(batch, spread(batch, GAPS))
    act = [[[0, 2], [0], [0]], [[0, 2, 1]], [[2, 2], [0], [0, 2]]]
    view = view.including(spans=spread(batch, act).long(), tags=("think", "act"))
    found = StepwiseWeight(**settings).distance(view, Turns(batch), metrics)
    assert found.tolist() == pytest.approx(distances)
    assert metrics.compute() == {"turn/divergence": pytest.approx(sum(distances) / 6)}


def test_the_distance_k3_is_an_estimate_of_the_kl_and_bounded() -> None:
    batch = batch_of([episode(turn(2), turn(1))], "trajectory")
    view = view_of(batch, spread(batch, [[[1.0, -1.0], [30.0]]]))
    found = StepwiseWeight(divergence="k3").distance(view, Turns(batch), Metrics())
    assert found.tolist() == pytest.approx([(math.e - 2 + 1 / math.e) / 2, 10.0])


@by_layout
def test_threshold_golden(layout: str) -> None:
    batch, metrics = batch_of(EPISODES, layout), Metrics()
    weights = ThresholdWeight(2.5, beyond=0.25)(view_of(batch, spread(batch, GAPS)), Turns(batch), metrics)
    assert weights.tolist() == [1.0, 0.25, 1.0, 0.25, 0.25, 1.0]
    assert metrics.compute() == pytest.approx({"turn/divergence": 16 / 6, "turn/weight": 3.75 / 6})


@by_layout
def test_random_weights_are_those_of_sod_in_another_order_for_each_iteration(layout: str) -> None:
    batch = batch_of(EPISODES, layout)
    turns, view = Turns(batch), view_of(batch, spread(batch, GAPS))
    stepwise = StepwiseWeight(epsilon=1.0)(view, turns, Metrics()).tolist()

    def dealt(seed: int, iteration: int) -> list[float]:
        view.iteration = iteration
        return RandomWeight(seed, epsilon=1.0)(view, turns, Metrics()).tolist()

    found = {(seed, iteration): dealt(seed, iteration) for seed in (0, 1) for iteration in range(3)}
    assert all(sorted(weights) == sorted(stepwise) for weights in found.values())
    assert len(set(map(tuple, found.values()))) > 3 and dealt(1, 2) == found[1, 2]


def test_weights_that_know_no_such_word_explain_themselves() -> None:
    with pytest.raises(ConfigError, match=r"turn_weight\.divergence is 'kl': use one of abs, k2, k3\."):
        StepwiseWeight(divergence="kl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"turn_weight\.scope is 'call': use one of step, prefix\."):
        ThresholdWeight(scope="call")  # type: ignore[arg-type]
    for threshold, beyond in ((0.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ConfigError, match=rf"turn_weight\.threshold is {threshold}, beyond {beyond}: a distance above 0"):
            ThresholdWeight(threshold, beyond)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.2), (-1.0, 0.2), (1e-6, -0.1)])
def test_impossible_settings_explain_themselves(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError, match=rf"turn_weight\.epsilon is {epsilon}, delta {delta}: use an epsilon above 0"):
        StepwiseWeight(epsilon, delta)
