"""The one reduction: every loss in the package becomes a number here."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from sdar.functional.precision import widen


def masked_mean(
    values: Float[Tensor, "*tokens"], mask: Shaped[Tensor, "*tokens"], normalizer: Tensor | float | None = None
) -> Float[Tensor, ""]:
    """sum(mask * values) / normalizer, a scalar; the normalizer is the number of tokens in `mask` if none is given.

    Give the number of tokens of the *whole* optimizer step as `normalizer`, and the sum over micro-batches is the same for
    any split of the step. A mask without a token gives 0 with a graph (its gradient is zero), so that every rank can take
    part in a backward pass. Values outside of the mask do not matter, not even when they are not finite.

    Args:
        mask: 0/1 or bool, shaped like `values`.
    """
    if mask.shape != values.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, values have {tuple(values.shape)}: a broadcast mask would count its tokens "
            "wrongly. Expand the mask first."
        )
    mask = mask.bool()
    total = widen(values).where(mask, 0.0).sum()
    count = mask.sum()
    if normalizer is None:
        return total / count.clamp_min(1)
    return total / torch.where(count > 0, torch.as_tensor(normalizer, dtype=total.dtype, device=total.device), 1.0)
