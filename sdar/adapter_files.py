"""Adapters as folders that peft and vLLM load: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdar.errors import PolicyError
from sdar.paths import resolve
from sdar.reading import excerpt, read_record

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft writes before a layer's name."""
PLAIN = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Further options of peft, at which an adapter is B A and nothing else."""


class AdapterConfig(msgspec.Struct):
    """What is read of peft's file."""

    peft_type: str
    r: Annotated[int, msgspec.Meta(ge=1)]
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)]
    target_modules: list[str]


def read_adapter_config(folder: str) -> AdapterConfig:
    """
    Raises:
        PolicyError: no adapter lies there, or one of another kind.
    """
    path = resolve(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise PolicyError(
                f"policy.adapter is {folder!r}, which has no {name}: give a folder that `sdar export --adapter true` or peft wrote."
            )
    advice = "It is peft's: peft_type LORA, r, lora_alpha and target_modules as a list of names."
    found = read_record(path / CONFIG, AdapterConfig, PolicyError, advice=advice)
    every = read_record(path / CONFIG, dict[str, Any], PolicyError)
    other = {name: every[name] for name, plain in PLAIN.items() if every.get(name) and every[name] != plain}
    if found.peft_type != "LORA" or other:
        what = excerpt(other) if other else found.peft_type
        raise PolicyError(f"{path / CONFIG} is of a kind that is not trained here ({what}): adapters are plain LoRA.")
    return found


def load_adapter(folder: str, layers: Iterable[tuple[str, nn.Module]], name: str) -> None:
    """Put an adapter's weights into layers that have adapters already.

    Args:
        layers: Name in the model, and layer.
        name: Of the adapter in the layers.

    Raises:
        PolicyError: a layer that it does not know, or one of its own that is not there.
    """
    path = resolve(folder) / WEIGHTS
    stored = load_file(path)
    for layer, module in layers:
        for part in ("lora_A", "lora_B"):
            key = f"{PREFIX}{layer}.{part}.weight"
            weight = getattr(module, part)[name].weight
            if key not in stored or stored[key].shape != weight.shape:
                found = tuple(stored[key].shape) if key in stored else "nothing"
                raise PolicyError(
                    f"{path} has {found} for {key}, and the model has {tuple(weight.shape)}: it is an adapter for another model. Give that "
                    "as policy.base."
                )
            with torch.no_grad():
                weight.copy_(stored.pop(key))
    if stored:
        raise PolicyError(
            f"{path} has {len(stored)} weights more than the model has a place for, the first is {min(stored)}: it is an adapter for "
            "another model. Give that as policy.base."
        )


def write_adapter(
    folder: str, weights: Iterable[tuple[str, Tensor]], base: str, alpha: float, name: str, dtype: torch.dtype
) -> None:
    """Write the adapters of a model's weights; all others are only taken.

    Args:
        weights: (name in the network's state dict, whole tensor).
        base: Directory or hub id of the model that they stand on.
        name: Of the adapter in the layers.
    """
    kept: dict[str, Tensor] = {}
    for key, tensor in weights:
        layer, lora, part = key.partition(f".lora_{'A' if '.lora_A.' in key else 'B'}.{name}.")
        if lora:
            kept[f"{PREFIX}{layer}{lora.removesuffix(f'.{name}.')}.{part}"] = tensor.detach().to("cpu", dtype).contiguous()
    ranks = {tensor.shape[0] for key, tensor in kept.items() if ".lora_A." in key}
    layers = sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in kept})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": max(ranks),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
        "inference_mode": True,
        **PLAIN,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(kept, Path(folder) / WEIGHTS, {"format": "pt"})
    (Path(folder) / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
