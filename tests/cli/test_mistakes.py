"""A mistake names the key, the file and the nearest right word."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_command import model, told, write

from sdar import Gate

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
    "data class": (["--data", "TaskModul"], "data: there is no data module 'TaskModul'. Did you mean 'TaskModule'?"),
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
        (["-c", "base.yaml"], "a command is needed: fit, validate, test, predict, score, play, export, plan, list"),
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
