"""AgentModule: one training step as an algorithm box; a strategy says how credit is given and how a token's loss is made.

A strategy (training method) is a subclass in its own file. It may override

* ``token_loss``     - the per-token loss of one micro-batch (the only thing that carries a gradient),
* ``credit``         - rewards to advantages, from what the episodes were worth,
* ``weigh``          - what is decided once about the scored rows: shaped advantages, weights, which tokens count,
* ``extra_requests`` - further rollouts after the groups have been seen,
* ``collect``        - where episodes come from (rollouts, by default),

and sets ``teacher``, ``view``, ``retriever`` and ``controller`` when it has them. A model speaks from the middle of a response with
``continuations``. The channels that methods are made of are `sdar.strategies.GRPO` (advantages) and `sdar.distillation` (a
teacher, a loss term); both call ``super()``, so that they add up. Everything else is here, once.
"""

from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from sdar.data import TaskBatch
from sdar.errors import ConfigError
from sdar.functional import log_prob_gap, masked_mean
from sdar.joint_passes import JointPasses
from sdar.metrics.base import TokenMetric
from sdar.parts import Divergence
from sdar.registry import part_kind
from sdar.rollout import Request
from sdar.rollout.groups import by_group, finished
from sdar.scoring import Reading, StudentOutput
from sdar.training import reporting
from sdar.training.lifecycle import Lifecycle
from sdar.types import Batch, Episode, TokenView


@part_kind("strategies")
class AgentModule(Lifecycle):
    """Base of every strategy.

    Args:
        **kwargs: Those of `Lifecycle`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a method says of itself in class attributes follows from what it overrides, unless it says otherwise."""
        super().__init_subclass__(**kwargs)
        defined = vars(cls)
        for switch, hook in (("learns_everywhere", "token_loss"), ("teacher_acts", "extra_requests")):
            inherited = any(getattr(base, switch, False) for base in cls.__bases__)
            if inherited and defined.get(switch) is False:
                raise ConfigError(
                    f"{cls.__name__} says {switch} = False, and a base of it needs the opposite. Leave the line out."
                )
            setattr(cls, switch, inherited or defined.get(switch, hook in defined))
        if "collect" in defined and "plays_attempts" not in defined:
            raise ConfigError(
                f"{cls.__name__} makes its episodes itself (`collect`) and does not say whether they are attempts that the sampler plays: "
                "set plays_attempts = True or False in it. False: sampler and trainer are not compared before training."
            )

    # ------------------------------------------------------------------ the algorithm box

    def training_step(self, task_batch: TaskBatch, batch_idx: int) -> None:
        """One iteration: roll out, give credit, score, then several optimizer steps on what was seen.

        Every rank knows all episodes and rows; rollouts, forward and backward passes are divided.
        """
        with self.ranks.error_context(f"iteration {self.iteration}"):
            self.tell_unreadable(task_batch)
            self.iterate(task_batch)

    def iterate(self, task_batch: TaskBatch) -> None:
        """The algorithm. Each part may leave nothing to learn from."""
        with self.phase("rollout", rate="rollout/tokens_per_second"):
            episodes = self.collect(task_batch)
        batch, last = self.rows(episodes), "rows"
        if batch:
            batch, last = self.credit(batch, episodes), "credit"
        if batch:
            with self.phase("score"):
                self.score(batch, episodes)
                self.token_log.scored(batch)
                batch, last = self.weigh(batch, episodes), "weigh"
        if batch:
            self.observe_tokens(batch)
            with self.phase("update", rate="train/tokens_per_second"):
                for update in self.updates(batch):
                    self.optimize(update)
        self.metrics.add("train/empty_iterations", float(not batch))
        self.finish_iteration(episodes)
        self.progress.end(None if batch else last, episodes)

    # ------------------------------------------------------------------ its parts, in order

    def collect(self, task_batch: TaskBatch) -> list[Episode]:
        """Episodes of an iteration: the attempts of each task, one after the other, then what was asked for on seeing them."""
        episodes = self.attempts(task_batch)
        extra = self.extra_requests(by_group(finished(episodes)))
        if extra:
            episodes = episodes + self.play_as_teacher(self.rollout, extra)
        if self.rollouts_ahead:
            self.prefetch_rollout()
        return episodes

    def extra_requests(self, groups: list[list[Episode]]) -> list[Request]:
        """Further episodes, wanted now that the attempts at each task have been seen; the teacher's weights play them.

        Attempts that a fault of the world ended are in no group: how they would have gone is not known.
        """
        return []

    def extra_attempts(self, group_size: int) -> int:
        """Most further episodes that `extra_requests` may want for one task with `group_size` attempts: `sdar plan` counts them."""
        return 0

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        """Fill in ``advantages`` [batch, time]; may drop rows. None: nothing is left to learn from in this iteration."""
        batch.advantages = torch.zeros(batch.ids.shape, dtype=torch.float32)
        return batch

    def score(self, batch: Batch, episodes: list[Episode]) -> None:
        """Old and reference log-probabilities and the teacher's signal, all with the weights before the update. The old ones are left to
        the passes of the first update, as far as they go, where nobody reads them before."""
        passes = JointPasses(self.micro_batch_tokens, self.sharding, self.ranks)
        rows = Reading(batch.ids, batch.attention_mask, batch.response_mask)
        early = self.ask_policy(batch, rows, passes)
        reference = passes.ask(self.scorer, self.initial, rows) if self.needs_reference else None
        teachers = self.ask_teachers(batch, episodes, passes) if self.hears_teacher() else None
        if early:
            self.tell_scores()
        if reference is not None:
            batch.ref_logp = reference().logp
        if teachers is not None:
            self.teacher_heads = teachers()

    def scoring_passes(self) -> dict[str, float]:
        """Passes over each row that `score` makes, by whose network makes them: `sdar plan` counts them."""
        others = {"reference": self.needs_reference, "teacher": self.teacher is not None}
        return {"policy": 1.0} | {who: 1.0 for who, reads in others.items() if reads}

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        """What is decided once about the scored rows; may drop rows or tokens. None: nothing is left to learn from."""
        return batch

    def optimize(self, update: Batch) -> None:
        """One optimizer step. The normaliser is taken over the whole step before the first backward, so micro-batches,
        packing, order and ranks do not change the gradient."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        tokens = self.normalizer(update)
        self.token_log.begin_update(tokens)
        self.metrics.add("train/tokens_per_second", float(update.attention_mask.sum()), 0)
        parts = self.local_micro_batches(update)
        for number, (_, part) in enumerate(parts, 1):
            with self.sharding.micro_batch(last=number == len(parts)):
                loss = self.sharding.run_as_forward(partial(self.loss, part, tokens))
                self.manual_backward(loss)
            self.metrics.add("train/loss", loss.detach(), 0)
        self.metrics.add("train/loss", 0.0, 1)
        self._step(optimizer, update)

    def loss(self, part: Batch, tokens: Tensor) -> Tensor:
        """What a micro-batch adds to the loss; the ranks' gradients will be averaged."""
        now = self.forward_student(part)
        self.add_tokens("train/entropy", now.entropy, part.loss_mask, part)
        loss = self.token_loss(part, now)
        if part.has("importance"):
            loss = part.importance * loss
        self.token_log.learned(part, student_logp=now.logp, entropy=now.entropy, loss=loss)
        self.add_world_tokens("train/loss", loss, part.loss_mask, part)
        if self.teacher is not None:
            reporting.special_share(self.metrics, part, now, loss, self.control_ids)
        return self.ranks.world_size * masked_mean(loss, part.loss_mask, tokens)

    def token_loss(self, batch: Batch, now: StudentOutput) -> Tensor:
        """Per-token loss ``[batch, time]`` from the rows and the current student (which carries the gradient)."""
        return torch.zeros_like(now.logp)

    def finish_iteration(self, episodes: list[Episode]) -> None:
        """Tell retriever and teacher, count, log; only attempts say how the policy does."""
        attempts = [e for e in episodes if not e.extra]
        self.tell_scores()
        self.scoring_pass = None
        self.write_episodes(episodes)
        self.update_retriever(attempts)
        if self.teacher is not None:
            self.teacher.after_iteration(self.model, self.iteration)
            for name, value in self.teacher.metrics().items():
                self.metrics.add(name, value)
        self.stops = any(self.ranks.all_gather_object(self._asked_to_stop, "signals"))
        self.iteration += 1
        self.env_steps += sum(len(e.turns) for e in episodes)
        self.trainer.should_stop |= self.ends  # Lightning then validates first
        self.report(attempts)

    # ------------------------------------------------------------------ what they share

    def observe_tokens(self, batch: Batch) -> None:
        """Show the iteration's tokens to the metrics that are about them, and to the log."""

        def show() -> None:
            for metric in self.own_metrics:
                if isinstance(metric, TokenMetric):
                    metric.update(self.token_view(batch))

        self.token_log.weighed(batch, credited=type(self).credit is not AgentModule.credit)
        reporting.token_shares(self.metrics, batch, self.tasks.worlds)
        self.when_scored(show)

    def token_view(self, batch: Batch, logp: Tensor | None = None, entropy: Tensor | None = None) -> TokenView:
        """What gates, weights and objectives may know of each token, detached; `logp` and `entropy` ``[batch, time]`` are the student's,
        by default those of the weights before the update."""
        logp = batch.old_logp if logp is None else logp
        entropy = batch.old_entropy if entropy is None else entropy
        told = ("teacher_logp", "teacher_top_ids", "teacher_top_logp", "spans")
        known = {name: getattr(batch, name) for name in told if batch.has(name)}
        if batch.has("teacher_logp"):
            known["gap"] = log_prob_gap(batch.teacher_logp, logp.detach())
        return TokenView(
            student_logp=logp.detach(),
            entropy=entropy.detach(),
            response_mask=batch.response_mask,
            turn_ids=batch.turn_ids,
            advantages=batch.advantages,
            vocab_size=self.scorer.vocab_size,
            old_logp=batch.old_logp,
            ids=batch.ids,
            group_success=batch.group_success[:, None].expand_as(logp),
            tags=self.rollout.tags,
            iteration=self.iteration,
            **known,
        )

    def compare(self, divergence: Divergence, batch: Batch, now: StudentOutput, weights: Tensor | None = None) -> Tensor:
        """A divergence between the current student and the teacher, per token ``[batch, time]``; `weights`, which the token loss
        multiplies it with, save a pass over the head and change no number."""
        if weights is not None and batch.has("importance"):
            weights = batch.importance * weights
        teachers = [
            (head.to(batch.ids.device), batch.teacher_hidden[..., : head.weight.shape[1]], batch.teacher_index == i)
            for i, head in enumerate(self.teacher_heads if batch.has("teacher_hidden") else [])
        ]
        return now.compare(divergence, self.token_view(batch, now.logp, now.entropy), teachers, weights)
