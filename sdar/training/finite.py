"""Where a loss that is no number comes from: what went into it, by name."""

import torch

from sdar.metrics import Metrics
from sdar.types import Batch

INPUTS = (
    "advantages",
    "distill_weights",
    "importance",
    "old_logp",
    "ref_logp",
    "teacher_logp",
    "teacher_top_logp",
    "teacher_hidden",
    "soft_target_logp",
)
"""What a loss is made of beside the current student, by its name in `Batch`."""


def blame(update: Batch, metrics: Metrics) -> str:
    """What was not finite in an update whose loss or gradient was not: inputs of the loss first, else what was computed from them."""
    mask = update.response_mask.bool()
    found = []
    for name in INPUTS:
        if update.has(name) and mask.any():
            chosen = getattr(update, name)[mask]
            if bad := int((~torch.isfinite(chosen)).reshape(len(chosen), -1).any(1).sum()):
                found.append(f"{name} ({bad} of {len(chosen)} tokens)")
    if found:
        return (
            f"What went into the loss was not finite already: {', '.join(found)}. Look where that comes from: a part, the teacher, a "
            "reward; the learning rate is not to blame."
        )
    of_gradient = {"train/loss", "train/grad_norm", "grad/special_share", "grad/top_token_share"}
    computed = sorted(set(metrics.not_finite()) - of_gradient)
    also = f" Of what was computed from it these were not: {', '.join(computed)}." if computed else ""
    advice = "Lower the learning rate, look at the coefficients, or train in a wider precision."
    return f"All that went into the loss was finite.{also} {advice}"
