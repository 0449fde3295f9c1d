"""What a teacher with other tokens says of the student's, where both have a border (`sdar.spelling.shared_spans`)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def span_teacher_logp(
    teacher_logp: Float[Tensor, "batch teacher_time"],
    teacher_spans: Int[Tensor, "batch teacher_time"],
    student_logp: Float[Tensor, "batch time"],
    student_spans: Int[Tensor, "batch time"],
    divide: bool = False,
) -> Float[Tensor, "batch time"]:
    """What a teacher with other tokens is taken to give each of the student's tokens, so that the gap of a token is that of its span.

    Value: student_logp + gap of the span, where the gap is the sum of the teacher's log-probabilities over the span minus the
    student's. With `divide` the gap is shared among the span's student tokens, and adds up to it. Tokens of no span (0) have no gap.
    Gradient: none; both sides are taken as constants.

    As a reward (`GapAdvantage`) an undivided gap gives each token of a span the whole log-ratio of the span, as the score function
    of the span needs: on-policy -E[gap grad student_logp] is the gradient of KL(student || teacher) over the bytes of the span.
    Divided, spans of m tokens count 1/m.
    """
    spans = int(max(int(teacher_spans.max()), int(student_spans.max()))) + 1 if teacher_spans.numel() else 1
    empty = student_logp.new_zeros(len(student_logp), spans)
    theirs = empty.scatter_add(1, teacher_spans, teacher_logp.detach().to(empty))  # [batch, spans]
    own = empty.scatter_add(1, student_spans, student_logp.detach())
    gaps = theirs - own
    if divide:
        gaps = gaps / empty.scatter_add(1, student_spans, torch.ones_like(student_logp)).clamp_min(1)
    gaps = gaps.index_fill(1, torch.zeros(1, dtype=torch.long, device=gaps.device), 0.0)
    return student_logp.detach() + gaps.gather(1, student_spans)
