"""How the networks of a run lie on its ranks, and what an optimizer step needs to know about it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sdar.distributed.communicator import Communicator
from sdar.errors import ConfigError

R = TypeVar("R")
N = TypeVar("N", bound=nn.Module)


class ShardedModule(Protocol):
    """The module whose networks are sharded: what a `Sharding` reads of it."""

    trainer: Any
    ranks: Communicator

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def networks(self) -> Sequence[nn.Module]: ...


class Sharding:
    """One process: every network lies here, unsharded."""

    def __init__(self, module: ShardedModule):
        self.module = module

    def run_as_forward(self, work: Callable[[], R]) -> R:
        """`work` as the module's forward, so that whatever hangs on it happens: a gathering of weights, a reducer's preparation.

        Under ZeRO-3 and FSDP2 all ranks must call it equally often.
        """
        return self.module.trainer.strategy.model(work)

    def init_context(self) -> AbstractContextManager[Any]:
        """Around the making of networks."""
        return nullcontext()

    def register(self, network: nn.Module) -> None:
        """Called with each network when it is made, before it is sharded."""

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and its backward; gradients meet those of the other ranks in the last of a step."""
        return nullcontext()

    def clip_and_step(self, optimizer: Any, max_norm: float) -> Tensor:
        """Clip, and take the step unless the gradient is not finite; the gradient's norm before clipping."""
        norm = nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], max_norm)
        step_if_finite(optimizer, norm)
        return norm

    @contextmanager
    def full_parameters(self, network: N) -> Iterator[N]:
        """A network with the full weights whose calls need no other rank, for sampling. All ranks enter and leave together."""
        yield network

    def full_weights(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Names of the state dict and full tensors, one after the other. All ranks must take all of them."""
        yield from network.state_dict().items()

    def unshard(self, parameter: Tensor, shard: Tensor) -> Tensor:
        """The full tensor of something that is sharded as a parameter is. All ranks take part."""
        return shard

    def shard(self, parameter: Tensor, full: Tensor) -> Tensor:
        """Undo `unshard`: the shard that this rank holds."""
        return full


def sharding_of(module: ShardedModule) -> Sharding:
    """That of the strategy that the trainer runs with.

    Raises:
        ConfigError: several processes with a strategy that was not made for several backward passes a step.
    """
    strategy = module.trainer.strategy
    if hasattr(strategy, "sharding"):
        return strategy.sharding(module)
    if module.trainer.world_size > 1:
        raise ConfigError(
            f"trainer.strategy is {type(strategy).__name__} with {module.trainer.world_size} processes: its steps have one backward pass "
            "each, and here they have several. Use ddp, fsdp2 or deepspeed_stage_1, _2, _3 with the `sdar` command, or "
            "sdar.distributed.ReplicatedStrategy, FSDP2Strategy and ZeROStrategy."
        )
    return Sharding(module)


class Replicated(Sharding):
    """DistributedDataParallel: every rank has every network; gradients are averaged in the last backward of a step."""

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.module.trainer.strategy.model.require_backward_grad_sync = last
        yield


def step_if_finite(optimizer: Any, norm: Tensor) -> None:
    """A step; it counts, and changes nothing, where the gradient is not finite."""
    if not torch.isfinite(norm):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()


def local_shard(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter, to be changed in place: everything, unless ZeRO-3 or FSDP2 keeps a shard here only.

    Under ZeRO-3 small ones may lie whole beside their shard: that copy is dropped, and gathered again when it is used.
    """
    divided: Any = parameter  # torch and deepspeed hang their own on it
    if hasattr(parameter, "to_local"):
        return divided.detach().to_local()
    if not hasattr(parameter, "ds_tensor"):
        return parameter.data
    if divided.ds_status.name == "AVAILABLE":
        divided.partition()
    return divided.ds_tensor.data


def empty_twin(network: N) -> N:
    """A copy whose parameters are empty; they may still be one another's."""
    empty = {id(p): nn.Parameter(p.data.new_empty(0), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, empty).eval()
