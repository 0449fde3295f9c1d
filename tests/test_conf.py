"""Every file in conf/ parses and runs two steps on a tiny policy; files that are a piece of a setting run in a whole one."""

from pathlib import Path

import pytest
import yaml

from sdar.cli import main
from sdar.envs import HouseholdEnv
from sdar.paths import installed_settings
from sdar.policies import FreshPolicy
from sdar.skills import SkillBank, write_fact_bank

CONF = installed_settings()
FILES = sorted(str(p.relative_to(CONF)) for p in CONF.rglob("*.yaml") if "skills" not in p.parts)
REST = {  # what a piece of a setting needs beside it
    "quickstart": [],
    "env": ["method/sdar.yaml"],
    "method": ["env/alfworld.yaml"],
    "policy": ["method/grpo.yaml", "env/alfworld.yaml"],
}
SMALL = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 1,
    "trainer.enable_progress_bar": False,
    "trainer.enable_model_summary": False,
    "data.tasks_per_step": 2,
    "data.group_size": 2,
    "data.train_tasks": 8,
    "data.val_tasks": 2,
    "data.env.horizon": 2,
    "model.sampler.max_new_tokens": 4,
    "model.val_sampler": {"class_path": "TorchSampler", "init_args": {"max_new_tokens": 4}},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny random policy with room for the longest skills, on disk."""
    folder = tmp_path_factory.mktemp("policy")
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "key_value_heads": 2, "intermediate_size": 32, "context": 8192}
    tiny = FreshPolicy(HouseholdEnv(), **size)
    tiny.load_model().save_pretrained(folder)
    tiny.load_tokenizer().save_pretrained(folder)
    return folder


def command(file, policy, folder):
    files = [*REST[Path(file).parts[0]], file]
    small = {**SMALL, "trainer.default_root_dir": str(folder / "run")}
    settings = yaml.safe_load((CONF / file).read_text())
    lines = ["validate" if "SkillPrompt" in str(settings) else "fit"]
    for name in files:
        lines += ["-c", f"conf/{name}"]
    for key, value in small.items():
        lines += [f"--{key}", str(value)]
    if file != "quickstart/warmup.yaml":
        lines += ["--model.policy", str({"class_path": "PretrainedPolicy", "init_args": {"path": str(policy)}})]
    return lines


@pytest.mark.parametrize("file", FILES)
def test_a_setting_parses_and_runs_two_steps(file, policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # settings are found where they are installed
    assert main(command(file, policy, tmp_path)) == 0
    assert "validation of unseen" in capsys.readouterr().out


@pytest.mark.parametrize("file", FILES)
def test_a_setting_parses_as_it_is(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = [part for name in [*REST[Path(file).parts[0]], file] for part in ("-c", f"conf/{name}")]
    assert main(["fit", *whole, "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out


def test_the_quickstart_runs_with_another_method(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command("quickstart/sdar.yaml", policy, tmp_path), "--model", "GRPO"]) == 0


def test_the_quickstarts_skills_are_those_of_its_world(tmp_path):
    """The bank was written by `write_fact_bank` from the facts of the world that the setting names."""
    setting = yaml.safe_load((CONF / "quickstart/sdar.yaml").read_text())
    env = HouseholdEnv(**setting["data"]["init_args"]["env"]["init_args"])
    shipped, written = SkillBank.load("conf/skills/quickstart"), write_fact_bank(env.facts(), tmp_path / "bank")
    assert [(s.id, s.text, s.keywords) for s in shipped] == [(s.id, s.text, s.keywords) for s in written]
