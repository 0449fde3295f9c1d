"""Where the time of a rollout, of scoring and of an update goes, in percent by kind.

    python benchmarks/profile_step.py [--policies 1M] [--layouts trajectory turn] [--quick]

One iteration of SDAR at the quickstart's sizes under torch's profiler; self time of operators on the processor, in kinds: matrix products,
attention, element-wise and sums, moving and indexing, sampling. What no operator took is Python. The profiler makes small operators
dearer than they are.
"""

import argparse
import re
from typing import Any

import measuring
from measuring import Run
from torch.profiler import ProfilerActivity, profile

PHASES = ("rollout", "score", "update")
KINDS = {
    "matrix products": r"mm$|matmul|linear|bmm|addmm|einsum|mkldnn",
    "attention": r"attention|flash",
    "sampling and softmax": r"softmax|cumsum|sort|topk|multinomial|searchsorted|uniform|logsumexp|rand",
    "moving and indexing": r"copy_|cat$|index|gather|scatter|stack|clone|select|slice|view|expand|transpose|reshape|contiguous|"
    r"narrow|pad|empty|zeros|fill_|_to_copy|permute|unsqueeze|t$|nonzero|resize|arange|embedding",
    "element-wise and sums": r".",
}
"""Kind -> names of operators; the first that fits."""
PYTHON = "Python between operators"


def kind_of(operator: str) -> str:
    name = operator.removeprefix("aten::")
    return next(kind for kind, names in KINDS.items() if re.search(names, name))


class Profiled:
    """A phase under the profiler: seconds by kind, those of Python among them."""

    def __init__(self, inner: Any):
        self.inner, self.seconds = inner, dict[str, float]()
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def __enter__(self) -> None:
        self.inner.__enter__()
        self.profiler.__enter__()
        self.watch = measuring.watch()

    def __exit__(self, *error: Any) -> None:
        _, whole = self.watch()
        self.profiler.__exit__(*error)
        for event in self.profiler.key_averages():
            if not event.key.startswith(("Optimizer.", "ProfilerStep")):
                kind = kind_of(event.key)
                self.seconds[kind] = self.seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6
        self.seconds[PYTHON] = whole - sum(self.seconds.values())
        self.inner.__exit__(*error)


def shares(run: Run, phase: str) -> tuple[dict[str, float], float]:
    """Percent of a phase of iteration 1 by kind, and its processor seconds without the profiler."""
    run.step(0)
    alone = run.step(1)[phase]
    of_phase, found = run.module.phase, []

    def profiled(name: str, rate: str | None = None) -> Any:
        if name != phase:
            return of_phase(name, rate)
        found.append(Profiled(of_phase(name, rate)))
        return found[-1]

    run.module.phase = profiled
    run.step(1)
    run.module.phase = of_phase
    seconds = found[0].seconds
    return {kind: 100 * taken / sum(seconds.values()) for kind, taken in seconds.items()}, alone


def settings(policy: str, layout: str, quick: bool) -> list[str]:
    chosen = {**measuring.policy(policy), "model.updates_per_rollout": 1, "data.layout": layout, "data.val_tasks": 2}
    chosen |= {"model.optimizer.lr": 1e-9}
    if quick:
        chosen |= {"data.tasks_per_step": 2, "data.env.horizon": 3}
    return measuring.words(["quickstart/sdar"], chosen)


def measure(policy: str, layout: str, given: argparse.Namespace) -> list[list[object]]:
    """Three rows of the table."""

    def work(run: Run) -> list[list[object]]:
        rows: list[list[object]] = []
        for phase in PHASES:
            found, alone = shares(run, phase)
            rows.append([policy, layout, phase, f"{alone:.2f}", *(f"{found.get(kind, 0.0):.0f}" for kind in (*KINDS, PYTHON))])
        return rows

    return measuring.inside([settings(policy, layout, given.quick)], work)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--policies", nargs="+", choices=measuring.SIZES, default=["1M"])
    parser.add_argument("--layouts", nargs="+", default=["trajectory", "turn"])
    given = parser.parse_args()
    measuring.begin(given)
    rows = [row for policy in given.policies for layout in given.layouts for row in measure(policy, layout, given)]
    columns = ["policy", "layout", "phase", "processor s", *(f"{kind}, %" for kind in (*KINDS, PYTHON))]
    measuring.tell(
        given, "Profile of SDAR's phases", "Self time of operators, in percent of the phase.", measuring.table(columns, rows)
    )


if __name__ == "__main__":
    measuring.run(main)
