"""A file from the network: resumed where it stopped, and taken only if it is the file that was meant."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from sdar.errors import FetchError
from sdar.fetching.catalogue import DataFile
from sdar.http_client import RequestFailed, download, shown

ATTEMPTS = 5
"""In a row that bring nothing new, before a download is given up; what came stays for the next call."""


def fetch_file(file: DataFile, target: Path, progress: Callable[[int, int | None], None], pause: float = 1.0) -> None:
    """Download a file to `target`, by way of a file with the suffix ``.part`` that a later call goes on with.

    Args:
        progress: Told how many bytes are there, and of how many (None: nobody knows).
        pause: Seconds before the first further attempt; doubled each time.

    Raises:
        FetchError: no room, no answer, or another file than was meant.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    here = part.stat().st_size if part.exists() else 0
    if file.bytes is not None and file.bytes - here > (free := shutil.disk_usage(part.parent).free):
        raise FetchError(
            f"{shown(file.url)} has {file.bytes:,} bytes, and {part.parent} has room for {free:,}. Make room, or set SDAR_DATA to a folder "
            "of another disk."
        )
    failed = 0
    while file.bytes is None or here != file.bytes:
        try:
            download(file.url, part, progress)
            break
        except RequestFailed as error:
            now = part.stat().st_size if part.exists() else 0
            failed, here = (0 if now > here else failed) + 1, now
            if failed == ATTEMPTS or error.kind == "refused":
                raise FetchError(
                    f"{error}. {now:,} bytes are kept in {part}: the same command goes on from there. Where there is no "
                    "network, fetch the file elsewhere and give it with --from."
                ) from None
            time.sleep(pause * 2 ** (failed - 1))
    if wrong := what_differs(file, part):
        part.unlink()
        raise FetchError(f"{shown(file.url)} is another file than was meant: {wrong}. It is not kept; try again later.")
    os.replace(part, target)


def what_differs(file: DataFile, path: Path) -> str:
    """How a file differs from the one that was meant; empty: in nothing that is known of it."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"it has {size:,} bytes instead of {file.bytes:,}"
    if file.sha256 is not None and (found := digest(path)) != file.sha256:
        return f"its SHA-256 is {found} instead of {file.sha256}"
    return ""


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
