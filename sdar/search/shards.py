"""The folder of an index: a manifest, and shards that each hold some thousand passages and what was made of them.

A file or folder is either whole or not there: everything is written under another name first.
"""

import gzip
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from sdar.errors import ConfigError
from sdar.paths import how_to_fetch, resolve
from sdar.reading import convert, parse_json, read_json
from sdar.search.base import Passage

FORMAT = 1
SAMPLE = 1 << 20
"""Bytes at the start, the middle and the end of a corpus that name it."""


class _Manifest(msgspec.Struct):
    format: int
    settings: dict[str, Any]
    shards: list[Annotated[int, msgspec.Meta(ge=0)]]
    complete: bool


def corpus_identity(corpus: Path) -> dict[str, Any]:
    """Size and a digest of three samples: reading all of a large corpus only to recognise it would take minutes."""
    size, digest = corpus.stat().st_size, hashlib.sha256()
    with corpus.open("rb") as file:
        for start in (0, size // 2, max(0, size - SAMPLE)):
            file.seek(start)
            digest.update(file.read(SAMPLE))
    return {"bytes": size, "sha256_of_samples": digest.hexdigest()}


def open_corpus(corpus: Path) -> IO[bytes]:
    return gzip.open(corpus, "rb") if corpus.suffix == ".gz" else corpus.open("rb")  # type: ignore[return-value]


def find_corpus(corpus: str) -> Path:
    """The file that a setting names.

    Raises:
        ConfigError: there is none.
    """
    if not (path := resolve(corpus)).is_file():
        told = f"corpus {corpus} does not exist: name a JSONL file of passages (it may end in .gz)."
        raise ConfigError(told + how_to_fetch(corpus))
    return path


def read_corpus(corpus: Path, skip: int = 0) -> Iterator[tuple[str, str]]:
    """(id, contents) of every line of a JSONL file that is not blank, without the first `skip` of them.

    Raises:
        ConfigError: a line that is no passage.
    """
    passages = 0
    with open_corpus(corpus) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            passages += 1
            if passages > skip:
                yield parse_passage(line, f"{corpus}, line {number}")


def parse_passage(line: bytes, where: str) -> tuple[str, str]:
    """(id, contents) of a line ``{"id": ..., "contents": "\\"Title\\"\\ntext"}``; title and text may stand apart instead."""
    data = parse_json(line, where, advice="A corpus has one object with id and contents on each line.")
    contents = contents_of(data)
    if contents is None or not isinstance(data.get("id"), str | int):
        raise ConfigError(
            f'{where} is no passage: it needs "id" (text or number) and "contents" (the title in quotation marks, a line break, the text).'
        )
    return str(data["id"]), contents


def contents_of(document: object) -> str | None:
    """The contents of a passage as people write them: in one piece, or as title and text. None: it is no passage."""
    if not isinstance(document, dict):
        return None
    if isinstance(contents := document.get("contents"), str):
        return contents
    title, text = document.get("title"), document.get("text")
    return f'"{title}"\n{text}' if isinstance(title, str) and isinstance(text, str) else None


def write_passages(folder: Path, passages: Sequence[tuple[str, str]]) -> None:
    """`passages.jsonl` and where each of its lines begins."""
    lines = [json.dumps({"id": i, "contents": contents}).encode() + b"\n" for i, contents in passages]
    (folder / "passages.jsonl").write_bytes(b"".join(lines))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, lines)], dtype=np.uint64))


class StoredPassages:
    """The passages of a shard, read from disk one by one."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        with (folder / "passages.jsonl").open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Passage:
        line = self._bytes[int(self._offsets[number]) : int(self._offsets[number + 1])]
        return Passage(*parse_passage(line, f"{self._folder / 'passages.jsonl'}, line {number + 1}"))


class IndexFolder:
    """The manifest and the shards of an index that is built or read."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> "IndexFolder":
        """Begin an index, or go on with one that was begun with the same settings.

        Raises:
            ConfigError: the folder holds another index, or something else.
        """
        if not (path / "manifest.json").is_file():
            if path.exists() and any(p for p in path.iterdir() if not p.name.endswith(".part")):
                raise ConfigError(
                    f"{path} holds files, but no manifest.json of an index: nothing is overwritten. Use an empty folder."
                )
            path.mkdir(parents=True, exist_ok=True)
            index = cls(path, {"format": FORMAT, "settings": settings, "shards": [], "complete": False})
            index.save()
            return index
        index = cls.open(path, unfinished=True)
        found = index.manifest["settings"]
        for key in [*settings, *(k for k in found if k not in settings)]:
            if found.get(key) != settings.get(key):
                raise ConfigError(
                    f"{path} holds an index with {key} {found.get(key)!r}, but {settings.get(key)!r} was asked for: mixing "
                    "the two would find nonsense. Use another folder, or remove that one."
                )
        return index

    @classmethod
    def open(cls, path: Path, unfinished: bool = False) -> "IndexFolder":
        """An index on disk.

        Raises:
            ConfigError: none is there, or it is not finished.
        """
        if not (path / "manifest.json").is_file():
            raise ConfigError(
                f"{path} is no search index: it has no manifest.json. Make one with `sdar build-index`."
            ) from None
        advice = "Build the index again in an empty folder."
        manifest = read_json(path / "manifest.json", advice=advice)
        read = convert(manifest, _Manifest, f"{path}/manifest.json", advice=advice)
        version, complete, shards = read.format, read.complete, len(read.shards)
        if version != FORMAT:
            raise ConfigError(f"{path} has format {version}, this version reads {FORMAT}: build the index again.")
        if not complete and not unfinished:
            raise ConfigError(
                f"the index {path} is not finished ({shards} shards so far): it would find part of the corpus only. Run the "
                "same `sdar build-index` again; it goes on where it stopped."
            )
        return cls(path, manifest)

    @property
    def shards(self) -> list[Path]:
        return [self.path / f"shard-{i:05d}" for i in range(len(self.manifest["shards"]))]

    @property
    def passages(self) -> int:
        return sum(self.manifest["shards"])

    def part(self, name: str) -> Path:
        """An empty folder to write into; `finish` gives it its name."""
        folder = self.path / f"{name}.part"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self, part: Path) -> None:
        target = part.with_suffix("")
        shutil.rmtree(target, ignore_errors=True)  # written, but not yet in the manifest when the process died
        os.replace(part, target)

    def save(self) -> None:
        write_whole(self.path / "manifest.json", json.dumps(self.manifest, indent=1).encode() + b"\n")


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that it is never seen half."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(data)
    os.replace(part, file)
