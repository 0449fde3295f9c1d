"""Half-precision tensors are widened before any arithmetic: a gap of two bfloat16 log-probabilities is mostly rounding."""

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is narrower (or integer), else unchanged: float64 stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
