"""What every registered gate and divergence do together, by enumerating a vocabulary in float64.

A divergence that is new here needs a declared estimand from the tables below, or a line in them.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdar.divergences
import sdar.gates  # noqa: F401  (registers, like the line above)
from sdar.parts import Divergence, Gate
from sdar.registry import parts
from sdar.types import TokenView

VOCAB = 7
GATES = {name: cls for name, cls in parts("gates").items() if cls.__module__.startswith("sdar.")}
DIVERGENCES = {name: cls for name, cls in parts("divergences").items() if cls.__module__.startswith("sdar.")}
SEES_THE_TOKEN = {"gap", "soft_or"}
"""Gates that differ between the tokens that could have been sampled in one place."""


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


ESTIMANDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "0": lambda student, teacher: 0 * student.sum(),
    "KL(student || teacher)": lambda student, teacher: kl(student, teacher),
    "-KL(student || teacher)": lambda student, teacher: -kl(student, teacher),
    "KL(teacher || student)": lambda student, teacher: kl(teacher, student),
    "E[(student_logp - teacher_logp)^2] / 2": lambda student, teacher: (student.exp() * (student - teacher) ** 2).sum() / 2,
}


def estimand(text: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The declared quantity; what stands in brackets after a blank is a remark."""
    name = text.removeprefix("grad ")
    name = name.partition(" (with")[0]
    assert name in ESTIMANDS, f"no formula for the estimand {text!r}: add one to ESTIMANDS"
    return ESTIMANDS[name](student, teacher)


def one_place(seed: int) -> tuple[Tensor, Tensor, TokenView]:
    """Student logits with a graph, their log-softmax, and a view whose time axis holds every token of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, VOCAB, dtype=torch.double, generator=generator)
    logits.requires_grad_()
    student = logits.log_softmax(-1)
    fixed, teacher = student.detach()[None], teacher.log_softmax(-1)[None]
    entropy = -(fixed.exp() * fixed).sum()
    zero = torch.zeros(1, VOCAB, dtype=torch.long)
    tokens = TokenView(
        student_logp=fixed,
        teacher_logp=teacher,
        gap=teacher - fixed,
        entropy=entropy.expand(1, VOCAB),
        response_mask=zero + 1,
        turn_ids=zero,
        advantages=zero.double(),
        vocab_size=VOCAB,
    )
    return logits, student, tokens


def expected_gradient(divergence: Divergence, weights: Tensor, logits: Tensor, student: Tensor, tokens: TokenView) -> Tensor:
    loss = (tokens.student_logp.exp() * weights * divergence(student[None], tokens)).sum()
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_estimates_what_it_declares(name: str, seed: int) -> None:
    divergence: Divergence = DIVERGENCES[name]()
    logits, student, tokens = one_place(seed)
    loss = divergence(student[None], tokens)
    assert loss.shape == (1, VOCAB)
    close((tokens.student_logp.exp() * loss).sum(), estimand(divergence.value_estimand, student, tokens.teacher_logp[0]))
    (expected,) = torch.autograd.grad(
        estimand(divergence.gradient_estimand, student, tokens.teacher_logp[0]), logits, retain_graph=True
    )
    close(expected_gradient(divergence, torch.ones(1, VOCAB), logits, student, tokens), expected)


@pytest.mark.parametrize("divergence_name", DIVERGENCES)
@pytest.mark.parametrize("gate_name", GATES)
def test_a_gate_only_weighs_the_gradient(gate_name: str, divergence_name: str) -> None:
    gate: Gate = GATES[gate_name]()
    divergence: Divergence = DIVERGENCES[divergence_name]()
    logits, student, tokens = one_place(3)
    weights = gate(tokens)
    leaf = tokens.student_logp.clone().requires_grad_()
    (per_token,) = torch.autograd.grad(divergence(leaf, tokens).sum(), leaf)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), logits)
    expected = (tokens.student_logp.exp() * weights * per_token)[0] @ jacobian
    close(expected_gradient(divergence, weights, logits, student, tokens), expected)


@pytest.mark.parametrize("name", GATES)
def test_the_lift_learns_only_from_a_gate_that_sees_the_token(name: str) -> None:
    logits, student, tokens = one_place(4)
    weights = GATES[name]()(tokens)
    actual = expected_gradient(DIVERGENCES["lift"](), weights, logits, student, tokens)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), logits)
    close(actual, -(tokens.student_logp.exp() * weights)[0] @ jacobian)
    sees_the_token = bool((weights != weights[:, :1]).any())
    assert sees_the_token == bool(actual.abs().max() > 1e-6)
    if name in ("gap", "soft_or", "entropy", "constant"):
        assert sees_the_token == (name in SEES_THE_TOKEN)


@pytest.mark.parametrize("beta", [1e-3, 1e-2])
def test_a_soft_gap_gate_makes_the_lift_a_scaled_reverse_kl(beta: float) -> None:
    logits, student, tokens = one_place(5)
    actual = expected_gradient(DIVERGENCES["lift"](), GATES["gap"](beta=beta)(tokens), logits, student, tokens)
    (expected,) = torch.autograd.grad(beta / 4 * kl(student, tokens.teacher_logp[0]), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)
