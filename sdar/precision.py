"""In which number format weights are held and multiplied where no setting says it.

Weights that nobody trains are held in bfloat16 if they are stored so: nothing is lost. Those that are trained stay in float32, where small
steps move them, and only products may be in bfloat16. Either is worth it where the device multiplies bfloat16 itself, and the network is
large enough for products to be what takes the time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

SMALL = 30_000_000
"""A network of fewer weights is left in float32."""
PROCESSORS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16", "avx10_2": "AVX10.2", "bf16": "bf16 of Arm"}
"""What torch calls a processor's instructions for products of bfloat16, and what others call them."""

_device: ContextVar[torch.device | None] = ContextVar("device", default=None)


@contextmanager
def placed_on(device: torch.device) -> Iterator[None]:
    """Within it, networks are made for this device; elsewhere for a GPU, if there is one."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def bfloat16_unit(device: torch.device | None = None) -> str | None:
    """What multiplies bfloat16 on a device, in words; None: it would be emulated, slower than float32.

    Args:
        device: By default the one that networks are made for.
    """
    device = device or _device.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        return next((name for flag, name in PROCESSORS.items() if known.get(flag)), None)
    return None
