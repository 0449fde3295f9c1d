"""The `sdar` command in an empty working directory."""

import sys
from pathlib import Path

import pytest
from toy_command import QUIET, TASKS, write

from sdar.cli import main


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
