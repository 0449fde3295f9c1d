"""Every method on the quickstart's world after the same number of environment steps; a table with intervals.

    python benchmarks/methods.py --seeds 0 1 2 --env-steps 20000

One run after the other, one thread each. A run leaves one small file in ``--results``; one that is there already is not run again,
so several of these can share the work (``--only``), and table and pictures are made from the files alone. What differs from a
method's published setting stands in `METHODS`: the policy is tiny, the runs are short.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SKILLS = ["-c", "conf/scale/quickstart_skills.yaml"]
TEACHER = ["-c", "conf/scale/quickstart_teacher.yaml"]
JUDGE = ["-c", "conf/scale/quickstart_judge.yaml"]
FROZEN = ["--model.teacher", "InitialTeacher"]
NO_KL = ["--model.kl_coef", "0"]


def coef(value: float) -> list[str]:
    return ["--model.distill_coef", str(value)]


METHODS = {
    "grpo": NO_KL,
    "gigpo": NO_KL,
    "critic_search": [*SKILLS, *JUDGE, *NO_KL],
    "sdar": [*SKILLS, *FROZEN, *coef(2), *NO_KL],
    "gated_opsd": [*SKILLS, *FROZEN, *coef(2), *NO_KL],
    "grpo_opsd": [*SKILLS, *FROZEN, *coef(2), *NO_KL],
    "skill_sd": [*SKILLS, *FROZEN, *coef(1), *NO_KL],
    "rlsd": [*SKILLS, *FROZEN, *NO_KL, "--model.lam.first", "0"],
    "opsd": [*SKILLS, *FROZEN],
    "hdpo": [*SKILLS, *FROZEN, *coef(1), *NO_KL],
    "sdpo": [],
    "sd_search": [*coef(0.1), *NO_KL],
    "skill_grpo": [*SKILLS, *NO_KL],
    "opd": TEACHER,
    "top_k_opd": TEACHER,
    "sod": TEACHER,
    "tcod": [*TEACHER, "--model.controller.every", "3", "--model.controller.first", "0"],
    "tip": TEACHER,
    "topd": [*TEACHER, "--model.window", "16"],
}


def run(method: str, seed: int, env_steps: int, folder: Path) -> dict[str, Any]:
    """Train; what the run was like as plain data."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdar", "fit", "-c", "conf/env/quickstart.yaml", "-c", f"conf/method/{method}.yaml"]
    command += ["-c", "conf/scale/quickstart.yaml", *METHODS[method]]
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


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw(results: dict[str, list[dict[str, Any] | None]], pictures: Path) -> None:
    """One picture a method: training success of each seed over environment steps, GRPO's in grey."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sdar"
    from matplotlib import pyplot

    pictures.mkdir(parents=True, exist_ok=True)
    for method in (m for m, runs in results.items() if any(runs)):
        figure, axes = pyplot.subplots(figsize=(5, 2.4), layout="constrained")
        for name, colour in (("grpo", "0.75"), (method, "C0")):
            for i, run in enumerate(filter(None, results[name])):
                steps, success = zip(*run["curve"], strict=True)
                axes.plot(steps, [100 * x for x in smooth(success)], color=colour, lw=1.2, label=None if i else name)
        axes.set(xlabel="environment steps", ylabel="training success, %", ylim=(0, 100), xlim=(0, None))
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(pictures / f"{method}.svg", metadata={"Date": None})
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
    files = {m: [args.results / f"{m}-{s}.json" for s in args.seeds] for m in METHODS}
    results = {m: [json.loads(f.read_text()) if f.exists() else None for f in of_method] for m, of_method in files.items()}
    print(table(results))
    if args.pictures is not None:
        draw(results, args.pictures)


if __name__ == "__main__":
    main()
