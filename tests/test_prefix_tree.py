"""A tree of prefixes: every token once, and what each row gets and learns is what it would get and learn alone."""

import pytest
import torch
from float64 import float64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from sdar.errors import PolicyError
from sdar.functional import masked_mean
from sdar.prefix_tree import PrefixTree, tree_batches
from sdar.scoring import Scorer

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
SMALL = {
    "vocab_size": 20, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS, "max_position_embeddings": 256, "head_dim": WIDTH,
}  # fmt: skip


@st.composite
def families(draw):
    """Rows that begin with part of an earlier one, or like no other; some twice."""
    rows = []
    for _ in range(draw(st.integers(1, 7))):
        before = draw(st.sampled_from([[], *rows]))
        own = draw(st.lists(st.integers(0, 2), min_size=not before, max_size=40))
        rows.append(before[: draw(st.integers(0, len(before)))] + own or [1])
    return rows


def padded(rows):
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True), lengths


@settings(deadline=None, max_examples=60)
@given(families(), st.sampled_from([None, 1, 5, 1000]))
def test_every_row_sees_what_it_would_see_alone_and_shared_tokens_get_the_sum_of_the_gradients(rows, window):
    tree = PrefixTree(*padded(rows))
    paths = [tree.index[i, : len(row)] for i, row in enumerate(rows)]
    for row, path in zip(rows, paths, strict=True):
        assert tree.ids[path].tolist() == row
        assert tree.positions[path].tolist() == list(range(len(row)))
    assert sorted({int(t) for path in paths for t in path}) == list(range(len(tree)))
    noise = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(heads, len(tree), WIDTH, generator=noise, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2)
    ]
    weights = [torch.randn(len(row), HEADS, WIDTH, generator=noise, dtype=torch.float64) for row in rows]
    together = tree.attend(0, *parts, 0.3, window)
    ours = wanted = torch.zeros(())
    for path, weight in zip(paths, weights, strict=True):
        back = torch.arange(len(path))[:, None] - torch.arange(len(path))
        mask = (back >= 0) & (back < (window or 1000))
        alone = F.scaled_dot_product_attention(*(p[:, path] for p in parts), attn_mask=mask, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(together[path], alone.transpose(0, 1), rtol=0, atol=1e-12)
        ours, wanted = ours + (together[path] * weight).sum(), wanted + (alone.transpose(0, 1) * weight).sum()
    gradients = [torch.autograd.grad(loss, parts) for loss in (ours, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_a_prefix_is_computed_once_and_what_would_save_little_is_not_shared():
    prompt, other = list(range(30)), list(range(5))
    rows = [[*prompt, 1, 1], [*prompt, 2], [*prompt, 1, 1], [*other, 9], [*other, 8]]
    assert len(PrefixTree(*padded(rows[:3]))) == 30 + 2 + 1  # what is all alike is always shared
    assert len(PrefixTree(*padded(rows[3:]))) == 6 + 6
    assert [len(PrefixTree(*padded(rows[i : i + 1]))) for i in range(4)] == [32, 31, 32, 6]


def test_pieces_keep_rows_that_begin_alike_together_and_are_filled():
    a, b = [[1] * 30 + [i] for i in range(2, 6)], [[7, i] for i in range(8)]
    ids, lengths = padded([a[0], *b[:4], *a[1:], *b[4:]])
    assert [sorted(p.tolist()) for _, p in tree_batches(ids, lengths, 40)] == [[0, 1, 2, 3, 5, 6, 7], [4, 8, 9, 10, 11]]
    assert [(size, p.tolist()) for size, p in tree_batches(ids[:1], lengths[:1], 5)] == [(31, [0])]


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(1, 120))
def test_every_row_is_in_one_piece_and_pieces_hold_what_fits(rows, most):
    ids, lengths = padded(rows)
    pieces = [rows for _, rows in tree_batches(ids, lengths, most)]
    assert sorted(i for piece in pieces for i in piece.tolist()) == list(range(len(rows)))
    for piece in pieces:
        assert len(piece) == 1 or len(PrefixTree(ids[piece], lengths[piece])) <= most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [Qwen3Config(**SMALL), MistralConfig(**SMALL, sliding_window=9)], ids=["qwen3", "window"])
def test_scores_and_gradients_are_those_of_padded_rows(config, checkpointing):
    torch.manual_seed(0)
    model = float64(AutoModelForCausalLM.from_config(config))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    prompt = torch.randint(0, 20, (30,)).tolist()
    rows = [prompt + tail for tail in ([3] * 9, [4, 5], [3] * 4 + [8] * 30)] + [[1, 2, 3, 4]]
    ids, lengths = padded(rows)
    attention = torch.arange(ids.shape[1]) < lengths[:, None]
    response = attention & (torch.arange(ids.shape[1]) >= torch.tensor([[30], [30], [32], [2]]))
    found = []
    for packed in (False, True):
        scorer = Scorer(0.7, (19,), 20, packed=packed)
        now = scorer(model, ids, attention, response)
        masked_mean(now.logp - 0.1 * now.entropy, response, response.sum()).backward()
        found.append((now.logp, now.entropy, {n: p.grad.clone() for n, p in model.named_parameters()}))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-10)


def test_a_network_that_must_be_packed_and_cannot_be_is_refused():
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SMALL), attn_implementation="eager")
    Scorer(1.0, (), 20).check_packing(model)  # it may be padded
    with pytest.raises(PolicyError, match=r"attention 'eager' cannot read rows without padding.*model\.packed to null"):
        Scorer(1.0, (), 20, packed=True).check_packing(model)
