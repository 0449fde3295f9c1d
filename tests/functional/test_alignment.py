"""Spans that two tokenisations share, and the gap of a token in them: properties, and the gradient by enumeration."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdar.functional import span_teacher_logp
from sdar.spelling import shared_spans


def cut(text: bytes, borders: set[int]) -> list[bytes]:
    at = [0, *sorted(b for b in borders if 0 < b < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


@given(st.text(max_size=12).map(str.encode), st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)))
def test_spans_are_the_finest_that_end_between_tokens_of_both(text, ours, theirs):
    student, teacher = (cut(text, borders) if text else [] for borders in (ours, theirs))
    spans, others = shared_spans(student, teacher)
    common = {b for b in ours & theirs if b < len(text)}
    assert [len(spans), len(others)] == [len(student), len(teacher)]
    assert spans == sorted(spans) and set(spans) == set(others) == set(range(len(common) + 1 if text else 0))
    for number in set(spans):
        mine, its = (
            b"".join(t for t, n in zip(*side, strict=True) if n == number) for side in ((student, spans), (teacher, others))
        )
        assert mine == its != b""


def test_characters_of_several_bytes_and_tokens_of_none():
    assert shared_spans([b"\xc3", b"\xb6", b"ab"], ["ö".encode(), b"a", b"b"]) == ([0, 0, 1], [0, 1, 1])
    assert shared_spans([b"abc"], [b"a", b"bc"]) == ([0], [0, 0])  # nothing is shared inside
    assert shared_spans([b"a", b"", b"b"], [b"a", b"b", b""]) == ([0, 1, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="two texts of 1 and 2 bytes are not the same one"):
        shared_spans([b"a"], [b"ab"])


def test_the_gap_of_a_span_is_each_of_its_tokens_or_shared_among_them():
    student, spans = torch.tensor([[-1.0, -2.0, -3.0, -0.5]]), torch.tensor([[1, 1, 2, 0]])
    teacher, theirs = torch.tensor([[-9.0, -0.5, -1.0, -0.5]]), torch.tensor([[0, 1, 2, 2]])
    whole = span_teacher_logp(teacher, theirs, student, spans) - student
    shared = span_teacher_logp(teacher, theirs, student, spans, divide=True) - student
    assert whole.tolist() == [[2.5, 2.5, 1.5, 0.0]]  # -0.5 + 3, -1.5 + 3; the last is in no span
    assert shared.tolist() == [[1.25, 1.25, 1.5, 0.0]] and shared.sum() == -2.0 + 6.0


@pytest.mark.parametrize("divide", [False, True])
def test_in_the_mean_the_undivided_gap_is_the_gradient_of_the_kl_over_the_bytes(divide):
    """A student says a, b or ab until it has said two bytes; the teacher's one token is the whole text: no border is shared inside."""
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    spelled = {"ab": torch.log(torch.tensor(0.4)), "aa": math.log(0.1), "ba": math.log(0.2), "bb": math.log(0.3)}
    ways = [(text, (0, 1)) for text in spelled] + [("ab", (2,))]  # two tokens, or the token ab
    kl, surrogate = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    first, second = logits[0].log_softmax(0), logits[1, :2].log_softmax(0)
    for text, kind in ways:
        said = [first["ab".index(text[0])], second["ab".index(text[1])]] if kind == (0, 1) else [first[2]]
        logp = torch.stack(said)
        total, probability = logp.sum(), logp.sum().exp()
        kl = kl + probability * (total - spelled[text])  # of the sampled spelling against the teacher's
        own, spans = logp.detach()[None], torch.ones(1, len(said), dtype=torch.long)
        theirs = torch.as_tensor(float(spelled[text]), dtype=torch.float64)[None, None]
        gap = span_teacher_logp(theirs, torch.ones(1, 1, dtype=torch.long), own, spans, divide) - own
        surrogate = surrogate - probability.detach() * (gap[0] * logp).sum()
    exact, estimated = (torch.autograd.grad(of, logits, retain_graph=True)[0] for of in (kl, surrogate))
    assert torch.allclose(exact, estimated) == (not divide) and exact.norm() > 0.1
