"""A divergence between a student and its teachers over the vocabulary, from hidden states, without full logits.

A hundred tokens or two are projected by both heads at a time. Where the divergence is a sum over ids (`PerId`), it and its gradient
are taken a tile of ids at a time; any other is called on these tokens' log-probabilities, and autograd differentiates it there.

Full logits need four matrix products, of which one is the teacher's. If the factors that the loss will multiply the divergences with
are told beforehand (`weights`), hidden states and head get their gradients in the forward pass and it stays at four. Otherwise the
backward pass projects both sides once more: six. With a frozen head it is three in both cases.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdar.functional.head import Projection, add_product, pieces
from sdar.functional.per_id import PerId
from sdar.functional.vocabulary import forbidden_logit

SHARE = 48
"""Each side's logits are this share of all tokens' at a time: together a twenty-fourth of full ones on one side."""
LEAST = 160
"""Tokens that are projected at a time however few there are: matrix products of fewer are slow."""


class Teacher(NamedTuple):
    """Who is compared with on some tokens."""

    rows: Tensor
    """``[tokens]`` index of the tokens."""
    head: Projection | None = None
    states: Tensor | None = None
    """``[tokens, hidden]``; None: the divergence is told of the teacher otherwise."""


WholeRows = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""Log-probabilities of the student ``[tokens, vocab]``, its logp and entropy ``[tokens]``, the teacher's log-probabilities if it has a
head, the tokens' index; to values ``[tokens]``."""


class Comparison(NamedTuple):
    """What is computed of each token."""

    objective: PerId | WholeRows
    teachers: Sequence[Teacher]
    chunk: int


def head_divergence(
    hidden: Tensor, logp: Tensor, entropy: Tensor, student: Projection, comparison: Comparison, weights: Tensor | None = None
) -> Tensor:
    """The divergence of each token ``[N]``; zero where no teacher is.

    Value:    that of the objective.
    Gradient: exact, with respect to `hidden`, weight and bias of the student's head, and `logp` and `entropy` where the objective
              reads them; once differentiable.

    Args:
        hidden: ``[N, H]``.
        weights: ``[N]`` what the loss will multiply each value with, up to one common factor, without a gradient. If it turns out
            otherwise, the gradient is still exact and costs two more products.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _Divergence.apply(hidden, student.weight, student.bias, logp, entropy, weights, student, comparison)  # type: ignore[no-any-return,no-untyped-call]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, logp: Tensor, entropy: Tensor, weights: Tensor | None,
        student: Projection, comparison: Comparison,
    ) -> Tensor:  # fmt: skip
        ctx.frozen = not any(ctx.needs_input_grad[1:3])
        if not any(ctx.needs_input_grad[:5]):
            weights = None
        elif ctx.frozen:
            weights = torch.ones_like(logp)  # the gradient of a token's own hidden state needs no more
        with torch.no_grad():
            run = _Run(hidden, student, comparison, weights, ctx.needs_input_grad)
            run.all(logp, entropy)
        ctx.save_for_backward(hidden, weight, bias, logp, entropy, weights)
        ctx.run = run if weights is not None else None
        ctx.student = run.student = student.without_weights()
        ctx.comparison = comparison
        return run.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, logp, entropy, weights = ctx.saved_tensors
        run, ctx.run = ctx.run, None  # its gradients are scaled in place: a second backward pass makes them again
        factor: Tensor | None = None
        if run is not None:
            factor = grad if ctx.frozen else _common_factor(grad, weights)
        if factor is None:
            with torch.autocast(hidden.device.type, enabled=False):
                student = replace(ctx.student, weight=weight, bias=bias)
                run = _Run(hidden, student, ctx.comparison, grad, ctx.needs_input_grad, values=False)
                run.all(logp, entropy)
        direct = [None if d is None else d * grad for d in run.direct]
        return *run.gradients(factor, hidden, weight, bias), *direct, None, None, None


def _common_factor(grad: Tensor, weights: Tensor) -> Tensor | None:
    """c with grad = c weights up to rounding, if there is one."""
    c = (grad * weights).sum() / weights.square().sum().clamp_min(torch.finfo(weights.dtype).tiny)
    wanted = c * weights
    off = (grad - wanted).abs() - 16 * torch.finfo(grad.dtype).eps * wanted.abs()
    return c if bool((off <= 0).all()) else None


class _Run:
    """One way over all tokens."""

    def __init__(
        self, hidden: Tensor, student: Projection, comparison: Comparison, weights: Tensor | None, needs: Sequence[bool],
        values: bool = True,
    ):  # fmt: skip
        wide = student.wide
        self.hidden, self.student, self.comparison, self.weights = hidden, student, comparison, weights
        self.needs_values = values
        self.values = hidden.new_zeros(len(hidden), dtype=wide)
        self.direct: list[Tensor | None] = [None, None]
        learns = weights is not None
        self.grad_hidden = torch.zeros_like(hidden, dtype=wide) if learns and needs[0] else None
        self.grad_weight = torch.zeros_like(student.weight, dtype=wide) if learns and needs[1] else None
        self.grad_bias = (
            torch.zeros_like(student.bias, dtype=wide) if learns and needs[2] and student.bias is not None else None
        )

    def all(self, logp: Tensor, entropy: Tensor) -> None:
        """Fill in values and gradients."""
        objective, teachers, chunk = self.comparison
        size = min(chunk, max(len(self.hidden) // SHARE, LEAST))
        if not isinstance(objective, PerId):
            size = min(size, max(len(self.hidden) // (4 * SHARE), LEAST // 4))  # autograd keeps several of the kind
        memory = [_Rows(self.hidden, self.student, size)]
        for teacher in teachers:
            if teacher.head is not None:
                memory.append(_Rows(self.hidden, teacher.head, size))
            learns = self.weights is not None
            chosen = (
                self.weights[teacher.rows] != 0
                if self.weights is not None
                else torch.zeros_like(teacher.rows, dtype=torch.bool)
            )
            for some, with_gradient in ((chosen, learns), (~chosen, False)):
                if not with_gradient and not self.needs_values:
                    continue
                for at in some.nonzero()[:, 0].split(size) if bool(some.any()) else ():
                    self.some(objective, teacher, at, memory, logp, entropy, with_gradient)
            del memory[1:]

    def some(
        self, objective: PerId | WholeRows, teacher: Teacher, at: Tensor, memory: "list[_Rows]", logp: Tensor, entropy: Tensor,
        learns: bool,
    ) -> None:  # fmt: skip
        """A few tokens of one teacher."""
        rows = teacher.rows[at]
        sides = [(self.student, self.hidden[rows])]
        if teacher.head is not None and teacher.states is not None:
            sides.append((teacher.head, teacher.states[at]))
        slopes: _Rows | None
        total: Tensor | None
        if isinstance(objective, PerId):
            vocab = min(head.vocab for head, _ in sides)
            sides = [(head.tempered(objective.temperature, vocab), states) for head, states in sides]
            columns = sides[0][0].columns(len(rows))
            normalizers = [m.project(*side, columns) for m, side in zip(memory, sides, strict=True)]
            slopes = memory[1]
            self.values[rows], total = _sum(objective, memory, normalizers, len(rows), columns, learns)
        else:
            columns = [slice(0, self.student.vocab)]
            normalizers = [m.project(*side, [slice(0, side[0].vocab)]) for m, side in zip(memory, sides, strict=True)]
            slopes, total = self._whole(objective, sides, memory, normalizers, rows, logp, entropy, learns)
        if learns and slopes is not None and total is not None:
            self._learn(sides[0], memory[0], slopes, normalizers[0], total, rows, columns)

    def _whole(
        self, objective: WholeRows, sides: Sequence[tuple[Projection, Tensor]], memory: "list[_Rows]", normalizers: Sequence[Tensor],
        rows: Tensor, logp: Tensor, entropy: Tensor, learns: bool,
    ) -> tuple["_Rows | None", Tensor | None]:  # fmt: skip
        """Values of whole rows; autograd's slopes and their sums."""
        whole = []
        for (head, _), m, normalizer in zip(sides, memory, normalizers, strict=True):
            everything = slice(0, head.vocab)
            whole.append(m.view(len(rows), everything).sub_(normalizer[:, None]))
            if (forbidden := head.forbidden_in(everything)) is not None:
                whole[-1].index_fill_(1, forbidden, torch.finfo(head.wide).min)
        with torch.set_grad_enabled(learns):
            leaves = [t.detach().requires_grad_(learns) for t in (whole[0], logp[rows], entropy[rows])]
            values = objective(leaves[0], leaves[1], leaves[2], whole[1] if len(whole) > 1 else None, rows)
        self.values[rows] = values.detach().to(self.values.dtype)
        if not learns:
            return None, None
        slopes: Sequence[Tensor | None] = (None, None, None)
        if values.requires_grad:
            slopes = torch.autograd.grad(values, leaves, torch.ones_like(values), allow_unused=True)
        for i, (slope, like) in enumerate(zip(slopes[1:], (logp, entropy), strict=True)):
            if slope is not None:
                known = self.direct[i]
                self.direct[i] = known = torch.zeros_like(like) if known is None else known
                known[rows] = slope
        own = torch.zeros_like(whole[0]) if slopes[0] is None else slopes[0]
        return _Rows.of(own), own.sum(1)

    def _learn(
        self, side: tuple[Projection, Tensor], own: "_Rows", slopes: "_Rows", normalizer: Tensor, total: Tensor, rows: Tensor,
        columns: Sequence[slice],
    ) -> None:  # fmt: skip
        """From log-probabilities and slopes to the gradient of hidden states and head."""
        assert self.weights is not None
        (head, states), weights = side, self.weights[rows] * (side[0].scale / side[0].temperature)
        states = head.operand(states)
        grad_hidden = torch.zeros_like(states, dtype=head.wide) if self.grad_hidden is not None else None
        for ids in columns:
            a = own.view(len(rows), ids)
            cap = None if head.softcap is None else head.slope(a + normalizer[:, None])
            grad = a.exp_().mul_(-total[:, None]).add_(slopes.view(len(rows), ids)).mul_(weights[:, None])
            if cap is not None:
                grad.mul_(cap)
            if (forbidden := head.forbidden_in(ids)) is not None:
                grad.index_fill_(1, forbidden, 0.0)
            factor = head.operand(grad)
            if grad_hidden is not None:
                add_product(grad_hidden, factor, head.operand(head.weight[ids]))
            if self.grad_weight is not None:
                add_product(self.grad_weight[ids], factor.t(), states)
            if self.grad_bias is not None:
                self.grad_bias[ids].add_(grad.sum(0), alpha=1 / head.scale)
        if self.grad_hidden is not None and grad_hidden is not None:
            self.grad_hidden[rows] = grad_hidden

    def gradients(self, factor: Tensor | None, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor | None]:
        """Of hidden states, weight and bias, in their own precision; `factor` multiplies them, for each token or once."""
        out: list[Tensor | None] = []
        for grad, like in zip((self.grad_hidden, self.grad_weight, self.grad_bias), (hidden, weight, bias), strict=True):
            if grad is not None and like is not None:
                if factor is not None:
                    grad.mul_(factor[:, None] if factor.dim() else factor)
                out.append(grad.to(like.dtype))
            else:
                out.append(None)
        return out


def _sum(
    objective: PerId, memory: "list[_Rows]", normalizers: Sequence[Tensor], count: int, columns: Sequence[slice], learns: bool
) -> tuple[Tensor, Tensor]:
    """Sums of terms and of slopes ``[count]``; log-probabilities stay in the student's memory, slopes in the teacher's."""
    values, total = torch.zeros_like(normalizers[0]), torch.zeros_like(normalizers[0])
    for ids in columns:
        own, its = (m.view(count, ids).sub_(n[:, None]) for m, n in zip(memory, normalizers, strict=True))
        term, slope = objective.term(own, its)
        values += term.sum(1)
        if learns:
            total += slope.sum(1)
            its.copy_(slope)
    return values, total


class _Rows:
    """Memory for some tokens' logits: a tile of ids behind the other, so that each lies in one piece."""

    def __init__(self, like: Tensor, head: Projection, size: int):
        self.memory = like.new_empty(min(size, max(len(like), 1)) * head.vocab, dtype=head.wide)

    @classmethod
    def of(cls, tensor: Tensor) -> "_Rows":
        out = cls.__new__(cls)
        out.memory = tensor.flatten()
        return out

    def view(self, count: int, ids: slice) -> Tensor:
        return self.memory[count * ids.start : count * ids.stop].view(count, ids.stop - ids.start)

    def project(self, head: Projection, hidden: Tensor, columns: Sequence[slice]) -> Tensor:
        """Fill in tempered logits of some tokens, and give the log of their summed exponentials ``[tokens]``."""
        states = head.operand(hidden)
        lowest = forbidden_logit(head.wide)
        top = hidden.new_full((len(hidden),), lowest / 2, dtype=head.wide)
        total = torch.zeros_like(top)
        for ids in columns:
            z = head.logits(states, head.operand(head.weight[ids]), ids, self.view(len(hidden), ids))
            forbidden = head.forbidden_in(ids)
            if forbidden is not None:
                z.index_fill_(1, forbidden, lowest)
            if head.bias is not None:
                z.clamp_min_(lowest)
            before = top.clone()
            torch.maximum(top, z.amax(1), out=top)
            total.mul_((before - top).exp_())
            for part in pieces(z.shape[1], 1 << 14):
                total.add_((z[:, part] - top[:, None]).exp_().sum(1))
        return top + total.log()
