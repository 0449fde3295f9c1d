"""Many processes: what they tell each other, how networks lie on them, and Lightning's strategies made for it."""

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from sdar.distributed.direct import ReplicatedStrategy as ReplicatedStrategy
from sdar.distributed.fsdp import FSDP2Strategy as FSDP2Strategy

StrategyRegistry.register("fsdp2", FSDP2Strategy, "All states in parts, by torch alone", override=True)


def __getattr__(name: str) -> Any:
    if name == "ZeROStrategy":  # DeepSpeed is an extra, and slow to import
        from sdar.distributed.zero import ZeROStrategy

        return ZeROStrategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
