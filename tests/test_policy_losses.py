"""Surrogates of the policy gradient as parts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdar import functional
from sdar.errors import ConfigError
from sdar.parts import PolicyLoss
from sdar.policy_losses import GSPO, PPO, ImportanceSampling
from sdar.registry import load_parts, parts

load_parts()
LOSSES = {name: cls for name, cls in parts("policy_losses").items() if cls.__module__.startswith("sdar.")}
by_loss = pytest.mark.parametrize("name", LOSSES)
VARIANTS: list[PolicyLoss] = [
    PPO(),
    PPO(0.2, 0.28, None),
    PPO(0.1, 0.4, 1.5),
    GSPO(),
    GSPO(0.1, 0.2),
    ImportanceSampling(),
    ImportanceSampling(1.2),
]

MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)


def inputs(spread: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities now and then, zero outside of the response, and advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)
    old, change, advantages = torch.randn(3, *MASK.shape, dtype=torch.double, generator=generator)
    old, change = -old.abs() * MASK, spread * change * MASK
    return (old + change).requires_grad_(), old, advantages


def slope(loss: PolicyLoss, logp: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    return torch.autograd.grad(loss(logp, old, advantages, MASK)[MASK].sum(), logp)[0]


# ------------------------------------------------------------------ what every loss does


@by_loss
def test_on_policy_every_loss_is_the_policy_gradient(name: str) -> None:
    logp, old, advantages = inputs(0.0)
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(logp, old, advantages, MASK)[MASK], -advantages[MASK])
    torch.testing.assert_close(slope(loss, logp, old, advantages), -advantages * MASK)
    assert not loss.clipped(logp, old, advantages, MASK).any()


@by_loss
def test_one_advantage_per_row_counts_for_all_its_tokens(name: str) -> None:
    logp, old, _ = inputs(0.3)
    advantages = torch.tensor([1.0, -1.0, 0.5], dtype=torch.double)
    loss, spread = LOSSES[name](), advantages[:, None].expand(MASK.shape)
    for method in (loss, loss.clipped):
        short, long = (method(logp, old, a, MASK) for a in (advantages, spread))
        assert short.shape == MASK.shape and torch.equal(short, long)


@by_loss
def test_only_the_current_log_probability_gets_a_gradient(name: str) -> None:
    logp, old, advantages = (t.detach().requires_grad_() for t in inputs(0.01))
    loss = LOSSES[name]()
    loss(logp, old, advantages, MASK).sum().backward()
    assert logp.grad is not None and old.grad is None and advantages.grad is None
    assert not loss.clipped(logp, old, advantages, MASK).requires_grad


@by_loss
def test_what_is_outside_of_the_response_changes_no_token_in_it(name: str) -> None:
    logp, old, advantages = inputs(0.3)
    loss = LOSSES[name]()
    strange = [torch.where(MASK, t.detach(), 5.0) for t in (logp, old, advantages)]
    strange[1][~MASK] = -5.0
    for method in (loss, loss.clipped):
        assert torch.equal(method(*strange, MASK)[MASK], method(logp, old, advantages, MASK)[MASK])


@pytest.mark.parametrize("spread", [0.1, 1.0])
@pytest.mark.parametrize("loss", VARIANTS, ids=lambda loss: f"{type(loss).__name__} {vars(loss)}")
def test_the_indicator_marks_exactly_the_tokens_without_a_gradient(loss: PolicyLoss, spread: float) -> None:
    marked = []
    for seed in range(8):
        logp, old, advantages = inputs(spread, seed)
        clipped = loss.clipped(logp, old, advantages, MASK)
        silent = slope(loss, logp, old, advantages) == 0
        assert torch.equal(clipped[MASK] == 1, silent[MASK]) and ((clipped == 0) | (clipped == 1)).all()
        marked.append(clipped[MASK])
    assert isinstance(loss, ImportanceSampling) or torch.cat(marked).any()


@by_loss
def test_a_huge_ratio_leaves_loss_and_gradient_finite(name: str) -> None:
    _, old, _ = inputs(0.0)
    for far in (200.0, -200.0):
        for sign in (1.0, -1.0):
            logp = (old + far * MASK).requires_grad_()
            loss = LOSSES[name]()(logp, old, torch.full(MASK.shape, sign, dtype=torch.double), MASK)
            assert loss.isfinite().all()
            assert torch.autograd.grad(loss.sum(), logp)[0].isfinite().all()


# ------------------------------------------------------------------ each of them


@pytest.mark.parametrize(
    ("part", "function"),
    [
        (PPO(), lambda n, o, a, m: functional.ppo_clip(n, o, a, 0.2, 0.2, 3.0)),
        (PPO(0.2, 0.28, None), lambda n, o, a, m: functional.ppo_clip(n, o, a, 0.2, 0.28)),
        (GSPO(), lambda n, o, a, m: functional.gspo_clip(n, o, a, m, 3e-4, 4e-4)),
        (GSPO(0.1, 0.3), lambda n, o, a, m: functional.gspo_clip(n, o, a, m, 0.1, 0.3)),
        (ImportanceSampling(), lambda n, o, a, m: functional.importance_policy_gradient(n, o, a)),
        (ImportanceSampling(1.1), lambda n, o, a, m: functional.importance_policy_gradient(n, o, a, 1.1)),
    ],
)
def test_a_part_is_its_function(part: PolicyLoss, function: Callable[..., Tensor]) -> None:
    logp, old, advantages = inputs(0.5)
    assert torch.equal(part(logp, old, advantages, MASK), function(logp, old, advantages, MASK))


def one(ratio: float, advantage: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    old = torch.tensor([[-2.0]], dtype=torch.double)
    logp = (old + torch.tensor(ratio, dtype=torch.double).log()).requires_grad_()
    return logp, old, torch.tensor([[advantage]], dtype=torch.double), torch.tensor([[True]])


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage", "value", "gradient"),
    [
        (PPO(0.2, 0.28), 1.25, 2.0, -2.5, -2.5),
        (PPO(0.2, 0.28), 1.5, 2.0, -2.56, 0.0),  # 2 * 1.28
        (PPO(0.2, 0.28), 0.5, -2.0, 1.6, 0.0),  # 2 * 0.8
        (PPO(0.2, 0.28), 2.5, -2.0, 5.0, 5.0),
        (PPO(0.2, 0.28), 4.0, -2.0, 6.0, 0.0),  # the dual clip, 2 * 3
        (PPO(0.2, 0.28, None), 4.0, -2.0, 8.0, 8.0),
        (GSPO(), 1.0002, 1.0, -1.0002, -1.0002),
        (GSPO(), 1.01, 1.0, -1.0004, 0.0),
        (GSPO(), 0.99, -1.0, 0.9997, 0.0),
        (GSPO(), 0.99, 1.0, -0.99, -0.99),
        (ImportanceSampling(), 4.0, 2.0, -8.0, -8.0),
        (ImportanceSampling(1.5), 4.0, 2.0, -3.0, -3.0),  # capped, and still a gradient
        (ImportanceSampling(1.5), 0.5, -2.0, 1.0, 1.0),
    ],
)
def test_golden(loss: PolicyLoss, ratio: float, advantage: float, value: float, gradient: float) -> None:
    logp, *rest = one(ratio, advantage)
    out = loss(logp, *rest)
    assert out.item() == pytest.approx(value)
    assert torch.autograd.grad(out.sum(), logp)[0].item() == pytest.approx(gradient)
    assert loss.clipped(logp, *rest).item() == float(gradient == 0)


def test_gspo_clips_rows_and_not_tokens() -> None:
    # log ratios 0.3 and -0.1 have the mean 0.1: exp(0.1) = 1.105 is within 1.2 though one token is not; 0.5 and 0.1 are beyond.
    logp = torch.tensor([[0.0, 0.3, -0.1], [9.0, 0.5, 0.1]], dtype=torch.double, requires_grad=True)
    mask = torch.tensor([[0, 1, 1], [0, 1, 1]])
    loss, old, advantages = GSPO(0.2, 0.2), torch.zeros(2, 3, dtype=torch.double), torch.ones(2, dtype=torch.double)
    assert loss.clipped(logp, old, advantages, mask).tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    (gradient,) = torch.autograd.grad(loss(logp, old, advantages, mask).sum(), logp)
    assert gradient.tolist() == [pytest.approx([0.0, -1.1051709, -1.1051709]), [0.0, 0.0, 0.0]]


def test_rows_without_a_response_do_no_harm() -> None:
    zero, none = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    for cls in LOSSES.values():
        for method in (cls(), cls().clipped):
            assert method(zero, zero, torch.ones(2), none).isfinite().all()


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("cls", [PPO, GSPO])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.2), (1.0, 0.2), (-0.1, 0.2), (0.2, 0.0)])
def test_bounds_without_a_ratio_of_one_inside_explain_themselves(cls: type[PolicyLoss], low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=rf"policy_loss\.clip_low is {low}, clip_high {high}: .*Use e\.g\. 0\.2"):
        cls(low, high)  # type: ignore[call-arg]


@pytest.mark.parametrize("bound", [1.0, 0.5, -3.0])
def test_a_dual_clip_that_would_silence_every_token_explains_itself(bound: float) -> None:
    with pytest.raises(ConfigError, match=rf"policy_loss\.dual_clip is {bound}: .*must exceed 1 \(published: 3\), or be null"):
        PPO(dual_clip=bound)


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_a_cap_that_would_silence_every_token_explains_itself(cap: float) -> None:
    with pytest.raises(ConfigError, match=rf"policy_loss\.cap is {cap}: .*Use e\.g\. 2, or null"):
        ImportanceSampling(cap)
