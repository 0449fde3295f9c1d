"""``sdar figures``: a figure of a paper as SVG and its numbers as CSV, from runs that are there or are made for it."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from sdar.cli.failure import say
from sdar.cli.own_words import parser_of
from sdar.errors import ConfigError
from sdar.figures import guidance, results, training  # noqa: F401  (their figures are registered)
from sdar.figures.base import FIGURES, Chart, Figure, Table
from sdar.figures.making import make
from sdar.registry import did_you_mean
from sdar.report.figures import check_drawing
from sdar.report.gather import Run, runs_of

ELSEWHERE = (
    ("Revisiting OPD (2603.25562): bias and variance of token and sequence level", "docs/variance.md",
     "python benchmarks/estimator_variance.py --page docs/variance.md"),
    ("Revisiting OPD (2603.25562): tokenizer and special-token mismatch", "docs/tokenizers.md",
     "python benchmarks/other_tokenizer.py --page docs/tokenizers.md"),
)  # fmt: skip
"""Paper, page and command of figures that are no function of runs."""


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: there is no such figure; runs lack what it needs; matplotlib is not installed.
    """
    asked = _parser().parse_args(list(words))
    if asked.name is None:
        say(listed())
        return 0
    if asked.name not in FIGURES:
        raise ConfigError(
            f"there is no figure {asked.name!r}.{did_you_mean(asked.name, FIGURES)} `sdar figures` lists them: {', '.join(FIGURES)}."
        )
    figure = FIGURES[asked.name]
    if bool(asked.runs) is asked.make:
        made = f", or --make to train {', '.join(figure.made)} on the quickstart's world" if figure.made else ""
        fact = "names runs and says --make: one of the two" if asked.make else "names no run"
        raise ConfigError(f"sdar figures {figure.name} {fact}. Give folders of runs{made}.")
    if asked.env_steps < 1:
        raise ConfigError(f"--env_steps is {asked.env_steps}: give how often a run may act, at least 1.")
    check_drawing()
    named = make(figure, asked.made, asked.seeds, asked.env_steps) if asked.make else asked.runs
    charts = drawn(figure, named)
    say("\n".join([*(chart.markdown() for chart in charts if isinstance(chart, Table)), *written(figure, charts, asked.to)]))
    return 0


def drawn(figure: Figure, named: Sequence[str]) -> list[Chart]:
    """The charts of a figure for runs, each ``[LABEL=]FOLDER[,FOLDER...]``.

    Raises:
        ConfigError: a folder is no run; a run lacks what the figure needs, with how to get it.
    """
    settings: dict[str, list[Run]] = {}
    for run in runs_of(named):
        settings.setdefault(run.label, []).append(run)
    return figure.draw(settings)


def written(figure: Figure, charts: Sequence[Chart], folder: Path) -> list[str]:
    """Write the pictures and all numbers; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [chart.svg() for chart in charts if not isinstance(chart, Table)]
    paths = [folder / f"{figure.name}{f'-{number}' * (len(pictures) > 1)}.svg" for number in range(1, len(pictures) + 1)]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_text(picture, encoding="utf-8")
    numbers = folder / f"{figure.name}.csv"
    rows = [row for chart in charts for row in chart.rows()]
    with numbers.open("w", newline="", encoding="utf-8") as out:
        table = csv.DictWriter(out, [*dict.fromkeys(name for row in rows for name in row)])
        table.writeheader()
        table.writerows(rows)
    return [str(path) for path in (*paths, numbers)]


def listed() -> str:
    """Every figure: name, paper, what differs."""
    own = [f"{f.name}{'' if f.made else '  (no --make)'}\n    {f.shows}\n    differs: {f.differs}" for f in FIGURES.values()]
    other = [f"{page}\n    {shows}\n    {command}" for shows, page, command in ELSEWHERE]
    return "\n".join([*own, "", "no function of runs:", *other])


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "figures",
        """\
            Draw a figure or a table of the papers from what runs left: SVG files, and every number of them as CSV. Without a name: list
            them, with what differs from the paper's.

            A setting is a run's folder, a folder with runs of several seeds (version_N), or folders joined by commas. Folders of
            `sdar score` are drawn as runs are. docs/figures.md has a line for each figure.

            examples:
              sdar figures
              sdar figures gap_by_turn runs/quickstart/version_0
              sdar figures learning_curves GRPO=runs/grpo SDAR=runs/sdar --to paper
              sdar figures gates --make --seeds 0 1 2""",
    )
    parser.add_argument("name", nargs="?", help="which one")
    parser.add_argument("runs", nargs="*", metavar="[LABEL=]RUNS", help="settings, each by the folders of its runs")
    parser.add_argument("--to", type=Path, default=Path("figures"), metavar="FOLDER", help="where the files go (figures)")
    parser.add_argument(
        "--make", action="store_true", help="train the runs that the figure compares on the quickstart's world, minutes each on one "
        "core; those that are there are not trained again",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of --make (0)")
    parser.add_argument("--env_steps", type=int, default=20000, metavar="N", help="actions of each run of --make (20000)")
    parser.add_argument(
        "--made", type=Path, default=Path("runs/figures"), metavar="FOLDER", help="of --make's runs (runs/figures)"
    )
    return parser
