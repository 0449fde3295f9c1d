"""Objectives of a student and its teachers against naive ones, and their gradients."""

import pytest
import torch
from scored import (
    DIVERGENCES,
    EVERYTHING,
    FORBIDDEN,
    SIZE,
    VOCAB,
    by_case,
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
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, LlamaConfig, PhiConfig

from sdar.errors import ConfigError
from sdar.scoring import Head, Scorer, StudentOutput, score_with_teachers
from sdar.types import TeacherSignal


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@by_case
def test_every_objective_is_the_naive_one_and_so_is_its_gradient(wide, name, settings, chunk):
    student, a, b = wide
    divergence, networks = objective(name, settings), [b, a, a, b]
    values, batch = compared(divergence, student, networks, Scorer(1.7, FORBIDDEN, VOCAB, chunk))
    actual = gradients(values, student)
    wanted = naively_compared(divergence, student, networks, batch, 1.7, FORBIDDEN)
    assert values.shape == batch.ids.shape and not values[~batch.response_mask].any()
    assert (values[batch.response_mask] != 0).all()
    torch.testing.assert_close(values, wanted, atol=1e-10, rtol=1e-8)
    expected = gradients(wanted, student)
    for parameter, gradient in actual.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-9, rtol=1e-7, msg=parameter)
    assert actual["lm_head.weight"].any() and not actual["lm_head.weight"][VOCAB:].any()


def test_the_exact_ones_are_their_formulas(wide):
    student, teacher, _ = wide
    batch = two_sides()
    mine = everything(student, *told(batch)).detach()
    its = everything(teacher, *told_teacher(batch)).detach()
    mixture = (0.5 * mine.exp() + 0.5 * its.exp()).log()
    formulas = {
        "reverse": mine.exp() * (mine - its),
        "forward": its.exp() * (its - mine),
        "jensen_shannon": 0.5 * mine.exp() * (mine - mixture) + 0.5 * its.exp() * (its - mixture),
        "top_k_cross_entropy": torch.where(its >= its.topk(3).values[:, 2:], -its.exp() * mine, 0.0),
    }
    for name, terms in formulas.items():
        values, _ = compared(objective(name, {}), student, [teacher] * 4, Scorer(1.0, (), VOCAB, 3), batch)
        torch.testing.assert_close(values[batch.response_mask], terms.sum(1), atol=1e-9, rtol=0)


@by_case
def test_objectives_without_a_gradient_have_the_same_values(wide, name, settings):
    student, a, b = wide
    divergence, scorer = objective(name, settings), Scorer(1.0, (), VOCAB, chunk=4)
    values, _ = compared(divergence, student, [a, b, b, a], scorer)
    with torch.no_grad():
        plain, _ = compared(divergence, student, [a, b, b, a], scorer)
    assert values.requires_grad and not plain.requires_grad
    assert torch.equal(plain, values)


@by_case
def test_what_a_row_holds_outside_of_its_response_is_no_loss(wide, name, settings):
    student, teacher, _ = wide
    divergence, scorer = objective(name, settings), Scorer(1.0, (), VOCAB, chunk=4)
    values, batch = compared(divergence, student, [teacher] * 4, scorer)
    heads = score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    view = view_of(batch, now)
    view = view.including(
        teacher_logp=view.teacher_logp.masked_fill(~batch.response_mask, -3.0),
        gap=view.gap.masked_fill(~batch.response_mask, -3.0),
    )
    assert torch.equal(now.compare(divergence, view, teachers_of(batch, heads) if heads else []), values)


class Largest(TorchDispatchMode):
    """Most rows of any tensor with a column for each id, made inside; the transposed head is no matter."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.shape[-1:] == (VOCAB,)
                and tensor.shape != (SIZE["hidden_size"], VOCAB)
            ):
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return out


@by_case
def test_no_logits_are_kept_for_the_backward_pass(name, settings):
    """Some are made in both passes, a chunk at a time."""
    student, teacher, scorer = network(), network(seed=1), Scorer(1.0, FORBIDDEN, VOCAB, chunk=2)
    divergence, batch = objective(name, settings), two_sides()
    heads = score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with Largest() as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads) if heads else [])
    assert VOCAB not in {shape[-1] for shape in kept if len(shape) > 1}, "logits are kept"
    with Largest() as backward:
        values.sum().backward()
    vocabulary = divergence.needs()[0] != TeacherSignal.SAMPLED and divergence.reads == "vocabulary"
    assert forward.rows == (2 if vocabulary else 0)
    # the statistics of the pass itself are chunked as well; what looks at differences on a support needs no whole row at all
    assert backward.rows == (0 if divergence.reads == "support differences" else 2)
    assert student.model.embed_tokens.weight.grad.abs().max() > 0


def test_rows_that_no_given_teacher_has_read_are_no_loss(wide):
    student, a, b = wide
    divergence, scorer, batch = objective("reverse", {}), Scorer(1.0, (), VOCAB), two_sides()
    heads = score_with_teachers(batch, [a, b, a, b], scorer, EVERYTHING, *divergence.needs())
    now = scorer(student, *told(batch))
    both = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads))
    first = now.compare(divergence, view_of(batch, now), teachers_of(batch, heads)[:1])
    assert torch.equal(first[::2], both[::2]) and not first[1::2].any() and both[1::2].any()


@pytest.mark.parametrize("name", ["reverse", "top_k_reverse"])
def test_rows_without_a_response_compare_to_nothing(wide, name):
    student, teacher, _ = wide
    batch = two_sides()
    batch.response_mask[:] = False
    batch.teacher_response_mask[:] = False
    values, _ = compared(objective(name, {}), student, [teacher] * 4, Scorer(1.0, (), VOCAB), batch)
    assert values.shape == batch.ids.shape and not values.any()


@pytest.mark.parametrize("name, payload", [("reverse", "full"), ("top_k_forward", "top_k"), ("top_k_cross_entropy", "top_k")])
def test_an_objective_that_needs_more_than_was_scored_says_so(wide, name, payload):
    student, teacher, _ = wide
    batch, scorer = two_sides(), Scorer(1.0, (), VOCAB)
    score_with_teachers(batch, [teacher] * 4, scorer, EVERYTHING, TeacherSignal.SAMPLED, 0)
    now = scorer(student, *told(batch))
    with pytest.raises(
        ConfigError, match=rf"{DIVERGENCES[name].__name__} needs the teacher's {payload} signal, which these rows"
    ):
        now.compare(objective(name, {}), view_of(batch, now))


# ------------------------------------------------------------------ padded embeddings


def padded(model, rows, value):
    """The same model with further rows in its embedding and head, as models are padded to multiples of 64 and more."""
    config = type(model.config)(**model.config.to_dict() | {"vocab_size": model.config.vocab_size + rows})
    out = type(model)(config).eval()
    weights = {
        name: torch.cat([t, torch.full((rows, *t.shape[1:]), value)]) if t.shape[0] == model.config.vocab_size else t
        for name, t in model.state_dict().items()
    }
    out.load_state_dict(weights)
    return out


@pytest.mark.parametrize("value", [0.3, 1e30])
@by_case
def test_rows_that_pad_a_teacher_change_no_bit(name, settings, value):
    divergence, scorer = objective(name, settings), Scorer(0.9, FORBIDDEN, VOCAB, chunk=4)
    plain = network(LlamaConfig, seed=1, hidden_size=24, vocab_size=VOCAB)
    found = []
    for teacher in (plain, padded(plain, 64, value)):
        student = network()
        values, _ = compared(divergence, student, [teacher] * 4, scorer)
        found.append((values, gradients(values, student)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][0].any()
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


@pytest.mark.parametrize("value, tied", [(0.3, True), (1e30, False)])
@by_case
def test_rows_that_pad_a_student_change_no_bit_and_have_no_gradient(name, settings, value, tied):
    divergence, scorer, teacher = objective(name, settings), Scorer(0.9, FORBIDDEN, VOCAB, chunk=4), network(seed=1)
    plain = network(vocab_size=VOCAB, tie_word_embeddings=tied)
    found = []
    for student in (plain, padded(plain, 64, value)):
        values, _ = compared(divergence, student, [teacher] * 4, scorer)
        found.append((values, gradients(values, student)))
    assert torch.equal(found[0][0], found[1][0]) and found[0][0].any()
    for parameter, gradient in found[0][1].items():
        other = found[1][1][parameter]
        assert torch.equal(other[: len(gradient)], gradient) and not other[len(gradient) :].any(), parameter


def test_a_kept_head_is_a_copy_without_the_padding():
    model = network(PhiConfig)
    head = Scorer(1.0, (), VOCAB).head(model)
    kept = head.kept()
    assert isinstance(kept, Head) and kept.weight.shape == (VOCAB, 16) and kept.bias.shape == (VOCAB,)
    assert head.weight.requires_grad and not kept.weight.requires_grad and not kept.bias.requires_grad
    with torch.no_grad():
        model.lm_head.weight += 1
        model.lm_head.bias += 1
    assert torch.equal(kept.weight + 1, head.weight[:VOCAB]) and torch.equal(kept.bias + 1, head.bias[:VOCAB])
    assert kept.to(torch.device("cpu")).softcap is None


@torch.no_grad()
@pytest.mark.parametrize("config, kwargs", [(Gemma2Config, {"final_logit_softcapping": 3.0}), (PhiConfig, {})])
def test_caps_and_biases_of_both_heads_are_applied(config, kwargs):
    student, teacher = network(config, **kwargs), network(config, seed=1, **kwargs)
    for model in (student, teacher):
        if config is PhiConfig:
            model.lm_head.bias.normal_()
    divergence = objective("reverse", {})
    values, batch = compared(divergence, student, [teacher] * 4, Scorer(0.7, FORBIDDEN, VOCAB, chunk=3))
    wanted = naively_compared(divergence, student, [teacher] * 4, batch, 0.7, FORBIDDEN)
    assert torch.allclose(values, wanted, atol=1e-5) and isinstance(
        Scorer(1.0, (), VOCAB)(student, *told(batch)), StudentOutput
    )
