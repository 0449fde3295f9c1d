"""A run in mixed precision does what `--trainer.precision` says."""

import pytest
import torch

from sdar.retrievers import FactRetriever
from sdar.strategies import SDAR


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_strategy_trains_in_another_precision(small, precision):
    strategy = small.strategy(SDAR, retriever=FactRetriever())
    trainer = small.fit(strategy, steps=2, precision=precision)
    assert trainer.global_step == 2
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
