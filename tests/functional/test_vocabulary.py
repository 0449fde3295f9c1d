"""Full-vocabulary divergences: golden numbers, properties, exact gradients, forbidden ids, padding, half precision."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import common_vocabulary, forward_kl, jsd, reverse_kl, skew_forward_kl, skew_reverse_kl
from sdar.functional.vocabulary import kl

Divergence = Callable[..., Tensor]

ALL: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd 0": partial(jsd, beta=0.0),
    "jsd 0.3": partial(jsd, beta=0.3),
    "jsd 0.5": partial(jsd, beta=0.5),
    "jsd 1": partial(jsd, beta=1.0),
    "skew_forward_kl 0": partial(skew_forward_kl, alpha=0.0),
    "skew_forward_kl 0.1": partial(skew_forward_kl, alpha=0.1),
    "skew_reverse_kl 0": partial(skew_reverse_kl, alpha=0.0),
    "skew_reverse_kl 0.1": partial(skew_reverse_kl, alpha=0.1),
}
BOUNDED = ["jsd 0.3", "jsd 0.5", "skew_forward_kl 0.1", "skew_reverse_kl 0.1"]
each = pytest.mark.parametrize("name", ALL)


def random_logits(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), logits)[0]


def naive(name: str, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The formula in probabilities, nothing made safe."""
    s, t = student_logits.softmax(-1), teacher_logits.softmax(-1)

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(-1)

    match name.split():
        case ["forward_kl"] | ["jsd", "0"] | ["skew_forward_kl", "0"]:
            return divergence(t, s)
        case ["reverse_kl"] | ["jsd", "1"] | ["skew_reverse_kl", "0"]:
            return divergence(s, t)
        case ["jsd", number]:
            beta = float(number)
            m = beta * t + (1 - beta) * s
            return beta * divergence(t, m) + (1 - beta) * divergence(s, m)
        case ["skew_forward_kl", number]:
            return divergence(t, float(number) * t + (1 - float(number)) * s)
        case ["skew_reverse_kl", number]:
            return divergence(s, float(number) * s + (1 - float(number)) * t)
    raise AssertionError(name)


def documented_gradient(name: str, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The gradient that the docstring states."""
    s, t = (student_logits / temperature).softmax(-1), (teacher_logits / temperature).softmax(-1)

    def centred(c: Tensor) -> Tensor:
        return s * (c - (s * c).sum(-1, keepdim=True)) / temperature

    match name.split():
        case ["forward_kl"] | ["jsd", "0"] | ["skew_forward_kl", "0"]:
            return (s - t) / temperature
        case ["reverse_kl"] | ["jsd", "1"] | ["skew_reverse_kl", "0"]:
            return centred((s / t).log())
        case ["jsd", number]:
            beta = float(number)
            return (1 - beta) * centred((s / (beta * t + (1 - beta) * s)).log())
        case ["skew_forward_kl", number]:
            alpha = float(number)
            return -(1 - alpha) * centred(t / (alpha * t + (1 - alpha) * s))
        case ["skew_reverse_kl", number]:
            alpha = float(number)
            m = alpha * s + (1 - alpha) * t
            return centred((s / m).log() - alpha * s / m)
    raise AssertionError(name)


def test_golden() -> None:
    # S = (1/2, 1/2), T = (1/4, 3/4).
    #   KL(T || S) = 1/4 ln(1/2) + 3/4 ln(3/2)           = -0.1732868 + 0.3040988 = 0.1308120
    #   KL(S || T) = 1/2 ln 2 + 1/2 ln(2/3)              =  0.3465736 - 0.2027326 = 0.1438410
    #   beta 1/2: M = (3/8, 5/8); KL(T || M) = 1/4 ln(2/3) + 3/4 ln(6/5) = 0.0353748
    #                             KL(S || M) = 1/2 ln(4/3) + 1/2 ln(4/5) = 0.0322693;  half of both: 0.0338221
    #   skew, alpha 1/2: the same two numbers.
    student, teacher = torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]).log()
    for actual, expected in [
        (forward_kl(student, teacher), 0.1308120),
        (reverse_kl(student, teacher), 0.1438410),
        (jsd(student, teacher, beta=0.0), 0.1308120),
        (jsd(student, teacher, beta=0.5), 0.0338221),
        (jsd(student, teacher, beta=1.0), 0.1438410),
        (skew_forward_kl(student, teacher, alpha=0.5), 0.0353748),
        (skew_reverse_kl(student, teacher, alpha=0.5), 0.0322693),
    ]:
        torch.testing.assert_close(actual, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_unequal_shares_golden() -> None:
    # S = (1/2, 1/2), T = (0, 1): a share w of T leaves M = ((1 - w) / 2, (1 + w) / 2).
    #   jsd, beta 1/4: M = (3/8, 5/8): 1/4 ln(8/5) + 3/4 (1/2 ln(4/3) + 1/2 ln(4/5)) = 0.1175009 + 0.0242020 = 0.1417029
    #   skew forward, alpha 1/4 (share of T 1/4): ln(8/5) = 0.4700036
    #   skew reverse, alpha 1/4 (share of T 3/4): M = (1/8, 7/8): 1/2 ln 4 + 1/2 ln(4/7) = 0.4133393
    student, teacher = torch.zeros(1, 2), torch.tensor([[-math.inf, 0.0]])
    for actual, expected in [
        (jsd(student, teacher, beta=0.25), 0.1417029),
        (skew_forward_kl(student, teacher, alpha=0.25), 0.4700036),
        (skew_reverse_kl(student, teacher, alpha=0.25), 0.4133393),
    ]:
        torch.testing.assert_close(actual, torch.tensor([expected]), atol=1e-6, rtol=0)


@each
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_values_and_gradients_are_those_of_the_docstrings(name: str, temperature: float) -> None:
    student, teacher = random_logits(4, 9, seed=0).requires_grad_(), random_logits(4, 9, seed=1)
    value = ALL[name](student, teacher, temperature=temperature)
    expected = naive(name, student / temperature, teacher / temperature)
    assert value.shape == (4,)
    torch.testing.assert_close(value, expected, atol=1e-13, rtol=1e-11)
    actual = gradient(value, student)
    torch.testing.assert_close(actual, gradient(expected, student), atol=1e-13, rtol=1e-10)
    torch.testing.assert_close(
        actual, documented_gradient(name, student.detach(), teacher, temperature), atol=1e-13, rtol=1e-10
    )


@each
def test_gradcheck(name: str) -> None:
    teacher = random_logits(2, 3, 5, seed=3)
    assert torch.autograd.gradcheck(
        lambda student: ALL[name](student, teacher, temperature=1.3), random_logits(2, 3, 5, seed=2).requires_grad_()
    )


@each
def test_the_teacher_is_detached_and_half_precision_widened(name: str) -> None:
    student = random_logits(2, 3, 5, seed=4).bfloat16().requires_grad_()
    teacher = random_logits(2, 3, 5, seed=5).bfloat16().requires_grad_()
    value = ALL[name](student, teacher)
    assert value.shape == (2, 3) and value.dtype == torch.float32
    value.sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()


@each
def test_no_tokens_still_have_a_graph(name: str) -> None:
    student = torch.randn(0, 5, requires_grad=True)
    value = ALL[name](student, torch.randn(0, 7))
    assert value.shape == (0,)
    value.sum().backward()
    assert student.grad is not None and student.grad.shape == (0, 5)


@settings(max_examples=60)
@given(st.integers(0, 2**20), st.integers(1, 12), st.sampled_from([0.01, 1.0, 30.0]), st.floats(0.01, 0.99))
def test_bounds_symmetry_and_invariance(seed: int, vocab: int, scale: float, share: float) -> None:
    student, teacher = random_logits(2, 3, vocab, seed=seed, scale=scale)
    functions: dict[str, Divergence] = {**ALL, "jsd": partial(jsd, beta=share), "skew": partial(skew_forward_kl, alpha=share)}
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    for name, divergence in functions.items():
        value = divergence(student, teacher)
        assert (value >= -1e-14).all(), name
        for same in (
            divergence(student + 7.5, teacher - 300.0),
            divergence(student[:, order], teacher[:, order]),
            divergence(student.log_softmax(-1), teacher.log_softmax(-1)),
        ):
            torch.testing.assert_close(same, value, atol=1e-11, rtol=1e-10)
        torch.testing.assert_close(divergence(student, student), torch.zeros(3, dtype=torch.double), atol=1e-14, rtol=0)
    assert (jsd(student, teacher, share) <= math.log(2) + 1e-14).all()
    assert (skew_forward_kl(student, teacher, share) <= -math.log(share) + 1e-14).all()
    assert (skew_reverse_kl(student, teacher, share) <= -math.log(share) + 1e-14).all()
    torch.testing.assert_close(jsd(student, teacher, 0.5), jsd(teacher, student, 0.5), atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(jsd(student, teacher, share), jsd(teacher, student, 1 - share), atol=1e-14, rtol=1e-10)


def test_the_ends_of_the_jsd_are_the_kls() -> None:
    student, teacher = random_logits(2, 5, 8, seed=6, scale=1.0)
    assert torch.equal(jsd(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(jsd(student, teacher, 1.0), reverse_kl(student, teacher))
    torch.testing.assert_close(jsd(student, teacher, 1e-7) / 1e-7, forward_kl(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(student, teacher, 1 - 1e-7) / 1e-7, reverse_kl(student, teacher), rtol=1e-4, atol=0)


def test_without_skew_the_plain_kls() -> None:
    student, teacher = random_logits(2, 5, 8, seed=7)
    assert torch.equal(skew_forward_kl(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(skew_reverse_kl(student, teacher, 0.0), reverse_kl(student, teacher))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_ids_forbidden_on_both_sides_do_not_exist(name: str, dtype: torch.dtype) -> None:
    forbidden = torch.tensor([False, True, False, False, True])
    for lowest, temperature in product((-math.inf, torch.finfo(dtype).min), (0.5, 1.0, 2.0)):
        student, teacher = (random_logits(3, 5, seed=s).to(dtype).masked_fill(forbidden, lowest) for s in (8, 9))
        student.requires_grad_()
        value = ALL[name](student, teacher, temperature=temperature)
        expected = ALL[name](student[:, ~forbidden], teacher[:, ~forbidden], temperature=temperature)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
        actual = gradient(value, student)
        assert not actual[:, forbidden].any()
        torch.testing.assert_close(actual, gradient(expected, student), atol=1e-6, rtol=1e-6)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lowest", [-math.inf, "finfo.min"])
@pytest.mark.parametrize("side", ["student", "teacher", "each its own"])
def test_ids_forbidden_on_one_side_cost_a_huge_finite_number_or_a_bounded_one(
    name: str, dtype: torch.dtype, lowest: float | str, side: str
) -> None:
    low = torch.finfo(dtype).min if isinstance(lowest, str) else lowest
    student, teacher = (random_logits(3, 5, seed=s).to(dtype) for s in (10, 11))
    if side != "teacher":
        student[:, :2] = low
    if side != "student":
        teacher[:, 2:] = low  # with both: nothing in common
    student.requires_grad_()
    value = ALL[name](student, teacher)
    assert value.isfinite().all() and gradient(value, student).isfinite().all()
    expected = naive(name, student.detach(), teacher)  # inf, or nan from 0 log 0
    harmless = {"forward_kl": "teacher", "jsd 0": "teacher", "skew_forward_kl 0": "teacher"}
    harmless |= {"reverse_kl": "student", "jsd 1": "student", "skew_reverse_kl 0": "student"}
    if name in BOUNDED or harmless[name] == side:
        assert (value >= 0).all() and (value < 20).all()
    else:
        assert not expected.isfinite().any()
        assert (value > 1e30).all()


def test_the_forward_kl_of_an_id_that_only_the_student_forbids_keeps_the_gradient_of_the_others() -> None:
    student, teacher = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True), torch.zeros(1, 3)
    actual = gradient(forward_kl(student, teacher), student)
    torch.testing.assert_close(actual, torch.tensor([[1 / 2 - 1 / 3, 1 / 2 - 1 / 3, 0.0]]))


def test_a_forbidden_id_that_takes_all_the_mass_is_still_finite() -> None:
    # the student is certain of ids that the teacher forbids: about 1.7e38 nats each, times a mass that rounds to above one
    student = torch.zeros(1, 152_000).masked_fill(torch.arange(152_000) < 2, -100.0).requires_grad_()
    teacher = torch.full((1, 152_000), -math.inf).masked_fill(torch.arange(152_000) < 2, 0.0)
    value = reverse_kl(student, teacher)
    assert value.isfinite().all() and value.item() > 1e38
    assert gradient(value, student).isfinite().all()


@each
def test_a_row_without_any_allowed_id_is_uniform(name: str) -> None:
    student = torch.full((1, 4), -math.inf, requires_grad=True)
    value = ALL[name](student, torch.zeros(1, 4))
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    assert not gradient(value, student).any()


@each
def test_columns_that_pad_the_vocabulary_change_nothing(name: str) -> None:
    student, teacher = (random_logits(3, 40, seed=s).float() for s in (12, 13))
    padding = random_logits(3, 64, seed=14, scale=20.0).float()
    pairs = [
        (student.clone().requires_grad_(), teacher),
        (student.clone().requires_grad_(), torch.cat([teacher, padding], -1)),
        (torch.cat([student, padding], -1).requires_grad_(), teacher),
    ]
    values = [ALL[name](s, t) for s, t in pairs]
    grads = [gradient(v, s) for v, (s, _) in zip(values, pairs, strict=True)]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2][:, :40])
    assert not grads[2][:, 40:].any()


def test_common_vocabulary_is_the_common_prefix() -> None:
    wide, narrow = torch.arange(10.0).view(2, 5), torch.zeros(2, 3)
    for student, teacher in (common_vocabulary(wide, narrow), reversed(common_vocabulary(narrow, wide))):
        assert student.tolist() == [[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]] and teacher.shape == (2, 3)


@pytest.fixture(scope="module")
def large() -> tuple[Tensor, Tensor]:
    """Logits as wide as Qwen's, centred far from zero: peaked at a few ids, with a teacher not far from the student."""
    student = random_logits(3, 151_936, seed=15, scale=2.5) - 4
    return student, student + random_logits(3, 151_936, seed=16, scale=0.7)


@each
def test_half_precision_over_a_large_vocabulary(name: str, large: tuple[Tensor, Tensor]) -> None:
    exact = naive(name, *large)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = [x.to(dtype) for x in large]
        actual = ALL[name](*rounded).double()
        torch.testing.assert_close(actual, naive(name, *(x.double() for x in rounded)), rtol=1e-5, atol=0)
        torch.testing.assert_close(actual, exact, rtol=1e-2, atol=0)
    assert (ALL[name](rounded[0], rounded[0]).abs() < 1e-6).all()


def test_a_small_divergence_over_a_large_vocabulary_is_not_negative_beyond_rounding(large: tuple[Tensor, Tensor]) -> None:
    student = large[0].float()
    teacher = student + random_logits(3, 151_936, seed=17, scale=1e-4).float()
    for divergence in ALL.values():
        assert (divergence(student, teacher) > -1e-6).all()


def test_the_bound_of_the_log_ratio() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): log ratios ln 2 = 0.693 and ln(2/3) = -0.405; bounded by 0.5: 1/2 0.5 - 1/2 0.4054651.
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl(p, q, max_log_ratio=0.5).item() == pytest.approx(0.0472674, abs=1e-6)
    assert kl(p, q, max_log_ratio=0.1).item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(kl(p, q, max_log_ratio=0.7), kl(p, q))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: jsd(s, s, beta=1.5), r"beta is 1\.5: it is the teacher's share .* lies in \[0, 1\]\. Use 0\.5"),
        (lambda s: jsd(s, s, beta=-0.1), r"beta is -0\.1"),
        (lambda s: jsd(s, s, beta=math.nan), r"beta is nan"),
        (lambda s: skew_forward_kl(s, s, alpha=1.0), r"alpha is 1\.0: .* below 1, where nothing is left to learn\. Use 0\.1"),
        (lambda s: skew_reverse_kl(s, s, alpha=-1.0), r"alpha is -1\.0"),
        (lambda s: forward_kl(s, s, temperature=0.0), r"temperature is 0\.0: logits are divided by it\. Use the temperature"),
        (lambda s: kl(s, s, max_log_ratio=0.0), r"max_log_ratio is 0\.0: .* Use a number above 0"),
    ],
)
def test_errors_explain_themselves(call: Callable[[Tensor], Tensor], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        call(torch.zeros(2, 3))


@pytest.mark.usefixtures("without_shapes")
def test_rows_are_not_broadcast() -> None:
    with pytest.raises(
        ValueError, match=r"student_logits have shape \(2, 3\), teacher_logits \(1, 3\): .*Select the same tokens"
    ):
        forward_kl(torch.zeros(2, 3), torch.zeros(1, 3))


def test_rows_may_have_more_than_one_axis_beside_a_padded_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 2, width, generator=generator) for width in (7, 5))
    for one, other in ((student, teacher), (teacher, student)):
        torch.testing.assert_close(forward_kl(one, other).flatten(), forward_kl(one.flatten(0, 1), other.flatten(0, 1)))
