"""What it costs to write the episodes of an iteration with every number of every token, and how large they are.

    python benchmarks/episodes.py [--rounds 5] [--layouts trajectory turn] [--quick]

Iterations of the quickstart (SDAR with a frozen teacher), each twice: with its episodes written and without. The share is that of
gathering, spelling, packing and writing in the processor time of the iteration, measured inside of it; the ratio of both iterations, which
has the noise of two of them, stands beside it. The limits: 5 % and 200 bytes a response token.
"""

from typing import Any

import measuring
from measuring import Run, ratios, spread, timed

from sdar import episodes
from sdar.training.reporting import run_folder


def settings(layout: str, quick: bool) -> list[str]:
    chosen = {"data.layout": layout, "data.val_tasks": 2}
    return measuring.words(["quickstart/sdar"], chosen | ({"data.tasks_per_step": 2} if quick else {}))


def measured(run: Run, rounds: int) -> list[object]:
    """A row of the table."""
    module, spent = run.module, [0.0]
    write = module.write_episodes

    def timed_write(played: list[Any]) -> None:
        taken, _ = timed(lambda: write(played))
        spent[0] = taken[0]

    def step(number: int, wanted: bool) -> float:
        module.token_log.begin(wanted)
        return run.step(number)["step"]

    module.write_episodes = timed_write
    module.log_episodes_every = 1
    folder = run_folder(module.trainer)
    shares, pairs = [], []
    for number in range(rounds + 1):
        without, written = step(number, False), step(number, True)
        if number:  # what was never done before takes longer
            shares.append(100 * spent[0] / written)
            pairs += ratios([written], [without])
    found = episodes.read(folder)
    tokens, size = sum(e.response_tokens for e in found), sum(f.stat().st_size for f in folder.rglob("*.jsonl.gz"))
    return [spread(shares), spread(pairs), f"{tokens // (rounds + 1):,}", f"{size / tokens:.0f}"]


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--layouts", nargs="+", default=["trajectory", "turn"])
    given = parser.parse_args()
    measuring.begin(given)
    rows = []
    for layout in given.layouts:
        row = measuring.inside([settings(layout, given.quick)], lambda run: measured(run, given.rounds))
        rows.append([layout, *row])
    measuring.tell(
        given,
        "Episodes with every number of every token",
        f"Quickstart, SDAR; processor time, medians [least, most] of {given.rounds} interleaved pairs.",
        measuring.table(
            ["layout", "share of the iteration, %", "with over without", "response tokens an iteration", "bytes a token"], rows
        ),
    )


if __name__ == "__main__":
    measuring.run(main)
