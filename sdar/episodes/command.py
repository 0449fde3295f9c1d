"""``sdar episodes``: the stored episodes of runs, as a table, one of them in full, or exported."""

import argparse
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from sdar.cli.failure import say
from sdar.cli.own_words import parser_of
from sdar.episodes.files import left_out
from sdar.episodes.reading import stream
from sdar.episodes.schema import StoredEpisode
from sdar.episodes.tables import export
from sdar.episodes.told import line, told
from sdar.episodes.values import value
from sdar.errors import ConfigError

COLUMNS = {
    "iteration": 9, "kind": 10, "panel": 12, "task": 34, "attempt": 7, "family": 22, "success": 7, "reward": 6, "status": 11, "turns": 5,
    "tokens": 6, "gap": 7, "gate": 6, "weight": 9, "advantage": 9, "entropy": 7, "skills": 30,
}  # fmt: skip
"""Value -> most characters of its column; a column without a value is left out."""


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: nothing to read; a condition or a file that cannot be.
    """
    asked = _parser().parse_args(list(words))
    if asked.limit < 1:
        raise ConfigError(f"--limit is {asked.limit}: a table has at least 1 row.")
    if asked.show is not None and asked.to is not None:
        raise ConfigError("--show prints one episode and --to writes all to a file: ask for one of the two.")
    found = stream(asked.runs, asked.where, asked.kind)
    if asked.to is not None:
        say(f"{export(found, asked.to)} episodes are in {asked.to}.")
    elif asked.show is not None:
        one = next(islice(found, asked.show - 1, None), None) if asked.show > 0 else None
        if one is None:
            raise ConfigError(f"--show {asked.show}: there is no such episode; the table without --show numbers them from 1.")
        say(told(one))
    else:
        lines = [table(found, asked.limit)]
        for folder in asked.runs:
            if missing := left_out(folder):
                many = f"{sum(missing.values())} episodes of {', '.join(missing)}"
                lines.append(f"{folder}: {many} were not written (model.log_episodes_mb).")
        say("\n".join(lines))
    return 0


def table(episodes: Iterable[StoredEpisode], limit: int) -> str:
    """A numbered line an episode, at most `limit`, and what all of them are."""
    lines: list[list[str]] = []
    count = succeeded = lost = 0
    for e in episodes:
        count, succeeded, lost = count + 1, succeeded + e.success, lost + e.lost
        if count <= limit:
            lines.append([str(count), *(_cell(value(e, name), most) for name, most in COLUMNS.items())])
    heads = ["#", *COLUMNS]
    kept = [k for k in range(len(heads)) if any(row[k] for row in lines)]
    widths = {k: max(len(text) for text in (heads[k], *(line[k] for line in lines))) for k in kept}
    shown = ["  ".join(row[k].ljust(widths[k]) for k in kept).rstrip() for row in ([heads, *lines] if lines else [])]
    if count > limit:
        shown.append(f"... and {count - limit} more (--limit)")
    faults = f", {lost} ended by faults of the world" if lost else ""
    return "\n".join([*shown, f"{count} episodes, {succeeded} reached the goal{faults}."])


def _cell(found: object, most: int) -> str:
    if found is None:
        return ""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.3g}"
    text = line(", ".join(found) if isinstance(found, list) else str(found))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "episodes",
        """\
            Look at the episodes that runs left: a table, one of them in full, or all in a file. docs/episodes.md says what is in them.

            A condition has the names of the table and of docs/episodes.md; per-token numbers are means over the episode.

            examples:
              sdar episodes runs/quickstart/version_0 --where 'success == 0 and family == "heat"'
              sdar episodes runs/quickstart/version_0 --where 'kind == "train" and gap > 0.5' --show 1
              sdar episodes runs/quickstart --where '"fact:mug" in skills' --to mugs.parquet""",
        allow_abbrev=True,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, folder of several, or file of episodes"
    )
    parser.add_argument(
        "--where", metavar="CONDITION", help="only those of which it is true; and, or, not, in, == != < <= > >="
    )
    parser.add_argument(
        "--kind", choices=["train", "validation", "predict"], help="only those of training, or only measured ones"
    )
    parser.add_argument("--show", type=int, metavar="N", help="the N-th episode of the table in full")
    parser.add_argument("--to", type=Path, metavar="FILE", help="write them whole to a file: .jsonl, .jsonl.gz or .parquet")
    parser.add_argument("--limit", type=int, default=40, metavar="N", help="rows of the table (40)")
    return parser
