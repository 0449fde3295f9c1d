"""Every file in conf/ parses and runs a step on a tiny policy; files that are a piece of a setting run in a whole one."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from chats import sums, written
from fact_bank import write_fact_bank

import sdar
from sdar import registry
from sdar.cli import main
from sdar.cli.roots import settings_of
from sdar.cli.words import find_config_files
from sdar.envs import HouseholdEnv
from sdar.paths import installed_settings
from sdar.policies import FreshPolicy, world_tokenizer
from sdar.skills import SkillBank

CONF = installed_settings()
FILES = sorted(
    str(p.relative_to(CONF))
    for p in CONF.rglob("*.yaml")
    if "skills" not in p.parts and p.name not in ("published.yaml", "data_sets.yaml", "places.yaml")
)
REST = {  # what a piece of a setting needs before it
    "quickstart": [],
    "real": [],
    "real/warmup_slips.yaml": ["real/warmup.yaml"],
    "real/warmup_lost.yaml": ["real/warmup.yaml"],
    "env": ["method/sdar.yaml"],
    "method": ["env/alfworld.yaml"],
    "policy": ["method/grpo.yaml", "env/quickstart.yaml"],
    "teacher": ["env/quickstart.yaml", "method/sod.yaml"],
    "scale": ["env/quickstart.yaml", "method/grpo.yaml"],
    "reference": ["env/alfworld.yaml", "method/sdar.yaml"],
    "reference/webshop.yaml": ["env/webshop_tiny.yaml", "method/grpo.yaml", "env/webshop_rl.yaml"],
    "reference/search.yaml": ["env/search_tiny.yaml", "method/grpo.yaml", "env/search_rl.yaml"],
    "reference/skills_webshop.yaml": ["env/webshop_tiny.yaml", "method/sdar.yaml"],
    "reference/search_gigpo.yaml": ["env/search_tiny.yaml", "method/gigpo.yaml"],
    "reference/skills_search.yaml": ["env/search_tiny.yaml", "method/sdar.yaml"],
    "reference/skill_grpo.yaml": ["env/alfworld.yaml", "method/skill_grpo.yaml"],
    "reference/opd_masked.yaml": ["env/alfworld.yaml", "method/opd.yaml", "env/alfworld_opd.yaml"],
    "reference/top_k_opd.yaml": ["env/alfworld.yaml", "method/top_k_opd.yaml"],
    "reference/tcod.yaml": ["env/alfworld.yaml", "method/tcod.yaml"],
    "reference/rlsd_authors.yaml": ["env/alfworld.yaml", "method/rlsd.yaml"],
    "env/search_r1.yaml": ["method/grpo.yaml"],
    "env/search_rl.yaml": ["env/search_tiny.yaml", "method/grpo.yaml"],
    "env/search_gigpo.yaml": ["env/search_tiny.yaml", "method/gigpo.yaml", "env/search_rl.yaml"],
    "env/search_greedy.yaml": ["env/search_tiny.yaml", "method/skill_prompt.yaml", "env/search_skills.yaml"],
    "env/search_queries.yaml": ["env/search_tiny.yaml", "method/sd_search.yaml"],
    "env/search_skills.yaml": ["env/search_tiny.yaml", "method/sdar.yaml"],
    "env/webshop_rl.yaml": ["env/webshop_tiny.yaml", "method/grpo.yaml"],
    "env/webshop_gigpo.yaml": ["env/webshop_tiny.yaml", "method/gigpo.yaml", "env/webshop_rl.yaml"],
    "env/webshop_skills.yaml": ["env/webshop_tiny.yaml", "method/sdar.yaml"],
    "env/math_rl.yaml": ["env/math_tiny.yaml", "method/sod.yaml"],
    "env/math_long.yaml": ["env/math_tiny.yaml", "method/grpo.yaml"],
    "env/math_text.yaml": ["method/grpo.yaml"],
    "env/math_grpo.yaml": ["env/math_tiny.yaml", "method/grpo.yaml", "env/math_rl.yaml"],
    "env/math_opd.yaml": ["env/math_tiny.yaml", "method/opd.yaml", "env/math_long.yaml"],
    "env/math_topk.yaml": ["env/math_tiny.yaml", "method/top_k_opd.yaml", "env/math_long.yaml"],
    "env/math_opsd.yaml": ["env/math_tiny.yaml", "method/opsd.yaml"],
    "env/alfworld_opd.yaml": ["env/alfworld.yaml", "method/opd.yaml"],
    "env/alfworld_and_math.yaml": ["method/grpo.yaml"],
    "env/alfworld_and_math_opd.yaml": ["env/alfworld_and_math.yaml", "method/opd.yaml"],
    "env/alfworld_and_math_topk.yaml": ["env/alfworld_and_math.yaml", "method/top_k_opd.yaml"],
    "scale/tiny.yaml": ["env/search_tiny.yaml", "method/grpo.yaml"],
    "scale/tiny_warmup.yaml": ["env/search_tiny.yaml"],
    "scale/quickstart.yaml": ["env/quickstart.yaml", "method/grpo.yaml"],
    "scale/quickstart_skills.yaml": ["env/quickstart.yaml", "method/sdar.yaml", "scale/quickstart.yaml"],
    "scale/quickstart_teacher.yaml": ["env/quickstart.yaml", "method/sod.yaml", "scale/quickstart.yaml"],
    "scale/quickstart_judge.yaml": ["env/quickstart.yaml", "method/critic_search.yaml", "scale/quickstart.yaml"],
}
METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
PLAYING = [m for m in METHODS if m not in ("skill_prompt", "sft")]  # the others do not train, or on what nobody plays
SMALL = """
model:
  init_args:
    sampler: {init_args: {max_new_tokens: 2}}
    val_sampler: {class_path: TorchSampler, init_args: {max_new_tokens: 2}}
data:
  init_args: {tasks_per_step: 2, group_size: 2, train_tasks: 8, val_tasks: 2, val_attempts: 2, env: {init_args: {horizon: 2}}}
trainer: {max_steps: 1, val_check_interval: 1, num_sanity_val_steps: 0, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A tiny random policy on disk that reads the words of our prompts, settings and skills, so that none of their texts is long."""
    folder = tmp_path_factory.mktemp("policy")
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "key_value_heads": 2, "intermediate_size": 32, "context": 16384}
    texts = [
        p for root in (CONF, Path(sdar.__file__).parent) for p in root.rglob("*") if p.suffix in (".py", ".yaml", ".json")
    ]
    tokenizer = world_tokenizer([p.read_text(encoding="utf-8") for p in texts], [], 8192, 16384)
    tiny = FreshPolicy(HouseholdEnv(), **size)
    tiny._tokenizer = tokenizer
    tiny.load_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def whole(file):
    """The file with what it needs before it."""
    return [*REST.get(file, REST.get(Path(file).parts[0], [])), file]


def skills_of(file):
    """The bank of a world that is not the one which the methods' files name."""
    bank = Path(file).stem.partition("_")[0]
    told = file.startswith("env/") and "method/sdar.yaml" in whole(file) and (CONF / "skills" / bank).exists()
    return ["--model.retriever.skills", f"conf/skills/{bank}"] if told else []


def command(file, policy, folder):
    """The command that runs one step of a file and validates, with a last file that makes everything small."""
    files = whole(file)
    settings = yaml.safe_load((CONF / file).read_text())
    told = " ".join((CONF / name).read_text() for name in files)
    tiny = {"class_path": "PretrainedPolicy", "init_args": {"path": str(policy), "chat_template": None}}
    small = yaml.safe_load(SMALL)
    model, trainer = small["model"]["init_args"], small["trainer"]
    trainer["default_root_dir"] = str(folder / "run")
    if "FreshPolicy" not in str(settings):
        adapters = {"init_args": {"base": tiny} | ({"adapter": None} if "'adapter'" in str(settings) else {})}
        model["policy"] = adapters if "LoRAPolicy" in str(settings) else tiny
    if "data: official" in told:  # nobody has to have fetched them
        small["data"]["init_args"]["env"]["init_args"] |= {"data": None, "usual": None}
    if "files: {train: gsm8k/" in told:
        small["data"]["init_args"]["env"]["init_args"] |= {"files": None}
    if "gpu" in file:
        trainer |= {"accelerator": "cpu", "devices": 1, "strategy": "auto"}
    if "view: SiblingView" in told:  # a random policy has no success to tell of
        model["view"] = "FirstOf"
    external = {"class_path": "ExternalTeacher", "init_args": {"policy": tiny}}
    if "ExternalTeacher" in told:
        routes = {"routes": dict.fromkeys(("alfworld", "math"), external)}
        model["teacher"] = {"class_path": "RoutedTeacher", "init_args": routes} if "RoutedTeacher" in told else external
    words = []
    if "MultiTaskModule" in told:
        del small["data"]["init_args"]["env"]
        smaller = {"alfworld.env.horizon": 2, "alfworld.val_tasks": 2, "math.val_tasks": 2, "math.val_attempts": 1}
        smaller |= {f"{world}.val_splits": "[unseen]" for world in ("alfworld", "math")}
        words = [word for key, value in smaller.items() for word in (f"--data.envs.{key}", str(value))]
    if "Judge" in told:
        model["judge"] = {"class_path": "EvidenceJudge", "init_args": {"policy": tiny}}
    if "ChatModule" in told:
        small["data"]["init_args"]["files"] = [written(folder / "chats.jsonl", *sums(4))]
    last = folder / "small.yaml"
    last.write_text(yaml.safe_dump(small))
    parts = [part for name in (*(f"conf/{name}" for name in files), str(last)) for part in ("-c", name)]
    return ["validate" if "class_path: SkillPrompt" in told else "fit", *parts, *words, *skills_of(file)]


OWN = [f for f in FILES if "SDAR/" not in (CONF / f).read_text()]  # the others need a checkout of somebody else's code
ALONE = [f for f in OWN if f not in {f"method/{m}.yaml" for m in PLAYING}]  # methods train and resume below


@pytest.mark.parametrize("file", ALONE)
def test_a_setting_parses_and_runs_a_step(file, policy, tmp_path, monkeypatch, capsys):
    """Every file is checked as it is, before the last one makes everything small."""
    monkeypatch.chdir(tmp_path)  # settings are found where they are installed
    assert main(command(file, policy, tmp_path)) == 0
    assert re.search("validation of (math/)?unseen", capsys.readouterr().out)


def test_values_that_a_later_file_replaces_are_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, limit in (("wrong", "many"), ("right", 4)):
        (tmp_path / name).write_text(f"model: {{init_args: {{sampler: {{init_args: {{max_new_tokens: {limit}}}}}}}}}")
    assert main(["fit", "-c", "conf/quickstart/sdar.yaml", "-c", "wrong", "-c", "right", "--print_config"]) == 2
    assert "many" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted({*FILES} - {*OWN}))
def test_a_setting_parses_without_the_code_that_it_runs(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [part for name in whole(file) for part in ("-c", f"conf/{name}")]
    assert main(["fit", *files, "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("file", FILES)
def test_the_look_before_anything_is_imported_refuses_no_setting(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_reads_sources", True)
    settings_of(find_config_files(["fit", *(part for name in whole(file) for part in ("-c", f"conf/{name}"))]))


def test_the_quickstart_runs_with_another_method(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command("quickstart/sdar.yaml", policy, tmp_path), "--model", "GRPO"]) == 0


def test_the_tool_of_a_protocol_reaches_the_chat_template(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    protocol = {"class_path": "HermesMathProtocol", "init_args": {"tools": "template", "instructions": "Answer."}}
    assert main([*command("env/math_tiny.yaml", policy, tmp_path), "--data.protocol", str(protocol)]) != 0
    assert "does not tell the model of the tool 'code_interpreter'" in capsys.readouterr().err  # the tiny policy's knows none


def test_the_quickstarts_skills_are_those_of_its_world(tmp_path):
    """The bank was written by `write_fact_bank` from the facts of the world that the setting names."""
    setting = yaml.safe_load((CONF / "quickstart/sdar.yaml").read_text())
    env = HouseholdEnv(**setting["data"]["init_args"]["env"]["init_args"])
    shipped, written = SkillBank.load("conf/skills/quickstart"), write_fact_bank(env.facts(), tmp_path / "bank")
    assert [(s.id, s.text, s.keywords) for s in shipped] == [(s.id, s.text, s.keywords) for s in written]


def benchmark():
    """benchmarks/methods.py as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "methods.py"
    spec = importlib.util.spec_from_file_location("methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_knows_every_method():
    assert sorted(benchmark().METHODS) == PLAYING


def on_the_quickstart_world(method, folder, steps, small=""):
    """The command that trains a method with its YAML on the quickstart world, with the settings `small` in a last file."""
    files = ["env/quickstart.yaml", f"method/{method}.yaml", "scale/quickstart.yaml"]
    return [
        "fit",
        *(p for f in files for p in ("-c", f"conf/{f}")),
        *last_file(small, folder, steps),
        *benchmark().METHODS[method],
    ]


def last_file(small, folder, steps):
    """What makes a command a short run in a folder."""
    settings = yaml.safe_load(small) or {}
    trainer = {"default_root_dir": str(folder), "max_steps": steps, "enable_progress_bar": False}
    settings["trainer"] = settings.get("trainer", {}) | trainer
    (folder / f"{steps}.yaml").write_text(yaml.safe_dump(settings))
    return ["-c", str(folder / f"{steps}.yaml")]


def checked(lines, capfd, recwarn):
    """Run a command; it has no warning and says nothing that looks like one."""
    assert main(lines) == 0
    told = capfd.readouterr()
    assert "warn" not in (told.out + told.err).lower()
    quiet = (DeprecationWarning, PendingDeprecationWarning)  # Python does not show those of other packages
    assert [str(w.message) for w in recwarn if not issubclass(w.category, quiet)] == []


@pytest.mark.parametrize("method", PLAYING)
def test_a_method_trains_and_resumes_on_the_quickstart_world_without_a_warning(method, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    small = """
model: {init_args: {sampler: {init_args: {max_new_tokens: 2}}, val_sampler: {init_args: {max_new_tokens: 2}}}}
data: {init_args: {tasks_per_step: 1, group_size: 2, env: {init_args: {horizon: 2}}, val_tasks: 1}}
trainer: {val_check_interval: 1}
"""
    if "view: SiblingView" in (CONF / f"method/{method}.yaml").read_text():  # nobody succeeds in two actions
        small = small.replace("{init_args: {sampler", "{init_args: {view: FirstOf, sampler")
    checked(on_the_quickstart_world(method, tmp_path, 1, small), capfd, recwarn)
    checked([*on_the_quickstart_world(method, tmp_path, 2, small), "--ckpt_path", "last"], capfd, recwarn)
    iterations = [json.loads(line)["iteration"] for line in (tmp_path / "version_0/validation.jsonl").read_text().splitlines()]
    assert iterations[0] == 0 and iterations[-1] >= 1 and iterations == sorted(iterations)


@pytest.mark.slow
@pytest.mark.parametrize("method", PLAYING)
def test_a_method_trains_ten_steps_in_full_size(method, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    checked([*on_the_quickstart_world(method, tmp_path, 10), "--data.val_tasks", "16"], capfd, recwarn)
    checked([*on_the_quickstart_world(method, tmp_path, 12), "--data.val_tasks", "16", "--ckpt_path", "last"], capfd, recwarn)


WORLDS = sorted(p.stem for p in (CONF / "env").glob("*_tiny.yaml"))


def in_a_world(world, method, folder, steps, small=""):
    """The command that trains a method with a tiny policy in a world, with the settings `small` in a last file."""
    files = [f"env/{world}.yaml", f"method/{method}.yaml", "scale/tiny.yaml"]
    lines = ["fit", *(part for name in files for part in ("-c", f"conf/{name}")), *last_file(small, folder, steps)]
    return lines + (skills_of(f"env/{world}.yaml") if method == "sdar" else [])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", ["grpo", "sdar"])
def test_a_tiny_policy_trains_in_a_world_without_a_warning(world, method, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    small = """
model:
  init_args:
    policy: {init_args: {layers: 1}}
    sampler: {init_args: {max_new_tokens: 3}}
    val_sampler: {init_args: {max_new_tokens: 3}}
data: {init_args: {tasks_per_step: 1, group_size: 2, val_tasks: 2, env: {init_args: {horizon: 2}}}}
trainer: {val_check_interval: 2}
"""
    checked(in_a_world(world, method, tmp_path, 2, small), capfd, recwarn)
    families = {
        key
        for key in json.loads((tmp_path / "version_0/validation.jsonl").read_text().splitlines()[-1])
        if key.count("/") == 2
    }
    assert any(key.startswith("success_by_family/") for key in families)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("method", ["grpo", "sdar"])
def test_a_tiny_policy_trains_twenty_steps_in_a_world(world, method, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    checked(in_a_world(world, method, tmp_path, 20), capfd, recwarn)
