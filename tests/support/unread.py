"""Where nobody may ask a tensor for its number, or for how many elements a mask has: both would wait for a device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Unread(TorchDispatchMode):
    asks = tuple(getattr(torch.ops.aten, name) for name in ("_local_scalar_dense", "nonzero", "masked_select", "index"))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in self.asks, function
        return function(*args, **(kwargs or {}))
