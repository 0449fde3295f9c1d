"""Runs on the quickstart's world: what each method needs there beside its published file, and the training of those that are missing."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sdar.cli.failure import say
from sdar.errors import ConfigError
from sdar.figures.base import Figure
from sdar.reading import read_json_lines

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
"""What differs from a method's published setting on the quickstart's world: the policy is tiny, the runs are short."""


def words_of(method: str, *more: str) -> list[str]:
    """The words of `sdar fit` for a method on the quickstart's world, with some of its settings changed."""
    files = ["-c", "conf/env/quickstart.yaml", "-c", f"conf/method/{method}.yaml", "-c", "conf/scale/quickstart.yaml"]
    return ["fit", *files, *METHODS[method], *more]


def make(figure: Figure, folder: Path, seeds: Sequence[int], env_steps: int) -> list[str]:
    """Train what a figure is made with, as far as it is not below `folder` yet; ``LABEL=FOLDER,...`` of each setting.

    Raises:
        ConfigError: the figure is about something that the quickstart's world has not; a training failed.
    """
    if not figure.made:
        raise ConfigError(
            f"--make: the quickstart's world has not what {figure.name} shows ({figure.shows}). Give the folders of runs that have it."
        )
    found = []
    for label, (method, *more) in figure.made.items():
        called = re.sub(r"[^\w.]+", "-", " ".join([method, *more]).replace("--model.", "")).strip("-")
        places = [folder / called / f"seed_{seed}" for seed in seeds]
        for seed, place in zip(seeds, places, strict=True):
            if _trained(place, env_steps) is None:
                say(f"{figure.name}: training {label}, seed {seed} ({place / 'log.txt'})")
                _train([*words_of(method, *more), "--seed_everything", str(seed)], place, env_steps)
        found.append(f"{label}={','.join(str(_trained(place, env_steps) or place) for place in places)}")
    return found


def _trained(place: Path, env_steps: int) -> Path | None:
    """The run below a folder that was trained so long."""
    for run in sorted(place.glob("version_*"), reverse=True):
        file = run / "validation.jsonl"
        measured = [row for _, row in read_json_lines(file)] if file.is_file() else []
        if measured and measured[-1]["env_steps"] >= env_steps:
            return run
    return None


def _train(words: Sequence[str], place: Path, env_steps: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdar", *words, "--model.max_env_steps", str(env_steps), "--trainer.max_steps", "-1"]
    command += ["--trainer.val_check_interval", "1000000", "--trainer.default_root_dir", str(place)]
    command += ["--trainer.enable_progress_bar", "false", "--model.log_episodes_every", "1"]
    log = place / "log.txt"
    with log.open("w") as out:
        ended = subprocess.run(command, stdout=out, stderr=out, env={"OMP_NUM_THREADS": "1"} | os.environ)
    if ended.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise ConfigError(
            f"the training below {place} ended with code {ended.returncode}: {''.join(last)} ({log} tells more.)"
        )
