"""Episodes as the viewer has them: short names, texts once, numbers to three digits."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from sdar.episodes import StoredEpisode, StoredTurn

FIELDS: dict[str, tuple[str, str, bool]] = {
    "gap": ("teacher_logp - old_logp", "nats", True),
    "gate": ("how much the token trusts the teacher", "", False),
    "weight": ("what the divergence is multiplied by in the loss", "", False),
    "advantage": ("credit from rewards, and what a teacher made of it", "", True),
    "entropy": ("of the policy's next-token distribution", "nats", False),
    "teacher_entropy": ("of the teacher's", "nats", False),
    "divergence": ("between policy and teacher", "", True),
    "loss": ("of the token", "", True),
    "behaviour_logp": ("under the density that was sampled from", "nats", False),
}
"""Number of a token that the viewer colours by -> what it is, its unit, whether it has a sign."""
FURTHER = ("student_logp", "old_logp", "ref_logp", "teacher_logp", "importance")
"""Those that are shown beside a token, and never as a colour."""


def viewed(episodes: Sequence[tuple[str, StoredEpisode]]) -> str:
    """JSON for the page, safe inside of a script element.

    Args:
        episodes: Each with the name of its run.
    """
    texts = _Texts()
    told = [_episode(run, e, texts) for run, e in episodes]
    known = {name for e in told for turn in e["turns"] for name in turn["values"]}
    fields = [
        {"name": name, "about": about, "unit": unit, "signed": signed, "bound": 1.0 if name == "gate" else _bound(told, name)}
        for name, (about, unit, signed) in FIELDS.items()
        if name in known
    ]
    text = json.dumps(
        {"texts": texts.all, "fields": fields, "episodes": told}, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return (
        text.replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
        .encode("utf-8", "replace")
        .decode()
    )


def choose(episodes: Sequence[StoredEpisode], most: int) -> list[StoredEpisode]:
    """At most so many: what was measured last and first, then training from its end to its beginning, then the rest."""
    measured = sorted({e.iteration for e in episodes if e.kind == "validation" and e.iteration is not None})
    ends = [*measured[-1:], *measured[:1]]

    def rank(e: StoredEpisode) -> tuple[int, int]:
        when = e.iteration or 0
        if e.kind == "validation" and when in ends:
            return ends.index(when), 0
        return (2 if e.kind == "train" else 3), -when

    return sorted(episodes, key=rank)[:most]


class _Texts:
    """Every text once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._at: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._at:
            self._at[text] = len(self.all)
            self.all.append(text)
        return self._at[text]


def _episode(run: str, e: StoredEpisode, texts: _Texts) -> dict[str, Any]:
    told = {
        "run": run,
        "what": _what(e),
        "iteration": e.iteration or 0,
        "task": e.task,
        "world": e.world,
        "family": e.family,
        "attempt": e.attempt,
        "success": e.success,
        "reward": _number(e.reward),
        "status": e.status,
        "error": e.error,
        "scores": {name: _number(score) for name, score in e.scores.items()},
        "instruction": texts(e.instruction),
        "skills": e.skills,
        "final": texts(e.final_observation),
        "turns": [_turn(turn, texts) for turn in e.turns],
    }
    return told | ({"skill_text": texts(e.skill_text)} if e.skill_text else {})


def _what(e: StoredEpisode) -> str:
    words = [e.kind or "episode", *([e.panel] if e.panel and e.panel != e.kind else [])]
    return " ".join([*words, *(["(teacher plays)"] if e.actor == "privileged" else []), *(["(extra)"] if e.extra else [])])


def _turn(turn: StoredTurn, texts: _Texts) -> dict[str, Any]:
    values = {
        name: [None if x is None else _number(x) for x in found]
        for name in (*FIELDS, *FURTHER)
        if (found := getattr(turn, name)) is not None
    }
    told: dict[str, Any] = {
        "seen": texts(turn.observation),
        "said": texts(turn.response),
        "action": turn.action,
        "valid": turn.valid,
        "stopped": turn.stopped,
        "tool_ok": turn.tool_ok,
        "learned": turn.trainable,
        "values": values,
    }
    if turn.pieces is not None:
        told["pieces"] = turn.pieces
    if turn.turn_weight is not None:
        told["weight"] = _number(turn.turn_weight)
    for name in ("prompt", "teacher_prompt"):
        if (found := getattr(turn, name)) is not None:
            told[name] = texts(found)
    return told


def _bound(episodes: Iterable[dict[str, Any]], name: str) -> float:
    """Size that nineteen of twenty tokens do not exceed."""
    sizes = sorted(abs(x) for e in episodes for turn in e["turns"] for x in turn["values"].get(name, ()) if x is not None)
    return _number(sizes[max(0, math.ceil(0.95 * len(sizes)) - 1)] or sizes[-1]) if sizes else 1.0


def _number(x: float) -> float:
    return float(f"{x:.3g}") if math.isfinite(x) else 0.0
