"""What a run that goes on from a checkpoint does differently: settings that changed take effect or are refused, and are told.

A checkpoint restores optimizer and scheduler as they were, hyper-parameters included. Here those that this run asks for and the
checkpoint's run did not win: a new learning rate scales the one that the schedule had come to, a new schedule begins anew. What
optimizer and scheduler are asked for is read off a pair that is made for a parameter of its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdar.errors import CheckpointError
from sdar.training.host import Host

FROM_LR = ("base_lrs", "_last_lr", "_get_lr_called_within_step")
"""What of a scheduler's state is no setting of its own."""


def asked(module: Host) -> dict[str, Any]:
    """Optimizer and scheduler as this run's settings make them: class and hyper-parameters, plain data."""
    optimizer, scheduler = _fresh(module)
    found = {"optimizer": _name(optimizer), "defaults": _plain(optimizer.defaults), "lr_scheduler": _name(scheduler)}
    state = {} if scheduler is None else scheduler.state_dict()
    return found | {"schedule": _plain({key: value for key, value in state.items() if key not in FROM_LR})}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of a configuration, without ``init_args``; a part's own key holds its class."""
    return dict(_flat(config))


def merge(module: Host, checkpoint: dict[str, Any], path: Any) -> list[str]:
    """Let what this run asks for win over what `checkpoint` would restore; returns a line for each setting that changed.

    Raises:
        CheckpointError: the optimizer is another one, or its settings lie in parts that only DeepSpeed reads.
    """
    state = checkpoint["sdar"]
    old, new = state.get("asked"), asked(module)
    lines: list[str] = []
    if old is not None and old != new:
        if old["optimizer"] != new["optimizer"]:
            raise CheckpointError(
                f"{path} holds the state of {old['optimizer']}, model.optimizer is {new['optimizer']}: what one optimizer remembers of "
                "the gradients means nothing to another. Use that of the checkpoint's run, or start a new run from its policy (sdar "
                "export)."
            )
        if "optimizer_states" not in checkpoint or "state_dict" not in checkpoint:
            raise CheckpointError(
                f"{path} is in parts, which DeepSpeed restores with the optimizer's settings in them, and model.optimizer or "
                "model.lr_scheduler has changed since. Leave them as they were, or go on from one file (sharded_checkpoint: false)."
            )
        lines = list(_take_optimizer(module, checkpoint, old, new))
    reported = {line.partition(" ")[0] for line in lines}
    before, now = state.get("settings") or {}, module.settings
    for key in sorted(before.keys() | now.keys()) if before and now else ():
        if before.get(key) != now.get(key) and key not in reported and not key.startswith(HERE_ONLY):
            lines.append(f"{key}: {_shown(before.get(key))} -> {_shown(now.get(key))}{EFFECTS.get(key, '')}")
    return lines


HERE_ONLY = ("config", "ckpt_path", "trainer.default_root_dir", "trainer.logger", "model.optimizer", "model.lr_scheduler")
EFFECTS = {"seed_everything": " (not used: a run keeps the random numbers that it began with)"}


def _take_optimizer(module: Host, checkpoint: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    for key, value in new["defaults"].items():
        was = old["defaults"].get(key)
        if was == value:
            continue
        yield f"model.optimizer.{key}: {_shown(was)} -> {_shown(value)}"
        for group in groups:
            group[key] = group[key] * (value / was) if key == "lr" and was else value
            if key == "lr" and "initial_lr" in group:
                group["initial_lr"] = value
        if key == "lr":
            for state in checkpoint["lr_schedulers"]:
                _scale(state, value, value / was if was else 1.0)
    if (old["lr_scheduler"], old["schedule"]) != (new["lr_scheduler"], new["schedule"]):
        yield f"model.lr_scheduler: {old['lr_scheduler']} -> {new['lr_scheduler']}, which begins now"
        fresh, _ = _fresh(module)
        checkpoint["lr_schedulers"] = []
        for group in groups:
            group.update({key: value for key, value in fresh.param_groups[0].items() if key != "params"})


def _scale(state: dict[str, Any], base: float, ratio: float) -> None:
    """Another learning rate for a scheduler's state, and for those in it."""
    if "base_lrs" in state:
        state["base_lrs"] = [base for _ in state["base_lrs"]]
    if "_last_lr" in state:
        state["_last_lr"] = [lr * ratio for lr in state["_last_lr"]]
    for inner in state.get("_schedulers", ()):
        _scale(inner, base, ratio)


def _fresh(module: Host) -> tuple[Any, Any]:
    optimizer = module.optimizer(iter([nn.Parameter(torch.zeros(1))]))
    return optimizer, None if module.lr_scheduler is None else module.lr_scheduler(optimizer)


def _name(thing: Any) -> str:
    return "none" if thing is None else f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(value: Any) -> Any:
    """Data that a checkpoint may hold and that is equal where the setting is."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else getattr(value, "__qualname__", _name(value))


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        yield key, _plain(node)
        return
    if "class_path" in node:
        yield key, str(node["class_path"])
    for name, value in node.items():
        if name != "class_path":
            yield from _flat(value, key if name in ("init_args", "dict_kwargs") else f"{key}.{name}".lstrip("."))


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    text = "".join(c if c.isprintable() else " " for c in text)  # a checkpoint may hold anything
    return text if len(text) <= 60 else f"{text[:60]}..."
