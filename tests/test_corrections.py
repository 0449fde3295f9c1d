"""Importance corrections as parts: numbers by hand, what they estimate over an enumerated vocabulary, and how a step uses them."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from played import batch_of, episode, turn
from torch import Tensor

from sdar import functional
from sdar.corrections import MaskedCorrection, NoCorrection, TruncatedCorrection
from sdar.errors import ConfigError
from sdar.metrics import Metrics
from sdar.module import AgentModule
from sdar.parts import Correction
from sdar.policy_losses import PPO
from sdar.registry import load_parts, parts
from sdar.scoring import densities

load_parts()
CORRECTIONS = {name: cls for name, cls in parts("corrections").items() if cls.__module__.startswith("sdar.")}
by_correction = pytest.mark.parametrize("name", CORRECTIONS)


def pair(seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the trainer and of the engine."""
    generator = torch.Generator().manual_seed(seed)
    sampled, change = torch.randn(2, 4, 7, dtype=torch.double, generator=generator)
    return -sampled.abs() + spread * change, -sampled.abs()


# ------------------------------------------------------------------ what every correction does


@by_correction
def test_where_both_densities_are_the_same_every_token_counts_once(name: str) -> None:
    logp, _ = pair()
    correction = CORRECTIONS[name]()
    assert torch.equal(correction(logp, logp.clone()), torch.ones_like(logp))
    assert not correction.cut(logp, logp.clone()).any()


@by_correction
def test_weights_are_constants_that_are_not_negative(name: str) -> None:
    logp, sampled = (t.requires_grad_() for t in pair())
    correction = CORRECTIONS[name]()
    weights, cut = correction(logp, sampled), correction.cut(logp, sampled)
    assert weights.shape == cut.shape == logp.shape and cut.dtype == torch.bool
    assert not weights.requires_grad and not cut.requires_grad and (weights >= 0).all()


@by_correction
def test_densities_that_have_nothing_in_common_leave_weights_finite(name: str) -> None:
    far = torch.tensor([[-300.0, 0.0]])
    assert CORRECTIONS[name]()(far, far.flip(1)).isfinite().all()


@by_correction
def test_half_precision_is_computed_wide(name: str) -> None:
    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert (CORRECTIONS[name]()(half, half) == 1).all()


@pytest.mark.parametrize(
    "correction", [TruncatedCorrection(), TruncatedCorrection(1.2), TruncatedCorrection(None), MaskedCorrection()]
)
def test_what_is_not_cut_is_the_ratio(correction: Correction) -> None:
    logp, sampled = pair()
    weights, cut = correction(logp, sampled), correction.cut(logp, sampled)
    ratio = (logp - sampled).exp()
    torch.testing.assert_close(weights[~cut], ratio[~cut])
    assert ((weights - ratio).abs()[cut] > 0).all()
    assert cut.any() == (correction.cap is not None if isinstance(correction, TruncatedCorrection) else True)


# ------------------------------------------------------------------ each of them


@pytest.mark.parametrize(
    ("correction", "ratio", "weight", "cut"),
    [
        (NoCorrection(), 4.0, 1.0, False),
        (TruncatedCorrection(), 0.25, 0.25, False),
        (TruncatedCorrection(), 1.5, 1.5, False),
        (TruncatedCorrection(), 4.0, 2.0, True),
        (TruncatedCorrection(3.0), 4.0, 3.0, True),
        (TruncatedCorrection(None), 4.0, 4.0, False),
        (MaskedCorrection(), 0.4, 0.0, True),
        (MaskedCorrection(), 0.6, 0.6, False),
        (MaskedCorrection(), 4.9, 4.9, False),
        (MaskedCorrection(), 5.1, 0.0, True),
        (MaskedCorrection(0.0, 2.0), 0.01, 0.01, False),
        (MaskedCorrection(0.0, 2.0), 2.1, 0.0, True),
    ],
)
def test_golden(correction: Correction, ratio: float, weight: float, cut: bool) -> None:
    sampled = torch.tensor([[-2.0]], dtype=torch.double)
    logp = sampled + torch.tensor(ratio, dtype=torch.double).log()
    assert correction(logp, sampled).item() == pytest.approx(weight)
    assert correction.cut(logp, sampled).item() is cut


@pytest.mark.parametrize(
    ("part", "function"),
    [
        (TruncatedCorrection(), lambda p, m: functional.truncated_ratio(p, m, 2.0)),
        (TruncatedCorrection(None), functional.truncated_ratio),
        (MaskedCorrection(0.7, 1.5), lambda p, m: functional.masked_ratio(p, m, 0.7, 1.5)),
    ],
)
def test_a_part_is_its_function(part: Correction, function: Callable[..., Tensor]) -> None:
    assert torch.equal(part(*pair()), function(*pair()))


# ------------------------------------------------------------------ what they estimate


LOGITS = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.8, 0.0], dtype=torch.double)
ENGINE = torch.tensor([-0.2, 0.6, 1.3, -1.0, -0.4, 0.1], dtype=torch.double)
ADVANTAGES = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.2], dtype=torch.double)


def truncated(logits: Tensor, ids: list[int] | None) -> tuple[Tensor, Tensor]:
    """Log-density within `ids` (all, by default), and the log of the mass that they have."""
    kept = torch.zeros_like(logits, dtype=torch.bool)
    kept[list(range(len(logits))) if ids is None else ids] = True
    logp = logits.log_softmax(-1)
    mass = logp[kept].logsumexp(-1)
    return (logp - mass).where(kept, -torch.inf), mass


def expected_gradient(correction: Correction, kept: list[int] | None = None, forbidden: Tensor | None = None) -> Tensor:
    """Gradient to the trainer's logits of the corrected policy loss, its mean taken over all ids that the engine may draw.

    Args:
        kept: What the engine's truncation leaves.
        forbidden: Bool ``[vocab]``: what neither of the two may draw.
    """
    logits = LOGITS.clone().requires_grad_()
    allowed = None if forbidden is None else (~forbidden).nonzero()[:, 0].tolist()
    logp, allowed_mass = truncated(logits, allowed)
    behaviour, kept_mass = truncated(ENGINE, kept if kept is not None else allowed)
    drawn = behaviour.isfinite()
    ones = torch.ones(1, int(drawn.sum()))
    rows = SimpleNamespace(
        response_mask=ones.bool(),
        behaviour_logp=behaviour[drawn][None],
        kept_logmass=kept_mass.expand(1, len(ones[0])),
        extra=torch.zeros(1, dtype=torch.bool),
        old_logp=logp.detach()[drawn][None],
    )
    _, ours, theirs = densities(rows, allowed_mass.detach())  # as a training step compares them
    weights = correction(ours, theirs)
    loss = PPO()(logp[drawn][None], rows.old_logp, ADVANTAGES[drawn][None], ones)
    (behaviour[drawn].exp() * (weights * loss)[0]).sum().backward()
    return logits.grad


def weighted(weights: Tensor) -> Tensor:
    """-sum_v weights_v A_v grad log pi(v)."""
    logits = LOGITS.clone().requires_grad_()
    (-(weights * ADVANTAGES * logits.log_softmax(-1))).sum().backward()
    return logits.grad


PI, MU = LOGITS.softmax(-1), ENGINE.softmax(-1)
ESTIMANDS = {
    "no_correction": lambda: weighted(MU),
    "truncated": lambda: weighted(torch.minimum(PI, 2.0 * MU)),  # mu min(pi / mu, 2)
    "masked": lambda: weighted(PI.where((PI / MU >= 0.5) & (PI / MU <= 5.0), 0.0)),
}


@by_correction
def test_the_gradient_follows_what_the_correction_declares(name: str) -> None:
    correction = CORRECTIONS[name]()
    assert correction.gradient_estimand
    torch.testing.assert_close(expected_gradient(correction), ESTIMANDS[name]())


def test_without_a_cap_the_gradient_is_unbiased_whoever_sampled() -> None:
    true = weighted(PI)
    torch.testing.assert_close(expected_gradient(TruncatedCorrection(None)), true)
    assert (expected_gradient(NoCorrection()) - true).norm() > 0.1 * true.norm()  # the test would see a bias


@pytest.mark.parametrize("kept", [[0, 1, 2], [2, 4], [0, 1, 2, 4, 5]])
def test_what_was_cut_is_not_weighted_back(kept: list[int]) -> None:
    """Within the ids that the engine kept it is exact, times pi(S) / mu(S)."""
    inside, mass = truncated(LOGITS, kept)
    scale = mass.exp() / truncated(ENGINE, kept)[1].exp()
    torch.testing.assert_close(expected_gradient(TruncatedCorrection(None), kept), weighted(scale * inside.exp()))


def test_with_forbidden_ids_it_is_exact_within_the_others() -> None:
    """The trainer's density is the one within what is allowed; the factor is that of the two masses of it."""
    forbidden = torch.tensor([False, False, False, True, False, True])
    allowed = (~forbidden).nonzero()[:, 0].tolist()
    inside, mass = truncated(LOGITS, allowed)
    scale = (mass - truncated(ENGINE, allowed)[1]).exp()
    logits = LOGITS.clone().requires_grad_()
    logp = truncated(logits, allowed)[0][~forbidden]
    (-(scale * inside.exp()[~forbidden] * ADVANTAGES[~forbidden] * logp)).sum().backward()
    torch.testing.assert_close(expected_gradient(TruncatedCorrection(None), forbidden=forbidden), logits.grad)


# ------------------------------------------------------------------ in a step


def corrected(correction: Correction, off: float = 0.0):
    """A played attempt, a replayed turn and an extra episode: all sampled at -1 (but the replay), scored at -1 + off."""
    episodes = [episode(turn(2, trainable=False), turn(3)), episode(turn(2), attempt=1)]
    for e in episodes:
        for t in e.turns:
            t.behaviour_logp = [-1.0] * len(t.response_ids) if t.trainable else t.behaviour_logp
    episodes[1].extra = True
    batch = batch_of(episodes, "trajectory")
    batch.old_logp = (torch.full(batch.ids.shape, -1.0) + off) * batch.response_mask
    strategy = SimpleNamespace(correction=correction, metrics=Metrics())
    AgentModule.correct(strategy, batch, torch.zeros(batch.ids.shape))
    return batch, strategy.metrics.compute()


def test_only_what_the_sampler_of_the_policy_drew_is_weighted() -> None:
    batch, metrics = corrected(TruncatedCorrection(), off=1.0)  # exp(1) is above 2
    own = batch.response_mask & ~batch.extra[:, None]
    assert int(own.sum()) == 3
    assert (batch.importance[own] == 2).all() and (batch.importance[~own] == 1).all()
    assert metrics == {"rollout/importance": 2.0, "rollout/importance_cut_share": 1.0}
    batch, metrics = corrected(MaskedCorrection(), off=-1.0)  # exp(-1) is below 1/2
    assert (batch.importance[own] == 0).all() and (batch.importance[~own] == 1).all()
    assert metrics == {"rollout/importance": 0.0, "rollout/importance_cut_share": 1.0}


def test_without_a_correction_everything_counts_once() -> None:
    batch, metrics = corrected(NoCorrection(), off=-1.0)
    assert torch.equal(batch.importance, torch.ones(batch.ids.shape))
    assert metrics == {"rollout/importance": 1.0, "rollout/importance_cut_share": 0.0}


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("cap", [1.0, 0.0, -2.0, float("nan")])
def test_a_cap_that_no_ratio_exceeds_or_reaches_explains_itself(cap: float) -> None:
    with pytest.raises(ConfigError, match=rf"correction\.cap is {cap}: .*is 1 where sampler and trainer agree.*Use e\.g\. 2"):
        TruncatedCorrection(cap)


@pytest.mark.parametrize(("low", "high"), [(1.0, 5.0), (0.5, 1.0), (-0.1, 5.0), (2.0, 5.0)])
def test_bounds_that_mask_tokens_without_a_mismatch_explain_themselves(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=rf"correction\.low is {low}, high {high}: .*Use 0 <= low < 1 < high"):
        MaskedCorrection(low, high)
    with pytest.raises(ConfigError, match=rf"low is {low} and high is {high}: .*Use 0 <= low < 1 < high"):
        functional.masked_ratio(torch.zeros(1), torch.zeros(1), low, high)
