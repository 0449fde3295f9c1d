"""Lightning's Trainer with the commands of this project that need a configuration and no training loop."""

import os
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor

from sdar import reporting
from sdar.errors import CheckpointError, ConfigError


class AgentTrainer(Trainer):
    """The Trainer of the `sdar` command."""

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str,
        to: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
    ) -> None:
        """Write a checkpoint's policy as a directory that transformers and vLLM read.

        Args:
            ckpt_path: A checkpoint of `fit`, of any strategy and number of ranks; ``last``: the run's last.
            to: The directory, which must not exist yet or be empty.
            dtype: Type of the written weights.
        """
        path = self.checkpoint(ckpt_path)
        if os.path.isdir(to) and os.listdir(to):
            raise ConfigError(f"--to {to} is a directory with something in it: nothing is written over. Give another.")
        model.policy.meet(datamodule.env)
        network = model.policy.load_model()
        stored = {name.removeprefix("model."): v for name, v in read_weights(path).items() if name.startswith("model.")}
        wrong = network.load_state_dict(stored, strict=False)
        if wrong.missing_keys or wrong.unexpected_keys:
            name = (wrong.missing_keys or wrong.unexpected_keys)[0]
            raise CheckpointError(
                f"{path} does not hold the weights of {model.policy.name}: {len(wrong.missing_keys)} are missing and "
                f"{len(wrong.unexpected_keys)} belong nowhere, the first is {name}. Give the configuration of the checkpoint's run."
            )
        reporting.write_policy(model.policy, network, to, dtype)
        print(f"policy:      {to}")

    def checkpoint(self, ckpt_path: str) -> str:
        """The path that is meant.

        Raises:
            CheckpointError: there is nothing.
        """
        folder = next((c.dirpath for c in self.checkpoint_callbacks if getattr(c, "dirpath", None)), None)
        path = str(Path(folder, "last.ckpt")) if ckpt_path == "last" and folder else ckpt_path
        if not os.path.exists(path):
            raise CheckpointError(f"--ckpt_path {ckpt_path}: there is no {path}. Give the path of a checkpoint.")
        return path


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict of a checkpoint: one file, or a directory with the parts of DeepSpeed's ranks."""
    if os.path.isdir(path):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        return get_fp32_state_dict_from_zero_checkpoint(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
