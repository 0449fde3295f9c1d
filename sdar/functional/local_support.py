"""Divergences over the K most probable tokens of one side: local support matching (arXiv 2603.25562, SDPO 2601.20802).

The first takes the teacher's top 16 or 32 and renormalises both sides on them, with the sampled token as one more category if
it is not among them ("sampled"); the second takes the student's top 100 and puts the rest into a bucket. Conventions on
temperature, forbidden ids and padded vocabularies are those of `sdar.functional.vocabulary`.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional.vocabulary import common_vocabulary, finite_logits, forbidden_logit, jsd, kl

Support = Literal["teacher", "student"]
Tail = Literal["drop", "bucket", "sampled"]

MIN_LOG_TAIL = -50.0
"""Least log-odds of bucket to support, so that an empty bucket stays finite; below it the bucket has no gradient."""


class TeacherTop(NamedTuple):
    """A teacher's k likeliest tokens, scored beforehand, in the place of its logits."""

    ids: Int[Tensor, "*tokens K"]
    logp: Float[Tensor, "*tokens K"]
    """In its *whole* vocabulary, at the temperature of the student's logits."""
    sampled_logp: Float[Tensor, "*tokens"] | None = None
    """Of the sampled token, for the tail "sampled"."""


def top_k_reverse_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"] | TeacherTop,
    k: int,
    *,
    support: Support = "teacher",
    tail: Tail = "drop",
    sampled_ids: Int[Tensor, "*tokens"] | None = None,
    max_log_ratio: float | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(S' || T') of student and teacher on the small support that `local_support` makes.

    Value:    sum S' (log S' - log T'); with the bucket at most KL(S || T), which it is for k = V whatever the tail.
    Gradient: exact for the chosen ids; which ids are chosen has none. With `max_log_ratio`, a category beyond the bound still
              pulls, as if its log ratio were the bound minus 1. The value may then be below zero.

    Args:
        student_logits: ``[*, V]``; the result is ``[*]``, in nats.
        teacher_logits: likewise, or what is known of the teacher; then at temperature 1 and with the teacher's support only.
        support: whose top k. On the teacher's, "drop" is blind to student mass elsewhere.
        sampled_ids: ``[*]``, for the tail "sampled".
        max_log_ratio: keeps log S' - log T' within plus and minus this; 5 in the code of arXiv 2603.25562.

    Raises:
        ConfigError: a setting that cannot work, e.g. k above the common vocabulary.
        ValueError: no `sampled_ids` for the tail "sampled".
    """
    student, teacher = top_k_support(student_logits, teacher_logits, k, support, tail, sampled_ids, temperature)
    return kl(student, teacher, max_log_ratio)


def top_k_forward_kl(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"] | TeacherTop,
    k: int,
    *,
    support: Support = "teacher",
    tail: Tail = "drop",
    sampled_ids: Int[Tensor, "*tokens"] | None = None,
    max_log_ratio: float | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """KL(T' || S'), arguments and errors as in `top_k_reverse_kl`.

    Value:    sum T' (log T' - log S'); with the bucket at most KL(T || S), which it is for k = V whatever the tail.
    Gradient: exact for the chosen ids. With `max_log_ratio`, a category beyond the bound has no pull at all: what the student
              misses most is not learned. The value may then be below zero.
    """
    student, teacher = top_k_support(student_logits, teacher_logits, k, support, tail, sampled_ids, temperature)
    return kl(teacher, student, max_log_ratio)


def top_k_jsd(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"] | TeacherTop,
    k: int,
    beta: float,
    *,
    support: Support = "teacher",
    tail: Tail = "drop",
    sampled_ids: Int[Tensor, "*tokens"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """`jsd` of S' and T', arguments and errors as there and in `top_k_reverse_kl`.

    Value:    beta KL(T' || M) + (1 - beta) KL(S' || M), M = beta T' + (1 - beta) S'; at most ln 2.
    Gradient: exact for the chosen ids.
    """
    student, teacher = top_k_support(student_logits, teacher_logits, k, support, tail, sampled_ids, temperature)
    return jsd(student, teacher, beta)


def local_support(
    student_logits: Float[Tensor, "*tokens vocab"],
    support_ids: Int[Tensor, "*tokens K"],
    teacher_support_logp: Float[Tensor, "*tokens K"],
    tail: Tail,
    sampled_ids: Int[Tensor, "*tokens"] | None = None,
    teacher_sampled_logp: Float[Tensor, "*tokens"] | None = None,
) -> tuple[Float[Tensor, "*tokens kept"], Float[Tensor, "*tokens kept"]]:
    """Student and teacher as normalised log-probabilities over few categories: ``[*, K]``, ``[*, K + 1]`` if there is a tail.

    "drop":    both renormalised on the support.
    "bucket":  the last category holds the mass of all other ids. The student's is exact down to e^-50, and so is its gradient;
               the teacher's is 1 - sum of its support, and no smaller than the precision tells from zero (1e-7 in float32).
    "sampled": the last category is the sampled token, then both are renormalised. Where the token is in the support already,
               the category has no mass on either side.

    Value:    log S', log T'.
    Gradient: of log S', exact. The teacher is detached.

    Args:
        student_logits: ``[*, V]``, divided by the temperature.
        support_ids: ``[*, K]``, different ids below V.
        teacher_support_logp: ``[*, K]``, log-probabilities in the teacher's *whole* vocabulary, at the same temperature.
        sampled_ids: ``[*]``, for "sampled" only.
        teacher_sampled_logp: ``[*]``, likewise.

    Raises:
        ConfigError: an unknown tail.
        ValueError: shapes that do not belong together, or "sampled" without the sampled tokens.
    """
    if support_ids.shape != teacher_support_logp.shape or support_ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"student_logits have shape {tuple(student_logits.shape)}, support_ids {tuple(support_ids.shape)} and "
            f"teacher_support_logp {tuple(teacher_support_logp.shape)}: each row needs its own K ids and their K "
            "log-probabilities. Select the same tokens in all three."
        )
    student = _restrict(finite_logits(student_logits), support_ids, tail, sampled_ids)
    teacher = finite_logits(teacher_support_logp.detach())
    if tail == "bucket":
        others = -torch.expm1(teacher.logsumexp(-1, keepdim=True))
        teacher = torch.cat([teacher, others.clamp_min(torch.finfo(others.dtype).eps).log()], -1)
    elif tail == "sampled":
        sampled_logp = None if teacher_sampled_logp is None else finite_logits(teacher_sampled_logp.detach())
        teacher = _append_sampled(teacher, support_ids, sampled_logp, sampled_ids)
    return student, teacher.log_softmax(-1)


def top_k_ids(logits: Float[Tensor, "*tokens vocab"], k: int) -> Int[Tensor, "*tokens {k}"]:
    """Ids of the k largest logits, ``[*, V] -> [*, k]``, largest first.

    Raises:
        ConfigError: k below 1 or above V.
    """
    vocab = logits.shape[-1]
    if not 1 <= k <= vocab:
        raise ConfigError(
            f"k is {k}, the vocabulary that student and teacher share has {vocab} ids: the support holds k of them. "
            f"Use 1 to {vocab}, e.g. {min(32, vocab)}."
        )
    return logits.detach().topk(k, dim=-1).indices


def top_k_support(
    student_logits: Float[Tensor, "*tokens student_vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"] | TeacherTop,
    k: int,
    support: Support,
    tail: Tail,
    sampled_ids: Int[Tensor, "*tokens"] | None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "*tokens kept"], Float[Tensor, "*tokens kept"]]:
    """Like `local_support`, from full logits on both sides; the teacher's bucket is then as exact as the student's.

    Raises:
        ConfigError, ValueError: as in `top_k_reverse_kl` and `local_support`.
    """
    if support not in get_args(Support):
        raise ConfigError(f"support is {support!r}: it says whose most probable tokens count. Use one of {get_args(Support)}.")
    if isinstance(teacher_logits, TeacherTop):
        top = teacher_logits
        if support != "teacher" or temperature != 1 or top.ids.shape[-1] != k:
            raise ValueError(
                f"of the teacher {top.ids.shape[-1]} tokens are known at temperature 1: they are its support, not the {support}'s {k} at "
                f"{temperature:g}. Pass its logits."
            )
        return local_support(student_logits, top.ids, top.logp, tail, sampled_ids, top.sampled_logp)
    student, teacher = common_vocabulary(student_logits, teacher_logits.detach())
    ids = top_k_ids(teacher if support == "teacher" else student, k)
    student, teacher = finite_logits(student, temperature), finite_logits(teacher, temperature)
    return _restrict(student, ids, tail, sampled_ids), _restrict(teacher, ids, tail, sampled_ids)


def _restrict(logits: Tensor, ids: Tensor, tail: Tail, sampled_ids: Tensor | None) -> Tensor:
    """Log-probabilities of the categories, from finite logits of the whole vocabulary."""
    if tail not in get_args(Tail):
        raise ConfigError(
            f"tail is {tail!r}: it says what becomes of ids outside of the support. Use one of {get_args(Tail)}."
        )
    support = logits.gather(-1, ids)
    if tail == "bucket":
        others = logits.scatter(-1, ids, forbidden_logit(logits.dtype)).logsumexp(-1, keepdim=True)
        least = support.logsumexp(-1, keepdim=True) + MIN_LOG_TAIL
        support = torch.cat([support, torch.maximum(others, least)], -1)
    elif tail == "sampled":
        sampled = None if sampled_ids is None else logits.gather(-1, sampled_ids.unsqueeze(-1)).squeeze(-1)
        support = _append_sampled(support, ids, sampled, sampled_ids)
    return support.log_softmax(-1)


def _append_sampled(support: Tensor, ids: Tensor, sampled: Tensor | None, sampled_ids: Tensor | None) -> Tensor:
    """The sampled token's logit as one more category, without mass where the support holds the token already."""
    if sampled_ids is None or sampled is None:
        raise ValueError(
            'tail is "sampled", but the sampled token or its log-probability is missing: it is a category of its own. '
            'Pass sampled_ids and the teacher\'s log-probabilities of them, or use the tail "drop" or "bucket".'
        )
    known = (ids == sampled_ids.unsqueeze(-1)).any(-1)
    return torch.cat([support, sampled.masked_fill(known, forbidden_logit(support.dtype)).unsqueeze(-1)], -1)
