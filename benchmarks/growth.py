"""How a step grows: exponents of processor time in turns, attempts of a group, tokens of a response and characters of the skills.

    python benchmarks/growth.py [--along turns group tokens skills] [--layouts trajectory turn] [--rounds 3] [--quick]

Exponents of rollout, score, update and step (the slopes of straight lines through the logarithms of medians) over all points and over
the last three. The policy is random, so that episodes are as long as they may be. The limit is one, zero along the skills' characters:
what grows faster computes something again, attention aside.
"""

import argparse
import math
import statistics
import tempfile

import measuring
from measuring import Run, spread

PHASES = ("rollout", "score", "update", "step")
ALONG = {
    "turns": ("data.env.horizon", (2, 6, 12, 25, 50)),
    "group": ("data.group_size", (2, 4, 8, 16, 32)),
    "tokens": ("model.sampler.max_new_tokens", (6, 12, 24, 48, 96)),
    "skills": ("skills", (500, 1000, 2000, 4000, 8000)),
}
USUAL = {"data.env.horizon": 6, "data.group_size": 4, "model.sampler.max_new_tokens": 12, "skills": 1000}


def command(along: str, value: int, layout: str, folder: str, policy: str, tasks: int) -> list[str]:
    chosen: dict[str, object] = USUAL | {ALONG[along][0]: value}
    bank = measuring.skills(folder, int(str(chosen.pop("skills"))))
    shared = {"model.updates_per_rollout": 1, "model.kl_coef": 0.0, "model.optimizer.lr": 1e-9, "data.val_tasks": 2}
    shared |= {"data.layout": layout, "data.tasks_per_step": tasks, "model.retriever.skills": bank}
    method = {} if along == "skills" else {"model": "GRPO"}
    if method:
        del shared["model.retriever.skills"]
    return measuring.words(["quickstart/sdar"], method | measuring.policy(policy) | chosen | shared)


def slope(points: list[tuple[int, float]]) -> float:
    """Exponent of y in x: least squares on logarithms."""
    logs = [(math.log(x), math.log(max(y, 1e-6))) for x, y in points]
    mean_x, mean_y = (statistics.mean(axis) for axis in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def measure(along: str, layout: str, given: argparse.Namespace) -> list[object]:
    """A row of the table."""
    values = ALONG[along][1][: 3 if given.quick else None]
    points: dict[str, list[tuple[int, float]]] = {phase: [] for phase in PHASES}
    steps: list[list[float]] = []
    for value in values:
        with tempfile.TemporaryDirectory() as folder:

            def work(run: Run) -> list[dict[str, float]]:
                return [run.step(number) for number in range(given.rounds + 1)][1:]

            found = measuring.inside([command(along, value, layout, folder, given.policy, given.tasks)], work)
        steps.append([one["step"] for one in found])
        for phase in PHASES:
            points[phase].append((value, statistics.median(one[phase] for one in found)))
    told = [f"{slope(points[phase]):.2f}; {slope(points[phase][-3:]):.2f}" for phase in PHASES]
    return [along, f"{values[0]} to {values[-1]}", layout, *told, " → ".join(map(spread, (steps[0], steps[-1])))]


def main() -> None:
    parser = measuring.arguments(__doc__, rounds=3)
    parser.add_argument("--along", nargs="+", choices=ALONG, default=list(ALONG))
    parser.add_argument("--layouts", nargs="+", default=["trajectory", "turn"])
    parser.add_argument("--policy", default="1M", choices=measuring.SIZES)
    parser.add_argument("--tasks", type=int, default=4)
    given = parser.parse_args()
    measuring.begin(given)
    rows = [measure(along, layout, given) for along in given.along for layout in given.layouts]
    measuring.tell(
        given,
        "Growth",
        f"Exponents of processor time over all points; over the last three. Policy {given.policy}, {given.tasks} tasks, medians of "
        f"{given.rounds} steps.",
        measuring.table(["along", "from, to", "layout", *PHASES, "seconds of a step at both ends"], rows),
    )


if __name__ == "__main__":
    measuring.run(main)
