"""Turns of a batch in the order of time, whatever the layout and the order of its rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from played import LAYOUTS, batch_of, episode, gathered, shuffled, spread, turn, view_of

from sdar.turns import Turns
from sdar.types import Batch

EPISODES = [episode(turn(2), turn(1), turn(3)), episode(turn(1)), episode(turn(2, trainable=False), turn(2), turn(1))]
VALUES = [[[1.0, 3.0], [5.0], [1.0, 2.0, 6.0]], [[7.0]], [[100.0, 100.0], [4.0, 8.0], [9.0]]]
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def rows(layout: str) -> Batch:
    """Those that are trained on: a turn that somebody else took gives no row of its own."""
    batch = batch_of(EPISODES, layout)
    return batch.select(batch.response_mask.any(1).nonzero()[:, 0])


@by_layout
def test_golden(layout: str) -> None:
    batch = rows(layout)
    turns = Turns(batch)
    assert len(turns) == 6
    assert turns.episode.tolist() == [0, 0, 0, 1, 2, 2]
    assert turns.turn.tolist() == [0, 1, 2, 0, 1, 2]  # the first turn of the last episode was replayed
    assert turns.length.tolist() == [2, 1, 3, 1, 2, 1]
    values = spread(batch, VALUES, outside=-50.0)
    assert turns.sum(values).tolist() == [4.0, 5.0, 9.0, 7.0, 12.0, 9.0]
    assert turns.mean(values).tolist() == [2.0, 5.0, 3.0, 7.0, 6.0, 9.0]
    assert turns.row.tolist() == ([0, 0, 0, 1, 2, 2] if layout == "trajectory" else [0, 1, 2, 3, 4, 5])


@by_layout
def test_spreading_gives_each_response_token_the_value_of_its_turn(layout: str) -> None:
    batch = rows(layout)
    out = Turns(batch).spread(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert out.shape == batch.ids.shape and out.dtype == torch.float32
    assert (out[~batch.response_mask] == 0).all()
    assert gathered(batch, out) == [[[1.0, 1.0], [2.0], [3.0, 3.0, 3.0]], [[4.0]], [[5.0, 5.0], [6.0]]]


@by_layout
def test_the_order_of_rows_changes_nothing_but_the_rows(layout: str) -> None:
    batch = rows(layout)
    moved, order = shuffled(batch, 1)
    assert order.tolist() != sorted(order.tolist())
    one, other = Turns(batch), Turns(moved)
    values = spread(batch, VALUES)
    for name in ("episode", "turn", "length"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert torch.equal(one.sum(values), other.sum(values[order]))
    assert torch.equal(one.spread(one.mean(values))[order], other.spread(other.mean(values[order])))
    assert torch.equal(order[other.row], one.row)


@by_layout
def test_rows_that_were_dropped_are_not_missed(layout: str) -> None:
    """Numbers of episodes and turns need not follow each other."""
    batch = rows(layout)
    turns = Turns(batch.select((batch.episode != 1).nonzero()[:, 0].flip(0)))
    assert turns.episode.tolist() == [0, 0, 0, 2, 2] and turns.turn.tolist() == [0, 1, 2, 1, 2]


def test_a_mask_that_leaves_part_of_a_turn_out_leaves_those_tokens_out() -> None:
    batch = rows("trajectory")
    values = spread(batch, VALUES)
    batch.response_mask = batch.response_mask & (values != 6.0) & (values != 5.0)
    turns = Turns(batch)
    assert turns.turn.tolist() == [0, 2, 0, 1, 2] and turns.length.tolist() == [2, 2, 1, 2, 1]
    assert turns.mean(values).tolist() == [2.0, 1.5, 7.0, 6.0, 9.0]


def test_a_batch_without_response_tokens_has_no_turns() -> None:
    batch = rows("turn")
    batch.response_mask = torch.zeros_like(batch.response_mask)
    turns, values = Turns(batch), torch.ones(batch.ids.shape)
    assert len(turns) == 0 and turns.mean(values).shape == (0,)
    assert not turns.spread(torch.zeros(0)).any()


@by_layout
def test_a_gate_finds_the_turns_of_its_rows(layout: str) -> None:
    batch = rows(layout)
    values = spread(batch, VALUES)
    turns = Turns(view_of(batch, values))
    assert gathered(batch, turns.spread(turns.mean(values))) == gathered(batch, Turns(batch).spread(Turns(batch).mean(values)))
    assert turns.episode.tolist() == turns.row.tolist() == sorted(turns.row.tolist()), "each row for itself"


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 9))
def test_both_layouts_in_any_order_give_the_same_turns(lengths: list[list[int]], seed: int) -> None:
    episodes = [episode(*(turn(n) for n in of_episode)) for of_episode in lengths]
    count = iter(range(100))
    nested = [[[float(next(count)) for _ in range(n)] for n in of_episode] for of_episode in lengths]
    found = []
    for layout in LAYOUTS:
        batch, _ = shuffled(batch_of(episodes, layout), seed)
        turns, values = Turns(batch), spread(batch, nested, outside=-7.0)
        found.append((turns.episode.tolist(), turns.turn.tolist(), turns.sum(values).tolist()))
        assert gathered(batch, turns.spread(turns.sum(values))) == [[[sum(t)] * len(t) for t in e] for e in nested]
    assert found[0] == found[1]
    assert found[0][2] == [sum(values) for of_episode in nested for values in of_episode]
