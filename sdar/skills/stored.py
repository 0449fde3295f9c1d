"""Episodes that a run left (docs/episodes.md), of this release or of an earlier one, as a writer of skills reads them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path

import msgspec

from sdar.errors import SkillBankError
from sdar.quoting import indented
from sdar.reading import convert, read_json_lines, read_name
from sdar.types import Status


class StoredTurn(msgspec.Struct):
    observation: str
    response: str
    action: str = ""


class StoredEpisode(msgspec.Struct):
    """What is read of a line."""

    task: str
    family: str
    instruction: str
    success: bool
    turns: list[StoredTurn]
    status: Status = Status.DONE
    privileged: bool = False
    extra: bool = False
    final_observation: str = ""


def read_episodes(paths: Sequence[str]) -> tuple[list[StoredEpisode], Counter[str]]:
    """Episodes in the order of the files, and how many were left out, by reason.

    Left out is what a fault of the world ended, what has no turn, and what somebody played who had been told privileged text: skills
    made of that would tell the answers.

    Args:
        paths: Files of JSON lines; folders of a run, of which the training episodes are taken.

    Raises:
        SkillBankError: a path without episodes; a line that is none.
    """
    found: list[StoredEpisode] = []
    left_out: Counter[str] = Counter()
    for file in (file for path in paths for file in _files(Path(path))):
        for where, line in read_json_lines(file, SkillBankError):
            episode = convert(line, StoredEpisode, where, SkillBankError, advice="Episodes are files that a run left.")
            read_name(episode.family, f"{where}: the family", SkillBankError)
            reason = _reason(episode)
            if reason:
                left_out[reason] += 1
            else:
                found.append(episode)
    return found, left_out


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "episodes" if (path / "episodes").is_dir() else path
    files = sorted([*folder.glob("train-*.jsonl"), *folder.glob("train-*.jsonl.gz")])
    if not files:
        raise SkillBankError(
            f"{path} holds no training episodes (episodes/train-*.jsonl.gz): those of validations are not taken, or success there would be "
            "no measurement any more. Name a run's folder, a run with `--model.log_episodes_every 1`, or files."
        )
    return files


def _reason(episode: StoredEpisode) -> str:
    if episode.status.lost:
        return "ended by a fault of the world"
    if not episode.turns:
        return "without a turn"
    return "told privileged text" if episode.privileged else "no attempt of their group" if episode.extra else ""


def spread(episodes: Iterable[StoredEpisode], most: int) -> list[StoredEpisode]:
    """At most so many, one of each task before a second one of any, in their order."""
    of_task: dict[str, list[StoredEpisode]] = {}
    for episode in episodes:
        of_task.setdefault(episode.task, []).append(episode)
    rounds = (e for attempts in zip_longest(*of_task.values()) for e in attempts if e is not None)
    return [e for e, _ in zip(rounds, range(most), strict=False)]


def record(episode: StoredEpisode, sees: str, most: int) -> str:
    """What a writer reads of an episode, at most so many characters and a note; the middle is cut. What the world, the agent or a data set
    wrote is indented, so that no text can pass for another step or for a question.

    Args:
        sees: ``response`` or ``action``: what is told of each turn.
    """
    lines = ["Task:", indented(episode.instruction)]
    for k, turn in enumerate(episode.turns, 1):
        said = turn.response if sees == "response" else turn.action
        lines += [f"Step {k}, seen:", indented(turn.observation), f"Step {k}, {sees}:", indented(said)]
    if episode.final_observation:
        lines += ["In the end, seen:", indented(episode.final_observation)]
    text = "\n".join(lines)
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"
