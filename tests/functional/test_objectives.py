"""Golden numbers of the losses, and what their values and gradients really estimate: a vocabulary enumerated in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import gap_gate, importance_k3, k1_policy_gradient, k2, k3, lift

VOCAB = 7
Loss = Callable[[Tensor, Tensor], Tensor]


def random_logits(seed: int) -> Tensor:
    return torch.randn(VOCAB, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def expected_gradient(loss: Loss, teacher_logp: Tensor, logits: Tensor) -> Tensor:
    """Mean gradient over the student's own samples: every token of the vocabulary once, times its probability."""
    logp = logits.log_softmax(-1)
    return gradient((logp.exp().detach() * loss(teacher_logp, logp)).sum(), logits)


def expected_value(loss: Loss, teacher_logp: Tensor, logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return (logp.exp() * loss(teacher_logp, logp)).sum().detach()


def reverse_kl(teacher_logp: Tensor, logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - teacher_logp)).sum()


def forward_kl(teacher_logp: Tensor, logits: Tensor) -> Tensor:
    return (teacher_logp.exp() * (teacher_logp - logits.log_softmax(-1))).sum()


@pytest.fixture(params=range(3))
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Teacher log-probabilities and student logits with a graph."""
    return random_logits(100 + request.param).log_softmax(-1), random_logits(request.param).requires_grad_()


def close(actual: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype).expand_as(actual), atol=1e-12, rtol=1e-10)


def test_losses_golden() -> None:
    # student 1/2, teacher 1/4: l = ln 2 = 0.6931472.  k2 = (ln 2)^2 / 2 = 0.2402265.  k3 = 1/2 - 1 + ln 2 = 0.1931472.
    # sampled from old = 1/4: rho = 2, rho k3 = 0.3862944.
    student, teacher = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    for actual, expected in [
        (lift(teacher, student), -0.6931472),
        (k1_policy_gradient(teacher, student), 0.6931472),
        (k2(teacher, student), 0.2402265),
        (k3(teacher, student), 0.1931472),
        (importance_k3(teacher, student, old_logp=torch.tensor([0.25]).log()), 0.3862944),
    ]:
        torch.testing.assert_close(actual, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_exponents_are_bounded_as_published() -> None:
    zero = torch.zeros(1, dtype=torch.double)
    close(k3(zero, zero - 30), math.exp(20) - 1 - 30)
    close(importance_k3(zero, zero, old_logp=zero - 12), 0.0)
    # l = 1: k3 = e^-1; rho is e^10, not e^12.
    close(importance_k3(zero - 1, zero, old_logp=zero - 12), math.exp(10) * math.exp(-1))
    assert k3(torch.zeros(1), torch.full((1,), -200.0)).isfinite().all()


@pytest.mark.parametrize("loss", [lift, k1_policy_gradient, k2, k3])
def test_teacher_is_detached_and_half_precision_widened(loss: Loss) -> None:
    teacher = torch.full((2, 3), -1.0, dtype=torch.bfloat16, requires_grad=True)
    student = torch.full((2, 3), -2.0, dtype=torch.bfloat16, requires_grad=True)
    value = loss(teacher, student)
    assert value.shape == (2, 3) and value.dtype == torch.float32
    value.sum().backward()
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize(
    ("gap", "value", "gradient_"),  # of exp(gap) - 1 - gap; d/d student: 1 - exp(gap)
    [(2.5, 8.682493960703473, -11.182493960703473), (3.0, 16.085536923187668, -19.085536923187668),
     (5.0, 142.4131591025766, -147.4131591025766), (8.0, 2971.957987041728, -2979.957987041728)],
)  # fmt: skip
def test_k3_clamped_at_10_has_no_gradient_beyond(gap: float, value: float, gradient_: float) -> None:
    teacher, student = torch.zeros(1, dtype=torch.double), torch.full((1,), -gap, dtype=torch.double, requires_grad=True)
    plain = k3(teacher, student)
    close(plain, value), close(gradient(plain.sum(), student), gradient_)
    clamped = k3(teacher, student, clamp=10.0)
    close(clamped, min(value, 10.0)), close(gradient(clamped.sum(), student), gradient_ if value < 10 else 0.0)


def test_k3_is_clamped_on_the_other_side_too() -> None:
    student = torch.tensor([-12.0, -10.5], dtype=torch.double, requires_grad=True)  # 12 and 10.5 nats above the teacher
    clamped = k3(student.detach() - torch.tensor([12.0, 10.5]), student, clamp=10.0)
    close(clamped, torch.tensor([10.0, math.exp(-10.5) + 9.5], dtype=torch.double))
    close(gradient(clamped.sum(), student), torch.tensor([0.0, 1 - math.exp(-10.5)], dtype=torch.double))


def test_what_bounds_an_exponent_does_not_turn_the_gradient_round() -> None:
    """25 nats below the teacher: k3 pulls as at 20 nats, importance_k3 by its 25 nats; both towards the teacher."""
    zero, student = torch.zeros(1, dtype=torch.double), torch.full((1,), -25.0, dtype=torch.double, requires_grad=True)
    close(gradient(k3(zero, student).sum(), student), 1 - math.exp(20))
    close(gradient(importance_k3(zero, student, student.detach()).sum(), student), -25.0)


def test_a_clamp_may_be_below_one() -> None:
    assert k3(torch.zeros(1), torch.tensor([3.0]), clamp=0.5).item() == 0.5


def test_a_clamp_that_leaves_nothing_explains_itself() -> None:
    with pytest.raises(ConfigError, match=r"clamp is 0.*Use e\.g\. 10, or null for no bound"):
        k3(torch.zeros(1), torch.zeros(1), clamp=0.0)


def test_importance_k3_detaches_teacher_and_old() -> None:
    teacher, student, old = (torch.full((3,), -x, requires_grad=True) for x in (1.0, 2.0, 3.0))
    importance_k3(teacher, student, old).sum().backward()
    assert teacher.grad is None and old.grad is None and student.grad is not None


def test_ungated_lift_has_no_expected_gradient(pair: tuple[Tensor, Tensor]) -> None:
    close(expected_gradient(lambda t, s: 0.5 * lift(t, s), *pair), 0.0)


def test_backpropagating_through_k1_gives_no_gradient(pair: tuple[Tensor, Tensor]) -> None:
    close(expected_gradient(lambda t, s: s - t, *pair), 0.0)


def test_a_single_gradient_of_the_ungated_lift_does_not_know_the_teacher(pair: tuple[Tensor, Tensor]) -> None:
    teacher, logits = pair
    one, other = (gradient(lift(t, logits.log_softmax(-1))[3], logits) for t in (teacher, teacher.flip(0)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("beta", [0.1, 5.0, 50.0])
def test_gated_lift_descends_the_expected_gate(pair: tuple[Tensor, Tensor], beta: float) -> None:
    teacher, logits = pair
    logp = logits.log_softmax(-1)
    gate = gap_gate(teacher - logp, beta).detach()
    actual = expected_gradient(lambda t, s: gate * lift(t, s), teacher, logits)
    jacobian = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1), logits)
    close(actual, -(logp.exp() * gate).detach() @ jacobian)
    # the same as raising the expected gate, the gate held fixed
    close(actual, -gradient((logp.exp() * gate).sum(), logits))


def test_gated_lift_with_small_beta_is_a_scaled_reverse_kl(pair: tuple[Tensor, Tensor]) -> None:
    teacher, logits = pair
    beta, coefficient = 1e-3, 0.01
    actual = expected_gradient(lambda t, s: coefficient * gap_gate(t - s, beta).detach() * lift(t, s), teacher, logits)
    expected = coefficient * beta / 4 * gradient(reverse_kl(teacher, logits), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)


def test_gated_lift_rests_where_student_is_teacher(pair: tuple[Tensor, Tensor]) -> None:
    _, logits = pair
    teacher = logits.log_softmax(-1).detach()
    close(expected_gradient(lambda t, s: gap_gate(t - s, 5.0).detach() * lift(t, s), teacher, logits), 0.0)


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [
        (lift, lambda t, x: -reverse_kl(t, x), lambda t, x: 0 * x.sum()),
        (k1_policy_gradient, reverse_kl, reverse_kl),
        (k2, None, reverse_kl),
        (k3, reverse_kl, forward_kl),
    ],
)
def test_values_and_gradients_estimate_what_their_docstrings_say(
    pair: tuple[Tensor, Tensor], loss: Loss, value: Loss | None, slope: Loss
) -> None:
    teacher, logits = pair
    close(expected_gradient(loss, teacher, logits), gradient(slope(teacher, logits), logits))
    if value is not None:
        close(expected_value(loss, teacher, logits), value(teacher, logits).detach())


def test_k2_is_the_reverse_kl_to_second_order() -> None:
    logits = random_logits(0)
    teacher = (logits + 1e-3 * random_logits(1)).log_softmax(-1)
    torch.testing.assert_close(expected_value(k2, teacher, logits), reverse_kl(teacher, logits), rtol=2e-3, atol=0)


@pytest.mark.parametrize("on_policy", [True, False])
def test_importance_k3_follows_the_reverse_kl_on_and_off_policy(pair: tuple[Tensor, Tensor], on_policy: bool) -> None:
    teacher, logits = pair
    logp = logits.log_softmax(-1)
    old = logp.detach() if on_policy else random_logits(50).log_softmax(-1)
    mean = (old.exp() * importance_k3(teacher, logp, old)).sum()
    close(mean.detach(), reverse_kl(teacher, logits).detach())
    close(gradient(mean, logits), gradient(reverse_kl(teacher, logits), logits))
