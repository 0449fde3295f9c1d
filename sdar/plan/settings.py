"""What the settings of a run say about it: sizes of its networks, how it is launched, what an iteration does.

Nothing is allocated and no weight is read: sizes come from ``config.json``, and from the architecture on torch's meta device.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sdar.errors import ConfigError, PolicyError, first_line
from sdar.parts import Blueprint, Judge, Policy
from sdar.plan.run import Architecture, Launch, Network, Run, Work
from sdar.registry import part_name

if TYPE_CHECKING:
    from sdar.data import TaskModule
    from sdar.module import AgentModule


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
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if ranks > 1 and not hasattr(strategy, "sharding"):
        raise ConfigError(
            f"trainer.strategy is {name} with {ranks} processes: steps have several backward passes here. Use ddp, fsdp2, or "
            "deepspeed_stage_1, _2 or _3."
        )
    if ranks > 1 and not hasattr(strategy, "launch"):
        raise ConfigError(
            f"trainer.strategy is {name}, which has no `launch`: how its {ranks} ranks share a network is not known here. Give it one, or "
            "plan with the strategy that it resembles."
        )
    launch = strategy.launch() if hasattr(strategy, "launch") else Launch()
    kind = launch.kind if launch.kind not in ("one", "ddp") else "ddp" if ranks > 1 else "one"
    return replace(launch, kind=kind, ranks=ranks, nodes=nodes, precision=precision, counted=counted)


def _precision(given: object) -> str:
    """Lightning's full name of a precision."""
    short = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    return short.get(str(given), str(given))


# ------------------------------------------------------------------ sizes of a network


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


def network_of(blueprint: Blueprint, name: str, role: str, trains: bool = False, sharded: bool = True) -> Network:
    """A policy's network, in the type that it is loaded in."""
    architecture = architecture_of(blueprint.network, name)
    trained = (blueprint.adapters or architecture.parameters) if trains else 0
    whole = trains and not blueprint.adapters
    dtype = blueprint.dtype if whole or blueprint.frozen is None else blueprint.frozen
    return Network(role, architecture, dtype.itemsize, blueprint.adapters, trained, sharded)


def located(policy: Policy, configs: str | None) -> Policy:
    """The policy and those that it stands on, as a folder of configurations and tokenizers has them: ``<configs>/<hub id>/``."""
    if configs is None:
        return policy
    found = copy.copy(policy.found_in(configs))
    for name, value in vars(found).items():
        if isinstance(value, Policy):
            setattr(found, name, located(value, configs))
    return found


def optimizer_numbers(optimizer: Callable[..., Any]) -> float:
    """Numbers that an optimizer keeps for each trained one, found by a step on a small matrix."""
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    made = optimizer([weight])
    made.step()
    return sum(v.numel() for v in made.state[weight].values() if torch.is_tensor(v) and v.numel() > 1) / weight.numel()


# ------------------------------------------------------------------ what a run is


@dataclass(frozen=True)
class TextStats:
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
    notes: tuple[str, ...] = ()
    """Where method and teacher did otherwise than they tell the planner."""


@dataclass(frozen=True)
class Expected:
    """What somebody knows better of a run than its settings do."""

    row_tokens: int | None = None
    """Of the longest row; None: from what was seen, or the policy's context."""
    turns: float | None = None
    """Of an episode in the mean; None: the most that the world allows."""
    response_tokens: float | None = None
    """Of a response in the mean; None: the most that the sampler allows."""


def describe(
    module: "AgentModule",
    data: "TaskModule",
    launch: Launch,
    seen: TextStats | None = None,
    expected: Expected = Expected(),
    configs: str | None = None,
) -> Run:
    """Read off what a run with these settings holds and does.

    Args:
        seen: What its texts are like.
        expected: What is known better than from the settings.
        configs: As for `located`.
    """
    blueprint = located(module.policy, configs).blueprint()
    policy = network_of(blueprint, module.policy.name, "policy", trains=True)
    others, notes = _others(module, policy, configs)
    try:
        state = optimizer_numbers(module.optimizer)
    except Exception as error:  # one for GPUs only, say
        state = 2.0
        notes.append(f"The optimizer made no step here ({first_line(error)}): two numbers for each weight are assumed.")
    work = work_of(module, data, policy.architecture.context, seen, expected)
    if not work.plays:
        notes.append(f"{type(module).__name__} collects its episodes in a way of its own: no network plays them.")
    if seen is None:
        notes.append(f"Nothing is known of the texts: every row is taken to have {work.row} tokens.")
    else:
        notes += [
            *seen.notes,
            f"Prompts are as long as in the two steps, whose longest episode had {seen.turns} of {data.env.horizon} turns; responses as "
            "long as model.sampler.max_new_tokens, if nothing else is given.",
        ]
    if work.layout == "trajectory" and work.splits:
        notes.append("The chat template tells the past otherwise than it was said: up to one row for each turn.")
    return Run(
        policy,
        tuple(others),
        launch,
        work,
        state,
        blueprint.gradient_checkpointing,
        head_trained=not policy.adapters,
        options={what: f"model.policy.{name}" for what, name in blueprint.options.items()},
        notes=tuple(notes),
    )


def _others(module: "AgentModule", policy: Network, configs: str | None) -> tuple[list[Network], list[str]]:
    """The networks beside the policy's, and what is to be said of them."""
    others, notes, teacher = [], [], module.teacher
    if module.needs_reference or (teacher is not None and teacher.needs_initial):
        if policy.adapters:
            notes.append("The initial weights are the policy's with its adapters off: no copy.")
        else:
            others.append(replace(policy, role="initial copy", trained=0))
    copies = () if teacher is None else teacher.copies()
    if copies is None:
        notes.append(
            f"{part_name(teacher)} has networks of its own that are not counted here: it has no `copies` that tells of them."
        )
    for one in copies or ():
        if one.policy is None:
            others.append(replace(policy, role=one.role, trained=0, follows=one.follows, averages=one.averages))
            continue
        blueprint = located(one.policy, configs).blueprint()
        network = network_of(blueprint, one.policy.name, one.role)
        option = f"model.teacher.{one.key}.{blueprint.options['dtype']}" if one.key and "dtype" in blueprint.options else ""
        others.append(replace(network, follows=one.follows, averages=one.averages, dtype_option=option))
    if teacher is not None and teacher.is_remote:
        notes.append(
            f"{part_name(teacher)}: its servers hold and run the teacher; neither their memory nor their time is counted."
        )
    for name, judge in vars(module).items():
        if isinstance(judge, Judge) and judge.policy is not None:
            blueprint = located(judge.policy, configs).blueprint()
            others.append(network_of(blueprint, judge.policy.name, f"{name} {judge.policy.name}", sharded=False))
    return others, notes


def work_of(
    module: "AgentModule",
    data: "TaskModule",
    context: int,
    seen: TextStats | None = None,
    expected: Expected = Expected(),
) -> Work:
    """What an iteration of these settings does at most (at the expected means, where they are given)."""
    sampler, horizon = module.sampler, data.env.horizon
    row_tokens, turns, response_tokens = expected.row_tokens, expected.turns, expected.response_tokens
    most = int(getattr(sampler, "max_new_tokens", 512))
    most = min(most, data.max_new_tokens or most)
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
        behind = horizon * most + (horizon - 1) * seen.answer
        row = row_tokens or min(context, seen.opening + min(behind, data.max_episode_tokens or behind))
        usual = min(row, seen.opening + taken * said + (taken - 1) * seen.answer)
        prompt = max(seen.opening, seen.answer)
    else:
        row = row_tokens or min(context, seen.prompt + most)
        usual, prompt = min(row, seen.prompt_mean + said), min(seen.prompt, row - most)
    passes = module.scoring_passes()
    if seen is not None and (further := seen.passes - sum(passes.values())) > 0.25:  # rows of teachers are a little longer
        passes["further"] = round(further, 1)
    if module.teacher is not None and module.teacher.is_remote:
        passes.pop("teacher", None)  # a stand-in made it
    work = Work(
        tasks=data.tasks_per_step,
        attempts=data.group_size,
        extra=data.tasks_per_step * module.extra_attempts(data.group_size),
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
        engine=sampler.engine_share,
        teacher_signal=module.teacher_signal.value,
        support=module.top_k,
    )
    rows = module.rows_per_update
    return work if rows is None else replace(work, updates=math.ceil(work.rows / rows))
