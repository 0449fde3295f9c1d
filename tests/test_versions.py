"""What is installed is compared with what was tested, and named before it does harm."""

import json
import re
import shlex
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from sdar import versions

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that other versions are installed: ``installed["torch"] = "2.6.0"``."""
    others: dict[str, str] = {}
    monkeypatch.setattr(versions, "version", lambda name: others.get(name) or metadata.version(name))
    return others


def test_the_set_that_runs_the_tests_is_a_tested_one():
    assert versions.complaints() == []


@pytest.mark.parametrize(
    ("name", "found"), [("torch", "2.6.0"), ("transformers", "5.40.0"), ("peft", "0.19.0"), ("jsonargparse", "5.0.0")]
)
def test_a_version_outside_of_the_tested_range_is_named_with_the_remedy(installed, name, found):
    installed[name] = found
    (line,) = versions.complaints()
    span = versions._tested()[name]
    assert line.startswith(f"{name} {found} is installed, sdar was tested with {name}{span}")
    assert line.endswith(f"pip install '{name}{span}'")


def test_a_build_for_one_kind_of_machine_is_its_version(installed):
    installed["torch"] = "2.13.0+cu130"
    assert versions.complaints() == []


def test_what_is_not_installed_and_what_only_develops_is_nobodys_concern(installed, monkeypatch):
    installed["ruff"] = "0.0.1"
    assert "peft" in versions._tested() and "ruff" not in versions._tested() and versions.complaints() == []


def test_files_that_were_never_installed_have_no_ranges(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "requires", missing)
    assert versions.complaints() == []


def origin(monkeypatch, **direct_url):
    """Pretends that sdar was installed from there."""
    requires = [f"{line.split(';')[0]}; extra == '{extra}'" for extra, lines in EXTRAS.items() for line in lines]
    found = SimpleNamespace(requires=requires, read_text=lambda name: json.dumps(direct_url) if direct_url else None)
    monkeypatch.setattr(versions, "distribution", lambda name: found)


def test_an_extra_of_a_checkout_is_installed_from_it(monkeypatch, tmp_path):
    folder = tmp_path / "my checkout"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    origin(monkeypatch, url=folder.as_uri(), dir_info={"editable": True})
    assert shlex.split(versions.install("lora")) == ["pip", "install", "-e", f"{folder}[lora]"]
    (folder / "constraints.txt").touch()
    assert shlex.split(versions.install("lora"))[2:4] == ["-c", str(folder / "constraints.txt")]


@pytest.mark.parametrize(
    "direct_url", [{}, {"url": "file:///gone", "dir_info": {"editable": True}}, {"url": "https://a/b.whl"}]
)
def test_elsewhere_what_an_extra_asks_for_is_installed(monkeypatch, direct_url):
    origin(monkeypatch, **direct_url)
    assert versions.install("lora") == f"pip install '{Requirement(*EXTRAS['lora'])}'"
    assert shlex.split(versions.install("webshop"))[2:] == [str(Requirement(line)) for line in EXTRAS["webshop"]]


def test_files_that_were_never_installed_name_their_checkout(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "distribution", missing)
    assert versions.install("gym").endswith(f"-e '{ROOT}[gym]'")


def test_every_command_that_installs_an_extra_can_work():
    named = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts = {name: (ROOT / name).read_text() for name in named.stdout.split("\0") if name and (ROOT / name).is_file()}
    extras = set()
    for name, text in texts.items():
        assert not re.search(r"pip install[^\n]*sdar\[", text), f"{name}: no index has sdar"
        extras |= set(re.findall(r"""\binstall\(["']([\w-]+)["']\)|-e "?\.\[([\w,-]+)\]""", text))
    extras = {extra for pair in extras for both in pair for extra in both.split(",") if extra}
    assert extras <= set(EXTRAS) and len(extras) > 5
