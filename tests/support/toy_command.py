"""A method without a language model and parts for it, so that a run of the command takes milliseconds."""

import re
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from sdar import Gate, Retriever
from sdar.data import TaskBatch
from sdar.errors import ConfigError, EnvironmentFault
from sdar.module import AgentModule
from sdar.types import Retrieval, Task, TokenView


class ToyGate(Gate):
    """A gate with a slope."""

    def __init__(self, slope: float = 1.0, mode: Literal["soft", "hard"] = "soft") -> None:
        if slope == 0:
            raise ConfigError("slope is 0: nothing would pass. Use 1.")
        self.slope = slope

    def __call__(self, tokens: TokenView) -> Tensor:
        return torch.ones_like(tokens.student_logp)


class NestedToyGate(ToyGate):
    """A gate around another."""

    def __init__(self, inner: Gate | None = None) -> None:
        super().__init__()


class ToyRetriever(Retriever):
    """A retriever that needs a file."""

    def __init__(self, bank: str) -> None:
        if bank == "gone":
            raise FileNotFoundError(bank)

    def retrieve(self, task: Task, visit: int = 0) -> Retrieval:
        return Retrieval()


class ToyMethod(AgentModule):
    """Moves one number towards 1."""

    numbers: list[float] = []  # noqa: RUF012  (what the last run did)

    def __init__(
        self, speed: float = 0.1, fail_at: int | None = None, fault: Literal["config", "world", "bug"] = "world"
    ) -> None:
        super().__init__(policy=None)
        self.number = nn.Parameter(torch.zeros(()))
        self.speed, self.fail_at, self.fault = speed, fail_at, fault
        ToyMethod.numbers = []

    def setup(self, stage: str) -> None:
        pass

    teardown = setup

    def configure_model(self) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.number], self.speed)

    def training_step(self, task_batch: TaskBatch, batch_idx: int) -> None:
        if self.iteration == self.fail_at:
            raise {"config": ConfigError, "world": EnvironmentFault, "bug": ZeroDivisionError}[self.fault]("it broke")
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self.number - 1) ** 2)
        optimizer.step()
        self.iteration += 1
        self.log("number", self.number.detach())
        ToyMethod.numbers.append(float(self.number.detach()))

    def validation_step(self, task_batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("held_out/number", self.number.detach(), batch_size=1, add_dataloader_idx=False)

    test_step = validation_step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["toy"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iteration = checkpoint["toy"]

    def token_loss(self, batch: Any, now: Any) -> Tensor:
        raise NotImplementedError


for hook in [name for name in dir(AgentModule) if name.startswith("on_") and name not in vars(ToyMethod)]:
    setattr(ToyMethod, hook, getattr(LightningModule, hook))  # there is no model to report about


class GatedToyMethod(ToyMethod):
    """Toy with parts."""

    def __init__(
        self,
        gate: Gate = lazy_instance(ToyGate, slope=2.0),
        gates: list[Gate] | None = None,
        retriever: Retriever | None = None,
        coef: float = 0.5,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.gate, self.coef = gate, coef


class LostToyMethod(GatedToyMethod):
    """Toy whose code does not run."""

    def setup(self, stage: str) -> None:
        raise ConfigError("nothing to learn from.")


TASKS = {"env": "household", "train_tasks": 2, "val_tasks": 1, "tasks_per_step": 1, "group_size": 1, "val_splits": ["unseen"]}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TOY = ("--model", "GatedToyMethod")


def write(name: str, **content: Any) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False))
    return name


def model(**init_args: Any) -> dict[str, Any]:
    return {"class_path": "GatedToyMethod", "init_args": init_args}


def told(message: str, err: str) -> bool:
    """Whether `err` is this message; ``…`` stands for any text."""
    return re.match("error: " + ".*".join(map(re.escape, message.split(" … "))), err, re.DOTALL) is not None


def printed(out: str) -> dict[str, Any]:
    return yaml.safe_load(out)
