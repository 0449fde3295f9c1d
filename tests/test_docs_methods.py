"""The pages of docs/methods: every method has one, and what they name exists, parses, and is what the benchmark runs."""

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from sdar import registry
from sdar.cli import main

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/methods"
PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted(FOLDER.glob("*.md")) if p.stem != "README"}
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
DOCUMENTS = PAGES | {"README": INDEX}


def commands(text):
    """The `sdar` commands in code blocks, as lists of arguments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("sdar ")]


COMMANDS = [
    pytest.param(c, id=f"{name}-{k}")
    for name, text in DOCUMENTS.items()
    for k, c in enumerate(commands(text))
    if k
    or name not in PAGES
    or name in ("skill_prompt", "sft")  # the first of a method is the benchmark's, which tests/test_conf.py runs
]


def methods():
    """The files of the training methods that come with sdar."""
    registry.load_parts()
    modules = {cls.__module__ for cls in registry.parts("strategies").values()}
    return sorted(m.rpartition(".")[2] for m in modules if m.startswith("sdar.strategies."))


@cache
def logged():
    """Patterns of all metrics: those of the table in docs/metrics.md and the names in the source."""
    table = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    source = "".join(p.read_text(encoding="utf-8") for folder in ("sdar", "strategies") for p in (ROOT / folder).rglob("*.py"))
    names = re.findall(r"`([^`\s]+/[^`\s]+)`", table) + re.findall(r"metrics\.\w+\(\s*f?\"([^\"]+)\"", source)
    return [re.sub(r"\\?[<{].*?\\?[>}]", r"[^/]+", re.escape(n)) for n in names]


def test_every_method_has_a_page_and_every_page_a_method():
    assert list(PAGES) == methods()


def test_the_index_names_every_page_once_in_its_lists_and_once_in_its_table():
    listed = re.findall(r"^\* \[(\w+)\]\((\w+)\.md\):", INDEX, re.MULTILINE)
    assert sorted(listed) == [(name, name) for name in PAGES]
    assert sorted(re.findall(r"^\| (\w+) \|", INDEX, re.MULTILINE)) == sorted([*PAGES, "method"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_page_links_to_and_names_exists(name):
    text = DOCUMENTS[name]
    links = re.findall(r"\]\(([^)#]+)", text)
    settings = re.findall(r"conf/[\w./-]+\.yaml", text)
    assert links
    assert [link for link in links if not (FOLDER / link).exists()] == []
    assert [path for path in settings if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_metric_that_a_page_names_is_logged(name):
    named = set(re.findall(r"`([\w<>@-]+(?:/[\w<>@.-]+)+)`", DOCUMENTS[name]))
    unknown = [n for n in sorted(named) if not any(re.fullmatch(known, n) for known in logged())]
    assert [n for n in unknown if not (ROOT / n).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_sections_and_room_for_one_curve(name):
    heads = re.findall(r"^## (.+)$", PAGES[name], re.MULTILINE)
    assert [heads[k] for k in (0, 1, 2, 4, 5)] == ["Formula", "Parts", "Settings", "Curves on the quickstart", "Failure signs"]
    assert heads[3].startswith("Against ") and len(heads) == 6
    assert "## Curves on the quickstart\n\n" in PAGES[name]
    assert commands(PAGES[name])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # settings are found where they are installed
    assert main([*command, "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out


def test_the_quickstarts_commands_are_what_the_benchmark_runs():
    spec = importlib.util.spec_from_file_location("benchmark_of_methods", ROOT / "benchmarks/methods.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for name, settings in benchmark.METHODS.items():
        files = [
            part for file in ("env/quickstart", f"method/{name}", "scale/quickstart") for part in ("-c", f"conf/{file}.yaml")
        ]
        assert commands(PAGES[name])[0] == ["fit", *files, *settings], name
