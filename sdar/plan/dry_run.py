"""Two iterations of a run's own settings with networks of a few thousand numbers, on the CPU, before anything is paid for.

Networks are of the run's own architectures with random weights; tokenizers, world, protocol, method, retriever and gates are its own.
What takes long is cut, and said. An error is the one that `fit` would end with.
"""

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from sdar.data import TaskModule
from sdar.errors import PolicyError
from sdar.lora import LoRAPolicy
from sdar.module import AgentModule
from sdar.parts import Judge, Policy, Sampler, Teacher
from sdar.plan.settings import Seen, read_config, source_of
from sdar.policies import FreshPolicy, PretrainedPolicy
from sdar.registry import part_name
from sdar.samplers import TorchSampler
from sdar.teachers import LiveTeacher, RoutedTeacher
from sdar.types import Batch, Episode

SIZES = {
    ("hidden_size", "n_embd"): 64,
    ("intermediate_size", "n_inner"): 128,
    ("num_hidden_layers", "n_layer"): 2,
    ("num_attention_heads", "n_head"): 4,
    ("head_dim",): 16,
    ("moe_intermediate_size",): 32,
    ("shared_expert_intermediate_size",): 32,
    ("num_experts", "num_local_experts", "n_routed_experts"): 4,
    ("num_experts_per_tok",): 2,
}
"""What a configuration is shrunk to, where it has more."""


def rehearse(
    module: AgentModule, data: TaskModule, precision: str = "32-true", configs: str | None = None
) -> tuple[Seen | None, list[str]]:
    """Run two iterations and one piece of each validation; what their texts were like, and what was cut.

    The settings are put back afterwards; the module itself has been trained and is of no more use.

    Args:
        precision: That of the run; float32 where the CPU has it not.
        configs: As for `sdar.plan.settings.blueprint`.
    """
    cut: list[str] = []
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sdar-plan-")))

        def put(owner: Any, name: str, value: Any, tell: str | None = None) -> None:
            old = getattr(owner, name)
            if old == value:
                return
            undo.callback(setattr, owner, name, old)
            setattr(owner, name, value)
            if tell:
                cut.append(f"{tell} {value} instead of {old}")

        def least(owner: Any, name: str, value: int, tell: str) -> None:
            put(owner, name, min(getattr(owner, name), value), tell)

        module.policy.meet(data.env)
        if module.teacher is not None and module.teacher.elsewhere:
            put(module, "teacher", at_home(module.teacher))
            cut.append("model.teacher: the policy's own weights stand for those of the servers, which are not asked")
        for number, (owner, name, policy) in enumerate(list(policies(module))):
            put(owner, name, tiny(policy, folder / str(number), configs, cut))
        for name in ("sampler", "val_sampler"):
            sampler = getattr(module, name)
            if sampler.own_engine:
                put(module, name, in_process(sampler))
                cut.append(f"model.{name}: TorchSampler instead of {part_name(sampler)}")
        for name in ("sampler", "val_sampler"):
            if hasattr(sampler := getattr(module, name), "max_new_tokens"):
                least(sampler, "max_new_tokens", 16, f"model.{name}.max_new_tokens")
        for owner, name, most, key in (
            (data, "tasks_per_step", 2, "data.tasks_per_step"),
            (data, "group_size", 2, "data.group_size"),
            (data, "val_batch", 2, "data.val_batch"),
            (data, "val_attempts", 1, "data.val_attempts"),
            (data, "workers", 1, "data.workers"),
            (data.env, "horizon", min(8, data.history + 3), "data.env.horizon"),
            (module, "updates_per_rollout", 2, "model.updates_per_rollout"),
        ):
            least(owner, name, most, key)
        for name, value in (("export", None), ("max_env_steps", None), ("log_episodes_every", 0), ("rows_per_update", None)):
            put(module, name, value)
        if precision.startswith("16"):
            cut.append(f"trainer.precision 32-true instead of {precision}, which CPUs lack")
            precision = "32-true"
        watch = _Watch(module)
        undo.callback(module.__dict__.pop, "rows", None)
        trainer = Trainer(
            accelerator="cpu", devices=1, precision=precision, max_steps=2 * module.updates_per_rollout, max_epochs=-1,
            limit_val_batches=1, val_check_interval=2, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[watch],
            use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(folder),
        )  # fmt: skip
        undo.callback(module.sampler.reset)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(module, datamodule=data)
    return watch.seen(), cut


def policies(owner: Any, known: set[int] | None = None) -> Iterator[tuple[Any, str, Policy]]:
    """Every policy of a run: who has it, under which name, and itself."""
    known = set() if known is None else known
    if id(owner) in known:
        return
    known.add(id(owner))
    for name, value in list(vars(owner).items()):
        if isinstance(value, Policy):
            yield owner, name, value
        else:
            inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            for part in inner:
                if isinstance(part, Teacher | Judge):
                    yield from policies(part, known)


class _StandIn(LiveTeacher):
    """The student's weights, asked for no more than those of a teacher `elsewhere` could be."""

    elsewhere = True


def at_home(teacher: Teacher) -> Teacher:
    """The same teacher, of which nobody is asked elsewhere."""
    if isinstance(teacher, RoutedTeacher):
        routed = copy.copy(teacher)
        routed.routes = {family: at_home(one) for family, one in teacher.routes.items()}
        routed.default = None if teacher.default is None else at_home(teacher.default)
        return routed
    return _StandIn() if teacher.elsewhere else teacher


def in_process(sampler: Sampler) -> TorchSampler:
    """The sampler of the same density that needs neither engine nor server."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "forbid")
    return TorchSampler(**{name: getattr(sampler, name) for name in names if hasattr(sampler, name)})


def tiny(policy: Policy, folder: Path, configs: str | None, cut: list[str]) -> Policy:
    """A policy of the same architecture, tokenizer and settings with a network of a few thousand numbers for each token it knows."""
    if isinstance(policy, LoRAPolicy):
        small = copy.copy(policy)
        small.base = tiny(policy.base, folder, configs, cut)
        return small
    if isinstance(policy, FreshPolicy):
        small = copy.copy(policy)
        heads = min(policy.config["num_attention_heads"], 4)
        groups = policy.config["num_attention_heads"] // policy.config["num_key_value_heads"]
        small.config = policy.config | {
            "hidden_size": 16 * heads,
            "head_dim": 16,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // groups),
            "num_hidden_layers": min(policy.config["num_hidden_layers"], 2),
            "intermediate_size": min(policy.config["intermediate_size"], 128),
        }
        cut.append(f"{policy.name}: 2 layers of width {16 * heads}")
        return small
    if not isinstance(policy, PretrainedPolicy):
        cut.append(f"{type(policy).__name__} as it is: its architecture is not known here")
        return policy
    config = read_config(policy, configs)
    source = source_of(policy, configs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PolicyError(
            f"the tokenizer of {policy.name} could not be read from {source} ({line[:200]}): the two steps need it. Put its files beside "
            "config.json, or leave the two steps out (--dry_run false)."
        ) from error
    small_config = shrunk(config, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(small_config, trust_remote_code=policy.trust_remote_code)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    small = copy.copy(policy)
    small.path = str(folder)
    if policy.attention not in (None, "eager", "sdpa"):
        cut.append(f"{policy.name}: attention sdpa instead of {policy.attention}, which is for GPUs")
        small.attention = None
    cut.append(f"{policy.name}: {small_config.num_hidden_layers} layers of width {small_config.hidden_size}, random weights")
    return small


def shrunk(config: PreTrainedConfig, vocabulary: int) -> PreTrainedConfig:
    """The same kind of model, as small as it goes, with as many positions."""
    small = copy.deepcopy(config.get_text_config())
    groups = max(1, (getattr(small, "num_attention_heads", 4) or 4) // (getattr(small, "num_key_value_heads", None) or 4))
    for names, size in SIZES.items():
        for name in names:
            if getattr(small, name, None):
                setattr(small, name, size if name == "head_dim" else min(size, getattr(small, name)))
    if getattr(small, "num_key_value_heads", None):
        small.num_key_value_heads = max(1, small.num_attention_heads // min(groups, 4))
    if getattr(small, "hidden_size", None) and not getattr(small, "head_dim", None):
        small.hidden_size = 16 * small.num_attention_heads
    if kinds := getattr(small, "layer_types", None):
        small.layer_types = [*dict.fromkeys(kinds), *kinds][: small.num_hidden_layers]
    small.vocab_size = vocabulary
    for name in ("pad_token_id", "bos_token_id"):
        if isinstance(number := getattr(small, name, None), int) and number >= vocabulary:
            setattr(small, name, None)
    return small


class _Watch(Callback):
    """Looks at episodes, rows and passes."""

    def __init__(self, module: AgentModule):
        self.opening = self.answer = self.prompt = self.turns = self.told = 0
        self.prompts, self.count, self.row_tokens, self.scored = 0, 0, 0, 0.0
        self.sampled = self.splits = self.counts = False
        make = module.rows

        def rows(episodes: list[Episode]) -> Batch | None:
            self.look(episodes)
            batch = make(episodes)
            if batch is not None:
                own = batch.attention_mask.sum(1)
                self.row_tokens += int(own.sum())
                if batch.teacher_attention_mask is not None:
                    more = batch.teacher_attention_mask.sum(1) - own
                    self.told = max(self.told, int(more.max()))
                    self.scored -= float(more.sum())  # a pass over a longer row is one pass
            return batch

        module.rows = rows  # type: ignore[method-assign]

    def look(self, episodes: list[Episode]) -> None:
        self.counts = True  # what came before was a check at the start
        for episode in episodes:
            self.turns = max(self.turns, len(episode.turns))
            for number, turn in enumerate(episode.turns):
                size = len(turn.prompt_ids)
                self.prompt, self.prompts, self.count = max(self.prompt, size), self.prompts + size, self.count + 1
                if number == 0:
                    self.opening = max(self.opening, size)
                else:
                    self.answer = max(self.answer, size)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.splits = pl_module.chat.rewrites_history and trainer.datamodule.layout == "trajectory"
        self.trainer = trainer
        for network in pl_module.networks():
            if not hasattr(network, "live"):
                network.base_model.register_forward_pre_hook(self.passes, with_kwargs=True)

    def passes(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("use_cache"):
            self.sampled |= self.counts and self.trainer.training
        elif self.counts and not torch.is_grad_enabled():
            self.scored += float(kwargs["attention_mask"].sum())

    def seen(self) -> Seen | None:
        if not self.count or not self.row_tokens:
            return None
        return Seen(
            opening=self.opening,
            answer=self.answer,
            prompt=self.prompt,
            prompt_mean=self.prompts / self.count,
            turns=self.turns,
            told=max(0, self.told),
            passes=self.scored / self.row_tokens,
            splits=self.splits,
            sampled=self.sampled,
        )
