"""Settings of several files and of the command line become one."""

from typing import Any

import pytest
from toy_command import TASKS, model, printed, write

from sdar.cli.parser import Parser


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


@pytest.mark.parametrize(
    "files",
    [["quickstart/sdar"], ["env/alfworld_and_math", "method/opd", "env/alfworld_and_math_opd"], ["method/sdar", "env/search"]],
)
def test_parts_of_parts_are_what_jsonargparse_makes_of_them(sdar, monkeypatch, files: list[str]) -> None:
    policy = "{class_path: LoRAPolicy, init_args: {base: {class_path: PretrainedPolicy, init_args: {path: conf/quickstart/policy}}}}"
    words = [
        *(w for f in files for w in ("-c", f"conf/{f}.yaml")),
        "--model.policy",
        policy,
        "--data.group_size=3",
        "--print_config",
    ]
    code, ours, err = sdar("fit", *words)
    assert code == 0, err
    monkeypatch.delattr(Parser, "parse_object")
    assert sdar("fit", *words)[1] == ours


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
