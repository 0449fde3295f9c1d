"""Log-probability and entropy of every token from hidden states, without ever holding ``[tokens, vocab]`` logits.

One float32 logit tensor of 32,768 tokens and a vocabulary of 152,000 is 18.6 GiB, and a log-softmax with its graph keeps
several. Here tiles of tokens and ids are projected, folded into a few numbers for each token and dropped; the backward pass
projects them again and writes the gradient of the logits down in closed form. That is one matrix product in four: three are what
full logits need as well.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sdar.errors import ConfigError
from sdar.functional import triton_tiles
from sdar.functional.head import IDS, Projection, Tile, WeightGradient, add_product, projection
from sdar.functional.vocabulary import log_probs


class TokenStats(NamedTuple):
    """Per token ``[N]``, in nats, float32 (float64 for float64 inputs)."""

    logp: Float[Tensor, " N"]
    """Log-probability of the target under the tempered softmax over the allowed ids."""
    entropy: Float[Tensor, " N"]
    """Of the same distribution."""
    allowed_logmass: Float[Tensor, " N"]
    """Log of the mass that the tempered softmax over *all* ids gives to the allowed ones; 0 when nothing is forbidden."""


def chunked_token_stats(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    forbidden_ids: Sequence[int] = (),
    softcap: float | None = None,
    scale: float = 1.0,
    vocab: int | None = None,
    chunk: int = 1024,
) -> TokenStats:
    """Statistics of the distribution softmax(cap(scale * hidden @ weight.T + bias) / temperature) restricted to the allowed ids.

    Value:    exact, whatever `chunk` is.
    Gradient: exact, of all three outputs, with respect to `hidden`, `weight` and `bias`; once differentiable. Tokens with a zero
              gradient cost nothing in the backward pass.

    Matrix products take the inputs in their own precision (or in that of an active autocast) and deliver float32; everything
    behind them, and the sum of the weight's gradient over tokens, is float32. Beside that gradient, a few tiles of some hundred
    tokens and a thousand ids live at a time (a few thousand each on a GPU).

    Args:
        hidden: ``[N, H]``, states that predict the targets. Select the response tokens first: others cost as much.
        weight: ``[V, H]``, the head.
        targets: ``[N]`` token ids.
        bias: ``[V]``.
        forbidden_ids: ids with probability zero, as a sampler masks them; ids of V and above have no row and are skipped.
        softcap: cap(z) = softcap * tanh(z / softcap).
        scale: what the head's own product is multiplied with.
        vocab: the first rows of the head that count; others pad it and get no gradient. None: all.
        chunk: most tokens that are projected at a time.

    Raises:
        ConfigError: a setting that no distribution has.
        ValueError: a target that is forbidden or outside of the vocabulary.
    """
    head = _projection(hidden, weight, bias, temperature, forbidden_ids, softcap, scale, vocab, chunk)
    _check_targets(targets, torch.tensor(head.forbidden, dtype=torch.long, device=targets.device), head.vocab)
    with torch.autocast(weight.device.type, enabled=False):
        return TokenStats(*_TokenStats.apply(hidden, weight, bias, targets, head, chunk))  # type: ignore[no-untyped-call]


def vocabulary_log_probs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    forbidden_ids: Sequence[int] = (),
    softcap: float | None = None,
    scale: float = 1.0,
    vocab: int | None = None,
) -> Float[Tensor, "N vocab"]:
    """Log-probabilities ``[N, vocab]`` of the distribution of `chunked_token_stats`; for a chunk of tokens at a time.

    Forbidden ids get the lowest finite number. Matrix products as there: inputs in their own precision, float32 out.

    Value and gradient: exact.
    """
    head = _projection(hidden, weight, bias, temperature, forbidden_ids, softcap, scale, vocab, 1)
    with torch.autocast(weight.device.type, enabled=False):
        rows = weight if head.vocab == len(weight) else weight[: head.vocab]
        logits = _WideMatmul.apply(hidden.to(head.precision), rows.to(head.precision), scale)  # type: ignore[no-untyped-call]
        if bias is not None:
            logits = logits + bias[: head.vocab]
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        if head.forbidden:
            logits = logits.index_fill(1, torch.tensor(head.forbidden, device=logits.device), -torch.inf)
        return log_probs(logits).clamp_min(torch.finfo(logits.dtype).min)


@torch.no_grad()
def vocabulary_top_k(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    k: int,
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    forbidden_ids: Sequence[int] = (),
    softcap: float | None = None,
    scale: float = 1.0,
    vocab: int | None = None,
    chunk: int = 1024,
) -> tuple[Int[Tensor, "N {k}"], Float[Tensor, "N {k}"]]:
    """The `k` likeliest ids of each token, likeliest first, and their log-probabilities: those of `vocabulary_log_probs`, which is never
    made.

    Value:    exact.
    Gradient: none.
    """
    head = _projection(hidden, weight, bias, temperature, forbidden_ids, softcap, scale, vocab, chunk)
    rows, columns = head.tiles(len(hidden), chunk)
    lowest = torch.finfo(head.wide).min
    best = hidden.new_full((len(hidden), k), -torch.inf, dtype=head.wide)
    best_ids = torch.zeros_like(best, dtype=torch.long)
    top, total = (best.new_full((len(hidden),), value) for value in (lowest / 4, 0.0))
    tile = Tile(hidden, head.wide, rows, columns)
    with torch.autocast(weight.device.type, enabled=False):
        states = head.operand(hidden)
        for ids in columns:
            block, forbidden = head.operand(head.weight[ids]), head.forbidden_in(ids)
            for at in rows:
                z = head.logits(states[at], block, ids, tile.view(at, ids))
                if forbidden is not None:
                    z.index_fill_(1, forbidden, lowest)
                own = z.topk(min(k, z.shape[1]))
                found = torch.cat([best[at], own.values], 1).topk(k)
                best[at] = found.values
                best_ids[at] = torch.cat([best_ids[at], own.indices + ids.start], 1).gather(1, found.indices)
                _add_exponentials(z, top[at], total[at])
    logp = best.sub_(top[:, None]).sub_(total.log()[:, None]).clamp_min_(lowest)
    return best_ids, logp


class _WideMatmul(torch.autograd.Function):
    """scale * hidden @ weight.T in at least float32, whatever the inputs are; the gradients have the inputs' types."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.scale = scale
        return _wide_product(hidden, weight.t(), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight = ctx.saved_tensors
        narrow = grad.to(hidden.dtype)
        return (
            _wide_product(narrow, weight, ctx.scale).to(hidden.dtype) if ctx.needs_input_grad[0] else None,
            _wide_product(narrow.t(), hidden, ctx.scale).to(weight.dtype) if ctx.needs_input_grad[1] else None,
            None,
        )


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Projection, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logp, found = _fold(hidden, targets, head, chunk)
        logmass = -F.softplus(found.forbidden - found.normalizer) if head.forbidden else torch.zeros_like(logp)
        ctx.save_for_backward(hidden, weight, bias, targets, *found)
        ctx.head, ctx.chunk = head.without_weights(), chunk
        ctx.set_materialize_grads(False)
        return logp, found.entropy, logmass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias, targets, *found = ctx.saved_tensors
        head = replace(ctx.head, weight=weight, bias=bias)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        into = WeightGradient(head, needs_weight, needs_bias)
        told = [g for g in grads if g is not None]
        learned = torch.stack([g != 0 for g in told]).any(0) if told else torch.zeros_like(targets, dtype=torch.bool)
        some = None if bool(learned.all()) else learned.nonzero()[:, 0]

        def pick(tensor: Tensor) -> Tensor:
            return tensor if some is None else tensor[some]

        with torch.autocast(weight.device.type, enabled=False):  # also when called inside of an autocast
            grad_hidden = _unfold(
                pick(hidden), pick(targets), _Sums(*(pick(t) for t in found)),
                [None if g is None else pick(g) for g in grads], head, ctx.chunk, needs_hidden, into,
            )  # fmt: skip
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
            if some is not None:
                grad_hidden = torch.zeros_like(hidden).index_copy_(0, some, grad_hidden)
        return grad_hidden, into.weight, into.bias, None, None, None


class _Sums(NamedTuple):
    """What the backward pass knows of each token ``[N]``."""

    entropy: Tensor
    normalizer: Tensor
    """Log of the summed exponentials of the allowed tempered logits."""
    forbidden: Tensor
    """The same of the forbidden ones."""


def _fold(hidden: Tensor, targets: Tensor, head: Projection, chunk: int) -> tuple[Tensor, _Sums]:
    """One pass over the head, with running sums of exponentials: the targets' log-probabilities, and the sums."""
    rows, columns = head.tiles(len(hidden), chunk)
    lowest = torch.finfo(head.wide).min / 2
    tile, other = (Tile(hidden, head.wide, rows, columns) for _ in range(2))
    wanted = hidden.new_zeros(len(hidden), dtype=head.wide)  # the target's logit
    top, lost_top = (wanted.new_full(wanted.shape, lowest) for _ in range(2))
    total, lost, weighted = (torch.zeros_like(wanted) for _ in range(3))  # sums of exp(z - top); of exp(z - top) (z - top)
    states = head.operand(hidden)
    fast, excluded = _fast(hidden.device, head.wide), head.excluded()
    for ids in columns:
        weight, forbidden = head.operand(head.weight[ids]), head.forbidden_in(ids)
        for at in rows:
            z = head.logits(states[at], weight, ids, tile.view(at, ids))
            if fast:
                sums = (targets, wanted, top, total, weighted, lost_top, lost)
                triton_tiles.fold(z, excluded, ids.start, [t[at] for t in sums])
                continue
            place, inside = _place(targets[at], ids)
            wanted[at] = torch.where(inside, z.gather(1, place)[:, 0], wanted[at])
            if forbidden is not None:
                _add_exponentials(z.index_select(1, forbidden), lost_top[at], lost[at])
                z.index_fill_(1, forbidden, 2 * lowest)
            before = total[at].clone()
            e, change = _add_exponentials(z, top[at], total[at], other.view(at, ids))
            weighted[at] = (weighted[at] + change * before) * change.exp() + e.mul_(z).sum(1)
    logp = (wanted - top - total.log()).clamp_min_(2 * lowest)
    return logp, _Sums(total.log() - weighted / total, top + total.log(), lost_top + lost.log())


def _unfold(
    hidden: Tensor, targets: Tensor, found: _Sums, grads: Sequence[Tensor | None], head: Projection, chunk: int, needs_hidden: bool,
    into: WeightGradient,
) -> Tensor | None:  # fmt: skip
    """The gradient of `hidden`, and into `into` that of the head. With p the restricted softmax, q that of the forbidden ids among
    themselves and f their mass::

        d logp = onehot(target) - p;   d entropy = -p (log p + entropy);   d logmass = f (p - q)
    """
    rows, columns = head.tiles(len(hidden), chunk)
    tile, spare = (Tile(hidden, head.wide, rows, columns) for _ in range(2))
    grad_logp, grad_entropy, grad_mass = (
        torch.zeros_like(found.entropy) if g is None else g * (head.scale / head.temperature) for g in grads
    )
    grad_mass = grad_mass * torch.sigmoid(found.forbidden - found.normalizer)
    # the gradient is p (of_p - grad_entropy log p), and something at target and forbidden
    of_p = grad_mass - grad_logp - grad_entropy * found.entropy
    told = targets, found.normalizer, found.forbidden, of_p, grad_entropy, grad_logp, grad_mass
    fast, excluded = _fast(hidden.device, head.wide), head.excluded()
    states = head.operand(hidden)
    grad_hidden = torch.zeros_like(hidden, dtype=head.wide) if needs_hidden else None
    for ids in columns:
        weight, forbidden = head.operand(head.weight[ids]), head.forbidden_in(ids)
        into.begin(ids)
        for at in rows:
            z = head.logits(states[at], weight, ids, tile.view(at, ids))
            slope = head.slope(z)
            if fast:
                triton_tiles.unfold(z, excluded, ids.start, [t[at] for t in told])
                grad = z
            else:
                grad = _gradient(
                    z, spare.view(at, ids), targets[at], forbidden, ids, [t[at] for t in told[1:]], grads[1] is not None
                )
            if slope is not None:
                grad.mul_(slope)
            factor = head.operand(grad)
            if grad_hidden is not None:
                add_product(grad_hidden[at], factor, weight)
            into.add(grad, factor, states[at])
        into.end()
    return grad_hidden


def _gradient(
    z: Tensor, spare: Tensor, targets: Tensor, forbidden: Tensor | None, ids: slice, told: Sequence[Tensor], entropy: bool
) -> Tensor:
    """A tile of logits turned into its gradient, in place."""
    normalizer, lost_normalizer, of_p, of_entropy, of_logp, of_mass = (t[:, None] for t in told)
    lost = None
    if forbidden is not None:
        lost = z.index_select(1, forbidden).sub_(lost_normalizer).exp_().mul_(-of_mass)
        z.index_fill_(1, forbidden, torch.finfo(z.dtype).min)
    z.sub_(normalizer)
    if entropy:
        p = torch.exp(z, out=spare)
        # an impossible id's log p is a huge number: p comes first
        grad = torch.addcmul(p * of_p, z.mul_(p), of_entropy, value=-1, out=z)
    else:
        grad = z.exp_().mul_(of_p)
    if lost is not None and forbidden is not None:
        grad.index_copy_(1, forbidden, lost)
    place, inside = _place(targets, ids)
    return grad.scatter_add_(1, place, torch.where(inside[:, None], of_logp, 0.0))


_KERNELS: ContextVar[bool | None] = ContextVar("kernels", default=None)
"""Whether Triton's kernels are used; None: where they prove themselves."""


def _fast(device: torch.device, dtype: torch.dtype) -> bool:
    chosen = _KERNELS.get()
    return _kernels_agree(device) if chosen is None and device.type == "cuda" and dtype == torch.float32 else bool(chosen)


@cache
def _kernels_agree(device: torch.device) -> bool:
    """Compare the kernels with torch's operations on a few tokens of two tiles, once on a device."""
    if not triton_tiles.there():
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = (40, 16), (IDS["cuda"] + 700, 16)
    inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    targets = torch.arange(40, device=device) * 200

    def statistics(kernels: bool) -> list[Tensor]:
        token = _KERNELS.set(kernels)
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                hidden, weight = (t.detach().requires_grad_() for t in inputs)
                stats = torch.stack(chunked_token_stats(hidden, weight, targets, forbidden_ids=(3, IDS["cuda"] + 5)))
                return [stats.detach(), *torch.autograd.grad((stats * stats.detach().sin()).sum(), (hidden, weight))]
        finally:
            _KERNELS.reset(token)

    return triton_tiles.agree(lambda: statistics(True), statistics(False))


def _add_exponentials(z: Tensor, top: Tensor, total: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fold a tile ``[tokens, ids]`` into its tokens' largest logit and sum of exp(z - top), in place.

    Returns:
        The tile's exponentials, and how much lower the largest logit was before; `z` is left as logits minus `top`.
    """
    change = top.clone()
    torch.maximum(top, z.amax(1), out=top)
    change -= top
    e = torch.exp(z.sub_(top[:, None]), out=out)
    total.mul_(change.exp()).add_(e.sum(1))
    return e, change


def _place(targets: Tensor, ids: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in a tile ``[tokens, 1]``, and whether it is there at all ``[tokens]``."""
    return (targets - ids.start).clamp(0, ids.stop - ids.start - 1)[:, None], (targets >= ids.start) & (targets < ids.stop)


def _wide_product(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1], dtype=torch.promote_types(a.dtype, torch.float32))
    return add_product(out, a, b, alpha, 0.0)


def _projection(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, forbidden_ids: Sequence[int], softcap: float | None,
    scale: float, vocab: int | None, chunk: int,
) -> Projection:  # fmt: skip
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}: it is the number of tokens projected at a time. Use 1 or more, e.g. 1024.")
    return projection(
        hidden,
        weight,
        bias=bias,
        vocab=vocab,
        forbidden_ids=forbidden_ids,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
    )


def _check_targets(targets: Tensor, forbidden: Tensor, vocab: int) -> None:
    outside = (targets < 0) | (targets >= vocab)
    bad = outside | torch.isin(targets, forbidden)
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0, 0])
    token = int(targets[row])
    if bool(outside[row]):
        raise ValueError(f"target {row} is token id {token}, outside of the vocabulary of {vocab}: it has no probability.")
    raise ValueError(
        f"target {row} is token id {token}, which forbidden_ids excludes: its log-probability would be -inf. Score with the "
        "forbidden ids of the sampler that produced the response, and leave its context tokens out."
    )
