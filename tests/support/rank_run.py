"""One process of a run of several: `python rank_run.py OUT STEPS KIND...` trains once with each kind, one after the other.

A kind is a strategy, perhaps with how much of the teacher is asked for: ``zero3``, ``zero3-full``. Started with LOCAL_RANK and
MASTER_PORT in the environment, as by any launcher; WORLD says how many processes there are. Rank 0 writes losses, gradient norms
and whole weights after each run. RESUME and SAVE in the environment name checkpoints; {kind} in them is the kind.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from sdar.data import TaskModule
from sdar.distributed import ReplicatedStrategy, ZeROStrategy
from sdar.divergences import JensenShannon, TopKReverseKL
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.lora import LoRAPolicy
from sdar.parts import EpisodeController
from sdar.policies import FreshPolicy
from sdar.retrievers import UCBRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import SDAR
from sdar.teachers import EMATeacher

torch.set_num_threads(1)

SIZE = {"hidden_size": 16, "layers": 2, "heads": 2, "key_value_heads": 2, "intermediate_size": 32, "context": 512}
STRATEGIES = {
    "one": lambda: "auto",
    "ddp": ReplicatedStrategy,
    "zero1": partial(ZeROStrategy, stage=1, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
    "zero2": partial(ZeROStrategy, stage=2, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
    "offload2": partial(ZeROStrategy, stage=2, offload_optimizer=True),
    "offload3": partial(ZeROStrategy, stage=3, offload_optimizer=True, offload_parameters=True),
    "bf16": partial(ZeROStrategy, stage=3),
    "sharded3": partial(ZeROStrategy, stage=3, sharded_checkpoint=True),
    "zero3": partial(ZeROStrategy, stage=3, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
}
PLAIN = {"optimizer": partial(torch.optim.SGD, lr=0.3), "distill_coef": 200.0}
PAYLOADS = {
    "": dict,
    "full": lambda: {"divergence": JensenShannon(), **PLAIN},
    "lora": lambda: {"policy": LoRAPolicy(FreshPolicy(HouseholdEnv(), **SIZE), rank=4, alpha=8.0)},
    "top": lambda: {"divergence": TopKReverseKL(k=5), **PLAIN},
}
"""How much of the teacher's distribution is asked for. Where most gradients are rounding, Adam makes whole steps of them."""


class Ragged(EpisodeController):
    """Attempts of one turn beside attempts of the longest."""

    def __call__(self, request, iteration, env):
        request.max_turns = 1 if request.attempt % 3 == 0 else None
        return request


class Watched(SDAR):
    """Keeps what each optimizer step did."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.controller = Ragged()
        self.losses, self.norms, self.validated = [], [], []

    def on_validation_epoch_end(self):
        played = [e for actors in self.validation._played.values() for of_actor in actors.values() for e in of_actor]
        self.validated.append([[turn.response_ids for turn in e.turns] for e in played])
        super().on_validation_epoch_end()

    def report(self, episodes):
        self.tally = self.tally.joined(self.ranks.gather(self.tally, "metrics"))
        self.losses.append(self.tally._sums["train/loss"] / self.tally._counts["train/loss"])
        self.norms.append(self.tally._sums["train/grad_norm"] / self.tally._counts["train/grad_norm"])
        super().report(episodes)


def strategy(**kwargs):
    settings = {
        "policy": FreshPolicy(HouseholdEnv(), **SIZE),
        "retriever": UCBRetriever(skills="conf/skills/quickstart"),
        "teacher": EMATeacher(0.2),
        "sampler": TorchSampler(max_new_tokens=6),
        "optimizer": partial(torch.optim.AdamW, lr=3e-3),
        "distill_coef": 0.5,
        "log_episodes_every": 0,
        "micro_batch_tokens": 100,
        "updates_per_rollout": 2,
        "max_grad_norm": 0.5,
    }
    return Watched(**settings | kwargs)


def data(**kwargs):
    world = HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=4)
    settings = {"tasks_per_step": 1, "group_size": 3, "train_tasks": 12, "val_tasks": 3, "val_splits": ["unseen"]}
    return TaskModule(world, **{"protocol": CompactProtocol(), "layout": "turn", "val_batch": 2} | settings | kwargs)


def trainer(kind, steps, folder, **kwargs):
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "val_check_interval": 2,
        "devices": int(os.environ.get("WORLD", 1)),
    }
    settings |= {"precision": "bf16-mixed"} if kind == "bf16" else {}
    return Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", strategy=STRATEGIES[kind](), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings | kwargs,
    )  # fmt: skip


def main(out, steps, *kinds):
    os.environ["PL_GLOBAL_SEED"] = "1"
    for name in kinds:
        kind, _, payload = name.partition("-")
        module = strategy(**PAYLOADS[payload](), export=f"{out}.{name}.policy", export_dtype="float32")
        run = trainer(kind, int(steps), Path(out).parent)
        begin = os.environ.get("RESUME")
        run.fit(module, data(), ckpt_path=begin and begin.format(kind=name))
        if "SAVE" in os.environ:
            run.save_checkpoint(os.environ["SAVE"].format(kind=name))
        weights = {name: tensor.clone() for name, tensor in module.sharding.weights(module.model)}
        teacher = {name: tensor.clone() for name, tensor in module.sharding.weights(module.teacher.copy)}
        if run.global_rank == 0:
            found = {"losses": module.losses, "norms": module.norms, "weights": weights, "teacher": teacher}
            found["validated"] = module.validated
            found["skills"] = module.retriever.state_dict()
            torch.save(found, f"{out}.{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
