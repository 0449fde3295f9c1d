"""What the settings of a run say about it: sizes of its networks, how it is launched, what an iteration does.

Nothing is allocated and no weight is read: sizes come from ``config.json``, and from the architecture on torch's meta device.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from sdar.distributed import FSDP2Strategy
from sdar.errors import ConfigError, PolicyError
from sdar.lora import LoRAPolicy
from sdar.parts import Judge, Policy, Teacher
from sdar.plan.run import Architecture, Launch, Network, Run, Work
from sdar.policies import DTYPES, FreshPolicy, PretrainedPolicy
from sdar.samplers import VLLMSampler
from sdar.teachers.weights import ExternalTeacher, FollowingTeacher, RoutedTeacher

if TYPE_CHECKING:
    from sdar.data import TaskModule
    from sdar.module import AgentModule

VLLM_DEFAULT_SHARE = 0.9
"""Of a GPU's memory."""


def launch_of(given: Mapping[str, Any], strategy: object) -> Launch:
    """What settings of a Trainer mean.

    Args:
        given: ``devices``, ``num_nodes`` and ``precision``; devices that are counted when the run starts (auto, -1) are taken to be one.
        strategy: A strategy, or ``auto``.

    Raises:
        ConfigError: several processes with a strategy that runs cannot have.
    """
    devices = given["devices"]
    counted = devices in ("auto", "-1", -1)
    if isinstance(devices, str):
        named = [d for d in devices.split(",") if d.strip()]
        devices = [*named] if "," in devices else 1 if devices == "auto" else int(devices)
    each = len(devices) if isinstance(devices, list) else max(1, devices)
    nodes = int(given["num_nodes"])
    ranks, precision = each * nodes, _precision(given["precision"])
    if isinstance(config := getattr(strategy, "config", None), dict) and hasattr(strategy, "sharding"):
        zero = config.get("zero_optimization") or {"stage": 0}
        return Launch(
            "zero",
            int(zero.get("stage", 2)),
            ranks,
            nodes,
            precision,
            bool(zero.get("offload_optimizer")),
            bool(zero.get("offload_param")),
            int(zero.get("reduce_bucket_size", Launch.bucket)),
            bool(zero.get("overlap_comm", Launch.overlap)),
            counted,
        )
    if isinstance(strategy, FSDP2Strategy):
        stays = not strategy.reshard_after_forward
        return Launch("fsdp", 3, ranks, nodes, precision, counted=counted, stays=stays)
    if ranks > 1 and not hasattr(strategy, "sharding"):
        raise ConfigError(
            f"trainer.strategy is {strategy if isinstance(strategy, str) else type(strategy).__name__} with {ranks} processes: steps have "
            "several backward passes here. Use ddp, fsdp2, or deepspeed_stage_1, _2 or _3."
        )
    return Launch("ddp" if ranks > 1 else "one", 0, ranks, nodes, precision, counted=counted)


def _precision(given: object) -> str:
    """Lightning's full name of a precision."""
    short = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    return short.get(str(given), str(given))


# ------------------------------------------------------------------ sizes of a network


def blueprint(policy: Policy, configs: str | None = None) -> tuple[PreTrainedModel, int]:
    """The network of a policy without its weights (on the meta device), and the numbers of its adapters.

    Args:
        configs: Folder that is looked at before the hub: ``<configs>/<hub id>/config.json``.

    Raises:
        PolicyError: the sizes cannot be read.
        ConfigError: a policy of an unknown kind.
    """
    if isinstance(policy, LoRAPolicy):
        network, _ = blueprint(policy.base, configs)
        layers = dict(network.named_modules())
        sizes = [layers[name] for name in policy._targets(network)]
        return network, sum(policy.rank * (layer.in_features + layer.out_features) for layer in sizes)
    if isinstance(policy, FreshPolicy):
        config = Qwen3Config(vocab_size=len(policy.load_tokenizer()), tie_word_embeddings=True, **policy.config)
        with torch.device("meta"):
            return Qwen3ForCausalLM(config), 0
    if isinstance(policy, PretrainedPolicy):
        config = read_config(policy, configs)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=policy.trust_remote_code), 0
    raise ConfigError(
        f"{type(policy).__name__} is a policy whose sizes `sdar plan` cannot tell without loading it. Give the PretrainedPolicy or "
        "FreshPolicy that it resembles for planning: --model.policy PretrainedPolicy --model.policy.path ..."
    )


def read_config(policy: PretrainedPolicy, configs: str | None = None) -> PreTrainedConfig:
    """Its ``config.json``: from `configs`, a directory, the hub's cache or the hub.

    Raises:
        PolicyError: it is nowhere.
    """
    try:
        return AutoConfig.from_pretrained(source_of(policy, configs), trust_remote_code=policy.trust_remote_code)
    except (OSError, ValueError) as error:
        if Path(policy.path).is_dir():
            raise PolicyError(f"{policy.path}/config.json cannot be used: {_first_line(error)}") from error
        raise PolicyError(
            f"the sizes of {policy.name} could not be read: there is no such directory here, and the hub was not reached or does not "
            f"have it ({_first_line(error)}). Its config.json is enough, no weights are read: put it to "
            f"FOLDER/{policy.name}/config.json (its tokenizer's files beside it, unless --dry_run false) and give --configs FOLDER, "
            f"or run `hf download {policy.name} --include '*.json'` where the hub can be reached."
        ) from error


def source_of(policy: PretrainedPolicy, configs: str | None) -> str:
    """Where configuration and tokenizer are read from."""
    local = Path(configs, policy.name) if configs else None
    return str(local) if local and (local / "config.json").is_file() else policy.path


def architecture_of(network: PreTrainedModel, name: str, context: int | None = None) -> Architecture:
    """Its sizes."""
    config = network.config.get_text_config()

    def size(*names: str, default: int | None = None) -> int:
        value = next((v for n in names if (v := getattr(config, n, None)) is not None), default)
        if value is None:
            raise PolicyError(
                f"the configuration of {name} ({type(config).__name__}) has none of {', '.join(names)}: its memory cannot be told."
            )
        return int(value)

    head = network.get_output_embeddings()
    parameters = {id(p): p for p in network.parameters()}
    total = sum(p.numel() for p in parameters.values())
    heads, hidden = size("num_attention_heads", "n_head"), size("hidden_size", "n_embd")
    experts, chosen = (
        size("num_experts", "num_local_experts", "n_routed_experts", default=0),
        size("num_experts_per_tok", default=0),
    )
    idle = 0
    width = size("intermediate_size", "n_inner", default=4 * hidden)
    if experts and chosen:
        routed = sum(p.numel() for n, p in network.named_parameters() if ".experts." in n)
        idle = routed - routed * chosen // experts
        width = chosen * size("moe_intermediate_size", "intermediate_size")
    embeddings = {id(m.weight) for m in (network.get_input_embeddings(), head)}
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and id(m.weight) not in embeddings]
    return Architecture(
        name=name,
        kind=type(network).__name__,
        parameters=total,
        active=total - idle,
        linear=sum(layer.weight.numel() for layer in layers),
        sides=sum(layer.in_features + layer.out_features for layer in layers),
        hidden=hidden,
        layers=size("num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=size("num_key_value_heads", default=heads),
        head_dim=size("head_dim", default=hidden // heads),
        intermediate=width,
        vocab=head.weight.shape[0],
        context=context or size("max_position_embeddings", "n_positions"),
        qk_norm=any(n.endswith("q_norm") for n, _ in network.named_modules()),
        tied=head.weight is network.get_input_embeddings().weight,
    )


def network_of(policy: Policy, role: str, configs: str | None = None, trains: bool = False, sharded: bool = True) -> Network:
    """A policy's network, in the type that it is loaded in."""
    model, adapters = blueprint(policy, configs)
    base = policy.base if isinstance(policy, LoRAPolicy) else policy
    dtype = DTYPES[base.dtype] if isinstance(base, PretrainedPolicy) else torch.float32
    architecture = architecture_of(model, policy.name)
    trained = (adapters or architecture.parameters) if trains else 0
    return Network(role, architecture, dtype.itemsize, adapters, trained, sharded)


def optimizer_numbers(optimizer: Callable[..., Any]) -> float:
    """Numbers that an optimizer keeps for each trained one, found by a step on a small matrix."""
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    made = optimizer([weight])
    made.step()
    return sum(v.numel() for v in made.state[weight].values() if torch.is_tensor(v) and v.numel() > 1) / weight.numel()


# ------------------------------------------------------------------ what a run is


@dataclass(frozen=True)
class Seen:
    """What two steps with tiny models told about the texts of a run, in tokens of its own tokenizer."""

    opening: int
    """The longest first prompt of an episode."""
    answer: int
    """The longest answer of the world, with what the template puts around it."""
    prompt: int
    """The longest prompt of all."""
    prompt_mean: float
    turns: int
    """Turns of the longest episode that was seen."""
    told: int
    """Tokens that the teacher's longest row had more."""
    passes: float
    """Scoring passes over the rows' tokens, all networks together."""
    splits: bool
    sampled: bool
    """Whether a network played."""


def describe(
    module: "AgentModule",
    data: "TaskModule",
    launch: Launch,
    seen: Seen | None = None,
    row_tokens: int | None = None,
    turns: float | None = None,
    response_tokens: float | None = None,
    configs: str | None = None,
) -> Run:
    """Read off what a run with these settings holds and does.

    Args:
        seen: What its texts are like.
        row_tokens: Tokens of the longest row; by default from `seen`, or the policy's context.
        turns, response_tokens: Means that are expected; by default the most that the settings allow.
    """
    notes = []
    policy = network_of(module.policy, "policy", configs, trains=True)
    base = module.policy.base if isinstance(module.policy, LoRAPolicy) else module.policy
    own, teacher = type(module), module.teacher
    others = []
    if module.needs_reference or (teacher is not None and teacher.needs_initial):
        if isinstance(module.policy, LoRAPolicy):
            notes.append("The initial weights are the policy's with its adapters off: no copy.")
        else:
            others.append(replace(policy, role="initial copy", trained=0))
    for part in _teachers(teacher):
        if isinstance(part, FollowingTeacher):
            averages = getattr(part, "rate", 1) < 1
            role = f"{type(part).__name__}'s copy"
            others.append(replace(policy, role=role, trained=0, follows=True, averages=averages))
        elif part.elsewhere:
            notes.append(
                f"{type(part).__name__}: its servers hold and run the teacher; neither their memory nor their time is counted."
            )
        elif isinstance(part, ExternalTeacher):
            others.append(network_of(part.policy, f"teacher {part.policy.name}", configs))
        elif type(part).networks is not Teacher.networks:
            notes.append(f"{type(part).__name__} has networks of its own that are not counted here.")
    for name, judge in vars(module).items():
        if isinstance(judge, Judge) and isinstance(getattr(judge, "policy", None), Policy):
            others.append(network_of(judge.policy, f"{name} {judge.policy.name}", configs, sharded=False))
    try:
        state = optimizer_numbers(module.optimizer)
    except Exception as error:  # one for GPUs only, say
        state = 2.0
        notes.append(f"The optimizer made no step here ({_first_line(error)}): two numbers for each weight are assumed.")
    work = work_of(module, data, policy.architecture.context, seen, row_tokens, turns, response_tokens)
    if own.collect is not _agent_module().collect:
        what = "rollouts may be fewer or more" if work.plays else "no network plays them"
        notes.append(f"{own.__name__} collects its episodes in a way of its own: {what}.")
    if seen is None:
        notes.append(f"Nothing is known of the texts: every row is taken to have {work.row} tokens.")
    else:
        notes.append(
            f"Prompts are as long as in the two steps, whose longest episode had {seen.turns} of {data.env.horizon} turns; responses as "
            "long as model.sampler.max_new_tokens, if nothing else is given."
        )
    if work.layout == "trajectory" and work.splits:
        notes.append("The chat template tells the past otherwise than it was said: up to one row for each turn.")
    return Run(
        policy,
        tuple(others),
        launch,
        work,
        state,
        bool(getattr(base, "gradient_checkpointing", False)),
        head_trained=not policy.adapters,
        key="" if not isinstance(base, PretrainedPolicy) else "model.policy" if base is module.policy else "model.policy.base",
        notes=tuple(notes),
    )


def work_of(
    module: "AgentModule",
    data: "TaskModule",
    context: int,
    seen: Seen | None = None,
    row_tokens: int | None = None,
    turns: float | None = None,
    response_tokens: float | None = None,
) -> Work:
    """What an iteration of these settings does at most (at these means, where they are given)."""
    sampler, horizon = module.sampler, data.env.horizon
    most = int(getattr(sampler, "max_new_tokens", 512))
    for name, value, bound in (("turns", turns, horizon), ("response_tokens", response_tokens, most)):
        if value is not None and not 0 < value <= bound:
            what = "data.env.horizon" if name == "turns" else "model.sampler.max_new_tokens"
            raise ConfigError(f"--{name} is {value:g}: a mean lies above 0 and is at most {bound}, which {what} allows.")
    if row_tokens is not None and not most < row_tokens <= context:
        raise ConfigError(
            f"--row_tokens is {row_tokens}: a row holds a prompt and a response of up to {most} tokens, and fits the context of {context}."
        )
    taken = max(1, round(turns or horizon))
    said = max(1, round(response_tokens or most))
    splits = seen is not None and seen.splits
    one_row = data.layout == "trajectory" and not splits
    if seen is None:
        row = row_tokens or context
        usual, prompt = float(row), row - most
    elif one_row:
        row = row_tokens or min(context, seen.opening + horizon * most + (horizon - 1) * seen.answer)
        usual = min(row, seen.opening + taken * said + (taken - 1) * seen.answer)
        prompt = max(seen.opening, seen.answer)
    else:
        row = row_tokens or min(context, seen.prompt + most)
        usual, prompt = min(row, seen.prompt_mean + said), min(seen.prompt, row - most)
    extra = 0
    if type(module).extra_requests is not _agent_module().extra_requests:
        extra = data.tasks_per_step * min(data.group_size, int(getattr(module, "privileged_attempts", data.group_size)))
    passes: dict[str, float] = {}
    if type(module).score is _agent_module().score:
        passes["policy"] = 1.0
        if module.needs_reference:
            passes["reference"] = 1.0
        if module.teacher is not None:
            passes["teacher"] = 1.0
        if seen is not None and seen.passes > sum(passes.values()) + 0.25:  # rows of teachers are a little longer
            passes["further"] = float(round(seen.passes - sum(passes.values()), 1))
        if module.teacher is not None and module.teacher.elsewhere:
            del passes["teacher"]  # a stand-in made it
    elif seen is not None and seen.passes:
        passes["policy"] = float(round(seen.passes, 1))
    vllm = isinstance(sampler, VLLMSampler)
    work = Work(
        tasks=data.tasks_per_step,
        attempts=data.group_size,
        extra=extra,
        turns=taken,
        response=said,
        layout=data.layout,
        splits=splits,
        row=row,
        row_mean=usual,
        prompt=prompt,
        told=seen.told if seen else 0,
        updates=module.updates_per_rollout,
        micro_batch=module.micro_batch_tokens,
        passes=passes,
        plays=seen is None or seen.sampled,
        in_process=not sampler.own_engine,
        together=int(getattr(sampler, "batch_size", 256)),
        measured=data.val_batch * data.val_attempts if not module.val_sampler.own_engine else 0,
        truncates=bool(getattr(sampler, "top_k", 0)) or getattr(sampler, "top_p", 1.0) < 1.0,
        engine=(sampler.memory or VLLM_DEFAULT_SHARE) if vllm else 0.0,
        payload=module.payload.value,
        support=module.support,
    )
    rows = module.rows_per_update
    return work if rows is None else replace(work, updates=math.ceil(work.rows / rows))


def _teachers(teacher: Teacher | None) -> Iterator[Teacher]:
    if isinstance(teacher, RoutedTeacher):
        for one in {id(t): t for t in (*teacher.routes.values(), teacher.default)}.values():
            yield from _teachers(one)
    elif teacher is not None:
        yield teacher


def _agent_module() -> type["AgentModule"]:
    from sdar.module import AgentModule

    return AgentModule


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
