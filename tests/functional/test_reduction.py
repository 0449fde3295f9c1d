"""The one reduction: what it counts, and that splitting a step into micro-batches changes nothing."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar.functional import masked_mean


def test_masked_mean_golden() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1, 0, 1], [0, 0, 1]])
    assert masked_mean(values, mask).item() == pytest.approx(10 / 3)
    assert masked_mean(values, mask.bool(), normalizer=5).item() == 2.0
    assert masked_mean(values, mask.float(), normalizer=torch.tensor(20)).item() == 0.5


@pytest.mark.parametrize("normalizer", [None, 0, 12.0, torch.tensor(0.0)])
def test_no_token_gives_zero_with_a_graph(normalizer: torch.Tensor | float | None) -> None:
    values = torch.randn(2, 3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3), normalizer)
    assert mean.item() == 0.0
    mean.backward()
    assert values.grad is not None and values.grad.tolist() == [[0.0] * 3] * 2


def test_a_normalizer_is_as_exact_as_the_values() -> None:
    total = masked_mean(torch.ones(1, 1, dtype=torch.double), torch.ones(1, 1), normalizer=0.1)
    assert total.dtype == torch.double and total.item() == 1 / 0.1  # 0.1 in float32 is off by 1e-9


def test_a_normalizer_of_zero_with_tokens_is_not_hidden() -> None:
    assert not masked_mean(torch.ones(1, 2), torch.ones(1, 2), normalizer=0).isfinite()


def test_masked_values_may_be_anything() -> None:
    values = torch.tensor([[1.0, torch.nan, torch.inf]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[1, 0, 0]]))
    mean.backward()
    assert mean.item() == 1.0
    assert values.grad is not None and values.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_half_precision_is_summed_in_float32() -> None:
    # 4096 ones and a 1: bfloat16 cannot count beyond 256
    assert masked_mean(torch.ones(1, 4097, dtype=torch.bfloat16), torch.ones(1, 4097), normalizer=1).item() == 4097


@pytest.mark.usefixtures("without_shapes")
def test_a_broadcast_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1\), values have \(2, 3\): .*Expand the mask"):
        masked_mean(torch.zeros(2, 3), torch.ones(2, 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 8), max_size=4), st.integers(0, 2**16))
def test_any_split_into_micro_batches_gives_the_same_gradient(lengths: list[int], cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, dtype=torch.double, generator=generator, requires_grad=True)
    inputs = torch.randn(len(lengths), 5, 4, dtype=torch.double, generator=generator)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    tokens = mask.sum()

    def gradient(parts: list[slice]) -> torch.Tensor:
        total = sum(masked_mean((inputs[p] @ weight).square(), mask[p], normalizer=tokens) for p in parts)
        return torch.autograd.grad(total, weight)[0]

    borders = [0, *sorted(min(c, len(lengths)) for c in cuts), len(lengths)]
    parts = [slice(a, b) for a, b in pairwise(borders)]
    torch.testing.assert_close(gradient(parts), gradient([slice(None)]), atol=1e-10, rtol=1e-10)
