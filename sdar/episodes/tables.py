"""Episodes as tables: one row an episode, a turn or a token, for pandas, Parquet and people."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from sdar.episodes.schema import NUMBERS, StoredEpisode, StoredTurn
from sdar.episodes.values import VALUES, value
from sdar.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Per = Literal["episode", "turn", "token"]
OF_TURN = (
    *("observation", "response", "action", "valid", "well_formed", "tool_ok", "stopped", "trainable", "reward"),
    *("turn_weight", "update"),
)
"""Fields of a turn; `reward` is the turn's where there is a row a turn."""
KEYS = (
    "run",
    "method",
    "seed",
    "kind",
    "iteration",
    "panel",
    "actor",
    "task",
    "world",
    "family",
    "attempt",
    "success",
    "status",
)
"""What of the episode stands beside each of its turns and tokens."""


def frame(episodes: Iterable[StoredEpisode], per: Per = "episode") -> "pd.DataFrame":
    """A table of pandas.

    Args:
        per: What a row is: an ``episode`` (per-token numbers are means over it), a ``turn`` (means over it), or a ``token``.

    Raises:
        ConfigError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ConfigError(
            "a frame needs pandas, which is not installed: pip install pandas. Without it `sdar.episodes.rows` gives the same rows as "
            "dictionaries."
        ) from None
    return pd.DataFrame.from_records(list(rows(episodes, per)))


def rows(episodes: Iterable[StoredEpisode], per: Per = "episode") -> Iterator[dict[str, Any]]:
    """The rows of `frame`, with the same names in each; None where something is not there."""
    if per not in get_args(Per):
        raise ConfigError(f"per is {per!r}: a row is one of {', '.join(get_args(Per))}.")
    for e in episodes:
        if per == "episode":
            yield {name: value(e, name) for name in VALUES} | {f"scores.{name}": score for name, score in e.scores.items()}
            continue
        known = {name: value(e, name) for name in KEYS}
        for number, turn in enumerate(e.turns):
            of_turn = known | {"turn": number}
            if per == "turn":
                yield of_turn | _turn(turn)
            else:
                yield from (of_turn | token for token in _tokens(turn))


def _turn(turn: StoredTurn) -> dict[str, Any]:
    means = {name: _mean(getattr(turn, name)) for name in NUMBERS}
    return {name: getattr(turn, name) for name in OF_TURN} | {"tokens": len(turn.response_ids)} | means


def _tokens(turn: StoredTurn) -> Iterator[dict[str, Any]]:
    count = len(turn.response_ids)
    columns = {name: getattr(turn, name) or [None] * count for name in ("response_ids", "pieces", "spans", *NUMBERS)}
    columns = {"token_id": columns.pop("response_ids"), "piece": columns.pop("pieces"), "span": columns.pop("spans")} | columns
    for place, values in enumerate(zip(*columns.values(), strict=True)):
        yield {"position": place} | dict(zip(columns, values, strict=True)) | {"turn_weight": turn.turn_weight}


def _mean(values: list[float | None] | None) -> float | None:
    known = [v for v in values or () if v is not None]
    return sum(known) / len(known) if known else None


def export(episodes: Iterable[StoredEpisode], to: Path) -> int:
    """Write episodes whole to a file; how many there were.

    Args:
        to: ``.jsonl`` or ``.jsonl.gz``: lines as a run has them; ``.parquet``: a row an episode, turns as a list of structs.

    Raises:
        ConfigError: another ending; the file is there; pyarrow is not installed.
    """
    if to.exists():
        raise ConfigError(f"--to {to}: the file is there. Name a new one.")
    if to.name.endswith((".jsonl", ".jsonl.gz")):
        return _lines(episodes, to)
    if to.suffix != ".parquet":
        raise ConfigError(
            f"--to {to}: episodes are written to .jsonl, .jsonl.gz or .parquet. Give the name one of these endings."
        )
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError(
            f"--to {to}: Parquet needs pyarrow, which is not installed: pip install pyarrow. Or use .jsonl.gz."
        ) from None
    written = []
    for e in episodes:
        line = msgspec.structs.asdict(e) | {"turns": [msgspec.structs.asdict(t) for t in e.turns]}
        open_ended = {name: msgspec.json.encode(line[name]).decode() for name in ("scores", "objective")}
        written.append(line | open_ended)  # names that differ from row to row make no type: JSON
    try:
        pq.write_table(pa.Table.from_pylist(written), to, compression="zstd")
    except UnicodeEncodeError:
        raise ConfigError(f"--to {to}: a text holds half a surrogate pair, which Parquet cannot. Use .jsonl.gz.") from None
    return len(written)


def _lines(episodes: Iterable[StoredEpisode], to: Path) -> int:
    import gzip

    from sdar.episodes.files import LEVEL, encode_line

    count = 0
    with gzip.open(to, "wb", LEVEL) if to.suffix == ".gz" else to.open("wb") as out:
        for count, e in enumerate(episodes, 1):  # noqa: B007
            out.write(encode_line(_plain(e)))  # type: ignore[arg-type]
    return count


def _plain(e: StoredEpisode) -> dict[str, Any]:
    """As it was written: what is not there is absent."""
    told = {name: v for name, v in msgspec.structs.asdict(e).items() if v is not None}
    turns = [{k: v for k, v in msgspec.structs.asdict(t).items() if v is not None or k == "tool_ok"} for t in e.turns]
    return told | {"turns": turns}
