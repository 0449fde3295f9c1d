"""Where the time of finished runs went: seconds, share, tokens a second and memory of each phase, from the folders that they left.

    python benchmarks/phases.py runs/real/version_0 [RUN ...] [--to FILE]

Seconds are the clock's, as the runs logged them: other processes on the same cores lengthen them. Start-up, and what lies between the
phases, is not among them.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import measuring

PHASES = ("validation", "rollout", "score", "judge", "update")
RATES = {"rollout": "rollout/tokens_per_second", "update": "train/tokens_per_second"}


def phases(lines: Sequence[dict[str, str]]) -> dict[str, tuple[list[float], float | None]]:
    """Of each phase its seconds, each time that it came, and its tokens a second over the run."""
    found = {}
    for phase in PHASES:
        rows = [line for line in lines if line.get(f"time/{phase}_s")]
        seconds = [float(line[f"time/{phase}_s"]) for line in rows]
        rates = [float(line[RATES[phase]]) for line in rows] if phase in RATES else []
        if seconds:
            tokens = sum(s * r for s, r in zip(seconds, rates, strict=False))
            found[phase] = seconds, tokens / sum(seconds) if rates else None
    return found


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    given = parser.parse_args()
    measuring.begin(given)
    if not given.runs:
        raise measuring.Missing("no run was named")
    rows: list[list[object]] = []
    for number, folder in enumerate(given.runs, 1):
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        found = phases(lines)
        whole = sum(sum(seconds) for seconds, _ in found.values())
        peaks = [float(line["memory/peak_gib"]) for line in lines if line.get("memory/peak_gib")]
        for phase, (seconds, rate) in found.items():
            shares = f"{sum(seconds):.0f}", f"{sum(seconds) / whole:.0%}", "" if rate is None else f"{rate:.0f}"
            rows.append([number, phase, len(seconds), measuring.spread(seconds, 1), *shares, ""])
        rows.append([number, "all", "", "", f"{whole:.0f}", "", "", f"{max(peaks):.1f}" if peaks else ""])
    columns = ["run", "phase", "times", "s each", "s", "share", "tokens/s", "most memory, GiB"]
    measuring.tell(given, "Where the time of finished runs went", measuring.table(columns, rows))


if __name__ == "__main__":
    measuring.run(main)
