"""Divergences between the current student and its teachers over the vocabulary, by the shortest way that a divergence allows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdar.functional.divergence_pass import Comparison, Teacher, head_divergence
from sdar.functional.head import Projection, logits_at
from sdar.parts import Divergence
from sdar.types import StudentTokens, TokenView


def over_vocabulary(
    divergence: Divergence, student: Projection, hidden: Tensor, now: StudentTokens, tokens: TokenView, teachers: Sequence[Teacher],
    weights: Tensor | None, chunk: int,
) -> Tensor:  # fmt: skip
    """The divergence of each token ``[tokens]``.

    Args:
        hidden: ``[tokens, hidden]`` states that predict the tokens.
        now, tokens: What is known of them, ``[tokens, ...]``.
        weights: As `head_divergence` is told.
    """
    if divergence.reads == "vocabulary" and (objective := divergence.per_id()) is not None:
        return head_divergence(hidden, now.logp, now.entropy, student, Comparison(objective, teachers, chunk), weights)
    if divergence.reads != "vocabulary":
        return _on_support(divergence, student, hidden, now, tokens)

    def whole(logits: Tensor, logp: Tensor, entropy: Tensor, its_logits: Tensor | None, rows: Tensor) -> Tensor:
        told = tokens.at(rows)
        if its_logits is not None:
            told = told.including(teacher_logits=its_logits)
        return divergence(StudentTokens(logp, entropy, logits), told)

    return head_divergence(hidden, now.logp, now.entropy, student, Comparison(whole, teachers, chunk), weights)


def _on_support(divergence: Divergence, student: Projection, hidden: Tensor, now: StudentTokens, tokens: TokenView) -> Tensor:
    """Of a divergence that knows the teacher's likeliest ids and the sampled one only: these ids become a vocabulary of their own."""
    support, sampled = tokens.teacher_top_ids, tokens.ids
    logits = logits_at(hidden, student, torch.cat([support, sampled[:, None]], 1))
    if divergence.reads == "support":
        logits = logits - logits[:, -1:] + now.logp[:, None]
    same = support == sampled[:, None]
    place = torch.where(same.any(1), same.long().argmax(1), support.shape[1])
    columns = torch.arange(support.shape[1], device=support.device).expand_as(support)
    return divergence(StudentTokens(now.logp, now.entropy, logits), tokens.including(teacher_top_ids=columns, ids=place))
