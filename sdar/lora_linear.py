"""A linear layer with its adapter as one function: no copy of its input in another precision, and nothing kept but its input."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class AdaptedLinear(Linear):  # type: ignore[misc]
    """peft's layer, with the adapter's products in the precision of its input.

    Value:    W x + b + scaling B A x.
    Gradient: of x, A and B, exact but for rounding: in a pass to the precision of x, between passes to that of A and B.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.active_adapters[0]
        plain = not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
        if not plain or not isinstance(self.lora_dropout[name], nn.Identity) or not self._is_whole(x):
            return cast(Tensor, super().forward(x, *args, **kwargs))
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return cast(Tensor, _Adapted.apply(x, base.weight, base.bias, a, b, self.scaling[name]))  # type: ignore[no-untyped-call]

    def _is_whole(self, x: Tensor) -> bool:
        """Whether the frozen weight lies here, in the precision of `x`: ZeRO-3 gathers it, and an autocast casts it, when its own layer
        is called."""
        weight = self.base_layer.weight
        cast_here = torch.is_autocast_enabled(x.device.type)
        return weight.dtype == x.dtype and not weight.requires_grad and not cast_here and not hasattr(weight, "ds_id")


def fuse(layer: nn.Module) -> None:
    """Have a layer that is peft's plain one compute so."""
    if type(layer) is Linear:
        layer.__class__ = AdaptedLinear


class Float32Linear(nn.Linear):
    """Is never made narrower, whatever its network is cast to: what is trained moves by less than narrow types tell apart."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.itemsize >= tensor.itemsize else tensor.to(out.device)

        return super()._apply(moved, recurse)


def keep_float32(*layers: nn.Module) -> None:
    """Make layers `Float32Linear`."""
    for layer in layers:
        layer.float().__class__ = Float32Linear


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat = x.flatten(0, -2)
        narrow = flat @ a.to(x.dtype).t()
        out = F.linear(flat, weight, bias).addmm_(narrow, b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        flat, grad, down, up = x.flatten(0, -2), grad.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        narrow = (grad @ up).mul_(ctx.scaling)
        grad_x = (grad @ weight).addmm_(narrow, down).view_as(x) if ctx.needs_input_grad[0] else None
        grad_a = (narrow.t() @ flat).to(a.dtype)
        grad_b = (grad.t() @ (flat @ down.t())).mul_(ctx.scaling).to(b.dtype)
        return grad_x, None, None, grad_a, grad_b, None
