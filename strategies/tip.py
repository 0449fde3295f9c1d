"""TIP: token importance (arXiv 2604.14084). Distil where the student is in doubt and the teacher disagrees; skip the rest.

    importance_t = (H_t / ln V)^alpha (JSD_t / ln 2)^gamma;   keep a share of the tokens, drawn in proportion to it
    L = mean over the kept tokens of KL( student(. | s_t) || teacher(. | s_t) )

The others never reach the vocabulary head in training, so a kept share of one half saves half of the head's forward and backward
work and memory. With gamma = 0 the choice needs the student's entropy only, which scoring has anyway.

The public code (HJSang/OPSD_OnPolicyDistillation) holds the draw as a function that its training never calls: released as it is, it
distils all tokens, which is ``keep: 1``.
"""

from typing import Literal

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from sdar.distillation import Distillation
from sdar.divergences import JensenShannon, ReverseKL
from sdar.errors import ConfigError
from sdar.functional import soft_or_importance, token_importance, weighted_subset
from sdar.parts import Divergence, PrivilegedView, Teacher
from sdar.registry import part_name, register
from sdar.teachers import PlainView
from sdar.types import Batch, Episode, TeacherSignal


@register("tip")
class TIP(Distillation):
    """Full-vocabulary distillation on the tokens that matter.

    Value and gradient: KL(student || teacher), exact, over the drawn tokens.

    Args:
        teacher: ExternalTeacher, or the same model with a view.
        divergence: Per-token objective.
        view: What the teacher may see; by default what the student sees.
        keep: Share of the tokens that are learned from.
        alpha: Exponent of the student's entropy.
        gamma: Exponent of the divergence.
        importance: ``product``: in doubt *and* divergent, with the exponents; ``soft_or``: in doubt *or* divergent, without.
    """

    def __init__(
        self,
        teacher: Teacher,
        divergence: Divergence = lazy_instance(ReverseKL),
        view: PrivilegedView = lazy_instance(PlainView),
        keep: float = 0.5,
        alpha: float = 1.0,
        gamma: float = 1.0,
        importance: Literal["product", "soft_or"] = "product",
        **kwargs,
    ):
        super().__init__(teacher=teacher, divergence=divergence, view=view, **kwargs)
        if not 0 < keep <= 1 or min(alpha, gamma) < 0:
            raise ConfigError(
                f"model.keep is {keep}, alpha {alpha}, gamma {gamma}: keep lies in (0, 1], exponents are 0 or more."
            )
        if importance == "soft_or" and (alpha, gamma) != (1, 1):
            raise ConfigError(
                f"model.importance is soft_or, which has no exponents, but alpha is {alpha} and gamma {gamma}. Leave both at 1."
            )
        self.keep, self.alpha, self.gamma = keep, alpha, gamma
        self.importance = importance
        if gamma > 0:
            if self.teacher_signal == TeacherSignal.TOP_K:
                raise ConfigError(
                    f"model.gamma is {gamma}, which measures divergence over the whole vocabulary, but {part_name(divergence)} keeps "
                    "the teacher's likeliest tokens only. Use gamma 0, or an objective over the whole vocabulary."
                )
            self.teacher_signal = TeacherSignal.FULL  # the divergence of all tokens is measured in the whole vocabulary

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        weighed = super().weigh(batch, episodes)
        if weighed is None:
            return None
        batch = weighed
        jsd = self.distance(batch) if self.gamma else torch.zeros_like(batch.old_logp)
        known = (batch.old_entropy, jsd, self.scorer.vocab_size)
        importance = (
            soft_or_importance(*known) if self.importance == "soft_or" else token_importance(*known, self.alpha, self.gamma)
        )
        draw = torch.Generator(importance.device).manual_seed(hash((self.seed, self.iteration)) % 2**31)
        kept = weighted_subset(importance, batch.distill_weights > 0, self.keep, draw)
        self.metrics.add_tokens("tip/importance", importance, batch.response_mask)
        self.metrics.add_tokens("tip/importance_kept", importance, kept)
        batch.distill_weights = batch.distill_weights * kept
        if not self.learns_everywhere:  # nothing else reads the others: they stay out of the vocabulary head
            batch.loss_mask = kept
        return self.learned_rows(batch)

    def distance(self, batch: Batch) -> Tensor:
        """JSD of teacher and student at every response token, ``[batch, time]``."""
        return self.map_rows(batch, lambda part, now: self.compare(JensenShannon(), part, now))
