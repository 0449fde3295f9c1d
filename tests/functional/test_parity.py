"""Numbers of the public code: what each function of a reference gives for fixed inputs, in value and gradient.

Each docstring has the repository, the commit and the function, and what it computes. The numbers are of that formula, worked out
with 40 digits apart from this package, gradients by numerical differentiation with what the reference detaches held fixed. Inputs
are sines, so that they are the same everywhere. Where nothing else is said our part must agree to eight digits.
"""

from types import SimpleNamespace

import pytest
import torch
from formula import agrees, close, exact, leaf, wave
from played import batch_of, episode, turn

from sdar.credit import GiGPOAdvantage, GroupAdvantage
from sdar.functional import (
    additive_gap,
    entropy_gate,
    first_occurrences,
    gap_gate,
    importance_k3,
    k3,
    lift,
    masked_mean,
    ppo_clip,
    rlsd_advantages,
    soft_or_gate,
    stepwise_weights,
)
from sdar.metrics import Metrics
from sdar.parts import Credit
from sdar.rollout.groups import group_numbers
from sdar.strategies.grpo import GRPO
from sdar.types import Episode, Task

# Three rows of four tokens, seven of them in responses: log-probabilities of the sampled tokens.
MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
STUDENT = -1.6 + wave(3, 4, size=1.2, start=0.3)
TEACHER = -1.6 + wave(3, 4, size=1.4, start=1.1)
OLD = STUDENT - wave(3, 4, size=1.5, start=2.0)

# ------------------------------------------------------------------ losses on sampled tokens


@pytest.mark.parametrize(
    ("beta", "value", "gradient"),
    [
        (
            5.0,
            0.256496314,
            [
                [-0.141232839, -0.00609445714, -0.0035709678, 0.0],
                [0.0, -0.00125015173, -0.028260347, -0.141983283],
                [-0.0745759182, 0.0, 0.0, 0.0],
            ],
        ),
        (
            0.0,
            -0.0465750609,
            [
                [-0.0714285714, -0.0714285714, -0.0714285714, 0.0],
                [0.0, -0.0714285714, -0.0714285714, -0.0714285714],
                [-0.0714285714, 0.0, 0.0, 0.0],
            ],
        ),
    ],
)
def test_loss_of_sdar(beta: float, value: float, gradient: list[list[float]]) -> None:
    """ZJU-REAL/SDAR 8b85c23, sdar_utils.compute_sdar_loss: sum(mask sg[sigmoid(beta (T - S))] (T - S)) / sum(mask).

    There the sum is divided by 1e-8 more than the number of tokens.
    """
    student = leaf(STUDENT)
    gate = gap_gate(TEACHER - STUDENT, beta)
    agrees(masked_mean(gate * lift(TEACHER, student), MASK), student, value, gradient)


def test_loss_of_skill_sd() -> None:
    """ZJU-REAL/SDAR 8b85c23, skillsd_utils.compute_sdl_loss: the mean of exp(S - old) (exp(-l) - 1 + l), l = S - T."""
    student = leaf(STUDENT)
    agrees(
        masked_mean(importance_k3(TEACHER, student, OLD), MASK),
        student,
        0.803019231,
        [
            [-0.499045134, 0.0401472777, 0.0328427956, 0.0],
            [0.0, 0.0361163082, 0.0233712607, -0.625032318],
            [-0.00296149574, 0.0, 0.0, 0.0],
        ],
    )


def test_loss_of_skill_sd_beyond_its_bounds() -> None:
    """The same function: S - old is at most 10, -l at most 20, so e^10 (e^0.5 - 1.5) and e^20 - 1 - 25.

    Where S - old is bounded only the bracket has a gradient, e^10 (1 - e^0.5), there as here. Where -l is bounded the values agree
    and the gradients do not: there e^20 - 1 - 25 + 1, away from the teacher, here e^20 - 26 + 1 - e^20 = -25.
    """
    student = leaf(exact([-0.5, -25.0]))
    teacher, old = exact([0.0, 0.0]), exact([-12.5, -25.0])
    agrees(importance_k3(teacher, student, old), student, [3275.803982, 485165169.4098], [-14289.03688, -25.0])


@pytest.mark.parametrize(
    ("high", "dual_clip", "value", "gradient"),
    [
        (
            0.2,
            3.0,
            0.510577729,
            [[0.0, -0.0806593289, -0.0560274612, 0.0], [0.0, 0.0, 0.0, 0.0], [0.335835947, 0.0, 0.0, 0.0]],
        ),
        (
            0.28,
            None,
            0.644566822,
            [[0.0, -0.0806593289, -0.0560274612, 0.0], [0.0, 0.0, 0.0, 0.491131951], [0.335835947, 0.0, 0.0, 0.0]],
        ),
    ],
)
def test_loss_of_ppo(high: float, dual_clip: float | None, value: float, gradient: list[list[float]]) -> None:
    """ZJU-REAL/SDAR 8b85c23, core_algos.compute_policy_loss; YoungZ365/SOD 110c4b8, core_algos.compute_policy_loss_vanilla.

    The mean of max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(S - old), and of at most -A c where A < 0.
    """
    student = leaf(STUDENT)
    loss = ppo_clip(student, OLD, exact([1.25, -0.8, -2.0]), 0.2, high, dual_clip)
    agrees(masked_mean(loss, MASK), student, value, gradient)


def test_kl_of_the_initial_policy() -> None:
    """ZJU-REAL/SDAR 8b85c23, core_algos.kl_penalty, low_var_kl: clamp(exp(gap) - gap - 1, -10, 10), gap = reference - S."""
    gap = exact([-12.0, -10.9, -3.0, -0.5, 0.0, 0.5, 2.6, 2.65, 5.0])
    student = leaf(-gap - 1.0)
    agrees(
        k3(torch.full_like(gap, -1.0), student, clamp=10.0),
        student,
        [10.0, 9.90001846, 2.04978707, 0.10653066, 0.0, 0.148721271, 9.86373804, 10.0, 10.0],
        [0.0, 0.999981542, 0.950212932, 0.39346934, 0.0, -0.648721271, -12.463738, 0.0, 0.0],
    )


# ------------------------------------------------------------------ advantages of tokens and turns


def test_advantages_of_rlsd() -> None:
    """ZJU-REAL/SDAR 8b85c23, rlsd_utils.compute_rlsd_token_advantage, lambda 0.5, epsilon 0.2.

    mask A ((1 - lambda) + lambda clamp(exp(sign(A) (T - S)), 1 - epsilon, 1 + epsilon)).
    """
    found = MASK * rlsd_advantages(exact([1.25, -0.8, 0.0]), TEACHER, STUDENT, lam=0.5, clip=0.2)
    close(found, [[1.375, 1.125, 1.125, 0.0], [0.0, -0.88, -0.88, -0.72], [0.0, 0.0, 0.0, 0.0]])


def test_advantages_of_opd() -> None:
    """kokolerk/TCOD 465eef4, _compute_opd_advantage; tinker-cookbook 148adcf, incorporate_kl_penalty: mask coef (T - old), coef 1."""
    close(
        MASK * additive_gap(exact([0.0, 0.0, 0.0]), TEACHER, STUDENT, coef=1.0),
        [
            [0.893066056, -0.622173502, -0.732738796, 0.0],
            [0.0, -0.945958125, -0.279992038, 1.01810899],
            [0.0176365619, 0.0, 0.0, 0.0],
        ],
    )


def test_weights_and_advantages_of_sod() -> None:
    """YoungZ365/SOD 110c4b8, compute_stepwise_opd_weights and apply_stepwise_opd, epsilon 1e-6, delta 0.2, coefficient 1.

    A turn is a run of ones in the mask, d_k its mean |old - T|, w_1 = 1, w_k = min(prod over u < k of (d_u + epsilon) /
    (d_{u+1} + epsilon), 1 + delta); A + w_k (T - old). In the second turn of the second row both agree: d_2 = 0.
    """
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [0, 1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    turns = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
    student, teacher = -1.6 + wave(3, 8, size=1.2, start=0.3), -1.6 + wave(3, 8, size=1.4, start=1.1)
    teacher[1, 4:7] = student[1, 4:7]
    weights = stepwise_weights(student, teacher, mask, turns, epsilon=1e-6, delta=0.2)
    late, last = 0.996559823, 0.744144332
    close(
        weights,
        [[1.0, 1.0, 0.0, late, late, late, 0.0, last], [0.0, 1.0, 0.0, 0.0, 1.2, 1.2, 1.2, 0.0], [1.0] * 5 + [0.0] * 3],
    )
    close(
        mask * additive_gap(exact([1.25, -0.8, 0.0]), teacher, student, 1.0, weights),
        [
            [2.14306606, 0.627826498, 0.0, 2.05820226, 1.77195322, 0.307296138, 0.0, 2.00762003],
            [0.0, -1.82265374, 0.0, 0.0, -0.8, -0.8, -0.8, 0.0],
            [-0.875016658, -0.424418499, 0.984384632, 0.170753419, -1.02838591, 0.0, 0.0, 0.0],
        ],
    )


def test_first_occurrences_of_revisiting_opd() -> None:
    """hhh675597/revisiting_opd d10aedb, dp_actor._compute_opd_kl_mask: each id's first place in a response leaves the loss."""
    ids = torch.tensor([[7, 3, 7, 5, 3, 0], [5, 5, 2, 7, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    left = mask.bool() & ~first_occurrences(ids, mask, [7, 5])
    assert left.long().tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0]]


# ------------------------------------------------------------------ credit of rows, in float32 as there


def turn_credit(episodes: list[Episode]) -> Credit:
    """What GRPO tells its estimator: one row per turn, 0.1 for each action of wrong form."""
    strategy = SimpleNamespace(invalid_penalty=0.1, penalize_refused=False, metrics=Metrics())
    strategy.lost_by_length = lambda episodes: torch.zeros(len(episodes), dtype=torch.double)
    batch = batch_of(episodes, "turn", group_numbers(episodes))
    return GRPO.credit_of(strategy, batch, episodes)  # type: ignore[arg-type]


def attempts(task: str, *played: list[tuple[str, float, bool]]) -> list[Episode]:
    """A group: observation, reward and form of each turn."""
    found = []
    for number, turns in enumerate(played):
        one = episode(*[turn(1, reward, observation) for observation, reward, _ in turns], attempt=number)
        one.task = Task(task, "family", "do it")
        for said, (_, _, fine) in zip(one.turns, turns, strict=True):
            said.valid = said.well_formed = fine
        found.append(one)
    return found


def test_advantages_of_grpo_over_rows() -> None:
    """ZJU-REAL/SDAR 8b85c23, ray_trainer.apply_invalid_action_penalty, then core_algos.compute_grpo_outcome_advantage.

    A row is a turn; its score is the episode's reward minus 0.1 if its action is of wrong form. (score - mean) / (std + 1e-6) over
    the group's rows, std with n - 1; a group of one row has mean 0 and std 1. Attempts here: three in the first group, two failed
    ones in the second, in which only the penalties differ, one in the third.
    """
    won, good, bad = ("", 10.0, True), ("", 0.0, True), ("", 0.0, False)
    episodes = [
        *attempts("a", [good, good, won], [good, bad], [good, good, bad, good]),
        *attempts("b", [bad, good], [good]),
        *attempts("c", [won, bad]),
    ]
    close(
        GroupAdvantage()(turn_credit(episodes)),
        [1.33328892] * 3
        + [-0.660000163, -0.679933054]
        + [-0.660000163, -0.660000163, -0.679933054, -0.660000163]
        + [-1.15468054, 0.577340269, 0.577340269]
        + [0.707096781, -0.707096781],
        atol=2e-5,
    )


@pytest.mark.parametrize(
    ("normalize_std", "similarity", "expected"),
    [
        (
            True,
            1.0,
            [2.362224, 1.914683, 1.207576, -1.322959, -1.423955, -1.284629, -0.736092, -0.716848, 1.109764, 1.1985, -2.308264],
        ),
        (
            True,
            0.9,
            [2.362224, 1.73999, 1.828726, -1.322959, -1.870411, -1.284629, -1.443189, -0.009751, 1.109764, 1.1985, -2.308264],
        ),
        (False, 1.0, [12.325, 11.025, 6.275, -6.9, -8.475, -6.7, -3.825, -3.725, 6.33333333, 6.83333333, -13.1666667]),
        (False, 0.9, [12.325, 9.275, 9.775, -6.9, -10.225, -6.7, -3.875, -3.675, 6.33333333, 6.83333333, -13.1666667]),
    ],
)
def test_advantages_of_gigpo(normalize_std: bool, similarity: float, expected: list[float]) -> None:
    """ZJU-REAL/SDAR 8b85c23, gigpo/core_gigpo.py, compute_gigpo_outcome_advantage, mean_std_norm and mean_norm, gamma 0.95.

    Episode part: as GRPO over rows, the deviation left out in mean_norm. Step part: G_k = r_k + 0.95 G_{k+1}, minus the penalty of
    turn k alone, over the turns of the group that began at the same text, or at one whose difflib ratio with the first of them is
    at least the threshold; 0 for a turn that is alone.
    """
    hall, kitchen = ("hall", 0.0, True), ("kitchen", 0.0, True)
    noon, moon = ("the kitchen, at noon", 0.0, False), ("the kitchen, at moon", 0.0, True)
    episodes = [
        *attempts("a", [hall, kitchen, ("kitchen.", 10.0, True)], [("hall", 0.0, False), kitchen], [hall, noon, moon]),
        *attempts("b", [hall, ("hall", 10.0, True)], [hall]),
    ]
    estimator = GiGPOAdvantage(normalize_std=normalize_std, similarity=similarity)
    credit = turn_credit(episodes)
    row_of = credit.turns.spread(torch.arange(len(expected)).float() + 1)  # a token of each turn says what its turn got
    found = estimator(credit)
    close(torch.stack([found[row_of == number + 1][0] for number in range(len(expected))]), expected, atol=2e-5)


# ------------------------------------------------------------------ gates


def test_gates_of_sdar() -> None:
    """The gap gate, sigmoid(5 gap), is that of the code: ZJU-REAL/SDAR 8b85c23, sdar_utils.compute_sdar_loss.

    The code has neither of the others. Ours, for a vocabulary of 8: tanh(5 h / 2) and sigmoid(5 (1 - (1 - h) (1 - tanh gap))), h =
    entropy / ln 8.
    """
    gap, entropy = exact([-2.0, -0.1, 0.0, 0.7]), exact([0.0, 0.4, 1.5, 2.0])
    close(gap_gate(gap, 5.0), [4.53978687e-05, 0.377540669, 0.5, 0.970687769])
    close(entropy_gate(entropy, 5.0, 8), [0.0, 0.446962778, 0.94715377, 0.983819676])
    close(soft_or_gate(gap, entropy, 5.0, 8), [0.00800114021, 0.636294508, 0.973576885, 0.992785543])
