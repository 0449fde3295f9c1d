"""A tile of logits folded, and turned into its gradient, by one Triton kernel each: on CUDA the torch operations read it eight times.

The same sums in another order. A process compares both once on its device (`agree`), and the torch operations stay in use where Triton
is not there, does not run, or finds something else.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

try:
    import triton  # type: ignore[import-not-found]
    import triton.language as tl  # type: ignore[import-not-found]
except ImportError:
    triton = None

BLOCK = 1024
"""Ids that a program reads at a time."""

if triton is not None:

    @triton.jit
    def _fold_kernel(
        z_ptr, excluded_ptr, targets_ptr, wanted_ptr, top_ptr, total_ptr, weighted_ptr, lost_top_ptr, lost_ptr, start, width,
        EXCLUDES: tl.constexpr, SIZE: tl.constexpr,
    ):  # fmt: skip
        """A token each: its running largest logit, sum of exponentials e, sum of e (z - top), the same of excluded ids, its target."""
        row = tl.program_id(0).to(tl.int64)
        top, total, weighted = tl.load(top_ptr + row), tl.load(total_ptr + row), tl.load(weighted_ptr + row)
        lost_top, lost = tl.load(lost_top_ptr + row), tl.load(lost_ptr + row)
        for first in range(0, width, SIZE):
            at = first + tl.arange(0, SIZE)
            inside = at < width
            z = tl.load(z_ptr + row * width + at, mask=inside, other=0.0)
            counts = inside
            if EXCLUDES:
                excluded = tl.load(excluded_ptr + start + at, mask=inside, other=0) != 0
                counts = inside & (excluded == 0)
                excluded = inside & excluded
                higher = tl.maximum(lost_top, tl.max(tl.where(excluded, z, lost_top), axis=0))
                lost = lost * tl.exp(lost_top - higher) + tl.sum(tl.where(excluded, tl.exp(z - higher), 0.0), axis=0)
                lost_top = higher
            higher = tl.maximum(top, tl.max(tl.where(counts, z, top), axis=0))
            change = top - higher
            scaled = tl.exp(change)
            e = tl.where(counts, tl.exp(z - higher), 0.0)
            below = tl.where(counts, z - higher, 0.0)
            weighted = (weighted + change * total) * scaled + tl.sum(e * below, axis=0)
            total = total * scaled + tl.sum(e, axis=0)
            top = higher
        tl.store(top_ptr + row, top)
        tl.store(total_ptr + row, total)
        tl.store(weighted_ptr + row, weighted)
        tl.store(lost_top_ptr + row, lost_top)
        tl.store(lost_ptr + row, lost)
        place = tl.load(targets_ptr + row) - start
        if (place >= 0) & (place < width):
            tl.store(wanted_ptr + row, tl.load(z_ptr + row * width + place))

    @triton.jit
    def _unfold_kernel(
        z_ptr, excluded_ptr, targets_ptr, normalizer_ptr, lost_ptr, of_p_ptr, of_entropy_ptr, of_logp_ptr, of_mass_ptr, start, width,
        EXCLUDES: tl.constexpr, SIZE: tl.constexpr,
    ):  # fmt: skip
        """Logits become p (of_p - of_entropy log p), of_logp more at the target, and -of_mass q at excluded ids, in place."""
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        inside = at < width
        z = tl.load(z_ptr + row * width + at, mask=inside, other=0.0)
        logp = z - tl.load(normalizer_ptr + row)
        p = tl.exp(logp)
        grad = p * tl.load(of_p_ptr + row) - tl.load(of_entropy_ptr + row) * (p * logp)  # log p may be a huge number
        if EXCLUDES:
            excluded = tl.load(excluded_ptr + start + at, mask=inside, other=0) != 0
            grad = tl.where(excluded, -tl.load(of_mass_ptr + row) * tl.exp(z - tl.load(lost_ptr + row)), grad)
        grad += tl.where(at + start == tl.load(targets_ptr + row), tl.load(of_logp_ptr + row), 0.0)
        tl.store(z_ptr + row * width + at, grad, mask=inside)


def fold(z: Tensor, excluded: Tensor, start: int, tokens: Sequence[Tensor]) -> None:
    """Fold a tile ``[tokens, ids]`` into what is known of its tokens, in place.

    Args:
        excluded: ``[vocab]`` bool, or empty where nothing is.
        start: The tile's first id.
        tokens: Of each ``[tokens]``: target, its logit, largest logit, sum of exponentials, weighted sum, the excluded ids' largest
            and sum.
    """
    _fold_kernel[(len(z),)](
        z, excluded.view(torch.uint8), *tokens, start, z.shape[1], EXCLUDES=bool(excluded.numel()), SIZE=BLOCK
    )


def unfold(z: Tensor, excluded: Tensor, start: int, tokens: Sequence[Tensor]) -> None:
    """Turn a tile of logits into the gradient of its tokens' statistics, in place.

    Args:
        tokens: Of each ``[tokens]``: target, normaliser, the excluded ids', what multiplies p, p log p, the target's place and the excluded
            ids' softmax.
    """
    grid = (len(z), math.ceil(z.shape[1] / BLOCK))
    _unfold_kernel[grid](
        z, excluded.view(torch.uint8), *tokens, start, z.shape[1], EXCLUDES=bool(excluded.numel()), SIZE=BLOCK
    )


def there() -> bool:
    return triton is not None


def agree(found: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor]) -> bool:
    """Whether what the kernels find is what torch finds; says so where it is not, or where they do not run."""
    try:
        apart = max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(found(), wanted, strict=True))
    except Exception as error:  # whatever Triton, its compiler or its driver raises
        warnings.warn(
            f"Triton's kernels of the vocabulary head do not run here ({error}): torch's operations are used.", stacklevel=2
        )
        return False
    if not apart < 1e-5:
        warnings.warn(
            f"Triton's kernels of the vocabulary head give other numbers than torch's operations ({apart:.2g} apart): torch's are used.",
            stacklevel=2,
        )
    return apart < 1e-5
