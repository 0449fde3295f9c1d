"""One process of a run of supervised fine-tuning: `python rank_sft.py OUT FILE HELD_OUT KIND...` learns from a file with each kind.

Kinds are those of `rank_run.py`. Rank 0 writes the losses, what the held-out conversations cost, and whole weights.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from rank_run import trainer
from tiny_policy import TinyPolicy

from sdar.data import ChatModule
from sdar.strategies import SFT


class Told(SFT):
    """Keeps what each iteration told."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.told = []

    def report(self, episodes):
        self.metrics.sync(self.ranks)
        self.told.append(self.metrics["train/loss"].compute().item())
        super().report(episodes)


def main(out, file, held_out, *kinds):
    for kind in kinds:
        optimizer = partial(torch.optim.AdamW, lr=3e-3)
        module = Told(policy=TinyPolicy(), optimizer=optimizer, micro_batch_tokens=60, packed=kind != "ddp")
        run = trainer(kind, 3, Path(out).parent)
        run.fit(module, ChatModule([file], [held_out], tasks_per_step=5))
        weights = {name: tensor.clone() for name, tensor in module.sharding.full_weights(module.model)}
        if run.global_rank == 0:
            cost = {name: float(value) for name, value in run.callback_metrics.items() if name.endswith("held_out")}
            torch.save({"losses": module.told, "held_out": cost, "weights": weights}, f"{out}.{kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
