"""Groups: the attempts at one task, which are compared with one another."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from sdar.types import Episode


def by_group(all_episodes: Iterable[Episode]) -> list[list[Episode]]:
    """Attempts at one task with one retrieval, which stand one after the other."""
    return [list(group) for _, group in groupby(all_episodes, key=lambda e: (e.task.id, e.retrieval.skill_ids))]


def finished(all_episodes: Iterable[Episode]) -> list[Episode]:
    """Those that no fault of the world ended: the others are missing, not failed."""
    return [e for e in all_episodes if not e.lost]


def describe_lost(all_episodes: Sequence[Episode]) -> str:
    """How many episodes faults of the world ended, of how many, with the first one's task and error; empty where none did."""
    lost = [e for e in all_episodes if e.lost]
    if not lost:
        return ""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(Counter(str(e.status) for e in lost).items()))
    first = f"task {lost[0].task.id}: {str(lost[0].error).removesuffix('.')}"
    return f"{len(lost)} of {len(all_episodes)} episodes ({counts}); the first, of {first}"


def group_numbers(all_episodes: Sequence[Episode]) -> list[int]:
    """The group of each episode; an extra one belongs to that of the attempt which it repeats, else to the last of its task."""
    attempts = [e for e in all_episodes if not e.extra]
    numbers = [number for number, group in enumerate(by_group(attempts)) for _ in group]
    of_attempt = {(e.task.id, e.attempt): number for e, number in zip(attempts, numbers, strict=True)}
    of_task = {e.task.id: number for e, number in zip(attempts, numbers, strict=True)}
    in_order = iter(numbers)
    return [of_attempt.get((e.task.id, e.attempt), of_task[e.task.id]) if e.extra else next(in_order) for e in all_episodes]
