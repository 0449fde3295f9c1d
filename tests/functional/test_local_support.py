"""Divergences on a small support: golden numbers for every tail, properties, exact gradients, forbidden ids, padding."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import (
    TeacherTop,
    forward_kl,
    jsd,
    local_support,
    reverse_kl,
    top_k_forward_kl,
    top_k_ids,
    top_k_jsd,
    top_k_reverse_kl,
)

ROWS, VOCAB = 4, 9
SAMPLED = torch.tensor([0, 3, 8, 5])
ALL: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "reverse_kl": (top_k_reverse_kl, reverse_kl),
    "forward_kl": (top_k_forward_kl, forward_kl),
    "jsd": (partial(top_k_jsd, beta=0.3), partial(jsd, beta=0.3)),
}
each = pytest.mark.parametrize("name", ALL)
each_support = pytest.mark.parametrize("support", ["teacher", "student"])
each_tail = pytest.mark.parametrize("tail", ["drop", "bucket", "sampled"])


def random_logits(seed: int, scale: float = 2.0, vocab: int = VOCAB) -> Tensor:
    return scale * torch.randn(ROWS, vocab, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), logits)[0]


def close(actual: Tensor, expected: Tensor | list[Any], atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=1e-9)


def naive(name: str, student_logits: Tensor, teacher_logits: Tensor, k: int, support: str, tail: str) -> Tensor:
    """Row by row, in probabilities, nothing made safe."""
    values = []
    for s, t, sampled in zip(student_logits.softmax(-1), teacher_logits.softmax(-1), SAMPLED.tolist(), strict=True):
        ids = (t if support == "teacher" else s).argsort(descending=True)[:k].tolist()
        if tail == "sampled" and sampled not in ids:
            ids.append(sampled)
        p, q = s[ids], t[ids]
        if tail == "bucket":
            p, q = torch.cat([p, 1 - p.sum(0, keepdim=True)]), torch.cat([q, 1 - q.sum(0, keepdim=True)])
        p, q = p / p.sum(), q / q.sum()
        m = 0.3 * q + 0.7 * p
        values.append(
            {
                "reverse_kl": (p * (p / q).log()).sum(),
                "forward_kl": (q * (q / p).log()).sum(),
                "jsd": 0.3 * (q * (q / m).log()).sum() + 0.7 * (p * (p / m).log()).sum(),
            }[name]
        )
    return torch.stack(values)


# S = (2, 4, 1, 3) / 10 and T = (5, 3, 1, 1) / 10 over four ids; the teacher's two most probable are 0 and 1.
STUDENT, TEACHER = torch.tensor([[2.0, 4.0, 1.0, 3.0]]).log(), torch.tensor([[5.0, 3.0, 1.0, 1.0]]).log()
THIRD = torch.tensor([3])


@pytest.mark.parametrize(
    ("tail", "sampled", "student", "teacher"),
    [
        ("drop", None, [2 / 6, 4 / 6], [5 / 8, 3 / 8]),
        ("bucket", None, [0.2, 0.4, 0.4], [0.5, 0.3, 0.2]),
        ("sampled", 3, [2 / 9, 4 / 9, 3 / 9], [5 / 9, 3 / 9, 1 / 9]),
        ("sampled", 1, [2 / 6, 4 / 6, 0.0], [5 / 8, 3 / 8, 0.0]),
    ],
)
def test_local_support_golden(tail: Any, sampled: int | None, student: list[float], teacher: list[float]) -> None:
    logp = TEACHER.log_softmax(-1)
    token = (None, None) if sampled is None else (torch.tensor([sampled]), logp[:, sampled])
    actual = local_support(STUDENT, torch.tensor([[0, 1]]), logp[:, :2], tail, *token)
    close(actual[0].exp(), [student])
    close(actual[1].exp(), [teacher])


def test_divergences_golden() -> None:
    # drop: S' = (1/3, 2/3), T' = (5/8, 3/8)
    #   reverse 1/3 ln(8/15) + 2/3 ln(16/9) = -0.2095362 + 0.3835761 = 0.1740399
    #   forward 5/8 ln(15/8) + 3/8 ln(9/16) =  0.3928804 - 0.2157616 = 0.1771188
    # bucket: S' = (.2, .4, .4), T' = (.5, .3, .2)
    #   reverse .2 ln(2/5) + .4 ln(4/3) + .4 ln 2 = -0.1832581 + 0.1150728 + 0.2772589 = 0.2090736
    # sampled 3: S' = (2, 4, 3) / 9, T' = (5, 3, 1) / 9
    #   reverse 2/9 ln(2/5) + 4/9 ln(4/3) + 3/9 ln 3 = -0.2036202 + 0.1278587 + 0.3662041 = 0.2904426
    # student's top 2 (ids 1 and 3), drop: S' = (4, 3) / 7, T' = (3, 1) / 4
    #   reverse 4/7 ln(16/21) + 3/7 ln(12/7) = -0.1553905 + 0.2309987 = 0.0756082
    # jsd, beta 1/2, drop: M = (23/48, 25/48); KL(T' || M) = 5/8 ln(30/23) + 3/8 ln(18/25) = 0.0428779
    #   KL(S' || M) = 1/3 ln(16/23) + 2/3 ln(32/25) = 0.0436038; half of both 0.0432409
    for actual, expected in [
        (top_k_reverse_kl(STUDENT, TEACHER, 2), 0.1740399),
        (top_k_forward_kl(STUDENT, TEACHER, 2), 0.1771188),
        (top_k_reverse_kl(STUDENT, TEACHER, 2, tail="bucket"), 0.2090736),
        (top_k_reverse_kl(STUDENT, TEACHER, 2, tail="sampled", sampled_ids=THIRD), 0.2904426),
        (top_k_reverse_kl(STUDENT, TEACHER, 2, support="student"), 0.0756082),
        (top_k_jsd(STUDENT, TEACHER, 2, 0.5), 0.0432409),
    ]:
        close(actual, [expected])


def test_top_k_ids_golden() -> None:
    assert top_k_ids(STUDENT, 3).tolist() == [[1, 3, 0]]
    assert not top_k_ids(STUDENT.clone().requires_grad_(), 2).requires_grad


@each
@each_support
@each_tail
@pytest.mark.parametrize("k", [1, 3])
def test_values_and_gradients_are_those_of_the_naive_formula(name: str, support: str, tail: str, k: int) -> None:
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    value = ALL[name][0](student, teacher, k=k, support=support, tail=tail, sampled_ids=SAMPLED, temperature=0.7)
    expected = naive(name, student / 0.7, teacher / 0.7, k, support, tail)
    assert value.shape == (ROWS,)
    close(value, expected, atol=1e-13)
    close(gradient(value, student), gradient(expected, student), atol=1e-13)


@each
@each_support
@each_tail
def test_gradcheck(name: str, support: str, tail: str) -> None:
    teacher = random_logits(3)
    divergence = partial(ALL[name][0], k=3, support=support, tail=tail, sampled_ids=SAMPLED)
    assert torch.autograd.gradcheck(lambda s: divergence(s, teacher), random_logits(2).requires_grad_())


def test_gradcheck_within_and_beyond_the_bound_of_the_log_ratio() -> None:
    teacher = random_logits(5)
    for divergence in (top_k_reverse_kl, top_k_forward_kl):
        assert torch.autograd.gradcheck(
            lambda s, d=divergence: d(s, teacher, 4, tail="bucket", max_log_ratio=0.5), random_logits(4).requires_grad_()
        )


@settings(max_examples=50)
@given(
    st.integers(0, 2**20), st.integers(1, VOCAB), st.sampled_from([0.01, 1.0, 4.0]), st.sampled_from(["teacher", "student"])
)
def test_bounds_and_invariance(seed: int, k: int, scale: float, support: str) -> None:
    student, teacher = random_logits(seed, scale), random_logits(seed + 1, scale)
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))
    for name, (local, full) in ALL.items():
        for tail in ("drop", "bucket", "sampled"):
            divergence = partial(local, k=k, support=support, tail=tail, sampled_ids=SAMPLED)
            value = divergence(student, teacher)
            assert (value >= -1e-13).all() and (name != "jsd" or (value <= math.log(2) + 1e-13).all())
            close(divergence(student + 7.5, teacher - 300.0), value, atol=1e-10)
            moved = partial(divergence, sampled_ids=order.argsort()[SAMPLED])
            close(moved(student[:, order], teacher[:, order]), value, atol=1e-10)
            close(divergence(student, student), torch.zeros(ROWS), atol=1e-13)
            if k == VOCAB:
                close(value, full(student, teacher), atol=1e-12)
        # merging categories never raises a divergence (data processing); one more category of its own splits the bucket
        bucket = [local(student, teacher, k=i, support=support, tail="bucket") for i in (max(1, k - 1), k)]
        assert (bucket[0] <= bucket[1] + 1e-12).all() and (bucket[1] <= full(student, teacher) + 1e-12).all()


def test_the_sampled_token_counts_only_where_it_is_outside_of_the_support() -> None:
    student, teacher = random_logits(6).requires_grad_(), random_logits(7)
    ids = top_k_ids(teacher, 3)
    logp = teacher.log_softmax(-1)
    inside = ids[:, 1]
    first = local_support(student, ids, logp.gather(1, ids), "sampled", inside, torch.full((ROWS,), -0.1).double())
    second = local_support(student, ids, logp.gather(1, ids), "sampled", inside, torch.full((ROWS,), -9.0).double())
    dropped = local_support(student, ids, logp.gather(1, ids), "drop")
    for a, b, c in zip(first, second, dropped, strict=True):
        assert torch.equal(a, b) and not a[:, 3].exp().any()
        close(a[:, :3], c, atol=1e-15)
    for divergence, _ in ALL.values():
        with_it, without = (divergence(student, teacher, k=3, **t) for t in ({"tail": "sampled", "sampled_ids": inside}, {}))
        close(with_it, without, atol=1e-15)
        close(gradient(with_it, student), gradient(without, student), atol=1e-15)
        outside = divergence(student, teacher, k=3, tail="sampled", sampled_ids=teacher.argmin(-1))
        assert (outside != without).all()


@pytest.mark.parametrize("divergence", [top_k_reverse_kl, top_k_forward_kl])
@each_tail
def test_the_bound_of_the_log_ratio_bounds_the_value(divergence: Callable[..., Tensor], tail: str) -> None:
    student, teacher = random_logits(8, scale=6.0), random_logits(9, scale=6.0)
    free = divergence(student, teacher, 4, tail=tail, sampled_ids=SAMPLED)
    for bound in (0.1, 1.0, 5.0):
        value = divergence(student, teacher, 4, tail=tail, sampled_ids=SAMPLED, max_log_ratio=bound)
        assert (value.abs() <= bound).all() and (value != free).any()
    close(divergence(student, teacher, 4, tail=tail, sampled_ids=SAMPLED, max_log_ratio=1e3), free, atol=0)


def test_the_gradient_beyond_the_bound_is_as_documented() -> None:
    student, teacher = random_logits(10).requires_grad_(), random_logits(11)
    s, t = student.detach().softmax(-1), teacher.softmax(-1)
    ratio = (s / t).log()
    beyond = (ratio.abs() > 1).double()
    assert beyond.any() and not beyond.all()
    c = ratio.clamp(-1, 1) - beyond
    reverse = top_k_reverse_kl(student, teacher, VOCAB, max_log_ratio=1.0)
    close(gradient(reverse, student), s * (c - (s * c).sum(-1, keepdim=True)), atol=1e-13)
    pull = t * (1 - beyond)
    forward = top_k_forward_kl(student, teacher, VOCAB, max_log_ratio=1.0)
    close(gradient(forward, student), s * pull.sum(-1, keepdim=True) - pull, atol=1e-13)


@each
@each_support
@each_tail
def test_the_teacher_is_detached_and_half_precision_widened(name: str, support: str, tail: str) -> None:
    student, teacher = (random_logits(s).bfloat16().requires_grad_() for s in (12, 13))
    value = ALL[name][0](student, teacher, k=3, support=support, tail=tail, sampled_ids=SAMPLED)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()


def test_local_support_detaches_what_the_teacher_gave() -> None:
    student, logp, sampled = (x.requires_grad_() for x in (random_logits(14), -torch.ones(ROWS, 2) * 2, -torch.ones(ROWS) * 3))
    ids = torch.tensor([[0, 1]]).expand(ROWS, 2)
    for tail in ("drop", "bucket", "sampled"):
        q, t = local_support(student, ids, logp, tail, SAMPLED, sampled)
        assert q.requires_grad and not t.requires_grad


@each
@each_support
@each_tail
@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("k", [2, 4])
def test_ids_forbidden_on_both_sides_do_not_exist(name: str, support: str, tail: str, lowest: float, k: int) -> None:
    # 3 of 9 ids remain: with k = 4 the support holds a forbidden one, and the bucket nothing else
    allowed = torch.tensor([0, 3, 8])
    forbidden = torch.ones(VOCAB, dtype=torch.bool).index_fill(0, allowed, False)
    student, teacher = (random_logits(s).float().masked_fill(forbidden, lowest).requires_grad_(s == 15) for s in (15, 16))
    sampled = torch.tensor([0, 1, 2, 0])
    divergence = partial(ALL[name][0], support=support, tail=tail)
    value = divergence(student, teacher, k=k, sampled_ids=allowed[sampled])
    expected = divergence(student[:, allowed], teacher[:, allowed], k=min(k, 3), sampled_ids=sampled)
    close(value, expected)
    actual = gradient(value, student)
    assert not actual[:, forbidden].any()
    close(actual, gradient(expected, student))


@each
@each_support
@each_tail
def test_ids_forbidden_on_one_side_leave_no_nan_behind(name: str, support: str, tail: str) -> None:
    for side in (0, 1):
        pair = [random_logits(17).float(), random_logits(18).float()]
        pair[side][:, 2:] = -math.inf  # with the other's support: nothing, or little, in common
        student = pair[0].requires_grad_()
        value = ALL[name][0](student, pair[1], k=3, support=support, tail=tail, sampled_ids=SAMPLED)
        assert value.isfinite().all() and (value > -1e-6).all()
        assert gradient(value, student).isfinite().all()


def test_an_empty_bucket_is_finite_and_a_nearly_empty_one_exact() -> None:
    ids = torch.tensor([[0, 1]])
    # log-odds bucket : support of -25, far below what 1 - sum of float32 can tell from zero; the gradient of the bucket's
    # log-probability is 1 for its only member and -S for the others
    student = torch.tensor([[0.0, 0.0, -25.0 + math.log(2)]], requires_grad=True)
    q, t = local_support(student, ids, torch.tensor([[0.5, 0.5]]).log(), "bucket")
    close(q, [[-math.log(2), -math.log(2), -25.0]], atol=1e-5)
    close(t[:, 2], [math.log(torch.finfo(torch.float32).eps)], atol=1e-5)
    close(gradient(q[:, 2], student), [[-0.5, -0.5, 1.0]])
    for lowest in (-1e4, -math.inf):
        student = torch.tensor([[0.0, 0.0, lowest]], requires_grad=True)
        q, _ = local_support(student, ids, torch.tensor([[0.5, 0.5]]).log(), "bucket")
        close(q, [[-math.log(2), -math.log(2), -50.0]], atol=1e-5)
        close(gradient(q[:, 2], student), [[0.0, 0.0, 0.0]])


@each_tail
@each_support
def test_a_teachers_few_log_probabilities_say_as_much_as_its_logits(tail: Any, support: str) -> None:
    student, teacher = random_logits(26).requires_grad_(), random_logits(27)
    logp = (teacher / 0.7).log_softmax(-1)
    ids = top_k_ids(teacher if support == "teacher" else student, 3)
    pair = local_support(student / 0.7, ids, logp.gather(1, ids), tail, SAMPLED, logp.gather(1, SAMPLED[:, None])[:, 0])
    close(pair[0].exp().sum(-1), [1.0] * ROWS, atol=1e-14)
    close(pair[1].exp().sum(-1), [1.0] * ROWS, atol=1e-14)
    for local, full in ALL.values():
        expected = local(student, teacher, k=3, support=support, tail=tail, sampled_ids=SAMPLED, temperature=0.7)
        close(full(*pair), expected, atol=1e-12)
        actual = torch.autograd.grad(full(*pair).sum(), student, retain_graph=True)[0]
        close(actual, gradient(expected, student), atol=1e-12)


def test_the_teachers_bucket_is_precise() -> None:
    for mass in (1e-3, 1e-6, 1 - 1e-3, 0.5):
        logp = torch.tensor([[math.log1p(-mass)]])
        _, t = local_support(torch.zeros(1, 2), torch.tensor([[0]]), logp, "bucket")
        torch.testing.assert_close(t[0, 1].exp().item(), mass, rtol=2e-4, atol=0)


@each
@each_support
@each_tail
def test_columns_that_pad_the_vocabulary_change_nothing(name: str, support: str, tail: str) -> None:
    student, teacher = (random_logits(s).float() for s in (19, 20))
    padding = random_logits(21, scale=20.0, vocab=64).float()
    pairs = [
        (student.clone().requires_grad_(), teacher),
        (student.clone().requires_grad_(), torch.cat([teacher, padding], -1)),
        (torch.cat([student, padding], -1).requires_grad_(), teacher),
    ]
    values = [ALL[name][0](s, t, k=3, support=support, tail=tail, sampled_ids=SAMPLED) for s, t in pairs]
    grads = [gradient(v, s) for v, (s, _) in zip(values, pairs, strict=True)]
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2][:, :VOCAB])
    assert not grads[2][:, VOCAB:].any()


@each
@each_tail
def test_no_tokens_still_have_a_graph(name: str, tail: str) -> None:
    student = torch.randn(0, 5, requires_grad=True)
    value = ALL[name][0](student, torch.randn(0, 7), k=2, tail=tail, sampled_ids=torch.zeros(0, dtype=torch.long))
    assert value.shape == (0,)
    value.sum().backward()
    assert student.grad is not None and student.grad.shape == (0, 5)


@each_tail
def test_half_precision_over_a_large_vocabulary(tail: str) -> None:
    student = random_logits(22, scale=2.5, vocab=151_936)
    teacher = student + random_logits(23, scale=0.7, vocab=151_936)
    sampled = student.argmax(-1)
    for _, divergence in ALL.values():
        for dtype in (torch.bfloat16, torch.float16):
            # the same support for both: rounding may swap the last of the top k
            rounded, ids = (student.to(dtype), teacher.to(dtype)), top_k_ids(teacher, 32)
            results = []
            for s, t in ((student, teacher), (x.double() for x in rounded), rounded):
                logp = (t if t.dtype == torch.double else t.float()).log_softmax(-1)
                pair = local_support(s, ids, logp.gather(1, ids), tail, sampled, logp.gather(1, sampled[:, None])[:, 0])
                results.append(divergence(*pair).double())
            torch.testing.assert_close(results[2], results[1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(results[2], results[0], atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"k": VOCAB + 1}, r"k is 10, the vocabulary that student and teacher share has 9 ids.*Use 1 to 9, e\.g\. 9"),
        ({"k": 0}, r"k is 0, "),
        ({"k": 2, "support": "both"}, r"support is 'both': .*Use one of \('teacher', 'student'\)"),
        ({"k": 2, "tail": "cut"}, r"tail is 'cut': .*Use one of \('drop', 'bucket', 'sampled'\)"),
        ({"k": 2, "max_log_ratio": -1.0}, r"max_log_ratio is -1\.0"),
        ({"k": 2, "temperature": 0.0}, r"temperature is 0\.0"),
    ],
)
def test_errors_explain_themselves(settings_: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        top_k_reverse_kl(random_logits(24), torch.cat([random_logits(25)] * 2, -1), **settings_)


def test_beta_is_checked_by_the_jsd() -> None:
    with pytest.raises(ConfigError, match=r"beta is 2"):
        top_k_jsd(STUDENT, TEACHER, 2, beta=2)


@pytest.mark.parametrize("tail", ["drop", "bucket", "sampled"])
@pytest.mark.parametrize("divergence", [top_k_reverse_kl, top_k_forward_kl, partial(top_k_jsd, beta=0.3)])
def test_a_teacher_of_which_the_likeliest_tokens_are_known_is_as_good_as_its_logits(divergence: Any, tail: str) -> None:
    logp = TEACHER.log_softmax(-1)
    known = TeacherTop(*reversed(logp.topk(2)), logp.gather(-1, THIRD[..., None])[..., 0])
    settings_ = {"tail": tail, "sampled_ids": THIRD}
    torch.testing.assert_close(divergence(STUDENT, known, 2, **settings_), divergence(STUDENT, TEACHER, 2, **settings_))
    for wrong in ({"k": 3}, {"support": "student"}, {"temperature": 2.0}):
        with pytest.raises(ValueError, match=r"of the teacher 2 tokens are known at temperature 1: .*Pass its logits"):
            divergence(STUDENT, known, **{"k": 2, **settings_, **wrong})


def test_the_tail_of_sampled_tokens_needs_them() -> None:
    with pytest.raises(ValueError, match=r'tail is "sampled", but the sampled token .* is missing: .*Pass sampled_ids'):
        top_k_reverse_kl(STUDENT, TEACHER, 2, tail="sampled")


@pytest.mark.parametrize(("ids", "logp"), [((2, 3), (2, 4)), ((1, 3), (1, 3))])
@pytest.mark.usefixtures("without_shapes")
def test_rows_are_not_broadcast(ids: tuple[int, int], logp: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"student_logits have shape \(2, 5\), support_ids .*Select the same tokens in all three"
    ):
        local_support(torch.zeros(2, 5), torch.zeros(ids, dtype=torch.long), torch.zeros(logp), "drop")


@pytest.mark.parametrize("tail", ["drop", "bucket", "sampled"])
@pytest.mark.parametrize("support", ["teacher", "student"])
def test_rows_may_have_more_than_one_axis(tail: str, support: str) -> None:
    student, teacher = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0))
    teacher, sampled = teacher.log_softmax(-1), torch.arange(15).view(5, 3) % 7
    settings_: dict[str, Any] = {"support": support, "tail": tail}
    found = top_k_forward_kl(student, teacher, 4, sampled_ids=sampled, **settings_)
    flat = top_k_forward_kl(student.flatten(0, 1), teacher.flatten(0, 1), 4, sampled_ids=sampled.flatten(), **settings_)
    torch.testing.assert_close(found, flat.view(5, 3))
    if support == "teacher":
        top = teacher.topk(4)
        known = TeacherTop(top.indices, top.values, teacher.gather(-1, sampled[..., None])[..., 0])
        torch.testing.assert_close(top_k_forward_kl(student, known, 4, sampled_ids=sampled, tail=tail), found)


def test_a_proposed_support_is_of_an_ordinary_size() -> None:
    with pytest.raises(ConfigError, match=r"k is 0, .* has 40 ids: .* Use 1 to 40, e\.g\. 32\."):
        top_k_ids(torch.zeros(1, 40), 0)


def test_half_of_what_the_sampled_tail_needs_is_not_enough() -> None:
    ids, logp = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r'tail is "sampled", but the sampled token or its log-probability is missing'):
        local_support(torch.zeros(1, 3), ids, logp, "sampled", sampled_ids=ids[:, 0])
