"""The `sdar` command, on a method without a language model, so that a run takes milliseconds."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from jsonargparse import lazy_instance
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from sdar import Gate, Retriever, registry
from sdar.cli import main
from sdar.cli.commands import COMMANDS
from sdar.data import Step
from sdar.errors import ConfigError, EnvironmentFault
from sdar.module import AgentModule
from sdar.search import BM25Backend
from sdar.training.checkpoints import AtomicCheckpointIO
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

    def retrieve(self, task: Task, draw: int = 0) -> Retrieval:
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

    def training_step(self, step: Step, batch_idx: int) -> None:
        if self.iteration == self.fail_at:
            raise {"config": ConfigError, "world": EnvironmentFault, "bug": ZeroDivisionError}[self.fault]("it broke")
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self.number - 1) ** 2)
        optimizer.step()
        self.iteration += 1
        self.log("number", self.number.detach())
        ToyMethod.numbers.append(float(self.number.detach()))

    def validation_step(self, step: Step, batch_idx: int, dataloader_idx: int = 0) -> None:
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


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a configuration that runs; what a run changes in the process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("SDAR_TRACEBACK", raising=False)
    write("base.yaml", model={"class_path": "GatedToyMethod"}, data=TASKS, trainer={"max_steps": 2, **QUIET})
    return tmp_path


@pytest.fixture
def sdar(capsys: pytest.CaptureFixture[str]):
    """Runs a command line; returns exit code, standard output and standard error."""

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(args))
        return code, *capsys.readouterr()

    return run


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


# ------------------------------------------------------------------ composing


def test_later_files_and_dotted_settings_win(sdar) -> None:
    write("gate.yaml", model=model(gate={"class_path": "ToyGate", "init_args": {"slope": 3.0, "mode": "hard"}}, coef=0.25))
    code, out, _ = sdar(
        "fit", "-c", "base.yaml", "--config", "gate.yaml", "--model.gate.slope", "4", "--trainer.max_steps=7", "--print_config"
    )
    assert code == 0
    config = printed(out)
    assert config["model"]["class_path"].endswith("GatedToyMethod")
    assert config["model"]["init_args"]["gate"]["init_args"] == {"slope": 4.0, "mode": "hard"}
    assert config["model"]["init_args"]["coef"] == 0.25
    assert config["trainer"]["max_steps"] == 7
    assert config["data"]["class_path"] == "sdar.TaskModule"
    assert config["data"]["init_args"]["train_tasks"] == 2


@pytest.mark.parametrize(("method", "key"), [("sod", "policy_loss.dual_clip"), ("sdar", "view.heading")])
def test_null_is_null_in_a_part_of_a_part(sdar, method: str, key: str) -> None:
    files = [
        f"conf/{name}.yaml" for name in ("env/quickstart", f"method/{method}", "scale/quickstart", "scale/quickstart_skills")
    ]
    code, out, err = sdar("fit", *[w for f in files for w in ("-c", f)], f"--model.{key}", "null", "--print_config")
    assert code == 0, err
    part, name = key.split(".")
    assert printed(out)["model"]["init_args"][part]["init_args"][name] is None


@pytest.mark.parametrize("data", [TASKS, {"init_args": TASKS}, {"class_path": "TaskModule", "init_args": TASKS}])
def test_tasks_need_no_class_path(sdar, data: dict[str, Any]) -> None:
    write("base.yaml", model=model(), data=data)
    for key in ("--data.group_size", "--data.init_args.group_size"):
        code, out, _ = sdar("fit", "-c", "base.yaml", key, "5", "--print_config")
        assert code == 0
        assert printed(out)["data"]["init_args"]["group_size"] == 5
        assert printed(out)["data"]["init_args"]["train_tasks"] == 2


def test_another_class_keeps_the_settings_that_fit_and_tells_the_others(sdar) -> None:
    write("gated.yaml", model=model(gate={"class_path": "ToyGate", "init_args": {"slope": 3.0}}, coef=0.25, speed=0.5))
    code, out, err = sdar("fit", "-c", "base.yaml", "-c", "gated.yaml", "--model", "ToyMethod", "--print_config")
    assert code == 0
    assert printed(out)["model"]["init_args"] == {"speed": 0.5, "fail_at": None, "fault": "world"}
    told_once = "settings of GatedToyMethod that ToyMethod does not take are dropped: gate, coef\n"
    assert err == f"note: ToyMethod replaces GatedToyMethod; {told_once}"


def test_another_class_in_a_later_file(sdar) -> None:
    write("plain.yaml", model={"class_path": "ToyMethod"})
    write("gated.yaml", model=model(coef=0.25, speed=0.5))
    code, out, err = sdar("fit", "-c", "base.yaml", "-c", "gated.yaml", "-c", "plain.yaml", "--print_config")
    assert code == 0
    assert printed(out)["model"]["init_args"]["speed"] == 0.5
    assert "are dropped: coef\n" in err


def test_defaults_that_another_class_lacks_are_not_mentioned(sdar) -> None:
    assert sdar("fit", "-c", "base.yaml", "--model", "ToyMethod", "--print_config")[2] == ""


# ------------------------------------------------------------------ mistakes


MISTAKES = {
    "strategy": (["--model", "GatdToyMethod"], "model: there is no strategy 'GatdToyMethod'. Did you mean 'GatedToyMethod'?"),
    "part": (
        ["--model.gate", "ToyGat"],
        "model.gate: there is no Gate 'ToyGat'. Did you mean 'ToyGate'?\n  known: … GapGate (gap)",
    ),
    "short name": (["--model.gate", "gapp"], "model.gate: there is no Gate 'gapp'. Did you mean 'gap'?"),
    "part of a part": (
        ["--model.gate", "NestedToyGate", "--model.gate.inner", "ToyGat"],
        "model.gate.inner: … Did you mean 'ToyGate'?",
    ),
    "optional part": (
        ["--model.retriever", "ToyRetreiver"],
        "model.retriever: there is no Retriever … Did you mean 'ToyRetriever'?",
    ),
    "listed part": (["--model.gates", "[ToyGat]"], "model.gates[0]: there is no Gate 'ToyGat'. Did you mean 'ToyGate'?"),
    "part of another kind": (
        ["--model.gate", "UCBRetriever"],
        "model.gate: 'UCBRetriever' is a Retriever and does not fit here: a Gate",
    ),
    "argument": (
        ["--model.coeff", "1"],
        "model.coeff: GatedToyMethod takes no 'coeff'. Did you mean 'coef'?\n  GatedToyMethod takes: gate,",
    ),
    "inherited argument": (["--model.sped", "1"], "model.sped: … Did you mean 'speed'?"),
    "argument of a part": (["--model.gate.slop", "1"], "model.gate.slop: ToyGate takes no 'slop'. Did you mean 'slope'?"),
    "head of a path": (["--model.gte.slope", "1"], "model.gte.slope: GatedToyMethod takes no 'gte'. Did you mean 'gate'?"),
    "deep argument": (
        ["--model.gate", "NestedToyGate", "--model.gate.inner", "ToyGate", "--model.gate.inner.slop", "1"],
        "model.gate.inner.slop: ToyGate takes no 'slop'. Did you mean 'slope'?",
    ),
    "missing argument": (["--model.retriever", "ToyRetriever"], "model.retriever.bank: missing, ToyRetriever needs it."),
    "choice": (["--model.gate.mode", "sotf"], "model.gate.mode: must be one of soft, hard, not 'sotf'. Did you mean 'soft'?"),
    "number": (["--model.gate.slope", "steep"], "model.gate.slope: must be float, not 'steep'."),
    "data key": (["--data.group_sise", "2"], "data.group_sise: TaskModule takes no 'group_sise'. Did you mean 'group_size'?"),
    "data class": (["--data", "TaskModul"], "data: there is no TaskModule 'TaskModul'. Did you mean 'TaskModule'?"),
    "top-level key": (["--modl.coef", "1"], "modl: there is no 'modl'. Did you mean 'model'?"),
    "command key": (["--ckpt_pth", "last"], "ckpt_pth: there is no 'ckpt_pth'. Did you mean 'ckpt_path'?"),
    "trainer key": (
        ["--trainer.max_step", "1"],
        "trainer.max_step: 'trainer' has no such setting. Did you mean 'trainer.max_steps'?",
    ),
    "trainer value": (["--trainer.max_steps", "many"], "trainer.max_steps: must be int, not 'many'."),
    "trainer choice": (
        ["--trainer.precision", "bf16-mixd"],
        "trainer.precision: must be one of … Did you mean 'bf16-mixed'?",
    ),
    "trainer strategy": (["--trainer.strategy", "dpp"], "trainer.strategy: there is no strategy 'dpp'. Did you mean 'ddp'?"),
    "accelerator": (
        ["--trainer.accelerator", "cuuda"],
        "trainer.accelerator: there is no accelerator 'cuuda'. Did you mean 'cuda'?",
    ),
    "callback": (
        ["--trainer.callbacks+=ModelCheckpint"],
        "trainer.callbacks[0]: there is no Callback … Did you mean 'ModelCheckpoint'?",
    ),
    "checkpoint key": (
        ["--checkpoint.every_n_iteration", "2"],
        "checkpoint.every_n_iteration: … Did you mean 'checkpoint.every_n_iterations'?",
    ),
    "stray word": (["faster"], "unexpected argument 'faster'"),
    "file": (["-c", "bse.yaml"], "configuration file bse.yaml does not exist. Did you mean base.yaml?"),
    "installed file": (
        ["-c", "conf/method/sdar.yml"],
        "configuration file conf/method/sdar.yml does not exist. Did you mean conf/method/sdar.yaml?",
    ),
    "policy": (
        ["--model", "SDAR"],
        "model.retriever, model.policy: missing, SDAR needs it. A policy is a file of conf/policy, e.g. -c conf/policy/",
    ),
    "module": (["--model.gate", "torhc.ToyGate"], "model.gate: no module named 'torhc'. Did you mean 'torch'?"),
    "class of another kind": (
        ["--model.gate", "sdar.retrievers.NoRetriever"],
        "model.gate: 'sdar.retrievers.NoRetriever' is a Retriever and does not fit here: a Gate is needed.",
    ),
    "part that is not chosen": (
        ["--model.retriever.bank", "x"],
        "model.retriever.bank: no Retriever is chosen yet. Name it before its settings, e.g. --model.retriever ToyRetriever.",
    ),
    "listed part that is not chosen": (["--model.gates.slope", "1"], "model.gates.slope: no Gate is chosen yet."),
    "key of another part": (
        ["--model.slope", "2"],
        "model.slope: GatedToyMethod takes no 'slope'. Did you mean 'model.gate.slope'?",
    ),
    "key of the trainer": (["--max_steps", "2"], "max_steps: there is no 'max_steps'. Did you mean 'trainer.max_steps'?"),
    "argument of an optimizer": (
        ["--model", "GRPO", "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lrr", "1"],
        "model.optimizer.lrr: SGD takes no 'lrr'. Did you mean 'lr'?",
    ),
    "value that begins with a dash": (
        ["--model.coef", "-1e-3"],
        "model.coef: a value must follow. One that begins with a dash is joined to it: --model.coef=-1e-3.",
    ),
    "settings of a number": (["--model.coef.x", "1"], "model.coef: must be float, not {'x': 1}."),
    "class in a module": (
        ["--model.gate", "sdar.gates.GapGat"],
        "model.gate: module 'sdar.gates' has no class 'GapGat'. Did you mean 'GapGate'?",
    ),
}


@pytest.mark.parametrize("args, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_names_the_key_and_the_nearest_right_word(sdar, args: list[str], message: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", *args)
    assert code == 2
    assert told(message, err)
    assert err.count("Did you mean") <= 1 and "Union" not in err and "usage" not in err


GATE_SPEC = {"class_path": "ToyGate", "init_args": {"slope": 2.0}}
MISTAKES_IN_FILES = {
    "top-level key": ({"modl": model()}, "modl (in wrong.yaml): there is no 'modl'. Did you mean 'model'?"),
    "trainer key": ({"trainer": {"max_stps": 3}}, "trainer.max_stps (in wrong.yaml): … Did you mean 'trainer.max_steps'?"),
    "argument": (
        {"model": model(coeff=1)},
        "model.coeff (in wrong.yaml): GatedToyMethod takes no 'coeff'. Did you mean 'coef'?",
    ),
    "part": (
        {"model": model(gate="ToyGat")},
        "model.gate (in wrong.yaml): there is no Gate 'ToyGat'. Did you mean 'ToyGate'?",
    ),
    "class path": ({"model": model(gate={"class_path": "ToyGat"})}, "model.gate (in wrong.yaml): … Did you mean 'ToyGate'?"),
    "listed part": (
        {"model": model(gates=["ToyGate", "ToyGat"])},
        "model.gates[1] (in wrong.yaml): there is no Gate 'ToyGat'",
    ),
    "argument of a part": (
        {"model": model(gates=["ToyGate", {"class_path": "ToyGate", "init_args": {"slop": 1}}])},
        "model.gates[1].slop (in wrong.yaml): ToyGate takes no 'slop'. Did you mean 'slope'?",
    ),
    "value": (
        {"model": model(gate={"class_path": "ToyGate", "init_args": {"slope": "x"}})},
        "model.gate.slope (in wrong.yaml): must be float",
    ),
    "no part at all": ({"model": model(gate=3)}, "model.gate (in wrong.yaml): must be a Gate, given by name or as class_path"),
    "no arguments at all": (
        {"model": {"class_path": "GatedToyMethod", "init_args": None}},
        "model (in wrong.yaml): init_args is None, but it holds arguments by name.",
    ),
    "listed part that is not chosen": (
        {"model": model(gates=[{"slope": 1}])},
        "model.gates[0].slope (in wrong.yaml): no Gate is chosen yet. Name it there, e.g. class_path: ToyGate.",
    ),
    "key of a group": (
        {"checkpoint": {"dirpat": "x"}},
        "checkpoint.dirpat (in wrong.yaml): 'checkpoint' has no such setting. Did you mean 'checkpoint.dirpath'?",
    ),
    "dotted key": ({"trainer.max_stps": 3}, "trainer.max_stps (in wrong.yaml): … Did you mean 'trainer.max_steps'?"),
    "init_arg": (
        {"model": model(gate={"class_path": "ToyGate", "init_arg": {"slope": 1}})},
        "model.gate (in wrong.yaml): 'init_arg' stands beside class_path. Did you mean 'init_args'?",
    ),
    "clas_path": (
        {"model": model(gate={"clas_path": "ToyGate", "init_args": {}})},
        "model.gate (in wrong.yaml): 'clas_path' is no key of a part. Did you mean 'class_path'?",
    ),
    "argument beside class_path": (
        {"model": model(gate={**GATE_SPEC, "slope": 1})},
        "model.gate (in wrong.yaml): 'slope' stands beside",
    ),
    **{
        f"level of {name}": ({name: {"trainer": {"max_steps": 1}}}, f"{name} (in wrong.yaml): … leave the {name!r} level out")
        for name in ("fit", "plan", "serve-policy")
    },
}


@pytest.mark.parametrize("content, message", MISTAKES_IN_FILES.values(), ids=MISTAKES_IN_FILES)
def test_a_mistake_in_a_file_names_the_file(sdar, content: dict[str, Any], message: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "-c", write("wrong.yaml", **content))
    assert code == 2
    assert told(message, err)
    assert err.count("Did you mean") <= 1


def test_broken_yaml_names_file_and_line(sdar) -> None:
    Path("broken.yaml").write_text("model: {class_path: ToyMethod\n")
    code, _, err = sdar("fit", "-c", "broken.yaml")
    assert code == 2
    assert re.match(r"error: broken\.yaml, line \d+, column \d+: ", err) and "Correct the YAML there" in err


HOSTILE_YAML = {
    "a key that stands twice": "seed_everything: 1\nseed_everything: 2\n",
    "a list of aliases": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "depth": "model: " + "[" * 5000,
    "a part in itself": "model: &a {init_args: *a}\n",
    "a long number": f"seed_everything: {'9' * 5000}\n",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_settings_are_read_within_limits(sdar, text: str) -> None:
    Path("hostile.yaml").write_text(text)
    code, _, err = sdar("fit", "-c", "base.yaml", "-c", "hostile.yaml")
    assert code == 2 and len(err) < 500
    assert re.match(r"error: hostile\.yaml(, line \d+, column \d+)?: ", err)


def test_what_windows_writes_is_named(sdar) -> None:
    Path("wide.yaml").write_text("model: {}\n", encoding="utf-16")
    code, _, err = sdar("fit", "-c", "base.yaml", "-c", "wide.yaml")
    assert code == 2 and err.startswith("error: wide.yaml: no UTF-8 text")


@pytest.mark.parametrize("value", ["2024-13-45", "[" * 5000])
def test_a_strange_value_of_the_command_line_is_a_wrong_value(sdar, value: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.coef", value)
    assert code == 2 and err.startswith("error: model.coef: must be float, not ") and len(err) < 500


def test_a_number_of_thousands_of_digits_is_told_by_its_length(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "9" * 5000)
    assert code == 2 and err == "error: trainer.max_steps: an integer of 5000 digits. Give a smaller one.\n"


@pytest.mark.parametrize("value", [".nan", ".inf", "null"])
@pytest.mark.parametrize("key", ["--model.max_grad_norm", "--data.group_size", "--checkpoint.every_n_iterations"])
def test_what_is_no_number_is_refused_with_its_name(sdar, key: str, value: str) -> None:
    code, _, err = sdar(
        "fit",
        "-c",
        "base.yaml",
        "--model",
        "GRPO",
        "--model.policy",
        "PretrainedPolicy",
        "--model.policy.path",
        "x",
        key,
        value,
    )
    assert code == 2 and err.startswith("error: ") and key.rpartition(".")[2] in err and "Traceback" not in err


@pytest.mark.parametrize(
    "args, message",
    [
        (["fti", "-c", "base.yaml"], "there is no command 'fti'. Did you mean 'fit'?"),
        (["pln", "-c", "base.yaml"], "there is no command 'pln'. Did you mean 'plan'?"),
        (["--model", "SDAR", "fit"], "there is no command 'SDAR'. The command comes first: fit, "),
        (["-c", "base.yaml"], "a command is needed: fit, validate, test, predict, export, plan, list"),
        ([], "a command is needed"),
        (["fit"], "fit needs a configuration: give a file, e.g. sdar fit -c "),
        (["fit", "--data.env", "household"], "model: this command needs a strategy, e.g. --model SDAR"),
        (["list", "gatse"], "'gatse' is no kind of part and no part. Did you mean 'gates'?"),
        (["list", "--plugin", "no_such_package"], "--plugin no_such_package: no module of that name on the Python path"),
        (["list", "--plugin"], "--plugin : give the name of a module"),
    ],
)
def test_a_wrong_command_line(sdar, args: list[str], message: str) -> None:
    code, _, err = sdar(*args)
    assert code == 2
    assert told(message, err)


def test_a_plugin_that_fails_is_named(sdar, folder: Path) -> None:
    (folder / "failing_plugin.py").write_text("1 / 0\n")
    code, _, err = sdar("list", "--plugin", "failing_plugin")
    assert code == 2
    assert err == "error: --plugin failing_plugin: importing it failed with ZeroDivisionError: division by zero\n"


class HalfGate(Gate):
    """A gate that nobody finished."""


def test_a_part_that_lacks_a_method_is_told_which(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.gate", "HalfGate")
    assert code == 2
    assert err == "error: model.gate: HalfGate has no __call__, which every Gate has. Write it.\n"
    _, _, err = sdar("fit", "-c", "base.yaml", "--model.gate", "Gate")
    assert "is a base class" in err and "LazyInstance" not in err and "NoInit" not in err


def test_an_installed_plugin_that_fails_is_named_and_the_command_goes_on(sdar, folder: Path) -> None:
    (folder / "ailing_plugin.py").write_text("1 / 0\n")
    package = folder / "ailing-2.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: ailing\nVersion: 2.1\n")
    (package / "entry_points.txt").write_text("[sdar.plugins]\nailing = ailing_plugin\n")
    sys.path.append(str(folder))
    code, out, err = sdar("list", "gates")
    assert code == 0 and "GapGate" in out
    assert "warning: the plugin ailing_plugin of ailing 2.1 cannot be imported (ZeroDivisionError: division by zero)" in err


def test_a_file_of_the_working_directory_stands_behind_installed_packages(sdar, folder: Path) -> None:
    (folder / "wave.py").write_text("open('CODE_RAN', 'w')\n")  # of the standard library
    (folder / "own_parts.py").write_text("import wave\nassert hasattr(wave, 'open')\n")
    assert sdar("list", "gates", "--plugin", "own_parts")[0] == 0
    assert sys.path[-1] == os.getcwd() and not Path("CODE_RAN").exists()


# ------------------------------------------------------------------ errors of parts


def test_a_refused_setting_is_told_with_its_key_and_without_a_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.gate.slope", "0")
    assert code == 2
    assert "error: model.gate.slope is 0: nothing would pass. Use 1.\n" in err
    assert "Traceback" not in err and not Path("runs").exists()


def test_the_key_of_a_refused_setting_is_found_in_optional_and_listed_parts(sdar) -> None:
    wrong = {"class_path": "NestedToyGate", "init_args": {"inner": {"class_path": "ToyGate", "init_args": {"slope": 0}}}}
    write("wrong.yaml", model=model(gate="constant", gates=["entropy", wrong]))
    code, _, err = sdar("fit", "-c", "base.yaml", "-c", "wrong.yaml")
    assert code == 2
    assert "error: model.gates[1].inner.slope is 0" in err


def test_a_setting_that_the_tasks_refuse(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--data.group_size", "0")
    assert code == 2
    assert "error: data.group_size is 0: it must be at least 1.\n" in err
    code, _, err = sdar("fit", "-c", "base.yaml", "--data.val_splits", "[unsen]")
    assert code == 2
    assert "error: data.val_splits names 'unsen', with data.val_tasks 1: household has no split 'unsen'. Did" in err


RLSD = ["--model", "RLSD", "--model.policy", "PretrainedPolicy", "--model.policy.path", "x"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.lam", "2.0"], "model.lam is 2.0: it is the share of the advantage that is scaled"),
        (["--model.evidence_clip", "2"], "model.evidence_clip is 2.0: the ratio is kept in [1 - clip, 1 + clip]"),
        (["--model.sampler.top_p", "3"], "model.sampler.top_p is 3.0: it is a probability mass"),
        (["--model.val_sampler", "TorchSampler", "--model.val_sampler.top_p", "3"], "model.val_sampler.top_p is 3.0: it is"),
        (["--model.kl_clamp", ".inf"], "model.kl_clamp is inf, but it must be a finite number."),
    ],
)
def test_a_refused_setting_has_the_key_that_was_written(sdar, args: list[str], message: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", *RLSD, *args)
    assert code == 2 and told(message, err)


def test_the_traceback_is_shown_on_request(sdar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDAR_TRACEBACK", "1")
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.gate.slope", "0")
    assert code == 2
    assert "Traceback" in err and "error: model.gate.slope is 0" in err


def test_an_unforeseen_error_of_a_part_has_key_and_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.retriever", "ToyRetriever", "--model.retriever.bank", "gone")
    assert code == 1
    assert "Traceback" in err and err.endswith("error: model.retriever: FileNotFoundError: gone\n")


def test_a_setting_that_the_trainer_refuses(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--trainer.limit_train_batches", "-3")
    assert code == 2
    assert re.search(r"error: trainer: You have passed invalid value -3(\.0)? for limit_train_batches", err)


def test_a_configuration_error_before_the_first_iteration_is_a_mistake(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model", "LostToyMethod")
    assert code == 2
    assert "error: model: nothing to learn from.\n" in err and "last checkpoint" not in err


@pytest.mark.parametrize("fault", ["world", "config"])
def test_an_error_while_training_says_where_the_last_checkpoint_is(sdar, fault: str) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.fail_at", "1", "--model.fault", fault)
    assert code == 1
    last = Path("runs/version_0/checkpoints/last.ckpt")
    assert f"error: model: it broke\nlast checkpoint: {last} (continue with the same command and --ckpt_path last)\n" in err
    assert "Traceback" not in err and last.exists()


def test_an_unforeseen_error_while_training_keeps_its_traceback(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--model.fail_at", "1", "--model.fault", "bug")
    assert code == 1
    assert "Traceback" in err and "error: model: ZeroDivisionError: it broke\nlast checkpoint: " in err


# ------------------------------------------------------------------ runs


def test_a_run_leaves_logs_configuration_and_a_checkpoint(sdar) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    assert len(ToyMethod.numbers) == 2
    left = {p.name.partition(".tfevents")[0] for p in Path("runs/version_0").iterdir()}
    assert left >= {"metrics.csv", "events.out", "config.yaml"}
    rows = list(csv.DictReader(Path("runs/version_0/metrics.csv").read_text().splitlines()))
    assert [float(row["number"]) for row in rows] == pytest.approx(ToyMethod.numbers)
    assert [p.name for p in Path("runs/version_0/checkpoints").iterdir()] == ["last.ckpt"]


def test_trainer_defaults_suit_agents(sdar) -> None:
    trainer = printed(sdar("fit", "-c", "base.yaml", "--print_config")[1])["trainer"]
    expected = {
        "default_root_dir": "runs",
        "max_epochs": -1,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "logger": None,
        "callbacks": None,
    }
    assert {key: trainer[key] for key in expected} == expected


def test_the_saved_configuration_runs_again_and_continues(sdar) -> None:
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "4")
    straight = ToyMethod.numbers
    sdar("fit", "-c", "base.yaml", "--trainer.default_root_dir", "again")
    code, _, err = sdar("fit", "-c", "again/version_0/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert code == 0
    assert ToyMethod.numbers == straight[2:]
    assert "note:" not in err
    assert [p.name for p in Path("again").iterdir()] == ["version_0"]
    assert [p.name for p in Path("again/version_0/checkpoints").iterdir()] == ["last.ckpt"]


def test_a_second_fresh_run_overwrites_no_checkpoint_and_last_is_the_newer(sdar) -> None:
    sdar("fit", "-c", "base.yaml")
    first = Path("runs/version_0/checkpoints/last.ckpt").read_bytes()
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "3")
    assert Path("runs/version_0/checkpoints/last.ckpt").read_bytes() == first
    sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert len(ToyMethod.numbers) == 1
    args = ("--trainer.max_steps", "1", "--checkpoint.dirpath", "both")
    sdar("fit", "-c", "base.yaml", *args)
    sdar("fit", "-c", "base.yaml", *args)
    assert sorted(p.name for p in Path("both").iterdir()) == ["earlier-1.ckpt", "last.ckpt"]


def test_without_a_checkpoint_last_begins_anew(sdar, caplog: pytest.LogCaptureFixture) -> None:
    code, _, _ = sdar("fit", "-c", "base.yaml", "--ckpt_path", "last")
    assert code == 0 and len(ToyMethod.numbers) == 2
    assert "no run of these settings left a checkpoint below runs. A new run begins." in caplog.text
    code, _, _ = sdar("fit", "-c", "base.yaml", "--ckpt_path", "last", "--model.coef", "0.25")
    assert code == 0 and len(ToyMethod.numbers) == 2 and Path("runs/version_1").is_dir()
    assert (
        "the latest there, version_0, differs in model.coef (0.5, here 0.25). A new run begins. To go on from that one give"
        in caplog.text
    )


def test_checkpoints_count_iterations_and_the_last_one_is_kept(sdar, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(ToyMethod, "on_save_checkpoint", lambda self, checkpoint: saved.append(self.iteration))
    assert sdar("fit", "-c", "base.yaml", "--trainer.max_steps", "5", "--checkpoint.every_n_iterations", "2")[0] == 0
    assert saved == [2, 4, 5]
    code, _, err = sdar("fit", "-c", "base.yaml", "--checkpoint.every_n_iterations", "0")
    assert code == 2
    assert "error: checkpoint.every_n_iterations is 0: use 1 or more" in err


def test_own_loggers_callbacks_and_none_are_respected(sdar) -> None:
    own = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine", "every_n_train_steps": 1, "save_top_k": -1}}
    write("own.yaml", trainer={"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "table"}}, "callbacks": [own]})
    assert sdar("fit", "-c", "base.yaml", "-c", "own.yaml", "--checkpoint.dirpath", "elsewhere")[0] == 0
    assert len(list(Path("mine").iterdir())) == 2
    assert Path("elsewhere/last.ckpt").exists()
    assert {p.name for p in Path("runs/version_0").iterdir()} == {"config.yaml", "metrics.csv", "hparams.yaml"}
    assert not list(Path("table").rglob("*tfevents*"))
    args = ("--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--trainer.default_root_dir", "bare")
    assert sdar("fit", "-c", "base.yaml", *args)[0] == 0
    assert [p.name for p in Path("bare/version_0").iterdir()] == ["config.yaml"]


def test_the_saved_configuration_holds_settings_only(sdar) -> None:
    sdar("fit", "-c", "base.yaml")
    sdar("fit", "-c", "base.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3")
    saved = yaml.safe_load(Path("runs/version_0/config.yaml").read_text())
    assert not {"ckpt_path", "weights_only"} & saved.keys() and saved["model"]["class_path"].endswith("GatedToyMethod")
    assert saved["trainer"]["max_steps"] == 3


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_is_measured_must_be_there(sdar, command: str) -> None:
    code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "last")
    assert code == 2
    assert told("--ckpt_path last: no run of these settings left a checkpoint below runs. Give the path of a checkpoint.", err)
    code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "gone.ckpt")
    assert code == 2 and told("--ckpt_path gone.ckpt: there is no such file. Give the path of a checkpoint.", err)


@pytest.mark.parametrize(("given", "norm"), [("0", math.inf), ("0.5", 0.5), (None, 1.0)])
def test_gradients_are_clipped_as_the_trainer_is_told(
    sdar, monkeypatch: pytest.MonkeyPatch, given: str | None, norm: float
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(ToyMethod, "on_train_start", lambda self: seen.append(self.max_grad_norm))
    assert sdar("fit", "-c", "base.yaml", *(["--trainer.gradient_clip_val", given] if given else []))[0] == 0
    assert seen == [norm]


def test_gradients_are_not_turned_round(sdar) -> None:
    code, _, err = sdar("fit", "-c", "base.yaml", "--trainer.gradient_clip_val", "-1")
    assert code == 2 and told("trainer.gradient_clip_val is -1.0: gradients would be turned round. Give a norm, or 0", err)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_the_other_commands_take_the_last_checkpoint(sdar, command: str) -> None:
    sdar("fit", "-c", "base.yaml")
    trained = ToyMethod.numbers[-1]
    assert sdar(command, "-c", "runs/version_0/config.yaml", "--ckpt_path", "last")[0] == 0
    [row] = csv.DictReader(Path(f"runs/{command}_0/metrics.csv").read_text().splitlines())
    assert float(row["held_out/number"]) == pytest.approx(trained)


def test_a_checkpoint_is_whole_when_the_process_dies_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def dies(checkpoint: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path)["step"] == 1
    monkeypatch.undo()
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert torch.load(path)["step"] == 3
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_settings_that_a_checkpoint_holds_are_not_taken(sdar, folder: Path, command: str) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    (folder / "hostile_part.py").write_text(f"open({str(folder / 'CODE_RAN')!r}, 'w')\n")
    state = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)
    hostile = {"coef": 7.0, "gate": {"class_path": "hostile_part.Gate"}}
    for merged in (hostile, {**hostile, "_class_path": "hostile_part.Method"}):
        torch.save(state | {"hyper_parameters": merged}, "other.ckpt")
        assert sdar(command, "-c", "base.yaml", "--ckpt_path", "other.ckpt", "--trainer.max_steps", "3")[0] == 0
        assert "7.0" not in "".join(p.read_text() for p in Path("runs").glob("*/config.yaml"))
    assert not Path("CODE_RAN").exists()


def test_a_damaged_checkpoint_is_told_in_one_message(sdar) -> None:
    assert sdar("fit", "-c", "base.yaml")[0] == 0
    whole = Path("runs/version_0/checkpoints/last.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    for command in ("fit", "validate"):
        code, _, err = sdar(command, "-c", "base.yaml", "--ckpt_path", "cut.ckpt")
        assert code == 1 or code == 2
        assert "error: " in err and "cut.ckpt" in err and "copy it anew" in err and "Traceback" not in err


# ------------------------------------------------------------------ help and list


def test_help_teaches(sdar) -> None:
    code, out, _ = sdar("--help")
    assert code == 0
    assert "examples:\n  sdar fit -c " in out and "--plugin my_package" in out and "sdar list" in out
    assert "sdar list" in sdar("list", "--help")[1]
    words = {"fit": "Train", "validate": "validation tasks", "test": "test tasks", "predict": "without learning"}
    for command, word in words.items():
        code, out, _ = sdar(command, "--help")
        assert code == 0
        assert word in out and f"examples:\n  sdar {command} " in out and "--trainer.max_steps" in out


def test_help_of_a_part(sdar) -> None:
    code, out, _ = sdar("fit", "--model.help", "GatedToyMethod")
    assert code == 0
    assert "--model.coef" in out
    code, out, _ = sdar("fit", "-c", "base.yaml", "--model.gate.help", "ToyGate")
    assert code == 0
    assert "--model.gate.slope" in out or "slope" in out


def test_version(sdar) -> None:
    code, out, _ = sdar("--version")
    assert code == 0
    assert re.fullmatch(r"sdar \d+\.\d+\.\d+\n", out)


def test_list_shows_every_part_with_its_arguments(sdar) -> None:
    code, out, _ = sdar("list")
    assert code == 0
    for plural in registry.kinds():
        assert f"{plural}: " in out
        for short, cls in registry.parts(plural).items():
            assert short in out and cls.__name__ in out and registry.summary(cls) in out
    assert "0x" not in out and "LazyInstance" not in out


def test_help_begins_with_the_training_method_and_speaks_of_this_command(sdar) -> None:
    out = sdar("fit", "--help")[1]
    titles = ["Training method", "Tasks and the world", "Checkpoints:", "Lightning's Trainer:"]
    assert sorted(titles, key=out.index) == titles
    assert ":paramref:" not in out and "known subclasses" not in out and len(out.splitlines()) < 330
    words = " ".join(out.split())
    assert "Optimizer steps at which training ends" in words and "Iterations between two validations" in words


def test_help_of_a_part_needs_no_configuration(sdar) -> None:
    code, out, _ = sdar("fit", "--model.gate.help", "GapGate")
    assert code == 0 and "gap, GapGate (gates)" in out and "beta: float = 5.0" in out
    assert "gap, GapAdvantage" in sdar("fit", "--model.transforms.help", "gap")[1]


def test_list_of_one_part(sdar) -> None:
    code, out, _ = sdar("list", "SDAR")
    assert code == 0 and "from sdar import SDAR\n" in out and "distill_coef: Weight of the distillation" in out
    out = sdar("list", "gap")[1]
    assert "YAML:    model: {gate: {class_path: GapGate, init_args: {beta: 5.0}}}\n" in out
    assert "YAML:    model: {transforms: [{class_path: GapAdvantage, init_args: {coef: 1.0}}]}\n" in out
    code, _, err = sdar("list", "gapp")
    assert code == 2 and told("'gapp' is no kind of part and no part. Did you mean 'gap'? Kinds: ", err)


def test_list_of_one_kind(sdar) -> None:
    code, out, _ = sdar("list", "gates")
    assert code == 0
    assert re.search(r"^  gap, GapGate: .+\n      beta: float = 5\.0$", out, re.MULTILINE)
    assert "strategies" not in out


def test_list_shows_what_all_strategies_take_once(sdar) -> None:
    out = sdar("list", "strategies")[1]
    assert out.count("policy: Policy (required)") == 1
    assert re.search(r"^      gate: Gate = GapGate$", out, re.MULTILINE)


# ------------------------------------------------------------------ plugins


PLUGIN = '''
from sdar import Gate, Retriever, register

@register("half_open")
class HalfOpenGate(Gate):
    """Always half open."""

    def __init__(self, width: float = 0.5) -> None:
        self.width = width

    def __call__(self, tokens):
        return tokens.gap * 0 + self.width

@register("nobody")
class NobodyRetriever(Retriever):
    """Knows nothing."""

    def retrieve(self, task, draw=0):
        raise NotImplementedError
'''

METHOD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_cli import GatedToyMethod
"""


@pytest.fixture
def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A package outside the repository; what it registers is forgotten afterwards."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text(PLUGIN)
    monkeypatch.setattr(registry, "_parts", {kind: dict(parts) for kind, parts in registry._parts.items()})
    yield
    sys.modules.pop("my_package", None)


@pytest.mark.parametrize("option", [["--plugin", "my_package"], ["--plugin=my_package"]])
@pytest.mark.parametrize("first", [True, False])
def test_parts_of_a_plugin_have_names(sdar, plugin, option: list[str], first: bool) -> None:
    write("own.yaml", model=model(gate={"class_path": "half_open", "init_args": {"width": 0.25}}, retriever="NobodyRetriever"))
    args = ["fit", "-c", "base.yaml", "-c", "own.yaml", "--print_config"]
    code, out, _ = sdar(*(option + args if first else args + option))
    assert code == 0
    init_args = printed(out)["model"]["init_args"]
    assert init_args["gate"] == {"class_path": "my_package.half_open", "init_args": {"width": 0.25}}
    assert init_args["retriever"]["class_path"] == "my_package.NobodyRetriever"
    assert "half_open, HalfOpenGate: Always half open." in sdar("list", "gates", *option)[1]


def test_parts_without_a_plugin_have_dotted_paths(sdar, plugin) -> None:
    args = ("--model.gate", "my_package.HalfOpenGate", "--model.retriever", "my_package.NobodyRetriever")
    code, _, _ = sdar("fit", "-c", "base.yaml", *args)
    assert code == 0


def test_the_command_in_a_process_of_its_own(folder: Path) -> None:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text(PLUGIN)
    (folder / "my_method.py").write_text(METHOD)
    args = ["fit", "-c", "base.yaml", "--plugin", "my_method", "--plugin", "my_package", "--model.gate", "half_open"]
    done = subprocess.run([sys.executable, "-m", "sdar", *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Path("runs/version_0/checkpoints/last.ckpt").exists()
    assert "my_package.half_open" in Path("runs/version_0/config.yaml").read_text()
    for noise in ("many workers", "manual optimization", "Tip:", "Warning"):
        assert noise not in done.stderr


@pytest.mark.parametrize("tool", [command.name for command in COMMANDS.values() if command.tool])
def test_a_tool_teaches_by_its_help_and_refuses_what_it_does_not_know(sdar, tool) -> None:
    code, out, _ = sdar(tool, "--help")
    assert code == 0 and f"usage: sdar {tool}" in out and "Lightning" not in out
    code, _, err = sdar(tool, "--colour", "red")
    assert code == 2 and "there is no 'colour'" in err


def test_a_tool_does_its_work_or_says_in_one_line_why_not(sdar, tmp_path, monkeypatch) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "0", "contents": "\\"Rome\\"\\nRome lies on the Tiber."}\n')
    assert sdar("build-index", "--corpus", str(corpus), "--out", str(tmp_path / "index"), "--progress", "false")[0] == 0
    assert BM25Backend(str(tmp_path / "index")).search(["Tiber"], 1)[0][0].title == "Rome"
    code, _, err = sdar("build-index", "--corpus", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "other"))
    assert code == 2 and err.startswith("error: corpus ") and "does not exist" in err
    monkeypatch.setattr("aiohttp.web.run_app", taken)
    code, _, err = sdar("serve-search", "--backend", "BM25Backend", "--backend.index", str(tmp_path / "index"))
    assert (code, err.splitlines()[-1]) == (1, "error: OSError: the port is taken")


def taken(*args: Any, **kwargs: Any) -> None:
    raise OSError("the port is taken")
