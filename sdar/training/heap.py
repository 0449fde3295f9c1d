"""Memory of the process that nobody uses any more goes back to the system between the parts of an iteration.

The C library keeps what was freed for later. Tensors of each iteration have other sizes, which do not fit into the gaps that earlier ones
left: the process would grow although it holds no more than before.
"""

import ctypes
from collections.abc import Callable
from functools import cache


def return_freed() -> None:
    """Give back what is free; nothing where the C library cannot (it is glibc's)."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
