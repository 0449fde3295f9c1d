"""Episodes from disk as objects: of this release, of earlier ones, compressed or not."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from sdar.episodes.files import ENDING, episode_files
from sdar.episodes.schema import VERSION, StoredEpisode
from sdar.episodes.where import condition
from sdar.errors import ConfigError
from sdar.reading import convert, parse_json

ADVICE = "Episodes are lines that a run wrote (docs/episodes.md)."
Paths = str | Path | Sequence[str | Path]


def read(path: Paths, where: str | None = None, kind: str | None = None) -> list[StoredEpisode]:
    """Episodes of a run, in the order in which they were written.

    Args:
        path: Folder of a run, folder of several, file of episodes, or a list of these.
        where: Only those of which this is true, e.g. ``success == 0 and family == "heat"`` (`sdar.episodes.condition`).
        kind: Only those of ``train``, ``validation`` or ``predict``.

    Raises:
        ConfigError: there is nothing at `path`; a line is no episode, or of a later version; `where` is no condition.
    """
    return list(stream(path, where, kind))


def stream(path: Paths, where: str | None = None, kind: str | None = None) -> Iterator[StoredEpisode]:
    """`read`, one episode after the other: none of them stays in memory."""
    chosen = None if where is None else condition(where)
    for file in files_of(path):
        for line_number, line in _lines(file):
            episode = _episode(line, f"{file}, line {line_number}", file)
            if kind in (None, episode.kind) and (chosen is None or chosen(episode)):
                yield episode


def files_of(path: Paths) -> list[Path]:
    """The files of episodes that are meant.

    Raises:
        ConfigError: there are none.
    """
    found: list[Path] = []
    for one in [path] if isinstance(path, str | Path) else path:
        files = [Path(one)] if Path(one).is_file() else episode_files(Path(one))
        if not files:
            raise ConfigError(
                f"{one} holds no episodes (*{ENDING}, *.jsonl). Name the folder of a run, e.g. runs/quickstart/version_0, or files. Which "
                "iterations of a run are written says --model.log_episodes_every."
            )
        found += files
    return found


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with something in them. Of a file that was written line by line (by an earlier release) the last may be half."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                whole = line.endswith(b"\n") or line.rstrip().endswith(b"}")
                if line.strip() and whole:
                    yield number, line
    except (OSError, EOFError, zlib.error) as bad:
        raise ConfigError(f"{file} cannot be read ({getattr(bad, 'strerror', None) or bad}). {ADVICE}") from None


def _episode(line: bytes, where: str, file: Path) -> StoredEpisode:
    try:
        episode = _DECODER.decode(line)
    except (ValueError, RecursionError):  # half a surrogate pair, which msgspec refuses; or an error that shall be told
        episode = convert(parse_json(line, where, advice=ADVICE), StoredEpisode, where, advice=ADVICE)
    if episode.schema > VERSION:
        raise ConfigError(
            f"{where} is of version {episode.schema} of the schema, and this release knows {VERSION}. Use the release that wrote it, or a "
            "later one."
        )
    if episode.kind is None:  # of before there was a version: the name of its file says it
        _date(episode, file)
    return episode


def _date(episode: StoredEpisode, file: Path) -> None:
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    head, _, last = name.rpartition("-")
    if last.isdecimal():
        episode.iteration = int(last)
    panel, _, actor = head.rpartition("-")
    if head == "train":
        episode.kind = "train"
    elif name.startswith("predict-"):
        episode.kind, episode.panel = "predict", name.removeprefix("predict-")
    elif actor in ("policy", "privileged"):
        episode.kind, episode.panel, episode.actor = "validation", panel, actor


_DECODER = msgspec.json.Decoder(StoredEpisode)
