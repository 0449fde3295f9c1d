"""Low-rank adapters (LoRA, arXiv 2106.09685) on any policy: the base stays frozen, a few million weights learn.

The adapters are peft's, put into the model in place, so that it stays the model of transformers that it was. The frozen model
that a run may need beside it (a reference, a teacher with the initial weights) is the same model with its adapters off: no copy.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdar.adapter_files import load_adapter, read_adapter_config, write_adapter
from sdar.errors import ConfigError
from sdar.parts import Blueprint, Environment, Policy
from sdar.registry import did_you_mean, register
from sdar.versions import install

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"


@register("lora")
class LoRAPolicy(Policy):
    """Another policy whose linear layers get adapters; only these are trained, in float32 whatever the base is in.

    A layer computes ``W x + (alpha / rank) B A dropout(x)``; A is random and B zero, so that training starts from the base.
    The learning rate wants to be about ten times that of full training. What `export` writes is the merged model.

    Args:
        base: Where the frozen weights, the tokenizer and the chat template come from.
        rank: Width of an adapter. Default: 64, or that of `adapter`.
        alpha: The adapters count alpha / rank. Default: 128, or that of `adapter`.
        dropout: Probability with which an input of an adapter is dropped, in the passes that carry a gradient; what is only
            scored or sampled is never dropped.
        target_modules: Last names of the linear layers that get adapters, e.g. ``[q_proj, v_proj]``; by default all but the head.
        seed: Of the adapters' first weights.
        adapter: Folder of adapters to begin with, as peft and vLLM load it and ``sdar export --adapter true`` writes it.
    """

    def __init__(
        self,
        base: Policy,
        rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        target_modules: list[str] | None = None,
        seed: int = 0,
        adapter: str | None = None,
    ):
        if adapter is not None:
            found = read_adapter_config(adapter)
            for name, given, its in (("rank", rank, found.r), ("alpha", alpha, found.lora_alpha)):
                if given not in (None, its):
                    raise ConfigError(
                        f"policy.{name} is {given}, and the adapter {adapter} was made with {its}. Leave it out."
                    )
            if target_modules is not None and sorted(target_modules) != sorted(found.target_modules):
                raise ConfigError(
                    f"policy.target_modules is {target_modules}, and {adapter} has {found.target_modules}. Leave it out."
                )
            rank, alpha, target_modules = found.r, found.lora_alpha, found.target_modules
        rank, alpha = 64 if rank is None else rank, 128.0 if alpha is None else alpha
        if rank < 1:
            raise ConfigError(f"policy.rank is {rank}: an adapter has a width of 1 or more. Published: 64 (OPSD), 128 (OPD).")
        if alpha <= 0:
            raise ConfigError(f"policy.alpha is {alpha}: at 0 the adapters would count nothing. Twice the rank is common.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"policy.dropout is {dropout}: it is a probability in [0, 1).")
        if target_modules is not None and not target_modules:
            raise ConfigError(
                "policy.target_modules is empty: no layer would learn. Name linear layers, or leave it out for all of them."
            )
        if isinstance(base, LoRAPolicy):
            raise ConfigError("policy.base is a LoRAPolicy itself: adapters stand on whole weights. Give its base.")
        self.base = base
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.target_modules = target_modules
        self.seed, self.adapter = seed, adapter
        self.name = base.name
        self.chat_options = base.chat_options

    def bind_env(self, env: Environment) -> None:
        self.base.bind_env(env)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.load_tokenizer()

    def context(self) -> int:
        return self.base.context()

    def load_model(self) -> PreTrainedModel:
        try:
            from peft import LoraConfig, inject_adapter_in_model

            from sdar.lora_linear import fuse, keep_float32
        except ImportError as error:
            raise ConfigError(f"LoRAPolicy needs the package peft, which is not here: {install('lora')}.") from error
        model = self.base.load_frozen()
        config = LoraConfig(
            r=self.rank,
            lora_alpha=cast(int, self.alpha),  # only a factor
            lora_dropout=self.dropout,
            target_modules=self._targets(model),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            inject_adapter_in_model(config, model, ADAPTER)  # a model's own add_adapter refuses releases of peft that do work
        for _, layer in adapted(model):
            keep_float32(layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
            if self.dropout:
                layer.lora_dropout[ADAPTER] = LearningDropout(self.dropout)
            fuse(layer)
        if self.adapter is not None:
            load_adapter(self.adapter, adapted(model), ADAPTER)
            for _, layer in adapted(model):
                cast(Any, layer).begun_with = tuple(
                    part[ADAPTER].weight.detach().clone() for part in (layer.lora_A, layer.lora_B)
                )
        return model.train()  # that it drops and checkpoints; both end where no gradient is wanted

    def frozen(self, model: PreTrainedModel) -> PreTrainedModel:
        return cast(PreTrainedModel, WithoutAdapters(model))  # it has what is asked of one

    def write_adapter(self, weights: Iterable[tuple[str, Tensor]], folder: str, dtype: str) -> None:
        """Write the adapters of a model's weights (name, whole tensor) as a folder that peft, vLLM and `adapter` read."""
        place = getattr(self.base, "path", self.name)
        write_adapter(folder, weights, place, self.alpha, ADAPTER, getattr(torch, dtype))

    def blueprint(self) -> Blueprint:
        base = self.base.blueprint()
        layers = dict(base.network.named_modules())
        sizes = [layers[name] for name in self._targets(base.network)]
        adapters = sum(self.rank * (layer.in_features + layer.out_features) for layer in sizes)
        return replace(base, adapters=adapters, options={what: f"base.{name}" for what, name in base.options.items()})

    def _targets(self, model: PreTrainedModel) -> list[str]:
        """Full names of the layers that get adapters.

        Raises:
            ConfigError: a name that fits no linear layer, or the head.
        """
        head = (model.get_output_embeddings(), model.get_input_embeddings())
        linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        known = sorted({name.rpartition(".")[2] for name, m in linear.items() if m not in head})
        for target in self.target_modules or known:
            if target not in known:
                own = [name for name, m in linear.items() if m in head and name.rpartition(".")[2] == target]
                reason = (
                    "it turns hidden states into the densities that are scored, and is scored without an adapter"
                    if own
                    else f"{type(model).__name__} has no such linear layer"
                )
                raise ConfigError(
                    f"policy.target_modules names {target!r}: {reason}.{did_you_mean(target, known)} Layers: {', '.join(known)}."
                )
        return [
            name for name, m in linear.items() if m not in head and name.rpartition(".")[2] in (self.target_modules or known)
        ]


class LearningDropout(nn.Module):
    """Drops only in passes that carry a gradient: rows are scored, and responses sampled, by the whole model."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, self.training and torch.is_grad_enabled())


class WithoutAdapters(nn.Module):
    """A model with its adapters off, or as `LoRAPolicy.adapter` had them: the weights that training started from, no copy of them.

    It has no parameters of its own to train or to store; `parameters` gives the model's. Its mode is the model's, too.
    """

    live: PreTrainedModel

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.__dict__["live"] = model  # no child: its weights are trained, moved and stored elsewhere

    @property
    def training(self) -> bool:
        live = self.__dict__.get("live")
        return live is not None and live.training

    @training.setter
    def training(self, mode: bool) -> None:
        """The model's own mode decides: see `train`."""

    @property
    def config(self) -> Any:
        return self.live.config

    @property
    def _supports_attention_backend(self) -> bool:
        return self.live._supports_attention_backend

    def set_attn_implementation(self, name: str) -> None:
        self.live.set_attn_implementation(name)

    @property
    def device(self) -> torch.device:
        return self.live.device

    def train(self, mode: bool = True) -> "WithoutAdapters":
        self.live.train(mode)
        return self

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.live.parameters(recurse)

    def get_input_embeddings(self) -> nn.Module:
        return self.live.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.live.get_output_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._off():
            return self.live(*args, **kwargs)

    def base_model(self, *args: Any, **kwargs: Any) -> Any:
        """Hidden states instead of logits, as the attribute of a transformers model gives them."""
        with self._off():
            return self.live.base_model(*args, **kwargs)

    @contextmanager
    def _off(self) -> Iterator[None]:
        layers = [layer for _, layer in adapted(self.live)]
        was_training = self.live.training
        if was_training:
            self.live.eval()
        learned = [_exchange(layer, first) if (first := begun_with(layer)) else None for layer in layers]
        for layer, own in zip(layers, learned, strict=True):
            layer._disable_adapters = own is None  # `enable_adapters` would also switch the adapters' gradients off
        try:
            with torch.no_grad():
                yield
        finally:
            for layer, own in zip(layers, learned, strict=True):
                layer._disable_adapters = False
                if own is not None:
                    _exchange(layer, own)
            if was_training:
                self.live.train()


def plain_weights(
    network: nn.Module, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network as its plain architecture has them: for an engine that knows nothing of adapters.

    Args:
        network: Any model; with adapters they are merged, of `WithoutAdapters` those that training started from, if any.
        weights: (name, whole tensor) in the order of the state dict, of a `WithoutAdapters` that of its `live` model. Every one is
            taken, one after the other, and no more than a layer of them is held.
        dtype: Of weights that are merged; None: that of the weight below.
    """
    off = isinstance(network, WithoutAdapters)
    model = network.live if isinstance(network, WithoutAdapters) else network
    held: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        ends = {"weight": ".base_layer.weight", "a": f".lora_A.{ADAPTER}.weight", "b": f".lora_B.{ADAPTER}.weight"}
        part = next((part for part, end in ends.items() if name.endswith(end)), None)
        if part is None:
            yield name.replace(".base_layer.", "."), tensor
            continue
        layer = name.removesuffix(ends[part])
        if off:
            if part == "weight":
                module = cast(Any, model.get_submodule(layer))
                a, b = (weight.to(tensor.device) for weight in begun_with(module) or (tensor[:0], tensor[:, :0]))
                yield f"{layer}.weight", merged(tensor, a, b, module.scaling[ADAPTER])
            continue
        parts = held.setdefault(layer, {})
        parts[part] = tensor.detach().clone()  # it may be whole for as long as it is given only
        if len(parts) == len(ends):
            del held[layer]
            scaling = cast(Any, model.get_submodule(layer)).scaling[ADAPTER]
            yield f"{layer}.weight", merged(**parts, scaling=scaling, dtype=dtype)
    assert not held, "a layer without its adapter, or an adapter without its layer"


@torch.no_grad()
def merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype | None = None) -> Tensor:
    """``[out, in]`` the weight with its adapter, added in at least float32 and rounded once."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + scaling * (b.to(wide) @ a.to(wide))).to(dtype or weight.dtype)


def begun_with(layer: nn.Module) -> tuple[Tensor, ...]:
    """A and B of a layer as `LoRAPolicy.adapter` has them; empty where training began without an adapter."""
    return getattr(layer, "begun_with", ())


def _exchange(layer: "LoraLayer", weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Give a layer's adapter other weights; returns those that it had.

    Raises:
        ConfigError: this process holds a part of it.
    """
    had = []
    for part, weight in zip((layer.lora_A, layer.lora_B), weights, strict=True):
        own = part[ADAPTER].weight
        if own.shape != weight.shape:
            raise ConfigError(
                f"policy.adapter begins with adapters that something shall be compared with, and a process holds {tuple(own.shape)} of "
                f"{tuple(weight.shape)} of one: they are divided among the ranks. Use ddp or ZeRO-2, or a method without a frozen copy "
                "(kl_coef 0 and a live teacher)."
            )
        had.append(own.data)
        own.data = weight.to(own.device, own.dtype)
    return tuple(had)


def adapted(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    """Name and layer of every layer with adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, cast("LoraLayer", m)) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
