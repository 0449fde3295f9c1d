"""One process of a run whose teacher is behind servers: `python rank_served.py OUT KIND TEACHER [URL...]`; see `rank_run`.

Without a URL the teacher's directory is loaded in the process.
"""

import os
import sys
from functools import partial
from pathlib import Path

import rank_run
import torch

from sdar.divergences import TopKReverseKL
from sdar.policies import PretrainedPolicy
from sdar.teachers import ExternalTeacher, ServedTeacher


def main(out, kind, folder, *urls):
    os.environ["PL_GLOBAL_SEED"] = "1"
    here = ExternalTeacher(PretrainedPolicy(folder, dtype="float32"))
    teacher = ServedTeacher(list(urls), request_tokens=200, pause=0.05) if urls else here
    optimizer = partial(torch.optim.SGD, lr=0.3)
    module = rank_run.strategy(teacher=teacher, divergence=TopKReverseKL(k=5), distill_coef=20.0, optimizer=optimizer)
    run = rank_run.trainer(kind, 4, Path(out).parent)
    run.fit(module, rank_run.data())
    weights = {name: tensor.clone() for name, tensor in module.sharding.full_weights(module.model)}
    asked = teacher.network.fleet.counts["requests"] if urls else 0
    Path(f"{out}.asked.{run.global_rank}").write_text(str(asked))
    if run.global_rank == 0:
        torch.save({"losses": module.losses, "weights": weights}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
