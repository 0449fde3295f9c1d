"""A run's folder as `sdar fit` leaves it, made up: no model is needed to read it."""

import gzip
import json
from pathlib import Path
from typing import Any

import yaml

FAMILIES = ("heat", "clean")
NUMBERS = (
    "gap",
    "gate",
    "weight",
    "advantage",
    "entropy",
    "teacher_entropy",
    "divergence",
    "loss",
    "behaviour_logp",
    "old_logp",
)


def turn(number: int, said: str = "go to fridge 1", trained: bool = True) -> dict[str, Any]:
    pieces = [*(f"{word} " for word in said.split()), "<|end|>"]
    values = {
        name: [round((-1) ** (k + place) * 0.1 * (k + 1) * (number + 1), 4) for k in range(len(pieces))]
        for place, name in enumerate(NUMBERS if trained else ["behaviour_logp"])
    }
    told = {"teacher_prompt": "<|system|>The mug is in the fridge.", "turn_weight": 0.5} if trained else {}
    return {"observation": f"You see {number} eggs.", "response": said, "action": said, "prompt": "<|user|>You see eggs.",
            "response_ids": list(range(len(pieces))), "pieces": pieces, **told, **values}  # fmt: skip


def episode(task: int, success: bool, turns: int = 2, **more: Any) -> dict[str, Any]:
    kind = more.setdefault("kind", "train")
    trained = kind == "train"
    return {"schema": 2, "task": f"task-{task}", "family": FAMILIES[task % 2], "instruction": f"put mug {task} away", "success": success,
            "reward": 10.0 * success, "skills": ["fact:mug" if task % 3 else "fact:egg"], "skill_text": "The mug is in the fridge.",
            "status": "done" if success else "horizon", "panel": kind, "panel_hash": "abc",
            "turns": [turn(k, trained=trained) for k in range(turns)], **more}  # fmt: skip


def left_run(folder: Path, seed: int = 0, iterations: int = 6, tasks: int = 6, words: str = "") -> Path:
    """``folder``, with two measurements of a panel, metrics of each iteration, and episodes of all.

    Args:
        words: Behind the instruction of every episode.
    """
    (folder / "episodes").mkdir(parents=True)
    config = {
        "seed_everything": seed,
        "trainer": {"max_steps": 12, "accelerator": "cpu"},
        "model": {
            "class_path": "sdar.strategies.sdar.SDAR",
            "init_args": {
                "distill_coef": 2.0,
                "kl_coef": 0.01,
                "retriever": {"class_path": "sdar.retrievers.KeywordRetriever", "init_args": {"skills": "bank"}},
                "gate": {"class_path": "sdar.gates.GapGate", "init_args": {"beta": 3.0}},
            },
        },
        "data": {"class_path": "sdar.data.TaskModule", "init_args": {"group_size": 4}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    names = ["success/train", "reward/mean", "train/entropy", "gap/mean", "gap/abs", "gate/mean", "time/rollout_s", "time/update_s",
             "gap/abs/turn/1", "gap/abs/turn/2", "gap/abs/turn/5-8", "gap/abs/position/1", "gap/abs/position/2-4"]  # fmt: skip
    lines = [",".join(["step", "train/iteration", *names])]
    for i in range(1, iterations + 1):
        lines.append(
            ",".join(map(str, [i, i, *(round(0.1 + 0.05 * i + 0.01 * k + 0.001 * seed, 4) for k in range(len(names)))]))
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured = []
    for i, share in ((0, 0.2), (iterations, 0.6)):
        by_family = {f"success_by_family/unseen/{name}": [share, share - 0.1, share + 0.1] for name in FAMILIES}
        measured.append({"run": folder.name, "method": "SDAR", "seed": seed, "iteration": i, "env_steps": 10 * i,
                         "panel": "unseen", "hash": "abcdef0123456789", "tasks": tasks, "attempts": 1,
                         "success/unseen": [share, share - 0.1, share + 0.1],
                         "teacher/success/unseen": [0.8, 0.7, 0.9], "teacher/lift/unseen": [0.8 - share, 0.1, 0.9],
                         **by_family})  # fmt: skip
        for actor in ("policy", "privileged"):
            attempts = [
                episode(
                    t,
                    t / tasks < (share if actor == "policy" else 0.8),
                    kind="validation",
                    panel="unseen",
                    iteration=i,
                    actor=actor,
                )
                for t in range(tasks)
            ]
            _write(folder, f"unseen-{actor}-{i:06d}", attempts)
    (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in measured), encoding="utf-8")
    alarm = {
        "iteration": 3,
        "alarm": "gate_saturated",
        "fact": "gate/mean is 0.999",
        "usual": "at most 0.98",
        "remedy": "Look.",
    }
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n", encoding="utf-8")
    for i in range(1, iterations + 1):
        attempts = [
            episode(t, (t + i) % 3 == 0, turns=1 + t % 4, iteration=i, attempt=g) for t in range(tasks) for g in range(2)
        ]
        for e in attempts:
            e["instruction"] += words
        _write(folder, f"train-{i:06d}", attempts)
    return folder


def _write(folder: Path, name: str, episodes: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(e) + "\n" for e in episodes)
    (folder / "episodes" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
