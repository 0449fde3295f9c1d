"""What is kept of teachers' scores."""

from dataclasses import fields

import pytest
import torch
from scored import (
    EVERYTHING,
    FORBIDDEN,
    VOCAB,
    compared,
    everything,
    gradients,
    naively_compared,
    network,
    objective,
    teachers_of,
    told,
    told_teacher,
    two_sides,
    view_of,
)
from transformers import LlamaConfig

from sdar.scoring import Scorer, score_with_teachers
from sdar.types import TeacherSignal


@pytest.mark.parametrize("max_tokens", [1, 20, EVERYTHING])
@pytest.mark.parametrize("k", [1, 4, VOCAB])
def test_the_likeliest_ids_are_those_of_the_whole_distribution(model, k, max_tokens):
    batch = two_sides()
    scorer = Scorer(1.7, FORBIDDEN, VOCAB, chunk=3)
    seen = scorer.score(model, *told_teacher(batch), max_tokens, TeacherSignal.TOP_K, k)
    mask = batch.teacher_response_mask
    expected = everything(model, *told_teacher(batch), 1.7, FORBIDDEN).detach()
    assert seen.top_ids.shape == seen.top_logp.shape == (*batch.teacher_ids.shape, k) and seen.hidden is None
    assert torch.allclose(seen.top_logp[mask], expected.topk(k).values, atol=1e-5)
    assert torch.allclose(seen.top_logp[mask], expected.gather(1, seen.top_ids[mask]), atol=1e-5)
    assert not seen.top_ids[~mask].any() and not seen.top_logp[~mask].any()
    if k < VOCAB - len(FORBIDDEN):
        assert not torch.isin(seen.top_ids[mask], torch.tensor(FORBIDDEN)).any()
    assert torch.allclose(seen.logp[mask], expected.gather(1, batch.teacher_ids[mask][:, None])[:, 0], atol=1e-5)


def test_only_what_is_asked_for_is_kept(model):
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    kept = {
        payload: {f.name for f in fields(seen) if getattr(seen, f.name) is not None}
        for payload in TeacherSignal
        for seen in [scorer.score(model, *told_teacher(batch), EVERYTHING, payload, 2)]
    }
    assert kept[TeacherSignal.SAMPLED] == {"logp", "entropy", "allowed_logmass"}
    assert kept[TeacherSignal.TOP_K] - kept[TeacherSignal.SAMPLED] == {"top_ids", "top_logp"}
    assert kept[TeacherSignal.FULL] - kept[TeacherSignal.SAMPLED] == {"hidden"}


@pytest.mark.parametrize("max_tokens", [1, 25, EVERYTHING])
@pytest.mark.parametrize("payload", TeacherSignal)
def test_each_row_is_read_by_its_own_teacher(wide, payload, max_tokens):
    _, a, b = wide
    networks, batch, scorer = [b, a, b, a], two_sides(), Scorer(0.8, FORBIDDEN, VOCAB, chunk=3)
    heads = score_with_teachers(batch, networks, scorer, max_tokens, payload, 4)
    mask, row = batch.response_mask, batch.response_mask.nonzero()[:, 0]
    its_row = batch.teacher_response_mask.nonzero()[:, 0]
    assert batch.teacher_index.tolist() == [0, 1, 0, 1]
    assert batch.has("teacher_top_ids") == (payload == TeacherSignal.TOP_K)
    assert batch.has("teacher_hidden") == (payload == TeacherSignal.FULL) == bool(heads)
    with torch.no_grad():
        for i, network_ in enumerate(networks):
            expected = everything(network_, *told_teacher(batch), 0.8, FORBIDDEN)[its_row == i]
            sampled = expected.gather(1, batch.ids[mask][row == i][:, None])[:, 0]
            torch.testing.assert_close(batch.teacher_logp[mask][row == i], sampled, atol=1e-6, rtol=0)
            if payload == TeacherSignal.TOP_K:
                ids, logp = (t[mask][row == i] for t in (batch.teacher_top_ids, batch.teacher_top_logp))
                torch.testing.assert_close(logp, expected.topk(4).values, atol=1e-6, rtol=0)
                torch.testing.assert_close(logp, expected.gather(1, ids), atol=1e-6, rtol=0)
            if payload == TeacherSignal.FULL:
                head, hidden, rows = teachers_of(batch, heads)[int(batch.teacher_index[i])]
                assert rows[i] and hidden.shape[2] == network_.config.hidden_size
                whole = scorer.log_probs(hidden[mask][row == i], head)
                torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)
    for name in ("teacher_logp", "teacher_top_ids", "teacher_top_logp", "teacher_hidden"):
        values = getattr(batch, name) if batch.has(name) else None
        assert values is None or not values[~mask].any()


@pytest.mark.parametrize("order", [(0, 1, 1, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("payload", TeacherSignal)
def test_teachers_of_different_precision_share_a_batch(payload, order):
    """None is lowered to the precision of another."""
    pair = [network().to(torch.bfloat16), network(LlamaConfig, seed=3, hidden_size=24)]
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    heads = score_with_teachers(batch, [pair[i] for i in order], scorer, EVERYTHING, payload, 3)
    assert batch.teacher_logp.dtype == torch.float32
    for i, network_ in enumerate(pair):
        alone = two_sides()
        alone_heads = score_with_teachers(alone, [network_] * 4, scorer, EVERYTHING, payload, 3)
        mine = batch.response_mask & (torch.tensor(order) == i)[:, None]
        assert torch.allclose(batch.teacher_logp[mine], alone.teacher_logp[mine], atol=1e-5 if i else 0.1)
        if payload == TeacherSignal.FULL:
            its, own = (
                scorer.log_probs(b.teacher_hidden[mine][:, : h.weight.shape[1]], h)
                for b, h in ((batch, heads[order[0] != i]), (alone, alone_heads[0]))
            )
            assert torch.allclose(its, own, atol=1e-5 if i else 0.1)


@pytest.mark.parametrize("name", ["reverse", "top_k_reverse", "k1"])
def test_a_live_teacher_stays_what_it_was_when_the_rows_were_scored(name):
    student, divergence, scorer = network().double(), objective(name, {}), Scorer(1.0, FORBIDDEN, VOCAB)
    fixed = network().double()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    values, batch = compared(divergence, student, [student] * 4, scorer)
    heads = score_with_teachers(batch, [student] * 4, scorer, EVERYTHING, *divergence.needs())
    gradients(values, student)
    optimizer.step()
    now = scorer(student, *told(batch))
    after = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads) if heads else [])
    expected = naively_compared(divergence, student, [fixed] * 4, batch, 1.0, FORBIDDEN)
    torch.testing.assert_close(after, expected, atol=1e-9, rtol=1e-7)
    assert not torch.allclose(after, values, atol=1e-3)
