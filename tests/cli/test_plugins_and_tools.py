"""Parts of plugins, the command in a process of its own, and its tools."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_command import model, printed, write

from sdar import registry
from sdar.cli.commands import COMMANDS
from sdar.search import BM25Backend

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

    def retrieve(self, task, visit=0):
        raise NotImplementedError
'''

METHOD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from toy_command import GatedToyMethod
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
