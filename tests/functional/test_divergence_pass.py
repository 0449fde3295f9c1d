"""Divergences from hidden states against the same on full logits: values, gradients, matrix products and memory."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sdar import divergences, functional
from sdar.functional import divergence_pass
from sdar.functional.divergence_pass import Comparison, Teacher, head_divergence
from sdar.functional.head import Projection, logits_at, pieces, projection
from sdar.functional.per_id import with_slope
from sdar.types import StudentTokens, TokenView

DIVERGENCES = [
    divergences.ForwardKL(),
    divergences.ReverseKL(temperature=1.5),
    divergences.JensenShannon(beta=0.3),
    divergences.JensenShannon(beta=0.0),
    divergences.JensenShannon(beta=1.0),
    divergences.SkewForwardKL(),
    divergences.SkewForwardKL(alpha=0.0),
    divergences.SkewReverseKL(alpha=0.4, temperature=0.7),
    divergences.SkewReverseKL(alpha=0.0),
]
by_divergence = pytest.mark.parametrize(
    "divergence", DIVERGENCES, ids=lambda d: " ".join(map(str, [type(d).__name__, *vars(d).values()]))
)
TOKENS, HIDDEN, VOCAB = 11, 4, 13


def plain(divergence, logp, its_logp):
    """On full log-probabilities."""
    zero = logp.new_zeros(len(logp))
    view = TokenView(
        student_logp=zero, entropy=zero, response_mask=zero, turn_ids=zero.long(), advantages=zero, vocab_size=logp.shape[1],
        teacher_logits=its_logp,
    )  # fmt: skip
    return divergence(StudentTokens(zero, zero, logp), view)


def sides(seed=0, dtype=torch.double, rows=VOCAB):
    """Hidden states, head and bias of a student, and of a teacher of another width."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (TOKENS, HIDDEN), (rows, HIDDEN), (rows,), (TOKENS, 3), (rows, 3), (rows,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.double).to(dtype) for shape in shapes]
    return [t.requires_grad_(i < 3) for i, t in enumerate(tensors)]


SETTING = {"forbidden_ids": (2, 7), "temperature": 0.8, "softcap": None, "scale": 1.0}


def taken(objective, tensors, weights, teachers=None, setting=SETTING, vocab=None, chunk=1024, stats=None):
    hidden, weight, bias, its_hidden, its_weight, its_bias = tensors
    student = projection(hidden, weight, bias=bias, vocab=vocab, **setting)
    rows = torch.arange(TOKENS)
    if teachers is None:
        teachers = [Teacher(rows, projection(its_hidden, its_weight, bias=its_bias, vocab=vocab, **setting), its_hidden)]
    logp, entropy = stats or (hidden.new_zeros(TOKENS), hidden.new_zeros(TOKENS))
    return head_divergence(hidden, logp, entropy, student, Comparison(objective, teachers, chunk), weights)


def full(divergence, tensors, setting=SETTING, vocab=None):
    hidden, weight, bias, its_hidden, its_weight, its_bias = tensors
    logp = functional.vocabulary_log_probs(hidden, weight, bias=bias, vocab=vocab, **setting)
    with torch.no_grad():
        its_logp = functional.vocabulary_log_probs(its_hidden, its_weight, bias=its_bias, vocab=vocab, **setting)
    return plain(divergence, logp, its_logp)


def tiles_of(tokens, ids):
    return patch.object(Projection, "tiles", lambda self, n, chunk: (list(pieces(n, tokens)), list(pieces(self.vocab, ids))))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_tiles_and_any_weights_give_the_values_and_gradients_of_full_logits(data):
    divergence = data.draw(st.sampled_from(DIVERGENCES))
    dtype, atol = data.draw(st.sampled_from([(torch.double, 1e-10), (torch.float32, 1e-5)]))
    setting = {
        "forbidden_ids": data.draw(st.sets(st.integers(0, VOCAB), max_size=4)),
        "temperature": data.draw(st.sampled_from([1.0, 0.6, 1.7])),
        "softcap": data.draw(st.sampled_from([None, 2.0])),
        "scale": data.draw(st.sampled_from([1.0, 0.5])),
    }
    vocab = data.draw(st.integers(6, VOCAB))
    tensors = sides(data.draw(st.integers(0, 50)), dtype)
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]
    upstream = torch.randn(TOKENS, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    upstream[data.draw(st.integers(0, TOKENS - 1))] = 0
    told = {"right": 3.0 * upstream, "wrong": upstream + 1.0, "none": None}[
        data.draw(st.sampled_from(["right", "wrong", "none"]))
    ]
    frozen = data.draw(st.booleans())
    for head in (tensors, wide):
        head[1].requires_grad_(not frozen)
        head[2].requires_grad_(not frozen)
    inputs, wanted_inputs = ([t for t in head[:3] if t.requires_grad] for head in (tensors, wide))
    with (
        tiles_of(1, data.draw(st.integers(1, vocab))),
        patch.object(divergence_pass, "LEAST", data.draw(st.integers(1, TOKENS))),
    ):
        values = taken(divergence.per_id(), tensors, None if told is None else told.to(dtype), setting=setting, vocab=vocab)
        actual = torch.autograd.grad((values * upstream).sum(), inputs)
    wanted = full(divergence, wide, setting, vocab)
    expected = torch.autograd.grad((wanted * upstream).sum(), wanted_inputs)
    torch.testing.assert_close(values.double(), wanted, atol=atol, rtol=0)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=atol * max(1.0, float(b.abs().max())), rtol=0)


def term(divergence, a, b):
    """By the definitions, one id at a time."""
    s, t = a.exp(), b.exp()
    beta, alpha = getattr(divergence, "beta", None), getattr(divergence, "alpha", None)
    if isinstance(divergence, divergences.ForwardKL) or beta == 0:
        return t * (b - a)
    if isinstance(divergence, divergences.ReverseKL) or beta == 1:
        return s * (a - b)
    if beta is not None:
        m = (beta * t + (1 - beta) * s).log()
        return beta * t * (b - m) + (1 - beta) * s * (a - m)
    if isinstance(divergence, divergences.SkewForwardKL):
        return t * (b - (alpha * t + (1 - alpha) * s).log())
    return s * (a - (alpha * s + (1 - alpha) * t).log())


@by_divergence
def test_a_slope_is_what_autograd_finds(divergence):
    a, b = (torch.randn(5, 9, dtype=torch.double, generator=torch.Generator().manual_seed(s)).log_softmax(1) for s in (0, 1))
    found = divergence.per_id().term(a, b)
    for value, expected in zip(found, with_slope(lambda *both: term(divergence, *both))(a, b), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    for value in divergence.per_id().term(*torch.full((2, 1, 1), torch.finfo(torch.double).min / 2, dtype=torch.double)):
        assert not value.any()  # a forbidden id


class Products(TorchDispatchMode):
    """Matrix products made inside, and the largest memory."""

    def __init__(self):
        super().__init__()
        self.count, self.largest, self.kept = 0, {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count += "addmm" in str(func)
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.kept.append(tensor)
        return out


@pytest.mark.parametrize("told, forward, backward", [("right", 4, 0), ("none", 2, 4), ("wrong", 4, 4), ("frozen", 3, 0)])
def test_what_the_weights_save(told, forward, backward):
    tensors = sides()
    upstream = torch.arange(1.0, TOKENS + 1).double()
    weights = {"right": 7 * upstream, "wrong": upstream + 1}.get(told)
    for t in tensors[1:3]:
        t.requires_grad_(told != "frozen")
    with Products() as first:
        values = taken(divergences.ReverseKL().per_id(), tensors, weights)
    with Products() as second:
        (values * upstream).sum().backward()
    assert (first.count, second.count) == (forward, backward)


def test_the_gradient_can_be_asked_for_twice():
    tensors = sides()
    values = taken(divergences.ReverseKL().per_id(), tensors, torch.ones(TOKENS).double())
    first = torch.autograd.grad(values.sum(), tensors[:3], retain_graph=True)
    second = torch.autograd.grad(2 * values.sum(), tensors[:3])
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(2 * a, b, atol=1e-12, rtol=0)


def test_no_logits_of_all_tokens_and_one_gradient_of_the_head():
    rows, dtype = 300, torch.float32
    tensors = sides(dtype=dtype, rows=rows)
    with tiles_of(1, 32), patch.object(divergence_pass, "LEAST", 2), Products() as made:
        values = taken(divergences.ReverseKL().per_id(), tensors, torch.ones(TOKENS))
        torch.autograd.grad(values.sum(), tensors[:3])
    inputs = {t.untyped_storage().data_ptr() for t in tensors}
    sizes = sorted(size for at, size in made.largest.items() if at not in inputs)
    assert sizes[-1] == rows * HIDDEN and sizes[-2] == 2 * rows and sizes.count(rows * HIDDEN) == 1


def test_any_function_of_whole_rows_is_taken_with_its_gradient_in_everything_it_reads():
    """As of a divergence of one's own that knows nothing of tiles."""

    def objective(logits, logp, entropy, its_logits, rows):
        allowed = torch.tensor([i for i in range(VOCAB) if i not in SETTING["forbidden_ids"]])
        largest = (logits[:, allowed].exp() - its_logits[:, allowed].exp()).square().amax(1)
        return largest * (1 + rows) + logp * entropy

    for weights in (None, torch.arange(1.0, TOKENS + 1).double()):
        found = []
        for whole in (False, True):
            tensors = sides()
            stats = [torch.linspace(-1, 2, TOKENS, dtype=torch.double).requires_grad_() for _ in range(2)]
            if whole:
                logp = functional.vocabulary_log_probs(tensors[0], tensors[1], bias=tensors[2], **SETTING)
                its = functional.vocabulary_log_probs(tensors[3], tensors[4], bias=tensors[5], **SETTING)
                values = objective(logp, *stats, its, torch.arange(TOKENS))
            else:
                with patch.object(divergence_pass, "LEAST", 8):
                    values = taken(objective, tensors, weights, stats=stats)
            upstream = torch.arange(1.0, TOKENS + 1).double()
            found.append([values, *torch.autograd.grad((values * upstream).sum(), [*tensors[:3], *stats])])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_tokens_of_several_teachers_and_of_none():
    tensors, others = sides(), sides(seed=5)
    rows = torch.tensor([0, 3, 4]), torch.tensor([10, 1])
    teachers = [
        Teacher(at, projection(t[3], t[4], bias=t[5], vocab=None, **SETTING), t[3][at])
        for at, t in zip(rows, (tensors, others), strict=True)
    ]
    values = taken(divergences.ForwardKL().per_id(), tensors, None, teachers)
    for at, t in zip(rows, (tensors, others), strict=True):
        torch.testing.assert_close(values[at], full(divergences.ForwardKL(), [*tensors[:3], *t[3:]])[at], atol=1e-10, rtol=0)
    assert not values[[2, 5, 6, 7, 8, 9]].any()


@pytest.mark.parametrize("softcap, scale", [(None, 1.0), (1.5, 0.5)])
def test_logits_of_a_few_ids_are_those_of_the_whole_head(softcap, scale):
    setting = SETTING | {"softcap": softcap, "scale": scale}
    ids = torch.tensor([[0, 5, 2], [12, 12, 1]] * 5 + [[3, 4, 7]])
    upstream = torch.randn(TOKENS, 3, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    found = []
    for whole in (False, True):
        tensors = sides()
        hidden, weight, bias = tensors[:3]
        if whole:
            z = scale * hidden @ weight.t() + bias
            z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / setting["temperature"]
            z = z.gather(1, ids).masked_fill(
                torch.isin(ids, torch.tensor(setting["forbidden_ids"])), torch.finfo(torch.double).min
            )
        else:
            z = logits_at(hidden, projection(hidden, weight, bias=bias, vocab=None, **setting), ids)
        allowed = z > torch.finfo(torch.double).min
        found.append([z, *torch.autograd.grad((z.where(allowed, 0.0) * upstream).sum(), tensors[:3])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_gpu_takes_wide_tiles_of_few_tokens_and_every_id_once():
    head = projection(torch.zeros(1, 2), torch.zeros(9, 2), bias=None, vocab=None, **SETTING)
    head = replace(head, weight=torch.zeros(150_000, 2, device="meta"), vocab=150_000)  # any device that is no processor
    for rows, least in ((160, 20_000), (4096, 8192)):
        columns = head.columns(rows)
        assert columns[0].stop >= least and [c.start for c in columns[1:]] == [c.stop for c in columns[:-1]]
        assert (
            columns[0].start == 0 and columns[-1].stop == 150_000 and max(c.stop - c.start for c in columns) * rows <= 1 << 26
        )
