"""Checkpoints: what they hold beside weights and optimizer, when they are written, and that a kill never leaves half a file."""

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from sdar.errors import CheckpointError, ConfigError, PanelError

if TYPE_CHECKING:
    from sdar.module import AgentModule


def put_state(module: "AgentModule", checkpoint: dict[str, Any]) -> None:
    """Add what a run needs beside weights and optimizer to be continued exactly; leave out weights that come from elsewhere."""
    for name in module.unsaved():
        checkpoint.get("state_dict", {}).pop(name, None)
    python = random.getstate()
    checkpoint["sdar"] = {
        "iteration": module.iteration,
        "ranks": {"world": module.ranks.world, "strategy": type(module.trainer.strategy).__name__},
        "env_steps": module.env_steps,
        "seed": module.seed,
        "skipped": module.skipped,
        "panels": {p.name: p.hash for p in module.trainer.datamodule.panels()},
        "retriever": {} if module.retriever is None else module.retriever.state_dict(),
        "metrics": {k: float(v) for k, v in module.trainer.callback_metrics.items()},
        "rng": {"torch": torch.get_rng_state(), "python": [python[0], list(python[1]), python[2]]},
    }


def take_state(module: "AgentModule", checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Undo `put_state`; returns the states of the random generators, which are set when training begins.

    Raises:
        PanelError, CheckpointError: the checkpoint belongs to another run.
    """
    state = checkpoint["sdar"]
    for panel in module.trainer.datamodule.panels():
        stored = state["panels"].get(panel.name)
        if stored is not None and stored != panel.hash:
            raise PanelError(
                f"panel {panel.name!r} has hash {panel.hash}, the checkpoint was made with {stored}: numbers before and after would "
                "be about different tasks. Restore the data settings of the checkpoint's run, or start a new run from its policy."
            )
    module.env_steps = state["env_steps"]
    module.iteration, module.seed, module.skipped = state["iteration"], state["seed"], state["skipped"]
    module.rollout.seed = module.validation.rollout.seed = module.seed
    if module.retriever is not None:
        module.retriever.load_state_dict(state["retriever"])
    now = {"world": module.ranks.world, "strategy": type(module.trainer.strategy).__name__}
    if (then := state["ranks"]) != now:
        rank_zero_info(
            f"the checkpoint was written by {then['world']} rank(s) with {then['strategy']}; {now['world']} with {now['strategy']} go "
            "on from it. Tasks, episodes and their random numbers stay the same; sums are rounded in another order."
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


class RunCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint, ``last.ckpt``, from which ``--ckpt_path last`` continues.

    Lightning counts optimizer steps, of which an iteration may take several or none; this counts iterations.

    Args:
        dirpath: Folder; by default ``<trainer.default_root_dir>/checkpoints``, whatever the logger's version is.
        every_n_iterations: Iterations between two checkpoints. The last iteration of a run is always kept.
    """

    def __init__(self, dirpath: str | None = None, every_n_iterations: int = 1) -> None:
        if every_n_iterations < 1:
            raise ConfigError(
                f"checkpoint.every_n_iterations is {every_n_iterations}: use 1 or more, or switch checkpoints off with "
                "--trainer.enable_checkpointing false."
            )
        super().__init__(dirpath, save_last=True, save_top_k=0, every_n_train_steps=1)
        self.every_n_iterations = every_n_iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.fit_loop.total_batch_idx + 1
        ends = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if ends or done % self.every_n_iterations == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames: whenever the process is killed, a complete file is there.

    Lightning's own writes to the system's temporary folder and moves, which copies, and is cut off by a kill, where that is
    another file system.
    """

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
