"""The vocabulary head, tile by tile: tempered logits of some tokens and some ids, and the gradient's way back through them.

A tile of ``[tokens, ids]`` is small enough to stay in a processor's cache and large enough to fill a GPU. It is computed, used and
overwritten; full logits of 8,192 tokens and 152,000 ids would be 5 GB.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdar.errors import ConfigError

IDS = {"cpu": 1024, "cuda": 8192}
"""Ids in a tile."""
ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits in a tile: 1 MB of float32 for each thread of a processor, 64 MB on a GPU."""

ROWS = 1 << 22
"""Numbers of the head's rows that are gathered at a time where only a few ids of each token count."""


@dataclass(frozen=True)
class Projection:
    """cap(scale * hidden @ weight.T + bias) / temperature over the first `vocab` ids, with at least float32 behind the product.

    Matrix products take hidden states and weights in `precision` and deliver `wide`; a processor multiplies in `wide`.
    """

    weight: Tensor
    """``[at least vocab, hidden]``"""
    bias: Tensor | None
    vocab: int
    forbidden: tuple[int, ...]
    """Ids with probability zero, in order."""
    temperature: float
    softcap: float | None
    scale: float
    precision: torch.dtype

    def tempered(self, temperature: float, vocab: int) -> "Projection":
        """Divided once more, over the first ids only."""
        return replace(self, temperature=self.temperature * temperature, vocab=vocab)

    def without_weights(self) -> "Projection":
        """For keeping: the weights themselves are autograd's to keep."""
        return replace(self, weight=self.weight.new_empty(0), bias=None)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.precision, torch.float32)

    def operand(self, tensor: Tensor) -> Tensor:
        """A factor of a matrix product, in the precision that it is multiplied in."""
        tensor = tensor.to(self.precision)
        return tensor if _widens(tensor) else tensor.to(self.wide)

    def tiles(self, tokens: int, chunk: int) -> tuple[list[slice], list[slice]]:
        """Token and id ranges; no tile has more than `chunk` tokens."""
        kind = "cpu" if self.weight.device.type == "cpu" else "cuda"
        ids = min(self.vocab, IDS[kind])
        elements = ELEMENTS[kind] * (min(torch.get_num_threads(), 16) if kind == "cpu" else 1)
        return list(pieces(tokens, min(chunk, max(elements // ids, 64)))), list(pieces(self.vocab, ids))

    def columns(self, rows: int) -> list[slice]:
        """Id ranges where few tokens are taken at a time: wider on a GPU, which waits for the call of each operation."""
        if self.weight.device.type == "cpu":
            return self.tiles(0, 1)[1]
        return list(pieces(self.vocab, max(IDS["cuda"], ELEMENTS["cuda"] // 4 // max(rows, 1))))

    def logits(self, hidden: Tensor, weight: Tensor, ids: slice, out: Tensor) -> Tensor:
        """``[tokens, ids]`` tempered logits, into `out`; forbidden ids among them like any others.

        Args:
            hidden, weight: `operand` of the tile's hidden states and rows of the weight.
        """
        alpha = self.scale / (self.temperature if self.softcap is None else self.softcap)
        add_product(out, hidden, weight.t(), alpha, 0.0)
        if self.bias is not None:
            out.add_(self.bias[ids].to(out.dtype), alpha=alpha / self.scale)
        if self.softcap is not None:
            out.tanh_().mul_(self.softcap / self.temperature)
        elif self.bias is not None:
            out.clamp_min_(torch.finfo(out.dtype).min)  # an id may be forbidden by a bias of -inf; 0 * -inf is no number
        return out

    def slope(self, logits: Tensor) -> Tensor | None:
        """The cap's derivative at tempered logits; None without a cap."""
        if self.softcap is None:
            return None
        return (logits * (self.temperature / self.softcap)).square_().neg_().add_(1.0)

    def excluded(self) -> Tensor:
        """``[vocab]`` bool, which ids are forbidden; empty where none is."""
        out = torch.zeros(self.vocab if self.forbidden else 0, dtype=torch.bool, device=self.weight.device)
        out[list(self.forbidden)] = True
        return out

    def forbidden_in(self, ids: slice) -> Tensor | None:
        """Which of a tile's columns are forbidden; None: none is."""
        first, end = bisect_left(self.forbidden, ids.start), bisect_left(self.forbidden, ids.stop)
        if first == end:
            return None
        return torch.tensor(self.forbidden[first:end], device=self.weight.device) - ids.start


def projection(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    vocab: int | None,
    forbidden_ids: Sequence[int],
    temperature: float,
    softcap: float | None,
    scale: float,
) -> Projection:
    """That of a head and a density.

    Raises:
        ConfigError: a setting that no distribution has.
    """
    vocab = weight.shape[0] if vocab is None else vocab
    if not temperature > 0:
        raise ConfigError(
            f"temperature is {temperature}: logits are divided by it, and greedy decoding has no density. "
            "Use the temperature above 0 that the rollout sampled with."
        )
    if softcap is not None and not softcap > 0:
        raise ConfigError(f"softcap is {softcap}: logits are bounded by it. Use a number above 0, or null for no bound.")
    kind = weight.device.type
    precision = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(kind) and precision != torch.float64:
        precision = torch.get_autocast_dtype(kind)
    forbidden = _forbidden(forbidden_ids, vocab)
    return Projection(weight, bias, vocab, forbidden, float(temperature), softcap, scale, precision)


def pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def add_product(out: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """beta out + alpha a @ b in place, in the precision of `out`; what stood there is not read at beta = 0."""
    if _widens(a) and a.dtype != out.dtype:
        return torch.addmm(out, a, b, beta=beta, alpha=alpha, out_dtype=out.dtype, out=out)  # type: ignore[call-overload,no-any-return]
    return out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=beta, alpha=alpha)


_PRODUCTS_WIDEN = "dtype_out" in torch.ops.aten.addmm.overloads()  # type: ignore[no-untyped-call]


def _widens(tensor: Tensor) -> bool:
    """Whether this torch multiplies such matrices into float32: on CUDA. Rounding to bfloat16 would put 0.06 nats on a logit of 20."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and _PRODUCTS_WIDEN


def _forbidden(ids: Sequence[int], vocab: int) -> tuple[int, ...]:
    unique = sorted(set(ids))
    if unique and unique[0] < 0:
        raise ConfigError(f"forbidden_ids holds {unique[0]}: token ids are not negative. Remove it.")
    unique = [i for i in unique if i < vocab]
    if len(unique) == vocab:
        raise ConfigError(f"forbidden_ids holds all {vocab} ids of the vocabulary: nothing can be sampled. Allow some.")
    return tuple(unique)


class Tile:
    """Memory that tiles share, one after the other."""

    def __init__(self, like: Tensor, dtype: torch.dtype, rows: Sequence[slice], columns: Sequence[slice]):
        most = max((r.stop - r.start for r in rows), default=0) * max((c.stop - c.start for c in columns), default=0)
        self.memory = like.new_empty(most, dtype=dtype)

    def view(self, rows: slice, columns: slice) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        return self.memory[: shape[0] * shape[1]].view(shape)


class WeightGradient:
    """The gradient of weight and bias, in one buffer of the weight's own size and precision, written a tile of ids at a time.

    The sum over tokens is at least float32.
    """

    def __init__(self, projection: Projection, needs_weight: bool, needs_bias: bool):
        weight, bias, wide = projection.weight, projection.bias, projection.wide
        self.weight = torch.empty_like(weight) if needs_weight else None
        if self.weight is not None:
            self.weight[projection.vocab :] = 0
        self.bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        self.wide, self.scale = wide, projection.scale
        self.narrow: Tensor | None = None

    def begin(self, ids: slice) -> None:
        """Begin with some ids."""
        self.ids, self.first = ids, True
        if self.weight is not None:
            rows = self.weight[ids]
            self.current = rows if rows.dtype == self.wide else self._memory(rows)
        if self.bias is not None:
            self.current_bias = torch.zeros_like(self.bias[ids], dtype=self.wide)

    def add(self, grad: Tensor, factor: Tensor, hidden: Tensor) -> None:
        """Some tokens' share: gradient of their logits, the same as a factor of a product, hidden states."""
        if self.weight is not None:
            add_product(self.current, factor.t(), hidden, beta=0.0 if self.first else 1.0)
            self.first = False
        if self.bias is not None:
            self.current_bias.add_(grad.sum(0), alpha=1 / self.scale)

    def end(self) -> None:
        """End with the ids."""
        if self.weight is not None:
            if self.first:
                self.current.zero_()
            if self.current.dtype != self.weight.dtype:
                self.weight[self.ids] = self.current.to(self.weight.dtype)
        if self.bias is not None:
            self.bias[self.ids] = self.current_bias.to(self.bias.dtype)

    def _memory(self, rows: Tensor) -> Tensor:
        if self.narrow is None:
            self.narrow = torch.empty_like(rows, dtype=self.wide)
        return self.narrow[: len(rows)]


def logits_at(hidden: Tensor, head: Projection, ids: Tensor) -> Tensor:
    """Tempered logits ``[tokens, k]`` of a few ids ``[tokens, k]`` each; forbidden ones get the lowest finite number and no gradient.

    Value and gradient: exact. They cost k products with a row of the head for each token, whatever the vocabulary is.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        logits = head.scale * _RowProducts.apply(hidden, head.weight, ids, head.precision)  # type: ignore[no-untyped-call]
        if head.bias is not None:
            logits = logits + head.bias[ids].to(logits.dtype)
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        logits = (logits / head.temperature).clamp_min(torch.finfo(logits.dtype).min)
        if head.forbidden:
            excluded = torch.isin(ids, torch.tensor(head.forbidden, device=ids.device))
            logits = logits.masked_fill(excluded, torch.finfo(logits.dtype).min)
        return logits  # type: ignore[no-any-return]


class _RowProducts(torch.autograd.Function):
    """hidden[n] @ weight[ids[n, k]] in at least float32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, precision: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.precision = precision
        wide = torch.promote_types(precision, torch.float32)
        out = hidden.new_empty(ids.shape, dtype=wide)
        for at in _pieces_of_rows(ids, hidden):
            rows = weight[ids[at]].to(precision).to(wide)  # [tokens, k, hidden]
            out[at] = torch.bmm(rows, hidden[at].to(precision).to(wide)[:, :, None])[:, :, 0]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
        for at in _pieces_of_rows(ids, hidden):
            if grad_hidden is not None:
                rows = weight[ids[at]].to(ctx.precision).to(grad.dtype)
                grad_hidden[at] = torch.bmm(grad[at][:, None], rows)[:, 0].to(hidden.dtype)
            if grad_weight is not None:
                shares = grad[at][:, :, None] * hidden[at].to(ctx.precision).to(grad.dtype)[:, None]
                grad_weight.index_put_((ids[at],), shares, accumulate=True)  # sums in an order of its own on every device
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def _pieces_of_rows(ids: Tensor, hidden: Tensor) -> Iterator[slice]:
    return pieces(len(ids), max(1, ROWS // max(1, ids.shape[1] * hidden.shape[1])))
