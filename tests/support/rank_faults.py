"""One process of a small run in which something goes wrong: `python rank_faults.py FOLDER STRATEGY FAULT`.

FAULT says where a rank (1, or that of STRUCK in the environment) is struck in its second iteration: ``rollout``, ``update`` and
``checkpoint`` kill it there, ``error`` raises, ``sleep`` stops moving, and ``validation`` raises in the validation behind it. The
others end with exit code 3 and their RankError on the last line.
"""

import os
import signal
import sys
import time
from pathlib import Path

import rank_run
from lightning.pytorch.callbacks import ModelCheckpoint

from sdar.distributed import communicator
from sdar.errors import ContextOverflowError, RankError

DEADLINE = 4.0
communicator.EXPLAIN_S = 3.0
STRUCK = int(os.environ.get("STRUCK", 1))


def strike(fault):
    if fault in ("error", "validation"):
        raise ContextOverflowError("the prompt of task 7 is too long")
    if fault == "sleep":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


class Struck(rank_run.Watched):
    """One rank meets its fate."""

    fault, place = "", ""

    def meets(self, place):
        if self.global_rank == STRUCK and self.iteration == 1 + (place == "validation") and place == self.place:
            strike(self.fault)

    def requests(self, *args, **kwargs):
        self.meets("validation" if self.trainer.validating else "rollout")
        return super().requests(*args, **kwargs)

    def loss(self, part, tokens):
        self.meets("update")
        return super().loss(part, tokens)


class StruckCheckpoint(ModelCheckpoint):
    """Writes after each iteration; one rank is struck on its way into the second."""

    def _save_checkpoint(self, trainer, filepath):
        module = trainer.lightning_module
        if module.global_rank == STRUCK and module.iteration == 2 and module.place == "checkpoint":
            strike(module.fault)
        super()._save_checkpoint(trainer, filepath)


def main(folder, kind, fault):
    os.environ["PL_GLOBAL_SEED"] = "1"
    rank_run.Watched = Struck
    Struck.fault, Struck.place = fault, fault if fault in ("update", "checkpoint", "validation") else "rollout"
    make = rank_run.STRATEGIES[kind]
    rank_run.STRATEGIES[kind] = lambda: make(deadline=DEADLINE)
    keep = StruckCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    run = rank_run.trainer(kind, 10, Path(folder), enable_checkpointing=True, callbacks=[keep])
    try:
        run.fit(rank_run.strategy(), rank_run.data())
    except (RankError, ContextOverflowError) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
