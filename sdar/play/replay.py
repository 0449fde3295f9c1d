"""``sdar play --episode RUN``: stored episodes, turn by turn."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sdar.cli.failure import say
from sdar.cli.own_words import parser_of
from sdar.episodes.reading import stream
from sdar.episodes.schema import StoredEpisode
from sdar.episodes.told import end, head, outcome
from sdar.errors import ConfigError
from sdar.play.screen import QUIT, Shown, ask, has_colours, legend, turn_told


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: nothing is named that could be played; no episode is there.
    """
    asked = _parser().parse_args(list(words))
    if asked.episode is None:
        raise ConfigError(
            "play needs a world or an episode: give the settings of a world, e.g. sdar play -c conf/env/quickstart.yaml, or a run whose "
            "episodes are shown, e.g. sdar play --episode runs/quickstart/version_0."
        )
    colours = has_colours({"auto": None, "always": True, "never": False}[asked.colour])
    number = 0
    for number, e in enumerate(stream(asked.episode, asked.where, asked.kind), 1):
        if not _replay(e, number, asked.by, colours):
            return 0
    if not number:
        condition = f" of which {asked.where} is true" if asked.where else ""
        raise ConfigError(
            f"--episode {' '.join(map(str, asked.episode))}: there is no episode{condition}. `sdar episodes` lists those that are there."
        )
    say("That was the last episode.")
    return 0


def _replay(e: StoredEpisode, number: int, shown: Shown, colours: bool) -> bool:
    """Show an episode turn by turn; whether the next one is wanted."""
    lines = [f"episode {number}", *head(e)]
    if any(getattr(turn, shown) is not None for turn in e.turns):
        lines.append(legend(shown, colours))
    elif e.turns:
        lines.append(f"No {shown} is stored of its tokens; `sdar score` finds what a teacher thinks of them.")
    say("\n".join(lines))
    for place, turn in enumerate(e.turns):
        if not _goes_on(f"Enter: turn {place} of {len(e.turns)}; q: stop ", f"before turn {place} of episode {number}"):
            return False
        say(turn_told(turn, place, shown, colours))
    say("\n".join([*end(e), f"outcome: {outcome(e)}", ""]))
    return _goes_on("Enter: the next episode; q: stop ", f"behind episode {number}")


def _goes_on(prompt: str, where: str) -> bool:
    word = ask(prompt)
    if word is None:
        say(f"The input ended {where}.")
    return word is not None and word.strip().lower() not in QUIT


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "play",
        """\
            Show stored episodes turn by turn: what was seen, what the teacher was told, and each token by what it thinks of it.

            examples:
              sdar play --episode runs/quickstart/version_0 --where 'kind == "train" and success == 0'""",
    )
    parser.add_argument(
        "--episode", nargs="+", type=Path, metavar="RUN", help="folder of a run, of several, or file of episodes"
    )
    parser.add_argument("--where", metavar="CONDITION", help="only those of which it is true, as in `sdar episodes`")
    parser.add_argument(
        "--kind", choices=["train", "validation", "predict"], help="only those of training, or only measured ones"
    )
    parser.add_argument("--by", choices=get_args(Shown), default="gap", help="the number of each token that is shown (gap)")
    parser.add_argument(
        "--colour", choices=["auto", "always", "never"], default="auto", help="colours, or numbers in brackets"
    )
    return parser
