"""Runs that `sdar doctor` looks at, each made in Python with one mistake or none."""

from typing import Any

from lightning.pytorch import Trainer
from planned import fresh

from sdar.data import TaskModule, TaskSource
from sdar.doctor.findings import Findings
from sdar.doctor.settings import examine_run
from sdar.envs import CompactProtocol, HouseholdEnv
from sdar.plan.run import Launch
from sdar.retrievers import NoRetriever
from sdar.samplers import TorchSampler
from sdar.strategies import SDAR


def tasks(**settings: Any) -> TaskModule:
    usual: dict[str, Any] = {"tasks_per_step": 3, "train_tasks": 6, "val_tasks": 2, "val_splits": ["unseen"]}
    env = settings.pop("env", None) or HouseholdEnv(world=5, receptacles=6, distractors=1, horizon=12)
    usual |= {"protocol": CompactProtocol()} if isinstance(env, HouseholdEnv) else {}
    return TaskModule(env, **{**usual, "layout": "trajectory", **settings})


def examined(
    strategy: type = SDAR,
    data: dict[str, Any] | TaskSource | None = None,
    trainer: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    launch: Launch | None = None,
    stage: str = "fit",
    **settings: Any,
) -> Findings:
    """What is found in a run that has no mistake but those of the arguments."""
    usual: dict[str, Any] = {"policy": fresh(context=1024), "sampler": TorchSampler(max_new_tokens=40)}
    usual |= {"retriever": NoRetriever()} if strategy is SDAR else {}
    module = strategy(**{name: value for name, value in {**usual, **settings}.items() if value is not None})
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": -1, "max_steps": 2}
    found = Findings()
    made = Trainer(accelerator="cpu", devices=1, **{**quiet, **(trainer or {})})
    source = data if isinstance(data, TaskSource) else tasks(**(data or {}))
    examine_run(found, module, source, made, given or {}, launch or Launch(), stage, patience=0.2)
    return found
