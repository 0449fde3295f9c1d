"""FSDP2: torch's `fully_shard`, for steps that consist of several forward and backward passes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sdar.arguments import checked
from sdar.distributed.direct import Direct
from sdar.distributed.sharding import N, ShardedModule, Sharding, empty_twin, step_if_finite
from sdar.errors import ConfigError
from sdar.plan.run import Launch

R = TypeVar("R")

POLICIES = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-mixed": MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False),
    "bf16-true": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
}
"""What weights are gathered in and gradients are summed in. Inputs are not cast: some are log-probabilities."""


@checked
class FSDP2Strategy(Direct, ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with every network divided among all ranks, decoder layer by decoder layer.

    Weights, also of frozen networks, gradients and the optimizer's state lie in parts. Checkpoints are one file with whole weights
    and optimizer states, written by rank 0: the same as from one process, which any strategy and number of ranks go on from.

    Args:
        deadline: Seconds that ranks wait for each other.
        reshard_after_forward: A layer is given up after its forward pass and gathered again for its backward pass. False: it stays
            until then, which saves a third of the talking and takes the memory of a whole network.
    """

    def __init__(self, deadline: float = 1800.0, reshard_after_forward: bool = True):
        super().__init__(save_distributed_checkpoint=False, timeout=self.timeout_of(deadline))
        self.reshard_after_forward = reshard_after_forward
        self._kept: FullyShardedParameters | None = None

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        self.model = self.sharding(self._module).root

    def launch(self) -> Launch:
        return Launch("fsdp", stage=3, stays=not self.reshard_after_forward)

    def sharding(self, module: ShardedModule) -> "FullyShardedParameters":
        if self._kept is None or self._kept.module is not module:  # a network is divided once, whatever is run with it
            precision = self.precision_plugin.precision
            if precision not in POLICIES:
                raise ConfigError(
                    f"trainer.precision is {precision}: fsdp2 gathers weights as they are or in bfloat16, and scales no loss. "
                    f"Use {', '.join(POLICIES)}."
                )
            mesh = self.device_mesh["data_parallel"]
            self._kept = FullyShardedParameters(module, mesh, POLICIES[precision], self.reshard_after_forward)
        return self._kept

    # ------------------------------------------------------------------ checkpoints

    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self._module
        saved = module.state_dict(keep_vars=True)
        for name in module.unsaved():
            del saved[name]
        with self._error_context():
            return full_state_dict(saved, keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        stored: dict[str, Any] = ParallelStrategy.optimizer_state(self, optimizer)
        with self._error_context():
            return stored | {"state": full_state_dict(stored["state"], keep=self.is_global_zero)}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        ours = self._module.state_dict()
        parts = {name: shard_like(value, ours.get(name)) for name, value in checkpoint["state_dict"].items()}
        self._module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        parts = []
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: shard_like(value, parameters[number]) for key, value in values.items()}
                for number, values in stored["state"].items()
            }
            parts.append(stored | {"state": state})
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": parts})


class RootModule(nn.Module):
    """The root of all networks of a run: each pass through one is a forward of this, so that FSDP knows when a pass begins and ends."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, work: Callable[[], R]) -> R:
        return work()


class FullyShardedParameters(Sharding):
    """FSDP2: weights, gradients and optimizer states lie in parts. Gradients meet those of the other ranks in each backward of a
    step, layer by layer: no rank ever has all of them.

    Args:
        mesh: The ranks, in one dimension.
        precision: Of gathered weights and of gradients when they are summed.
        reshard: Whether layers are given up after their forward pass.
    """

    def __init__(self, module: ShardedModule, mesh: DeviceMesh, precision: MixedPrecisionPolicy, reshard: bool):
        super().__init__(module)
        self._options: dict[str, Any] = {"mesh": mesh, "mp_policy": precision}
        self._reshard = reshard
        self._twins: dict[int, nn.Module] = {}
        self._units: list[Any] = []
        self._root: RootModule | None = None

    @property
    def root(self) -> RootModule:
        """All networks, once they are made and divided."""
        if self._root is None:
            networks = [network for network in self.module.networks() if id(network) in self._twins]
            self._root = root = RootModule(networks)
            fully_shard(root, **self._options)  # in place
        return self._root

    def register(self, network: nn.Module) -> None:
        """Divide it: each decoder layer is a unit that is gathered at once, and so is what remains.

        Hidden states and logits are taken from a network in two calls, of its base model and of its head: what both need (the tied
        embeddings, the norm, the head) is gathered by the first, and given up when the backward is over.

        Raises:
            ConfigError: its layers are not known.
        """
        if id(network) in self._twins:
            return
        model: Any = network
        base, head, embeddings = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
        kinds = set(model._no_split_modules or ())
        units = [m for m in base.modules() if type(m).__name__ in kinds]
        if not units:
            raise ConfigError(
                f"{type(network).__name__} does not say which of its modules are layers (_no_split_modules): fsdp2 would gather "
                "all of it at once. Use deepspeed_stage_3."
            )
        self._twins[id(network)] = empty_twin(network)
        if embeddings.weight is not head.weight:
            units.append(embeddings)
        for unit in units:
            self._units.append(fully_shard(unit, reshard_after_forward=self._reshard, **self._options))
        self._units.append(fully_shard(network, reshard_after_forward=False, **self._options))
        for module in (base, head):
            module.register_forward_pre_hook(lambda module, inputs: model.unshard())

    def run_as_forward(self, work: Callable[[], R]) -> R:
        out = super().run_as_forward(work)
        if not torch.is_grad_enabled():  # no backward follows that would do it
            for unit in self._units:
                unit.reshard()
        return out

    def clip_and_step(self, optimizer: Any, max_norm: float) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        step_if_finite(optimizer, norm)
        return norm

    @contextmanager
    def full_parameters(self, network: N) -> Iterator[N]:
        """Gathered once into a twin: in the network itself, each layer of each token would wait for all ranks."""
        twin = cast(N, self._twins[id(network)])
        dtype = self._options["mp_policy"].param_dtype
        try:
            with torch.inference_mode(False), torch.no_grad():
                for mine, source in zip(twin.parameters(), network.parameters(), strict=True):
                    mine.data = full_tensor(source.detach().to(dtype or source.dtype))
                for buffer, now in zip(twin.buffers(), network.buffers(), strict=True):
                    buffer.data = now.data
            yield twin
        finally:
            for parameter in twin.parameters():
                parameter.data = parameter.data.new_empty(0)

    def unshard(self, parameter: Tensor, shard: Tensor) -> Tensor:
        return full_tensor(from_local(shard, cast(DTensor, parameter)))

    def shard(self, parameter: Tensor, full: Tensor) -> Tensor:
        return shard_like(full, parameter).to_local()

    def full_weights(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in network.state_dict().items():
            yield name, full_tensor(tensor)


def full_state_dict(state: Mapping[Any, Any], keep: bool) -> dict[Any, Any]:
    """A state dict with whole tensors on the CPU, tied ones once; empty where it is not kept. All ranks make it together."""
    out: dict[Any, Any] = {}
    known: dict[int, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            value = full_state_dict(value, keep)
        elif torch.is_tensor(value) and id(value) not in known:
            tensor = full_tensor(value.detach())
            known[id(value)] = tensor.cpu().clone() if keep else tensor.new_empty(0)
        if keep:
            out[name] = known.get(id(value), value)
    return out


def full_tensor(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor that lies as a parameter does; other values stay."""
    if not isinstance(like, DTensor) or not torch.is_tensor(value) or isinstance(value, DTensor) or value.shape != like.shape:
        return value
    mesh = like.device_mesh
    rows = -(-len(value) // mesh.size())
    return from_local(value[rows * mesh.get_local_rank() :][:rows].to(like.device), like)


def from_local(shard: Tensor, like: DTensor) -> DTensor:
    """A tensor whose parts on the ranks lie as those of `like`."""
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
