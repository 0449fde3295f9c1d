"""The package ships its types (py.typed): mypy finds no mistake in them, with the settings of pyproject.toml."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = Path(tempfile.gettempdir(), "sdar-mypy")
"""Kept between runs: what did not change, torch and transformers above all, is not read a second time."""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_finds_no_mistake_in_any_file_of_the_package():
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(CACHE)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    files = [name for _, _, names in os.walk(ROOT / "sdar", followlinks=True) for name in names if name.endswith(".py")]
    assert ran.stdout.strip() == f"Success: no issues found in {len(files)} source files", ran.stdout + ran.stderr
