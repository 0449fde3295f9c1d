"""Advantage transforms as parts: by hand, in both layouts, and what gradient they give on average."""

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from played import LAYOUTS, batch_of, episode, gathered, shuffled, spread, turn, view_of
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import additive_gap
from sdar.metrics import Metrics
from sdar.parts import AdvantageTransform, Schedule, TurnWeight
from sdar.registry import load_parts, parts
from sdar.schedules import WindowSchedule
from sdar.shaping import BeliefRevision, EvidenceRatio, GapAdvantage
from sdar.turn_weights import StepwiseWeight
from sdar.turns import Turns
from sdar.types import Batch, TokenView

load_parts()
TRANSFORMS = {name: cls for name, cls in parts("advantage_transforms").items() if cls.__module__.startswith("sdar.")}
by_transform = pytest.mark.parametrize("name", TRANSFORMS)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)

EPISODES = [episode(turn(2), turn(1, 1.0)), episode(turn(1, trainable=False), turn(1), turn(2)), episode(turn(2))]
GAPS = [[[0.5, -1.0], [2.0]], [[9.0], [-0.1], [0.3, 0.0]], [[-2.0, 0.05]]]
BEFORE = [[[1.0, 1.0], [1.0]], [[0.0], [-0.5], [-0.5, 0.0]], [[-2.0, -2.0]]]


def made(name: str, coef: float | Schedule | None = None, **kwargs: Any) -> AdvantageTransform:
    """A transform with its coefficient, whatever it is called."""
    cls = TRANSFORMS[name]
    key = next(k for k in ("coef", "lam") if k in inspect.signature(cls).parameters)
    return cls(**({} if coef is None else {key: coef}), **kwargs)


def apply(
    transform: AdvantageTransform,
    batch: Batch,
    gaps: Any = GAPS,
    before: Any = BEFORE,
    iteration: int = 0,
    outside: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Advantages ``[batch, time]`` and what was put into the metrics."""
    advantages = spread(batch, before, outside)
    view, metrics = view_of(batch, spread(batch, gaps, outside), advantages), Metrics()
    return transform(advantages, view, Turns(batch), iteration, metrics), metrics.compute()


def near(nested: Any) -> Any:
    return [[pytest.approx(t, abs=1e-6) for t in e] for e in nested]


# ------------------------------------------------------------------ what every transform does


@by_layout
@by_transform
def test_the_neutral_setting_gives_the_advantages_back(name: str, layout: str) -> None:
    batch = batch_of(EPISODES, layout)
    after, _ = apply(made(name, 0.0), batch)
    assert torch.equal(after, spread(batch, BEFORE))


@by_transform
def test_the_default_does_something_and_says_what_the_gradient_is(name: str) -> None:
    batch = batch_of(EPISODES, "trajectory")
    after, _ = apply(made(name), batch)
    assert not torch.equal(after, spread(batch, BEFORE))
    assert after.shape == batch.ids.shape and not after.requires_grad and after.isfinite().all()
    said = TRANSFORMS[name].gradient_estimand
    assert isinstance(said, str) and "student_logp" in said


@by_transform
def test_layout_order_of_rows_and_what_is_masked_change_no_token(name: str) -> None:
    found, told = [], []
    for layout in LAYOUTS:
        for outside in (0.0, 3.0):
            batch, _ = shuffled(batch_of(EPISODES, layout), 1)
            after, metrics = apply(made(name), batch, outside=outside)
            found.append(gathered(batch, after))
            told.append(metrics)
    assert all(other == near(found[0]) for other in found[1:])
    assert all(other == pytest.approx(told[0]) for other in told[1:])


@by_transform
def test_a_schedule_is_followed(name: str) -> None:
    batch = batch_of(EPISODES, "trajectory")
    window = made(name, WindowSchedule(0.7, start=2, stop=4))
    for iteration in range(6):
        after, metrics = apply(window, batch, iteration=iteration)
        expected, _ = apply(made(name, 0.7 if 2 <= iteration < 4 else 0.0), batch)
        assert torch.equal(after, expected)
        assert metrics["distill/coef"] == window.weight(iteration) == (0.7 if 2 <= iteration < 4 else 0.0)


@by_transform
def test_one_transform_after_the_other_sees_what_the_first_has_made(name: str) -> None:
    batch = batch_of(EPISODES, "turn")
    gap, turns = spread(batch, GAPS), Turns(batch)
    first, _ = apply(GapAdvantage(2.0), batch)
    given, found = (
        made(name)(first, view_of(batch, gap, known), turns, 0, Metrics()) for known in (spread(batch, BEFORE), first)
    )
    assert torch.equal(given, found) and not torch.equal(given, first)


# ------------------------------------------------------------------ the gap


@by_layout
def test_gap_golden(layout: str) -> None:
    batch = batch_of(EPISODES, layout)
    after, metrics = apply(GapAdvantage(2.0), batch)
    assert gathered(batch, after) == near([[[2.0, -1.0], [5.0]], [[-0.7], [0.1, 0.0]], [[-6.0, -1.9]]])
    assert metrics == {"distill/coef": 2.0}
    clipped, _ = apply(GapAdvantage(2.0, clip=0.4), batch)
    assert gathered(batch, clipped) == near([[[1.8, 0.2], [1.8]], [[-0.7], [0.1, 0.0]], [[-2.8, -1.9]]])


@by_layout
def test_gap_with_stepwise_weights_golden(layout: str) -> None:
    """One trajectory of two turns, with the same numbers in one row and in two."""
    # epsilon 1: distances 0.75 and 2, weights 1 and 1.75 / 3 = 7 / 12.
    batch = batch_of(EPISODES[:1], layout)
    assert len(batch) == (1 if layout == "trajectory" else 2)
    after, metrics = apply(GapAdvantage(3.0, StepwiseWeight(epsilon=1.0)), batch)
    assert gathered(batch, after) == near([[[1 + 1.5, 1 - 3.0], [1 + 3 * 2 * 7 / 12]]])
    assert metrics == pytest.approx(
        {
            "distill/coef": 3.0,
            "turn/divergence": 2.75 / 2,
            "turn/weight": (1 + 7 / 12) / 2,
            "turn/weight/turn/1": 1.0,
            "turn/weight/turn/2": 7 / 12,
            "turn/weight_capped_share": 0.0,
            "turn/pattern_aligned": 0.0,
            "turn/pattern_recovered": 0.0,
            "turn/pattern_drifted": 1.0,
        }
    )


def test_the_weights_are_asked_about_the_gap_that_was_not_clipped() -> None:
    # distances 0.75 and 2 as above, the gaps at most 0.6.
    batch = batch_of(EPISODES[:1], "turn")
    after, _ = apply(GapAdvantage(1.0, StepwiseWeight(epsilon=1.0), clip=0.6), batch)
    assert gathered(batch, after) == near([[[1.5, 0.4], [1 + 0.6 * 7 / 12]]])


def test_the_gap_is_its_function() -> None:
    batch = batch_of(EPISODES, "trajectory")
    view, turns = view_of(batch, spread(batch, GAPS), spread(batch, BEFORE)), Turns(batch)
    weights = turns.spread(StepwiseWeight()(view, turns, Metrics()))
    expected = additive_gap(view.advantages, view.teacher_logp, view.student_logp, 0.3, weights)
    after, _ = apply(GapAdvantage(0.3, StepwiseWeight()), batch)
    torch.testing.assert_close(after, expected)


# ------------------------------------------------------------------ evidence


@by_layout
def test_evidence_golden(layout: str) -> None:
    # exp(sign(A) gap) within 0.8 to 1.2, half of the advantage scaled: 1.2, 0.8 | 1.2 || exp(0.1), 0.8 with A = -0.5 | A = 0 || ...
    batch = batch_of(EPISODES, layout)
    after, metrics = apply(EvidenceRatio(0.5, 0.2), batch)
    small = math.exp(0.1)
    assert gathered(batch, after) == near(
        [[[1.1, 0.9], [1.1]], [[-0.5 * (1 + small) / 2], [-0.45, 0.0]], [[-2.2, -(1 + math.exp(-0.05))]]]
    )
    assert (
        apply(EvidenceRatio(0.5, 0.0), batch)[1]["advantage/evidence_clipped_share"] == 7 / 8
    )  # at the bound is not beyond it
    # beyond the bound: 0.5, -1, 2, 0.3, -2 of eight response tokens; no advantage, no evidence
    assert metrics == {"distill/coef": 0.5, "advantage/evidence_clipped_share": 5 / 8}


@by_layout
def test_negative_only_leaves_what_went_well_alone(layout: str) -> None:
    batch = batch_of(EPISODES, layout)
    before = [[[0.5, 1.0], [2.0]], *BEFORE[1:]]
    scaled, _ = apply(EvidenceRatio(0.5, 0.2), batch, before=before)
    after, _ = apply(EvidenceRatio(0.5, 0.2, negative_only=True), batch, before=before)
    assert gathered(batch, after) == [before[0][:1] + before[0][1:], *gathered(batch, scaled)[1:]]
    assert gathered(batch, scaled)[0] != before[0]


def test_defaults_are_the_published_ones() -> None:
    assert [made(name).weight(0) for name in ("gap", "evidence", "belief")] == [1.0, 0.5, 0.5]
    assert (GapAdvantage().clip, GapAdvantage().turn_weight, GapAdvantage().discount) == (None, None, 0.0)
    assert (EvidenceRatio().clip, EvidenceRatio().negative_only, EvidenceRatio().span) == (0.2, False, None)
    assert (BeliefRevision().band, BeliefRevision().decay) == (0.2, 0.95)


def test_evidence_never_turns_the_sign_of_an_advantage() -> None:
    batch = batch_of(EPISODES, "trajectory")
    for lam, clip in itertools.product((0.5, 1.0), (0.0, 0.2, 0.99)):
        after, _ = apply(EvidenceRatio(lam, clip), batch)
        assert torch.equal(after.sign(), spread(batch, BEFORE).sign())
        assert (after.abs() <= (1 + clip) * spread(batch, BEFORE).abs() + 1e-12).all()


# ------------------------------------------------------------------ beliefs


@by_layout
def test_belief_golden(layout: str) -> None:
    """Prior 1/2 (one of two succeeded); two turns with evidence 1 and 2; without decay."""
    episodes = [episode(turn(2), turn(1), reward=1.0), episode(turn(1), turn(1), reward=0.0)]
    gaps = [[[0.25, 0.75], [2.0]], [[0.0], [-3.0]]]
    before = [[[2.0, 2.0], [2.0]], [[-2.0], [-2.0]]]
    batch = batch_of(episodes, layout)
    after, metrics = apply(BeliefRevision(lam=0.5, band=0.2, decay=1.0), batch, gaps, before)
    # Two numbers have the z-scores +1 and -1. First: revisions s(1) - 1/2 = 0.231 and s(3) - s(1) = 0.222: z = 1, -1.
    # Second: 0 and s(-3) - 1/2 < 0: z = 1, -1. Scales 1 + 0.2 sign(A) z, and half of the advantage is scaled.
    assert gathered(batch, after) == near([[[2.2, 2.2], [1.8]], [[-1.8], [-2.2]]])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    moved = (sigmoid(3.0) - 0.5) + (0.5 - sigmoid(-3.0))
    assert metrics == pytest.approx({"distill/coef": 0.5, "turn/belief_revision": moved / 4})


def test_belief_decay_golden() -> None:
    # decay 0: evidence is forgotten; 1, 2, 0.5: beliefs s(1), s(2), s(0.5): 0.2311, 0.1497, -0.2583; z of three.
    batch = batch_of([episode(turn(), turn(), turn(), reward=1.0), episode(turn(), reward=0.0)], "trajectory")
    gaps, before = [[[1.0], [2.0], [0.5]], [[4.0]]], [[[1.0], [1.0], [1.0]], [[-1.0]]]
    after, _ = apply(BeliefRevision(lam=1.0, band=0.1, decay=0.0), batch, gaps, before)
    belief = [1 / (1 + math.exp(-x)) for x in (0.0, 1.0, 2.0, 0.5)]
    revision = [b - a for a, b in itertools.pairwise(belief)]
    mean = sum(revision) / 3
    std = (sum((r - mean) ** 2 for r in revision) / 3) ** 0.5
    scales = [min(max(1 + 0.1 * (r - mean) / std, 0.9), 1.1) for r in revision]
    assert gathered(batch, after) == near([[[s] for s in scales], [[-1.0]]])  # one turn alone is nothing special


@pytest.mark.parametrize("successes", [(1.0, 1.0), (0.0, 0.0)])
def test_beliefs_where_every_attempt_ended_alike_stay_finite(successes: tuple[float, float]) -> None:
    batch = batch_of([episode(turn(), turn(), reward=s) for s in successes], "turn")
    after, _ = apply(BeliefRevision(), batch, [[[1.0], [-1.0]]] * 2, [[[1.0], [1.0]]] * 2)
    assert after.isfinite().all()


# ------------------------------------------------------------------ settings


def test_impossible_settings_explain_themselves() -> None:
    for clip in (0.0, -1.0):
        with pytest.raises(ConfigError, match=rf"transform\.clip is {clip}: it bounds the gap.*or null for no bound"):
            GapAdvantage(clip=clip)
    for clip in (1.0, -0.1):
        with pytest.raises(ConfigError, match=rf"transform\.clip is {clip}: the ratio is kept in .*Published: 0\.2"):
            EvidenceRatio(clip=clip)
    for discount in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=rf"transform\.discount is {discount}: the gap of the k-th next token counts"):
            GapAdvantage(discount=discount)
    for band, decay in ((1.0, 0.5), (-0.1, 0.5), (0.2, 1.5)):
        with pytest.raises(ConfigError, match=rf"transform\.band is {band}, decay {decay}: both lie in \[0, 1\]"):
            BeliefRevision(band=band, decay=decay)


def test_settings_at_their_bounds_are_possible() -> None:
    for name, lam in itertools.product(("evidence", "belief"), (0.0, 1.0)):
        made(name, lam)
    EvidenceRatio(clip=0.0), BeliefRevision(band=0.0, decay=0.0), BeliefRevision(decay=1.0), GapAdvantage(clip=0.5)


@pytest.mark.parametrize("name", ["evidence", "belief"])
def test_a_share_beyond_one_explains_itself(name: str) -> None:
    with pytest.raises(ConfigError, match=r"lam is 1\.5: it is the share of the advantage that is scaled"):
        apply(made(name, 1.5), batch_of(EPISODES, "trajectory"))


# ------------------------------------------------------------------ the gradient, by enumeration

VOCAB = 3


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


class World(NamedTuple):
    """Every pair of one-token turns, an episode each. The second place has a distribution for each first token."""

    logits: list[Tensor]
    """The student's, ``[VOCAB]`` and ``[VOCAB, VOCAB]``; leaves."""
    teacher: list[Tensor]
    """Log-probabilities of the same shapes."""
    student_logp: Tensor
    """[episodes, 2] of the turns' tokens, with a graph."""
    teacher_logp: Tensor
    probability: Tensor
    """[episodes]"""


def world() -> World:
    generator = torch.Generator().manual_seed(5)
    shapes = [(VOCAB,), (VOCAB, VOCAB)]
    logits = [torch.randn(s, dtype=torch.double, generator=generator).requires_grad_() for s in shapes]
    teacher = [torch.randn(s, dtype=torch.double, generator=generator).log_softmax(-1) for s in shapes]
    first, second = torch.tensor(list(itertools.product(range(VOCAB), repeat=2))).T

    def chosen(places: list[Tensor]) -> Tensor:
        return torch.stack([places[0][first], places[1][first, second]], 1)

    student = chosen([z.log_softmax(-1) for z in logits])
    return World(logits, teacher, student, chosen(teacher), student.detach().sum(1).exp())


def policy_gradient(w: World, loss: str, transform: AdvantageTransform, layout: str) -> list[Tensor]:
    """The expected gradient of a policy loss, on-policy and without any reward: one tensor a place."""
    batch = batch_of([episode(turn(), turn()) for _ in w.probability], layout)
    view = view_of(batch, spread(batch, (w.teacher_logp - w.student_logp.detach())[..., None].tolist()))
    view.student_logp = spread(batch, w.student_logp.detach()[..., None].tolist())
    view.teacher_logp = spread(batch, w.teacher_logp[..., None].tolist())
    advantages = transform(torch.zeros_like(view.gap), view, Turns(batch), 0, Metrics())
    number = spread(batch, torch.arange(2 * VOCAB**2).view(-1, 2, 1).tolist()).long()
    logp = w.student_logp.flatten()[number] * batch.response_mask
    per_token = parts("policy_losses")[loss]()(logp, logp.detach(), advantages, batch.response_mask)
    expected = (w.probability[batch.episode][:, None] * per_token)[batch.response_mask].sum()
    return list(torch.autograd.grad(expected, w.logits, retain_graph=True))


def close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@by_layout
@pytest.mark.parametrize("loss", [n for n, cls in parts("policy_losses").items() if cls.__module__.startswith("sdar.")])
def test_on_average_the_gap_descends_the_reverse_kl_of_every_place(loss: str, layout: str) -> None:
    w = world()
    first, second = (z.log_softmax(-1) for z in w.logits)
    met = first.detach().exp()  # how often each second place is met; no gradient goes through that
    total = kl(first, w.teacher[0]) + (met * kl(second, w.teacher[1])).sum()
    close(policy_gradient(w, loss, GapAdvantage(0.7), layout), torch.autograd.grad(0.7 * total, w.logits, retain_graph=True))


@by_layout
@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("loss", ["ppo", "importance"])
def test_a_discount_goes_from_the_kl_of_every_place_to_that_of_whole_episodes(loss: str, discount: float, layout: str) -> None:
    w = world()
    first, second = (z.log_softmax(-1) for z in w.logits)
    met, later = first.exp(), kl(second, w.teacher[1])
    apart = kl(first, w.teacher[0]) + (met.detach() * later).sum()
    leads_to = (met * later.detach()).sum()  # that the first token leads to places where the teacher disagrees
    total = apart + discount * leads_to
    actual = policy_gradient(w, loss, GapAdvantage(0.7, discount=discount), layout)
    close(actual, torch.autograd.grad(0.7 * total, w.logits, retain_graph=True))
    if discount == 1:
        whole = kl(w.student_logp.sum(1), w.teacher_logp.sum(1))  # over all episodes
        close(actual, torch.autograd.grad(0.7 * whole, w.logits))


@by_layout
def test_what_follows_counts_as_it_is_clipped_and_weighted(layout: str) -> None:
    # distances 0.75 and 2 as above: weights 1 and 7 / 12, gaps 0.5, -0.6, 0.6 after the clip, in one episode; the others alone.
    batch = batch_of(EPISODES, layout)
    after, metrics = apply(GapAdvantage(2.0, StepwiseWeight(epsilon=1.0), clip=0.6, discount=0.5), batch)
    last = 0.6 * 7 / 12
    returns = [0.5 + 0.5 * (-0.6 + 0.5 * last), -0.6 + 0.5 * last, last]
    assert gathered(batch, after)[0] == near([[[1 + 2 * returns[0], 1 + 2 * returns[1]], [1 + 2 * returns[2]]]])[0]
    assert gathered(batch, after)[2] == near([[[-2 + 2 * (-0.6 + 0.5 * 0.05), -2 + 2 * 0.05]]])[0]
    assert metrics["distill/coef"] == 2.0


@by_layout
def test_inside_a_span_only_its_gaps_count_now_and_later(layout: str) -> None:
    """The strategy puts the old advantages back outside of the span (tests/strategies); here no gap outside of it is credited to what
    stands before it."""
    batch = batch_of(EPISODES[:1], layout)
    view = view_of(batch, spread(batch, GAPS), spread(batch, BEFORE))
    view = view.including(in_span=spread(batch, [[[1, 0], [1]]]).bool())
    transform = GapAdvantage(1.0, discount=0.5, span="code")
    after = transform(view.advantages, view, Turns(batch), 0, Metrics())
    assert gathered(batch, after)[0][0][0] == pytest.approx(1 + 0.5 + 0.25 * 2)
    assert transform.tags() == {"code"} and GapAdvantage().tags() == set()
    assert GapAdvantage(turn_weight=StepwiseWeight(span="think"), span="code").tags() == {"code", "think"}


@by_layout
def test_a_turns_weight_counts_as_a_constant_of_its_trajectory(layout: str) -> None:
    w = world()
    expected, bounded = torch.zeros((), dtype=torch.double), set()
    for e, gaps in enumerate((w.teacher_logp - w.student_logp.detach()).tolist()):
        ratio = (abs(gaps[0]) + 0.1) / (abs(gaps[1]) + 0.1)
        bounded.add(ratio > 1.2)
        for t, weight in enumerate((1.0, min(ratio, 1.2))):
            expected = expected - w.probability[e] * 0.7 * weight * gaps[t] * w.student_logp[e, t]
    assert bounded == {True, False}
    actual = policy_gradient(w, "importance", GapAdvantage(0.7, StepwiseWeight(epsilon=0.1, delta=0.2)), layout)
    close(actual, torch.autograd.grad(expected, w.logits))


@by_layout
def test_weights_that_know_no_token_weigh_the_kl_of_their_place(layout: str) -> None:
    class ByTurn(TurnWeight):
        def __call__(self, tokens: TokenView, turns: Turns, metrics: Metrics) -> Tensor:
            return torch.where(turns.turn == 1, 0.5, 2.0).double()

    w = world()
    first, second = policy_gradient(w, "ppo", GapAdvantage(1.0), layout)
    close(policy_gradient(w, "ppo", GapAdvantage(1.0, ByTurn()), layout), [2 * first, 0.5 * second])
