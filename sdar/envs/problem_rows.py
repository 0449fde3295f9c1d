"""Rows of files of problems and of conversations: JSONL, CSV or parquet, their columns in any case."""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdar.errors import ConfigError
from sdar.paths import how_to_fetch, resolve
from sdar.reading import excerpt, read_json_lines
from sdar.versions import install

LONGEST_FIELD = 1 << 20
"""Characters of a field of a CSV file."""


def file_rows(path: str, option: str = "env.files", noun: str = "problem") -> tuple[list[tuple[str, Any]], str]:
    """Place (``FILE, row 3``) and value of every row of a file, and a digest of the file's content.

    A column is called by its name in lower case; where a file has two that differ in case only, the one in lower case counts. A row
    that is no object stays what it is.

    Args:
        option: The setting that names the file.
        noun: What a row holds.

    Raises:
        ConfigError: the file is none, or cannot be read; it names the line or row.
    """
    file = resolve(path)
    if not file.is_file():
        fault = "is no file" if file.exists() else "does not exist"
        raise ConfigError(
            f"{option} names {path}, which {fault}. Give the path of a JSONL, CSV or parquet file.{how_to_fetch(path)}"
        )
    if file.suffix == ".parquet":
        rows: Iterator[Any] | list[Any] = _parquet(file)
    elif file.name.endswith((".csv", ".csv.gz")):
        rows = _csv(file)
    else:
        rows = (row for _, row in read_json_lines(file))
    found = [(f"{path}, row {number}", _in_lower_case(row)) for number, row in enumerate(rows, 1)]
    if not found:
        raise ConfigError(f"{option}: {path} holds no {noun}. Give a file with one row a {noun}.")
    with file.open("rb") as content:
        return found, hashlib.file_digest(content, "sha256").hexdigest()


def columns(row: dict[str, Any]) -> str:
    """The names of a row's columns, for an error."""
    return excerpt(", ".join(row), 300)


def _in_lower_case(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    lower = {name.strip().lower(): value for name, value in reversed(row.items())}  # of several the first
    return {name: row.get(name, lower[name]) for name in reversed(lower)}


def _csv(file: Path) -> Iterator[dict[str, str]]:
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as packed:
            text = io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")
            rows = csv.reader(text, strict=True)
            names = next(rows, [])
            for number, row in enumerate((row for row in rows if row), 1):
                if len(row) != len(names):
                    raise ConfigError(
                        f"{file}, row {number} has {len(row)} fields, but the first line names {len(names)} columns: a text with commas, "
                        "quotation marks or line breaks stands in quotation marks. Write the row again."
                    )
                yield dict(zip(names, row, strict=True))
    except (csv.Error, UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} cannot be read as CSV ({error}). Write it again in UTF-8, or give JSONL.") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(file: Path) -> list[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{file} is parquet and pyarrow is not installed. Install it ({install('math')}).") from error
    try:
        return pyarrow.parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise ConfigError(f"{file} cannot be read as parquet ({error}). Write it again, or give JSONL.") from error
