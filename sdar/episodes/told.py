"""A stored episode in words, for people in front of a terminal: nothing of a world's text is obeyed by it."""

from sdar.episodes.schema import StoredEpisode, StoredTurn

OF_TOKENS = (
    *(
        "behaviour_logp",
        "student_logp",
        "old_logp",
        "ref_logp",
        "teacher_logp",
        "gap",
        "gate",
        "divergence",
        "weight",
        "advantage",
    ),
    *("entropy", "teacher_entropy", "importance", "loss"),
)


def told(e: StoredEpisode) -> str:
    """An episode in full: what everybody was told and said, and every number of every token."""
    lines = head(e)
    for number, turn in enumerate(e.turns):
        lines += [
            *before_response(turn, number),
            "said:",
            block(turn.response),
            f"action: {line(turn.action)}",
            *_numbers(turn),
        ]
    return "\n".join([*lines, *end(e)])


def head(e: StoredEpisode) -> list[str]:
    """Which episode it is, how it ended, and what was asked for."""
    known = {name: getattr(e, name) for name in ("kind", "iteration", "run", "method")}
    of = [f"attempt {e.attempt}", *(f"{name} {line(str(v))}" for name, v in known.items() if v is not None)]
    panel = [] if e.panel is None else [f"panel:       {line(e.panel)} {e.panel_hash or ''}".rstrip()]
    return [
        f"task:        {line(e.task)} ({', '.join(of)})",
        *panel,
        f"family:      {line(e.family)}",
        f"outcome:     {outcome(e)}",
        *([f"skills:      {line(', '.join(e.skills))}"] if e.skills else []),
        "instruction:",
        block(e.instruction),
    ]


def outcome(e: StoredEpisode) -> str:
    scores = "".join(f", {line(name)} {score:g}" for name, score in e.scores.items())
    return f"{'success' if e.success else 'failure'}, reward {e.reward:g}{scores}, {line(e.status)} {line(e.error)}".rstrip()


def end(e: StoredEpisode) -> list[str]:
    """What the world said last."""
    return ["", "in the end, seen:", block(e.final_observation)]


def before_response(turn: StoredTurn, number: int) -> list[str]:
    """What was seen before a response, and what the teacher was told."""
    facts = [f"turn weight {turn.turn_weight:.4g}"] if turn.turn_weight is not None else []
    facts += [f"optimizer step {turn.update}"] if turn.update is not None else []
    marks = {"invalid": not turn.valid, "cut": not turn.stopped, "not learned from": not turn.trainable}
    facts += [mark for mark, true in marks.items() if true]
    lines = ["", f"turn {number}{' (' + ', '.join(facts) + ')' if facts else ''}, seen:", block(turn.observation)]
    if turn.teacher_prompt is not None:
        lines += ["the teacher's own prompt:", block(turn.teacher_prompt)]
    return lines


def _numbers(turn: StoredTurn) -> list[str]:
    """A row a token."""
    names = [name for name in OF_TOKENS if getattr(turn, name) is not None]
    pieces = turn.pieces or [str(i) for i in turn.response_ids]
    rows = [["", *names]]
    for place, piece in enumerate(pieces):
        numbers = (getattr(turn, name)[place] for name in names)
        rows.append([line(repr(piece)), *("-" if n is None else f"{n:.4g}" for n in numbers)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "    "
        + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def line(text: str) -> str:
    """In one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def block(text: str) -> str:
    """Moved to the right, line by line, without what a terminal would obey."""
    return "\n".join(f"    {line(one)}".rstrip() for one in text.splitlines()) or "    (nothing)"
