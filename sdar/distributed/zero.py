"""DeepSpeed's ZeRO under Lightning: stages 1, 2 and 3, on GPUs and on CPU processes."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from sdar.distributed.direct import Direct
from sdar.distributed.sharding import Sharding, hollow

if TYPE_CHECKING:
    from sdar.module import AgentModule

GATHERED_AT_ONCE = 1 << 28
"""Numbers of a network that are gathered in one go when it is made whole."""


class ZeROStrategy(Direct, DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy, made for several optimizer steps a batch and also for CPU processes (gloo).

    Lightning runs a whole training step inside one forward of the engine; under ZeRO-3 the backward passes of one step would
    overwrite each other's gradients, without an error. Here each micro-batch is a forward of the engine.

    Args:
        deadline: Seconds that ranks wait for each other.
        **kwargs: Those of DeepSpeedStrategy.
    """

    def __init__(self, deadline: float = 1800.0, **kwargs: Any):
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__init__(**self.waiting(deadline), **({"logging_batch_size_per_gpu": 1} | kwargs))
        if "zero_optimization" in self.config:
            self.config.setdefault("zero_force_ds_cpu_optimizer", False)  # offload keeps the optimizer of the settings

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

    def _setup_model_and_optimizer(self, model: nn.Module, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        import deepspeed

        engine, optimizer, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank if self.root_device.index is None else self.root_device.index),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, optimizer

    def _format_config(self) -> None:
        super()._format_config()
        self.config["gradient_clipping"] = getattr(self.lightning_module, "max_grad_norm", self.config["gradient_clipping"])

    def sharding(self, module: "AgentModule") -> Sharding:
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

    def step(self, optimizer: Any, max_norm: float) -> Tensor:
        optimizer.step()  # the engine clips, and takes no step when the norm is not finite
        norm = self.engine.get_global_grad_norm()
        optimizer.zero_grad()
        return torch.tensor(float(norm) if self.engine.was_step_applied() else torch.nan)


class ShardedParameters(ShardedOptimizer):
    """ZeRO-3: the weights lie in parts, too."""

    def __init__(self, module: "AgentModule"):
        super().__init__(module)
        self._hollow: dict[int, nn.Module] = {}

    @contextmanager
    def building(self) -> Iterator[None]:
        """Networks are made whole and cut up by the engine: transformers initialises weights that it must see."""
        from deepspeed.runtime.zero import partition_parameters

        partition_parameters.shutdown_init_context()
        try:
            yield
        finally:
            partition_parameters.restore_init_context()

    def adopt(self, network: nn.Module) -> None:
        self._hollow[id(network)] = hollow(network)

    @contextmanager
    def whole(self, network: nn.Module) -> Iterator[nn.Module]:
        """Gathered once into a twin: in the engine, each layer of each token would wait for all ranks."""
        twin = self._hollow[id(network)]
        own = dict(twin.named_parameters())
        try:
            for names, parameters in _pieces(network):
                with _gathered(parameters):
                    for name, parameter in zip(names, parameters, strict=True):
                        own[name].data = parameter.data.clone()
            yield twin
        finally:
            for parameter in own.values():
                parameter.data = parameter.data.new_empty(0)

    def weights(self, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in network.state_dict(keep_vars=True).items():
            with _gathered([tensor] if hasattr(tensor, "ds_id") else []):
                yield name, tensor.data


def _gathered(parameters: list[Tensor]) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _pieces(network: nn.Module) -> Iterator[tuple[list[str], list[Tensor]]]:
    """Parameters in pieces that are gathered together."""
    names: list[str] = []
    parameters: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if parameters and sum(p.ds_numel for p in [*parameters, parameter]) > GATHERED_AT_ONCE:
            yield names, parameters
            names, parameters = [], []
        names.append(name)
        parameters.append(parameter)
    yield names, parameters
