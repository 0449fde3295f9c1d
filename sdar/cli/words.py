"""The words of a command line: which command, which files, which settings, in the order in which the later wins."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdar.cli.commands import COMMANDS, no_command, unknown_command
from sdar.errors import ConfigError
from sdar.paths import installed_settings, resolve
from sdar.reading import parse_yaml, read_yaml

FILE_OPTIONS = ("-c", "--config")
SWITCHES = ("-h", "--help", "--print_config", "--version")
"""Options that no value follows."""


@dataclass(frozen=True)
class Text:
    """The value of a setting as it stands in a command line."""

    text: str
    append: bool = False
    """Written ``--key+=value``: one more item of a list."""


@dataclass(frozen=True)
class Source:
    """Settings that were written in one place."""

    content: dict[str, Any]
    file: Path | None = None
    """None: the command line, also where it holds YAML."""
    key: str = ""
    """The one setting of a command line, as it was written."""


def options(args: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Option and value of each setting; the option is empty for a word that follows none, the value None where none follows."""
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not _is_option(word):
            yield "", word
        elif "=" in word:
            yield word[: word.index("=")], word[word.index("=") + 1 :]
        elif word in SWITCHES or not rest or _is_option(rest[0]):
            yield word, None
        else:
            yield word, rest.pop(0)


def config_files(args: Iterable[str]) -> list[Path]:
    """What follows ``-c`` or ``--config`` in a command line, where it is a path and no inline YAML."""
    return [Path(value) for option, value in options(args) if option in FILE_OPTIONS and value and not _is_inline(value)]


def find_config_files(args: list[str]) -> list[str]:
    """The command line with configuration files that only the installed settings have (``conf/...``) named where they lie."""
    found = {str(path): str(resolve(path)) for path in config_files(args)}
    return [found.get(a) or (f"--config={found[a[9:]]}" if a[:9] == "--config=" and a[9:] in found else a) for a in args]


def asks_for_help(args: Iterable[str]) -> bool:
    return any(word in ("-h", "--help") or re.fullmatch(r"--[\w.]+\.help(=.*)?", word) for word in args)


def sources(args: Iterable[str]) -> Iterator[Source]:
    """What the files and words behind a command set, one after the other.

    Raises:
        ConfigError: a file that does not exist or holds no settings; a word that is no setting; a setting without a value.
    """
    for option, value in options(args):
        if option in SWITCHES:
            continue
        if not option:
            raise ConfigError(
                f"unexpected argument {value!r}: commands come first, settings look like --trainer.max_steps 10."
            )
        if value is None:
            raise ConfigError(
                f"{option.lstrip('-')}: a value must follow. One that begins with a dash is joined to it: {option}=-1e-3."
            )
        if option in FILE_OPTIONS:
            inline = _is_inline(value)
            content = parse_yaml(value, f"{option} {value[:50]}") if inline else _read(Path(value))
            yield Source(content if isinstance(content, dict) else {}, None if inline else Path(value))
        else:
            key = option.lstrip("-")
            node: Any = Text(value, key.endswith("+"))
            for name in reversed(key.removesuffix("+").split(".")):
                node = {name: node}
            yield Source(node, None, key.removesuffix("+"))


def _is_option(word: str) -> bool:
    """As `argparse` sees it: a negative number and a text with a space are values."""
    return len(word) > 1 and word[0] == "-" and not re.fullmatch(r"-\d+|-\d*\.\d+", word) and " " not in word.partition("=")[0]


def _is_inline(value: str) -> bool:
    return re.search(r"[{\n]|: ", value) is not None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"configuration file {path} does not exist.{_nearest_file(path)}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping with keys such as model, data, trainer.")
    return content


def _nearest_file(path: Path) -> str:
    beside = [p for p in (path.parent if path.parent.is_dir() else Path()).iterdir() if p.suffix in (".yaml", ".yml", ".json")]
    conf = installed_settings()
    installed = [Path("conf", p.relative_to(conf)) for p in conf.glob("**/*.yaml")]
    known = {str(p) for p in [*beside, *installed]}
    close = difflib.get_close_matches(str(path), known, 1, 0.6)
    if not close:
        by_name = {Path(p).name: p for p in sorted(known)}
        close = [by_name[name] for name in difflib.get_close_matches(path.name, by_name, 1, 0.6)]
    return f" Did you mean {close[0]}?" if close else f" The working directory is {os.getcwd()}."


def find_command(args: Iterable[str]) -> str:
    """The command of a command line.

    Raises:
        ConfigError: there is none, or none of that name.
    """
    words = [*args]
    while words and words[0] in FILE_OPTIONS:  # files may stand before it
        words = words[2:]
    command = next((word for word in words if not _is_option(word)), None)
    if command is None:
        raise ConfigError(no_command())
    if command not in COMMANDS:
        raise ConfigError(unknown_command(command))
    return command
