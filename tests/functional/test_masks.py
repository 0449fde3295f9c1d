"""Token masks by hand, as properties and in distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import (
    concentration,
    effective_share,
    first_occurrences,
    soft_or_importance,
    token_importance,
    weighted_subset,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_first_occurrences_golden() -> None:
    # the 5 in the context does not count; 8 is not asked for; row 1 has no response token.
    ids = torch.tensor([[5, 5, 8, 6, 5, 6], [5, 6, 8, 5, 6, 8]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    first = first_occurrences(ids, mask, [5, 6, 99])
    assert first.tolist() == [[False, True, False, True, False, False], [False] * 6]
    assert not first_occurrences(ids, mask, []).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=10), st.sets(st.integers(0, 4)))
def test_first_occurrences_are_one_for_each_id_that_is_there(table: list[tuple[int, bool]], wanted: set[int]) -> None:
    ids, mask = torch.tensor([[i for i, _ in table]]), torch.tensor([[m for _, m in table]])
    first = first_occurrences(ids, mask, wanted)[0]
    response = [i for i, m in table if m]
    assert sorted(ids[0][first].tolist()) == sorted(wanted & set(response))
    assert not (first & ~mask[0]).any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1e-30, 0.5, 3.0]), st.booleans()), min_size=1, max_size=12),
    st.floats(0.01, 1.0),
    st.integers(0, 9),
)
def test_a_subset_has_its_size_and_takes_weightless_tokens_last(
    table: list[tuple[float, bool]], share: float, seed: int
) -> None:
    weights, mask = torch.tensor([[w for w, _ in table]]), torch.tensor([[m for _, m in table]])
    subset = weighted_subset(weights, mask, share, seeded(seed))
    tokens = int(mask.sum())
    assert int(subset.sum()) == max(math.floor(share * tokens + 1e-9), min(tokens, 1))
    assert not (subset & ~mask).any()
    if (subset & (weights == 0)).any():
        assert subset[mask & (weights > 0)].all()
    padded = torch.cat([weights, torch.full((1, 3), torch.nan)], 1), torch.cat([mask, torch.zeros(1, 3).bool()], 1)
    assert torch.equal(weighted_subset(*padded, share, seeded(seed))[:, : len(table)], subset)


def chosen(weights: Tensor, share: float, draws: int = 3000) -> Tensor:
    """How often each token is in the subset."""
    generator, mask = seeded(), torch.ones_like(weights)
    return sum(weighted_subset(weights, mask, share, generator).double() for _ in range(draws)) / draws


def test_subsets_are_drawn_like_those_of_multinomial() -> None:
    # weights 1 2 7.  one of them: 0.1 0.2 0.7.   two of them, left out is 1: 0.2 * 0.7/0.8 + 0.7 * 0.2/0.3 = 0.6416667;
    # 2: 0.1 * 0.7/0.9 + 0.7 * 0.1/0.3 = 0.3111111; 7: 0.1 * 0.2/0.9 + 0.2 * 0.1/0.8 = 0.0472222.
    weights = torch.tensor([[1.0, 2.0, 7.0]])
    torch.testing.assert_close(chosen(weights, 1 / 3), torch.tensor([[0.1, 0.2, 0.7]]).double(), atol=0.04, rtol=0)
    expected = torch.tensor([[0.3583333, 0.6888889, 0.9527778]]).double()
    torch.testing.assert_close(chosen(weights, 2 / 3), expected, atol=0.04, rtol=0)


def test_weightless_tokens_are_as_likely_as_each_other() -> None:
    expected = torch.tensor([[0.5, 1.0, 0.5, 1.0]]).double()
    torch.testing.assert_close(chosen(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 0.75, 1500), expected, atol=0.06, rtol=0)


def test_the_generator_decides() -> None:
    weights, mask = torch.rand(4, 50, dtype=torch.bfloat16), torch.ones(4, 50)
    subsets = [weighted_subset(weights, mask, 0.5, seeded(seed)) for seed in (3, 3, 4)]
    assert torch.equal(subsets[0], subsets[1]) and not torch.equal(subsets[0], subsets[2])


def test_more_tokens_than_multinomial_takes() -> None:
    weights = torch.zeros(2, 2**23 + 1)
    weights[1, -3:] = 1.0
    with pytest.raises(RuntimeError, match=r"2\^24"):
        torch.multinomial(weights.flatten(), 3)
    subset = weighted_subset(weights, torch.ones_like(weights, dtype=torch.bool), 3 / weights.numel(), seeded())
    assert subset.nonzero().tolist() == [[1, 2**23 - 2], [1, 2**23 - 1], [1, 2**23]]


def test_subsets_refuse_what_they_cannot_mean() -> None:
    one = torch.ones(1, 3)
    with pytest.raises(ConfigError, match=r"share is 0\.0: .*above 0, up to 1"):
        weighted_subset(one, one, 0.0)
    with pytest.raises(ValueError, match=r"2 of 3 weights in the mask are negative or not finite, the first is -1: "):
        weighted_subset(torch.tensor([[-1.0, torch.inf, 1.0]]), one, 0.5)
    assert not weighted_subset(one, torch.zeros(1, 3), 0.5).any()


def test_importance_golden() -> None:
    # vocabulary 4: h = ln 2 / ln 4 = 1/2, d = 1/4: h^2 d^(1/2) = 1/8, h + d - h d = 5/8.  both 0, then both 1.
    entropy = torch.tensor([math.log(2), 0.0, math.log(4)])
    jsd = torch.tensor([math.log(2) / 4, 0.0, math.log(2)])
    torch.testing.assert_close(token_importance(entropy, jsd, 4, alpha=2.0, gamma=0.5), torch.tensor([0.125, 0.0, 1.0]))
    torch.testing.assert_close(soft_or_importance(entropy, jsd, 4), torch.tensor([0.625, 0.0, 1.0]))
    assert token_importance(entropy, jsd, 4, alpha=0.0, gamma=0.0).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 7), st.floats(0, 0.7), st.floats(0, 3), st.floats(0, 3))
def test_importance_is_in_the_unit_interval_and_both_is_less_than_either(
    entropy: float, jsd: float, alpha: float, gamma: float
) -> None:
    h, d = torch.tensor([entropy], dtype=torch.bfloat16, requires_grad=True), torch.tensor([jsd], dtype=torch.bfloat16)
    both, either = token_importance(h, d, 1000, 1.0, 1.0), soft_or_importance(h, d, 1000)
    assert 0 <= both <= either + 1e-6 and either <= 1
    assert 0 <= token_importance(h, d, 1000, alpha, gamma) <= 1
    assert both.dtype == either.dtype == torch.float32 and not both.requires_grad and not either.requires_grad


def test_a_rounding_error_leaves_the_importance_in_the_unit_interval() -> None:
    entropy, jsd = torch.full((2,), math.log(8)), torch.tensor([-1e-3, 0.8])
    assert token_importance(entropy, jsd, 8, 1.0, 1.0).tolist() == [0.0, 1.0]


def test_importance_refuses_settings_without_a_meaning() -> None:
    zero = torch.zeros(1)
    with pytest.raises(ConfigError, match=r"alpha is -1\.0 and gamma is 1\.0: .*infinite importance"):
        token_importance(zero, zero, 10, -1.0, 1.0)
    with pytest.raises(ConfigError, match=r"vocab_size is 1"):
        soft_or_importance(zero, zero, 1)


def test_the_whole_is_a_subset() -> None:
    assert weighted_subset(torch.tensor([0.0, 2.0]), torch.ones(2), 1.0).all()


@pytest.mark.parametrize("seed", range(3))
def test_concentration_is_what_the_largest_have_of_the_sum(seed: int) -> None:
    sizes = torch.randn(137, generator=torch.Generator().manual_seed(seed)).abs()
    in_order = sorted(sizes.tolist(), reverse=True)
    assert concentration(sizes, 0.1) == pytest.approx(
        sum(in_order[:14]) / sum(in_order)
    )  # 13.7 of 137, and not fewer than one
    assert concentration(sizes, 0.001) == pytest.approx(in_order[0] / sum(in_order))
    assert concentration(sizes, 1.0) == pytest.approx(1.0)
    assert effective_share(sizes) == pytest.approx(sum(in_order) ** 2 / (137 * sum(x * x for x in in_order)))


def test_alike_sizes_are_spread_and_one_size_is_not() -> None:
    alike, alone = torch.full((200,), 0.3), torch.zeros(200).index_fill(0, torch.tensor(7), 4.0)
    assert concentration(alike, 0.1) == pytest.approx(0.1) and effective_share(alike) == pytest.approx(1.0)
    assert concentration(alone, 0.01) == 1.0 and effective_share(alone) == pytest.approx(1 / 200)
    assert math.isnan(concentration(torch.zeros(3), 0.5)) and math.isnan(effective_share(torch.zeros(3)))
    with pytest.raises(
        ConfigError, match=r"the share of the tokens is 0: a part of them is compared with all\. Use e\.g\. 0\.01"
    ):
        concentration(alike, 0)
