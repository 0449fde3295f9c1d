"""Files of episodes: JSON lines in gzip. A file appears whole or not at all, and writing it again replaces it, so that a run that was
killed leaves nothing that cannot be read, and one that goes on writes no iteration twice."""

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

ENDING = ".jsonl.gz"
LEFT_OUT = "left_out.jsonl"
"""In the folder of the episodes: a line for each file that a limit kept from being written."""
OTHERS = (LEFT_OUT, "validation.jsonl", "retrievals.jsonl", "alarms.jsonl")
"""JSON lines of a run that are no episodes."""
LEVEL = 4
"""Of gzip: of larger ones files get hardly smaller, and writing takes longer."""


class EpisodeFiles:
    """The episodes of a run, below a folder.

    Args:
        folder: ``episodes`` of the run; it is made when there is something to write.
        limit: Most bytes of all files together; None: no bound. What would pass it is left out, and `left_out` says so.
    """

    def __init__(self, folder: Path, limit: float | None = None):
        self.folder, self.limit = folder, limit
        self._bytes: int | None = None

    @property
    def bytes(self) -> int:
        """Of all files. They are looked at once: nobody else writes here."""
        if self._bytes is None:
            self._bytes = sum(file.stat().st_size for file in episode_files(self.folder))
        return self._bytes

    def write(self, name: str, episodes: Sequence[Mapping[str, Any]]) -> Path | None:
        """``<name>.jsonl.gz``, a line an episode; None where the limit leaves no room for it."""
        path = self.folder / f"{name}{ENDING}"
        old = [path, path.with_suffix("")]  # without .gz: of an earlier release
        content = gzip.compress(b"".join(map(encode_line, episodes)), LEVEL, mtime=0)
        size = self.bytes - sum(file.stat().st_size for file in old if file.exists()) + len(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.limit is not None and size > self.limit:
            told = {"file": f"{name}{ENDING}", "episodes": len(episodes), "bytes": len(content), "limit": int(self.limit)}
            with (self.folder / LEFT_OUT).open("a", encoding="utf-8") as out:
                out.write(json.dumps(told) + "\n")
            return None
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(content)
        os.replace(new, path)
        old[1].unlink(missing_ok=True)
        self._bytes = size
        return path


def encode_line(episode: Mapping[str, Any]) -> bytes:
    """A line of the file."""
    try:
        return msgspec.json.encode(episode) + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair: its escape
        return json.dumps(episode, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def episode_files(path: Path) -> list[Path]:
    """The files of episodes below a folder: of a run, of several, of files; in the order in which they were written: by kind, then by
    iteration; those of several worlds lie in folders."""
    folder = path / "episodes" if (path / "episodes").is_dir() else path
    found = [file for ending in ("*.jsonl", f"*{ENDING}") for file in folder.rglob(ending)]
    return sorted(file for file in found if file.name not in OTHERS and not file.name.startswith("."))


def file_of(folder: Path, name: str) -> Path:
    """Where the episodes of a name are: as they are written now, or by an earlier release where only that is there."""
    path = folder / f"{name}{ENDING}"
    old = path.with_suffix("")
    return old if old.is_file() and not path.is_file() else path


def left_out(path: Path) -> dict[str, int]:
    """Name of each file that the limit kept from being written -> how many episodes it had; those that were written later are not there."""
    folder = path / "episodes" if (path / "episodes").is_dir() else path
    if not (folder / LEFT_OUT).is_file():
        return {}
    lines: Iterable[bytes] = (folder / LEFT_OUT).read_bytes().splitlines()
    told = [msgspec.json.decode(line) for line in lines if line.endswith(b"}")]
    return {line["file"]: line["episodes"] for line in told if not (folder / line["file"]).exists()}
