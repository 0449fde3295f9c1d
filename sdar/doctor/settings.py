"""Everything of a run's settings that can be looked at without loading weights: what `fit` would refuse, and what would spoil it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Trainer
from torch import nn

from sdar.data import TaskSource
from sdar.doctor.findings import Findings
from sdar.doctor.machine import GIB, free_space
from sdar.envs import WebShopHTTPEnv
from sdar.errors import SdarError
from sdar.judges.endpoint import EndpointJudge
from sdar.module import AgentModule
from sdar.parts import Blueprint, Judge, Teacher
from sdar.plan.run import Launch
from sdar.plan.settings import optimizer_numbers
from sdar.precision import bfloat16_unit
from sdar.registry import part_name
from sdar.search import HTTPBackend
from sdar.serving.fleet import Fleet
from sdar.training.checks import (
    check_longest_skills,
    check_loss_scale,
    check_support,
    check_teacher_context,
    check_teacher_tokens,
)
from sdar.training.lightning_checks import check_optimizer, check_trainer

T = TypeVar("T")


def examine_run(
    findings: Findings,
    module: AgentModule,
    data: TaskSource,
    trainer: Trainer,
    given: Mapping[str, Any],
    launch: Launch,
    stage: str = "fit",
    patience: float = 3.0,
) -> dict[str, str]:
    """What a run is, by name; what is wrong goes into `findings`.

    The module is set up as in the run, on this process's CPU, and of no use afterwards.

    Args:
        trainer: Of the run's settings, on the CPU.
        given: The Trainer's own settings: accelerator, devices, default_root_dir.
        launch: How the run is launched.
        stage: The command that is meant: fit, validate or test.
        patience: Seconds that a server may take to answer.
    """
    module.trainer, cast(Any, trainer).datamodule, data.trainer = trainer, data, trainer
    module.checking = findings.collecting
    for fleet in held(module, Fleet):
        fleet.retry_policy = replace(fleet.retry_policy, outage=patience, retries=0)
    for judge in held(module, Judge):  # type: ignore[type-abstract]
        if isinstance(judge, EndpointJudge):
            judge.patience = patience
        elif judge.policy is not None:
            judge.check = judge.policy.load_tokenizer  # type: ignore[assignment, method-assign]  # not its weights
    servers: list[Any] = [*held(data, HTTPBackend), *held(data, WebShopHTTPEnv)]
    for server in servers:
        server.retries, server.timeout = 0, patience
    checks: list[Callable[[], None]] = [
        partial(check_launch, given, launch),
        partial(check_loss_scale, launch.precision == "16-mixed" and launch.kind != "zero"),
        *([partial(check_trainer, trainer)] if stage == "fit" else []),
        *(partial(world.check, stage) for world in data.worlds.values()),
        partial(module.setup, stage),
    ]
    for check in checks:
        with findings.collecting():
            check()
    if hasattr(module, "validation"):  # it was set up
        for later in _after_setup(module, trainer, given, stage):
            with findings.collecting():
                later()
    facts = dict(_facts(module, data, launch))
    with suppress(SdarError):  # a finding of the worlds' own checks
        facts |= data.conditions
    with suppress(Exception):
        data.teardown(stage)
    return facts


def _after_setup(module: AgentModule, trainer: Trainer, given: Mapping[str, Any], stage: str) -> Iterator[Callable[[], None]]:
    yield partial(check_support, module)
    if module.teacher is not None:
        yield partial(module.teacher.check_student, module.chat.tokenizer, module.policy.name)
        yield partial(check_teacher_context, module)
        yield partial(check_teacher_tokens, module)
    yield partial(check_longest_skills, module)
    yield partial(check_history, module)
    if stage == "fit":
        yield partial(_check_steps, module, trainer)
        yield partial(check_disk, module, given)


def check_launch(given: Mapping[str, Any], launch: Launch) -> None:
    """Raise SdarError where this machine does not have the accelerators that are asked for. A run on several nodes may begin on one like
    this or on another: each is looked at where the command is given."""
    found, asked = torch.cuda.device_count(), given.get("accelerator", "auto")
    each = max(1, launch.ranks // launch.nodes)
    if asked in ("gpu", "cuda") and found < each:
        raise SdarError(
            f"trainer.accelerator is {asked} with {each} device{'s' * (each != 1)} a node, and this machine has {found}: the run ends here "
            "at its start. Begin it where the GPUs are, or set trainer.accelerator to cpu and trainer.devices to 1."
        )
    if asked != "cpu" and found and launch.precision.startswith("bf16") and bfloat16_unit(torch.device("cuda")) is None:
        raise SdarError(
            f"trainer.precision is {launch.precision}, and {torch.cuda.get_device_name()} does not multiply bfloat16 itself: it is "
            "slower than float32 there. Use deepspeed_stage_1 with 16-mixed, or 32-true."
        )


def check_history(module: AgentModule) -> None:
    """Raise SdarError where a growing conversation is no prefix of itself a turn later: its rows fall apart."""
    apart = [name for name, world in module.tasks.worlds.items() if world.has_world and world.layout == "trajectory"]
    if module.chat.rewrites_history and apart and module.plays_attempts:
        raise SdarError(
            f"data.layout is trajectory{f' ({apart[0]})' if apart[0] else ''}, and the chat template of {module.policy.name} tells past "
            "responses otherwise than they were said (mostly without their thinking): a conversation is no prefix of the next one, "
            "and an episode becomes up to one row for each turn. Give a template that keeps them (policy.chat_template, "
            "policy.chat_options), or set data.layout to turn, which is made for that."
        )


def check_disk(module: AgentModule, given: Mapping[str, Any]) -> None:
    """Raise SdarError where the run's checkpoint does not fit on the disk, twice: the new one is whole before the old one goes."""
    blueprint = _blueprint(module)
    if blueprint is None or given.get("enable_checkpointing") is False:
        return
    total = sum(p.numel() for p in blueprint.network.parameters())
    trained = blueprint.adapters or total
    size = 4 * trained * (1 + _optimizer_numbers(module))
    free, place = free_space(Path(given.get("default_root_dir") or "."))
    if 2 * size > free:
        raise SdarError(
            f"{free / GIB:.1f} GiB are free at {place}, and a checkpoint takes {size / GIB:.1f} GiB ({trained / 1e9:.2f} B trained "
            "numbers and their optimizer's, in float32): the new one is written before the old one goes. Set "
            "trainer.default_root_dir to a larger disk."
        )


def _optimizer_numbers(module: AgentModule) -> float:
    try:
        return optimizer_numbers(module.optimizer)
    except Exception:  # one for GPUs only, say
        return 2.0


def _blueprint(module: AgentModule) -> Blueprint | None:
    """Sizes of the policy; None where they cannot be read without its weights (`sdar plan` says why)."""
    try:
        return module.policy.blueprint()
    except SdarError:
        return None


def _check_steps(module: AgentModule, trainer: Trainer) -> None:
    """What is stepped after an update, with one number to learn."""
    optimizer = module.optimizer([nn.Parameter(torch.zeros(2, 2))])
    schedule = None if module.lr_scheduler is None else module.lr_scheduler(optimizer)
    check_optimizer(optimizer, schedule, trainer.max_steps)


def _facts(module: AgentModule, data: TaskSource, launch: Launch) -> Iterator[tuple[str, str]]:
    yield "method", f"{type(module).__name__}, {launch.ranks} process{'es' * (launch.ranks != 1)}, {launch.precision}"
    for name, world in data.worlds.items():
        panels = ", ".join(f"{panel.name} {len(panel)}" for panel in (world.train_panel, *world.measured))
        yield f"world {name}".strip(), f"{part_name(world.env)}, {part_name(world.protocol)}, {world.layout}; tasks: {panels}"
    if module.teacher is not None:
        yield "teacher", part_name(module.teacher)
    if hasattr(module, "chat"):
        tokenizer, end = module.chat.tokenizer, module.chat.end_of_turn
        yield "policy", f"{module.policy.name}, {len(tokenizer)} tokens, context {module.context}"
        pad = "none (rows are masked; none is needed)" if tokenizer.pad_token is None else repr(tokenizer.pad_token)
        yield "tokens", f"end of turn {tokenizer.convert_ids_to_tokens(end)!r}, end of text {tokenizer.eos_token!r}, pad {pad}"


def held(owner: object, kind: type[T], known: set[int] | None = None) -> Iterator[T]:
    """Every object of a kind that a run's parts hold."""
    known = set() if known is None else known
    if id(owner) in known:
        return
    known.add(id(owner))
    if isinstance(owner, kind):
        yield owner
    inner = owner.values() if isinstance(owner, dict) else owner if isinstance(owner, list | tuple) else _parts(owner)
    for value in inner:
        if isinstance(value, dict | list | tuple) or hasattr(value, "__dict__"):
            yield from held(value, kind, known)


def _parts(owner: object) -> list[object]:
    """The attributes of our own objects and of parts; others' hold nothing of a run."""
    ours = type(owner).__module__.partition(".")[0] == "sdar" or isinstance(owner, AgentModule | TaskSource | Teacher | Judge)
    return list(vars(owner).values()) if ours and hasattr(owner, "__dict__") else []
