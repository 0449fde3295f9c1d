"""Every method on the quickstart's world after the same number of environment steps; a table with intervals.

    python benchmarks/methods.py --seeds 0 1 2 --env-steps 30000 --out runs/methods

One run after the other, one thread each; a run that is there already is not run again, so several of these can share the work
(``--only``). What differs from a method's published setting stands in `METHODS`: the policy is tiny, the runs are short.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

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
    "rlsd": [*SKILLS, *FROZEN, *NO_KL],
    "opsd": [*SKILLS, *FROZEN],
    "hdpo": [*SKILLS, *FROZEN, *coef(1), *NO_KL],
    "sdpo": [],
    "sd_search": [*coef(0.1), *NO_KL],
    "skill_grpo": [*SKILLS, *NO_KL],
    "opd": TEACHER,
    "top_k_opd": TEACHER,
    "sod": TEACHER,
    "tcod": [*TEACHER, "--model.controller.every", "3"],
    "tip": TEACHER,
    "topd": [*TEACHER, "--model.window", "16"],
}


def run(method: str, seed: int, env_steps: int, folder: Path) -> None:
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "validation.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "sdar", "fit", "-c", "conf/env/quickstart.yaml", "-c", f"conf/method/{method}.yaml"]
    command += ["-c", "conf/scale/quickstart.yaml", *METHODS[method]]
    command += ["--seed_everything", str(seed), "--model.max_env_steps", str(env_steps), "--trainer.max_steps", "-1"]
    command += ["--trainer.val_check_interval", "1000000", "--trainer.default_root_dir", str(folder)]
    command += ["--trainer.enable_progress_bar", "false", "--model.log_episodes_every", "0"]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    (folder / "done").touch()


def points(estimate: list[float]) -> str:
    mean, low, high = (100 * x for x in estimate)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def table(methods: list[str], seeds: list[int], out: Path) -> str:
    """One line a method: success before and after for each seed, and the teacher's in the first validation."""
    lines = [
        "| method | before | " + " | ".join(f"seed {s}" for s in seeds) + " | mean | teacher | env steps |",
        "|---" * (len(seeds) + 5) + "|",
    ]
    for method in methods:
        runs = [out / method / str(s) for s in seeds if (out / method / str(s) / "done").exists()]
        if not runs:
            continue
        records = [[json.loads(line) for line in (r / "validation.jsonl").read_text().splitlines()] for r in runs]
        after = [r[-1]["success/unseen"] for r in records]
        mean = sum(e[0] for e in after) / len(after)
        teacher = records[0][0].get("teacher/success/unseen")
        steps = ", ".join(str(r[-1]["env_steps"]) for r in records)
        cells = [points(records[0][0]["success/unseen"]), *(points(e) for e in after), *["-"] * (len(seeds) - len(after))]
        lines.append(
            f"| {method} | {' | '.join(cells)} | {100 * mean:.1f} | {points(teacher) if teacher else '-'} | {steps} |"
        )
    return "\n".join(lines)


def curve(folder: Path) -> tuple[list[float], list[float]]:
    """Environment steps and training success of every iteration."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(folder.rglob("events.*")).parent))
    events.Reload()
    steps, success = (events.Scalars(name) for name in ("train/env_steps", "success/train"))
    return [e.value for e in steps], [e.value for e in success]


def smooth(values: list[float], width: int = 5) -> list[float]:
    """Mean of the last `width` values."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def draw(methods: list[str], seeds: list[int], out: Path, pictures: Path) -> None:
    """One picture a method: training success of each seed over environment steps, GRPO's in grey."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sdar"
    from matplotlib import pyplot

    pictures.mkdir(parents=True, exist_ok=True)
    runs = {m: [out / m / str(s) for s in seeds if (out / m / str(s) / "done").exists()] for m in {"grpo", *methods}}
    for method in methods:
        if not runs[method]:
            continue
        figure, axes = pyplot.subplots(figsize=(5, 2.4), layout="constrained")
        for name, colour in (("grpo", "0.75"), (method, "C0")):
            for i, folder in enumerate(runs[name]):
                steps, success = curve(folder)
                axes.plot(steps, [100 * x for x in smooth(success)], color=colour, lw=1.2, label=None if i else name)
        axes.set(xlabel="environment steps", ylabel="training success, %", ylim=(0, 100), xlim=(0, None))
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(pictures / f"{method}.svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--env-steps", type=int, default=30000)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--pictures", type=Path, help="folder for one picture of the curves a method (needs matplotlib)")
    args = parser.parse_args()
    for seed in args.seeds:
        for method in args.only:
            print(method, seed, flush=True)
            run(method, seed, args.env_steps, args.out / method / str(seed))
    print(table(args.only, args.seeds, args.out))
    if args.pictures is not None:
        draw(args.only, args.seeds, args.out, args.pictures)


if __name__ == "__main__":
    main()
