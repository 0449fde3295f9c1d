"""A run in mixed precision does what `--trainer.precision` says."""

import pytest
import torch

from sdar.errors import ConfigError
from sdar.retrievers import FactRetriever
from sdar.strategies import SDAR
from sdar.training.lightning_checks import check_weights_move


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_strategy_trains_in_another_precision(small, precision):
    strategy = small.strategy(SDAR, retriever=FactRetriever())
    trainer = small.fit(strategy, steps=2, precision=precision)
    assert trainer.global_step == 2
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())


def optimizer(dtype, rate, std=0.02, kind=torch.optim.AdamW, **kwargs):
    torch.manual_seed(0)
    return kind([torch.nn.Parameter((std * torch.randn(200, 100)).to(dtype))], lr=rate, **kwargs)


@pytest.mark.parametrize(("dtype", "rate"), [(torch.bfloat16, 1e-5), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)])
def test_weights_of_few_bits_that_small_steps_cannot_move_are_told(dtype, rate):
    """The share that is told is that of the weights which a step leaves as they are, to a few hundredths."""
    adam = optimizer(dtype, rate, weight_decay=0.0)
    [weight] = adam.param_groups[0]["params"]
    before = weight.detach().clone()
    with pytest.warns(
        UserWarning, match=r"a step of AdamW at the learning rate 1e-0\d is less than .* bf16-mixed .*LoRAPolicy"
    ) as told:
        check_weights_move(adam)
    said = float(str(told[0].message).split("last bit of ")[1].split(" %")[0]) / 100
    weight.grad = torch.ones_like(weight)
    adam.step()
    stayed = float((weight == before).float().mean())
    assert stayed > 0.5 and said == pytest.approx(stayed, abs=0.05)


def test_weights_that_can_hardly_move_are_refused():
    with pytest.raises(
        ConfigError, match=r"the trained weights are bfloat16, .* last bit of 99\.\d % of them: these would never move"
    ):
        check_weights_move(optimizer(torch.bfloat16, 1e-7))


@pytest.mark.parametrize(
    "fine",
    [
        lambda: optimizer(torch.float32, 1e-7),
        lambda: optimizer(torch.bfloat16, 1e-3),
        lambda: optimizer(torch.bfloat16, 1e-7, kind=torch.optim.SGD),  # its steps are as large as its gradients
        lambda: optimizer(torch.bfloat16, 0.0),
    ],
)
def test_what_moves_is_no_matter(fine, recwarn):
    check_weights_move(fine())
    assert not recwarn


def test_a_warm_up_counts_by_the_rate_that_it_leads_to(recwarn):
    adam = optimizer(torch.bfloat16, 1e-3)
    torch.optim.lr_scheduler.LinearLR(adam, 1e-6, total_iters=10)
    assert adam.param_groups[0]["lr"] < 1e-8
    check_weights_move(adam)
    assert not recwarn
