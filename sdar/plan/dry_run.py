"""Two iterations of a run's own settings with networks of a few thousand numbers, on the CPU, before anything is paid for.

Networks are of the run's own architectures with random weights; tokenizers, world, protocol, method, retriever and gates are its own.
What takes long is cut, and said. An error is the one that `fit` would end with.
"""

import contextlib
import copy
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import PreTrainedConfig

from sdar.data import MultiTaskModule, TaskModule
from sdar.errors import PolicyError, first_line
from sdar.module import AgentModule
from sdar.parts import Judge, Policy, Sampler, SharedWeights, Teacher
from sdar.plan.settings import TextStats, located
from sdar.prefix_tree import PrefixTree
from sdar.registry import part_name
from sdar.samplers import TorchSampler
from sdar.teachers import LiveTeacher
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
    module: AgentModule,
    data: TaskModule,
    precision: str = "32-true",
    configs: str | None = None,
    source: MultiTaskModule | None = None,
) -> tuple[TextStats | None, list[str]]:
    """Run two iterations and one piece of each validation; what their texts were like, and what was cut.

    The settings are put back afterwards; the module itself has been trained and is of no more use.

    Args:
        precision: That of the run; float32 where the CPU has it not.
        configs: As for `sdar.plan.settings.located`.
        source: The run's data, where `data` is one of several worlds: two iterations of that world.
    """
    cut: list[str] = []
    run = source or data
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

        run.bind(module.policy)
        if module.teacher is not None and module.teacher.is_remote:
            put(module, "teacher", at_home(module.teacher))
            cut.append("model.teacher: the policy's own weights stand for those of the servers, which are not asked")
        for number, (owner, name, policy) in enumerate(list(policies(module))):
            put(owner, name, tiny(located(policy, configs), folder / str(number), cut))
        for name in ("sampler", "val_sampler"):
            sampler = getattr(module, name)
            if sampler.own_engine:
                put(module, name, in_process(sampler))
                cut.append(f"model.{name}: TorchSampler instead of {part_name(sampler)}")
        for name in ("sampler", "val_sampler"):
            if hasattr(sampler := getattr(module, name), "max_new_tokens"):
                least(sampler, "max_new_tokens", 16, f"model.{name}.max_new_tokens")
        if source is not None:
            put(source, "tasks_per_step", min(2, source.tasks_per_step))
        for world in run.worlds.values():
            key = f"data.envs.{world.world}" if world.world else "data"
            for owner, name, most, of in (
                (world, "tasks_per_step", 2, key),
                (world, "group_size", 2, key),
                (world, "val_batch", 2, key),
                (world, "val_attempts", 1, key),
                (world, "workers", 1, key),
                (world.env, "horizon", min(8, world.history + 3), f"{key}.env"),
            ):
                least(owner, name, most, f"{of}.{name}")
        least(module, "updates_per_rollout", 2, "model.updates_per_rollout")
        for name, value in (("export", None), ("max_env_steps", None), ("log_episodes_every", 0), ("rows_per_update", None)):
            put(module, name, value)
        if precision.startswith("16"):
            cut.append(f"trainer.precision 32-true instead of {precision}, which CPUs lack")
            precision = "32-true"
        watch = _Watch(module, data)
        undo.callback(module.__dict__.pop, "rows", None)
        given: Any = precision
        trainer = Trainer(
            accelerator="cpu", devices=1, precision=given, max_steps=2 * module.updates_per_rollout, max_epochs=-1,
            limit_val_batches=1, val_check_interval=2, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[watch],
            use_distributed_sampler=False, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=str(folder),
        )  # fmt: skip
        undo.callback(module.sampler.reset)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.fit(module, datamodule=run)
        seen = watch.seen()  # while the settings are still those of the two steps
    return seen, cut


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
            for part in _inner(value):
                if isinstance(part, Teacher | Judge):
                    yield from policies(part, known)


class _StandIn(LiveTeacher):
    """The student's weights, asked for no more than those of a teacher elsewhere could be."""

    is_remote = True


def at_home(teacher: Teacher) -> Teacher:
    """The same teacher, and those that it is made of, of which nobody is asked elsewhere."""
    near = copy.copy(teacher)
    made_of = {name: value for name, value in vars(teacher).items() if any(isinstance(t, Teacher) for t in _inner(value))}
    for name, value in made_of.items():
        setattr(near, name, _each(value, lambda one: at_home(one) if isinstance(one, Teacher) else one))
    if made_of:
        return near
    return _StandIn() if teacher.is_remote else teacher


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(one) for key, one in value.items()}
    return type(value)(map(change, value)) if isinstance(value, list | tuple) else change(value)


def in_process(sampler: Sampler) -> TorchSampler:
    """The sampler of the same density that needs neither engine nor server."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "forbid")
    return TorchSampler(**{name: getattr(sampler, name) for name in names if hasattr(sampler, name)})


def tiny(policy: Policy, folder: Path, cut: list[str]) -> Policy:
    """A policy of the same architecture, tokenizer and settings with a network of a few thousand numbers for each token it knows."""
    inner = {name: value for name, value in vars(policy).items() if isinstance(value, Policy)}
    if inner:  # it stands on others
        small = copy.copy(policy)
        for name, value in inner.items():
            setattr(small, name, tiny(value, folder / name, cut))
        return small
    blueprint = policy.blueprint()
    try:
        tokens = len(policy.load_tokenizer())
    except (OSError, ValueError, ImportError, PolicyError) as error:
        raise PolicyError(
            f"the tokenizer of {policy.name} could not be read ({first_line(error)}): the two steps need it. Put its files beside "
            "config.json, or leave the two steps out (--dry_run false)."
        ) from error
    config = shrunk(blueprint.network.config, tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = type(blueprint.network)(config)
    small = policy.resized(network.to(blueprint.dtype), folder, cut)
    cut.append(f"{policy.name}: {config.num_hidden_layers} layers of width {config.hidden_size}, random weights")
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

    def __init__(self, module: AgentModule, data: TaskModule):
        self.opening = self.answer = self.prompt = self.turns = self.told = 0
        self.prompts, self.count, self.row_tokens, self.scored = 0, 0, 0, 0.0
        self.sampled = self.splits = self.counts = False
        self.module, self.data = module, data
        self.further, self.attempts = 0, set[int]()
        make = module.rows

        def rows(episodes: list[Episode]) -> Batch | None:
            self.look(episodes)
            batch = make(episodes)
            if batch is not None:
                own = batch.attention_mask.sum(1)
                self.row_tokens += int(own.sum())
                if batch.has("teacher_attention_mask"):
                    more = batch.teacher_attention_mask.sum(1) - own
                    self.told = max(self.told, int(more.max()))
                    self.scored -= float(more.sum())  # a pass over a longer row is one pass
            return batch

        module.rows = rows  # type: ignore[method-assign]
        # scoring is counted; a real run's rows are more, and several processes score them before
        module.one_pass = module.scores_late = lambda *_: False  # type: ignore[method-assign,assignment]

    def look(self, episodes: list[Episode]) -> None:
        self.counts = True  # what came before was a check at the start
        self.further = max([self.further, *Counter(e.task.id for e in episodes if e.extra).values()])
        self.attempts.add(sum(not e.extra for e in episodes))
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
        self.splits = self.module.chat.rewrites_history and self.data.layout == "trajectory"
        self.trainer = trainer
        for network in self.module.networks():
            if not isinstance(network, SharedWeights):
                base: Any = network.base_model
                base.register_forward_pre_hook(self.passes, with_kwargs=True)

    def passes(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
        layout = kwargs.get("row_layout")
        if kwargs.get("use_cache") or not isinstance(layout, PrefixTree | None):
            self.sampled |= self.counts and self.trainer.training
        elif self.counts and not torch.is_grad_enabled():
            self.scored += float(kwargs["attention_mask"].sum() if layout is None else layout.tokens_of_rows)

    def seen(self) -> TextStats | None:
        if not self.count or not self.row_tokens:
            return None
        return TextStats(
            opening=self.opening,
            answer=self.answer,
            prompt=self.prompt,
            prompt_mean=self.prompts / self.count,
            turns=self.turns,
            told=max(0, self.told),
            passes=self.scored / self.row_tokens,
            splits=self.splits,
            sampled=self.sampled,
            notes=tuple(self.notes()),
        )

    def notes(self) -> Iterator[str]:
        """Where the run did otherwise than its method and its teacher tell the planner."""
        method, data, teacher = type(self.module).__name__, self.data, self.module.teacher
        if self.further > (told := self.module.extra_attempts(data.group_size)):
            yield (
                f"{method} wanted {self.further} further episodes for a task with {data.group_size} attempts, and its `extra_attempts` "
                f"says {told}: the others are not counted."
            )
        if self.attempts - {planned := data.tasks_per_step * data.group_size}:
            yield (
                f"{method} had {max(self.attempts)} episodes in an iteration of {planned} attempts: its rollouts may be fewer or more than "
                "counted."
            )
        copies = () if teacher is None else teacher.copies()
        held = 0 if teacher is None else len({id(network) for network in teacher.networks().values()})
        if copies is not None and held != len(copies):
            yield f"{part_name(teacher)} holds {held} networks of its own, and its `copies` tells of {len(copies)}."
