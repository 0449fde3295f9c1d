"""Numbers as they are written: with the digits that float32 has."""

import math
from collections.abc import Sequence

import numpy as np

DIGITS = 7
"""Significant ones."""
FEW = 32
"""Numbers that are rounded one by one: numpy takes as long for one as for these."""


def rounded(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Numbers to `DIGITS` significant digits; what is not finite is None."""
    if len(values) <= FEW:
        return [float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in values]
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    size = np.abs(np.where(finite & (values != 0), values, 1.0))
    scale = 10.0 ** np.clip(DIGITS - 1 - np.floor(np.log10(size)), -300, 300)
    out: list[float | None] = (np.round(np.where(finite, values, 0.0) * scale) / scale).tolist()
    return out if finite.all() else [value if known else None for value, known in zip(out, finite.tolist(), strict=True)]
