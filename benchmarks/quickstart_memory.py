"""How much memory the quickstart takes: the largest resident set of a fresh process.

    python benchmarks/quickstart_memory.py [--steps 20] [--rounds 3]

`sdar fit -c conf/quickstart/sdar.yaml` with its validation before training and ten iterations, so that what grows shows; beside it what no
run can be without: bare torch, and torch with Lightning's command line and transformers' model.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring
from measuring import spread

CASES = {
    "import torch": ["-c", "import torch"],
    "import torch, lightning, transformers' Qwen3": [
        "-c",
        "import torch, lightning.pytorch.cli; from transformers import AutoTokenizer, Qwen3ForCausalLM",
    ],
    "import sdar, its command line": ["-c", "import sdar.cli, sdar.cli.run, sdar.module"],
    "quickstart": ["-m", "sdar", "fit", "-c", "conf/quickstart/sdar.yaml"],
}


def peak(words: list[str], folder: str) -> tuple[float, float]:
    """MiB and processor seconds of a command."""
    with open(Path(folder, "log"), "w") as log:
        child = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(Path(folder, "log").read_text())
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    given = parser.parse_args()
    rows = []
    for name, words in CASES.items():
        if given.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = (
                ["--trainer.max_steps", str(given.steps), "--trainer.default_root_dir", folder] if name == "quickstart" else []
            )
            found = [peak([*words, *run], folder) for _ in range(given.rounds)]
        rows.append([name, spread([mib for mib, _ in found], 0), spread([seconds for _, seconds in found], 1)])
    measuring.tell(
        given,
        "Memory of the quickstart",
        f"Medians [least, most] of {given.rounds} runs; {given.steps} optimizer steps.",
        measuring.table(["process", "largest resident set, MiB", "processor s"], rows),
    )


if __name__ == "__main__":
    measuring.run(main)
