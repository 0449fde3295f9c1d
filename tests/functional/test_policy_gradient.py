"""Policy-gradient losses by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import (
    clip_indicator,
    gspo_clip,
    importance_policy_gradient,
    masked_mean,
    masked_ratio,
    ppo_clip,
    truncated_ratio,
)


def at(ratio: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities now and then, with the given ratio."""
    old = torch.tensor([[-1.3]], dtype=torch.double)
    return (old + torch.tensor(ratio, dtype=torch.double).log()).requires_grad_(), old


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "dual", "loss", "slope"),
    [
        # r, A, clip_high, c      loss                                     d loss / d logp = -A r, or 0 where clipped
        (1.0, 2.0, 0.2, None, -2.0, -2.0),
        (1.5, 2.0, 0.2, None, -2.4, 0.0),  # max(-3.0, -2 * 1.2)
        (1.5, 2.0, 0.28, None, -2.56, 0.0),  # max(-3.0, -2 * 1.28)
        (0.5, 2.0, 0.2, None, -1.0, -1.0),  # max(-1.0, -2 * 0.8)
        (1.5, -2.0, 0.2, None, 3.0, 3.0),  # max(3.0, 2 * 1.2)
        (0.5, -2.0, 0.2, None, 1.6, 0.0),  # max(1.0, 2 * 0.8)
        (4.0, -2.0, 0.2, None, 8.0, 8.0),
        (4.0, -2.0, 0.2, 3.0, 6.0, 0.0),  # min(8.0, 2 * 3)
        (2.0, -2.0, 0.2, 3.0, 4.0, 4.0),  # min(4.0, 2 * 3)
        (4.0, 2.0, 0.2, 3.0, -2.4, 0.0),  # the dual clip leaves positive advantages alone
    ],
)
def test_clipped_loss_golden(
    ratio: float, advantage: float, high: float, dual: float | None, loss: float, slope: float
) -> None:
    logp, old = at(ratio)
    value = ppo_clip(logp, old, torch.tensor([[advantage]], dtype=torch.double), 0.2, high, dual)
    assert value.item() == pytest.approx(loss)
    assert torch.autograd.grad(value.sum(), logp)[0].item() == pytest.approx(slope)


def test_an_advantage_per_sequence_is_the_same_for_all_its_tokens() -> None:
    logp, old = torch.randn(3, 4), torch.randn(3, 4)
    advantages = torch.tensor([1.0, -1.0, 0.5])
    expected = ppo_clip(logp, old, advantages[:, None].expand(3, 4), 0.2, 0.2, 3.0)
    assert torch.equal(ppo_clip(logp, old, advantages, 0.2, 0.2, 3.0), expected)


def test_only_the_current_log_probability_gets_a_gradient() -> None:
    logp, old, advantages = (torch.zeros(2, 2, requires_grad=True) for _ in range(3))
    ppo_clip(logp, old, advantages + 1, 0.2, 0.2).sum().backward()
    assert old.grad is None and advantages.grad is None and logp.grad is not None


def test_a_runaway_ratio_stays_finite() -> None:
    loss = ppo_clip(torch.zeros(1, 2), torch.full((1, 2), -500.0), torch.tensor([[0.0, -1.0]]), 0.2, 0.2)
    assert loss.isfinite().all() and loss[0, 0] == 0


def test_clip_fraction_counts_clipped_tokens() -> None:
    logp = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0]]).log()
    clipped = clip_indicator(logp, torch.zeros(1, 5), torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]]), 0.2, 0.2)
    assert clipped.tolist() == [[1.0, 0.0, 0.0, 1.0, 0.0]]
    assert masked_mean(clipped, torch.tensor([[1, 1, 1, 1, 0]])).item() == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_clip_indicator_is_a_number_like_the_loss(dtype: torch.dtype) -> None:
    logp = torch.tensor([0.0, 1.0], dtype=dtype)
    found = clip_indicator(logp, torch.zeros(2, dtype=dtype), torch.ones(2), 0.2, 0.2)
    assert found.dtype == dtype and found.tolist() == [0.0, 1.0]


def test_a_masked_ratio_keeps_what_lies_at_its_bounds() -> None:
    logp = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.double)
    ratio = truncated_ratio(logp, torch.zeros_like(logp))
    low, high = float(ratio[1]), float(ratio[2])
    assert masked_ratio(logp, torch.zeros_like(logp), low, high).tolist() == [0.0, low, high, 0.0]


def test_settings_that_stop_learning_are_refused() -> None:
    zero = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"dual_clip is 1\.0: .*must be above 1.*Use 3\.0"):
        ppo_clip(zero, zero, zero, 0.2, 0.2, 1.0)
    with pytest.raises(ConfigError, match=r"clip_low is 1\.2 and clip_high is 0\.2: .*needs 0 <= clip_low < 1"):
        ppo_clip(zero, zero, zero, 1.2, 0.2)
    with pytest.raises(ConfigError, match=r"clip_high is -0\.1"):
        clip_indicator(zero, zero, zero, 0.2, -0.1)
    with pytest.raises(ConfigError, match=r"clip_low is 1\.2"):
        gspo_clip(zero, zero, zero, zero + 1, 1.2, 0.2)
    with pytest.raises(ConfigError, match=r"cap is 0\.0: .*no token would have a gradient.*Use a number above 1"):
        importance_policy_gradient(zero, zero, zero, 0.0)


@pytest.mark.parametrize(
    ("ratios", "advantage", "loss", "slope"),
    [
        # r of two tokens, s = sqrt(r r'):      clip 0.2                        d loss / d logp = -A s, or 0
        ((4.0, 1.0), -1.0, 2.0, 2.0),  # s = 2: max(2, 1.2)
        ((4.0, 1.0), 1.0, -1.2, 0.0),  # s = 2: max(-2, -1.2)
        ((4.0, 0.25), 3.0, -3.0, -3.0),  # s = 1, where each token alone would be clipped or out of bounds
        ((0.5, 0.5), -1.0, 0.8, 0.0),  # s = 1/2: max(0.5, 0.8)
    ],
)
def test_sequence_clip_golden(ratios: tuple[float, float], advantage: float, loss: float, slope: float) -> None:
    # the third token is context; it would make s infinite
    logp = torch.tensor([[*ratios, torch.inf]], dtype=torch.double).log().requires_grad_()
    mask = torch.tensor([[1, 1, 0]])
    value = gspo_clip(logp, torch.zeros(1, 3), torch.tensor([advantage]), mask, 0.2, 0.2)
    torch.testing.assert_close(value, torch.tensor([[loss, loss, 0.0]], dtype=torch.double))
    (gradient,) = torch.autograd.grad(value.sum(), logp)
    torch.testing.assert_close(gradient, torch.tensor([[slope, slope, 0.0]], dtype=torch.double))


def test_sequence_clip_lets_advantages_differ_within_a_row() -> None:
    # s = 2 for both: the token with A = 1 is clipped to -1.2, the one with A = -1 costs 2 and has a gradient; NaN is padding.
    logp = torch.tensor([[4.0, 1.0, 1.0]]).log().requires_grad_()
    value = gspo_clip(logp, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, torch.nan]]), torch.tensor([[1, 1, 0]]), 0.2, 0.2)
    torch.testing.assert_close(value, torch.tensor([[-1.2, 2.0, 0.0]]))
    torch.testing.assert_close(torch.autograd.grad(value.sum(), logp)[0], torch.tensor([[0.0, 2.0, 0.0]]))


def test_the_mean_over_a_row_is_differentiable_as_the_paper_has_it() -> None:
    logp = (torch.randn(4, 5, dtype=torch.double) / 10).requires_grad_()
    old, advantages = torch.randn(4, 5, dtype=torch.double) / 10, torch.tensor([1.0, -1.0, 2.0, -0.5]).double()
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]])

    def sequence_losses(logp: Tensor) -> Tensor:
        return gspo_clip(logp, old, advantages, mask, 0.5, 0.5).sum(1) / mask.sum(1).clamp_min(1)

    assert torch.autograd.gradcheck(sequence_losses, (logp,))
    assert sequence_losses(logp)[3] == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-4, 0), st.floats(-4, 0), st.floats(-3, 3)), min_size=1, max_size=8))
def test_a_row_of_one_token_has_the_loss_of_ppo(table: list[tuple[float, float, float]]) -> None:
    logp, old, advantages = (torch.tensor(c, dtype=torch.double)[:, None] for c in zip(*table, strict=True))
    logp.requires_grad_()
    losses = ppo_clip(logp, old, advantages, 0.2, 0.28), gspo_clip(logp, old, advantages, torch.ones_like(old), 0.2, 0.28)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), logp)[0] for loss in losses))


@pytest.mark.parametrize(
    ("ratio", "cap", "value"),
    [(4.0, None, -8.0), (4.0, 2.0, -4.0), (0.5, 2.0, -1.0), (0.5, None, -1.0)],  # -min(r, cap) * 2
)
def test_importance_sampling_golden(ratio: float, cap: float | None, value: float) -> None:
    logp, old = at(ratio)
    loss = importance_policy_gradient(logp, old, torch.tensor([2.0], dtype=torch.double), cap)
    assert loss.item() == pytest.approx(value)
    assert torch.autograd.grad(loss.sum(), logp)[0].item() == pytest.approx(value)  # -w A again, capped or not


def test_importance_sampling_without_a_cap_is_differentiable() -> None:
    logp, old = torch.randn(2, 3, dtype=torch.double, requires_grad=True), torch.randn(2, 3, dtype=torch.double)
    advantages = torch.randn(2, 3, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda logp: importance_policy_gradient(logp, old, advantages), (logp,))


def test_a_truncated_ratio_is_a_bounded_constant() -> None:
    logp = torch.tensor([[0.0, 0.0, -1.0]], requires_grad=True)
    ratio = truncated_ratio(logp, torch.tensor([[0.0, -500.0, 0.0]]), 2.0)
    torch.testing.assert_close(ratio, torch.tensor([[1.0, 2.0, 0.3678794]]))
    assert not ratio.requires_grad
    assert truncated_ratio(logp, torch.full((1, 3), -500.0)).isfinite().all()


def test_policy_gradients_of_half_precision_are_wide() -> None:
    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert gspo_clip(half, half, half, half + 1, 0.2, 0.2).dtype == torch.float32
    assert importance_policy_gradient(half, half, half).dtype == torch.float32


def test_bounds_that_are_as_narrow_as_they_may_be() -> None:
    logp, zero = torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)
    assert ppo_clip(logp, zero, torch.ones(1, 2), 0.0, 0.0).tolist() == [[-1.0, -1.0]]
    assert truncated_ratio(logp, zero, cap=0.5).tolist() == [[0.5, 0.5]]


def test_a_ratio_is_bounded_from_below_too() -> None:
    logp, zero = torch.tensor([[-100.0]]), torch.zeros(1, 1)
    torch.testing.assert_close(truncated_ratio(logp, zero).log(), torch.tensor([[-20.0]]))
    torch.testing.assert_close((-ppo_clip(logp, zero, torch.ones(1, 1), 0.2, 0.2)).log(), torch.tensor([[-20.0]]))
