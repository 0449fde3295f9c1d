"""DeepSpeed's ZeRO under Lightning: stages 1, 2 and 3, on GPUs and on CPU processes."""

import argparse
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from torch import Tensor, nn

from sdar.arguments import checked
from sdar.distributed.direct import Direct
from sdar.distributed.sharding import N, ShardedModule, Sharding, empty_twin
from sdar.distributed.zero_state import full_optimizer_state, full_weights, load_optimizer_state, load_weights, shard_of
from sdar.errors import CheckpointError, ConfigError
from sdar.plan.run import Launch
from sdar.training.checkpoint_files import tensors_only
from sdar.versions import install

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GATHERED_AT_ONCE = 1 << 28
"""Numbers of a network that are gathered in one go when it is made whole."""


@checked
class ZeROStrategy(Direct, DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, made for several optimizer steps a batch and also for CPU processes (gloo).

    Lightning runs a whole training step inside one forward of the engine; under ZeRO-3 the backward passes of one step would
    overwrite each other's gradients, without an error. Here each micro-batch is a forward of the engine.

    Args:
        deadline: Seconds that ranks wait for each other.
        sharded_checkpoint: Each rank writes its part, as DeepSpeed does: fast, and readable by as many ranks of the same stage only. By
            default rank 0 writes one file with whole weights and optimizer states in float32: the same as from one process, which any
            strategy and number of ranks go on from.
        logging_batch_size_per_gpu: What DeepSpeed's own throughput meter believes.
        **kwargs: Those of DeepSpeedStrategy.
    """

    def __init__(
        self, deadline: float = 1800.0, sharded_checkpoint: bool = False, logging_batch_size_per_gpu: int = 1, **kwargs: Any
    ):
        if find_spec("deepspeed") is None:
            raise ConfigError(
                "trainer.strategy is DeepSpeed's, and the package deepspeed is not installed: a run would end here. Install it "
                f"({install('deepspeed')}), or use fsdp2, which needs no further package."
            )
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        timeout = self.timeout_of(deadline)
        super().__init__(timeout=timeout, logging_batch_size_per_gpu=logging_batch_size_per_gpu, **kwargs)
        if "zero_optimization" in self.config:
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)  # offload keeps the optimizer of the settings
        self.sharded_checkpoint = sharded_checkpoint
        self._trained: list[list[Tensor]] = []

    config: dict[str, Any]
    _from_one_file = True

    def setup_environment(self) -> None:
        if isinstance(self.accelerator, CUDAAccelerator):
            super().setup_environment()
        else:
            DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        if isinstance(self.accelerator, CUDAAccelerator):
            return super().setup_distributed()
        import deepspeed

        reset_seed()
        self.set_world_ranks()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiled at the start, used for inference alone
        self._init_deepspeed_distributed()

    def _setup_model(self, model: nn.Module) -> Any:
        """The engine has all weights in one type. Under ZeRO-3 parameters go to the device one by one and are divided there: it never holds
        a whole network."""
        held = next((dtype for name, dtype in HALVES.items() if self.config.get(name, {}).get("enabled")), torch.float32)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(held)
        if self.zero_stage_3:
            import deepspeed

            for buffer in model.buffers():
                buffer.data = buffer.data.to(self.root_device)
            deepspeed.zero.Init(module=model, config_dict_or_path=self.config)
        return model

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        self._trained = [list(group["params"]) for group in optimizer.param_groups]
        trained = [p for p in model.parameters() if p.requires_grad]
        return self._engine(model, self.config, model_parameters=trained, optimizer=optimizer, lr_scheduler=lr_scheduler)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        kept = ("fp16", "bf16", *(("zero_optimization", "zero_allow_untested_optimizer") if self.zero_stage_3 else ()))
        config = {"train_micro_batch_size_per_gpu": 1} | {name: self.config[name] for name in kept if name in self.config}
        remove_module_hooks(model)
        self.model, _ = self._engine(model, config, model_parameters=[])

    def _engine(self, model: nn.Module, config: dict[str, Any], **parts: Any) -> tuple[Any, Any]:
        import deepspeed

        number = self.local_rank if self.root_device.index is None else self.root_device.index
        return deepspeed.initialize(
            args=argparse.Namespace(device_rank=number), config=config, model=model, dist_init_required=False, **parts
        )[:2]

    def _format_config(self) -> None:
        super()._format_config()
        norm = getattr(self._module, "max_grad_norm", self.config["gradient_clipping"])
        self.config["gradient_clipping"] = 0.0 if math.isinf(norm) else norm

    # ------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        with self._error_context():
            if self.sharded_checkpoint:
                return {}
            return full_weights(self._module, skip=self._module.unsaved(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        with self._error_context():
            return {} if self.sharded_checkpoint else full_optimizer_state(optimizer, self._trained, keep=self.is_global_zero)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Whenever the process is killed, a complete checkpoint is there."""
        if not self.sharded_checkpoint:
            return DDPStrategy.save_checkpoint(self, checkpoint, filepath, storage_options)
        path = Path(self.broadcast(str(filepath)))
        current = path.parent / os.readlink(path) if path.is_symlink() else None
        folder = path.with_name(f"{path.name}.{checkpoint['global_step']}")
        folder = folder.with_name(f"{folder.name}b") if folder == current else folder
        self.barrier("checkpoint begins")
        super().save_checkpoint(checkpoint, folder, storage_options)
        self.barrier("checkpoint is written")
        if self.is_global_zero:
            link = path.with_name(f"{path.name}.link")
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
            os.replace(link, path)
            for other in path.parent.glob(f"{path.name}.*"):
                if other.is_dir() and other != folder:
                    shutil.rmtree(other)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        self._from_one_file = not os.path.isdir(checkpoint_path)
        if self._from_one_file:
            return DDPStrategy.load_checkpoint(self, checkpoint_path, weights_only)
        ranks = len(list(Path(checkpoint_path, "checkpoint").glob("*optim_states.pt")))
        if ranks != self.world_size:
            raise CheckpointError(
                f"{checkpoint_path} was written in parts by {ranks} ranks, and {self.world_size} would go on from it: DeepSpeed reads such "
                f"parts with as many ranks only. Use {ranks} ranks, and write the next checkpoints as one file (sharded_checkpoint: false)."
            )
        with tensors_only(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return self._from_one_file

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        if self._from_one_file:
            load_weights(self._module, checkpoint["state_dict"], skip=self._module.unsaved())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        load_optimizer_state(self.optimizers[0], self._trained, checkpoint["optimizer_states"][0])

    def launch(self) -> Launch:
        zero = self.config.get("zero_optimization") or {"stage": 0}
        return Launch(
            "zero",
            stage=int(zero.get("stage", 2)),
            offload_optimizer=bool(zero.get("offload_optimizer")),
            offload_parameters=bool(zero.get("offload_param")),
            bucket=int(zero.get("reduce_bucket_size", Launch.bucket)),
            overlap=bool(zero.get("overlap_comm", Launch.overlap)),
        )

    def sharding(self, module: ShardedModule) -> Sharding:
        return ShardedParameters(module) if self.zero_stage_3 else ShardedOptimizer(module)


class ShardedOptimizer(Sharding):
    """ZeRO-1 and 2: the weights lie whole on each rank, the optimizer's state (and gradients) in parts."""

    @property
    def engine(self) -> Any:
        return self.module.trainer.strategy.model

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def clip_and_step(self, optimizer: Any, max_norm: float) -> Tensor:
        optimizer.step()  # the engine clips, and takes no step when the norm is not finite
        norm = self.engine.get_global_grad_norm()
        optimizer.zero_grad()
        return torch.tensor(float(norm) if self.engine.was_step_applied() else torch.nan)


class ShardedParameters(ShardedOptimizer):
    """ZeRO-3: the weights lie in parts, too."""

    def __init__(self, module: ShardedModule):
        super().__init__(module)
        self._twins: dict[int, nn.Module] = {}

    @contextmanager
    def init_context(self) -> Iterator[None]:
        """Networks are made whole in main memory and cut up by the strategy: transformers initialises weights that it must see."""
        from deepspeed.runtime.zero import partition_parameters

        partition_parameters.shutdown_init_context()
        try:
            yield
        finally:
            partition_parameters.restore_init_context()

    def register(self, network: nn.Module) -> None:
        self._twins[id(network)] = empty_twin(network)

    @contextmanager
    def full_parameters(self, network: N) -> Iterator[N]:
        """Gathered once into a twin: in the engine, each layer of each token would wait for all ranks."""
        twin = cast(N, self._twins[id(network)])
        parameters_of_twin = dict(twin.named_parameters())
        try:
            for names, parameters in _buckets(network):
                with _gathered(parameters):
                    for name, parameter in zip(names, parameters, strict=True):
                        parameters_of_twin[name].data = parameter.data.clone()
            yield twin
        finally:
            for parameter in parameters_of_twin.values():
                parameter.data = parameter.data.new_empty(0)

    def unshard(self, parameter: Tensor, shard: Tensor) -> Tensor:
        shards = shard.new_empty(shard.numel() * self.module.ranks.world_size)
        torch.distributed.all_gather_into_tensor(shards, shard)
        sharded: Any = parameter  # deepspeed hangs its own on it
        return shards[: sharded.ds_numel].view(sharded.ds_shape)

    def shard(self, parameter: Tensor, full: Tensor) -> Tensor:
        return shard_of(parameter, full)

    def full_weights(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in network.state_dict(keep_vars=True).items():
            with _gathered([tensor] if hasattr(tensor, "ds_id") else []):
                yield name, tensor.data


def _gathered(parameters: list[Tensor]) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _buckets(network: nn.Module) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Parameters in pieces that are gathered together."""
    names: list[str] = []
    parameters: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if parameters and sum(cast(Any, p).ds_numel for p in [*parameters, parameter]) > GATHERED_AT_ONCE:
            yield names, parameters
            names, parameters = [], []
        names.append(name)
        parameters.append(parameter)
    yield names, parameters
