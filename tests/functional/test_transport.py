"""Transport by hand, against all permutations, and as properties."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import transport_plan, window_distance


def full(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def test_plan_golden() -> None:
    # costs 0 on and 1 off the diagonal, regulariser 1 / ln 4: on : off is 4 : 1, and each row holds 1/2.
    cost = 1 - torch.eye(2)[None]
    plan = transport_plan(cost, full(1, 2), full(1, 2), regularization=1 / math.log(4))
    torch.testing.assert_close(plan, torch.tensor([[[0.4, 0.1], [0.1, 0.4]]]))


def test_distance_golden() -> None:
    # one source token (3, 4) against (6, 8), cosine 1, and (4, -3), cosine 0: half of it goes to each, whatever the costs.
    source, target = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[6.0, 8.0], [4.0, -3.0]]])
    distance, plan = window_distance(source, target, full(1, 1), full(1, 2))
    torch.testing.assert_close(plan, torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(distance, torch.tensor([0.5]))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_a_small_regulariser_finds_the_cheapest_assignment(size: int) -> None:
    cost = torch.rand(8, size, size, dtype=torch.double, generator=torch.Generator().manual_seed(size))
    orders = torch.tensor(list(permutations(range(size))))
    best = cost[:, torch.arange(size), orders].mean(2).min(1).values  # [batch, permutations, size] -> [batch]
    plan = transport_plan(cost, full(8, size), full(8, size), regularization=0.002, iterations=3000)
    torch.testing.assert_close(plan.sum(1), torch.full((8, size), 1 / size).double(), atol=1e-3, rtol=0)
    paid = (plan * cost).sum((1, 2))
    assert (paid - best).max() <= 0.002 * math.log(size) + 2e-3 and (paid - best).min() >= -2e-3


def test_each_source_token_sends_its_share_and_targets_get_nearly_theirs() -> None:
    torch.manual_seed(0)
    cost = 2 * torch.rand(3, 6, 4)
    source = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0]])
    target = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 1]])
    plan = transport_plan(cost, source, target, iterations=1)
    torch.testing.assert_close(plan.sum(2), source / source.sum(1, keepdim=True))
    plan = transport_plan(cost, source, target)
    torch.testing.assert_close(plan.sum(2), source / source.sum(1, keepdim=True))
    torch.testing.assert_close(plan.sum(1), target / target.sum(1, keepdim=True), atol=0.02, rtol=0)


def test_padding_does_not_matter() -> None:
    torch.manual_seed(1)
    source, target = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    distance, plan = window_distance(source, target, full(2, 3), full(2, 4))
    longer = torch.cat([source, torch.full((2, 2, 5), torch.nan)], 1), torch.cat([torch.full((2, 1, 5), torch.inf), target], 1)
    masks = full(2, 5).index_fill(1, torch.tensor([3, 4]), False), full(2, 5).index_fill(1, torch.tensor([0]), False)
    padded_distance, padded_plan = window_distance(*longer, *masks)
    torch.testing.assert_close(padded_distance, distance)
    torch.testing.assert_close(padded_plan[:, :3, 1:], plan)
    assert padded_plan[:, 3:].count_nonzero() == padded_plan[:, :, 0].count_nonzero() == 0


@pytest.mark.parametrize("empty", ["source", "target", "both"])
def test_an_empty_window_has_no_plan(empty: str) -> None:
    source = torch.randn(2, 3, 4, requires_grad=True)
    masks = [torch.tensor([[empty == "target"] * 3, [True] * 3]), torch.tensor([[empty == "source"] * 3, [True] * 3])]
    distance, plan = window_distance(source, torch.randn(2, 3, 4), *masks)
    assert plan[0].abs().sum() == 0 and distance[0] == 0 and plan[1].sum().item() == pytest.approx(1)
    distance.sum().backward()
    assert source.grad is not None and source.grad.isfinite().all()


def test_a_window_is_near_to_itself_in_any_order_and_the_distance_is_symmetric() -> None:
    torch.manual_seed(2)
    source, target = torch.randn(4, 5, 16), torch.randn(4, 5, 16)
    same, _ = window_distance(source, source[:, torch.tensor([3, 0, 4, 1, 2])] * 7, full(4, 5), full(4, 5))
    there, _ = window_distance(source, target, full(4, 5), full(4, 5), iterations=500)
    back, _ = window_distance(target, source, full(4, 5), full(4, 5), iterations=500)
    assert (same < 1e-3).all() and (there > 0.3).all() and (there <= 2).all()
    torch.testing.assert_close(there, back, atol=1e-4, rtol=0)


def test_the_gradient_is_that_of_the_regularised_objective() -> None:
    torch.manual_seed(3)
    source, target = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True), torch.randn(2, 2, 4, dtype=torch.double)

    def objective(source: Tensor) -> Tensor:
        distance, plan = window_distance(source, target, full(2, 3), full(2, 2), 0.2, 400)
        assert not plan.requires_grad
        return distance + 0.2 * (plan * plan.log()).sum((1, 2))

    assert torch.autograd.gradcheck(objective, (source,))


def test_half_precision_is_widened() -> None:
    half = torch.randn(1, 2, 3).bfloat16()
    distance, plan = window_distance(half, half, full(1, 2), full(1, 2))
    assert distance.dtype == plan.dtype == torch.float32


def test_settings_without_a_plan_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"regularization is 0\.0 and iterations is 50: .*Use a regularization above 0"):
        transport_plan(torch.zeros(1, 1, 1), full(1, 1), full(1, 1), 0.0)
    with pytest.raises(ConfigError, match=r"iterations is 0: .*at least 1 iteration"):
        transport_plan(torch.zeros(1, 1, 1), full(1, 1), full(1, 1), iterations=0)
