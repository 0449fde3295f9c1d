"""What `sdar play` shows and asks: lines of a person, and a response token by token, coloured by a number or with it.

Texts of worlds and models go through `sdar.episodes.told`: nothing of them is obeyed by a terminal.
"""

import os
import sys
from collections.abc import Sequence
from typing import Literal

from sdar.cli.failure import say
from sdar.episodes.schema import StoredTurn
from sdar.episodes.told import before_response, line

Shown = Literal["gap", "gate", "weight", "advantage", "entropy", "loss"]
"""Numbers of a token that it can be coloured by."""
BOUNDS = (0.1, 0.5, 1.0, 2.0)
"""Sizes from which on a colour is deeper; the numbers are nats, or have about their size."""
POSITIVE, NEGATIVE = (159, 117, 75, 33), (224, 217, 210, 203)
"""Backgrounds of the 256 colours of a terminal, from pale to deep: blue, red."""
QUIT = ("quit", "exit", "q")


def ask(prompt: str) -> str | None:
    """A line of the person's; None: the input has ended, or was interrupted."""
    sys.stdout.flush()
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        say("")
        return None


def has_colours(asked: bool | None = None) -> bool:
    """Whether colours are shown: as asked, else where the output is a terminal that knows them (https://no-color.org)."""
    if asked is not None:
        return asked
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def turn_told(turn: StoredTurn, number: int, shown: Shown, colours: bool) -> str:
    """A turn: what was seen, what the teacher was told, each token with its number, and what the world made of it."""
    values = getattr(turn, shown)
    known = [v for v in values or () if v is not None]
    mean = f" ({shown}: mean {sum(known) / len(known):+.3g}, from {min(known):+.3g} to {max(known):+.3g})" if known else ""
    tokens = spoken(turn.pieces or [str(i) for i in turn.response_ids], values, colours)
    return "\n".join(
        [
            *before_response(turn, number),
            f"said, token by token{mean}:",
            f"    {tokens}",
            f"action: {line(turn.action)}",
            f"reward: {turn.reward:g}",
        ]
    )


def spoken(pieces: Sequence[str], values: Sequence[float | None] | None, colours: bool) -> str:
    """The tokens of a response in one line: each on a background by its value, or with it in brackets; bars between those without."""
    texts = [line(piece.replace("\n", "⏎")) for piece in pieces]
    if not values:
        return "|".join(texts)
    if colours:
        return "".join(_coloured(text, value) for text, value in zip(texts, values, strict=True))
    return " ".join(text if v is None else f"{text}[{v:+.2f}]" for text, v in zip(texts, values, strict=True))


def legend(shown: Shown, colours: bool) -> str:
    """What the colours or numbers mean."""
    what = "gap, the teacher's log-probability less the policy's (nats)" if shown == "gap" else f"{shown} of each token"
    if not colours:
        return f"behind each token: {what}"
    scale = [-2.0, -1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0, 2.0]
    return f"{what}: {' '.join(_coloured(f' {v:+g} ', v) for v in scale)}"


def _coloured(text: str, value: float | None) -> str:
    deep = sum(abs(value or 0.0) >= bound for bound in BOUNDS)
    if not deep:
        return text
    return f"\x1b[48;5;{(POSITIVE if (value or 0.0) > 0 else NEGATIVE)[deep - 1]}m\x1b[38;5;16m{text}\x1b[0m"
