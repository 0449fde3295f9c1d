"""``sdar report``: reads folders of runs and writes one page."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from sdar.cli.failure import say
from sdar.cli.own_words import parser_of
from sdar.errors import ConfigError
from sdar.report.figures import check_drawing
from sdar.report.gather import runs_of
from sdar.report.page import page


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: what is named are no runs; there is no place for the page; matplotlib is not installed.
    """
    asked = _parser().parse_args(list(words))
    if asked.episodes < 0:
        raise ConfigError(f"--episodes is {asked.episodes}: give 0 for none, or how many the page may hold.")
    if asked.watch is not None and asked.watch < 1:
        raise ConfigError(f"--watch is {asked.watch}: it is a number of seconds, at least 1.")
    if not asked.to.absolute().parent.is_dir():
        raise ConfigError(f"--to {asked.to}: there is no folder {asked.to.parent}. Make it, or give another file.")
    check_drawing()
    while True:
        text = page(runs_of(asked.runs), asked.episodes, asked.watch)
        new = asked.to.with_name(f".{asked.to.name}.new")
        new.write_text(text, encoding="utf-8")
        new.replace(asked.to)
        say(f"{asked.to}: {len(text.encode()) / 1e6:.1f} MB")
        if asked.watch is None:
            return 0
        try:
            time.sleep(asked.watch)
        except KeyboardInterrupt:
            return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "report",
        """\
            Write runs as one HTML page: results, alarms, curves, skills, settings, and a viewer of episodes in which every token
            is coloured by gap, gate, weight, advantage or entropy. The page holds everything and opens from disk; nothing is fetched.

            A run is its folder; a folder with runs of several seeds (version_N), or folders joined by commas, are one setting, whose
            curves get a band over seeds. docs/report.md tells how to read it.

            examples:
              sdar report runs/quickstart/version_0
              sdar report GRPO=runs/grpo SDAR=runs/sdar --to compared.html
              sdar report runs/quickstart --watch 60        # renews it until Ctrl-C; the page loads itself anew""",
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUNS", help="settings, each by the folders of its runs")
    parser.add_argument("--to", type=Path, default=Path("report.html"), metavar="FILE", help="the page (report.html)")
    parser.add_argument(
        "--episodes", type=int, default=500, metavar="N",
        help="most episodes in the viewer (500): of each run those measured last and first, then of training from the end on",
    )  # fmt: skip
    parser.add_argument("--watch", type=int, metavar="SECONDS", help="write it again so often, while a run goes on")
    return parser
