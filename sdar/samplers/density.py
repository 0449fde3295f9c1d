"""The density that a token is sampled from, and how one is drawn with a named random number. Pure functions."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.parts import SampleKey


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
        order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
        scores = torch.full_like(scores, -math.inf).scatter(-1, order, scores.gather(-1, order))
    if top_p < 1.0:
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        probability = ranked.softmax(-1)
        # the first token always stays; a mass that is top_p but for rounding has reached it
        outside = probability.cumsum(-1) - probability >= top_p * (1 - 1e-12)
        scores = scores.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -math.inf)
    kept = torch.logsumexp(scores, -1)
    return scores - kept[:, None], kept - everything


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
