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

import copy
import os
import random
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from sdar import bars, reporting
from sdar.ahead import Ahead
from sdar.checkpoints import fingerprints, put_state, take_state, validation_follows
from sdar.checks import check_first_prompts, check_settings, check_teacher_context
from sdar.corrections import NoCorrection
from sdar.data import Played, Step, TaskModule
from sdar.distributed.ranks import ALONE, Group, Ranks
from sdar.distributed.sharding import Sharding, sharding_of
from sdar.errors import ConfigError, NonFiniteLossError, StoppedError
from sdar.evaluate.validation import Validation
from sdar.finite import blame
from sdar.functional import log_prob_gap, masked_mean
from sdar.lightning_checks import check_optimizer
from sdar.lora import plain_weights
from sdar.manner import compare_manner, manner, write_manner
from sdar.parts import (
    Completion,
    Correction,
    Divergence,
    Draw,
    EpisodeController,
    Policy,
    PrivilegedView,
    Retriever,
    Sampler,
    Teacher,
)
from sdar.probe import probe
from sdar.progress import Progress
from sdar.registry import part_kind, part_name
from sdar.rollout import Request, Rollout, collate, make_rows
from sdar.rollout.chat import ChatFormat
from sdar.rollout.rows import add_teacher_view, without_privilege
from sdar.rollout.spans import response_spans
from sdar.samplers import TorchSampler
from sdar.scoring import Head, Scorer, StudentPass, consult, micro_batches
from sdar.tally import Tally
from sdar.teachers import SkillView
from sdar.types import Batch, Episode, Payload, Row, TokenView, Turn


@part_kind("strategies")
class AgentModule(LightningModule):
    """Base of every strategy.

    Args:
        policy: The model that learns.
        sampler: How it acts in training.
        val_sampler: How it acts in validation; by default as in training.
        correction: How much a sampled token counts where the trainer's density is not the one it was sampled from: another engine, or
            older weights.
        max_mismatch: Before training, sampler and trainer are compared on a few hundred tokens; the run ends if their
            log-probabilities differ by more nats than this on average. None: they are not compared.
        rollouts_ahead: 1: while an iteration updates, servers play the attempts of the next one, with the weights from before the
            update. 0: each rollout has the weights of its own iteration.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer; stepped after every optimizer step.
        updates_per_rollout: Optimizer steps that share one rollout.
        rows_per_update: One optimizer step for this many rows (the last one may have fewer), as verl's mini-batches, instead: how many
            steps a rollout has then follows how many rows it gave. Needs ``updates_per_rollout: 1``. trainer.max_steps counts steps.
        micro_batch_tokens: Most tokens (padding included) in one forward and backward pass. Changes memory, never the gradient.
        max_grad_norm: Gradients are scaled down to this norm.
        max_env_steps: Training ends when the environment has been acted in this often: methods compared at equal interaction. None:
            trainer.max_steps alone ends it.
        max_skipped_steps: Steps in a row that may be skipped because their loss or gradient is not finite.
        max_empty_iterations: Iterations in a row that may end without an optimizer step, because their worlds failed or nothing was
            left to learn from; then the run ends.
        log_episodes_every: Write the episodes of every n-th iteration to the run's folder (0: none; validation always).
        export: Directory that gets the trained policy, as transformers saves it, when training ends; it must not exist yet or be empty.
        export_dtype: Type of the exported weights.
    """

    retriever: Retriever | None = None
    """Skills, for strategies that have them."""
    teacher: Teacher | None = None
    """Whose weights score the privileged view, for strategies that distil."""
    controller: EpisodeController | None = None
    """Changes how attempts are played in training, for strategies with a curriculum."""
    payload = Payload.SAMPLED
    """How much of the teacher's distribution is needed."""
    support = 0
    """Size of the teacher's support, for Payload.TOP_K."""
    student_sees_skills = False
    """True when the policy's own prompts hold the retrieval in training."""
    learns_everywhere = False
    """True when rows carry a loss even where no teacher speaks."""
    needs_reference = False
    """True when `token_loss` uses ``batch.ref_logp``."""
    plays_attempts = True
    """True when its episodes are the attempts that its sampler plays: set it to False beside a `collect` that makes them otherwise."""
    needs_spans = False
    """True when ``batch.spans`` is used."""
    teacher_acts = False
    """True when the teacher's network plays in training, or goes on from what the student said."""

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler = lazy_instance(TorchSampler),
        val_sampler: Sampler | None = None,
        correction: Correction = lazy_instance(NoCorrection),
        max_mismatch: float | None = 0.05,
        rollouts_ahead: Literal[0, 1] = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
        updates_per_rollout: int = 1,
        rows_per_update: int | None = None,
        micro_batch_tokens: int = 16384,
        max_grad_norm: float = 1.0,
        max_env_steps: int | None = None,
        max_skipped_steps: int = 3,
        max_empty_iterations: int = 20,
        log_episodes_every: int = 10,
        export: str | None = None,
        export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    ):
        super().__init__()
        self.automatic_optimization = False
        for name, value, least in (
            ("updates_per_rollout", updates_per_rollout, 1),
            ("rows_per_update", 1 if rows_per_update is None else rows_per_update, 1),
            ("micro_batch_tokens", micro_batch_tokens, 1),
            ("max_grad_norm", max_grad_norm, 1e-12),
            ("max_env_steps", 1 if max_env_steps is None else max_env_steps, 1),
            ("max_skipped_steps", max_skipped_steps, 0),
            ("max_empty_iterations", max_empty_iterations, 1),
            ("log_episodes_every", log_episodes_every, 0),
            ("max_mismatch", 0.0 if max_mismatch is None else max_mismatch, 0),
        ):
            if value < least:
                raise ConfigError(f"model.{name} is {value}: it must be at least {least}.")
        if rows_per_update is not None and updates_per_rollout > 1:
            raise ConfigError(
                f"model.rows_per_update is {rows_per_update} and model.updates_per_rollout is {updates_per_rollout}: both say into how "
                "many optimizer steps a rollout is divided. Set updates_per_rollout to 1, or rows_per_update to null."
            )
        if rollouts_ahead not in (0, 1):
            raise ConfigError(
                f"model.rollouts_ahead is {rollouts_ahead}: a rollout may be one iteration ahead of its update (1) or not (0). Older "
                "samples than that are not corrected well."
            )
        self.policy = policy
        self.sampler = sampler
        self.val_sampler = val_sampler or sampler
        self.correction, self.max_mismatch = correction, max_mismatch
        self.rollouts_ahead = rollouts_ahead
        self.ahead = Ahead(self)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.updates_per_rollout, self.rows_per_update = updates_per_rollout, rows_per_update
        self.micro_batch_tokens = micro_batch_tokens
        self.max_grad_norm = max_grad_norm
        self.max_env_steps = max_env_steps
        self.max_skipped_steps = max_skipped_steps
        self.log_episodes_every = log_episodes_every
        self.export, self.export_dtype = export, export_dtype
        self.view: PrivilegedView = SkillView()
        self.model: nn.Module | None = None
        self.initial: nn.Module | None = None
        self.settings: dict[str, Any] = {}  # of the command that runs it, by dotted key
        self.origin: dict[str, str] = {}  # fingerprints of what training started from and keeps
        self.teacher_networks = nn.ModuleDict()
        self.teacher_heads: list[Head] = []
        self.iteration = 0
        self.env_steps = 0
        self.skipped = 0
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tally = Tally()
        self.progress = Progress(self, max_empty_iterations)
        self.ranks: Ranks = ALONE
        self.sharding = Sharding(self)
        self._rng_state: dict[str, Any] | None = None
        self._asked_to_stop = self.stops = False
        self._said: set[str] = set()

    # ------------------------------------------------------------------ the algorithm box

    def training_step(self, step: Step, batch_idx: int) -> None:
        """One iteration: roll out, give credit, score, then several optimizer steps on what was seen.

        Every rank knows all episodes and rows; rollouts, forward and backward passes are divided.
        """
        with self.ranks.watch(f"iteration {self.iteration}"):
            self.tell_unreadable(step)
            self.iterate(step)

    def iterate(self, step: Step) -> None:
        """The algorithm. Each part may leave nothing to learn from."""
        with self.phase("rollout", rate="rollout/tokens_per_second"):
            episodes = self.collect(step)
        batch, last = self.rows(episodes), "rows"
        if batch:
            batch, last = self.credit(batch, episodes), "credit"
        if batch:
            with self.phase("score"):
                self.score(batch, episodes)
                batch, last = self.weigh(batch, episodes), "weigh"
        if batch:
            with self.phase("update", rate="train/tokens_per_second"):
                for update in self.updates(batch):
                    self.optimize(update)
        self.tally.add("train/empty_iterations", float(not batch))
        self.conclude(episodes)
        self.progress.end(None if batch else last, episodes)

    def token_loss(self, batch: Batch, now: StudentPass) -> Tensor:
        """Per-token loss ``[batch, time]`` from the rows and the current student (which carries the gradient)."""
        return torch.zeros_like(now.logp)

    def credit(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        """Fill in ``advantages`` [batch, time]; may drop rows. None: nothing is left to learn from in this iteration."""
        batch.advantages = torch.zeros(batch.ids.shape, dtype=torch.float32)
        return batch

    def weigh(self, batch: Batch, episodes: list[Episode]) -> Batch | None:
        """What is decided once about the scored rows; may drop rows or tokens. None: nothing is left to learn from."""
        return batch

    def collect(self, step: Step) -> list[Episode]:
        """Episodes of an iteration: the attempts of each task, one after the other, then what was asked for on seeing them."""
        episodes = self.attempts(step)
        extra = self.extra_requests(reporting.groups(reporting.played(episodes)))
        if extra:
            episodes = episodes + self.play_as_teacher(self.rollout, extra)
        if self.rollouts_ahead:
            self.look_ahead()
        return episodes

    def attempts(self, step: Step) -> list[Episode]:
        """The attempts at each task of a step: those that were played ahead, if they were."""
        played = self.ahead.take(self.iteration)
        self.tally.add("rollout/staleness", float(played is not None))
        if played is not None:
            return played
        return self.play(self.rollout, self.model, self.requests(step, self.student_sees_skills))

    def look_ahead(self) -> None:
        """Begin the next iteration's rollout, unless this one is the last."""
        self.count_sampling()  # now, while nobody samples
        # With rows_per_update how many steps this one will have is not known: one that is too many is dropped.
        if not 0 <= self.trainer.max_steps <= self.trainer.global_step + self.updates_per_rollout:
            following = self.iteration + 1
            self.ahead.begin(self.trainer.datamodule.step(self.seed, following), following)

    def hears_teacher(self) -> bool:
        """False in an iteration in which nothing that a teacher would say has a weight: then it reads no rows."""
        return self.teacher is not None

    def extra_requests(self, groups: list[list[Episode]]) -> list[Request]:
        """Further episodes, wanted now that the attempts at each task have been seen; the teacher's weights play them.

        Attempts that a fault of the world ended are in no group: how they would have gone is not known.
        """
        return []

    # ------------------------------------------------------------------ its parts, in order

    @contextmanager
    def phase(self, name: str, rate: str | None = None) -> Iterator[None]:
        """A part of an iteration: it is timed, and the other ranks can tell that this one is in it."""
        self.ranks.note(name)
        bars.note(self.trainer, name)
        with self.tally.timed(f"time/{name}_s", rate):
            yield

    def play(self, rollout: Rollout, network: nn.Module, requests: list[Request]) -> list[Episode]:
        """Episodes played by a network, in the order of the requests; each rank plays a share."""
        with self.acting(rollout.sampler, network) as actor:
            episodes = self.ranks.spread(lambda mine: rollout(actor, mine), requests, "episodes")
        return episodes

    @contextmanager
    def acting(self, sampler: Sampler, network: nn.Module) -> Iterator[nn.Module]:
        """What a sampler shall sample with: an engine of its own gets the network's weights, others get the network, whole."""
        self.ahead.wait()  # servers and worlds do one thing at a time
        live = getattr(network, "live", None)  # of adapters that are off
        if not sampler.own_engine:
            with self.sharding.whole(network if live is None else live) as actor:
                try:
                    yield actor if live is None else self.policy.frozen(actor)
                finally:
                    sampler.rest()
            return
        name = next(i for i, known in enumerate(self.networks()) if known is network)
        weights = plain_weights(network, self.sharding.weights(network if live is None else live))
        sampler.load(f"{name}@{self.trainer.global_step}.{self.iteration}", weights)
        try:
            yield network
        finally:
            sampler.rest()

    def networks(self) -> list[nn.Module]:
        """Every network of the run: the policy, its frozen copy if there is one, the teacher's own."""
        return [n for n in (self.model, self.initial, *self.teacher_networks.values()) if n is not None]

    def requests(self, step: Step, privileged: bool, training: bool = True, iteration: int | None = None) -> list[Request]:
        """Every attempt at every task of a step, for an `iteration` (by default this one); attempts of one task share a retrieval."""
        iteration = self.iteration if iteration is None else iteration
        wanted = []
        for task, visit in zip(step.tasks, step.visits, strict=True):
            retrieval = {} if self.retriever is None else {"retrieval": self.retriever.retrieve(task, visit)}
            for g in range(step.attempts):
                request = Request(task, visit * step.attempts + g, privileged=privileged, **retrieval)
                if privileged:
                    request.told = self.view.text(Episode(task, request.attempt, **retrieval), (), 0, self.env)
                if training and self.controller is not None:
                    request = self.controller(request, iteration, self.env)
                wanted.append(request)
        return wanted

    def informed_requests(
        self, groups: Sequence[list[Episode]], most: int | None = None, extra: bool = False
    ) -> list[Request]:
        """The same attempts (at most `most` of each group) once more, with the same random numbers, by somebody who is told what the
        view tells of each: hindsight, if it has some."""
        return [
            Request(e.task, e.attempt, e.retrieval, True, self.view.text(e, group, 0, self.env), extra=extra)
            for group in groups
            for e in group[:most]
        ]

    def play_as_teacher(self, rollout: Rollout, requests: list[Request]) -> list[Episode]:
        """Episodes played by each task's teacher (by the policy where there is none), in the order of the requests."""
        teacher = self.teacher
        whose = [self.model if teacher is None else teacher.model(self.model, self.initial, r.task) for r in requests]
        played: dict[int, Episode] = {}
        for network in {id(n): n for n in whose}.values():
            mine = [i for i, n in enumerate(whose) if n is network]
            played |= dict(zip(mine, self.play(rollout, network, [requests[i] for i in mine]), strict=True))
        return [played[i] for i in range(len(requests))]

    def rows(self, episodes: list[Episode]) -> Batch | None:
        """Training rows of all episodes whose world did not fail."""
        group_of = reporting.group_numbers(episodes)
        rows = [r for r in make_rows(episodes, self.rollout.layout, self.spans) if not episodes[r.episode].lost]
        rows = [r for r in rows if any(r.response_mask)]
        if not rows:
            return None
        rows = [without_privilege(r, episodes[r.episode], self.chat) if episodes[r.episode].extra else r for r in rows]
        if not self.hears_teacher():
            rows = [replace(r, teacher_ids=None) for r in rows]
        else:
            members: dict[int, list[Episode]] = {}
            for e, g in zip(episodes, group_of, strict=True):
                if not (e.extra or e.lost):
                    members.setdefault(g, []).append(e)
            contexts = [self.teacher.context(e.task) or self.context for e in episodes]
            told = (self.chat, self.view, self.env, contexts)
            too_long = add_teacher_view(rows, episodes, [members.get(g, []) for g in group_of], *told)
            self.tally.add("teacher/overflow_share", len(too_long), len(rows))
            rows = self._readable(rows, contexts, too_long)
        return collate(rows, episodes, group_of) if rows else None

    def _readable(self, rows: list[Row], contexts: Sequence[int], too_long: dict[int, str]) -> list[Row]:
        """The rows that their teachers can read: where the privileged text is too much without it, as if there were none; the others
        are left out."""
        if too_long:
            said = (
                f"{next(iter(too_long.values()))} Until then the teacher reads such rows without it; rows that are too long by"
            )
            self.say_once("overflow", f"{said} themselves are left out. Further ones are counted in teacher/overflow_share.")
        for place in too_long:
            if rows[place].told and len(rows[place].ids) <= contexts[rows[place].episode]:
                rows[place] = replace(rows[place], teacher_ids=rows[place].ids, told=False)
        return [row for row in rows if len(row.teacher_ids) <= contexts[row.episode]]

    def tell_unreadable(self, step: Step) -> None:
        """Tasks of a step that could not be made are left out of it, told and counted."""
        for task_id, error in step.unreadable.items():
            self.say_once(f"unreadable {task_id}", f"task {task_id} cannot be made and is left out: {error}")
        self.tally.add("rollout/unreadable_share", len(step.unreadable), max(1, len(step.tasks) + len(step.unreadable)))

    def say_once(self, kind: str, text: str) -> None:
        """Warn; of each kind once in this process, because what comes again is counted."""
        if kind not in self._said:
            self._said.add(kind)
            rank_zero_warn(text)

    def inside(self, batch: Batch, tag: str) -> Tensor:
        """Bool ``[batch, time]``: the response tokens inside a tag of the protocol."""
        return batch.response_mask & (batch.spans == 1 + self.rollout.protocol.tags.index(tag))

    def check_span(self, tag: str | None) -> None:
        """Raises ConfigError where no response has the tag."""
        tags = self.rollout.protocol.tags
        if tag is not None and tag not in tags:
            raise ConfigError(
                f"model.span is {tag!r}, but responses of {part_name(self.rollout.protocol)} hold "
                f"{' and '.join(tags) or 'no tags'}: no token would be chosen. Use one of them."
            )

    def spans(self, turn: Turn) -> list[int]:
        """The tag that each response token stands in, where the strategy asks for spans."""
        if not self.needs_spans:
            return [0] * len(turn.response_ids)
        return response_spans(turn.response_ids, self.chat.tokenizer, self.rollout.protocol, self.chat.stop_ids)

    def score(self, batch: Batch, episodes: list[Episode]) -> None:
        """Fill in old and reference log-probabilities and the teacher's payload, all with the weights before the update."""
        told = (batch.ids, batch.attention_mask, batch.response_mask)
        shared = {"sharding": self.sharding, "ranks": self.ranks}
        old = self.scorer.score(self.model, *told, self.micro_batch_tokens, **shared)
        batch.old_logp, batch.old_entropy = old.logp, old.entropy
        if self.needs_reference:
            batch.ref_logp = self.scorer.score(self.initial, *told, self.micro_batch_tokens, **shared).logp
        if self.hears_teacher():
            networks = [self.teacher.model(self.model, self.initial, episodes[e].task) for e in batch.episode.tolist()]
            asked = (self.scorer, self.micro_batch_tokens, self.payload, self.support)
            self.teacher_heads = consult(batch, networks, *asked, **shared)
        reporting.sampling_mismatch(self.tally, batch, old.allowed_logmass)
        self.correct(batch, old.allowed_logmass)

    def correct(self, batch: Batch, allowed_logmass: Tensor) -> None:
        """Fill in how much each sampled token counts, for the difference between the sampler's density and the one before the update."""
        sampled, logp, sampled_logp = reporting.densities(batch, allowed_logmass)
        batch.importance = self.correction(logp, sampled_logp).where(sampled, 1.0)
        self.tally.tokens("rollout/importance", batch.importance, sampled)
        self.tally.tokens("rollout/importance_cut_share", self.correction.cut(logp, sampled_logp), sampled)

    def tokens(self, batch: Batch, logp: Tensor, entropy: Tensor) -> TokenView:
        """What gates, weights and objectives may know of each token, detached, with this student's side."""
        teacher_logp = torch.zeros_like(logp) if batch.teacher_logp is None else batch.teacher_logp
        return TokenView(
            student_logp=logp.detach(),
            teacher_logp=teacher_logp,
            gap=log_prob_gap(teacher_logp, logp.detach()),
            entropy=entropy.detach(),
            response_mask=batch.response_mask,
            turn_ids=batch.turn_ids,
            advantages=batch.advantages,
            vocab_size=self.scorer.vocab_size,
            old_logp=batch.old_logp,
            ids=batch.ids,
            group_success=batch.group_success[:, None].expand_as(logp),
            teacher_top_ids=batch.teacher_top_ids,
            teacher_top_logp=batch.teacher_top_logp,
            iteration=self.iteration,
        )

    def compare(self, divergence: Divergence, batch: Batch, now: StudentPass) -> Tensor:
        """A divergence between the current student and the teacher, per token ``[batch, time]``."""
        teachers = [
            (head.to(batch.ids.device), batch.teacher_hidden[..., : head.weight.shape[1]], batch.teacher_index == i)
            for i, head in enumerate(self.teacher_heads if batch.teacher_hidden is not None else [])
        ]
        return now.compare(divergence, self.tokens(batch, now.logp, now.entropy), teachers)

    def continuations(self, model: nn.Module, prefixes: list[list[int]], draws: list[Draw], length: int) -> list[Completion]:
        """What a model would say next, behind any prefix, in at most `length` tokens; sampled as rollouts are.

        Whoever asks sees to it that the model's context has room for both.
        """
        sampler = copy.copy(self.sampler)
        sampler.reset()
        sampler.max_new_tokens, sampler.context = length, max(map(len, prefixes)) + length
        asked = list(zip(prefixes, draws, strict=True))
        with self.acting(sampler, model) as actor:

            def said(mine: list[tuple[list[int], Draw]]) -> list[Completion]:
                return sampler.sample(actor, [p for p, _ in mine], [d for _, d in mine]) if mine else []

            return self.ranks.spread(said, asked, "continuations")

    def updates(self, batch: Batch) -> Iterator[Batch]:
        """Rows in random pieces, one for each optimizer step; the order derives from (seed, iteration)."""
        order = list(range(len(batch)))
        random.Random(f"{self.seed}/rows/{self.iteration}").shuffle(order)
        if (size := self.rows_per_update) is None:
            count = min(self.updates_per_rollout, len(order))
            pieces = [order[k::count] for k in range(count)]
        else:
            pieces = [order[first : first + size] for first in range(0, len(order), size)]
        for piece in pieces:
            if 0 <= self.trainer.max_steps <= self.trainer.global_step:
                return
            yield batch.select(torch.tensor(piece))

    def optimize(self, update: Batch) -> None:
        """One optimizer step. The normaliser is taken over the whole step before the first backward, so micro-batches,
        packing, order and ranks do not change the gradient."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        tokens = self.normalizer(update)
        self.tally.add("train/tokens_per_second", float(update.attention_mask.sum()), 0)
        parts = self.share(update)
        for number, (_, part) in enumerate(parts, 1):
            with self.sharding.micro_batch(last=number == len(parts)):
                loss = self.sharding.run(lambda part=part: self.loss(part, tokens))
                self.manual_backward(loss)
            self.tally.add("train/loss", float(loss.detach()), 0)
        self.tally.add("train/loss", 0.0, 1)
        self._step(optimizer, update)

    def share(self, batch: Batch) -> list[tuple[Tensor, Batch]]:
        """This rank's micro-batches of a batch, and which rows they hold. Every rank gets equally many, so that none waits for a pass
        that another does not make: where there is nothing left it gets the shortest row once more, of which no token counts."""
        lengths = batch.attention_mask.sum(1)
        pieces = list(micro_batches(lengths, self.micro_batch_tokens))
        self.ranks.agree((len(batch), [len(p) for p in pieces], zlib.crc32(batch.ids.numpy().tobytes())), "the micro-batches")
        spare = lengths.argmin()[None]
        mine = [(rows, batch.select(rows)) for rows in self.ranks.deal(pieces, spare)]
        for rows, part in mine:
            if rows is spare:
                part.response_mask = torch.zeros_like(part.response_mask)
        return [(rows, part.to(self.device)) for rows, part in mine]

    @torch.no_grad()
    def measured(self, batch: Batch, measure: Callable[[Batch, StudentPass], Tensor]) -> Tensor:
        """What `measure` gives for each micro-batch and the current student, for all rows: ``[batch, time]``."""
        out = torch.zeros(batch.ids.shape)
        for rows, part in self.share(batch):
            values = self.sharding.run(lambda part=part: measure(part, self.student(part)))
            if part.response_mask.any():
                out[rows, : values.shape[1]] = values.to(out)
        return self.ranks.total(out, "measurements")

    def loss(self, part: Batch, tokens: Tensor) -> Tensor:
        """What a micro-batch adds to the loss; the ranks' gradients will be averaged."""
        now = self.student(part)
        self.tally.tokens("train/entropy", now.entropy, part.response_mask)
        loss = self.token_loss(part, now)
        if part.importance is not None:
            loss = part.importance * loss
        return self.ranks.world * masked_mean(loss, part.response_mask, tokens)

    def student(self, part: Batch) -> StudentPass:
        """The current student's statistics of the response tokens; carries the gradient."""
        return self.scorer(self.model, part.ids, part.attention_mask, part.response_mask)

    def normalizer(self, update: Batch) -> Tensor:
        """Tokens that the losses of an optimizer step are means over: those of the attempts, of extra episodes if there are no others."""
        attempts = update.response_mask[~update.extra].sum()
        return attempts if attempts else update.response_mask.sum()

    def forward(self, work: Callable[[], Any]) -> Any:
        """Whatever passes through the networks, as one call: strategies of Lightning hang what they do on it."""
        return work()

    def conclude(self, episodes: list[Episode]) -> None:
        """Tell retriever and teacher, count, log; only attempts say how the policy does."""
        attempts = [e for e in episodes if not e.extra]
        self.learn_skills(attempts)
        if self.teacher is not None:
            self.teacher.after_iteration(self.model, self.iteration)
            for name, value in self.teacher.metrics().items():
                self.tally.add(name, value)
        self.stops = any(self.ranks.gather(self._asked_to_stop, "signals"))
        self.iteration += 1
        self.env_steps += sum(len(e.turns) for e in episodes)
        self.trainer.should_stop |= self.max_env_steps is not None and self.env_steps >= self.max_env_steps
        self.report(attempts)

    def learn_skills(self, episodes: list[Episode]) -> None:
        """Tell the retriever how each task's attempts went: those that the world let go to an end."""
        if self.retriever is not None:
            for group in reporting.groups(reporting.played(episodes)):
                success = sum(e.success for e in group) / len(group)
                self.retriever.observe(group[0].task, group[0].retrieval, success)

    def report(self, episodes: list[Episode]) -> None:
        """Log the iteration's metrics; write its episodes when it is their turn."""
        reporting.episodes(self.tally, episodes, retrieves=self.retriever is not None)
        if not self.rollouts_ahead:
            self.count_sampling()
        self.tally.add("train/iteration", self.iteration)
        self.tally.add("train/env_steps", self.env_steps)
        self.tally.add("train/lr", self.optimizers().param_groups[0]["lr"])
        metrics = Tally.joined(self.ranks.gather(self.tally, "metrics")).means()
        self.tally = Tally()
        metrics = metrics | {"step": float(self.iteration)}  # what loggers number rows by
        shown = {k: metrics.pop(k) for k in ("success/train", "reward/mean", "train/loss") if k in metrics}
        self.log_dict(shown, prog_bar=True, batch_size=max(1, len(episodes)))
        self.log_dict(metrics, batch_size=max(1, len(episodes)))
        if self.retriever is not None and self.trainer.is_global_zero:
            reporting.write_retrievals(self.trainer, self.iteration, episodes)
        if self.log_episodes_every and self.iteration % self.log_episodes_every == 0 and self.trainer.is_global_zero:
            reporting.write_episodes(self.trainer, f"train-{self.iteration:06d}", episodes)

    def count_sampling(self) -> None:
        """Log what the sampler's engine counted."""
        for name, value in self.sampler.metrics().items():
            self.tally.add(name, value)

    def _step(self, optimizer: Any, update: Batch) -> None:
        norm = self.sharding.step(optimizer, self.max_grad_norm)  # taken only if it is finite
        if torch.isfinite(norm):
            if self.teacher is not None:
                self.teacher.after_step(self.model)
            if (schedule := self.lr_schedulers()) is not None:
                schedule.step()
            self.skipped = 0
            self.tally.add("train/grad_norm", float(norm))
        else:
            self.skipped += 1
        self.tally.add("train/skipped_steps", float(self.skipped > 0))
        if self.skipped > self.max_skipped_steps:
            raise NonFiniteLossError(
                f"iteration {self.iteration}: the loss or gradient was not finite in {self.skipped} optimizer steps in a row "
                f"(model.max_skipped_steps is {self.max_skipped_steps}). The weights were not changed by them and the last checkpoint "
                f"is good. {blame(update, self.tally)}"
            )

    # ------------------------------------------------------------------ life cycle

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TaskModule):
            raise ConfigError(
                "a strategy needs tasks: give `data: {class_path: TaskModule, ...}` (or trainer.fit(model, TaskModule(...)))."
            )
        check_settings(self, data)
        self.sharding = sharding_of(self)
        if self.trainer.world_size > 1:
            self.ranks = Group(self.trainer.strategy.deadline)
            self.ranks.agree(self.trainer.ckpt_path, "the checkpoint to begin from")
        if self.export is not None and stage == "fit" and not self.trainer.fast_dev_run:
            with self.ranks.watch("the folder of model.export"):
                if self.trainer.is_global_zero:
                    reporting.check_export("model.export", self.export)
        self.env = data.env
        self.policy.meet(data.env)
        if self.retriever is not None:
            self.retriever.meet(data.env)
        tokenizer = self.policy.load_tokenizer()
        compare_manner(self.policy, data)
        self.chat = ChatFormat(tokenizer, self.policy.chat_options, self.policy.name, data.protocol.tools)
        self.context = self.policy.context()
        for sampler in (self.sampler, self.val_sampler):
            sampler.ranks = self.ranks
            sampler.bind(tokenizer, self.chat.stop_ids, self.context)
        self.scorer = Scorer(self.sampler.temperature, self.sampler.forbidden_ids, len(tokenizer))
        self.rollout = self._rollout(self.sampler)
        self.validation = Validation(self, self._rollout(self.val_sampler))
        check_first_prompts(self, data)

    def _rollout(self, sampler: Sampler) -> Rollout:
        rollout = self.trainer.datamodule.rollout(self.chat, sampler, self.view, self.seed)
        rollout.progress = lambda ended, of: bars.note(self.trainer, f"{ended}/{of} episodes")
        return rollout

    def configure_model(self) -> None:
        if self.model is not None:
            return
        with self.sharding.building():
            self._build()

    def _build(self) -> None:
        self.model = self.policy.load_model()
        self.scorer.check(self.model)
        if self.needs_reference or (self.teacher is not None and self.teacher.needs_initial):
            self.initial = self.policy.frozen(self.model)
        if self.support > self.scorer.vocab_size:
            raise ConfigError(
                f"divergence.k is {self.support}, but the vocabulary of {self.policy.name} has {self.scorer.vocab_size} tokens: the "
                "support cannot be larger. Use a smaller k, or a divergence over the whole vocabulary."
            )
        if self.teacher is not None:
            self.teacher.prepare(self.model, self.chat.tokenizer, self.policy.name)
            check_teacher_context(self)
            self.teacher_networks = nn.ModuleDict(self.teacher.networks())  # here, they lie where and as the others do
            for network in self.teacher_networks.values():
                self.scorer.check(network)
        self.origin = fingerprints(self.state_dict(), self.original())
        for network in self.networks():
            if not hasattr(network, "live"):
                self.sharding.adopt(network)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(p for p in self.model.parameters() if p.requires_grad)
        schedule = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        check_optimizer(optimizer, schedule, self.trainer.max_steps)
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # tasks are not tensors

    def on_train_start(self) -> None:
        """A preempted job ends between two iterations, all ranks together (Lightning would end each rank alone). Whoever samples
        otherwise than is trained is found out before the first step, of resumed runs too."""
        if threading.current_thread() is threading.main_thread():
            # no bound method: Python prints handlers, and to print networks that ZeRO divided takes all ranks
            signal.signal(signal.SIGTERM, lambda number, frame: self._ask_to_stop())
        if self.max_mismatch is not None and self.plays_attempts:
            with self.ranks.watch("probe before training"):
                probe(self, self.max_mismatch)

    def _ask_to_stop(self) -> None:
        """Answer at once, with no buffer between: the signal may come while somebody writes to one."""
        if not self._asked_to_stop:
            last = self.iteration if self.trainer.validating else self.iteration + 1
            os.write(2, f"\nSIGTERM: the run stops after iteration {last}, when its checkpoint is written.\n".encode())
        self._asked_to_stop = True

    def on_train_end(self) -> None:
        self.ahead.drop()

    def on_train_batch_end(self, outputs: Any, step: Step, batch_idx: int) -> None:
        if not validation_follows(self.trainer):
            self._stop_if_asked()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            with self.ranks.watch():
                self.stops = any(self.ranks.gather(self._asked_to_stop, "signals"))
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Called behind the callbacks, so that the checkpoint is written."""
        if self.stops:
            raise StoppedError(
                f"stopped by SIGTERM after iteration {self.iteration}. Nothing is lost: go on from the checkpoint."
            )

    def on_train_batch_start(self, step: Step, batch_idx: int) -> None:
        if self._rng_state is not None:  # not earlier: loaders draw from the global stream when they start
            torch.set_rng_state(self._rng_state["torch"])
            version, internal, gauss = self._rng_state["python"]
            random.setstate((version, tuple(internal), gauss))
            self._rng_state = None

    def on_fit_end(self) -> None:
        """Export the policy."""
        if self.export is not None and not self.trainer.fast_dev_run:
            with self.ranks.watch("export"):
                weights = self.sharding.weights(self.model)
                folder = self.export if self.trainer.is_global_zero else None
                reporting.write_policy(self.policy, self.model, weights, folder, self.export_dtype)
                if folder is not None:
                    write_manner(folder, manner(self.policy, self.trainer.datamodule))

    def teardown(self, stage: str) -> None:
        """Last of all, when no progress bar follows: what changed and where everything is."""
        self.ranks.close()
        for sampler in (self.sampler, self.val_sampler):
            sampler.close()
        if self.trainer.is_global_zero:
            early = [getattr(c, "stopping_reason_message", None) for c in self.trainer.early_stopping_callbacks]
            lines = [f"stopped after iteration {self.iteration}: {why}" for why in early if why]
            lines += [*self.validation.changes(), *reporting.places(self.trainer, self.export if stage == "fit" else None)]
            bars.say(self.trainer, "\n".join(["", *lines]))

    # ------------------------------------------------------------------ validation, test, prediction

    def validation_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.ranks.watch(f"validation after iteration {self.iteration}"):
            self.validation.play(step)

    def on_validation_epoch_end(self) -> None:
        self.validation.report()

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def predict_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> Played:
        """Episodes of one piece of a panel; they are written as they come."""
        with self.ranks.watch("prediction"):
            requests = self.requests(step, self.student_sees_skills, training=False)
            episodes = self.play(self.validation.rollout, self.model, requests)
        if self.trainer.is_global_zero:
            reporting.write_episodes(self.trainer, f"predict-{step.panel.name}", episodes, more=batch_idx > 0)
            success = sum(e.success for e in episodes) / len(episodes)
            told = f"{len(episodes)} episodes of {len(step.tasks)} tasks, success {100 * success:.1f} %"
            bars.say(self.trainer, f"{step.panel.name}: {told}")
        return Played(episodes)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        put_state(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng_state = take_state(self, checkpoint)

    def unsaved(self) -> set[str]:
        """Names in the state dict that no checkpoint holds: weights that never change and come from elsewhere."""
        names = set() if self.teacher is None else self.teacher.external()
        others = tuple(f"teacher_networks.{name}." for name in names)
        return self.original() | {k for k in self.state_dict() if k.startswith(others)}

    def original(self) -> set[str]:
        """Names in the state dict of weights that stay as training found them: the frozen copy, and what lies under adapters."""
        frozen = {f"model.{n}" for n, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {k for k in self.state_dict() if k in frozen or k.startswith("initial.")}
