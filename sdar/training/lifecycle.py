"""The life of a run in Lightning's hands: making, training, validating, stopping, saving, exporting."""

import math
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jsonargparse import lazy_instance
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from sdar.corrections import NoCorrection
from sdar.data import Played, TaskBatch, TaskSource
from sdar.distributed.communicator import SINGLE_PROCESS, Communicator, TorchCommunicator
from sdar.distributed.sharding import Sharding, sharding_of
from sdar.episodes.tokens import TokenLog
from sdar.errors import ConfigError, PolicyError, StoppedError, check_least
from sdar.evaluate.validation import Validation
from sdar.metrics.base import EpisodeMetric, RunMetric, own_metrics
from sdar.metrics.means import Metrics
from sdar.metrics.tasks import average
from sdar.parts import Correction, Policy, PrivilegedView, Sampler, SharedWeights
from sdar.precision import placed_on
from sdar.rollout.chat import ChatFormat
from sdar.rollout.groups import by_group, finished
from sdar.samplers import TorchSampler
from sdar.scoring import Head, Scorer
from sdar.teachers import SkillView
from sdar.training import bars, reporting
from sdar.training.checkpoints import fingerprints, put_state, steps_are_done, take_state, validation_follows
from sdar.training.checks import (
    check_first_prompts,
    check_longest_skills,
    check_support,
    check_teacher_context,
    check_teacher_tokens,
    setting_checks,
)
from sdar.training.episode_writer import EpisodeWriter
from sdar.training.export import check_export, write_policy
from sdar.training.heap import peak_memory, return_freed
from sdar.training.lightning_checks import check_optimizer, check_weights_move
from sdar.training.manner import compare_manner, manner, write_manner
from sdar.training.prefetch import Prefetcher
from sdar.training.probe import probe
from sdar.training.progress import Progress
from sdar.training.rescoring import rescore
from sdar.training.stored import StoredBatch
from sdar.training.updating import Updating, fuse
from sdar.types import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lifecycle(Updating):
    """What Lightning calls, beside the training step.

    Args:
        policy: The model that learns.
        sampler: How it acts in training.
        val_sampler: How it acts in validation; by default as in training.
        correction: How much a sampled token counts where the trainer's density is not the one it was sampled from: another engine, or
            older weights.
        max_mismatch: Before training, sampler and trainer are compared on a few hundred tokens; the run ends if their
            log-probabilities differ by more nats than this on average. auto: than is ordinary in the number format that they are computed
            in (0.1 in bfloat16, 0.001 in float32). None: they are not compared.
        rollouts_ahead: 1: while an iteration updates, servers play the attempts of the next one, with the weights from before the
            update. 0: each rollout has the weights of its own iteration.
        optimizer: Called with the trainable parameters.
        lr_scheduler: Called with the optimizer; stepped after every optimizer step.
        updates_per_rollout: Optimizer steps that share one rollout.
        rows_per_update: One optimizer step for this many rows (the last one may have fewer), as verl's mini-batches, instead: how many
            steps a rollout has then follows how many rows it gave. Needs ``updates_per_rollout: 1``. trainer.max_steps counts steps.
        micro_batch_tokens: Most tokens that one forward and backward pass computes; passes that only score may have four times as
            many. Changes memory, never the gradient.
        packed: Rows go through the networks without padding, and what they begin with alike is computed once, in scoring and in the
            update; the gradient is the same. None: wherever a network's attention allows it; true: anything else is an error; false:
            rows are padded.
        max_grad_norm: Gradients are scaled down to this norm.
        max_env_steps: Training ends when the environment has been acted in this often: methods compared at equal interaction. None:
            trainer.max_steps alone ends it.
        max_skipped_steps: Steps in a row that may be skipped because their loss or gradient is not finite.
        max_empty_iterations: Iterations in a row that may end without an optimizer step, because their worlds failed or nothing was
            left to learn from; then the run ends.
        metrics: Metrics of your own, and those of `sdar list metrics`, beside the ones that are always logged.
        log_episodes_every: Write the episodes of the first and every n-th iteration to the run's folder, with what the step knew of each
            token (docs/episodes.md). 1: all; 0: those of validations alone, which are always written.
        log_episodes_mb: Most megabytes that the episodes of the run take on disk; what would be more is not written, and said. None: no
            bound.
        export: Directory that gets the trained policy, as transformers saves it, when training ends; it must not exist yet or be empty.
        export_dtype: Type of the exported weights.
    """

    validation: Validation

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler = lazy_instance(TorchSampler),
        val_sampler: Sampler | None = None,
        correction: Correction = lazy_instance(NoCorrection),
        max_mismatch: float | Literal["auto"] | None = "auto",
        rollouts_ahead: Literal[0, 1] = 0,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
        updates_per_rollout: int = 1,
        rows_per_update: int | None = None,
        micro_batch_tokens: int = 16384,
        packed: bool | None = None,
        max_grad_norm: float = 1.0,
        max_env_steps: int | None = None,
        max_skipped_steps: int = 3,
        max_empty_iterations: int = 20,
        metrics: list[RunMetric] | None = None,
        log_episodes_every: int = 10,
        log_episodes_mb: float | None = 10_000,
        export: str | None = None,
        export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    ):
        super().__init__()
        self.automatic_optimization = False
        check_least("model", 1, updates_per_rollout=updates_per_rollout, rows_per_update=rows_per_update)
        check_least("model", 1, micro_batch_tokens=micro_batch_tokens, max_env_steps=max_env_steps)
        check_least("model", 1, max_empty_iterations=max_empty_iterations)
        check_least("model", 0, max_skipped_steps=max_skipped_steps, log_episodes_every=log_episodes_every)
        check_least("model", 0, max_mismatch=None if max_mismatch == "auto" else max_mismatch)
        check_least("model", 0, log_episodes_mb=log_episodes_mb)
        check_least("model", 1e-12, max_grad_norm=max_grad_norm)
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
        self.ahead = Prefetcher(self)
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.updates_per_rollout, self.rows_per_update = updates_per_rollout, rows_per_update
        self.micro_batch_tokens, self.packed = micro_batch_tokens, packed
        self.max_grad_norm = max_grad_norm
        self.max_env_steps = max_env_steps
        self.max_skipped_steps = max_skipped_steps
        self.token_log = TokenLog()
        self.log_episodes_every, self.log_episodes_mb = log_episodes_every, log_episodes_mb
        self.episode_writer: EpisodeWriter = EpisodeWriter(self)
        self.export, self.export_dtype = export, export_dtype
        self.view: PrivilegedView = SkillView()
        self.model = cast("PreTrainedModel", None)  # until `configure_model`
        self.initial = None
        self.settings: dict[str, Any] = {}  # of the command that runs it, by dotted key
        self.origin: dict[str, str] = {}  # fingerprints of what training started from and keeps
        self.teacher_networks = nn.ModuleDict()
        self.teacher_heads: list[Head] = []
        self.iteration = 0
        self.env_steps = 0
        self.skipped = 0
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.metrics, self.own_metrics = Metrics(), nn.ModuleList(own_metrics(metrics))
        self.last_metrics: dict[str, float] = {}
        """Of the last iteration, by name."""
        self.progress = Progress(self, max_empty_iterations)
        self.ranks: Communicator = SINGLE_PROCESS
        self.sharding = Sharding(self)
        self._rng_state: dict[str, Any] | None = None
        self._asked_to_stop = self.stops = False
        self._said: set[str] = set()

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TaskSource):
            raise ConfigError(
                "a strategy needs tasks: give `data: {class_path: TaskModule, ...}` (or trainer.fit(model, TaskModule(...)))."
            )
        for check in setting_checks(self, data):
            with self.checking():
                check()
        for world in data.worlds.values() if stage == "fit" else ():
            with self.checking():
                self.view.check_tasks(world.env, [i for i in world.train_panel.task_ids if i not in world.left_out])
        self.sharding = sharding_of(self)
        if self.trainer.world_size > 1:
            self.ranks = TorchCommunicator(cast(Any, self.trainer.strategy).deadline)
            self.ranks.check_same(self.trainer.ckpt_path, "the checkpoint to begin from")
        if self.export is not None and stage == "fit" and not cast(Any, self.trainer).fast_dev_run:
            with self.checking(), self.ranks.error_context("the folder of model.export"):
                if self.trainer.is_global_zero:
                    check_export("model.export", self.export)
        data.bind(self.policy, self.retriever)
        tokenizer = self.policy.load_tokenizer()
        with self.checking():
            compare_manner(self.policy, data)
        self.chat = ChatFormat(tokenizer, self.policy.chat_options, self.policy.name, data.tools)
        self.context = self.policy.context()
        for sampler in (self.sampler, self.val_sampler):
            sampler.ranks = self.ranks
            with self.checking():
                sampler.bind(tokenizer, self.chat.stop_ids, self.context)
        self.scorer = Scorer(self.sampler.temperature, self.sampler.forbidden_ids, len(tokenizer), packed=self.packed)
        self.rollout = self.tasks.rollout(self.chat, self.sampler, self.view, self.seed)
        self.rollout.progress = lambda s: bars.note(self.trainer, f"{s.ended}/{s.of} episodes")
        self.validation = Validation(self, self.tasks.rollout(self.chat, self.val_sampler, self.view, self.seed))
        check_first_prompts(self, data)

    def configure_model(self) -> None:
        if self.model is not None:
            return
        with self.sharding.init_context(), placed_on(self.trainer.strategy.root_device):
            self._build()

    def _build(self) -> None:
        self.model = self.policy.load_model()
        self._check_scoring(self.scorer, self.model)
        if self.needs_reference or (self.teacher is not None and self.teacher.needs_initial):
            self.initial = self.policy.frozen(self.model)
        check_support(self)
        if self.teacher is not None:
            self.teacher.prepare(self.model, self.chat.tokenizer, self.policy.name)
            check_teacher_context(self)
            check_teacher_tokens(self)
            check_longest_skills(self)
            self.teacher_networks = nn.ModuleDict(self.teacher.networks())  # here, they lie where and as the others do
            for network in self.teacher.networks().values():
                self._check_scoring(self.teacher_scorer, network)
        self.origin = fingerprints(self.state_dict(), self.original())
        for network in self.networks():
            if not isinstance(network, SharedWeights):
                self.sharding.register(network)

    def _check_scoring(self, scorer: Scorer, network: "PreTrainedModel") -> None:
        """A network that may read rows without padding, and does it wrongly, gets them padded; so do the others."""
        scorer.check(network)
        try:
            scorer.check_packing(network)
        except PolicyError as error:
            if self.packed:
                raise
            rank_zero_warn(f"{error} Rows are padded in this run.")
            self.packed = self.scorer.packed = False

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(p for p in self.model.parameters() if p.requires_grad)
        fuse(optimizer)
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
        for optimizer in self.trainer.optimizers:
            check_weights_move(optimizer)
        if self.max_mismatch is not None and self.plays_attempts:
            with self.ranks.error_context("probe before training"):
                probe(self, self.max_mismatch)

    def _ask_to_stop(self) -> None:
        """Answer at once, with no buffer between: the signal may come while somebody writes to one."""
        if not self._asked_to_stop:
            last = self.iteration if self.trainer.validating else self.iteration + 1
            os.write(2, f"\nSIGTERM: the run stops after iteration {last}, when its checkpoint is written.\n".encode())
        self._asked_to_stop = True

    def on_train_end(self) -> None:
        self.ahead.drop()

    def on_train_batch_end(self, outputs: Any, task_batch: TaskBatch, batch_idx: int) -> None:
        if not validation_follows(self.trainer):
            self._stop_if_asked()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            with self.ranks.error_context():
                self.stops = any(self.ranks.all_gather_object(self._asked_to_stop, "signals"))
            self._stop_if_asked()

    @property
    def ends(self) -> bool:
        """Whether this iteration is the last of a run that counts the worlds' turns or validates at an interval: its end is measured,
        wherever the interval stands."""
        trainer, loop = self.trainer, self.trainer.fit_loop
        if self.max_env_steps is not None and self.env_steps >= self.max_env_steps:
            return True
        if trainer.val_check_batch is None or math.isinf(trainer.val_check_batch):
            return False
        return steps_are_done(trainer) or (
            loop.epoch_loop.batch_progress.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        )

    def _stop_if_asked(self) -> None:
        """Called behind the callbacks, so that the checkpoint is written."""
        if self.stops:
            raise StoppedError(
                f"stopped by SIGTERM after iteration {self.iteration}. Nothing is lost: go on from the checkpoint."
            )

    def on_train_batch_start(self, task_batch: TaskBatch, batch_idx: int) -> None:
        self.token_log.begin(self.episode_writer.wants(self.iteration + 1))
        if self._rng_state is not None:  # not earlier: loaders draw from the global stream when they start
            torch.set_rng_state(self._rng_state["torch"])
            version, internal, gauss = self._rng_state["python"]
            random.setstate((version, tuple(internal), gauss))
            self._rng_state = None

    def on_fit_end(self) -> None:
        """Export the policy."""
        if self.export is not None and not cast(Any, self.trainer).fast_dev_run:
            with self.ranks.error_context("export"):
                weights = self.sharding.full_weights(self.model)
                folder = self.export if self.trainer.is_global_zero else None
                write_policy(self.policy, self.model, weights, folder, self.export_dtype)
                if folder is not None:
                    write_manner(folder, manner(self.policy, self.tasks))

    def teardown(self, stage: str) -> None:
        """Last of all, when no progress bar follows: what changed and where everything is."""
        self.ranks.close()
        for sampler in (self.sampler, self.val_sampler):
            sampler.close()
        if self.trainer.is_global_zero:
            early = [getattr(c, "stopping_reason_message", None) for c in self.trainer.early_stopping_callbacks]
            lines = [f"stopped after iteration {self.iteration}: {why}" for why in early if why]
            lines += [*self.validation.changes(), *reporting.places(self.trainer, stage, self.export)]
            bars.say(self.trainer, "\n".join(["", *lines]))

    def on_validation_start(self) -> None:
        self.validation.begin()

    on_test_start = on_predict_start = on_validation_start

    def validation_step(self, task_batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.ranks.error_context(f"validation after iteration {self.iteration}"):
            self.validation.play(task_batch)
        return_freed()

    def on_validation_epoch_end(self) -> None:
        self.validation.report()

    test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    def predict_step(self, task_batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> Played:
        """Episodes of one piece of a panel; they are written as they come. Stored ones are scored instead of played."""
        if isinstance(task_batch, StoredBatch):
            with self.ranks.error_context("scoring"):
                rescore(cast(Any, self), task_batch, batch_idx)
            return Played([])
        with self.ranks.error_context("prediction"):
            requests = self.requests(task_batch, self.student_sees_skills, training=False)
            self.validation.announce(task_batch, "policy", len(requests))
            episodes = self.play(self.validation.rollout, self.model, requests)
        if self.trainer.is_global_zero:
            self.episode_writer.prediction(episodes, task_batch.panel, batch_idx)
            success = sum(e.success for e in episodes) / len(episodes)
            summary = f"{len(episodes)} episodes of {len(task_batch.tasks)} tasks, success {100 * success:.1f} %"
            bars.say(self.trainer, f"{task_batch.panel.name}: {summary}")
        return Played(episodes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        put_state(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng_state = take_state(self, checkpoint)

    def update_retriever(self, episodes: list[Episode]) -> None:
        """Tell the retriever how each task's attempts went: those that the world let go to an end."""
        if self.retriever is not None:
            for group in by_group(finished(episodes)):
                self.retriever.observe(group[0].task, group[0].retrieval, average(group))

    def report(self, episodes: list[Episode]) -> None:
        """Log the iteration's metrics."""
        bounded = any(world.max_episode_tokens is not None for world in self.tasks.worlds.values())
        tools = {name for name, world in self.tasks.worlds.items() if world.env.has_tools}
        reporting.episodes(self.metrics, episodes, retrieves=self.retriever is not None, bounded=bounded, tools=tools)
        if not self.rollouts_ahead:
            self.count_sampling()
        self.metrics.add("train/iteration", self.iteration)
        self.metrics.add("train/env_steps", self.env_steps)
        if (peak := peak_memory(self.device)) is not None:
            self.metrics.add("memory/peak_gib", peak)
        self.metrics.add("train/lr", cast(LightningOptimizer, self.optimizers()).param_groups[0]["lr"])
        metrics = self.measure(episodes)
        self.last_metrics = {**metrics}
        metrics["step"] = float(self.iteration)  # what loggers number rows by
        shown: dict[str, float] = {k: metrics.pop(k) for k in ("success/train", "reward/mean", "train/loss") if k in metrics}
        self.log_dict(shown, prog_bar=True, batch_size=max(1, len(episodes)))
        self.log_dict(metrics, batch_size=max(1, len(episodes)))
        if self.retriever is not None and self.trainer.is_global_zero:
            reporting.write_retrievals(self.trainer, self.iteration, episodes)

    def write_episodes(self, episodes: list[Episode]) -> None:
        """Write the iteration's episodes when it is their turn, with what the step knew of their tokens."""
        if not self.token_log.wanted:
            return
        kept = self.token_log.take(self.ranks)
        if episodes and self.trainer.is_global_zero:
            self.episode_writer.training(episodes, kept)

    def measure(self, episodes: list[Episode]) -> dict[str, float]:
        """What was measured in this iteration, over all ranks; most metrics start anew then."""
        self.metrics.sync(self.ranks)
        out = self.metrics.compute()
        played = finished(episodes)
        for metric in cast(list[RunMetric], self.own_metrics):
            if isinstance(metric, EpisodeMetric) and played:
                metric.update(played)
            if metric.update_called and not (value := metric.compute()).isnan():
                out[f"{metric.name}/train" if isinstance(metric, EpisodeMetric) else metric.name] = value.item()
            if not metric.cumulative:
                metric.reset()
        return out

    def forward(self, work: Callable[[], Any]) -> Any:
        """Whatever passes through the networks, as one call: strategies of Lightning hang what they do on it."""
        return work()
