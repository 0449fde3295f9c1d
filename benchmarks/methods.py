"""Every method on the quickstart's world after the same number of environment steps; a table with intervals.

    python benchmarks/methods.py --seeds 0 1 2 --env-steps 20000

One run after the other, one thread each. A run leaves one small file in ``--results``; one that is there already is not run again,
so several of these can share the work (``--only``), and table and pictures are made from the files alone. What differs from a
method's published setting stands in `sdar.figures.making`: the policy is tiny, the runs are short.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdar.evaluate.curves import aligned, smooth
from sdar.figures.making import METHODS, words_of


def run(method: str, seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Train; what the run was like as plain data."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdar", *words_of(method)]
    command += ["--seed_everything", str(seed), "--model.max_env_steps", str(env_steps), "--trainer.max_steps", "-1"]
    command += ["--trainer.val_check_interval", "1000000", "--trainer.default_root_dir", str(folder)]
    command += ["--trainer.enable_progress_bar", "false", "--model.log_episodes_every", "0"]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return result(folder)


def result(folder: Path) -> dict[str, Any]:
    """Success on the unseen panel before and after, the teacher's before, and the curve of training success; of the latest run."""
    latest = max(folder.glob("version_*"), key=os.path.getmtime)
    before, *_, after = [json.loads(line) for line in (latest / "validation.jsonl").read_text().splitlines()]
    with (latest / "metrics.csv").open() as lines:
        iterations = [row for row in csv.DictReader(lines) if row["success/train"]]
    return {
        "panel": before["hash"],
        "env_steps": after["env_steps"],
        "before": before["success/unseen"],
        "after": after["success/unseen"],
        "teacher": before.get("teacher/success/unseen"),
        "curve": [[int(float(row["train/env_steps"])), round(float(row["success/train"]), 4)] for row in iterations],
    }


def stored(folder: Path, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, list[dict[str, Any] | None]]:
    """What the runs of each method were like, by seed; None where there is no file."""
    files = {method: [folder / f"{method}-{seed}.json" for seed in seeds] for method in METHODS}
    return {m: [json.loads(f.read_text()) if f.exists() else None for f in of_method] for m, of_method in files.items()}


def points(estimate: list[float]) -> str:
    mean, low, high = (100 * x for x in estimate)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def table(results: dict[str, list[dict[str, Any] | None]]) -> str:
    """One line a method: success before (of each run) and after, and the teacher's in the first run's first validation."""
    seeds = max(map(len, results.values()))
    lines = [
        "| method | before | " + " | ".join(f"seed {s}" for s in range(seeds)) + " | mean | teacher | env steps |",
        "|---" * (seeds + 5) + "|",
    ]
    for method, runs in results.items():
        there = [r for r in runs if r is not None]
        if there:
            mean = sum(r["after"][0] for r in there) / len(there)
            teacher = points(there[0]["teacher"]) if there[0]["teacher"] else "-"
            cells = [
                ", ".join(f"{100 * r['before'][0]:.1f}" for r in there),
                *("-" if r is None else points(r["after"]) for r in runs),
            ]
            steps = ", ".join(str(r["env_steps"]) for r in there)
            lines.append(f"| {method} | {' | '.join(cells)} | {100 * mean:.1f} | {teacher} | {steps} |")
    return "\n".join(lines)


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Environment steps that all runs have reached, and the mean over runs of their smoothed training success, in percent."""
    curves = [tuple(zip(*run["curve"], strict=True)) for run in runs]
    reached, success = aligned([(steps, smooth(of_run)) for steps, of_run in curves], 100)
    return reached, 100 * success.mean(0)


def drawn_from(results: dict[str, list[dict[str, Any] | None]], method: str) -> str:
    """What stands in a picture, so that one can tell that it shows other runs than those that are there now."""
    text = json.dumps([results["grpo"], results[method]], sort_keys=True)
    return f"drawn from runs {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def draw(results: dict[str, list[dict[str, Any] | None]], pictures: Path, form: str = "svg") -> None:
    """One picture a method: training success over environment steps, a thin line a seed and a thick one for their mean, with GRPO's
    in grey, and a diamond for each validation, before training and after it.

    All go from 0 to 50 %, but those that do not fit. There is no background, and the colours can be told from white and from black.
    """
    import matplotlib

    grey, blue = "#7d8590", "#2f81d7"
    plain = {"svg.hashsalt": "sdar", "svg.fonttype": "none", "font.size": 9}
    shown = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    matplotlib.use("agg")
    from matplotlib import pyplot

    pictures.mkdir(parents=True, exist_ok=True)
    for method in (m for m, runs in results.items() if any(runs)):
        highest = 0.0
        with matplotlib.rc_context(plain | dict.fromkeys(shown, grey)):
            figure, axes = pyplot.subplots(figsize=(5.6, 3), layout="constrained")
            for name in dict.fromkeys(("grpo", method)):  # the method stands before GRPO
                runs = [run for run in results[name] if run is not None]
                if not runs:
                    continue
                colour = blue if name == method else grey
                for run in runs:
                    steps, success = zip(*run["curve"], strict=True)
                    axes.plot(steps, [100 * x for x in smooth(success)], color=colour, lw=0.7, alpha=0.6)
                    highest = max(highest, 100 * run["after"][0], *(100 * x for x in smooth(success)))
                axes.plot(*mean_curve(runs), color=colour, lw=2, label=f"{name}: mean of {len(runs)} seeds")
                ends = [(0, run["before"][0]) for run in runs] + [(run["env_steps"], run["after"][0]) for run in runs]
                axes.plot(*zip(*[(x, 100 * y) for x, y in ends], strict=True), "D", color=colour, ms=4, clip_on=False)
            axes.plot([], [], "D", color=grey, ms=4, label="validation before and after")
            axes.set(xlabel="environment steps", xlim=(0, None), ylim=(0, 50 if highest <= 50 else 100))
            axes.set_ylabel("training success, %\n(last 5 iterations)")
            axes.grid(axis="y", lw=0.3, alpha=0.6)
            axes.set_title(method if highest <= 50 else f"{method}, up to 100 %", loc="left", weight="bold")
            figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=8, handlelength=1.2)
            axes.spines[["top", "right"]].set_visible(False)
            told = {"Date": None, "Description": drawn_from(results, method)} if form == "svg" else None
            figure.savefig(pictures / f"{method}.{form}", transparent=True, metadata=told, dpi=150)
            pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=20000)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="folder for logs and checkpoints")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/methods"), help="folder for one file a run")
    parser.add_argument("--table-only", action="store_true", help="run nothing: table and pictures of what is there")
    parser.add_argument("--pictures", type=Path, help="folder for one picture of the curves a method (needs matplotlib)")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for method in args.only:
            file = args.results / f"{method}-{seed}.json"
            if not (args.table_only or file.exists()):
                print(method, seed, flush=True)
                found = run(method, seed, args.env_steps, args.runs / method / str(seed))
                file.write_text(json.dumps(found) + "\n")
    results = stored(args.results, args.seeds)
    print(table(results))
    if args.pictures is not None:
        draw(results, args.pictures)


if __name__ == "__main__":
    main()
