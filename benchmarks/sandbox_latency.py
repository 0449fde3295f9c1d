"""How long a warm run takes in each sandbox of this machine: median and 95th percentile of 200 runs with sympy and numpy.

    python benchmarks/sandbox_latency.py

Every run imports both (free where the server has them loaded) and prints a number; 10 runs before are not counted.
"""

import statistics
import time

from jsonargparse import auto_cli

from sdar.errors import SdarError
from sdar.sandbox import BubblewrapRunner, CodeRunner, LandlockRunner, LimitsOnlyRunner

CODE = "import sympy, numpy\nprint({} + 1)"


def latencies(runner: CodeRunner, runs: int, warm_up: int = 10) -> list[float]:
    """Milliseconds of each run, in order of size."""
    took = []
    for i in range(warm_up + runs):
        began = time.perf_counter()
        result = runner.run(CODE.format(i))
        took.append(1000 * (time.perf_counter() - began))
        if result.stdout != f"{i + 1}\n":
            raise SystemExit(f"{type(runner).__name__}: {result}")
    return sorted(took[warm_up:])


def main(runs: int = 200) -> None:
    """Print a table.

    Args:
        runs: Runs that are measured.
    """
    print(f"{'runner':20} {'median ms':>10} {'p95 ms':>10}   layers")
    for runner in (BubblewrapRunner(), LandlockRunner(), LimitsOnlyRunner(allow_unsafe=True)):
        name = type(runner).__name__
        try:
            took = latencies(runner, runs)
        except SdarError as error:
            print(f"{name:20} not here: {error}")
            continue
        finally:
            runner.close()
        print(f"{name:20} {statistics.median(took):10.1f} {took[int(0.95 * len(took))]:10.1f}   {', '.join(runner.layers)}")


if __name__ == "__main__":
    auto_cli(main)
