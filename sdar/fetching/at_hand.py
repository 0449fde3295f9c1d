"""The files of a data set among what lies on this machine: a folder, an archive, a compressed file, told by their content."""

import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from sdar.errors import FetchError
from sdar.fetching.catalogue import DataFile
from sdar.reading import path_below


@dataclass
class Content:
    """Bytes that somebody may have meant."""

    name: str
    """Path, the folder's own name first, or path in the archive."""
    size: int | None
    """None: known when it was read."""
    open: Callable[[], Any]


def take_file(file: DataFile, source: Path, target: Path) -> None:
    """Copy the file that was meant from a folder or an archive to `target`: the one with its SHA-256, also where it is compressed by
    gzip or is called otherwise; where no SHA-256 is known, the one with its name.

    Raises:
        FetchError: it is not there.
    """
    names = {PurePosixPath(file.name).name, PurePosixPath(file.url.partition("?")[0]).name}
    for found in contents(source):
        if file.bytes is not None and found.size not in (None, file.bytes):
            continue
        if file.sha256 is None and PurePosixPath(found.name).name not in names:
            continue
        part = target.with_name(target.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with found.open() as content, part.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
        with part.open("rb") as copied:
            same = file.sha256 in (None, hashlib.file_digest(copied, "sha256").hexdigest())
        if same and file.bytes in (None, part.stat().st_size):
            os.replace(part, target)
            return
        part.unlink()
    what = f"SHA-256 {file.sha256}" if file.sha256 else f"the name {' or '.join(sorted(names))}"
    raise FetchError(
        f"{source} holds no file with {what}, which {file.name} has (as it is, or in .gz, .zip, .whl or .tar). {_from(file)}"
    )


def take_folder(file: DataFile, source: Path, into: Path) -> int:
    """Copy what is kept of an archive below `into`; returns how many files. `source` is that archive, or another with the same files, or
    a folder that holds them or such an archive.

    Raises:
        FetchError: there are none.
    """
    count = 0
    for found in tqdm(contents(source), desc=f"files of {source.name}", unit="", leave=False, disable=None):
        parts = PurePosixPath(found.name).parts
        if file.unpack not in parts[:-1] or file.only not in ("", parts[-1]):
            continue
        into.mkdir(parents=True, exist_ok=True)
        target = path_below(into, "/".join(parts[parts.index(file.unpack) :]), str(source), FetchError)
        target.parent.mkdir(parents=True, exist_ok=True)
        with found.open() as content, target.open("wb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
        count += 1
    if not count:
        raise FetchError(f"{source} holds no {file.unpack}/**/{file.only or '*'}, nor an archive that does. {_from(file)}")
    return count


def contents(source: Path) -> Iterator[Content]:
    """All files of a folder and of the archives in it, or of one archive, or the one file; what is compressed by gzip comes as it is and
    as what it holds."""
    if not source.is_dir():
        yield from _contents(source, source.name)
        return
    source = source.resolve()
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (is_archive(path), path)):  # those take long to look through
        yield from _contents(path, path.relative_to(source.parent).as_posix())


def is_archive(path: Path) -> bool:
    """Whether a file is called like an archive that can be read here."""
    return path.suffix in (".zip", ".whl", ".tgz") or ".tar" in path.suffixes[-2:]


def _contents(path: Path, name: str) -> Iterator[Content]:
    if path.suffix in (".zip", ".whl"):
        with _zip(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield Content(member.filename, member.file_size, partial(archive.open, member))
    elif is_archive(path):
        with _tar(path) as packed:
            for entry in packed:
                if entry.isfile():
                    yield Content(entry.name, entry.size, partial(_member, packed, entry))
    else:
        yield Content(name, path.stat().st_size, partial(path.open, "rb"))
        if path.suffix == ".gz":
            yield Content(name.removesuffix(".gz"), None, partial(gzip.open, path))


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise FetchError(f"{path} cannot be read as an archive ({error}). Give it whole.") from None


def _tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r|*")  # one after the other: an archive that is compressed has no other order
    except (tarfile.TarError, OSError, EOFError) as error:
        raise FetchError(f"{path} cannot be read as an archive ({error}). Give it whole.") from None


def _member(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(entry)
    assert content is not None, "asked for files alone"
    return content


def _from(file: DataFile) -> str:
    return f"Give the folder or file that holds it, or leave --from out to fetch it from {file.url.partition('?')[0]}."
