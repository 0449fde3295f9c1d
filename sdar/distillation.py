"""The two channels through which a teacher speaks; strategies are made of them and of `sdar.strategies.GRPO`.

    advantages   Taught:        the gap reshapes advantages (transforms of GRPO's)
    a loss term  Distillation:  L = ... + coef(iteration) * mean_t weight_t gate_t divergence_t

Both add to what ``super()`` does, so ``class SDAR(Distillation, GRPO)`` has a policy gradient and a distillation term, and a class
with Distillation alone has no policy gradient.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sdar.errors import ConfigError
from sdar.functional import first_occurrences, truncated_ratio
from sdar.metrics.places import Places, add_turns
from sdar.module import AgentModule
from sdar.parts import Divergence, Gate, PrivilegedView, Retriever, Schedule, SequenceFilter, Teacher, TurnWeight
from sdar.registry import described
from sdar.schedules import scheduled
from sdar.scoring import StudentOutput
from sdar.training import reporting
from sdar.turns import Turns
from sdar.types import Batch, Episode


class Taught(AgentModule):
    """A strategy with a teacher: it reads every row, with what it may see.

    Args:
        teacher: Whose weights.
        view: What the teacher may see, and where it stands in its prompt.
        retriever: Skills, for views that tell them.
    """

    def __init__(self, teacher: Teacher, view: PrivilegedView, retriever: Retriever | None = None, **kwargs):
        super().__init__(**kwargs)
        self.teacher, self.view, self.retriever = teacher, view, retriever
        self._warned = False

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        if not self.hears_teacher():
            return super().weigh(batch, episodes)
        self.when_scored(partial(self.tell_gap, batch, episodes))
        extra = (batch.teacher_attention_mask.sum(1) - batch.attention_mask.sum(1)).float()
        self.metrics.add("teacher/extra_tokens", float(extra.sum()), len(extra))
        self.metrics.add("teacher/context_tokens", float(batch.teacher_attention_mask.sum()), len(extra))
        if self.view.tells:
            self.metrics.add("teacher/empty_share", float((~batch.is_privileged).sum()), len(extra))
        if self.view.uses_retrieval() and not batch.is_privileged.all() and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{int((~batch.is_privileged).sum())} of {len(batch)} rows of iteration {self.iteration} have a teacher that was told "
                "nothing: the retriever had no skill for their tasks. Further ones are counted in teacher/empty_share."
            )
        return super().weigh(batch, episodes)

    def tell_gap(self, batch: Batch, episodes: list[Episode]) -> None:
        """Count where teacher and student differ, with the weights before the update."""
        tokens, mask = self.token_view(batch), batch.response_mask
        self.add_tokens("gap/mean", tokens.gap, mask, batch)
        self.add_tokens("gap/abs", tokens.gap.abs(), mask, batch)
        self.add_tokens("gap/negative_share", tokens.gap < 0, mask, batch)
        reporting.signal(self.metrics, batch, tokens, episodes)

    def first_of_each(self, batch: Batch, tokens: list[str]) -> Tensor:
        """Bool ``[batch, time]``: the first occurrence in a row of each of these tokens and of the end of turn; of none, if the list is
        empty. Tokens that the vocabulary does not have are no error: templates differ."""
        if not tokens:
            return torch.zeros_like(batch.response_mask)
        known = self.chat.tokenizer.get_vocab()
        ids = {self.chat.end_of_turn, *(known[t] for t in tokens if t in known)}
        return first_occurrences(batch.ids, batch.response_mask, ids)


class Distillation(Taught):
    """A distillation term: coef * mean over the chosen tokens of weight * gate * divergence.

    Value and gradient: those that the divergence declares, weighted by the gate.

    Args:
        divergence: Per-token objective.
        gate: How much each token trusts the teacher; None: fully.
        distill_coef: Weight of the term; a number or a schedule.
        turn_weight: How much each turn counts; None: all alike.
        sequence_filter: Which episodes the term learns from; None: all.
        span: Only tokens inside this tag of the protocol; None: all response tokens. The term's mean is over the
            chosen tokens that have a weight.
        ratio_cap: Multiply by min(student / old, ratio_cap), detached; None: do not.
    """

    learns_everywhere = False

    def __init__(
        self,
        divergence: Divergence,
        gate: Gate | None = None,
        distill_coef: float | Schedule = 1.0,
        turn_weight: TurnWeight | None = None,
        sequence_filter: SequenceFilter | None = None,
        span: str | None = None,
        ratio_cap: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(distill_coef, Schedule) and distill_coef <= 0:
            raise ConfigError(
                f"model.distill_coef is {distill_coef}: the teacher would have no influence. Use GRPO to ask for that."
            )
        if ratio_cap is not None and ratio_cap <= 0:
            raise ConfigError(f"model.ratio_cap is {ratio_cap}: it bounds a ratio of probabilities. Published: 2.")
        self.divergence, self.gate = divergence, gate
        self.distill_coef = scheduled(distill_coef)
        self.turn_weight, self.sequence_filter = turn_weight, sequence_filter
        self.span, self.ratio_cap = span, ratio_cap
        self.teacher_signal, self.top_k = divergence.needs()
        self._tags = {tag for tag in (span, None if turn_weight is None else turn_weight.span) if tag is not None}
        self.needs_spans |= bool(self._tags)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for tag in self._tags:
            self.check_span(tag)

    def hears_teacher(self) -> bool:
        if self.distill_coef(self.iteration) != 0 or not self.learns_everywhere:
            return self.teacher is not None
        return bool(getattr(self, "transforms", ())) and super().hears_teacher()

    def scores_late(self) -> bool:
        return super().scores_late() and self.turn_weight is None and not (self.gate is not None and self.gate.learns)

    def chosen(self, batch: Batch, episodes: list[Episode]) -> Tensor:
        """Bool ``[batch, time]``: the tokens that the term learns from."""
        chosen = batch.response_mask  # [batch, time]
        if self.span is not None:
            chosen = self.inside(batch, self.span)
        if self.sequence_filter is not None:  # it is about attempts
            numbers, of = torch.unique(batch.episode[~batch.extra], return_inverse=True)  # [episodes], [rows of attempts]
            success = batch.success.new_zeros(len(numbers))  # [episodes]
            group = batch.group.new_zeros(len(numbers))  # [episodes]
            success[of], group[of] = batch.success[~batch.extra], batch.group[~batch.extra]
            kept = batch.extra.clone()  # [batch]
            kept[~batch.extra] = self.sequence_filter(success, group)[of]  # [episodes] -> [rows of attempts]
            chosen = chosen & kept[:, None]
        return chosen

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        weighed = super().weigh(batch, episodes)
        if weighed is None:
            return None
        batch = weighed
        self.metrics.add("distill/coef", self.distill_coef(self.iteration))
        if not self.hears_teacher():
            batch.distill_weights = torch.zeros(batch.ids.shape)
            return batch
        chosen = self.chosen(batch, episodes)
        self.metrics.add("distill/chosen_share", float(chosen.sum()), float(batch.response_mask.sum()))
        if batch.has("teacher_top_ids"):
            covered = (batch.teacher_top_ids == batch.ids[..., None]).any(-1)  # [batch, time, k] -> [batch, time]
            self.add_tokens("support/covers_sampled", covered, batch.response_mask, batch)
            self.add_tokens("support/teacher_mass", batch.teacher_top_logp.exp().sum(-1), batch.response_mask, batch)
        if self.gate is not None and self.gate.learns:
            self.gate.observe(self.token_view(batch), self.metrics)
        batch.distill_weights = chosen.float()
        if self.turn_weight is not None:
            turns = Turns(batch)
            weights = self.turn_weight(self.token_view(batch), turns, self.metrics)  # [turns]
            add_turns(self.metrics, "turn/weight", weights, turns)
            batch.turn_weights = turns.spread(weights)  # [batch, time]
            batch.distill_weights *= batch.turn_weights
        return self.learned_rows(batch)

    def objective(self) -> dict[str, Any]:
        mine = {"distill_coef": self.distill_coef(self.iteration), "divergence": described(self.divergence)}
        gate = {} if self.gate is None else {"gate": described(self.gate)}
        ratio = {} if self.ratio_cap is None else {"ratio_cap": self.ratio_cap}
        return super().objective() | mine | gate | ratio

    def learned_rows(self, batch: Batch) -> Batch | None:
        """The rows that carry a loss: those with a weight, and every attempt where the method learns from attempts anyway."""
        learned = (batch.distill_weights > 0).any(1)  # [batch]
        rows = (learned | ~batch.extra if self.learns_everywhere else learned).nonzero()[:, 0]  # [rows that stay]
        return batch.select(rows) if len(rows) else None

    def updates(self, batch: Batch) -> Iterator[Batch]:
        """The term's mean is over the chosen tokens, that of everything else over all: the weights make up for it."""
        for update in super().updates(batch):
            update.distill_weights *= self.normalizer(update) / (update.distill_weights > 0).sum().clamp_min(1)
            yield update

    def token_loss(self, batch: Batch, now: StudentOutput) -> Tensor:
        loss, coef = super().token_loss(batch, now), self.distill_coef(self.iteration)
        if coef == 0:
            return loss
        weights = batch.distill_weights  # [batch, time], as the gate, the ratio and the divergence
        places = Places(batch)
        if self.gate is not None:
            gate = self.gate(self.token_view(batch, now.logp, now.entropy))
            places.add(self.metrics, "gate", gate, batch.loss_mask)
            self.metrics.add_tokens("gate/mean", gate, batch.loss_mask)
            self.metrics.add_tokens("gate/active_share", gate > 0.5, batch.loss_mask)
            self.token_log.learned(batch, gate=gate)
            weights = weights * gate
        if self.ratio_cap is not None:
            weights = weights * truncated_ratio(now.logp, batch.old_logp, self.ratio_cap)
        divergence = self.compare(self.divergence, batch, now, weights)
        self.add_tokens("distill/divergence", divergence, batch.distill_weights > 0, batch)
        places.add(self.metrics, "distill/divergence", divergence, batch.distill_weights > 0)
        weights = coef * weights
        self.token_log.learned(batch, divergence=divergence, weight=weights)
        return loss + weights * divergence
