"""One process of a run of several: `python rank_run.py OUT STEPS KIND...` trains once with each kind, one after the other.

A kind is a strategy, perhaps with how much of the teacher is asked for or with another policy: ``zero3``, ``zero3-full``. Started with
LOCAL_RANK and MASTER_PORT in the environment, as by any launcher; WORLD says how many processes there are. Rank 0 writes losses,
gradient norms and whole weights after each run. RESUME and SAVE in the environment name checkpoints, SAVE that of half of the steps;
{kind} in them is the kind.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from tiny_policy import TinyPolicy

from sdar import episodes
from sdar.data import TaskModule
from sdar.distributed import FSDP2Strategy, ReplicatedStrategy, ZeROStrategy
from sdar.distributed.sharding import local_shard
from sdar.divergences import JensenShannon, TopKReverseKL
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.lora import LoRAPolicy
from sdar.parts import EpisodeController
from sdar.retrievers import UCBRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import SDAR
from sdar.teachers import EMATeacher
from sdar.training.checkpoints import averages

torch.set_num_threads(1)

STRATEGIES = {
    "one": lambda: "auto",
    "ddp": ReplicatedStrategy,
    "zero1": partial(ZeROStrategy, stage=1, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
    "zero2": partial(ZeROStrategy, stage=2, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
    "offload2": partial(ZeROStrategy, stage=2, offload_optimizer=True),
    "offload3": partial(ZeROStrategy, stage=3, offload_optimizer=True, offload_parameters=True),
    "bf16": partial(ZeROStrategy, stage=3),
    "bf16zero2": partial(ZeROStrategy, stage=2, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
    "fsdp2": FSDP2Strategy,
    "kept2": partial(FSDP2Strategy, reshard_after_forward=False),
    "half2": FSDP2Strategy,
    "sharded3": partial(ZeROStrategy, stage=3, sharded_checkpoint=True),
    "zero3": partial(ZeROStrategy, stage=3, allgather_bucket_size=10**6, reduce_bucket_size=10**6),
}


class Untied(TinyPolicy):
    """With a head of its own; activations are computed again in the backward pass."""

    def load_model(self):
        tied = super().load_model()
        model = type(tied)(type(tied.config)(**tied.config.to_dict() | {"tie_word_embeddings": False}))
        model.load_state_dict(tied.state_dict())
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.train()


PLAIN = {"optimizer": partial(torch.optim.SGD, lr=0.3), "distill_coef": 200.0}
PAYLOADS = {
    "": dict,
    "full": lambda: {"divergence": JensenShannon(), **PLAIN},
    "lora": lambda: {"policy": LoRAPolicy(TinyPolicy(), rank=4, alpha=64.0, target_modules=["q_proj", "down_proj"])},
    "top": lambda: {"divergence": TopKReverseKL(k=5), **PLAIN},
    "slow": lambda: {"optimizer": partial(torch.optim.AdamW, lr=1e-4), "teacher": EMATeacher(0.01, per="iteration")},
    "untied": lambda: {"policy": Untied(), "divergence": JensenShannon(), **PLAIN},
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
        self.stays = set()  # whether a layer is whole between forward and backward

    def on_validation_epoch_end(self):
        played = [e for actors in self.validation._played.values() for of_actor in actors.values() for e in of_actor]
        self.validated.append([[turn.response_ids for turn in e.turns] for e in played])
        super().on_validation_epoch_end()

    def credit(self, batch, episodes):
        """In the second iteration of a slow run nothing is learned from."""
        learns = not (self.iteration == 1 and getattr(self.teacher, "per", "") == "iteration")
        return super().credit(batch, episodes) if learns else None

    def loss(self, part, tokens):
        loss = super().loss(part, tokens)
        self.stays.add(not hasattr(self.model.model.layers[0].mlp.up_proj.weight, "to_local"))
        return loss

    def report(self, episodes):
        self.metrics.sync(self.ranks)
        if self.metrics["train/loss"].count:
            self.losses.append(self.metrics["train/loss"].compute().item())
            self.norms.append(self.metrics["train/grad_norm"].compute().item())
        super().report(episodes)


def strategy(**kwargs):
    settings = {
        "policy": TinyPolicy(),
        "retriever": UCBRetriever(skills="conf/skills/quickstart"),
        "teacher": EMATeacher(0.2),
        "sampler": TorchSampler(max_new_tokens=3),
        "optimizer": partial(torch.optim.AdamW, lr=3e-3),
        "distill_coef": 0.5,
        "log_episodes_every": 1,
        "micro_batch_tokens": 90,
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
    settings |= {"precision": "bf16-mixed"} if kind in ("bf16", "half2", "bf16zero2") else {}
    return Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", strategy=STRATEGIES[kind](), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **settings | kwargs,
    )  # fmt: skip


class KeepsHalfway(Callback):
    """Writes a checkpoint after half of the steps."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        if 2 * trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


def held(module, optimizer):
    """Numbers of weights and optimizer states on this rank."""
    states = [value for values in optimizer.state.values() for value in values.values() if value.dim()]
    return sum(local_shard(tensor).numel() for tensor in [*module.parameters(), *states])


def poison(module, run):
    """The norm of gradients of which the last rank has one that is no number; weights may not change."""
    trained = [p for p in module.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    if run.global_rank == run.world_size - 1:
        local_shard(trained[0].grad).view(-1)[0] = torch.nan
    return float(module.sharding.clip_and_step(run.optimizers[0], 1.0))


def main(out, steps, *kinds):
    os.environ["PL_GLOBAL_SEED"] = "1"
    for name in kinds:
        kind, _, payload = name.partition("-")
        module = strategy(**PAYLOADS[payload](), export=f"{out}.{name}.policy", export_dtype="float32")
        begin, half = (os.environ.get(key, "").format(kind=name) for key in ("RESUME", "SAVE"))
        run = trainer(kind, int(steps), Path(out).parent, callbacks=[KeepsHalfway(half)] if half else [])
        run.fit(module, data(), ckpt_path=begin or None)
        poisoned = poison(module, run) if isinstance(run.strategy, FSDP2Strategy) else 0.0
        weights = {name: tensor.clone() for name, tensor in module.sharding.full_weights(module.model)}
        teacher = {name: tensor.clone() for name, tensor in module.sharding.full_weights(module.teacher.copy)}
        average = averages(module)
        if run.global_rank == 0:
            found = {"losses": module.losses, "norms": module.norms, "weights": weights, "teacher": teacher}
            found["validated"] = module.validated
            found["held"] = 0 if isinstance(run.strategy, ZeROStrategy) else held(module, run.optimizers[0])
            found["stays"], found["poisoned"] = module.stays, poisoned
            stored = episodes.read(Path(out).parent, kind="train")
            learned = {e.iteration for e in stored if any(turn.update is not None for turn in e.turns)}
            numbers = sorted(learned)[-len(module.losses) :]
            found["stored"] = [episodes.recomputed_loss([e for e in stored if e.iteration == n]) for n in numbers]
            found["skills"], found["averages"] = module.retriever.state_dict(), average
            torch.save(found, f"{out}.{name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
