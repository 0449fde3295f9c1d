"""What a divergence estimates, alone and behind a gate, proved by enumerating a vocabulary in float64.

A divergence declares two of the quantities of `ESTIMANDS` (a gradient: ``grad`` and one of them). One that estimates something else
adds its formula there, as ``ESTIMANDS["half of it"] = lambda student, teacher, sampled, divergence: ...``, in its own package.
"""

import inspect
from collections.abc import Callable
from itertools import product
from typing import Any, Literal, cast, get_args, get_origin

import torch
from torch import Tensor

from sdar.parts import Divergence, Gate
from sdar.types import StudentTokens, TeacherSignal, TokenView

VOCAB = 7
K = 3


def every_setting(cls: type) -> list[dict[str, Any]]:
    """All combinations of a part's named choices; a support of K tokens where it has one."""
    found = inspect.signature(cls, eval_str=True).parameters.items()
    choices = {name: get_args(p.annotation) for name, p in found if get_origin(p.annotation) is Literal}
    fixed = {"k": K} if any(name == "k" for name, _ in found) else {}
    return [fixed | dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


def mixed(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    return (share * p.exp() + (1 - share) * q.exp()).log()


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    mixture = mixed(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def on_support(student: Tensor, teacher: Tensor, sampled: int, d: Any) -> tuple[Tensor, Tensor]:
    """Both sides on the categories that the divergence's settings name, token by token."""
    ids = (teacher if d.support == "teacher" else student.detach()).topk(d.k).indices.tolist()
    if d.tail == "sampled" and sampled not in ids:
        ids.append(sampled)
    sides = []
    for logp in (student, teacher):
        p = logp.exp()
        masses = [p[i] for i in ids]
        if d.tail == "bucket":
            masses.append(cast(Tensor, sum(p[i] for i in range(VOCAB) if i not in ids)))
        total = sum(masses)
        sides.append(torch.stack([(m / total).log() for m in masses]))
    return sides[0], sides[1]


def top_k_cross_entropy(student: Tensor, teacher: Tensor, d: Any) -> Tensor:
    ids = teacher.topk(d.k).indices
    return -(teacher[ids].exp() * student[ids]).sum()


ESTIMANDS: dict[str, Callable[[Tensor, Tensor, int, Any], Tensor]] = {
    # student and teacher log-probabilities of a place, the token that was sampled there, the divergence with its settings
    "0": lambda s, t, y, d: 0 * s.sum(),
    "KL(student || teacher)": lambda s, t, y, d: kl(s, t),
    "-KL(student || teacher)": lambda s, t, y, d: -kl(s, t),
    "KL(teacher || student)": lambda s, t, y, d: kl(t, s),
    "E[(student_logp - teacher_logp)^2] / 2": lambda s, t, y, d: (s.exp() * (s - t) ** 2).sum() / 2,
    "JSD_beta(student, teacher)": lambda s, t, y, d: jsd(s, t, d.beta),
    "KL(teacher || alpha teacher + (1 - alpha) student)": lambda s, t, y, d: kl(t, mixed(t, s, d.alpha)),
    "KL(student || alpha student + (1 - alpha) teacher)": lambda s, t, y, d: kl(s, mixed(s, t, d.alpha)),
    "KL(student_K || teacher_K)": lambda s, t, y, d: kl(*on_support(s, t, y, d)),
    "KL(teacher_K || student_K)": lambda s, t, y, d: kl(*reversed(on_support(s, t, y, d))),
    "JSD_beta(student_K, teacher_K)": lambda s, t, y, d: jsd(*on_support(s, t, y, d), d.beta),
    "-sum_K teacher student_logp": lambda s, t, y, d: top_k_cross_entropy(s, t, d),
}

PULL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # what a sampled token's grad student_logp is multiplied with, for objectives on sampled tokens
    "0": lambda s, t: -torch.ones_like(s),
    "grad KL(student || teacher)": lambda s, t: s - t,
    "grad KL(teacher || student)": lambda s, t: 1 - (t - s).exp(),
}


def declared(text: str) -> str:
    """The declared quantity; what stands in brackets after "with" is a remark."""
    name = text.partition(" (with")[0]
    if name.removeprefix("grad ") not in ESTIMANDS:
        raise AssertionError(f"no formula for the estimand {text!r}: add one to sdar.contracts.estimands.ESTIMANDS")
    return name


def one_place(seed: int) -> tuple[Tensor, Tensor, TokenView]:
    """Student logits with a graph, their log-softmax, and a view of one place in which each token in turn was sampled."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, VOCAB, dtype=torch.double, generator=generator)
    logits.requires_grad_()
    student = logits.log_softmax(-1)
    fixed, teacher = student.detach(), teacher.log_softmax(-1)
    zero = torch.zeros(VOCAB, dtype=torch.long)
    top = teacher.topk(K)
    tokens = TokenView(
        student_logp=fixed,
        teacher_logp=teacher,
        gap=teacher - fixed,
        entropy=-(fixed.exp() * fixed).sum().expand(VOCAB),
        response_mask=torch.ones(VOCAB, dtype=torch.bool),
        turn_ids=zero,
        advantages=zero.double(),
        vocab_size=VOCAB,
        old_logp=fixed,
        ids=torch.arange(VOCAB),
        teacher_top_ids=top.indices.expand(VOCAB, K),
        teacher_top_logp=top.values.expand(VOCAB, K),
        teacher_logits=teacher.expand(VOCAB, VOCAB),
    )
    return logits, student, tokens


def losses(divergence: Divergence, student: Tensor, tokens: TokenView) -> Tensor:
    """The divergence's value for each token that could have been sampled, ``[..., vocab]``."""
    over_vocabulary = (
        (student.unsqueeze(-2).expand(*student.shape, VOCAB),) if divergence.needs()[0] != TeacherSignal.SAMPLED else ()
    )
    return divergence(StudentTokens(student, tokens.entropy, *over_vocabulary), tokens)


def expected_gradient(divergence: Divergence, weights: Tensor, logits: Tensor, student: Tensor, tokens: TokenView) -> Tensor:
    loss = (tokens.student_logp.exp() * weights * losses(divergence, student, tokens)).sum()
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


def prove(divergence: Divergence, gate: Gate | None, seed: int) -> None:
    """Value and expected gradient are the declared ones, each token weighted by the gate, to which it is a row of its own."""
    logits, student, tokens = one_place(seed)
    p, teacher = tokens.student_logp.exp(), tokens.teacher_logp
    weights = torch.ones(VOCAB, dtype=torch.double) if gate is None else gate(tokens.at((slice(None), None)))[:, 0]
    value, gradient = declared(divergence.value_estimand), declared(divergence.gradient_estimand)
    actual = expected_gradient(divergence, weights, logits, student, tokens)
    over_vocabulary = divergence.needs()[0] != TeacherSignal.SAMPLED
    if (
        over_vocabulary or gate is None
    ):  # a quantity of the place: it has a value for each sampled token, which the gate weighs
        values = torch.stack([ESTIMANDS[value](student, teacher, y, divergence) for y in range(VOCAB)])
        close((p * weights * losses(divergence, student, tokens)).sum(), (p * weights * values).sum())
        follows = torch.stack(
            [ESTIMANDS[gradient.removeprefix("grad ")](student, teacher, y, divergence) for y in range(VOCAB)]
        )
        close(actual, torch.autograd.grad((p * weights * follows).sum(), logits, retain_graph=True)[0])
    if not over_vocabulary:  # the score function of each token, pulled as declared
        if gradient not in PULL:
            raise AssertionError(f"no score function for the gradient {gradient!r}: add one to sdar.contracts.estimands.PULL")
        pull = PULL[gradient](tokens.student_logp, teacher)
        jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), logits)
        close(actual, (p * weights * pull) @ jacobian)
