"""Sequence filters as parts, and how the distillation term uses them."""

from types import SimpleNamespace

import pytest
import torch
from played import LAYOUTS, batch_of, episode, shuffled, turn

from sdar.distillation import Distillation
from sdar.filters import CliffGroups, FailedOnly, HasSuccessfulSibling, MixedGroups
from sdar.parts import SequenceFilter
from sdar.registry import load_parts, parts

load_parts()
FILTERS = {name: cls for name, cls in parts("filters").items() if cls.__module__.startswith("sdar.")}
by_filter = pytest.mark.parametrize("name", FILTERS)

# group 7: one success of three; group 2: all failed; group 5: all succeeded; 9 and 1: alone, one failed, one succeeded.
SUCCESS = [1, 0, 0, 0, 0, 1, 1, 0, 1]
GROUPS = [7, 2, 7, 7, 2, 5, 5, 9, 1]
EXPECTED = {
    "failed": [0, 1, 1, 1, 1, 0, 0, 1, 0],
    "mixed": [1, 0, 1, 1, 0, 0, 0, 0, 0],
    "cliff": [0, 1, 0, 0, 1, 0, 0, 1, 0],
    "has_sibling": [0, 0, 1, 1, 0, 1, 1, 0, 0],
}


def test_each_filter_has_a_line_in_the_table() -> None:
    assert EXPECTED.keys() == FILTERS.keys()
    assert [FILTERS[n] for n in EXPECTED] == [FailedOnly, MixedGroups, CliffGroups, HasSuccessfulSibling]


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
@by_filter
def test_golden(name: str, dtype: torch.dtype) -> None:
    chosen = FILTERS[name]()(torch.tensor(SUCCESS).to(dtype), torch.tensor(GROUPS))
    assert chosen.dtype == torch.bool and chosen.shape == (9,)
    assert chosen.tolist() == [bool(c) for c in EXPECTED[name]]


@by_filter
def test_the_order_of_episodes_does_not_matter(name: str) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    moved = FILTERS[name]()(torch.tensor(SUCCESS)[order], torch.tensor(GROUPS)[order])
    assert torch.equal(moved, torch.tensor(EXPECTED[name])[order].bool())


@by_filter
def test_a_reward_is_no_success(name: str) -> None:
    with pytest.raises(ValueError, match=r"success of episode 1 is 10: .*not its reward"):
        FILTERS[name]()(torch.tensor([0.0, 10.0]), torch.tensor([0, 0]))


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@by_filter
def test_an_episode_counts_once_however_many_rows_it_has(name: str, layout: str, seed: int | None) -> None:
    """What a filter is asked about are episodes; what it chooses are all response tokens of their rows."""
    episodes = [episode(*(turn(1 + e % 2) for _ in range(1 + e % 3)), reward=s) for e, s in enumerate(SUCCESS)]
    batch = batch_of(episodes, layout, GROUPS)
    if seed is not None:
        batch, _ = shuffled(batch, seed)
    strategy = SimpleNamespace(span=None, sequence_filter=FILTERS[name]())
    chosen = Distillation.chosen(strategy, batch, episodes)  # type: ignore[arg-type]
    assert torch.equal(chosen, batch.response_mask & torch.tensor(EXPECTED[name]).bool()[batch.episode][:, None])


def test_rows_that_were_dropped_before_are_no_gap_between_episodes() -> None:
    asked = []

    class Spy(SequenceFilter):
        def __call__(self, success: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
            asked.append((success.tolist(), groups.tolist()))
            return success.bool()

    episodes = [episode(turn(), turn(), reward=s) for s in SUCCESS]
    batch = batch_of(episodes, "turn", GROUPS)
    batch = batch.select(((batch.episode == 8) | (batch.episode == 3)).nonzero()[:, 0].flip(0))
    strategy = SimpleNamespace(span=None, sequence_filter=Spy())
    chosen = Distillation.chosen(strategy, batch, episodes)  # type: ignore[arg-type]
    assert asked == [([0.0, 1.0], [7, 1])]
    assert chosen.any(1).tolist() == [True, True, False, False]
