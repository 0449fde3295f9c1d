"""What can be asked of an episode as one value: its fields, counts, and means over its tokens."""

from collections.abc import Callable
from typing import Any

from sdar.episodes.schema import NUMBERS, StoredEpisode

FIELDS = (
    *("run", "method", "seed", "kind", "iteration", "panel", "panel_hash", "actor", "task", "world", "family", "instruction"),
    *("attempt", "extra", "privileged", "skills", "status", "error", "success", "reward", "lost"),
)
"""Those of an episode itself."""
VALUES: dict[str, Callable[[StoredEpisode], Any]] = {
    name: lambda e, name=name: getattr(e, name)  # type: ignore[misc]
    for name in FIELDS
}
"""Name -> how it is found; ``scores.NAME`` beside them. Per-token numbers are means over the tokens that have one."""
VALUES |= {
    "turns": lambda e: len(e.turns),
    "tokens": lambda e: e.response_tokens,
    "valid": lambda e: all(t.valid for t in e.turns),
    "cut": lambda e: any(not t.stopped for t in e.turns),
    "tool_errors": lambda e: sum(t.tool_ok is False for t in e.turns),
    "turn_weight": lambda e: _mean([t.turn_weight for t in e.turns]),
}
VALUES |= {
    name: lambda e, name=name: _mean([v for t in e.turns for v in getattr(t, name) or ()])  # type: ignore[misc]
    for name in NUMBERS
}


def value(episode: StoredEpisode, name: str) -> Any:
    """A value of `VALUES`, or ``scores.NAME``; None where the episode has none."""
    return episode.scores.get(name.removeprefix("scores.")) if name.startswith("scores.") else VALUES[name](episode)


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
