"""The clipped loss by hand."""

import pytest
import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import clip_indicator, masked_mean, ppo_clip


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


def test_settings_that_stop_learning_are_refused() -> None:
    zero = torch.zeros(1, 1)
    with pytest.raises(ConfigError, match=r"dual_clip is 1\.0: .*must be above 1.*Use 3\.0"):
        ppo_clip(zero, zero, zero, 0.2, 0.2, 1.0)
    with pytest.raises(ConfigError, match=r"clip_low is 1\.2 and clip_high is 0\.2: .*needs 0 <= clip_low < 1"):
        ppo_clip(zero, zero, zero, 1.2, 0.2)
    with pytest.raises(ConfigError, match=r"clip_high is -0\.1"):
        clip_indicator(zero, zero, zero, 0.2, -0.1)
