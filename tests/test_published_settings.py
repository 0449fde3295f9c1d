"""Composed settings have the published numbers, and every world goes with every model and method."""

import re
from functools import cache
from typing import Any

import pytest
import yaml
from jsonargparse import ActionConfigFile

from sdar import registry
from sdar.data import TaskModule
from sdar.module import AgentModule
from sdar.parser import Parser
from sdar.paths import installed_settings

CONF = installed_settings()
METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
ENVS, POLICIES = ("alfworld", "webshop", "search"), ("qwen2.5-3b", "qwen2.5-7b", "qwen3-1.7b")
SKILLED = ("sdar", "gated_opsd", "grpo_opsd", "skill_sd", "rlsd", "skill_grpo")
TABLE = (CONF / "README.md").read_text(encoding="utf-8")


@cache
def parser() -> Parser:
    """Model and data as the command has them, checked to the last option; of the trainer the keys that the files set."""
    registry.load_parts()
    made = Parser(exit_on_error=False)
    made.add_argument("-c", action=ActionConfigFile)
    made.add_lightning_class_args(AgentModule, "model", subclass_mode=True)
    made.add_lightning_class_args(TaskModule, "data", subclass_mode=True)
    made.add_argument("--seed_everything", type=int)
    keys = {key for p in CONF.rglob("*.yaml") for key in (yaml.safe_load(p.read_text()).get("trainer") or {})}
    for key in sorted(keys):
        made.add_argument(f"--trainer.{key}", type=Any)
    return made


@cache
def composed(*files: str) -> Any:
    """The settings that these files give together."""
    return parser().parse_args([part for name in files for part in ("-c", str(CONF / f"{name}.yaml"))])


def files_of(env: str, method: str) -> list[str]:
    """A published run of the SDAR code base without policy and scale."""
    files = [f"env/{env}", f"method/{method}"]
    if env != "alfworld":
        files += [f"env/{env}_rl"] + [f"env/{env}_skills"] * (method in SKILLED)
    return files


def run_of(env: str, method: str, policy: str | None = None) -> Any:
    """The settings of a world with a method; the models go round, so that each meets every world and every method."""
    files = files_of(env, method) if method in COEFFICIENTS else [f"env/{env}", f"method/{method}"]
    policy = policy or POLICIES[(ENVS.index(env) + METHODS.index(method)) % 3]
    return composed(*files, f"policy/{policy}", "scale/8gpu_zero2")


def rollouts(settings: Any) -> float:
    return settings.trainer.max_steps / settings.model.init_args.updates_per_rollout


# ------------------------------------------------------------------ the published numbers

PUBLISHED = {  # env: tasks, attempts, history, actions, KL, penalty, validation every, its temperature, skills
    "alfworld": (16, 8, 2, 50, 0.01, 0.1, 5, 0.4, "household"),
    "search": (128, 8, 4, 4, 0.001, 0.01, 150, 0.0, "search"),
    "webshop": (16, 8, 2, 15, 0.01, 0.1, 5, 0.4, "webshop"),
}
COEFFICIENTS = {  # method: where, what
    "sdar": {"distill_coef": 0.01, "gate.init_args.beta": 5.0},
    "gated_opsd": {"distill_coef": 0.01, "gate.init_args.beta": 5.0},
    "grpo_opsd": {"distill_coef": 0.01, "trust": 0.5},
    "skill_sd": {"distill_coef": 0.001},
    "rlsd": {"lam.init_args.start": 0.5, "lam.init_args.end": 0.0, "lam.init_args.iterations": 100, "evidence_clip": 0.2},
    "gigpo": {
        "advantage.init_args.gamma": 0.95,
        "advantage.init_args.step_weight": 1.0,
        "advantage.init_args.normalize_std": False,
    },
    "grpo": {},
    "skill_grpo": {},
}


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("env", ENVS)
def test_a_composed_run_has_the_published_numbers(env: str, method: str) -> None:
    settings = run_of(env, method)
    tasks, attempts, history, actions, kl, penalty, every, temperature, skills = PUBLISHED[env]
    model, data = settings.model.init_args, settings.data.init_args
    assert (data.tasks_per_step, data.group_size, data.history, data.layout) == (tasks, attempts, history, "turn")
    assert data.env.init_args.horizon == actions
    assert (model.kl_coef, model.entropy_coef, model.invalid_penalty) == (kl, 0.001, penalty)
    assert (model.sampler.init_args.max_new_tokens, model.sampler.init_args.temperature) == (512, 1.0)
    assert (model.sampler.init_args.top_p, model.sampler.init_args.top_k) == (1.0, 0)
    assert (model.val_sampler.init_args.temperature, model.val_sampler.init_args.max_new_tokens) == (temperature, 512)
    assert rollouts(settings) == 150 and settings.trainer.val_check_interval == every
    assert model.policy_loss.init_args.clip_low == model.policy_loss.init_args.clip_high == 0.2
    assert model.policy_loss.init_args.dual_clip == 3.0 and model.max_grad_norm == 1.0
    if method != "gigpo":
        assert model.advantage.init_args.statistics == "row"
    if method in SKILLED:
        assert model.retriever.init_args.skills == f"conf/skills/{skills}"
    for key, value in COEFFICIENTS[method].items():
        assert model[key] == value, key


@pytest.mark.parametrize("env", ENVS)
def test_the_learning_rate_is_constant_but_in_search(env: str) -> None:
    settings = run_of(env, "grpo")
    model = settings.model.init_args
    assert model.optimizer.class_path == "torch.optim.AdamW"
    assert (model.optimizer.init_args.lr, model.optimizer.init_args.weight_decay) == (1e-6, 0.01)
    if env != "search":
        assert model.lr_scheduler is None
        return
    rises = model.lr_scheduler.init_args
    assert rises.total_iters == settings.trainer.max_steps / 10  # warm-up ratio 0.1
    assert rises.start_factor < 0.01 and rises.end_factor == 1.0


def test_gigpo_in_search_has_its_own_group_and_no_entropy_bonus() -> None:
    settings = composed(*files_of("search", "gigpo"), "env/search_gigpo", "policy/qwen2.5-3b")
    model, data = settings.model.init_args, settings.data.init_args
    assert (data.tasks_per_step, data.group_size, model.entropy_coef) == (256, 5, 0.0)
    assert model.advantage.init_args.similarity == 0.95 and model.advantage.init_args.gamma == 0.95


@pytest.mark.parametrize("policy, thinking", [("qwen3-0.6b", None), ("qwen3-1.7b_thinking", None)])
def test_sod_on_mathematics_with_tools(policy: str, thinking: bool | None) -> None:
    settings = composed("env/math", "method/sod", "env/math_rl", f"policy/{policy}", "teacher/qwen3-4b", "scale/8gpu_zero2")
    model, data = settings.model.init_args, settings.data.init_args
    assert settings.model.class_path.endswith("SOD")
    assert (data.tasks_per_step, data.group_size, data.layout) == (64, 16, "trajectory")
    assert (data.env.init_args.horizon, data.env.init_args.reward, data.val_attempts) == (16, "sod", 32)
    assert data.protocol.class_path.endswith("HermesMathProtocol")
    assert (model.turn_weight.init_args.delta, model.turn_weight.init_args.epsilon) == (0.2, 1e-6)
    assert (model.policy_loss.init_args.clip_low, model.policy_loss.init_args.clip_high) == (0.2, 0.28)
    assert model.kl_coef == model.entropy_coef == model.invalid_penalty == 0.0 and model.updates_per_rollout == 64 // 16
    assert rollouts(settings) == 30_000 // 64
    assert (model.val_sampler.init_args.temperature, model.val_sampler.init_args.top_p) == (1.0, 0.6)
    assert model.teacher.init_args.policy.init_args.path == "Qwen/Qwen3-4B"
    assert model.policy.init_args.path == "Qwen/" + {"qwen3-0.6b": "Qwen3-0.6B"}.get(policy, "Qwen3-1.7B")
    assert model.policy.init_args.chat_options is thinking


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_the_published_model(policy: str) -> None:
    given = run_of("alfworld", "grpo", policy).model.init_args.policy.init_args
    family, size = policy.split("-")
    assert given.path == (f"Qwen/Qwen3-{size.upper()}" if family == "qwen3" else f"Qwen/Qwen2.5-{size.upper()}-Instruct")
    assert given.chat_options == ({"enable_thinking": False} if family == "qwen3" else None)
    assert given.gradient_checkpointing is True and given.dtype == "float32"


def test_opsd_with_adapters_has_its_size_and_learning_rate() -> None:
    model = composed("env/math", "method/opsd", "policy/qwen3-1.7b_lora", "scale/1gpu").model.init_args
    assert model.policy.class_path.endswith("LoRAPolicy")
    assert (model.policy.init_args.rank, model.policy.init_args.alpha, model.optimizer.init_args.lr) == (64, 128, 2e-4)
    assert model.policy.init_args.base.init_args.path == "Qwen/Qwen3-1.7B"


# ------------------------------------------------------------------ everything goes with everything


def check(settings: Any, env: str, method: str, policy: str) -> None:
    named = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())["model"]["class_path"]
    assert settings.model.class_path == f"sdar.strategies.{named}"
    assert settings.model.init_args.policy.init_args.path.lower().startswith(f"qwen/{policy}")
    world = {"alfworld": "HouseholdEnv", "webshop": "WebShopEnv", "search": "SearchEnv"}[env]
    assert settings.data.init_args.env.class_path == f"sdar.envs.{world}"
    assert settings.trainer.devices == 8 and settings.trainer.strategy == "deepspeed_stage_2"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("env", ENVS)
def test_a_world_goes_with_every_method_and_model(env: str, method: str) -> None:
    check(run_of(env, method), env, method, POLICIES[(ENVS.index(env) + METHODS.index(method)) % 3])


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("env", ENVS)
def test_every_world_goes_with_every_method_and_every_model(env: str, method: str, policy: str) -> None:
    check(run_of(env, method, policy), env, method, policy)


def table_rows() -> list[tuple[list[str], list[str]]]:
    """(methods, files) of each row of the table of published runs."""
    part = TABLE.split("## Published runs")[1].split("## Published numbers")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("| ") and "published run" not in line]
    return [(re.findall("`([^`]+)`", methods), re.findall("`([^`]+)`", files)) for _, methods, files in rows]


def test_the_runs_of_the_table_parse_and_cover_every_piece() -> None:
    used = set()
    for methods, files in table_rows():
        assert methods and len(files) >= 4
        assert set(methods) <= set(METHODS)
        for method in methods[:1]:
            filled = [f.replace("method/M", f"method/{method}").replace("policy/P", "policy/qwen3-1.7b") for f in files]
            filled = [f.replace("scale/S", "scale/8gpu_zero3") for f in filled]
            used |= {*filled, *(f"policy/{p}" for p in POLICIES if "policy/P" in files)}
            assert composed(*filled).model.init_args.policy is not None
    pieces = {f"{p.parent.name}/{p.stem}" for p in CONF.glob("env/*.yaml")} | {
        f"teacher/{p.stem}" for p in CONF.glob("teacher/*")
    }
    pieces |= {f"policy/{p.stem}" for p in CONF.glob("policy/*.yaml")}
    assert {p for p in pieces if not p.endswith("_tiny") and p != "env/quickstart"} <= used


def test_the_numbers_of_the_readme_are_those_that_are_compared() -> None:
    part = TABLE.split("## Published numbers")[1]
    columns = {"alfworld": 2, "search": 3, "webshop": 4}
    lines = {cells[1].strip(): cells for line in part.splitlines() if len(cells := line.split("|")) == 6}
    for env, (tasks, attempts, history, actions, kl, penalty, every, temperature, _) in PUBLISHED.items():
        at = columns[env]
        assert lines["tasks × attempts a rollout"][at].strip() == f"{tasks} × {attempts}"
        assert lines["past exchanges in a prompt; actions"][at].strip() == f"{history}; {actions}"
        assert lines["KL; entropy; invalid action"][at].strip() == f"{kl}; 0.001; {penalty}"
        assert lines["validation every; temperature"][at].strip() == f"{every}; {temperature or 'greedy'}"
        assert lines["rollouts"][at].strip() == "150"
