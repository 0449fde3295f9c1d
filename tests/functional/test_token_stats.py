"""Tiled statistics against a naive softmax, and that neither logits nor a second gradient of the head is ever made."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdar.errors import ConfigError
from sdar.functional import TokenStats, chunked_token_stats, vocabulary_log_probs, vocabulary_top_k
from sdar.functional.head import Projection, pieces

TOKENS, HIDDEN, VOCAB = 6, 4, 9
TARGETS = torch.tensor([0, 5, 2, 8, 7, 5])
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"forbidden_ids": (1, 3)},
    {"forbidden_ids": (3, 1, 1, VOCAB + 4), "temperature": 1.7, "softcap": 2.0},
    {"forbidden_ids": (3,), "temperature": 1.7, "softcap": 2.0, "scale": 0.3},
]


def inputs(dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, HIDDEN), (VOCAB, HIDDEN), (VOCAB,))
    hidden, weight, bias = (torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes)
    return hidden, weight, bias


def naive(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    forbidden_ids: tuple[int, ...] = (),
    softcap: float | None = None,
    scale: float = 1.0,
    vocab: int | None = None,
) -> TokenStats:
    weight, bias = weight[:vocab], None if bias is None else bias[:vocab]
    logits = scale * hidden @ weight.t() + (0 if bias is None else bias)
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    allowed = torch.tensor([i for i in range(weight.shape[0]) if i not in forbidden_ids])
    logp = logits[:, allowed].log_softmax(-1)
    position = (targets[:, None] == allowed).long().argmax(1)
    return TokenStats(
        logp.gather(1, position[:, None])[:, 0],
        -(logp.exp() * logp).sum(-1),
        logits[:, allowed].logsumexp(-1) - logits.logsumexp(-1),
    )


def test_golden() -> None:
    # one hidden unit of 1: the weights are the logits 0, ln 2, ln 5. Probabilities 1/8, 2/8, 5/8; without id 2: 1/3, 2/3.
    hidden, weight = torch.ones(1, 1), torch.tensor([[1.0], [2.0], [5.0]]).log()
    free = chunked_token_stats(hidden, weight, torch.tensor([1]))
    assert free.logp.item() == pytest.approx(math.log(2 / 8))
    assert free.entropy.item() == pytest.approx(-sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)))
    assert free.allowed_logmass.item() == 0.0
    masked = chunked_token_stats(hidden, weight, torch.tensor([1]), forbidden_ids=(2,))
    assert masked.logp.item() == pytest.approx(math.log(2 / 3))
    assert masked.entropy.item() == pytest.approx(-sum(p * math.log(p) for p in (1 / 3, 2 / 3)))
    assert masked.allowed_logmass.item() == pytest.approx(math.log(3 / 8))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("chunk", range(1, TOKENS + 2))
def test_chunked_is_naive_for_every_chunk_size(chunk: int, setting: dict[str, Any]) -> None:
    hidden, weight, bias = inputs()
    upstream = torch.randn(3, TOKENS, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def gradients(stats: TokenStats) -> tuple[Tensor, ...]:
        return torch.autograd.grad((torch.stack(list(stats)) * upstream).sum(), (hidden, weight, bias))

    actual = chunked_token_stats(hidden, weight, TARGETS, bias=bias, chunk=chunk, **setting)
    expected = naive(hidden, weight, TARGETS, bias=bias, **setting)
    for a, b in zip((*actual, *gradients(actual)), (*expected, *gradients(expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_gradcheck(chunk: int, setting: dict[str, Any]) -> None:
    assert torch.autograd.gradcheck(
        lambda h, w, b: tuple(chunked_token_stats(h, w, TARGETS, bias=b, chunk=chunk, **setting)), inputs()
    )


@pytest.mark.parametrize("output", TokenStats._fields)
def test_each_output_has_its_own_gradient(output: str) -> None:
    hidden, weight, _ = inputs()
    wanted = [
        torch.autograd.grad(getattr(f(hidden, weight, TARGETS, forbidden_ids=(1,)), output).sum(), (hidden, weight))
        for f in (chunked_token_stats, naive)
    ]
    for a, b in zip(*wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, _ = inputs()
    chunked_token_stats(hidden, weight.detach(), TARGETS).logp.sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_the_same_numbers_with_and_without_a_graph() -> None:
    hidden, weight, _ = inputs(torch.float32)
    with torch.no_grad():
        plain = chunked_token_stats(hidden, weight, TARGETS, chunk=2)
    graph = chunked_token_stats(hidden, weight, TARGETS, chunk=2)
    assert graph.logp.requires_grad and not plain.logp.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(plain, graph, strict=True))


def test_half_precision_inputs_are_not_rounded_on_the_way() -> None:
    hidden, weight, bias = inputs(torch.bfloat16)
    stats = chunked_token_stats(hidden, weight, TARGETS, bias=bias, chunk=4)
    expected = naive(hidden.double(), weight.double(), TARGETS, bias=bias.double())
    for a, b in zip(stats, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, atol=2e-6, rtol=0)
    stats.logp.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_autocast_lowers_the_inputs_only() -> None:
    hidden, weight, _ = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        stats = chunked_token_stats(hidden, weight, TARGETS)
    expected = naive(hidden.bfloat16().double(), weight.bfloat16().double(), TARGETS)
    assert stats.logp.dtype == torch.float32
    torch.testing.assert_close(stats.logp.double(), expected.logp, atol=2e-6, rtol=0)
    stats.entropy.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_the_weight_gradient_of_many_chunks_is_summed_in_float32() -> None:
    # 512 equal contributions: a bfloat16 running sum would stop growing at 256 of them
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    grads = []
    for chunk in (1, 512):
        weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
        stats = chunked_token_stats(hidden, weight, torch.zeros(512, dtype=torch.long), chunk=chunk)
        stats.logp.sum().backward()
        grads.append(weight.grad)
    assert grads[0] is not None and torch.equal(grads[0], grads[1]) and grads[0][0].item() == 256


@contextmanager
def tiles(tokens: int, ids: int) -> Iterator[None]:
    """Tiles of a size, where those in use would hold everything here."""
    with patch.object(Projection, "tiles", lambda self, n, chunk: (list(pieces(n, tokens)), list(pieces(self.vocab, ids)))):
        yield


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_tiles_give_the_naive_values_and_gradients(data: st.DataObject) -> None:
    tokens, hidden_size, rows = (data.draw(st.integers(1, most)) for most in (9, 5, 14))
    vocab = data.draw(st.integers(1, rows))
    forbidden = data.draw(st.sets(st.integers(0, rows + 2), max_size=vocab - 1))
    allowed = [i for i in range(vocab) if i not in forbidden]
    setting = {
        "temperature": data.draw(st.sampled_from([1.0, 0.4, 2.5])),
        "softcap": data.draw(st.sampled_from([None, 1.5])),
        "scale": data.draw(st.sampled_from([1.0, 0.25, 3.0])),
        "forbidden_ids": tuple(forbidden),
        "vocab": vocab,
    }
    dtype, atol = data.draw(st.sampled_from([(torch.double, 1e-11), (torch.float32, 1e-5)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    wide = [
        torch.randn(s, dtype=torch.double, generator=generator) for s in ((tokens, hidden_size), (rows, hidden_size), (rows,))
    ]
    targets = torch.tensor(data.draw(st.lists(st.sampled_from(allowed), min_size=tokens, max_size=tokens)))
    upstream = torch.randn(3, tokens, dtype=torch.double, generator=generator)
    upstream[:, torch.rand(tokens, generator=generator) < 0.3] = 0  # tokens without a loss
    wants_bias, found = data.draw(st.booleans()), []
    for f, precision in ((naive, torch.double), (chunked_token_stats, dtype)):
        given_ = [t.to(precision).requires_grad_() for t in wide[: 3 if wants_bias else 2]]
        bias = {"bias": given_[2]} if wants_bias else {}
        with tiles(data.draw(st.integers(1, tokens)), data.draw(st.integers(1, vocab))):
            stats = torch.stack(list(f(given_[0], given_[1], targets, **bias, **setting)))
            grads = torch.autograd.grad((stats * upstream).sum(), given_, allow_unused=True)
        found.append([stats, *(torch.zeros_like(t) if g is None else g for t, g in zip(given_, grads, strict=True))])
    for expected, actual in zip(*found, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, atol=atol * max(1.0, float(expected.abs().max())), rtol=0)


class Made(TorchDispatchMode):
    """Elements of every memory that tensors made inside have, and rows of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.rows: set[int] = set()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inside = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor) and (at := tensor.untyped_storage().data_ptr()) not in inside:
                self.sizes[at] = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.kept.append(tensor)  # so that no address is used twice
        if "addmm" in str(func):
            self.rows.add(args[1].shape[0])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_as_large_as_the_weight_but_its_gradient(dtype: torch.dtype) -> None:
    tokens, vocab, size = 96, 500, 16
    hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab + 12, size, dtype=dtype, requires_grad=True)
    with tiles(16, 64), Made() as made:
        stats = chunked_token_stats(hidden, weight, torch.zeros(tokens, dtype=torch.long), forbidden_ids=(7,), vocab=vocab)
        torch.autograd.grad(torch.stack(list(stats)).sum(), (hidden, weight))
    largest = sorted(made.sizes.values())
    assert largest[-1] == weight.numel() and largest[-2] <= tokens * size


def test_tokens_without_a_gradient_cost_nothing_in_the_backward_pass() -> None:
    hidden, weight = torch.randn(12, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    stats = chunked_token_stats(hidden, weight, torch.zeros(12, dtype=torch.long))
    with Made() as made:
        (stats.logp * (torch.arange(12) % 4 == 1)).sum().backward()
    assert made.rows == {3, 9}  # of the hidden states, and of the weight's gradient
    assert hidden.grad is not None and hidden.grad.any(1).nonzero().flatten().tolist() == [1, 5, 9]


def test_forbidden_ids_leave_no_nan_behind() -> None:
    hidden, weight, _ = inputs(torch.float32)
    weight.data[3] = 1e4  # the forbidden id would take practically all the mass
    stats = chunked_token_stats(hidden, weight, TARGETS, forbidden_ids=(3,))
    torch.stack(list(stats)).sum().backward()
    assert torch.stack(list(stats)).isfinite().all()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_the_kept_mass_is_precise_at_both_ends() -> None:
    hidden, targets = torch.ones(1, 1), torch.tensor([0])
    tiny = chunked_token_stats(hidden, torch.tensor([[0.0], [-20.0]]), targets, forbidden_ids=(1,)).allowed_logmass
    assert tiny.item() == pytest.approx(-math.exp(-20), rel=1e-4)
    most = chunked_token_stats(hidden, torch.tensor([[0.0], [40.0]]), targets, forbidden_ids=(1,)).allowed_logmass
    assert most.item() == pytest.approx(-40.0)


def test_no_tokens_still_have_a_graph() -> None:
    hidden, weight, _ = inputs()
    stats = chunked_token_stats(hidden[:0], weight, TARGETS[:0])
    stats.logp.sum().backward()
    assert stats.entropy.shape == (0,)
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"forbidden_ids": (2,)}, ValueError, r"target 2 is token id 2, which forbidden_ids excludes: .*would be -inf"),
        ({"forbidden_ids": (-1,)}, ConfigError, r"forbidden_ids holds -1: token ids are not negative"),
        ({"forbidden_ids": range(VOCAB)}, ConfigError, r"forbidden_ids holds all 9 ids .*nothing can be sampled"),
        ({"temperature": 0.0}, ConfigError, r"temperature is 0\.0: logits are divided by it.*Use the temperature"),
        ({"softcap": 0.0}, ConfigError, r"softcap is 0\.0: .*or null for no bound"),
        ({"chunk": 0}, ConfigError, r"chunk is 0: .*Use 1 or more"),
    ],
)
def test_errors_explain_themselves(change: dict[str, Any], error: type[Exception], text: str) -> None:
    hidden, weight, _ = inputs()
    with pytest.raises(error, match=text):
        chunked_token_stats(hidden, weight, TARGETS, **change)


def test_a_target_without_a_row_is_refused() -> None:
    hidden, weight, _ = inputs()
    with pytest.raises(ValueError, match=r"target 3 is token id 8, outside of the vocabulary of 8"):
        chunked_token_stats(hidden, weight[:8], TARGETS)


def test_the_backward_pass_is_the_same_inside_and_outside_of_an_autocast():
    """Manual optimisation calls backward within the precision plugin's context."""

    def gradients(inside):
        torch.manual_seed(0)
        hidden = torch.randn(5, 8, requires_grad=True)
        weight = torch.randn(7, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            stats = chunked_token_stats(hidden, weight, torch.arange(5), chunk=2)
            loss = (stats.logp + stats.entropy).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return hidden.grad, weight.grad

    for inner, outer in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(inner, outer)


# ------------------------------------------------------------------ the whole vocabulary


def naive_log_probs(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    forbidden_ids: tuple[int, ...] = (),
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the allowed ids, and which these are."""
    logits = scale * hidden @ weight.t() + (0 if bias is None else bias)
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / temperature
    allowed = torch.tensor([i for i in range(weight.shape[0]) if i not in forbidden_ids])
    return logits[:, allowed].log_softmax(-1), allowed


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_whole_vocabulary_is_the_naive_log_softmax(setting: dict[str, Any]) -> None:
    hidden, weight, bias = inputs()
    actual = vocabulary_log_probs(hidden, weight, bias=bias, **setting)
    expected, allowed = naive_log_probs(hidden, weight, bias=bias, **setting)
    assert actual.shape == (TOKENS, VOCAB)
    upstream = torch.randn(TOKENS, VOCAB, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    both = ((actual * upstream)[:, allowed], expected * upstream[:, allowed])
    torch.testing.assert_close(*both, atol=1e-12, rtol=1e-10)
    grads = [torch.autograd.grad(values.sum(), (hidden, weight, bias)) for values in both]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradcheck_of_the_whole_vocabulary(setting: dict[str, Any]) -> None:
    _, allowed = naive_log_probs(*inputs()[:2], **setting)
    assert torch.autograd.gradcheck(lambda h, w, b: vocabulary_log_probs(h, w, bias=b, **setting)[:, allowed], inputs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_forbidden_ids_have_the_lowest_finite_number_and_no_gradient(dtype: torch.dtype) -> None:
    hidden, weight, _ = inputs(dtype)
    weight.data[3] = 1e4  # would take practically all the mass
    logp = vocabulary_log_probs(hidden, weight, forbidden_ids=(1, 3))
    assert (logp[:, [1, 3]] == torch.finfo(dtype).min).all() and logp.isfinite().all()
    torch.testing.assert_close(logp.exp().sum(1), torch.ones(TOKENS, dtype=dtype))
    assert (logp.exp() * logp)[:, [1, 3]].eq(0).all()
    logp.sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()
    assert weight.grad is not None and not weight.grad[[1, 3]].any() and weight.grad[0].any()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_whole_vocabulary_and_the_chunks_agree_about_the_targets(setting: dict[str, Any]) -> None:
    hidden, weight, bias = inputs(torch.float32)
    stats = chunked_token_stats(hidden, weight, TARGETS, bias=bias, **setting)
    logp = vocabulary_log_probs(hidden, weight, bias=bias, **setting)
    torch.testing.assert_close(logp.gather(1, TARGETS[:, None])[:, 0], stats.logp, atol=1e-6, rtol=0)
    torch.testing.assert_close(-(logp.exp() * logp).sum(1), stats.entropy, atol=2e-6, rtol=0)


def test_the_whole_vocabulary_from_half_precision_is_not_rounded_on_the_way() -> None:
    hidden, weight, bias = inputs(torch.bfloat16)
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    actual, expected = vocabulary_log_probs(hidden, weight, bias=bias), naive_log_probs(wide[0], wide[1], bias=wide[2])[0]
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=0)
    upstream = torch.randn(TOKENS, VOCAB, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    (actual * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for own, its in zip((hidden, weight, bias), wide, strict=True):
        assert own.grad is not None and its.grad is not None and own.grad.dtype == torch.bfloat16
        # the gradient of a logit is rounded to eight bits before the matrix product, and what comes out once more
        torch.testing.assert_close(own.grad.double(), its.grad, atol=0.02 * float(its.grad.abs().max()), rtol=0)


def test_the_whole_vocabulary_in_an_autocast_is_that_of_lowered_inputs() -> None:
    hidden, weight, _ = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = vocabulary_log_probs(hidden, weight)
    expected, _ = naive_log_probs(hidden.bfloat16().double(), weight.bfloat16().double())
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=0)
    actual[:, 0].sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_a_vocabulary_of_152_064_is_summed_precisely() -> None:
    """torch's own log-softmax is 1e-5 nats off here: as much as many a divergence between neighbouring checkpoints."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.ones(2, 1), 3 * torch.randn(152_064, 1, generator=generator)
    expected = (hidden.double() @ weight.double().t()).log_softmax(1)
    torch.testing.assert_close(vocabulary_log_probs(hidden, weight).double(), expected, atol=2e-6, rtol=0)
    target = torch.tensor([5, 9])
    chunked = chunked_token_stats(hidden, weight, target).logp.double()
    torch.testing.assert_close(chunked, expected.gather(1, target[:, None])[:, 0], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"forbidden_ids": (-1,)}, r"forbidden_ids holds -1"),
        ({"forbidden_ids": range(VOCAB)}, r"forbidden_ids holds all 9 ids"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"softcap": -1.0}, r"softcap is -1\.0"),
    ],
)
def test_the_whole_vocabulary_has_the_same_errors(change: dict[str, Any], text: str) -> None:
    hidden, weight, _ = inputs()
    with pytest.raises(ConfigError, match=text):
        vocabulary_log_probs(hidden, weight, **change)


def test_states_and_head_of_two_precisions_meet_in_the_wider_one() -> None:
    hidden, weight = torch.randn(2, 3), torch.randn(5, 3, dtype=torch.double)
    wide = vocabulary_log_probs(hidden.double(), weight)
    torch.testing.assert_close(vocabulary_log_probs(hidden, weight), wide, atol=0, rtol=0)
    stats = chunked_token_stats(hidden, weight, torch.tensor([1, 4]))
    torch.testing.assert_close(stats.logp, wide[[0, 1], [1, 4]], atol=1e-14, rtol=0)


def test_an_id_just_behind_the_vocabulary_is_skipped_and_a_small_softcap_holds() -> None:
    hidden, weight, targets = torch.randn(2, 3), torch.randn(5, 3), torch.tensor([1, 4])
    plain, with_more = (chunked_token_stats(hidden, weight, targets, forbidden_ids=ids, softcap=0.5) for ids in ((), (5,)))
    assert all(torch.equal(a, b) for a, b in zip(plain, with_more, strict=True))
    assert (plain.logp - math.log(1 / 5)).abs().max() < 1.0  # logits within a band of 1 nat


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("ids", [1, 4, VOCAB])
def test_the_likeliest_ids_are_those_of_the_whole_vocabulary(ids: int, setting: dict[str, Any]) -> None:
    hidden, weight, bias = inputs()
    wanted = vocabulary_log_probs(hidden, weight, bias=bias, **setting).topk(8)  # forbidden ones among them, in the end
    with tiles(4, ids):
        found, logp = vocabulary_top_k(hidden, weight, 8, bias=bias, **setting)
    torch.testing.assert_close(logp, wanted.values, atol=1e-12, rtol=1e-10)
    possible = logp > torch.finfo(torch.double).min
    assert torch.equal(found[possible], wanted.indices[possible]) and not logp.requires_grad
    assert all(len(set(row)) == 8 for row in found.tolist())
