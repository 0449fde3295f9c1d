"""One process of a run that plays its rollouts ahead: `python rank_ahead.py OUT KIND...`; see `rank_run`."""

import os
import sys
from pathlib import Path

import rank_run
import torch
from near_servers import Servers
from tiny_policy import TinyPolicy

from sdar.corrections import TruncatedCorrection


class Ahead(rank_run.Watched):
    """Keeps how old the weights of each rollout were."""

    def attempts(self, step):
        episodes = super().attempts(step)
        self.stale = [*getattr(self, "stale", []), self.metrics["rollout/staleness"].total.item()]
        return episodes


def main(out, *kinds):
    os.environ["PL_GLOBAL_SEED"] = "1"
    rank_run.Watched = Ahead
    for kind in kinds:
        sampler = Servers(TinyPolicy(), pause=0.01)
        module = rank_run.strategy(sampler=sampler, rollouts_ahead=1, correction=TruncatedCorrection(1.01), max_mismatch=1e-3)
        run = rank_run.trainer(kind, 6, Path(out).parent)
        run.fit(module, rank_run.data())
        weights = {name: tensor.clone() for name, tensor in module.sharding.full_weights(module.model)}
        if run.global_rank == 0:
            torch.save({"losses": module.losses, "stale": module.stale, "weights": weights}, f"{out}.{kind}")


if __name__ == "__main__":
    main(*sys.argv[1:])
