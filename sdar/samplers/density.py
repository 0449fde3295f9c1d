"""The density that a token is sampled from, and how one is drawn with a named random number. Pure functions."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.parts import SampleKey

LARGE = 4096
"""Vocabularies of so many tokens are worth a second way."""
PIECE = 256
"""Tokens that are summed up before they are gone through one by one."""


def truncate(logits: Tensor, temperature: float, top_k: int, top_p: float, forbidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-density that is sampled from, and the log-mass that it kept of the tempered softmax.

    Order: temperature, forbidden ids, top-k, top-p, renormalise. Temperature 0 is greedy (top-k 1 at temperature 1).

    Args:
        logits: ``[batch, vocab]``.
        forbidden: bool ``[vocab]``, True where a turn may not go.

    Returns:
        log-density ``[batch, vocab]`` (-inf outside of the support) and kept log-mass ``[batch]``, both float64, in nats.
    """
    scores = logits.double()
    if temperature == 0.0:
        top_k = 1
    else:
        scores = scores / temperature
    everything = torch.logsumexp(scores, -1)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -math.inf)
    if 0 < top_k < scores.shape[-1]:
        # the first of equal ones, either way
        ranked = scores.argmax(-1, keepdim=True) if top_k == 1 else scores.sort(dim=-1, descending=True, stable=True).indices
        order = ranked[:, :top_k]
        scores = torch.full_like(scores, -math.inf).scatter(-1, order, scores.gather(-1, order))
    if top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        # the first token always stays; a mass that is top_p but for rounding has reached it
        outside = probability.cumsum(-1) - probability >= top_p * (1 - 1e-12)
        scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -math.inf)
    kept = torch.logsumexp(scores, -1)
    return scores - kept[:, None], kept - everything


def draw(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float, forbidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row from the density of `truncate`, as `inverse_cdf` chooses it: ids, their log-density and the kept log-mass,
    ``[batch]`` each, the last two float64.

    Where nothing is truncated a large vocabulary is gone through in the logits' own precision (at least float32), summed up in float64.
    """
    if logits.shape[-1] < LARGE or temperature == 0.0 or 0 < top_k < logits.shape[-1] or top_p < 1.0:
        log_density, kept = truncate(logits, temperature, top_k, top_p, forbidden)
        chosen = inverse_cdf(log_density, uniforms)
        return chosen, log_density.gather(-1, chosen[:, None])[:, 0], kept
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if temperature != 1.0:
        scores /= temperature
    outside = None
    if forbidden is not None:
        ids = forbidden.nonzero()[:, 0]
        outside = scores.index_select(-1, ids).double()
        scores.index_fill_(-1, ids, -math.inf)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()  # a large tensor is gone through as often as must be, and no other one made
    chosen, total = _first_beyond(weights, uniforms)
    mass = weights.gather(-1, chosen[:, None])[:, 0].double()
    kept = torch.zeros_like(total)
    if outside is not None:
        kept = total.log()
        kept = kept - torch.logaddexp(kept, (outside - top).logsumexp(-1))
    return chosen, (mass / total).log(), kept


def _first_beyond(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the first place at which the cumulative weight exceeds its share of the total, and the total, in float64."""
    size = weights.shape[-1]
    whole = size - size % PIECE
    sums = weights[:, :whole].unflatten(-1, (-1, PIECE)).sum(-1)
    sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1).double()
    cumulative = sums.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum(uniforms * total, total.nextafter(torch.zeros_like(total)))[:, None]
    piece = torch.searchsorted(cumulative, target, right=True)
    places = piece * PIECE + torch.arange(PIECE, device=weights.device)
    within = weights.gather(-1, places.clamp_max(size - 1)).double().masked_fill(places >= size, 0.0)
    inner = (cumulative - sums).gather(-1, piece) + within.cumsum(-1)
    found = torch.searchsorted(inner, target, right=True).clamp_max(PIECE - 1)
    likeliest = within.argmax(-1, keepdim=True)  # where rounding leads past what has weight
    found = found.where(within.gather(-1, found) > 0, likeliest)
    return (piece * PIECE + found)[:, 0], total


def inverse_cdf(log_density: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row: the first whose cumulative probability exceeds the row's uniform number in [0, 1)."""
    cumulative = log_density.exp().cumsum(-1)
    target = (uniforms * cumulative[:, -1])[:, None]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(log_density.shape[-1] - 1)


def uniform(key: SampleKey, position: int) -> float:
    """The uniform number in [0, 1) that belongs to one token of one response, and to nothing else."""
    name = f"{key.seed}\x1f{key.task}\x1f{key.attempt}\x1f{key.turn}\x1f{position}".encode()
    return (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def uniforms(keys: Sequence[SampleKey], position: int) -> Tensor:
    """``[batch]`` float64."""
    return torch.tensor([uniform(key, position) for key in keys], dtype=torch.float64)
