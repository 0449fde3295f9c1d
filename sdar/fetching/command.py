"""``sdar fetch``: official data and models, from where they are published or from files at hand."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from sdar.cli.failure import fail
from sdar.cli.own_words import parser_of
from sdar.errors import ConfigError, FetchError
from sdar.fetching.at_hand import take_file, take_folder
from sdar.fetching.catalogue import DataFile, DataSet, catalogue, find_data_set
from sdar.fetching.download import digest, fetch_file, what_differs
from sdar.paths import data_folder

UNPACKED = ".unpacked"
"""Lists the archives of a data set that were unpacked into its folder, a line each."""


def main(words: Sequence[str]) -> int:
    """Run the command with the words behind its name, and return the exit code.

    Raises:
        ConfigError: a name that no data set has; --from leads nowhere.
    """
    asked = _parser().parse_args(list(words))
    if asked.source is not None and not asked.source.exists():
        raise ConfigError(f"--from {asked.source}: there is no such folder or file.")
    if not asked.names:
        print(overview())
        return 0
    sets = {name: find_data_set(name) for name in dict.fromkeys(asked.names)}
    try:
        for name, data_set in sets.items():
            print(check(name, data_set) if asked.check else fetch(name, data_set, asked.source), flush=True)
    except FetchError as error:
        return fail(1, error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: the same command goes on from here.\n")
        return 130
    return 0


def fetch(name: str, data_set: DataSet, source: Path | None = None) -> str:
    """Bring the files of a data set that are not here yet, and say where they are and how they are used.

    Args:
        source: A folder or an archive on this machine that holds them; None: the network.

    Raises:
        FetchError: one that cannot be had, or is another than was meant.
    """
    folder = data_folder() / name
    missing = [file for file in data_set.files if not is_here(file, folder)]
    told = [f"{name}: {data_set.about}. Licence: {data_set.licence} ({data_set.home})"]
    if missing:
        print(told.pop(), flush=True)  # before the bytes come
    for file in missing:
        target = folder / file.name
        if source is None:
            with tqdm(desc=f"{name}/{file.name}", total=file.bytes, unit="B", unit_scale=True, disable=None) as bar:
                fetch_file(file, target, partial(_show, bar))
        elif file.unpack:
            take_folder(file, source, folder)
        else:
            take_file(file, source, target)
        if file.unpack:
            if target.exists():
                take_folder(file, target, folder)
                target.unlink()
            with (folder / UNPACKED).open("a", encoding="utf-8") as done:
                done.write(f"{file.name}\n")
        elif file.sha256 is None:
            told.append(f"SHA-256 of {target}: {digest(target)} (nobody tells one to compare it with)")
    told.append(f"{'is' if missing else 'was already'} in {folder}; to use it: {data_set.use}")
    return "\n".join([*told, *filter(None, [data_set.note])])


def check(name: str, data_set: DataSet) -> str:
    """Compare the files that are here with those that were meant.

    Raises:
        FetchError: one is not here, or differs.
    """
    folder = data_folder() / name
    for file in data_set.files:
        if not is_here(file, folder):
            raise FetchError(f"{folder / file.name} is not here, or has another size: run `sdar fetch {name}`.")
        if not file.unpack and (wrong := what_differs(file, folder / file.name)):
            raise FetchError(
                f"{folder / file.name} is another file than was meant: {wrong}. Delete it and run `sdar fetch {name}`."
            )
    known = all(file.sha256 for file in data_set.files)
    return f"{name}: {folder} holds what was meant" + (
        "" if known else ", as far as names and sizes tell (not every SHA-256 is known)"
    )


def is_here(file: DataFile, folder: Path) -> bool:
    """Whether a file was fetched whole; its content is not read."""
    if not file.unpack:
        path = folder / file.name
        return path.is_file() and file.bytes in (None, path.stat().st_size)
    done = folder / UNPACKED
    return done.is_file() and file.name in done.read_text(encoding="utf-8").split()


def overview() -> str:
    """Every data set: its name, what it is, how large, under which licence, and whether it is here."""
    lines = []
    for name, data_set in catalogue().items():
        here = all(is_here(file, data_folder() / name) for file in data_set.files)
        size = "size not told" if data_set.bytes is None else f"{data_set.bytes / 1e6:,.1f} MB"
        lines.append(f"  {name:<19}{data_set.about} ({size}, {data_set.licence}){', here' if here else ''}")
    return "\n".join(
        [f"Data sets and models, fetched to {data_folder()} (SDAR_DATA):", *lines, "", "sdar fetch --help tells more."]
    )


def _show(bar: "tqdm[None]", here: int, total: int | None) -> None:
    if bar.total is None and total is not None:
        bar.total = total
    bar.update(here - bar.n)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "fetch",
        """\
            Fetch official data and models, from their original addresses or from files at hand. Without a name: which there are.

            Stopped, it goes on when run again. A file is taken only if it is the one that was meant, by size and SHA-256 where
            these are known. Settings name what was fetched as NAME/FILE, wherever it lies: gsm8k/train.jsonl. The folder is
            $SDAR_DATA, else ~/.cache/sdar/data.

            examples:
              sdar fetch gsm8k math500
              sdar fetch alfworld --from alfworld_games.tar.xz
              sdar fetch smollm2-135m --check""",
        allow_abbrev=True,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets or models")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="PATH", help="a folder or an archive that holds the files: no network"
    )
    parser.add_argument("--check", action="store_true", help="compare what is here with what was meant, and fetch nothing")
    return parser
