"""The price of the teacher: an SDAR step over a GRPO step on the same tasks, in four settings.

    python benchmarks/teacher.py [--settings frozen live published growing] [--rounds 5] [--quick]

frozen, live: the quickstart (1 M, growing history), whose teacher is the first policy or the live one. published: full-size household,
think and act, a prompt for each turn, 16 attempts of 6 turns of 24 tokens, a random policy of 4 M, skills of 3,000 characters, live
teacher. growing: the same as a growing history. Each step has one update. The limit: the tokens of the prefix trees that the teacher
reads beyond those that the student reads, over what a GRPO step reads (rollout, and three for the update).
"""

import argparse
import statistics
import tempfile
from typing import Any

import measuring
from measuring import Run, ratios, spread

QUICKSTART = {"model.updates_per_rollout": 1, "model.kl_coef": 0.0, "model.optimizer.lr": 1e-9, "data.val_tasks": 2}
PUBLISHED = QUICKSTART | {
    "data.env.horizon": 6,
    "model.sampler.max_new_tokens": 24,
    "data.tasks_per_step": 4,
    "data.group_size": 4,
    "model.micro_batch_tokens": 4096,
}
SKILLS = 3000
SETTINGS = {
    # policy, settings of both, settings of SDAR
    "frozen": ("1M", QUICKSTART, {"model.teacher": "InitialTeacher"}),
    "live": ("1M", QUICKSTART, {"model.teacher": "LiveTeacher"}),
    "published": ("4M", PUBLISHED | {"data.layout": "turn"}, {"model.teacher": "LiveTeacher"}),
    "growing": ("4M", PUBLISHED | {"data.layout": "trajectory"}, {"model.teacher": "LiveTeacher"}),
}
SMALL = {"data.tasks_per_step": 2, "data.group_size": 2, "data.env.horizon": 2}
PHASES = ("rollout", "score", "update", "step")


def commands(name: str, skills: str, quick: bool) -> list[list[str]]:
    """GRPO's and SDAR's."""
    policy, shared, of_teacher = SETTINGS[name]
    shared = measuring.policy(policy) | shared | (SMALL if quick else {})
    if name not in ("frozen", "live"):
        of_teacher = of_teacher | {"model.retriever.skills": skills}
    if name in ("frozen", "live"):
        return [measuring.words(["quickstart/sdar"], m | shared | of) for m, of in (({"model": "GRPO"}, {}), ({}, of_teacher))]
    files = [["env/alfworld", f"method/{method}", "scale/tiny"] for method in ("grpo", "sdar")]
    return [measuring.words(files[0], shared), measuring.words(files[1], shared | of_teacher)]


def read(batch: Any) -> tuple[float, float]:
    """Tokens of the prefix trees of the student's rows, and of what the teacher's rows have beyond them."""
    own = [ids[: int(mask.sum())].tolist() for ids, mask in zip(batch.ids, batch.attention_mask, strict=True)]
    told = [ids[: int(m.sum())].tolist() for ids, m in zip(batch.teacher_ids, batch.teacher_attention_mask, strict=True)]
    student = measuring.tree(own)[0]
    return student, measuring.tree(own + told)[0] - student


def measure(name: str, given: argparse.Namespace, skills: str) -> list[list[object]]:
    """Two rows of the table."""

    def work(grpo: Run, sdar: Run) -> list[list[object]]:
        found: dict[str, list[dict[str, float]]] = {"GRPO": [], "SDAR": []}
        seen: list[Any] = []
        weigh = sdar.module.weigh
        sdar.module.weigh = lambda batch, episodes: seen.append(read(batch)) or weigh(batch, episodes)
        for number in range(given.rounds + 1):
            for method, run in (("GRPO", grpo), ("SDAR", sdar)):
                taken = run.step(number)
                if number:
                    found[method].append(taken)
        price = ratios([one["step"] for one in found["SDAR"]], [one["step"] for one in found["GRPO"]])
        least = [1 + teacher / (4 * student) for student, teacher in seen[1:]]
        rows = []
        for method, steps in found.items():
            told = [spread([one[phase] for one in steps]) for phase in PHASES]
            both = method == "SDAR"
            last = (f"**{spread(price)}**", f"{statistics.median(least):.2f}") if both else ("1", "")
            rows.append([name, method, *told, *last])
        return rows

    return measuring.inside(commands(name, skills, given.quick), work)


def main() -> None:
    parser = measuring.arguments(__doc__)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    given = parser.parse_args()
    measuring.begin(given)
    with tempfile.TemporaryDirectory() as folder:
        bank = measuring.skills(folder, SKILLS)
        rows = [row for name in given.settings for row in measure(name, given, bank)]
    measuring.tell(
        given,
        "The price of the teacher",
        f"Processor seconds, medians [least, most] of {given.rounds} interleaved pairs.",
        measuring.table(["setting", "method", *(f"{phase}, s" for phase in PHASES), "SDAR / GRPO", "limit"], rows),
    )


if __name__ == "__main__":
    measuring.run(main)
