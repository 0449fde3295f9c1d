"""Memory of the process that nobody uses any more goes back to the system between the parts of an iteration.

The C library keeps what was freed for later. Tensors of each iteration have other sizes, which do not fit into the gaps that earlier ones
left: the process would grow although it holds no more than before.

So would oneDNN, which multiplies bfloat16 on processors: it keeps what it compiled for each of the last 1,024 shapes, twice, half a
megabyte and more a shape. A micro-batch has fewer than a hundred, and the next one, of other lengths, has others.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

import torch

for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when the first such product is computed
    os.environ.setdefault(_name, "128")


def return_freed() -> None:
    """Give back what is free; nothing where the C library cannot (it is glibc's)."""
    if (trim := _trim()) is not None:
        trim(0)


def peak_memory(device: torch.device) -> float | None:
    """GiB of a GPU that tensors took at most since the process began; on a processor the largest resident set of this process, without
    those of worlds and servers. None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
