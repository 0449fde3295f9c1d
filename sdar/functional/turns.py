"""From tokens to turns and back."""

import torch
from torch import Tensor

from sdar.functional.precision import widen


def turn_mean(values: Tensor, response_mask: Tensor, turn_ids: Tensor) -> Tensor:
    """Each response token gets the mean of `values` over the response tokens of its turn; other tokens get 0.

    Differentiable in `values`. Turn ids are any integers; what they and `values` hold outside of the mask does not matter.
    """
    mask = response_mask.bool()
    turns, index = torch.unique(turn_ids, return_inverse=True)
    values = widen(values).where(mask, 0.0)
    zero = values.new_zeros(values.shape[0], turns.shape[0])
    total = zero.scatter_add(1, index, values)
    count = zero.scatter_add(1, index, mask.to(values.dtype))
    return (total / count.clamp_min(1)).gather(1, index).where(mask, 0.0)
