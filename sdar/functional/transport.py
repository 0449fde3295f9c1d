"""Entropic optimal transport between two windows of token embeddings, as TOPD compares near futures (arXiv 2606.00305).

The paper names neither the ground cost, nor the regulariser, nor the embeddings. Ours: 1 - cosine, 0.05, uniform mass over the
tokens of a window; whose embeddings, the caller decides. Tensors are batched: windows of n and m tokens.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from sdar.errors import ConfigError
from sdar.functional.precision import widen


def transport_plan(
    cost: Float[Tensor, "batch n m"],
    source_mask: Shaped[Tensor, "batch n"],
    target_mask: Shaped[Tensor, "batch m"],
    regularization: float = 0.05,
    iterations: int = 50,
) -> Float[Tensor, "batch n m"]:
    """The plan P that minimises <P, cost> + regularization sum P log P between uniform masses. ``[batch, n, m]``, detached.

    Sinkhorn's iteration on logarithms. It ends with the source: each source token sends exactly 1 / (their number), and what
    the target tokens receive comes close to theirs as iterations grow; a smaller regulariser needs more. Tokens outside of
    their mask send and receive nothing, whatever their cost; a pair with an empty window has the zero plan.

    Args:
        cost: ``[batch, n, m]``.
        source_mask: ``[batch, n]``.
        target_mask: ``[batch, m]``.

    Raises:
        ConfigError: a regulariser that is not positive, no iteration.
    """
    if not (regularization > 0 and iterations >= 1):
        raise ConfigError(
            f"transport regularization is {regularization} and iterations is {iterations}: costs are divided by the one, and "
            "the plan is made by the other. Use a regularization above 0, e.g. 0.05, and at least 1 iteration, e.g. 50."
        )
    source, target = source_mask.bool(), target_mask.bool()
    pairs = source[:, :, None] & target[:, None, :]
    scores = (-widen(cost).detach() / regularization).where(pairs, -torch.inf)
    log_source = -source.sum(1).clamp_min(1).to(scores.dtype).log()[:, None]
    log_target = -target.sum(1).clamp_min(1).to(scores.dtype).log()[:, None]
    # Potentials outside of the masks are -inf - -inf; zero is as good as any, since the scores there are -inf.
    f = torch.zeros_like(scores[:, :, 0])
    for _ in range(iterations):
        g = (log_target - (scores + f[:, :, None]).logsumexp(1)).where(target, 0.0)
        f = (log_source - (scores + g[:, None, :]).logsumexp(2)).where(source, 0.0)
    return (scores + f[:, :, None] + g[:, None, :]).exp().where(pairs, 0.0)


def window_distance(
    source: Float[Tensor, "batch n dim"],
    target: Float[Tensor, "batch m dim"],
    source_mask: Shaped[Tensor, "batch n"],
    target_mask: Shaped[Tensor, "batch m"],
    regularization: float = 0.05,
    iterations: int = 50,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch n m"]]:
    """<P, 1 - cosine> in [0, 2], ``[batch]``, and the `transport_plan` P, ``[batch, n, m]``; 0 for an empty window.

    Value:    the cost of the plan, without the entropy term; above the unregularised distance by at most
              regularization ln(min(n, m)) once the plan has converged.
    Gradient: P times that of the costs, which is exact for the regularised objective (the plan is at its minimum).

    Args:
        source: ``[batch, n, dim]`` embeddings of any length; they are normalised here.
        target: ``[batch, m, dim]``.
    """
    source, target = (
        F.normalize(widen(tokens).where(mask.bool()[:, :, None], 0.0), dim=-1)
        for tokens, mask in ((source, source_mask), (target, target_mask))
    )
    cost = 1 - source @ target.transpose(1, 2)
    plan = transport_plan(cost, source_mask, target_mask, regularization, iterations)
    return (plan * cost).sum((1, 2)), plan
