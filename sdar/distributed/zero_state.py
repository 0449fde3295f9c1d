"""Weights and optimizer states of a ZeRO engine, whole and in the form that one process has them, and back.

Reading is done by all ranks together, parameter by parameter; only rank 0 keeps what was read.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdar.distributed.sharding import local_shard


def full_weights(module: nn.Module, skip: Collection[str], keep: bool) -> dict[str, Tensor]:
    """The state dict but for some names, on the CPU; what is trained in float32."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    out: dict[str, Tensor] = {}
    kept: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in skip:
            continue
        with deepspeed.zero.GatheredParameters([tensor] if hasattr(tensor, "ds_id") else []):
            value = safe_get_full_fp32_param(tensor) if tensor.requires_grad else None
            value = tensor.detach() if value is None else value
            if keep:  # tied ones once
                out[name] = kept.setdefault(id(tensor), value.cpu().clone())
    return out


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], skip: Collection[str]) -> None:
    """Undo `full_weights`; every rank has the whole and takes its part."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in skip:
            continue
        value = weights[name].to(tensor.device)
        if hasattr(tensor, "ds_id"):
            shard = shard_of(tensor, value)
            local_shard(tensor).copy_(shard)
            if hasattr(tensor, "_z3_optimizer") and tensor.requires_grad:
                safe_set_local_fp32_param(tensor, shard)
        else:
            tensor.data.copy_(value)
            if getattr(tensor, "_hp_mapping", None) is not None:
                safe_set_full_fp32_param(tensor, value.float())


def full_optimizer_state(optimizer: Any, groups: list[list[Tensor]], keep: bool) -> dict[str, Any]:
    """As torch's optimizers say it, with float32 tensors on the CPU.

    Args:
        groups: The parameters of each group, as the optimizer was given them.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    flat = next(_flat(optimizer))
    known = optimizer.optimizer.state.get(flat, {})
    sharded = [key for key, value in known.items() if _is_sharded(value, flat)]
    state: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(p for group in groups for p in group):
        values = {key: safe_get_full_optimizer_state(parameter, key) for key in sharded}
        if keep and known:
            state[number] = {key: value.cpu().view(_shape(parameter)) for key, value in values.items()}
            state[number] |= {key: _copy(value) for key, value in known.items() if key not in sharded}
    numbers = iter(range(sum(map(len, groups))))
    param_groups = [
        {key: value for key, value in group.items() if key != "params"} | {"params": [next(numbers) for _ in parameters]}
        for group, parameters in zip(optimizer.optimizer.param_groups, groups, strict=True)
    ]
    return {"state": state, "param_groups": param_groups}


def load_optimizer_state(optimizer: Any, groups: list[list[Tensor]], stored: Mapping[str, Any]) -> None:
    """Undo `full_optimizer_state`."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for group, saved in zip(optimizer.optimizer.param_groups, stored["param_groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key != "params"})
    parameters, state = [p for group in groups for p in group], stored["state"]
    if not state:  # no step was taken yet
        return
    first = state[0]
    sharded = [key for key, value in first.items() if torch.is_tensor(value) and value.shape == _shape(parameters[0])]
    for flat in _flat(optimizer):
        optimizer.optimizer.state[flat] = {
            key: torch.zeros_like(flat) if key in sharded else _copy(value) for key, value in first.items()
        }
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()
    for number, parameter in enumerate(parameters):
        for key in sharded:
            value = state[number][key].to(parameter.device)
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, shard_of(parameter, value), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)


def shard_of(parameter: Tensor, value: Tensor) -> Tensor:
    """What of a whole tensor this rank holds under ZeRO-3; the last part is filled up with zeros."""
    size = cast(Any, parameter).ds_tensor.numel()
    start = size * torch.distributed.get_rank()
    shard = value.flatten()[start : start + size]
    return nn.functional.pad(shard, (0, size - shard.numel()))


def _flat(optimizer: Any) -> Iterator[Tensor]:
    """The flat float32 tensors that the inner optimizer knows instead of parameters."""
    groups = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    return iter(optimizer.single_partition_of_fp32_groups if groups is None else groups)


def _shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _is_sharded(value: Any, flat: Tensor) -> bool:
    return torch.is_tensor(value) and value.dim() > 0 and value.shape == flat.shape


def _copy(value: Any) -> Any:
    return value.detach().cpu().clone() if torch.is_tensor(value) else value
