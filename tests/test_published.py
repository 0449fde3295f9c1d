"""Composed settings have the numbers of conf/published.yaml, pages say what differs, and every world goes with every method."""

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ActionConfigFile, Namespace

from sdar import registry
from sdar.cli.parser import Parser
from sdar.data import TaskSource
from sdar.evaluate.tables import markdown
from sdar.module import AgentModule
from sdar.paths import installed_settings

ROOT = Path(__file__).parents[1]
CONF = installed_settings()
METHODS = sorted(p.stem for p in (CONF / "method").glob("*.yaml"))
ENVS, POLICIES = ("alfworld", "webshop", "search"), ("qwen2.5-3b", "qwen2.5-7b", "qwen3-1.7b")


@cache
def generator() -> Any:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = generator().load()
RUNS = [pytest.param(run, id=f"{run['page']}-{run['world'].split(',')[0]}") for run in TABLE["runs"]]


@cache
def parser() -> Parser:
    """Model and data as the command has them, checked to the last option; of the trainer the keys that the files set."""
    registry.load_parts()
    made = Parser(exit_on_error=False)
    made.add_argument("-c", action=ActionConfigFile)
    made.add_lightning_class_args(AgentModule, "model", subclass_mode=True)
    made.add_lightning_class_args(TaskSource, "data", subclass_mode=True)
    made.add_argument("--seed_everything", type=int)
    keys = {key for p in CONF.rglob("*.yaml") for key in (yaml.safe_load(p.read_text()).get("trainer") or {})}
    for key in sorted(keys):
        made.add_argument(f"--trainer.{key}", type=Any, default=0 if key == "num_sanity_val_steps" else None)
    return made


@cache
def composed(*files: str, options: str = "") -> Any:
    """The settings that these files give together, and options of the command line behind them."""
    return parser().parse_args([part for name in files for part in ("-c", str(CONF / f"{name}.yaml"))] + options.split())


def chosen(env: str, method: str) -> str:
    """The models go round, so that each meets every world and every method."""
    return POLICIES[([*ENVS, "math"].index(env) + METHODS.index(method)) % 3]


def filled(files: list[str]) -> list[str]:
    """A run's files with a policy and a scale."""
    world = re.sub(
        "^env/(quickstart|math|math_text|search_r1|science|code|alfworld_and_math)$", "env/alfworld", files[0]
    ).removeprefix("env/")
    method = next(f for f in files if f.startswith("method/")).removeprefix("method/")
    return [{"P": f"policy/{chosen(world, method)}", "S": "scale/8gpu_zero2"}.get(f, f) for f in files]


def value_of(settings: Namespace, key: str) -> Any:
    """What stands under a key of the command line; of a part that is a class its name."""
    if key == "rollouts":
        return settings.trainer.max_steps / settings.model.init_args.updates_per_rollout
    if key == "warmup_share":
        return settings.model.init_args.lr_scheduler.init_args.total_iters / settings.trainer.max_steps
    value: Any = settings
    for name in key.split("."):
        value = value.init_args if isinstance(value, Namespace) and "class_path" in value else value
        if value is None:  # the part is not set
            return None
        value = value[name]
    return value.class_path.rpartition(".")[2] if isinstance(value, Namespace) else value


# ------------------------------------------------------------------ the table


@pytest.mark.parametrize("run", RUNS)
def test_a_composed_run_has_the_numbers_of_the_table(run: dict[str, Any]) -> None:
    settings = composed(*filled(run["files"]), options=run.get("options", ""))
    wanted = {n["key"]: n.get("ours", n["value"]) for n in run["all"] if "key" in n}
    found = {key: value_of(settings, key) for key in wanted}
    assert {k: v for k, v in found.items() if v != pytest.approx(wanted[k])} == {}


OVERLAID = [param for param in RUNS if any("overlay" in n for n in param.values[0]["all"])]


@pytest.mark.parametrize("run", OVERLAID)
def test_with_the_reference_s_files_a_run_has_the_published_numbers(run: dict[str, Any]) -> None:
    generate = generator()
    changed = [n for n in run["all"] if "overlay" in n]
    files = dict.fromkeys(f"reference/{f}" for n in changed for f in generate.overlays(n, generate.world_of(run)))
    of_world = sorted(files, key=lambda f: ("skill" in f, "grpo" in f))
    settings = composed(*filled(run["files"]), *of_world)
    found = {n["key"]: value_of(settings, n["key"]) for n in changed}
    assert found == {n["key"]: n["value"] for n in changed}


@pytest.mark.parametrize("part", [*TABLE["shared"].values(), *TABLE["runs"]], ids=lambda part: part.get("page"))
def test_every_number_says_where_it_stands_and_every_difference_why(part: dict[str, Any]) -> None:
    for n in part["numbers"]:
        source = TABLE["sources"][n["source"]]
        assert "line" in n or source.get("seen") is False or source["file"].endswith(".py"), n
        assert 0 < len(n["quote"]) <= 120 and ("key" in n) != ("what" in n), n
        assert ("ours" in n) == ("because" in n) and ("what" not in n or {"published", "ours"} <= n.keys()), n
        assert "ours" not in n or n["ours"] != n.get("value"), f"{n} does not differ"


def test_every_source_is_used_and_has_repository_commit_and_file() -> None:
    used = {
        n["source"]
        for part in [*TABLE["shared"].values(), *TABLE["runs"], {"numbers": TABLE["statements"]}]
        for n in part["numbers"]
    }
    assert used == TABLE["sources"].keys()
    for source in TABLE["sources"].values():
        assert {"repository", "commit", "file"} <= source.keys() or "paper" in source


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key as on the command line, value) of every number, truth value and list in a file."""
    for name, value in node.items():
        here = path if name == "init_args" else f"{path}.{name}".strip(".")
        if isinstance(value, dict):
            yield from leaves(value, here)
        elif not isinstance(value, str):
            yield here, value


def test_no_number_of_a_method_or_a_world_is_outside_of_the_table() -> None:
    """So that a changed number in conf/ fails, whoever's number it is."""
    reached: dict[str, set[str]] = {}
    for run in TABLE["runs"]:
        keys = {n["key"] for n in run["all"] if "key" in n}
        keys |= {"trainer.max_steps", "model.updates_per_rollout"} if "rollouts" in keys else set()
        keys |= {"model.lr_scheduler.total_iters"} if "warmup_share" in keys else set()
        for file in run["files"]:
            reached.setdefault(file, set()).update(keys)
    missing = {}
    for path in sorted([*CONF.glob("method/*.yaml"), *CONF.glob("env/*.yaml")]):
        name = f"{path.parent.name}/{path.stem}"
        if not name.endswith("_tiny") and name != "env/quickstart":
            numbers = {key for key, _ in leaves(yaml.safe_load(path.read_text()))}
            missing |= {name: sorted(left)} if (left := numbers - reached.get(name, set())) else {}
    assert missing == {}


def test_the_pages_have_the_tables_that_are_written_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert generator().main(["--check"]) == 0, f"python docs/generate.py: {capsys.readouterr().out}"


def test_a_table_of_runs_is_what_the_command_prints_of_its_file() -> None:
    """And one that somebody edits is told of."""
    text = (ROOT / "LOG.md").read_text(encoding="utf-8")
    files = re.findall(r"<!-- sdar compare (\S+): written by docs/generate\.py -->", text)
    assert files
    for file in files:
        lines, found = generator().measured(file), json.loads((ROOT / file).read_text(encoding="utf-8"))
        assert "\n".join(lines) in markdown(found) and f"-->\n{chr(10).join(lines)}\n<!-- end of sdar compare {file}" in text
        for run in (run for panel in found["panels"] for of in panel["settings"] for run in of["runs"]):
            assert any(line.startswith(f"| {run['seed']} |") and f"{100 * run['success'][0]:.1f} %" in line for line in lines)
    row = generator().measured(files[0])[2]
    edited = text.replace(row, row.replace("%", "% or so"))
    assert edited != text == generator().filled(edited, f"sdar compare {files[0]}", generator().measured(files[0]), ".")


def test_what_readme_says_of_the_pretrained_run_is_what_was_measured() -> None:
    """In its sentences, which have no room for a table."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    cells = generator().measured("benchmarks/results/real.json")[2].strip("| ").split(" | ")[1:]
    assert len(cells) == 2 and all(cell in text for cell in cells)


PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs/methods").glob("*.md")) if p.stem != "README"}


def tagged(page: str) -> list[str]:
    """What is said to stand in public code: the words before each tag, from the tag before it on."""
    text = re.sub(r"\s+", " ", PAGES[page].split("## Against", 1)[1].split("<!-- numbers")[0])
    parts = re.split(r"\([^()]*\bcode\b[^()]*\)", text)
    return [part[-250:] + tag for part, tag in zip(parts, re.findall(r"\([^()]*\bcode\b[^()]*\)", text), strict=False)]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_of_public_code_has_a_line_in_the_table(page: str) -> None:
    words = [s["says"] for s in TABLE["statements"] if s["page"] == page]
    assert [said for said in tagged(page) if not any(w in said for w in words)] == []
    assert [w for w in words if not any(w in said for said in tagged(page))] == []


# ------------------------------------------------------------------ everything goes with everything


def check(files: list[str], env: str, method: str, policy: str) -> None:
    settings = composed(*files)
    named = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())["model"]["class_path"]
    assert settings.model.class_path == f"sdar.{named}"
    assert settings.model.init_args.policy.init_args.path.lower().startswith(f"qwen/{policy}")
    world = {"alfworld": "HouseholdEnv", "webshop": "WebShopEnv", "search": "SearchEnv", "math": "MathEnv"}[env]
    assert settings.data.init_args.env.class_path == f"sdar.{world}"
    assert settings.trainer.devices == 8 and settings.trainer.strategy == "deepspeed_stage_2"


def files_of(env: str, method: str, policy: str) -> list[str]:
    """The published run of a method in a world, if there is one; else the two files, and in mathematics the papers' length."""
    if env == "math":
        return ["env/math", f"method/{method}", "env/math_long", f"policy/{policy}", "scale/8gpu_zero2"]
    of = [r["files"] for r in TABLE["runs"] if r["files"][:2] == [f"env/{env}", f"method/{method}"] and "P" in r["files"]]
    return [
        {"P": f"policy/{policy}", "S": "scale/8gpu_zero2"}.get(f, f)
        for f in (of or [[f"env/{env}", f"method/{method}", "P", "S"]])[0]
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("env", ["webshop", "search", "math"])  # ALFWorld: the table above, and below
def test_a_world_goes_with_every_method_and_model(env: str, method: str) -> None:
    policy = chosen(env, method)
    check(files_of(env, method, policy), env, method, policy)


@pytest.mark.parametrize("method", METHODS)
def test_the_length_of_the_papers_on_mathematics_changes_nothing_else_of_a_method(method: str) -> None:
    settings = composed(*files_of("math", method, chosen("math", method)))
    assert (settings.data.init_args.val_attempts, settings.data.init_args.max_episode_tokens) == (32, 20480)
    told = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())["model"]["init_args"]
    for name in ("sampler", "val_sampler"):
        wanted = told.get(name, {}).get("init_args", {}) | {"max_new_tokens": 16384}
        assert vars(settings.model.init_args[name].init_args).items() >= wanted.items()


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("env", ENVS)
def test_every_world_goes_with_every_method_and_every_model(env: str, method: str, policy: str) -> None:
    check(files_of(env, method, policy), env, method, policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_the_published_model(policy: str) -> None:
    given = composed(*files_of("alfworld", "grpo", policy)).model.init_args.policy.init_args
    family, size = policy.split("-")
    assert given.path == (f"Qwen/Qwen3-{size.upper()}" if family == "qwen3" else f"Qwen/Qwen2.5-{size.upper()}-Instruct")
    assert given.chat_options == ({"enable_thinking": False} if family == "qwen3" else None)
    assert given.gradient_checkpointing is True and given.dtype == "auto"


def table_rows() -> list[tuple[str, list[str], list[str]]]:
    """(options, methods, files) of each row of the table of published runs."""
    part = (CONF / "README.md").read_text(encoding="utf-8").split("## Published runs")[1].split("## Published numbers")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("| ") and "published run" not in line]
    code = re.compile("`([^`]+)`")
    return [
        (" ".join(o for o in code.findall(run) if o.startswith("--")), code.findall(methods), code.findall(files))
        for run, methods, files in rows
    ]


def test_the_runs_of_the_readme_are_those_of_the_table_and_cover_every_piece() -> None:
    short = {"policy/P": "P", "scale/S": "S"}
    told = {
        (options, *(short.get(f, f.replace("method/M", f"method/{m}")) for f in files))
        for options, methods, files in table_rows()
        for m in methods
    }
    assert told == {(run.get("options", ""), *run["files"]) for run in TABLE["runs"] if run.get("readme", True)}
    used = {f for _, *files in told for f in files} | {f"policy/{p}" for p in POLICIES}
    overlays = {f for run in TABLE["runs"] for n in run["all"] for f in generator().overlays(n, generator().world_of(run))}
    used |= {f"reference/{f}" for f in overlays} | {f for run in TABLE["runs"] for f in run["files"] if "reference" in f}
    pieces = {
        f"{p.parent.name}/{p.stem}" for kind in ("env", "reference", "teacher", "policy") for p in CONF.glob(f"{kind}/*.yaml")
    }
    ours = {"env/quickstart", "policy/smollm2-135m"}  # no paper's
    assert {p for p in pieces - ours if not p.endswith("_tiny")} <= used
