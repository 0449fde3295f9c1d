"""How long the command takes to answer: processor time of a fresh process.

    python benchmarks/startup.py [--runs 3] [--only TEXT] [--json FILE]

Beside it what bare Python and bare torch take: other processes on shared cores lengthen processor time, too, though less than the
clock's, so numbers are to be compared within one table. A first run warms the file cache, writes bytecode where an installer would
have, and is not counted. The last rows are the processor time until the first iteration of the quickstart has been told; it
plays 256 episodes to validate before that. Linux only (it reads /proc).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PYTHON = [sys.executable, "-c"]
SDAR = [str(Path(sys.executable).with_name("sdar"))]
QUICKSTART = ["fit", "-c", "conf/quickstart/sdar.yaml"]
CASES = {
    "python": [*PYTHON, "pass"],
    "import torch": [*PYTHON, "import torch"],
    "import lightning.pytorch.cli": [*PYTHON, "import lightning.pytorch.cli"],
    "import sdar": [*PYTHON, "import sdar"],
    "sdar --help": [*SDAR, "--help"],
    "sdar list": [*SDAR, "list"],
    "sdar list gates": [*SDAR, "list", "gates"],
    "sdar list SDAR": [*SDAR, "list", "SDAR"],
    "sdar plna (a misspelt command)": [*SDAR, "plna"],
    "a misspelt part": [*SDAR, *QUICKSTART, "--model.gate", "GapGat"],
    "a misspelt key": [*SDAR, *QUICKSTART, "--model.gate.bta", "3"],
    "sdar fit --help": [*SDAR, "fit", "--help"],
    "what completion asks": [*SDAR, "completion", "--line", "sdar fit --model SDAR --model.ga"],
}
FIRST_ITERATION = {
    "first iteration, no validation before": ["--trainer.num_sanity_val_steps", "0"],
    "first iteration of the quickstart": [],
}


def processor_time(command: list[str], folder: Path) -> float:
    """Seconds of user and system time of a command and its children."""
    with open(os.devnull, "w") as nothing:
        child = subprocess.Popen(command, cwd=folder, stdout=nothing, stderr=nothing)
        _, _, used = os.wait4(child.pid, 0)
        child.returncode = 0
    return used.ru_utime + used.ru_stime


def first_iteration(settings: list[str], folder: Path) -> float:
    """The same of the quickstart, until it tells of its first iteration."""
    with tempfile.TemporaryDirectory(dir=folder) as runs, open(Path(runs, "log"), "w") as log:
        child = subprocess.Popen(
            [*SDAR, *QUICKSTART, *settings, "--trainer.default_root_dir", runs], cwd=folder, stdout=log, stderr=log
        )
        try:
            while "iteration 1/" not in Path(runs, "log").read_text():
                if child.poll() is not None:
                    raise SystemExit(Path(runs, "log").read_text())
                time.sleep(0.05)
            return seconds_of(child.pid)
        finally:
            child.kill()
            child.wait()


def seconds_of(pid: int) -> float:
    """Seconds that a process and its ended children have had of a processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:10] == "model name"
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose names hold this text")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}; processor time in seconds of {given.runs} runs\n")
    print(f"| {'':34} | min | median | max |\n|---|---|---|---|")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        processor_time([*SDAR, *QUICKSTART, "--print_config"], Path(folder))
        for name in (name for name in (*CASES, *FIRST_ITERATION) if given.only in name):
            if name in CASES:
                taken = [processor_time(CASES[name], Path(folder)) for _ in range(given.runs + 1)][1:]
            else:
                taken = [first_iteration(FIRST_ITERATION[name], Path(folder)) for _ in range(given.runs)]
            results[name] = taken
            print(f"| {name:34} | {min(taken):.2f} | {statistics.median(taken):.2f} | {max(taken):.2f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "seconds": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
