"""Divergences over the vocabulary as sums over ids: a term from both log-probabilities of an id, and its slope.

What is a sum can be taken a tile of ids at a time. With a and b for an id's log-probability under student and teacher, f(a, b) for the
term and S = exp(a), the gradient of sum f with respect to the student's tempered logits is f_a - S sum f_a.

The slope f_a is given in closed form beside the term: of a tile that lies in the cache both cost a few operations.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Term = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Student's and teacher's log-probabilities ``[tokens, ids]`` to the term f and its slope f_a in the first, shaped alike. May not write
into its arguments. Impossible ids have a finite log-probability of about -1.7e38 (float32)."""


class PerId(NamedTuple):
    """A divergence that is the sum over ids of `term`, of both softmaxes at a further temperature."""

    term: Term
    temperature: float = 1.0


def with_slope(term: Callable[[Tensor, Tensor], Tensor]) -> Term:
    """A term whose slope autograd finds."""

    def both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            student = student.detach().requires_grad_()
            values = term(student, teacher)
            (slope,) = torch.autograd.grad(values.sum(), student)
        return values.detach(), slope

    return both


def forward_kl_term(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """T (b - a)."""
    t = teacher.exp()
    return (teacher - student).mul_(t), t.neg_()


def reverse_kl_term(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """S (a - b)."""
    s = student.exp()
    values = (student - teacher).mul_(s)
    return values, s.add_(values)


def jsd_term(student: Tensor, teacher: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """beta T (b - m) + (1 - beta) S (a - m), m the log of the mixture; the KLs at beta = 0 and 1, as in `jsd`."""
    if beta in (0, 1):
        return (reverse_kl_term if beta else forward_kl_term)(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    own = (student - mixture).mul_(student.exp()).mul_(1 - beta)
    return (teacher - mixture).mul_(teacher.exp()).mul_(beta).add_(own), own


def skew_forward_kl_term(student: Tensor, teacher: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """T (b - m), m the log of alpha T + (1 - alpha) S."""
    if alpha == 0:
        return forward_kl_term(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(alpha), student + math.log1p(-alpha))
    t = teacher.exp()
    return (teacher - mixture).mul_(t), torch.sub(student, mixture, out=mixture).exp_().mul_(t).mul_(alpha - 1)


def skew_reverse_kl_term(student: Tensor, teacher: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """S (a - m), m the log of alpha S + (1 - alpha) T."""
    if alpha == 0:
        return reverse_kl_term(student, teacher)
    mixture = torch.logaddexp(student + math.log(alpha), teacher + math.log1p(-alpha))
    s, ratio = student.exp(), torch.sub(student, mixture, out=mixture)
    values = ratio * s
    return values, values + ratio.exp_().mul_(-alpha).add_(1).mul_(s)
