"""Advantage transforms by hand and as properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import (
    additive_gap,
    agent_opsd_weights,
    belief_revision,
    gap_returns,
    mix_advantages,
    rlsd_advantages,
    trajectory_zscore,
)


def close(actual: Tensor, expected: list[float] | list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), atol=1e-6, rtol=0)


def test_rlsd_golden() -> None:
    # lam 1/2, clip 0.2.  gap ln 1.1: A = 2 weighs 1.1, A = -2 weighs 1 / 1.1 = 0.9090909; 1/2 + w/2 = 1.05, 0.9545455.
    # gap ln 2: 2 is clipped to 1.2, 1/2 to 0.8.   A = 0 stays 0, even where the teacher calls the token impossible.
    teacher = torch.tensor([[math.log(1.1), math.log(2.0)]] * 2 + [[-math.inf, 0.0]])
    advantages = torch.tensor([2.0, -2.0, 0.0])
    expected = [[2.1, 2.2], [-1.9090909, -1.8], [0.0, 0.0]]
    close(rlsd_advantages(advantages, teacher, torch.zeros(3, 2), lam=0.5, clip=0.2), expected)
    close(rlsd_advantages(advantages[:, None].expand(3, 2), teacher, torch.zeros(3, 2), 0.5, 0.2), expected)


def test_no_advantage_stays_none_where_the_student_calls_the_token_impossible() -> None:
    for sign in (1.0, -1.0):
        advantages = torch.tensor([0.0, sign])
        after = rlsd_advantages(advantages, torch.zeros(2, 1), torch.full((2, 1), -math.inf), lam=1.0, clip=0.5)
        assert after.tolist() == [[0.0], [sign * (1 + 0.5 * sign)]]


tokens = st.lists(st.tuples(st.floats(-3, 3), st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=8)


def columns(table: list[tuple[float, float, float]]) -> list[Tensor]:
    return [torch.tensor([column], dtype=torch.double) for column in zip(*table, strict=True)]


@settings(max_examples=60, deadline=None)
@given(tokens, st.floats(0, 1), st.floats(0, 1))
def test_rlsd_keeps_the_sign_and_stays_in_its_band(table: list[tuple[float, float, float]], lam: float, clip: float) -> None:
    advantages, teacher, student = columns(table)
    shaped = rlsd_advantages(advantages, teacher, student, lam, clip)
    low, high = (1 - lam * clip) * advantages.abs(), (1 + lam * clip) * advantages.abs()
    assert (shaped * advantages >= 0).all()
    assert (shaped.abs() >= low - 1e-9).all() and (shaped.abs() <= high + 1e-9).all()
    assert torch.equal(rlsd_advantages(advantages, teacher, student, 0.0, clip), advantages)


def test_additive_gap_golden() -> None:
    # A = 1 and -1, gaps -1/2 and 2, coef 2: 1 - 1, 1 + 4, ...; with weights 1/4 and 0: 1 - 1/4, 1.
    teacher, student = torch.tensor([[-1.5, -1.0]] * 2), torch.tensor([[-1.0, -3.0]] * 2)
    advantages = torch.tensor([1.0, -1.0])
    close(additive_gap(advantages, teacher, student, coef=2.0), [[0.0, 5.0], [-2.0, 3.0]])
    weights = torch.tensor([[0.25, 0.0]] * 2)
    close(additive_gap(advantages, teacher, student, 2.0, weights), [[0.75, 1.0], [-1.25, -1.0]])


MASK = torch.tensor([[False, True, True, False, True], [True, True, False, False, False], [False, True, False, False, False]])
TURN = torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]])
"""Two trajectories: the first has turns 0 and 1 in a row and turn 2 in another, the second one token."""


def test_gap_returns_golden() -> None:
    gap = torch.tensor([[torch.nan, 8.0, 4.0, torch.nan, 2.0], [1.0, 16.0, 9.0, 9.0, 9.0], [9.0, 5.0, 9.0, 9.0, 9.0]])
    # in time 8, 4 | 2 | 1, 16: 16; 1 + 8 = 9; 2 + 4.5; 4 + 3.25; 8 + 3.625
    close(
        gap_returns(gap, MASK, TURN, torch.tensor([7, 7, 3]), 0.5),
        [[0.0, 11.625, 7.25, 0.0, 6.5], [9.0, 16.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0, 0.0]],
    )
    close(gap_returns(gap, MASK, TURN, torch.tensor([7, 7, 3]), 0.0), gap.where(MASK, 0.0).tolist())
    order = torch.tensor([1, 2, 0])  # of rows
    moved = gap_returns(gap[order], MASK[order], TURN[order], torch.tensor([7, 7, 3])[order], 1.0)
    close(moved, [[17.0, 16.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0, 0.0], [0.0, 31.0, 23.0, 0.0, 19.0]])


def test_gap_returns_of_an_enumerated_chain_are_the_gradient_that_they_declare() -> None:
    """Two turns of two tokens and one, with a word of the world between them that depends on the second token; student and teacher
    know the whole prefix. Enumerated in float64, with rows of one turn each."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2,), (2, 2), (2, 2, 2, 2)]  # of y1; y1, y2; y1, y2, the world's word, y3
    logits = [torch.randn(s, dtype=torch.double, generator=generator).requires_grad_() for s in shapes]
    teacher = [torch.randn(s, dtype=torch.double, generator=generator).log_softmax(-1) for s in shapes]
    student = [z.log_softmax(-1) for z in logits]
    world = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.double)  # of the word, by y2
    a, b, w, c = torch.cartesian_prod(*[torch.arange(2)] * 4).T

    def said(places: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([places[0][a], places[1][a, b], places[2][a, b, w, c]], 1)  # [16, 3]

    logp, reference = said(student), said(teacher)
    probability = logp.detach().sum(1).exp() * world[b, w]
    assert probability.sum() == pytest.approx(1.0)
    gap = (reference - logp).detach()
    rows = torch.cat([gap[:, :2], torch.nn.functional.pad(gap[:, 2:], (0, 1), value=torch.nan)])  # [32, 2]: a turn each
    mask = torch.tensor([[True, True], [True, False]]).repeat_interleave(16, 0)
    turn, number = torch.tensor([0, 1]).repeat_interleave(16)[:, None].expand(32, 2), torch.arange(16).repeat(2)

    def expected_gradient(discount: float) -> list[torch.Tensor]:
        found = gap_returns(rows, mask, turn, number, discount)
        credit = torch.cat([found[:16], found[16:, :1]], 1)
        objective = -(probability[:, None] * credit * logp).sum()
        return list(torch.autograd.grad(objective, logits, retain_graph=True))

    chance = student[0].exp()[:, None] * student[1].exp()  # [2, 2] of y1, y2, with a graph
    places = [
        (student[0].exp() * (student[0] - teacher[0])).sum(),
        (student[1].exp() * (student[1] - teacher[1])).sum(-1),
        (student[2].exp() * (student[2] - teacher[2])).sum(-1),
    ]
    met = [student[0].exp(), chance[..., None] * world[None]]
    whole = places[0] + (met[0] * places[1]).sum() + (met[1] * places[2]).sum()
    apart = places[0] + (met[0].detach() * places[1]).sum() + (met[1].detach() * places[2]).sum()
    for discount, objective in ((1.0, whole), (0.0, apart)):
        for actual, expected in zip(
            expected_gradient(discount), torch.autograd.grad(objective, logits, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)
    first = gap_returns(rows, mask, turn, number, 1.0)[:16, 0]
    assert (probability * first).sum() == pytest.approx(-float(whole.detach()))  # the value


def test_belief_revision_golden() -> None:
    # trajectory 4, odds 1, decay 1/2: c = ln 4, then ln 4 / 2 + ln 2 = ln 4; B 1/2 -> 4/5 -> 4/5.
    # trajectory 1, prior 0.9, odds 9: c = -ln 9, B -> 1/2.
    # trajectory 2, prior 0 -> 1/1000, odds 1/999: c = ln 999, B -> 1/2.
    evidence = torch.tensor([math.log(4), math.log(2), -math.log(9), math.log(999)])
    revision = belief_revision(evidence, torch.tensor([4, 4, 1, 2]), torch.tensor([0.5, 0.5, 0.9, 0.0]), decay=0.5)
    close(revision, [0.3, 0.0, -0.4, 0.499])


turns = st.lists(st.tuples(st.integers(0, 3), st.floats(-6, 6)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(turns, st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_revisions_of_a_trajectory_sum_to_what_it_ends_with_minus_the_prior(
    table: list[tuple[int, float]], priors: list[float], decay: float
) -> None:
    table = sorted(table, key=lambda row: row[0])
    ids, evidence = torch.tensor([i for i, _ in table]), torch.tensor([e for _, e in table], dtype=torch.double)
    prior = torch.tensor(priors, dtype=torch.double)[ids]
    revision = belief_revision(evidence, ids, prior, decay)
    for trajectory in ids.unique().tolist():
        start = min(max(priors[trajectory], 1e-3), 1 - 1e-3)
        total = 0.0
        for e in evidence[ids == trajectory].tolist():
            total = decay * total + e
        end = 1 / (1 + (1 - start) / start * math.exp(-total))
        assert revision[ids == trajectory].sum().item() == pytest.approx(end - start, abs=1e-9)
    assert (revision.abs() < 1).all()


def test_a_prior_that_is_a_return_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prior of turn 1 is 7\.5: .*success rate of the turn's group, not its mean return"):
        belief_revision(torch.zeros(2), torch.zeros(2, dtype=torch.long), torch.tensor([0.5, 7.5]), 1.0)
    with pytest.raises(ValueError, match=r"prior of turn 0 is nan"):
        belief_revision(torch.zeros(1), torch.zeros(1, dtype=torch.long), torch.tensor([torch.nan]), 1.0)
    with pytest.raises(ConfigError, match=r"discount is 2\.0"):
        belief_revision(torch.zeros(1), torch.zeros(1, dtype=torch.long), torch.tensor([0.5]), 2.0)


def test_zscore_golden() -> None:
    # trajectory 6: mean 1, biased std sqrt(6 / 3).   trajectory 0: 1 and 3.   2: all 0.1.   9: one turn.
    values = torch.tensor([0.0, 0.0, 3.0, 1.0, 3.0, 0.1, 0.1, 0.1, 5.0])
    ids = torch.tensor([6, 6, 6, 0, 0, 2, 2, 2, 9])
    z = trajectory_zscore(values, ids)
    close(z, [-0.7071068, -0.7071068, 1.4142136, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert z[5:].tolist() == [0.0] * 4


@settings(max_examples=60, deadline=None)
@given(turns)
def test_zscores_of_a_trajectory_have_mean_zero_and_std_one_or_zero(table: list[tuple[int, float]]) -> None:
    table = sorted(table, key=lambda row: row[0])
    ids, values = torch.tensor([i for i, _ in table]), torch.tensor([round(v, 2) for _, v in table], dtype=torch.double)
    z = trajectory_zscore(values, ids)
    for trajectory in ids.unique():
        of = z[ids == trajectory]
        assert of.mean().item() == pytest.approx(0, abs=1e-9)
        assert of.std(correction=0).item() == pytest.approx(float(len(values[ids == trajectory].unique()) > 1), abs=1e-9)


def test_agent_opsd_weights_golden() -> None:
    # band 0.2: 1 +- 0.2 * 1/2, z = 3 bounded, A = 0 has weight 1.
    weights = agent_opsd_weights(torch.tensor([1.0, -2.0, 5.0, -5.0, 0.0]), torch.tensor([0.5, 0.5, 3.0, 3.0, 3.0]), band=0.2)
    close(weights, [1.1, 0.9, 1.2, 0.8, 1.0])
    close(agent_opsd_weights(torch.tensor([1.0, -1.0]), torch.tensor([[0.5, -0.5]] * 2), 0.2), [[1.1, 0.9], [0.9, 1.1]])


def test_mix_golden() -> None:
    # lam 1/2: weights 1.2 and 0.8 become 1.1 and 0.9.
    close(mix_advantages(torch.tensor([2.0]), torch.tensor([[1.2, 0.8]]), lam=0.5), [[2.2, 1.8]])


def test_settings_that_turn_an_advantage_around_are_refused() -> None:
    one = torch.ones(1, 1)
    with pytest.raises(ConfigError, match=r"clip is 1\.5: .*\[1 - clip, 1 \+ clip\].*turn the advantage around"):
        rlsd_advantages(one, one, one, 0.5, 1.5)
    with pytest.raises(ConfigError, match=r"lam is -0\.1: .*from 0 to 1, e\.g\. 0\.5"):
        rlsd_advantages(one, one, one, -0.1, 0.2)
    with pytest.raises(ConfigError, match=r"band is -0\.2"):
        agent_opsd_weights(one, one, -0.2)


def test_shaped_advantages_are_wide_constants() -> None:
    half = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.zeros(2, dtype=torch.long)
    for shaped in (
        rlsd_advantages(half, half, half, 0.5, 0.2),
        additive_gap(half, half, half, 1.0, half),
        gap_returns(half, torch.ones(1, 2), ids[None], ids[:1], 0.5),
        belief_revision(half[0], ids, half[0], 1.0),
        trajectory_zscore(half[0], ids),
        agent_opsd_weights(half, half, 0.2),
        mix_advantages(half, half, 0.5),
    ):
        assert shaped.dtype == torch.float32 and not shaped.requires_grad


def test_no_turns_no_credit() -> None:
    none, ids = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert belief_revision(none, ids, none, 1.0).shape == trajectory_zscore(none, ids).shape == (0,)


def test_a_certain_prior_stays_as_far_from_one_as_from_zero() -> None:
    def revision(prior: float, evidence: float) -> float:
        return belief_revision(torch.tensor([evidence]), torch.tensor([0]), torch.tensor([prior]), 1.0).item()

    assert revision(1.0, -2.0) == pytest.approx(-revision(0.0, 2.0)) and revision(1.0, -2.0) < -1e-3
    with pytest.raises(ValueError, match=r"the prior of turn 0 is 1\.5"):
        revision(1.5, 0.0)


def test_a_band_may_reach_zero() -> None:
    assert agent_opsd_weights(torch.ones(1), torch.tensor([-3.0]), band=1.0).tolist() == [0.0]
