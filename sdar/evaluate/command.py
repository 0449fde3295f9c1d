"""``sdar compare``: runs side by side, from what they left in their folders."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sdar.cli.own_words import parser_of
from sdar.errors import ConfigError
from sdar.evaluate.compare import compare
from sdar.evaluate.picture import check_picture, draw
from sdar.evaluate.results import Setting, apart
from sdar.evaluate.tables import markdown


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: what is named are no runs, or none that can be compared.
    """
    asked = _parser().parse_args(list(words))
    if asked.json is not None and not asked.json.absolute().parent.is_dir():
        raise ConfigError(f"--json {asked.json}: there is no folder {asked.json.parent}. Make it, or give another file.")
    if asked.picture is not None:
        check_picture(asked.picture)
        if len(asked.runs) < 2:
            raise ConfigError(
                "--picture draws differences, and one setting is given. Name another, as in sdar compare runs/grpo runs/sdar; sdar report "
                "draws the curves of one."
            )
    found = compare(apart(Setting.read(word) for word in asked.runs), asked.panel, asked.iteration)
    print(markdown(found), end="", flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.picture is not None:
        draw(found, asked.picture)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "compare",
        """\
            Compare runs on the tasks that they were measured on, and their learning curves; prints Markdown.

            A setting is a run's folder, a folder with runs of several seeds (version_N) below it, or several folders joined by
            commas; the first one is what the others are compared with. Runs of one setting differ in nothing but their seed.
            Every run's last measurement counts, never its best one. Panels have to be the same, by their hash. One setting alone
            is a table of its runs, before and after.

            With two or more seeds on both sides an interval lets seeds and tasks vary: another experiment with new seeds on other
            tasks of the kind. With one seed it lets tasks vary alone, and says so. docs/comparing.md has the formulas.

            examples:
              sdar compare runs/grpo runs/sdar
              sdar compare GRPO=runs/quickstart/version_1 SDAR=runs/quickstart/version_0 --picture compared.svg
              sdar compare runs/quickstart/version_1,runs/quickstart/version_3 runs/quickstart/version_0,runs/quickstart/version_2
              sdar compare runs/grpo runs/sdar runs/sod --panel unseen --iteration 100 --json compared.json > compared.md""",
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUNS", help="settings, each by the folders of its runs")
    parser.add_argument("--panel", help="compare on this panel alone; by default on all that every run measured")
    parser.add_argument(
        "--iteration", type=int, metavar="N", help="compare the measurements after N iterations; by default each run's last"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same numbers for programs")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw curves and differences (.svg, .png, .pdf; needs matplotlib)"
    )
    return parser
