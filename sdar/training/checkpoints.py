"""Checkpoints: what they hold beside weights and optimizer, when they are written, and that a kill never leaves half a file."""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from sdar.arguments import checked
from sdar.errors import CheckpointError, ConfigError, PanelError, SdarError
from sdar.metrics.base import RunMetric
from sdar.parts import Part, Retriever
from sdar.registry import part_name
from sdar.training.checkpoint_files import Written, check_form, read_checkpoint
from sdar.training.host import Host
from sdar.training.resume import asked, merge
from sdar.training.runs import lock


def put_state(module: Host, checkpoint: dict[str, Any]) -> None:
    """Add what a run needs beside weights and optimizer to be continued exactly; leave out weights that come from elsewhere."""
    for name in module.unsaved():
        checkpoint.get("state_dict", {}).pop(name, None)
    python = random.getstate()
    checkpoint["sdar"] = {
        "iteration": module.iteration,
        "ranks": {"world": module.ranks.world_size, "strategy": type(module.trainer.strategy).__name__},
        "env_steps": module.env_steps,
        "seed": module.seed,
        "skipped": module.skipped,
        "origin": module.origin,
        "panels": {p.name: p.hash for p in module.tasks.panels()},
        "averages": averages(module),
        "measured": module.validation.first(),
        "retriever": {} if module.retriever is None else module.retriever.state_dict(),
        "asked": asked(module),
        "settings": module.settings,
        "parts": {name: state for name, part in stateful_parts(module) if (state := part.state_dict())},
        "metrics": {metric.name: dict(metric.metric_state) for metric in going_on(module)},
        "rng": {"torch": torch.get_rng_state(), "python": [python[0], list(python[1]), python[2]]},
    }


def take_state(module: Host, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Undo `put_state`; returns the states of the random generators, which are set when training begins.

    Raises:
        PanelError, CheckpointError: the checkpoint belongs to another run.
    """
    check_form(checkpoint, Written, path := module.trainer.ckpt_path)
    state = checkpoint["sdar"]
    if module.trainer.state.fn == "fit" and "state_dict" in checkpoint and len(checkpoint["optimizer_states"]) != 1:
        raise CheckpointError(
            f"{path} holds the state of {len(checkpoint['optimizer_states'])} optimizers, a run has one: training cannot go on from "
            "it. Take a checkpoint that `sdar fit` wrote, or start a new run from its policy (sdar export)."
        )
    for panel in module.tasks.panels() if module.trainer.state.fn == "fit" else ():  # others may be measured
        stored = state["panels"].get(panel.name)
        if stored is not None and stored not in (panel.hash, panel.whole):
            raise PanelError(
                f"data: panel {panel.name!r} has hash {panel.hash}, the checkpoint was made with {stored}: numbers before and after would "
                "be about different tasks. Restore the data settings of the checkpoint's run, or start a new run from its policy."
            )
    check_origin(state["origin"], module.origin)
    if module.trainer.state.fn == "fit" and (changed := merge(module, checkpoint, path)):
        rank_zero_info("\n  ".join(["settings that are others than in the checkpoint's run:", *changed]))
    if module.trainer.state.fn == "fit":
        module.validation.take_first(state.get("measured", {}))
    module.env_steps = state["env_steps"]
    module.iteration, module.seed, module.skipped = state["iteration"], state["seed"], state["skipped"]
    module.rollout.seed = module.validation.rollout.seed = module.seed
    take_retriever(module, state["retriever"], path)
    take_parts(module, state.get("parts", {}), path)
    take_metrics(module, state.get("metrics", {}), path)
    now = {"world": module.ranks.world_size, "strategy": type(module.trainer.strategy).__name__}
    if (then := state["ranks"]) != now:
        rank_zero_info(
            f"the checkpoint was written by {then['world']} rank(s) with {then['strategy']}; {now['world']} with {now['strategy']} go "
            "on from it. Tasks, episodes and their random numbers stay the same; sums are rounded in another order."
        )
    copies = dict(module.teacher_networks.named_parameters())
    for name, average in state["averages"].items():
        cast(Any, copies[name]).average = (
            module.sharding.shard(copies[name], average) if "state_dict" in checkpoint else average
        )
    if "state_dict" in checkpoint:  # otherwise the strategy keeps weights in files of its own
        ours, unsaved = module.state_dict(), module.unsaved()
        checkpoint["state_dict"] |= {name: ours[name] for name in unsaved}
        if any(name.startswith("teacher_networks.") and name not in checkpoint["state_dict"] for name in ours):
            raise CheckpointError(
                f"the checkpoint holds no weights for {type(module.teacher).__name__}: it was made with another teacher, and going on "
                "would silently start from a copy of the student. Use the teacher of the checkpoint's run."
            )
    return state["rng"]


def take_retriever(module: Host, state: dict[str, Any], path: Any) -> None:
    """Give the retriever the state that was kept of it; one of another kind is refused."""
    retriever = module.retriever
    learns = retriever is not None and type(retriever).load_state_dict is not Retriever.load_state_dict
    if (state and not learns) or (retriever is not None and learns and not state and retriever.state_dict()):
        raise CheckpointError(
            f"{path} holds {'the state of a retriever that learns' if state else 'no state of a retriever'}, and this run has "
            f"{'no retriever' if retriever is None else part_name(retriever)}{'' if learns else ', which has none'}: what was learned "
            "about skills would be lost. Use the retriever of the checkpoint's run, or start a new run from its policy (sdar export)."
        )
    if retriever is not None and learns:
        take_part(retriever, state, path)


def take_parts(module: Host, states: dict[str, Any], path: Any) -> None:
    """Give each other part that learns the state that was kept of it.

    Raises:
        CheckpointError: a state that no part of this run takes, or none of a part that has learned something from its start on.
    """
    parts = dict(stateful_parts(module))
    learning = {name for name, part in parts.items() if type(part).load_state_dict is not Part.load_state_dict}
    wrong = sorted((states.keys() - learning) | {name for name in learning - states.keys() if parts[name].state_dict()})
    if wrong:
        name, part = wrong[0], parts.get(wrong[0])
        has = "no such part" if part is None else part_name(part) + ("" if name in learning else ", which takes none")
        raise CheckpointError(
            f"{path} holds {'the' if name in states else 'no'} state of model.{name}, and this run has {has}: what was learned would be "
            "lost. Use the parts of the checkpoint's run, or start a new run from its policy (sdar export)."
        )
    for name, state in states.items():
        take_part(parts[name], state, path)


def going_on(module: Host) -> list[RunMetric]:
    """The metrics that are about the whole run."""
    return [m for m in module.own_metrics if isinstance(m, RunMetric) and m.cumulative]


def take_metrics(module: Host, states: dict[str, dict[str, Any]], path: Any) -> None:
    """Give the metrics that go on over the run what they had gathered; one that is new begins now.

    Raises:
        CheckpointError: a state that no metric of this run takes.
    """
    known = {metric.name: metric for metric in going_on(module)}
    for name, state in states.items():
        metric = known.get(name)
        if metric is None or metric.metric_state.keys() != state.keys():
            has = "no such metric" if metric is None else f"one whose states are {', '.join(metric.metric_state)}"
            raise CheckpointError(
                f"{path} holds what the metric {name!r} gathered ({', '.join(state)}), and model.metrics of this run has {has}: its number "
                "would begin anew in the middle of the run. Use the metrics of the checkpoint's run."
            )
        metric.merge_state(state)


def take_part(part: Part, state: dict[str, Any], path: Any) -> None:
    """Give a part its state; one that it cannot take is told."""
    try:
        part.load_state_dict(state)
    except SdarError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path}: {part_name(part)} cannot take the state that was kept of it ({type(error).__name__}: {error}). Use the "
            "part of the checkpoint's run."
        ) from error


def stateful_parts(module: Host) -> list[tuple[str, Part]]:
    """The parts of a strategy and their parts, by the path of attributes that leads to each; not the retriever."""
    found: list[tuple[str, Part]] = []
    seen = {id(module.retriever)}

    def look(path: str, value: Any) -> None:
        if isinstance(value, list | tuple):
            for number, item in enumerate(value):
                look(f"{path}.{number}", item)
        elif isinstance(value, Part) and id(value) not in seen:
            seen.add(id(value))
            found.append((path, value))
            for name, inner in sorted(vars(value).items()):
                look(f"{path}.{name}", inner)

    for name, value in sorted(vars(module).items()):
        look(name, value)
    return found


def averages(module: Host) -> dict[str, Tensor]:
    """What teachers know more exactly than their copies hold it: whole, or this rank's parts where the ranks write parts."""
    parts = getattr(module.trainer.strategy, "sharded_checkpoint", False)
    out = {}
    for name, copy in module.teacher_networks.named_parameters():
        if (average := getattr(copy, "average", None)) is not None:
            average = average if parts else module.sharding.unshard(copy, average)
            if parts or module.trainer.is_global_zero:
                out[name] = average.cpu()
    return out


def fingerprints(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, str]:
    """For each network among the names its own: another one when a weight is another one, the same in every type that holds it as
    exactly as bfloat16 does."""
    digests: dict[str, Any] = defaultdict(hashlib.sha256)
    for name in sorted(names):
        bits = weights[name].to(torch.bfloat16).view(torch.int16).sum(dtype=torch.int64)
        digests[name.partition(".")[0]].update(f"{name} {tuple(weights[name].shape)} {int(bits)} ".encode())
    return {network: digest.hexdigest()[:16] for network, digest in digests.items()}


def check_origin(stored: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise CheckpointError unless weights that no checkpoint holds are those of the checkpoint's run, by their fingerprints."""
    for network in stored.keys() & here.keys():
        if stored[network] != here[network]:
            raise CheckpointError(
                f"the weights that training started from have the fingerprint {here[network]}, those of the checkpoint's run had "
                f"{stored[network]}: its adapters or its reference stand on other weights. Restore model.policy of that run."
            )


def steps_are_done(trainer: Trainer) -> bool:
    """Has the run taken all optimizer steps that it was to take?"""
    return 0 <= trainer.max_steps <= trainer.global_step


def validation_follows(trainer: Trainer) -> bool:
    """Does Lightning validate after the iteration that has just ended?"""
    return trainer.fit_loop.epoch_loop._should_check_val_fx(cast(Any, trainer.fit_loop._data_fetcher))


@checked
class RunCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint, ``last.ckpt``, from which ``--ckpt_path last`` continues.

    Lightning counts optimizer steps, of which an iteration may take several or none; this counts iterations. An iteration that is
    followed by a validation is kept when that is over: whoever goes on from it has seen both or repeats both. While a run trains, no
    other one writes to its folder; the checkpoint of an earlier run in a `dirpath` becomes ``earlier-1.ckpt``.

    Args:
        dirpath: Folder; by default ``checkpoints`` in the run's own.
        every_n_iterations: Iterations between two checkpoints. The last iteration of a run is always kept.
    """

    def __init__(self, dirpath: str | None = None, every_n_iterations: int = 1) -> None:
        if every_n_iterations < 1:
            raise ConfigError(
                f"checkpoint.every_n_iterations is {every_n_iterations}: use 1 or more, or switch checkpoints off with "
                "--trainer.enable_checkpointing false."
            )
        super().__init__(dirpath, save_last=True, save_top_k=0, every_n_train_steps=1, enable_version_counter=False)
        self.every_n_iterations = every_n_iterations
        self._due = False
        self._kept = -1
        self._held: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints")
        super().setup(trainer, pl_module, stage)  # all ranks get the first one's

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: a run that goes on knows its folder, and one that begins from another's checkpoint has kept none yet."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._kept = cast(Host, pl_module).iteration
        if cast(Any, trainer).fast_dev_run or not trainer.is_global_zero:
            return
        folder = Path(self.dirpath or ".")
        self._held = lock(folder)
        last = folder / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
        if last.exists() and not _goes_on_from(trainer.ckpt_path, last):
            aside = next(p for n in count(1) if not (p := last.with_name(f"earlier-{n}.ckpt")).exists())
            os.replace(last.resolve(), aside)  # a link leads to a folder
            last.unlink(missing_ok=True)
            rank_zero_info(f"{last} is of an earlier run: it is {aside} from now on.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        ends = trainer.should_stop or cast(Host, pl_module).stops or steps_are_done(trainer)
        self._due = ends or done % self.every_n_iterations == 0
        if not validation_follows(trainer):
            self._keep(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._due |= trainer.should_stop  # whoever watches a metric has just said so
            self._keep(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due = self._kept < cast(Host, pl_module).iteration  # epochs or time ended the run
        self._keep(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)
            self._kept = cast(Host, pl_module).iteration

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _goes_on_from(begun_from: Any, last: Path) -> bool:
    """Whether a run was begun from the checkpoint that it will write over."""
    return begun_from is not None and os.path.realpath(begun_from) == os.path.realpath(last)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: whenever the process is killed, a complete file is there. Ranks of a machine that read
    it share its memory.

    Lightning's own writes to the system's temporary folder and moves, which copies, and is cut off by a kill, where that is
    another file system.
    """

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)  # whatever Lightning asks for: it would run what a file from a URL holds

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = f"{path}.part"
        with open(part, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
