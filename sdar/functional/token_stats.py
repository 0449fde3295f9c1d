"""Log-probability and entropy of every token from hidden states, without ever holding ``[tokens, vocab]`` logits.

One float32 logit tensor of 32,768 tokens and a vocabulary of 152,000 is 18.6 GiB, and a log-softmax with its graph keeps
several. Here chunks of tokens are projected, reduced to a few numbers each and dropped; the backward pass projects them again
and writes the gradient of the logits down in closed form.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sdar.errors import ConfigError
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
    chunk: int = 1024,
) -> TokenStats:
    """Statistics of the distribution softmax(cap(hidden @ weight.T + bias) / temperature) restricted to the allowed ids.

    Value:    exact, whatever `chunk` is.
    Gradient: exact, of all three outputs, with respect to `hidden`, `weight` and `bias`; once differentiable.

    Matrix products take the inputs in their own precision (or in that of an active autocast) and deliver float32; everything
    behind them, and the sum of the weight's gradient over chunks, is float32. At most a few ``[chunk, vocab]`` tensors live at
    a time.

    Args:
        hidden: ``[N, H]``, states that predict the targets. Select the response tokens first: others cost as much.
        weight: ``[V, H]``, the head. Pass ``weight[:len(tokenizer)]`` to leave rows that pad the vocabulary out.
        targets: ``[N]`` token ids.
        bias: ``[V]``.
        forbidden_ids: ids with probability zero, as a sampler masks them; ids of V and above have no row and are skipped.
        softcap: cap(z) = softcap * tanh(z / softcap).
        chunk: tokens that are projected at a time.

    Raises:
        ConfigError: a setting that no distribution has.
        ValueError: a target that is forbidden or outside of the vocabulary.
    """
    vocab = weight.shape[0]
    _check_settings(temperature, softcap, chunk)
    forbidden = _forbidden(forbidden_ids, vocab, weight.device)
    _check_targets(targets, forbidden, vocab)
    precision = torch.promote_types(hidden.dtype, weight.dtype)
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and precision != torch.float64:
        precision = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        logp, entropy, logmass = _TokenStats.apply(  # type: ignore[no-untyped-call]
            hidden.to(precision), weight.to(precision), bias, targets, forbidden, float(temperature), softcap, chunk
        )
    return TokenStats(logp, entropy, logmass)


def vocabulary_log_probs(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    forbidden_ids: Sequence[int] = (),
    softcap: float | None = None,
) -> Float[Tensor, "N V"]:
    """Log-probabilities ``[N, V]`` of the distribution of `chunked_token_stats`; for a chunk of tokens at a time.

    Forbidden ids get the lowest finite number. Matrix products as there: inputs in their own precision, float32 out.

    Value and gradient: exact.
    """
    _check_settings(temperature, softcap, 1)
    forbidden = _forbidden(forbidden_ids, weight.shape[0], weight.device)
    kind = weight.device.type
    precision = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(kind) and precision != torch.float64:
        precision = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        logits = _WideMatmul.apply(hidden.to(precision), weight.to(precision))  # type: ignore[no-untyped-call]
        if bias is not None:
            logits = logits + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        if forbidden.numel():
            logits = logits.index_fill(1, forbidden, -torch.inf)
        return log_probs(logits).clamp_min(torch.finfo(logits.dtype).min)


class _WideMatmul(torch.autograd.Function):
    """hidden @ weight.T in at least float32, whatever the inputs are; the gradients have the inputs' types."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return _wide_matmul(hidden, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        narrow = grad.to(hidden.dtype)
        return (
            _wide_matmul(narrow, weight).to(hidden.dtype) if ctx.needs_input_grad[0] else None,
            _wide_matmul(narrow.t(), hidden).to(weight.dtype) if ctx.needs_input_grad[1] else None,
        )


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        forbidden: Tensor,
        temperature: float,
        softcap: float | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logp)
        logmass = torch.zeros_like(logp)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], weight, bias, softcap).div_(temperature)
            all_logp, odds, _ = _restrict(logits, forbidden)
            logp[rows] = all_logp.gather(1, targets[rows, None])[:, 0]
            entropy[rows] = all_logp.exp().mul_(all_logp).sum(1).neg_()
            if odds is not None:
                logmass[rows] = -F.softplus(odds)
        ctx.save_for_backward(hidden, weight, bias, targets, forbidden, entropy)
        ctx.settings = (temperature, softcap, chunk)
        ctx.set_materialize_grads(False)
        return logp, entropy, logmass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):  # also when called inside of an autocast
            return _TokenStats.gradients(ctx, *grads)

    @staticmethod
    def gradients(
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, grad_mass: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, bias, targets, forbidden, entropy = ctx.saved_tensors
        temperature, softcap, chunk = ctx.settings
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=entropy.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=entropy.dtype) if needs_bias else None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], weight, bias, softcap)
            slope = None if softcap is None else 1 - (logits / softcap).square_()
            all_logp, odds, forbidden_logp = _restrict(logits.div_(temperature), forbidden)
            p = all_logp.exp()
            # With p the restricted softmax, q that of the forbidden ids among themselves and f the mass of the forbidden:
            #   d logp    = onehot(target) - p;   d entropy = -p (log p + entropy);   d logmass = f (p - q)
            # Products with p come first: log p of an impossible id is a huge finite number, and p times it is zero.
            grad = all_logp.add_(entropy[rows, None]).mul_(p).mul_(0.0 if grad_entropy is None else -grad_entropy[rows, None])
            scale = torch.zeros_like(entropy[rows])
            if grad_logp is not None:
                scale -= grad_logp[rows]
            forbidden_grad = None
            if grad_mass is not None and odds is not None and forbidden_logp is not None:
                mass = grad_mass[rows] * torch.sigmoid(odds)
                scale += mass
                forbidden_grad = -mass[:, None] * forbidden_logp.exp()
            grad.add_(p.mul_(scale[:, None]))
            if forbidden_grad is not None:
                grad.index_copy_(1, forbidden, forbidden_grad)
            if grad_logp is not None:
                grad.scatter_add_(1, targets[rows, None], grad_logp[rows, None])
            if slope is not None:
                grad.mul_(slope)
            grad.div_(temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = _wide_matmul(grad, weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += _wide_matmul(grad.t(), hidden[rows])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = _wide_matmul(hidden, weight.t())
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _restrict(logits: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-softmax over the allowed ids, log-odds forbidden : allowed, log-softmax over the forbidden; the first in place.

    Impossible ids get the lowest finite number instead of -inf, so that 0 * log 0 is 0.
    """
    lost = logits.index_select(1, forbidden) if forbidden.numel() else None
    if lost is not None:
        logits.index_fill_(1, forbidden, -torch.inf)
    normalizer = logits.logsumexp(1, keepdim=True)
    logits.sub_(normalizer).clamp_min_(torch.finfo(logits.dtype).min)
    if lost is None:
        return logits, None, None
    lost_normalizer = lost.logsumexp(1, keepdim=True)
    return logits, (lost_normalizer - normalizer)[:, 0], lost - lost_normalizer


_MM_WIDENS = "dtype" in torch.ops.aten.mm.overloads()  # type: ignore[no-untyped-call]
"""Whether this torch can multiply bfloat16 matrices into float32 (on CUDA)."""


def _wide_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in at least float32: rounding logits to bfloat16 would put an error of 0.06 nats on a logit of 20."""
    if a.dtype == torch.bfloat16 and a.is_cuda and _MM_WIDENS:
        return torch.mm(a, b, out_dtype=torch.float32)
    wide = torch.promote_types(a.dtype, torch.float32)
    return a.to(wide) @ b.to(wide)


def _forbidden(ids: Sequence[int], vocab: int, device: torch.device) -> Tensor:
    unique = sorted(set(ids))
    if unique and unique[0] < 0:
        raise ConfigError(f"forbidden_ids holds {unique[0]}: token ids are not negative. Remove it.")
    unique = [i for i in unique if i < vocab]
    if len(unique) == vocab:
        raise ConfigError(f"forbidden_ids holds all {vocab} ids of the vocabulary: nothing can be sampled. Allow some.")
    return torch.tensor(unique, dtype=torch.long, device=device)


def _check_settings(temperature: float, softcap: float | None, chunk: int) -> None:
    if not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}: logits are divided by it, and greedy decoding has no density. "
            "Use the temperature above 0 that the rollout sampled with."
        )
    if softcap is not None and not softcap > 0:
        raise ConfigError(f"softcap is {softcap}: logits are bounded by it. Use a number above 0, or null for no bound.")
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}: it is the number of tokens projected at a time. Use 1 or more, e.g. 1024.")


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
